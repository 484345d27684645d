//! Import: a root filesystem from somewhere becomes an image with one layer.
//!
//! The order makes what is acknowledged durable and keeps what is not invisible:
//!
//! 1. unpack into a draft subvolume, computing the layer's diff id on the way
//! 2. what [`top`](super::top) says
//!
//! A failure or a kill meanwhile leaves nothing but an unlocked draft.

use std::io::Read;

use super::config::{self, Change};
use super::progress::{Progress, Watched};
use super::top::{Below, Top};
use super::{RECIPE, room};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::layer::{self, Recipe};
use crate::name::{Id, ImageName};
use crate::store::Store;
use crate::subvolume::Draft;
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
    let recipe = Recipe::create(draft.dir()?, RECIPE)?;
    let unpacked = draft.fill(|rootfs| layer::unpack_watched(bytes, rootfs, &limits, watch, Some(&recipe)))?;
    refuse_image_archive(&draft)?;

    let config = config::for_import(unpacked.diff_id, &import.changes, import.message.as_deref());
    let config = serde_json::to_vec(&config).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    Top { draft, unpacked, below: Below::default() }.publish(store, &config, import.name.as_slice())
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
