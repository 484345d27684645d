//! Small files, filled by a thread of their own.
//!
//! Making a file is half of its cost, and the applier's alone: names depend on each other. What goes into it, and what is
//! set of it by its descriptor, depends on nothing that comes later in the archive, whatever becomes of its name. So
//! the applier hands open files over, some at a time, with what is to be written, and makes the next ones meanwhile.
//!
//! The batches go round, so that memory and open files are bounded: [`RING`] times [`FILES`] and [`BYTES`].

use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};

use crate::archive::Entries;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::node::{self, Target, Time};

/// A larger file is written by the applier itself, from the buffer that it came in.
pub(super) const SMALL: u64 = 128 << 10;

/// Batches there are.
const RING: usize = 4;
/// A batch with so many files, or so many bytes, is handed over.
const FILES: usize = 16;
const BYTES: usize = 256 << 10;

/// What is set of an entry when its content is there, but its extended attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metadata {
    pub(super) owner: Option<(u32, u32)>,
    /// It got an ACL from its directory which it does not have.
    pub(super) no_acl: bool,
    pub(super) mode: Option<u32>,
    pub(super) accessed: Time,
    pub(super) modified: Time,
}

impl Metadata {
    /// Owner, then mode: chown(2) clears setuid bits and capabilities. Attributes come after.
    pub(super) fn set(&self, target: Target<'_>) -> node::Result<()> {
        if let Some((uid, gid)) = self.owner {
            node::set_owner(target, uid, gid)?;
        }
        if self.no_acl {
            node::remove_xattr(target, c"system.posix_acl_access")?;
        }
        self.mode.map_or(Ok(()), |mode| node::set_mode(target, mode))
    }

    /// Last, since times move with whatever is written.
    pub(super) fn set_times(&self, target: Target<'_>) -> node::Result<()> {
        node::set_times(target, self.accessed, self.modified)
    }
}

struct File {
    file: OwnedFd,
    metadata: Metadata,
    /// Where its path and its content end in the batch's.
    path_end: usize,
    content_end: usize,
}

#[derive(Default)]
struct Batch {
    files: Vec<File>,
    paths: Vec<u8>,
    content: Vec<u8>,
}

impl Batch {
    fn write(&mut self) -> Result<()> {
        let (mut path_at, mut content_at) = (0, 0);
        for File { file, metadata, path_end, content_end } in self.files.drain(..) {
            let target = Target::Open(file.as_fd());
            node::write(file.as_fd(), &self.content[content_at..content_end])
                .and_then(|()| metadata.set(target))
                .and_then(|()| metadata.set_times(target))
                .map_err(|failure| failure.of(&self.paths[path_at..path_end]))?;
            (path_at, content_at) = (path_end, content_end);
        }
        self.paths.clear();
        self.content.clear();
        Ok(())
    }
}

/// The applier's end.
pub(super) struct Writer {
    batch: Batch,
    full: SyncSender<Batch>,
    empty: Receiver<Batch>,
    /// Batches that are on their way.
    out: usize,
}

/// Starts the thread. It ends when the [`Writer`] is dropped, or with the first error.
pub(super) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
) -> Result<(Writer, ScopedJoinHandle<'scope, Result<()>>)> {
    let (full, batches) = sync_channel(RING);
    let (emptied, empty) = channel();
    let thread = thread::Builder::new()
        .name("layer-write".into())
        .spawn_scoped(scope, move || run(&batches, &emptied))
        .context(|| "start a thread")?;
    Ok((Writer { batch: Batch::default(), full, empty, out: 0 }, thread))
}

fn run(batches: &Receiver<Batch>, emptied: &Sender<Batch>) -> Result<()> {
    while let Ok(mut batch) = batches.recv() {
        batch.write()?;
        // When the applier has failed, nobody wants it back.
        let _ = emptied.send(batch);
    }
    Ok(())
}

impl Writer {
    /// Takes a file over, with the content that comes next in the archive; returns its length.
    pub(super) fn take<R: BufRead>(
        &mut self,
        file: OwnedFd,
        path: &[u8],
        metadata: Metadata,
        data: &mut Entries<'_, R>,
    ) -> Result<u64> {
        let start = self.batch.content.len();
        data.each_piece(|piece| {
            self.batch.content.extend_from_slice(piece);
            Ok(())
        })?;
        self.batch.paths.extend_from_slice(path);
        let (path_end, content_end) = (self.batch.paths.len(), self.batch.content.len());
        self.batch.files.push(File { file, metadata, path_end, content_end });
        if self.batch.files.len() >= FILES || self.batch.content.len() >= BYTES {
            self.hand_over()?;
        }
        Ok((content_end - start) as u64)
    }

    /// Hands over what there is, without waiting for it to be written.
    pub(super) fn hand_over(&mut self) -> Result<()> {
        let next = match self.out + 1 < RING {
            true => Batch::default(),
            false => self.returned()?,
        };
        let full = std::mem::replace(&mut self.batch, next);
        self.out += 1;
        self.full.send(full).map_err(|_| ended())
    }

    /// Waits until every file that was handed over is written and closed.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.hand_over()?;
        while self.out > 0 {
            self.batch = self.returned()?;
        }
        Ok(())
    }

    fn returned(&mut self) -> Result<Batch> {
        let batch = self.empty.recv().map_err(|_| ended())?;
        self.out -= 1;
        Ok(batch)
    }
}

/// Why the thread ended is its own result, which counts before the applier's.
fn ended() -> Error {
    Error::new(Kind::Io, "the thread that writes small files has ended")
}
