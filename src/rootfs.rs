//! The one value in which the two halves meet: storage hands it out, the sandbox enters it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The files of /etc that a container has its own of: they are mounted over those of its root, where there are none over
/// empty ones made for that.
pub const FILES_IN_ETC: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// A root filesystem, ready to be mounted: an owned descriptor of its top directory and how to mount it.
///
/// The storage half never hears of namespaces and the sandbox half never of btrfs; whatever one has to know of the
/// other is a field here.
#[derive(Debug)]
pub struct Rootfs {
    /// The top directory, opened by the storage half. It stays valid however the tree is renamed.
    pub dir: OwnedFd,
    /// Where it lies, for people: `--explain` and errors print it, nothing opens it.
    pub path: PathBuf,
    /// Mount it read-only.
    pub read_only: bool,
}
