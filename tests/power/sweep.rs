//! Power cuts in the middle: several people work at once, and the power goes at any write of any of them.

use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::machine::Machine;
use crate::recorder::Filesystem;
use crate::support::disk;
use crate::support::http::Server;
use crate::support::store::Host;
use crate::support::tree::Tree;
use crate::tape::{Random, Unflushed};
use crate::verbs::{Layered, source};

const WORKERS: u64 = 3;
const COMMANDS: usize = 15;

/// Somebody who works in the store, with images, names and objects of his own.
struct Worker<'a> {
    machine: &'a Machine,
    random: Random,
    name: String,
    sources: Vec<(&'a Path, Arc<Tree>)>,
    /// An image of layers, of which others have the first, and where it is pulled from.
    layered: (&'a Layered, &'a Server),
    images: Vec<Image>,
    snapshots: Vec<(String, Arc<Tree>)>,
    containers: Vec<String>,
    made: usize,
}

struct Image {
    id: String,
    names: Vec<String>,
    tree: Arc<Tree>,
}

impl Worker<'_> {
    fn work(&mut self) {
        self.import();
        for _ in 0..COMMANDS {
            match self.random.below(13) {
                0 => self.import(),
                12 => self.pull(),
                1 => self.tag(),
                2 => self.remove_image(),
                3 | 4 => self.snapshot(),
                5 => self.snapshot_of_snapshot(),
                6 => self.create(),
                7 => self.run(),
                8 | 9 => self.throwaway(),
                10 => self.remove_snapshot(),
                _ => self.remove_container(),
            }
        }
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("{}-{}", self.name, self.made)
    }

    fn pick(&mut self) -> (String, Arc<Tree>) {
        let nth = self.random.below(self.images.len());
        (self.images[nth].id.clone(), self.images[nth].tree.clone())
    }

    fn import(&mut self) {
        let nth = self.random.below(self.sources.len());
        let (path, tree) = self.sources[nth].clone();
        let name = self.new_name();
        let id = self.machine.import(path, &tree, &name);
        match self.images.iter_mut().find(|image| image.id == id) {
            Some(image) => image.names.push(name),
            None => self.images.push(Image { id, names: vec![name], tree }),
        }
    }

    fn pull(&mut self) {
        let (layered, registry) = self.layered;
        let name = format!("{}/{}", registry.host(), self.new_name());
        let line = format!("image pull --quiet --tls-verify=false {name}");
        let id = self.machine.add(&line, &[], &layered.tree, &[&name]);
        match self.images.iter_mut().find(|image| image.id == id) {
            Some(image) => image.names.push(name),
            None => self.images.push(Image { id, names: vec![name], tree: layered.tree.clone() }),
        }
    }

    fn tag(&mut self) {
        let nth = self.random.below(self.images.len());
        if self.images[nth].names.len() > 1 {
            let name = self.images[nth].names.remove(0);
            return self.machine.untag(&name);
        }
        let name = self.new_name();
        self.machine.tag(&self.images[nth].id, &name);
        self.images[nth].names.push(name);
    }

    fn remove_image(&mut self) {
        if self.images.len() > 1 {
            let nth = self.random.below(self.images.len());
            let image = self.images.remove(nth);
            let names: Vec<&str> = image.names.iter().map(String::as_str).collect();
            self.machine.remove_image(&image.id, &names);
        }
    }

    fn snapshot(&mut self) {
        let (image, tree) = self.pick();
        let more = match self.random.below(3) {
            0 => String::new(),
            1 => self.new_name(),
            _ => format!("{} --count 4", self.new_name()),
        };
        let ids = self.machine.snapshot(&image, &more, &tree);
        self.snapshots.extend(ids.into_iter().map(|id| (id, tree.clone())));
    }

    fn snapshot_of_snapshot(&mut self) {
        if !self.snapshots.is_empty() {
            let nth = self.random.below(self.snapshots.len());
            let (source, tree) = self.snapshots[nth].clone();
            let name = self.new_name();
            let ids = self.machine.snapshot(&source, &name, &tree);
            self.snapshots.extend(ids.into_iter().map(|id| (id, tree.clone())));
        }
    }

    fn create(&mut self) {
        let (image, _) = self.pick();
        let name = self.new_name();
        let id = self.machine.create(&image, &name, ["", "--rm"][self.random.below(2)], &["true"]);
        self.containers.push(id);
    }

    fn run(&mut self) {
        let (image, _) = self.pick();
        let name = self.new_name();
        let id = self.machine.run(&image, &name);
        self.containers.push(id);
    }

    fn throwaway(&mut self) {
        let (image, _) = self.pick();
        self.machine.tupper.ok_with(&format!("run --rm {image}"), &["sh", "-c", "echo x >/x; sync /x"]);
    }

    fn remove_snapshot(&mut self) {
        if !self.snapshots.is_empty() {
            let nth = self.random.below(self.snapshots.len());
            let (id, _) = self.snapshots.remove(nth);
            self.machine.remove(["snapshot rm", "snapshot rm --sync"][self.random.below(2)], &id);
        }
    }

    fn remove_container(&mut self) {
        if !self.containers.is_empty() {
            let nth = self.random.below(self.containers.len());
            let id = self.containers.remove(nth);
            self.machine.remove(["rm", "rm --sync"][self.random.below(2)], &id);
        }
    }
}

/// Lets them work, and cuts at random moments.
fn any_moment(filesystem: Filesystem) {
    let _host = Host::shared();
    let seed = match std::env::var("TUPPER_SEED") {
        Ok(seed) => seed.parse().expect("TUPPER_SEED is a number"),
        Err(_) => SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs(),
    };
    let cuts = if std::env::var("TUPPER_SWEEP").is_ok_and(|sweep| sweep == "whole") { 60 } else { 3 };
    let _ = writeln!(std::io::stderr(), "TUPPER_SEED={seed}, {cuts} cuts");

    let scratch = disk::scratch();
    let paths: Vec<_> = (0..WORKERS * 2).map(|nth| scratch.path().join(nth.to_string())).collect();
    let trees: Vec<_> = paths.iter().zip(1..).map(|(path, nth)| source(path, nth, 8)).collect();
    let base = scratch.path().join("base");
    source(&base, 99, 8);
    let layered: Vec<_> = (0..WORKERS)
        .map(|nth| Layered::new(&scratch.path().join(format!("layered-{nth}")), &base, 100 * (nth + 1)))
        .collect();
    let registries: Vec<Server> = layered.iter().map(Layered::registry).collect();
    let machine = Machine::new(filesystem);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let own: Range<usize> = 2 * worker as usize..2 * worker as usize + 2;
            let sources = own.map(|nth| (paths[nth].as_path(), trees[nth].clone())).collect();
            let mut worker = Worker {
                machine: &machine,
                random: Random::new(seed ^ (worker + 1) << 32),
                name: format!("w{worker}"),
                sources,
                layered: (&layered[worker as usize], &registries[worker as usize]),
                images: Vec::new(),
                snapshots: Vec::new(),
                containers: Vec::new(),
                made: 0,
            };
            scope.spawn(move || worker.work());
        }
    });
    let history = machine.stop();

    let mut random = Random::new(seed);
    let mut failed = Vec::new();
    for _ in 0..cuts {
        let moment = random.below(history.end());
        let unflushed = match random.below(3) {
            0 => Unflushed::Lost,
            _ => Unflushed::Mixed(seed ^ moment as u64),
        };
        let holds = std::panic::catch_unwind(|| history.assert_survives(moment, unflushed));
        let _ = writeln!(
            std::io::stderr(),
            "{moment} of {}, {unflushed:?}: {}",
            history.end(),
            if holds.is_ok() { "holds" } else { "DOES NOT HOLD" }
        );
        failed.extend(holds.is_err().then_some((moment, unflushed)));
    }
    assert!(failed.is_empty(), "TUPPER_SEED={seed}: does not survive a power cut at {failed:#?}");
}

#[test]
fn a_cut_at_any_moment_on_btrfs() {
    any_moment(Filesystem::Btrfs);
}

#[test]
fn a_cut_at_any_moment_embedded_in_ext4() {
    any_moment(Filesystem::Ext4);
}

#[test]
fn a_cut_at_any_moment_embedded_in_xfs() {
    any_moment(Filesystem::Xfs);
}
