//! Images: sources in, a chain of sealed subvolumes out; named, listed, removed.
//!
//! An image is a directory `images/ID/` with the OCI config, whose sha256 is ID, and a record that names its top layer
//! by chain id. Layers belong to nobody: an image is what keeps one, and the last image that goes takes it along.
//! Snapshots share a layer's extents, not its life, so they stay whatever happens to images.

mod add;
mod config;
mod draft;
mod import;
mod load;
mod progress;
mod pull;

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

pub use add::add;
pub use config::Change;
pub use import::{Import, import};
pub use load::{Load, Loaded, load};
pub use progress::{LayerProgress, Progress, Step};
pub use pull::pull;

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{flock, fs};
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{Parent, Sealed, remove_object};

/// A config larger than this is refused: real ones are a few KiB.
const CONFIG_LIMIT: u64 = 4 << 20;

/// What the store records of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// The chain id of the top layer.
    chain: Id,
    /// Unpacked bytes in all layers.
    size: u64,
    /// When it came into this store.
    created: Timestamp,
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
    chain: Id,
}

impl Image {
    /// Opens an image.
    pub fn open(store: &Store, id: &Id) -> Result<Image> {
        let dir = store.open_object(Shelf::Images, id)?;
        let read = || -> Result<Image> {
            let record: Record = record::read(dir.as_fd())?.ok_or_else(|| Error::new(Kind::Store, "no record"))?;
            let json = config_bytes(dir.as_fd())?;
            let config: ImageConfiguration =
                serde_json::from_slice(&json).map_err(|e| Error::new(Kind::Store, format!("read config.json: {e}")))?;
            let created = config.created().as_ref().and_then(|text| text.parse().ok()).unwrap_or(record.created);
            Ok(Image { id: *id, names: Vec::new(), config, created, size: record.size, chain: record.chain })
        };
        read().context(|| format!("image {}", id.short()))
    }

    /// What snapshots of it are made of.
    pub(crate) fn parent(&self, store: &Store) -> Result<Parent> {
        Sealed::open(store, &self.chain)?.into_parent().context(|| format!("image {}", self.id.short()))
    }

    /// Where its top layer lies.
    pub(crate) fn path(&self, store: &Store) -> PathBuf {
        store.rootfs_path(Shelf::Layers, &self.chain)
    }

    /// What a person calls it who named it by `text`: the name that is, else its first name, else its id.
    pub(crate) fn name_for(&self, text: &str) -> String {
        let asked = text.trim_start_matches("image:").parse().ok().filter(|name| self.names.contains(name));
        asked.as_ref().or(self.names.first()).map_or_else(|| self.id.to_string(), ToString::to_string)
    }
}

fn config_bytes(dir: BorrowedFd<'_>) -> Result<Vec<u8>> {
    fs::read_small(dir, "config.json", CONFIG_LIMIT)
}

/// What is wrong with an image, if something is: its config is not the one that it is named after, or a layer is missing.
pub(crate) fn damage(store: &Store, id: &Id) -> Result<Option<String>> {
    let image = Image::open(store, id)?;
    let config = config_bytes(store.open_object(Shelf::Images, id)?.as_fd())?;
    if Digest::of(&config).id() != *id {
        return Ok(Some("config.json is not the document that the image is named after".to_string()));
    }
    let mut next = Some(image.chain);
    while let Some(chain) = next {
        if !store.exists(Shelf::Layers, &chain) {
            return Ok(Some(format!("its layer {} is missing", chain.short())));
        }
        next = layer_record(store, &chain)?.and_then(|record| record.parent);
    }
    Ok(None)
}

/// What is wrong with a layer, if something is: nothing is recorded of it, or it can be written to.
pub(crate) fn layer_damage(store: &Store, chain: &Id) -> Result<Option<String>> {
    if layer_record(store, chain)?.is_none() {
        return Ok(Some("it has no record".to_string()));
    }
    let sealed = Sealed::open(store, chain)?.is_sealed()?;
    Ok((!sealed).then(|| "it is not read-only: somebody may have changed it".to_string()))
}

/// The image that `text` names: a name, an id or an unambiguous prefix of one.
pub fn find(store: &Store, text: &str) -> Result<Image> {
    let found = store.find_among(text, &[Shelf::Images])?;
    let mut image = Image::open(store, &found.id)?;
    image.names = names_of(&store.tags()?, &found.id);
    Ok(image)
}

/// Every image, newest first.
pub fn list(store: &Store) -> Result<Vec<Image>> {
    let tags = store.tags()?;
    let mut images = Vec::new();
    for id in store.ids(Shelf::Images)? {
        match Image::open(store, &id) {
            Ok(mut image) => {
                image.names = names_of(&tags, &id);
                images.push(image);
            }
            Err(e) if e.kind() == Kind::NotFound => {} // removed while we looked
            Err(e) => return Err(e),
        }
    }
    images.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
    Ok(images)
}

/// Gives an image one more name; an image that had it before loses it. Durable when it returns.
pub fn tag(store: &Store, id: &Id, name: &ImageName) -> Result<()> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    store.open_object(Shelf::Images, id)?;
    store.set_tag(name, id)?;
    store.sync()
}

/// What a removal did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name was taken away.
    Untagged(ImageName),
    /// The image is gone, with the layers that no other image uses.
    Deleted(Id),
}

/// Removes an image, or, when it has several names and is called by one, that name only.
///
/// Kept containers that were made from it hold it back unless `force`; they are snapshots of their own and stay
/// whole either way. With `dry_run` nothing is changed and what would be is returned. Atomic, and durable when it returns.
pub fn remove(store: &Store, text: &str, force: bool, dry_run: bool) -> Result<Vec<Removed>> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    let image = find(store, text)?;
    let by_name: Option<ImageName> = text.parse().ok().filter(|name| image.names.contains(name));
    if let Some(name) = by_name.filter(|_| image.names.len() > 1) {
        if !dry_run {
            store.remove_tag(&name)?;
        }
        return Ok(vec![Removed::Untagged(name)]);
    }
    if image.names.len() > 1 && !force {
        let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        return Err(Error::new(
            Kind::InUse,
            format!("image {}: has several names: {}", image.id.short(), names.join(", ")),
        )
        .with_hint("name one of them, or use --force to remove them all"));
    }
    if !force {
        refuse_if_used(store, &image)?;
    }
    let mut removed: Vec<Removed> = image.names.iter().cloned().map(Removed::Untagged).collect();
    removed.push(Removed::Deleted(image.id));
    if dry_run {
        return Ok(removed);
    }
    // This is what removes it: a name whose image is not there is no name. It stays in the trash until its names and
    // layers are gone, so that they go, too, if we do not get that far.
    let dir = store.open_object(Shelf::Images, &image.id)?;
    let gone = remove_object(store, Shelf::Images, &image.id, dir.as_fd())
        .context(|| format!("remove image {}", image.id.short()))?;
    for name in &image.names {
        store.remove_tag(name)?;
    }
    remove_layers_left(store)?;
    gone.clear();
    store.reclaim()?;
    Ok(removed)
}

/// What no image keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unused {
    /// A name whose image is gone.
    Tag(ImageName),
    /// A layer that no image stands on.
    Layer(Id),
}

/// Finds what images left that were removed, or never came to be; with `remove`, it is removed.
pub(crate) fn unused(store: &Store, remove: bool) -> Result<Vec<Unused>> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    let mut unused = Vec::new();
    for (name, _) in store.tags()?.into_iter().filter(|(_, id)| !store.exists(Shelf::Images, id)) {
        if remove {
            store.remove_tag(&name)?;
        }
        unused.push(Unused::Tag(name));
    }
    for chain in unwanted_layers(store)? {
        if remove {
            remove_layer(store, &chain)?;
        }
        unused.push(Unused::Layer(chain));
    }
    Ok(unused)
}

/// The layers that no image stands on, directly or on one above. The caller holds the lock on images, so none is about
/// to be used; an image whose record cannot be read fails the search, since nobody knows what it stands on.
fn unused_layers(store: &Store) -> Result<Vec<Id>> {
    let mut used = HashSet::new();
    for id in store.ids(Shelf::Images)? {
        use_chain(store, Image::open(store, &id)?.chain, &mut used)?;
    }
    Ok(store.ids(Shelf::Layers)?.into_iter().filter(|chain| !used.contains(chain)).collect())
}

/// Those of them that nobody waits for: not what an image that was interrupted will go on with ([`add`](add::add)), and
/// not what somebody builds on just now.
fn unwanted_layers(store: &Store) -> Result<Vec<Id>> {
    let unused = unused_layers(store)?;
    let mut wanted = HashSet::new();
    for chain in &unused {
        let since = layer_record(store, chain)?.and_then(|record| record.unfinished);
        let waits = since.is_some_and(|since| Timestamp::now().duration_since(since) < add::KEEP);
        if waits || is_held(store.open_object(Shelf::Layers, chain)?.as_fd())? {
            use_chain(store, *chain, &mut wanted)?;
        }
    }
    Ok(unused.into_iter().filter(|chain| !wanted.contains(chain)).collect())
}

/// Notes a layer and all below it.
fn use_chain(store: &Store, top: Id, used: &mut HashSet<Id>) -> Result<()> {
    let mut next = Some(top);
    while let Some(chain) = next.filter(|chain| used.insert(*chain) && store.exists(Shelf::Layers, chain)) {
        next = layer_record(store, &chain)?.and_then(|record| record.parent);
    }
    Ok(())
}

/// Removes a layer that no image stands on. One that somebody builds on just now becomes an unfinished one.
fn remove_layer(store: &Store, chain: &Id) -> Result<()> {
    let doing = || format!("remove layer {}", chain.short());
    let dir = store.open_object(Shelf::Layers, chain).context(doing)?;
    if is_held(dir.as_fd())? {
        if let Some(record) = record::read::<LayerRecord>(dir.as_fd()).context(doing)? {
            let unfinished = record.unfinished.or(Some(Timestamp::now()));
            record::write(dir.as_fd(), &LayerRecord { unfinished, ..record }).context(doing)?;
        }
        return Ok(());
    }
    remove_object(store, Shelf::Layers, chain, dir.as_fd()).context(doing)?.clear();
    Ok(())
}

/// Removes the layers that an image leaves which is removed, but not those that an unfinished one waits for.
fn remove_layers_left(store: &Store) -> Result<()> {
    let unused = unused_layers(store)?;
    let mut waited_for = HashSet::new();
    for chain in &unused {
        if layer_record(store, chain)?.is_some_and(|record| record.unfinished.is_some()) {
            use_chain(store, *chain, &mut waited_for)?;
        }
    }
    unused.iter().filter(|chain| !waited_for.contains(*chain)).try_for_each(|chain| remove_layer(store, chain))
}

/// Whether somebody builds on the layer. If not, it is locked now.
fn is_held(dir: BorrowedFd<'_>) -> Result<bool> {
    match flock::try_lock(dir) {
        Ok(()) => Ok(false),
        Err(e) if e.kind() == Kind::InUse => Ok(true),
        Err(e) => Err(e),
    }
}

fn layer_record(store: &Store, chain: &Id) -> Result<Option<LayerRecord>> {
    record::read(store.open_object(Shelf::Layers, chain)?.as_fd())
}

/// Kept containers name the image that they were made from.
fn refuse_if_used(store: &Store, image: &Image) -> Result<()> {
    #[derive(Deserialize)]
    struct Uses {
        image: Option<Id>,
    }
    for id in store.ids(Shelf::Containers)? {
        let Ok(dir) = store.open_object(Shelf::Containers, &id) else { continue };
        if record::read::<Uses>(dir.as_fd())?.is_some_and(|uses| uses.image == Some(image.id)) {
            let message = format!("image {}: used by container {}", image.id.short(), id.short());
            return Err(Error::new(Kind::InUse, message).with_hint(format!(
                "remove it first (tupper rm {}), or use --force: the container stays whole",
                id.short()
            )));
        }
    }
    Ok(())
}

fn names_of(tags: &[(ImageName, Id)], id: &Id) -> Vec<ImageName> {
    tags.iter().filter(|(_, target)| target == id).map(|(name, _)| name.clone()).collect()
}
