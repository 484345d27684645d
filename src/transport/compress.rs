//! Compression of what goes out: gzip and zstd, on all cores, the same bytes whatever their number.
//!
//! gzip is one member, its blocks compressed beside each other, each with the end of the one before as its dictionary, as
//! pigz(1) does; zstd is one frame, in jobs of its library. Where a block or a job ends, the stream and the level decide:
//! neither the number of threads nor the pieces that are written.
//!
//! Threads are those of gzp and of zstd's library. They have ended when [`Compressor::finish`] returns, or when the
//! compressor is dropped: a process that clones itself afterwards has none of them.

use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flate2::{Compress, FlushCompress, Status};
use gzp::check::{Check, Crc32};
use gzp::par::compress::{ParCompress, ParCompressBuilder};
use gzp::{FormatSpec, GzpError, ZWriter};

use crate::error::{Error, Kind, Result};

/// Bytes that one thread compresses at a time, for gzip.
const BLOCK: usize = 256 << 10;
/// More threads than a disk or a network has use for; each has a few blocks in memory.
const THREADS: usize = 16;

/// What compresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// RFC 1952.
    #[default]
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Format {
    /// The level that is taken where none is given: a network or a disk is not kept waiting by it.
    const fn level(self) -> u32 {
        match self {
            Format::Gzip => 2,
            Format::Zstd => 1,
        }
    }

    /// The levels that there are, from the fastest to the smallest.
    fn levels(self) -> std::ops::RangeInclusive<u32> {
        match self {
            Format::Gzip => 1..=9,
            // Above 20 a decoder needs more memory than many allow.
            Format::Zstd => 1..=20,
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Format> {
        match text {
            "gzip" => Ok(Format::Gzip),
            "zstd" => Ok(Format::Zstd),
            _ => Err(Error::new(Kind::Invalid, format!("compression {text:?}: gzip and zstd are known"))),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Gzip => "gzip",
            Format::Zstd => "zstd",
        })
    }
}

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    format: Format,
    level: u32,
}

impl Compression {
    /// A format at a level, or at the one that is fast.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a level that the format does not have: gzip has 1 to 9, zstd 1 to 20 (podman-push(1)).
    pub fn new(format: Format, level: Option<u32>) -> Result<Compression> {
        let levels = format.levels();
        let level = level.unwrap_or(format.level());
        if !levels.contains(&level) {
            let why = format!("compression level {level}: {format} has {} to {}", levels.start(), levels.end());
            return Err(Error::new(Kind::Invalid, why));
        }
        Ok(Compression { format, level })
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl Default for Compression {
    fn default() -> Compression {
        Compression { format: Format::Gzip, level: Format::Gzip.level() }
    }
}

/// A writer that compresses what it is given into another, which may be written by a thread of its own.
///
/// What the other refuses is the error of a later write, or of the end.
pub struct Compressor<W: Write + Send + 'static> {
    /// Gone at the end.
    encoder: Option<Encoder<W>>,
    refused: Refused,
}

enum Encoder<W: Write + Send + 'static> {
    Gzip(ParCompress<'static, Gzip, Sink<W>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Sink<W>>>),
}

impl<W: Write + Send + 'static> Compressor<W> {
    /// Begins a stream into `into`, on as many threads as there are cores.
    ///
    /// # Errors
    /// Those of the library that compresses: no memory, no threads.
    pub fn new(into: W, compression: Compression) -> Result<Compressor<W>> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Compressor::on_threads(into, compression, cores)?)
    }

    fn on_threads(into: W, compression: Compression, threads: usize) -> io::Result<Compressor<W>> {
        let refused = Refused::default();
        let sink = Sink { into, refused: refused.clone() };
        let threads = threads.clamp(1, THREADS);
        let encoder = match compression.format {
            Format::Gzip => Encoder::Gzip(
                ParCompressBuilder::new()
                    .buffer_size(BLOCK)
                    .and_then(|builder| builder.num_threads(threads))
                    .map_err(io::Error::other)?
                    .compression_level(flate2::Compression::new(compression.level))
                    .from_writer(sink),
            ),
            Format::Zstd => {
                let level = i32::try_from(compression.level).map_err(io::Error::other)?;
                let mut encoder = zstd::stream::write::Encoder::new(sink, level)?;
                // Even one: without any the library cuts the stream elsewhere.
                encoder.multithread(u32::try_from(threads).map_err(io::Error::other)?)?;
                encoder.include_checksum(true)?;
                Encoder::Zstd(Box::new(encoder))
            }
        };
        Ok(Compressor { encoder: Some(encoder), refused })
    }

    /// Ends the stream: the writer that all of it is in.
    ///
    /// # Errors
    /// What the writer refused, or the library that compresses.
    pub fn finish(mut self) -> io::Result<W> {
        let encoder = self.encoder.take().ok_or_else(|| io::Error::other("the stream has ended"))?;
        let sink = encoder.finish()?;
        self.refused.check()?;
        Ok(sink.into)
    }
}

impl<W: Write + Send + 'static> Encoder<W> {
    fn finish(self) -> io::Result<Sink<W>> {
        match self {
            Encoder::Gzip(mut encoder) => encoder.finish().map_err(|e| match e {
                GzpError::Io(e) => e,
                e => io::Error::other(e),
            }),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write + Send + 'static> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.refused.check()?;
        // gzp copies all that it is given.
        let bytes = &bytes[..bytes.len().min(BLOCK)];
        match &mut self.encoder {
            Some(Encoder::Gzip(encoder)) => encoder.write(bytes),
            Some(Encoder::Zstd(encoder)) => encoder.write(bytes),
            None => Err(io::Error::other("the stream has ended")),
        }
    }

    /// Nothing: what is written when is up to the compression.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write + Send + 'static> Drop for Compressor<W> {
    /// gzp ends the stream when it is dropped, and panics where that fails.
    fn drop(&mut self) {
        if let Some(encoder) = self.encoder.take() {
            self.refused.refuse(io::Error::other("the stream was given up"));
            drop(encoder.finish());
        }
    }
}

/// What the writer below has refused, and whether it has.
#[derive(Clone, Default)]
struct Refused(Arc<Mutex<(bool, Option<io::Error>)>>);

impl Refused {
    fn refuse(&self, error: io::Error) {
        let mut refused = self.lock();
        if !refused.0 {
            *refused = (true, Some(error));
        }
    }

    fn has(&self) -> bool {
        self.lock().0
    }

    /// The first to ask gets the error itself.
    fn check(&self) -> io::Result<()> {
        match &mut *self.lock() {
            (false, _) => Ok(()),
            (true, error) => Err(error.take().unwrap_or_else(|| io::Error::other("the stream has failed"))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (bool, Option<io::Error>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer below. gzp waits for its threads only where the writer does not fail; so this one never does: what was
/// refused is kept, and whatever follows is lost.
struct Sink<W> {
    into: W,
    refused: Refused,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.refused.has()
            && let Err(e) = self.into.write_all(bytes)
        {
            self.refused.refuse(e);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.refused.has()
            && let Err(e) = self.into.flush()
        {
            self.refused.refuse(e);
        }
        Ok(())
    }
}

/// gzp's own gzip will not do. It has no dictionaries without a C library; it takes a block as compressed that did not fit
/// into a buffer of its size and a tenth, and so damages what expands more; and it uses what compresses a block again for
/// others, where zlib-rs 0.6 looks at chains of the block before: so the threads show in the bytes.
#[derive(Debug, Clone, Copy)]
struct Gzip;

impl FormatSpec for Gzip {
    type C = Crc32;
    type Compressor = ();

    fn new() -> Gzip {
        Gzip
    }

    fn needs_dict(&self) -> bool {
        true
    }

    fn create_compressor(&self, _: flate2::Compression) -> Result<(), GzpError> {
        Ok(())
    }

    fn encode(
        &self,
        input: &[u8],
        (): &mut (),
        level: flate2::Compression,
        dictionary: Option<&Bytes>,
        is_last: bool,
    ) -> Result<Vec<u8>, GzpError> {
        let mut compress = Compress::new(level, false);
        if let Some(dictionary) = dictionary {
            compress.set_dictionary(dictionary)?;
        }
        let flush = if is_last { FlushCompress::Finish } else { FlushCompress::Sync };
        let mut output = Vec::with_capacity(input.len() / 2 + 1024);
        loop {
            let done = usize::try_from(compress.total_in()).map_err(io::Error::other)?;
            let status = compress.compress_vec(&input[done..], &mut output, flush)?;
            // zlib.h, deflate: it is done when there is room left, and a stream when it says so.
            let room = output.len() < output.capacity();
            if if is_last { status == Status::StreamEnd } else { room } {
                return Ok(output);
            }
            output.reserve(input.len() / 2 + 1024);
        }
    }

    /// RFC 1952, 2.3: no name, no time, of no system.
    fn header(&self, level: flate2::Compression) -> Vec<u8> {
        let extra = match level.level() {
            9 => 2,
            1 => 4,
            _ => 0,
        };
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255]
    }

    fn footer(&self, check: &Crc32) -> Vec<u8> {
        [check.sum().to_le_bytes(), check.amount().to_le_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Text that repeats itself, from far away too, and noise.
    fn sample(length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        let mut state = 1u64;
        while bytes.len() < length {
            state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
            match state >> 62 {
                0 => bytes.extend_from_slice(&state.to_le_bytes()),
                1 if bytes.len() > 40_000 => bytes.extend_from_within(bytes.len() - 30_000..bytes.len() - 29_000),
                _ => bytes.extend_from_slice(format!("drwxr-xr-x {} root root\n", state >> 50).as_bytes()),
            }
        }
        bytes.truncate(length);
        bytes
    }

    fn compressed(bytes: &[u8], compression: Compression, threads: usize, piece: usize) -> Vec<u8> {
        let mut compressor = Compressor::on_threads(Vec::new(), compression, threads).expect("a compressor");
        bytes.chunks(piece).for_each(|piece| compressor.write_all(piece).expect("to memory"));
        compressor.finish().expect("to memory")
    }

    fn unpacked(bytes: &[u8], format: Format) -> Vec<u8> {
        let mut out = Vec::new();
        match format {
            Format::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).expect("one gzip member"),
            Format::Zstd => zstd::Decoder::new(bytes).and_then(|mut zstd| zstd.read_to_end(&mut out)).expect("zstd"),
        };
        out
    }

    fn how(format: Format, level: u32) -> Compression {
        Compression::new(format, Some(level)).expect("a level")
    }

    #[test]
    fn the_bytes_are_the_same_whatever_the_threads_and_the_pieces() {
        let large = sample(5 << 20);
        for compression in [how(Format::Gzip, 1), how(Format::Gzip, 6), how(Format::Zstd, 1), how(Format::Zstd, 3)] {
            for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, large.len()] {
                let bytes = &large[..length];
                let once = compressed(bytes, compression, 1, length.max(1));
                assert!(unpacked(&once, compression.format()) == bytes, "{compression:?}: {length} bytes");
                for (threads, piece) in [(1, 100_000), (2, 1 << 20), (7, 4093), (64, 600_000)] {
                    let again = compressed(bytes, compression, threads, piece);
                    assert!(again == once, "{compression:?}: {length} bytes on {threads} threads by {piece}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_compress_is_not_damaged() {
        let mut state = 1u64;
        let mut high = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (144 + state % 112) as u8
        };
        let bytes: Vec<u8> = (0..3 * BLOCK + 5).map(|_| high()).collect();
        for level in 1..=9 {
            let gzip = compressed(&bytes, how(Format::Gzip, level), 2, BLOCK);
            assert!(unpacked(&gzip, Format::Gzip) == bytes, "level {level}");
        }
    }

    #[test]
    fn dictionaries_join_the_blocks() {
        // Of what lies 30,000 bytes back a block knows by the end of the one before only.
        let bytes = sample(4 << 20);
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        whole.write_all(&bytes).expect("to memory");
        let whole = whole.finish().expect("to memory").len();
        let blocks = compressed(&bytes, how(Format::Gzip, 6), 2, BLOCK).len();
        assert!(blocks < whole + whole / 200, "{blocks} bytes in blocks, {whole} in one piece");
    }

    #[test]
    fn levels_are_those_of_the_format() {
        for (format, level) in [(Format::Gzip, 0), (Format::Gzip, 10), (Format::Zstd, 0), (Format::Zstd, 21)] {
            let error = Compression::new(format, Some(level)).expect_err("no such level");
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(&format!("{format} has 1 to ")), "{error}");
        }
        for text in ["gzip", "zstd"] {
            let format: Format = text.parse().expect("known");
            assert_eq!(format.to_string(), text);
            assert!(Compression::new(format, None).is_ok());
        }
        assert!("zstd:chunked".parse::<Format>().is_err());
    }

    /// Takes so many bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.len() > self.0 {
                return Err(Error::new(Kind::NoSpace, "the disk is full").into());
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_writer_refuses_is_the_error() {
        let bytes = sample(4 << 20);
        for format in [Format::Gzip, Format::Zstd] {
            for room in [0, 5, 100_000] {
                let into = Full(room);
                let mut compressor = Compressor::on_threads(into, how(format, 1), 2).expect("a compressor");
                let written = compressor.write_all(&bytes);
                let error = match written {
                    Ok(()) => compressor.finish().err().expect("full"),
                    Err(e) => {
                        assert!(compressor.write_all(&bytes).is_err(), "it goes on after an error");
                        assert!(compressor.finish().is_err());
                        e
                    }
                };
                let error = Error::from(error);
                assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NoSpace, "the disk is full"));
            }
        }
    }

    #[test]
    fn no_thread_outlives_it() {
        /// Says where its threads have got to: what they hold of it is gone with them.
        struct Counted(#[expect(dead_code, reason = "it is counted")] Arc<()>);
        impl Write for Counted {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let bytes = sample(1 << 20);
        for format in [Format::Gzip, Format::Zstd] {
            for finish in [true, false] {
                let count = Arc::new(());
                let into = Counted(Arc::clone(&count));
                let mut compressor = Compressor::on_threads(into, how(format, 1), 3).expect("a compressor");
                compressor.write_all(&bytes).expect("taken");
                if finish {
                    drop(compressor.finish().expect("taken"));
                } else {
                    drop(compressor);
                }
                assert_eq!(Arc::strong_count(&count), 1);
            }
        }
    }
}
