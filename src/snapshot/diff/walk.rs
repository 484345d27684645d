//! Two trees, compared side by side, by name.
//!
//! A snapshot shares inode numbers with what it was made from, and whatever changes a file sets its ctime (inode(7)), which
//! nobody can set back: so what has the same number and the same ctime is the same, and costs two stats. Of the rest
//! everything that a person would see is compared, contents too. Where it is [known](Known) what was written, nothing else
//! is looked at: a directory that has nothing of it below is not even opened.
//!
//! Both may be somebody else's to change meanwhile: nothing is followed, every directory is opened below its root
//! through no link at all, and what has gone since it was listed is not there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::known::Known;
use super::{Became, Change};
use crate::error::{Context, Kind, Result};
use crate::interrupt;
use crate::kernel::trees::{self, Trees};
use crate::kernel::{fs, node};

const BUFFER: usize = 64 << 10;

/// What is in a directory, or what of it is to be compared.
type Entries = BTreeMap<OsString, fs::Stat>;

/// What becomes of `old` to be `new`, sorted by path. Without `old` all is added.
///
/// A directory in which something differs is changed, the root is not named, and what is below a directory that was
/// deleted goes without saying.
pub(super) fn walk(
    old: Option<BorrowedFd<'_>>,
    new: BorrowedFd<'_>,
    known: Option<&Known>,
    eye: Eye,
) -> Result<Vec<Change>> {
    let mut walk = Walk { old, new, known, eye, changes: Vec::new() };
    walk.directory(Path::new(""), if old.is_some() { Was::Same(trees::TOP) } else { Was::Nothing })?;
    walk.changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.changes)
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eye {
    /// What a person would call a change.
    Person,
    /// What it takes to make one tree of the other: when a directory was written to, too, and which names are one file.
    Layer,
}

/// What the old tree has where the new one has a directory.
#[derive(Debug, Clone, Copy)]
enum Was {
    /// No directory.
    Nothing,
    /// A directory with another inode number.
    Another,
    /// A directory with the same inode number.
    Same(u64),
}

struct Walk<'a> {
    old: Option<BorrowedFd<'a>>,
    new: BorrowedFd<'a>,
    known: Option<&'a Known>,
    eye: Eye,
    changes: Vec<Change>,
}

impl Walk<'_> {
    /// Compares the directories at `path`, of which there is perhaps only the new one.
    fn directory(&mut self, path: &Path, was: Was) -> Result<()> {
        interrupt::check()?;
        let (mut old, new) = match (self.old, was) {
            (None, _) | (_, Was::Nothing) => (Entries::new(), entries(self.new, path)?),
            (Some(old), was) => self.pair(old, path, was)?,
        };
        let mut below = Vec::new();
        for (name, is) in new {
            let was = old.remove(&name);
            let path = path.join(&name);
            let became = match &was {
                None => Some(Became::Added),
                Some(was) => self.differ(&path, was, &is)?.then_some(Became::Changed),
            };
            if let Some(became) = became {
                self.note(&path, became);
            }
            if node::is_directory(&is) {
                let was = match was.filter(node::is_directory) {
                    None => Was::Nothing,
                    Some(was) if was.st_ino == is.st_ino => Was::Same(is.st_ino),
                    Some(_) => Was::Another,
                };
                below.push((path, was, became.is_some()));
            }
        }
        for name in old.into_keys() {
            self.note(&path.join(name), Became::Deleted);
        }
        for (path, was, said) in below {
            let before = self.changes.len();
            self.directory(&path, was)?;
            if self.changes.len() > before && !said {
                self.note(&path, Became::Changed);
            }
        }
        Ok(())
    }

    /// What is to be compared in the two directories at `path`.
    fn pair(&self, old: BorrowedFd<'_>, path: &Path, was: Was) -> Result<(Entries, Entries)> {
        let Some(known) = self.known else { return Ok((entries(old, path)?, entries(self.new, path)?)) };
        let (old, new) = (open_directory(old, path)?, open_directory(self.new, path)?);
        if let Was::Same(inode) = was
            && let Some(names) = known.only_below(inode)
        {
            return Ok((of_names(old.as_ref(), names)?, of_names(new.as_ref(), names)?));
        }
        let (mut old_names, mut new_names) = (numbered(old.as_ref())?, numbered(new.as_ref())?);
        new_names.retain(|name, inode| {
            let same = old_names.get(name) == Some(inode) && known.is_same(*inode);
            if same {
                old_names.remove(name);
            }
            !same
        });
        Ok((of_names(old.as_ref(), old_names.keys())?, of_names(new.as_ref(), new_names.keys())?))
    }

    fn note(&mut self, path: &Path, became: Became) {
        self.changes.push(Change { path: Path::new("/").join(path), became, renamed_from: None });
    }

    fn differ(&self, path: &Path, was: &fs::Stat, is: &fs::Stat) -> Result<bool> {
        let ctime = |stat: &fs::Stat| (stat.st_ctime, stat.st_ctime_nsec);
        // Two that were made since the split, one on either side, may have one number, and the ctime of one tick of the clock.
        let written = self.known.is_some_and(|known| known.was_written(is.st_ino));
        if was.st_ino == is.st_ino && ctime(was) == ctime(is) && !written {
            return Ok(false);
        }
        let seen = |stat: &fs::Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
        if seen(was) != seen(is) {
            return Ok(true);
        }
        let modified = |stat: &fs::Stat| (stat.st_mtime, stat.st_mtime_nsec);
        if self.eye == Eye::Layer {
            let other_file = was.st_ino != is.st_ino && was.st_nlink.max(is.st_nlink) > 1;
            if modified(was) != modified(is) || other_file && !node::is_directory(is) {
                return Ok(true);
            }
        }
        // What is made in a directory changes its size and its times.
        if !node::is_directory(is) && (was.st_size, modified(was)) != (is.st_size, modified(is)) {
            return Ok(true);
        }
        let Some(old) = self.old else { return Ok(true) };
        Ok(xattrs(old, path)? != xattrs(self.new, path)?
            || node::is_symlink(is) && target(old, path)? != target(self.new, path)?
            || node::is_regular(is) && !self.same_content(old, path, (was, is))?)
    }

    fn same_content(&self, old: BorrowedFd<'_>, path: &Path, (was, is): (&fs::Stat, &fs::Stat)) -> Result<bool> {
        if self.known.is_some() && Trees::of(old).extents(was.st_ino)? == Trees::of(self.new).extents(is.st_ino)? {
            return Ok(true);
        }
        same_content(old, self.new, path)
    }
}

/// What is in the directory at `path` below a root; nothing when there is none any more.
fn entries(root: BorrowedFd<'_>, path: &Path) -> Result<Entries> {
    let directory = open_directory(root, path)?;
    of_names(directory.as_ref(), numbered(directory.as_ref())?.keys())
}

/// The names in a directory, with their inode numbers.
fn numbered(directory: Option<&OwnedFd>) -> Result<BTreeMap<OsString, u64>> {
    let list = |directory: &OwnedFd| fs::list_numbered(directory.as_fd(), ".");
    Ok(directory.map(list).transpose()?.unwrap_or_default().into_iter().collect())
}

/// What these names are in a directory, of those that are there.
fn of_names<'a>(directory: Option<&OwnedFd>, names: impl IntoIterator<Item = &'a OsString>) -> Result<Entries> {
    let Some(directory) = directory else { return Ok(Entries::new()) };
    let mut found = Entries::new();
    for name in names {
        match fs::metadata_at(directory.as_fd(), name) {
            Ok(stat) => drop(found.insert(name.clone(), stat)),
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// The directory at `path` below a root, if it still is one.
fn open_directory(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    let path = if path == Path::new("") { Path::new(".") } else { path };
    if_there(fs::open_directory_beneath(root, path))
}

/// Nothing for what was taken away, or became something else, since it was listed.
fn if_there<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == Kind::NotFound || fs::is_other_now(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The directory that holds `path`, and its name there.
fn parent<'a>(root: BorrowedFd<'_>, path: &'a Path) -> Result<Option<(OwnedFd, &'a Path)>> {
    let directory = open_directory(root, path.parent().unwrap_or(Path::new("")))?;
    Ok(directory.zip(path.file_name().map(Path::new)))
}

fn target(root: BorrowedFd<'_>, path: &Path) -> Result<Option<PathBuf>> {
    match parent(root, path)? {
        Some((directory, name)) => fs::read_link_if_any(directory.as_fd(), name),
        None => Ok(None),
    }
}

fn xattrs(root: BorrowedFd<'_>, path: &Path) -> Result<Vec<(std::ffi::CString, Vec<u8>)>> {
    let Some((directory, name)) = parent(root, path)? else { return Ok(Vec::new()) };
    // The calls take a path only; its last component is not followed.
    let place = fs::path_of(directory.as_fd()).join(name);
    match node::xattrs(place.as_os_str().as_bytes()) {
        Err(failure) if failure.missing() => Ok(Vec::new()),
        found => found.map_err(|failure| failure.of(path.as_os_str().as_bytes())),
    }
}

/// The regular file at `path` below a root, and its size, if there is one.
pub(super) fn open_file(root: BorrowedFd<'_>, path: &Path) -> Result<Option<(File, u64)>> {
    let regular = |stat: &fs::Stat| node::is_regular(stat).then_some(stat.st_size.unsigned_abs());
    // Looked at first: to open a device can do something to it.
    let Some((directory, name)) = parent(root, path)? else { return Ok(None) };
    if if_there(fs::metadata_at(directory.as_fd(), name))?.and_then(|stat| regular(&stat)).is_none() {
        return Ok(None);
    }
    let Some(file) = if_there(fs::open_file_beneath(root, path))? else { return Ok(None) };
    Ok(regular(&fs::metadata(file.as_fd())?).map(|size| (File::from(file), size)))
}

pub(super) fn same_content(old: BorrowedFd<'_>, new: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let (Some((mut old, _)), Some((mut new, _))) = (open_file(old, path)?, open_file(new, path)?) else {
        return Ok(false);
    };
    let doing = || format!("read {}", path.display());
    let (mut was, mut is) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        interrupt::check()?;
        let length = fill(&mut old, &mut was).context(doing)?;
        if length != fill(&mut new, &mut is).context(doing)? || was[..length] != is[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}
