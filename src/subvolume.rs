//! The life of a subvolume: Draft → Sealed → Active.
//!
//! ```text
//! Draft ──seal──> Sealed ──snapshot──> Active ──remove──> gone
//! staging/X       layers/CHAIN         snapshots/ID, containers/ID
//! writable        read-only, parent    writable (or read-only), locked while it is used
//! ```
//!
//! - A draft is invisible and belongs to the process that holds its lock. Dropped, it is removed.
//! - Finishing it makes everything written durable; sealing consumes it: the subvolume becomes read-only, and one
//!   rename publishes it.
//! - An Active's record is set before the snapshot ioctl, so that the commit which the ioctl makes takes both.
//! - Removal is one rename into the trash; what follows only gives the space back. A subvolume is destroyed only when
//!   it is the one that the store recorded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use serde::Serialize;

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{btrfs, fs};
use crate::name::{Id, ObjectName};
use crate::rootfs::Rootfs;
use crate::store::record::{self, Identity};
use crate::store::{Found, Shelf, Store, kind_word};

const ROOTFS: &str = "rootfs";

/// How long a draft is filled before what it holds so far is taken to the disk, and again. A commit makes everybody
/// wait for a few milliseconds; more often would cost more than it gains.
const WRITE_BACK: Duration = Duration::from_millis(100);

/// A subvolume that is being filled.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    store: &'a Store,
    name: String,
    dir: OwnedFd,
    rootfs: OwnedFd,
    published: bool,
}

impl<'a> Draft<'a> {
    /// An empty one.
    pub(crate) fn create(store: &'a Store) -> Result<Draft<'a>> {
        let name = format!("draft-{}", store.new_id()?);
        let staging = store.shelf(Shelf::Staging)?;
        sweep(&staging)?;
        fs::make_directory(staging.as_fd(), &name, 0o700)?;
        let made = (|| -> Result<(OwnedFd, OwnedFd)> {
            let dir = fs::open_directory(staging.as_fd(), &name)?;
            fs::lock(dir.as_fd(), fs::Lock::TryExclusive)?;
            btrfs::create(dir.as_fd(), ROOTFS)?;
            let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
            record::write_identity(dir.as_fd(), Identity::Itself(btrfs::info(rootfs.as_fd())?.uuid))?;
            Ok((dir, rootfs))
        })();
        match made {
            Ok((dir, rootfs)) => Ok(Draft { store, name, dir, rootfs, published: false }),
            Err(e) => {
                clear(&staging, &name);
                Err(e)
            }
        }
        .context(|| "make a draft subvolume")
    }

    /// Its top directory.
    pub(crate) fn rootfs(&self) -> BorrowedFd<'_> {
        self.rootfs.as_fd()
    }

    /// Runs what fills it, and meanwhile takes to the disk what has been written so far, so that little is left for
    /// [`finish`](Draft::finish): the disk works while the next bytes are unpacked.
    pub(crate) fn fill<T>(&self, fill: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        let filling = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let write_back = || {
                loop {
                    std::thread::park_timeout(WRITE_BACK);
                    if !filling.load(Ordering::Acquire) {
                        return;
                    }
                    // Only a head start: finish() syncs again and reports what fails.
                    let _ = fs::sync_filesystem(self.dir.as_fd());
                }
            };
            let thread = std::thread::Builder::new().name("write-back".into()).spawn_scoped(scope, write_back);
            let _filled = EndOnDrop { filling: &filling, thread: thread.as_ref().ok().map(|t| t.thread().clone()) };
            fill(self.rootfs.as_fd())
        })
    }

    /// Takes it and its record to the disk, with everything written before. The long part of sealing, without a lock.
    pub(crate) fn finish<T: Serialize>(&self, record: &T) -> Result<()> {
        record::write(self.dir.as_fd(), record)?;
        fs::sync_filesystem(self.dir.as_fd()).context(|| "write the draft to the disk")
    }

    /// Makes a [finished](Draft::finish) draft read-only and visible as the layer `chain`. If that layer is there
    /// already, from somebody who was faster, that one is taken and the draft dropped.
    ///
    /// The publishing rename itself is durable only after the caller's next sync.
    pub(crate) fn seal(mut self, chain: &Id) -> Result<Sealed> {
        btrfs::set_read_only(self.rootfs.as_fd(), true).context(|| "seal the draft")?;
        let staging = self.store.shelf(Shelf::Staging)?;
        let layers = self.store.shelf(Shelf::Layers)?;
        match fs::rename(staging.as_fd(), &self.name, layers.as_fd(), chain.to_string()) {
            Ok(()) => self.published = true,
            Err(e) if e.kind() == Kind::AlreadyExists => {}
            Err(e) => return Err(e).context(|| "publish the layer"),
        }
        Sealed::open(self.store, chain)
    }
}

/// Ends the write-back of a draft, whichever way its filling ends.
struct EndOnDrop<'a> {
    filling: &'a AtomicBool,
    thread: Option<Thread>,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.filling.store(false, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.published {
            clear_draft(self.store, &self.name);
        }
    }
}

/// A read-only subvolume that never changes again: what snapshots are made of.
#[derive(Debug)]
pub(crate) struct Sealed {
    rootfs: OwnedFd,
}

impl Sealed {
    /// The layer with this chain id.
    pub(crate) fn open(store: &Store, chain: &Id) -> Result<Sealed> {
        let dir = store.open_object(Shelf::Layers, chain)?;
        Ok(Sealed { rootfs: fs::open_directory(dir.as_fd(), ROOTFS)? })
    }

    /// It as the source of snapshots.
    pub(crate) fn into_parent(self) -> Result<Parent> {
        Parent::of(self.rootfs)
    }
}

/// What a snapshot is made of: a sealed layer, or another snapshot as it is at that moment.
#[derive(Debug)]
pub(crate) struct Parent {
    rootfs: OwnedFd,
    uuid: [u8; 16],
}

impl Parent {
    /// The subvolume of a snapshot or container.
    pub(crate) fn open(store: &Store, found: Found) -> Result<Parent> {
        let dir = store.open_object(found.shelf, &found.id)?;
        Parent::of(fs::open_directory(dir.as_fd(), ROOTFS)?)
    }

    /// The subvolumes nested directly in it, as paths below it.
    pub(crate) fn nested(&self) -> Result<Vec<PathBuf>> {
        btrfs::nested(self.rootfs.as_fd())
    }

    /// It as a root to look at, as if it lay at `path`.
    pub(crate) fn rootfs(&self, path: &Path, read_only: bool) -> Result<Rootfs> {
        Ok(Rootfs { dir: fs::duplicate(self.rootfs.as_fd())?, path: path.to_path_buf(), read_only })
    }

    fn of(rootfs: OwnedFd) -> Result<Parent> {
        let uuid = btrfs::info(rootfs.as_fd())?.uuid;
        Ok(Parent { rootfs, uuid })
    }
}

/// A snapshot that somebody may work in. It stays locked (in use) until this value is dropped.
#[derive(Debug)]
pub(crate) struct Active {
    found: Found,
    dir: OwnedFd,
    rootfs: OwnedFd,
    path: PathBuf,
}

/// What an [`Active`] is made with, beside its parent.
pub(crate) struct New<'a, T> {
    /// Where it goes.
    pub found: Found,
    /// Its name, which must be free.
    pub name: Option<&'a ObjectName>,
    /// Its record.
    pub record: &'a T,
    /// Nothing in it may be changed.
    pub read_only: bool,
    /// A document too large for the record, as `spec.json` beside the subvolume; durable before the snapshot is.
    pub spec: Option<&'a [u8]>,
    /// Make that document durable. Not needed for what is thrown away anyway.
    pub durable: bool,
}

impl Active {
    /// Makes a snapshot of `parent`: durable, with its record and name, when this returns.
    pub(crate) fn create<T: Serialize>(store: &Store, parent: &Parent, new: &New<'_, T>) -> Result<Active> {
        let shelf = store.shelf(new.found.shelf)?;
        let id = new.found.id.to_string();
        fs::make_directory(shelf.as_fd(), &id, 0o700)?;
        let made = Active::fill(store, &shelf, &id, parent, new);
        if made.is_err() {
            if let Some(name) = new.name {
                let _ = store.release_name(name, new.found);
            }
            clear(&shelf, &id);
        }
        made
    }

    fn fill<T: Serialize>(
        store: &Store,
        shelf: &OwnedFd,
        id: &str,
        parent: &Parent,
        new: &New<'_, T>,
    ) -> Result<Active> {
        let dir = fs::open_directory(shelf.as_fd(), id)?;
        fs::lock(dir.as_fd(), fs::Lock::TryExclusive)?;
        record::write(dir.as_fd(), new.record)?;
        record::write_identity(dir.as_fd(), Identity::ChildOf(parent.uuid))?;
        if let Some(spec) = new.spec {
            fs::write_new(dir.as_fd(), "spec.json", spec, 0o600, new.durable)?;
        }
        if let Some(name) = new.name {
            store.claim_name(name, new.found)?;
        }
        btrfs::snapshot(parent.rootfs.as_fd(), dir.as_fd(), ROOTFS, new.read_only)?;
        let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
        Ok(Active { found: new.found, dir, rootfs, path: store.rootfs_path(new.found.shelf, &new.found.id) })
    }

    /// An existing one, locked. `Kind::InUse` when somebody works in it.
    pub(crate) fn open(store: &Store, found: Found) -> Result<Active> {
        Active::open_with(store, found, fs::Lock::TryExclusive)
    }

    /// An existing one, as soon as nobody works in it any more. `Kind::NotFound` when that one removed it.
    pub(crate) fn open_wait(store: &Store, found: Found) -> Result<Active> {
        Active::open_with(store, found, fs::Lock::Exclusive)
    }

    fn open_with(store: &Store, found: Found, how: fs::Lock) -> Result<Active> {
        let dir = store.open_object(found.shelf, &found.id)?;
        fs::lock(dir.as_fd(), how).context(|| format!("{} {}", kind_word(found.shelf), found.id.short()))?;
        let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
        Ok(Active { found, dir, rootfs, path: store.rootfs_path(found.shelf, &found.id) })
    }

    /// The directory that holds its record.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// What the sandbox enters.
    pub(crate) fn rootfs(&self, read_only: bool) -> Result<Rootfs> {
        let dir = fs::duplicate(self.rootfs.as_fd())?;
        Ok(Rootfs { dir, path: self.path.clone(), read_only })
    }

    /// Removes it: atomic, at once, whatever is nested in it. Its name is the caller's to release.
    pub(crate) fn remove(self, store: &Store) -> Result<()> {
        if !record::identity_matches(self.dir.as_fd(), self.rootfs.as_fd())? {
            let message = format!("{}: not the subvolume that the store recorded", self.path.display());
            return Err(Error::new(Kind::Store, message));
        }
        discard(store, self.found.shelf, &self.found.id.to_string())
    }
}

/// Removes an object that nobody holds a value of: a layer, or an image's directory.
pub(crate) fn remove_object(store: &Store, shelf: Shelf, id: &Id) -> Result<()> {
    let dir = store.open_object(shelf, id)?;
    if let Ok(rootfs) = fs::open_directory(dir.as_fd(), ROOTFS)
        && !record::identity_matches(dir.as_fd(), rootfs.as_fd())?
    {
        return Err(Error::new(Kind::Store, format!("{shelf}/{id}: not the subvolume that the store recorded")));
    }
    discard(store, shelf, &id.to_string())
}

/// One rename takes the object away; then its space is given back.
fn discard(store: &Store, shelf: Shelf, id: &str) -> Result<()> {
    let trash = store.shelf(Shelf::Trash)?;
    fs::rename(store.shelf(shelf)?.as_fd(), id, trash.as_fd(), id)?;
    clear(&trash, id);
    Ok(())
}

/// Removes the drafts of processes that were killed: those that nobody holds the lock of, as far as their subvolume
/// is the one that was recorded. One without is being made just now, or holds nothing.
fn sweep(staging: &OwnedFd) -> Result<()> {
    for name in fs::list(staging.as_fd(), ".")? {
        let Some(name) = name.to_str().filter(|name| name.starts_with("draft-")) else { continue };
        let Ok(dir) = fs::open_directory(staging.as_fd(), name) else { continue };
        let Ok(rootfs) = fs::open_directory(dir.as_fd(), ROOTFS) else { continue };
        if fs::lock(dir.as_fd(), fs::Lock::TryExclusive).is_ok()
            && record::identity_matches(dir.as_fd(), rootfs.as_fd())?
        {
            log::debug!("remove {name}, left by a process that was killed");
            clear(staging, name);
        }
    }
    Ok(())
}

/// Removes a draft of ours, with a subvolume in it or without.
pub(crate) fn clear_draft(store: &Store, name: &str) {
    match store.shelf(Shelf::Staging) {
        Ok(staging) => clear(&staging, name),
        Err(e) => log::warn!("remove the draft {name}: {e}"),
    }
}

/// Empties and removes a directory that holds at most a subvolume `rootfs` and a few files. What fails is said and
/// left for the next clean-up: the object is gone already.
fn clear(shelf: &OwnedFd, name: &str) {
    if let Err(e) = try_clear(shelf, name) {
        log::warn!("remove {name}: {e}");
    }
}

fn try_clear(shelf: &OwnedFd, name: &str) -> Result<()> {
    let dir = fs::open_directory(shelf.as_fd(), name)?;
    for entry in fs::list(dir.as_fd(), ".")? {
        match entry == ROOTFS {
            true => destroy(dir.as_fd(), Path::new(ROOTFS))?,
            false => fs::unlink(dir.as_fd(), entry)?,
        }
    }
    fs::remove_directory(shelf.as_fd(), name)
}

/// Destroys a subvolume and all that are nested in it, deepest first. Whoever could write in it may have nested others
/// in it, read-only ones too, and a read-only subvolume does not let go of what is nested in it.
fn destroy(at: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let parent = match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => Some(fs::open_directory_beneath(at, parent)?),
        None => None,
    };
    let parent = parent.as_ref().map_or(at, AsFd::as_fd);
    let name = path.file_name().ok_or_else(|| Error::new(Kind::Invalid, format!("{}: no name", path.display())))?;
    let subvolume = fs::open_directory(parent, name)?;
    let nested = btrfs::nested(subvolume.as_fd())?;
    if !nested.is_empty() {
        btrfs::set_read_only(subvolume.as_fd(), false)?;
        for path in nested {
            destroy(subvolume.as_fd(), &path).context(|| format!("nested subvolume {}", path.display()))?;
        }
    }
    btrfs::destroy(parent, name)
}
