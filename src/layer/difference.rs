//! The layer that makes of one tree another: what a commit adds to an image.
//!
//! Entries as in the canonical archive ([`pack`](super::pack)), for what was added or changed, with the top directory and each
//! directory in which something differs, so that their times are right when the layer is applied; an empty file
//! `.wh.NAME` in the place of what was deleted (image-spec layer.md, "Representing Changes"). All sorted by path: the same
//! differences give the same bytes.
//!
//! A file with several names is in the layer with all of them or with none: whoever unpacks it elsewhere cannot link to what
//! lies in a layer below. They are looked for only where some are missing; otherwise nothing but what differs is read.

use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::pack::{Packed, Packer, require_name, start};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::node;

/// What a path of the new tree is, compared with the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// It was not there.
    Added,
    /// It was there, and it or something below it was another.
    Changed,
    /// It is not there any more, nor what was below it.
    Deleted,
}

/// A tree that stands still, and how it differs from the one that its layer is put on.
#[derive(Debug)]
pub struct Differences {
    /// Its top directory. Nothing outside of it is read.
    pub directory: OwnedFd,
    /// The differences, by absolute path in it, with every directory above one; without them the layer holds all that is there.
    pub paths: Option<BTreeMap<PathBuf, Difference>>,
    /// What was modified later counts as modified then: seconds since 1970.
    pub latest: Option<i64>,
}

/// Packs the layer. What fails underway is an error of the stream.
///
/// # Errors
/// [`Kind::Invalid`] for a name that no layer can hold; that of starting a thread.
pub fn pack_layer(layer: Differences) -> Result<Packed> {
    layer.paths.iter().flatten().try_for_each(|(path, _)| require_name(name_of(path)))?;
    start(move |out| {
        node::confine(layer.directory.as_fd()).map_err(|failure| failure.of(b""))?;
        let root = Path::new("/");
        let mut packer = Packer::new(out, std::fs::metadata(root)?.dev());
        (packer.layer, packer.latest) = (true, layer.latest);
        match layer.paths {
            None => packer.pack(root, true),
            Some(paths) => pack(&mut packer, paths),
        }
    })
}

fn pack(packer: &mut Packer<'_>, mut paths: BTreeMap<PathBuf, Difference>) -> Result<()> {
    add_other_names(&mut paths)?;
    packer.entry(b"", Path::new("/."), &metadata(Path::new("/"))?)?;
    for (path, difference) in paths {
        let name = name_of(&path);
        if difference == Difference::Deleted {
            packer.whiteout(name)?;
            continue;
        }
        let found = metadata(&path)?;
        if found.file_type().is_socket() && difference == Difference::Changed {
            // It is left out, and what was there is not there any more.
            packer.whiteout(name)?;
        }
        packer.entry(name, &path, &found).context(|| format!("read {}", path.display()))?;
    }
    packer.end()
}

/// Adds the names of files that have more than those that differ, and the directories above them.
fn add_other_names(paths: &mut BTreeMap<PathBuf, Difference>) -> Result<()> {
    let mut missing: HashMap<u64, u64> = HashMap::new();
    for (path, _) in paths.iter().filter(|(_, difference)| **difference != Difference::Deleted) {
        let found = metadata(path)?;
        if found.nlink() > 1 && !found.is_dir() && !found.file_type().is_socket() {
            *missing.entry(found.ino()).or_insert(found.nlink()) -= 1;
        }
    }
    missing.retain(|_, names| *names > 0);
    let mut walk = walkdir::WalkDir::new("/").same_file_system(true).into_iter();
    while !missing.is_empty() {
        let Some(entry) = walk.next() else { break };
        let entry = entry.map_err(|e| Error::new(Kind::Io, format!("look for the other names of a file: {e}")))?;
        let inode = walkdir::DirEntryExt::ino(&entry);
        if entry.file_type().is_dir() || !missing.contains_key(&inode) || paths.contains_key(entry.path()) {
            continue;
        }
        if let Some(names) = missing.get_mut(&inode) {
            *names -= 1;
        }
        missing.retain(|_, names| *names > 0);
        for path in entry.path().ancestors().filter(|path| *path != Path::new("/")) {
            paths.entry(path.to_path_buf()).or_insert(Difference::Changed);
        }
    }
    Ok(())
}

fn metadata(path: &Path) -> Result<Metadata> {
    std::fs::symlink_metadata(path).context(|| format!("read {}", path.display()))
}

/// A path as an archive has it.
fn name_of(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes)
}
