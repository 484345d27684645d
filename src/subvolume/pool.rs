//! The warm pool: snapshots of layers that are there before somebody wants one.
//!
//! An entry is a directory `pool/CHAIN-NONCE/` with a snapshot of the layer in `rootfs`, as a container's, and the mark
//! that it is ready; until then its name begins otherwise, because who opens a directory in which a snapshot is made waits for the
//! commit. Whoever wants one locks it, writes his record and renames it into its place: no commit. That is
//! not durable, so it is for what ends with the command that wants it.
//!
//! An entry that somebody had may be back after a power cut, with what he wrote and had synced: fsync(2) goes past the commit
//! that the rename waits for. So the mark names the boot, and the transaction in which the entry was changed last: what
//! is of another boot, or has changed since, is nobody's any more.
//!
//! What every container has in /etc is made once, in a snapshot of the layer, `pool/base-CHAIN/`, of which the others are snapshots.
//! And what the commands need that were run last is read in them, since no page cache is shared between snapshots.
//!
//! The first write in a snapshot copies the path to it, and adds to every node on that path a reference for each of its
//! children, hundreds of them, which are taken away again when it goes: milliseconds, most of them later and for whoever commits.
//! Where commands write, entries are written to once when they are made, and look untouched after that.
//!
//! Who took one of the last has more made, by a process that ends within a second of its command. As many are kept as
//! were wanted lately.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Active, Parent, ROOTFS, Sealed, clear, preread};
use crate::error::{Context, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::node::{self, Target, Time};
use crate::kernel::{btrfs, fs, process, signal};
use crate::name::Id;
use crate::rootfs::FILES_IN_ETC;
use crate::store::record::{self, Identity};
use crate::store::{Shelf, Store, boot_id, lock_if_free, uuid_text};

/// How many snapshots of a layer are kept at least, and at most: what throwaways that follow each other closely take while a
/// commit makes the next.
const FEW: usize = 8;
const MANY: usize = 128;

/// How the name of an entry begins that is not ready, and that of what the entries of a layer are snapshots of.
const UNREADY: &str = "new-";
const BASE: &str = "base-";

/// How many are made in one go, which share a commit.
const BATCH: usize = 64;

/// Who makes some begins no other batch after this.
const TIME: Duration = Duration::from_millis(400);

/// A pool that is low again within this time of its last filling is too small; one that lasts [LONG](Layer::LONG) is too large.
const SOON: SignedDuration = SignedDuration::from_secs(10);

/// For how many layers snapshots are kept: those that were used last.
const LAYERS: usize = 8;

/// A layer whose snapshots nobody wanted for so long has none.
const UNUSED: SignedDuration = SignedDuration::from_hours(24);

/// How many programs are read in a snapshot, and how long their paths may be: all is one xattr, which has to fit in a leaf.
const PROGRAMS: usize = 2;
const PROGRAM: usize = 80;

/// What is known of the pool, on the shelf itself; written under its lock.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    layers: BTreeMap<Id, Layer>,
}

/// How many snapshots of a layer are wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Layer {
    size: usize,
    filled: Timestamp,
    /// What was run last in it, and is read in those that are ready.
    #[serde(default)]
    programs: Vec<String>,
    /// Who was last to have some made has written in his.
    #[serde(default)]
    written: bool,
}

impl Layer {
    const LONG: SignedDuration = SignedDuration::from_mins(10);

    fn new(now: Timestamp) -> Layer {
        Layer { size: FEW, filled: now, programs: Vec::new(), written: true }
    }

    /// What it is when it is filled again.
    fn next(&self, now: Timestamp) -> Layer {
        let lasted = now.duration_since(self.filled);
        let size = match () {
            () if lasted < SOON => self.size * 2,
            () if lasted > Layer::LONG => self.size / 2,
            () => self.size,
        };
        Layer { size: size.clamp(FEW, MANY), filled: now, ..self.clone() }
    }

    /// Notes that a program was run.
    fn note(&mut self, program: &str) {
        if program.len() <= PROGRAM {
            self.programs.retain(|known| known != program);
            self.programs.insert(0, program.to_string());
            self.programs.truncate(PROGRAMS);
        }
    }

    fn is_low(&self, left: usize) -> bool {
        left <= self.size / 2
    }
}

/// The mark of an entry that is ready, and of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    boot: String,
    /// The transaction of its last change, which a snapshot has of what it is one of.
    changed: u64,
    /// That in which its tree was written last.
    generation: u64,
    /// The UUID of the layer's subvolume.
    of: String,
}

impl Mark {
    const READY: &str = "user.tupper.ready";
    const BASE: &str = "user.tupper.base";

    fn read(entry: &OwnedFd, name: &str) -> Result<Option<Mark>> {
        let Some(text) = fs::get_xattr(entry.as_fd(), name)? else { return Ok(None) };
        let parse = || {
            let mut words = std::str::from_utf8(&text).ok()?.split(' ').map(str::to_string);
            let (boot, changed, generation) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(Mark { boot, changed, generation, of: words.next()? })
        };
        Ok(parse())
    }

    /// Marks an entry in whose subvolume nobody will write until it is taken.
    fn write(entry: &OwnedFd, name: &str, rootfs: &OwnedFd, layer: &Parent) -> Result<()> {
        let boot = boot_id().unwrap_or_default();
        let btrfs::Info { changed, generation, .. } = btrfs::info(rootfs.as_fd())?;
        // What has changed just now is not in the tree before its transaction ends.
        let text = format!("{boot} {changed} {} {}", generation.max(changed), uuid_text(&layer.uuid));
        fs::set_xattr(entry.as_fd(), name, text.as_bytes())
    }

    /// Whether nobody has changed the subvolume since it was marked, in this boot.
    fn holds(&self, info: &btrfs::Info) -> bool {
        // What an fsync left in the log is in the tree after the next mount, which is a change of the tree, but not of a
        // time: btrfs_update_inode(), fs/btrfs/inode.c.
        self.holds_for_base(info) && info.generation <= self.generation
    }

    /// The same for a base, in which nobody calls fsync, and whose tree every snapshot changes that is made of it.
    fn holds_for_base(&self, info: &btrfs::Info) -> bool {
        Some(&self.boot) == boot_id().as_ref() && info.changed == self.changed
    }
}

/// An entry that was taken: locked, and still in the pool.
#[derive(Debug)]
pub(super) struct Taken {
    pub name: String,
    pub dir: OwnedFd,
    pub rootfs: OwnedFd,
}

/// Takes the mark away from an entry whose lock the caller has: whatever becomes of him, nobody else takes it.
pub(super) fn mark_down(dir: &OwnedFd) -> Result<()> {
    fs::remove_xattr(dir.as_fd(), Mark::READY)
}

/// What came of asking for a ready snapshot.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) taken: Option<Taken>,
    /// More should be made.
    pub low: bool,
}

/// Takes a ready snapshot of a layer, if there is one.
pub(crate) fn take(store: &Store, chain: &Id, parent: &Parent) -> Result<Asked> {
    let pool = match store.shelf(Shelf::Pool) {
        // Older than pools are.
        Err(e) if e.kind() == Kind::NotFound => return Ok(Asked { taken: None, low: true }),
        other => other?,
    };
    let prefix = format!("{chain}-");
    let names = fs::list(pool.as_fd(), ".")?.into_iter().filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(&prefix)).collect();
    // Those who ask at the same time begin elsewhere.
    let first = std::process::id() as usize % names.len().max(1);
    names.rotate_left(first);
    let mut taken = None;
    for name in &names {
        if let Some(entry) = take_entry(&pool, name, parent).context(|| format!("take pool/{name}"))? {
            taken = Some(entry);
            break;
        }
    }
    let left = if taken.is_some() { names.len() - 1 } else { 0 };
    let record = read_record(&pool);
    Ok(Asked { taken, low: record.layers.get(chain).is_none_or(|layer| layer.is_low(left)) })
}

fn take_entry(pool: &OwnedFd, name: &str, parent: &Parent) -> Result<Option<Taken>> {
    let Some(dir) = lock_if_free(pool, name)? else { return Ok(None) };
    let Some(mark) = Mark::read(&dir, Mark::READY)? else { return Ok(None) };
    let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
    let ours = mark.of == uuid_text(&parent.uuid) && mark.holds(&btrfs::info(rootfs.as_fd())?);
    Ok(ours.then(|| Taken { name: name.to_string(), dir, rootfs }))
}

/// A tree that somebody works in, to know afterwards whether he has written in it.
#[derive(Debug)]
pub(crate) struct Watch {
    rootfs: OwnedFd,
    changed: Timestamp,
}

impl Watch {
    pub(crate) fn begin(active: &Active) -> Result<Watch> {
        let rootfs = active.rootfs(false)?.dir;
        let changed = btrfs::info(rootfs.as_fd())?.changed_at;
        Ok(Watch { rootfs, changed })
    }

    /// Whether something was written in it since.
    pub(crate) fn was_written(&self) -> bool {
        btrfs::info(self.rootfs.as_fd()).is_ok_and(|info| info.changed_at != self.changed)
    }
}

/// What the command did that has snapshots made for the next.
#[derive(Debug)]
pub(crate) struct Used {
    /// It is at the first of these paths at which there is a program.
    pub candidates: Vec<String>,
    /// It has written in its tree.
    pub written: bool,
}

/// Has more snapshots of a layer made, by a process that nobody waits for.
pub(crate) fn refill_later(store: &Store, chain: &Id, used: &Used) -> Result<()> {
    process::orphan(|| {
        // Whatever it inherited belongs to who is about to end: locks, pipes that somebody reads to their end.
        process::set_name(c"tupper-pool");
        // A service that is stopped asks all its processes to end: this one does that by itself, and would leave what it has begun.
        let left = process::leave_all(&[store.dir()]).and_then(|()| signal::block_all());
        process::set_umask(0o022);
        let _ = left.and_then(|()| refill(store, chain, used));
    })
    .map(drop)
    .context(|| "have more snapshots made")
}

/// Makes as many snapshots of a layer as are wanted, and clears what is nobody's any more.
fn refill(store: &Store, chain: &Id, used: &Used) -> Result<()> {
    let until = Instant::now() + TIME;
    store.ensure_shelf(Shelf::Pool)?;
    // Who is killed at it leaves the sign that there is something to clear.
    let _intent = store.intend()?;
    let pool = store.shelf(Shelf::Pool)?;
    // One at a time. Who comes later may be here for another layer.
    while let Err(e) = flock::try_lock(pool.as_fd()) {
        if e.kind() != Kind::InUse || Instant::now() > until {
            return Err(e);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let now = Timestamp::now();
    let mut record = read_record(&pool);
    let entries = entries(&pool)?;
    let left =
        entries.iter().filter(|entry| entry.ready && !entry.is_base && entry.chain.as_ref() == Some(chain)).count();
    if record.layers.get(chain).is_some_and(|layer| !layer.is_low(left)) {
        return Ok(()); // somebody was faster
    }
    let mut layer = record.layers.get(chain).map_or(Layer::new(now), |layer| layer.next(now));
    let parent = Sealed::open(store, chain)?.into_parent()?;
    preread::first(parent.rootfs.as_fd(), &used.candidates).into_iter().for_each(|program| layer.note(program));
    layer.written = used.written;
    record.layers.insert(*chain, layer);
    record.forget_old(now);
    if store.is_scarce() {
        record.layers.clear();
    }
    record::write(pool.as_fd(), &record)?;
    for name in unwanted(store, entries, &record)? {
        clear_entry(&pool, &name)?;
    }
    let Some(layer) = record.layers.get(chain) else { return Ok(()) };
    let mut missing = layer.size.saturating_sub(left);
    if missing == 0 {
        return Ok(());
    }
    let filler = Filler {
        store,
        pool: &pool,
        chain,
        base: base(&pool, chain, &parent)?,
        needed: preread::needed(parent.rootfs.as_fd(), &layer.programs),
        layer: parent,
        written: layer.written,
    };
    while missing > 0 && Instant::now() < until {
        let batch = missing.min(BATCH);
        if let Err(e) = filler.fill(batch) {
            // What was begun is not ready.
            for name in unwanted(store, self::entries(&pool)?, &record)? {
                clear_entry(&pool, &name)?;
            }
            return Err(e);
        }
        missing -= batch;
    }
    Ok(())
}

/// The snapshot of a layer that its entries are snapshots of, with the files that every container has. It is made when it is not
/// there, and anew when it was made before the last boot.
fn base(pool: &OwnedFd, chain: &Id, layer: &Parent) -> Result<OwnedFd> {
    let name = format!("{BASE}{chain}");
    if let Some(dir) = fs::open_directory_if_any(pool.as_fd(), &name)? {
        if let Some(mark) = Mark::read(&dir, Mark::BASE)?
            && mark.of == uuid_text(&layer.uuid)
            && let Some(rootfs) = fs::open_directory_if_any(dir.as_fd(), ROOTFS)?
            && mark.holds_for_base(&btrfs::info(rootfs.as_fd())?)
        {
            return Ok(rootfs);
        }
        clear_entry(pool, &name)?;
    }
    fs::make_directory(pool.as_fd(), &name, 0o700)?;
    let dir = fs::open_directory(pool.as_fd(), &name)?;
    record::write_identity(dir.as_fd(), Identity::ChildOf(layer.uuid))?;
    btrfs::snapshot(layer.rootfs.as_fd(), dir.as_fd(), ROOTFS, false)?;
    let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
    // What cannot be made here, the container makes or says why.
    let in_etc = fs::open_directory(rootfs.as_fd(), "etc")
        .and_then(|etc| keeping_times(&etc, || FILES_IN_ETC.iter().try_for_each(|name| make_file(&etc, name))));
    in_etc.unwrap_or_else(|e| log::debug!("{e}"));
    Mark::write(&dir, Mark::BASE, &rootfs, layer)?;
    Ok(rootfs)
}

/// Makes entries.
struct Filler<'a> {
    store: &'a Store,
    pool: &'a OwnedFd,
    chain: &'a Id,
    layer: Parent,
    base: OwnedFd,
    /// What is read in them.
    needed: Vec<PathBuf>,
    /// They are written in.
    written: bool,
}

impl Filler<'_> {
    /// Makes so many. Each snapshot has a parent directory of its own, so that all are made by one commit.
    fn fill(&self, count: usize) -> Result<()> {
        let uuid = btrfs::info(self.base.as_fd())?.uuid;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let name = format!("{}-{}", self.chain, self.store.new_id()?.short());
            let unready = format!("{UNREADY}{name}");
            fs::make_directory(self.pool.as_fd(), &unready, 0o700)?;
            let dir = fs::open_directory(self.pool.as_fd(), &unready)?;
            record::write_identity(dir.as_fd(), Identity::ChildOf(uuid))?;
            entries.push((unready, name, dir));
        }
        let made: Vec<Result<()>> = std::thread::scope(|scope| {
            let make = |dir: &OwnedFd| btrfs::snapshot(self.base.as_fd(), dir.as_fd(), ROOTFS, false);
            let threads: Vec<_> = entries.iter().map(|(_, _, dir)| scope.spawn(move || make(dir))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        made.into_iter().collect::<Result<()>>()?;
        entries.iter().try_for_each(|(unready, name, dir)| {
            self.make_ready(dir)?;
            fs::rename(self.pool.as_fd(), unready, self.pool.as_fd(), name)
        })
    }

    /// Writes and reads in an entry, as those did who had others before, and marks it.
    fn make_ready(&self, dir: &OwnedFd) -> Result<()> {
        let rootfs = fs::open_directory(dir.as_fd(), ROOTFS)?;
        if self.written {
            let name = format!(".tupper-{}", self.store.new_id()?);
            keeping_times(&rootfs, || {
                fs::make_directory(rootfs.as_fd(), &name, 0o700)?;
                fs::remove_directory(rootfs.as_fd(), &name)
            })?;
        }
        preread::read_ahead(rootfs.as_fd(), &self.needed);
        Mark::write(dir, Mark::READY, &rootfs, &self.layer)
    }
}

/// Makes a file, unless something is there.
fn make_file(at: &OwnedFd, name: &str) -> Result<()> {
    match fs::write_new(at.as_fd(), name, b"", 0o644, false) {
        Err(e) if e.kind() == Kind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Changes what a directory holds, which then has the times that it had.
fn keeping_times(dir: &OwnedFd, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let (accessed, modified) = Time::of(&fs::metadata(dir.as_fd())?);
    change()?;
    node::set_times(Target::Open(dir.as_fd()), accessed, modified).map_err(|failure| failure.of(b"."))
}

impl Record {
    /// Keeps the layers that were wanted last.
    fn forget_old(&mut self, now: Timestamp) {
        let mut filled: Vec<Timestamp> = self.layers.values().map(|layer| layer.filled).collect();
        filled.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = filled.get(LAYERS - 1).copied();
        self.layers.retain(|_, layer| {
            now.duration_since(layer.filled) < UNUSED && oldest.is_none_or(|oldest| layer.filled >= oldest)
        });
    }
}

fn read_record(pool: &OwnedFd) -> Record {
    // It only says how many are worth while.
    record::read(pool.as_fd()).ok().flatten().unwrap_or_default()
}

/// An entry of the pool, as one finds it.
struct Entry {
    name: String,
    /// The layer that it is a snapshot of.
    chain: Option<Id>,
    /// What entries are snapshots of, and none.
    is_base: bool,
    ready: bool,
}

fn entries(pool: &OwnedFd) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for name in fs::list(pool.as_fd(), ".")? {
        let Ok(name) = name.into_string() else { continue };
        let (chain, is_base) = match name.strip_prefix(BASE) {
            Some(chain) => (chain.parse().ok(), true),
            None => (name.split_once('-').and_then(|(chain, _)| chain.parse().ok()), false),
        };
        let is_ready = || -> Result<bool> {
            let dir = fs::open_directory(pool.as_fd(), &name)?;
            let mark = Mark::read(&dir, if is_base { Mark::BASE } else { Mark::READY })?;
            let Some(mark) = mark else { return Ok(false) };
            let info = btrfs::info(fs::open_directory(dir.as_fd(), ROOTFS)?.as_fd())?;
            Ok(if is_base { mark.holds_for_base(&info) } else { mark.holds(&info) })
        };
        let ready = match is_ready() {
            Ok(ready) => ready,
            Err(e) if e.kind() == Kind::NotFound && !fs::exists_at(pool.as_fd(), &name)? => continue, // taken meanwhile
            Err(_) => false,
        };
        found.push(Entry { name, chain, is_base, ready });
    }
    Ok(found)
}

/// The numbers of the subvolumes that are snapshots of a layer here, with its chain id.
pub(crate) fn subvolumes(store: &Store) -> Result<Vec<(Id, u64)>> {
    let pool = match store.shelf(Shelf::Pool) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for Entry { name, chain, .. } in entries(&pool)? {
        let number =
            fs::open_directory(pool.as_fd(), format!("{name}/{ROOTFS}")).and_then(|it| btrfs::info(it.as_fd()));
        match (chain, number) {
            (Some(chain), Ok(info)) => found.push((chain, info.id)),
            (_, Err(e)) if e.kind() != Kind::NotFound => return Err(e),
            _ => {} // taken meanwhile
        }
    }
    Ok(found)
}

/// The layer whose base has the subvolume with this UUID.
pub(super) fn layer_of_base(store: &Store, uuid: [u8; 16]) -> Result<Option<Id>> {
    let pool = match store.shelf(Shelf::Pool) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    let is_it = |entry: &Entry| {
        let rootfs = fs::open_directory(pool.as_fd(), format!("{}/{ROOTFS}", entry.name));
        rootfs.and_then(|rootfs| btrfs::info(rootfs.as_fd())).is_ok_and(|info| info.uuid == uuid)
    };
    Ok(entries(&pool)?.into_iter().filter(|entry| entry.is_base).find(is_it).and_then(|entry| entry.chain))
}

/// The entries that nobody will want: not ready, more than are wanted, or of a layer that is gone.
fn unwanted(store: &Store, entries: Vec<Entry>, record: &Record) -> Result<Vec<String>> {
    let mut kept: BTreeMap<Id, usize> = BTreeMap::new();
    let mut unwanted = Vec::new();
    for entry in entries {
        let wanted = |chain: &Id| record.layers.get(chain).map_or(0, |layer| layer.size);
        match entry.chain.filter(|_| entry.ready) {
            Some(chain) if entry.is_base && wanted(&chain) > 0 && store.exists(Shelf::Layers, &chain)? => {}
            Some(chain) if !entry.is_base && store.exists(Shelf::Layers, &chain)? => {
                let kept = kept.entry(chain).or_default();
                *kept += 1;
                if *kept > wanted(&chain) {
                    unwanted.push(entry.name);
                }
            }
            _ => unwanted.push(entry.name),
        }
    }
    Ok(unwanted)
}

/// Clears an entry, unless somebody is about to take it.
fn clear_entry(pool: &OwnedFd, name: &str) -> Result<()> {
    match lock_if_free(pool, name)? {
        Some(_locked) => clear(pool, name),
        None => Ok(()),
    }
}

/// The pool, locked, if there is one and nobody makes entries in it.
fn lock_if_any(store: &Store) -> Result<Option<OwnedFd>> {
    let pool = match store.shelf(Shelf::Pool) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    match flock::try_lock(pool.as_fd()) {
        Err(e) if e.kind() == Kind::InUse => Ok(None),
        locked => locked.map(|()| Some(pool)),
    }
}

/// The names of what nobody will want; on a filesystem that is nearly full, of all.
pub(crate) fn garbage(store: &Store) -> Result<Vec<String>> {
    let Some(pool) = lock_if_any(store)? else { return Ok(Vec::new()) };
    let record = if store.is_scarce() { Record::default() } else { read_record(&pool) };
    unwanted(store, entries(&pool)?, &record)
}

/// Clears an entry that is [garbage].
pub(crate) fn clear_garbage(store: &Store, name: &str) -> Result<()> {
    clear_entry(&store.shelf(Shelf::Pool)?, name)
}

/// Clears the snapshots of a layer, which goes; of all layers without one. Waits for who makes some.
pub(crate) fn forget(store: &Store, chain: Option<&Id>) -> Result<()> {
    let pool = match store.shelf(Shelf::Pool) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    flock::lock(pool.as_fd(), Lock::Exclusive, || Shelf::Pool)?;
    let mut record = read_record(&pool);
    let before = record.layers.len();
    record.layers.retain(|of, _| chain.is_some_and(|chain| of != chain));
    if record.layers.len() < before {
        record::write(pool.as_fd(), &record)?;
    }
    let goes = |entry: &Entry| chain.is_none() || entry.chain.as_ref() == chain;
    entries(&pool)?.iter().filter(|entry| goes(entry)).try_for_each(|entry| clear_entry(&pool, &entry.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn the_pool_grows_when_it_is_soon_low_again_and_shrinks_when_it_lasts() {
        let mut layer = Layer::new(at(0));
        for (second, size) in [(1, 16), (2, 32), (60, 32), (1000, 16), (2000, 8), (4000, 8)] {
            layer = layer.next(at(second));
            assert_eq!(layer.size, size, "at {second}");
        }
        for second in 4001..4020 {
            layer = layer.next(at(second));
        }
        assert_eq!(layer.size, MANY);
    }

    #[test]
    fn the_layers_that_were_used_last_are_kept() {
        let id = |n| Id::from_bytes([n; 32]);
        let mut record = Record::default();
        for n in 0..20 {
            record.layers.insert(id(n), Layer::new(at(i64::from(n))));
        }
        record.forget_old(at(20));
        assert_eq!(record.layers.keys().copied().collect::<Vec<_>>(), (12..20).map(id).collect::<Vec<_>>());
        record.forget_old(at(15 + UNUSED.as_secs()));
        assert_eq!(record.layers.keys().copied().collect::<Vec<_>>(), (16..20).map(id).collect::<Vec<_>>());
    }

    #[test]
    fn a_mark_holds_as_long_as_nothing_was_written() {
        let mark = Mark { boot: boot_id().expect("a boot"), changed: 7, generation: 7, of: String::new() };
        let info = |generation, changed| {
            let (created, changed_at) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
            btrfs::Info { id: 256, uuid: [1; 16], parent_uuid: None, generation, created, changed, changed_at }
        };
        assert!(mark.holds(&info(6, 7)), "not on the disk yet");
        assert!(mark.holds(&info(7, 7)));
        assert!(!mark.holds(&info(8, 7)), "replayed from the log");
        assert!(Mark { generation: 8, ..mark.clone() }.holds(&info(8, 7)), "never written, and made after that");
        assert!(mark.holds_for_base(&info(8, 7)), "a snapshot was made of it");
        assert!(!mark.holds_for_base(&info(8, 8)), "written");
        assert!(!mark.holds(&info(8, 8)), "written");
        assert!(!mark.holds(&info(6, 6)), "never got to the disk");
        assert!(!Mark { boot: "other".into(), ..mark }.holds(&info(7, 7)), "of another boot");
    }
}
