//! What btrfs knows of how two subvolumes differ.
//!
//! Two that are snapshots of one another, or of a third, were the same at the commit that made the first of these
//! snapshots: their split. An inode notes the generation in which it was written last, and every node of a tree the one in
//! which it was: so the inodes that were written since, in either of the two, are found without a look at what is older.
//! One that was written in neither, and is in both, is the same in both; so is a directory that was not, entry by entry.
//! A name, an attribute or data: what is done to a file writes its inode, and a name writes its directory's, too.
//!
//! Two inodes that were made since the split, one on either side, may have the same number, and after a mount a new one may
//! have that of one that is gone. They were written, so nothing is taken for granted of them, and they say that they are new.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::interrupt;
use crate::kernel::trees::{Name, TOP, Trees};
use crate::kernel::{btrfs, fs};

/// Snapshots of snapshots of snapshots: more than so many are not asked for what they are of.
const LINE: usize = 4096;
/// More directories than are in any path that a system call takes.
const DEEPEST: usize = 4096;

/// What was written on either side since the split.
#[derive(Debug)]
pub(super) struct Known {
    /// Inodes that were.
    written: HashSet<u64>,
    /// The directories that have such an inode below them, and the names that lead there.
    above: HashMap<u64, BTreeSet<OsString>>,
    /// The new paths of what was renamed, and the old ones.
    pub(super) renamed: BTreeMap<PathBuf, PathBuf>,
}

impl Known {
    /// Whether an inode was written on either side.
    pub(super) fn was_written(&self, inode: u64) -> bool {
        self.written.contains(&inode)
    }

    /// Whether an inode that is in both is the same in both, with all that is below it.
    pub(super) fn is_same(&self, inode: u64) -> bool {
        !self.was_written(inode) && !self.above.contains_key(&inode)
    }

    /// The only names in a directory of both that lead to something else; nothing when its entries are to be compared.
    pub(super) fn only_below(&self, directory: u64) -> Option<&BTreeSet<OsString>> {
        self.above.get(&directory).filter(|_| !self.was_written(directory))
    }
}

/// What is known of two trees; nothing when they are not two related subvolumes, or when others are nested in one of them,
/// whose changes are their own.
///
/// `at_rest` says that nothing was written to either since a snapshot was made of it, or it of another.
///
/// # Errors
/// [`Kind::Permission`](crate::error::Kind::Permission) without CAP_SYS_ADMIN.
pub(super) fn between(old: BorrowedFd<'_>, new: BorrowedFd<'_>, at_rest: bool) -> Result<Option<Known>> {
    if !btrfs::is_subvolume(old)? || !btrfs::is_subvolume(new)? {
        return Ok(None);
    }
    let Some(split) = split(old, new)? else {
        log::debug!("diff: not of one origin, as far as it is still there");
        return Ok(None);
    };
    if !btrfs::nested(old)?.is_empty() || !btrfs::nested(new)?.is_empty() {
        log::debug!("diff: other subvolumes are nested in these");
        return Ok(None);
    }
    if !at_rest {
        // What is still to be written back is in no tree.
        fs::sync_filesystem(new)?;
    }
    let (mut old, mut new) = (Side::read(old, split)?, Side::read(new, split)?);
    let made: HashSet<u64> = old.made.union(&new.made).copied().collect();
    let written: HashSet<u64> = old.written.union(&new.written).copied().collect();
    log::debug!("diff: {} inodes were written since generation {split}", written.len());
    let (mut above, mut renamed) = (HashMap::new(), BTreeMap::new());
    for &inode in &written {
        interrupt::check()?;
        old.climb(inode, &mut above)?;
        new.climb(inode, &mut above)?;
        if !made.contains(&inode) {
            // The names that it has got, each with one that it has lost.
            let (had, has) = (old.names(inode)?, new.names(inode)?);
            let lost = lone(&mut old, &had, &has, &made)?;
            let got = lone(&mut new, &has, &had, &made)?;
            renamed.extend(got.difference(&lost).cloned().zip(lost.difference(&got).cloned()));
        }
    }
    Ok(Some(Known { written, above, renamed }))
}

/// The generation since which neither has what the other changed.
fn split(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Result<Option<u64>> {
    let (old, new) = (line(old)?, line(new)?);
    let common = new.iter().find_map(|(uuid, left)| {
        let (_, other) = old.iter().find(|(other, _)| other == uuid)?;
        Some(*left.min(other))
    });
    Ok(common)
}

/// A subvolume, what it is a snapshot of, what that is one of, and so on; with the generation in which each was left.
fn line(subvolume: BorrowedFd<'_>) -> Result<Vec<([u8; 16], u64)>> {
    let mut trees = Trees::of(subvolume);
    let mut line = vec![(btrfs::info(subvolume)?.uuid, u64::MAX)];
    while let Some((uuid, left)) = line.last().copied().filter(|_| line.len() < LINE) {
        let Some(origin) = trees.origin(uuid)? else { break };
        line.push((origin.parent, left.min(origin.generation)));
    }
    Ok(line)
}

/// One of the two subvolumes.
struct Side<'a> {
    trees: Trees<'a>,
    /// The inodes that were written since the split.
    written: HashSet<u64>,
    /// Those of them that were made since.
    made: HashSet<u64>,
    names: HashMap<u64, Vec<Name>>,
}

impl<'a> Side<'a> {
    fn read(subvolume: BorrowedFd<'a>, split: u64) -> Result<Side<'a>> {
        let mut trees = Trees::of(subvolume);
        let found = trees.written_after(split)?;
        let written = found.iter().map(|written| written.inode).collect();
        let made = found.iter().filter(|written| written.made > split).map(|written| written.inode).collect();
        Ok(Side { trees, written, made, names: HashMap::new() })
    }

    fn names(&mut self, inode: u64) -> Result<Vec<Name>> {
        if let Some(names) = self.names.get(&inode) {
            return Ok(names.clone());
        }
        let names = if inode == TOP { Vec::new() } else { self.trees.names(inode)? };
        self.names.insert(inode, names.clone());
        Ok(names)
    }

    /// Notes every directory on a way from the top to an inode.
    fn climb(&mut self, inode: u64, above: &mut HashMap<u64, BTreeSet<OsString>>) -> Result<()> {
        let mut rest = vec![inode];
        while let Some(inode) = rest.pop() {
            for (directory, name) in self.names(inode)? {
                // On from a directory that is there already somebody has climbed, perhaps on the other side.
                if above.entry(directory).or_default().insert(name) {
                    rest.push(directory);
                }
            }
        }
        Ok(())
    }

    /// The path of a name; nothing when a directory on it has gone since.
    fn path(&mut self, (mut directory, name): Name) -> Result<Option<PathBuf>> {
        let mut way = vec![name];
        while directory != TOP {
            let Some((above, name)) = self.names(directory)?.into_iter().next().filter(|_| way.len() < DEEPEST) else {
                return Ok(None);
            };
            way.push(name);
            directory = above;
        }
        Ok(Some(Path::new("/").join(way.into_iter().rev().collect::<PathBuf>())))
    }
}

/// The paths of those names of an inode that the other side does not have.
fn lone(side: &mut Side<'_>, names: &[Name], others: &[Name], made: &HashSet<u64>) -> Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for name in names {
        // Two directories of one number are two, if one of them was made since the split.
        if made.contains(&name.0) || !others.contains(name) {
            paths.extend(side.path(name.clone())?);
        }
    }
    Ok(paths)
}
