//! Every system call and ioctl of tupper, and all of its `unsafe`.
//!
//! A function here is one call (or one protocol of a device, as for loop devices) with an error that names the call's
//! object; it decides nothing. Descriptors come in borrowed and go out owned and close-on-exec.

pub(crate) mod bpf;
pub(crate) mod btrfs;
pub(crate) mod capability;
pub(crate) mod cgroup;
pub(crate) mod directory;
pub(crate) mod flock;
pub(crate) mod fs;
pub(crate) mod loopdev;
pub(crate) mod mount;
pub(crate) mod netlink;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod resolve;
pub(crate) mod seccomp;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod trees;
pub(crate) mod tty;

use std::fmt::Display;

use nix::errno::Errno;

use crate::error::Error;

/// The errno of a device that failed, and of a filesystem that gave up for that.
pub(crate) const EIO: i32 = libc::EIO;

/// The errno of a process that has too many files open.
pub(crate) const EMFILE: i32 = libc::EMFILE;

/// The error of a failed call: `doing: reason`.
pub(crate) fn failed(doing: impl Display, errno: Errno) -> Error {
    Error::from_errno(doing, errno as i32)
}

/// geteuid(2) is 0.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
