//! From a spec and the facts to the list of steps: pure, so that the whole posture can be read and tested as a value.

use std::path::{Component, Path, PathBuf};

use super::cgroups::{CgroupPlace, Counters, plan_cgroups};
use super::devices::{DeviceRule, device_rules};
use super::facts::{Device, Facts};
use super::freezer;
use super::scope::Scope;
use super::seccomp::{self, Filter};
use super::spec::{Spec, Tmpfs, invalid};
use super::step::{Attributes, CapabilitySet, Side, Step};
use super::user::User;
use super::users::Maps;
use crate::error::{Error, Result};
use crate::rootfs::FILES_IN_ETC;

/// gethostname(2): HOST_NAME_MAX.
const HOST_NAME_MAX: usize = 64;

/// The largest that ping_group_range takes: icmp(7).
const LAST_PING_GROUP: u32 = 2_147_483_647;

const NONE: Attributes = Attributes { read_only: false, nosuid: false, nodev: false, noexec: false };
const NOSUID_NODEV: Attributes = Attributes { nosuid: true, nodev: true, ..NONE };
const NOSUID_NOEXEC: Attributes = Attributes { nosuid: true, noexec: true, ..NONE };
const HARMLESS: Attributes = Attributes { nosuid: true, nodev: true, noexec: true, ..NONE };
const HARMLESS_READ_ONLY: Attributes = Attributes { read_only: true, ..HARMLESS };

/// The way into one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) tty: bool,
    pub(super) interactive: bool,
    pub(super) counters: Counters,
    /// A cgroup that may come to be while it runs: the freezer's, on a host that has that on v1.
    pub(super) freezer: Option<PathBuf>,
}

impl Plan {
    /// The steps, in the order in which they run.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What is removed when the sandbox has ended, the last made first: in words and as a shell command.
    pub fn afterwards(&self) -> Vec<(String, String)> {
        self.steps.iter().rev().filter_map(Step::undo).collect()
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
/// [`Kind::Invalid`](crate::error::Kind::Invalid) for a spec that makes no sense,
/// [`Kind::Unsupported`](crate::error::Kind::Unsupported) for a limit that this host cannot set.
pub fn plan(spec: &Spec, facts: &Facts) -> Result<Plan> {
    validate(spec, facts)?;
    let capabilities = spec.security.capabilities(facts.capabilities)?;
    // In a user namespace, all of them are not enough to make a node, but to lift `nodev` from a mount that has some.
    let all_devices = spec.security.privileged && facts.maps.is_none();
    let filter = seccomp::filter(&spec.security, capabilities, facts.kernel)?;
    let given: Vec<DeviceRule> = facts.given.iter().map(|(_, rule)| *rule).collect();
    let cgroups = plan_cgroups(spec, device_rules(capabilities, all_devices, &given), facts.ground())?;
    let (own_network, joins) = (spec.network.is_own(), spec.network.joined().is_some());
    let read_only = spec.read_only || facts.rootfs_read_only;

    let mut steps = cgroups.steps;
    if let Some((name, true)) = &facts.apparmor {
        steps.push(Step::LoadProfile { name: name.clone() });
    }
    let kernel = if spec.security.privileged { HARMLESS } else { HARMLESS_READ_ONLY };
    let trees = plan_trees(spec, facts, &cgroups.places, kernel);
    steps.extend(trees.iter().map(Tree::clone_step));
    plan_streams(&mut steps, spec, facts);
    steps.push(Step::Clone {
        users: facts.maps.is_some() && facts.beside.is_none(),
        network: own_network && joins,
        beside: facts.beside.map(|pid| (pid, facts.maps.is_some())),
        cgroup: cgroups.unified,
    });
    steps.push(Step::DieWithParent);
    steps.extend(cgroups.attach.into_iter().map(|directory| Step::Attach { directory }));
    steps.extend([Step::NewSession, Step::SetUmask(0), Step::SetHostname(spec.hostname.clone())]);
    if own_network && !joins {
        steps.push(Step::UnshareNetwork);
    }
    if own_network {
        steps.push(Step::LoopbackUp);
    }
    let made = plan_parent(&mut steps, spec, facts, &trees, cgroups.scope.clone());
    if facts.maps.is_some() {
        // The change of user clears the wish to end with the parent: prctl(2), PR_SET_PDEATHSIG.
        steps.extend([Step::BecomeRoot, Step::DieWithParent]);
    }
    steps.extend([Step::MakePrivate, Step::JoinKeyring, Step::AttachRoot { path: facts.rootfs.clone() }]);
    steps.push(mount("proc", "/proc", &[], HARMLESS));
    if own_network && facts.ping {
        // ping(8) without privileges for every group: icmp(7), ping_group_range. The kernel takes no group that is not
        // mapped (net/ipv4/sysctl_net_ipv4.c, ipv4_ping_group_range).
        let last = facts.maps.as_ref().map_or(LAST_PING_GROUP, Maps::last_gid).min(LAST_PING_GROUP);
        steps.push(Step::SetParameter { name: "net/ipv4/ping_group_range", value: format!("0 {last}") });
    }
    steps.extend(made);
    plan_devices(&mut steps, spec, facts);
    plan_private(&mut steps, spec, facts, &trees);
    steps.extend(cgroups.scope.map(|scope| Step::AttachCgroup {
        directory: scope.directory,
        destination: PathBuf::from("/sys/fs/cgroup"),
        attributes: kernel,
    }));
    steps.extend(facts.masked.iter().map(|m| Step::Mask { path: m.path.clone(), directory: m.directory }));
    steps.extend(facts.read_only.iter().map(|path| Step::MakeReadOnly { path: path.clone() }));
    plan_volumes(&mut steps, spec, &trees, facts)?;
    plan_etc(&mut steps, spec, read_only);

    if spec.cwd != Path::new("/") {
        steps.push(Step::MakeDirectory(spec.cwd.clone()));
    }
    if read_only {
        steps.push(Step::SealRoot);
    }
    steps.extend([Step::UnshareCgroup, Step::PivotRoot, Step::DetachOldRoot]);
    if !spec.security.ulimits.iter().any(|limit| limit.name == "core") {
        steps.push(Step::ForbidCoreFiles);
    }
    steps.push(Step::SetUmask(0o022));
    let apparmor = facts.apparmor.as_ref().map(|(profile, _)| profile.as_str());
    plan_command(&mut steps, spec, &Who { user: &facts.user, apparmor, capabilities }, filter);
    let freezer = freezer::legacy(&facts.hierarchies, &facts.cgroup);
    Ok(Plan { steps, tty: spec.tty, interactive: spec.interactive, counters: cgroups.counters, freezer })
}

/// A mount of the host's that shows inside: a view of a cgroup, or a volume.
struct Tree {
    source: PathBuf,
    destination: PathBuf,
    recursive: bool,
    attributes: Attributes,
    mapped: bool,
    directory: bool,
    cgroup: bool,
}

impl Tree {
    fn clone_step(&self) -> Step {
        Step::CloneTree { source: self.source.clone(), recursive: self.recursive, attributes: self.attributes }
    }

    fn attach_step(&self, tree: usize, facts: &Facts) -> Step {
        Step::AttachTree {
            tree,
            source: self.source.clone(),
            destination: self.destination.clone(),
            attributes: self.attributes,
            mapped: self.mapped,
            by_host: !self.cgroup && facts.maps.is_some(),
            directory: self.directory,
        }
    }
}

fn plan_trees(spec: &Spec, facts: &Facts, places: &[CgroupPlace], kernel: Attributes) -> Vec<Tree> {
    let cgroups = places.iter().map(|place| Tree {
        source: place.directory.clone(),
        destination: place.view.clone(),
        recursive: false,
        attributes: kernel,
        mapped: false,
        directory: true,
        cgroup: true,
    });
    let volumes = spec.volumes.iter().enumerate().map(|(i, volume)| Tree {
        source: volume.source.clone(),
        destination: volume.destination.clone(),
        recursive: true,
        attributes: Attributes { read_only: volume.read_only, ..NOSUID_NODEV },
        mapped: volume.mapped && facts.maps.is_some(),
        directory: facts.volume_directories.get(i).copied().unwrap_or(true),
        cgroup: false,
    });
    cgroups.chain(volumes).collect()
}

fn plan_streams(steps: &mut Vec<Step>, spec: &Spec, facts: &Facts) {
    let uid = facts.outside(facts.user.uid, 0).0;
    if uid != 0 && !spec.tty {
        steps.push(Step::OwnStreams { uid });
    }
}

/// With no_new_privs no file of the root gives privileges either, but its file capabilities do no harm to programs that try
/// without them: Debian's ping fails with no_new_privs alone, because execve(2) refuses what it cannot grant.
fn root_attributes(spec: &Spec, facts: &Facts) -> Attributes {
    let nodev = !spec.security.privileged || facts.maps.is_some();
    Attributes { nosuid: spec.security.no_new_privileges(), nodev, ..NONE }
}

/// What the parent does when the new process asks for its root. Returns the steps that attach what it made.
fn plan_parent(steps: &mut Vec<Step>, spec: &Spec, facts: &Facts, trees: &[Tree], scope: Option<Scope>) -> Vec<Step> {
    let own_network = spec.network.is_own();
    let sys = if spec.security.privileged { HARMLESS } else { HARMLESS_READ_ONLY };
    let mapped = facts.maps.is_some();
    let owner = facts.outside(0, 0);
    steps.push(Step::AwaitRoot);
    steps.extend(scope.map(Step::StartScope));
    steps.extend(facts.maps.clone().map(|maps| match facts.beside {
        Some(pid) => Step::ShareUsers { pid },
        None => Step::WriteIdMaps(maps),
    }));
    // By the parent, who may raise one: setrlimit(2), CAP_SYS_RESOURCE, in the host's user namespace.
    steps.extend(spec.security.ulimits.iter().cloned().map(Step::SetResourceLimit));
    steps.push(Step::CloneRoot { path: facts.rootfs.clone(), attributes: root_attributes(spec, facts), mapped });
    let volumes = trees.iter().enumerate().filter(|(_, tree)| tree.mapped);
    steps.extend(volumes.map(|(tree, volume)| Step::MapTree { tree, source: volume.source.clone() }));
    let mut attach = Vec::new();
    let mut make = |steps: &mut Vec<Step>, kind, destination: &str, options: &[&str], attributes| {
        let (options, destination) = (options.iter().map(ToString::to_string).collect(), PathBuf::from(destination));
        attach.push(Step::AttachFilesystem { filesystem: attach.len(), kind, destination: destination.clone() });
        steps.push(Step::MakeFilesystem { kind, destination, options, attributes, mapped });
    };
    if mapped && !own_network {
        // Who may mount it is who owns the network namespace that it shows: fs/sysfs/mount.c, sysfs_init_fs_context.
        make(steps, "sysfs", "/sys", &[], sys);
    }
    // Device nodes are the host's to make: mknod(2), EPERM in a user namespace.
    let (uid, gid) = (format!("uid={}", owner.0), format!("gid={}", owner.1));
    let options = ["mode=0755", "size=64k", &uid, &gid];
    make(steps, "tmpfs", "/dev", if mapped { &options } else { &options[..2] }, NOSUID_NOEXEC);
    // OCI runtime-spec config-linux.md, "Default Devices".
    let devices = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    let devices =
        devices.map(|(name, major, minor)| Device { name: name.to_string(), block: false, major, minor, mode: 0o666 });
    let given = || facts.given.iter().map(|(device, _)| device.clone());
    let devices = devices.into_iter().chain(facts.devices.iter().cloned());
    let devices = devices.filter(|device| given().all(|given| given.name != device.name)).chain(given());
    steps.extend(devices.map(|device| Step::MakeDevice { device, owner }));
    if !mapped || own_network {
        attach.push(mount("sysfs", "/sys", &[], sys));
    }
    attach
}

/// Who a command is.
pub(super) struct Who<'a> {
    pub user: &'a User,
    /// The AppArmor profile that it runs under.
    pub apparmor: Option<&'a str>,
    pub capabilities: CapabilitySet,
}

/// From root inside to the command.
pub(super) fn plan_command(steps: &mut Vec<Step>, spec: &Spec, who: &Who<'_>, mut filter: Option<Filter>) {
    let Who { user, capabilities, .. } = *who;
    if !spec.security.no_new_privileges() {
        // Without no_new_privs it takes CAP_SYS_ADMIN, which is about to go: seccomp(2).
        steps.extend(filter.take().map(Step::FilterCalls));
    }
    let kept = if user.uid == 0 { capabilities } else { CapabilitySet(0) };
    steps.extend([
        Step::SetIdentity { bounding: capabilities, uid: user.uid, gid: user.gid, groups: user.groups.clone() },
        Step::SetCapabilities(kept),
    ]);
    steps.extend(who.apparmor.map(|profile| Step::Confine { profile: profile.to_string() }));
    if spec.security.no_new_privileges() {
        steps.push(Step::ForbidNewPrivileges);
    }
    // Again: changing the user cleared it (prctl(2), PR_SET_PDEATHSIG).
    steps.push(Step::DieWithParent);
    if spec.init {
        // Init is to be under it, too.
        steps.extend(filter.take().map(Step::FilterCalls));
        steps.extend([Step::ForkInit, Step::NewSession]);
    }
    let without_input = !spec.tty && !spec.interactive;
    if spec.tty {
        steps.push(Step::TakeTerminal);
    } else if without_input {
        steps.push(Step::CloseInput);
    }
    let mut env = spec.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        let home = user.home.as_deref().unwrap_or(Path::new("/"));
        env.push(format!("HOME={}", home.display()));
    }
    steps.extend([Step::ResetSignals, Step::ChangeDirectory(spec.cwd.clone()), Step::CloseDescriptors]);
    // As late as can be, so that a profile need not allow what comes before.
    steps.extend(filter.map(Step::FilterCalls));
    steps.push(Step::Exec { args: spec.args.clone(), env, without_input });
}

fn plan_devices(steps: &mut Vec<Step>, spec: &Spec, facts: &Facts) {
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
        ("core", "/proc/kcore"),
    ];
    steps.extend(links.map(|(name, target)| Step::MakeLink { name, target }));
    // OCI runtime-spec config-linux.md, "Default Filesystems". Group 5 is tty in every distribution that numbers it.
    let pts = ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let tty_group = facts.maps.as_ref().is_none_or(|maps| maps.gid(5).is_some());
    steps.push(mount("devpts", "/dev/pts", &pts[..if tty_group { 4 } else { 3 }], NOSUID_NOEXEC));
    let shm = spec.shm_size.map_or("size=65536k".to_string(), |size| format!("size={size}"));
    steps.push(mount("tmpfs", "/dev/shm", &["mode=1777", &shm], HARMLESS));
    if facts.mqueue {
        steps.push(mount("mqueue", "/dev/mqueue", &[], HARMLESS));
    }
    if spec.tty {
        steps.push(Step::OpenTerminal { owner: facts.user.uid, console: true });
    }
}

/// The private files, and the view of the cgroups that lies on them where there are several hierarchies.
fn plan_private(steps: &mut Vec<Step>, spec: &Spec, facts: &Facts, trees: &[Tree]) {
    let views = |parent: &str| {
        let below = trees.iter().filter(|t| t.cgroup).filter_map(|t| t.destination.strip_prefix(parent).ok());
        below.filter(|name| !name.as_os_str().is_empty()).map(|n| n.display().to_string()).collect::<Vec<_>>()
    };
    let several = views("/sys/fs/cgroup");
    let mut directories = vec!["empty".to_string()];
    if !several.is_empty() {
        directories.push("cgroup".to_string());
        directories.extend(several.iter().map(|name| format!("cgroup/{name}")));
    }
    let resolv_conf = ("resolv.conf".to_string(), facts.files.resolv_conf.clone().into_bytes());
    let hostname = ("hostname".to_string(), format!("{}\n", spec.hostname).into_bytes());
    let hosts = ("hosts".to_string(), facts.files.hosts.clone().into_bytes());
    steps.push(Step::MakePrivateFiles { directories, files: vec![hosts, hostname, resolv_conf] });
    if !several.is_empty() {
        steps.push(Step::BindPrivate {
            name: "cgroup".to_string(),
            destination: PathBuf::from("/sys/fs/cgroup"),
            attributes: HARMLESS_READ_ONLY,
            directory: true,
        });
    }
    steps.extend(trees.iter().enumerate().filter(|(_, tree)| tree.cgroup).map(|(i, tree)| tree.attach_step(i, facts)));
}

/// Volumes and tmpfs, outer ones first, so that an inner one is not hidden.
fn plan_volumes(steps: &mut Vec<Step>, spec: &Spec, trees: &[Tree], facts: &Facts) -> Result<()> {
    let volumes = trees.iter().enumerate().filter(|(_, tree)| !tree.cgroup);
    let mut mounts: Vec<Step> = volumes.map(|(i, volume)| volume.attach_step(i, facts)).collect();
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
    for name in FILES_IN_ETC {
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

fn validate(spec: &Spec, facts: &Facts) -> Result<()> {
    validate_command(spec)?;
    if spec.hostname.is_empty() || spec.hostname.len() > HOST_NAME_MAX || spec.hostname.contains(char::is_whitespace) {
        return Err(invalid(format!("hostname {:?}: not 1 to {HOST_NAME_MAX} bytes without spaces", spec.hostname)));
    }
    for volume in &spec.volumes {
        absolute("volume source", &volume.source)?;
        mountable("volume", &volume.destination)?;
    }
    for tmpfs in &spec.tmpfs {
        mountable("tmpfs", &tmpfs.destination)?;
    }
    if let Some(maps) = &facts.maps {
        maps.validate()?;
        require_mapped(maps, &facts.user)?;
    }
    spec.limits.check()
}

pub(super) fn validate_command(spec: &Spec) -> Result<()> {
    let words = spec.args.iter().chain(&spec.env).chain([&spec.hostname]);
    if let Some(word) = words.into_iter().find(|w| w.contains('\0')) {
        return Err(invalid(format!("{word:?}: contains a NUL byte")));
    }
    if spec.args.is_empty() {
        return Err(invalid("no command: neither given nor in the image".to_string()));
    }
    absolute("working directory", &spec.cwd)
}

pub(super) fn require_mapped(maps: &Maps, user: &User) -> Result<()> {
    let missing = match maps.uid(user.uid) {
        None => Some(("user", user.uid)),
        Some(_) => [user.gid].iter().chain(&user.groups).find(|g| maps.gid(**g).is_none()).map(|g| ("group", *g)),
    };
    match missing {
        Some((what, id)) => {
            let error = invalid(format!("{what} {id}: not one of those that the container has"));
            Err(error.with_hint("--uidmap and --gidmap say which it has; --userns host gives it all"))
        }
        None => Ok(()),
    }
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

/// Whether an image may choose this place for a volume.
pub fn is_place_for_volume(path: &Path) -> bool {
    mountable("volume", path).is_ok() && !["/sys", "/dev"].iter().any(|own| path.starts_with(own))
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

#[cfg(test)]
#[path = "plan_limits_tests.rs"]
mod limits_tests;
