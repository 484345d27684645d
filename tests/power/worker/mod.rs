//! Somebody who works in a store: commands chosen at random, on images, names and objects of his own, and a note of all that
//! was acknowledged. The choices are the seed's alone, so that a seed repeats them.

mod containers;
mod images;
mod shared;
mod snapshots;

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use crate::ledger::{Container, Status};
use crate::machine::Machine;
use crate::support::disk;
use crate::support::http::Server;
use crate::support::tree::Tree;
use crate::tape::Random;
use crate::verbs::{Layered, source};

/// What the commands of somebody read.
pub struct Sources {
    dir: TempDir,
    /// Directories to be imported.
    trees: Vec<(PathBuf, Arc<Tree>)>,
    /// An image of layers, of which others have the first, and where it is pulled from.
    layered: Layered,
    registry: Server,
}

impl Sources {
    /// Those of the `nth`.
    pub fn new(nth: u64) -> Sources {
        let dir = disk::scratch();
        let tree = |name: &str, seed: u64| {
            let path = dir.path().join(name);
            let tree = source(&path, seed, 8);
            (path, tree)
        };
        let trees = vec![tree("first", 2 * nth + 1), tree("second", 2 * nth + 2)];
        let base = dir.path().join("base");
        source(&base, 99, 8);
        let layered = Layered::new(&dir.path().join("layered"), &base, 100 * (nth + 1));
        let registry = layered.registry();
        Sources { dir, trees, layered, registry }
    }

    /// Imports one of them; the image's id, and what it holds.
    pub fn import_into(&self, machine: &Machine) -> (String, &Arc<Tree>) {
        let (path, tree) = &self.trees[0];
        (machine.import(path, tree, "first"), tree)
    }
}

pub struct Worker<'a> {
    machine: &'a Machine,
    sources: &'a Sources,
    random: Random,
    name: String,
    /// Nobody else is in the store, so that all that is to be pruned is its own.
    alone: bool,
    made: usize,
    images: Vec<Image>,
    /// Ids of images that were there once: the same source makes the same again.
    known: Vec<Image>,
    tags: Vec<(String, String)>,
    /// Archives of images, with the name that each has in it.
    saved: Vec<(PathBuf, Image, String)>,
    snapshots: Vec<Snapshot>,
    trash: Vec<Snapshot>,
    containers: Vec<Made>,
    volumes: Vec<Volume>,
    /// Names of volumes that were removed, to be given again.
    free: Vec<String>,
    networks: Vec<String>,
    /// What was removed, and may be back until something is durable that began later.
    removed: Vec<String>,
    /// When each command ended, and what it was.
    pub steps: Vec<(usize, &'static str)>,
}

#[derive(Clone)]
struct Image {
    id: String,
    tree: Arc<Tree>,
}

#[derive(Clone)]
struct Snapshot {
    id: String,
    name: Option<String>,
    tree: Arc<Tree>,
    read_only: bool,
}

struct Made {
    id: String,
    is: Container,
    /// What its command writes.
    writes: String,
    volume: Option<String>,
    network: Option<String>,
    /// It goes when it has ended.
    throwaway: bool,
}

struct Volume {
    name: String,
    tree: Arc<Tree>,
    /// What containers wrote in it and called fsync(2) for, if one did.
    synced: Option<std::collections::BTreeMap<String, String>>,
    /// A container has had it.
    used: bool,
}

type Act<'a> = fn(&mut Worker<'a>) -> Option<Durability>;

/// Whether what an acknowledged command did, and all before it, survives a power cut.
#[derive(PartialEq, Eq)]
enum Durability {
    Now,
    /// At the next commit.
    Later,
}

impl<'a> Worker<'a> {
    pub fn new(machine: &'a Machine, sources: &'a Sources, name: &str, alone: bool, random: Random) -> Worker<'a> {
        Worker {
            machine,
            sources,
            random,
            name: name.to_string(),
            alone,
            made: 0,
            images: Vec::new(),
            known: Vec::new(),
            tags: Vec::new(),
            saved: Vec::new(),
            snapshots: Vec::new(),
            trash: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            free: Vec::new(),
            networks: Vec::new(),
            removed: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Every verb that changes something, and with which weight it comes.
    const ACTS: &'a [(usize, &'static str, Act<'a>)] = &[
        (2, "image import", Self::import),
        (1, "image import that takes a name", Self::import_again),
        (2, "image pull", Self::pull),
        (1, "image save", Self::save),
        (1, "image load", Self::load),
        (1, "image tag", Self::tag),
        (1, "image tag that takes a name", Self::tag_again),
        (1, "image rm of a name", Self::untag),
        (1, "image rm", Self::remove_image),
        (1, "image prune", Self::prune_images),
        (2, "commit", Self::commit),
        (3, "snapshot create", Self::snapshot),
        (2, "snapshot create --count", Self::fork),
        (2, "snapshot create of a snapshot", Self::snapshot_of_snapshot),
        (2, "snapshot create of a container", Self::snapshot_of_container),
        (2, "snapshot create of one just written to", Self::snapshot_of_written),
        (3, "snapshot rollback", Self::rollback_snapshot),
        (2, "snapshot rollback of a container", Self::rollback_container),
        (2, "snapshot rm", Self::remove_snapshots),
        (1, "snapshot prune", Self::prune_snapshots),
        (2, "create", Self::create),
        (2, "run", Self::run),
        (2, "start", Self::start),
        (1, "update", Self::update),
        (1, "run --rm", Self::throwaway),
        (2, "run --rm --keep", Self::keep),
        (2, "run --rm=on-success that fails", Self::fail),
        (2, "snapshot trash restore", Self::restore),
        (1, "snapshot trash empty", Self::empty_trash),
        (2, "rename", Self::rename),
        (2, "rm", Self::remove_container),
        (1, "volume create", Self::create_volume),
        (2, "create with a volume", Self::create_with_volume),
        (2, "run with a volume", Self::write_volume),
        (1, "volume rm", Self::remove_volume),
        (1, "volume prune", Self::prune_volumes),
        (1, "network create", Self::create_network),
        (1, "create in a network", Self::create_in_network),
        (1, "network rm", Self::remove_network),
        (1, "looks", Self::look),
    ];

    /// So many commands, and before them an image.
    pub fn work(&mut self, commands: usize) {
        self.done("image import", Self::import);
        let weights: usize = Self::ACTS.iter().map(|(weight, ..)| weight).sum();
        let mut left = commands;
        while left > 0 {
            let mut at = self.random.below(weights);
            let chosen = Self::ACTS.iter().find(|(weight, ..)| match at.checked_sub(*weight) {
                Some(rest) => {
                    at = rest;
                    false
                }
                None => true,
            });
            let (_, verb, act) = chosen.expect("below the sum");
            // Where there is nothing for it to be done with, another is chosen.
            left -= usize::from(self.done(verb, *act));
        }
    }

    fn done(&mut self, verb: &'static str, act: Act<'a>) -> bool {
        let before = self.removed.len();
        let Some(durability) = act(self) else { return false };
        if durability == Durability::Now {
            // Not what others had just removed: that is later than the beginning of this.
            for gone in self.removed.drain(..before.min(self.removed.len())).collect::<Vec<_>>() {
                self.machine.promise(&gone, Status::Gone);
            }
        }
        self.steps.push((self.machine.recorder.now(), verb));
        true
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("{}-{}", self.name, self.made)
    }

    /// One of so many; `None` where there are none.
    fn one_of(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.random.below(count))
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.random.below(100) < chance
    }

    /// An image, to make something of.
    fn image(&mut self) -> Image {
        let nth = self.random.below(self.images.len());
        self.images[nth].clone()
    }

    fn tupper(&self) -> &'a crate::support::command::Tupper {
        &self.machine.tupper
    }
}
