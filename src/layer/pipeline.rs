//! The stages of an unpack, each on a thread of its own, joined by bounded channels of buffers that go round.
//!
//! The reader decompresses into empty buffers, the next thread hashes them, the applier parses and applies them and
//! gives them back. A stage that fails drops its ends of the channels, which ends the others; its error is the result.
//! The first two begin when a layer is opened, and go ahead of the third as far as the buffers reach. All threads have
//! ended when an [`Opened`] is applied or dropped (the process may clone itself afterwards).

use std::cell::RefCell;
use std::io::{self, BufRead, Read};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use sha2::{Digest as _, Sha256};

use crate::archive::{Entries, Limits};
use crate::error::{Context, Result};
use crate::kernel::node;
use crate::name::Digest;

use super::apply::{self, Applied, Manner};
use super::recipe::{self, Recipe, Recorded, Recorder};
use super::{Among, Unpacked, Watch, decompress};

/// Size and number of a layer's buffers: 4 MiB in flight.
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 16;

/// An archive that is being decompressed and hashed already.
pub struct Opened {
    stream: Stream,
    /// Dropped when it is this layer's turn to take much memory.
    turn: Sender<()>,
    limits: Limits,
    read: JoinHandle<Result<()>>,
    hash: JoinHandle<Digest>,
}

/// What becomes of the entries.
#[derive(Debug, Clone, Copy)]
pub(super) enum Into<'a> {
    /// They are read, and nothing is written.
    Nothing,
    /// They are a root filesystem.
    Root(BorrowedFd<'a>),
    /// They are files among those of the directory.
    Among(BorrowedFd<'a>, &'a Among),
    /// They are a layer on top of what the directory holds.
    Layer(BorrowedFd<'a>),
}

impl Opened {
    /// Begins to read the archive that `open` opens, compressed or not, under the eyes of a [`Watch`].
    ///
    /// # Errors
    /// When no thread can be started; what is wrong with the archive is the error of [`Opened::apply`].
    pub fn open(
        open: impl FnOnce() -> Result<Box<dyn Read + Send>> + Send + 'static,
        limits: &Limits,
        watch: Watch,
    ) -> Result<Opened> {
        let (filled, to_hash) = sync_channel(BUFFERS);
        let (hashed, to_apply) = sync_channel(BUFFERS);
        let (emptied, empty) = channel();
        for _ in 0..BUFFERS {
            // The receiver lives in this frame.
            let _ = emptied.send(Vec::new());
        }
        let bounds = limits.clone();
        let (turn, wait) = channel();
        // Nothing is ever sent: the wait ends when the other end is gone.
        let wait = move || {
            let _: std::result::Result<(), _> = wait.recv();
        };
        let read = thread::Builder::new()
            .name("layer-read".into())
            .spawn(move || read(open()?, wait, &bounds, &watch, &empty, &filled))
            .context(|| "start a thread")?;
        let hash = thread::Builder::new()
            .name("layer-hash".into())
            .spawn(move || hash(to_hash, hashed))
            .context(|| "start a thread")?;
        let stream = Stream { to_apply, emptied, buffer: Vec::new(), position: 0, ended: false };
        Ok(Opened { stream, turn, limits: limits.clone(), read, hash })
    }

    /// Applies it as a layer on top of what the top directory of a btrfs subvolume holds, whiteouts and all (image-spec
    /// layer.md). Otherwise as [`unpack_watched`](super::unpack_watched).
    ///
    /// # Errors
    /// Those of [`unpack`](super::unpack), and `Invalid` for a malformed whiteout.
    pub fn apply(self, into: BorrowedFd<'_>, recipe: Option<&Recipe>) -> Result<Unpacked> {
        self.run(Into::Layer(into), recipe).context(|| "unpack layer")
    }

    /// Writes the recipe of the archive, too, if there is a place for it.
    pub(super) fn run(self, into: Into<'_>, recipe: Option<&Recipe>) -> Result<Unpacked> {
        let (unpacked, doubtful) = self.run_recorded(into, recipe)?;
        if let (Into::Root(root) | Into::Layer(root), Some(recipe), true) = (into, recipe, doubtful) {
            let root = root.try_clone_to_owned().context(|| "duplicate a descriptor")?;
            let doing = || "look whether the archive can be put together again";
            if !recipe::clear_unless_it_yields(recipe, root, unpacked.diff_id).context(doing)? {
                log::warn!(
                    "the archive replaces what it holds: it cannot be put together again, to be saved or pushed"
                );
            }
        }
        Ok(unpacked)
    }

    /// And whether it is doubtful that the recipe yields the archive.
    fn run_recorded(self, into: Into<'_>, recipe: Option<&Recipe>) -> Result<(Unpacked, bool)> {
        let Opened { stream, turn, limits, read, hash } = self;
        drop(turn);
        let applied = thread::scope(|scope| {
            let limits = &limits;
            let apply = move || -> Result<_> {
                if let Into::Root(root) | Into::Layer(root) | Into::Among(root, _) = into {
                    node::confine(root).map_err(|failure| failure.of(b""))?;
                }
                let recorder = recipe.map(Recorder::new).transpose()?.map(|recorder| Rc::new(RefCell::new(recorder)));
                let stream = Recorded::new(stream, recorder.clone());
                let mut entries = match into {
                    Into::Nothing | Into::Root(_) | Into::Among(..) => Entries::new(stream, limits),
                    // Its diff id is the caller's to compare.
                    Into::Layer(_) => Entries::of_verified(stream, limits),
                };
                let applied = match into {
                    Into::Nothing => count(&mut entries),
                    Into::Root(_) => apply::apply(&mut entries, Manner::Root, recorder.clone()),
                    Into::Among(_, among) => apply::apply(&mut entries, Manner::Among(*among), None),
                    Into::Layer(_) => apply::apply(&mut entries, Manner::Layer, recorder.clone()),
                };
                let ended = entries.into_inner().into_inner().ended;
                let recorder = recorder.and_then(Rc::into_inner).map(RefCell::into_inner);
                let finished = recorder.map_or(Ok(false), Recorder::finish);
                Ok((applied.and_then(|applied| Ok((applied, finished?))), ended))
            };
            // When it cannot start, its channel ends are gone and the reader ends too.
            let apply = thread::Builder::new().name("layer-apply".into()).spawn_scoped(scope, apply);
            apply.context(|| "start a thread").and_then(|apply| ended(apply.join()))
        });
        let (diff_id, read) = (ended(hash.join()), ended(read.join()));
        let (applied, at_end) = applied?;
        // The reader is ahead of the applier, so the applier's error comes first in the stream, unless it is that the
        // stream broke off: then the reader knows why.
        let (Applied { entries, bytes }, doubtful) = match at_end {
            true => read.and(applied),
            false => applied.and_then(|applied| read.map(|()| applied)),
        }?;
        Ok((Unpacked { diff_id, entries, bytes }, doubtful))
    }

    /// Ends it unread.
    pub fn cancel(self) {
        let Opened { stream, turn, read, hash, .. } = self;
        drop(stream);
        drop(turn);
        drop((hash.join(), read.join()));
    }
}

/// A thread's result; its panic is ours.
fn ended<T>(joined: thread::Result<T>) -> T {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What would be applied.
fn count<R: BufRead>(entries: &mut Entries<'_, R>) -> Result<Applied> {
    let mut applied = Applied { entries: 0, bytes: 0 };
    while entries.next()?.is_some() {
        applied.entries += 1;
        entries.each_piece(|piece| {
            applied.bytes += piece.len() as u64;
            Ok(())
        })?;
    }
    Ok(applied)
}

/// Decompresses to the end of the stream, or until nobody takes the buffers any more.
fn read(
    bytes: Box<dyn Read + Send>,
    turn: impl FnOnce(),
    limits: &Limits,
    watch: &Watch,
    empty: &Receiver<Vec<u8>>,
    filled: &SyncSender<Vec<u8>>,
) -> Result<()> {
    let mut stream = decompress::decompress_in_turn(bytes, turn)?;
    let mut total = 0u64;
    while let Ok(mut buffer) = empty.recv() {
        buffer.resize(BUFFER, 0);
        let length = fill(&mut *stream, &mut buffer)?;
        if length == 0 {
            break;
        }
        total += length as u64;
        if limits.bytes.is_some_and(|limit| total > limit) {
            return Err(limits.too_large("the archive unpacks to"));
        }
        watch(length as u64)?;
        buffer.truncate(length);
        if filled.send(buffer).is_err() {
            break;
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match stream.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(length)
}

fn hash(to_hash: Receiver<Vec<u8>>, hashed: SyncSender<Vec<u8>>) -> Digest {
    let mut digest = Sha256::new();
    for bytes in to_hash {
        digest.update(&bytes);
        if hashed.send(bytes).is_err() {
            break;
        }
    }
    Digest::from_bytes(digest.finalize().into())
}

/// The applier's end: the uncompressed stream.
struct Stream {
    to_apply: Receiver<Vec<u8>>,
    emptied: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    position: usize,
    /// The reader is done, well or not.
    ended: bool,
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.buffer.len() && !self.ended {
            self.position = 0;
            let next = self.to_apply.recv().unwrap_or_else(|_| {
                self.ended = true;
                Vec::new()
            });
            // Nobody wants it back once the reader is done.
            let _ = self.emptied.send(std::mem::replace(&mut self.buffer, next));
        }
        Ok(&self.buffer[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position = self.buffer.len().min(self.position + amount);
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}
