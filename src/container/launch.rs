//! From a container that is made or at rest to one that its monitor runs.

use std::os::fd::AsFd;

use super::life::{
    Create, Narrate, Prepared, make, narrate_afterwards, narrate_removal, narrate_snapshot, plan_at, prepare,
};
use super::monitor::{self, Attach, Event};
use super::session::{Attachment, Parted, Session};
use super::{Container, State, networks, size, volumes};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::socket;
use crate::name::Id;
use crate::rootfs::Rootfs;
use crate::sandbox::{BlockedSignals, Plan, Spec};
use crate::store::{Found, Shelf, Store};
use crate::subvolume::{Active, Place};

/// A container that has just been started.
#[derive(Debug)]
pub struct Launched {
    /// Its id.
    pub id: Id,
    session: Option<Session>,
    /// What there is to tell when it has ended.
    plan: Option<Plan>,
    removes: Option<std::path::PathBuf>,
}

/// Makes a container and starts it: with an `attachment` somebody is at it from its first word on, without one it runs
/// for itself.
pub fn launch(
    store: &Store,
    create: &Create,
    attachment: Option<Attachment>,
    narrate: Option<Narrate<'_>>,
) -> Result<Launched> {
    let doing = || format!("container from {}", create.source);
    let mut prepared = prepare(store, create, false).context(doing)?;
    if create.auto_remove {
        // One whose monitor never came to life goes.
        prepared.record.started = Some(prepared.record.created);
    }
    let root = prepared.resolved.parent.rootfs(&prepared.path, prepared.spec.read_only).context(doing)?;
    let _intent = store.intend().context(doing)?;
    // The monitor makes another. What this host cannot do is better known before anything is made.
    let planned = planned(store, &prepared.spec, &root, prepared.found, narrate).call_context(doing)?;
    let place = Place::claim(store, prepared.found).context(doing)?;
    if let Some(narrate) = narrate {
        volumes::narrate(store, &prepared, narrate).context(doing)?;
        narrate_snapshot(&prepared, narrate);
    }
    let provided = volumes::provide(store, &prepared).context(doing)?;
    let active = make(store, &mut prepared, place).context(doing)?;
    provided.keep();
    let Prepared { found, spec, path, .. } = prepared;
    let booted = boot(store, found, active, &spec, attachment, narrate.is_some());
    if booted.is_err() && create.auto_remove {
        // Its monitor has ended, and may have done it.
        match Active::open_wait(store, found).and_then(|active| volumes::remove_with(store, active, &spec)) {
            Err(e) if e.kind() != Kind::NotFound => log::warn!("remove container {}: {e}", found.id.short()),
            _ => {}
        }
    }
    let session = booted.call_context(doing)?;
    let removes = create.auto_remove.then_some(path);
    Ok(Launched { id: found.id, session, plan: planned, removes })
}

/// Starts a container that was created, or has ended. One that runs already is attached to, if there is an `attachment`.
pub fn start(
    store: &Store,
    text: &str,
    attachment: Option<Attachment>,
    narrate: Option<Narrate<'_>>,
) -> Result<Launched> {
    let doing = || format!("start container {text}");
    let found = store.find_among(text, &[Shelf::Containers]).call_context(doing)?;
    let container = super::open(store, &found.id).context(doing)?;
    let id = found.id;
    let attachment =
        attachment.map(|wanted| Attachment { input: wanted.input && container.spec.interactive, ..wanted });
    if matches!(container.state, State::Running(_)) {
        let session = attachment.map(|attachment| super::attach::session(store, &container, attachment)).transpose();
        return Ok(Launched { id, session: session.context(doing)?, plan: None, removes: None });
    }
    let busy = |e: Error| match e.kind() {
        Kind::InUse => Error::new(Kind::InUse, format!("container {text}: running already")),
        _ => e,
    };
    let active = Active::open(store, found).map_err(busy).call_context(doing)?;
    let Container { spec, auto_remove, size_limit, .. } = container;
    volumes::require(store, &spec).context(doing)?;
    let root = active.rootfs(spec.read_only).context(doing)?;
    if let Some(limit) = size_limit {
        // A rollback may have given it another subvolume.
        if let Some(narrate) = narrate {
            size::narrate(&root.path, limit, narrate);
        }
        size::ensure(store, root.dir.as_fd(), limit).context(doing)?;
    }
    let planned = match narrate {
        Some(_) => planned(store, &spec, &root, found, narrate).call_context(doing)?,
        None => {
            networks::check(store, &found.id, &spec).context(doing)?;
            None
        }
    };
    let session = boot(store, found, active, &spec, attachment, narrate.is_some()).call_context(doing)?;
    let removes = auto_remove.then(|| store.rootfs_path(found.shelf, &found.id));
    Ok(Launched { id, session, plan: planned, removes })
}

impl Launched {
    /// Stays with it until it ends, or the person lets go; `None` where nobody is at it.
    pub fn follow(self, narrate: Option<Narrate<'_>>) -> Result<Option<Parted>> {
        let Some(session) = self.session else { return Ok(None) };
        let parted = session.follow().context(|| format!("container {}", self.id.short()))?;
        if let (Some(narrate), Parted::Exited(_)) = (narrate, parted) {
            self.plan.iter().for_each(|plan| narrate_afterwards(plan, narrate));
            self.removes.iter().for_each(|path| narrate_removal(path, narrate));
        }
        Ok(Some(parted))
    }
}

/// Whether this host can run it. The plan is kept for who wants to be told.
fn planned(
    store: &Store,
    spec: &Spec,
    root: &Rootfs,
    found: Found,
    narrate: Option<Narrate<'_>>,
) -> Result<Option<Plan>> {
    networks::check(store, &found.id, spec)?;
    let planned = plan_at(store, spec, root, found, None)?;
    Ok(narrate.map(|_| planned.plan))
}

/// Hands the container, and its lock, to a monitor, and waits until its command runs.
fn boot(
    store: &Store,
    found: Found,
    active: Active,
    spec: &Spec,
    attachment: Option<Attachment>,
    explain: bool,
) -> Result<Option<Session>> {
    let attachment = attachment.map(|wanted| Ok::<_, Error>((wanted, BlockedSignals::block()?))).transpose()?;
    let hello = Attach { output: attachment.is_some(), log: false, ends_input: true };
    let level = log::max_level().to_string();
    let words = [level.as_str(), "explain"];
    let words = if explain { &words[..] } else { &words[..1] };
    let socket = monitor::spawn(store, &found.id, active.dir(), &hello, words)?;
    // The monitor has the same open directory, and with it the lock.
    drop(active);
    loop {
        let silent = || Error::new(Kind::Io, "start the container's monitor: it ended without a word");
        let (message, _) = socket::receive(socket.as_fd())?.ok_or_else(silent)?;
        match Event::decode(&message)? {
            Event::Began => break,
            Event::Failed(e) => return Err(e),
            _ => {}
        }
    }
    Ok(attachment.map(|(attachment, signals)| Session { socket, tty: spec.tty, attachment, signals }))
}
