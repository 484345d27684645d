//! The trees of a btrfs, item by item (BTRFS_IOC_TREE_SEARCH_V2): what a subvolume holds that is newer than a generation,
//! how an inode is called, what a subvolume is a snapshot of, which there are, and where their data lies. Wants
//! CAP_SYS_ADMIN in the host's user namespace.
//!
//! What has not been written back yet is in no tree: who wants to see it syncs first. Numbers and layouts are those of
//! include/uapi/linux/btrfs_tree.h; what is on the disk is little-endian.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;

use super::failed;
use super::fs::name_of;
use crate::error::{Kind, Result};

/// The inode number of a subvolume's top directory (BTRFS_FIRST_FREE_OBJECTID).
pub(crate) const TOP: u64 = 256;
/// BTRFS_LAST_FREE_OBJECTID.
const LAST: u64 = -256_i64 as u64;

/// BTRFS_FS_TREE_OBJECTID: the subvolume that is the top of the filesystem.
const TOP_LEVEL: u64 = 5;
/// BTRFS_ROOT_SUBVOL_RDONLY.
const SUBVOL_RDONLY: u64 = 1 << 0;
/// BTRFS_FILE_EXTENT_INLINE.
const INLINE: u8 = 0;
/// BTRFS_FILE_EXTENT_REG: data that was written, not only given a place.
const REGULAR: u8 = 1;

/// The tree of the subvolume that the descriptor is of.
const ITS_OWN: u64 = 0;
const ROOT_TREE: u64 = 1;
const QUOTA_TREE: u64 = 8;
const UUID_TREE: u64 = 9;

const INODE_ITEM: u8 = 1;
const INODE_REF: u8 = 12;
const INODE_EXTREF: u8 = 13;
const EXTENT_DATA: u8 = 108;
const ORPHAN_ITEM: u8 = 48;
const ROOT_ITEM: u8 = 132;
const ROOT_REF: u8 = 156;
const QGROUP_STATUS: u8 = 240;
const QGROUP_INFO: u8 = 242;
const QGROUP_LIMIT: u8 = 244;
const UUID_KEY_SUBVOL: u8 = 251;
/// BTRFS_QGROUP_STATUS_FLAG_ON, _SIMPLE_MODE; BTRFS_QGROUP_LIMIT_MAX_RFER.
const QUOTAS_ON: u64 = 1 << 0;
const QUOTAS_SIMPLE: u64 = 1 << 3;
const LIMITED: u64 = 1 << 0;

/// BTRFS_ORPHAN_OBJECTID: what is of no object any more.
const ORPHANS: u64 = 5_u64.wrapping_neg();

/// The fixed part of `struct btrfs_ioctl_search_args_v2`, whose buffer follows it: a `struct btrfs_ioctl_search_key` (seven
/// u64, three u32, 36 bytes unused) and the buffer's size.
#[repr(C)]
struct SearchArgsV2([u64; 14]);
nix::ioctl_readwrite!(tree_search_v2, 0x94, 17, SearchArgsV2);

const ARGS: usize = size_of::<SearchArgsV2>();
/// Where in it the number of items is: how many are wanted, and then how many there are.
const NR_ITEMS: usize = 64;
/// `struct btrfs_ioctl_search_header`.
const HEADER: usize = 32;
/// No item is as large as the largest node.
const LARGEST: usize = 64 << 10;
/// Room for many of the usual items, and for the largest.
const BUFFER: usize = 2 * LARGEST;

/// What an item is found by: keys are ordered by their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    object: u64,
    kind: u8,
    offset: u64,
}

impl Key {
    fn next(self) -> Option<Key> {
        let Key { object, kind, offset } = self;
        if let Some(offset) = offset.checked_add(1) {
            return Some(Key { object, kind, offset });
        }
        match kind.checked_add(1) {
            Some(kind) => Some(Key { object, kind, offset: 0 }),
            None => Some(Key { object: object.checked_add(1)?, kind: 0, offset: 0 }),
        }
    }
}

/// An inode that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its number.
    pub inode: u64,
    /// The generation in which it was made.
    pub made: u64,
}

/// What a subvolume is a snapshot of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The subvolume, which need not be there any more.
    pub parent: [u8; 16],
    /// The generation of the commit that made the snapshot: what either of the two has changed since is newer.
    pub generation: u64,
}

/// A subvolume, as the tree of all of them knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    /// Its number, which is that of its tree.
    pub id: u64,
    /// Its own UUID, where it has one.
    pub uuid: Option<[u8; 16]>,
    /// What it is a snapshot of, as long as it is known.
    pub origin: Option<Origin>,
    /// The generation of its topmost node, which changes with anything in it, and when a snapshot of it is made.
    pub generation: u64,
    /// The generation in which an inode of it was written last; the greatest, where nobody noted it. What goes because a file
    /// without a name is closed writes no inode (btrfs_evict_inode, fs/btrfs/inode.c).
    pub written: u64,
    /// Nothing in it can be changed.
    pub read_only: bool,
}

/// The subvolumes of a filesystem.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roots {
    /// Those that are not being removed, by number.
    pub all: Vec<Root>,
    /// Which are nested in which: outer, inner.
    pub nested: Vec<(u64, u64)>,
}

/// A piece of data on the disk, which is there as long as one file refers to any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it begins: no two begin at the same place.
    pub start: u64,
    /// Bytes on the disk, all of them.
    pub length: u64,
}

/// A piece of a file that has its place on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Bytes in the file.
    pub length: u64,
    /// Where on the disk, and how many bytes there. The whole extent where that is compressed, since it is read as a whole.
    pub place: (u64, u64),
}

/// What a filesystem keeps account of: btrfs-quota(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quotas {
    /// Nothing.
    Off,
    /// What each subvolume refers to, and what no other does.
    Full,
    /// What was allocated for each, for as long as it is there.
    Simple,
}

/// The account of a subvolume, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// What is charged to it, as of the last commit.
    pub charged: u64,
    /// No more is to be.
    pub limit: Option<u64>,
}

/// A name of an inode: the directory that has it, and how it is called there.
pub(crate) type Name = (u64, OsString);

/// The trees of a filesystem, seen from one subvolume.
pub(crate) struct Trees<'a> {
    subvolume: BorrowedFd<'a>,
    buffer: Vec<u8>,
}

impl<'a> Trees<'a> {
    /// Those of the filesystem that this subvolume is on.
    pub(crate) fn of(subvolume: BorrowedFd<'a>) -> Trees<'a> {
        Trees { subvolume, buffer: vec![0; ARGS + BUFFER] }
    }

    /// The inodes of the subvolume that were written after a generation, in order. Whatever is done to a file or
    /// directory writes its inode, in the same transaction (btrfs_update_inode, fs/btrfs/inode.c, notes which).
    pub(crate) fn written_after(&mut self, generation: u64) -> Result<Vec<Written>> {
        let (first, last) =
            (Key { object: TOP, kind: 0, offset: 0 }, Key { object: LAST, kind: u8::MAX, offset: u64::MAX });
        let mut found = Vec::new();
        // The kernel leaves out nodes that are older, not items: a node that was written has old ones, too.
        self.search(ITS_OWN, first, last, generation.saturating_add(1), |key, item| {
            // struct btrfs_inode_item: generation, transid.
            if key.kind == INODE_ITEM && number(item, 8)? > generation {
                found.push(Written { inode: key.object, made: number(item, 0)? });
            }
            Some(())
        })?;
        Ok(found)
    }

    /// How an inode of the subvolume is called; nothing for one that is not there, or has lost its last name.
    pub(crate) fn names(&mut self, inode: u64) -> Result<Vec<Name>> {
        let first = Key { object: inode, kind: INODE_REF, offset: 0 };
        let last = Key { object: inode, kind: INODE_EXTREF, offset: u64::MAX };
        let mut found = Vec::new();
        self.search(ITS_OWN, first, last, 0, |key, mut item| {
            while !item.is_empty() {
                // struct btrfs_inode_ref: index, length, name. An inode_extref begins with the directory.
                let directory = if key.kind == INODE_EXTREF { number(&take(&mut item, 8)?, 0)? } else { key.offset };
                take(&mut item, 8)?;
                let length = take(&mut item, 2)?;
                let name = take(&mut item, usize::from(u16::from_le_bytes([length[0], length[1]])))?;
                found.push((directory, OsString::from_vec(name)));
            }
            Some(())
        })?;
        Ok(found)
    }

    /// Where the data of a file of the subvolume lies, or the data itself where that is in the tree, by its offset. Two
    /// files of one filesystem for which this is the same have the same content.
    pub(crate) fn extents(&mut self, inode: u64) -> Result<BTreeMap<u64, Vec<u8>>> {
        let first = Key { object: inode, kind: EXTENT_DATA, offset: 0 };
        let mut found = BTreeMap::new();
        self.search(ITS_OWN, first, Key { offset: u64::MAX, ..first }, 0, |key, item| {
            found.insert(key.offset, item.to_vec());
            Some(())
        })?;
        Ok(found)
    }

    /// Gives `each` the pieces of the subvolume's files that have their places on the disk, with the number of the inode: not
    /// holes, nor what is in the tree. All of the tree is read for that.
    pub(crate) fn pieces(&mut self, mut each: impl FnMut(u64, Piece)) -> Result<()> {
        let first = Key { object: TOP, kind: 0, offset: 0 };
        let last = Key { object: LAST, kind: u8::MAX, offset: u64::MAX };
        self.search(ITS_OWN, first, last, 0, |key, item| {
            // struct btrfs_file_extent_item, packed: compression, type, disk_bytenr, disk_num_bytes, offset, num_bytes.
            if key.kind != EXTENT_DATA || *item.get(20)? != REGULAR {
                return Some(());
            }
            let (start, size) = (number(item, 21)?, number(item, 29)?);
            let (within, length) = (number(item, 37)?, number(item, 45)?);
            let place = if *item.get(16)? == 0 { (start.saturating_add(within), length) } else { (start, size) };
            if start != 0 {
                each(key.object, Piece { offset: key.offset, length, place });
            }
            Some(())
        })
    }

    /// What the subvolume with a UUID is a snapshot of; nothing when it is of none, or is not there any more.
    pub(crate) fn origin(&mut self, uuid: [u8; 16]) -> Result<Option<Origin>> {
        // A UUID is a key: two numbers. Its item is the subvolume's number.
        let [object, offset] = [0, 8].map(|at| number(&uuid, at).unwrap_or_default());
        let key = Key { object, kind: UUID_KEY_SUBVOL, offset };
        let mut id = None;
        self.search(UUID_TREE, key, key, 0, |_, item| {
            id = Some(number(item, 0)?);
            Some(())
        })?;
        let Some(id) = id else { return Ok(None) };
        let key = Key { object: id, kind: ROOT_ITEM, offset: 0 };
        let mut origin = None;
        self.search(ROOT_TREE, key, Key { offset: u64::MAX, ..key }, 0, |_, item| {
            // struct btrfs_root_item, packed: uuid, parent_uuid, received_uuid, ctransid, otransid.
            let field = |at: usize| -> Option<[u8; 16]> { item.get(at..at + 16)?.try_into().ok() };
            let parent = field(263)?;
            if field(247)? == uuid && parent != [0; 16] {
                origin = Some(Origin { parent, generation: number(item, 303)? });
            }
            Some(())
        })?;
        Ok(origin)
    }

    /// What the filesystem keeps account of.
    pub(crate) fn quotas(&mut self) -> Result<Quotas> {
        let key = Key { object: 0, kind: QGROUP_STATUS, offset: 0 };
        let mut quotas = Quotas::Off;
        // struct btrfs_qgroup_status_item: version, generation, flags.
        self.search_quotas(key, |item| {
            let flags = number(item, 16)?;
            quotas = match (flags & QUOTAS_ON != 0, flags & QUOTAS_SIMPLE != 0) {
                (false, _) => Quotas::Off,
                (true, false) => Quotas::Full,
                (true, true) => Quotas::Simple,
            };
            Some(())
        })?;
        Ok(quotas)
    }

    /// The account of a subvolume, by its number; an empty one, where there is none.
    pub(crate) fn account(&mut self, id: u64) -> Result<Account> {
        let mut account = Account::default();
        // struct btrfs_qgroup_info_item: generation, rfer.
        self.search_quotas(Key { object: 0, kind: QGROUP_INFO, offset: id }, |item| {
            account.charged = number(item, 8)?;
            Some(())
        })?;
        // struct btrfs_qgroup_limit_item: flags, max_rfer.
        self.search_quotas(Key { object: 0, kind: QGROUP_LIMIT, offset: id }, |item| {
            let (flags, most) = (number(item, 0)?, number(item, 8)?);
            account.limit = Some(most).filter(|most| flags & LIMITED != 0 && *most != u64::MAX);
            Some(())
        })?;
        Ok(account)
    }

    /// One item of the tree of quotas, which is there when they are on.
    fn search_quotas(&mut self, key: Key, mut each: impl FnMut(&[u8]) -> Option<()>) -> Result<()> {
        match self.search(QUOTA_TREE, key, key, 0, |_, item| each(item)) {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other,
        }
    }

    /// All subvolumes.
    pub(crate) fn roots(&mut self) -> Result<Roots> {
        let first = Key { object: TOP_LEVEL, kind: ROOT_ITEM, offset: 0 };
        let last = Key { object: LAST, kind: ROOT_REF, offset: u64::MAX };
        let mut roots = Roots::default();
        self.search(ROOT_TREE, first, last, 0, |key, item| {
            let is_subvolume = key.object == TOP_LEVEL || (TOP..=LAST).contains(&key.object);
            match key.kind {
                ROOT_REF => roots.nested.push((key.object, key.offset)),
                ROOT_ITEM if is_subvolume => roots.all.extend(root(key.object, item)?),
                _ => {}
            }
            Some(())
        })?;
        Ok(roots)
    }

    /// The numbers of the subvolumes that were destroyed and whose space is not given back yet.
    pub(crate) fn destroyed(&mut self) -> Result<BTreeSet<u64>> {
        let first = Key { object: ORPHANS, kind: ORPHAN_ITEM, offset: 0 };
        let mut destroyed = BTreeSet::new();
        self.search(ROOT_TREE, first, Key { offset: u64::MAX, ..first }, 0, |key, _| {
            if key.kind == ORPHAN_ITEM {
                destroyed.insert(key.offset);
            }
            Some(())
        })?;
        Ok(destroyed)
    }

    /// Gives `each` the extents that the files of a subvolume refer to, with the number of the inode: as often as one does.
    /// Of those that were there after the commit of `generation` already, only some are named.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind::NotFound) when the subvolume is not there any more.
    pub(crate) fn data(&mut self, root: u64, generation: u64, mut each: impl FnMut(u64, Extent)) -> Result<()> {
        let first = Key { object: TOP, kind: EXTENT_DATA, offset: 0 };
        let last = Key { object: LAST, kind: EXTENT_DATA, offset: u64::MAX };
        let after = if generation == 0 { 0 } else { generation.saturating_add(1) };
        self.search(root, first, last, after, |key, item| {
            if key.kind == EXTENT_DATA
                && let Some(extent) = extent(item)?
            {
                each(key.object, extent);
            }
            Some(())
        })
    }

    /// Gives `each` the items of a tree from one key to another, both included, whose nodes are of a generation or newer.
    /// `each` has nothing to say of one that is not as it should be, which is an error.
    fn search(
        &mut self,
        tree: u64,
        first: Key,
        last: Key,
        generation: u64,
        mut each: impl FnMut(Key, &[u8]) -> Option<()>,
    ) -> Result<()> {
        let fd = self.subvolume;
        let fail = |errno| failed(format_args!("search tree {tree} from {}", name_of(fd)), errno);
        let mut from = Some(first);
        while let Some(first) = from.filter(|first| *first <= last) {
            let count = self.fetch(tree, first, last, generation).map_err(fail)?;
            let mut rest = &self.buffer[ARGS..];
            from = None;
            for _ in 0..count {
                let mut next = || {
                    let header = rest.split_off(..HEADER)?;
                    let [object, offset] = [8, 16].map(|at| native(header, at));
                    let (kind, length) = (u8::try_from(native_short(header, 24)?).ok()?, native_short(header, 28)?);
                    let key = Key { object: object?, kind, offset: offset? };
                    Some((key, rest.split_off(..usize::try_from(length).ok()?)?))
                };
                let (key, item) = next().ok_or_else(|| fail(Errno::EIO))?;
                each(key, item).ok_or_else(|| fail(Errno::EIO))?;
                // With room for one more, whatever it is, there is none.
                from = key.next().filter(|_| rest.len() < LARGEST + HEADER);
            }
        }
        Ok(())
    }

    /// As many items as the buffer has room for: their number. None when there is no more.
    fn fetch(&mut self, tree: u64, first: Key, last: Key, generation: u64) -> nix::Result<u32> {
        let fields = [tree, first.object, last.object, first.offset, last.offset, generation, u64::MAX];
        let kinds = [u32::from(first.kind), u32::from(last.kind), u32::MAX];
        let mut args: Vec<u8> = fields.iter().flat_map(|field| field.to_ne_bytes()).collect();
        args.extend(kinds.iter().flat_map(|field| field.to_ne_bytes()));
        args.resize(ARGS - 8, 0);
        args.extend((BUFFER as u64).to_ne_bytes());
        self.buffer[..ARGS].copy_from_slice(&args);
        let args = self.buffer.as_mut_ptr().cast::<SearchArgsV2>();
        // SAFETY: the pointer is to a btrfs_ioctl_search_args_v2 and as many bytes behind it as that says, all of which live
        // through the call and are nobody else's; the kernel copies to and from it, whatever its alignment.
        #[expect(unsafe_code, reason = "neither libbtrfsutil nor nix has this ioctl")]
        unsafe { tree_search_v2(self.subvolume.as_raw_fd(), args) }?;
        native_short(&self.buffer, NR_ITEMS).ok_or(Errno::EIO)
    }
}

/// A subvolume by its `struct btrfs_root_item`, packed; nothing for one that is being removed. The fields from the UUID on
/// are those of a kernel that knew them only if it says that it wrote them (generation_v2).
#[expect(clippy::option_option, reason = "nothing to say of an item that is cut short")]
fn root(id: u64, item: &[u8]) -> Option<Option<Root>> {
    let references = u32::from_le_bytes(item.get(216..220)?.try_into().ok()?);
    if references == 0 {
        return Some(None);
    }
    let (generation, read_only) = (number(item, 160)?, number(item, 208)? & SUBVOL_RDONLY != 0);
    if item.len() < 311 || number(item, 239)? != generation {
        return Some(Some(Root { id, uuid: None, origin: None, generation, written: u64::MAX, read_only }));
    }
    let field = |at: usize| -> Option<[u8; 16]> { item.get(at..at + 16)?.try_into().ok() };
    let named = |uuid: [u8; 16]| Some(uuid).filter(|uuid| *uuid != [0; 16]);
    let left = number(item, 303)?;
    let origin = named(field(263)?).map(|parent| Origin { parent, generation: left });
    Some(Some(Root { id, uuid: named(field(247)?), origin, generation, written: number(item, 295)?, read_only }))
}

/// What a `struct btrfs_file_extent_item`, packed, refers to; nothing for data in the tree, and for a hole.
#[expect(clippy::option_option, reason = "nothing to say of an item that is cut short")]
fn extent(item: &[u8]) -> Option<Option<Extent>> {
    if *item.get(20)? == INLINE {
        return Some(None);
    }
    let (start, length) = (number(item, 21)?, number(item, 29)?);
    Some((start != 0).then_some(Extent { start, length }))
}

/// A number in an item, as it is on the disk.
fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A number as the kernel hands it over.
fn native(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn native_short(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn take(item: &mut &[u8], length: usize) -> Option<Vec<u8>> {
    item.split_off(..length).map(<[u8]>::to_vec)
}
