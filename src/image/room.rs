//! The room that an image may take while it is unpacked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Kind, Result};
use crate::layer::{Limits, Watch};
use crate::store::Store;

/// Counts what is unpacked, of all layers together, and ends it when it is more than `limits` allow, or when the disk
/// under an embedded store is about to run full.
pub(super) fn watch(store: &Store, limits: &Limits) -> Result<Watch> {
    let host = store.host_room()?;
    let (limit, unpacked) = (limits.bytes, AtomicU64::new(0));
    Ok(Arc::new(move |more| {
        let so_far = unpacked.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if so_far > limit {
            return Err(too_large(limit));
        }
        host.require(more)
    }))
}

fn too_large(limit: u64) -> Error {
    Error::new(Kind::Limit, format!("it is larger than {limit} bytes unpacked"))
}
