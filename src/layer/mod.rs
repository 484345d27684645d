//! A tar stream applied into a directory, and the way back.
//!
//! ```text
//! bytes ─> decompress ─> hash ─> entries ─> apply ─> fill small files
//!          thread 1      2       3, which has no    4
//!                                root but the directory
//! ```
//!
//! [`unpack`] takes a root filesystem, [`Opened`] a layer that is put on top of others, whiteouts and all. Both take bytes
//! that nobody vouches for: everything about them is bounded ([`Limits`]), and the thread that applies them is confined
//! before it reads the first. [`rebuild`] gives back the archive that was unpacked; [`pack`] writes the canonical archive of a
//! directory, [`pack_layer`] the layer that makes one tree of another: the same trees give the same bytes.
//! This room knows neither where bytes come from nor what a store or an image is.

mod apply;
mod decompress;
mod difference;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod lower;
mod pack;
mod pipeline;
mod recipe;
mod writer;

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::error::{Context, Result};
use crate::name::Digest;

pub(crate) use crate::archive::LARGEST_CONFIG;
pub use crate::archive::Limits;
pub use decompress::{decompress, is_compressed};
pub use difference::{Difference, Differences, pack_layer};
pub use pack::{Packed, Piece, pack, pack_piece};
pub use pipeline::Opened;
pub use recipe::{Recipe, digest, is_recipe, rebuild, size as rebuilt_size};

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
    unpack_watched(bytes, into, limits, unwatched(), None)
}

/// [`unpack`] under the eyes of a [`Watch`]; how the archive is [put together again](rebuild) goes into `recipe`, an empty one.
///
/// # Errors
/// Those of [`unpack`] and of `watch`.
pub fn unpack_watched(
    bytes: Box<dyn Read + Send>,
    into: BorrowedFd<'_>,
    limits: &Limits,
    watch: Watch,
    recipe: Option<&Recipe>,
) -> Result<Unpacked> {
    Opened::open(|| Ok(bytes), limits, watch)?.run(pipeline::Into::Root(into), recipe).context(|| "unpack layer")
}

/// How an archive is unpacked among what is there, as cp(1) copies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Among {
    /// Whose everything is to be, instead of the archive's owners.
    pub owner: Option<(u32, u32)>,
    /// A directory may take the place of something else, and something else that of a directory.
    pub overwrite: bool,
    /// Nothing is made that could do more than its new owner: no device, no setuid or setgid bit, no capability.
    pub harmless: bool,
}

/// [`unpack`] into a directory that holds something already, and that others may change meanwhile: nothing outside of it
/// is touched.
///
/// # Errors
/// Those of [`unpack`], and [`Kind::Invalid`](crate::error::Kind) for a directory in the way of something else, or the
/// other way round.
pub fn unpack_among(
    bytes: Box<dyn Read + Send>,
    into: BorrowedFd<'_>,
    limits: &Limits,
    among: &Among,
) -> Result<Unpacked> {
    Opened::open(|| Ok(bytes), limits, unwatched())?.run(pipeline::Into::Among(into, among), None)
}

/// Told of each few hundred KiB how many bytes they are, uncompressed, before they are applied; its error ends the unpack.
pub type Watch = Arc<dyn Fn(u64) -> Result<()> + Send + Sync>;

fn unwatched() -> Watch {
    Arc::new(|_| Ok(()))
}

/// Reads an archive to its last byte as [`unpack`] does, and writes nothing: what it holds, or why it would be refused.
///
/// What only shows when entries meet (a link without its target, a parent that is a file) is not seen.
///
/// # Errors
/// Those of [`unpack`] that the archive itself is the reason for.
pub fn check(bytes: Box<dyn Read + Send>, limits: &Limits) -> Result<Unpacked> {
    Opened::open(|| Ok(bytes), limits, unwatched())?.run(pipeline::Into::Nothing, None).context(|| "read layer")
}
