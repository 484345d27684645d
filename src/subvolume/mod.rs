//! The life of a subvolume: Draft → Sealed → Active.
//!
//! ```text
//! Draft ──seal──> Sealed ──snapshot──> Active ──remove──> gone
//! staging/X       layers/CHAIN         snapshots/ID, containers/ID
//! writable        read-only, parent    writable (or read-only), locked while it is used
//! ```
//!
//! - A draft is invisible and belongs to the process that holds its lock. Dropped, it is removed.
//! - The place of an Active is claimed first, under an intent, so that one whose maker is killed is found and cleared.
//! - Finishing it makes everything written durable; sealing consumes it: the subvolume becomes read-only, and one
//!   rename publishes it.
//! - An Active's record is set before the snapshot ioctl, so that the commit which the ioctl makes takes both.
//! - Removal is one rename into the trash; what follows only gives the space and the name back. A subvolume is destroyed
//!   only when it is the one that the store recorded.

mod draft;
pub(crate) mod pool;
pub(crate) mod preread;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub(crate) use draft::{Claim, Draft, Held, Turn};
use pool::{Asked, Taken};

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::{btrfs, fs, node};
use crate::name::{Id, ObjectName};
use crate::rootfs::Rootfs;
use crate::store::record::{self, Identity};
use crate::store::{Found, Named, Shelf, Store, kind_word, trash_name};

const ROOTFS: &str = "rootfs";

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

    /// Nothing in it can be changed, as it should be.
    pub(crate) fn is_sealed(&self) -> Result<bool> {
        btrfs::is_read_only(self.rootfs.as_fd())
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

    /// A writable snapshot of it that no record tells of, as `name` in a draft.
    pub(crate) fn snapshot(&self, directory: BorrowedFd<'_>, name: &str) -> Result<()> {
        btrfs::snapshot(self.rootfs.as_fd(), directory, name, false)
    }

    /// It as a root to look at, as if it lay at `path`.
    pub(crate) fn rootfs(&self, path: &Path, read_only: bool) -> Result<Rootfs> {
        Ok(Rootfs { dir: fs::duplicate(self.rootfs.as_fd())?, path: path.to_path_buf(), read_only })
    }

    /// The subvolume whose top directory this is, the store's or not.
    pub(crate) fn of(rootfs: OwnedFd) -> Result<Parent> {
        let uuid = btrfs::info(rootfs.as_fd())?.uuid;
        Ok(Parent { rootfs, uuid })
    }
}

/// The place of an [`Active`] that is still to be made: claimed, locked, and cleared again if nothing comes of it.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    store: &'a Store,
    found: Found,
    /// Taken when the place is filled.
    dir: Option<OwnedFd>,
    /// The ready snapshot that is to be here, still in the pool.
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    /// Its name in the pool.
    name: String,
    rootfs: OwnedFd,
    /// It is nobody else's any more.
    marked_down: bool,
}

/// What an [`Active`] is made with, beside its place and its parent.
pub(crate) struct New<'a, T> {
    /// Its name, which must be free. The record has it, too.
    pub name: Option<&'a ObjectName>,
    /// Its record.
    pub record: &'a T,
    /// Nothing in it may be changed.
    pub read_only: bool,
    /// What it runs, beside the record.
    pub spec: Option<&'a [u8]>,
}

impl<'a> Place<'a> {
    /// Claims the place of `found`. The caller has said that it [intends](Store::intend) to.
    pub(crate) fn claim(store: &'a Store, found: Found) -> Result<Place<'a>> {
        Ok(Place { store, found, dir: Some(store.claim(found)?), ready: None })
    }

    /// The place of `found` for a snapshot that is ready, if one was: filled with that, it is not durable. Else it is claimed.
    pub(crate) fn ready_or_claim(store: &'a Store, found: Found, asked: Option<Asked>) -> Result<Place<'a>> {
        match asked.and_then(|asked| asked.taken) {
            Some(Taken { name, dir, rootfs }) => {
                let ready = Ready { name, rootfs, marked_down: false };
                Ok(Place { store, found, dir: Some(dir), ready: Some(ready) })
            }
            None => Place::claim(store, found),
        }
    }

    /// Makes a snapshot of `parent` there: durable, with its record and name, when this returns.
    pub(crate) fn fill<T: Serialize>(mut self, parent: &Parent, new: &New<'_, T>) -> Result<Active> {
        let open = |dir: &OwnedFd, ready: Option<OwnedFd>| match ready {
            Some(ready) => Ok(ready),
            None => fs::open_directory(dir.as_fd(), ROOTFS),
        };
        let (dir, rootfs) = self.fill_with(parent, new, open)?;
        let path = self.store.rootfs_path(self.found.shelf, &self.found.id);
        Ok(Active { found: self.found, dir, rootfs, path })
    }

    /// The same, for who does not work in it: what would have to be read of the new tree is not.
    pub(crate) fn fill_and_leave<T: Serialize>(mut self, parent: &Parent, new: &New<'_, T>) -> Result<()> {
        self.fill_with(parent, new, |_, _| Ok(())).map(drop)
    }

    fn fill_with<T: Serialize, O>(
        &mut self,
        parent: &Parent,
        new: &New<'_, T>,
        open: impl FnOnce(&OwnedFd, Option<OwnedFd>) -> Result<O>,
    ) -> Result<(OwnedFd, O)> {
        let dir = self.dir.take().ok_or_else(|| Error::new(Kind::Invalid, "the place was filled before"))?;
        match self.snapshot(&dir, parent, new).and_then(|ready| open(&dir, ready)) {
            Ok(opened) => Ok((dir, opened)),
            Err(e) => {
                self.dir = Some(dir);
                Err(e)
            }
        }
    }

    /// Returns the top directory of the one that was ready.
    fn snapshot<T: Serialize>(&mut self, dir: &OwnedFd, parent: &Parent, new: &New<'_, T>) -> Result<Option<OwnedFd>> {
        match &mut self.ready {
            Some(ready) => {
                pool::mark_down(dir)?;
                ready.marked_down = true;
            }
            None => record::write_identity(dir.as_fd(), Identity::ChildOf(parent.uuid))?,
        }
        record::write(dir.as_fd(), new.record)?;
        if let Some(spec) = new.spec {
            record::write_spec(dir.as_fd(), spec)?;
        }
        if let Some(name) = new.name {
            self.store.claim_name(name, self.found)?;
        }
        if let Some(ready) = &self.ready {
            let (pool, shelf) = (self.store.shelf(Shelf::Pool)?, self.store.shelf(self.found.shelf)?);
            fs::rename(pool.as_fd(), &ready.name, shelf.as_fd(), self.found.id.to_string())?;
        }
        let ready = self.ready.take();
        if ready.is_none() {
            btrfs::snapshot(parent.rootfs.as_fd(), dir.as_fd(), ROOTFS, new.read_only)?;
        }
        Ok(ready.map(|ready| ready.rootfs))
    }

    /// Takes away what came to nothing.
    fn clear(&self, dir: BorrowedFd<'_>) -> Result<()> {
        match &self.ready {
            None => clear_unfinished(self.store, self.found, dir),
            Some(ready) if ready.marked_down => {
                release_name(self.store, self.found, dir);
                clear(&self.store.shelf(Shelf::Pool)?, &ready.name)
            }
            Some(_) => Ok(()), // the next may have it
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take()
            && let Err(e) = self.clear(dir.as_fd())
        {
            log::warn!("remove {}: {e}", self.found.path());
        }
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

impl Active {
    /// An existing one, locked. `Kind::InUse` when somebody works in it.
    pub(crate) fn open(store: &Store, found: Found) -> Result<Active> {
        Active::open_with(store, found, try_lock)
    }

    /// An existing one, as soon as nobody works in it any more. `Kind::NotFound` when that one removed it.
    pub(crate) fn open_wait(store: &Store, found: Found) -> Result<Active> {
        let name = || format!("{} {}", kind_word(found.shelf), found.id.short());
        Active::open_with(store, found, |dir| flock::lock(dir, Lock::Exclusive, name))
    }

    fn open_with(store: &Store, found: Found, lock: impl FnOnce(BorrowedFd<'_>) -> Result<()>) -> Result<Active> {
        let dir = store.open_object(found.shelf, &found.id)?;
        lock(dir.as_fd()).context(|| format!("{} {}", kind_word(found.shelf), found.id.short()))?;
        Active::locked(store, found, dir)
    }

    /// An existing one whose directory the caller has locked.
    pub(crate) fn locked(store: &Store, found: Found, dir: OwnedFd) -> Result<Active> {
        let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
        Ok(Active { found, dir, rootfs, path: store.rootfs_path(found.shelf, &found.id) })
    }

    /// Its id.
    pub(crate) fn id(&self) -> Id {
        self.found.id
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

    /// Removes it with its name: atomic, at once, whatever is nested in it.
    pub(crate) fn remove(self, store: &Store) -> Result<()> {
        self.discard(store).map(Removed::relieve)
    }

    /// The same, but for giving its space back.
    pub(crate) fn discard(self, store: &Store) -> Result<Removed<'_>> {
        if !record::identity_matches(self.dir.as_fd(), self.rootfs.as_fd())? {
            let message = format!("{}: not the subvolume that the store recorded", self.path.display());
            return Err(Error::new(Kind::Store, message));
        }
        discard(store, self.found, self.dir)
    }
}

/// On a filesystem that is nearly full, has the space of what was removed given back now, and that of what is only ready: whoever
/// removes something there needs it sooner than within the 30 seconds until the next commit.
pub(crate) fn relieve(store: &Store) {
    if !store.is_scarce() {
        return;
    }
    let given = pool::forget(store, None).and_then(|()| store.reclaim());
    given.unwrap_or_else(|e| log::debug!("give space back: {e}"));
}

/// An object that is gone and still lies in the trash, locked, as the sign that more of it has to go.
#[derive(Debug)]
#[must_use]
pub(crate) struct Removed<'a> {
    store: &'a Store,
    /// Nothing when the object had to be cleared where it was.
    name: Option<String>,
    /// Whose lock says that somebody is at it.
    _locked: OwnedFd,
}

impl Removed<'_> {
    /// Gives its space back. What fails is said, and left for the next gc: the object is gone already.
    pub(crate) fn clear(self) {
        if let Some(name) = self.name
            && let Err(e) = self.store.shelf(Shelf::Trash).and_then(|trash| clear(&trash, &name))
        {
            log::warn!("remove {name}: {e}");
        }
    }

    /// The same, and more of it on a filesystem that is nearly full.
    pub(crate) fn relieve(self) {
        let store = self.store;
        self.clear();
        relieve(store);
    }
}

/// Takes away an object that nobody holds a value of: a layer, or an image's directory, which `dir` was opened for.
pub(crate) fn remove_object<'a>(store: &'a Store, shelf: Shelf, id: &Id, dir: BorrowedFd<'_>) -> Result<Removed<'a>> {
    flock::lock(dir, Lock::Exclusive, || format!("{} {}", kind_word(shelf), id.short()))?;
    if let Ok(rootfs) = fs::open_directory(dir, ROOTFS)
        && !record::identity_matches(dir, rootfs.as_fd())?
    {
        return Err(Error::new(Kind::Store, format!("{shelf}/{id}: not the subvolume that the store recorded")));
    }
    discard(store, Found { shelf, id: *id }, fs::duplicate(dir)?)
}

/// One rename takes the object away, and its name goes after it. The caller holds the object's lock.
fn discard(store: &Store, object: Found, dir: OwnedFd) -> Result<Removed<'_>> {
    let (shelf, trash) = (store.shelf(object.shelf)?, store.shelf(Shelf::Trash)?);
    // Locked from before the rename: nobody sees the name without its object and takes it for one that was left.
    let named = lock_name(store, object, dir.as_fd())?;
    let name = trash_name(object, &store.new_id()?);
    let name = match fs::rename(shelf.as_fd(), object.id.to_string(), trash.as_fd(), &name) {
        Ok(()) => Some(name),
        // Nothing can be added to a full filesystem, not even an entry of the trash; but the kernel keeps a reserve for
        // what only takes away.
        Err(e) if e.kind() == Kind::NoSpace => {
            log::debug!("rename to the trash: {e}");
            clear(&shelf, &object.id.to_string())?;
            None
        }
        Err(e) => return Err(e),
    };
    if let Some((names, name)) = named {
        free_name(store, &names, &name, object);
    }
    Ok(Removed { store, name, _locked: dir })
}

/// Frees the name of an object that is gone. One that stays is stale, and the next who wants it takes it.
pub(crate) fn release_name(store: &Store, object: Found, dir: BorrowedFd<'_>) {
    match lock_name(store, object, dir) {
        Ok(Some((names, name))) => free_name(store, &names, &name, object),
        Ok(None) => {}
        Err(e) => log::warn!("free the name of {}: {e}", object.path()),
    }
}

/// The name that an object's record says it has, and the shelf of names, locked; `None` when it has none.
fn lock_name(store: &Store, object: Found, dir: BorrowedFd<'_>) -> Result<Option<(OwnedFd, ObjectName)>> {
    if !matches!(object.shelf, Shelf::Snapshots | Shelf::Containers) {
        return Ok(None);
    }
    // A record that cannot be read keeps nobody from removing its object; the name is stale then.
    let read = || {
        let record = record::read::<Named>(dir).unwrap_or_else(|e| {
            log::warn!("free the name of {}: {e}", object.path());
            None
        });
        record.and_then(|record| record.name)
    };
    if read().is_none() {
        return Ok(None);
    }
    let names = store.lock_shelf(Shelf::Names)?;
    // Read again: until now it could be renamed.
    Ok(read().map(|name| (names, name)))
}

fn free_name(store: &Store, names: &OwnedFd, name: &ObjectName, object: Found) {
    if let Err(e) = store.release_name(names, name, object) {
        log::warn!("free the name of {}: {e}", object.path());
    }
}

/// Clears the directory of an object that never came to be, which the caller has locked, and its name.
pub(crate) fn clear_unfinished(store: &Store, object: Found, dir: BorrowedFd<'_>) -> Result<()> {
    release_name(store, object, dir);
    clear(&store.shelf(object.shelf)?, &object.id.to_string())
}

/// Removes a draft of ours, with a subvolume in it or without.
pub(crate) fn clear_draft(store: &Store, name: &str) {
    if let Err(e) = store.shelf(Shelf::Staging).and_then(|staging| clear(&staging, name)) {
        log::warn!("remove the draft {name}: {e}");
    }
}

/// The lock of an object. Somebody who looks for what is left may hold it for a moment, so one that is taken is asked
/// for again, for half a second.
fn try_lock(dir: BorrowedFd<'_>) -> Result<()> {
    for _ in 0..50 {
        match flock::try_lock(dir) {
            Err(e) if e.kind() == Kind::InUse => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    flock::try_lock(dir).map_err(|e| match e.kind() {
        Kind::InUse => Error::new(Kind::InUse, "in use: a command runs in it, or another tupper is at it"),
        _ => e,
    })
}

/// Empties and removes a directory that holds at most a subvolume `rootfs` and a few files. The subvolume goes only if
/// it is the recorded one, or empty: one that was made a moment before its maker was killed.
pub(crate) fn clear(shelf: &OwnedFd, name: &str) -> Result<()> {
    let dir = match fs::open_directory(shelf.as_fd(), name) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    match fs::open_directory(dir.as_fd(), ROOTFS) {
        Ok(rootfs) if record::identity_matches(dir.as_fd(), rootfs.as_fd())? => {
            destroy(dir.as_fd(), ROOTFS)?;
        }
        // rmdir(2) of an empty subvolume removes it since Linux 4.18.
        Ok(_) => fs::remove_directory(dir.as_fd(), ROOTFS).map_err(|_| {
            Error::new(Kind::Store, format!("{name}/{ROOTFS}: not the subvolume that the store recorded"))
        })?,
        Err(e) if e.kind() == Kind::NotFound => {}
        Err(e) => return Err(e),
    }
    for entry in fs::list(dir.as_fd(), ".")? {
        fs::unlink(dir.as_fd(), entry)?;
    }
    fs::remove_directory(shelf.as_fd(), name)
}

/// What is the matter with an object's `rootfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// It is the subvolume that was recorded.
    Its,
    /// Nothing says which it has to be.
    Unrecorded,
    /// It is another than the one that was recorded.
    Another,
    /// It is no subvolume.
    None,
}

/// What is the matter with an object's `rootfs`.
pub(crate) fn root(store: &Store, object: Found) -> Result<Root> {
    let dir = store.open_object(object.shelf, &object.id)?;
    if !node::is_directory(&fs::metadata_at(dir.as_fd(), ROOTFS)?) {
        return Ok(Root::None);
    }
    let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
    Ok(match () {
        () if !btrfs::is_subvolume(rootfs.as_fd())? => Root::None,
        () if record::identity_matches(dir.as_fd(), rootfs.as_fd())? => Root::Its,
        () if record::has_identity(dir.as_fd())? => Root::Another,
        () => Root::Unrecorded,
    })
}

/// Records that a subvolume is that of the object whose directory this is.
pub(crate) fn adopt(object: BorrowedFd<'_>, rootfs: BorrowedFd<'_>) -> Result<()> {
    record::write_identity(object, Identity::Itself(btrfs::info(rootfs)?.uuid))
}

/// Records that what is an object's `rootfs` is its own, if nobody works in it.
pub(crate) fn adopt_root(store: &Store, object: Found) -> Result<()> {
    let active = Active::open(store, object)?;
    adopt(active.dir(), active.rootfs.as_fd())
}

/// What has the subvolume with this UUID, among layers, snapshots and containers; of that between a layer and the pool's
/// snapshots of it, the layer.
pub(crate) fn owner_of(store: &Store, uuid: [u8; 16]) -> Result<Option<Found>> {
    for shelf in [Shelf::Layers, Shelf::Snapshots, Shelf::Containers] {
        for id in store.ids(shelf)? {
            let rootfs = fs::open_directory(store.dir(), format!("{shelf}/{id}/{ROOTFS}"));
            if rootfs.and_then(|rootfs| btrfs::info(rootfs.as_fd())).is_ok_and(|info| info.uuid == uuid) {
                return Ok(Some(Found { shelf, id }));
            }
        }
    }
    Ok(pool::layer_of_base(store, uuid)?.map(|id| Found { shelf: Shelf::Layers, id }))
}

/// Removes the directory of an object that has no `rootfs`, if nothing is in it but files of these names.
pub(crate) fn remove_empty(store: &Store, object: Found, but: &[&str]) -> Result<()> {
    let dir = fs::open_directory(store.dir(), object.path())?;
    try_lock(dir.as_fd())?;
    if let Some(other) = fs::list(dir.as_fd(), ".")?.into_iter().find(|name| !but.iter().any(|but| name == but)) {
        return Err(Error::new(Kind::InUse, format!("there is something in it: {}", other.display())));
    }
    discard(store, object, dir).map(Removed::clear)
}

/// Destroys a subvolume and all that are nested in it, deepest first. Whoever could write in it may have nested others
/// in it, read-only ones too, and a read-only subvolume does not let go of what is nested in it.
///
/// However deep they lie, few descriptors are open: the way back up is `..`.
fn destroy(at: BorrowedFd<'_>, name: &str) -> Result<()> {
    let mut here = fs::open_directory(at, name)?;
    let mut way = vec![Level::of(here.as_fd(), PathBuf::from(name))?];
    loop {
        let Some(level) = way.last_mut() else { return btrfs::destroy(at, name.as_ref()) };
        if let Some(nested) = level.nested.pop() {
            here = fs::open_directory_beneath(here.as_fd(), &nested)?;
            way.push(Level::of(here.as_fd(), nested)?);
            continue;
        }
        let empty = way.pop().map(|level| level.path).unwrap_or_default();
        let Some(above) = way.last() else { continue };
        for _ in empty.components() {
            here = fs::open_directory(here.as_fd(), "..")?;
        }
        let (parent, name) = (empty.parent().unwrap_or(Path::new("")), empty.file_name().unwrap_or_default());
        if identity(here.as_fd())? != above.identity {
            let message = format!("destroy the subvolume {}: it was moved meanwhile", empty.display());
            return Err(Error::new(Kind::InUse, message));
        }
        match parent.as_os_str().is_empty() {
            true => btrfs::destroy(here.as_fd(), name)?,
            false => btrfs::destroy(fs::open_directory_beneath(here.as_fd(), parent)?.as_fd(), name)?,
        }
    }
}

/// A subvolume on the way down to the deepest one.
struct Level {
    /// Where it lies in the one above.
    path: PathBuf,
    /// Device and inode number of its top directory.
    identity: (u64, u64),
    /// What is still nested in it.
    nested: Vec<PathBuf>,
}

impl Level {
    fn of(subvolume: BorrowedFd<'_>, path: PathBuf) -> Result<Level> {
        let nested = btrfs::nested(subvolume)?;
        if !nested.is_empty() {
            btrfs::set_read_only(subvolume, false)?;
        }
        Ok(Level { path, identity: identity(subvolume)?, nested })
    }
}

fn identity(directory: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let found = fs::metadata(directory)?;
    Ok((found.st_dev, found.st_ino))
}
