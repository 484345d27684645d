//! The room that an image may take while it is unpacked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::layer::{Limits, Watch, exceeded};
use crate::store::Store;

/// The limits on an image that this store may take: where they leave it open how large it may be, that is a share of what
/// the store has free now.
pub(super) fn limits(store: &Store, limits: &Limits) -> Result<Limits> {
    let bytes = match limits.bytes {
        Some(bytes) => bytes,
        None => store.space()?.available / 5 * 4,
    };
    Ok(Limits { bytes: Some(bytes), ..limits.clone() })
}

/// Counts what is unpacked, of all layers together, and ends it when it is more than `limits` allow, or when the disk
/// under an embedded store is about to run full.
pub(super) fn watch(store: &Store, limits: &Limits) -> Result<Watch> {
    let host = store.host_room()?;
    let (limit, unpacked) = (limits.bytes.unwrap_or(u64::MAX), AtomicU64::new(0));
    Ok(Arc::new(move |more| {
        let so_far = unpacked.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if so_far > limit {
            return Err(too_large(limit));
        }
        host.require(more)
    }))
}

fn too_large(limit: u64) -> Error {
    exceeded(format!("the image is larger than {limit} bytes unpacked"), "--max-size")
}
