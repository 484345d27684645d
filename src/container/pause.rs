//! `pause` and `unpause`: podman-pause(1), podman-unpause(1); and the moment for which a container stands still so that a
//! snapshot is made of it.
//!
//! Whoever freezes a container or lets it go on holds a lock meanwhile, so that nobody lets one go on that another has just
//! paused. While it is frozen for a moment only, a file says so: who finds that with its lock free lets it go on, because who
//! was to do that has been killed.

use super::leftover;
use super::processes::{Process, processes};
use super::top;
use crate::error::{Context, Error, Kind, Result};
use crate::name::Id;
use crate::sandbox::{self, Freezers};
use crate::snapshot::{self, Source};
use crate::store::{Freezing, Shelf, Store, kind_word};

/// Freezes every process of a running container.
///
/// # Errors
/// A container that does not run or is paused already ([`Kind::Invalid`]); a host that cannot freeze.
pub fn pause(store: &Store, text: &str) -> Result<Id> {
    change(store, text, true).context(|| format!("pause container {text}"))
}

/// Lets a paused container go on.
///
/// # Errors
/// A container that is not paused ([`Kind::Invalid`]).
pub fn unpause(store: &Store, text: &str) -> Result<Id> {
    change(store, text, false).context(|| format!("unpause container {text}"))
}

fn change(store: &Store, text: &str, freezes: bool) -> Result<Id> {
    let container = super::find(store, text)?;
    top::running(&container)?;
    let mut freezing = store.lock_freezing(&container.id)?;
    let container = super::open(store, &container.id)?;
    let first = top::running(&container)?;
    let name = leftover::cgroup_name(store, &container.id);
    // What somebody has frozen for a moment and was killed is not paused, and nobody is about to let it go on.
    match (freezes, container.paused && !freezing.is_for_a_moment()) {
        (true, true) => return Err(Error::new(Kind::Invalid, "it is paused already")),
        (false, false) if !container.paused => return Err(Error::new(Kind::Invalid, "it is not paused")),
        (true, false) => freeze(&name, first)?,
        (false, _) => sandbox::thaw(&name)?,
    }
    freezing.set_for_a_moment(false)?;
    Ok(container.id)
}

fn freeze(name: &str, first: i32) -> Result<()> {
    // One that has ended, with all its threads, and was not waited for is listed in no cgroup of v1.
    let ended = |process: &Process| process.state.starts_with(['Z', 'X']) && process.threads <= 1;
    sandbox::freeze(name, || {
        let all = processes(first)?.into_iter();
        Ok(all.filter(|process| !ended(process)).map(|process| process.pid).collect())
    })
}

/// Makes snapshots of `text`, as [`snapshot::create`] does. If that is a container that runs, all its processes stand still
/// while they are made, unless `pause` is false; one that is paused already stays so.
///
/// # Errors
/// Those of [`snapshot::create`]; a host that cannot freeze.
pub fn snapshot(store: &Store, text: &str, create: &snapshot::Create, pause: bool) -> Result<Vec<Id>> {
    snapshot::create_held(store, text, create, |source| if pause { hold_source(store, source) } else { Ok(None) })
}

/// A container that stands still until this is dropped.
pub(super) struct Held {
    name: String,
    freezing: Freezing,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Somebody paused it before, and it stays so.
        if !self.freezing.is_for_a_moment() {
            return;
        }
        if let Err(e) = sandbox::thaw(&self.name).and_then(|()| self.freezing.set_for_a_moment(false)) {
            log::warn!("let the container go on: {e}");
        }
    }
}

/// Holds what a snapshot is about to be made of, if that is a container that runs.
pub(super) fn hold_source(store: &Store, source: &Source) -> Result<Option<Held>> {
    match source {
        Source { kind, id: Some(id), .. } if kind == kind_word(Shelf::Containers) => hold(store, id),
        _ => Ok(None),
    }
}

/// Holds a container, if it runs.
fn hold(store: &Store, id: &Id) -> Result<Option<Held>> {
    if store.running(id).is_none() {
        return Ok(None);
    }
    let freezing = store.lock_freezing(id);
    // It may have ended meanwhile.
    let Some(running) = store.running(id) else { return Ok(None) };
    let freezing = freezing?;
    let mut held = Held { name: leftover::cgroup_name(store, id), freezing };
    if held.freezing.is_for_a_moment() || !Freezers::default().is_frozen(&held.name)? {
        held.freezing.set_for_a_moment(true)?;
        freeze(&held.name, running.pid)
            .context(|| "freeze the container")
            .map_err(|e| e.with_hint("--no-pause takes it as it is while it runs"))?;
    }
    Ok(Some(held))
}

/// Lets a container go on that [was left](Store::left_freezing) frozen, and clears what says so.
pub(crate) fn thaw_left(store: &Store, id: &Id) -> Result<()> {
    let mut freezing = match store.lock_freezing(id) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()), // it has ended meanwhile
        freezing => freezing?,
    };
    if freezing.is_for_a_moment() {
        sandbox::thaw(&leftover::cgroup_name(store, id))?;
        freezing.set_for_a_moment(false)?;
    }
    Ok(())
}
