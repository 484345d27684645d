//! The embedded store: a btrfs in a sparse file, or on a device that somebody gives, for hosts whose own filesystem is another.
//!
//! Every function that changes something is called with ROOT's lock held and can be killed anywhere: the file appears
//! under its name only when it is formatted, and the next call goes on from what is there. One file is backed by one
//! loop device only: two would be two filesystems on it (the kernel gives the second a temporary fsid since 6.7 and
//! mounts both), so the device that is there is found and used again.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Shelf, device};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::loopdev::{self, LoopDevice};
use crate::kernel::{btrfs, fs, mount as mounts};

/// The file; or a link that says which filesystem it is, where that is on a device.
pub(super) const FILE: &str = "store.btrfs";

/// That file until it is formatted.
const DRAFT: &str = "store.btrfs.new";

/// The xattr on `fs/` that says how what is written there is compressed.
const COMPRESS: &str = "user.tupper.compress";

/// 8 KiB nodes: a snapshot adds a back reference for each child of the source's root node, up to 493 of them at mkfs's
/// default of 16 KiB and 241 at 8; at 4 KiB an xattr would be limited to 3.4 KB.
const NODE_SIZE: u32 = 8192;

/// Where a btrfs has its magic number: in the first superblock, at 64 KiB (btrfs(5), fs/btrfs/fs.h).
pub(super) const MAGIC_OFFSET: u64 = 0x1_0040;
const MAGIC: &[u8; 8] = b"_BHRfS_M";

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// What a filesystem needs to be of use at all: mkfs.btrfs(8) wants about 110 MiB.
const LEAST_SIZE: u64 = 256 * MIB;

/// What must stay free on the host's disk for the embedded store to be added to.
const LEAST_HOST_ROOM: u64 = 64 * MIB;

/// What must be left there, to root, to remove something: btrfs writes anew each node of its trees that it changes. Up to
/// 16 MiB of what an ext4 calls free are for its own use (`s_resv_clusters`, fs/ext4/super.c).
const LEAST_HOST_ROOM_TO_REMOVE: u64 = 32 * MIB;

/// How a store is made.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The size of an embedded store in bytes; default [`default_size`] of what is free.
    pub size: Option<u64>,
    /// The btrfs node size in bytes, for a filesystem that we format; default 8 KiB.
    pub node_size: Option<u32>,
    /// The block device that it is to be on, all of it, instead of in a file.
    pub device: Option<PathBuf>,
    /// What is on the device is lost; else there may be nothing.
    pub force: bool,
    /// How an embedded store compresses what is written to it, such as `zstd:1`: btrfs(5), `compress=`. Default: not.
    pub compress: Option<String>,
    /// Somebody asked for a store to be made here: one that is there already is an error.
    pub explicit: bool,
}

/// How large an embedded store is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Of(u64),
    /// So many bytes more than it is.
    More(u64),
}

/// The smaller of 64 GiB and 80 % of what is free, in whole MiB.
pub fn default_size(free: u64) -> u64 {
    (free / 5 * 4).min(64 * GIB) / MIB * MIB
}

pub(super) fn exists(root: &Path) -> Result<bool> {
    fs::exists_at(fs::CWD, root.join(FILE))
}

/// Whether a store at `root` is an embedded one: where the host's filesystem is not btrfs, or the file is there.
pub(super) fn belongs_at(root: &Path) -> Result<bool> {
    Ok(exists(root)? || !fs::filesystem(fs::open_directory_follow(root)?.as_fd())?.btrfs)
}

pub(super) fn unmount(root: &Path) -> Result<()> {
    let at = root.join("fs");
    match is_mounted(&at)? {
        true => btrfs::unmount(&at).map_err(|e| match e.kind() {
            Kind::InUse => e.with_hint(format!("used by {}", flock::describe_all(&mounts::users(&at)))),
            _ => e,
        }),
        false => Ok(()),
    }
}

/// The lock of all who make or mount the store at `root`.
pub(super) fn lock(root: &Path) -> Result<OwnedFd> {
    let dir = fs::open_directory_follow(root)?;
    flock::lock(dir.as_fd(), Lock::Exclusive, || format!("store {}", root.display()))?;
    Ok(dir)
}

/// Makes the directory ROOT, and locks it.
pub(super) fn make_root(root: &Path) -> Result<OwnedFd> {
    match std::fs::create_dir_all(root) {
        // It says so, too, when it could not look at what is there. Opening it tells.
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(Error::from_io(format_args!("create {}", root.display()), e).with_kind(Kind::Store));
        }
        _ => {}
    }
    lock(root).map_err(|e| e.with_kind(Kind::Store))
}

/// `ROOT/fs` as a subvolume where ROOT is on btrfs, else as a mount of `ROOT/store.btrfs`. `making` holds ROOT's lock.
pub(super) fn ensure_filesystem(root: &Path, making: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let dir = fs::open_directory_follow(root)?;
    if fs::filesystem(dir.as_fd())?.btrfs && !exists(root)? && options.device.is_none() {
        if options.size.is_some() || options.node_size.is_some() || options.compress.is_some() {
            let message = format!(
                "{} is on btrfs: the store is a subvolume there, without a size, nodes or compression of its own",
                root.display()
            );
            let error = Error::new(Kind::Invalid, message);
            return Err(error.with_hint("leave out --size, --node-size and --compress"));
        }
        return match btrfs::create(dir.as_fd(), "fs") {
            Err(e) if e.kind() == Kind::AlreadyExists => require_own(root),
            other => other,
        };
    }
    let size = match (exists(root)?, &options.device) {
        (true, None) => None,
        (true, Some(device)) => {
            device::require(root, device)?;
            None
        }
        (false, None) => Some(format(root, making, options)?),
        (false, Some(device)) => {
            device::format(root, making, device, options)?;
            None
        }
    };
    mount(root)?;
    require_own(root)?;
    if let Some(how) = &options.compress {
        let at = root.join("fs");
        btrfs::compress(&at, how)?;
        fs::set_xattr(fs::open_directory(fs::CWD, &at)?.as_fd(), COMPRESS, how.as_bytes())?;
    }
    if let Some(device) = &options.device {
        log::info!("made the store on {}, mounted at {}", device.display(), root.join("fs").display());
    }
    if let Some(size) = size {
        let (path, at) = (root.join(FILE), root.join("fs"));
        log::info!(
            "made the embedded store {} (sparse, {} MiB at most), mounted at {}",
            path.display(),
            size / MIB,
            at.display()
        );
    }
    Ok(())
}

/// Refuses to make a store of what is somebody else's: where a store is being made there are shelves and nothing else.
fn require_own(root: &Path) -> Result<()> {
    let at = root.join("fs");
    let dir = fs::open_directory(fs::CWD, &at)?;
    if btrfs::is_subvolume(dir.as_fd())?
        && fs::list(dir.as_fd(), ".")?.iter().all(|name| name.to_str().is_some_and(|name| Shelf::named(name).is_some()))
    {
        return Ok(());
    }
    let error = Error::new(Kind::Store, format!("{}: it is there, and is no store", at.display()));
    Err(error.with_hint("choose another --root"))
}

/// What is left of a store whose making was killed: its files, below `root`. Empty for one that is whole, that is not
/// there, or that is being made just now.
pub(super) fn half_made(root: &Path) -> Result<Vec<&'static str>> {
    let dir = fs::open_directory_follow(root)?;
    match flock::try_lock(dir.as_fd()) {
        Err(e) if e.kind() == Kind::InUse => return Ok(Vec::new()),
        other => other?,
    }
    let mut left = Vec::new();
    if fs::exists_at(fs::CWD, root.join(DRAFT))? {
        left.push(DRAFT);
    }
    let mut store = super::Store::open_fs(root)?;
    let file = exists(root)?;
    if store.is_none() && file {
        // What is in it tells whether its making was killed, or the host restarted.
        ensure_mounted(root)?;
        store = super::Store::open_fs(root)?;
    }
    if store.is_none() && (file || (fs::exists_at(fs::CWD, root.join("fs"))? && require_own(root).is_ok())) {
        left.push("fs");
    }
    Ok(left)
}

/// Removes the draft of an embedded store's file, unless somebody is at it.
pub(super) fn clear_draft(root: &Path) -> Result<()> {
    let dir = lock(root)?;
    match fs::unlink(dir.as_fd(), DRAFT) {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}

/// What is wrong with the mount of a store: where, and what.
pub(super) fn host_damage(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let at = root.join("fs");
    let mut found = Vec::new();
    let points = mounts::points()?;
    match points.iter().filter(|point| **point == at).count() {
        0 | 1 => {}
        many => found.push((at.clone(), format!("mounted {many} times, one on the other"))),
    }
    let inside = points.iter().filter(|point| point.starts_with(&at) && **point != at);
    found.extend(inside.map(|point| (point.clone(), "mounted in the store, not by tupper".to_string())));
    if belongs_at(root)? && !device::is_given(root)? {
        match File::open(root.join(FILE)) {
            Err(e) => found.push((root.join(FILE), Error::from_io("open it", e).to_string())),
            Ok(file) => match loopdev::find(file.as_fd())?.as_slice() {
                [] | [_] => {}
                many => {
                    let names: Vec<String> = many.iter().map(|device| device.path.display().to_string()).collect();
                    let problem =
                        format!("several loop devices are on it: {}; what they write destroys it", names.join(", "));
                    found.push((root.join(FILE), problem));
                }
            },
        }
    }
    Ok(found)
}

/// Mounts `store.btrfs` when it is not mounted: after a reboot, or in another mount namespace.
pub(super) fn ensure_mounted(root: &Path) -> Result<()> {
    if mount(root)? {
        log::info!("mounted the embedded store {} at {}", root.join(FILE).display(), root.join("fs").display());
    }
    Ok(())
}

/// Mounts `store.btrfs` at `fs`, on the device that backs it already or on a new one; false when it was mounted.
fn mount(root: &Path) -> Result<bool> {
    let path = root.join(FILE);
    let at = root.join("fs");
    let doing = || format!("mount the embedded store {}", path.display());
    let unusable = |e: Error| e.with_kind(Kind::Store);
    // A file that is not there is a store that is not.
    let open = || File::options().read(true).write(true).open(&path).map_err(|e| Error::from_io("open", e));
    let file = match device::is_given(root)? {
        true => None,
        false => Some(open().context(doing).map_err(unusable)?),
    };
    fs::ensure_directory(fs::CWD, &at, 0o700).context(doing)?;
    if is_mounted(&at)? {
        return Ok(false);
    }
    let mounted = match &file {
        Some(file) => attached(file).and_then(|device| btrfs::mount(&device.path, &at)),
        None => device::of(root).and_then(|device| btrfs::mount(&device, &at)),
    };
    mounted.context(doing).map_err(unusable)?;
    let compressed = fs::open_directory(fs::CWD, &at)
        .and_then(|dir| compression(dir.as_fd()))
        .and_then(|how| how.map_or(Ok(()), |how| btrfs::compress(&at, &how)));
    if let Err(e) = compressed {
        // Mounted, the next command would write to it as it is.
        btrfs::unmount(&at).unwrap_or_else(|e| log::warn!("{e}"));
        return Err(unusable(e.wrap(doing())));
    }
    Ok(true)
}

/// The device that backs the file already, or a new one.
fn attached(file: &File) -> Result<LoopDevice> {
    match loopdev::find(file.as_fd())?.into_iter().next() {
        Some(device) => Ok(device),
        None => loopdev::attach(file),
    }
}

/// How what is written to the store whose `fs/` this is is compressed.
pub(super) fn compression(filesystem: BorrowedFd<'_>) -> Result<Option<String>> {
    let how = fs::get_xattr(filesystem, COMPRESS)?;
    Ok(how.map(|how| String::from_utf8_lossy(&how).into_owned()))
}

/// Refuses when the host's disk is about to run full under an embedded store, or would be with `more` bytes. A write
/// that finds no room there fails after it was accepted, and ends the whole filesystem.
pub(super) fn require_host_room(root: &Path, more: u64) -> Result<()> {
    if !is_in_file(root)? {
        return Ok(());
    }
    let host = fs::filesystem(fs::open_directory_follow(root)?.as_fd())?;
    match host.available >= LEAST_HOST_ROOM.saturating_add(more) {
        true => Ok(()),
        false => Err(no_host_room(root, host.available)),
    }
}

/// Refuses when not even what removes could be written any more.
pub(super) fn require_host_room_to_remove(root: &Path) -> Result<()> {
    if !is_in_file(root)? {
        return Ok(());
    }
    let host = fs::filesystem(fs::open_directory_follow(root)?.as_fd())?;
    match host.free >= LEAST_HOST_ROOM_TO_REMOVE {
        true => Ok(()),
        false => Err(no_host_room(root, host.free)),
    }
}

fn no_host_room(root: &Path, left: u64) -> Error {
    let message = format!(
        "write to the embedded store {}: only {} MiB are left on the disk under it, and it would lose writes",
        root.join(FILE).display(),
        left / MIB
    );
    Error::new(Kind::NoSpace, message).with_hint("free some space there, or use --root on another disk")
}

/// Whether it is in a file of the host's, and not on a device. Refuses when that is gone.
fn is_in_file(root: &Path) -> Result<bool> {
    if !exists(root)? {
        let message =
            format!("write to the embedded store: {} was removed while it was mounted", root.join(FILE).display());
        return Err(Error::new(Kind::Store, message).with_hint(
            "what is in it is lost at the next unmount: copy out what you need, then `tupper store umount`",
        ));
    }
    Ok(!device::is_given(root)?)
}

/// Gives the embedded store so many bytes in all, and returns how many. The caller holds ROOT's lock. Killed in the middle, the
/// file is larger than its filesystem, and the next call goes on.
pub(super) fn grow(root: &Path, filesystem: BorrowedFd<'_>, size: Size) -> Result<u64> {
    let path = root.join(FILE);
    if device::is_given(root)? {
        let error = Error::new(Kind::Unsupported, "it has all of its device");
        return Err(
            error.with_hint("when that is larger, `btrfs filesystem resize max` on what is mounted there takes it")
        );
    }
    let file = File::options().write(true).open(&path).map_err(|e| Error::from_io("open its file", e))?;
    let had = fs::metadata(file.as_fd())?;
    let before = had.st_size.unsigned_abs();
    let wanted = match size {
        Size::Of(size) => size,
        Size::More(more) => before.saturating_add(more),
    };
    if wanted < before {
        let message = format!("size {} MiB: it has {} MiB, and does not shrink", wanted / MIB, before / MIB);
        return Err(Error::new(Kind::Invalid, message));
    }
    let free = fs::filesystem(fs::open_directory_follow(root)?.as_fd())?.available;
    let size = choose_size(free.saturating_add(had.st_blocks.unsigned_abs() * 512), Some(wanted))?;
    let device = loopdev::find(file.as_fd())?.into_iter().next();
    let device = device.ok_or_else(|| Error::new(Kind::Store, format!("no loop device has {}", path.display())))?;
    file.set_len(size).map_err(|e| Error::from_io(format_args!("size {} to {size} bytes", path.display()), e))?;
    // The filesystem may not be larger than its file after a power cut.
    fs::sync(file.as_fd()).and_then(|()| device.take_size()).and_then(|()| btrfs::grow(filesystem))?;
    fs::sync_filesystem(filesystem)?;
    Ok(size)
}

/// Removes the unmounted file of an embedded store, with what it was mounted at. The caller holds ROOT's lock, `making`. Killed in
/// the middle, the file is there, and is mounted again. A device is nobody's afterwards; killed before that, it has an empty
/// filesystem that nothing refers to.
pub(super) fn remove_file(root: &Path, making: BorrowedFd<'_>) -> Result<()> {
    let device = if device::is_given(root)? { Some(device::of(root)?) } else { None };
    fs::remove_directory(making, "fs")?;
    fs::unlink(making, FILE)?;
    fs::sync(making)?;
    device.map_or(Ok(()), |device| device::wipe(&device))
}

/// A sparse file, formatted under a temporary name and renamed into place.
fn format(root: &Path, making: BorrowedFd<'_>, options: &Options) -> Result<u64> {
    let dir = fs::open_directory_follow(root)?;
    let size = choose_size(fs::filesystem(dir.as_fd())?.available, options.size)?;
    let draft = root.join(DRAFT);
    let file = File::options().write(true).create(true).truncate(true).open(&draft).map_err(Error::from)?;
    fs::set_mode(file.as_fd(), 0o600)?;
    file.set_len(size).map_err(Error::from).context(|| format!("size {} to {size} bytes", draft.display()))?;
    // -m single: the file's own filesystem and disk guard the bytes; a second copy of the metadata on the same disk
    // makes every commit a quarter dearer.
    let formatted = run_mkfs(&draft, making, options.node_size, &["--force", "--metadata", "single"])
        .and_then(|()| require_formatted(&draft))
        .and_then(|()| fs::sync(file.as_fd()));
    if let Err(e) = formatted {
        // The cause is what counts; a draft that stays is overwritten by the next try.
        let _ = std::fs::remove_file(&draft);
        return Err(e);
    }
    fs::rename(dir.as_fd(), DRAFT, dir.as_fd(), FILE)?;
    fs::sync(dir.as_fd())?;
    Ok(size)
}

fn choose_size(free: u64, wanted: Option<u64>) -> Result<u64> {
    let size = wanted.map_or_else(|| default_size(free), |size| size / 4096 * 4096);
    if size < LEAST_SIZE {
        let (size, least) = (size / MIB, LEAST_SIZE / MIB);
        let message = match wanted {
            Some(_) => format!("size {size} MiB: a store needs {least} MiB at the least"),
            None => format!(
                "only {} MiB are free on the disk: 80 % of that is less than the {least} MiB that a store needs",
                free / MIB
            ),
        };
        return Err(
            Error::new(Kind::NoSpace, message).with_hint("free some space there, or use --root on another disk")
        );
    }
    if size > free {
        // A file larger than the disk under it is accepted until the disk is full; then writes are lost.
        let message = format!("size {} MiB: only {} MiB are free on the disk under it", size / MIB, free / MIB);
        return Err(Error::new(Kind::NoSpace, message).with_hint("choose a smaller --size, or --root on another disk"));
    }
    Ok(size)
}

/// mkfs.btrfs writes the magic number last, and exits with 0 when it could not (btrfs-progs 6.2, mkfs/main.c).
pub(super) fn require_formatted(path: &Path) -> Result<()> {
    let mut magic = [0; 8];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut magic, MAGIC_OFFSET));
    read.map_err(|e| Error::from_io(format_args!("read {}", path.display()), e))?;
    match &magic == MAGIC {
        true => Ok(()),
        false => Err(Error::new(Kind::Store, format!("run mkfs.btrfs on {}: it made no filesystem", path.display()))),
    }
}

pub(super) fn run_mkfs(path: &Path, making: BorrowedFd<'_>, node_size: Option<u32>, flags: &[&str]) -> Result<()> {
    let mut mkfs = Command::new("mkfs.btrfs")
        .args(["--quiet", "--nodesize", &node_size.unwrap_or(NODE_SIZE).to_string()])
        .args(flags)
        .arg(path)
        // It asks nothing. An open file's lock is everybody's who has the file open (flock(2)): should we be killed, nobody
        // makes the store as long as it writes.
        .stdin(Stdio::from(fs::duplicate(making)?))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            let error = Error::from_io("run mkfs.btrfs", e);
            match error.kind() {
                Kind::NotFound => error.with_hint("install btrfs-progs (Debian: apt-get install btrfs-progs)"),
                _ => error,
            }
        })?;
    // Command::output() panics when it cannot read from the two pipes at once.
    let mut said = Vec::new();
    let read = mkfs.stderr.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut said));
    let status = mkfs.wait().and_then(|status| read.map(|_| status));
    if status.map_err(|e| Error::from_io(format_args!("run mkfs.btrfs on {}", path.display()), e))?.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&said);
    // What a filesystem that is there is told by comes before what would help.
    let says_why = |line: &&str| !line.trim().is_empty() && !line.contains("use the -f option");
    let why = text.lines().rev().find(says_why).unwrap_or("no reason given").trim().to_string();
    Err(Error::new(Kind::Store, format!("run mkfs.btrfs on {}: {}", path.display(), why.trim_start_matches("ERROR: "))))
}

/// A mount point lies on another device than its parent directory.
fn is_mounted(at: &PathBuf) -> Result<bool> {
    let parent = at.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata_at(fs::CWD, at)?.st_dev != fs::metadata_at(fs::CWD, parent)?.st_dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(default_size(1000 * GIB), 64 * GIB);
        assert_eq!(default_size(10 * GIB), 8 * GIB);
        assert!(choose_size(300 * MIB, None).is_err(), "80 % of it is below the least size");
        assert!(choose_size(GIB, Some(2 * GIB)).is_err(), "larger than the disk");
        assert!(choose_size(GIB, Some(MIB)).is_err(), "too small to format");
        assert_eq!(choose_size(GIB, Some(512 * MIB)).expect("fits"), 512 * MIB);
    }
}
