//! Named volumes: subvolumes that outlive the containers which write to them.
//!
//! A volume is a directory `volumes/ID/` with a record and a subvolume `rootfs`; ID is the sha256 of its name, so two of
//! one name cannot be. It comes and goes by one rename. One that is filled from an image's directory is filled as a
//! draft, and takes its place whole.

mod damage;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::{fs, node};
use crate::layer::{self, Limits};
use crate::name::{Digest, Id, VolumeName};
use crate::store::{Found, Shelf, Store, record};
use crate::subvolume::{self, Draft, Parent, Removed};

pub(crate) use damage::damage;

/// What the store records of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: VolumeName,
    created: Timestamp,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Files in it are neither copied on write nor checksummed.
    #[serde(default)]
    nocow: bool,
    /// No container has had it yet: the first fills it with what its image has at that place.
    #[serde(default)]
    fresh: bool,
    /// Nobody gave it a name.
    #[serde(default)]
    anonymous: bool,
    /// The container that it is to go with.
    #[serde(default)]
    owner: Option<Id>,
}

/// A volume as it lies in the store.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// When it was made.
    pub created: Timestamp,
    /// What people note of it.
    pub labels: BTreeMap<String, String>,
    /// Files in it are neither copied on write nor checksummed.
    pub nocow: bool,
    /// Nobody gave it a name.
    pub anonymous: bool,
    /// Its top directory.
    pub path: PathBuf,
    /// The container that it is to go with.
    owner: Option<Id>,
}

/// How a volume is made.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// Its name; without one it is 64 random hex digits, as podman's are.
    pub name: Option<VolumeName>,
    /// What people note of it.
    pub labels: BTreeMap<String, String>,
    /// Files in it are to be neither copied on write nor checksummed: btrfs(5), "nodatacow".
    pub nocow: bool,
}

/// Where a volume of this name lies.
pub(crate) fn place(name: &VolumeName) -> Found {
    Found { shelf: Shelf::Volumes, id: Digest::of(name.as_str().as_bytes()).id() }
}

/// The top directory of the volume of this name, whether it is there or not.
pub(crate) fn path(store: &Store, name: &VolumeName) -> PathBuf {
    let found = place(name);
    store.rootfs_path(found.shelf, &found.id)
}

/// Makes a volume, durable when this returns.
///
/// # Errors
/// [`Kind::AlreadyExists`] for a name that one has.
pub fn create(store: &Store, create: &Create) -> Result<VolumeName> {
    let anonymous = create.name.is_none();
    let name = create.name.clone().map_or_else(|| random_name(store), Ok)?;
    let doing = || format!("volume {name}");
    let record = Record {
        name: name.clone(),
        created: Timestamp::now(),
        labels: create.labels.clone(),
        nocow: create.nocow,
        fresh: true,
        anonymous,
        owner: None,
    };
    make(store, &record).context(doing)?;
    store.sync().context(doing)?;
    Ok(name)
}

/// A name that nobody chose.
pub(crate) fn random_name(store: &Store) -> Result<VolumeName> {
    store.new_id()?.to_string().parse()
}

fn make(store: &Store, record: &Record) -> Result<()> {
    store.ensure_shelf(Shelf::Volumes)?;
    let draft = empty(store, record.nocow)?;
    draft.publish(place(&record.name), record).map_err(|e| match e.kind() {
        Kind::AlreadyExists => {
            Error::new(Kind::AlreadyExists, "it exists already").with_hint("`tupper volume ls` lists what there is")
        }
        _ => e,
    })
}

fn empty(store: &Store, nocow: bool) -> Result<Draft<'_>> {
    let draft = Draft::create(store)?;
    fs::set_mode(draft.rootfs(), 0o755)?;
    if nocow {
        node::set_nocow(draft.rootfs())?;
    }
    Ok(draft)
}

/// Every volume, by name.
pub fn list(store: &Store) -> Result<Vec<Volume>> {
    list_but(store, Err)
}

/// [`list`], told of those that cannot be read.
pub fn list_but(store: &Store, broken: impl FnMut(Error) -> Result<()>) -> Result<Vec<Volume>> {
    let mut volumes = store.each(Shelf::Volumes, |id| open(store, id), broken)?;
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(volumes)
}

/// The volume of this name, or the only one whose name begins so.
pub fn find(store: &Store, text: &str) -> Result<Volume> {
    let missing = || {
        let error = Error::new(Kind::NotFound, format!("{text}: no such volume"));
        error.with_hint("`tupper volume ls` lists what there is")
    };
    let name: VolumeName = text.parse().map_err(|_| missing())?;
    match open(store, &place(&name).id) {
        Err(e) if e.kind() == Kind::NotFound => {}
        other => return other,
    }
    let mut meant: Vec<Volume> = list(store)?.into_iter().filter(|v| v.name.as_str().starts_with(text)).collect();
    match (meant.pop(), meant.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(missing()),
        (Some(_), more) => {
            let error = Error::new(Kind::Invalid, format!("{text}: {} volumes' names begin with it", more + 1));
            Err(error.with_hint("give more of the name"))
        }
    }
}

fn open(store: &Store, id: &Id) -> Result<Volume> {
    let dir = store.open_object(Shelf::Volumes, id)?;
    let record = read(dir.as_fd()).context(|| format!("volume {}", id.short()))?;
    Ok(Volume {
        path: store.rootfs_path(Shelf::Volumes, id),
        name: record.name,
        created: record.created,
        labels: record.labels,
        nocow: record.nocow,
        anonymous: record.anonymous,
        owner: record.owner,
    })
}

fn read(dir: BorrowedFd<'_>) -> Result<Record> {
    record::read(dir)?.ok_or_else(|| Error::new(Kind::Store, "no record"))
}

/// A volume's name, and the container that it is to go with, if it is.
pub(crate) fn owner(store: &Store, id: &Id) -> Result<Option<(VolumeName, Id)>> {
    let volume = open(store, id)?;
    Ok(volume.owner.map(|owner| (volume.name, owner)))
}

/// What a container wants of a volume.
pub(crate) struct Wanted<'a> {
    pub name: &'a VolumeName,
    /// Nobody gave it a name: it is made for this container, and may go with it.
    pub owner: Option<Id>,
    /// The root whose directory at `destination` it is filled with, if nobody has had it yet.
    pub root: &'a Parent,
    pub destination: &'a Path,
    /// Whether it is filled.
    pub copies: bool,
}

/// Sees to it that a volume is there, and filled if a container has it for the first time. It is durable with the next
/// commit.
pub(crate) fn provide(store: &Store, wanted: &Wanted<'_>) -> Result<()> {
    let doing = || format!("volume {}", wanted.name);
    let record = Record {
        name: wanted.name.clone(),
        created: Timestamp::now(),
        labels: BTreeMap::new(),
        nocow: false,
        fresh: true,
        anonymous: wanted.owner.is_some(),
        owner: wanted.owner,
    };
    let mut made = false;
    loop {
        if let Some(dir) = lock(store, wanted.name).context(doing)? {
            let record = read(dir.as_fd()).context(doing)?;
            return if record.fresh { first_use(store, &dir, record, wanted).context(doing) } else { Ok(()) };
        }
        match make(store, &record).context(doing) {
            // Somebody else has made it meanwhile; or removed it again.
            Err(e) if e.kind() == Kind::AlreadyExists && !made => {}
            other => other?,
        }
        made = true;
    }
}

/// The directory of a volume, locked, if there is one.
fn lock(store: &Store, name: &VolumeName) -> Result<Option<OwnedFd>> {
    let found = place(name);
    loop {
        let dir = match store.open_object(found.shelf, &found.id) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            other => other?,
        };
        flock::lock(dir.as_fd(), Lock::Exclusive, || format!("volume {name}"))?;
        // Who had the lock may have removed it, or put a filled one in its place.
        if fs::is_at(dir.as_fd(), store.shelf(found.shelf)?.as_fd(), found.id.to_string())? {
            return Ok(Some(dir));
        }
    }
}

/// Fills a volume with what the image has at its place, as podman does: owner, mode and all. The caller holds its lock.
fn first_use(store: &Store, dir: &OwnedFd, record: Record, wanted: &Wanted<'_>) -> Result<()> {
    let record = Record { fresh: false, ..record };
    let is_empty = fs::list(dir.as_fd(), "rootfs")?.is_empty();
    if wanted.copies && is_empty {
        // A snapshot: what is in the root of something that runs may be exchanged for a link while it is read.
        let source = Draft::on(store, wanted.root)?;
        if let Some(directory) = directory_in(source.rootfs(), wanted.destination)? {
            let draft = empty(store, record.nocow)?;
            let archive = layer::pack(&fs::path_of(directory.as_fd()), &[])?;
            layer::unpack(Box::new(archive), draft.rootfs(), &Limits::default())
                .context(|| format!("fill it with {}", wanted.destination.display()))?;
            draft.finish()?;
            return draft.take_place(place(wanted.name), &record);
        }
    }
    record::write(dir.as_fd(), &record)
}

/// The directory at `path` in a root, links followed inside it; nothing where there is something else, or nothing.
fn directory_in(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    match fs::open_directory_in_root(root, path) {
        Ok(directory) => Ok(Some(directory)),
        Err(e) if e.kind() == Kind::NotFound || fs::is_other_now(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Says that an anonymous volume stays when the container goes that it was made for.
pub(crate) fn disown(store: &Store, name: &VolumeName) -> Result<()> {
    let Some(dir) = lock(store, name)? else { return Ok(()) };
    let record = read(dir.as_fd())?;
    match record.owner {
        Some(_) => record::write(dir.as_fd(), &Record { owner: None, ..record }),
        None => Ok(()),
    }
}

/// Removes a volume: atomic, at once. Whoever calls knows that nobody uses it.
pub(crate) fn remove(store: &Store, name: &VolumeName) -> Result<()> {
    let doing = || format!("remove volume {name}");
    let found = place(name);
    let dir = store.open_object(found.shelf, &found.id).context(doing)?;
    subvolume::remove_object(store, found.shelf, &found.id, dir.as_fd()).map(Removed::clear).context(doing)?;
    subvolume::relieve(store);
    Ok(())
}
