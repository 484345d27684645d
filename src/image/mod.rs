//! Images: sources in, a chain of sealed subvolumes out; named, listed, removed; and what was changed since becomes another.
//!
//! An image is a directory `images/ID/` with the OCI config, whose sha256 is ID, and a record that names its top layer
//! by chain id. Layers belong to nobody: an image is what keeps one, and the last image that goes takes it along.
//! Snapshots share a layer's extents, not its life, so they stay whatever happens to images.

mod add;
mod commit;
mod config;
mod damage;
mod draft;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod history;
mod import;
mod layers;
mod load;
mod outgoing;
mod progress;
mod pull;
mod push;
mod remove;
mod room;
mod save;
mod top;
mod verify;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

pub use add::add;
pub(crate) use commit::Base;
pub use commit::Commit;
pub(crate) use commit::commit;
pub use config::Change;
pub(crate) use damage::{damage, is_sealed, layer_damage, made_of, on_top, remove_images_on, seal};
pub(crate) use draft::finish_names;
pub use history::{Made, history};
pub use import::{Import, import};
pub(crate) use layers::{Standing, Unused, layers_top_down, standing, unused};
pub use load::{Load, Loaded, load};
pub use outgoing::outgoing;
pub use progress::{LayerProgress, Progress, Step};
pub use pull::pull;
pub use push::push;
pub use remove::{Pruned, Removed, prune, remove};
pub use save::{Place, save};
pub(crate) use verify::{Content, clear_recipe, put_back, verify};

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::layer::LARGEST_CONFIG;
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{Parent, Sealed};
use crate::transport::Travelled;
use layers::layer_record;

/// The document that an image is named after.
const CONFIG: &str = "config.json";

/// Beside a layer's root: how its archive is put together again.
const RECIPE: &str = "recipe";

/// What the store records of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// The chain id of the top layer.
    chain: Id,
    /// Unpacked bytes in all layers.
    size: u64,
    /// When it came into this store.
    created: Timestamp,
    /// The digest of the manifest that it came with, the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifest: Option<Digest>,
}

/// What the store records of a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LayerRecord {
    /// The digest of the layer's uncompressed tar.
    diff_id: Digest,
    /// The chain id of the layer below.
    parent: Option<Id>,
    /// Unpacked bytes.
    size: u64,
    /// Entries in the tar.
    entries: u64,
    /// When it was made, if no image came of it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished: Option<Timestamp>,
    /// How it has travelled, the last way first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    travelled: Vec<Travelled>,
}

/// An image as it lies in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The sha256 of its config.
    pub id: Id,
    /// Its names, sorted.
    pub names: Vec<ImageName>,
    /// Its OCI config.
    pub config: ImageConfiguration,
    /// When it was made, by its config; when it came here, if that does not tell.
    pub created: Timestamp,
    /// Unpacked bytes in all layers.
    pub size: u64,
    /// The digest of the manifest that it came with the first time; nothing for one that was imported, or came in a
    /// docker archive.
    pub manifest: Option<Digest>,
    /// What its config says of a health check, which the OCI's does not know.
    pub health: Option<serde_json::Value>,
    chain: Id,
}

/// What docker's image specification (1.2) adds to the OCI's config.
#[derive(Deserialize)]
struct Beyond {
    config: Option<BeyondConfig>,
}

#[derive(Deserialize)]
struct BeyondConfig {
    #[serde(rename = "Healthcheck")]
    health: Option<serde_json::Value>,
}

impl Image {
    /// Opens an image.
    pub fn open(store: &Store, id: &Id) -> Result<Image> {
        let dir = store.open_object(Shelf::Images, id)?;
        let read = || -> Result<Image> {
            let record: Record = record::read(dir.as_fd())?.ok_or_else(|| Error::new(Kind::Store, "no record"))?;
            let json = config_bytes(dir.as_fd())?;
            let broken = |e| Error::new(Kind::Store, format!("read config.json: {e}"));
            let (config, health) = read_config(&json).map_err(broken)?;
            let created = config.created().as_ref().and_then(|text| text.parse().ok()).unwrap_or(record.created);
            let Record { chain, size, manifest, .. } = record;
            Ok(Image { id: *id, names: Vec::new(), config, created, size, manifest, health, chain })
        };
        read().context(|| format!("image {}", id.short()))
    }

    /// Its config as it came, with what the OCI's does not have (docker's health check, say).
    pub fn document(&self, store: &Store) -> Result<serde_json::Value> {
        let json = config_bytes(store.open_object(Shelf::Images, &self.id)?.as_fd())?;
        serde_json::from_slice(&json).map_err(|e| Error::new(Kind::Store, format!("read config.json: {e}")))
    }

    /// The chain id of its top layer.
    pub(crate) fn layer(&self) -> Id {
        self.chain
    }

    /// What snapshots of it are made of.
    pub(crate) fn parent(&self, store: &Store) -> Result<Parent> {
        Sealed::open(store, &self.chain)?.into_parent().context(|| format!("image {}", self.id.short()))
    }

    /// The root that its topmost layer was put on; nothing for the only one.
    pub(crate) fn below(&self, store: &Store) -> Result<Option<Parent>> {
        let below = layer_record(store, &self.chain)?.and_then(|record| record.parent);
        let open = |chain| Sealed::open(store, &chain)?.into_parent();
        below.map(open).transpose().context(|| format!("image {}", self.id.short()))
    }

    /// Where its top layer lies.
    pub(crate) fn path(&self, store: &Store) -> PathBuf {
        store.rootfs_path(Shelf::Layers, &self.chain)
    }

    /// What a person calls it who named it by `text`: the name that is, else its first name, else its id.
    pub(crate) fn name_for(&self, text: &str) -> String {
        self.named(text).or(self.names.first()).map_or_else(|| self.id.to_string(), ToString::to_string)
    }

    /// Which of its names somebody means who names it by `text`.
    pub fn named(&self, text: &str) -> Option<&ImageName> {
        let text = text.trim_start_matches("image:");
        let whole = text.parse::<ImageName>().ok();
        let exact = self.names.iter().find(|name| whole.as_ref() == Some(*name));
        exact.or_else(|| self.names.iter().find(|name| name.is_meant_by(text)))
    }
}

/// An image's config, and what it says of a health check.
fn read_config(json: &[u8]) -> serde_json::Result<(ImageConfiguration, Option<serde_json::Value>)> {
    let config: ImageConfiguration = serde_json::from_slice(json)?;
    let beyond: Beyond = serde_json::from_slice(json)?;
    Ok((config, beyond.config.and_then(|config| config.health)))
}

fn config_bytes(dir: BorrowedFd<'_>) -> Result<Vec<u8>> {
    fs::read_small(dir, CONFIG, LARGEST_CONFIG)
}

/// The image that `text` names: a name, an id or an unambiguous prefix of one.
pub fn find(store: &Store, text: &str) -> Result<Image> {
    let found = store.find_among(text, &[Shelf::Images])?;
    let mut image = Image::open(store, &found.id)?;
    image.names = names_of(&store.tags()?, &found.id);
    Ok(image)
}

/// What an image is called that goes with an entry of `staging/`.
pub(crate) fn name_going_with(entry: &str) -> Result<ImageName> {
    let (kind, id) = entry.split_once('-').unwrap_or((entry, "none"));
    format!("localhost/tupper-{kind}:{}", id.get(..12).unwrap_or(id)).parse()
}

/// The image that goes with this entry of `staging/`, if there is one.
pub(crate) fn going_with(store: &Store, entry: &str) -> Result<Option<Id>> {
    match store.tagged(&name_going_with(entry)?)? {
        Some(id) if store.exists(Shelf::Images, &id)? => Ok(Some(id)),
        _ => Ok(None),
    }
}

/// Removes the image that goes with this entry of `staging/`, if there is one.
pub(crate) fn remove_going_with(store: &Store, entry: &str) -> Result<()> {
    match going_with(store, entry)? {
        Some(_) => remove(store, &name_going_with(entry)?.to_string(), true, false).map(drop),
        None => Ok(()),
    }
}

/// Every image, newest first.
pub fn list(store: &Store) -> Result<Vec<Image>> {
    list_but(store, Err)
}

/// [`list`], told of those that cannot be read.
pub fn list_but(store: &Store, broken: impl FnMut(Error) -> Result<()>) -> Result<Vec<Image>> {
    let tags = store.tags()?;
    let open = |id: &Id| Ok(Image { names: names_of(&tags, id), ..Image::open(store, id)? });
    let mut images = store.each(Shelf::Images, open, broken)?;
    images.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
    Ok(images)
}

/// Gives an image one more name; an image that had it before loses it. Durable when it returns.
pub fn tag(store: &Store, id: &Id, name: &ImageName) -> Result<()> {
    let tag = || {
        let changing = store.lock_shelf(Shelf::Images)?;
        store.open_object(Shelf::Images, id)?;
        store.set_tag(name, id)?;
        drop(changing); // nobody has to wait for the disk
        store.sync()
    };
    tag().call_context(|| format!("tag {name}"))
}

fn names_of(tags: &[(ImageName, Id)], id: &Id) -> Vec<ImageName> {
    tags.iter().filter(|(_, target)| target == id).map(|(name, _)| name.clone()).collect()
}
