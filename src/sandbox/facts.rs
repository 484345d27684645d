//! What a plan has to know of the host and of the root it is for, read beforehand.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::apparmor;
use super::devices::{DeviceRule, requested};
use super::limits::Limits;
use super::seccomp::Seccomp;
use super::security::{ALL_CAPABILITIES, Security};
use super::spec::{CgroupManager, Spec};
use super::step::CapabilitySet;
use super::user::{self, User};
use super::users::{Maps, Users, maps_of};
use crate::error::{Context, Kind, Result};
use crate::kernel::resolve::Target;
use crate::kernel::{capability, cgroup, fs, mount, node, process, resolve};
use crate::network::{self, Files, Member, Mode, Network, Who};
use crate::rootfs::Rootfs;

/// The largest file read from a root or from the host's /etc, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// Paths that show nothing inside, with those of each processor's `thermal_throttle`.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths of /proc that nothing is written to inside.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The cgroup that holds those of all sandboxes, below each hierarchy.
pub(super) const GROUP: &str = "tupper";

/// Where the processors are.
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// What a plan has to know and cannot find out by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The name of the sandbox's cgroup, below each hierarchy: `tupper/NAME`.
    pub cgroup: PathBuf,
    /// The cgroup hierarchies that are mounted.
    pub hierarchies: Vec<Hierarchy>,
    /// The disks that limits name.
    pub disks: Vec<Disk>,
    /// The host runs systemd; looked at only where it is to make the cgroup.
    pub systemd: bool,
    /// Who the command runs as.
    pub user: User,
    /// What stands behind the users and groups inside; without it they are the host's.
    pub maps: Option<Maps>,
    /// The process whose network it is to have, and with that its users.
    pub beside: Option<i32>,
    /// For each volume, whether it is a directory.
    pub volume_directories: Vec<bool>,
    /// Where the root lies, for people.
    pub rootfs: PathBuf,
    /// The root is to be mounted read-only whatever the spec says.
    pub rootfs_read_only: bool,
    /// Its /etc/hosts and /etc/resolv.conf.
    pub files: Files,
    /// Paths to mask that this kernel has.
    pub masked: Vec<Masked>,
    /// Paths to make read-only that this kernel has.
    pub read_only: Vec<PathBuf>,
    /// What the host's root may do, looked up where a sandbox asks for more than the default.
    pub capabilities: CapabilitySet,
    /// The host's devices, for a sandbox that gets all of them.
    pub devices: Vec<Device>,
    /// Those that it was given, and how it may use each.
    pub given: Vec<(Device, DeviceRule)>,
    /// The AppArmor profile to run under, and whether it is tupper's and has to be loaded first.
    pub apparmor: Option<(String, bool)>,
    /// The kernel has POSIX message queues.
    pub mqueue: bool,
    /// The first two numbers of the kernel's version, for a seccomp profile that asks for them.
    pub kernel: (u32, u32),
    /// The kernel has ping sockets: `net.ipv4.ping_group_range`.
    pub ping: bool,
}

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its mount point.
    pub mount: PathBuf,
    /// The controllers it offers.
    pub controllers: Vec<String>,
    /// It is the unified hierarchy (cgroup v2).
    pub unified: bool,
}

/// A disk, by the numbers that control files know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its device node.
    pub path: PathBuf,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
}

/// A device node of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is below /dev.
    pub name: String,
    /// It is a block device.
    pub block: bool,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Its permissions.
    pub mode: u32,
}

/// A path to mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// The path.
    pub path: PathBuf,
    /// It is a directory.
    pub directory: bool,
}

impl Facts {
    /// Reads them for the sandbox whose cgroups are named `cgroup` and which was given the range `leased`, if it
    /// [wants](super::Users::wants_range) one, and the `place` in a network, if it is to be in one; `beside` is the process
    /// whose network it is to have.
    ///
    /// # Errors
    ///
    /// A user or group that the root does not have; a passwd or group file in the root that is no regular file or
    /// larger than 1 MiB; a host without /proc.
    pub fn gather(
        spec: &Spec,
        rootfs: &Rootfs,
        cgroup: &str,
        leased: Option<&Maps>,
        place: Option<(&Network, &Member)>,
        beside: Option<i32>,
    ) -> Result<Facts> {
        Ok(Facts {
            cgroup: Path::new(GROUP).join(cgroup),
            hierarchies: hierarchies()?,
            disks: disks(&spec.limits)?,
            systemd: spec.cgroup_manager == CgroupManager::Systemd && runs_systemd(),
            user: who(spec, rootfs)?,
            maps: beside.map_or_else(|| spec.users.maps(leased), maps_of),
            beside,
            volume_directories: spec.volumes.iter().map(|v| resolve::probe(&v.source) != Some(Target::File)).collect(),
            rootfs: rootfs.path.clone(),
            rootfs_read_only: rootfs.read_only,
            files: files(spec, place)?,
            masked: masked(&spec.security, rootfs),
            read_only: protected(READ_ONLY, &spec.security).filter(|p| resolve::probe(p).is_some()).collect(),
            capabilities: match spec.security.asks_for_more() {
                true => capability::bounding_set(spec.users != Users::Host),
                false => ALL_CAPABILITIES,
            },
            devices: if spec.security.privileged && spec.users == Users::Host { devices()? } else { Vec::new() },
            given: requested(&spec.devices)?,
            apparmor: apparmor::profile(&spec.security)?,
            mqueue: resolve::probe(Path::new("/proc/sys/fs/mqueue")).is_some(),
            kernel: match spec.security.seccomp {
                Seccomp::Profile(_) => process::kernel_version(),
                Seccomp::Default | Seccomp::Unconfined => (0, 0),
            },
            ping: resolve::probe(Path::new("/proc/sys/net/ipv4/ping_group_range")).is_some(),
        })
    }
}

impl Facts {
    /// What a user and a group inside, which are mapped, are on the host.
    pub(super) fn outside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let maps = self.maps.as_ref();
        (
            maps.map_or(Some(uid), |maps| maps.uid(uid)).unwrap_or(uid),
            maps.map_or(Some(gid), |maps| maps.gid(gid)).unwrap_or(gid),
        )
    }
}

/// Who the command runs as, by the root's /etc/passwd and /etc/group.
pub(super) fn who(spec: &Spec, rootfs: &Rootfs) -> Result<User> {
    let passwd = read_optional(rootfs, Path::new("/etc/passwd"))?;
    let group = read_optional(rootfs, Path::new("/etc/group"))?;
    user::lookup(spec.user.as_deref(), &passwd, &group)
}

/// The user and the group that the command runs as.
pub fn owner(spec: &Spec, rootfs: &Rootfs) -> Result<(u32, u32)> {
    who(spec, rootfs).map(|user| (user.uid, user.gid))
}

/// sd_booted(3).
pub(super) fn runs_systemd() -> bool {
    resolve::probe(Path::new("/run/systemd/system")) == Some(Target::Directory)
}

/// The disks that limits name, by path.
pub(super) fn disks(limits: &Limits) -> Result<Vec<Disk>> {
    let mut found: Vec<Disk> = Vec::new();
    for path in limits.device_rates.iter().map(|rate| &rate.device) {
        if found.iter().any(|disk| disk.path == *path) {
            continue;
        }
        let (major, minor) = node::block_device(path).context(|| "limit io")?;
        found.push(Disk { path: path.clone(), major, minor });
    }
    Ok(found)
}

/// Those of the paths that the sandbox is not to see as they are.
fn protected<'a>(paths: &'a [&'a str], security: &'a Security) -> impl Iterator<Item = PathBuf> + 'a {
    paths.iter().map(PathBuf::from).filter(|path| security.protects(path))
}

fn masked(security: &Security, rootfs: &Rootfs) -> Vec<Masked> {
    // Every processor has the directory or none has (arch/x86/kernel/cpu/mce/therm_throt.c); a look at the first saves
    // the others, which may be hundreds.
    let first = resolve::probe(&Path::new(PROCESSORS).join("cpu0/thermal_throttle"));
    let processors = first.and_then(|_| fs::list(fs::CWD, PROCESSORS).ok()).unwrap_or_default();
    let numbered = |name: &str| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
    let mut throttles: Vec<PathBuf> = processors
        .iter()
        .filter(|name| name.to_str().is_some_and(numbered))
        .map(|name| Path::new(PROCESSORS).join(name).join("thermal_throttle"))
        .filter(|path| security.protects(path))
        .collect();
    throttles.sort();
    let asked = security.mask.iter().filter(|_| !security.privileged).cloned();
    let paths = protected(MASKED, security).chain(throttles).chain(asked);
    paths
        .filter_map(|path| {
            // What is below /proc and /sys will be the kernel's, as on the host.
            let of_kernel = path.starts_with("/proc") || path.starts_with("/sys");
            let found =
                if of_kernel { resolve::probe(&path) } else { resolve::probe_in_root(rootfs.dir.as_fd(), &path) };
            Some(Masked { directory: found? == Target::Directory, path })
        })
        .collect()
}

/// The nodes below the host's /dev, but for those that every sandbox has its own of, and terminals: what podman gives to a
/// privileged container.
fn devices() -> Result<Vec<Device>> {
    let own = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd"];
    let of_sandbox =
        |path: &Path| path.iter().next().and_then(|first| first.to_str()).is_some_and(|f| own.contains(&f));
    let mut found = Vec::new();
    let walk = walkdir::WalkDir::new("/dev").min_depth(1).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| !of_sandbox(entry.path().strip_prefix("/dev").unwrap_or(entry.path()))) {
        let entry = entry.map_err(std::io::Error::from).context(|| "look at the host's devices")?;
        let path = entry.path();
        if let Some((block, major, minor, mode)) = node::device(path).context(|| "look at the host's devices")?
            && let Some(name) = path.strip_prefix("/dev").ok().and_then(|name| name.to_str())
        {
            found.push(Device { name: name.to_string(), block, major, minor, mode });
        }
    }
    Ok(found)
}

/// A file of the root as text; empty when there is none.
fn read_optional(rootfs: &Rootfs, path: &Path) -> Result<String> {
    match resolve::read_in_root(rootfs.dir.as_fd(), path, FILE_LIMIT) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == Kind::NotFound => Ok(String::new()),
        Err(e) => Err(e).context(|| format!("look up the user in {}", rootfs.path.display())),
    }
}

fn files(spec: &Spec, place: Option<(&Network, &Member)>) -> Result<Files> {
    let of_host = spec.network == Mode::Host;
    let hosts = if of_host { read_host("/etc/hosts") } else { String::new() };
    let Spec { hostname, dns, hosts: entries, .. } = spec;
    network::files(&Who { hostname, place, of_host, dns, entries }, &hosts, &read_host("/etc/resolv.conf"))
}

/// A file of the host, links followed; a host without it has nothing to say.
fn read_host(path: &str) -> String {
    let bytes = std::fs::read(path).ok().filter(|bytes| bytes.len() as u64 <= FILE_LIMIT);
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// The hierarchies in this process's mountinfo, with the unified one's controllers from its cgroup.controllers.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")?;
    let mut found = parse_hierarchies(&mountinfo);
    for hierarchy in found.iter_mut().filter(|h| h.unified) {
        let controllers = cgroup::read(&hierarchy.mount.join("cgroup.controllers"))?;
        hierarchy.controllers = controllers.split_whitespace().map(str::to_string).collect();
    }
    Ok(found)
}

/// The cgroup mounts of a mountinfo text: proc_pid_mountinfo(5), fields 5 (mount point), 9 (type) and 11 (options).
fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        let Some(place) = before.split(' ').nth(4) else { continue };
        let unified = kind == "cgroup2";
        // The first mount of each is the host's own; others are views that somebody made of it.
        if !unified && kind != "cgroup" || found.iter().any(|h| unified && h.unified) {
            continue;
        }
        let controllers = if unified { Vec::new() } else { options.split(',').map(str::to_string).collect() };
        found.push(Hierarchy { mount: mount::unescape(place), controllers, unified });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_hybrid_and_unified_hosts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                      50 1 0:38 / /mnt/a\\040view rw - cgroup2 cgroup2 rw\nnonsense\n";
        let found = parse_hierarchies(hybrid);
        let seen: Vec<_> = found.iter().map(|h| (h.mount.to_str().expect("utf-8"), h.unified)).collect();
        assert_eq!(seen, [("/sys/fs/cgroup/cpu,cpuacct", false), ("/sys/fs/cgroup/unified", true)]);
        assert!(found[0].controllers.contains(&"cpu".to_string()));
    }
}
