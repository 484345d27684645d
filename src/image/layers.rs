//! What no image keeps: layers that none stands on, names of none, images that never got theirs. Garbage, unless
//! somebody is about to need it.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use jiff::Timestamp;

use super::{CONFIG, Image, LayerRecord, add, names_of};
use crate::error::{Context, Kind, Result};
use crate::kernel::{flock, fs};
use crate::name::{Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::remove_object;

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
    for chain in unwanted_layers(store, &unnamed)? {
        if remove {
            remove_layer(store, &chain)?;
        }
        unused.push(Unused::Layer(chain));
    }
    Ok(unused)
}

/// Images whose making was killed before they got their name: it is still in their directory. One that was given another
/// since then stays; with `tidy`, it keeps that only. The caller holds the lock on images, and so none is being made.
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

/// The layers that no image stands on but those that are as good as gone, directly or on one above. The caller holds the
/// lock on images, so none is about to be used; an image whose record cannot be read fails the search, since nobody knows
/// what it stands on.
pub(super) fn unused_layers(store: &Store, gone: &[Id]) -> Result<Vec<Id>> {
    let mut used = HashSet::new();
    for id in store.ids(Shelf::Images)?.into_iter().filter(|id| !gone.contains(id)) {
        use_chain(store, Image::open(store, &id)?.chain, &mut used)?;
    }
    Ok(store.ids(Shelf::Layers)?.into_iter().filter(|chain| !used.contains(chain)).collect())
}

/// Those of them that nobody waits for: not what an image that was interrupted will go on with ([`add`](add::add)), and
/// not what somebody builds on just now.
fn unwanted_layers(store: &Store, gone: &[Id]) -> Result<Vec<Id>> {
    let unused = unused_layers(store, gone)?;
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
    while let Some(chain) = next.filter(|chain| used.insert(*chain)) {
        next = match store.exists(Shelf::Layers, &chain)? {
            true => layer_record(store, &chain)?.and_then(|record| record.parent),
            false => None,
        };
    }
    Ok(())
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
    Ok(())
}

/// Removes the layers that an image leaves which was removed or could not be made, but not those that another waits for
/// that is unfinished. The caller holds the lock on images.
pub(super) fn remove_layers_left(store: &Store, image: &[Id]) -> Result<()> {
    let unused = unused_layers(store, &[])?;
    let mut waited_for = HashSet::new();
    for chain in unused.iter().filter(|chain| !image.contains(chain)) {
        if layer_record(store, chain)?.is_some_and(|record| record.unfinished.is_some()) {
            use_chain(store, *chain, &mut waited_for)?;
        }
    }
    unused.iter().filter(|chain| !waited_for.contains(*chain)).try_for_each(|chain| remove_layer(store, chain))
}

/// The layers that an image stands on, from the top down, as far as they are there.
pub(super) fn chain_of(store: &Store, top: Id) -> Result<Vec<Id>> {
    let mut chain = Vec::new();
    let mut next = Some(top);
    while let Some(layer) = next.filter(|layer| !chain.contains(layer)) {
        next = match store.exists(Shelf::Layers, &layer)? {
            true => layer_record(store, &layer)?.and_then(|record| record.parent),
            false => break,
        };
        chain.push(layer);
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
