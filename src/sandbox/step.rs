//! The steps of a plan, and what each does in words; `shell.rs` has what a person would type for it.
//!
//! One variant is one arm in `start.rs` (the host's) or `enter.rs` (the child's).

use std::fmt;
use std::path::{Path, PathBuf};

use super::devices::DeviceRule;
use super::facts::Device;
use super::rlimit::ResourceLimit;
use super::scope::Scope;
use super::seccomp::Filter;
pub use crate::kernel::capability::CapabilitySet;
pub use crate::kernel::mount::Attributes;

use super::users::Maps;

/// One step on the way into a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Lets the children of a v2 cgroup, made if it is missing, have controllers.
    EnableControllers {
        /// The cgroup.
        directory: PathBuf,
        /// The controllers' names.
        controllers: Vec<String>,
    },
    /// Makes the sandbox's cgroup in one hierarchy.
    MakeCgroup {
        /// The cgroup.
        directory: PathBuf,
    },
    /// Gives a v1 cpuset what the one above it has, where it has nothing; made if it is missing.
    InheritCpuset {
        /// The cgroup.
        directory: PathBuf,
    },
    /// Sets a limit of the sandbox's cgroup.
    SetLimit {
        /// The control file.
        file: PathBuf,
        /// What is written to it.
        value: String,
        /// Another file and its value, for a kernel without the first.
        instead: Option<(PathBuf, String)>,
        /// A kernel without the file does without it.
        optional: bool,
    },
    /// Lets a v2 cgroup use only some devices.
    RestrictDevices {
        /// The cgroup.
        directory: PathBuf,
        /// What it may use.
        rules: Vec<DeviceRule>,
    },
    /// Has systemd make a scope of the new process, which waits for its root meanwhile.
    StartScope(Scope),
    /// Mounts the sandbox's cgroup, which was made after the process, where it sees it.
    AttachCgroup {
        /// The cgroup.
        directory: PathBuf,
        /// Where it sees it.
        destination: PathBuf,
        /// What that forbids.
        attributes: Attributes,
    },
    /// Loads tupper's AppArmor profile into the kernel.
    LoadProfile {
        /// Its name.
        name: String,
    },
    /// Clones the mount that a place of the host is on, to be attached inside.
    CloneTree {
        /// The place.
        source: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
        /// What the clone forbids.
        attributes: Attributes,
    },
    /// Gives those standard streams that are pipes to who runs the command, so that it can open them by name.
    OwnStreams {
        /// Who that is on the host.
        uid: u32,
    },
    /// Makes the process in its new namespaces.
    Clone {
        /// A user namespace too.
        users: bool,
        /// A network namespace too.
        network: bool,
        /// In the network namespace of this process, and in its user namespace if that is another than the host's.
        beside: Option<(i32, bool)>,
        /// The v2 cgroup to make it in.
        cgroup: Option<PathBuf>,
    },
    /// Puts the process into a v1 cgroup.
    Attach {
        /// The cgroup.
        directory: PathBuf,
    },
    /// The process ends when its parent does.
    DieWithParent,
    /// A session of its own, without a controlling terminal.
    NewSession,
    /// Sets the file mode mask.
    SetUmask(u32),
    /// No mount made here shows on the host, or the reverse.
    MakePrivate,
    /// Asks the parent for the root. Until here the process needs none, so the parent can make it meanwhile.
    AwaitRoot,
    /// The user namespace is that of this process.
    ShareUsers {
        /// The process.
        pid: i32,
    },
    /// Says which ids of the host are behind those of the user namespace.
    WriteIdMaps(Maps),
    /// Clones the mount that the root is on and hands it to the new process, which has asked for it by then.
    CloneRoot {
        /// Where the root lies, for people.
        path: PathBuf,
        /// What the clone forbids.
        attributes: Attributes,
        /// The ids on it are those of the user namespace.
        mapped: bool,
    },
    /// Maps the ids on a clone made by [`Step::CloneTree`], if the filesystems in it can do that.
    MapTree {
        /// Which one: the first is 0.
        tree: usize,
        /// What it is a clone of.
        source: PathBuf,
    },
    /// Makes a new filesystem with the host's privileges and hands it to the new process.
    MakeFilesystem {
        /// Its type.
        kind: &'static str,
        /// Where it will be.
        destination: PathBuf,
        /// Its options, as `name=value` or a bare name.
        options: Vec<String>,
        /// What it forbids.
        attributes: Attributes,
        /// The ids on the root are those of the user namespace.
        mapped: bool,
    },
    /// Makes a device node in the filesystem made last, which is to be /dev.
    MakeDevice {
        /// The device.
        device: Device,
        /// Its owner on the host.
        owner: (u32, u32),
    },
    /// Becomes the root of the user namespace.
    BecomeRoot,
    /// Attaches the root's clone.
    AttachRoot {
        /// Where the root lies, for people.
        path: PathBuf,
    },
    /// Attaches what [`Step::MakeFilesystem`] made.
    AttachFilesystem {
        /// Which one: the first is 0.
        filesystem: usize,
        /// Its type.
        kind: &'static str,
        /// Where.
        destination: PathBuf,
    },
    /// Sets the host name.
    SetHostname(String),
    /// Enters a new network namespace, while the parent does its part. One that the host puts an interface into comes with
    /// [`Step::Clone`].
    UnshareNetwork,
    /// Brings the loopback interface up.
    LoopbackUp,
    /// Mounts a new filesystem at a place of the sandbox's own, which no link may lead to.
    Mount {
        /// Its type.
        kind: &'static str,
        /// Where.
        destination: PathBuf,
        /// Its options, as `name=value` or a bare name.
        options: Vec<String>,
        /// What it forbids.
        attributes: Attributes,
    },
    /// Sets a kernel parameter of the sandbox's namespaces.
    SetParameter {
        /// Its path below /proc/sys.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Makes a link in /dev.
    MakeLink {
        /// Its name.
        name: &'static str,
        /// Where it leads.
        target: &'static str,
    },
    /// Opens a terminal in the sandbox's own devpts, hands its other end to the parent and mounts it at /dev/console.
    OpenTerminal {
        /// Who owns it.
        owner: u32,
        /// It is mounted; a command that joins a sandbox has one that is not.
        console: bool,
    },
    /// Makes a filesystem in memory for the files and directories that the sandbox is given; it goes with the old root.
    MakePrivateFiles {
        /// Its directories.
        directories: Vec<String>,
        /// Its files and what is in them.
        files: Vec<(String, Vec<u8>)>,
    },
    /// Mounts one of the private files or directories.
    BindPrivate {
        /// Its name.
        name: String,
        /// Where; links are followed inside the root.
        destination: PathBuf,
        /// What it forbids.
        attributes: Attributes,
        /// It is a directory.
        directory: bool,
    },
    /// Attaches a clone made earlier by [`Step::CloneTree`].
    AttachTree {
        /// Which one: the first is 0.
        tree: usize,
        /// What it is a clone of.
        source: PathBuf,
        /// Where; links are followed inside the root.
        destination: PathBuf,
        /// What it forbids.
        attributes: Attributes,
        /// The ids on it are those of the user namespace, if it can do that.
        mapped: bool,
        /// The root inside may not reach what it is a clone of.
        by_host: bool,
        /// It is a directory.
        directory: bool,
    },
    /// Mounts an empty tmpfs where a person wants one.
    MountTmpfs {
        /// Where; links are followed inside the root.
        destination: PathBuf,
        /// Its options.
        options: Vec<String>,
        /// What it forbids.
        attributes: Attributes,
    },
    /// Hides a path of /proc or /sys.
    Mask {
        /// The path.
        path: PathBuf,
        /// It is a directory.
        directory: bool,
    },
    /// Makes a path of /proc read-only.
    MakeReadOnly {
        /// The path.
        path: PathBuf,
    },
    /// Makes a process in the pid namespace of a sandbox that runs, and with `cgroup` in that v2 cgroup.
    CloneInside {
        /// The sandbox's first process.
        pid: i32,
        /// The v2 cgroup.
        cgroup: Option<PathBuf>,
    },
    /// Nobody can look into this process, or follow it: /proc/PID/exe and fd of it open for nobody inside.
    Hide,
    /// Sets one of this process's limits: setrlimit(2).
    LimitSelf(ResourceLimit),
    /// Joins the sandbox's other namespaces, by the names that they have in /proc/PID/ns.
    Join {
        /// The sandbox's first process.
        pid: i32,
        /// Those that are not this process's already.
        namespaces: Vec<&'static str>,
    },
    /// Standard output and error go to /dev/null.
    CloseOutput,
    /// Makes a directory in the root, if it is missing.
    MakeDirectory(PathBuf),
    /// Makes the root read-only.
    SealRoot,
    /// A cgroup namespace rooted at the sandbox's cgroup.
    UnshareCgroup,
    /// The root becomes `/`.
    PivotRoot,
    /// Lets go of the host's root.
    DetachOldRoot,
    /// A session keyring of its own.
    JoinKeyring,
    /// No core files.
    ForbidCoreFiles,
    /// Drops capabilities from the bounding set, and becomes the user.
    SetIdentity {
        /// The capabilities that the bounding set keeps.
        bounding: CapabilitySet,
        /// The user id.
        uid: u32,
        /// The group id.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
    },
    /// Keeps these capabilities; none to inherit.
    SetCapabilities(CapabilitySet),
    /// Goes on under an AppArmor profile.
    Confine {
        /// Its name.
        profile: String,
    },
    /// From here on only the system calls that the filter lets through are made.
    FilterCalls(Filter),
    /// Sets one of the new process's limits: setrlimit(2).
    SetResourceLimit(ResourceLimit),
    /// Nothing executed gains privileges.
    ForbidNewPrivileges,
    /// Leaves PID 1 behind as init and goes on as its child.
    ForkInit,
    /// The sandbox's terminal becomes standard input, output and error, and the controlling terminal.
    TakeTerminal,
    /// Standard input reads /dev/null.
    CloseInput,
    /// No signal is blocked or ignored.
    ResetSignals,
    /// Enters the working directory.
    ChangeDirectory(PathBuf),
    /// Closes every descriptor but the standard ones.
    CloseDescriptors,
    /// Runs the command.
    Exec {
        /// The command and its arguments.
        args: Vec<String>,
        /// The whole environment.
        env: Vec<String>,
        /// It reads nothing: [`Step::CloseInput`] came before.
        without_input: bool,
    },
}

/// Where a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On the host, before the process is made.
    Before,
    /// On the host, when the new process asks for its root.
    Parent,
    /// In the new process.
    Child,
}

impl Step {
    /// Where it runs.
    pub fn side(&self) -> Side {
        match self {
            Step::EnableControllers { .. }
            | Step::MakeCgroup { .. }
            | Step::InheritCpuset { .. }
            | Step::SetLimit { .. }
            | Step::RestrictDevices { .. }
            | Step::LoadProfile { .. }
            | Step::CloneTree { .. }
            | Step::OwnStreams { .. }
            | Step::Clone { .. }
            | Step::CloneInside { .. } => Side::Before,
            Step::StartScope(_)
            | Step::WriteIdMaps(_)
            | Step::ShareUsers { .. }
            | Step::CloneRoot { .. }
            | Step::MapTree { .. }
            | Step::MakeFilesystem { .. }
            | Step::SetResourceLimit(_)
            | Step::MakeDevice { .. } => Side::Parent,
            _ => Side::Child,
        }
    }

    /// Where it puts a mount that stays, if it does.
    pub fn mount_point(&self) -> Option<&Path> {
        match self {
            Step::AttachRoot { .. } => Some(Path::new("/")),
            Step::Mount { destination, .. }
            | Step::BindPrivate { destination, .. }
            | Step::AttachTree { destination, .. }
            | Step::AttachFilesystem { destination, .. }
            | Step::AttachCgroup { destination, .. }
            | Step::MountTmpfs { destination, .. } => Some(destination),
            Step::Mask { path, .. } | Step::MakeReadOnly { path } => Some(path),
            Step::OpenTerminal { console: true, .. } => Some(Path::new("/dev/console")),
            _ => None,
        }
    }

    /// What it does, in words.
    pub fn describe(&self) -> String {
        match self {
            Step::EnableControllers { directory, controllers } => {
                format!("enable {} below {}", controllers.join(", "), directory.display())
            }
            Step::MakeCgroup { directory } => format!("make the cgroup {}", directory.display()),
            Step::InheritCpuset { directory } => format!("give {} a cpuset", directory.display()),
            Step::SetLimit { file, value, .. } => format!("set {} to {value}", name_of(file)),
            Step::RestrictDevices { directory, .. } => format!("allow few devices in {}", directory.display()),
            Step::StartScope(scope) => format!("have systemd make the scope {}", scope.unit),
            Step::AttachCgroup { directory, destination, .. } => {
                format!("mount {} at {}", directory.display(), destination.display())
            }
            Step::CloneTree { source, .. } => format!("clone the mount of {}", source.display()),
            Step::CloneRoot { path, .. } => format!("clone the mount of the root {}", path.display()),
            Step::Clone { users, network, beside, cgroup } => {
                let beside = beside.map(|(pid, _)| format!(", beside process {pid}")).unwrap_or_default();
                let users = if *users { "user, " } else { "" };
                let network = if *network { ", network" } else { "" };
                let cgroup = cgroup.as_ref().map(|c| format!(", in cgroup {}", c.display())).unwrap_or_default();
                format!("new namespaces: {users}mount, pid, uts, ipc{network}{beside}{cgroup}")
            }
            Step::Attach { directory } => format!("put the process into {}", directory.display()),
            Step::DieWithParent => "end when the parent ends".into(),
            Step::NewSession => "new session".into(),
            Step::SetUmask(mask) => format!("set the file mode mask to {mask:04o}"),
            Step::MakePrivate => "make every mount private".into(),
            Step::AwaitRoot => "wait for the root".to_string(),
            Step::ShareUsers { pid } => format!("map ids as process {pid} has them"),
            Step::WriteIdMaps(_) => "map the users and groups inside to those of the host".into(),
            Step::MapTree { source, .. } => format!("map the users and groups of {}", source.display()),
            Step::MakeFilesystem { kind, destination, .. } => format!("make a {kind} for {}", destination.display()),
            Step::BecomeRoot => "become root inside".into(),
            Step::AttachFilesystem { kind, destination, .. } => {
                format!("mount the {kind} at {}", destination.display())
            }
            Step::AttachRoot { path } => format!("mount the root {}", path.display()),
            Step::SetHostname(name) => format!("set the hostname to {name}"),
            Step::UnshareNetwork => "new namespace: network".into(),
            Step::LoopbackUp => "bring loopback up".into(),
            Step::Mount { kind, destination, .. } => format!("mount {kind} at {}", destination.display()),
            Step::SetParameter { name, value } => format!("set {} to {value}", name.replace('/', ".")),
            Step::MakeDevice { device, .. } => format!("make /dev/{}", device.name),
            Step::LoadProfile { name } => format!("load the AppArmor profile {name}"),
            Step::Confine { profile } => format!("go on under the AppArmor profile {profile}"),
            Step::MakeLink { name, target } => format!("link /dev/{name} to {target}"),
            Step::OpenTerminal { console: true, .. } => "open a terminal and mount it at /dev/console".into(),
            Step::OpenTerminal { .. } => "open a terminal".into(),
            Step::MakePrivateFiles { .. } => "make private files".into(),
            Step::BindPrivate { destination, .. } => format!("mount a private file at {}", destination.display()),
            Step::AttachTree { source, destination, .. } => {
                format!("mount {} at {}", source.display(), destination.display())
            }
            Step::MountTmpfs { destination, .. } => format!("mount tmpfs at {}", destination.display()),
            Step::Mask { path, .. } => format!("mask {}", path.display()),
            Step::MakeReadOnly { path } => format!("make {} read-only", path.display()),
            Step::MakeDirectory(path) => format!("make the directory {}", path.display()),
            Step::CloneInside { pid, cgroup } => {
                let cgroup = cgroup.as_ref().map(|c| format!(", in cgroup {}", c.display())).unwrap_or_default();
                format!("new process in the pid namespace of process {pid}{cgroup}")
            }
            Step::Hide => "let nobody look into this process".into(),
            Step::LimitSelf(limit) => format!("limit {limit}"),
            Step::Join { pid, namespaces } => {
                format!("join the namespaces of process {pid}: {}", namespaces.join(", "))
            }
            Step::CloseOutput => "write nothing to standard output and error".into(),
            Step::SealRoot => "make the root read-only".into(),
            Step::UnshareCgroup => "new cgroup namespace".into(),
            Step::PivotRoot => "make the root /".into(),
            Step::DetachOldRoot => "let go of the host's root".into(),
            Step::JoinKeyring => "new session keyring".into(),
            Step::ForbidCoreFiles => "no core files".into(),
            Step::OwnStreams { uid } => format!("give the standard streams that are pipes to user {uid}"),
            Step::SetIdentity { bounding, uid, gid, .. } => {
                format!("bound by {} capabilities, become user {uid}, group {gid}", count(*bounding))
            }
            Step::SetCapabilities(set) => format!("keep {} capabilities", count(*set)),
            Step::ForbidNewPrivileges => "no new privileges".into(),
            Step::FilterCalls(filter) => filter.to_string(),
            Step::SetResourceLimit(limit) => format!("limit {limit}"),
            Step::ForkInit => "start init".into(),
            Step::TakeTerminal => "take the terminal".into(),
            Step::CloseInput => "read nothing from standard input".into(),
            Step::ResetSignals => "reset the signals".into(),
            Step::ChangeDirectory(path) => format!("enter {}", path.display()),
            Step::CloseDescriptors => "close every other descriptor".into(),
            Step::Exec { args, .. } => format!("run {}", args.first().map_or("", |a| a)),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.describe(), self.command())
    }
}

/// How many of those that have a name there are.
fn count(set: CapabilitySet) -> usize {
    named_capabilities(set).count()
}

fn name_of(file: &Path) -> String {
    file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Names of include/uapi/linux/capability.h, in the order of their numbers.
const CAPABILITIES: &[&str] = &[
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The set with these names.
///
/// Panics at compile time when a name is not a capability's.
pub(super) const fn capabilities(names: &[&str]) -> CapabilitySet {
    let (mut set, mut i) = (0, 0);
    while i < names.len() {
        let mut number = 0;
        while !same(CAPABILITIES[number], names[i]) {
            number += 1;
        }
        set |= 1 << number;
        i += 1;
    }
    CapabilitySet(set)
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

impl CapabilitySet {
    /// The names of those in it that have one, in the order of their numbers.
    pub fn names(self) -> Vec<&'static str> {
        named_capabilities(self).collect()
    }
}

/// The set of the one with this name.
pub(super) fn capability(name: &str) -> Option<CapabilitySet> {
    CAPABILITIES.iter().position(|known| *known == name).map(|number| CapabilitySet(1 << number))
}

/// The names of those in the set, in the order of their numbers.
pub(super) fn named_capabilities(set: CapabilitySet) -> impl Iterator<Item = &'static str> {
    CAPABILITIES.iter().enumerate().filter(move |(number, _)| set.0 & (1 << number) != 0).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        assert_eq!(capabilities(&["chown"]).0, 1);
        assert_eq!(capabilities(&["sys_admin", "checkpoint_restore"]).0, 1 << 21 | 1 << 40);
        assert_eq!(named_capabilities(capabilities(&["setfcap", "kill"])).collect::<Vec<_>>(), ["kill", "setfcap"]);
    }
}
