//! Load: the images that an archive or a layout holds.
//!
//! A file is read where it lies: its members are found by their offsets, and layers go from it to the pipeline. What
//! cannot be read at any place, because it comes through a pipe or is compressed as a whole, is kept meanwhile in an
//! unnamed file on the store's filesystem, which is gone with the process.

use std::fs::File;
use std::io::{self, Read, Write};

use super::add;
use super::progress::{LayerProgress, Progress, Watched};
use crate::error::{Context, Error, Kind, Result};
use crate::layer::{self, Limits};
use crate::name::{Id, ImageName};
use crate::store::Store;
use crate::transport::{Offer, Platform, Source, Stored};

/// What to load.
#[derive(Debug)]
pub struct Load {
    /// Where the archive or layout is.
    pub source: Source,
    /// Which image of those that are there for several platforms.
    pub platform: Platform,
    /// Limits on what is unpacked.
    pub limits: Limits,
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Id,
    /// The names that it was given.
    pub names: Vec<ImageName>,
}

/// Loads all images of an archive or layout; each is durable before the next begins.
///
/// `spool` is told how far a stream was read that is kept first, `layers` is asked for each image who is to be told of its
/// layers, and `loaded` is told of each image.
pub fn load(
    store: &Store,
    load: &Load,
    spool: Progress,
    layers: &dyn Fn(&Offer) -> LayerProgress,
    loaded: &mut dyn FnMut(Loaded),
) -> Result<()> {
    let run = || -> Result<()> {
        let stored = open(store, load, spool)?;
        for offer in &stored.offers {
            let called = offer.names.first().map_or_else(|| "image".to_string(), ToString::to_string);
            let id = add(store, offer, &stored.blobs, &load.limits, &layers(offer)).context(|| called)?;
            loaded(Loaded { id, names: offer.names.clone() });
        }
        Ok(())
    };
    run().context(|| format!("load {}", load.source))
}

fn open(store: &Store, load: &Load, progress: Progress) -> Result<Stored> {
    let Load { source, platform, limits } = load;
    let file = match source {
        Source::Directory(path) => return Stored::in_directory(path, platform, limits),
        Source::File(path) => Some(File::open(path).map_err(Error::from)?),
        Source::Stdin | Source::Url(_) => None,
    };
    if let Some(file) = file.filter(|file| file.metadata().is_ok_and(|found| found.is_file()))
        && !layer::is_compressed(&mut (&file).take(8))?
    {
        return Stored::in_archive(file, platform, limits);
    }
    let bytes = source.open()?;
    let watched = Watched::new(bytes.reader, bytes.length, progress);
    Stored::in_archive(keep(store, layer::decompress(Box::new(watched))?)?, platform, limits)
}

/// Keeps a stream in a file without a name, as far as there is room: what is unpacked needs some, too.
fn keep(store: &Store, mut stream: Box<dyn Read + Send>) -> Result<File> {
    let mut file = store.unnamed_file()?;
    let limit = store.space()?.available / 2;
    let mut kept = 0;
    let mut block = vec![0; 256 << 10];
    loop {
        let length = match stream.read(&mut block) {
            Ok(0) => return Ok(file),
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        kept += length as u64;
        if kept > limit {
            let message = format!("keep the stream: it is larger than {limit} bytes, half of what the store has free");
            return Err(Error::new(Kind::NoSpace, message).with_hint("save it uncompressed to a file, and load that"));
        }
        file.write_all(&block[..length]).map_err(|e| Error::from_io("keep the stream", e))?;
    }
}
