//! What is wrong with a snapshot's record, and how it is written anew.
//!
//! The disk tells more than the record: when btrfs made the subvolume of what, and which name leads to it. What people
//! noted is lost where it cannot be read.

use std::os::fd::AsFd;

use jiff::Timestamp;

use super::{Origin, Record, Source};
use crate::error::Result;
use crate::image;
use crate::kernel::{btrfs, fs};
use crate::name::Id;
use crate::store::record::{self, Condition};
use crate::store::{Damage, Found, Shelf, Store, kind_word};
use crate::subvolume::{self, Active, New, Parent, Place};

/// What is wrong with a snapshot's record.
pub(crate) fn damage(store: &Store, id: &Id) -> Result<Vec<Damage>> {
    let id = *id;
    let dir = store.open_object(Shelf::Snapshots, &id)?;
    Ok(match record::examine::<Record>(dir.as_fd())? {
        Condition::Good(_) => Vec::new(),
        Condition::Newer(problem) => vec![Damage::by_hand(problem, "use the newer tupper that wrote it")],
        Condition::Broken(problem) => {
            let way_out = "write its record anew, with what can be read of it and what btrfs knows";
            vec![Damage::now(problem, way_out, move |store| rewrite(store, &id))]
        }
    })
}

fn rewrite(store: &Store, id: &Id) -> Result<()> {
    let found = Found { shelf: Shelf::Snapshots, id: *id };
    let active = Active::open(store, found)?;
    let read_only = btrfs::is_read_only(fs::open_directory(active.dir(), "rootfs")?.as_fd())?;
    let fields = record::fields(active.dir());
    let Origins { source, image, created } = origins(store, found)?;
    let record = Record {
        name: record::field(&fields, "name").or(store.names_of(found)?.into_iter().next()),
        created: record::field(&fields, "created").unwrap_or(created),
        read_only,
        labels: record::field(&fields, "labels").unwrap_or_default(),
        expires: record::field(&fields, "expires"),
        // What may go by itself has to say so whole.
        ..Record::new(
            record::field(&fields, "source").unwrap_or(source),
            record::field(&fields, "image").unwrap_or(image),
        )
    };
    record::write(active.dir(), &record)
}

/// Where a snapshot or container came from, as far as the disk tells.
pub(crate) struct Origins {
    /// What it was made from.
    pub source: Source,
    /// The image at the root of that.
    pub image: Option<Id>,
    /// When.
    pub created: Timestamp,
}

/// Where a snapshot or container came from, as far as the disk tells: what has the subvolume that its own is a snapshot of.
pub(crate) fn origins(store: &Store, found: Found) -> Result<Origins> {
    let dir = store.open_object(found.shelf, &found.id)?;
    let rootfs = fs::open_directory(dir.as_fd(), "rootfs")?;
    let info = btrfs::info(rootfs.as_fd())?;
    let parent = info.parent_uuid.map(|uuid| subvolume::owner_of(store, uuid)).transpose()?.flatten();
    let unknown = || Source { kind: "path".to_string(), id: None, name: "unknown".to_string() };
    let (source, image) = match parent {
        Some(Found { shelf: Shelf::Layers, id }) => match image::on_top(store, &id)? {
            Some((id, name)) => (Source { kind: "image".to_string(), id: Some(id), name }, Some(id)),
            None => (unknown(), None),
        },
        Some(parent) => {
            let origin = Origin::of(store, parent).ok();
            let name = origin.as_ref().and_then(|origin| origin.name.as_ref().map(ToString::to_string));
            let name = name.unwrap_or_else(|| parent.id.to_string());
            let source = Source { kind: kind_word(parent.shelf).to_string(), id: Some(parent.id), name };
            (source, origin.and_then(|origin| origin.image))
        }
        None => (unknown(), None),
    };
    Ok(Origins { source, image, created: info.created })
}

/// Keeps the tree of a layer that somebody changed as a snapshot, and says which: durable when it returns.
pub(crate) fn keep_layer(store: &Store, chain: &Id) -> Result<Id> {
    let _intent = store.intend()?;
    let layer = Found { shelf: Shelf::Layers, id: *chain };
    let parent = Parent::open(store, layer)?;
    let kept = Found { shelf: Shelf::Snapshots, id: store.new_id()? };
    let image = image::on_top(store, chain)?;
    let name = format!("layer {}, as it was changed", chain.short());
    let record = Record::new(Source { kind: "path".to_string(), id: None, name }, image.map(|(id, _)| id));
    Place::claim(store, kept)?
        .fill_and_leave(&parent, &New { name: None, record: &record, read_only: false, spec: None })?;
    Ok(kept.id)
}
