//! Entries of a directory tree, as an unpacker makes them: files, directories, links, devices and what is known of them.
//!
//! Everything here is relative to the calling thread's working directory, which [`confine`] makes the thread's own and
//! puts below a root of its own: from then on no name, `..` or absolute link can lead out of that root. A failure is a
//! [`Failure`], which names the call and leaves the object to the caller: it knows the whole path, the call only its
//! last name.
//!
//! Long because it is a list: each function is one call, and none uses another.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag};
use nix::sched::CloneFlags;
use nix::sys::stat::{self, FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{self, Gid, LinkatFlags, Uid, UnlinkatFlags};

use super::fs::CWD;
use crate::error::{Error, Kind};

/// A failed call, its object still to be named.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    doing: &'static str,
    errno: Errno,
}

/// The result of a call on an entry.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The error with its object: `create usr/bin/x: no space left on device`.
    pub(crate) fn of(self, path: &[u8]) -> Error {
        let path = match path {
            b"" => Path::new("/"),
            path => Path::new(std::ffi::OsStr::from_bytes(path)),
        };
        let error = super::failed(format_args!("{} {}", self.doing, path.display()), self.errno);
        // Whatever disk it is on: no name, link or attribute can be like that.
        match self.errno {
            Errno::EINVAL | Errno::ENAMETOOLONG | Errno::ELOOP | Errno::ENOTDIR | Errno::EISDIR | Errno::EMLINK => {
                error.with_kind(Kind::Invalid)
            }
            Errno::E2BIG | Errno::ERANGE | Errno::EFBIG | Errno::EOVERFLOW => error.with_kind(Kind::Invalid),
            _ => error,
        }
    }

    /// The name is taken (EEXIST).
    pub(crate) fn exists(self) -> bool {
        self.errno == Errno::EEXIST
    }

    /// The name, or one on the way to it, does not exist (ENOENT).
    pub(crate) fn missing(self) -> bool {
        self.errno == Errno::ENOENT
    }

    /// A name on the way is no directory (ENOTDIR).
    pub(crate) fn not_a_directory(self) -> bool {
        self.errno == Errno::ENOTDIR
    }

    /// The filesystem has no such feature (EOPNOTSUPP).
    pub(crate) fn unsupported(self) -> bool {
        self.errno == Errno::EOPNOTSUPP
    }
}

pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|errno| Failure { doing, errno })
    }
}

/// A time as the disk keeps it: seconds since 1970 (negative before) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    /// Whole seconds, rounded down.
    pub(crate) seconds: i64,
    /// 0 to 999,999,999.
    pub(crate) nanoseconds: u32,
}

impl Time {
    fn spec(self) -> TimeSpec {
        TimeSpec::new(self.seconds, i64::from(self.nanoseconds))
    }

    /// When something was accessed, and when it was modified.
    pub(crate) fn of(found: &libc::stat) -> (Time, Time) {
        let time = |seconds, nanoseconds: i64| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
        (time(found.st_atime, found.st_atime_nsec), time(found.st_mtime, found.st_mtime_nsec))
    }
}

/// What an operation works on: an open file, or a name that is not followed should it be a symbolic link.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    /// An open file.
    Open(BorrowedFd<'a>),
    /// A path.
    Name(&'a [u8]),
}

/// A device's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    /// A named pipe.
    Fifo,
    /// A character device with its major and minor numbers.
    Character(u32, u32),
    /// A block device with its major and minor numbers.
    Block(u32, u32),
}

/// Gives the calling thread a working directory, root and umask of its own, and makes `root` both: unshare(2)
/// CLONE_FS, fchdir(2), chroot(2), umask(2) 0. There is no way back; the thread is meant to end after its work.
pub(crate) fn confine(root: BorrowedFd<'_>) -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_FS).doing("unshare the working directory for")?;
    unistd::fchdir(root).doing("enter")?;
    unistd::chroot(".").doing("change the root to")?;
    stat::umask(Mode::empty());
    Ok(())
}

/// chdir(2); links are followed.
pub(crate) fn change_directory(path: &[u8]) -> Result<()> {
    unistd::chdir(path).doing("enter")
}

/// openat(2) of a new regular file with exactly this mode (the umask is 0), for writing.
pub(crate) fn create_file(name: &[u8], mode: u32) -> Result<OwnedFd> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    fcntl::openat(CWD, name, flags, Mode::from_bits_truncate(mode)).doing("create")
}

/// mkdirat(2). It takes the permission and sticky bits only (inode(7)); the others want [`set_mode`].
pub(crate) fn create_directory(name: &[u8], mode: u32) -> Result<()> {
    stat::mkdirat(CWD, name, Mode::from_bits_truncate(mode)).doing("create")
}

/// symlinkat(2).
pub(crate) fn create_symlink(target: &[u8], name: &[u8]) -> Result<()> {
    unistd::symlinkat(target, CWD, name).doing("create")
}

/// linkat(2); a target that is a symbolic link is linked itself.
pub(crate) fn create_hard_link(target: &[u8], name: &[u8]) -> Result<()> {
    unistd::linkat(CWD, target, CWD, name, LinkatFlags::empty()).doing("link")
}

/// linkat(2) with the target below another directory.
pub(crate) fn create_hard_link_at(at: BorrowedFd<'_>, target: &[u8], name: &[u8]) -> Result<()> {
    unistd::linkat(at, target, CWD, name, LinkatFlags::empty()).doing("link")
}

/// openat(2) of a directory as a place only (O_PATH); links are followed.
pub(crate) fn open_place(at: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    fcntl::openat(at, path, flags, Mode::empty()).doing("enter")
}

/// mknodat(2): the node is made and never opened.
pub(crate) fn create_special(name: &[u8], special: Special, mode: u32) -> Result<()> {
    let (kind, device) = match special {
        Special::Fifo => (SFlag::S_IFIFO, 0),
        Special::Character(major, minor) => (SFlag::S_IFCHR, libc::makedev(major, minor)),
        Special::Block(major, minor) => (SFlag::S_IFBLK, libc::makedev(major, minor)),
    };
    stat::mknodat(CWD, name, kind, Mode::from_bits_truncate(mode), device).doing("create")
}

/// write(2) until all is written.
pub(crate) fn write(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match unistd::write(file, bytes) {
            Ok(0) => return Err(Errno::EIO).doing("write"),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing("write"),
        }
    }
    Ok(())
}

/// pwrite(2) until all is written.
pub(crate) fn write_at(file: BorrowedFd<'_>, mut bytes: &[u8], mut offset: i64) -> Result<()> {
    while !bytes.is_empty() {
        match nix::sys::uio::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::EIO).doing("write"),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as i64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing("write"),
        }
    }
    Ok(())
}

/// ftruncate(2): what was not written up to `size` is a hole.
pub(crate) fn set_size(file: BorrowedFd<'_>, size: i64) -> Result<()> {
    unistd::ftruncate(file, size).doing("set the size of")
}

/// fchown(2), or fchownat(2) without following. Clears setuid, setgid and capabilities of a regular file (chown(2)).
pub(crate) fn set_owner(target: Target<'_>, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match target {
        Target::Open(file) => unistd::fchown(file, uid, gid),
        Target::Name(name) => unistd::fchownat(CWD, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW),
    }
    .doing("set the owner of")
}

/// fchmod(2) or fchmodat(2). The name must not be a symbolic link: those have no mode and would be followed.
pub(crate) fn set_mode(target: Target<'_>, mode: u32) -> Result<()> {
    let mode = Mode::from_bits_truncate(mode);
    match target {
        Target::Open(file) => stat::fchmod(file, mode),
        Target::Name(name) => stat::fchmodat(CWD, name, mode, FchmodatFlags::FollowSymlink),
    }
    .doing("set the mode of")
}

/// futimens(3) or utimensat(2) without following.
pub(crate) fn set_times(target: Target<'_>, accessed: Time, modified: Time) -> Result<()> {
    match target {
        Target::Open(file) => stat::futimens(file, &accessed.spec(), &modified.spec()),
        Target::Name(name) => {
            stat::utimensat(CWD, name, &accessed.spec(), &modified.spec(), UtimensatFlags::NoFollowSymlink)
        }
    }
    .doing("set the times of")
}

/// fsetxattr(2) or lsetxattr(2): creates or replaces.
pub(crate) fn set_xattr(target: Target<'_>, name: &CStr, value: &[u8]) -> Result<()> {
    let result = match target {
        // SAFETY: the name is a C string; the value's pointer and length are those of a live slice.
        #[expect(unsafe_code, reason = "nix has no xattr calls")]
        Target::Open(file) => unsafe {
            libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
        },
        Target::Name(path) => {
            let path = c_string(path).doing("set an xattr of")?;
            // SAFETY: path and name are C strings; the value's pointer and length are those of a live slice.
            #[expect(unsafe_code, reason = "nix has no xattr calls")]
            unsafe {
                libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
            }
        }
    };
    Errno::result(result).map(drop).doing("set an xattr of")
}

/// lremovexattr(2) or fremovexattr(2); content when there is none.
pub(crate) fn remove_xattr(target: Target<'_>, name: &CStr) -> Result<()> {
    let result = match target {
        // SAFETY: the name is a C string.
        #[expect(unsafe_code, reason = "nix has no xattr calls")]
        Target::Open(file) => unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) },
        Target::Name(path) => {
            let path = c_string(path).doing("remove an xattr of")?;
            // SAFETY: path and name are C strings.
            #[expect(unsafe_code, reason = "nix has no xattr calls")]
            unsafe {
                libc::lremovexattr(path.as_ptr(), name.as_ptr())
            }
        }
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno).doing("remove an xattr of"),
    }
}

/// Whether the entry has this extended attribute (lgetxattr(2) of its length).
pub(crate) fn has_xattr(path: &[u8], name: &CStr) -> Result<bool> {
    let path = c_string(path).doing("read an xattr of")?;
    // SAFETY: path and name are C strings; with length 0 the kernel writes nothing to the null pointer.
    #[expect(unsafe_code, reason = "nix has no xattr calls")]
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    match Errno::result(length) {
        Ok(_) => Ok(true),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno).doing("read an xattr of"),
    }
}

/// Whether what was found is a directory (inode(7)).
pub(crate) fn is_directory(found: &libc::stat) -> bool {
    found.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Whether what was found is a regular file (inode(7)).
pub(crate) fn is_regular(found: &libc::stat) -> bool {
    found.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// Whether what was found is a symbolic link (inode(7)).
pub(crate) fn is_symlink(found: &libc::stat) -> bool {
    found.st_mode & libc::S_IFMT == libc::S_IFLNK
}

/// The major and minor number of a device (makedev(3)).
pub(crate) fn device_numbers(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}

/// The major and minor number of a block device, links followed.
pub(crate) fn block_device(path: &Path) -> crate::error::Result<(u32, u32)> {
    let found =
        metadata(path.as_os_str().as_encoded_bytes(), true).map_err(|e| e.of(path.as_os_str().as_encoded_bytes()))?;
    match found.st_mode & libc::S_IFMT == libc::S_IFBLK {
        true => Ok(device_numbers(found.st_rdev)),
        false => Err(Error::new(Kind::Invalid, format!("{}: not a block device", path.display()))),
    }
}

/// Whether a device is a block device, its numbers and its permissions.
pub(crate) type Device = (bool, u32, u32, u32);

/// The device at `path`, links not followed; `None` when there is something else.
pub(crate) fn device(path: &Path) -> crate::error::Result<Option<Device>> {
    let name = path.as_os_str().as_encoded_bytes();
    let found = metadata(name, false).map_err(|e| e.of(name))?;
    let (major, minor) = device_numbers(found.st_rdev);
    Ok(match found.st_mode & libc::S_IFMT {
        libc::S_IFBLK => Some((true, major, minor, found.st_mode & 0o7777)),
        libc::S_IFCHR => Some((false, major, minor, found.st_mode & 0o7777)),
        _ => None,
    })
}

nix::ioctl_read!(get_file_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(set_file_flags, b'f', 2, libc::c_long);

/// include/uapi/linux/fs.h, FS_NOCOW_FL: chattr(1), "C".
const NOCOW: libc::c_long = 0x0080_0000;

/// FS_IOC_SETFLAGS: files that are made in this directory from now on are not copied on write.
pub(crate) fn set_nocow(directory: BorrowedFd<'_>) -> crate::error::Result<()> {
    let mut flags: libc::c_long = 0;
    let fail = |e| super::failed("set the attribute C of a directory", e);
    // SAFETY: the kernel writes an int into the number, which lives through the call.
    #[expect(unsafe_code, reason = "an ioctl")]
    unsafe { get_file_flags(directory.as_raw_fd(), &raw mut flags) }.map_err(fail)?;
    flags |= NOCOW;
    // SAFETY: the kernel reads an int from the number, which lives through the call.
    #[expect(unsafe_code, reason = "an ioctl")]
    unsafe { set_file_flags(directory.as_raw_fd(), &raw const flags) }.map(drop).map_err(fail)
}

/// Opens a file to read it: no link, and without waiting if it has become a FIFO since it was looked at.
pub(crate) fn open_to_read(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// fstatat(2); a final link is followed only when asked.
pub(crate) fn metadata(path: &[u8], follow: bool) -> Result<libc::stat> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
    stat::fstatat(CWD, path, flags).doing("stat")
}

/// fstatat(2) below another directory, not following a final link.
pub(crate) fn metadata_at(at: BorrowedFd<'_>, path: &[u8]) -> Result<libc::stat> {
    stat::fstatat(at, path, AtFlags::AT_SYMLINK_NOFOLLOW).doing("stat")
}

/// unlinkat(2) of anything but a directory.
pub(crate) fn remove(name: &[u8]) -> Result<()> {
    unistd::unlinkat(CWD, name, UnlinkatFlags::NoRemoveDir).doing("remove")
}

/// Removes a directory and all below it, with two descriptors and memory for the names of one path, however deep it is.
pub(crate) fn remove_tree(name: &[u8]) -> Result<()> {
    const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
    let mut at = fcntl::openat(CWD, name, FLAGS, Mode::empty()).doing("remove")?;
    let mut way: Vec<CString> = Vec::new();
    loop {
        match first_full_directory(&at).doing("remove")? {
            Some(child) => {
                at = fcntl::openat(&at, child.as_c_str(), FLAGS, Mode::empty()).doing("remove")?;
                way.push(child);
            }
            None => match way.pop() {
                Some(empty) => {
                    at = fcntl::openat(&at, "..", FLAGS, Mode::empty()).doing("remove")?;
                    unistd::unlinkat(&at, empty.as_c_str(), UnlinkatFlags::RemoveDir).doing("remove")?;
                }
                None => return unistd::unlinkat(CWD, name, UnlinkatFlags::RemoveDir).doing("remove"),
            },
        }
    }
}

/// Removes what can go at once and stops at the first directory that is not empty.
fn first_full_directory(at: &OwnedFd) -> nix::Result<Option<CString>> {
    let mut directory = nix::dir::Dir::openat(at, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    for entry in directory.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unistd::unlinkat(at, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => continue,
            // unlink(2): Linux says EISDIR for a directory, POSIX EPERM.
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
        match unistd::unlinkat(at, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => {}
            Err(Errno::ENOTEMPTY) => return Ok(Some(name.to_owned())),
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

fn c_string(path: &[u8]) -> nix::Result<CString> {
    CString::new(path).map_err(|_| Errno::EINVAL)
}

/// llistxattr(2) or flistxattr(2), and [`remove_xattr`] of all that they name but what is none of an archive's: what the
/// host's security module and btrfs itself keep there.
pub(crate) fn clear_xattrs(target: Target<'_>) -> Result<()> {
    let path = match target {
        Target::Open(_) => None,
        Target::Name(path) => Some(c_string(path).doing("list the xattrs of")?),
    };
    let names = grown(|buffer| match (target, &path) {
        (Target::Open(file), _) => {
            // SAFETY: the buffer's pointer and length are those of a live slice.
            #[expect(unsafe_code, reason = "nix has no xattr calls")]
            unsafe {
                libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len())
            }
        }
        (Target::Name(_), path) => {
            let path = path.as_deref().unwrap_or(c"");
            // SAFETY: the path is a C string; the buffer's pointer and length are those of a live slice.
            #[expect(unsafe_code, reason = "nix has no xattr calls")]
            unsafe {
                libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
            }
        }
    });
    for name in names.doing("list the xattrs of")?.unwrap_or_default().split_inclusive(|&b| b == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::EIO).doing("list the xattrs of")?;
        if name != c"security.selinux" && !name.to_bytes().starts_with(b"btrfs.") {
            remove_xattr(target, name)?;
        }
    }
    Ok(())
}

/// The inode number of the directory that we stand in.
pub(crate) fn inode_here() -> Result<u64> {
    metadata(b".", false).map(|found| found.st_ino)
}

/// The inode number that the next new entry of this btrfs subvolume gets or exceeds: they only grow within a subvolume,
/// and in a snapshot go on above those of its source (btrfs_get_free_objectid, fs/btrfs/disk-io.c, since Linux 5.11; the
/// mount option inode_cache, which reused numbers, is gone since then). An unnamed file is made to see it (O_TMPFILE).
pub(crate) fn next_inode() -> Result<u64> {
    let file = fcntl::openat(CWD, ".", OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
    stat::fstat(file.doing("make a file in")?).doing("stat").map(|found| found.st_ino)
}

/// llistxattr(2) and lgetxattr(2): all extended attributes of an entry, sorted by name.
pub(crate) fn xattrs(path: &[u8]) -> Result<Vec<(CString, Vec<u8>)>> {
    let c_path = c_string(path).doing("list the xattrs of")?;
    let names = grown(|buffer| {
        // SAFETY: the path is a C string; the buffer's pointer and length are those of a live slice.
        #[expect(unsafe_code, reason = "nix has no xattr calls")]
        unsafe {
            libc::llistxattr(c_path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        }
    })
    .doing("list the xattrs of")?
    .unwrap_or_default();
    let mut found = Vec::new();
    for name in names.split_inclusive(|&b| b == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::EIO).doing("list the xattrs of")?;
        let value = grown(|buffer| {
            // SAFETY: path and name are C strings; the buffer's pointer and length are those of a live slice.
            #[expect(unsafe_code, reason = "nix has no xattr calls")]
            unsafe {
                libc::lgetxattr(c_path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
            }
        });
        // One that went away meanwhile is none.
        if let Some(value) = value.doing("read an xattr of")? {
            found.push((name.to_owned(), value));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Calls with a small buffer, then with the largest that there can be: xattr(7), 64 KiB for names and for a value.
fn grown(call: impl Fn(&mut [u8]) -> libc::ssize_t) -> nix::Result<Option<Vec<u8>>> {
    for capacity in [512, 65536] {
        let mut buffer = vec![0; capacity];
        match Errno::result(call(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length.unsigned_abs());
                return Ok(Some(buffer));
            }
            Err(Errno::ERANGE) => {}
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::E2BIG)
}

/// The pieces of a file that hold data: lseek(2) SEEK_DATA and SEEK_HOLE. Offsets and lengths, ascending.
pub(crate) fn data_pieces(file: BorrowedFd<'_>, size: u64) -> Result<Vec<(u64, u64)>> {
    let seek = |offset: u64, whence| match unistd::lseek(file, offset.cast_signed(), whence) {
        Ok(found) => Ok(Some(found.unsigned_abs().min(size))),
        // lseek(2): there is no data behind the offset, or the file ends before it.
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno),
    };
    let mut pieces = Vec::new();
    let mut offset = 0;
    while offset < size {
        let Some(start) = seek(offset, unistd::Whence::SeekData).doing("seek data in")? else { break };
        let end = seek(start, unistd::Whence::SeekHole).doing("seek a hole in")?.unwrap_or(size);
        if end <= start {
            break;
        }
        pieces.push((start, end - start));
        offset = end;
    }
    Ok(pieces)
}
