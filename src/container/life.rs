//! The verbs: create, run, start, remove.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::compose::{Options, compose};
use super::{Ended, Record, State, leftover, names};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{process, signal};
use crate::name::{Id, ObjectName};
use crate::rootfs::Rootfs;
use crate::sandbox::{self, Exit, Facts, Maps, Plan, Shell, Spec};
use crate::snapshot::{self, Resolved};
use crate::store::{Found, IdLease, Running, Shelf, Store, record};
use crate::subvolume::{Active, New, Place};

/// Told of each step as it is done: in words, and as the command that a person would type for it, and in which shell.
pub type Narrate<'a> = &'a dyn Fn(Shell, &str, &str);

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

/// A container that is about to be made: everything but its snapshot.
struct Prepared {
    found: Found,
    /// Nobody chose the name.
    name_made_up: bool,
    resolved: Resolved,
    record: Record,
    spec: Spec,
    path: PathBuf,
}

/// A container that exists and is locked by us.
struct Held {
    active: Active,
    found: Found,
    record: Record,
}

/// Makes a container without starting it, and returns its id: durable when it returns.
pub fn create(store: &Store, create: &Create) -> Result<Id> {
    let doing = || format!("container from {}", create.source);
    let mut prepared = prepare(store, create).context(doing)?;
    let _intent = store.intend()?;
    let place = Place::claim(store, prepared.found).context(doing)?;
    make(store, &mut prepared, place).context(doing)?;
    Ok(prepared.found.id)
}

/// Makes a container, runs its command in the foreground and, with `auto_remove`, removes it without a trace.
///
/// The snapshot is made while the new process sets its namespaces up, unless somebody listens: a story is told in order.
pub fn run(store: &Store, create: &Create, narrate: Option<Narrate<'_>>) -> Result<Exit> {
    let doing = || format!("container from {}", create.source);
    let mut prepared = prepare(store, create).context(doing)?;
    if create.auto_remove {
        // Its record is not written again when it starts, so one that is killed is seen as started, and goes.
        prepared.record.started = Some(prepared.record.created);
    }
    let root = prepared.resolved.parent.rootfs(&prepared.path, prepared.spec.read_only).context(doing)?;
    // Before anything is made on the host for it; the intent lasts until all of that is gone.
    let _intent = store.intend().context(doing)?;
    let (plan, _ids) = plan(store, &prepared.spec, &root, prepared.found).call_context(doing)?;
    let place = Place::claim(store, prepared.found).context(doing)?;
    if let Some(narrate) = narrate {
        narrate_snapshot(&prepared, narrate);
    }
    let mut active = None;
    let make_rootfs = || {
        let active = active.insert(make(store, &mut prepared, place)?);
        active.rootfs(prepared.spec.read_only)
    };
    let started = match narrate {
        Some(narrate) => {
            let rootfs = make_rootfs().call_context(doing)?;
            start_sandbox(&plan, || Ok(rootfs), Some(narrate))
        }
        None => start_sandbox(&plan, make_rootfs, None),
    }
    .call_context(doing);
    match (active, started) {
        (Some(active), started) => {
            conclude(store, Held { active, found: prepared.found, record: prepared.record }, &plan, started, narrate)
        }
        (None, Err(cause)) => Err(cause),
        (None, Ok(_)) => Err(Error::new(Kind::Io, "the container started without its root")),
    }
}

/// Runs the command of a container that was created, or has ended, in the foreground.
pub fn start(store: &Store, text: &str, narrate: Option<Narrate<'_>>) -> Result<Exit> {
    let doing = || format!("start container {text}");
    let found = store.find_among(text, &[Shelf::Containers]).call_context(doing)?;
    let _intent = store.intend().context(doing)?;
    let (held, rootfs, (plan, _ids)) = prepare_again(store, text, found).call_context(doing)?;
    let started = start_sandbox(&plan, || Ok(rootfs), narrate).call_context(doing);
    conclude(store, held, &plan, started, narrate)
}

/// Locks a container that does not run, and decides everything about running it.
fn prepare_again(store: &Store, text: &str, found: Found) -> Result<(Held, Rootfs, (Plan, Option<IdLease>))> {
    let running = || Error::new(Kind::InUse, format!("container {text}: running already"));
    let active = Active::open(store, found).map_err(|e| if e.kind() == Kind::InUse { running() } else { e })?;
    // If a tupper that ran it was killed, its command may be dying still.
    leftover::clear_host(store, &found.id)?;
    let spec = super::open(store, &found.id)?.spec;
    let record: Record = record::read(active.dir())?.ok_or_else(|| Error::new(Kind::Store, "no record"))?;
    let rootfs = active.rootfs(spec.read_only)?;
    let plan = plan(store, &spec, &rootfs, found)?;
    Ok((Held { active, found, record }, rootfs, plan))
}

/// Narrates what [`run`] would do, and does nothing.
pub fn explain(store: &Store, create: &Create, narrate: Narrate<'_>) -> Result<()> {
    let prepared = prepare(store, create)?;
    let root = prepared.resolved.parent.rootfs(&prepared.path, prepared.spec.read_only)?;
    let (plan, _ids) = plan(store, &prepared.spec, &root, prepared.found)?;
    narrate_snapshot(&prepared, narrate);
    plan.steps().iter().for_each(|step| narrate(step.shell(), &step.describe(), &step.command()));
    narrate_afterwards(&plan, narrate);
    if create.auto_remove {
        narrate_removal(&prepared.path, narrate);
    }
    Ok(())
}

/// Removes a container. One that runs is refused, or with `force` killed first. With `dry_run` nothing is changed.
pub fn remove(store: &Store, text: &str, force: bool, dry_run: bool) -> Result<Id> {
    let doing = || format!("remove container {text}");
    let found = store.find_among(text, &[Shelf::Containers]).call_context(doing)?;
    let container = super::open(store, &found.id).call_context(doing)?;
    let running = match &container.state {
        State::Running(running) => Some(running),
        _ => None,
    };
    let refused = || Error::new(Kind::InUse, "it is running").with_hint("end it first, or use --force to kill it");
    if dry_run {
        return if running.is_some() && !force { Err(refused()).context(doing) } else { Ok(found.id) };
    }
    if force && let Some(running) = running {
        kill(store, &found.id, running).context(doing)?;
    }
    let removed = match force {
        // Who ran it gives it up when its command is dead, and may remove it first.
        true => Active::open_wait(store, found),
        // The lock decides: of a container that nobody holds, what still runs outlived a tupper that was killed.
        false => Active::open(store, found).map_err(|e| match e.kind() {
            Kind::InUse if running.is_some() => refused(),
            _ => e,
        }),
    };
    match removed {
        // What belongs to it on the host goes first: nobody would look for it once the container is gone.
        Ok(active) => leftover::clear_host(store, &found.id).and_then(|()| active.remove(store)),
        Err(e) if force && e.kind() == Kind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
    .context(doing)?;
    Ok(found.id)
}

/// Kills a container's first process, and with it all of them.
pub(super) fn kill(store: &Store, id: &Id, running: &Running) -> Result<()> {
    let Some(process) = process::open(running.pid)? else { return Ok(()) };
    if store.running(id).as_ref() != Some(running) {
        return Ok(()); // the number was another's already
    }
    signal::send(process.as_fd(), signal::SIGKILL)?;
    // What is frozen by the v1 freezer dies when it goes on.
    sandbox::thaw(&leftover::cgroup_name(store, id))
}

/// Decides everything about a new container, and changes nothing.
fn prepare(store: &Store, create: &Create) -> Result<Prepared> {
    let found = Found { shelf: Shelf::Containers, id: store.new_id()? };
    let resolved = snapshot::resolve(store, &create.source)?;
    let config = resolved.image.as_ref().and_then(|image| image.config.config().as_ref());
    let spec = compose(&create.options, config, &found.id, create.term.as_deref())?;
    let name = match &create.name {
        Some(name) => Some(name.clone()),
        // Nobody has the time to call a throwaway by its name.
        None if create.auto_remove => None,
        None => Some(names::free(store)?),
    };
    let record = Record {
        name,
        created: Timestamp::now(),
        source: resolved.source.clone(),
        image: resolved.image.as_ref().map(|image| image.id),
        auto_remove: create.auto_remove,
        started: None,
        ended: None,
    };
    let path = store.rootfs_path(found.shelf, &found.id);
    let name_made_up = create.name.is_none() && record.name.is_some();
    Ok(Prepared { found, name_made_up, resolved, record, spec, path })
}

/// Makes its snapshot, with record and name. A made-up name that another took meanwhile is made up again.
fn make<'a>(store: &'a Store, prepared: &mut Prepared, mut place: Place<'a>) -> Result<Active> {
    if let Some(image) = &prepared.record.image {
        store.set_last_image(image)?;
    }
    let spec = serde_json::to_vec(&prepared.spec).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    loop {
        let new =
            New { name: prepared.record.name.as_ref(), record: &prepared.record, read_only: false, spec: Some(&spec) };
        match place.fill(&prepared.resolved.parent, &new) {
            Err(e) if e.kind() == Kind::AlreadyExists && prepared.name_made_up => {
                prepared.record.name = Some(names::free(store)?);
                place = Place::claim(store, prepared.found)?;
            }
            made => return made,
        }
    }
}

/// The plan, and the range of ids that it counts on, if the container is to have one of its own.
fn plan(store: &Store, spec: &Spec, root: &Rootfs, found: Found) -> Result<(Plan, Option<IdLease>)> {
    let lease = spec.users.wants_range().then(|| store.lease_ids(&found.id)).transpose()?;
    let leased = lease.as_ref().map(|lease| Maps::range(lease.uid, lease.gid));
    let facts = Facts::gather(spec, root, &leftover::cgroup_name(store, &found.id), leased.as_ref())?;
    Ok((sandbox::plan(spec, &facts)?, lease))
}

fn start_sandbox(
    plan: &Plan,
    rootfs: impl FnOnce() -> Result<Rootfs>,
    narrate: Option<Narrate<'_>>,
) -> Result<sandbox::Running> {
    sandbox::start(plan, rootfs, &|step| {
        if let Some(narrate) = narrate {
            narrate(step.shell(), &step.describe(), &step.command());
        }
    })
}

/// From the start to the exit status, and what is left after it: the record, or nothing.
fn conclude(
    store: &Store,
    mut held: Held,
    plan: &Plan,
    started: Result<sandbox::Running>,
    narrate: Option<Narrate<'_>>,
) -> Result<Exit> {
    let doing = format!("container {}", held.found.id.short());
    let exit = started.and_then(|running| supervise(store, &mut held, running).call_context(|| doing));
    store.forget_running(&held.found.id);
    if let Some(narrate) = narrate {
        narrate_afterwards(plan, narrate);
    }
    let kept = match held.record.auto_remove {
        true => {
            if let Some(narrate) = narrate {
                narrate_removal(&store.rootfs_path(held.found.shelf, &held.found.id), narrate);
            }
            held.active.remove(store)
        }
        false => match &exit {
            Ok(exit) => note_end(&mut held, exit),
            Err(_) => Ok(()), // it never ran
        },
    };
    match (exit, kept) {
        (exit, Ok(())) => exit,
        (exit, Err(e)) => {
            // Neither the command's end nor the reason why it did not run is less true for that.
            log::warn!("clean up after container {}: {e}", held.found.id.short());
            exit
        }
    }
}

fn supervise(store: &Store, held: &mut Held, running: sandbox::Running) -> Result<Exit> {
    // A throwaway was recorded as started when it was made.
    let recorded = held.record.auto_remove && held.record.started.is_some();
    held.record.started = Some(Timestamp::now());
    held.record.ended = None;
    if !recorded {
        record::write(held.active.dir(), &held.record)?;
    }
    store.note_running(&held.found.id, running.pid())?;
    running.supervise().call_context(|| format!("container from {}", held.record.source.name))
}

fn note_end(held: &mut Held, exit: &Exit) -> Result<()> {
    let finished = Timestamp::now();
    let started = held.record.started.unwrap_or(finished);
    held.record.ended = Some(Ended { started, finished, exit_code: exit.code(), oom_killed: exit.oom_killed });
    record::write(held.active.dir(), &held.record)
}

fn narrate_snapshot(prepared: &Prepared, narrate: Narrate<'_>) {
    let Resolved { source, path, .. } = &prepared.resolved;
    narrate(
        Shell::Host,
        &format!("make a copy-on-write snapshot of {} {}", source.kind, source.name),
        &format!(
            "mkdir -p {} && btrfs subvolume snapshot {} {}",
            prepared.path.parent().unwrap_or(Path::new("/")).display(),
            path.display(),
            prepared.path.display()
        ),
    );
}

fn narrate_afterwards(plan: &Plan, narrate: Narrate<'_>) {
    plan.afterwards().iter().for_each(|(words, command)| narrate(Shell::Host, words, command));
}

fn narrate_removal(path: &Path, narrate: Narrate<'_>) {
    let directory = path.parent().unwrap_or(path).display();
    let command = format!("btrfs subvolume delete {} && rm -r {directory}", path.display());
    narrate(Shell::Host, "remove the snapshot", &command);
}
