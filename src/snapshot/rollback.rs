//! Putting a snapshot's or container's tree back to what another is: one exchange, and what was there is kept.
//!
//! ```text
//! snapshots/KEPT/  record: what is to be kept is the subvolume UUID     1. claimed, with a snapshot of TO in it: not a
//! snapshots/KEPT/rootfs  <──exchange──>  containers/ID/rootfs              snapshot yet, since its UUID is another
//! containers/ID/   record: it is made from TO when its UUID is that        2. exchanged: both are what their records say
//! ```
//!
//! Killed before 2, it has changed nothing, and a gc removes what was made; killed after it, all of it is done.

use std::os::fd::AsFd;

use super::{Origin, Record, Source, resolve};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{btrfs, fs};
use crate::name::Id;
use crate::store::record::{self, Identity};
use crate::store::{Found, Shelf, Store, kind_word};
use crate::subvolume::{Active, New, Place};

/// Makes the tree of the snapshot or container that `text` names what `to` is: all of it or nothing of it, durable when
/// this returns. What was there is a snapshot of its own from then on, whose id is returned: rolling back to that undoes it.
///
/// # Errors
/// [`Kind::InUse`] while something works in it: what is mounted there would stay the old tree.
pub fn rollback(store: &Store, text: &str, to: &str) -> Result<Id> {
    let doing = || format!("roll {text} back to {to}");
    let found = store.find_among(text, &[Shelf::Containers, Shelf::Snapshots]).call_context(doing)?;
    exchange(store, found, to).context(doing)
}

fn exchange(store: &Store, found: Found, to: &str) -> Result<Id> {
    let resolved = resolve(store, to)?;
    if resolved.source.id == Some(found.id) {
        return Err(Error::new(Kind::Invalid, "that is itself"));
    }
    let active = Active::open(store, found)?;
    if found.shelf == Shelf::Snapshots {
        // Not one that another rollback has begun to make.
        super::open(store, &found.id)?;
    }
    let mut document: serde_json::Value = record::read(active.dir())?.ok_or_else(|| {
        Error::new(Kind::Store, format!("{} {}: no record", kind_word(found.shelf), found.id.short()))
    })?;
    let origin = Origin::of(store, found)?;
    let old = fs::open_directory(active.dir(), "rootfs")?;
    if btrfs::is_read_only(old.as_fd())? {
        let error = Error::new(Kind::Invalid, format!("{} {}: read-only", kind_word(found.shelf), found.id.short()));
        return Err(error.with_hint("a snapshot of it can be written to: `tupper snapshot create`"));
    }
    let old = btrfs::info(old.as_fd())?.uuid;

    let _intent = store.intend()?;
    let kept = Found { shelf: Shelf::Snapshots, id: store.new_id()? };
    let name = origin.name.map_or_else(|| found.id.to_string(), |name| name.to_string());
    let source = Source { kind: kind_word(found.shelf).to_string(), id: Some(found.id), name };
    let kept_record = Record { kept: Some(old), ..Record::new(source, origin.image) };
    let new = New { name: None, record: &kept_record, read_only: false, spec: None };
    let aside = Place::claim(store, kept)?.fill(&resolved.parent, &new)?;
    let exchanged = (|| {
        // What an earlier rollback kept is another from now on, and no less a snapshot.
        document.as_object_mut().and_then(|document| document.remove("kept"));
        let fresh = btrfs::info(fs::open_directory(aside.dir(), "rootfs")?.as_fd())?.uuid;
        // Either may be there whenever the power goes.
        record::write_for_both(active.dir(), document.clone(), fresh, &resolved.source)?;
        record::write_identities(aside.dir(), &[Identity::Itself(fresh), Identity::Itself(old)])?;
        record::write_identities(active.dir(), &[Identity::Itself(fresh), Identity::Itself(old)])?;
        fs::exchange(aside.dir(), "rootfs", active.dir(), "rootfs")
    })();
    if let Err(e) = exchanged {
        aside.remove(store)?;
        return Err(e);
    }
    if document.get("size_limit").is_some_and(|limit| !limit.is_null())
        && let Err(e) = btrfs::limit_size(fs::open_directory(aside.dir(), "rootfs")?.as_fd(), None)
    {
        // The limit is the container's, which gives it to its new subvolume when it starts, and not that of what is kept.
        log::debug!("{e}");
    }
    document["source"] =
        serde_json::to_value(&resolved.source).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    record::write(active.dir(), &document)?;
    store.sync()?;
    Ok(kept.id)
}
