//! What goes out, wherever it goes: an image's config, and its layers as they are uncompressed.
//!
//! The config names the layers by their diff ids, so its digest, the image's id, is the same whatever compresses them.

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::name::Digest;

/// An image that is about to go out.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its config: the bytes whose digest is the image's id.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<OutgoingLayer>,
}

/// A layer of an image that is about to go out.
#[derive(Debug, Clone)]
pub struct OutgoingLayer {
    /// The digest of its archive, uncompressed.
    pub diff_id: Digest,
    /// How it has travelled, the last way first.
    pub travelled: Vec<Travelled>,
}

/// A layer as it travelled once, compressed or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Travelled {
    /// The digest of those bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// What they are, as a descriptor says it (image-spec layer.md, "+gzip Media Types").
    pub media_type: String,
    /// Where they came from or went to, `HOST[:PORT]/REPOSITORY`; nothing for an archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// Where the layers of an image that goes out are read from; several at once.
pub trait Tars: Send + Sync {
    /// Opens the archive of a layer, by its number from the lowest: uncompressed, and verified at its end by its diff id.
    ///
    /// # Errors
    /// [`Kind::Unsupported`](crate::error::Kind) for a layer of which the store does not know how its archive was.
    fn open(&self, layer: usize) -> Result<Box<dyn Read + Send>>;

    /// How many bytes that are.
    ///
    /// # Errors
    /// Those of [`open`](Tars::open).
    fn size(&self, layer: usize) -> Result<u64>;
}
