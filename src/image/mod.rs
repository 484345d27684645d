//! Images: sources in, a chain of sealed subvolumes out; named, listed, removed.
//!
//! An image is a directory `images/ID/` with the OCI config, whose sha256 is ID, and a record that names its top layer
//! by chain id. Layers belong to nobody: an image is what keeps one, and the last image that goes takes it along.
//! Snapshots share a layer's extents, not its life, so they stay whatever happens to images.

mod config;
mod import;

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use config::Change;
pub use import::{Import, Progress, import};

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{Parent, Sealed, remove_object};

/// The document that an image is named after.
const CONFIG: &str = "config.json";

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
    fs::read_small(dir, CONFIG, CONFIG_LIMIT)
}

/// What is wrong with an image, if something is: its config is not the one that it is named after, or a layer is missing.
pub(crate) fn damage(store: &Store, id: &Id) -> Result<Option<String>> {
    let image = Image::open(store, id)?;
    let config = config_bytes(store.open_object(Shelf::Images, id)?.as_fd())?;
    if Digest::from_bytes(Sha256::digest(&config).into()).id() != *id {
        return Ok(Some("config.json is not the document that the image is named after".to_string()));
    }
    let mut next = Some(image.chain);
    while let Some(chain) = next {
        if !store.exists(Shelf::Layers, &chain)? {
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
    let tag = || {
        let changing = store.lock_shelf(Shelf::Images)?;
        store.open_object(Shelf::Images, id)?;
        store.set_tag(name, id)?;
        drop(changing); // nobody has to wait for the disk
        store.sync()
    };
    tag().call_context(|| format!("tag {name}"))
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
    remove_named(store, text, force, dry_run).call_context(|| format!("remove image {text}"))
}

fn remove_named(store: &Store, text: &str, force: bool, dry_run: bool) -> Result<Vec<Removed>> {
    let changing = store.lock_shelf(Shelf::Images)?;
    let image = find(store, text)?;
    let by_name: Option<ImageName> = text.parse().ok().filter(|name| image.names.contains(name));
    if let Some(name) = by_name.filter(|_| image.names.len() > 1) {
        if !dry_run {
            store.remove_tag(&name)?;
            drop(changing); // nobody has to wait for the disk
            store.sync()?;
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
    let gone = remove_object(store, Shelf::Images, &image.id, dir.as_fd())?;
    for name in &image.names {
        store.remove_tag(name)?;
    }
    remove_unused_layers(store)?;
    drop(changing); // nobody has to wait for the disk
    gone.clear();
    store.reclaim()?;
    Ok(removed)
}

/// What no image keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unused {
    /// An image that was not given its name any more.
    Image(Id),
    /// A name whose image is gone.
    Tag(ImageName),
    /// A layer that no image stands on.
    Layer(Id),
}

/// Finds what images left that were removed, or never came to be; with `remove`, it is removed.
pub(crate) fn unused(store: &Store, remove: bool) -> Result<Vec<Unused>> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    let unnamed = unnamed(store, remove)?;
    if remove {
        for id in &unnamed {
            let dir = store.open_object(Shelf::Images, id)?;
            remove_object(store, Shelf::Images, id, dir.as_fd())?.clear();
        }
    }
    let mut unused: Vec<Unused> = unnamed.iter().copied().map(Unused::Image).collect();
    for (name, id) in store.tags()? {
        if store.exists(Shelf::Images, &id)? {
            continue;
        }
        if remove {
            store.remove_tag(&name)?;
        }
        unused.push(Unused::Tag(name));
    }
    for chain in unused_layers(store, &unnamed)? {
        if remove {
            remove_layer(store, &chain)?;
        }
        unused.push(Unused::Layer(chain));
    }
    Ok(unused)
}

/// Images whose import was killed before they got their name: it is still in their directory. One that was given another
/// since then stays; with `tidy`, it keeps that only. The caller holds the lock on images, and so none is being imported.
fn unnamed(store: &Store, tidy: bool) -> Result<Vec<Id>> {
    let tags = store.tags()?;
    let mut unnamed = Vec::new();
    for id in store.ids(Shelf::Images)? {
        let dir = store.open_object(Shelf::Images, &id)?;
        let links: Vec<_> = fs::list(dir.as_fd(), ".")?.into_iter().filter(|entry| entry != CONFIG).collect();
        if !links.is_empty() && names_of(&tags, &id).is_empty() {
            unnamed.push(id);
        } else if tidy {
            links.iter().try_for_each(|link| fs::unlink(dir.as_fd(), link))?;
        }
    }
    Ok(unnamed)
}

/// The layers that no image stands on but those that are as good as gone, directly or on one above. The caller holds the lock on images, so none is about
/// to be used; an image whose record cannot be read fails the search, since nobody knows what it stands on.
fn unused_layers(store: &Store, gone: &[Id]) -> Result<Vec<Id>> {
    let mut used = HashSet::new();
    for id in store.ids(Shelf::Images)?.into_iter().filter(|id| !gone.contains(id)) {
        let mut next = Some(Image::open(store, &id)?.chain);
        while let Some(chain) = next.filter(|chain| used.insert(*chain)) {
            next = match store.exists(Shelf::Layers, &chain)? {
                true => layer_record(store, &chain)?.and_then(|record| record.parent),
                false => None,
            };
        }
    }
    Ok(store.ids(Shelf::Layers)?.into_iter().filter(|chain| !used.contains(chain)).collect())
}

/// The caller holds the lock on images.
fn remove_unused_layers(store: &Store) -> Result<()> {
    unused_layers(store, &[])?.iter().try_for_each(|chain| remove_layer(store, chain))
}

fn remove_layer(store: &Store, chain: &Id) -> Result<()> {
    let doing = || format!("remove layer {}", chain.short());
    let dir = store.open_object(Shelf::Layers, chain).context(doing)?;
    remove_object(store, Shelf::Layers, chain, dir.as_fd()).context(doing)?.clear();
    Ok(())
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
