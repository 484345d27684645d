//! A tar stream applied into a directory, and the way back.
//!
//! ```text
//! bytes ─> decompress ─> hash ─> entries ─> apply
//!          thread 1      2       thread 3, which has no root but the directory
//! ```
//!
//! [`unpack`] takes bytes that nobody vouches for: everything about them is bounded ([`Limits`]), and the thread that
//! applies them is confined before it reads the first. [`pack`] writes the canonical archive of a directory: the same
//! tree gives the same bytes. This room knows neither where bytes come from nor what a store or an image is.

mod acl;
mod apply;
mod decompress;
mod entries;
mod header;
mod pack;
mod pax;
mod pipeline;
mod sparse;

use std::io::Read;
use std::os::fd::BorrowedFd;

use crate::error::{Context, Result};
use crate::name::Digest;

pub use pack::{Packed, pack};

/// What an archive may ask for. An archive that asks for more is refused with a [`Limit`](crate::error::Kind::Limit)
/// error that names the limit.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Uncompressed bytes of the archive, which bound the bytes it can write too. Default: 256 GiB.
    pub bytes: u64,
    /// Size of one file as stat(2) tells it, holes included, in bytes. Default: 8 TiB.
    pub file_size: u64,
    /// Bytes behind the end of the archive: writers fill up to a block of a tape. Default: 64 MiB.
    pub padding: u64,
    /// Entries. Default: 10 million.
    pub entries: u64,
    /// Directories above an entry. Default: 16,384.
    pub depth: usize,
    /// Length of an entry's name or of a link's target, in bytes. Default: 64 KiB.
    pub name: usize,
    /// Extended (PAX) header records of one entry, in bytes. Default: 1 MiB.
    pub pax: usize,
    /// Pieces of one sparse file. Default: 1 million (16 MiB of memory).
    pub sparse_pieces: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 256 << 30,
            file_size: 8 << 40,
            padding: 64 << 20,
            entries: 10_000_000,
            depth: 16_384,
            name: 64 << 10,
            pax: 1 << 20,
            sparse_pieces: 1_000_000,
        }
    }
}

/// What [`unpack`] unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// The digest of the uncompressed archive to its last byte (OCI image-spec config.md, "Layer DiffID").
    pub diff_id: Digest,
    /// Entries applied.
    pub entries: u64,
    /// Bytes of file content written.
    pub bytes: u64,
}

/// Unpacks a root filesystem's tar archive, plain or compressed by gzip, zstd, xz or bzip2, into a directory.
///
/// Owners, modes, times, extended attributes, links, devices and holes are kept. No name in the archive leads out of
/// `into`: the thread that applies it has its root there, so absolute links resolve inside and `..` ends at the top.
/// When it returns all its threads have ended. On an error `into` holds a part of the tree, to be removed by the caller.
///
/// A reader that blocks for ever blocks this too: the error of another stage is seen when the reader returns.
///
/// # Errors
/// [`Kind::Invalid`](crate::error::Kind) for a malformed or truncated archive, `Limit` for a limit, `Unsupported` for
/// a kind of entry or compression that is not known, else the failed call's.
pub fn unpack(bytes: Box<dyn Read + Send>, into: BorrowedFd<'_>, limits: &Limits) -> Result<Unpacked> {
    unpack_watched(bytes, into, limits, &|_| Ok(()))
}

/// [`unpack`], and `watch` is told how many bytes, uncompressed, there are so far, before they are applied; its error
/// ends it.
///
/// # Errors
/// Those of [`unpack`] and of `watch`.
pub fn unpack_watched(
    bytes: Box<dyn Read + Send>,
    into: BorrowedFd<'_>,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Unpacked> {
    pipeline::run(bytes, Some(into), limits, watch).context(|| "unpack layer")
}

/// Called with a count of bytes, every few hundred KiB.
pub type Watch<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// Reads an archive to its last byte as [`unpack`] does, and writes nothing: what it holds, or why it would be refused.
///
/// What only shows when entries meet (a link without its target, a parent that is a file) is not seen.
///
/// # Errors
/// Those of [`unpack`] that the archive itself is the reason for.
pub fn check(bytes: Box<dyn Read + Send>, limits: &Limits) -> Result<Unpacked> {
    pipeline::run(bytes, None, limits, &|_| Ok(())).context(|| "read layer")
}
