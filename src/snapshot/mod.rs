//! Snapshots: writable (or read-only) children of an image, of another snapshot, of a container, or of any subvolume.
//!
//! A snapshot is a directory `snapshots/ID/` with its record and its subvolume `rootfs`, and perhaps a name. It shares
//! extents with what it was made from and depends on nothing else: whatever is removed, it stays whole.

mod commit;
mod damage;
mod diff;
mod path;
mod retention;
mod rollback;
mod trash;
mod tree;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

pub(crate) use commit::commit_held;
pub(crate) use damage::{damage, keep_layer, origins};
pub use diff::{Became, Change, Content, Diff, Text, changes, diff, known_changes, walked_changes};
pub use retention::Retention;
pub use rollback::rollback;
pub use trash::{Keep, TIME_TO_LIVE, expired, find_trashed, remove_trashed, restore, trash};
pub(crate) use trash::{has_changed, keep};
pub use tree::{Node, Tree, tree};

use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Image};
use crate::interrupt;
use crate::kernel::btrfs;
use crate::kernel::fs;
use crate::layer::{self, Piece};
use crate::name::{Id, ObjectName};
use crate::store::{Found, Shelf, Store, kind_word, record, uuid_text};
use crate::subvolume::{Active, Draft, New, Parent, Place};

/// Creations that run at once. The snapshot ioctl holds its parent directory's lock over a transaction commit; each
/// snapshot has a directory of its own, so this many share one commit. More gain nothing.
const PARALLEL: u64 = 128;

/// The largest count of one call.
const MOST: u64 = 1_000_000;

/// The most that the labels of a snapshot may hold together, in bytes: a record is one xattr, which has to fit in a leaf.
const LABELS: usize = 2048;

/// What the store records of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: Option<ObjectName>,
    created: Timestamp,
    read_only: bool,
    source: Source,
    /// The image at the root of where it came from.
    image: Option<Id>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    /// The entry of `staging/` that it goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    goes_with: Option<String>,
    /// It is in the trash: how the command ended that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trashed: Option<u8>,
    /// It holds what was elsewhere before a [rollback]: the subvolume with this UUID. With another it is no snapshot, and was left by
    /// a rollback that was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<[u8; 16]>,
}

impl Record {
    /// Of one that is made now.
    fn new(source: Source, image: Option<Id>) -> Record {
        Record {
            name: None,
            created: Timestamp::now(),
            read_only: false,
            source,
            image,
            labels: BTreeMap::new(),
            expires: None,
            goes_with: None,
            trashed: None,
            kept: None,
        }
    }

    fn is_unfinished(&self, dir: BorrowedFd<'_>) -> Result<bool> {
        let Some(kept) = self.kept else { return Ok(false) };
        Ok(btrfs::info(fs::open_directory(dir, "rootfs")?.as_fd())?.uuid != kept)
    }
}

/// What something was made from: for people and listings, nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The kind of object: `image`, `snapshot` or `container`, or `path` for a subvolume that is none of the store's.
    pub kind: String,
    /// Its id; a path has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// What it was called then, or the path.
    pub name: String,
}

impl Source {
    /// What names it, and it alone, as long as it is there.
    pub(crate) fn reference(&self) -> String {
        match &self.id {
            Some(id) => format!("{}:{id}", self.kind),
            None => self.name.clone(),
        }
    }
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
    /// What people note of it.
    pub labels: BTreeMap<String, String>,
    /// When [`prune`](prunable) takes it, whatever else is kept.
    pub expires: Option<Timestamp>,
    /// It is in the trash until it expires: how the command ended that made it.
    pub trashed: Option<u8>,
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
    /// What people note of them.
    pub labels: BTreeMap<String, String>,
    /// When they are no longer needed.
    pub expires: Option<Timestamp>,
    /// The entry of the store's `staging/` that they go with: when that is left by somebody who was killed, a gc removes
    /// them, too.
    pub goes_with: Option<String>,
}

/// A source that was looked up: what a snapshot of it is made of, and how it is called.
pub(crate) struct Resolved {
    pub parent: Parent,
    pub source: Source,
    /// The image it is, or the one at the root of where it came from, if that is still there.
    pub image: Option<Image>,
    /// The chain id of the layer that it is, if it is an image.
    pub layer: Option<Id>,
    /// Where it lies, for people.
    pub path: PathBuf,
}

/// Finds what `text` names: a container, a snapshot or an image, or a subvolume by its path.
pub(crate) fn resolve(store: &Store, text: &str) -> Result<Resolved> {
    if path::is_path(text) {
        return path::resolve(store, text);
    }
    let found = store.find(text)?;
    let source = |name| Source { kind: kind_word(found.shelf).to_string(), id: Some(found.id), name };
    if found.shelf == Shelf::Images {
        let image = image::find(store, &format!("image:{}", found.id))?;
        let path = image.path(store);
        return Ok(Resolved {
            parent: image.parent(store)?,
            source: source(image.name_for(text)),
            layer: Some(image.layer()),
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
        layer: None,
        path: store.rootfs_path(found.shelf, &found.id),
    })
}

/// Makes snapshots of `text`: durable, with record and name, when it returns. All or none: the first failure takes
/// those that were made with it.
///
/// What writes to the source meanwhile goes on: `container::snapshot` holds it.
pub fn create(store: &Store, text: &str, create: &Create) -> Result<Vec<Id>> {
    create_held(store, text, create, |_| Ok(()))
}

/// [`create`] of a source that `hold` holds still: what it returns is dropped as soon as the snapshots are made, or have
/// failed. It is called when there is a sign already that something is under way.
pub(crate) fn create_held<T>(
    store: &Store,
    text: &str,
    create: &Create,
    hold: impl FnOnce(&Source) -> Result<T>,
) -> Result<Vec<Id>> {
    let names = names(create)?;
    let doing = || format!("snapshot of {text}");
    if create.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > LABELS {
        return Err(Error::new(Kind::Limit, format!("labels: more than {LABELS} bytes together"))).context(doing);
    }
    let resolved = resolve(store, text).call_context(doing)?;
    warn_of_nested(&resolved).context(doing)?;
    let _intent = store.intend().context(doing)?;
    let held = hold(&resolved.source).context(doing)?;
    let made = fork(store, &resolved, &names, create).context(doing);
    drop(held);
    let made = made?;
    if let Some(entry) = &create.goes_with
        && !store.has_draft(entry)?
    {
        // Whoever asked for them was killed, and a gc was there before them.
        remove_all(store, made);
        return Err(Error::new(Kind::NotFound, format!("{entry}: nothing is under way")).wrap(doing()));
    }
    Ok(made)
}

/// Writes what `text` holds as a tar archive of a root filesystem, as [`image::import`] reads it. What can be changed is read
/// from a copy, as it is at this moment.
///
/// # Errors
/// What cannot be read, or written.
pub fn export(store: &Store, text: &str, into: &mut dyn Write) -> Result<()> {
    let mut export = || -> Result<()> {
        let resolved = resolve(store, text)?;
        let still = match resolved.layer {
            Some(_) => None,
            None => Some(Draft::on(store, &resolved.parent)?),
        };
        let directory = match &still {
            Some(still) => still.rootfs().try_clone_to_owned()?,
            None => resolved.parent.rootfs(&resolved.path, true)?.dir,
        };
        let mut archive = layer::pack_piece(Piece { directory, name: None, called: b".".to_vec() })?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            interrupt::check()?;
            match archive.read(&mut buffer)? {
                0 => return Ok(()),
                length => into.write_all(&buffer[..length]).context(|| "write the archive")?,
            }
        }
    };
    export().call_context(|| format!("export {text}"))
}

/// A snapshot ends at the subvolumes nested in its source: they are empty directories in it.
pub(crate) fn warn_of_nested(resolved: &Resolved) -> Result<()> {
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
///
/// The caller has said that it [intends](Store::intend) to.
fn fork(store: &Store, resolved: &Resolved, names: &[Option<ObjectName>], create: &Create) -> Result<Vec<Id>> {
    let begun = Timestamp::now();
    let next = AtomicU64::new(0);
    let made = Mutex::new(Vec::with_capacity(names.len()));
    let failure = Mutex::new(None);
    let work = || {
        while failure.lock().is_ok_and(|failure| failure.is_none()) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = usize::try_from(index).ok().and_then(|index| names.get(index)) else { return };
            // Their order in time is that of their numbers, whichever thread is faster.
            let created = begun.saturating_add(Duration::from_nanos(index)).unwrap_or(begun);
            let create = || create_one(store, resolved, created, name.as_ref(), create);
            match interrupt::check().and_then(|()| create()) {
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
        remove_all(store, made.into_iter().map(|(_, id)| id));
        return Err(error);
    }
    made.sort_unstable();
    Ok(made.into_iter().map(|(_, id)| id).collect())
}

fn remove_all(store: &Store, ids: impl IntoIterator<Item = Id>) {
    for id in ids {
        if let Err(e) = remove_found(store, Found { shelf: Shelf::Snapshots, id }) {
            log::warn!("remove snapshot {}: {e}", id.short());
        }
    }
}

fn create_one(
    store: &Store,
    resolved: &Resolved,
    created: Timestamp,
    name: Option<&ObjectName>,
    create: &Create,
) -> Result<Id> {
    let found = Found { shelf: Shelf::Snapshots, id: store.new_id()? };
    let image = resolved.image.as_ref().map(|image| image.id);
    let record = Record {
        created,
        name: name.cloned(),
        read_only: create.read_only,
        labels: create.labels.clone(),
        expires: create.expires,
        goes_with: create.goes_with.clone(),
        ..Record::new(resolved.source.clone(), image)
    };
    let new = New { name, record: &record, read_only: create.read_only, spec: None };
    Place::claim(store, found)?.fill_and_leave(&resolved.parent, &new)?;
    Ok(found.id)
}

/// Every snapshot that is not in the trash, newest first.
pub fn list(store: &Store) -> Result<Vec<Snapshot>> {
    list_but(store, Err)
}

/// [`list`], told of those that cannot be read.
pub fn list_but(store: &Store, broken: impl FnMut(Error) -> Result<()>) -> Result<Vec<Snapshot>> {
    let mut all = every(store, broken)?;
    all.retain(|snapshot| snapshot.trashed.is_none());
    Ok(all)
}

/// The snapshots that a rollback was about to make when it was killed.
pub(crate) fn unfinished(store: &Store) -> Result<Vec<Id>> {
    let mut found = Vec::new();
    for id in store.ids(Shelf::Snapshots)? {
        let read = || {
            let dir = store.open_object(Shelf::Snapshots, &id)?;
            match record::read::<Record>(dir.as_fd())? {
                Some(record) => record.is_unfinished(dir.as_fd()),
                None => Ok(false),
            }
        };
        // What cannot be read is damage, which is not looked for here.
        if read().unwrap_or(false) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Removes a snapshot that is [unfinished], if nobody works at it.
pub(crate) fn clear_unfinished(store: &Store, id: &Id) -> Result<()> {
    match remove_found(store, Found { shelf: Shelf::Snapshots, id: *id }) {
        Err(e) if matches!(e.kind(), Kind::InUse | Kind::NotFound) => Ok(()),
        other => other,
    }
}

fn every(store: &Store, broken: impl FnMut(Error) -> Result<()>) -> Result<Vec<Snapshot>> {
    let mut snapshots = store.each(Shelf::Snapshots, |id| open(store, id), broken)?;
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

/// The snapshots that go with this entry of `staging/`.
pub(crate) fn going_with(store: &Store, entry: &str) -> Result<Vec<Id>> {
    #[derive(Deserialize)]
    struct Goes {
        goes_with: Option<String>,
    }
    let mut going = Vec::new();
    for id in store.ids(Shelf::Snapshots)? {
        let Ok(dir) = store.open_object(Shelf::Snapshots, &id) else { continue }; // removed while we looked
        // A record that cannot be read says nothing of it; `store check` says so.
        let record = record::read::<Goes>(dir.as_fd()).ok().flatten();
        if record.and_then(|record| record.goes_with).is_some_and(|with| with == entry) {
            going.push(id);
        }
    }
    Ok(going)
}

/// Removes a snapshot, in the trash or not.
pub(crate) fn remove_found(store: &Store, found: Found) -> Result<()> {
    Active::open(store, found)?.remove(store)
}

fn open(store: &Store, id: &Id) -> Result<Snapshot> {
    let dir = store.open_object(Shelf::Snapshots, id)?;
    let record: Record = record::read(dir.as_fd())
        .and_then(|record| record.ok_or_else(|| Error::new(Kind::Store, "no record")))
        .context(|| format!("snapshot {}", id.short()))?;
    if record.is_unfinished(dir.as_fd())? {
        return Err(Error::new(Kind::NotFound, format!("snapshot {}: not made yet", id.short())));
    }
    Ok(Snapshot {
        id: *id,
        name: record.name,
        created: record.created,
        read_only: record.read_only,
        source: record.source,
        labels: record.labels,
        expires: record.expires,
        trashed: record.trashed,
        path: store.rootfs_path(Shelf::Snapshots, id),
    })
}

/// Those of `snapshots` that nobody needs any more, newest first: those that have expired, and where `keep` has rules those
/// of the others that no rule keeps.
pub fn prunable(mut snapshots: Vec<Snapshot>, keep: &Retention) -> Vec<Snapshot> {
    let now = Timestamp::now();
    let has_expired = |snapshot: &Snapshot| snapshot.expires.is_some_and(|expires| expires <= now);
    if !keep.is_empty() {
        let alive = snapshots.iter().filter(|snapshot| !has_expired(snapshot));
        let kept = keep.choose(alive.map(|snapshot| (snapshot.id, snapshot.created)), &TimeZone::system());
        snapshots.retain(|snapshot| !kept.contains(&snapshot.id));
    } else {
        snapshots.retain(has_expired);
    }
    snapshots
}

/// Whether the snapshot that `text` names could be removed now: `Kind::InUse` while something works in it.
pub fn check_free(store: &Store, text: &str) -> Result<()> {
    Active::open(store, store.find_among(text, &[Shelf::Snapshots])?).map(drop)
}

/// What the records of snapshots and containers have in common.
#[derive(Deserialize)]
struct Origin {
    name: Option<ObjectName>,
    image: Option<Id>,
    created: Option<Timestamp>,
    source: Option<Source>,
}

impl Origin {
    fn of(store: &Store, found: Found) -> Result<Origin> {
        let dir = store.open_object(found.shelf, &found.id)?;
        let record =
            record::read(dir.as_fd()).context(|| format!("{} {}", kind_word(found.shelf), found.id.short()))?;
        Ok(record.unwrap_or(Origin { name: None, image: None, created: None, source: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_before_are_read() {
        let id = "07".repeat(32);
        let source = format!(r#"{{"kind":"image","id":"{id}","name":"debian:12"}}"#);
        let record = format!(
            r#"{{"name":"web","created":"2026-01-01T00:00:00Z","read_only":false,"source":{source},"image":"{id}"}}"#
        );
        let record: Record = serde_json::from_str(&record).expect("a record");
        assert_eq!(record.source.reference(), format!("image:{id}"));
        assert!(record.labels.is_empty() && record.expires.is_none());
        // And what is written is no more than before where there is nothing more to say.
        assert_eq!(serde_json::to_string(&record.source).expect("JSON"), source);
        let path: Source = serde_json::from_str(r#"{"kind":"path","name":"/srv/data"}"#).expect("a source");
        assert_eq!(path.reference(), "/srv/data");
    }

    #[test]
    fn counted_names_are_numbered_from_one() {
        let create = |name: Option<&str>, count| Create { name: name.map(str::to_string), count, ..Create::default() };
        let text = |names: Vec<Option<ObjectName>>| names.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(names(&create(Some("web"), None)).expect("valid")), ["web"]);
        assert_eq!(text(names(&create(Some("web"), Some(3))).expect("valid")), ["web-1", "web-2", "web-3"]);
        assert_eq!(names(&create(None, Some(2))).expect("valid"), [None, None]);
        assert!(names(&create(None, Some(0))).is_err());
        assert!(names(&create(Some("a/b"), None)).is_err());
    }
}
