//! Snapshots: writable (or read-only) children of an image, of another snapshot or of a container.
//!
//! A snapshot is a directory `snapshots/ID/` with its record and its subvolume `rootfs`, and perhaps a name. It shares
//! extents with what it was made from and depends on nothing else: whatever is removed, it stays whole.

mod diff;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use diff::{Became, Change, diff};

use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Image};
use crate::interrupt;
use crate::kernel::btrfs;
use crate::kernel::fs;
use crate::name::{Id, ObjectName};
use crate::store::{Found, Shelf, Store, kind_word, record, uuid_text};
use crate::subvolume::{Active, New, Parent, Place};

/// Creations that run at once. The snapshot ioctl holds its parent directory's lock over a transaction commit; each
/// snapshot has a directory of its own, so this many share one commit. More gain nothing.
const PARALLEL: u64 = 64;

/// The largest count of one call.
const MOST: u64 = 1_000_000;

/// What the store records of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: Option<ObjectName>,
    created: Timestamp,
    read_only: bool,
    source: Source,
    /// The image at the root of where it came from.
    image: Option<Id>,
}

/// What something was made from: for people and listings, nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The kind of object: `image`, `snapshot` or `container`.
    pub kind: String,
    /// Its id.
    pub id: Id,
    /// What it was called then.
    pub name: String,
}

/// A snapshot as it lies in the store.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its id.
    pub id: Id,
    /// Its name, if it has one.
    pub name: Option<ObjectName>,
    /// When it was made.
    pub created: Timestamp,
    /// Whether nothing in it can be changed.
    pub read_only: bool,
    /// What it was made from.
    pub source: Source,
    /// Its root directory.
    pub path: PathBuf,
}

/// What the kernel knows of a snapshot's subvolume.
#[derive(Debug, Clone)]
pub struct Subvolume {
    /// Its number in the filesystem.
    pub id: u64,
    /// Its UUID.
    pub uuid: String,
    /// The generation of its last change that reached the disk.
    pub generation: u64,
}

/// How snapshots are made.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// The name; with a count, `NAME-1` … `NAME-N`.
    pub name: Option<String>,
    /// How many; 1 when not given.
    pub count: Option<u64>,
    /// Nothing in them may be changed.
    pub read_only: bool,
}

/// A source that was looked up: what a snapshot of it is made of, and how it is called.
pub(crate) struct Resolved {
    pub parent: Parent,
    pub source: Source,
    /// The image it is, or the one at the root of where it came from, if that is still there.
    pub image: Option<Image>,
    /// Where it lies, for people.
    pub path: PathBuf,
}

/// Finds what `text` names: a container, a snapshot or an image.
pub(crate) fn resolve(store: &Store, text: &str) -> Result<Resolved> {
    let found = store.find(text)?;
    let source = |name| Source { kind: kind_word(found.shelf).to_string(), id: found.id, name };
    if found.shelf == Shelf::Images {
        let image = image::find(store, &format!("image:{}", found.id))?;
        let path = image.path(store);
        return Ok(Resolved {
            parent: image.parent(store)?,
            source: source(image.name_for(text)),
            image: Some(image),
            path,
        });
    }
    let origin = Origin::of(store, found)?;
    let image = origin.image.map(|id| Image::open(store, &id)).transpose();
    Ok(Resolved {
        parent: Parent::open(store, found)?,
        source: source(origin.name.map_or_else(|| found.id.to_string(), |name| name.to_string())),
        image: image.or_else(|e| if e.kind() == Kind::NotFound { Ok(None) } else { Err(e) })?,
        path: store.rootfs_path(found.shelf, &found.id),
    })
}

/// Makes snapshots of `text`: durable, with record and name, when it returns. All or none: the first failure takes
/// those that were made with it.
pub fn create(store: &Store, text: &str, create: &Create) -> Result<Vec<Id>> {
    let names = names(create)?;
    let doing = || format!("snapshot of {text}");
    let resolved = resolve(store, text).call_context(doing)?;
    warn_of_nested(&resolved).context(doing)?;
    fork(store, &resolved, &names, create.read_only).context(doing)
}

/// A snapshot ends at the subvolumes nested in its source: they are empty directories in it.
fn warn_of_nested(resolved: &Resolved) -> Result<()> {
    match resolved.parent.nested()?.as_slice() {
        [] => {}
        nested => {
            let paths: Vec<String> = nested.iter().map(|path| format!("/{}", path.display())).collect();
            log::warn!(
                "{}: not in the snapshot, because they are subvolumes of their own: {}",
                resolved.source.name,
                paths.join(", ")
            );
        }
    }
    Ok(())
}

fn names(create: &Create) -> Result<Vec<Option<ObjectName>>> {
    match (&create.name, create.count) {
        (_, Some(count)) if count > MOST => Err(Error::new(Kind::Limit, format!("count {count}: more than {MOST}"))),
        (_, Some(0)) => Err(Error::new(Kind::Invalid, "count 0: at least one snapshot is made")),
        (None, count) => Ok(vec![None; usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX)]),
        (Some(name), None) => Ok(vec![Some(name.parse()?)]),
        (Some(name), Some(count)) => (1..=count).map(|n| format!("{name}-{n}").parse().map(Some)).collect(),
    }
}

/// One snapshot a name, from as many threads as share a commit.
fn fork(store: &Store, resolved: &Resolved, names: &[Option<ObjectName>], read_only: bool) -> Result<Vec<Id>> {
    let _intent = store.intend()?;
    let next = AtomicU64::new(0);
    let made = Mutex::new(Vec::with_capacity(names.len()));
    let failure = Mutex::new(None);
    let work = || {
        while failure.lock().is_ok_and(|failure| failure.is_none()) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = usize::try_from(index).ok().and_then(|index| names.get(index)) else { return };
            match interrupt::check().and_then(|()| create_one(store, resolved, name.as_ref(), read_only)) {
                Ok(id) => made.lock().unwrap_or_else(|e| e.into_inner()).push((index, id)),
                Err(e) => {
                    failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                }
            }
        }
    };
    match names.len() {
        1 => work(),
        many => std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(many as u64) {
                scope.spawn(work);
            }
        }),
    }
    let mut made = made.into_inner().unwrap_or_else(|e| e.into_inner());
    if let Some(error) = failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
        for (_, id) in made {
            if let Err(e) = remove_found(store, Found { shelf: Shelf::Snapshots, id }) {
                log::warn!("remove snapshot {}: {e}", id.short());
            }
        }
        return Err(error);
    }
    made.sort_unstable();
    Ok(made.into_iter().map(|(_, id)| id).collect())
}

fn create_one(store: &Store, resolved: &Resolved, name: Option<&ObjectName>, read_only: bool) -> Result<Id> {
    let found = Found { shelf: Shelf::Snapshots, id: store.new_id()? };
    let record = Record {
        name: name.cloned(),
        created: Timestamp::now(),
        read_only,
        source: resolved.source.clone(),
        image: resolved.image.as_ref().map(|image| image.id),
    };
    let new = New { name, record: &record, read_only, spec: None };
    Place::claim(store, found)?.fill(&resolved.parent, &new)?;
    Ok(found.id)
}

/// Every snapshot, newest first.
pub fn list(store: &Store) -> Result<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    for id in store.ids(Shelf::Snapshots)? {
        match open(store, &id) {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(e) if e.kind() == Kind::NotFound => {} // removed while we looked
            Err(e) => return Err(e),
        }
    }
    snapshots.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
    Ok(snapshots)
}

/// The snapshot that `text` names.
pub fn find(store: &Store, text: &str) -> Result<Snapshot> {
    open(store, &store.find_among(text, &[Shelf::Snapshots])?.id)
}

/// What the kernel knows of a snapshot's subvolume.
pub fn subvolume(store: &Store, snapshot: &Snapshot) -> Result<Subvolume> {
    let dir = store.open_object(Shelf::Snapshots, &snapshot.id)?;
    let info = btrfs::info(fs::open_directory(dir.as_fd(), "rootfs")?.as_fd())?;
    Ok(Subvolume { id: info.id, uuid: uuid_text(&info.uuid), generation: info.generation })
}

/// Removes the snapshot that `text` names, with all that is nested in it. Atomic, at once; durable at the filesystem's
/// next commit. `Kind::InUse` while something works in it.
pub fn remove(store: &Store, text: &str) -> Result<Id> {
    let doing = || format!("remove snapshot {text}");
    let found = store.find_among(text, &[Shelf::Snapshots]).call_context(doing)?;
    remove_found(store, found).context(doing)?;
    Ok(found.id)
}

fn remove_found(store: &Store, found: Found) -> Result<()> {
    Active::open(store, found)?.remove(store)
}

fn open(store: &Store, id: &Id) -> Result<Snapshot> {
    let dir = store.open_object(Shelf::Snapshots, id)?;
    let record: Record = record::read(dir.as_fd())
        .and_then(|record| record.ok_or_else(|| Error::new(Kind::Store, "no record")))
        .context(|| format!("snapshot {}", id.short()))?;
    Ok(Snapshot {
        id: *id,
        name: record.name,
        created: record.created,
        read_only: record.read_only,
        source: record.source,
        path: store.rootfs_path(Shelf::Snapshots, id),
    })
}

/// What the records of snapshots and containers have in common.
#[derive(Deserialize)]
struct Origin {
    name: Option<ObjectName>,
    image: Option<Id>,
}

impl Origin {
    fn of(store: &Store, found: Found) -> Result<Origin> {
        let dir = store.open_object(found.shelf, &found.id)?;
        let record =
            record::read(dir.as_fd()).context(|| format!("{} {}", kind_word(found.shelf), found.id.short()))?;
        Ok(record.unwrap_or(Origin { name: None, image: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_names_are_numbered_from_one() {
        let create = |name: Option<&str>, count| Create { name: name.map(str::to_string), count, read_only: false };
        let text = |names: Vec<Option<ObjectName>>| names.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(names(&create(Some("web"), None)).expect("valid")), ["web"]);
        assert_eq!(text(names(&create(Some("web"), Some(3))).expect("valid")), ["web-1", "web-2", "web-3"]);
        assert_eq!(names(&create(None, Some(2))).expect("valid"), [None, None]);
        assert!(names(&create(None, Some(0))).is_err());
        assert!(names(&create(Some("a/b"), None)).is_err());
    }
}
