//! The room that an image may take while it is unpacked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::layer::{Limits, Watch, exceeded};
use crate::store::Store;

/// Counts what is unpacked, of all layers together, and ends it when it is more than `limits` allow, or when the disk
/// under an embedded store is about to run full. Without a limit it is a share of what the store has free now.
pub(super) fn watch(store: &Store, limits: &Limits) -> Result<Watch> {
    let host = store.host_room()?;
    let (limit, unpacked) = (limits.bytes, AtomicU64::new(0));
    let share = store.space()?.available / 5 * 4;
    Ok(Arc::new(move |more| {
        let so_far = unpacked.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if so_far > limit.unwrap_or(share) {
            return Err(too_large(limit, share));
        }
        host.require(more)
    }))
}

fn too_large(limit: Option<u64>, share: u64) -> Error {
    let what = match limit {
        Some(limit) => format!("the image is larger than {limit} bytes unpacked"),
        None => format!("the image is larger than {share} bytes unpacked, 80 % of what the store had free"),
    };
    exceeded(what, "--max-size")
}
