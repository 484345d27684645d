//! What is being made just now, and what is left of it when its maker was killed.
//!
//! Two kinds of entries in `staging/` say that something is under way. A *draft* is a directory, locked by whoever fills
//! it, that will be renamed into its place. An *intent* is a symlink `ID` to the place of a snapshot or container that
//! cannot be made elsewhere and renamed, because the snapshot ioctl's commit is what makes it durable: it is there from
//! before the object's directory until the object is whole, and for a container as long as it runs. The object's own
//! directory is what is locked then. Removal leaves its sign in `trash/`, where the object stays locked until all that
//! belongs to it is gone.
//!
//! So a process that was killed, in this boot or an earlier one, has left an entry whose lock is free. Entries are
//! ordinary metadata made before the object's own: after a power cut both are there or neither is.
//!
//! Between an entry and its lock there is a moment. Makers go through it under a shared lock of `staging/`, whoever looks
//! for what is left takes it exclusively.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use super::lookup::link_target;
use super::{Found, Shelf, Store};
use crate::error::{Context, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::fs;
use crate::name::Id;

/// How many entries a command looks at before its own work. More than this many containers that run at once hide what
/// is left for a while: each command begins to look elsewhere.
const LOOK: usize = 16;

/// While it lives, the object that it names is being made, or runs. Dropped when that has ended, well or not.
#[derive(Debug)]
pub(crate) struct Intent {
    staging: OwnedFd,
    name: String,
}

impl Drop for Intent {
    fn drop(&mut self) {
        if let Err(e) = fs::unlink(self.staging.as_fd(), &self.name) {
            log::warn!("end the intent: {e}");
        }
    }
}

/// What a process that was killed has left. Its directory is locked by whoever holds this value.
#[derive(Debug)]
pub(crate) enum Left {
    /// A link that was about to be renamed over a tag or `last`, or an intent whose object is not there.
    Link { name: String },
    /// A draft: a directory in `staging/`.
    Draft { name: String, dir: OwnedFd },
    /// An object that was being removed: a directory in `trash/`, and the object that it was.
    Removed { name: String, object: Option<Found>, dir: OwnedFd },
    /// A snapshot or container that was being made or ran; `intent` says that a link in `staging/` tells so.
    Object { found: Found, intent: bool, dir: OwnedFd },
}

impl Store {
    /// An empty, locked directory in `staging/`; its name begins with `kind`.
    pub(crate) fn make_draft(&self, kind: &str) -> Result<(String, OwnedFd)> {
        let staging = self.staging(Lock::Shared)?;
        let name = format!("{kind}-{}", self.new_id()?);
        let dir = make_locked(&staging, &name).context(|| format!("make the {kind} draft"))?;
        Ok((name, dir))
    }

    /// Claims the place of a new snapshot or container: its empty, locked directory, and the intent that goes with it.
    pub(crate) fn claim(&self, object: Found) -> Result<(Intent, OwnedFd)> {
        let shelf = self.shelf(object.shelf)?;
        let _making = self.staging(Lock::Shared)?;
        let intent = self.intend(object)?;
        let dir = make_locked(&shelf, &object.id.to_string())?;
        Ok((intent, dir))
    }

    /// An intent for an object whose directory is locked by the caller. One that is there is somebody's who was killed.
    pub(crate) fn intend(&self, object: Found) -> Result<Intent> {
        let staging = self.shelf(Shelf::Staging)?;
        let name = object.id.to_string();
        match fs::symlink(format!("../{}/{name}", object.shelf), staging.as_fd(), &name) {
            Err(e) if e.kind() != Kind::AlreadyExists => Err(e).context(|| "write the intent"),
            _ => Ok(Intent { staging, name }),
        }
    }

    /// The directory `staging/`, locked: shared by whoever makes an entry in it that has no lock of its own yet.
    pub(crate) fn staging(&self, how: Lock) -> Result<OwnedFd> {
        let staging = self.shelf(Shelf::Staging)?;
        flock::lock(staging.as_fd(), how, || Shelf::Staging)?;
        Ok(staging)
    }

    /// Whether somebody was killed, as far as a short look tells: an entry whose lock is free. Two directories are
    /// listed, both empty most of the time.
    pub(crate) fn seems_unclean(&self) -> Result<bool> {
        for shelf in [Shelf::Staging, Shelf::Trash] {
            let directory = self.shelf(shelf)?;
            let names = fs::list(directory.as_fd(), ".")?;
            let first = std::process::id() as usize % names.len().max(1);
            for name in names.iter().cycle().skip(first).take(names.len().min(LOOK)) {
                let entry = match link_target(&directory, name)? {
                    Some(object) => fs::open_directory(self.dir(), object.path()),
                    None => fs::open_directory(directory.as_fd(), name),
                };
                match entry.and_then(|dir| flock::try_lock(dir.as_fd())) {
                    Err(e) if e.kind() == Kind::InUse => {}
                    _ => return Ok(true),
                }
            }
        }
        Ok(false)
    }

    /// All that was left by processes that were killed, locked; with `remove`, what is only a link is removed at once.
    ///
    /// Snapshots and containers that are not whole are found with an intent or without. So is every container that
    /// nobody holds, since what belongs to it on the host may be left; whoever calls has to look.
    pub(crate) fn left_behind(&self, remove: bool) -> Result<Vec<Left>> {
        let staging = self.staging(Lock::Exclusive)?;
        let mut left = Vec::new();
        let mut intents = Vec::new();
        for file in fs::list(staging.as_fd(), ".")? {
            let Some(name) = file.to_str().map(str::to_string) else { continue };
            if fs::read_link_if_any(staging.as_fd(), &name)?.is_none() {
                // No link, or one that has just ended.
                if let Some(dir) = lock_if_free(&staging, &name)? {
                    left.push(Left::Draft { name, dir });
                }
                continue;
            }
            match name.parse::<Id>().ok().and(link_target(&staging, OsStr::new(&name))?) {
                Some(object) if self.is_claimed(object) => intents.push(object),
                _ => {
                    if remove {
                        remove_link(&staging, &name)?;
                    }
                    left.push(Left::Link { name });
                }
            }
        }
        for object in &intents {
            if let Some(dir) = lock_if_free(&self.shelf(object.shelf)?, &object.id.to_string())? {
                left.push(Left::Object { found: *object, intent: true, dir });
            }
        }
        for shelf in [Shelf::Snapshots, Shelf::Containers] {
            let directory = self.shelf(shelf)?;
            for name in fs::list(directory.as_fd(), ".")? {
                let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                let found = Found { shelf, id };
                let wanted = shelf == Shelf::Containers || !self.exists(shelf, &id);
                if wanted
                    && !intents.contains(&found)
                    && let Some(dir) = lock_if_free(&directory, &id.to_string())?
                {
                    left.push(Left::Object { found, intent: false, dir });
                }
            }
        }
        let trash = self.shelf(Shelf::Trash)?;
        for file in fs::list(trash.as_fd(), ".")? {
            let Some(name) = file.to_str().map(str::to_string) else { continue };
            if let Some(dir) = lock_if_free(&trash, &name)? {
                left.push(Left::Removed { object: trashed(&name), name, dir });
            }
        }
        Ok(left)
    }

    /// Whether the object has a directory: it is there, or being made.
    pub(crate) fn is_claimed(&self, object: Found) -> bool {
        fs::metadata_at(self.dir(), object.path()).is_ok()
    }

    /// Takes the intent of an object away whose maker was killed; the caller holds the object's lock.
    pub(crate) fn clear_intent(&self, object: Found) -> Result<()> {
        remove_link(&self.shelf(Shelf::Staging)?, &object.id.to_string())
    }
}

/// The name of an object in `trash/`: whatever is there of an earlier object with the same id is not in the way.
pub(crate) fn trash_name(object: Found, nonce: &Id) -> String {
    format!("{}-{}-{}", object.shelf, object.id, nonce.short())
}

/// What an entry of `trash/` was.
fn trashed(name: &str) -> Option<Found> {
    let mut parts = name.split('-');
    let shelf = Shelf::named(parts.next()?)?;
    Some(Found { shelf, id: parts.next()?.parse().ok()? })
}

fn remove_link(at: &OwnedFd, name: &str) -> Result<()> {
    match fs::unlink(at.as_fd(), name) {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
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

/// The directory, locked, if there is one and nobody holds it.
fn lock_if_free(at: &OwnedFd, name: &str) -> Result<Option<OwnedFd>> {
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
    let same = match (fs::metadata(dir.as_fd()), fs::metadata_at(at.as_fd(), name)) {
        (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
        _ => false,
    };
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
