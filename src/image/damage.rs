//! What is wrong with images and layers, and how it is mended.
//!
//! An image's config is verified by the id that it lies at, and names its layers. So it says what the image's record has
//! to be, and those of its layers, too: which diff id a layer has and what it stands on. A layer's recipe tells its diff id
//! where no image does. What cannot be told has to come again from where it came from.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use jiff::Timestamp;

use super::add::{Layer, layers};
use super::layers::{chain_id, is_held, layers_top_down, require_record};
use super::verify::{accepted, count, recipe_of};
use super::{CONFIG, LayerRecord, Record, config_bytes, layer_record, names_of, read_config};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{btrfs, fs};
use crate::layer;
use crate::name::{Digest, Id};
use crate::store::record::{self, Condition};
use crate::store::{Damage, Mend, Shelf, Store};
use crate::subvolume::{self, Sealed, pool, remove_object};

/// What is wrong with an image: its config is not the one that it is named after, its record is not what that says, or
/// layers are missing.
pub(crate) fn damage(store: &Store, id: &Id) -> Result<Vec<Damage>> {
    let id = *id;
    let dir = fs::open_directory(store.dir(), format!("images/{id}"))?;
    let removal = |problem: String| {
        let called = called(store, &[id])?;
        let way_out = format!("remove the image, which can come again then: {called}");
        Ok(vec![Damage::by_force(problem, way_out, move |store| remove_broken(store, &id))])
    };
    let layers = match config_layers(dir.as_fd(), &id) {
        Ok(layers) => layers,
        Err(e) if e.tells_nothing() => return Err(e),
        Err(e) if e.kind() == Kind::NotFound && !fs::exists_at(store.dir(), format!("images/{id}"))? => return Err(e),
        Err(e) => return removal(e.to_string()),
    };
    let Some(top) = layers.last() else { return removal("its config names no layers".to_string()) };
    let rewrite = |problem: String| {
        Damage::now(problem, "write its record anew, as its config says", move |store| rewrite_record(store, &id))
    };
    let mut wrong = Vec::new();
    match record::examine::<Record>(dir.as_fd())? {
        Condition::Newer(problem) => wrong.push(newer(problem)),
        Condition::Broken(problem) => wrong.push(rewrite(problem)),
        Condition::Good(record) if record.chain != top.chain => {
            wrong.push(rewrite("its record names another layer than its config".to_string()));
        }
        Condition::Good(_) => {}
    }
    for layer in &layers {
        if !store.exists(Shelf::Layers, &layer.chain)? {
            let called = called(store, &[id])?;
            wrong.push(Damage {
                problem: format!("its layer {} is missing", layer.chain.short()),
                way_out: format!("pull or load {called} again, which makes the layer; or remove the image"),
                mend: Mend::ByForce(Box::new(move |store, _| {
                    remove_broken(store, &id).map(|()| "remove the image".to_string())
                })),
            });
            break;
        }
    }
    Ok(wrong)
}

/// What is wrong with a layer's record: there is none, or it is not that of a layer with its chain id.
pub(crate) fn layer_damage(store: &Store, chain: &Id) -> Result<Vec<Damage>> {
    let chain = *chain;
    let dir = store.open_object(Shelf::Layers, &chain)?;
    let problem = match record::examine::<LayerRecord>(dir.as_fd())? {
        Condition::Newer(problem) => return Ok(vec![newer(problem)]),
        Condition::Broken(problem) => problem,
        Condition::Good(record) if chain_id(record.parent, record.diff_id) == chain => return Ok(Vec::new()),
        Condition::Good(_) => "its record is that of another layer".to_string(),
    };
    let told = match (known(store)?.contains_key(&chain), recipe_of(dir.as_fd())) {
        (_, Err(e)) if e.tells_nothing() => return Err(e),
        (true, _) => Some("write its record anew, as the configs of images say"),
        (false, Ok(Some(_))) => Some("write its record anew, as its recipe tells"),
        (false, _) => None,
    };
    Ok(vec![match told {
        Some(way_out) => Damage::now(problem, way_out, move |store| rewrite_layer_record(store, &chain)),
        None => Damage::by_force(problem, "remove the layer: no image stands on it", move |store| {
            remove_alone(store, &chain)
        }),
    }])
}

fn newer(problem: String) -> Damage {
    Damage::by_hand(problem, "use the newer tupper that wrote it")
}

/// Nothing in the layer can be changed, as it should be.
pub(crate) fn is_sealed(store: &Store, chain: &Id) -> Result<bool> {
    Sealed::open(store, chain)?.is_sealed()
}

/// Takes the subvolume that is there for the layer's own, and makes it read-only. Whoever calls has verified it.
pub(crate) fn seal(store: &Store, chain: &Id) -> Result<()> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    let dir = lock_alone(store, chain)?;
    let rootfs = fs::open_directory(dir.as_fd(), "rootfs")?;
    if !record::identity_matches(dir.as_fd(), rootfs.as_fd())? {
        subvolume::adopt(dir.as_fd(), rootfs.as_fd())?;
    }
    if !btrfs::is_read_only(rootfs.as_fd())? {
        btrfs::set_read_only(rootfs.as_fd(), true)?;
    }
    Ok(())
}

/// The directory of a layer on which nobody builds, and nobody will as long as this lives.
pub(super) fn lock_alone(store: &Store, chain: &Id) -> Result<OwnedFd> {
    let dir = store.open_object(Shelf::Layers, chain)?;
    match is_held(dir.as_fd())? {
        true => Err(Error::new(Kind::InUse, format!("layer {}: somebody builds on it now", chain.short()))),
        false => Ok(dir),
    }
}

/// The images that stand on a layer, as their configs say, and what a person calls them.
pub(crate) fn made_of(store: &Store, chain: &Id) -> Result<(Vec<Id>, String)> {
    let mut images = Vec::new();
    for id in store.ids(Shelf::Images)? {
        let layers = readable_layers(store, &id)?;
        images.extend(layers.iter().any(|layer| layer.chain == *chain).then_some(id));
    }
    let called = called(store, &images)?;
    Ok((images, called))
}

/// The image whose top layer this is, and how it is called.
pub(crate) fn on_top(store: &Store, chain: &Id) -> Result<Option<(Id, String)>> {
    for id in made_of(store, chain)?.0 {
        if readable_layers(store, &id)?.last().is_some_and(|top| top.chain == *chain) {
            return Ok(Some((id, called(store, &[id])?)));
        }
    }
    Ok(None)
}

/// Removes the images that stand on a layer, and that with those above it that no other image has.
pub(crate) fn remove_images_on(store: &Store, chain: &Id) -> Result<()> {
    let mut going = vec![*chain];
    for id in made_of(store, chain)?.0 {
        let above = readable_layers(store, &id)?.into_iter().map(|layer| layer.chain).skip_while(|at| at != chain);
        going.extend(above.skip(1));
        remove_broken(store, &id)?;
    }
    let named = known(store)?;
    let gone = |layer: &Id| going.contains(layer) && !named.contains_key(layer);
    layers_top_down(store)?.iter().filter(|layer| gone(layer)).try_for_each(|layer| remove_alone(store, layer))
}

/// The names of images, or their ids.
fn called(store: &Store, images: &[Id]) -> Result<String> {
    let tags = store.tags()?;
    let mut names = Vec::new();
    for id in images {
        let of_image = names_of(&tags, id);
        names.extend(of_image.iter().map(ToString::to_string));
        names.extend(of_image.is_empty().then(|| id.short()));
    }
    Ok(names.join(", "))
}

/// The layers that an image's config names, lowest first, if it is the config of that image.
fn config_layers(dir: BorrowedFd<'_>, id: &Id) -> Result<Vec<Layer>> {
    let bytes = config_bytes(dir)?;
    if Digest::of(&bytes).id() != *id {
        let message = "config.json is not the document that the image is named after";
        return Err(Error::new(Kind::Store, message));
    }
    let (config, _) = read_config(&bytes).map_err(|e| Error::new(Kind::Store, format!("read {CONFIG}: {e}")))?;
    layers(config.rootfs().diff_ids())
}

/// What the configs of all images say of layers: the diff id of each, and what it stands on.
fn known(store: &Store) -> Result<HashMap<Id, (Option<Id>, Digest)>> {
    let mut known = HashMap::new();
    for id in store.ids(Shelf::Images)? {
        let mut below = None;
        for layer in readable_layers(store, &id)? {
            known.insert(layer.chain, (below, layer.diff_id));
            below = Some(layer.chain);
        }
    }
    Ok(known)
}

/// The layers that an image's config names; none where that cannot be read, and so tells nothing.
fn readable_layers(store: &Store, id: &Id) -> Result<Vec<Layer>> {
    let dir = fs::open_directory(store.dir(), format!("images/{id}"));
    match dir.and_then(|dir| config_layers(dir.as_fd(), id)) {
        Err(e) if e.tells_nothing() => Err(e),
        layers => Ok(layers.unwrap_or_default()),
    }
}

/// Writes an image's record as its config says. When it came, and the digest of its manifest, are lost.
fn rewrite_record(store: &Store, id: &Id) -> Result<()> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    let dir = store.open_object(Shelf::Images, id)?;
    let layers = config_layers(dir.as_fd(), id)?;
    let top = layers.last().ok_or_else(|| Error::new(Kind::Store, "its config names no layers"))?;
    let size = |layer: &Layer| layer_record(store, &layer.chain).ok().flatten().map_or(0, |record| record.size);
    let created = fs::metadata_at(dir.as_fd(), CONFIG)?.st_mtime;
    let fields = record::fields(dir.as_fd());
    let record = Record {
        chain: top.chain,
        size: layers.iter().map(size).fold(0, u64::saturating_add),
        created: record::field(&fields, "created")
            .or(Timestamp::from_second(created).ok())
            .unwrap_or_else(Timestamp::now),
        manifest: record::field(&fields, "manifest"),
    };
    record::write(dir.as_fd(), &record)
}

/// Writes a layer's record as images say, or its recipe.
fn rewrite_layer_record(store: &Store, chain: &Id) -> Result<()> {
    let dir = store.open_object(Shelf::Layers, chain)?;
    let rootfs = fs::open_directory(dir.as_fd(), "rootfs")?;
    let told = known(store)?.remove(chain);
    let archive = match recipe_of(dir.as_fd())? {
        Some(recipe) => {
            let archive = layer::rebuild(recipe, fs::duplicate(rootfs.as_fd())?)?;
            match layer::check(Box::new(archive), &accepted()) {
                Err(e) if e.tells_nothing() => return Err(e),
                archive => archive.ok(),
            }
        }
        None => None,
    };
    // A load that was interrupted may go on with one that no image stands on.
    let unfinished = told.is_none().then(Timestamp::now);
    let (parent, diff_id) = match (told, archive) {
        (Some(told), _) => told,
        (None, Some(archive)) => (parent_of(store, chain, archive.diff_id)?, archive.diff_id),
        (None, None) => return Err(Error::new(Kind::Store, "its recipe does not yield its archive")),
    };
    let (size, entries) = match archive.filter(|archive| archive.diff_id == diff_id) {
        Some(archive) => (archive.bytes, archive.entries),
        None => {
            let below = parent.map(|parent| count(store, &parent)).transpose();
            let ((bytes, entries), below) = (count(store, chain)?, below.unwrap_or_default().unwrap_or_default());
            (bytes.saturating_sub(below.0), entries.saturating_sub(below.1))
        }
    };
    let record = LayerRecord { diff_id, parent, size, entries, unfinished, travelled: Vec::new() };
    let _changing = store.lock_shelf(Shelf::Images)?;
    record::write(dir.as_fd(), &record)
}

/// The layer on which one with this diff id has this chain id; nothing for a lowest one.
fn parent_of(store: &Store, chain: &Id, diff_id: Digest) -> Result<Option<Id>> {
    let below = store.ids(Shelf::Layers)?.into_iter().map(Some);
    let mut below = std::iter::once(None).chain(below);
    below.find(|below| chain_id(*below, diff_id) == *chain).ok_or_else(|| {
        Error::new(Kind::Store, "its recipe does not yield its archive, or the layer that it stands on is missing")
    })
}

/// Removes an image that cannot be read or used, with its names; what layers it leaves, a gc finds. Containers and snapshots
/// stay, which need nothing of it.
fn remove_broken(store: &Store, id: &Id) -> Result<()> {
    let doing = || format!("remove image {}", id.short());
    let _changing = store.lock_shelf(Shelf::Images)?;
    let dir = fs::open_directory(store.dir(), format!("images/{id}")).context(doing)?;
    let gone = remove_object(store, Shelf::Images, id, dir.as_fd()).context(doing)?;
    for name in names_of(&store.tags()?, id) {
        store.remove_tag(&name).context(doing)?;
    }
    gone.clear();
    Ok(())
}

/// Removes a layer that no image names.
fn remove_alone(store: &Store, chain: &Id) -> Result<()> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    if known(store)?.contains_key(chain) {
        return Err(Error::new(Kind::InUse, "an image stands on it now"));
    }
    let dir = lock_alone(store, chain)?;
    // What an interrupted load is to go on with.
    for other in store.ids(Shelf::Layers)?.into_iter().filter(|other| other != chain) {
        if require_record(store, &other).is_ok_and(|record| record.parent == Some(*chain)) {
            return Err(Error::new(Kind::InUse, format!("layer {} stands on it", other.short())));
        }
    }
    remove_object(store, Shelf::Layers, chain, dir.as_fd())?.clear();
    pool::forget(store, Some(chain))
}
