//! What no image keeps: layers that none stands on, names of none. Garbage, unless somebody is about to need it.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::iter::successors;
use std::os::fd::{AsFd, BorrowedFd};

use jiff::Timestamp;

use super::{Image, LayerRecord, add};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock;
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{pool, remove_object};

/// What no image keeps, and what images are still to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unused {
    /// A name that was about to be an image's.
    Pending(ImageName),
    /// A name whose image is gone.
    Tag(ImageName),
    /// A layer that no image stands on.
    Layer(Id),
}

/// Finds what images left that were removed, or never came to be, and what those lack that came to be a moment before
/// their maker was killed; with `remove`, both is mended.
pub(crate) fn unused(store: &Store, remove: bool) -> Result<Vec<Unused>> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    let mut unused = Vec::new();
    for id in store.ids(Shelf::Images)? {
        // Nobody is between its publication and its names as long as we hold the lock.
        let dir = store.open_object(Shelf::Images, &id)?;
        for name in store.prepared_tags(dir.as_fd())? {
            if remove {
                store.take_tag_left(dir.as_fd(), &name)?;
            }
            unused.push(Unused::Pending(name));
        }
    }
    for (name, id) in store.tags()? {
        if store.exists(Shelf::Images, &id)? {
            continue;
        }
        if remove {
            store.remove_tag(&name)?;
        }
        unused.push(Unused::Tag(name));
    }
    let used = used_layers(store)?;
    for chain in unwanted_layers(store, &used)? {
        if remove {
            remove_layer(store, &chain)?;
        }
        unused.push(Unused::Layer(chain));
    }
    if remove {
        for chain in &used {
            match store.open_object(Shelf::Layers, chain) {
                Ok(dir) => settle(dir.as_fd())?,
                Err(e) if e.kind() == Kind::NotFound => {} // damage, which `store check` reports
                Err(e) => return Err(e),
            }
        }
    }
    Ok(unused)
}

/// The layers that images stand on. The caller holds the lock on images, so none is about to be used; an image whose
/// record cannot be read, or is another's, fails the search, since nobody knows what it stands on.
fn used_layers(store: &Store) -> Result<HashSet<Id>> {
    let mut used = HashSet::new();
    for id in store.ids(Shelf::Images)? {
        let image = Image::open(store, &id)?;
        let named = add::layers(image.config.rootfs().diff_ids())?;
        if named.last().map(|top| top.chain) != Some(image.chain) {
            let message = format!("image {}: its record names another layer than its config", id.short());
            return Err(Error::new(Kind::Store, message));
        }
        use_chain(store, image.chain, &mut used)?;
    }
    Ok(used)
}

/// A layer that images stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Those images.
    pub images: Vec<Id>,
    /// It stays when they go, for a while: one that is unfinished stands on it, too.
    pub waited_for: bool,
}

/// The layers that these images stand on, as far as they are there.
pub(crate) fn standing(store: &Store, images: &[Id]) -> Result<HashMap<Id, Standing>> {
    let mut standing: HashMap<Id, Standing> = HashMap::new();
    for id in images {
        let chain = match Image::open(store, id).and_then(|image| chain_of(store, image.chain)) {
            Err(e) if e.kind() == Kind::NotFound => continue, // removed while we looked
            chain => chain?,
        };
        for layer in chain {
            let entry = standing.entry(layer).or_insert(Standing { images: Vec::new(), waited_for: false });
            entry.images.push(*id);
        }
    }
    let mut waited_for = HashSet::new();
    for chain in store.ids(Shelf::Layers)?.into_iter().filter(|chain| !standing.contains_key(chain)) {
        match layer_record(store, &chain) {
            Ok(Some(record)) if record.unfinished.is_some() => use_chain(store, chain, &mut waited_for)?,
            Ok(_) => {}
            Err(e) if e.kind() == Kind::NotFound => {} // removed while we looked
            Err(e) => return Err(e),
        }
    }
    standing.iter_mut().for_each(|(chain, layer)| layer.waited_for = waited_for.contains(chain));
    Ok(standing)
}

/// The layers that no image stands on, directly or on one above. The caller holds the lock on images.
pub(super) fn unused_layers(store: &Store) -> Result<Vec<Id>> {
    all_but(store, &used_layers(store)?)
}

fn all_but(store: &Store, used: &HashSet<Id>) -> Result<Vec<Id>> {
    Ok(store.ids(Shelf::Layers)?.into_iter().filter(|chain| !used.contains(chain)).collect())
}

/// Layers from the top down: who is killed while he removes them one by one leaves none without what it was made of.
pub(super) fn top_down(store: &Store, mut layers: Vec<Id>) -> Result<Vec<Id>> {
    let mut parents = HashMap::new();
    for chain in &layers {
        parents.insert(*chain, layer_record(store, chain).ok().flatten().and_then(|record| record.parent));
    }
    let below = |chain: &Id| parents.get(chain).copied().flatten();
    layers.sort_by_key(|top| Reverse(successors(Some(*top), below).take(parents.len()).count()));
    Ok(layers)
}

/// All layers, each before those that it stands on. One whose record cannot be read stands on none.
pub(crate) fn layers_top_down(store: &Store) -> Result<Vec<Id>> {
    top_down(store, store.ids(Shelf::Layers)?)
}

/// Those that nobody waits for: not what images stand on, not what an image that was interrupted will go on with
/// ([`add`](add::add)), and not what somebody builds on just now.
fn unwanted_layers(store: &Store, used: &HashSet<Id>) -> Result<Vec<Id>> {
    let unused = all_but(store, used)?;
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

/// Takes away a layer's mark that no image came of it yet: what keeps it from now on is that one stands on it.
pub(super) fn settle(dir: BorrowedFd<'_>) -> Result<()> {
    match record::read::<LayerRecord>(dir)? {
        Some(record) if record.unfinished.is_some() => record::write(dir, &LayerRecord { unfinished: None, ..record }),
        _ => Ok(()),
    }
}

/// Notes a layer and all below it.
fn use_chain(store: &Store, top: Id, used: &mut HashSet<Id>) -> Result<()> {
    let mut next = Some(top);
    while let Some(chain) = next.filter(|chain| used.insert(*chain)) {
        next = match store.exists(Shelf::Layers, &chain)? {
            // What it stands on is in its record alone: without one, nobody knows what may go.
            true => require_record(store, &chain)?.parent,
            false => None,
        };
    }
    Ok(())
}

/// The record of a layer that is there, if it is that.
pub(super) fn require_record(store: &Store, chain: &Id) -> Result<LayerRecord> {
    let doing = || format!("layer {}", chain.short());
    let record = layer_record(store, chain).context(doing)?;
    let record = record.ok_or_else(|| Error::new(Kind::Store, "no record")).context(doing)?;
    match chain_id(record.parent, record.diff_id) == *chain {
        true => Ok(record),
        false => Err(Error::new(Kind::Store, "its record is that of another layer")).context(doing),
    }
}

/// Removes a layer that no image stands on. One that somebody builds on just now becomes an unfinished one.
pub(super) fn remove_layer(store: &Store, chain: &Id) -> Result<()> {
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
    // What shares its extents would keep them.
    pool::forget(store, Some(chain)).unwrap_or_else(|e| log::warn!("remove layer {}: {e}", chain.short()));
    Ok(())
}

/// Removes the layers that an image leaves which was removed, but not those that another waits for that is unfinished. The
/// caller holds the lock on images.
pub(super) fn remove_layers_left(store: &Store, image: &[Id]) -> Result<()> {
    let unused = unused_layers(store)?;
    let mut waited_for = HashSet::new();
    for chain in unused.iter().filter(|chain| !image.contains(chain)) {
        if layer_record(store, chain)?.is_some_and(|record| record.unfinished.is_some()) {
            use_chain(store, *chain, &mut waited_for)?;
        }
    }
    unused.iter().filter(|chain| !waited_for.contains(*chain)).try_for_each(|chain| remove_layer(store, chain))
}

/// Removes layers of an image that was not made, unless somebody else builds on them. What fails is left to a gc.
pub(super) fn discard(store: &Store, made: &[Id]) {
    let discard = || -> Result<()> {
        let _changing = store.lock_shelf(Shelf::Images)?;
        for chain in unused_layers(store)?.into_iter().filter(|chain| made.contains(chain)) {
            remove_layer(store, &chain)?;
        }
        Ok(())
    };
    if let Err(e) = discard() {
        log::warn!("remove the layers of an image that was not made: {e}");
    }
}

/// What a layer is called that is put on another, or on none (image-spec config.md, "Layer ChainID").
pub(super) fn chain_id(below: Option<Id>, diff_id: Digest) -> Id {
    match below {
        None => diff_id.id(),
        Some(below) => Digest::of(format!("{} {diff_id}", Digest::from(below)).as_bytes()).id(),
    }
}

/// The layers that an image stands on, from the top down, as far as they are there.
pub(super) fn chain_of(store: &Store, top: Id) -> Result<Vec<Id>> {
    let mut chain = Vec::new();
    let mut next = Some(top);
    while let Some(layer) = next.filter(|layer| !chain.contains(layer)) {
        if !store.exists(Shelf::Layers, &layer)? {
            break;
        }
        chain.push(layer);
        next = layer_record(store, &layer)?.and_then(|record| record.parent);
    }
    Ok(chain)
}

/// Whether somebody builds on the layer. If not, it is locked now.
pub(super) fn is_held(dir: BorrowedFd<'_>) -> Result<bool> {
    match flock::try_lock(dir) {
        Ok(()) => Ok(false),
        Err(e) if e.kind() == Kind::InUse => Ok(true),
        Err(e) => Err(e),
    }
}

pub(super) fn layer_record(store: &Store, chain: &Id) -> Result<Option<LayerRecord>> {
    record::read(store.open_object(Shelf::Layers, chain)?.as_fd())
}
