//! The parent: runs the host's steps, makes the process, and learns whether it became the command.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::apparmor;
use super::bus;
use super::cgroups::Counters;
use super::devices::restrict_devices;
use super::enter::{self, Inherited};
use super::exec;
use super::facts::Device;
use super::plan::{Plan, split};
use super::report::{self, Report};
use super::signals::BlockedSignals;
use super::step::Step;
use super::supervise::{Exit, supervise};
use super::users::text;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::process::{self, Cloned};
use crate::kernel::{cgroup, mount, resolve, signal, socket, tty};
use crate::rootfs::Rootfs;

/// Starts the planned sandbox on `rootfs`, telling `narrate` each step before it runs. Returns when the command has
/// been executed.
///
/// The command reads and writes `streams`, or this process's own; a terminal that the plan makes is over both.
///
/// `rootfs` is called once the new process exists, with its number, so that making the root, and whatever is to be in its namespaces,
/// happens while it prepares them; when it fails the process is killed and its error returned. Nor does what else this process does
/// for the new one wait for it, unless somebody listens: a story is told in order.
///
/// `beside` is the process whose network it is to have, if the plan says so.
///
/// `narrate` is also called in the new process, which shares no memory with this one and whose standard error is
/// this one's until it becomes the command. The calling process must have a single thread; the signals that
/// [`Running::supervise`] hands on stay blocked in it from here until the [`Running`] is gone.
///
/// # Errors
///
/// [`Kind::CommandNotFound`], [`Kind::NotExecutable`], or the kind of the step that failed, which the error names.
/// Nothing is left behind: no process, no mount, no cgroup.
pub fn start(
    plan: &Plan,
    streams: Option<Streams>,
    beside: Option<OwnedFd>,
    rootfs: impl FnOnce(i32) -> Result<Rootfs>,
    narrate: Option<&dyn Fn(&Step)>,
) -> Result<Running> {
    start_with(plan, streams, beside, Some(rootfs), narrate)
}

/// Starts the planned command in the sandbox of the `first` process, which the plan was made for.
///
/// # Errors
///
/// As [`start`], and [`Kind::NotFound`] when the sandbox has ended.
pub fn enter(
    plan: &Plan,
    first: OwnedFd,
    streams: Option<Streams>,
    narrate: Option<&dyn Fn(&Step)>,
) -> Result<Running> {
    exec::lives(first.as_fd())?;
    start_with(plan, streams, Some(first), None::<fn(i32) -> Result<Rootfs>>, narrate)
}

fn start_with(
    plan: &Plan,
    streams: Option<Streams>,
    first: Option<OwnedFd>,
    rootfs: Option<impl FnOnce(i32) -> Result<Rootfs>>,
    narrate: Option<&dyn Fn(&Step)>,
) -> Result<Running> {
    let in_turn = narrate.is_some();
    let narrate = |step: &Step| narrate.into_iter().for_each(|narrate| narrate(step));
    process::require_single_thread()?;
    let signals = BlockedSignals::block()?;
    let (before, parents, childs) = split(plan.steps());
    let (socket, childs_socket) = socket::pair()?;
    let window = [0, 1, 2].into_iter().find_map(|n| tty::window_size(tty::stdio(n)));

    let mut host = Host { cgroups: Cgroups::default(), streams, first, trees: Vec::new(), child: None };
    for step in before {
        narrate(step);
        host.run(step).context(|| step.describe())?;
        if let Some(Cloned::Child) = host.child {
            let inherited = Inherited {
                socket: childs_socket,
                trees: host.trees,
                streams: host.streams,
                first: host.first,
                window,
                in_turn,
            };
            drop(socket);
            enter::enter(&childs, inherited, &narrate);
        }
    }
    drop((childs_socket, host.streams, host.first));
    let trees = host.trees;
    let Some(Cloned::Parent { pid, pidfd }) = host.child else {
        return Err(Error::new(Kind::Invalid, "the plan makes no process"));
    };
    let process = Process { pid, pidfd, reaped: false };

    let give = |rootfs: Option<&Rootfs>, cgroups: &mut Cgroups| {
        let rootfs = rootfs.ok_or_else(|| early("there is no root to give"))?;
        let mut handover = Handover { pid, rootfs, trees: &trees, cgroups, users: None, mounts: Vec::new() };
        let mounts = handover.run_all(&parents, &narrate)?;
        report::send_root(socket.as_fd(), &mounts.iter().map(OwnedFd::as_fd).collect::<Vec<_>>())
    };
    let made = rootfs.map(|make| make(pid)).transpose().and_then(|rootfs| {
        if rootfs.is_some() && !in_turn {
            give(rootfs.as_ref(), &mut host.cgroups)?;
        }
        Ok(rootfs)
    });
    let rootfs = match made {
        Ok(rootfs) => rootfs,
        Err(e) => {
            drop(process);
            // That the new process is not there is the consequence of what it reported.
            return Err(first_failure(socket.as_fd())?.unwrap_or(e));
        }
    };
    let mut terminal = None;
    while let Some(report) = report::receive(socket.as_fd())? {
        match report {
            Report::WantsRoot => give(rootfs.as_ref(), &mut host.cgroups)?,
            Report::Terminal(master) => terminal = Some(master),
            Report::Failed(error) => return Err(error),
        }
    }
    host.cgroups.directories.extend(plan.freezer.clone());
    let (interactive, counters) = (plan.interactive, plan.counters.clone());
    Ok(Running { process, cgroups: host.cgroups, terminal, interactive, counters, signals })
}

/// What a process that has ended said went wrong, if it did.
fn first_failure(socket: BorrowedFd<'_>) -> Result<Option<Error>> {
    while let Some(report) = report::receive(socket)? {
        if let Report::Failed(error) = report {
            return Ok(Some(error));
        }
    }
    Ok(None)
}

/// The standard streams of a command.
#[derive(Debug)]
pub struct Streams {
    /// What it reads; without one, what the plan says.
    pub input: Option<OwnedFd>,
    /// Where its output goes.
    pub output: OwnedFd,
    /// Where its error output goes.
    pub error: OwnedFd,
}

/// A sandbox whose command runs. Dropped, it is killed and cleared away.
#[derive(Debug)]
pub struct Running {
    // Dropped in this order: the process ends before its cgroups go, and signals arrive when both are gone.
    pub(super) process: Process,
    #[expect(dead_code, reason = "held until it goes")]
    cgroups: Cgroups,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) interactive: bool,
    pub(super) counters: Counters,
    pub(super) signals: BlockedSignals,
}

impl Running {
    /// The process id of the sandbox's PID 1 on the host.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Lets the command go on without this process.
    pub fn leave(mut self) {
        self.process.reaped = true;
    }

    /// Stays with the sandbox until it ends: relays its terminal, hands signals on to it, reaps it and removes its
    /// cgroups.
    ///
    /// # Errors
    ///
    /// A failed system call; the sandbox is killed and cleared away then too.
    pub fn supervise(self) -> Result<Exit> {
        supervise(self)
    }
}

/// The host's side: what the steps before the process have made.
struct Host {
    cgroups: Cgroups,
    streams: Option<Streams>,
    /// The first process of the sandbox that is joined.
    first: Option<OwnedFd>,
    trees: Vec<OwnedFd>,
    child: Option<Cloned>,
}

impl Host {
    fn run(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::EnableControllers { directory, controllers } => enable(directory.clone(), controllers),
            Step::MakeCgroup { directory } => self.cgroups.make(directory.clone()),
            Step::InheritCpuset { directory } => cgroup::inherit_cpuset(directory),
            Step::SetLimit { file, value, instead, optional } => set_limit(file, value, instead.as_ref(), *optional),
            Step::RestrictDevices { directory, rules } => restrict_devices(directory, rules),
            Step::LoadProfile { .. } => apparmor::load(),
            Step::CloneTree { source, recursive, attributes } => {
                let place = resolve::open_place(source)?;
                let tree = mount::clone_tree(place.as_fd(), "", *recursive)?;
                mount::set_attributes(tree.as_fd(), *attributes, *recursive)?;
                self.trees.push(tree);
                Ok(())
            }
            Step::OwnStreams { uid } => self.own_streams(*uid),
            Step::Clone { users, network, beside, cgroup } => {
                let cgroup = cgroup.as_deref().map(cgroup::open).transpose()?;
                let cgroup = cgroup.as_ref().map(OwnedFd::as_fd);
                let namespaces = process::sandbox_namespaces(*users, *network);
                let cloned = match beside {
                    None => process::clone3(namespaces, cgroup),
                    Some((_, users)) => {
                        let other = self.first.as_ref().ok_or_else(|| early("there is no process to be beside"))?;
                        let names = if *users { &["user", "net"][..] } else { &["net"][..] };
                        process::clone_beside(other.as_fd(), names, namespaces, cgroup)
                    }
                };
                self.child = Some(cloned.map_err(|e| if *users { no_user_namespace(e) } else { e })?);
                Ok(())
            }
            Step::CloneInside { cgroup, .. } => {
                let first = self.first.as_ref().ok_or_else(|| early("there is no sandbox to join"))?;
                let cgroup = cgroup.as_deref().map(cgroup::open).transpose()?;
                self.child = Some(process::clone_inside(first.as_fd(), cgroup.as_ref().map(OwnedFd::as_fd))?);
                Ok(())
            }
            _ => Err(Error::new(Kind::Invalid, "not a step of the host")),
        }
    }

    fn own_streams(&self, uid: u32) -> Result<()> {
        let of_this_process = [0, 1, 2].map(tty::stdio);
        let given = self.streams.as_ref();
        let given = given.map(|s| [s.input.as_ref().unwrap_or(&s.output), &s.output, &s.error].map(OwnedFd::as_fd));
        given.unwrap_or(of_this_process).into_iter().try_for_each(|stream| process::own_pipe(stream, uid))
    }
}

/// The parent's steps: what the new process waits for.
struct Handover<'a> {
    pid: i32,
    rootfs: &'a Rootfs,
    trees: &'a [OwnedFd],
    cgroups: &'a mut Cgroups,
    /// The process's user namespace.
    users: Option<OwnedFd>,
    /// The root, and the filesystems made for it.
    mounts: Vec<OwnedFd>,
}

impl Handover<'_> {
    /// The root's mount, and those of the filesystems that were made for it.
    fn run_all(&mut self, steps: &[&Step], narrate: &dyn Fn(&Step)) -> Result<Vec<OwnedFd>> {
        // A device has the mode that it is made with.
        let umask = process::set_umask(0);
        let ran = steps.iter().try_for_each(|step| {
            narrate(step);
            self.run(step).call_context(|| step.describe())
        });
        process::set_umask(umask);
        ran.map(|()| std::mem::take(&mut self.mounts))
    }

    fn run(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::WriteIdMaps(maps) => {
                self.users = Some(process::write_id_maps(self.pid, &text(&maps.uids), &text(&maps.gids))?);
                Ok(())
            }
            Step::ShareUsers { pid } => {
                self.users = Some(process::open_namespace(*pid, "user")?);
                Ok(())
            }
            Step::StartScope(scope) => {
                // From here on there may be something to remove.
                self.cgroups.scope = Some(scope.directory.clone());
                bus::start_scope(scope, self.pid)?;
                scope.devices.as_ref().map_or(Ok(()), |rules| restrict_devices(&scope.directory, rules))
            }
            Step::CloneRoot { attributes, mapped, .. } => {
                let tree = mount::clone_tree(self.rootfs.dir.as_fd(), "", false)?;
                mount::replace_attributes(tree.as_fd(), *attributes)?;
                if *mapped {
                    mount::map_ids(tree.as_fd(), self.users()?, false).map_err(not_mapped)?;
                }
                self.mounts.push(tree);
                Ok(())
            }
            Step::MapTree { tree, source } => {
                let tree = self.trees.get(*tree).ok_or_else(|| early("the mount was not cloned"))?.as_fd();
                map_as_far_as_possible(tree, self.users()?, source);
                Ok(())
            }
            Step::MakeFilesystem { kind, options, attributes, .. } => {
                self.mounts.push(mount::new_filesystem(kind, options, *attributes)?);
                Ok(())
            }
            Step::MakeDevice { device, owner } => {
                let Device { name, block, major, minor, mode } = device;
                resolve::make_device(self.last()?, name, *block, (*major, *minor), *mode)?;
                own(self.last()?, name, *owner)
            }
            Step::SetResourceLimit(limit) => {
                process::set_resource_limit(self.pid, limit.number(), limit.soft, limit.hard)
            }
            _ => Err(early("not a step of the parent")),
        }
    }

    fn users(&self) -> Result<BorrowedFd<'_>> {
        self.users.as_ref().map(OwnedFd::as_fd).ok_or_else(|| early("there is no user namespace yet"))
    }

    fn last(&self) -> Result<BorrowedFd<'_>> {
        self.mounts.last().map(OwnedFd::as_fd).ok_or_else(|| early("there is no filesystem yet"))
    }
}

/// A volume is a place of the host's, on whatever filesystem. What cannot be mapped is mounted as it is.
fn map_as_far_as_possible(tree: BorrowedFd<'_>, users: BorrowedFd<'_>, source: &Path) {
    if mount::map_ids(tree, users, true).is_ok() {
        return;
    }
    match mount::map_ids(tree, users, false) {
        Ok(()) => log::warn!(
            "volume {}: below it is a filesystem that cannot map ids, and files there belong to ids of the host",
            source.display()
        ),
        Err(e) => log::warn!(
            "volume {}: its filesystem cannot map ids, and files in it belong to ids of the host ({e})",
            source.display()
        ),
    }
}

fn own(at: BorrowedFd<'_>, name: &str, owner: (u32, u32)) -> Result<()> {
    if owner == (0, 0) { Ok(()) } else { resolve::change_owner_at(at, name, owner) }
}

fn not_mapped(e: Error) -> Error {
    e.with_hint("--userns host runs it without a user namespace, as root of the host")
}

fn no_user_namespace(e: Error) -> Error {
    e.with_hint("user namespaces may be turned off (sysctl user.max_user_namespaces); --userns host does without one")
}

fn early(what: &str) -> Error {
    Error::new(Kind::Invalid, what)
}

/// Writes a limit to whichever file this kernel has; `optional` if it may have none.
pub(super) fn set_limit(file: &Path, value: &str, instead: Option<&(PathBuf, String)>, optional: bool) -> Result<()> {
    let missing = |result: &Result<()>| matches!(result, Err(e) if e.kind() == Kind::NotFound);
    let mut written = cgroup::write(file, value);
    if let Some((file, value)) = instead
        && missing(&written)
    {
        written = cgroup::write(file, value);
    }
    match optional && missing(&written) {
        true => Ok(()),
        false => written.map_err(|e| match e.kind() {
            Kind::NotFound => e.with_kind(Kind::Unsupported).with_hint("this kernel has no such limit"),
            _ => e,
        }),
    }
}

pub(super) fn enable(directory: PathBuf, controllers: &[String]) -> Result<()> {
    cgroup::ensure(&directory)?;
    let value: Vec<String> = controllers.iter().map(|c| format!("+{c}")).collect();
    cgroup::write(&directory.join("cgroup.subtree_control"), &value.join(" "))
}

/// The sandbox's PID 1, killed and reaped when dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) reaped: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let killed = signal::send(self.pidfd.as_fd(), signal::SIGKILL);
        if let Err(e) = killed.and_then(|()| process::wait(self.pidfd.as_fd()).map(drop)) {
            log::warn!("end the container: {e}");
        }
    }
}

/// The sandbox's cgroups, removed when dropped.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    directories: Vec<PathBuf>,
    /// That of a scope, which systemd removes. If somebody else did, systemd would not see it become empty, and would keep
    /// the unit.
    scope: Option<PathBuf>,
}

impl Cgroups {
    fn make(&mut self, directory: PathBuf) -> Result<()> {
        cgroup::make(&directory)?;
        self.directories.push(directory);
        Ok(())
    }
}

impl Cgroups {
    /// Removes them, once no process is left in them.
    pub(super) fn remove(&mut self) {
        let ours = self.directories.drain(..).map(|directory| cgroup::remove_patiently(&directory));
        let systemds = self.scope.take().map(|directory| cgroup::await_removal(&directory));
        for e in ours.chain(systemds).filter_map(Result::err) {
            log::warn!("{e}");
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.remove();
    }
}
