//! How an image came about, step by step, as its config tells it.

use jiff::Timestamp;

use super::Image;
use super::layers::{chain_of, layer_record};
use crate::error::Result;
use crate::name::Id;
use crate::store::Store;

/// A step of an image's making (image-spec config.md, "history").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// When it was done, where that is told.
    pub created: Option<Timestamp>,
    /// What was done.
    pub created_by: String,
    /// What was said about it.
    pub comment: String,
    /// The layer that came of it, by chain id; nothing for a step that changed the config alone.
    pub layer: Option<Id>,
    /// Unpacked bytes of that layer.
    pub size: u64,
}

/// The steps of an image's making, newest first. Layers that the config has no step for have one that tells nothing.
pub fn history(store: &Store, image: &Image) -> Result<Vec<Made>> {
    let layers = chain_of(store, image.chain)?.into_iter().map(|chain| {
        let record = layer_record(store, &chain)?;
        Ok((chain, record.map_or(0, |record| record.size)))
    });
    let mut layers = layers.collect::<Result<Vec<_>>>()?.into_iter();
    let mut steps = Vec::new();
    for told in image.config.history().iter().flatten().rev() {
        let layer = if told.empty_layer().unwrap_or(false) { None } else { layers.next() };
        steps.push(Made {
            created: told.created().as_ref().and_then(|text| text.parse().ok()),
            created_by: told.created_by().clone().unwrap_or_default(),
            comment: told.comment().clone().unwrap_or_default(),
            layer: layer.map(|(chain, _)| chain),
            size: layer.map_or(0, |(_, size)| size),
        });
    }
    let untold = layers.map(|(chain, size)| Made {
        created: None,
        created_by: String::new(),
        comment: String::new(),
        layer: Some(chain),
        size,
    });
    steps.extend(untold);
    Ok(steps)
}
