//! Images and their names.

use std::sync::Arc;

use super::{Durability, Image, Worker};
use crate::ledger::{Status, Thing};
use crate::machine::{full, text};
use crate::support::tree::Tree;

impl Worker<'_> {
    pub(super) fn import(&mut self) -> Option<Durability> {
        let name = self.new_name();
        self.import_as(name)
    }

    pub(super) fn import_again(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.tags.len())?;
        let name = self.tags[nth].0.clone();
        self.import_as(name)
    }

    fn import_as(&mut self, name: String) -> Option<Durability> {
        let nth = self.random.below(self.sources.trees.len());
        let (path, tree) = &self.sources.trees[nth];
        self.may_come(tree);
        let id = self.machine.import(path, tree, &name);
        self.named(name, id, tree);
        Some(Durability::Now)
    }

    pub(super) fn pull(&mut self) -> Option<Durability> {
        let sources = self.sources;
        let tree = &sources.layered.tree;
        let name = format!("{}/{}", sources.registry.host(), self.new_name());
        self.may_come(tree);
        let line = format!("image pull --quiet --tls-verify=false {name}");
        let id = self.machine.add(&line, &[], tree, &[&name]);
        self.named(name, id, tree);
        Some(Durability::Now)
    }

    pub(super) fn save(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.tags.len())?;
        let (name, id) = self.tags[nth].clone();
        let image = self.images.iter().find(|image| image.id == id)?.clone();
        let path = self.sources.dir.path().join(format!("{}.tar", self.new_name()));
        self.tupper().ok_with(&format!("image save {name} -o"), &[text(&path)]);
        self.saved.push((path, image, name));
        Some(Durability::Later)
    }

    /// What was saved is the same image again, whatever became of it meanwhile.
    pub(super) fn load(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.saved.len())?;
        let (path, image, name) = self.saved.remove(nth);
        self.may_come(&image.tree);
        let id = self.machine.add("image load -i", &[text(&path)], &image.tree, &[&name]);
        assert_eq!(id, image.id, "another image than was saved");
        self.named(name, id, &image.tree);
        Some(Durability::Now)
    }

    pub(super) fn tag(&mut self) -> Option<Durability> {
        let name = self.new_name();
        self.tag_as(name)
    }

    pub(super) fn tag_again(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.tags.len())?;
        let name = self.tags[nth].0.clone();
        self.tag_as(name)
    }

    fn tag_as(&mut self, name: String) -> Option<Durability> {
        let Image { id, tree } = self.image();
        self.machine.tag(&id, &name);
        self.named(name, id, &tree);
        Some(Durability::Now)
    }

    /// Removes one name of an image that has more.
    pub(super) fn untag(&mut self) -> Option<Durability> {
        let nth = self.one_of(self.tags.len())?;
        let id = &self.tags[nth].1;
        if self.tags.iter().filter(|(_, other)| other == id).count() < 2 {
            return None;
        }
        let (name, _) = self.tags.remove(nth);
        self.machine.untag(&name);
        Some(Durability::Now)
    }

    pub(super) fn remove_image(&mut self) -> Option<Durability> {
        if self.images.len() < 2 {
            return None;
        }
        let nth = self.random.below(self.images.len());
        let id = self.images.remove(nth).id;
        let names: Vec<String> = self.names_of(&id);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.machine.remove_image(&id, &names);
        self.tags.retain(|(_, other)| *other != id);
        Some(Durability::Now)
    }

    /// Removes images without a name, unless a container or a snapshot was made of them.
    pub(super) fn prune_images(&mut self) -> Option<Durability> {
        let ids: Vec<String> = self.images.iter().map(|image| image.id.clone()).collect();
        let unnamed: Vec<String> = ids.into_iter().filter(|id| self.names_of(id).is_empty()).collect();
        if !self.alone || self.images.len() == unnamed.len() {
            return None;
        }
        for id in &unnamed {
            self.machine.promise(id, Status::ThereOrNot);
        }
        self.tupper().ok("image prune --force");
        let moment = self.machine.recorder.now();
        let left = self.tupper().lines("image ls --quiet --no-trunc");
        for id in unnamed.iter().filter(|id| !left.contains(id)) {
            self.machine.ledger.note(moment, id, Status::Gone);
        }
        let stays = |image: &Image| Status::There(Thing::Image { tree: image.tree.clone() });
        self.images.retain(|image| left.contains(&image.id));
        for image in self.images.iter().filter(|image| unnamed.contains(&image.id)) {
            self.machine.ledger.note(moment, &image.id, stays(image));
        }
        Some(Durability::Now)
    }

    /// Makes an image of a snapshot, or of a container.
    pub(super) fn commit(&mut self) -> Option<Durability> {
        let sources: Vec<&String> =
            self.snapshots.iter().map(|s| &s.id).chain(self.containers.iter().map(|c| &c.id)).collect();
        let sources: Vec<String> = sources.into_iter().cloned().collect();
        let nth = self.one_of(sources.len())?;
        let name = self.new_name();
        let (id, snapshot, tree) = self.machine.commit(&sources[nth], &name);
        self.snapshots.push(super::Snapshot { id: snapshot, name: None, tree: tree.clone(), read_only: false });
        self.named(name, id, &tree);
        Some(Durability::Now)
    }

    /// An image that was there once may be there again before that is acknowledged.
    fn may_come(&self, tree: &Arc<Tree>) {
        let mut same = self.known.iter().filter(|image| Arc::ptr_eq(&image.tree, tree));
        if let Some(image) = same.find(|known| !self.images.iter().any(|image| image.id == known.id)) {
            self.machine.promise(&image.id, Status::Changing);
        }
    }

    fn named(&mut self, name: String, id: String, tree: &Arc<Tree>) {
        let image = Image { id: id.clone(), tree: tree.clone() };
        for list in [&mut self.images, &mut self.known] {
            if !list.iter().any(|image| image.id == id) {
                list.push(image.clone());
            }
        }
        let name_is_taken = self.tags.iter().position(|(other, _)| *other == name);
        if let Some(nth) = name_is_taken {
            self.tags.remove(nth);
        }
        self.tags.push((name, id));
    }

    fn names_of(&self, id: &str) -> Vec<String> {
        self.tags.iter().filter(|(_, image)| image == id).map(|(name, _)| name.clone()).collect()
    }

    /// Names are asked for as they are listed.
    pub(super) fn listed_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tags.iter().map(|(name, _)| full(name)).collect();
        names.sort();
        names
    }
}
