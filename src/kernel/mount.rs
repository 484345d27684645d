//! Mounts by descriptor: the "new" mount API (fsopen, fsmount, open_tree, mount_setattr, move_mount) and pivot_root.
//!
//! Everything here works on descriptors, so no path of an image is ever looked up by the host's rules. The constants
//! are those of include/uapi/linux/mount.h.

use std::ffi::CString;
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{failed, fs};
use crate::error::{Context, Kind, Result};

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOUNT_ATTR_RDONLY: u64 = 0x01;
const MOUNT_ATTR_NOSUID: u64 = 0x02;
const MOUNT_ATTR_NODEV: u64 = 0x04;
const MOUNT_ATTR_NOEXEC: u64 = 0x08;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// What a mount forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Nothing is written through it.
    pub read_only: bool,
    /// Set-user-id bits and file capabilities are ignored.
    pub nosuid: bool,
    /// Device nodes do not open.
    pub nodev: bool,
    /// Nothing is executed from it.
    pub noexec: bool,
}

impl Attributes {
    fn bits(self) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        bit(self.read_only, MOUNT_ATTR_RDONLY)
            | bit(self.nosuid, MOUNT_ATTR_NOSUID)
            | bit(self.nodev, MOUNT_ATTR_NODEV)
            | bit(self.noexec, MOUNT_ATTR_NOEXEC)
    }
}

/// The layout of `struct mount_attr` (mount_setattr(2)).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount at `path` below `at` (an empty path: `at` itself);
/// with `recursive` of the mounts below it too.
pub(crate) fn clone_tree(at: BorrowedFd<'_>, path: impl AsRef<Path>, recursive: bool) -> Result<OwnedFd> {
    let path = path.as_ref();
    let name = fs::c_string(path.as_os_str())?;
    let deep = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (libc::AT_EMPTY_PATH | deep).unsigned_abs();
    // SAFETY: the path is a C string that outlives the call; the descriptor is borrowed for it.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps open_tree")]
    let result = unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), name.as_ptr(), flags) };
    owned(result, || format!("clone the mount of {}", shown(path)))
}

/// mount_setattr(2) on the mount behind `mount`: sets `attributes` (clears none) and makes it private; with
/// `recursive` the mounts below it too.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<()> {
    let attr = MountAttr { attr_set: attributes.bits(), attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    done(set(mount, &attr, recursive), || "set the attributes of a mount".to_string())
}

/// [`set_attributes`] that also lets the mount do what `attributes` do not forbid, but for writing.
pub(crate) fn replace_attributes(mount: BorrowedFd<'_>, attributes: Attributes) -> Result<()> {
    let attr_set = attributes.bits();
    let attr_clr = !attr_set & (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    let attr = MountAttr { attr_set, attr_clr, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    done(set(mount, &attr, false), || "set the attributes of a mount".to_string())
}

/// mount_setattr(2) with MOUNT_ATTR_IDMAP on a detached mount: what is user N of the namespace `users` is user N on the
/// disk. With `recursive` on the mounts below it too: all of them, or none.
///
/// # Errors
/// [`Kind::Unsupported`] where the kernel (since 5.12, on btrfs since 5.15) or the filesystem cannot: mount_setattr(2), EINVAL
/// and ENOSYS.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let userns_fd = u64::from(users.as_raw_fd().unsigned_abs());
    let attr = MountAttr { attr_set: MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    done(set(mount, &attr, recursive), || "map the ids of a mount".to_string()).map_err(|e| match e.errno() {
        Some(libc::EINVAL | libc::ENOSYS) => e.with_kind(Kind::Unsupported),
        _ => e,
    })
}

fn set(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> libc::c_long {
    let deep = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path is a C string; the pointer and length are those of a live struct mount_attr.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps mount_setattr")]
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | deep,
            &raw const *attr,
            size_of::<MountAttr>(),
        )
    }
}

/// fsopen(2), fsconfig(2), fsmount(2): a new detached filesystem; an option is `name=value` or the name
/// of a flag.
pub(crate) fn new_filesystem(kind: &str, options: &[String], attributes: Attributes) -> Result<OwnedFd> {
    let fail = |what: &str| format!("mount {kind}: {what}");
    let name = fs::c_string(kind.as_ref())?;
    // SAFETY: the name is a C string that outlives the call.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps fsopen")]
    let result = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(result, || fail("fsopen"))?;
    // What /proc/mounts shows as the device.
    configure(&context, FSCONFIG_SET_STRING, Some(&fs::c_string("source".as_ref())?), Some(&name), || fail("source"))?;
    for option in options {
        let (key, value) = option.split_once('=').map_or((option.as_str(), None), |(key, value)| (key, Some(value)));
        let c_key = fs::c_string(key.as_ref())?;
        let c_value = value.map(|value| fs::c_string(value.as_ref())).transpose()?;
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        configure(&context, command, Some(&c_key), c_value.as_ref(), || fail(&format!("option {key}")))?;
    }
    configure(&context, FSCONFIG_CMD_CREATE, None, None, || fail("create"))?;
    // SAFETY: the descriptor is owned by `context`; the other arguments are integers.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps fsmount")]
    let result = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes.bits()) };
    owned(result, || fail("fsmount"))
}

fn configure<D: Display>(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&CString>,
    value: Option<&CString>,
    doing: impl FnOnce() -> D,
) -> Result<()> {
    let pointer = |text: Option<&CString>| text.map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: both pointers are null or C strings that outlive the call, as fsconfig's commands want them.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps fsconfig")]
    let result =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0) };
    done(result, doing)
}

/// move_mount(2): attaches the detached mount `mount` on top of what `target` is. No path is looked up.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: both paths are empty C strings; the descriptors are borrowed for the call.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps move_mount")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    done(result, || "attach a mount".to_string())
}

/// mount(2) with MS_REC and MS_PRIVATE on `/`: nothing mounted in this namespace shows in another, or the reverse.
pub(crate) fn make_private() -> Result<()> {
    let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|e| failed("mount --make-rprivate /", e))
}

/// fchdir(2) to `root`, then pivot_root(".", "."): `root` is `/`, and the old root lies on top of it
/// (pivot_root(2), "pivot_root(".", ".")").
pub(crate) fn pivot_root(root: BorrowedFd<'_>) -> Result<()> {
    nix::unistd::fchdir(root).map_err(|e| failed("enter the new root", e))?;
    nix::unistd::pivot_root(".", ".").map_err(|e| failed("pivot_root", e))
}

/// umount2(2) with MNT_DETACH of what lies on top of the working directory.
pub(crate) fn detach_old_root() -> Result<()> {
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).map_err(|e| failed("detach the old root", e))?;
    nix::unistd::chdir("/").map_err(|e| failed("enter the new root", e))
}

/// fstatfs(2): whether `fd` lies on a proc filesystem.
pub(crate) fn is_proc(fd: BorrowedFd<'_>) -> Result<bool> {
    let found = nix::sys::statfs::fstatfs(fd.as_fd()).map_err(|e| failed("statfs", e))?;
    Ok(found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// The mount points of this mount namespace, in the order in which they were mounted: proc_pid_mountinfo(5), field 5.
pub(crate) fn points() -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// A mount, as proc_pid_mountinfo(5) tells of it.
#[derive(Debug, Clone)]
pub(crate) struct Mounted {
    /// What is mounted: a device.
    pub source: String,
    /// The type of its filesystem.
    pub kind: String,
    /// Its options and those of its filesystem, without the ones that only say which part of it is mounted.
    pub options: Vec<String>,
}

/// The mount that `fd` was opened through.
pub(crate) fn holding(fd: BorrowedFd<'_>) -> Result<Mounted> {
    let table = "/proc/self/mountinfo";
    let about = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(&about).context(|| format!("read {about}"))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
    let mounts = std::fs::read_to_string(table).context(|| format!("read {table}"))?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id));
    line.and_then(mounted).ok_or_else(|| failed(format_args!("find the mount {id} in {table}"), Errno::ENOENT))
}

/// A line of mountinfo. The optional fields end with a hyphen.
fn mounted(line: &str) -> Option<Mounted> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (kind, source, of_filesystem) = (after.next()?, after.next()?, after.next()?);
    let mut options: Vec<String> = Vec::new();
    for option in before.split(' ').nth(5)?.split(',').chain(of_filesystem.split(',')) {
        if !option.starts_with("subvol") && !options.iter().any(|there| there == option) {
            options.push(option.to_string());
        }
    }
    Some(Mounted { source: unescape(source).display().to_string(), kind: kind.to_string(), options })
}

/// The processes that stand in what is mounted at `at` or have something open in it, as far as they can be seen: those
/// of other mount namespaces have other paths.
pub(crate) fn users(at: &Path) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut places = open.chain([process.join("cwd"), process.join("root")]);
        places.any(|place| std::fs::read_link(place).is_ok_and(|path| path.starts_with(at)))
    })
    .collect()
}

/// A path as mountinfo writes it: space, tab, newline and backslash are three octal digits.
pub(crate) fn unescape(text: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(escapes.iter().fold(text.to_string(), |text, (code, plain)| text.replace(code, plain)))
}

fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() { "an open directory".to_string() } else { path.display().to_string() }
}

fn owned<D: Display>(result: libc::c_long, doing: impl FnOnce() -> D) -> Result<OwnedFd> {
    let fd = Errno::result(result).map_err(|e| failed(doing(), e))?;
    // SAFETY: the kernel just returned this descriptor; nobody else owns it. Descriptors fit an int.
    #[expect(unsafe_code, reason = "a raw system call returns a raw descriptor")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn done<D: Display>(result: libc::c_long, doing: impl FnOnce() -> D) -> Result<()> {
    Errno::result(result).map(drop).map_err(|e| failed(doing(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_escaped() {
        assert_eq!(unescape("/mnt/a\\040b\\134c"), Path::new("/mnt/a b\\c"));
        assert!(points().expect("a table").contains(&PathBuf::from("/proc")));
    }

    #[test]
    fn a_mount_is_told_by_its_line() {
        let line = "36 35 0:31 /fs /mnt rw,noatime shared:1 master:2 - btrfs /dev/a\\040b rw,ssd,subvolid=5,subvol=/";
        let found = mounted(line).expect("a line");
        assert_eq!((found.source.as_str(), found.kind.as_str()), ("/dev/a b", "btrfs"));
        assert_eq!(found.options, ["rw", "noatime", "ssd"]);
        assert!(mounted("36 35 0:31 / /mnt rw").is_none());
        let proc = std::fs::File::open("/proc/self/status").expect("a file");
        assert_eq!(holding(proc.as_fd()).expect("its mount").kind, "proc");
    }
}
