//! Paths inside a root that somebody else wrote: every component is looked up below a descriptor, links resolve as if
//! the root were `/`, and what is missing can be made on the way.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{self, Mode};

use super::{failed, fs};
use crate::error::{Kind, Result};

/// What a mount point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Directory,
    File,
}

/// Links followed before a path counts as a loop: path_resolution(7).
const MAX_LINKS: usize = 40;

/// The directory `path` below `root`, made with mode 0755 if its last component is missing. A link anywhere in it is
/// an error: for places that the container's own mounts take.
pub(crate) fn ensure_plain_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    match open_plain_directory(root, relative) {
        Err(e) if e.kind() == Kind::NotFound => {
            // Made below a descriptor: mkdirat(2) follows links on the way to its last component, which may have become
            // links since.
            let parent = relative.parent().filter(|parent| *parent != Path::new(""));
            let parent = parent.map(|parent| open_plain_directory(root, parent)).transpose()?;
            let name = Path::new(relative.file_name().unwrap_or_default());
            fs::make_directory(parent.as_ref().map_or(root, OwnedFd::as_fd), name, 0o755)?;
            open_plain_directory(root, relative)
        }
        other => other,
    }
}

fn open_plain_directory(root: BorrowedFd<'_>, relative: &Path) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let opened = loop {
        match fcntl::openat2(root, relative, how) {
            Err(Errno::EAGAIN) => continue,
            other => break other,
        }
    };
    let name = Path::new("/").join(relative);
    opened.map_err(|e| match e {
        Errno::ELOOP => failed(format_args!("{} is a link or lies behind one", name.display()), e),
        e => failed(format_args!("open {}", name.display()), e),
    })
}

/// The mount point `path` inside `root`, links followed inside it; what is missing is made: directories with mode
/// 0755, a final file empty with mode 0644 (before the umask).
pub(crate) fn ensure_in_root(root: BorrowedFd<'_>, path: &Path, target: Target) -> Result<OwnedFd> {
    let kind = if target == Target::Directory { OFlag::O_DIRECTORY } else { OFlag::empty() };
    match fs::open_in_root(root, path, OFlag::O_PATH | kind) {
        Err(e) if e.kind() == Kind::NotFound => walk(root, path, target),
        other => other,
    }
}

/// The slow way: one component at a time, each opened without following it, so that a link is always followed by us.
fn walk(root: BorrowedFd<'_>, path: &Path, target: Target) -> Result<OwnedFd> {
    let fail = |e| failed(format_args!("create {}", path.display()), e);
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut here = root.try_clone_to_owned()?;
    let mut pending: VecDeque<OsString> = names(path);
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            here = above.pop().unwrap_or(here);
            continue;
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match fcntl::openat(here.as_fd(), name.as_os_str(), flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                let file = pending.is_empty() && target == Target::File;
                make(here.as_fd(), &name, file).map_err(fail)?;
                pending.push_front(name);
            }
            Err(e) => return Err(fail(e)),
            Ok(found) if !is_link(found.as_fd())? => above.push(std::mem::replace(&mut here, found)),
            Ok(found) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(fail(Errno::ELOOP));
                }
                let to = fs::read_link(found.as_fd(), "")?;
                if to.is_absolute() {
                    above.clear();
                    here = root.try_clone_to_owned()?;
                }
                for name in names(&to).into_iter().rev() {
                    pending.push_front(name);
                }
            }
        }
    }
    Ok(here)
}

/// Where a path leads in a root.
#[derive(Debug)]
pub(crate) struct Spot {
    /// The directory that it lies in; of the top, itself.
    pub parent: OwnedFd,
    /// What it is called there; nothing for the top of a root or of something mounted.
    pub name: Option<OsString>,
    /// It, if it is there: opened for its place only, and no link unless the last one was not to be followed.
    pub found: Option<OwnedFd>,
    /// Its path, without links.
    pub path: PathBuf,
}

/// Looks `path` up in `root`, one component after the other, each opened without following it: so a link is always followed
/// by us, and whoever exchanges one for another meanwhile leads nowhere else. At each directory `mounted` may say what is
/// there instead.
///
/// # Errors
/// That of a missing directory on the way; that the last component is missing is none.
pub(crate) fn look_up(
    root: BorrowedFd<'_>,
    path: &Path,
    follow_last: bool,
    mut mounted: impl FnMut(&Path) -> Result<Option<OwnedFd>>,
) -> Result<Spot> {
    let fail = |e| failed(format_args!("open {}", path.display()), e);
    let top = || -> Result<OwnedFd> { Ok(root.try_clone_to_owned()?) };
    let mut above: Vec<OwnedFd> = Vec::new();
    let (mut here, mut shown) = (top()?, PathBuf::from("/"));
    // What it is called in the directory above, unless something is mounted on it.
    let mut called = None;
    let mut pending = names(path);
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            here = above.pop().unwrap_or(here);
            shown.pop();
            called = None;
            continue;
        }
        // Also where nothing was made for it to be mounted on yet.
        if let Some(other) = mounted(&shown.join(&name))? {
            shown.push(&name);
            above.push(std::mem::replace(&mut here, other));
            called = None;
            continue;
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = match fcntl::openat(here.as_fd(), name.as_os_str(), flags, Mode::empty()) {
            Err(Errno::ENOENT) if pending.is_empty() => {
                shown.push(&name);
                return Ok(Spot { parent: here, name: Some(name), found: None, path: shown });
            }
            found => found.map_err(fail)?,
        };
        if is_link(found.as_fd())? && (follow_last || !pending.is_empty()) {
            links += 1;
            if links > MAX_LINKS {
                return Err(fail(Errno::ELOOP));
            }
            let to = fs::read_link(found.as_fd(), "")?;
            if to.is_absolute() {
                above.clear();
                (here, shown) = (top()?, PathBuf::from("/"));
            }
            called = None;
            for name in names(&to).into_iter().rev() {
                pending.push_front(name);
            }
            continue;
        }
        shown.push(&name);
        above.push(std::mem::replace(&mut here, found));
        called = Some(name);
    }
    let found = Some(here.try_clone()?);
    Ok(match (called, above.pop()) {
        (Some(name), Some(parent)) => Spot { parent, name: Some(name), found, path: shown },
        _ => Spot { parent: here, name: None, found, path: shown },
    })
}

/// The components of a path that lead somewhere, `..` included.
fn names(path: &Path) -> VecDeque<OsString> {
    let leads = |c: &Component<'_>| matches!(c, Component::Normal(_) | Component::ParentDir);
    path.components().filter(leads).map(|c| c.as_os_str().to_owned()).collect()
}

fn make(at: BorrowedFd<'_>, name: &OsString, file: bool) -> nix::Result<()> {
    let made = if file {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        fcntl::openat(at, name.as_os_str(), flags, Mode::from_bits_truncate(0o644)).map(drop)
    } else {
        stat::mkdirat(at, name.as_os_str(), Mode::from_bits_truncate(0o755))
    };
    // Somebody else who made it just now did what was wanted.
    made.or_else(|e| if e == Errno::EEXIST { Ok(()) } else { Err(e) })
}

fn is_link(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(fs::metadata(fd)?.st_mode & libc::S_IFMT == libc::S_IFLNK)
}

/// What `fd` can be mounted on.
pub(crate) fn target_of(fd: BorrowedFd<'_>) -> Result<Target> {
    let directory = fs::metadata(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    Ok(if directory { Target::Directory } else { Target::File })
}

/// Reads a small regular file inside `root`, links followed inside it. Nothing else than a regular file is opened for
/// long: O_NONBLOCK keeps a FIFO from blocking.
pub(crate) fn read_in_root(root: BorrowedFd<'_>, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let fd = fs::open_in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    fs::read_small_fd(fd, path, limit)
}

/// Has a regular file inside `root` read into the page cache, links followed inside it: posix_fadvise(2), POSIX_FADV_WILLNEED.
pub(crate) fn read_ahead_in_root(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let fd = fs::open_in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    fcntl::posix_fadvise(&fd, 0, 0, fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED)
        .map_err(|e| failed(format_args!("read {} ahead", path.display()), e))
}

/// Makes `path` the working directory of this process; links are followed, /proc's magic ones are not.
pub(crate) fn change_directory(path: &Path) -> Result<()> {
    let fail = |e| failed(format_args!("change the directory to {}", path.display()), e);
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let directory = fcntl::openat2(fs::CWD, path, how).map_err(fail)?;
    nix::unistd::fchdir(directory).map_err(fail)
}

/// Opens a place on the host that a person named (links followed), for nothing but cloning the mount it is on.
pub(crate) fn open_place(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    fcntl::open(path, flags, Mode::empty()).map_err(|e| failed(format_args!("open {}", path.display()), e))
}

/// Opens a file below one of our own directories for reading or writing, following nothing.
pub(crate) fn open_plain(at: BorrowedFd<'_>, path: &str, write: bool) -> Result<OwnedFd> {
    let access = if write { OFlag::O_WRONLY } else { OFlag::O_RDONLY };
    fcntl::openat(at, path, access | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| failed(format_args!("open {path}"), e))
}

/// write(2) of a value to a file that takes each write as a whole (a sysctl).
pub(crate) fn write_value(fd: BorrowedFd<'_>, value: &str) -> Result<()> {
    nix::unistd::write(fd, value.as_bytes()).map(drop).map_err(|e| failed(format_args!("write {value:?}"), e))
}

/// mknodat(2) of a device, in a directory of ours, with the directories above it; the mode is what the umask leaves of it.
pub(crate) fn make_device(
    at: BorrowedFd<'_>,
    name: &str,
    block: bool,
    (major, minor): (u32, u32),
    mode: u32,
) -> Result<()> {
    let above: Vec<&Path> = Path::new(name).ancestors().skip(1).filter(|a| *a != Path::new("")).collect();
    above.into_iter().rev().try_for_each(|directory| fs::ensure_directory(at, directory, 0o755))?;
    let device = stat::makedev(u64::from(major), u64::from(minor));
    let kind = if block { stat::SFlag::S_IFBLK } else { stat::SFlag::S_IFCHR };
    stat::mknodat(at, name, kind, Mode::from_bits_truncate(mode), device)
        .map_err(|e| failed(format_args!("create the device {name}"), e))
}

/// fchown(2) of the owner alone.
pub(crate) fn change_owner(fd: BorrowedFd<'_>, uid: u32) -> Result<()> {
    nix::unistd::fchown(fd, Some(nix::unistd::Uid::from_raw(uid)), None).map_err(|e| failed("change the owner", e))
}

/// fchownat(2) of what is `name` in a directory of ours, itself if it is a link.
pub(crate) fn change_owner_at(at: BorrowedFd<'_>, name: &str, (uid, gid): (u32, u32)) -> Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
    nix::unistd::fchownat(at, name, Some(uid), Some(gid), fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|e| failed(format_args!("change the owner of {name}"), e))
}

/// access(2) F_OK: what is at `path` on the host, links followed; `None` when nothing is.
pub(crate) fn probe(path: &Path) -> Option<Target> {
    let found = stat::stat(path).ok()?;
    let directory = found.st_mode & libc::S_IFMT == libc::S_IFDIR;
    Some(if directory { Target::Directory } else { Target::File })
}

/// What is at `path` inside a root, no link followed; `None` when nothing is.
pub(crate) fn probe_in_root(root: BorrowedFd<'_>, path: &Path) -> Option<Target> {
    target_of(open_place_below(root, path).ok()?.as_fd()).ok()
}

/// What lies at `path` below `root`, no link followed: for places in the container's own /proc and /sys.
pub(crate) fn open_place_below(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    fcntl::openat2(root, relative, how).map_err(|e| failed(format_args!("open {}", path.display()), e))
}

/// The root directory of a process, with what is mounted there: proc_pid_root(5).
pub(crate) fn open_root_of(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    fcntl::open(path.as_str(), flags, Mode::empty()).map_err(|e| failed(format_args!("open {path}"), e))
}

/// Opens a device node of ours for reading and writing.
pub(crate) fn open_device(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    fcntl::openat(at, name, flags, Mode::empty()).map_err(|e| failed(format_args!("open the device {name}"), e))
}
