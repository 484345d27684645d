//! How the archive of a layer is put together again from the files that came of it.
//!
//! A recipe holds what of an archive is in no file (headers, padding, what lies behind the end), and between that says which
//! piece of which file comes next: so the archive is the same again to its last byte, and the layer's digest too, without a
//! second copy of what it holds. The idea is Docker's (tar-split); the form is ours:
//!
//! ```text
//! zstd( MAGIC  { BYTES length bytes… | PIECE length path… offset length | KEPT length path… length bytes… }*  END )
//! ```
//!
//! Numbers are little-endian, u32 for a path's and a run of bytes' length, u64 for the others. A file that an entry has filled
//! and a later one of the same archive replaces is [kept](KEPT): its bytes belong to the piece of that path which came last.
//! Where something of the archive's own is replaced, or a link that it has gone through is hidden, paths may lead elsewhere than
//! they led: then it is tried whether the recipe yields the archive, and one that does not is no recipe: an empty file.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::pack::{self, Out, Packed};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{fs, node};
use crate::name::Digest;

const MAGIC: &[u8] = b"tupper recipe 1\n";
const BYTES: u8 = 0;
const PIECE: u8 = 1;
const KEPT: u8 = 2;
const END: u8 = 3;

/// Content of at most so many bytes is not worth a look at its file.
const INLINE: u64 = 256;
/// Bytes that are written as one run.
const RUN: usize = 64 << 10;
/// Bytes that are written to the disk at once.
const PORTION: usize = 256 << 10;
/// The longest path that is opened: PATH_MAX is 4096 with the NUL (path_resolution(7)).
const LONGEST: usize = 4000;
/// Bytes of replaced files that are kept, in one archive.
const LARGEST_KEPT: u64 = 16 << 20;
/// How well zstd compresses; headers are mostly zeros.
const LEVEL: i32 = 3;

/// Where a recipe lies. Its file is open only while something is added to it: a filesystem with a file that is open for writing
/// cannot be made read-only.
#[derive(Debug)]
pub struct Recipe {
    directory: OwnedFd,
    name: String,
}

impl Recipe {
    /// An empty one, which is none, in a new file.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn create(directory: OwnedFd, name: &str) -> Result<Recipe> {
        let recipe = Recipe { directory, name: name.to_string() };
        fs::write_new(recipe.directory.as_fd(), name, b"", 0o600, false)?;
        Ok(recipe)
    }

    /// It, to be read.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(&self) -> Result<File> {
        fs::open_file_beneath(self.directory.as_fd(), Path::new(&self.name)).map(File::from)
    }

    /// There is none.
    fn clear(&self) -> Result<()> {
        fs::unlink(self.directory.as_fd(), &self.name)?;
        fs::write_new(self.directory.as_fd(), &self.name, b"", 0o600, false)
    }

    fn again(&self) -> Result<Recipe> {
        Ok(Recipe { directory: fs::duplicate(self.directory.as_fd())?, name: self.name.clone() })
    }
}

impl Write for Recipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        fs::open_to_append(self.directory.as_fd(), &self.name)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the recipe of an archive while that is read.
pub(super) struct Recorder {
    out: zstd::Encoder<'static, BufWriter<Recipe>>,
    run: Vec<u8>,
    kept: u64,
    doubtful: bool,
    /// The first failure to write, told at the end.
    failed: Option<io::Error>,
}

impl Recorder {
    pub(super) fn new(recipe: &Recipe) -> Result<Recorder> {
        let recipe = recipe.again()?;
        let start = || {
            let mut out = zstd::Encoder::new(BufWriter::with_capacity(PORTION, recipe), LEVEL)?;
            out.include_checksum(true)?;
            out.write_all(MAGIC)?;
            Ok(out)
        };
        let out = start().map_err(|e| Error::from_io("begin the recipe of the archive", e))?;
        Ok(Recorder { out, run: Vec::new(), kept: 0, doubtful: false, failed: None })
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.run.extend_from_slice(bytes);
        if self.run.len() >= RUN {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let run = std::mem::take(&mut self.run);
        if !run.is_empty() {
            self.write(&[&[BYTES], &length_of(&run), &run]);
        }
    }

    fn piece(&mut self, path: &[u8], offset: u64, length: u64) {
        self.flush();
        self.write(&[&[PIECE], &length_of(path), path, &offset.to_le_bytes(), &length.to_le_bytes()]);
    }

    /// Something that this archive has made is about to be replaced.
    pub(super) fn replaces(&mut self, name: &[u8], path: &[u8], found: &fs::Stat) -> Result<()> {
        self.doubtful = true;
        let size = found.st_size.unsigned_abs();
        if !node::is_regular(found) || self.kept.saturating_add(size) > LARGEST_KEPT {
            return Ok(());
        }
        self.kept += size;
        let mut content = Vec::new();
        let read = node::open_to_read(Path::new(std::ffi::OsStr::from_bytes(name)));
        read.and_then(|file| file.take(size).read_to_end(&mut content))
            .context(|| format!("read {} again", String::from_utf8_lossy(path)))?;
        self.flush();
        self.write(&[&[KEPT], &length_of(path), path, &(content.len() as u64).to_le_bytes(), &content]);
        Ok(())
    }

    /// A link by which this archive has reached something may be hidden: its path leads there no more.
    pub(super) fn hides(&mut self) {
        self.doubtful = true;
    }

    fn write(&mut self, parts: &[&[u8]]) {
        if self.failed.is_none() {
            self.failed = parts.iter().try_for_each(|part| self.out.write_all(part)).err();
        }
    }

    /// The recipe is whole. Whether it is doubtful that it yields the archive.
    pub(super) fn finish(mut self) -> Result<bool> {
        self.flush();
        self.write(&[&[END]]);
        let Recorder { out, doubtful, failed, .. } = self;
        let end = || -> io::Result<()> {
            failed.map_or(Ok(()), Err)?;
            out.finish()?.into_inner().map_err(io::IntoInnerError::into_error).map(drop)
        };
        end().map_err(|e| Error::from_io("write the recipe of the archive", e))?;
        Ok(doubtful)
    }
}

fn length_of(bytes: &[u8]) -> [u8; 4] {
    // Names have a limit, and runs are short.
    (bytes.len() as u32).to_le_bytes()
}

/// A stream whose recipe is written while it is read, if somebody wants that.
pub(super) struct Recorded<S> {
    stream: S,
    recorder: Option<Rc<RefCell<Recorder>>>,
    /// How many of the next bytes are some file's.
    content: u64,
}

impl<S: BufRead> Recorded<S> {
    pub(super) fn new(stream: S, recorder: Option<Rc<RefCell<Recorder>>>) -> Recorded<S> {
        Recorded { stream, recorder, content: 0 }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: BufRead> Content for Recorded<S> {
    fn content(&mut self, path: &[u8], pieces: &[(u64, u64)]) {
        let total: u64 = pieces.iter().map(|(_, length)| length).sum();
        let Some(recorder) = self.recorder.as_ref().filter(|_| total > INLINE && path.len() < LONGEST) else { return };
        for &(offset, length) in pieces.iter().filter(|(_, length)| *length > 0) {
            recorder.borrow_mut().piece(path, offset, length);
        }
        self.content = total;
    }
}

/// A stream that is told what its next bytes are.
pub(super) trait Content: BufRead {
    /// They are the pieces of this file, by offset and length.
    fn content(&mut self, path: &[u8], pieces: &[(u64, u64)]);
}

impl<S: BufRead> BufRead for Recorded<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.stream.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Some(recorder) = &self.recorder {
            let content = usize::try_from(self.content).unwrap_or(usize::MAX).min(amount);
            self.content -= content as u64;
            // What is consumed is there: this reads nothing.
            if content < amount
                && let Ok(there) = self.stream.fill_buf()
            {
                recorder.borrow_mut().bytes(&there[content..amount]);
            }
        }
        self.stream.consume(amount);
    }
}

impl<S: BufRead> Read for Recorded<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// Whether there is a recipe: an archive of which none could be written has an empty one.
///
/// # Errors
/// That of fstat(2).
pub fn is_recipe(recipe: &File) -> Result<bool> {
    Ok(recipe.metadata().context(|| "look at the recipe of the archive")?.len() > 0)
}

/// How many bytes the archive is that a recipe tells of.
///
/// # Errors
/// A recipe that cannot be read.
pub fn size(recipe: &File) -> Result<u64> {
    let mut size = 0u64;
    read(recipe, |record| {
        size += match record {
            Record::Bytes(bytes) => bytes.len() as u64,
            Record::Piece { length, .. } => length,
            Record::Kept { .. } => 0,
        };
        Ok(())
    })?;
    Ok(size)
}

/// The archive that a recipe tells of, as it was, from the files below `root`.
///
/// # Errors
/// That of starting a thread. What fails underway is an error of the stream; a file that is another now is not noticed, and
/// changes the archive's digest.
pub fn rebuild(recipe: File, root: OwnedFd) -> Result<Packed> {
    pack::start(move |out| {
        let kept = kept(&recipe)?;
        node::confine(root.as_fd()).map_err(|failure| failure.of(b""))?;
        let mut rebuilding = Rebuilding { out, kept, piece: 0 };
        read(&recipe, |record| rebuilding.record(record)).context(|| "put the archive together again")
    })
}

/// Clears a recipe that does not yield the archive with this digest; whether it does.
pub(super) fn clear_unless_it_yields(recipe: &Recipe, root: OwnedFd, diff_id: Digest) -> Result<bool> {
    let yields = yields(recipe.open()?, root, diff_id)?;
    if !yields {
        recipe.clear()?;
    }
    Ok(yields)
}

fn yields(recipe: File, root: OwnedFd, diff_id: Digest) -> Result<bool> {
    match digest(rebuild(recipe, root)?, || Ok(())) {
        Ok(digest) => Ok(digest == diff_id),
        Err(e) => {
            log::debug!("the recipe does not yield the archive: {e}");
            Ok(false)
        }
    }
}

/// The digest of an archive that is [put together](rebuild), read to its end; `go_on` ends that with its error.
///
/// # Errors
/// Those of the stream.
pub fn digest(mut archive: impl Read, go_on: impl Fn() -> Result<()>) -> Result<Digest> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; RUN];
    loop {
        go_on()?;
        match archive.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(digest.finalize().into())),
            length => digest.update(&buffer[..length]),
        }
    }
}

/// A step of a recipe.
enum Record<'a> {
    Bytes(&'a [u8]),
    Piece { path: &'a [u8], offset: u64, length: u64 },
    Kept { path: &'a [u8], content: &'a [u8] },
}

/// Reads a recipe from its start.
fn read(recipe: &File, mut each: impl FnMut(Record<'_>) -> Result<()>) -> Result<()> {
    let mut file = recipe;
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(zstd::Decoder::new(file)?);
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(Error::new(Kind::Store, "no recipe of this version"));
    }
    let (mut path, mut content) = (Vec::new(), Vec::new());
    loop {
        match take::<1>(&mut reader)?[0] {
            BYTES => {
                let length = u32::from_le_bytes(take(&mut reader)?);
                fill(&mut reader, &mut content, length.into())?;
                each(Record::Bytes(&content))?;
            }
            PIECE => {
                let length = u32::from_le_bytes(take(&mut reader)?);
                fill(&mut reader, &mut path, length.into())?;
                let (offset, length) = (u64::from_le_bytes(take(&mut reader)?), u64::from_le_bytes(take(&mut reader)?));
                each(Record::Piece { path: &path, offset, length })?;
            }
            KEPT => {
                let length = u32::from_le_bytes(take(&mut reader)?);
                fill(&mut reader, &mut path, length.into())?;
                let length = u64::from_le_bytes(take(&mut reader)?);
                fill(&mut reader, &mut content, length)?;
                each(Record::Kept { path: &path, content: &content })?;
            }
            // Behind it is the checksum of it all.
            END if reader.read(&mut [0])? == 0 => return Ok(()),
            _ => return Err(Error::new(Kind::Store, "the recipe is damaged")),
        }
    }
}

fn take<const LENGTH: usize>(reader: &mut impl Read) -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    reader.read_exact(&mut bytes).map(|()| bytes)
}

fn fill(reader: &mut impl Read, bytes: &mut Vec<u8>, length: u64) -> Result<()> {
    bytes.clear();
    if length > LARGEST_KEPT || reader.take(length).read_to_end(bytes)? as u64 != length {
        return Err(Error::new(Kind::Store, "the recipe is damaged"));
    }
    Ok(())
}

/// What is kept of replaced files, by the number of the piece that it was.
fn kept(recipe: &File) -> Result<HashMap<usize, Vec<u8>>> {
    let mut kept = HashMap::new();
    let mut last: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
    // Almost all recipes keep nothing, and need no paths in memory.
    let mut any = false;
    read(recipe, |record| {
        any |= matches!(record, Record::Kept { .. });
        Ok(())
    })?;
    if !any {
        return Ok(kept);
    }
    let mut piece = 0;
    read(recipe, |record| {
        match record {
            Record::Bytes(_) => {}
            Record::Piece { path, offset, .. } => {
                let pieces = last.entry(path.to_vec()).or_default();
                if offset == 0 {
                    pieces.clear();
                }
                pieces.push(piece);
                piece += 1;
            }
            // Of several pieces the first has it all; the others find theirs in it.
            Record::Kept { path, content } => {
                for piece in last.remove(path).unwrap_or_default() {
                    kept.insert(piece, content.to_vec());
                }
            }
        }
        Ok(())
    })?;
    Ok(kept)
}

struct Rebuilding<'a> {
    out: &'a mut Out,
    kept: HashMap<usize, Vec<u8>>,
    /// The number of the next piece.
    piece: usize,
}

impl Rebuilding<'_> {
    fn record(&mut self, record: Record<'_>) -> Result<()> {
        let (path, offset, length) = match record {
            Record::Bytes(bytes) => return self.out.write(bytes),
            Record::Kept { .. } => return Ok(()),
            Record::Piece { path, offset, length } => (path, offset, length),
        };
        let kept = self.kept.remove(&self.piece);
        self.piece += 1;
        let shown = || String::from_utf8_lossy(path).into_owned();
        if let Some(content) = kept {
            let piece = usize::try_from(offset).ok().zip(usize::try_from(offset.saturating_add(length)).ok());
            let piece = piece.and_then(|(start, end)| content.get(start..end));
            let piece = piece.ok_or_else(|| Error::new(Kind::Store, "the recipe is damaged")).context(shown)?;
            return self.out.write(piece);
        }
        let path = Path::new("/").join(std::ffi::OsStr::from_bytes(path));
        let file = node::open_to_read(&path).context(shown)?;
        if !file.metadata().context(shown)?.is_file() {
            return Err(Error::new(Kind::Invalid, "it is no plain file")).context(shown);
        }
        self.out.data(&file, offset, length).context(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_what_is_read() {
        let scratch = tempfile::tempdir().expect("a directory");
        let directory = File::open(scratch.path()).expect("a directory");
        let recipe = Recipe::create(directory.into(), "r").expect("a file");
        let mut recorder = Recorder::new(&recipe).expect("begun");
        recorder.bytes(b"head");
        recorder.piece(b"a/b", 0, 1000);
        recorder.bytes(b"tail");
        recorder.flush();
        recorder.write(&[&[KEPT], &length_of(b"a/b"), b"a/b", &3u64.to_le_bytes(), b"old"]);
        recorder.piece(b"a/b", 0, 2000);
        assert!(!recorder.finish().expect("written"));
        let recipe = recipe.open().expect("a file");
        let mut told = Vec::new();
        let each = |record: Record<'_>| {
            told.push(match record {
                Record::Bytes(bytes) => format!("bytes {}", String::from_utf8_lossy(bytes)),
                Record::Piece { path, offset, length } => {
                    format!("piece {} {offset} {length}", String::from_utf8_lossy(path))
                }
                Record::Kept { path, content } => {
                    format!("kept {} {}", String::from_utf8_lossy(path), String::from_utf8_lossy(content))
                }
            });
            Ok(())
        };
        read(&recipe, each).expect("read");
        assert_eq!(told, ["bytes head", "piece a/b 0 1000", "bytes tail", "kept a/b old", "piece a/b 0 2000"]);
        // The first of the two is what was replaced.
        assert_eq!(kept(&recipe).expect("kept"), HashMap::from([(0, b"old".to_vec())]));
        let path = scratch.path().join("r");
        let whole = std::fs::read(&path).expect("bytes");
        std::fs::write(&path, &whole[..whole.len() - 5]).expect("shorter");
        assert!(read(&File::open(&path).expect("a file"), |_| Ok(())).is_err());
    }
}
