//! What images, snapshots and containers hold of the disk: alone, together with others, and what removing one frees.
//!
//! btrfs keeps no such number without quotas, so it is counted: every file refers to extents, and an extent is there, whole,
//! as long as one file anywhere on the filesystem refers to any part of it. So all subvolumes of the filesystem are looked at,
//! the store's or not; most of them are snapshots, of which only what is newer than they are has to be read (`lineage`).
//! `tally` says which extents are whose.
//!
//! - Data is counted, not metadata, and by what it takes on the disk: compressed as it is, one copy of it. Files small enough to
//!   lie in the metadata count for nothing.
//! - An image is its layers, with what lies beside them. One that several images stand on is shared. A layer that an unfinished one stands on stays for
//!   a while when its images go (`image/layers.rs`): it is exclusive to them, and not freed with them.
//! - What is ready in the warm pool is its layer's, and goes with it.
//! - A snapshot or container is its subvolume with all that are nested in it, and the files beside it, as its log. A
//!   container's volumes are not: they have a life of their own.
//! - What is written meanwhile is counted or not. What was removed, and is still to be given back, is not.

mod lineage;
mod tally;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Standing};
use crate::interrupt;
use crate::kernel::trees::{Extent, Roots, Trees};
use crate::kernel::{btrfs, fs};
use crate::name::Id;
use crate::snapshot::{self, Node};
use crate::store::{Shelf, Store, kind_word};
use crate::subvolume::pool;
use lineage::Reading;
use tally::{Part, Tally};

/// So many changed snapshots are read whole in a moment: about a millisecond for a thousand files of each.
pub const FEW: usize = 64;
/// So many snapshots of a subvolume are read whole for what all of them may have lost of it. Seldom more than one has to be: it
/// has nearly all still.
const PROBES: usize = 2;

/// What an object holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// What nothing else on the filesystem refers to.
    pub exclusive: Bytes,
    /// What something else refers to, too.
    pub shared: Bytes,
    /// What is given back when it is removed.
    pub freed: Bytes,
}

/// A number of bytes, and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// The number.
    pub bytes: u64,
    /// What it says.
    pub known: Known,
}

/// What a number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is that.
    Exact,
    /// It is not more.
    AtMost,
    /// It is not less.
    AtLeast,
}

/// What all of them hold.
#[derive(Debug, Default)]
pub struct Usage {
    /// Each with what it holds: those made of others below these.
    pub objects: Vec<(Node, Figures)>,
    /// Bytes of data that at least one of them refers to.
    pub in_use: u64,
    /// Bytes of data on the filesystem, as it says itself.
    pub data: u64,
    /// Bytes of its metadata, one copy.
    pub metadata: u64,
}

/// Counts what each image, snapshot and container holds. Data that was written is taken to the disk first.
///
/// If no more snapshots than `most` have changed, all of these are read whole, and every number is exact. Otherwise no more of
/// one is read than what is newer than it is; then what a parent holds alone may be a bound, and so is what a changed
/// snapshot shares.
///
/// # Errors
/// [`Kind::Permission`] without CAP_SYS_ADMIN in the host's user namespace: the kernel shows its trees to nobody else.
pub fn usage(store: &Store, most: usize) -> Result<Usage> {
    let may_not = |e: Error| match e.kind() {
        Kind::Permission => e.with_hint("this needs CAP_SYS_ADMIN of the host, which there is not in a container"),
        _ => e,
    };
    count(store, most).map_err(may_not).context(|| format!("count what is in use in {}", store.root().display()))
}

fn count(store: &Store, most: usize) -> Result<Usage> {
    fs::sync_filesystem(store.dir())?;
    // First, so that none is newer than the subvolumes that are looked at.
    let objects = Objects::find(store)?;
    let mut trees = Trees::of(store.dir());
    let roots = trees.roots()?;
    let mut parts = objects.parts(&roots);
    let subvolumes = parts.len();
    // What has none any more was removed while we looked.
    let there: HashSet<usize> = parts.iter().flat_map(|part| part.objects.iter().copied()).collect();
    let ours: Vec<bool> = parts.iter().map(|part| !part.objects.is_empty()).collect();
    let mut readings = lineage::readings(&roots.all, &ours);
    readings_whole(&mut readings, &ours, most);

    // What lies beside the subvolumes of objects is in the store's own, and is read as parts of theirs.
    let own = btrfs::info(store.dir())?.id;
    let mut beside = objects.beside(&mut trees, own)?;
    let mut rest = beside.remove(&None).unwrap_or_default();
    parts.extend(beside.keys().flatten().map(part));
    let mut tally = Tally::new(parts);
    for (at, extents) in (subvolumes..).zip(beside.into_values()) {
        tally.read(at, Reading::Whole, extents);
    }
    // Of others' only what ours have matters, so these are read when that is known.
    let (first, then): (Vec<usize>, Vec<usize>) = (0..subvolumes).partition(|at| ours[*at]);
    for at in first.into_iter().chain(then) {
        match roots.all[at].id {
            id if id == own => tally.read(at, Reading::Whole, std::mem::take(&mut rest)),
            id => tally.read(at, readings[at], read(&mut trees, id, readings[at])?),
        }
    }
    let probes: Vec<usize> = tally.doubtful().into_values().flat_map(|parts| parts.into_iter().take(PROBES)).collect();
    for probe in probes {
        let extents = read(&mut trees, roots.all[probe].id, Reading::Whole)?;
        tally.read(probe, Reading::Whole, extents);
    }

    let (figures, in_use) = tally.figures(objects.nodes.len());
    let filesystem = btrfs::in_use(store.dir())?;
    let found = objects.nodes.into_iter().zip(figures).enumerate();
    Ok(Usage {
        objects: found.filter(|(place, _)| there.contains(place)).map(|(_, found)| found).collect(),
        in_use,
        data: filesystem.data,
        metadata: filesystem.metadata,
    })
}

/// Has those read whole that say something of ours, if these are not too many.
fn readings_whole(readings: &mut [Reading], ours: &[bool], most: usize) {
    let is_changed = |(at, reading): (usize, &Reading)| match reading {
        Reading::Since { base, .. } => ours[at] || ours[*base],
        _ => false,
    };
    let changed: Vec<usize> =
        readings.iter().enumerate().filter(|found| is_changed(*found)).map(|(at, _)| at).collect();
    if changed.len() <= most {
        changed.into_iter().for_each(|at| readings[at] = Reading::Whole);
    }
}

/// The extents of a subvolume that are to be read; none of one that was removed meanwhile.
fn read(trees: &mut Trees<'_>, id: u64, reading: Reading) -> Result<Vec<Extent>> {
    interrupt::check()?;
    let generation = match reading {
        Reading::Whole => 0,
        Reading::Since { generation, .. } => generation,
        Reading::Same { .. } => return Ok(Vec::new()),
    };
    let mut extents: Vec<Extent> = Vec::new();
    match trees.data(id, generation, |_, extent| extents.push(extent)) {
        Err(e) if e.kind() == Kind::NotFound => {}
        other => other?,
    }
    Ok(extents)
}

/// The objects of a store, and where what is theirs lies.
struct Objects {
    nodes: Vec<Node>,
    /// Whose a subvolume is, by its number.
    subvolumes: HashMap<u64, Owners>,
    /// Whose the files are that lie beside, by their inode numbers.
    loose: HashMap<u64, Owners>,
}

/// The objects that something belongs to, and whether it stays when they go.
type Owners = (Vec<usize>, bool);

fn part((objects, stays): &Owners) -> Part {
    Part { stays: *stays, ..Part::of(objects) }
}

impl Objects {
    fn find(store: &Store) -> Result<Objects> {
        let tree = snapshot::tree(store)?;
        let mut objects = Objects { nodes: Vec::new(), subvolumes: HashMap::new(), loose: HashMap::new() };
        let mut images = HashMap::new();
        for node in tree.nodes() {
            let shelf = shelf_of(node);
            let place = objects.nodes.len();
            let found = store.open_object(shelf, &node.id).and_then(|dir| {
                let subvolume = if shelf == Shelf::Images { None } else { Some(number_of(dir.as_fd())?) };
                Ok((subvolume, files_in(dir.as_fd())?))
            });
            let Some((subvolume, files)) = if_there(found)? else { continue };
            match subvolume {
                Some(subvolume) => drop(objects.subvolumes.insert(subvolume, (vec![place], false))),
                None => drop(images.insert(node.id, place)),
            }
            objects.loose.extend(files.into_iter().map(|inode| (inode, (vec![place], false))));
            objects.nodes.push(node.clone());
        }
        let ids: Vec<Id> = images.keys().copied().collect();
        let ready = pool::subvolumes(store)?;
        for (layer, Standing { images: standing, waited_for }) in image::standing(store, &ids)? {
            let found = store
                .open_object(Shelf::Layers, &layer)
                .and_then(|dir| Ok((number_of(dir.as_fd())?, files_in(dir.as_fd())?)));
            if let Some((number, files)) = if_there(found)? {
                let mut of: Vec<usize> = standing.iter().filter_map(|id| images.get(id).copied()).collect();
                of.sort_unstable();
                let ready = ready.iter().filter(|(chain, _)| *chain == layer);
                objects.subvolumes.extend(ready.map(|(_, number)| (*number, (of.clone(), waited_for))));
                objects.loose.extend(files.into_iter().map(|inode| (inode, (of.clone(), waited_for))));
                objects.subvolumes.insert(number, (of, waited_for));
            }
        }
        Ok(objects)
    }

    /// A part for each subvolume of the filesystem, in their order.
    fn parts(&self, roots: &Roots) -> Vec<Part> {
        let mut inner: HashMap<u64, Vec<u64>> = HashMap::new();
        roots.nested.iter().for_each(|(outer, nested)| inner.entry(*outer).or_default().push(*nested));
        let mut of = self.subvolumes.clone();
        for (number, found) in &self.subvolumes {
            // What is nested in an object's is the object's.
            let mut next = inner.get(number).cloned().unwrap_or_default();
            while let Some(nested) = next.pop() {
                if of.insert(nested, found.clone()).is_none() {
                    next.extend(inner.get(&nested).into_iter().flatten());
                }
            }
        }
        roots.all.iter().map(|root| of.get(&root.id).map_or_else(|| Part::of(&[]), part)).collect()
    }

    /// The extents of the files in the store's own subvolume, by whose they are.
    fn beside(&self, trees: &mut Trees<'_>, own: u64) -> Result<BTreeMap<Option<Owners>, Vec<Extent>>> {
        let mut found: BTreeMap<Option<Owners>, Vec<Extent>> = BTreeMap::new();
        trees.data(own, 0, |inode, extent| {
            found.entry(self.loose.get(&inode).cloned()).or_default().push(extent);
        })?;
        Ok(found)
    }
}

fn shelf_of(node: &Node) -> Shelf {
    [Shelf::Images, Shelf::Snapshots].into_iter().find(|s| kind_word(*s) == node.kind).unwrap_or(Shelf::Containers)
}

/// The number of an object's subvolume.
fn number_of(dir: BorrowedFd<'_>) -> Result<u64> {
    Ok(btrfs::info(fs::open_directory(dir, "rootfs")?.as_fd())?.id)
}

/// The inode numbers of the files beside it.
fn files_in(dir: BorrowedFd<'_>) -> Result<Vec<u64>> {
    let mut files = Vec::new();
    for (name, inode) in fs::list_numbered(dir, ".")? {
        if name != "rootfs" {
            files.push(inode);
        }
    }
    Ok(files)
}

/// What was found of an object; nothing if it was removed while we looked, or is damaged, which is `store check`'s to report.
fn if_there<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) if matches!(e.kind(), Kind::Store | Kind::Invalid) => {
            log::warn!("left out: {e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
