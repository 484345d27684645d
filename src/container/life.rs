//! The verbs create, run in the foreground of a throwaway, and remove.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::compose::{Options, compose};
use super::record::{Life, Record};
use super::stop::kill;
use super::{State, health, leftover, names, volumes};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::process;
use crate::name::{Id, ObjectName};
use crate::rootfs::Rootfs;
use crate::sandbox::{self, Exit, Facts, Maps, Plan, Shell, Spec, Streams};
use crate::snapshot::{self, Resolved};
use crate::store::{Found, IdLease, Running, Shelf, Store};
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
    /// A file that its id is written to, and that must not be there yet.
    pub id_file: Option<PathBuf>,
    /// The kind of the caller's terminal.
    pub term: Option<String>,
    /// What it runs, and with what.
    pub options: Options,
}

/// A container that is about to be made: everything but its snapshot.
pub(super) struct Prepared {
    pub found: Found,
    /// Nobody chose the name.
    name_made_up: bool,
    id_file: Option<PathBuf>,
    pub resolved: Resolved,
    pub record: Record,
    pub spec: Spec,
    pub path: PathBuf,
}

/// Makes a container without starting it, and returns its id: durable when it returns.
pub fn create(store: &Store, create: &Create) -> Result<Id> {
    let doing = || format!("container from {}", create.source);
    let mut prepared = prepare(store, create, false).context(doing)?;
    let _intent = store.intend()?;
    let place = Place::claim(store, prepared.found).context(doing)?;
    let provided = volumes::provide(store, &prepared).context(doing)?;
    make(store, &mut prepared, place).context(doing)?;
    provided.keep();
    Ok(prepared.found.id)
}

/// Makes a container, runs its command in the foreground and removes it without a trace.
///
/// It is this process's own, without a monitor: nobody can attach to it or read its log, and it ends with this process.
///
/// The snapshot is made while the new process sets its namespaces up, unless somebody listens: a story is told in order.
pub fn run(store: &Store, create: &Create, narrate: Option<Narrate<'_>>) -> Result<Exit> {
    let doing = || format!("container from {}", create.source);
    let mut prepared = prepare(store, create, create.auto_remove).context(doing)?;
    // Its life is not written when it starts, so one that is killed is seen as started, and goes.
    prepared.record.started = Some(prepared.record.created);
    let root = prepared.resolved.parent.rootfs(&prepared.path, prepared.spec.read_only).context(doing)?;
    // Before anything is made on the host for it; the intent lasts until all of that is gone.
    let _intent = store.intend().context(doing)?;
    let (plan, _ids) = plan(store, &prepared.spec, &root, prepared.found).call_context(doing)?;
    let place = Place::claim(store, prepared.found).context(doing)?;
    if let Some(narrate) = narrate {
        volumes::narrate(store, &prepared, narrate).context(doing)?;
        narrate_snapshot(&prepared, narrate);
    }
    let provided = volumes::provide(store, &prepared).context(doing)?;
    let mut active = None;
    let make_rootfs = || {
        let active = active.insert(make(store, &mut prepared, place)?);
        active.rootfs(prepared.spec.read_only)
    };
    let started = match narrate {
        Some(narrate) => {
            let rootfs = make_rootfs().call_context(doing)?;
            start_sandbox(&plan, None, || Ok(rootfs), Some(narrate))
        }
        None => start_sandbox(&plan, None, make_rootfs, None),
    }
    .call_context(doing);
    match (active, started) {
        (Some(active), started) => {
            provided.keep();
            conclude(store, active, &prepared, &plan, started, narrate)
        }
        (None, Err(cause)) => Err(cause),
        (None, Ok(_)) => Err(Error::new(Kind::Io, "the container started without its root")),
    }
}

/// Narrates what [`run`] would do, and does nothing.
pub fn explain(store: &Store, create: &Create, narrate: Narrate<'_>) -> Result<()> {
    let prepared = prepare(store, create, create.auto_remove)?;
    let root = prepared.resolved.parent.rootfs(&prepared.path, prepared.spec.read_only)?;
    let (plan, _ids) = plan(store, &prepared.spec, &root, prepared.found)?;
    volumes::narrate(store, &prepared, narrate)?;
    narrate_snapshot(&prepared, narrate);
    plan.steps().iter().for_each(|step| narrate(step.shell(), &step.describe(), &step.command()));
    narrate_afterwards(&plan, narrate);
    if create.auto_remove {
        narrate_removal(&prepared.path, narrate);
    }
    Ok(())
}

/// How a container is removed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Removal {
    /// One that runs is killed first; else it is refused.
    pub force: bool,
    /// Its volumes that nobody named go, too.
    pub volumes: bool,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// Removes a container.
pub fn remove(store: &Store, text: &str, removal: &Removal) -> Result<Id> {
    let Removal { force, volumes: with_volumes, dry_run } = *removal;
    let doing = || format!("remove container {text}");
    let found = store.find_among(text, &[Shelf::Containers]).call_context(doing)?;
    // One whose record is damaged can be removed, too.
    let container = super::open(store, &found.id);
    let state = container.as_ref().map(|container| container.state.clone());
    let runs = matches!(state, Ok(State::Running(_) | State::Restarting(_)));
    let refused = || Error::new(Kind::InUse, "it is running").with_hint("end it first, or use --force to kill it");
    if dry_run {
        return if runs && !force { Err(refused()).context(doing) } else { Ok(found.id) };
    }
    if force {
        kill(store, &found.id).context(doing)?;
    }
    let removed = match force {
        // Who ran it gives it up when its command is dead, and may remove it first.
        true => Active::open_wait(store, found),
        // The lock decides: of a container that nobody holds, what still runs outlived a tupper that was killed.
        false => Active::open(store, found).map_err(|e| match e.kind() {
            Kind::InUse if runs => refused(),
            _ => e,
        }),
    };
    match removed {
        // What belongs to it on the host goes first: nobody would look for it once the container is gone.
        Ok(active) => leftover::clear_host(store, &found.id).and_then(|()| {
            let Ok(container) = &container else { return active.remove(store) };
            if with_volumes || container.auto_remove {
                return volumes::remove_with(store, active, &container.spec);
            }
            volumes::disown_anonymous(store, &container.spec)?;
            active.remove(store)
        }),
        Err(e) if force && e.kind() == Kind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
    .context(doing)?;
    Ok(found.id)
}

/// A container's first process, if it is still that.
pub(super) fn open_process(store: &Store, id: &Id, running: &Running) -> Result<Option<OwnedFd>> {
    let process = process::open(running.pid)?;
    // Otherwise the number was another's already.
    Ok(process.filter(|_| store.running(id).as_ref() == Some(running)))
}

/// Decides everything about a new container, and changes nothing. A `throwaway` lives as long as its command in the
/// foreground.
pub(super) fn prepare(store: &Store, create: &Create, throwaway: bool) -> Result<Prepared> {
    let found = Found { shelf: Shelf::Containers, id: store.new_id()? };
    let resolved = snapshot::resolve(store, &create.source)?;
    let config = resolved.image.as_ref().and_then(|image| image.config.config().as_ref());
    let mut spec = compose(&create.options, config, &found.id, create.term.as_deref())?;
    let declared = resolved.image.as_ref().and_then(|image| image.health.as_ref());
    spec.health = health::decide(&create.options.health, declared)?;
    volumes::decide(store, &mut spec)?;
    let name = match &create.name {
        Some(name) => Some(name.clone()),
        // Nobody has the time to call a throwaway by its name.
        None if throwaway => None,
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
    let id_file = create.id_file.clone();
    Ok(Prepared { found, name_made_up, id_file, resolved, record, spec, path })
}

/// Makes its snapshot, with record and name. A made-up name that another took meanwhile is made up again.
pub(super) fn make<'a>(store: &'a Store, prepared: &mut Prepared, mut place: Place<'a>) -> Result<Active> {
    if let Some(image) = &prepared.record.image {
        store.set_last_image(image)?;
    }
    let spec = serde_json::to_vec(&prepared.spec).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    let id_file = prepared.id_file.as_deref().map(IdFile::make).transpose()?;
    let active = loop {
        let new =
            New { name: prepared.record.name.as_ref(), record: &prepared.record, read_only: false, spec: Some(&spec) };
        match place.fill(&prepared.resolved.parent, &new) {
            Err(e) if e.kind() == Kind::AlreadyExists && prepared.name_made_up => {
                prepared.record.name = Some(names::free(store)?);
                place = Place::claim(store, prepared.found)?;
            }
            made => break made?,
        }
    };
    if let Some(id_file) = id_file
        && let Err(e) = id_file.write(&prepared.found.id)
    {
        active.remove(store)?;
        return Err(e);
    }
    Ok(active)
}

/// The file that a new container's id is written to: taken before the container is made, and gone when it is not.
struct IdFile<'a> {
    path: &'a Path,
    file: File,
    written: bool,
}

impl IdFile<'_> {
    fn make(path: &Path) -> Result<IdFile<'_>> {
        let made = File::create_new(path).map_err(|e| Error::from_io(format_args!("cidfile {}", path.display()), e));
        let hint = |e: Error| if e.kind() == Kind::AlreadyExists { e.with_hint("remove it first") } else { e };
        Ok(IdFile { path, file: made.map_err(hint)?, written: false })
    }

    fn write(mut self, id: &Id) -> Result<()> {
        let written = self.file.write_all(id.to_string().as_bytes());
        written.map_err(|e| Error::from_io(format_args!("cidfile {}", self.path.display()), e))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for IdFile<'_> {
    fn drop(&mut self) {
        if !self.written
            && let Err(e) = std::fs::remove_file(self.path)
        {
            log::warn!("remove the cidfile {}: {e}", self.path.display());
        }
    }
}

/// The plan, and the range of ids that it counts on, if the container is to have one of its own.
pub(super) fn plan(store: &Store, spec: &Spec, root: &Rootfs, found: Found) -> Result<(Plan, Option<IdLease>)> {
    let lease = spec.users.wants_range().then(|| store.lease_ids(&found.id)).transpose()?;
    let leased = lease.as_ref().map(|lease| Maps::range(lease.uid, lease.gid));
    let facts = Facts::gather(spec, root, &leftover::cgroup_name(store, &found.id), leased.as_ref())?;
    Ok((sandbox::plan(spec, &facts)?, lease))
}

pub(super) fn start_sandbox(
    plan: &Plan,
    streams: Option<Streams>,
    rootfs: impl FnOnce() -> Result<Rootfs>,
    narrate: Option<Narrate<'_>>,
) -> Result<sandbox::Running> {
    sandbox::start(plan, streams, rootfs, &|step| {
        if let Some(narrate) = narrate {
            narrate(step.shell(), &step.describe(), &step.command());
        }
    })
}

/// From the start to the exit status, after which nothing is left.
fn conclude(
    store: &Store,
    active: Active,
    prepared: &Prepared,
    plan: &Plan,
    started: Result<sandbox::Running>,
    narrate: Option<Narrate<'_>>,
) -> Result<Exit> {
    let id = &prepared.found.id;
    let supervise = |running: sandbox::Running| {
        store.note_running(id, running.pid())?;
        running.supervise().call_context(|| format!("container from {}", prepared.record.source.name))
    };
    let exit = started.and_then(|running| supervise(running).call_context(|| format!("container {}", id.short())));
    store.forget_running(id);
    if let Some(narrate) = narrate {
        narrate_afterwards(plan, narrate);
        narrate_removal(&prepared.path, narrate);
    }
    // Who waits for it has it open, and reads how it ended.
    let noted = exit.as_ref().map_or(Ok(()), |exit| {
        let mut life = Life { started: prepared.record.started, ..Life::default() };
        life.end(exit);
        life.write(active.dir())
    });
    for e in [noted, volumes::remove_with(store, active, &prepared.spec)].into_iter().filter_map(Result::err) {
        // Neither the command's end nor the reason why it did not run is less true for that.
        log::warn!("clean up after container {}: {e}", id.short());
    }
    exit
}

pub(super) fn narrate_snapshot(prepared: &Prepared, narrate: Narrate<'_>) {
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

pub(super) fn narrate_afterwards(plan: &Plan, narrate: Narrate<'_>) {
    plan.afterwards().iter().for_each(|(words, command)| narrate(Shell::Host, words, command));
}

pub(super) fn narrate_removal(path: &Path, narrate: Narrate<'_>) {
    let directory = path.parent().unwrap_or(path).display();
    let command = format!("btrfs subvolume delete {} && rm -r {directory}", path.display());
    narrate(Shell::Host, "remove the snapshot", &command);
}
