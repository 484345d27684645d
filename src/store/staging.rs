//! What is under way just now, and what is left of it when its process was killed.
//!
//! Two kinds of directories in `staging/` say that something is under way, each locked by the process that does it. A
//! *draft* is filled and then renamed into its place. An *intent* is empty: it is there while snapshots or containers are
//! made, which cannot be renamed into place, because the snapshot ioctl's commit is what makes them durable; and as long
//! as a container runs. The snapshot's or container's own directory is locked then, too. Removal leaves its sign in
//! `trash/`, where an object stays locked until all that belongs to it is gone.
//!
//! So a process that was killed, in this boot or an earlier one, has left an entry whose lock is free, which is cheap to
//! see; what it was at is then found by looking at everything. Entries are ordinary metadata, made before what they stand
//! for: after a power cut both are there or neither is.
//!
//! Between an entry and its lock there is a moment. Makers go through it under a shared lock of `staging/`, whoever looks
//! for what is left takes it exclusively.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::{Found, Shelf, Store};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::fs;
use crate::name::Id;

/// How many entries a command looks at before its own work. More than this many containers that run at once hide what
/// is left for a while: each command begins to look elsewhere.
const LOOK: usize = 16;

/// How the names of drafts begin that are room for a measurement; snapshots and an image may go with one.
pub(crate) const SCRATCH: &str = "bench";

/// While it lives, something is under way. Dropped when that has ended, well or not.
#[derive(Debug)]
pub(crate) struct Intent {
    staging: OwnedFd,
    name: String,
    _locked: OwnedFd,
}

impl Drop for Intent {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_directory(self.staging.as_fd(), &self.name) {
            log::warn!("end the intent: {e}");
        }
    }
}

/// What a process that was killed has left, by name: nobody but a gc takes it up again.
#[derive(Debug)]
pub(crate) enum Left {
    /// A link that was about to be renamed over a tag or `last`.
    Link(String),
    /// A draft or an intent: a directory in `staging/`.
    Draft(String),
    /// An object that was being removed: a directory in `trash/`.
    Removed(String),
    /// A snapshot or container that was being made, or a container that nobody holds.
    Object(Found),
}

impl Left {
    /// Which object it is, or was.
    pub(crate) fn object(&self) -> Option<Found> {
        match self {
            Left::Link(_) | Left::Draft(_) => None,
            Left::Removed(name) => trashed(name),
            Left::Object(found) => Some(*found),
        }
    }

    fn place(&self) -> (Shelf, String) {
        match self {
            Left::Link(name) | Left::Draft(name) => (Shelf::Staging, name.clone()),
            Left::Removed(name) => (Shelf::Trash, name.clone()),
            Left::Object(found) => (found.shelf, found.id.to_string()),
        }
    }

    /// Where it is, below `fs/`.
    pub(crate) fn path(&self) -> PathBuf {
        let (shelf, name) = self.place();
        Path::new(shelf.as_str()).join(name)
    }
}

impl Store {
    /// An empty, locked directory in `staging/`; its name begins with `kind`.
    pub(crate) fn make_draft(&self, kind: &str) -> Result<(String, OwnedFd)> {
        let staging = self.staging(Lock::Shared)?;
        let name = format!("{kind}-{}", self.new_id()?);
        let dir = make_locked(&staging, &name).context(|| format!("make the {kind} draft"))?;
        Ok((name, dir))
    }

    /// The same with the whole name given; `Kind::AlreadyExists` when somebody has it.
    pub(crate) fn make_draft_named(&self, name: &str) -> Result<OwnedFd> {
        let staging = self.staging(Lock::Shared)?;
        make_locked(&staging, name).context(|| format!("make the draft {name}"))
    }

    /// Whether there is a draft of this name.
    pub(crate) fn has_draft(&self, name: &str) -> Result<bool> {
        let name = Path::new(name);
        match name.components().count() {
            1 => fs::exists_at(self.shelf(Shelf::Staging)?.as_fd(), name),
            _ => Ok(false),
        }
    }

    /// Says that snapshots or containers are about to be made, or to run.
    pub(crate) fn intend(&self) -> Result<Intent> {
        let (name, locked) = self.make_draft("intent")?;
        Ok(Intent { staging: self.shelf(Shelf::Staging)?, name, _locked: locked })
    }

    /// The same of one that is removed by who has run it.
    pub(crate) fn intend_for(&self, id: &Id) -> Result<Intent> {
        let name = intent_for(id);
        let locked = self.make_draft_named(&name)?;
        Ok(Intent { staging: self.shelf(Shelf::Staging)?, name, _locked: locked })
    }

    /// Whether who ran what lies in the trash is there yet. To ask for the lock of the entry itself would be to wait for him, and
    /// he may wait for a commit: opening a directory takes the lock that destroying the subvolume in it has
    /// (fs/btrfs/inode.c, `btrfs_opendir()`).
    fn is_in_hand(&self, trashed: &str) -> Result<bool> {
        self::trashed(trashed).map_or(Ok(false), |object| self.is_intended(&object.id))
    }

    /// Whether somebody is there who is about to make it, runs it, or removes it ([`Store::intend_for`]).
    fn is_intended(&self, id: &Id) -> Result<bool> {
        match fs::open_directory_if_any(self.shelf(Shelf::Staging)?.as_fd(), intent_for(id))? {
            Some(intent) => flock::is_free(intent.as_fd()).map(|free| !free),
            None => Ok(false),
        }
    }

    /// The empty, locked directory of a new snapshot or container, made under an [`Intent`].
    pub(crate) fn claim(&self, object: Found) -> Result<OwnedFd> {
        let shelf = self.shelf(object.shelf)?;
        let _making = self.staging(Lock::Shared)?;
        make_locked(&shelf, &object.id.to_string())
    }

    /// The directory `staging/`, locked: shared by whoever makes an entry in it that has no lock of its own yet.
    pub(crate) fn staging(&self, how: Lock) -> Result<OwnedFd> {
        let staging = self.shelf(Shelf::Staging)?;
        flock::lock(staging.as_fd(), how, || Shelf::Staging)?;
        Ok(staging)
    }

    /// Waits for who takes the trees of removed objects apart.
    pub(crate) fn await_removals(&self) -> Result<()> {
        await_removals(&self.shelf(Shelf::Trash)?)
    }

    /// Whether somebody was killed, as far as a short look tells: an entry whose lock is free. Two directories are
    /// listed, both empty most of the time.
    fn seems_unclean(&self) -> Result<bool> {
        for shelf in [Shelf::Staging, Shelf::Trash] {
            let directory = self.shelf(shelf)?;
            let names = names(&directory)?;
            let first = std::process::id() as usize % names.len().max(1);
            for name in names.iter().cycle().skip(first).take(names.len().min(LOOK)) {
                if shelf == Shelf::Trash && self.is_in_hand(name)? {
                    continue;
                }
                let looks_left =
                    || Ok::<_, Error>(is_link(&directory, name)? || lock_if_free(&directory, name)?.is_some());
                // In staging, it may only not be locked yet. While others make entries there, who is to say.
                let settled = || shelf == Shelf::Trash || flock::try_lock(directory.as_fd()).is_ok();
                if looks_left()? && settled() && looks_left()? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The lock of `trash/`, for those who tidy up before their own work; `None` when there is nothing to do, or another
    /// has done it meanwhile. A gc that a person asked for does not need it.
    pub(crate) fn turn_to_tidy(&self) -> Result<Option<OwnedFd>> {
        if !self.seems_unclean()? {
            return Ok(None);
        }
        let turn = self.lock_shelf(Shelf::Trash)?;
        Ok(self.seems_unclean()?.then_some(turn))
    }

    /// All that was left by processes that were killed.
    ///
    /// That includes every container that nobody holds, since what belongs to it on the host may be left; whoever calls
    /// has to look.
    pub(crate) fn left_behind(&self) -> Result<Vec<Left>> {
        let staging = self.staging(Lock::Exclusive)?;
        let mut left = Vec::new();
        for name in names(&staging)? {
            if is_link(&staging, &name)? {
                left.push(Left::Link(name));
            } else if lock_if_free(&staging, &name)?.is_some() {
                left.push(Left::Draft(name));
            }
        }
        for shelf in [Shelf::Snapshots, Shelf::Containers] {
            let directory = self.shelf(shelf)?;
            for name in names(&directory)? {
                let Ok(id) = name.parse() else { continue };
                let found = Found { shelf, id };
                if self.may_be_left(found)?
                    && let Some(_locked) = lock_if_free(&directory, &name)?
                    && self.may_be_left(found)?
                {
                    left.push(Left::Object(found));
                }
            }
        }
        let trash = self.shelf(Shelf::Trash)?;
        for name in names(&trash)? {
            if lock_if_free(&trash, &name)?.is_some() {
                left.push(Left::Removed(name));
            }
        }
        Ok(left)
    }

    /// The directory of what was left, locked; `None` when another takes care of it already.
    pub(crate) fn take_left(&self, left: &Left) -> Result<Option<OwnedFd>> {
        let (shelf, name) = left.place();
        // A draft may have been cleared and begun anew under its name since it was found. Nobody is between making it and
        // locking it now.
        let _looking = (shelf == Shelf::Staging).then(|| self.staging(Lock::Exclusive)).transpose()?;
        lock_if_free(&self.shelf(shelf)?, &name)
    }

    /// Whether something may be left of an object, if nobody holds its lock: a snapshot that is not whole. Only under
    /// that lock is the answer final; until then its maker may be about to finish it.
    fn may_be_left(&self, found: Found) -> Result<bool> {
        Ok(found.shelf == Shelf::Containers || !self.exists(found.shelf, &found.id)?)
    }

    /// Removes the links that were left, and are still there when nobody makes one.
    pub(crate) fn clear_links(&self) -> Result<()> {
        let staging = self.staging(Lock::Exclusive)?;
        for name in names(&staging)? {
            if is_link(&staging, &name)? {
                fs::unlink(staging.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    /// Whether the object has a directory: it is there, or being made.
    pub(crate) fn is_claimed(&self, object: Found) -> Result<bool> {
        fs::exists_at(self.dir(), object.path())
    }

    /// Whether what is on the host or in volumes for a container is somebody's: a throwaway has that before its directory.
    pub(crate) fn is_expected(&self, container: Found) -> Result<bool> {
        Ok(self.is_claimed(container)? || self.is_intended(&container.id)?)
    }
}

/// The name of an object in `trash/`: whatever is there of an earlier object with the same id is not in the way.
pub(crate) fn trash_name(object: Found, nonce: &Id) -> String {
    format!("{}-{}-{}", object.shelf, object.id, nonce.short())
}

fn intent_for(id: &Id) -> String {
    format!("intent-{id}")
}

/// What an entry of `trash/` was.
fn trashed(name: &str) -> Option<Found> {
    let mut parts = name.split('-');
    let shelf = Shelf::named(parts.next()?)?;
    Some(Found { shelf, id: parts.next()?.parse().ok()? })
}

/// The names in a directory of the store's, which are all text; others are `store check`'s to report.
fn names(directory: &OwnedFd) -> Result<Vec<String>> {
    Ok(fs::list(directory.as_fd(), ".")?.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

fn is_link(directory: &OwnedFd, name: &str) -> Result<bool> {
    Ok(fs::read_link_if_any(directory.as_fd(), name)?.is_some())
}

/// Makes a directory and locks it; whoever looks for what is left may hold the lock for a moment.
fn make_locked(at: &OwnedFd, name: &str) -> Result<OwnedFd> {
    fs::make_directory(at.as_fd(), name, 0o700)?;
    let open = || {
        let dir = fs::open_directory(at.as_fd(), name)?;
        flock::lock(dir.as_fd(), Lock::Exclusive, || name)?;
        Ok(dir)
    };
    open().inspect_err(|_| {
        // The cause is what counts; what stays is found by its missing lock.
        let _ = fs::remove_directory(at.as_fd(), name);
    })
}

/// Waits for who is at what is in the trash now.
pub(super) fn await_removals(trash: &OwnedFd) -> Result<()> {
    for name in names(trash)? {
        if let Some(removed) = fs::open_directory_if_any(trash.as_fd(), &name)? {
            flock::lock(removed.as_fd(), Lock::Exclusive, || format!("trash/{name}"))?;
        }
    }
    Ok(())
}

/// The directory, locked, if there is one and nobody holds it.
pub(crate) fn lock_if_free(at: &OwnedFd, name: &str) -> Result<Option<OwnedFd>> {
    let dir = match fs::open_directory(at.as_fd(), name) {
        Ok(dir) => dir,
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        // No directory of ours: `store check` says so.
        Err(e) if e.kind() == Kind::Io => return Ok(None),
        Err(e) => return Err(e),
    };
    match flock::try_lock(dir.as_fd()) {
        Ok(()) => {}
        Err(e) if e.kind() == Kind::InUse => return Ok(None),
        Err(e) => return Err(e),
    }
    // It may have been taken away, or renamed into the trash, while it was not locked yet.
    let same = fs::is_at(dir.as_fd(), at.as_fd(), name)?;
    Ok(same.then_some(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trash_tells_what_was_removed() {
        let id = Id::from_bytes([7; 32]);
        for shelf in [Shelf::Images, Shelf::Layers, Shelf::Snapshots, Shelf::Containers] {
            let object = Found { shelf, id };
            assert_eq!(trashed(&trash_name(object, &Id::from_bytes([1; 32]))), Some(object));
        }
        for name in ["", "images", "images-x-y", "nothing-0707", "images-07"] {
            assert_eq!(trashed(name), None, "{name}");
        }
    }
}
