//! Pull: an image that a registry has.

use std::sync::Arc;

use super::progress::LayerProgress;
use super::{add, tag};
use crate::error::{Kind, Result};
use crate::layer::Limits;
use crate::name::Id;
use crate::store::{Shelf, Store};
use crate::transport::Blobs;
use crate::transport::registry::Found;

/// Makes the image that was found, or names the one that is there: durable when it returns.
///
/// An image that is there is known by its manifest, and nothing more is asked of the registry.
///
/// # Errors
/// Those of the registry, and of [`add`].
pub fn pull(store: &Store, found: Found, limits: &Limits, progress: &LayerProgress) -> Result<Id> {
    let id = found.digest().id();
    if named(store, &id, &found)? {
        return Ok(id);
    }
    let offer = found.offer(limits)?;
    let blobs: Arc<dyn Blobs> = Arc::new(found);
    add(store, &offer, &blobs, limits, progress)
}

/// Gives the image its name, if it is there.
fn named(store: &Store, id: &Id, found: &Found) -> Result<bool> {
    let Some(name) = found.name() else { return store.exists(Shelf::Images, id) };
    match tag(store, id, name) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == Kind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
