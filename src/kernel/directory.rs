//! A directory read name by name, with a place to come back to (getdents64(2), lseek(2)).
//!
//! readdir(3) gives no way to leave a directory in the middle, close it, and go on later; whoever walks a tree that is
//! deeper than there are descriptors needs that.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::sys::stat::{self, FchmodatFlags, Mode};
use nix::unistd::{self, Gid, Uid, UnlinkatFlags, Whence};

use super::node::{self, Doing, Result, Time};

const BUFFER: usize = 32 << 10;
/// `struct linux_dirent64` (getdents64(2)): inode, offset, length, type, then the name.
const NAME_AT: usize = 19;

/// An open directory, and where in it we are.
pub(crate) struct Directory {
    fd: OwnedFd,
    buffer: Vec<u8>,
    at: usize,
}

/// A name in a directory.
#[derive(Debug)]
pub(crate) struct Name {
    /// The name.
    pub name: CString,
    /// The inode number of what it names.
    pub inode: u64,
    /// It names a directory.
    pub directory: bool,
    /// Where the next name is, for [`Directory::open`].
    pub next: i64,
}

impl Directory {
    /// Opens a directory below `at`, no link, at its start or at a place where we were.
    pub(crate) fn open(at: BorrowedFd<'_>, name: &CStr, from: i64) -> Result<Directory> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = fcntl::openat(at, name, flags, Mode::empty()).doing("open")?;
        if from != 0 {
            unistd::lseek(&fd, from, Whence::SeekSet).doing("seek in")?;
        }
        Ok(Directory { fd, buffer: Vec::new(), at: 0 })
    }

    /// The next name, `.` and `..` left out.
    pub(crate) fn next(&mut self) -> Result<Option<Name>> {
        loop {
            if self.at == self.buffer.len() && !self.fill().doing("list")? {
                return Ok(None);
            }
            let entry = &self.buffer[self.at..];
            let (Some(inode), Some(next)) = (entry.first_chunk(), entry.get(8..).and_then(<[u8]>::first_chunk)) else {
                return Err(Errno::EIO).doing("list");
            };
            let length = usize::from(u16::from_ne_bytes([entry[16], entry[17]]));
            let name = CStr::from_bytes_until_nul(&entry[NAME_AT..]).map_err(|_| Errno::EIO).doing("list")?;
            let found = Name {
                name: name.to_owned(),
                inode: u64::from_ne_bytes(*inode),
                directory: entry[18] == libc::DT_DIR,
                next: i64::from_ne_bytes(*next),
            };
            self.at += length;
            if !matches!(found.name.to_bytes(), b"." | b"..") {
                return Ok(Some(found));
            }
        }
    }

    fn fill(&mut self) -> nix::Result<bool> {
        self.buffer.resize(BUFFER, 0);
        self.at = 0;
        // SAFETY: the buffer's pointer and length are those of a live vector; the kernel writes at most that much.
        #[expect(unsafe_code, reason = "neither nix nor libc's readdir lets go of a directory and comes back")]
        let length = unsafe {
            libc::syscall(libc::SYS_getdents64, self.fd.as_raw_fd(), self.buffer.as_mut_ptr(), self.buffer.len())
        };
        let length = Errno::result(length).inspect_err(|_| self.buffer.clear())?;
        self.buffer.truncate(usize::try_from(length).unwrap_or(0));
        Ok(!self.buffer.is_empty())
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its inode number, and when it was accessed and modified.
    pub(crate) fn metadata(&self) -> Result<(u64, Time, Time)> {
        let found = stat::fstat(&self.fd).doing("stat")?;
        let (accessed, modified) = Time::of(&found);
        Ok((found.st_ino, accessed, modified))
    }

    /// unlinkat(2) of a name in it that is no directory.
    pub(crate) fn remove(&self, name: &CStr) -> Result<()> {
        unistd::unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir).doing("remove")
    }

    /// unlinkat(2) of a directory in it; false when that is not empty.
    pub(crate) fn remove_if_empty(&self, name: &CStr) -> Result<bool> {
        match unistd::unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOTEMPTY) => Ok(false),
            Err(errno) => Err(errno).doing("remove"),
        }
    }

    /// Makes it a directory that nothing is known of: root's, mode 0755, no extended attributes.
    pub(crate) fn set_default_metadata(&self) -> Result<()> {
        node::clear_xattrs(node::Target::Open(self.fd()))?;
        unistd::fchown(&self.fd, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).doing("set the owner of")?;
        stat::fchmodat(&self.fd, ".", Mode::from_bits_truncate(0o755), FchmodatFlags::FollowSymlink)
            .doing("set the mode of")
    }
}
