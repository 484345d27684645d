//! The new process: from clone3 to exec, one arm a step.
//!
//! Nothing here but the first steps (the cgroups that the parent has just made) looks a path up on the host: what comes
//! from there arrives as a detached mount, and what lies in the root is resolved below its descriptor. The process never returns to its caller's frames.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::start::Streams;
use super::step::Step;
use super::{init, report};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::mount::Attributes;
use crate::kernel::resolve::Target;
use crate::kernel::tty::WindowSize;
use crate::kernel::{capability, cgroup, fs, mount, process, resolve, seccomp, signal, socket, tty};

/// Where a command is looked for when the environment has no PATH (podman's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the parent hands over.
pub(super) struct Inherited {
    /// This process's end of the reports.
    pub socket: OwnedFd,
    /// The clones of [`Step::CloneTree`].
    pub trees: Vec<OwnedFd>,
    /// The first process of the sandbox to join.
    pub first: Option<OwnedFd>,
    /// The command's standard streams, if they are not this process's.
    pub streams: Option<Streams>,
    /// The size of the person's window.
    pub window: Option<WindowSize>,
    /// The parent waits until it is asked for the root.
    pub in_turn: bool,
}

/// Runs the steps, of which the last execs. A failure is reported to the parent.
pub(super) fn enter(steps: &[&Step], inherited: Inherited, narrate: &dyn Fn(&Step)) -> ! {
    let _guard = ExitOnUnwind;
    let mut child = Child {
        inherited,
        detached_root: None,
        filesystems: Vec::new(),
        root: None,
        mounts: Vec::new(),
        private: None,
        terminal: None,
    };
    let mut told = 0;
    for (nth, step) in steps.iter().enumerate() {
        // From here on standard error is the command's: the rest is told before.
        let last = matches!(step, Step::CloseDescriptors) && child.inherited.streams.is_some();
        let until = if last { steps.len() } else { nth + 1 };
        steps.get(told..until).unwrap_or_default().iter().for_each(|step| narrate(step));
        told = told.max(until);
        if let Err(error) = child.run(step) {
            report::send_failure(child.inherited.socket.as_fd(), &error);
            process::exit_now(error.exit_status().max(125));
        }
    }
    process::exit_now(125)
}

/// A panic must not unwind into the frames that the process shares with its parent's copy.
struct ExitOnUnwind;

impl Drop for ExitOnUnwind {
    fn drop(&mut self) {
        process::exit_now(125);
    }
}

struct Child {
    inherited: Inherited,
    /// The root as it came, attached to nothing yet.
    detached_root: Option<OwnedFd>,
    /// What came with it: those of [`Step::MakeFilesystem`].
    filesystems: Vec<OwnedFd>,
    root: Option<OwnedFd>,
    /// The kernel's filesystems, by where they were mounted. Whoever can write to the root's directories can give these
    /// names to others afterwards (CVE-2019-16884, CVE-2019-19921); what is looked up below is looked up from here.
    mounts: Vec<(PathBuf, OwnedFd)>,
    private: Option<OwnedFd>,
    /// The slave of the sandbox's terminal.
    terminal: Option<OwnedFd>,
}

impl Child {
    fn run(&mut self, step: &Step) -> Result<()> {
        let ran = match step {
            Step::DieWithParent => self.die_with_parent(),
            Step::Attach { directory } => cgroup::attach_self(directory),
            Step::NewSession => process::new_session(),
            Step::SetUmask(mask) => {
                let _ = process::set_umask(*mask);
                Ok(())
            }
            Step::MakePrivate => mount::make_private(),
            Step::AwaitRoot => self.await_root(),
            Step::AttachRoot { .. } => self.attach_root(),
            Step::SetHostname(name) => process::set_hostname(name),
            Step::UnshareNetwork => process::unshare_network(),
            Step::LoopbackUp => socket::loopback_up(),
            Step::Mount { kind, destination, options, attributes } => {
                self.mount(kind, destination, options, *attributes)
            }
            Step::SetParameter { name, value } => self.set_parameter(name, value),
            Step::BecomeRoot => capability::set_identity(0, 0, &[]),
            Step::AttachFilesystem { filesystem, destination, .. } => self.attach_filesystem(*filesystem, destination),
            Step::MakeLink { name, target } => self.dev().and_then(|dev| fs::symlink(target, dev, name)),
            Step::OpenTerminal { owner, console } => self.open_terminal(*owner, *console),
            Step::Hide => process::set_undumpable(),
            Step::LimitSelf(limit) => process::set_resource_limit(0, limit.number(), limit.soft, limit.hard),
            Step::Join { namespaces, .. } => self.join(namespaces),
            Step::MakePrivateFiles { directories, files } => self.make_private_files(directories, files),
            Step::BindPrivate { name, destination, attributes, directory } => {
                self.bind_private(name, destination, *attributes, *directory)
            }
            Step::AttachTree { tree, destination, .. } => self.attach_tree(*tree, destination),
            Step::AttachCgroup { directory, destination, attributes } => {
                self.attach_cgroup(directory, destination, *attributes)
            }
            Step::MountTmpfs { destination, options, attributes } => {
                self.mount_tmpfs(destination, options, *attributes)
            }
            Step::Mask { path, directory } => self.mask(path, *directory),
            Step::MakeReadOnly { path } => self.make_read_only(path),
            Step::MakeDirectory(path) => {
                self.root().and_then(|root| resolve::ensure_in_root(root, path, Target::Directory)).map(drop)
            }
            Step::SealRoot => self.root().and_then(|root| mount::set_attributes(root, SEALED, false)),
            Step::UnshareCgroup => process::unshare_cgroup(),
            Step::PivotRoot => self.root().and_then(mount::pivot_root),
            Step::DetachOldRoot => mount::detach_old_root(),
            Step::JoinKeyring => process::join_new_keyring(),
            Step::ForbidCoreFiles => process::forbid_core_files(),
            Step::SetIdentity { bounding, uid, gid, groups } => {
                capability::limit_bounding_set(*bounding).and_then(|()| capability::set_identity(*uid, *gid, groups))
            }
            Step::SetCapabilities(set) => capability::set_capabilities(*set),
            Step::Confine { profile } => {
                self.place(Path::new("/proc")).and_then(|(proc, _)| process::confine(proc, profile))
            }
            Step::ForbidNewPrivileges => capability::set_no_new_privileges(),
            Step::FilterCalls(filter) => seccomp::set_filter(&filter.program, filter.flags),
            Step::ForkInit => self.null().and_then(|null| init::fork(null.as_fd())),
            Step::TakeTerminal => self.take_terminal(),
            Step::CloseInput => self.null().and_then(|null| process::replace_stdio(null.as_fd(), 0)),
            Step::CloseOutput => {
                self.null().and_then(|null| (1..=2).try_for_each(|number| process::replace_stdio(null.as_fd(), number)))
            }
            Step::ResetSignals => signal::default_signals(),
            Step::ChangeDirectory(path) => resolve::change_directory(path),
            // Not at exec: until then /proc/self/fd/N in the path of the command or of its interpreter would lead to
            // what the caller has open (CVE-2024-21626). The socket closes at exec, and leads nowhere.
            Step::CloseDescriptors => {
                self.take_streams().and_then(|()| process::close_descriptors_but(&[self.inherited.socket.as_fd()]))
            }
            // Its errors name the command, which is what the person typed.
            Step::Exec { args, env, .. } => return exec(args, env),
            _ => Err(Error::new(Kind::Invalid, "not a step of the new process")),
        };
        ran.context(|| step.describe())
    }

    fn root(&self) -> Result<BorrowedFd<'_>> {
        self.root.as_ref().map(OwnedFd::as_fd).ok_or_else(|| early("the root is not mounted yet"))
    }

    fn private(&self) -> Result<BorrowedFd<'_>> {
        self.private.as_ref().map(OwnedFd::as_fd).ok_or_else(|| early("there are no private files yet"))
    }

    fn dev(&self) -> Result<BorrowedFd<'_>> {
        self.place(Path::new("/dev")).map(|(dev, _)| dev)
    }

    /// From where `path` is looked up, and the rest of it: the innermost of the kernel's filesystems that it lies on, or
    /// the root.
    fn place<'a>(&self, path: &'a Path) -> Result<(BorrowedFd<'_>, &'a Path)> {
        let mut mounts = self.mounts.iter().rev();
        match mounts.find_map(|(at, mount)| Some((mount.as_fd(), path.strip_prefix(at).ok()?))) {
            Some(found) => Ok(found),
            None => Ok((self.root()?, path)),
        }
    }

    /// The sandbox's own /dev/null: the node is this process's, whatever the host's is.
    fn null(&self) -> Result<OwnedFd> {
        resolve::open_device(self.dev()?, "null")
    }

    fn die_with_parent(&self) -> Result<()> {
        process::die_with_parent()?;
        // The parent may have ended just before; getppid(2) is 0 in a new pid namespace either way.
        if process::peer_is_gone(self.inherited.socket.as_fd()) {
            process::exit_now(125);
        }
        Ok(())
    }

    fn await_root(&mut self) -> Result<()> {
        let socket = self.inherited.socket.as_fd();
        if self.inherited.in_turn {
            report::ask_for_root(socket)?;
        }
        match report::receive_root(socket)? {
            Some((root, filesystems)) => (self.detached_root, self.filesystems) = (Some(root), filesystems),
            // The parent gave up and says why itself.
            None => process::exit_now(125),
        }
        Ok(())
    }

    fn attach_root(&mut self) -> Result<()> {
        let root = self.detached_root.take().ok_or_else(|| early("the root has not come yet"))?;
        // The one directory that every host has. Lookups from `/` begin below what is mounted on it, so the host's
        // root stays in reach until pivot_root.
        let place = fs::open_directory(fs::CWD, "/")?;
        mount::attach(root.as_fd(), place.as_fd())?;
        self.root = Some(root);
        Ok(())
    }

    fn mount(&mut self, kind: &str, destination: &Path, options: &[String], attributes: Attributes) -> Result<()> {
        let filesystem = mount::new_filesystem(kind, options, attributes)?;
        self.attach_own(filesystem, destination)
    }

    fn attach_filesystem(&mut self, filesystem: usize, destination: &Path) -> Result<()> {
        let made = self.filesystems.get(filesystem).ok_or_else(|| early("the filesystem was not made"))?;
        self.attach_own(fs::duplicate(made.as_fd())?, destination)
    }

    /// Attaches one of the container's own filesystems.
    fn attach_own(&mut self, filesystem: OwnedFd, destination: &Path) -> Result<()> {
        let (on, path) = self.place(destination)?;
        let target = resolve::ensure_plain_directory(on, path)?;
        mount::attach(filesystem.as_fd(), target.as_fd())?;
        self.mounts.push((destination.to_path_buf(), filesystem));
        Ok(())
    }

    fn set_parameter(&self, name: &str, value: &str) -> Result<()> {
        let (proc, sys) = self.place(Path::new("/proc/sys"))?;
        let sys = resolve::open_place_below(proc, sys)?;
        let file = resolve::open_plain(sys.as_fd(), name, true)?;
        resolve::write_value(file.as_fd(), value)
    }

    /// Joins a sandbox that runs: its root is this process's from here on. What whoever is root inside may have put in the
    /// place of its filesystems is not taken for them.
    fn join(&mut self, namespaces: &[&str]) -> Result<()> {
        let first = self.inherited.first.take().ok_or_else(|| early("there is no sandbox to join"))?;
        process::join(first.as_fd(), namespaces)?;
        let root = fs::open_directory(fs::CWD, "/")?;
        let place = |path| resolve::open_place_below(root.as_fd(), Path::new(path));
        let (proc, dev, pts) = (place("/proc")?, place("/dev")?, place("/dev/pts"));
        if !mount::is_proc(proc.as_fd())? {
            return Err(Error::new(Kind::Invalid, "/proc is not the kernel's"));
        }
        self.mounts = vec![(PathBuf::from("/proc"), proc), (PathBuf::from("/dev"), dev)];
        self.mounts.extend(pts.ok().map(|pts| (PathBuf::from("/dev/pts"), pts)));
        self.root = Some(root);
        Ok(())
    }

    fn open_terminal(&mut self, owner: u32, console: bool) -> Result<()> {
        let (devpts, _) = self.place(Path::new("/dev/pts"))?;
        let pty = tty::open_pty(devpts)?;
        // Programs that page their output wait for a key where a window has no lines.
        let size = self.inherited.window.unwrap_or(WindowSize { rows: 24, columns: 80 });
        tty::set_window_size(pty.master.as_fd(), size)?;
        resolve::change_owner(pty.slave.as_fd(), owner)?;
        if console {
            let node = mount::clone_tree(devpts, &pty.name, false)?;
            let console = resolve::ensure_in_root(self.dev()?, Path::new("console"), Target::File)?;
            mount::attach(node.as_fd(), console.as_fd())?;
        }
        report::send_terminal(self.inherited.socket.as_fd(), pty.master.as_fd())?;
        self.terminal = Some(pty.slave);
        Ok(())
    }

    fn make_private_files(&mut self, directories: &[String], files: &[(String, Vec<u8>)]) -> Result<()> {
        let options = ["mode=0755".to_string(), "size=4m".to_string()];
        let private = mount::new_filesystem("tmpfs", &options, PRIVATE)?;
        for name in directories {
            fs::make_directory(private.as_fd(), name, 0o755)?;
        }
        for (name, bytes) in files {
            fs::write_new(private.as_fd(), name, bytes, 0o644, false)?;
        }
        // Before Linux 6.15 only attached mounts can be cloned (fs/namespace.c, may_copy_tree). The host's /dev is in
        // nobody's way: nothing is looked up on the host any more, and it goes with the old root.
        let place = fs::open_directory(fs::CWD, "/dev")?;
        mount::attach(private.as_fd(), place.as_fd())?;
        self.private = Some(private);
        Ok(())
    }

    fn bind_private(&self, name: &str, destination: &Path, attributes: Attributes, directory: bool) -> Result<()> {
        let tree = mount::clone_tree(self.private()?, name, false)?;
        mount::set_attributes(tree.as_fd(), attributes, false)?;
        let kind = if directory { Target::Directory } else { Target::File };
        self.attach_in_root(tree.as_fd(), destination, kind)
    }

    fn attach_tree(&self, tree: usize, destination: &Path) -> Result<()> {
        let tree = self.inherited.trees.get(tree).ok_or_else(|| early("the mount was not cloned"))?;
        self.attach_in_root(tree.as_fd(), destination, resolve::target_of(tree.as_fd())?)
    }

    fn attach_cgroup(&self, directory: &Path, destination: &Path, attributes: Attributes) -> Result<()> {
        // Lookups on the host still work: its root is the working directory's, below the new one.
        let place = resolve::open_place(directory)?;
        let tree = mount::clone_tree(place.as_fd(), "", false)?;
        mount::set_attributes(tree.as_fd(), attributes, false)?;
        self.attach_in_root(tree.as_fd(), destination, Target::Directory)
    }

    fn mount_tmpfs(&self, destination: &Path, options: &[String], attributes: Attributes) -> Result<()> {
        let filesystem = mount::new_filesystem("tmpfs", options, attributes)?;
        self.attach_in_root(filesystem.as_fd(), destination, Target::Directory)
    }

    /// Attaches a mount at a place that a person or the image chose: links are followed inside the root, and whatever
    /// they lead to, it is not /proc, where a mount could stand in for the kernel's own files.
    fn attach_in_root(&self, tree: BorrowedFd<'_>, destination: &Path, kind: Target) -> Result<()> {
        let target = resolve::ensure_in_root(self.root()?, destination, kind)?;
        if mount::is_proc(target.as_fd())? {
            return Err(Error::new(Kind::Invalid, format!("{} leads into /proc", destination.display())));
        }
        mount::attach(tree, target.as_fd())
    }

    fn mask(&self, path: &Path, directory: bool) -> Result<()> {
        let (on, path) = self.place(path)?;
        let target = resolve::open_place_below(on, path)?;
        if directory {
            let tree = mount::clone_tree(self.private()?, "empty", false)?;
            mount::set_attributes(tree.as_fd(), SEALED, false)?;
            return mount::attach(tree.as_fd(), target.as_fd());
        }
        let tree = mount::clone_tree(self.dev()?, "null", false)?;
        mount::attach(tree.as_fd(), target.as_fd())
    }

    fn make_read_only(&self, path: &Path) -> Result<()> {
        let (on, path) = self.place(path)?;
        let target = resolve::open_place_below(on, path)?;
        let tree = mount::clone_tree(target.as_fd(), "", false)?;
        mount::set_attributes(tree.as_fd(), SEALED, false)?;
        mount::attach(tree.as_fd(), target.as_fd())
    }

    fn take_streams(&self) -> Result<()> {
        let Some(Streams { input, output, error }) = &self.inherited.streams else { return Ok(()) };
        let input = input.iter().map(|stream| (stream, 0));
        let mut streams = input.chain([(output, 1), (error, 2)]);
        streams.try_for_each(|(stream, number)| process::replace_stdio(stream.as_fd(), number))
    }

    fn take_terminal(&self) -> Result<()> {
        let terminal = self.terminal.as_ref().ok_or_else(|| early("there is no terminal yet"))?;
        tty::set_controlling_terminal(terminal.as_fd())?;
        (0..=2).try_for_each(|number| process::replace_stdio(terminal.as_fd(), number))
    }
}

const PRIVATE: Attributes = Attributes { read_only: false, nosuid: true, nodev: true, noexec: true };

const SEALED: Attributes = Attributes { read_only: true, nosuid: false, nodev: false, noexec: false };

fn early(what: &str) -> Error {
    Error::new(Kind::Invalid, what)
}

/// execve(2) of the command, looked for in the environment's PATH. Returns only on failure: 127 when it was not found,
/// 126 when it was and cannot be run (docker-run(1), "Exit status").
fn exec(args: &[String], env: &[String]) -> Result<()> {
    let name = args.first().map_or("", String::as_str);
    let c_strings = |words: &[String]| words.iter().map(|w| fs::c_string(w.as_ref())).collect::<Result<Vec<CString>>>();
    let (c_args, c_env) = (c_strings(args)?, c_strings(env)?);
    let mut refused = None;
    for candidate in candidates(args, env) {
        let failed = process::exec(&fs::c_string(candidate.as_ref())?, &c_args, &c_env);
        if !process::is_missing(failed) {
            refused = refused.or(Some(failed));
            // exec(3): a PATH search goes on after EACCES and ends at anything else.
            if !process::is_denied(failed) {
                break;
            }
        }
    }
    match refused {
        Some(errno) => Err(process::exec_error(name, errno).with_kind(Kind::NotExecutable)),
        None if name.contains('/') => Err(Error::new(Kind::CommandNotFound, format!("run {name:?}: no such file"))),
        None => Err(Error::new(Kind::CommandNotFound, format!("run {name:?}: not found in PATH"))),
    }
}

/// The paths at which to look for a command's program, in this order.
pub(crate) fn candidates(args: &[String], env: &[String]) -> Vec<String> {
    let name = args.first().map_or("", String::as_str);
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains('/') {
        return vec![name.to_string()];
    }
    path.split(':').map(|d| if d.is_empty() { name.to_string() } else { format!("{d}/{name}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_looked_for_in_path() {
        let candidates = |name: &str, path: &str| candidates(&[name.to_string()], &[format!("PATH={path}")]);
        assert_eq!(candidates("ls", "/bin:/usr/bin"), ["/bin/ls", "/usr/bin/ls"]);
        // An empty element is the working directory: environ(7).
        assert_eq!(candidates("ls", "/bin:"), ["/bin/ls", "ls"]);
        assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
        assert!(candidates("", "/bin").is_empty());
    }
}
