//! Where things lie on disk, and who may touch them.
//!
//! A store is a directory, `/var/lib/tupper` unless told otherwise. The disk is the truth: there is no database.
//!
//! ```text
//! ROOT/
//!   store.btrfs               embedded store only: a sparse file, loop-mounted at fs/; a link, where it has a device of its own
//!   fs/                       a subvolume, or the mount of store.btrfs; mode 0700; xattr: format version, store UUID
//!     images/ID/              an image: xattr record, config.json (ID is its sha256); also the links that become its first
//!                             tags, until they do
//!     layers/CHAIN/rootfs     a sealed (read-only) subvolume; xattr record on CHAIN/
//!     layers/CHAIN/recipe     how its archive is put together again: layer/recipe.rs
//!     tags/NAME               symlink to ../images/ID; '/' in NAME is written '%'
//!     snapshots/ID/rootfs     a snapshot of a layer or of another snapshot; xattr record on ID/
//!     containers/ID/rootfs    the same with a container's record and spec
//!     names/NAME              symlink to ../snapshots/ID or ../containers/ID
//!     volumes/ID/rootfs       a named volume, ID the sha256 of its name; xattr record on ID/
//!     networks/NAME           a network that people made: a document
//!     pool/CHAIN-NONCE/rootfs a snapshot of a layer that a throwaway container will take; subvolume/pool.rs tells its rules
//!     pool/base-CHAIN/rootfs  what these are snapshots of
//!     staging/ANY             what is under way: drafts, and intents; staging.rs tells their rules
//!     trash/SHELF-ID-NONCE    on its way out
//!     last                    symlink to the image that was used last, for a `shell` without IMAGE
//! /run/tupper/networks/       networks in use: network/used.rs tells what lies there
//! /run/tupper/UUID/ID.json    what runs now: gone after a reboot, and worthless without its process
//! /run/tupper/UUID/ID.freezing  its lock allows to freeze a container that runs, and to let it go on
//! ```
//!
//! Invariants:
//! - An object exists when its directory holds `rootfs` (images: `config.json`). Its record is an xattr on that
//!   directory, set before the snapshot ioctl, so the one commit that makes the snapshot durable makes the record
//!   durable, and every snapshot has a parent directory of its own, so that creations share commits.
//! - Publishing and removing is one rename of that directory, all within the one subvolume `fs/`.
//! - Locks are flocks on directories: on an object's own (in use, being made, being removed), on `images/` (names and
//!   layers change), on `names/` (a name is freed or changed, or a stale one replaced), on `containers/` (what was decided about one is changed), on `staging/` (shared: an entry is made;
//!   exclusive: somebody looks for what is left), on `pool/` (its snapshots are made, or cleared), on `trash/` (a command tidies up before its own work), on ROOT (the store
//!   is being made or mounted). They die with their holder. Who holds `images/` may take `staging/`, who holds an object's
//!   may take `names/`; otherwise nobody waits for one of these shelves while it holds another.
//!   Who holds `images/` or an object's may take `pool/`, whose holder waits for no other.
//!   Who makes a layer, or holds those below it, may take `images/` and `staging/`; who holds `images/` only tries a layer's lock.
//! - Whatever is under way has an entry in `staging/` or `trash/` from before it changes anything else until after. An
//!   entry whose lock is free was left by somebody who was killed.
//!
//! It must not know what an image or a snapshot is, only where they lie.

mod damage;
mod destroy;
mod device;
mod embedded;
mod id_lease;
mod lookup;
pub(crate) mod record;
mod run_state;
mod staging;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(crate) use damage::{Damage, Mend, Work};
pub use embedded::{Options, Size, default_size};
pub(crate) use id_lease::IdLease;
pub use lookup::Found;
pub(crate) use lookup::{Named, kind_word};
pub use run_state::Running;
pub(crate) use run_state::{Freezing, boot_id};
pub(crate) use staging::{Intent, Left, SCRATCH, lock_if_free, trash_name};

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::trees::Trees;
use crate::kernel::{self, btrfs, fs, signal};
use crate::name::Id;

/// The version of the layout above that this tupper writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

const FORMAT: &str = "user.tupper.format";

/// A filesystem with less than this part of it free is nearly full.
const NEARLY_FULL: u64 = 16;

/// A directory of the store, each with one kind of object in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shelf {
    /// Images by id.
    Images,
    /// Sealed subvolumes by chain id.
    Layers,
    /// Image names.
    Tags,
    /// Snapshots by id.
    Snapshots,
    /// Containers by id.
    Containers,
    /// Names of snapshots and containers.
    Names,
    /// Named volumes, by the sha256 of the name.
    Volumes,
    /// Networks by name.
    Networks,
    /// Snapshots of layers that are ready before somebody wants them.
    Pool,
    /// Drafts.
    Staging,
    /// Objects on their way out.
    Trash,
}

pub(crate) const SHELVES: [Shelf; 11] = [
    Shelf::Images,
    Shelf::Layers,
    Shelf::Tags,
    Shelf::Snapshots,
    Shelf::Containers,
    Shelf::Names,
    Shelf::Volumes,
    Shelf::Networks,
    Shelf::Pool,
    Shelf::Staging,
    Shelf::Trash,
];

impl Shelf {
    /// Its name below `fs/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Shelf::Images => "images",
            Shelf::Layers => "layers",
            Shelf::Tags => "tags",
            Shelf::Snapshots => "snapshots",
            Shelf::Containers => "containers",
            Shelf::Names => "names",
            Shelf::Volumes => "volumes",
            Shelf::Networks => "networks",
            Shelf::Pool => "pool",
            Shelf::Staging => "staging",
            Shelf::Trash => "trash",
        }
    }

    /// The shelf with this name.
    pub(crate) fn named(name: &str) -> Option<Shelf> {
        SHELVES.into_iter().find(|shelf| shelf.as_str() == name)
    }
}

impl fmt::Display for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The xattr on `fs/`: the store's marker.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Format {
    version: u32,
    uuid: String,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    dir: OwnedFd,
    uuid: String,
    embedded: bool,
}

impl Store {
    /// Opens the store at `root` for reading. `None` when there is none yet: a listing of nothing is empty.
    pub fn open(root: &Path) -> Result<Option<Store>> {
        require_root()?;
        match fs::open_directory_follow(root) {
            Ok(_) => {}
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e.with_kind(Kind::Store)),
        }
        if let Some(store) = Store::open_fs(root)? {
            return Ok(Some(store));
        }
        if !embedded::exists(root)? {
            return Ok(None);
        }
        // Made before and not mounted now: after a reboot, or in another mount namespace.
        let _making = embedded::lock(root)?;
        embedded::ensure_mounted(root)?;
        Store::open_fs(root)
    }

    /// Opens the store at `root`, making it first if there is none.
    pub fn open_or_init(root: &Path) -> Result<Store> {
        match Store::open(root)? {
            Some(store) => {
                store.require_writable()?;
                store.require_host_room()?;
                Ok(store)
            }
            None => Store::init(root, &Options::default()),
        }
    }

    /// Makes the store at `root`: a subvolume when `root` lies on btrfs, else a filesystem of its own in a sparse file
    /// or on a device. Killed in the middle, it goes on where it was at the next call.
    pub fn init(root: &Path, options: &Options) -> Result<Store> {
        require_root()?;
        let doing = || format!("make a store in {}", root.display());
        let making = embedded::make_root(root).context(doing)?;
        if let Some(store) = Store::open_fs(root)? {
            if options.explicit {
                return Err(Error::new(Kind::AlreadyExists, format!("{}: already a store", root.display())));
            }
            return Ok(store); // somebody else made it while we waited for the lock
        }
        embedded::ensure_filesystem(root, making.as_fd(), options)
            .context(doing)
            .map_err(|e| e.with_kind(Kind::Store))?;
        ensure_layout(&root.join("fs")).context(doing).map_err(|e| e.with_kind(Kind::Store))?;
        Store::open_fs(root)?
            .ok_or_else(|| Error::new(Kind::Store, format!("{}: no store after making it", root.display())))
    }

    /// What is left at `root` of a store whose making was killed, below `root`; with `recover`, the store is made whole.
    pub(crate) fn half_made(root: &Path, recover: bool) -> Result<Vec<&'static str>> {
        require_root()?;
        if !root.try_exists().map_err(|e| Error::from_io(format_args!("stat {}", root.display()), e))? {
            return Ok(Vec::new());
        }
        let left = embedded::half_made(root)?;
        if recover && !left.is_empty() {
            embedded::clear_draft(root)?;
            if left.contains(&"fs") {
                Store::init(root, &Options::default())?;
            }
        }
        Ok(left)
    }

    /// What is wrong with how the store is mounted: where, and what.
    pub(crate) fn host_damage(&self) -> Result<Vec<(PathBuf, String)>> {
        embedded::host_damage(&self.root)
    }

    /// Opens `ROOT/fs` if a store is there and mounted.
    fn open_fs(root: &Path) -> Result<Option<Store>> {
        let unusable = |e: Error| e.with_kind(Kind::Store);
        let path = root.join("fs");
        let dir = match fs::open_directory(fs::CWD, &path) {
            Ok(dir) => dir,
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(unusable(e)),
        };
        let Some(format) = fs::get_xattr(dir.as_fd(), FORMAT).or_else(|e| match e.errno() {
            _ if e.kind() == Kind::Unsupported => Ok(None),
            Some(kernel::EIO) => Err(unusable(e).with_hint(way_out(embedded::exists(root).unwrap_or_default()))),
            _ => Err(unusable(e)),
        })?
        else {
            return Ok(None);
        };
        // A newer version may have other fields: only the number is read first.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let broken = |e| Error::new(Kind::Store, format!("{}: broken format marker: {e}", path.display()));
        let version = serde_json::from_slice::<Version>(&format).map_err(broken)?.version;
        if version > FORMAT_VERSION {
            let message = format!("{}: store format {version} is newer than {FORMAT_VERSION}", root.display());
            return Err(
                Error::new(Kind::Store, message).with_hint("use the newer tupper that made it, or another --root")
            );
        }
        let format: Format = serde_json::from_slice(&format).map_err(broken)?;
        Ok(Some(Store { root: root.to_path_buf(), dir, uuid: format.uuid, embedded: embedded::belongs_at(root)? }))
    }

    /// A file without a name on the store's filesystem, for what is needed for a while.
    pub(crate) fn unnamed_file(&self) -> Result<std::fs::File> {
        fs::unnamed_file(self.shelf(Shelf::Staging)?.as_fd(), 0o600)
    }

    /// The directory that was given as the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The UUID that this store was given when it was made.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The device that it was given, if it was.
    pub fn device(&self) -> Result<Option<PathBuf>> {
        if self.embedded && device::is_given(&self.root)? { device::of(&self.root).map(Some) } else { Ok(None) }
    }

    /// Whether it is a filesystem of its own, in `store.btrfs` or on a device.
    pub fn is_embedded(&self) -> bool {
        self.embedded
    }

    /// The path of an object's root filesystem.
    pub fn rootfs_path(&self, shelf: Shelf, id: &Id) -> PathBuf {
        self.root.join("fs").join(shelf.as_str()).join(id.to_string()).join("rootfs")
    }

    /// How an embedded store compresses what is written to it, if it does.
    pub fn compression(&self) -> Result<Option<String>> {
        embedded::compression(self.dir.as_fd())
    }

    /// How much the filesystem of the store holds and has left, in bytes.
    pub fn space(&self) -> Result<Space> {
        let found = fs::filesystem(self.dir.as_fd())?;
        Ok(Space { size: found.size, available: found.available })
    }

    /// Makes everything done so far durable (syncfs(2)).
    pub fn sync(&self) -> Result<()> {
        fs::sync_filesystem(self.dir.as_fd())
    }

    /// Makes everything done so far durable, and has the space of what was removed given back now.
    pub(crate) fn reclaim(&self) -> Result<()> {
        btrfs::reclaim(self.dir.as_fd())
    }

    /// Waits until the space of everything that was removed so far is back. btrfs gives it back in the background, which for a
    /// large tree takes long.
    pub fn await_space(&self) -> Result<()> {
        let destroyed = || Trees::of(self.dir.as_fd()).destroyed();
        let mut left = destroyed()?;
        loop {
            // What was freed is free from the next commit on, which is also what has the rest go on.
            self.reclaim()?;
            if left.is_empty() {
                return Ok(());
            }
            let soon = Instant::now() + Duration::from_secs(1);
            while !left.is_empty() && Instant::now() < soon {
                std::thread::sleep(Duration::from_millis(10));
                let now = destroyed()?;
                left.retain(|id| now.contains(id));
            }
        }
    }

    /// Unmounts the embedded store at `root`, whole or only half made; its loop device detaches itself. The next verb
    /// mounts it again. One that is not mounted is no error.
    pub fn unmount(root: &Path) -> Result<()> {
        require_root()?;
        if !fs::exists_at(fs::CWD, root.join("fs"))? {
            return Ok(());
        }
        if !embedded::belongs_at(root)? {
            let message = format!("{}: a subvolume, not a mount of its own", root.display());
            return Err(Error::new(Kind::Unsupported, message));
        }
        let _making = embedded::lock(root)?;
        let waited = await_those_left(root);
        if waited.is_err() && signal::noted_termination().is_some() {
            return waited;
        }
        // A filesystem that gave up after an error of its disk cannot be read, and being mounted anew is its way out.
        unmount_soon(root).or_else(|e| waited.and(Err(e)))
    }

    /// Makes the embedded store larger, while it is used. Returns its size in bytes.
    ///
    /// # Errors
    /// A store that is not embedded ([`Kind::Unsupported`]); a size that is less than it has ([`Kind::Invalid`]), or more than is
    /// free on the disk under it ([`Kind::NoSpace`]).
    pub fn grow(&self, size: Size) -> Result<u64> {
        let doing = || format!("grow the store {}", self.root.display());
        if !self.embedded {
            let error = Error::new(Kind::Unsupported, "it is a subvolume, as large as the filesystem that it is on");
            return Err(error.with_hint("btrfs-filesystem(8), `resize`, is for that")).context(doing);
        }
        let _making = embedded::lock(&self.root).context(doing)?;
        embedded::grow(&self.root, self.dir.as_fd(), size).context(doing)
    }

    /// A lock on a whole shelf, until it is dropped.
    pub(crate) fn lock_shelf(&self, shelf: Shelf) -> Result<OwnedFd> {
        let directory = self.shelf(shelf)?;
        flock::lock(directory.as_fd(), Lock::Exclusive, || shelf)?;
        Ok(directory)
    }

    /// Makes a shelf that stores of before November 2026 lack.
    pub(crate) fn ensure_shelf(&self, shelf: Shelf) -> Result<()> {
        fs::ensure_directory(self.dir.as_fd(), shelf.as_str(), 0o700)
    }

    /// The directory of a shelf.
    pub(crate) fn shelf(&self, shelf: Shelf) -> Result<OwnedFd> {
        fs::open_directory(self.dir.as_fd(), shelf.as_str()).context(|| format!("store {}", self.root.display()))
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A loop file that runs out of host space loses writes that were already accepted: refuse before that.
    pub fn require_host_room(&self) -> Result<()> {
        match self.embedded {
            true => embedded::require_host_room(&self.root, 0),
            false => Ok(()),
        }
    }

    /// The disk under the store, to be looked at while much is written.
    pub(crate) fn host_room(&self) -> Result<HostRoom> {
        let root = self.embedded.then(|| self.root.clone());
        Ok(HostRoom { root, dir: fs::duplicate(self.dir.as_fd())?, waiting: AtomicU64::new(0) })
    }

    /// [`require_host_room`](Store::require_host_room) for the little that a removal writes.
    pub fn require_host_room_to_remove(&self) -> Result<()> {
        match self.embedded {
            true => embedded::require_host_room_to_remove(&self.root),
            false => Ok(()),
        }
    }

    /// Refuses a store whose filesystem is read-only, before anything is begun.
    pub fn require_writable(&self) -> Result<()> {
        if !fs::filesystem(self.dir.as_fd())?.read_only {
            return Ok(());
        }
        let message = format!("write to the store {}: its filesystem is read-only", self.root.display());
        Err(Error::new(Kind::Store, message).with_hint(way_out(self.embedded)))
    }

    /// Whether the filesystem is nearly full.
    pub(crate) fn is_scarce(&self) -> bool {
        self.space().is_ok_and(|space| space.available < space.size / NEARLY_FULL)
    }
}

/// The disk under an embedded store, which must not run full meanwhile.
#[derive(Debug)]
pub(crate) struct HostRoom {
    /// ROOT; nothing for a store that is not embedded.
    root: Option<PathBuf>,
    dir: OwnedFd,
    /// How much of what was written is not known to have its place there.
    waiting: AtomicU64,
}

impl HostRoom {
    /// Refuses to go on when there may be no room for what was written so far and so many bytes more. As long as there is
    /// plenty this costs a look; when it becomes scarce, what was written is taken to the disk first, to know.
    pub(crate) fn require(&self, more: u64) -> Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let waiting = self.waiting.fetch_add(more, Ordering::Relaxed) + more;
        if embedded::require_host_room(root, waiting).is_ok() {
            return Ok(());
        }
        fs::sync_filesystem(self.dir.as_fd())?;
        self.waiting.store(0, Ordering::Relaxed);
        embedded::require_host_room(root, 0)
    }
}

/// Waits for whom a command that has ended left for a moment: to take its tree apart, and to make snapshots for the pool.
fn await_those_left(root: &Path) -> Result<()> {
    if let Some(trash) = fs::open_directory_if_any(fs::CWD, root.join("fs").join(Shelf::Trash.as_str()))? {
        staging::await_removals(&trash)?;
    }
    if let Some(pool) = fs::open_directory_if_any(fs::CWD, root.join("fs").join(Shelf::Pool.as_str()))? {
        flock::lock(pool.as_fd(), Lock::Exclusive, || Shelf::Pool)?;
    }
    Ok(())
}

/// Unmounts the embedded store at `root` as soon as who has just ended is gone, and who was left by that for a moment.
fn unmount_soon(root: &Path) -> Result<()> {
    for _ in 0..200 {
        match embedded::unmount(root) {
            Err(e) if e.kind() == Kind::InUse => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
    embedded::unmount(root)
}

/// What to do about a filesystem that the kernel made read-only.
fn way_out(embedded: bool) -> &'static str {
    match embedded {
        true => {
            "dmesg(1) tells whether an error made it so; when that is mended, `tupper store umount`: the next command \
             mounts it again"
        }
        false => "dmesg(1) tells whether an error made it so; when that is mended, mount it again",
    }
}

/// The store's filesystem in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// In all.
    pub size: u64,
    /// Still free.
    pub available: u64,
}

fn require_root() -> Result<()> {
    if kernel::is_root() {
        return Ok(());
    }
    Err(Error::new(Kind::Store, "open the store: not root")
        .with_hint("run it with sudo (rootless stores are not supported yet)"))
}

/// The shelves, then the marker: a store without its marker is one that is still being made.
fn ensure_layout(path: &Path) -> Result<()> {
    let dir = fs::open_directory(fs::CWD, path)?;
    fs::set_mode(dir.as_fd(), 0o700)?;
    for shelf in SHELVES {
        fs::ensure_directory(dir.as_fd(), shelf.as_str(), 0o700)?;
    }
    let format = Format { version: FORMAT_VERSION, uuid: new_uuid()? };
    let json = serde_json::to_vec(&format).map_err(|e| Error::new(Kind::Store, e.to_string()))?;
    fs::set_xattr(dir.as_fd(), FORMAT, &json)?;
    fs::sync_filesystem(dir.as_fd())
}

/// A random UUID (RFC 9562, version 4).
fn new_uuid() -> Result<String> {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&fs::random_bytes()?[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(uuid_text(&bytes))
}

/// A UUID as it is written (RFC 9562, section 4).
pub(crate) fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
