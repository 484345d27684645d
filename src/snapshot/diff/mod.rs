//! What differs between two trees: podman-diff(1).
//!
//! btrfs knows which inodes were written since one of the two was a snapshot of the other, or both of a third
//! ([`known`]), and then only those are compared, at a cost that follows the change and not the size. Where it does not, both
//! trees are walked through ([`walk`]), with the same result.

mod content;
mod known;
mod walk;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use content::{Content, Text};

use super::{Source, resolve};
use crate::error::{Context, Error, Kind, Result};
use crate::image;
use crate::layer::Difference;
use crate::store::{Found, Shelf, Store, kind_word, record};
use crate::subvolume::Parent;
use known::Known;
use walk::Eye;

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
    /// The path that the same file or directory had, where that is known and has gone or is another's now. What is in a
    /// directory that was renamed was not.
    pub renamed_from: Option<PathBuf>,
}

/// How two trees differ, and where they are.
#[derive(Debug)]
pub struct Diff {
    /// The changes, sorted by path.
    pub changes: Vec<Change>,
    old: Option<OwnedFd>,
    new: OwnedFd,
}

/// Places of a container that the sandbox mounts over, and made only for that: those that podman leaves out.
const MOUNT_POINTS: [&str; 8] =
    ["/dev", "/proc", "/sys", "/run", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/mtab"];

/// How the tree that `text` names differs from the one that `base` names, or else from what it was made from: an image's
/// from the layer below.
///
/// # Errors
/// [`Kind::NotFound`] when what it was made from is not there any more.
pub fn diff(store: &Store, text: &str, base: Option<&str>) -> Result<Diff> {
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
        changes.retain(is_of_container);
    }
    // What was removed meanwhile had less and less in it.
    for named in [Some(text), base].into_iter().flatten() {
        store.find(named)?;
    }
    Ok(Diff { changes, old, new })
}

/// Whether what changed in a container is its own doing: what is mounted there is not.
pub(super) fn is_of_container(change: &Change) -> bool {
    !MOUNT_POINTS.iter().any(|place| change.path == Path::new(place))
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
    let origin = resolve(store, &source.reference());
    Ok(Some(
        origin
            .map_err(|e| e.with_hint("name something else to compare it with"))
            .context(|| "what it was made from")?
            .parent,
    ))
}

/// What becomes of `old` to be `new`, sorted by path; without `old` all is added. A directory in which something differs is
/// changed, the root is not named, and what is below a directory that was deleted goes without saying.
///
/// # Errors
/// What cannot be read.
pub fn changes(old: Option<BorrowedFd<'_>>, new: BorrowedFd<'_>) -> Result<Vec<Change>> {
    if let Some(old) = old
        && let Some(changes) = known_changes(old, new)?
    {
        return Ok(changes);
    }
    walked_changes(old, new)
}

/// [`changes`] as both trees tell when they are walked through, which is always possible. A rename is not seen.
///
/// # Errors
/// What cannot be read.
pub fn walked_changes(old: Option<BorrowedFd<'_>>, new: BorrowedFd<'_>) -> Result<Vec<Change>> {
    walk::walk(old, new, None, Eye::Person)
}

/// [`changes`] by what btrfs knows; nothing when it does not, or does not tell us.
///
/// # Errors
/// What cannot be read.
pub fn known_changes(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Result<Option<Vec<Change>>> {
    let Some(known) = known(old, new, false)? else { return Ok(None) };
    let mut changes = walk::walk(Some(old), new, Some(&known), Eye::Person)?;
    for change in &mut changes {
        if change.became != Became::Deleted {
            change.renamed_from = known.renamed.get(&change.path).cloned();
        }
    }
    Ok(Some(changes))
}

/// What is known of two trees, as far as it is told to us.
fn known(old: BorrowedFd<'_>, new: BorrowedFd<'_>, at_rest: bool) -> Result<Option<Known>> {
    match known::between(old, new, at_rest) {
        Err(e) if matches!(e.kind(), Kind::Permission | Kind::Unsupported) => {
            log::debug!("diff: both trees are walked through: {e}");
            Ok(None)
        }
        known => known,
    }
}

/// What a layer has to hold to make of `old`, which is sealed, what a container or snapshot has come to, of which `new` is a
/// snapshot that nobody has written to. Of a container, that is without the
/// places that the sandbox mounts over, unless something lies in them.
pub(super) fn differences(
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    of_container: bool,
) -> Result<BTreeMap<PathBuf, Difference>> {
    let mut changes = walk::walk(Some(old), new, known(old, new, true)?.as_ref(), Eye::Layer)?;
    if of_container {
        let mut next: Option<PathBuf> = None;
        // From the last: what is in a directory comes after it.
        changes.reverse();
        changes.retain(|change| {
            let holds = next.as_ref().is_some_and(|next| next.starts_with(&change.path));
            let stays = holds || is_of_container(change);
            if stays {
                next = Some(change.path.clone());
            }
            stays
        });
    }
    let difference = |became| match became {
        Became::Added => Difference::Added,
        Became::Changed => Difference::Changed,
        Became::Deleted => Difference::Deleted,
    };
    Ok(changes.into_iter().map(|change| (change.path, difference(change.became))).collect())
}
