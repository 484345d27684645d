//! Drafts: subvolumes that are being filled, and the layers that come of them.
//!
//! One draft is filled with layer after layer. What it holds when one is done is kept by a read-only snapshot, whose
//! commit makes it durable with its record; the last layer is the draft itself, sealed. So an image of N layers costs N
//! commits and what is synced at its end.
//!
//! Two processes that want the same layer do not both make it: whoever makes one holds its [`Claim`], a locked directory
//! `staging/layer-CHAIN` that becomes `layers/CHAIN` by one rename, and others wait for that lock. Whoever builds on a layer
//! holds it by a shared lock ([`Held`]), so that nobody removes it meanwhile.
//!
//! Nobody waits in a circle. A claim is waited for only by who comes to that layer and then has none but of layers above it:
//! layers are claimed from the lowest up, and ahead of the one that is made only as far as nobody else has claimed any.
//! Who holds what is waited for has come to a lower layer, or to this one, and makes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use serde::Serialize;

use super::{Parent, ROOTFS, clear, clear_draft};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::node::{self, Target, Time};
use crate::kernel::{btrfs, fs};
use crate::name::Id;
use crate::store::record::{self, Identity};
use crate::store::{Found, Left, Shelf, Store};

/// How long a draft is filled before what it holds so far is taken to the disk, and again. A commit makes everybody
/// wait for a few milliseconds; more often would cost more than it gains.
const WRITE_BACK: Duration = Duration::from_millis(300);

/// A subvolume that is being filled.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    store: &'a Store,
    name: String,
    dir: OwnedFd,
    rootfs: OwnedFd,
}

impl<'a> Draft<'a> {
    /// An empty one. Its top directory is of 1970, as umoci leaves it: in an archive that says nothing of the top it would
    /// otherwise be of the moment, and one image would be two trees.
    pub(crate) fn create(store: &'a Store) -> Result<Draft<'a>> {
        Draft::make(store, "draft", |dir| {
            let rootfs = fresh(dir)?;
            let epoch = Time { seconds: 0, nanoseconds: 0 };
            node::set_times(Target::Open(rootfs.as_fd()), epoch, epoch).map_err(|failure| failure.of(b"."))?;
            Ok(rootfs)
        })
    }

    /// An empty one that will never be anything else: room for what goes with it, however it ends. Its name begins with
    /// `kind`.
    pub(crate) fn scratch(store: &'a Store, kind: &str) -> Result<Draft<'a>> {
        Draft::make(store, kind, fresh)
    }

    /// A writable snapshot of a layer.
    pub(crate) fn on(store: &'a Store, parent: &Parent) -> Result<Draft<'a>> {
        Draft::make(store, "draft", |dir| {
            record::write_identity(dir, Identity::ChildOf(parent.uuid))?;
            btrfs::snapshot(parent.rootfs.as_fd(), dir, ROOTFS, false)?;
            fs::open_directory(dir, ROOTFS)
        })
    }

    fn make(store: &'a Store, kind: &str, make: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd>) -> Result<Draft<'a>> {
        let (name, dir) = store.make_draft(kind)?;
        match make(dir.as_fd()) {
            Ok(rootfs) => Ok(Draft { store, name, dir, rootfs }),
            Err(e) => {
                clear_draft(store, &name);
                Err(e)
            }
        }
        .context(|| "make a draft subvolume")
    }

    /// What it is called in `staging/`.
    pub(crate) fn name(&self) -> &str {
        &self.name
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

    /// The directory that it lies in. A file there can be [attached](Claim::attach) to the layer that comes of it.
    pub(crate) fn dir(&self) -> Result<OwnedFd> {
        fs::duplicate(self.dir.as_fd())
    }

    /// Takes it to the disk, with everything written before. The long part of [`seal`](Draft::seal), without a
    /// lock.
    pub(crate) fn finish(&self) -> Result<()> {
        fs::sync_filesystem(self.dir.as_fd()).context(|| "write the draft to the disk")
    }

    /// Makes it the object `found`, which must not be there: writable and visible when this returns, and durable after the
    /// next commit.
    pub(crate) fn publish<T: Serialize>(self, found: Found, record: &T) -> Result<()> {
        record::write(self.dir.as_fd(), record)?;
        let (staging, shelf) = (self.store.shelf(Shelf::Staging)?, self.store.shelf(found.shelf)?);
        fs::rename(staging.as_fd(), &self.name, shelf.as_fd(), found.id.to_string())
    }

    /// The same in the place of an object that is there, whose lock the caller holds: it goes, in the same moment.
    pub(crate) fn take_place<T: Serialize>(self, found: Found, record: &T) -> Result<()> {
        record::write(self.dir.as_fd(), record)?;
        let (staging, shelf) = (self.store.shelf(Shelf::Staging)?, self.store.shelf(found.shelf)?);
        // What was there is the draft now, and cleared away with it.
        fs::exchange(staging.as_fd(), &self.name, shelf.as_fd(), found.id.to_string())
    }

    /// Makes its subvolume, [finished](Draft::finish), the root of a layer that is there and whose lock the caller holds, in
    /// one moment; what was the root goes with the draft. Durable when this returns.
    pub(crate) fn take_root_of(self, layer: BorrowedFd<'_>) -> Result<()> {
        let old = fs::open_directory(layer, ROOTFS)?;
        if !record::identity_matches(layer, old.as_fd())? {
            return Err(Error::new(Kind::Store, "its rootfs is not the subvolume that the store recorded"));
        }
        let uuid = |rootfs: BorrowedFd<'_>| btrfs::info(rootfs).map(|info| Identity::Itself(info.uuid));
        // Either may be there whenever the power goes.
        let either = [uuid(self.rootfs.as_fd())?, uuid(old.as_fd())?];
        record::write_identities(self.dir.as_fd(), &either)?;
        record::write_identities(layer, &either)?;
        // What is read-only cannot be moved. A layer that is writable because of a kill is verified before it is trusted.
        btrfs::set_read_only(old.as_fd(), false)?;
        fs::exchange(self.dir.as_fd(), ROOTFS, layer, ROOTFS)?;
        btrfs::set_read_only(self.rootfs.as_fd(), true)?;
        fs::sync_filesystem(layer)
    }

    /// Keeps what it holds now as the layer that was claimed: durable, with its record, and visible when this returns.
    pub(crate) fn keep<T: Serialize>(&self, mut claim: Claim<'a>, record: &T) -> Result<Held> {
        record::write(claim.dir.as_fd(), record)?;
        let uuid = btrfs::info(self.rootfs.as_fd())?.uuid;
        record::write_identity(claim.dir.as_fd(), Identity::ChildOf(uuid))?;
        btrfs::snapshot(self.rootfs.as_fd(), claim.dir.as_fd(), ROOTFS, true)?;
        claim.publish()
    }

    /// Makes a [finished](Draft::finish) draft the layer that was claimed: read-only and visible.
    ///
    /// The publishing rename itself is durable only after the caller's next sync.
    pub(crate) fn seal<T: Serialize>(self, mut claim: Claim<'a>, record: &T) -> Result<Held> {
        record::write(claim.dir.as_fd(), record)?;
        let uuid = btrfs::info(self.rootfs.as_fd())?.uuid;
        record::write_identity(claim.dir.as_fd(), Identity::Itself(uuid))?;
        fs::rename(self.dir.as_fd(), ROOTFS, claim.dir.as_fd(), ROOTFS)?;
        btrfs::set_read_only(self.rootfs.as_fd(), true).context(|| "seal the draft")?;
        claim.publish()
    }
}

/// An empty subvolume, recorded as the draft's own.
fn fresh(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    btrfs::create(dir, ROOTFS)?;
    let rootfs = fs::open_directory(dir, ROOTFS)?;
    record::write_identity(dir, Identity::Itself(btrfs::info(rootfs.as_fd())?.uuid))?;
    Ok(rootfs)
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
        clear_draft(self.store, &self.name);
    }
}

/// The right to make a layer: nobody else does meanwhile. Dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    store: &'a Store,
    chain: Id,
    /// Locked.
    dir: OwnedFd,
    published: bool,
}

/// A layer that nobody removes as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    dir: OwnedFd,
}

/// Whose turn it is to make a layer.
#[derive(Debug)]
pub(crate) enum Turn<'a> {
    /// Nobody's: it is there.
    There(Held),
    /// The caller's.
    Ours(Claim<'a>),
}

impl<'a> Claim<'a> {
    /// The layer if it is there, or the right to make it; while somebody else makes it, this waits.
    pub(crate) fn layer(store: &'a Store, chain: &Id) -> Result<Turn<'a>> {
        loop {
            if let Some(held) = Held::layer(store, chain)? {
                return Ok(Turn::There(held));
            }
            match Claim::if_free(store, chain)? {
                Some(claim) => return Ok(Turn::Ours(claim)),
                None => wait(store, &draft_name(chain), chain)?,
            }
        }
    }

    /// The right to make a layer that is not there, unless somebody else has it.
    pub(crate) fn if_free(store: &'a Store, chain: &Id) -> Result<Option<Claim<'a>>> {
        match store.make_draft_named(&draft_name(chain)) {
            Ok(dir) => {
                let claim = Claim { store, chain: *chain, dir, published: false };
                // Who made it may have published it between somebody's look and this claim.
                Ok((!store.exists(Shelf::Layers, chain)?).then_some(claim))
            }
            Err(e) if e.kind() == Kind::AlreadyExists => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Puts a file that lies [beside](Draft::dir) the draft beside the layer. Its content is the caller's to sync.
    pub(crate) fn attach(&self, draft: &Draft<'_>, name: &str) -> Result<()> {
        fs::rename(draft.dir.as_fd(), name, self.dir.as_fd(), name)
    }

    /// One rename, and the layer is there.
    fn publish(&mut self) -> Result<Held> {
        let (staging, layers) = (self.store.shelf(Shelf::Staging)?, self.store.shelf(Shelf::Layers)?);
        fs::rename(staging.as_fd(), self.name(), layers.as_fd(), self.chain.to_string())
            .context(|| "publish the layer")?;
        self.published = true;
        let dir = fs::duplicate(self.dir.as_fd())?;
        // Nobody gets between the two locks: the kernel exchanges them under one spinlock (flock_lock_inode, fs/locks.c,
        // since 4.0), whatever flock(2) says in general.
        flock::lock(dir.as_fd(), Lock::Shared, || format!("layer {}", self.chain.short()))?;
        Ok(Held { dir })
    }

    fn name(&self) -> String {
        draft_name(&self.chain)
    }
}

fn draft_name(chain: &Id) -> String {
    format!("layer-{chain}")
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.published {
            clear_draft(self.store, &self.name());
        }
    }
}

impl Held {
    /// The layer, if it is there.
    pub(crate) fn layer(store: &Store, chain: &Id) -> Result<Option<Held>> {
        let dir = match store.open_object(Shelf::Layers, chain) {
            Ok(dir) => dir,
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        flock::lock(dir.as_fd(), Lock::Shared, || format!("layer {}", chain.short()))?;
        // Its removal may have been faster than the lock.
        let there = fs::is_at(dir.as_fd(), store.shelf(Shelf::Layers)?.as_fd(), chain.to_string())?;
        Ok(there.then_some(Held { dir }))
    }

    /// The directory that holds its record.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Its root.
    pub(crate) fn rootfs(&self) -> Result<OwnedFd> {
        fs::open_directory(self.dir.as_fd(), ROOTFS)
    }

    /// It as the source of drafts.
    pub(crate) fn parent(&self) -> Result<Parent> {
        Parent::of(self.rootfs()?)
    }
}

/// Waits for who makes a layer; what is left of one who was killed at it is cleared away.
fn wait(store: &Store, name: &str, chain: &Id) -> Result<()> {
    let dir = match fs::open_directory(store.shelf(Shelf::Staging)?.as_fd(), name) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    flock::lock(dir.as_fd(), Lock::Shared, || format!("layer {}", chain.short()))?;
    if !fs::is_at(dir.as_fd(), store.shelf(Shelf::Staging)?.as_fd(), name)? {
        return Ok(());
    }
    drop(dir);
    if let Some(_locked) = store.take_left(&Left::Draft(name.to_string()))? {
        clear(&store.shelf(Shelf::Staging)?, name)?;
    }
    Ok(())
}
