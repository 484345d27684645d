//! Import: a root filesystem from somewhere becomes an image with one layer.
//!
//! The order makes what is acknowledged durable and keeps what is not invisible:
//!
//! 1. unpack into a draft subvolume, computing the layer's diff id on the way
//! 2. write the config beside it; one sync takes layer and config to the disk
//! 3. seal the draft and rename it to its chain id, rename the config's directory to the image's id, point the name at it
//! 4. one more sync, then the id is returned
//!
//! A failure or a kill before 3 leaves nothing but an unlocked draft; between the renames, a layer that no image stands
//! on, which is garbage, or an image that still has its name in its directory, which a gc puts in its place.

use std::io::Read;

use jiff::Timestamp;

use super::config::{self, Change};
use super::draft::ImageDraft;
use super::layers::discard;
use super::progress::{Progress, Watched};
use super::{LayerRecord, RECIPE, Record, room};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::layer;
use crate::name::{Id, ImageName};
use crate::store::{Shelf, Store};
use crate::subvolume::{Claim, Draft, Turn};
use crate::transport::Source;

/// What to import, and what to make of it.
#[derive(Debug)]
pub struct Import {
    /// Where the root filesystem comes from.
    pub source: Source,
    /// The image's name.
    pub name: Option<ImageName>,
    /// Changes to its config.
    pub changes: Vec<Change>,
    /// A comment for its history.
    pub message: Option<String>,
    /// Limits on what is unpacked.
    pub limits: layer::Limits,
}

/// Imports a root filesystem and returns the id of the image: durable when it returns.
pub fn import(store: &Store, import: &Import, progress: Progress) -> Result<Id> {
    run(store, import, progress).context(|| format!("import {}", import.source))
}

fn run(store: &Store, import: &Import, progress: Progress) -> Result<Id> {
    let draft = Draft::create(store)?;
    let bytes = open(store, &import.source, progress)?;
    let limits = room::limits(store, &import.limits)?;
    let watch = room::watch(store, &limits)?;
    let recipe = draft.file()?;
    let unpacked = draft.fill(|rootfs| layer::unpack_watched(bytes, rootfs, &limits, watch, Some(&recipe)))?;
    refuse_image_archive(&draft)?;

    // The chain id of a first layer is its diff id (image-spec config.md, "Layer ChainID").
    let chain = unpacked.diff_id.id();
    let config = config::for_import(unpacked.diff_id, &import.changes, import.message.as_deref());
    let config = serde_json::to_vec(&config).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    let record = Record { chain, size: unpacked.bytes, created: Timestamp::now(), manifest: None };
    let layer = LayerRecord {
        diff_id: unpacked.diff_id,
        parent: None,
        size: unpacked.bytes,
        entries: unpacked.entries,
        unfinished: None,
        travelled: Vec::new(),
    };
    let names = import.name.as_slice();
    match Claim::layer(store, &chain)? {
        Turn::There(there) => {
            // The same bytes were imported before: nothing of the draft needs to reach the disk.
            let image = ImageDraft::create(store, &config, &record, true)?;
            drop(draft);
            image.publish(names, &[there], store.lock_shelf(Shelf::Images)?)
        }
        Turn::Ours(claim) => {
            let image = ImageDraft::create(store, &config, &record, false)?;
            claim.attach(RECIPE, &recipe)?;
            draft.finish()?;
            let publishing = store.lock_shelf(Shelf::Images)?;
            let made = draft.seal(claim, &layer)?;
            let published = image.publish(names, &[made], publishing);
            // No command but gc would look for it. It is held no more: what is held is kept for who builds on it.
            published.inspect_err(|_| discard(store, &[chain]))
        }
    }
}

fn open(store: &Store, source: &Source, progress: Progress) -> Result<Box<dyn Read + Send>> {
    let (reader, length): (Box<dyn Read + Send>, _) = match source {
        // The store would be copied into itself, for as long as there is room.
        Source::Directory(path) => (Box::new(layer::pack(path, &[store.root()])?), None),
        _ => {
            let bytes = source.open()?;
            (bytes.reader, bytes.length)
        }
    };
    Ok(Box::new(Watched::new(reader, length, progress)))
}

/// What `docker save` or an OCI layout holds is not a root filesystem, however well it unpacks.
fn refuse_image_archive(draft: &Draft<'_>) -> Result<()> {
    let has = |path: &str| fs::exists_at(draft.rootfs(), path);
    let root = has("etc")? || has("usr")? || has("bin")?;
    if !root && (has("oci-layout")? || has("manifest.json")?) {
        let error = Error::new(Kind::Invalid, "this is an image archive, not a root filesystem");
        return Err(error.with_hint("`tupper image load` loads it"));
    }
    Ok(())
}
