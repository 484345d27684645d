//! Snapshots, what they are rolled back to, and the trash.

use std::fs;
use std::sync::Arc;

use super::{Durability, Image, Snapshot, Worker};
use crate::ledger::{Status, Thing};
use crate::support::tree::Tree;

impl Snapshot {
    fn there(&self) -> Status {
        Status::There(Thing::Snapshot { name: self.name.clone(), tree: self.tree.clone() })
    }
}

impl Worker<'_> {
    pub(super) fn snapshot(&mut self) -> Option<Durability> {
        let Image { id, tree } = self.image();
        self.snapshot_of(&id, &tree);
        Some(Durability::Now)
    }

    fn snapshot_of(&mut self, source: &str, tree: &Arc<Tree>) {
        let name = self.percent(60).then(|| self.new_name());
        let read_only = self.percent(20);
        let flags = if read_only { "--read-only" } else { "" };
        let more = format!("{} {flags}", name.as_deref().unwrap_or_default());
        let ids = self.machine.snapshot(source, more.trim(), tree);
        let made = ids.into_iter().map(|id| Snapshot { id, name: name.clone(), tree: tree.clone(), read_only });
        self.snapshots.extend(made);
    }

    pub(super) fn fork(&mut self) -> Option<Durability> {
        let Image { id, tree } = self.image();
        let name = self.new_name();
        let count = 2 + self.random.below(5);
        let ids = self.machine.snapshot(&id, &format!("{name} --count {count}"), &tree);
        let made = ids.into_iter().enumerate().map(|(nth, id)| {
            let name = Some(format!("{name}-{}", nth + 1));
            Snapshot { id, name, tree: tree.clone(), read_only: false }
        });
        self.snapshots.extend(made);
        Some(Durability::Now)
    }

    pub(super) fn snapshot_of_snapshot(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.snapshots.len())?;
        let Snapshot { id, tree, .. } = self.snapshots[nth].clone();
        self.snapshot_of(&id, &tree);
        Some(Durability::Now)
    }

    pub(super) fn snapshot_of_container(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.containers.len())?;
        let id = self.containers[nth].id.clone();
        let tree = Arc::new(Tree::read(&self.root_of(&id)));
        self.snapshot_of(&id, &tree);
        Some(Durability::Now)
    }

    /// What was written to the source and not synced is in the snapshot, and on the disk.
    pub(super) fn snapshot_of_written(&mut self) -> Option<Durability> {
        let Image { id, tree } = self.image();
        let name = self.new_name();
        let source = self.machine.snapshot(&id, &name, &tree).remove(0);
        self.machine.promise(&source, Status::There(Thing::Anything));
        let top = self.machine.path_of(&source);
        let size = 1 + self.random.below(300_000);
        fs::write(top.join("fresh"), vec![7; size]).expect("write");
        fs::create_dir(top.join(&name)).expect("mkdir");
        fs::rename(top.join("etc/passwd"), top.join(&name).join("passwd")).expect("move");
        fs::write(top.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("write");
        let tree = Arc::new(Tree::read(&top));
        self.snapshot_of(&source, &tree);
        let source = Snapshot { id: source, name: Some(name), tree, read_only: false };
        self.machine.promise(&source.id, source.there());
        self.snapshots.push(source);
        Some(Durability::Now)
    }

    /// To an image, or to another snapshot.
    pub(super) fn rollback_snapshot(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.snapshots.len())?;
        let (to, tree) = self.other_than(nth);
        let Snapshot { id, tree: before, read_only, .. } = self.snapshots[nth].clone();
        if read_only {
            return None;
        }
        self.machine.promise(&id, Status::Changing);
        let aside = self.tupper().ok(&format!("snapshot rollback {id} {to}"));
        self.snapshots[nth].tree = tree;
        self.machine.promise(&id, self.snapshots[nth].there());
        let aside = Snapshot { id: aside, name: None, tree: before, read_only: false };
        self.machine.promise(&aside.id, aside.there());
        self.snapshots.push(aside);
        Some(Durability::Now)
    }

    pub(super) fn rollback_container(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.containers.len())?;
        let id = self.containers[nth].id.clone();
        let (to, tree) = self.other_than(usize::MAX);
        let before = Arc::new(Tree::read(&self.root_of(&id)));
        self.machine.promise(&id, Status::Changing);
        let aside = self.tupper().ok(&format!("snapshot rollback {id} {to}"));
        let is = &mut self.containers[nth].is;
        (is.tree, is.synced) = (Some(tree), [].into());
        self.machine.promise(&id, Status::There(Thing::Container(is.clone())));
        let aside = Snapshot { id: aside, name: None, tree: before, read_only: false };
        self.machine.promise(&aside.id, aside.there());
        self.snapshots.push(aside);
        Some(Durability::Now)
    }

    /// An image or a snapshot, but not that one, and what it holds.
    fn other_than(&mut self, nth: usize) -> (String, Arc<Tree>) {
        let others = self.snapshots.iter().enumerate().filter(|(other, _)| *other != nth);
        let others: Vec<(String, Arc<Tree>)> =
            others.map(|(_, other)| (other.id.clone(), other.tree.clone())).collect();
        match self.one_of(others.len()) {
            Some(other) if self.percent(60) => others[other].clone(),
            _ => {
                let Image { id, tree } = self.image();
                (id, tree)
            }
        }
    }

    pub(super) fn remove_snapshots(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.snapshots.len())?;
        let gone = self.snapshots.remove(nth);
        if self.percent(50) {
            self.machine.remove("snapshot rm --sync", &gone.id);
            return Some(Durability::Now);
        }
        self.machine.remove("snapshot rm", &gone.id);
        self.removed.push(gone.id);
        // Its name can be had at once, and whoever has it keeps it.
        if let (Some(name), true) = (gone.name, self.percent(50)) {
            let Image { id, tree } = self.image();
            let id = self.machine.snapshot(&id, &name, &tree).remove(0);
            self.snapshots.push(Snapshot { id, name: Some(name), tree, read_only: false });
        }
        Some(Durability::Later)
    }

    /// Of some, all but the newest.
    pub(super) fn prune_snapshots(&mut self) -> Option<Durability> {
        let from = self.one_of(self.snapshots.len())?;
        let some: Vec<Snapshot> = self.snapshots.drain(from..self.snapshots.len().min(from + 3)).collect();
        let filters: String = some.iter().map(|snapshot| format!(" --filter id={}", snapshot.id)).collect();
        for snapshot in &some {
            self.machine.promise(&snapshot.id, Status::ThereOrNot);
        }
        let gone = self.tupper().lines(&format!("snapshot prune --force --keep-last 1{filters}"));
        assert_eq!(gone.len() + 1, some.len(), "{gone:?}");
        for snapshot in some {
            match gone.contains(&snapshot.id) {
                true => self.removed.push(snapshot.id),
                false => {
                    self.machine.promise(&snapshot.id, snapshot.there());
                    self.snapshots.push(snapshot);
                }
            }
        }
        Some(Durability::Later)
    }

    /// The tree of a throwaway container becomes a snapshot.
    pub(super) fn keep(&mut self) -> Option<Durability> {
        let Image { id: image, .. } = self.image();
        let name = self.new_name();
        let script = format!("mkdir /{name} && echo text >/{name}/text");
        self.tupper().ok_with(&format!("run --rm --keep {name} {image}"), &["sh", "-c", &script]);
        let moment = self.machine.recorder.now();
        let id = self.machine.id_of("snapshot inspect", &name);
        let tree = Arc::new(Tree::read(&self.machine.path_of(&id)));
        let kept = Snapshot { id, name: Some(name), tree, read_only: false };
        self.machine.ledger.note(moment, &kept.id, kept.there());
        self.snapshots.push(kept);
        Some(Durability::Now)
    }

    /// What a container that failed has changed is in the trash.
    pub(super) fn fail(&mut self) -> Option<Durability> {
        let Image { id: image, .. } = self.image();
        let name = self.new_name();
        let script = format!("echo {name} >/wrong; exit 3");
        self.tupper().run_with(&format!("run --rm=on-success {image}"), &["sh", "-c", &script]).status(3);
        let moment = self.machine.recorder.now();
        let listed = self.tupper().json("snapshot trash ls --format json");
        // Others have their own.
        let mut paths = listed.as_array().expect("a list").iter().map(|one| (one["Id"].as_str(), one["Path"].as_str()));
        let ours = |path: &str| fs::read_to_string(format!("{path}/wrong")).is_ok_and(|text| text.trim_end() == name);
        let (id, path) = paths.find(|(_, path)| path.is_some_and(ours)).expect("it is in the trash");
        let tree = Arc::new(Tree::read(path.expect("a path").as_ref()));
        let failed = Snapshot { id: id.expect("an id").to_string(), name: None, tree, read_only: false };
        let thing = Thing::Trashed { tree: failed.tree.clone() };
        self.machine.ledger.note(moment, &failed.id, Status::There(thing));
        self.trash.push(failed);
        Some(Durability::Now)
    }

    pub(super) fn restore(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.trash.len())?;
        let mut restored = self.trash.remove(nth);
        restored.name = self.percent(50).then(|| self.new_name());
        self.machine.promise(&restored.id, Status::Changing);
        let name = restored.name.as_deref().unwrap_or_default();
        self.tupper().ok(&format!("snapshot trash restore {} {name}", restored.id));
        self.machine.promise(&restored.id, restored.there());
        self.snapshots.push(restored);
        Some(Durability::Now)
    }

    pub(super) fn empty_trash(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.trash.len())?;
        let gone = self.trash.remove(nth);
        self.machine.promise(&gone.id, Status::ThereOrNot);
        self.tupper().ok(&format!("snapshot trash empty --force {}", gone.id));
        self.removed.push(gone.id);
        Some(Durability::Later)
    }
}
