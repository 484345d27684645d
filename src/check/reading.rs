//! Reads what subvolumes hold, so that the disk verifies it.
//!
//! btrfs has a checksum of each block of data (not in files that are neither copied on write nor checksummed), and refuses
//! to read one that does not match. What several files share is read once, and a snapshot that has nothing of its own costs a
//! look at its tree. What is in the page cache is forgotten first:
//! it says nothing of the disk.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Progress;
use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::kernel::trees::{Piece, Trees};
use crate::kernel::{btrfs, fs, node};

const BUFFER: usize = 1 << 20;
/// A path that is opened from one directory is not much longer: PATH_MAX is 4096 (path_resolution(7)).
const LONGEST: usize = 2048;

/// What a deep look has verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Layers that hold what their archives did.
    pub layers: u64,
    /// Layers without a recipe, of which only the disk's checksums were verified.
    pub unknown: u64,
    /// Files that were read; what shares all that it holds with these is not counted.
    pub files: u64,
    /// Bytes that were read for that.
    pub bytes: u64,
}

/// What was read so far.
pub(super) struct Reading<'a> {
    progress: Progress<'a>,
    seen: HashSet<(u64, u64)>,
    buffer: Vec<u8>,
    pub verified: Verified,
}

/// A directory that is still to be looked into.
struct Level {
    /// An open directory above it, or it.
    base: Rc<OwnedFd>,
    /// Where it is below that.
    below: PathBuf,
    /// Where it is in the tree.
    path: PathBuf,
}

impl<'a> Reading<'a> {
    pub(super) fn new(progress: Progress<'a>) -> Reading<'a> {
        Reading { progress, seen: HashSet::new(), buffer: vec![0; BUFFER], verified: Verified::default() }
    }

    /// Reads everything in a tree, nested subvolumes too: the paths that cannot be read, and why.
    pub(super) fn tree(&mut self, root: OwnedFd) -> Result<Vec<(PathBuf, String)>> {
        let mut unreadable = Vec::new();
        let mut subvolumes = vec![(root, PathBuf::from("/"))];
        while let Some((root, path)) = subvolumes.pop() {
            self.subvolume(root, path, &mut subvolumes, &mut unreadable)?;
        }
        Ok(unreadable)
    }

    fn subvolume(
        &mut self,
        root: OwnedFd,
        path: PathBuf,
        nested: &mut Vec<(OwnedFd, PathBuf)>,
        unreadable: &mut Vec<(PathBuf, String)>,
    ) -> Result<()> {
        if btrfs::is_subvolume(root.as_fd())? {
            for inner in btrfs::nested(root.as_fd())? {
                match fs::open_directory_beneath(root.as_fd(), &inner) {
                    Ok(subvolume) => nested.push((subvolume, path.join(inner))),
                    Err(e) if is_gone(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        let mut unread: HashMap<u64, Vec<Piece>> = HashMap::new();
        let scanned = Trees::of(root.as_fd()).pieces(|inode, piece| {
            if !self.seen.contains(&piece.place) {
                unread.entry(inode).or_default().push(piece);
            }
        });
        if let Err(e) = scanned {
            unreadable.push((path, reason(e)?));
            return Ok(());
        }
        if unread.is_empty() {
            return Ok(()); // most snapshots have nothing of their own
        }
        let device = fs::metadata(root.as_fd())?.st_dev;
        let root = Rc::new(root);
        let mut levels = vec![Level { base: Rc::clone(&root), below: PathBuf::from("."), path }];
        while let Some(level) = levels.pop() {
            interrupt::check()?;
            let directory = match fs::open_directory_beneath(level.base.as_fd(), &level.below) {
                Ok(directory) => Rc::new(directory),
                Err(e) if is_gone(&e) => continue,
                Err(e) => {
                    unreadable.push((level.path, reason(e)?));
                    continue;
                }
            };
            let names = match fs::list(directory.as_fd(), ".") {
                Ok(names) => names,
                Err(e) => {
                    unreadable.push((level.path, reason(e)?));
                    continue;
                }
            };
            for name in names {
                let path = level.path.join(&name);
                let found = match fs::metadata_at(directory.as_fd(), &name) {
                    Ok(found) => found,
                    Err(e) if is_gone(&e) => continue,
                    Err(e) => {
                        unreadable.push((path, reason(e)?));
                        continue;
                    }
                };
                if node::is_directory(&found) && found.st_dev == device {
                    let (base, below) = match level.below.as_os_str().len() + name.len() < LONGEST {
                        true => (Rc::clone(&level.base), level.below.join(&name)),
                        false => (Rc::clone(&directory), PathBuf::from(&name)),
                    };
                    levels.push(Level { base, below, path });
                } else if node::is_regular(&found)
                    && found.st_dev == device
                    && let Some(pieces) = unread.remove(&found.st_ino)
                {
                    match self.file(pieces, directory.as_fd(), Path::new(&name)) {
                        Ok(()) => self.verified.files += 1,
                        Err(e) if is_gone(&e) || interrupt::caught().is_some() => {}
                        Err(e) => unreadable.push((path, reason(e)?)),
                    }
                }
            }
        }
        interrupt::check()
    }

    fn file(&mut self, mut pieces: Vec<Piece>, at: BorrowedFd<'_>, name: &Path) -> Result<()> {
        pieces.retain(|piece| self.seen.insert(piece.place));
        if pieces.is_empty() {
            return Ok(());
        }
        let file = std::fs::File::from(fs::open_file_beneath(at, name)?);
        let size = file.metadata()?.len();
        fs::forget_cached(file.as_fd())?;
        for Piece { offset, length, .. } in pieces {
            let end = offset.saturating_add(length).min(size);
            let mut at = offset;
            while at < end {
                interrupt::check()?;
                let part = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
                match file.read_at(&mut self.buffer[..part], at)? {
                    0 => break, // it became shorter
                    length => {
                        at += length as u64;
                        self.verified.bytes += length as u64;
                        (self.progress)(self.verified.bytes);
                    }
                }
            }
        }
        Ok(())
    }
}

/// It was taken away, or is something else, since it was listed.
fn is_gone(e: &Error) -> bool {
    e.kind() == Kind::NotFound || fs::is_other_now(e)
}

/// Why it cannot be read, without the path that it has in our view of it; an error that is none of the disk's.
fn reason(e: Error) -> Result<String> {
    match e.tells_nothing() {
        true => Err(e),
        false => Ok(e.to_string().rsplit(": ").next().unwrap_or_default().to_string()),
    }
}
