//! Images out: by name, and all that nobody needs.

use std::os::fd::{AsFd, BorrowedFd};

use serde::Deserialize;

use super::layers::{chain_of, is_held, remove_layer, remove_layers_left, top_down, unused_layers};
use super::{Image, find, list};
use crate::error::{Context, Error, Kind, Result};
use crate::name::{Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{self, remove_object};

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
    if let Some(name) = image.named(text).filter(|_| image.names.len() > 1) {
        if !dry_run {
            store.remove_tag(name)?;
            drop(changing); // nobody has to wait for the disk
            store.sync()?;
        }
        return Ok(vec![Removed::Untagged(name.clone())]);
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
    // It stays in the trash until its names and layers are gone, so that they go, too, if we do not get that far.
    let dir = store.open_object(Shelf::Images, &image.id)?;
    let gone = take_away(store, &image, dir.as_fd())?;
    drop(changing); // nobody has to wait for the disk
    gone.clear();
    store.reclaim()?;
    Ok(removed)
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

/// Takes an image away with its names and the layers that only it stands on; what is left of its directory `dir` goes when
/// the result is cleared. The caller holds the lock on images.
fn take_away<'a>(store: &'a Store, image: &Image, dir: BorrowedFd<'_>) -> Result<subvolume::Removed<'a>> {
    let layers = chain_of(store, image.chain)?;
    // This is what removes it: a name whose image is not there is no name.
    let gone = remove_object(store, Shelf::Images, &image.id, dir)?;
    for name in &image.names {
        store.remove_tag(name)?;
    }
    remove_layers_left(store, &layers)?;
    Ok(gone)
}

/// What a prune did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pruned {
    /// An image went.
    Image(Id),
    /// A layer went that an interrupted pull or load had left for the next attempt; by chain id.
    Layer(Id),
}

/// Removes the images that have no name, or with `all` all, but none that kept containers were made from; and the layers
/// that wait for somebody to go on with an image. With `dry_run` nothing is changed and what would be is returned.
/// Atomic for each image, and durable when it returns.
pub fn prune(store: &Store, all: bool, dry_run: bool) -> Result<Vec<Pruned>> {
    prune_unlocked(store, all, dry_run).call_context(|| "prune images".to_string())
}

fn prune_unlocked(store: &Store, all: bool, dry_run: bool) -> Result<Vec<Pruned>> {
    let changing = store.lock_shelf(Shelf::Images)?;
    let mut pruned = Vec::new();
    // First, because what they wait on goes with its image only if they do not any more.
    for chain in top_down(store, unused_layers(store)?)? {
        if is_held(store.open_object(Shelf::Layers, &chain)?.as_fd())? {
            continue;
        }
        if !dry_run {
            remove_layer(store, &chain)?;
        }
        pruned.push(Pruned::Layer(chain));
    }
    for image in list(store)?.into_iter().filter(|image| all || image.names.is_empty()) {
        match refuse_if_used(store, &image) {
            Err(e) if e.kind() == Kind::InUse => continue,
            other => other?,
        }
        if !dry_run {
            let dir = store.open_object(Shelf::Images, &image.id)?;
            take_away(store, &image, dir.as_fd())?.clear();
        }
        pruned.push(Pruned::Image(image.id));
    }
    drop(changing); // nobody has to wait for the disk
    if !dry_run {
        store.reclaim()?;
    }
    Ok(pruned)
}
