//! From an offer to an image: its layers, one on top of the other, each made once however many images have it.
//!
//! 1. from the lowest layer up: take the one that is there, or apply it to a draft and keep what that holds then
//! 2. write the config; one sync takes it and the last layer to the disk
//! 3. seal the last layer, rename the config's directory to the image's id, point the names at it
//! 4. one more sync, then the id is returned
//!
//! While a layer is applied the next ones are opened, decompressed and hashed as far as their buffers reach.
//!
//! Layers that were kept before an image came of them are marked as unfinished. A gc leaves them for [`KEEP`], so that
//! the next attempt goes on where this one was interrupted or killed; then nobody wants them any more. When the source
//! itself is at fault, or the disk is full, they go at once.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::draft::ImageDraft;
use super::layers::{chain_id, discard};
use super::outgoing::note_travelled;
use super::progress::{LayerProgress, Step, Watched};
use super::{Image, LayerRecord, RECIPE, Record, read_config, room};
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::layer::{Limits, Opened, Recipe, Watch};
use crate::name::{Digest, Id};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{Claim, Draft, Held, Turn};
use crate::transport::{Blob, Blobs, Offer, Travelled};

/// How long the layers of an image that was not finished wait for the next attempt.
pub(super) const KEEP: SignedDuration = SignedDuration::from_hours(7 * 24);

/// More layers than any builder makes (overlayfs takes 500, docker 127).
const LAYERS: usize = 512;

/// Layers that are in the works at once: one is applied, the others are decompressed ahead of it.
const IN_FLIGHT: usize = 3;

/// Makes the offered image, or finds that it is there, and gives it the offered names: durable when it returns.
///
/// Several that add the same image at once, in whatever process, unpack each layer once.
///
/// # Errors
/// `Invalid` when the config or a layer is not what was offered, `Limit` when it is too large, else those of the source
/// and of the store. What was fully applied is kept for the next attempt unless the image itself is at fault.
pub fn add(
    store: &Store,
    offer: &Offer,
    blobs: &Arc<dyn Blobs>,
    limits: &Limits,
    progress: &LayerProgress,
) -> Result<Id> {
    let layers = plan(offer, limits)?;
    let limits = &room::limits(store, limits)?;
    let mut made = Vec::new();
    let watch = room::watch(store, limits)?;
    let ways: Vec<_> = (0..offer.layers.len()).map(|number| way(offer, number)).collect();
    let adding = Adding { store, offer, blobs, limits, watch, progress, layers };
    let added = adding.run(&mut made).inspect_err(|e| {
        // The others are those of a connection or a disk, which may be better next time.
        let hopeless = [Kind::Invalid, Kind::Limit, Kind::Unsupported, Kind::NotFound, Kind::NoSpace];
        if hopeless.contains(&e.kind()) && interrupt::caught().is_none() {
            discard(store, &made);
        }
    })?;
    // Those that were there have come another way before.
    if made.len() < ways.len() && ways.iter().any(Option::is_some) {
        note_travelled(store, &Image::open(store, &added)?, &ways)?;
    }
    Ok(added)
}

/// How a layer has come.
fn way(offer: &Offer, number: usize) -> Option<Travelled> {
    let blob = &offer.layers[number];
    let media_type = blob.media_type.clone()?;
    Some(Travelled { digest: blob.digest?, size: blob.size?, media_type, place: offer.place.clone() })
}

/// A layer that is to be there.
pub(super) struct Layer {
    pub diff_id: Digest,
    pub chain: Id,
}

/// The layers that the config wants, with their chain ids.
pub(super) fn plan(offer: &Offer, limits: &Limits) -> Result<Vec<Layer>> {
    limits.require_config(offer.config.len() as u64)?;
    let (config, _) =
        read_config(&offer.config).map_err(|e| Error::new(Kind::Invalid, format!("the config is no image's: {e}")))?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.is_empty() {
        return Err(Error::new(Kind::Unsupported, "the image has no layers: there is nothing to run in"));
    }
    if diff_ids.len() > LAYERS {
        return Err(Error::new(Kind::Limit, format!("the image has more than {LAYERS} layers")));
    }
    if diff_ids.len() != offer.layers.len() {
        let (wanted, got) = (diff_ids.len(), offer.layers.len());
        return Err(Error::new(Kind::Invalid, format!("the config names {wanted} layers, the manifest {got}")));
    }
    layers(diff_ids)
}

/// The layers with these diff ids, lowest first.
pub(super) fn layers(diff_ids: &[String]) -> Result<Vec<Layer>> {
    let mut below: Option<Id> = None;
    let mut layers = Vec::new();
    for diff_id in diff_ids {
        let diff_id: Digest = diff_id.parse().context(|| "the config's diff ids")?;
        let chain = chain_id(below, diff_id);
        layers.push(Layer { diff_id, chain });
        below = Some(chain);
    }
    Ok(layers)
}

struct Adding<'a> {
    store: &'a Store,
    offer: &'a Offer,
    blobs: &'a Arc<dyn Blobs>,
    limits: &'a Limits,
    watch: Watch,
    progress: &'a LayerProgress,
    layers: Vec<Layer>,
}

impl Adding<'_> {
    /// `made` gets the chain ids of the layers that this made visible.
    fn run(&self, made: &mut Vec<Id>) -> Result<Id> {
        let mut ahead = Ahead::new(self);
        let mut held: Vec<Held> = Vec::new();
        let mut draft: Option<Draft<'_>> = None;
        let mut size = 0u64;
        let last = self.layers.len() - 1;
        for (number, layer) in self.layers.iter().enumerate() {
            interrupt::check()?;
            let (claim, opened) = match ahead.take(number)? {
                Next::There(there) => {
                    (self.progress)(number, Step::There);
                    size = u64::saturating_add(size, read_record(&there, layer)?.size);
                    held.push(there);
                    draft = None;
                    continue;
                }
                Next::Ours(claim, opened) => (claim, opened),
            };
            let filling = match draft.take() {
                Some(draft) => draft,
                None => match held.last() {
                    Some(below) => Draft::on(self.store, &below.parent()?)?,
                    None => Draft::create(self.store)?,
                },
            };
            let doing = || format!("layer {} of {} ({})", number + 1, self.layers.len(), layer.diff_id.id().short());
            let recipe = Recipe::create(filling.dir()?, RECIPE)?;
            let unpacked = filling.fill(|rootfs| opened.apply(rootfs, Some(&recipe))).context(doing)?;
            if unpacked.diff_id != layer.diff_id {
                let message = format!("{}: its diff id is {}, not {}", doing(), unpacked.diff_id, layer.diff_id);
                return Err(Error::new(Kind::Invalid, message));
            }
            (self.progress)(number, Step::Unpacked);
            size = size.saturating_add(unpacked.bytes);
            let record = LayerRecord {
                diff_id: layer.diff_id,
                parent: number.checked_sub(1).map(|below| self.layers[below].chain),
                size: unpacked.bytes,
                entries: unpacked.entries,
                unfinished: Some(Timestamp::now()),
                travelled: way(self.offer, number).into_iter().collect(),
            };
            if number < last {
                recipe.open()?.sync_all().context(|| "write the recipe of the layer to the disk")?;
            }
            claim.attach(&filling, RECIPE)?;
            if number < last {
                held.push(filling.keep(claim, &record)?);
                made.push(layer.chain);
                draft = Some(filling);
            } else {
                let image = self.image(size, false)?;
                filling.finish()?;
                let publishing = self.store.lock_shelf(Shelf::Images)?;
                held.push(filling.seal(claim, &record)?);
                made.push(layer.chain);
                return image.publish(&self.offer.names, &held, publishing);
            }
        }
        // All layers were there.
        let image = self.image(size, true)?;
        let publishing = self.store.lock_shelf(Shelf::Images)?;
        image.publish(&self.offer.names, &held, publishing)
    }

    fn image(&self, size: u64, durable: bool) -> Result<ImageDraft<'_>> {
        let chain = self.layers[self.layers.len() - 1].chain;
        let record = Record { chain, size, created: Timestamp::now(), manifest: self.offer.manifest };
        ImageDraft::create(self.store, &self.offer.config, &record, durable)
    }
}

fn read_record(held: &Held, layer: &Layer) -> Result<LayerRecord> {
    let doing = || format!("layer {}", layer.chain.short());
    record::read(held.dir()).context(doing)?.ok_or_else(|| Error::new(Kind::Store, "no record")).context(doing)
}

/// The layers that are claimed and opened ahead of the one that is applied.
struct Ahead<'a, 'b> {
    adding: &'a Adding<'b>,
    opened: VecDeque<(usize, Claim<'b>, Opened)>,
    /// The number of the next layer to open.
    next: usize,
}

/// What becomes of a layer.
enum Next<'b> {
    /// It is there.
    There(Held),
    /// It is to be made, and is being read.
    Ours(Claim<'b>, Box<Opened>),
}

impl<'a, 'b> Ahead<'a, 'b> {
    fn new(adding: &'a Adding<'b>) -> Ahead<'a, 'b> {
        Ahead { adding, opened: VecDeque::new(), next: 0 }
    }

    /// The layer; and the next ones begin, up to the first that somebody else makes.
    fn take(&mut self, number: usize) -> Result<Next<'b>> {
        let Adding { store, layers, .. } = self.adding;
        if self.opened.front().is_none_or(|(first, ..)| *first != number) {
            match Claim::layer(store, &layers[number].chain)? {
                Turn::There(there) => return Ok(Next::There(there)),
                Turn::Ours(claim) => self.opened.push_front((number, claim, self.open(number)?)),
            }
        }
        self.next = self.next.max(number + 1);
        while self.next < (number + IN_FLIGHT).min(layers.len()) {
            let chain = &layers[self.next].chain;
            // One that is there will not be read; should it be gone by then, it is opened then.
            if !store.exists(Shelf::Layers, chain)? {
                let Some(claim) = Claim::if_free(store, chain)? else { break };
                self.opened.push_back((self.next, claim, self.open(self.next)?));
            }
            self.next += 1;
        }
        let (_, claim, opened) =
            self.opened.pop_front().ok_or_else(|| Error::new(Kind::Invalid, "no layer is open"))?;
        Ok(Next::Ours(claim, Box::new(opened)))
    }

    fn open(&self, number: usize) -> Result<Opened> {
        let Adding { offer, blobs, limits, watch, progress, .. } = self.adding;
        let (blob, blobs, progress): (Blob, _, _) =
            (offer.layers[number].clone(), Arc::clone(blobs), Arc::clone(progress));
        let open = move || -> Result<Box<dyn Read + Send>> {
            let size = blob.size;
            let tell = move |read, length| progress(number, Step::Read(read, length));
            Ok(Box::new(Watched::new(blobs.open(&blob)?, size, Arc::new(tell))))
        };
        Opened::open(open, limits, Arc::clone(watch))
    }
}

impl Drop for Ahead<'_, '_> {
    fn drop(&mut self) {
        self.opened.drain(..).for_each(|(_, _, opened)| opened.cancel());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made must be found again: whatever a listing would trip over is refused here.
    #[test]
    fn a_config_that_could_not_be_read_again_is_refused() {
        let config = |more: &str| {
            let diff_id = Digest::from_bytes([7; 32]);
            let rootfs = format!(r#"{{"type":"layers","diff_ids":["{diff_id}"]}}"#);
            format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{rootfs},"config":{{{more}}}}}"#)
        };
        let plan = |more: &str| {
            let layers = vec![Blob { digest: None, size: None, media_type: None, location: String::new() }];
            let config = config(more).into_bytes();
            plan(&Offer { names: Vec::new(), manifest: None, config, layers, place: None }, &Limits::default())
        };
        assert!(plan(r#""Healthcheck":{"Test":["NONE"]}"#).is_ok());
        let refused = plan(r#""Healthcheck":{},"Healthcheck":{}"#).err().expect("two health checks");
        assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
    }
}
