//! The room that an image may take while it is unpacked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::layer::{Limits, Watch};
use crate::store::Store;
use crate::subvolume;

/// The limits on an image that this store may take: where they leave it open how large it may be, that is a share of what
/// the store has free now.
pub(super) fn limits(store: &Store, limits: &Limits) -> Result<Limits> {
    Ok(match limits.bytes {
        Some(_) => limits.clone(),
        None => {
            // What was removed a moment ago may not have been given back yet.
            subvolume::relieve(store);
            Limits { bytes: Some(store.space()?.available / 5 * 4), of_free: true, ..limits.clone() }
        }
    })
}

/// Counts what is unpacked, of all layers together, and ends it when it is more than `limits` allow, or when the disk
/// under an embedded store is about to run full.
pub(super) fn watch(store: &Store, limits: &Limits) -> Result<Watch> {
    let host = store.host_room()?;
    let (limits, unpacked) = (limits.clone(), AtomicU64::new(0));
    Ok(Arc::new(move |more| {
        let so_far = unpacked.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if limits.bytes.is_some_and(|limit| so_far > limit) {
            return Err(limits.too_large("the image unpacks to"));
        }
        host.require(more)
    }))
}
