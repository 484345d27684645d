//! Decompression, the kind found by content.
//!
//! The decoders' memory is bounded by their windows: zstd and xz at most 128 MiB. A stream that is cut, or that goes
//! on with something else, is an error.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;

use crate::error::{Error, Kind, Result};

const BUFFER: usize = 256 << 10;
/// The longest header of a zstd frame (RFC 8878, 3.1.1.1) with its magic; the other kinds' magic is shorter.
const HEADER: u64 = 18;
/// RFC 8878, 3.1.1.1.2: the window, of which zstd itself accepts no more by default.
const ZSTD_WINDOW_LOG: u32 = 27;
/// A window of 8 MiB, which RFC 8878 wants every decoder to have.
const SMALL_WINDOW_LOG: u32 = 23;
const XZ_MEMORY: u64 = 128 << 20;

/// The kinds of stream that [`decompress`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    /// Finds the kind by a stream's first bytes; fewer than its magic are plain.
    fn of(start: &[u8]) -> Compression {
        match start {
            // RFC 1952, 2.3.1.
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // RFC 8878, 3.1.1 and 3.1.2 (skippable frames).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            // The .xz file format, 2.1.1.1.
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            // A name may begin with BZh, so the first block's magic is asked for too; of an empty stream the last's.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, ..] => {
                Compression::Bzip2
            }
            _ => Compression::Plain,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Compression::Plain => "plain",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Xz => "xz",
            Compression::Bzip2 => "bzip2",
        }
    }
}

/// Whether the stream is compressed, by its first bytes, which are read.
pub fn is_compressed(bytes: &mut impl Read) -> Result<bool> {
    let mut start = Vec::new();
    bytes.take(6).read_to_end(&mut start)?;
    Ok(Compression::of(&start) != Compression::Plain)
}

/// The uncompressed stream of `bytes`, plain or compressed by gzip, zstd, xz or bzip2.
///
/// # Errors
/// Those of the first read; the reader's are those of the stream, `Invalid` for a damaged or truncated one.
pub fn decompress(bytes: Box<dyn Read + Send>) -> Result<Box<dyn Read + Send>> {
    decompress_in_turn(bytes, || {})
}

/// [`decompress`] of one stream of several at once: what needs much memory waits for its turn before it takes that.
pub(super) fn decompress_in_turn(mut bytes: Box<dyn Read + Send>, turn: impl FnOnce()) -> Result<Box<dyn Read + Send>> {
    let mut start = Vec::new();
    bytes.by_ref().take(HEADER).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let small = compression != Compression::Xz && (compression != Compression::Zstd || zstd_window_is_small(&start));
    let all = Cursor::new(start).chain(bytes);
    if compression == Compression::Plain {
        return Ok(Box::new(all));
    }
    if !small {
        turn();
    }
    let input = BufReader::with_capacity(BUFFER, all);
    let decoder: Box<dyn Read + Send> = match compression {
        Compression::Plain | Compression::Gzip => Box::new(Gzip { member: Some(GzDecoder::new(input)) }),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(if small { SMALL_WINDOW_LOG } else { ZSTD_WINDOW_LOG })?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(|e| Error::new(Kind::Io, format!("xz decoder: {e}")))?;
            Box::new(XzDecoder::new_stream(input, stream))
        }
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(input)),
    };
    Ok(Box::new(Named { decoder, compression, small, ended: false }))
}

/// Whether the first frame's window is at most 8 MiB (RFC 8878, 3.1.1.1). A skippable frame says nothing of the next.
fn zstd_window_is_small(start: &[u8]) -> bool {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = start else { return false };
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        // Exponent and mantissa: (1 + m / 8) << (10 + e).
        return rest.first().is_some_and(|window| *window <= ((SMALL_WINDOW_LOG - 10) << 3) as u8);
    }
    // There is no window but the content, whose size follows the dictionary's id.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let Some(size) = rest.get(dictionary..dictionary + length) else { return false };
    let size = size.iter().rev().fold(0u64, |size, byte| size << 8 | u64::from(*byte));
    size <= 1 << SMALL_WINDOW_LOG
}

/// A gzip file: members one after another, and at most zeros behind the last, as gzip(1) accepts from tapes.
struct Gzip<R> {
    /// Gone when the file has ended.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let length = member.read(into)?;
            if length > 0 || into.is_empty() {
                return Ok(length);
            }
            let Some(mut input) = self.member.take().map(GzDecoder::into_inner) else { break };
            match input.fill_buf()? {
                [] => {}
                [0, ..] => only_zeros(&mut input)?,
                // The buffer may end between the two bytes of the magic.
                [0x1f] | [0x1f, 0x8b, ..] => self.member = Some(GzDecoder::new(input)),
                _ => return Err(garbage()),
            }
        }
        Ok(0)
    }
}

fn only_zeros(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|&b| b != 0) {
            return Err(garbage());
        }
        let length = bytes.len();
        input.consume(length);
    }
}

fn garbage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "garbage after the end")
}

/// A decoder whose errors say what it decodes, and which stays at its end.
struct Named {
    decoder: Box<dyn Read + Send>,
    compression: Compression,
    /// No more than 8 MiB of zstd's window are accepted.
    small: bool,
    ended: bool,
}

impl Read for Named {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ended || into.is_empty() {
            return Ok(0);
        }
        let length = self.decoder.read(into).map_err(|e| self.explain(e))?;
        self.ended = length == 0;
        Ok(length)
    }
}

impl Named {
    fn explain(&self, error: io::Error) -> io::Error {
        let name = self.compression.name();
        let foreign = error.get_ref().is_some_and(|inner| inner.is::<Error>());
        if error.raw_os_error().is_some() || foreign || error.kind() == io::ErrorKind::Interrupted {
            return error;
        }
        let text = error.to_string();
        let memory = match self.compression {
            Compression::Zstd => text.contains("too much memory"),
            Compression::Xz => text.contains("memory limit") || text.contains("memory usage limit"),
            _ => false,
        };
        if memory && self.small {
            return Error::new(Kind::Invalid, "zstd window: larger than 8 MiB in a later frame than the first").into();
        }
        if memory {
            return Error::new(Kind::Limit, format!("{name} window: larger than 128 MiB"))
                .with_hint("compress the archive again with a smaller window, such as zstd --long=27 or xz -9")
                .into();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::new(Kind::Invalid, format!("the {name} stream is truncated")),
            _ => Error::new(Kind::Invalid, format!("the {name} stream is damaged: {text}")),
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(Box::new(Cursor::new(bytes.to_vec())))?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn zstd_of(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 1).expect("to memory")
    }

    fn xz(text: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(text).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn bzip2_of(text: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(text).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8).collect()
    }

    #[test]
    fn every_kind_is_found_and_several_streams_are_one() {
        let text = noise(700_000);
        for encode in [gzip, zstd_of, xz, bzip2_of] {
            assert_eq!(unpacked(&encode(&text)).expect("one stream"), text);
            assert_eq!(unpacked(&encode(b"")).expect("an empty stream"), b"");
            let two = [encode(&text), encode(b"more")].concat();
            assert_eq!(unpacked(&two).expect("two streams"), [&text[..], b"more"].concat());
        }
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd_of(b"a"), &zstd_of(b"b")].concat();
        assert_eq!(unpacked(&skippable).expect("a skippable frame first"), b"ab");
        for plain in [&b""[..], b"\x1f", b"BZh", b"BZh9abc", b"\xfd7zXZ", b"plain text"] {
            assert_eq!(unpacked(plain).expect("plain"), plain);
        }
    }

    #[test]
    fn a_cut_stream_is_an_error_wherever_it_is_cut() {
        let text = noise(3000);
        for (encode, magic) in [(gzip as fn(&[u8]) -> Vec<u8>, 2), (zstd_of, 4), (xz, 6), (bzip2_of, 6)] {
            let whole = encode(&text);
            for length in magic..whole.len() {
                let error = unpacked(&whole[..length]).expect_err("it was cut");
                assert_eq!(error.kind(), Kind::Invalid, "{length} of {}: {error}", whole.len());
            }
        }
    }

    #[test]
    fn behind_gzip_only_zeros_are_padding() {
        let whole = gzip(b"text");
        assert_eq!(unpacked(&[&whole[..], &[0; 5000]].concat()).expect("zeros"), b"text");
        for garbage in [&b"x"[..], b"more than the header of a member", &[0, 0, 1], &[0x1f, 0]] {
            let error = unpacked(&[&whole[..], garbage].concat()).expect_err("garbage");
            assert_eq!(error.kind(), Kind::Invalid, "{error}");
            assert!(error.to_string().ends_with("damaged: garbage after the end"), "{error}");
        }
        for cut in 1..whole.len() {
            let error = unpacked(&[&whole[..], &whole[..cut]].concat()).expect_err("a second member that is cut");
            assert!(error.to_string().ends_with("truncated"), "{cut}: {error}");
        }
        for encode in [zstd_of, xz, bzip2_of] {
            assert!(unpacked(&[&encode(b"text")[..], b"garbage"].concat()).is_err());
        }
    }

    #[test]
    fn a_window_beyond_the_limit_is_named() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.window_log(28).expect("a large window");
        encoder.include_contentsize(false).expect("a streamed frame");
        encoder.write_all(b"text").expect("to memory");
        let error = unpacked(&encoder.finish().expect("to memory")).expect_err("256 MiB");
        assert_eq!(error.kind(), Kind::Limit, "{error}");
        assert!(error.hint().is_some());
        let options = liblzma::stream::LzmaOptions::new_preset(1).and_then(|mut options| {
            options.dict_size(256 << 20);
            let mut filters = liblzma::stream::Filters::new();
            filters.lzma2(&options);
            liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32)
        });
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), options.expect("an encoder"));
        encoder.write_all(b"text").expect("to memory");
        let error = unpacked(&encoder.finish().expect("to memory")).expect_err("256 MiB");
        assert_eq!(error.kind(), Kind::Limit, "{error}");
    }

    #[test]
    fn who_needs_much_memory_waits_for_its_turn() {
        let zstd = |log: u32, length: usize, known: bool| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
            encoder.window_log(log).and_then(|()| encoder.include_contentsize(known)).expect("a window");
            if known {
                encoder.set_pledged_src_size(Some(length as u64)).expect("a size");
            }
            encoder.write_all(&noise(length)).expect("to memory");
            encoder.finish().expect("to memory")
        };
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(20, 10, false)].concat();
        for (bytes, waits) in [
            (gzip(b"text"), false),
            (b"plain".to_vec(), false),
            (xz(b"text"), true),
            (zstd(23, 100, false), false),
            (zstd(24, 100, false), true),
            (zstd(24, 100, true), false),
            (zstd(24, 9 << 20, true), true),
            (skippable, true),
        ] {
            let mut waited = false;
            let stream = decompress_in_turn(Box::new(Cursor::new(bytes)), || waited = true);
            stream.and_then(|mut stream| Ok(stream.read_to_end(&mut Vec::new())?)).expect("sound");
            assert_eq!(waited, waits);
        }
        let larger_later = [zstd(20, 100, false), zstd(24, 100, false)].concat();
        let error = unpacked(&larger_later).expect_err("a surprise");
        assert!(error.to_string().contains("in a later frame"), "{error}");
    }

    #[test]
    fn the_readers_own_error_stays_itself() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(Error::new(Kind::NoSpace, "the disk is gone").into())
            }
        }
        let cut = gzip(&noise(3000))[..1000].to_vec();
        let mut stream = decompress(Box::new(Cursor::new(cut).chain(Broken))).expect("gzip");
        let error = Error::from(stream.read_to_end(&mut Vec::new()).expect_err("it broke"));
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NoSpace, "the disk is gone"));
    }
}
