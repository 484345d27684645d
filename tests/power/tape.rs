//! What happened to a disk, in order, and the disk as a power cut at any moment would have left it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::FallocateFlags;

use crate::support::sh;

/// What a disk writes whole or not at all. Filesystems count on it for their superblocks.
const BLOCK: u64 = 4096;

/// One order to the disk.
pub enum Event {
    Write {
        offset: u64,
        data: Box<[u8]>,
    },
    /// Zeroed or discarded: a discarded block may read as anything, zeroes are the worst of it.
    Zero {
        offset: u64,
        length: u64,
    },
    /// What was done before is kept from now on.
    Flush,
    /// Nothing to the disk: somebody asked for the moment.
    Mark,
}

/// What happens to the writes since the last flush.
#[derive(Debug, Clone, Copy)]
pub enum Unflushed {
    /// The disk had them all in its cache.
    Lost,
    /// It had written them all.
    Kept,
    /// It had written some, in an order of its own.
    Mixed(u64),
}

/// A disk's history.
pub struct Tape {
    /// The disk before the first event.
    base: PathBuf,
    events: Mutex<Vec<Event>>,
}

impl Tape {
    pub fn new(base: PathBuf) -> Tape {
        Tape { base, events: Mutex::default() }
    }

    /// Does it to the disk, and remembers it.
    pub fn record(&self, disk: &File, event: Event) -> io::Result<()> {
        // The lock makes the order on the tape the order on the disk.
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        apply(disk, &event)?;
        events.push(event);
        Ok(())
    }

    /// The moment that is now, to cut at: how many events there were. No two are the same.
    pub fn now(&self) -> usize {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(Event::Mark);
        events.len()
    }

    /// Makes the disk at `path` as it is after a power cut at `moment`.
    pub fn cut(&self, moment: usize, unflushed: Unflushed, path: &Path) {
        let [base, copy] = [&self.base, path].map(|path: &Path| path.to_str().expect("a plain path"));
        sh("cp", &["--sparse=always", base, copy]);
        let disk = File::options().read(true).write(true).open(path).expect("the copy");
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let flushed = events[..moment].iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |last| last);
        events[..flushed].iter().for_each(|event| apply(&disk, event).expect("write the copy"));
        let mut random = match unflushed {
            Unflushed::Lost => return,
            Unflushed::Kept => None,
            Unflushed::Mixed(seed) => Some(Random::new(seed)),
        };
        for event in events[flushed..moment].iter().flat_map(blocks) {
            if random.as_mut().is_none_or(|random| random.below(2) == 0) {
                apply(&disk, &event).expect("write the copy");
            }
        }
    }
}

fn apply(disk: &File, event: &Event) -> io::Result<()> {
    match event {
        Event::Write { offset, data } => disk.write_all_at(data, *offset),
        Event::Zero { offset, length } => {
            let [offset, length] = [*offset, *length].map(|n| i64::try_from(n).expect("below 8 EiB"));
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            nix::fcntl::fallocate(disk, flags, offset, length).map_err(Into::into)
        }
        Event::Flush | Event::Mark => Ok(()),
    }
}

/// The event as several, none of which crosses the border of a block.
fn blocks(event: &Event) -> Vec<Event> {
    let (start, length) = match event {
        Event::Write { offset, data } => (*offset, data.len() as u64),
        Event::Zero { offset, length } => (*offset, *length),
        Event::Flush | Event::Mark => return Vec::new(),
    };
    let mut parts = Vec::new();
    let mut offset = start;
    while offset < start + length {
        let end = ((offset / BLOCK + 1) * BLOCK).min(start + length);
        parts.push(match event {
            Event::Write { data, .. } => {
                let [from, to] = [offset, end].map(|at| usize::try_from(at - start).expect("in memory"));
                Event::Write { offset, data: data[from..to].into() }
            }
            _ => Event::Zero { offset, length: end - offset },
        });
        offset = end;
    }
    parts
}

/// Numbers that look random and are the same for the same seed (Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators", SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next one, smaller than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).expect("below the limit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8) -> Event {
        Event::Write { offset, data: vec![byte; 8192].into() }
    }

    #[test]
    fn a_cut_keeps_what_was_flushed() {
        let dir = crate::support::disk::scratch();
        let path = |name: &str| dir.path().join(name);
        let live = File::create(path("live")).expect("a file");
        File::create(path("base")).and_then(|base| base.set_len(1 << 20)).expect("a file");
        let tape = Tape::new(path("base"));
        for event in [write(0, 1), Event::Flush, write(0, 2), Event::Zero { offset: 4096, length: 4096 }] {
            tape.record(&live, event).expect("records");
        }
        let block = |moment, unflushed, nth: usize| {
            tape.cut(moment, unflushed, &path("copy"));
            std::fs::read(path("copy")).expect("a file")[nth * 4096]
        };
        assert_eq!(block(1, Unflushed::Lost, 0), 0, "before the flush");
        assert_eq!(block(1, Unflushed::Kept, 0), 1);
        assert_eq!(block(3, Unflushed::Lost, 0), 1, "after it");
        assert_eq!(block(4, Unflushed::Kept, 1), 0, "zeroed");
        let mixed: Vec<(u8, u8)> =
            (0..40).map(|seed| (block(3, Unflushed::Mixed(seed), 0), block(3, Unflushed::Mixed(seed), 1))).collect();
        for want in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            assert!(mixed.contains(&want), "{want:?} is possible, too");
        }
    }
}
