//! The framing of a tar archive: entries one after another, and an index of what lies where.
//!
//! Every length and name in it is foreign and bounded ([`Limits`]). This room neither applies entries nor knows what an
//! archive is for: a root filesystem, a layer, or a number of documents and layers.

mod acl;
mod entries;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod header;
mod index;
mod pax;
mod sparse;

pub(crate) use entries::clean;
pub(crate) use entries::{Entries, Entry, Node};
pub(crate) use index::Index;
pub(crate) use sparse::SparseMap;

use crate::error::{Error, Kind, Result};

/// What an archive, or an image of several, may ask for. One that asks for more is refused with a
/// [`Limit`](Kind::Limit) error that names the limit, and whose hint is the flag that sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed bytes of the archives of an image, which bound the bytes that they can write, too. Without a number
    /// an image may take 80 % of what its store has free, and a single archive any number.
    pub bytes: Option<u64>,
    /// That number is a share of what the store had free, because nobody gave one.
    pub of_free: bool,
    /// Size of one file as stat(2) tells it, holes included, in bytes. Default: 8 TiB.
    pub file_size: u64,
    /// Bytes behind the end of the archive: writers fill up to a block of a tape. Default: 64 MiB.
    pub padding: u64,
    /// Entries, and directories that come to be without one. Default: 10 million.
    pub entries: u64,
    /// Directories above an entry. Default: 16,384.
    pub depth: usize,
    /// Length of an entry's name or of a link's target, in bytes. Default: 64 KiB.
    pub name: usize,
    /// Extended (PAX) header records of one entry, in bytes. Default: 1 MiB.
    pub pax: usize,
    /// Pieces of one sparse file. Default: 1 million (16 MiB of memory).
    pub sparse_pieces: usize,
    /// An image's config, in bytes. Default: 4 MiB; real ones are a few KiB.
    pub config: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: None,
            of_free: false,
            file_size: 8 << 40,
            padding: 64 << 20,
            entries: 10_000_000,
            depth: 16_384,
            name: 64 << 10,
            pax: 1 << 20,
            sparse_pieces: 1_000_000,
            config: 4 << 20,
        }
    }
}

/// Larger than this no config is, whatever the limit: each listing of images reads it.
pub(crate) const LARGEST_CONFIG: u64 = 64 << 20;

impl Limits {
    /// Refuses a config of so many bytes.
    pub(crate) fn require_config(&self, size: u64) -> Result<()> {
        let limit = self.config.min(LARGEST_CONFIG);
        match size > limit {
            true => Err(exceeded(format!("the config is larger than {limit} bytes"), "--max-config")),
            false => Ok(()),
        }
    }

    /// The error of `bytes`: what asked for more.
    pub(crate) fn too_large(&self, what: &str) -> Error {
        let share = if self.of_free { ", 80 % of what the store had free" } else { "" };
        let bytes = self.bytes.unwrap_or(u64::MAX);
        exceeded(format!("{what} more than {bytes} bytes{share}"), "--max-size")
    }
}

/// The error of a limit: what asked for more, and the flag that allows it.
pub(crate) fn exceeded(what: impl Into<String>, flag: &str) -> Error {
    Error::new(Kind::Limit, what).with_hint(format!("{flag} allows more, if you trust where it comes from"))
}
