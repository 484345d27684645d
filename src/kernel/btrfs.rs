//! Subvolumes: create, snapshot, seal, inspect, list what is nested, destroy.
//!
//! libbtrfsutil (the `btrfsutil` crate) does what it does well: create, destroy and the read-only flag. It takes
//! paths, so descriptors go in through /proc/self/fd, which no rename can redirect. Three things are ioctls of our own:
//! the snapshot (the crate waits for whatever commit is running after it has made one, which undoes the sharing of
//! commits between creators; btrfs_wait_for_commit with transid 0, fs/btrfs/transaction.c), the listing of nested
//! subvolumes (the crate's iterator resolves what it finds against the working directory), and what is known of one (the
//! crate reads the root tree, which is as old as the last commit).

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use btrfsutil::subvolume::Subvolume;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::mount::MsFlags;

use super::failed;
use super::fs::{name_of, path_of};
use crate::error::{Error, Kind, Result};

/// What is known of a subvolume (BTRFS_IOC_GET_SUBVOL_INFO).
#[derive(Debug, Clone)]
pub(crate) struct Info {
    /// Its number in the root tree.
    pub id: u64,
    /// Its own UUID.
    pub uuid: [u8; 16],
    /// The UUID of the subvolume it is a snapshot of.
    pub parent_uuid: Option<[u8; 16]>,
    /// The generation of its last change that reached the disk.
    pub generation: u64,
    /// When it was made.
    pub created: Timestamp,
    /// The generation of its last change, on the disk or not yet. What is written in a file counts when it is written back.
    pub changed: u64,
    /// When that was.
    pub changed_at: Timestamp,
}

/// `struct btrfs_ioctl_vol_args_v2`, include/uapi/linux/btrfs.h.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}
nix::ioctl_write_ptr!(resize, 0x94, 3, VolArgs);

const BTRFS_SUBVOL_RDONLY: u64 = 1 << 1;
nix::ioctl_write_ptr!(snap_create_v2, 0x94, 23, VolArgsV2);
nix::ioctl_none!(sync, 0x94, 8);

/// `struct btrfs_ioctl_get_subvol_info_args`.
#[repr(C)]
struct SubvolInfoArgs {
    treeid: u64,
    name: [u8; 256],
    parent_id: u64,
    dirid: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    ctransid: u64,
    /// otransid, stransid and rtransid.
    other_transids: [u64; 3],
    /// ctime, otime, stime and rtime: seconds, and nanoseconds padded to as many bytes.
    times: [[u64; 2]; 4],
    reserved: [u64; 8],
}
nix::ioctl_read!(get_subvol_info, 0x94, 60, SubvolInfoArgs);

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct RootrefArgs {
    min_treeid: u64,
    rootref: [Rootref; 255],
    num_items: u8,
    align: [u8; 7],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Rootref {
    treeid: u64,
    dirid: u64,
}
nix::ioctl_readwrite!(get_subvol_rootref, 0x94, 61, RootrefArgs);

/// `struct btrfs_ioctl_ino_lookup_user_args`.
#[repr(C)]
struct InoLookupUserArgs {
    dirid: u64,
    treeid: u64,
    name: [u8; 256],
    path: [u8; 3824],
}
nix::ioctl_readwrite!(ino_lookup_user, 0x94, 62, InoLookupUserArgs);

/// `struct btrfs_ioctl_fs_info_args`, of which the UUID and the node size are asked for.
#[repr(C)]
struct FsInfoArgs {
    devices: [u64; 2],
    fsid: [u8; 16],
    nodesize: u32,
    rest: [u32; 247],
}
nix::ioctl_read!(fs_info, 0x94, 31, FsInfoArgs);

/// `struct btrfs_ioctl_space_args` with room for as many `struct btrfs_ioctl_space_info` as a filesystem has: one for each kind
/// of data and profile, and one for the reserve.
#[repr(C)]
struct SpaceArgs {
    slots: u64,
    found: u64,
    spaces: [SpaceInfo; SPACES],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SpaceInfo {
    flags: u64,
    total: u64,
    used: u64,
}
nix::ioctl_readwrite!(space_info, 0x94, 20, [u64; 2]);

/// Room for every kind with every profile, which a balance has at most.
const SPACES: usize = 64;
/// include/uapi/linux/btrfs_tree.h: BTRFS_BLOCK_GROUP_DATA, BTRFS_SPACE_INFO_GLOBAL_RSV.
const DATA: u64 = 1 << 0;
const RESERVE: u64 = 1 << 49;

/// `struct btrfs_ioctl_qgroup_limit_args`, with its `struct btrfs_qgroup_limit`.
#[repr(C)]
struct QgroupLimitArgs {
    qgroup: u64,
    flags: u64,
    most_referenced: u64,
    most_exclusive: u64,
    reserved: [u64; 2],
}
nix::ioctl_read!(qgroup_limit, 0x94, 43, QgroupLimitArgs);

/// BTRFS_QGROUP_LIMIT_MAX_RFER.
const MOST_REFERENCED: u64 = 1 << 0;

/// What a filesystem says is in use, in bytes, one copy of each counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InUse {
    /// By data; on a small filesystem that mixes both, by metadata, too.
    pub data: u64,
    /// By trees.
    pub metadata: u64,
}

/// BTRFS_IOC_SPACE_INFO: what is in use as of the last commit, and of what was freed since.
pub(crate) fn in_use(fd: BorrowedFd<'_>) -> Result<InUse> {
    let mut args =
        SpaceArgs { slots: SPACES as u64, found: 0, spaces: [SpaceInfo { flags: 0, total: 0, used: 0 }; SPACES] };
    // SAFETY: the structure begins with a btrfs_ioctl_space_args, behind which there is room for as many of its entries as
    // that says; all of it lives through the call.
    #[expect(unsafe_code, reason = "neither the crate nor nix has this ioctl")]
    let result = unsafe { space_info(fd.as_raw_fd(), (&raw mut args).cast()) };
    result.map_err(|e| failed(format_args!("ask what is in use on the filesystem of {}", name_of(fd)), e))?;
    let mut in_use = InUse::default();
    for space in args.spaces.iter().take(usize::try_from(args.found).unwrap_or(SPACES)) {
        match space.flags {
            flags if flags & RESERVE != 0 => {} // in the metadata already
            flags if flags & DATA != 0 => in_use.data += space.used,
            _ => in_use.metadata += space.used,
        }
    }
    Ok(in_use)
}

/// BTRFS_IOC_QGROUP_LIMIT: no more bytes than these may be charged to a subvolume; without a number, any. Wants quotas that
/// are on, and CAP_SYS_ADMIN in the host's user namespace.
pub(crate) fn limit_size(subvolume: BorrowedFd<'_>, limit: Option<u64>) -> Result<()> {
    let mut args = QgroupLimitArgs {
        qgroup: 0, // that of the subvolume
        flags: MOST_REFERENCED,
        most_referenced: limit.unwrap_or(u64::MAX), // which takes a limit away (CLEAR_VALUE, fs/btrfs/qgroup.c)
        most_exclusive: 0,
        reserved: [0; 2],
    };
    // SAFETY: the structure has the layout of btrfs_ioctl_qgroup_limit_args and lives through the call, which only reads it.
    #[expect(unsafe_code, reason = "the crate's own qgroup calls use memory that they have freed")]
    let result = unsafe { qgroup_limit(subvolume.as_raw_fd(), &raw mut args) };
    result.map(drop).map_err(|e| failed(format_args!("limit the size of the subvolume {}", name_of(subvolume)), e))
}

/// Makes an empty subvolume `name` in `parent`. Not durable until the next commit.
pub(crate) fn create(parent: BorrowedFd<'_>, name: &str) -> Result<()> {
    let path = path_of(parent).join(name);
    Subvolume::create(path.as_path(), None)
        .map(drop)
        .map_err(|e| library_failed("create the subvolume", below(parent, name.as_ref()), &e))
}

/// Makes a snapshot of the subvolume `source` as `name` in `parent`: one transaction commit, which takes the data of
/// `source` and everything done to the filesystem's metadata before with it (create_snapshot, fs/btrfs/ioctl.c).
pub(crate) fn snapshot(source: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &str, read_only: bool) -> Result<()> {
    let mut args = VolArgsV2 {
        fd: i64::from(source.as_raw_fd()),
        transid: 0,
        flags: if read_only { BTRFS_SUBVOL_RDONLY } else { 0 },
        unused: [0; 4],
        name: [0; 4040],
    };
    put_name(&mut args.name, name)?;
    // SAFETY: the structure has the layout of btrfs_ioctl_vol_args_v2 and lives through the call, which only reads it;
    // its name ends in a NUL; both descriptors are borrowed, so open.
    #[expect(unsafe_code, reason = "an ioctl that the crate wraps with a wait for the running commit")]
    let result = unsafe { snap_create_v2(parent.as_raw_fd(), &args) };
    result.map(drop).map_err(|e| {
        failed(format_args!("make the snapshot {} of {}", below(parent, name.as_ref()), name_of(source)), e)
    })
}

/// Destroys the subvolume `name` in `parent`; what is nested in it must be gone. Atomic, durable at the next commit;
/// the kernel's cleaner gives the space back later.
pub(crate) fn destroy(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let path = path_of(parent).join(name);
    let fail = |e: &dyn std::error::Error| library_failed("destroy the subvolume", below(parent, name), e);
    let subvolume = Subvolume::get(path.as_path()).map_err(|e| fail(&e))?;
    subvolume.delete(None).map_err(|e| fail(&e))
}

/// Sets or clears the read-only flag: one small transaction commit (btrfs_ioctl_subvol_setflags, fs/btrfs/ioctl.c).
pub(crate) fn set_read_only(subvolume: BorrowedFd<'_>, read_only: bool) -> Result<()> {
    open(subvolume)?.set_ro(read_only).map_err(|e| library_failed("set the read-only flag of", name_of(subvolume), &e))
}

/// Whether nothing in the subvolume can be changed.
pub(crate) fn is_read_only(subvolume: BorrowedFd<'_>) -> Result<bool> {
    open(subvolume)?.is_ro().map_err(|e| library_failed("get the read-only flag of", name_of(subvolume), &e))
}

/// Whether this directory is the top of a subvolume: its inode number is 256 (BTRFS_FIRST_FREE_OBJECTID).
pub(crate) fn is_subvolume(directory: BorrowedFd<'_>) -> Result<bool> {
    Ok(super::fs::filesystem(directory)?.btrfs && super::fs::metadata(directory)?.st_ino == 256)
}

/// The UUID of the btrfs that something open lies on. That of statfs(2) differs from subvolume to subvolume (btrfs_statfs,
/// fs/btrfs/super.c).
pub(crate) fn filesystem_uuid(fd: BorrowedFd<'_>) -> Result<[u8; 16]> {
    filesystem(fd).map(|found| found.fsid)
}

fn filesystem(fd: BorrowedFd<'_>) -> Result<FsInfoArgs> {
    let mut args = FsInfoArgs { devices: [0; 2], fsid: [0; 16], nodesize: 0, rest: [0; 247] };
    // SAFETY: the structure has the size and layout of btrfs_ioctl_fs_info_args and lives through the call.
    #[expect(unsafe_code, reason = "neither the crate nor nix has this ioctl")]
    let result = unsafe { fs_info(fd.as_raw_fd(), &raw mut args) };
    let doing = || format!("read what is known of the filesystem of {}", name_of(fd));
    result.map_err(|e| failed(doing(), e))?;
    Ok(args)
}

/// What the kernel knows of the subvolume whose top directory is open.
pub(crate) fn info(subvolume: BorrowedFd<'_>) -> Result<Info> {
    // SAFETY: integers and arrays of them, for which zeros are a value.
    #[expect(unsafe_code, reason = "the kernel fills it")]
    let mut found: SubvolInfoArgs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has the size and layout of btrfs_ioctl_get_subvol_info_args and lives through the call.
    #[expect(unsafe_code, reason = "the crate reads what was last committed")]
    let result = unsafe { get_subvol_info(subvolume.as_raw_fd(), &raw mut found) };
    result.map_err(|e| failed(format_args!("read what is known of {}", name_of(subvolume)), e))?;
    Ok(Info {
        id: found.treeid,
        uuid: found.uuid,
        parent_uuid: Some(found.parent_uuid).filter(|uuid| *uuid != [0; 16]),
        generation: found.generation,
        created: timestamp(found.times[1]),
        changed: found.ctransid,
        changed_at: timestamp(found.times[0]),
    })
}

fn timestamp([seconds, nanoseconds]: [u64; 2]) -> Timestamp {
    let (seconds, nanoseconds) = (seconds.try_into().ok(), nanoseconds.try_into().ok());
    seconds
        .zip(nanoseconds)
        .and_then(|(seconds, nanoseconds)| Timestamp::new(seconds, nanoseconds).ok())
        .unwrap_or_default()
}

/// How often a subvolume is looked for that somebody moves each time before its path is asked for.
const MOVES: usize = 64;

/// The subvolumes nested directly in this one, as paths below it.
pub(crate) fn nested(subvolume: BorrowedFd<'_>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut next = 0;
    loop {
        let (references, all) = references(subvolume, next)?;
        for reference in &references {
            match nested_path(subvolume, *reference) {
                Err(e) if e.kind() == Kind::NotFound => {} // destroyed meanwhile
                path => found.push(path?),
            }
        }
        match references.last() {
            Some(last) if !all => next = last.treeid + 1,
            _ => return Ok(found),
        }
    }
}

/// References to the subvolumes nested in this one whose numbers are `from` or more, and whether they are all.
fn references(subvolume: BorrowedFd<'_>, from: u64) -> Result<(Vec<Rootref>, bool)> {
    let mut args =
        RootrefArgs { min_treeid: from, rootref: [Rootref { treeid: 0, dirid: 0 }; 255], num_items: 0, align: [0; 7] };
    // SAFETY: the structure has the layout of btrfs_ioctl_get_subvol_rootref_args and lives through the call.
    #[expect(unsafe_code, reason = "the crate's iterator resolves paths against the working directory")]
    let result = unsafe { get_subvol_rootref(subvolume.as_raw_fd(), &raw mut args) };
    match result {
        // EOVERFLOW: there are more than 255 (fs/btrfs/ioctl.c).
        Ok(_) | Err(Errno::EOVERFLOW) => Ok((args.rootref[..usize::from(args.num_items)].to_vec(), result.is_ok())),
        Err(e) => Err(failed(format_args!("list the subvolumes in {}", name_of(subvolume)), e)),
    }
}

fn nested_path(subvolume: BorrowedFd<'_>, mut reference: Rootref) -> Result<PathBuf> {
    let treeid = reference.treeid;
    let doing = || format!("look up the subvolume {treeid} in {}", name_of(subvolume));
    for _ in 0..MOVES {
        let mut args = InoLookupUserArgs { dirid: reference.dirid, treeid, name: [0; 256], path: [0; 3824] };
        // SAFETY: the structure has the layout of btrfs_ioctl_ino_lookup_user_args and lives through the call.
        #[expect(unsafe_code, reason = "neither the crate nor nix has this ioctl")]
        match unsafe { ino_lookup_user(subvolume.as_raw_fd(), &raw mut args) } {
            Ok(_) => {
                let text = |bytes: &[u8]| {
                    PathBuf::from(OsStr::from_bytes(bytes.split(|b| *b == 0).next().unwrap_or_default()))
                };
                return Ok(text(&args.path).join(text(&args.name)));
            }
            // It is not in that directory any more (fs/btrfs/ioctl.c, btrfs_search_path_in_tree_user): moved meanwhile.
            Err(Errno::EINVAL) => {}
            Err(e) => return Err(failed(doing(), e)),
        }
        let (references, _) = references(subvolume, treeid)?;
        match references.first() {
            Some(now) if now.treeid == treeid => reference = *now,
            _ => return Err(failed(doing(), Errno::ENOENT)),
        }
    }
    Err(failed(doing(), Errno::EINVAL))
}

/// BTRFS_IOC_SYNC: a commit, after which the kernel gives the space of destroyed subvolumes back at once instead of
/// within the 30 seconds until the next one (it wakes the transaction kthread for that, fs/btrfs/ioctl.c).
pub(crate) fn reclaim(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the ioctl takes no argument; the descriptor is borrowed, so open.
    #[expect(unsafe_code, reason = "the crate's sync is START_SYNC and WAIT_SYNC, which do not wake that thread")]
    unsafe { sync(fd.as_raw_fd()) }
        .map(drop)
        .map_err(|e| failed(format_args!("sync the filesystem of {}", name_of(fd)), e))
}

/// BTRFS_IOC_RESIZE: the filesystem takes all that its one device has.
pub(crate) fn grow(fd: BorrowedFd<'_>) -> Result<()> {
    let mut args = VolArgs { fd: 0, name: [0; 4088] };
    put_name(&mut args.name, "max")?;
    let doing = || format!("resize the filesystem of {}", name_of(fd));
    // SAFETY: the structure has the layout of btrfs_ioctl_vol_args and lives through the call, which only reads it; its name
    // ends in a NUL; the descriptor is borrowed, so open.
    #[expect(unsafe_code, reason = "neither the crate nor nix has this ioctl")]
    match unsafe { resize(fd.as_raw_fd(), &raw const args) } {
        Ok(0) => Ok(()),
        // BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS
        Ok(_) => Err(Error::new(Kind::InUse, format!("{}: it is being balanced or resized just now", doing()))),
        Err(e) => Err(failed(doing(), e)),
    }
}

/// BTRFS_IOC_FS_INFO: the bytes in a node of the filesystem's trees.
pub(crate) fn node_size(fd: BorrowedFd<'_>) -> Result<u32> {
    filesystem(fd).map(|found| found.nodesize)
}

const STORE_MOUNT: MsFlags = MsFlags::MS_NOATIME.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV);

/// mount(2) of a btrfs on a device, as the store's raw mount: noatime (a read must not copy metadata), and nosuid and
/// nodev, because a setuid file or device node of some image is nothing to the host.
pub(crate) fn mount(device: &Path, at: &Path) -> Result<()> {
    nix::mount::mount(Some(device), at, Some("btrfs"), STORE_MOUNT, None::<&str>)
        .map_err(|e| failed(format_args!("mount {} at {}", device.display(), at.display()), e))
}

/// What is written to the store mounted at `at` is compressed from now on: btrfs(5), `compress=`.
pub(crate) fn compress(at: &Path, how: &str) -> Result<()> {
    let option = format!("compress={how}");
    nix::mount::mount(None::<&str>, at, None::<&str>, STORE_MOUNT | MsFlags::MS_REMOUNT, Some(option.as_str()))
        .map_err(|e| failed(format_args!("mount {} with {option}", at.display()), e))
}

/// umount2(2).
pub(crate) fn unmount(at: &Path) -> Result<()> {
    nix::mount::umount(at).map_err(|e| failed(format_args!("unmount {}", at.display()), e))
}

fn open(subvolume: BorrowedFd<'_>) -> Result<Subvolume> {
    Subvolume::get(path_of(subvolume).as_path())
        .map_err(|e| library_failed("open the subvolume", name_of(subvolume), &e))
}

/// The whole path of what is called `name` in `parent`, for errors.
fn below(parent: BorrowedFd<'_>, name: &OsStr) -> String {
    format!("{}/{}", name_of(parent), name.display())
}

fn put_name(field: &mut [u8], name: &str) -> Result<()> {
    // btrfs names are at most 255 bytes (BTRFS_NAME_LEN); the field leaves room for the NUL.
    if name.len() > 255 || name.bytes().any(|b| b == 0 || b == b'/') {
        return Err(failed(format_args!("name {name:?}"), Errno::EINVAL));
    }
    field[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

/// libbtrfsutil says which step failed and leaves the reason in errno (btrfsutil.h, "Errors").
fn library_failed(doing: &str, what: impl std::fmt::Display, error: &dyn std::error::Error) -> Error {
    let errno = Errno::last_raw();
    log::debug!("{doing} {what}: libbtrfsutil: {error}");
    Error::from_errno(format_args!("{doing} {what}"), errno)
}
