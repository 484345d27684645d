//! The verbs create, run in the foreground of a throwaway, and remove.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::compose::{Options, compose};
use super::gone::{Gone, Rest};
use super::record::{Life, Record};
use super::stop::kill;
use super::{State, health, in_place, leftover, names, networks, pause, size, volumes};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::process;
use crate::name::{Id, ObjectName};
use crate::network::{self, Member, Membership, Mode, Network};
use crate::rootfs::Rootfs;
use crate::sandbox::{self, Exit, Facts, Maps, Plan, Shell, Spec, Step, Streams};
use crate::snapshot::{self, Keep, Resolved};
use crate::store::{Found, IdLease, Running, Shelf, Store, record};
use crate::subvolume::{Active, New, Place, Removed, pool};

/// Told of each step as it is done: in words, and as the command that a person would type for it, and in which shell.
pub type Narrate<'a> = &'a dyn Fn(Shell, &str, &str);

/// What a new container is made of.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// An image, a snapshot or a container, by name or id, or a subvolume by its path.
    pub source: String,
    /// Its name; by default one is made up.
    pub name: Option<ObjectName>,
    /// It goes when its command ends.
    pub auto_remove: bool,
    /// And its tree is kept. For one in the foreground.
    pub keep: Option<Keep>,
    /// It has no tree of its own: it works in the snapshot itself. For [`run_in_place`](super::run_in_place).
    pub in_place: bool,
    /// A snapshot that is ready will do, for one in the foreground that goes: not durable, and faster.
    pub warm: bool,
    /// The most bytes of the disk that may be charged to it, by simple quotas that somebody turned on.
    pub size_limit: Option<u64>,
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
/// What is left when it has ended, nobody sees.
///
/// The snapshot is made while the new process sets its namespaces up, unless somebody listens: a story is told in order.
pub fn run<'a>(store: &'a Store, create: &Create, narrate: Option<Narrate<'_>>) -> Result<Gone<'a>> {
    let doing = || format!("container from {}", create.source);
    let mut prepared = prepare(store, create, create.auto_remove).context(doing)?;
    if let Some(Keep::As(name)) = &create.keep {
        store.require_free(name).context(doing)?;
    }
    // Its life is not written when it starts, so one that is killed is seen as started, and goes.
    prepared.record.started = Some(prepared.record.created);
    let root = prepared.resolved.parent.rootfs(&prepared.path, prepared.spec.read_only).context(doing)?;
    // Before anything is made on the host for it; the intent lasts until all of that is gone.
    let intent = store.intend_for(&prepared.found.id).context(doing)?;
    let tell = narrate.map(network_narrate);
    let Planned { plan, network, beside, ids } = plan(
        store,
        &prepared.spec,
        prepared.record.name.as_ref(),
        &root,
        prepared.found,
        tell.as_ref().map(|tell| tell as _),
    )
    .call_context(doing)?;
    // A story is told of a snapshot that is made.
    let pooled = prepared.resolved.layer.filter(|_| create.warm && create.auto_remove && narrate.is_none());
    if let Some(narrate) = narrate {
        volumes::narrate(store, &prepared, narrate).context(doing)?;
        narrate_snapshot(&prepared, narrate);
    }
    let provided = volumes::provide(store, &prepared).context(doing)?;
    let (mut active, mut low, mut watch) = (None, false, None);
    let mut make_rootfs = || {
        let asked = pooled.and_then(|chain| {
            // One that is made will do as well.
            let asked = pool::take(store, &chain, &prepared.resolved.parent);
            asked.inspect_err(|e| log::debug!("{e}")).ok()
        });
        low = asked.as_ref().is_some_and(|asked| asked.low);
        let place = Place::ready_or_claim(store, prepared.found, asked)?;
        let active = active.insert(make(store, &mut prepared, place)?);
        watch = low.then(|| pool::Watch::begin(active)).transpose()?;
        active.rootfs(prepared.spec.read_only)
    };
    let started = match narrate {
        Some(narrate) => {
            let rootfs = make_rootfs().call_context(doing)?;
            start_sandbox(&plan, None, network.as_ref(), beside, || Ok(rootfs), Some(narrate))
        }
        None => start_sandbox(&plan, None, network.as_ref(), beside, make_rootfs, None),
    }
    .call_context(doing);
    let (exit, removed) = match (active, started) {
        (Some(active), started) => {
            provided.keep();
            conclude(store, active, &prepared, (&plan, network), (started, create.keep.as_ref()), narrate)
        }
        (None, Err(cause)) => (Err(cause), None),
        (None, Ok(_)) => (Err(Error::new(Kind::Io, "the container started without its root")), None),
    };
    let refill = pooled.filter(|_| low && exit.is_ok());
    let refill = refill.map(|chain| {
        let candidates = sandbox::candidates(&prepared.spec.args, &prepared.spec.env);
        (chain, pool::Used { candidates, written: watch.is_some_and(|watch| watch.was_written()) })
    });
    let rest = Rest { store, removed, refill, _ids: ids, _intent: intent };
    exit.map(|exit| Gone { exit, rest, in_the_way: pooled.is_none() })
}

/// Narrates what [`run`] would do, and does nothing.
pub fn explain(store: &Store, create: &Create, narrate: Narrate<'_>) -> Result<()> {
    let prepared = prepare(store, create, create.auto_remove)?;
    let root = prepared.resolved.parent.rootfs(&prepared.path, prepared.spec.read_only)?;
    let Prepared { spec, record, found, .. } = &prepared;
    let tell = network_narrate(narrate);
    let explained = networks::explain(store, &found.id, record.name.as_ref(), spec, &tell)?;
    let place = explained.as_ref().map(|explained| (&explained.network, &explained.member));
    let Planned { plan, .. } = plan_at(store, spec, &root, *found, place)?;
    volumes::narrate(store, &prepared, narrate)?;
    if !create.in_place {
        narrate_snapshot(&prepared, narrate);
    }
    let tell_step = step_narrate(narrate);
    for step in plan.steps() {
        tell_step(step);
        if matches!(step, Step::Clone { .. }) {
            let steps = explained.iter().flat_map(|explained| &explained.steps);
            steps.for_each(|(words, command)| tell(words, command));
        }
    }
    narrate_afterwards(&plan, narrate);
    explained.iter().flat_map(|explained| &explained.afterwards).for_each(|(words, command)| tell(words, command));
    if create.auto_remove && !create.in_place {
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
    if resolved.source.id.is_none() {
        // Nobody has asked what lies in it until now.
        snapshot::warn_of_nested(&resolved)?;
    }
    let config = resolved.image.as_ref().and_then(|image| image.config.config().as_ref());
    let mut spec = compose(&create.options, config, &found.id, create.term.as_deref())?;
    let declared = resolved.image.as_ref().and_then(|image| image.health.as_ref());
    spec.health = health::decide(&create.options.health, declared)?;
    if let Some(text) = &create.options.network_of {
        let other = store.find_among(text, &[Shelf::Containers]).context(|| format!("--network container:{text}"))?;
        spec.network = Mode::Container(other.id);
    }
    if let Some(join) = spec.network.joined() {
        network::find(store, join.name.as_str())?;
    }
    volumes::decide(store, &mut spec)?;
    if let Some(limit) = create.size_limit {
        size::check(store, limit, &spec.security)?;
    }
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
        size_limit: create.size_limit,
        started: None,
        ended: None,
    };
    let path = match create.in_place {
        true => in_place::snapshot(&resolved).map(|of| store.rootfs_path(of.shelf, &of.id))?,
        false => store.rootfs_path(found.shelf, &found.id),
    };
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
    // A host that cannot freeze can run a copy yet.
    let held = pause::hold_source(store, &prepared.record.source).unwrap_or_else(|e| {
        log::warn!("{}: taken as it is while it runs: {e}", prepared.record.source.name);
        None
    });
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
    drop(held);
    let rest = || {
        if let Some(limit) = prepared.record.size_limit {
            size::ensure(store, active.rootfs(false)?.dir.as_fd(), limit)?;
        }
        id_file.map_or(Ok(()), |id_file| id_file.write(&prepared.found.id))
    };
    if let Err(e) = rest() {
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

/// What a container is about to run by, and what it has of the host for as long.
pub(super) struct Planned {
    pub plan: Plan,
    /// Being in its network.
    pub network: Option<Membership>,
    /// The first process of the container whose network it has.
    pub beside: Option<OwnedFd>,
    /// Its range of ids, if it is to have one of its own.
    pub ids: Option<IdLease>,
}

/// Joins its network, and plans.
pub(super) fn plan(
    store: &Store,
    spec: &Spec,
    name: Option<&ObjectName>,
    root: &Rootfs,
    found: Found,
    narrate: Option<network::Narrate<'_>>,
) -> Result<Planned> {
    let network = networks::join(store, &found.id, name, spec, narrate)?;
    let place = network.as_ref().map(|membership| (membership.network(), &membership.member));
    plan_at(store, spec, root, found, place).map(|planned| Planned { network, ..planned })
}

/// The plan for a container that has its place in a network, or none.
pub(super) fn plan_at(
    store: &Store,
    spec: &Spec,
    root: &Rootfs,
    found: Found,
    place: Option<(&Network, &Member)>,
) -> Result<Planned> {
    let other = networks::beside(store, spec)?;
    let ids = (spec.users.wants_range() && other.is_none()).then(|| store.lease_ids(&found.id)).transpose()?;
    let leased = ids.as_ref().map(|lease| Maps::range(lease.uid, lease.gid));
    let of_other = other.as_ref().and_then(|other| other.place.as_ref());
    let place = place.or(of_other.map(|(network, member)| (network, member)));
    let beside = other.as_ref().map(|other| other.pid);
    let cgroup = leftover::cgroup_name(store, &found.id);
    let facts = Facts::gather(spec, root, &cgroup, leased.as_ref(), place, beside)?;
    let plan = sandbox::plan(spec, &facts)?;
    Ok(Planned { plan, network: None, beside: other.map(|other| other.process), ids })
}

pub(super) fn start_sandbox(
    plan: &Plan,
    streams: Option<Streams>,
    network: Option<&Membership>,
    beside: Option<OwnedFd>,
    rootfs: impl FnOnce() -> Result<Rootfs>,
    narrate: Option<Narrate<'_>>,
) -> Result<sandbox::Running> {
    let prepare = |pid| {
        let rootfs = rootfs()?;
        if let Some(network) = network {
            let tell = narrate.map(network_narrate);
            let namespace = process::open_namespace(pid, "net")?;
            network.connect(namespace.as_fd(), tell.as_ref().map(|tell| tell as _))?;
        }
        Ok(rootfs)
    };
    let tell = narrate.map(step_narrate);
    sandbox::start(plan, streams, beside, prepare, tell.as_ref().map(|tell| tell as _))
}

/// From the start to the exit status: for as long it is noted as running.
pub(super) fn until_end(store: &Store, prepared: &Prepared, started: Result<sandbox::Running>) -> Result<Exit> {
    let id = &prepared.found.id;
    let supervise = |running: sandbox::Running| {
        store.note_running(id, running.pid())?;
        running.supervise().call_context(|| format!("container from {}", prepared.record.source.name))
    };
    let exit = started.and_then(|running| supervise(running).call_context(|| format!("container {}", id.short())));
    store.forget_run_files(id);
    exit
}

/// From the start to the exit status, after which the container is gone.
fn conclude<'a>(
    store: &'a Store,
    active: Active,
    prepared: &Prepared,
    (plan, network): (&Plan, Option<Membership>),
    (started, keep): (Result<sandbox::Running>, Option<&Keep>),
    narrate: Option<Narrate<'_>>,
) -> (Result<Exit>, Option<Removed<'a>>) {
    let id = &prepared.found.id;
    let exit = until_end(store, prepared, started);
    // Who waits for it has it open, and reads how it ended.
    let noted = exit.as_ref().map_or(Ok(()), |exit| {
        let mut life = Life { started: prepared.record.started, ..Life::default() };
        life.end(exit);
        life.write(active.dir())
    });
    if let (Some(keep), Ok(exit)) = (keep, &exit)
        && let Err(e) = keep_tree(store, prepared, keep, exit)
    {
        // Better a container that nobody wanted than work that is lost.
        let stays = Record { auto_remove: false, ..prepared.record.clone() };
        record::write(active.dir(), &stays).unwrap_or_else(|e| log::warn!("keep container {}: {e}", id.short()));
        log::warn!("keep what was done: {e}; the container stays: {id}");
        return (Ok(*exit), None);
    }
    if let Some(narrate) = narrate {
        narrate_afterwards(plan, narrate);
        narrate_leaving(network.as_ref(), narrate);
        narrate_removal(&prepared.path, narrate);
    }
    // Neither the command's end nor the reason why it did not run is less true for that.
    let warn = |e: Error| log::warn!("clean up after container {}: {e}", id.short());
    noted.unwrap_or_else(warn);
    let removed = volumes::discard_with(store, active, &prepared.spec);
    (exit, removed.map_err(warn).ok())
}

/// Makes what a container did a snapshot, if that is what `keep` says of one that ended so.
fn keep_tree(store: &Store, prepared: &Prepared, keep: &Keep, exit: &Exit) -> Result<()> {
    let Prepared { found, resolved, .. } = prepared;
    match keep {
        Keep::As(name) => {
            let id = snapshot::keep(store, found.id, resolved, Some(name), None)?;
            log::info!("kept as snapshot {name}, {}", id.short());
        }
        Keep::IfFailed(time) if exit.code() != 0 && snapshot::has_changed(store, found.id, resolved)? => {
            let trashed = (exit.code(), Timestamp::now() + *time);
            let id = snapshot::keep(store, found.id, resolved, None, Some(trashed))?;
            log::info!(
                "status {}: what it changed is in the trash for {:#}; `tupper snapshot trash restore {}` brings it back",
                exit.code(),
                SignedDuration::try_from(*time).unwrap_or(SignedDuration::MAX),
                id.short()
            );
        }
        Keep::IfFailed(_) => {}
    }
    Ok(())
}

pub(super) fn narrate_snapshot(prepared: &Prepared, narrate: Narrate<'_>) {
    let Resolved { source, path, .. } = &prepared.resolved;
    narrate(
        Shell::Host,
        &format!("make a copy-on-write snapshot of {} {}", source.kind, source.name),
        &format!(
            "mkdir -p {} && btrfs subvolume snapshot {} {}",
            sandbox::quote(prepared.path.parent().unwrap_or(Path::new("/"))),
            sandbox::quote(path),
            sandbox::quote(&prepared.path)
        ),
    );
    if let Some(limit) = prepared.record.size_limit {
        size::narrate(&prepared.path, limit, narrate);
    }
}

pub(super) fn narrate_afterwards(plan: &Plan, narrate: Narrate<'_>) {
    plan.afterwards().iter().for_each(|(words, command)| narrate(Shell::Host, words, command));
}

/// A sandbox's steps.
pub(super) fn step_narrate(narrate: Narrate<'_>) -> impl Fn(&Step) {
    move |step| narrate(step.shell(), &step.describe(), &step.command())
}

/// A network's steps are all typed on the host.
pub(super) fn network_narrate(narrate: Narrate<'_>) -> impl Fn(&str, &str) {
    move |words, command| narrate(Shell::Host, words, command)
}

pub(super) fn narrate_leaving(network: Option<&Membership>, narrate: Narrate<'_>) {
    let steps = network.into_iter().flat_map(Membership::afterwards);
    steps.for_each(|(words, command)| narrate(Shell::Host, &words, &command));
}

pub(super) fn narrate_removal(path: &Path, narrate: Narrate<'_>) {
    let directory = path.parent().unwrap_or(path).display();
    let command = format!("btrfs subvolume delete {} && rm -r {directory}", path.display());
    narrate(Shell::Host, "remove the snapshot", &command);
}
