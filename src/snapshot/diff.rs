//! What differs between two trees: podman-diff(1).
//!
//! Both are walked side by side, by name. A snapshot shares inode numbers with what it was made from, and whatever changes
//! a file sets its ctime (inode(7)), which nobody can set back: so what has the same number and the same ctime is the same,
//! and costs two stats. Of the rest everything that a person would see is compared, contents too.
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

use super::{Source, resolve};
use crate::error::{Context, Error, Kind, Result};
use crate::image;
use crate::interrupt;
use crate::kernel::{fs, node};
use crate::store::{Found, Shelf, Store, kind_word, record};
use crate::subvolume::Parent;

const BUFFER: usize = 64 << 10;

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Became {
    /// It was not there.
    Added,
    /// It is another, or something below it is.
    Changed,
    /// It is not there any more, nor what was below it.
    Deleted,
}

/// A path at which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute, in the tree.
    pub path: PathBuf,
    /// How.
    pub became: Became,
}

/// Places of a container that the sandbox mounts over, and made only for that: those that podman leaves out.
const MOUNT_POINTS: [&str; 8] =
    ["/dev", "/proc", "/sys", "/run", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/mtab"];

/// How the tree that `text` names differs from the one that `base` names, or else from what it was made from: an image's
/// from the layer below.
///
/// # Errors
/// [`Kind::NotFound`] when what it was made from is not there any more.
pub fn diff(store: &Store, text: &str, base: Option<&str>) -> Result<Vec<Change>> {
    let found = store.find(text)?;
    let doing = || format!("diff of {text}");
    let new = resolve(store, text)?;
    let new = new.parent.rootfs(&new.path, true)?.dir;
    let old = match base {
        Some(base) => Some(resolve(store, base)?.parent),
        None => made_from(store, found).context(doing)?,
    };
    let old = old.map(|old| old.rootfs(Path::new("/"), true)).transpose()?.map(|rootfs| rootfs.dir);
    let mut changes = changes(old.as_ref().map(AsFd::as_fd), new.as_fd()).context(doing)?;
    if found.shelf == Shelf::Containers {
        changes.retain(|change| !MOUNT_POINTS.iter().any(|place| change.path == Path::new(place)));
    }
    // What was removed meanwhile had less and less in it.
    for named in [Some(text), base].into_iter().flatten() {
        store.find(named)?;
    }
    Ok(changes)
}

/// The tree of which it is a snapshot; of an image, of which its topmost layer is one.
fn made_from(store: &Store, found: Found) -> Result<Option<Parent>> {
    #[derive(serde::Deserialize)]
    struct Made {
        source: Source,
    }
    if found.shelf == Shelf::Images {
        return image::find(store, &format!("image:{}", found.id))?.below(store);
    }
    let dir = store.open_object(found.shelf, &found.id)?;
    let Some(Made { source }) = record::read(dir.as_fd())? else {
        return Err(Error::new(Kind::Store, format!("{} {}: no record", kind_word(found.shelf), found.id.short())));
    };
    let origin = resolve(store, &format!("{}:{}", source.kind, source.id));
    Ok(Some(
        origin
            .map_err(|e| e.with_hint("name something else to compare it with"))
            .context(|| "what it was made from")?
            .parent,
    ))
}

/// What becomes of `old` to be `new`, sorted by path. Without `old` all is added.
///
/// A directory in which something differs is changed, the root is not named, and what is below a directory that was
/// deleted goes without saying.
pub(crate) fn changes(old: Option<BorrowedFd<'_>>, new: BorrowedFd<'_>) -> Result<Vec<Change>> {
    let mut walk = Walk { old, new, changes: Vec::new() };
    walk.directory(Path::new(""), old.is_some())?;
    walk.changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.changes)
}

struct Walk<'a> {
    old: Option<BorrowedFd<'a>>,
    new: BorrowedFd<'a>,
    changes: Vec<Change>,
}

impl Walk<'_> {
    /// Compares the directories at `path`, of which there is perhaps only the new one.
    fn directory(&mut self, path: &Path, in_old: bool) -> Result<()> {
        interrupt::check()?;
        let new = entries(self.new, path)?;
        let mut old = match self.old.filter(|_| in_old) {
            Some(old) => entries(old, path)?,
            None => BTreeMap::new(),
        };
        let mut below = Vec::new();
        for (name, is) in new {
            let was = old.remove(&name);
            let path = path.join(&name);
            let both_directories = was.as_ref().is_some_and(|was| node::is_directory(was) && node::is_directory(&is));
            let became = match &was {
                None => Some(Became::Added),
                Some(was) => self.differ(&path, was, &is)?.then_some(Became::Changed),
            };
            if let Some(became) = became {
                self.note(&path, became);
            }
            if node::is_directory(&is) {
                below.push((path, both_directories, became.is_some()));
            }
        }
        for name in old.into_keys() {
            self.note(&path.join(name), Became::Deleted);
        }
        for (path, in_old, said) in below {
            let before = self.changes.len();
            self.directory(&path, in_old)?;
            if self.changes.len() > before && !said {
                self.note(&path, Became::Changed);
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, became: Became) {
        self.changes.push(Change { path: Path::new("/").join(path), became });
    }

    fn differ(&self, path: &Path, was: &fs::Stat, is: &fs::Stat) -> Result<bool> {
        let ctime = |stat: &fs::Stat| (stat.st_ctime, stat.st_ctime_nsec);
        if was.st_ino == is.st_ino && ctime(was) == ctime(is) {
            return Ok(false);
        }
        let seen = |stat: &fs::Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
        if seen(was) != seen(is) {
            return Ok(true);
        }
        // What is made in a directory changes its size and its times.
        let data = |stat: &fs::Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if !node::is_directory(is) && data(was) != data(is) {
            return Ok(true);
        }
        let Some(old) = self.old else { return Ok(true) };
        Ok(xattrs(old, path)? != xattrs(self.new, path)?
            || node::is_symlink(is) && target(old, path)? != target(self.new, path)?
            || node::is_regular(is) && !same_content(old, self.new, path)?)
    }
}

/// What is in the directory at `path` below a root; nothing when there is none any more.
fn entries(root: BorrowedFd<'_>, path: &Path) -> Result<BTreeMap<OsString, fs::Stat>> {
    let Some(directory) = open_directory(root, path)? else { return Ok(BTreeMap::new()) };
    let mut found = BTreeMap::new();
    for name in fs::list(directory.as_fd(), ".")? {
        match fs::metadata_at(directory.as_fd(), &name) {
            Ok(stat) => drop(found.insert(name, stat)),
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

fn same_content(old: BorrowedFd<'_>, new: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let open = |root| -> Result<Option<File>> {
        let Some(file) = if_there(fs::open_file_beneath(root, path))? else { return Ok(None) };
        Ok(node::is_regular(&fs::metadata(file.as_fd())?).then(|| File::from(file)))
    };
    let (Some(mut old), Some(mut new)) = (open(old)?, open(new)?) else { return Ok(false) };
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
