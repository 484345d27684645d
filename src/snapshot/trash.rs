//! Second thoughts: what a throwaway container did, kept under a name, or for a while in the trash.
//!
//! What is in the trash is a snapshot whose record says so, and when it expires. Listings pass over it; it can be restored, and a gc
//! removes it when its time is up.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::{Record, Resolved, Snapshot, diff, open, remove_found};
use crate::error::{Context, Error, Kind, Result};
use crate::name::{Id, ObjectName};
use crate::store::{Found, Shelf, Store, record};
use crate::subvolume::{Active, New, Parent, Place};

/// How long something stays in the trash.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(60 * 60);

/// What becomes of the tree of a container that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// It is a snapshot with this name.
    As(ObjectName),
    /// If its command failed and it changed something, it is in the trash for so long.
    IfFailed(Duration),
}

/// Makes the tree of a container a snapshot, as it is: durable when it returns, with all that was written in it. It is said to
/// be made from what the container was made from. With the status of its command, and when it expires, it is in the trash. A name that somebody took meanwhile is done without.
pub(crate) fn keep(
    store: &Store,
    container: Id,
    from: &Resolved,
    name: Option<&ObjectName>,
    trashed: Option<(u8, Timestamp)>,
) -> Result<Id> {
    let parent = Parent::open(store, Found { shelf: Shelf::Containers, id: container })?;
    let _intent = store.intend()?;
    let make = |name: Option<&ObjectName>| {
        let found = Found { shelf: Shelf::Snapshots, id: store.new_id()? };
        let image = from.image.as_ref().map(|image| image.id);
        let record = Record {
            name: name.cloned(),
            trashed: trashed.map(|(status, _)| status),
            expires: trashed.map(|(_, until)| until),
            ..Record::new(from.source.clone(), image)
        };
        let new = New { name, record: &record, read_only: false, spec: None };
        Place::claim(store, found)?.fill_and_leave(&parent, &new).map(|()| found.id)
    };
    match make(name) {
        Err(e) if e.kind() == Kind::AlreadyExists => {
            log::warn!("{e}; it is kept without a name");
            make(None)
        }
        made => made,
    }
}

/// Whether something in the tree of a container is not as in what it was made from.
pub(crate) fn has_changed(store: &Store, container: Id, from: &Resolved) -> Result<bool> {
    let root = |parent: &Parent| parent.rootfs(Path::new("/"), true).map(|rootfs| rootfs.dir);
    let new = Parent::open(store, Found { shelf: Shelf::Containers, id: container })?;
    let (old, new) = (root(&from.parent)?, root(&new)?);
    let changes = diff::changes(Some(old.as_fd()), new.as_fd())?;
    // That something was mounted there is all that says of /etc.
    Ok(changes.iter().any(|change| diff::is_of_container(change) && change.path != Path::new("/etc")))
}

/// What is in the trash, newest first.
pub fn trash(store: &Store) -> Result<Vec<Snapshot>> {
    let mut all = super::every(store, Err)?;
    all.retain(|snapshot| snapshot.trashed.is_some());
    Ok(all)
}

/// What is in the trash and whose time is up. What cannot be read is damage, and not looked for here.
pub fn expired(store: &Store) -> Result<Vec<Snapshot>> {
    let now = Timestamp::now();
    let all = store.ids(Shelf::Snapshots)?.into_iter().filter_map(|id| open(store, &id).ok());
    let is_over =
        |snapshot: &Snapshot| snapshot.trashed.is_some() && snapshot.expires.is_some_and(|expires| expires <= now);
    Ok(all.filter(is_over).collect())
}

/// What `text` names in the trash.
pub fn find_trashed(store: &Store, text: &str) -> Result<Snapshot> {
    let snapshot = open(store, &store.find_among(text, &[Shelf::Snapshots])?.id)?;
    match snapshot.trashed {
        Some(_) => Ok(snapshot),
        None => Err(Error::new(Kind::NotFound, format!("snapshot {text}: not in the trash"))),
    }
}

/// Takes a snapshot out of the trash, under a name or none: durable when it returns.
pub fn restore(store: &Store, text: &str, name: Option<&ObjectName>) -> Result<Id> {
    let doing = || format!("restore {text}");
    let id = find_trashed(store, text).call_context(doing)?.id;
    let found = Found { shelf: Shelf::Snapshots, id };
    let restore = || {
        let _intent = store.intend()?;
        let active = Active::open(store, found)?;
        // Whoever was first has taken it out, or away.
        find_trashed(store, &id.to_string())?;
        let mut record: Record =
            record::read(active.dir())?.ok_or_else(|| Error::new(Kind::Store, "it has no record"))?;
        (record.trashed, record.expires) = (None, None);
        record.name = name.cloned();
        if let Some(name) = name {
            store.claim_name(name, found)?;
            // On the disk before the record: whoever has that synced for a reason of his own would take it there alone.
            store.sync()?;
        }
        record::write(active.dir(), &record)?;
        store.sync()
    };
    restore().context(doing)?;
    Ok(id)
}

/// Removes what `text` names in the trash.
pub fn remove_trashed(store: &Store, text: &str) -> Result<Id> {
    let doing = || format!("remove {text} from the trash");
    let id = find_trashed(store, text).call_context(doing)?.id;
    remove_found(store, Found { shelf: Shelf::Snapshots, id }).context(doing)?;
    Ok(id)
}
