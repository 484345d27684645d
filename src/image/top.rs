//! The topmost layer of an image that is made here, from the draft that holds it to the published image.
//!
//! 1. write the config; one sync takes it and the layer to the disk
//! 2. seal the draft and rename it to its chain id, rename the config's directory to the image's id, point the names at it
//! 3. one more sync, then the id is returned
//!
//! A failure or a kill before 2 leaves nothing but an unlocked draft; between the renames, a layer that no image stands
//! on, which is garbage, or an image that still has its name in its directory, which a gc puts in its place.

use jiff::Timestamp;

use super::draft::ImageDraft;
use super::layers::{chain_id, chain_of, discard};
use super::{Image, LayerRecord, RECIPE, Record};
use crate::error::Result;
use crate::layer::Unpacked;
use crate::name::{Id, ImageName};
use crate::store::{Shelf, Store};
use crate::subvolume::{Claim, Draft, Held, Turn};

/// What such a layer is put on; by default nothing.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// The chain id of the uppermost of the layers.
    pub chain: Option<Id>,
    /// Unpacked bytes in all of them.
    pub size: u64,
    /// All of them from the top down, so that nobody removes one.
    pub held: Vec<Held>,
}

impl Below {
    /// The layers of an image, if they are all there.
    pub(super) fn hold(store: &Store, image: &Image) -> Result<Option<Below>> {
        let mut held = Vec::new();
        for chain in chain_of(store, image.chain)? {
            let Some(layer) = Held::layer(store, &chain)? else { return Ok(None) };
            held.push(layer);
        }
        // One that was removed meanwhile ends what is known of the chain.
        let whole = held.len() == image.config.rootfs().diff_ids().len();
        Ok(whole.then_some(Below { chain: Some(image.chain), size: image.size, held }))
    }
}

/// The layer in its draft, as it was unpacked there, and its recipe beside it.
pub(super) struct Top<'a> {
    pub draft: Draft<'a>,
    pub unpacked: Unpacked,
    pub below: Below,
}

impl Top<'_> {
    /// Makes an image of it, with this config and these names: durable when this returns.
    pub(super) fn publish(self, store: &Store, config: &[u8], names: &[ImageName]) -> Result<Id> {
        let Top { draft, unpacked, below: Below { chain: parent, size, mut held } } = self;
        let Unpacked { diff_id, entries, bytes } = unpacked;
        let chain = chain_id(parent, diff_id);
        let record = Record { chain, size: size.saturating_add(bytes), created: Timestamp::now(), manifest: None };
        let layer = LayerRecord { diff_id, parent, size: bytes, entries, unfinished: None, travelled: Vec::new() };
        match Claim::layer(store, &chain)? {
            Turn::There(there) => {
                // The same bytes were unpacked before: nothing of the draft needs to reach the disk.
                let image = ImageDraft::create(store, config, &record, true)?;
                drop(draft);
                held.push(there);
                image.publish(names, &held, store.lock_shelf(Shelf::Images)?)
            }
            Turn::Ours(claim) => {
                let image = ImageDraft::create(store, config, &record, false)?;
                claim.attach(&draft, RECIPE)?;
                draft.finish()?;
                let publishing = store.lock_shelf(Shelf::Images)?;
                held.push(draft.seal(claim, &layer)?);
                let published = image.publish(names, &held, publishing);
                // Held no more: what is held is kept for who builds on it.
                drop(held);
                // No command but gc would look for it.
                published.inspect_err(|_| discard(store, &[chain]))
            }
        }
    }
}
