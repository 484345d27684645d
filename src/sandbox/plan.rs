//! From a spec and the facts to the list of steps: pure, so that the whole posture can be read and tested as a value.

use std::path::{Component, Path, PathBuf};

use super::cgroups::plan_cgroups;
use super::facts::Facts;
use super::spec::{Network, Spec, Tmpfs, Volume};
use super::step::{Attributes, CapabilitySet, Side, Step, capabilities};
use crate::error::{Error, Kind, Result};

/// What root keeps inside: podman's default (containers-common, containers.conf(5) `default_capabilities`).
pub(super) const DEFAULT_CAPABILITIES: CapabilitySet = capabilities(&[
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "net_bind_service",
    "setfcap",
    "setgid",
    "setpcap",
    "setuid",
    "sys_chroot",
]);

/// gethostname(2): HOST_NAME_MAX.
const HOST_NAME_MAX: usize = 64;

const NONE: Attributes = Attributes { read_only: false, nosuid: false, nodev: false, noexec: false };
const NOSUID_NODEV: Attributes = Attributes { nosuid: true, nodev: true, ..NONE };
const NOSUID_NOEXEC: Attributes = Attributes { nosuid: true, noexec: true, ..NONE };
const HARMLESS: Attributes = Attributes { nosuid: true, nodev: true, noexec: true, ..NONE };
const HARMLESS_READ_ONLY: Attributes = Attributes { read_only: true, ..HARMLESS };

/// The way into one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
    pub(super) tty: bool,
    pub(super) interactive: bool,
    /// The control file that counts OOM kills in a line `oom_kill N`.
    pub(super) oom_events: Option<PathBuf>,
}

impl Plan {
    /// The steps, in the order in which they run.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Every mount point that is visible inside, in the order in which they are mounted. Below a volume there are
    /// those of the host too.
    pub fn mount_points(&self) -> impl Iterator<Item = &Path> {
        self.steps.iter().filter_map(Step::mount_point)
    }
}

/// Plans the sandbox that `spec` describes, given the `facts`.
///
/// # Errors
///
/// [`Kind::Invalid`] for a spec that makes no sense, [`Kind::Unsupported`] for a limit that this host cannot set.
pub fn plan(spec: &Spec, facts: &Facts) -> Result<Plan> {
    validate(spec)?;
    let cgroups = plan_cgroups(&spec.limits, facts)?;
    let own_network = spec.network == Network::None;
    let read_only = spec.read_only || facts.rootfs_read_only;

    let mut steps = cgroups.steps;
    let mut trees = Vec::new();
    for place in &cgroups.places {
        trees.push((place.directory.clone(), place.view.clone()));
        steps.push(Step::CloneTree {
            source: place.directory.clone(),
            recursive: false,
            attributes: HARMLESS_READ_ONLY,
        });
    }
    for volume in &spec.volumes {
        steps.push(Step::CloneTree {
            source: volume.source.clone(),
            recursive: true,
            attributes: Attributes { read_only: volume.read_only, ..NOSUID_NODEV },
        });
    }
    steps.push(Step::Clone { network: own_network, cgroup: cgroups.unified });
    steps.push(Step::DieWithParent);
    steps.extend(cgroups.attach.into_iter().map(|directory| Step::Attach { directory }));
    steps.extend([Step::NewSession, Step::SetUmask(0), Step::MakePrivate, Step::SetHostname(spec.hostname.clone())]);
    if own_network {
        steps.push(Step::LoopbackUp);
    }
    steps.extend([
        Step::AwaitRoot,
        Step::CloneRoot { path: facts.rootfs.clone(), attributes: NOSUID_NODEV },
        Step::AttachRoot { path: facts.rootfs.clone() },
    ]);
    steps.push(mount("proc", "/proc", &[], HARMLESS));
    if own_network && facts.ping {
        // ping(8) without privileges for every group: icmp(7), ping_group_range.
        steps.push(Step::SetParameter { name: "net/ipv4/ping_group_range", value: "0 2147483647" });
    }
    plan_devices(&mut steps, spec, facts);
    steps.push(mount("sysfs", "/sys", &[], HARMLESS_READ_ONLY));
    plan_private(&mut steps, spec, facts, &trees);
    steps.extend(facts.masked.iter().map(|m| Step::Mask { path: m.path.clone(), directory: m.directory }));
    steps.extend(facts.read_only.iter().map(|path| Step::MakeReadOnly { path: path.clone() }));
    plan_volumes(&mut steps, spec, trees.len())?;
    plan_etc(&mut steps, spec, read_only);

    if spec.cwd != Path::new("/") {
        steps.push(Step::MakeDirectory(spec.cwd.clone()));
    }
    if read_only {
        steps.push(Step::SealRoot);
    }
    steps.extend([
        Step::UnshareCgroup,
        Step::PivotRoot,
        Step::DetachOldRoot,
        Step::JoinKeyring,
        Step::ForbidCoreFiles,
        Step::SetUmask(0o022),
    ]);
    plan_command(&mut steps, spec, facts);
    Ok(Plan { steps, tty: spec.tty, interactive: spec.interactive, oom_events: cgroups.oom_events })
}

fn plan_command(steps: &mut Vec<Step>, spec: &Spec, facts: &Facts) {
    let user = &facts.user;
    let kept = if user.uid == 0 { DEFAULT_CAPABILITIES } else { CapabilitySet(0) };
    if user.uid != 0 && !spec.tty {
        steps.push(Step::OwnStreams { uid: user.uid });
    }
    steps.extend([
        Step::LimitCapabilities(DEFAULT_CAPABILITIES),
        Step::SetIdentity { uid: user.uid, gid: user.gid, groups: user.groups.clone() },
        Step::SetCapabilities(kept),
        Step::ForbidNewPrivileges,
        // Again: changing the user cleared it (prctl(2), PR_SET_PDEATHSIG).
        Step::DieWithParent,
    ]);
    if spec.init {
        steps.extend([Step::ForkInit, Step::NewSession]);
    }
    if spec.tty {
        steps.push(Step::TakeTerminal);
    } else if !spec.interactive {
        steps.push(Step::CloseInput);
    }
    let mut env = spec.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        let home = user.home.as_deref().unwrap_or(Path::new("/"));
        env.push(format!("HOME={}", home.display()));
    }
    steps.extend([
        Step::ResetSignals,
        Step::ChangeDirectory(spec.cwd.clone()),
        Step::CloseDescriptors,
        Step::Exec { args: spec.args.clone(), env },
    ]);
}

fn plan_devices(steps: &mut Vec<Step>, spec: &Spec, facts: &Facts) {
    // OCI runtime-spec config-linux.md, "Default Devices" and "Default Filesystems".
    steps.push(mount("tmpfs", "/dev", &["mode=0755", "size=64k"], NOSUID_NOEXEC));
    let devices = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    steps.extend(devices.map(|(name, major, minor)| Step::MakeDevice { name, major, minor }));
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
        ("core", "/proc/kcore"),
    ];
    steps.extend(links.map(|(name, target)| Step::MakeLink { name, target }));
    // gid 5 is tty in every distribution that numbers it; devpts.rst.
    let pts = ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    steps.push(mount("devpts", "/dev/pts", &pts, NOSUID_NOEXEC));
    steps.push(mount("tmpfs", "/dev/shm", &["mode=1777", "size=65536k"], HARMLESS));
    if facts.mqueue {
        steps.push(mount("mqueue", "/dev/mqueue", &[], HARMLESS));
    }
    if spec.tty {
        steps.push(Step::OpenTerminal { owner: facts.user.uid });
    }
}

/// The private files, and the view of the cgroups that lies on them where there are several hierarchies.
fn plan_private(steps: &mut Vec<Step>, spec: &Spec, facts: &Facts, trees: &[(PathBuf, PathBuf)]) {
    let views = |parent: &str| {
        let below = trees.iter().filter_map(|(_, view)| view.strip_prefix(parent).ok());
        below.filter(|name| !name.as_os_str().is_empty()).map(|n| n.display().to_string()).collect::<Vec<_>>()
    };
    let several = views("/sys/fs/cgroup");
    let mut directories = vec!["empty".to_string()];
    if !several.is_empty() {
        directories.push("cgroup".to_string());
        directories.extend(several.iter().map(|name| format!("cgroup/{name}")));
    }
    let resolv_conf = ("resolv.conf".to_string(), facts.resolv_conf.clone());
    let hostname = ("hostname".to_string(), format!("{}\n", spec.hostname).into_bytes());
    let hosts = ("hosts".to_string(), facts.hosts.clone().unwrap_or_else(|| own_hosts(&spec.hostname)));
    steps.push(Step::MakePrivateFiles { directories, files: vec![hosts, hostname, resolv_conf] });
    if !several.is_empty() {
        steps.push(Step::BindPrivate {
            name: "cgroup".to_string(),
            destination: PathBuf::from("/sys/fs/cgroup"),
            attributes: HARMLESS_READ_ONLY,
            directory: true,
        });
    }
    for (tree, (source, destination)) in trees.iter().enumerate() {
        steps.push(Step::AttachTree { tree, source: source.clone(), destination: destination.clone() });
    }
}

fn own_hosts(hostname: &str) -> Vec<u8> {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n").into_bytes()
}

/// Volumes and tmpfs, outer ones first, so that an inner one is not hidden.
fn plan_volumes(steps: &mut Vec<Step>, spec: &Spec, first_tree: usize) -> Result<()> {
    let mut mounts: Vec<Step> = Vec::new();
    for (i, Volume { source, destination, .. }) in spec.volumes.iter().enumerate() {
        let (source, destination) = (source.clone(), destination.clone());
        mounts.push(Step::AttachTree { tree: first_tree + i, source, destination });
    }
    for tmpfs in &spec.tmpfs {
        let (options, attributes) = tmpfs_options(tmpfs)?;
        mounts.push(Step::MountTmpfs { destination: tmpfs.destination.clone(), options, attributes });
    }
    mounts.sort_by_key(|step| step.mount_point().map_or(0, |p| p.components().count()));
    steps.extend(mounts);
    Ok(())
}

/// The three files of /etc, unless the person mounts something of their own there.
fn plan_etc(steps: &mut Vec<Step>, spec: &Spec, read_only: bool) {
    for name in ["hosts", "hostname", "resolv.conf"] {
        let destination = Path::new("/etc").join(name);
        let taken = spec.volumes.iter().any(|v| v.destination == destination);
        if !taken {
            let attributes = if read_only { HARMLESS_READ_ONLY } else { HARMLESS };
            steps.push(Step::BindPrivate { name: name.to_string(), destination, attributes, directory: false });
        }
    }
}

fn mount(kind: &'static str, destination: &str, options: &[&str], attributes: Attributes) -> Step {
    let options = options.iter().map(|o| o.to_string()).collect();
    Step::Mount { kind, destination: PathBuf::from(destination), options, attributes }
}

fn tmpfs_options(tmpfs: &Tmpfs) -> Result<(Vec<String>, Attributes)> {
    let mut attributes = HARMLESS;
    let mut options = Vec::new();
    let mut mode = false;
    for option in tmpfs.options.split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            None => match option {
                "ro" => attributes.read_only = true,
                "rw" => attributes.read_only = false,
                "exec" => attributes.noexec = false,
                "noexec" => attributes.noexec = true,
                "suid" => attributes.nosuid = false,
                "nosuid" => attributes.nosuid = true,
                "nodev" => {}
                _ => return Err(bad_option(tmpfs, option)),
            },
            Some(("size" | "nr_inodes" | "uid" | "gid", value)) if !value.is_empty() => {
                options.push(option.to_string())
            }
            Some(("mode", value)) if u32::from_str_radix(value, 8).is_ok_and(|m| m <= 0o7777) => {
                mode = true;
                options.push(option.to_string());
            }
            Some(_) => return Err(bad_option(tmpfs, option)),
        }
    }
    if !mode {
        options.push("mode=1777".to_string());
    }
    Ok((options, attributes))
}

fn bad_option(tmpfs: &Tmpfs, option: &str) -> Error {
    invalid(format!("tmpfs {}: option {option:?} is not known", tmpfs.destination.display()))
}

fn validate(spec: &Spec) -> Result<()> {
    let words = spec.args.iter().chain(&spec.env).chain([&spec.hostname]);
    if let Some(word) = words.into_iter().find(|w| w.contains('\0')) {
        return Err(invalid(format!("{word:?}: contains a NUL byte")));
    }
    if spec.args.is_empty() {
        return Err(invalid("no command: neither given nor in the image".to_string()));
    }
    if spec.hostname.is_empty() || spec.hostname.len() > HOST_NAME_MAX || spec.hostname.contains(char::is_whitespace) {
        return Err(invalid(format!("hostname {:?}: not 1 to {HOST_NAME_MAX} bytes without spaces", spec.hostname)));
    }
    absolute("working directory", &spec.cwd)?;
    for volume in &spec.volumes {
        absolute("volume source", &volume.source)?;
        mountable("volume", &volume.destination)?;
    }
    for tmpfs in &spec.tmpfs {
        mountable("tmpfs", &tmpfs.destination)?;
    }
    if spec.limits.memory == Some(0) {
        return Err(invalid("limit memory: zero bytes".to_string()));
    }
    // The kernel's least quota is a millisecond: kernel/sched/core.c, min_cfs_quota_period.
    if spec.limits.millicpus.is_some_and(|m| m < 10) {
        return Err(invalid("limit cpus: less than 0.01".to_string()));
    }
    Ok(())
}

fn absolute(what: &str, path: &Path) -> Result<()> {
    let nul = path.as_os_str().as_encoded_bytes().contains(&0);
    if !path.is_absolute() || nul {
        return Err(invalid(format!("{what} {}: not an absolute path", path.display())));
    }
    Ok(())
}

/// A place where a person may mount something: not `/`, and nothing that belongs to /proc, which the sandbox's
/// protection rests on.
fn mountable(what: &str, path: &Path) -> Result<()> {
    absolute(what, path)?;
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(invalid(format!("{what} {}: contains ..", path.display())));
    }
    let protected = path.starts_with("/proc") || path == Path::new("/sys") || path == Path::new("/dev");
    if path == Path::new("/") || protected {
        return Err(invalid(format!("{what} {}: cannot be mounted there", path.display())));
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, message)
}

/// The steps by where they run: before the process, then at the same time the parent's and the child's.
pub(super) fn split(steps: &[Step]) -> (&[Step], Vec<&Step>, Vec<&Step>) {
    let (before, after) = steps.split_at(steps.partition_point(|step| step.side() == Side::Before));
    let (parents, childs) = after.iter().partition(|step| step.side() == Side::Parent);
    (before, parents, childs)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
