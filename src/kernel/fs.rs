//! Files and directories below a descriptor: open, make, rename, link, xattrs, sync.

use std::ffi::{CString, OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{self, Mode};
use nix::unistd::{self, UnlinkatFlags};

use crate::error::{Context, Error, Kind, Result};

/// The descriptor that stands for the working directory.
pub(crate) const CWD: BorrowedFd<'static> = fcntl::AT_FDCWD;

/// The error of a failed call on `path` below `at`: `doing PATH: reason`.
fn failed(doing: &str, at: BorrowedFd<'_>, path: impl AsRef<Path>, errno: Errno) -> Error {
    super::failed(format_args!("{doing} {}", full_path(at, path).display()), errno)
}

/// The whole path of what lies at `path` below `at`, as far as the kernel tells it: for errors, since what a descriptor
/// stands for helps a person only with its name.
fn full_path(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    match fcntl::readlink(&path_of(at)).map(PathBuf::from) {
        // Without the `.` and the slashes that it is joined with.
        Ok(directory) if directory.is_absolute() => directory.join(path).components().collect(),
        _ => path.to_path_buf(),
    }
}

/// The path of an open file or directory itself.
const THIS: &str = "";

/// The name of an open file or directory, for errors.
pub(super) fn name_of(fd: BorrowedFd<'_>) -> String {
    full_path(fd, THIS).display().to_string()
}

/// openat(2) of a directory, not following a final link.
pub(crate) fn open_directory(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    fcntl::openat(at, path, flags, Mode::empty()).map_err(|e| failed("open", at, path, e))
}

/// [`open_directory`]; `None` when there is nothing of that name, or no directory.
pub(crate) fn open_directory_if_any(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<Option<OwnedFd>> {
    match open_directory(at, path) {
        Ok(dir) => Ok(Some(dir)),
        Err(e) if matches!(e.errno(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// openat(2) of a directory that a person named: a final link is followed.
pub(crate) fn open_directory_follow(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    fcntl::open(path, flags, Mode::empty()).map_err(|e| failed("open", CWD, path, e))
}

/// The directory at `path` as if `root` were `/`, links followed inside it.
pub(crate) fn open_directory_in_root(root: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<OwnedFd> {
    open_in_root(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// openat2(2) with RESOLVE_IN_ROOT: the path resolves as if `root` were `/`, whatever links lie in it, and never
/// through /proc's magic links.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: impl AsRef<Path>, flags: OFlag) -> Result<OwnedFd> {
    let path = path.as_ref();
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        match fcntl::openat2(root, path, how) {
            // openat2(2): a rename elsewhere on the system can race with the check of "..".
            Err(Errno::EAGAIN) => continue,
            // The path is one inside; where the root lies outside is another matter.
            other => return other.map_err(|e| super::failed(format_args!("open {}", path.display()), e)),
        }
    }
}

/// mkdirat(2).
pub(crate) fn make_directory(at: BorrowedFd<'_>, path: impl AsRef<Path>, mode: u32) -> Result<()> {
    let path = path.as_ref();
    stat::mkdirat(at, path, Mode::from_bits_truncate(mode)).map_err(|e| failed("create", at, path, e))
}

/// [`make_directory`], content when it is there already.
pub(crate) fn ensure_directory(at: BorrowedFd<'_>, path: impl AsRef<Path>, mode: u32) -> Result<()> {
    match make_directory(at, path, mode) {
        Err(e) if e.kind() == Kind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// unlinkat(2) with AT_REMOVEDIR.
pub(crate) fn remove_directory(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    unistd::unlinkat(at, path, UnlinkatFlags::RemoveDir).map_err(|e| failed("remove", at, path, e))
}

/// unlinkat(2).
pub(crate) fn unlink(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    unistd::unlinkat(at, path, UnlinkatFlags::NoRemoveDir).map_err(|e| failed("remove", at, path, e))
}

/// renameat2(2) with RENAME_NOREPLACE: fails with [`Kind::AlreadyExists`] when the new name is taken.
pub(crate) fn rename(
    from_at: BorrowedFd<'_>,
    from: impl AsRef<Path>,
    to_at: BorrowedFd<'_>,
    to: impl AsRef<Path>,
) -> Result<()> {
    rename_with(from_at, from.as_ref(), to_at, to.as_ref(), RenameFlags::RENAME_NOREPLACE)
}

/// renameat(2): what has the new name is replaced.
pub(crate) fn rename_replace(
    from_at: BorrowedFd<'_>,
    from: impl AsRef<Path>,
    to_at: BorrowedFd<'_>,
    to: impl AsRef<Path>,
) -> Result<()> {
    rename_with(from_at, from.as_ref(), to_at, to.as_ref(), RenameFlags::empty())
}

/// renameat2(2) with RENAME_EXCHANGE: each has the other's place, in one moment.
pub(crate) fn exchange(
    one_at: BorrowedFd<'_>,
    one: impl AsRef<Path>,
    other_at: BorrowedFd<'_>,
    other: impl AsRef<Path>,
) -> Result<()> {
    rename_with(one_at, one.as_ref(), other_at, other.as_ref(), RenameFlags::RENAME_EXCHANGE)
}

fn rename_with(
    from_at: BorrowedFd<'_>,
    from: &Path,
    to_at: BorrowedFd<'_>,
    to: &Path,
    flags: RenameFlags,
) -> Result<()> {
    fcntl::renameat2(from_at, from, to_at, to, flags).map_err(|e| {
        let (from, to) = (full_path(from_at, from), full_path(to_at, to));
        super::failed(format_args!("rename {} to {}", from.display(), to.display()), e)
    })
}

/// symlinkat(2).
pub(crate) fn symlink(target: impl AsRef<Path>, at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    unistd::symlinkat(target.as_ref(), at, path).map_err(|e| failed("create", at, path, e))
}

/// readlinkat(2).
pub(crate) fn read_link(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    fcntl::readlinkat(at, path).map(PathBuf::from).map_err(|e| failed("read", at, path, e))
}

/// [`read_link`]; `None` when there is nothing of that name, or no link.
pub(crate) fn read_link_if_any(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let path = path.as_ref();
    match fcntl::readlinkat(at, path) {
        Ok(target) => Ok(Some(PathBuf::from(target))),
        Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
        Err(e) => Err(failed("read", at, path, e)),
    }
}

/// What stat(2) tells.
pub(crate) type Stat = libc::stat;

/// What was opened without following anything is no directory, or a link, now: it was exchanged since it was looked at.
pub(crate) fn is_other_now(e: &Error) -> bool {
    matches!(e.errno(), Some(libc::ENOTDIR | libc::ELOOP))
}

/// fstatat(2), not following a final link.
pub(crate) fn metadata_at(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<libc::stat> {
    let path = path.as_ref();
    stat::fstatat(at, path, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| failed("stat", at, path, e))
}

/// Opens a block device to write to that nobody has mounted or opened so: open(2), O_EXCL.
pub(crate) fn open_device_alone(device: &Path) -> Result<std::fs::File> {
    let opened = std::fs::File::options().write(true).custom_flags(libc::O_EXCL).open(device);
    opened.map_err(|e| Error::from_io(format_args!("open {} alone", device.display()), e))
}

/// Whether there is something at `path`, a link that leads nowhere included. That it cannot be looked at is an error, not
/// an answer: what is taken for missing may be removed.
pub(crate) fn exists_at(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    match stat::fstatat(at, path, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(e) => Err(failed("stat", at, path, e)),
    }
}

/// fstat(2).
pub(crate) fn metadata(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    stat::fstat(fd).map_err(|e| failed("stat", fd, THIS, e))
}

/// The names in a directory, `.` and `..` left out, in no order.
pub(crate) fn list(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
    Ok(list_numbered(at, path)?.into_iter().map(|(name, _)| name).collect())
}

/// The same with the inode numbers that the directory has for them: at a mount point that is another than stat(2) tells.
pub(crate) fn list_numbered(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<Vec<(OsString, u64)>> {
    let path = path.as_ref();
    let fail = |e| failed("list", at, path, e);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut directory = nix::dir::Dir::openat(at, path, flags, Mode::empty()).map_err(fail)?;
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry.map_err(fail)?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push((OsString::from_vec(name.to_vec()), entry.ino())),
        }
    }
    Ok(names)
}

/// Reads a small regular file, at most `limit` bytes of it; more is an error, and so is anything that is not a
/// regular file (a FIFO would block, a link would lead away).
pub(crate) fn read_small(at: BorrowedFd<'_>, path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = fcntl::openat(at, path, flags, Mode::empty()).map_err(|e| failed("open", at, path, e))?;
    read_small_fd(fd, path, limit)
}

/// [`read_small`] of a descriptor that is already open; `path` is for the error.
pub(crate) fn read_small_fd(fd: OwnedFd, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let found = metadata(fd.as_fd())?;
    if found.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Error::new(Kind::Invalid, format!("read {}: not a regular file", path.display())));
    }
    let file = std::fs::File::from(fd);
    let mut bytes = Vec::new();
    (&file)
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::from_io(format_args!("read {}", name_of(file.as_fd())), e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(Kind::Limit, format!("read {}: larger than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

/// openat(2) of a new file, for writing.
pub(crate) fn create_new(at: BorrowedFd<'_>, path: impl AsRef<Path>, mode: u32) -> Result<std::fs::File> {
    let path = path.as_ref();
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = fcntl::openat(at, path, flags, Mode::from_bits_truncate(mode));
    Ok(fd.map_err(|e| failed("create", at, path, e))?.into())
}

/// openat(2) of a file to add to, made when it is missing.
pub(crate) fn open_to_append(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<std::fs::File> {
    let path = path.as_ref();
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = fcntl::openat(at, path, flags, Mode::from_bits_truncate(0o600));
    Ok(fd.map_err(|e| failed("open", at, path, e))?.into())
}

/// Writes a new file; with `sync` its bytes are on the disk when this returns (fsync(2)).
pub(crate) fn write_new(at: BorrowedFd<'_>, path: impl AsRef<Path>, bytes: &[u8], mode: u32, sync: bool) -> Result<()> {
    let mut file = create_new(at, path, mode)?;
    file.write_all(bytes)
        .and_then(|()| if sync { file.sync_all() } else { Ok(()) })
        .map_err(|e| Error::from_io(format_args!("write {}", name_of(file.as_fd())), e))
}

/// syncfs(2): everything written to the filesystem so far is durable when it returns.
pub(crate) fn sync_filesystem(fd: BorrowedFd<'_>) -> Result<()> {
    unistd::syncfs(fd).map_err(|e| failed("sync the filesystem of", fd, THIS, e))
}

/// fsync(2) of a file or directory.
pub(crate) fn sync(fd: BorrowedFd<'_>) -> Result<()> {
    unistd::fsync(fd).map_err(|e| failed("sync", fd, THIS, e))
}

/// posix_fadvise(2), POSIX_FADV_DONTNEED: what of a file is in the page cache, and on the disk as well, is read from there.
pub(crate) fn forget_cached(fd: BorrowedFd<'_>) -> Result<()> {
    fcntl::posix_fadvise(fd, 0, 0, fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|e| failed("forget what is cached of", fd, THIS, e))
}

/// fsetxattr(2): creates or replaces an extended attribute.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
    let c_name = c_string(name.as_ref())?;
    // SAFETY: the name is a C string and the value's pointer and length are those of a live slice.
    #[expect(unsafe_code, reason = "nix has no xattr calls")]
    let result = unsafe { libc::fsetxattr(fd.as_raw_fd(), c_name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop).map_err(|e| failed(&format!("set xattr {name} of"), fd, THIS, e))
}

/// fremovexattr(2).
pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    let c_name = c_string(OsStr::new(name))?;
    // SAFETY: the name is a C string; the descriptor is borrowed, so open.
    #[expect(unsafe_code, reason = "nix has no xattr calls")]
    let result = unsafe { libc::fremovexattr(fd.as_raw_fd(), c_name.as_ptr()) };
    Errno::result(result).map(drop).map_err(|e| failed(&format!("remove xattr {name} of"), fd, THIS, e))
}

/// fgetxattr(2); `None` when the attribute is not there.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    let c_name = c_string(name.as_ref())?;
    // xattr(7): a value is at most 64 KiB (XATTR_SIZE_MAX); most records fit in the first try.
    for capacity in [4096, 65536] {
        let mut value = vec![0u8; capacity];
        // SAFETY: the name is a C string and the buffer's pointer and length are those of a live vector.
        #[expect(unsafe_code, reason = "nix has no xattr calls")]
        let length =
            unsafe { libc::fgetxattr(fd.as_raw_fd(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match Errno::result(length) {
            Ok(length) => {
                value.truncate(length.unsigned_abs());
                return Ok(Some(value));
            }
            Err(Errno::ENODATA) => return Ok(None),
            Err(Errno::ERANGE) => continue,
            Err(e) => return Err(failed(&format!("get xattr {name} of"), fd, THIS, e)),
        }
    }
    Err(failed(&format!("get xattr {name} of"), fd, THIS, Errno::E2BIG))
}

/// What statfs(2) tells of the filesystem that `fd` lies on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filesystem {
    /// It is btrfs.
    pub btrfs: bool,
    /// Bytes that an ordinary user may still write.
    pub available: u64,
    /// Bytes that root may still write.
    pub free: u64,
    /// Nothing may be written: it is mounted so, or gave up after an error.
    pub read_only: bool,
    /// Bytes in all.
    pub size: u64,
}

/// fstatfs(2).
pub(crate) fn filesystem(fd: BorrowedFd<'_>) -> Result<Filesystem> {
    let found = nix::sys::statfs::fstatfs(fd).map_err(|e| failed("statfs", fd, THIS, e))?;
    let block = u64::try_from(found.block_size()).unwrap_or(4096);
    Ok(Filesystem {
        btrfs: found.filesystem_type() == nix::sys::statfs::BTRFS_SUPER_MAGIC,
        available: found.blocks_available().saturating_mul(block),
        free: found.blocks_free().saturating_mul(block),
        read_only: found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
        size: found.blocks().saturating_mul(block),
    })
}

/// `path` as a C string; a NUL byte inside is an error.
pub(crate) fn c_string(path: &OsStr) -> Result<CString> {
    CString::new(path.as_bytes())
        .map_err(|_| Error::new(Kind::Invalid, format!("{}: contains a NUL byte", path.display())))
}

/// A path that leads to an open descriptor, for the few libraries and programs that only take paths.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// getrandom(2): 32 bytes for an id.
pub(crate) fn random_bytes() -> Result<[u8; 32]> {
    let mut bytes = [0u8; 32];
    // SAFETY: the pointer and length are those of a live array. getrandom(2): up to 256 bytes are never cut short.
    #[expect(unsafe_code, reason = "nix has no getrandom")]
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    Errno::result(n).map_err(|e| super::failed("read random bytes", e))?;
    Ok(bytes)
}

/// Whether the open `dir` is what `name` below `at` names, still.
pub(crate) fn is_at(dir: BorrowedFd<'_>, at: BorrowedFd<'_>, name: impl AsRef<Path>) -> Result<bool> {
    let ours = metadata(dir)?;
    match metadata_at(at, name) {
        Ok(there) => Ok((ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)),
        Err(e) if e.kind() == Kind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// fchmod(2).
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    stat::fchmod(fd, Mode::from_bits_truncate(mode)).map_err(|e| failed("change the mode of", fd, THIS, e))
}

/// openat2(2) of a directory below `at`, through no link at all.
pub(crate) fn open_directory_beneath(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    fcntl::openat2(at, path, how).map_err(|e| failed("open", at, path, e))
}

/// openat2(2) of a file below `at`, through no link at all, for reading. O_NONBLOCK keeps a FIFO from blocking. A name
/// that leads through a link (ELOOP), out of it (EXDEV) or through a file is `Invalid`.
pub(crate) fn open_file_beneath(at: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    fcntl::openat2(at, path, how).map_err(|e| match e {
        Errno::ELOOP | Errno::EXDEV | Errno::ENOTDIR => failed("open", at, path, e).with_kind(Kind::Invalid),
        _ => failed("open", at, path, e),
    })
}

/// openat(2) with O_TMPFILE: a file without a name, gone when it is closed.
pub(crate) fn unnamed_file(at: BorrowedFd<'_>, mode: u32) -> Result<std::fs::File> {
    let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
    let file = fcntl::openat(at, ".", flags, Mode::from_bits_truncate(mode));
    file.map(std::fs::File::from).map_err(|e| failed("make a file without a name in", at, THIS, e))
}

/// fcntl(2) F_DUPFD_CLOEXEC.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(Error::from).context(|| "duplicate a descriptor")
}

/// Gives a file [without a name](unnamed_file) one, which nothing may have yet: linkat(2), by the way of /proc that its manual gives.
pub(crate) fn name_file(file: BorrowedFd<'_>, at: BorrowedFd<'_>, name: &str) -> Result<()> {
    let path = path_of(file);
    unistd::linkat(CWD, &path, at, name, fcntl::AtFlags::AT_SYMLINK_FOLLOW)
        .map_err(|e| failed("name a file", at, Path::new(name), e))
}
