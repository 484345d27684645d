//! A store that has a block device of its own: `ROOT/store.btrfs` is a link to `/dev/disk/by-uuid/UUID`, the filesystem's.
//!
//! The name of a device may be another's after the next boot, so the filesystem is known by its UUID, as in fstab(5). Where udev
//! has not made the link (in a container, a moment after mkfs), the devices of the host are looked through for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::embedded::{FILE, MAGIC_OFFSET, Options, require_formatted, run_mkfs};
use super::uuid_text;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;

const BY_UUID: &str = "/dev/disk/by-uuid";

/// Where the filesystem's UUID is in a superblock: `fsid` of `struct btrfs_super_block`.
const UUID_OFFSET: u64 = 0x1_0020;

/// How far behind the first superblock its copies are, on a device that is large enough: BTRFS_SUPER_MIRROR_SHIFT.
const COPIES: [u64; 2] = [(64 << 20) - (64 << 10), (256 << 30) - (64 << 10)];

/// Whether the store at `root` is on a device that somebody gave.
pub(super) fn is_given(root: &Path) -> Result<bool> {
    // Another link is somebody's who has the file elsewhere.
    Ok(fs::read_link_if_any(fs::CWD, root.join(FILE))?.is_some_and(|link| link.starts_with(BY_UUID)))
}

/// The device that the store at `root` is on.
///
/// # Errors
/// There is none with its filesystem on this host now.
pub(super) fn of(root: &Path) -> Result<PathBuf> {
    let link = fs::read_link_if_any(fs::CWD, root.join(FILE))?.unwrap_or_default();
    let uuid = link.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Ok(device) = std::fs::canonicalize(Path::new(BY_UUID).join(uuid))
        && has(&device, uuid)
    {
        return Ok(device);
    }
    let entries = std::fs::read_dir("/sys/class/block").map_err(|e| Error::from_io("list the block devices", e))?;
    let mut names: Vec<_> = entries.flatten().collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    for entry in names {
        // What another device is made of is not to be mounted: a disk of an array, a path to a disk.
        let is_part = std::fs::read_dir(entry.path().join("holders")).is_ok_and(|mut holders| holders.next().is_some());
        // sysfs has `!` where a name has `/`.
        let device = Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/"));
        if !is_part && has(&device, uuid) {
            return Ok(device);
        }
    }
    let error = Error::new(Kind::NotFound, format!("no device of this host has the filesystem {uuid}"));
    Err(error.with_hint("attach the device that the store was made on"))
}

/// Refuses to go on with a store at `root` that was begun elsewhere than on this device.
pub(super) fn require(root: &Path, device: &Path) -> Result<()> {
    let begun = root.join(FILE);
    let same = || Ok::<_, Error>(of(root)? == std::fs::canonicalize(device)?);
    if is_given(root)? && same().context(|| device.display().to_string())? {
        return Ok(());
    }
    let error = Error::new(Kind::AlreadyExists, format!("{}: a store was begun there already", begun.display()));
    Err(error.with_hint("`tupper store gc` makes it whole; `tupper store reset` removes it"))
}

/// Whether the btrfs with this UUID is on a device.
fn has(device: &Path, uuid: &str) -> bool {
    require_formatted(device).is_ok() && uuid_of(device).is_ok_and(|found| found == uuid)
}

fn uuid_of(device: &Path) -> Result<String> {
    let mut uuid = [0; 16];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut uuid, UUID_OFFSET));
    read.map_err(|e| Error::from_io(format_args!("read {}", device.display()), e))?;
    Ok(uuid_text(&uuid))
}

/// Formats a device for the store at `root`. Killed in the middle, the device has a filesystem that nothing refers to.
///
/// # Errors
/// [`Kind::AlreadyExists`] when there is something on it, unless that may go; what mkfs.btrfs(8) says of one that is in use.
pub(super) fn format(root: &Path, making: BorrowedFd<'_>, device: &Path, options: &Options) -> Result<()> {
    let doing = || device.display().to_string();
    let found = std::fs::metadata(device).map_err(|e| Error::from_io("look at it", e)).context(doing)?;
    if !found.file_type().is_block_device() {
        return Err(Error::new(Kind::Invalid, "not a block device")).context(doing);
    }
    // Two copies of the metadata: nobody else guards the bytes.
    let flags = ["--metadata", "dup", "--force"];
    let flags = if options.force { &flags[..] } else { &flags[..2] };
    run_mkfs(device, making, options.node_size, flags).map_err(|e| {
        match e.to_string().contains("existing filesystem") {
            true => e.with_hint("--force formats it all the same, and what is on it is lost"),
            false => e,
        }
    })?;
    require_formatted(device)?;
    let opened = File::options().write(true).open(device).map_err(|e| Error::from_io("open it", e)).context(doing)?;
    fs::sync(opened.as_fd())?;
    let link = Path::new(BY_UUID).join(uuid_of(device)?);
    let root = fs::open_directory_follow(root)?;
    fs::symlink(link, root.as_fd(), FILE)?;
    fs::sync(root.as_fd())
}

/// Leaves no filesystem on a device that is not mounted: wipefs(8).
pub(super) fn wipe(device: &Path) -> Result<()> {
    let fail = |e: io::Error| Error::from_io(format_args!("wipe {}", device.display()), e);
    let file = fs::open_device_alone(device)?;
    file.write_all_at(&[0; 8], MAGIC_OFFSET).map_err(fail)?;
    for copy in COPIES {
        match file.write_all_at(&[0; 8], MAGIC_OFFSET + copy) {
            // It is not so large.
            Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::WriteZero) => break,
            other => other.map_err(fail)?,
        }
    }
    fs::sync(file.as_fd())
}
