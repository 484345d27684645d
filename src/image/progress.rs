//! How far a source has been read, for whoever shows it.

use std::io::{self, Read};
use std::sync::Arc;

use crate::interrupt;

/// Told how many of how many bytes of the source were read; the second is unknown for a stream.
pub type Progress = Arc<dyn Fn(u64, Option<u64>) + Send + Sync>;

/// What has become of a layer of an image that is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was there already.
    There,
    /// So many of so many bytes were read, as it travels; the second is unknown for some sources.
    Read(u64, Option<u64>),
    /// It is unpacked.
    Unpacked,
}

/// Told what becomes of each layer, by its number from the lowest up.
pub type LayerProgress = Arc<dyn Fn(usize, Step) + Send + Sync>;

/// A reader that tells how far it has come, and fails once somebody wants to stop.
pub(super) struct Watched {
    reader: Box<dyn Read + Send>,
    length: Option<u64>,
    read: u64,
    progress: Progress,
}

impl Watched {
    pub(super) fn new(reader: Box<dyn Read + Send>, length: Option<u64>, progress: Progress) -> Watched {
        Watched { reader, length, read: 0, progress }
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        interrupt::check()?;
        let n = self.reader.read(buffer)?;
        self.read += n as u64;
        (self.progress)(self.read, self.length);
        Ok(n)
    }
}
