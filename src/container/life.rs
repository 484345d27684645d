//! The verbs: create, run, start, remove.

use std::os::fd::AsFd;

use jiff::Timestamp;

use super::compose::{Options, compose};
use super::{Ended, Record, State, names};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{process, signal};
use crate::name::{Id, ObjectName};
use crate::sandbox::{self, Exit, Facts, Spec, Status};
use crate::snapshot::{self, Resolved};
use crate::store::{Found, Running, Shelf, Store, record};
use crate::subvolume::{Active, New};

/// Told of each step as it is done: in words, and as the command that a person would type for it.
pub type Narrate<'a> = &'a dyn Fn(&str, &str);

/// What a new container is made of.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// An image, a snapshot or a container, by name or id.
    pub source: String,
    /// Its name; by default one is made up.
    pub name: Option<ObjectName>,
    /// It goes when its command ends.
    pub auto_remove: bool,
    /// The kind of the caller's terminal.
    pub term: Option<String>,
    /// What it runs, and with what.
    pub options: Options,
}

/// A container that exists and is locked by us.
struct Held {
    active: Active,
    found: Found,
    record: Record,
    spec: Spec,
}

/// Makes a container without starting it, and returns its id: durable when it returns.
pub fn create(store: &Store, create: &Create) -> Result<Id> {
    let held = make(store, create, &|_, _| {}).context(|| format!("container from {}", create.source))?;
    Ok(held.found.id)
}

/// Makes a container, runs its command in the foreground and, with `auto_remove`, removes it without a trace.
pub fn run(store: &Store, create: &Create, narrate: Narrate<'_>) -> Result<Exit> {
    process::require_single_thread()?;
    let held = make(store, create, narrate).context(|| format!("container from {}", create.source))?;
    supervise(store, held, narrate)
}

/// Runs the command of a container that was created, or has ended, in the foreground.
pub fn start(store: &Store, text: &str, narrate: Narrate<'_>) -> Result<Exit> {
    process::require_single_thread()?;
    let found = store.find_among(text, &[Shelf::Containers])?;
    let active = Active::open(store, found).map_err(|e| match e.kind() {
        Kind::InUse => Error::new(Kind::InUse, format!("container {text}: running already")),
        _ => e,
    })?;
    let spec = super::open(store, &found.id)?.spec;
    let record: Record = record::read(active.dir())?.ok_or_else(|| Error::new(Kind::Store, "no record"))?;
    supervise(store, Held { active, found, record, spec }, narrate)
}

/// Narrates what [`run`] would do, and does nothing.
pub fn explain(store: &Store, create: &Create, narrate: Narrate<'_>) -> Result<()> {
    let id = store.new_id()?;
    let resolved = snapshot::resolve(store, &create.source)?;
    let spec = spec(create, &resolved, &id)?;
    let path = store.rootfs_path(Shelf::Containers, &id);
    let rootfs = resolved.parent.rootfs(&path, spec.read_only)?;
    let plan = sandbox::plan(&spec, &Facts::gather(&spec, &rootfs, &id.to_string())?)?;
    narrate_snapshot(&resolved, &path, narrate);
    plan.steps().iter().for_each(|step| narrate(&step.describe(), &step.command()));
    if create.auto_remove {
        narrate_removal(&path, narrate);
    }
    Ok(())
}

/// Removes a container. One that runs is refused, or with `force` killed first. With `dry_run` nothing is changed.
pub fn remove(store: &Store, text: &str, force: bool, dry_run: bool) -> Result<Id> {
    let found = store.find_among(text, &[Shelf::Containers])?;
    let container = super::open(store, &found.id)?;
    if let State::Running(running) = &container.state {
        if !force {
            let message = format!("remove container {text}: it is running");
            return Err(Error::new(Kind::InUse, message).with_hint("end it first, or use --force to kill it"));
        }
        if !dry_run {
            kill(store, &found.id, running)?;
        }
    }
    if dry_run {
        return Ok(found.id);
    }
    let removed = match force {
        // Who ran it gives it up when its command is dead, and may remove it first.
        true => Active::open_wait(store, found),
        false => Active::open(store, found),
    };
    match removed {
        Ok(active) => discard(store, active, found, container.name.as_ref()),
        Err(e) if force && e.kind() == Kind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
    .context(|| format!("remove container {text}"))?;
    Ok(found.id)
}

/// Kills a container's first process, and with it all of them.
fn kill(store: &Store, id: &Id, running: &Running) -> Result<()> {
    let Some(process) = process::open(running.pid)? else { return Ok(()) };
    match store.running(id).as_ref() == Some(running) {
        true => signal::send(process.as_fd(), signal::SIGKILL),
        false => Ok(()), // the number was another's already
    }
}

fn make(store: &Store, create: &Create, narrate: Narrate<'_>) -> Result<Held> {
    let found = Found { shelf: Shelf::Containers, id: store.new_id()? };
    let resolved = snapshot::resolve(store, &create.source)?;
    let spec = spec(create, &resolved, &found.id)?;
    let image = resolved.image.as_ref().map(|image| image.id);
    if let Some(image) = &image {
        store.set_last_image(image)?;
    }
    let name = match &create.name {
        Some(name) => Some(name.clone()),
        // Nobody has the time to call a throwaway by its name.
        None if create.auto_remove => None,
        None => Some(names::free(store)?),
    };
    let record = Record {
        name: name.clone(),
        created: Timestamp::now(),
        source: resolved.source.clone(),
        image,
        auto_remove: create.auto_remove,
        started: None,
        ended: None,
    };
    let json = serde_json::to_vec(&spec).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    narrate_snapshot(&resolved, &store.rootfs_path(found.shelf, &found.id), narrate);
    let new = New {
        found,
        name: name.as_ref(),
        record: &record,
        read_only: false,
        spec: Some(&json),
        durable: !create.auto_remove,
    };
    let active = Active::create(store, &resolved.parent, &new)?;
    Ok(Held { active, found, record, spec })
}

fn spec(create: &Create, resolved: &Resolved, id: &Id) -> Result<Spec> {
    let config = resolved.image.as_ref().and_then(|image| image.config.config().as_ref());
    compose(&create.options, config, id, create.term.as_deref())
}

/// From the snapshot to the exit status, and what is left after it: the record, or nothing.
fn supervise(store: &Store, mut held: Held, narrate: Narrate<'_>) -> Result<Exit> {
    let exit = enter(store, &mut held, narrate);
    store.forget_running(&held.found.id);
    let path = store.rootfs_path(held.found.shelf, &held.found.id);
    let kept = match held.record.auto_remove {
        true => {
            narrate_removal(&path, narrate);
            discard(store, held.active, held.found, held.record.name.as_ref())
        }
        false => match &exit {
            Ok(exit) => note_end(&mut held, exit),
            Err(_) => Ok(()), // it never ran
        },
    };
    match (exit, kept) {
        (Ok(exit), kept) => kept.map(|()| exit),
        (Err(cause), kept) => {
            if let Err(e) = kept {
                log::warn!("clean up after container {}: {e}", held.found.id.short());
            }
            Err(cause)
        }
    }
}

fn enter(store: &Store, held: &mut Held, narrate: Narrate<'_>) -> Result<Exit> {
    let rootfs = held.active.rootfs(held.spec.read_only)?;
    let facts = Facts::gather(&held.spec, &rootfs, &held.found.id.to_string())?;
    let plan = sandbox::plan(&held.spec, &facts)?;
    let running = sandbox::start(&plan, rootfs, &|step| narrate(&step.describe(), &step.command()))?;
    held.record.started = Some(Timestamp::now());
    held.record.ended = None;
    if !held.record.auto_remove {
        record::write(held.active.dir(), &held.record)?;
    }
    store.note_running(&held.found.id, running.pid())?;
    running.supervise()
}

fn note_end(held: &mut Held, exit: &Exit) -> Result<()> {
    let exit_code = match exit.status {
        Status::Code(code) => code,
        Status::Signal(signal) => 128 + u8::try_from(signal).unwrap_or(127),
    };
    let finished = Timestamp::now();
    let started = held.record.started.unwrap_or(finished);
    held.record.ended = Some(Ended { started, finished, exit_code, oom_killed: exit.oom_killed });
    record::write(held.active.dir(), &held.record)
}

fn discard(store: &Store, active: Active, found: Found, name: Option<&ObjectName>) -> Result<()> {
    active.remove(store)?;
    match name {
        Some(name) => store.release_name(name, found),
        None => Ok(()),
    }
}

fn narrate_snapshot(resolved: &Resolved, path: &std::path::Path, narrate: Narrate<'_>) {
    let source = &resolved.source;
    narrate(
        &format!("make a copy-on-write snapshot of {} {}", source.kind, source.name),
        &format!("btrfs subvolume snapshot {} {}", resolved.path.display(), path.display()),
    );
}

fn narrate_removal(path: &std::path::Path, narrate: Narrate<'_>) {
    narrate("remove the snapshot", &format!("btrfs subvolume delete {}", path.display()));
}
