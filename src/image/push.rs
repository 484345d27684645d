//! Push: an image into a registry.

use super::outgoing::note_travelled;
use super::{Image, outgoing};
use crate::error::Result;
use crate::store::Store;
use crate::transport::registry::{Client, PushOptions, PushProgress, Pushed, Reference};

/// Pushes an image to where the reference says. How its layers have travelled is noted: the next time they are where they
/// went to, or can be mounted from there.
///
/// # Errors
/// Those of [`outgoing`] and of [`Client::push`].
pub fn push(
    store: &Store,
    image: &Image,
    client: &Client,
    reference: &Reference,
    options: &PushOptions,
    progress: &PushProgress,
) -> Result<Pushed> {
    let (outgoing, tars) = outgoing(store, image)?;
    let pushed = client.push(reference, &outgoing, &tars, options, progress)?;
    let ways: Vec<_> = pushed.layers.iter().cloned().map(Some).collect();
    if let Err(e) = note_travelled(store, image, &ways) {
        // The image is there all the same.
        log::debug!("note how the layers of {} have travelled: {e}", image.id.short());
    }
    Ok(pushed)
}
