//! Volumes, networks, and looking on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Durability, Image, Made, Volume, Worker};
use crate::ledger::{Status, Thing};
use crate::machine::{container, text};
use crate::support::tree::Tree;

impl Volume {
    fn id(&self) -> String {
        format!("volume:{}", self.name)
    }

    fn there(&self) -> Status {
        Status::There(Thing::Volume { tree: self.tree.clone(), synced: self.synced.clone() })
    }
}

impl Worker<'_> {
    pub(super) fn create_volume(&mut self) -> Option<Durability> {
        let name = self.volume_name();
        let id = format!("volume:{name}");
        self.machine.promise(&id, Status::Changing);
        let flags = ["", "--nocow"][self.random.below(2)];
        self.tupper().ok(&format!("volume create {flags} {name}"));
        let moment = self.machine.recorder.now();
        let tree = Arc::new(Tree::read(&self.top_of(&name)));
        let volume = Volume { name, tree, synced: None, used: false };
        self.machine.ledger.note(moment, &id, volume.there());
        self.volumes.push(volume);
        Some(Durability::Now)
    }

    /// A new one, or one that a volume had that was removed.
    fn volume_name(&mut self) -> String {
        match self.one_of(self.free.len()) {
            Some(nth) if self.percent(50) => {
                let name = self.free.remove(nth);
                self.removed.retain(|gone| *gone != format!("volume:{name}"));
                name
            }
            _ => self.new_name(),
        }
    }

    fn top_of(&self, volume: &str) -> PathBuf {
        let inspected = self.tupper().json(&format!("volume inspect {volume}"));
        PathBuf::from(inspected[0]["Mountpoint"].as_str().expect("a path"))
    }

    /// A volume that is new, or that nobody had, is filled.
    pub(super) fn create_with_volume(&mut self) -> Option<Durability> {
        let Image { id: image, .. } = self.image();
        let there = self.one_of(self.volumes.len()).filter(|_| self.random.below(2) == 0);
        let nth = there.unwrap_or_else(|| {
            let name = self.volume_name();
            let tree = Arc::new(Tree(BTreeMap::new()));
            self.volumes.push(Volume { name, tree, synced: None, used: false });
            self.volumes.len() - 1
        });
        let (name, id) = (self.volumes[nth].name.clone(), self.volumes[nth].id());
        if !self.volumes[nth].used {
            self.machine.promise(&id, Status::Changing);
        }
        let container_name = self.new_name();
        let command = ["sh", "-c", "echo $0 >/srv/$0; sync /srv/$0; sync /srv", &container_name];
        let made = self.machine.create(&image, None, &container_name, &format!("-v {name}:/srv"), &command);
        let moment = self.machine.recorder.now();
        let is = container(&container_name, &command, &[]);
        let (volume, network, throwaway) = (Some(name), None, false);
        self.containers.push(Made { id: made, is, writes: container_name, volume, network, throwaway });
        if !self.volumes[nth].used {
            let top = self.top_of(&self.volumes[nth].name);
            self.volumes[nth].tree = Arc::new(Tree::read(&top));
            self.volumes[nth].used = true;
            self.machine.ledger.note(moment, &id, self.volumes[nth].there());
        }
        Some(Durability::Now)
    }

    /// Starts a container that writes into its volume and calls fsync(2).
    pub(super) fn write_volume(&mut self) -> Option<Durability> {
        let with: Vec<usize> =
            (0..self.containers.len()).filter(|nth| self.containers[*nth].volume.is_some()).collect();
        let nth = with[self.one_of(with.len())?];
        let name = self.containers[nth].volume.clone()?;
        let volume = self.volumes.iter_mut().find(|volume| volume.name == name).expect("a container keeps it");
        let made = &mut self.containers[nth];
        // A rollback may have said what its root holds; nobody does of one that was started.
        made.is.tree = None;
        self.machine.promise(&made.id, made.there());
        let mut synced = volume.synced.take().unwrap_or_default();
        // It may be written already, or not whole.
        let file = made.writes.clone();
        synced.remove(&file);
        volume.synced = Some(synced);
        self.machine.promise(&volume.id(), volume.there());
        self.machine.tupper.ok(&format!("start --attach {}", made.is.name));
        volume.synced.get_or_insert_default().insert(file.clone(), format!("{file}\n"));
        self.machine.promise(&volume.id(), volume.there());
        Some(Durability::Later)
    }

    pub(super) fn remove_volume(&mut self) -> Option<Durability> {
        let unused: Vec<usize> = (0..self.volumes.len()).filter(|nth| !self.is_used(*nth)).collect();
        let nth = unused[self.one_of(unused.len())?];
        let gone = self.volumes.remove(nth);
        let sync = self.percent(50);
        self.machine.promise(&gone.id(), Status::ThereOrNot);
        self.tupper().ok(&format!("volume rm {} {}", if sync { "--sync" } else { "" }, gone.name));
        self.free.push(gone.name.clone());
        if sync {
            self.machine.promise(&gone.id(), Status::Gone);
            return Some(Durability::Now);
        }
        self.removed.push(gone.id());
        Some(Durability::Later)
    }

    fn is_used(&self, nth: usize) -> bool {
        self.containers.iter().any(|made| made.volume.as_ref() == Some(&self.volumes[nth].name))
    }

    pub(super) fn prune_volumes(&mut self) -> Option<Durability> {
        let unused: Vec<usize> = (0..self.volumes.len()).filter(|nth| !self.is_used(*nth)).collect();
        if !self.alone || unused.is_empty() {
            return None;
        }
        for nth in unused.iter().rev() {
            let gone = self.volumes.remove(*nth);
            self.machine.promise(&gone.id(), Status::ThereOrNot);
            self.removed.push(gone.id());
            self.free.push(gone.name);
        }
        assert_eq!(self.tupper().lines("volume prune --force").len(), unused.len());
        Some(Durability::Later)
    }

    pub(super) fn create_network(&mut self) -> Option<Durability> {
        let name = self.new_name();
        let flags = ["", "--internal", "--driver ptp --ipv6"][self.random.below(3)];
        self.tupper().ok(&format!("network create {flags} {name}"));
        let moment = self.machine.recorder.now();
        let listed = self.tupper().json(&format!("network inspect {name}"))[0].clone();
        self.machine.ledger.note(moment, &format!("network:{name}"), Status::There(Thing::Network(listed)));
        self.networks.push(name);
        Some(Durability::Now)
    }

    pub(super) fn remove_network(&mut self) -> Option<Durability> {
        let used = |name: &String| self.containers.iter().any(|made| made.network.as_ref() == Some(name));
        let unused: Vec<usize> = (0..self.networks.len()).filter(|nth| !used(&self.networks[*nth])).collect();
        let nth = unused[self.one_of(unused.len())?];
        let name = self.networks.remove(nth);
        let id = format!("network:{name}");
        self.machine.promise(&id, Status::ThereOrNot);
        self.tupper().ok(&format!("network rm {name}"));
        self.removed.push(id);
        Some(Durability::Later)
    }

    /// Reads, and changes nothing: what is listed is what was acknowledged.
    pub(super) fn look(&mut self) -> Option<Durability> {
        match self.random.below(4) {
            0 => {
                let Image { id, tree } = self.image();
                let scratch = crate::support::disk::scratch();
                let tar = scratch.path().join("tree.tar");
                self.tupper().ok_with(&format!("export {id} -o"), &[text(&tar)]);
                std::fs::create_dir(scratch.path().join("tree")).expect("mkdir");
                crate::support::sh("tar", &["-C", text(&scratch.path().join("tree")), "--xattrs", "-xpf", text(&tar)]);
                tree.assert_same(&Tree::read(&scratch.path().join("tree")));
            }
            1 => {
                let listed = self.tupper().json("image ls --format json");
                let names = listed.as_array().expect("a list").iter().flat_map(|image| image["Names"].as_array());
                let names: Vec<&str> = names.flatten().filter_map(serde_json::Value::as_str).collect();
                let ours = self.listed_names();
                assert!(ours.iter().all(|name| names.contains(&name.as_str())), "{names:?} without some of {ours:?}");
            }
            2 => drop(self.tupper().ok("store df")),
            _ if self.alone => assert_eq!(self.tupper().ok("store check"), ""),
            _ => drop(self.tupper().ok("snapshot tree")),
        }
        Some(Durability::Later)
    }
}
