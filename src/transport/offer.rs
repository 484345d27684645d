//! What a source of images offers, whatever it is: a config, and layers as they travel.
//!
//! A source says how an image's layers are called and opens each as a stream that verifies itself: its reader fails at
//! the end, or before, when the bytes are not those of the digest and the length that were promised (the idea is umoci's
//! VerifiedReadCloser). Whoever reads to the end has read what was meant.

use std::io::Read;

use crate::error::Result;
use crate::name::{Digest, ImageName};

/// An image, as its source describes it.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The names that it has there.
    pub names: Vec<ImageName>,
    /// The digest of its manifest, where it came with one (a docker archive does not).
    pub manifest: Option<Digest>,
    /// Its config: the bytes whose digest is the image's id, verified.
    pub config: Vec<u8>,
    /// Its layers as they travel, lowest first: as many as the config has diff ids.
    pub layers: Vec<Blob>,
    /// Where it comes from, `HOST[:PORT]/REPOSITORY`; nothing for an archive.
    pub place: Option<String>,
}

/// A document or layer as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The digest of the bytes as they travel; `None` where the source knows none (docker archives).
    pub digest: Option<Digest>,
    /// Their number, where it is known.
    pub size: Option<u64>,
    /// What a manifest says that it is; `None` where there is no manifest.
    pub media_type: Option<String>,
    /// Where the source keeps them: a path in an archive, or nothing where the digest is enough.
    pub location: String,
}

/// A source that layers are read from; several at once.
pub trait Blobs: Send + Sync {
    /// Opens a layer as it travels: compressed or not, verified at its end.
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send>>;
}
