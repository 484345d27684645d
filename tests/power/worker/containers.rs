//! Containers that are kept, and others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Durability, Image, Made, Worker};
use crate::ledger::{Status, Thing};
use crate::machine::{container, writes};
use crate::support::tree::Tree;

impl Made {
    pub(super) fn there(&self) -> Status {
        Status::There(Thing::Container(self.is.clone()))
    }
}

impl Worker<'_> {
    pub(super) fn create(&mut self) -> Option<Durability> {
        let throwaway = self.percent(20);
        let (source, tree) = self.source();
        self.create_of(&source, &tree, if throwaway { "--rm" } else { "" }, None, throwaway);
        Some(Durability::Now)
    }

    fn create_of(&mut self, source: &str, tree: &Arc<Tree>, flags: &str, network: Option<String>, throwaway: bool) {
        let name = self.new_name();
        let script = writes(&name);
        let command = ["sh", "-c", &script];
        let id = self.machine.create(source, Some(tree), &name, flags, &command);
        let mut is = container(&name, &command, &[]);
        is.tree = Some(tree.clone());
        self.containers.push(Made { id, is, writes: name, volume: None, network, throwaway });
    }

    pub(super) fn create_in_network(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.networks.len())?;
        let network = self.networks[nth].clone();
        let (source, tree) = self.source();
        self.create_of(&source, &tree, &format!("--network {network}"), Some(network.clone()), false);
        Some(Durability::Now)
    }

    /// An image or a snapshot, and what it holds.
    fn source(&mut self) -> (String, Arc<Tree>) {
        match self.one_of(self.snapshots.len()) {
            Some(nth) if self.percent(40) => {
                let snapshot = &self.snapshots[nth];
                (snapshot.id.clone(), snapshot.tree.clone())
            }
            _ => {
                let Image { id, tree } = self.image();
                (id, tree)
            }
        }
    }

    pub(super) fn run(&mut self) -> Option<Durability> {
        let (source, _) = self.source();
        let name = self.new_name();
        let (id, is) = self.machine.run(&source, &name);
        self.containers.push(Made { id, is, writes: name, volume: None, network: None, throwaway: false });
        Some(Durability::Now)
    }

    /// Starts one again, which writes and calls fsync(2).
    pub(super) fn start(&mut self) -> Option<Durability> {
        let fit = |made: &Made| !made.throwaway && made.network.is_none() && made.volume.is_none();
        let fitting: Vec<usize> = (0..self.containers.len()).filter(|nth| fit(&self.containers[*nth])).collect();
        let nth = fitting[self.one_of(fitting.len())?];
        let made = &mut self.containers[nth];
        // What it holds when it is cut meanwhile, nobody has said.
        (made.is.tree, made.is.synced) = (None, BTreeMap::new());
        self.machine.promise(&made.id, made.there());
        self.machine.tupper.ok(&format!("start --attach {}", made.is.name));
        made.is.synced = BTreeMap::from([("synced".to_string(), format!("{}\n", made.writes))]);
        self.machine.promise(&made.id, made.there());
        Some(Durability::Later)
    }

    pub(super) fn update(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.containers.len())?;
        let megabytes = 64 + self.random.below(64);
        self.tupper().ok(&format!("update --memory {megabytes}m {}", self.containers[nth].is.name));
        Some(Durability::Later)
    }

    pub(super) fn throwaway(&mut self) -> Option<Durability> {
        let (source, _) = self.source();
        self.tupper().ok_with(&format!("run --rm {source}"), &["sh", "-c", "echo x >/x; sync /x"]);
        Some(Durability::Later)
    }

    pub(super) fn rename(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.containers.len())?;
        let name = self.new_name();
        let made = &mut self.containers[nth];
        self.machine.promise(&made.id, Status::Changing);
        self.machine.tupper.ok(&format!("rename {} {name}", made.is.name));
        made.is.name = name;
        self.machine.promise(&made.id, made.there());
        Some(Durability::Now)
    }

    pub(super) fn remove_container(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.containers.len())?;
        let gone = self.containers.remove(nth);
        let sync = self.percent(50);
        self.machine.remove(if sync { "rm --sync" } else { "rm" }, &gone.id);
        if sync {
            return Some(Durability::Now);
        }
        self.removed.push(gone.id);
        Some(Durability::Later)
    }

    pub(super) fn root_of(&self, container: &str) -> PathBuf {
        let inspected = self.tupper().json(&format!("inspect {container}"));
        PathBuf::from(inspected[0]["Rootfs"].as_str().expect("a path"))
    }
}
