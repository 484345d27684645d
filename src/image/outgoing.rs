//! Images on their way out.
//!
//! A layer lies in the store as a subvolume. What it was as an archive, to the last byte, comes of its recipe
//! ([`layer::rebuild`]) and is verified by its diff id while it is read: so an image that goes out has the id that it has here.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::layers::chain_of;
use super::{CONFIG, Image, LayerRecord, RECIPE};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::layer;
use crate::layer::LARGEST_CONFIG;
use crate::name::Digest;
use crate::store::{Shelf, Store, record};
use crate::subvolume::Held;
use crate::transport::{Outgoing, OutgoingLayer, Tars, Travelled, verified};

/// How many ways of a layer are remembered.
const WAYS: usize = 8;

/// An image as it goes out, and where its layers are read from: as long as that lives nobody removes them.
///
/// # Errors
/// [`Kind::Store`] for an image that lacks a layer.
pub fn outgoing(store: &Store, image: &Image) -> Result<(Outgoing, Arc<dyn Tars>)> {
    let doing = || format!("image {}", image.id.short());
    let config = fs::read_small(store.open_object(Shelf::Images, &image.id)?.as_fd(), CONFIG, LARGEST_CONFIG);
    let config = config.context(doing)?;
    let (mut layers, mut archives) = (Vec::new(), Vec::new());
    for chain in chain_of(store, image.chain)?.into_iter().rev() {
        let missing = || Error::new(Kind::Store, format!("its layer {} is missing", chain.short()));
        let held = Held::layer(store, &chain)?.ok_or_else(missing).context(doing)?;
        let found: Option<LayerRecord> = record::read(held.dir()).context(doing)?;
        let LayerRecord { diff_id, travelled, .. } = found.ok_or_else(missing).context(doing)?;
        layers.push(OutgoingLayer { diff_id, travelled });
        archives.push((held, diff_id));
    }
    let diff_ids = layers.iter().map(|layer| layer.diff_id.to_string());
    if !diff_ids.eq(image.config.rootfs().diff_ids().iter().cloned()) {
        return Err(Error::new(Kind::Store, "its layers are not those of its config")).context(doing);
    }
    Ok((Outgoing { config, layers }, Arc::new(Archives(archives))))
}

/// The layers of an image, each with its diff id, lowest first.
struct Archives(Vec<(Held, Digest)>);

impl Archives {
    fn layer(&self, number: usize) -> Result<&(Held, Digest)> {
        self.0.get(number).ok_or_else(|| Error::new(Kind::NotFound, format!("there is no layer {number}")))
    }
}

impl Tars for Archives {
    fn open(&self, layer: usize) -> Result<Box<dyn Read + Send>> {
        let (held, diff_id) = self.layer(layer)?;
        let open = || layer::rebuild(recipe(held)?, held.rootfs()?);
        let archive = open().context(|| format!("layer {}", diff_id.id().short()))?;
        Ok(Box::new(verified(archive, *diff_id)))
    }

    fn size(&self, layer: usize) -> Result<u64> {
        let (held, diff_id) = self.layer(layer)?;
        recipe(held)
            .and_then(|recipe| layer::rebuilt_size(&recipe))
            .context(|| format!("layer {}", diff_id.id().short()))
    }
}

fn recipe(held: &Held) -> Result<File> {
    match fs::open_file_beneath(held.dir(), RECIPE.as_ref()).map(File::from) {
        Err(e) if e.kind() == Kind::NotFound => {}
        opened => {
            let recipe = opened?;
            if layer::is_recipe(&recipe)? {
                return Ok(recipe);
            }
        }
    }
    let error = Error::new(Kind::Unsupported, "how its archive was is not known, only what it held");
    Err(error
        .with_hint("`tupper image export` writes the files; remove the image and load it again to keep its layers"))
}

/// Notes how the layers of an image have travelled, lowest first: the next time they need not travel again.
///
/// # Errors
/// Those of the store. Nothing is lost with what was not noted.
pub(super) fn note_travelled(store: &Store, image: &Image, travelled: &[Option<Travelled>]) -> Result<()> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    for (chain, way) in chain_of(store, image.chain)?.into_iter().rev().zip(travelled) {
        let Some(way) = way else { continue };
        let dir = store.open_object(Shelf::Layers, &chain)?;
        let Some(found) = record::read::<LayerRecord>(dir.as_fd())? else { continue };
        if found.travelled.first() != Some(way) {
            record::write(dir.as_fd(), &found.travelled(way.clone()))?;
        }
    }
    Ok(())
}

impl LayerRecord {
    /// The record of a layer that has gone this way, too.
    pub(super) fn travelled(mut self, way: Travelled) -> LayerRecord {
        self.travelled.retain(|known| known.digest != way.digest || known.place != way.place);
        self.travelled.insert(0, way);
        self.travelled.truncate(WAYS);
        self
    }
}
