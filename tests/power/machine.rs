//! A store on a disk that is recorded: commands and what they promise. What an acknowledged command made is noted with the
//! moment of its return; what it changes is noted as changing before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::after::History;
use crate::ledger::{Container, Ledger, Status, Thing};
use crate::recorder::{Filesystem, Recorder};
use crate::support::command::Tupper;
use crate::support::tree::Tree;

/// A store whose disk is recorded.
pub struct Machine {
    pub recorder: Recorder,
    pub tupper: Tupper,
    pub ledger: Ledger,
}

impl Machine {
    pub fn new(filesystem: Filesystem) -> Machine {
        let recorder = Recorder::new(filesystem);
        let tupper = Tupper::new(recorder.path().join("store"));
        Machine { recorder, tupper, ledger: Ledger::default() }
    }

    /// Notes what holds from now on.
    pub fn promise(&self, id: &str, status: Status) -> usize {
        let now = self.recorder.now();
        self.ledger.note(now, id, status);
        now
    }

    pub fn import(&self, source: &Path, tree: &Arc<Tree>, name: &str) -> String {
        self.promise(&full(name), Status::Changing);
        let id = self.tupper.ok_with("image import --quiet --name", &[name, text(source)]);
        self.promise(&id, Status::There(Thing::Image { tree: tree.clone() }));
        self.promise(&full(name), Status::There(Thing::Tag(id.clone())));
        id
    }

    /// Loads an archive of one image with these names, or pulls it: `line` is the command.
    pub fn add(&self, line: &str, more: &[&str], tree: &Arc<Tree>, names: &[&str]) -> String {
        for name in names {
            self.promise(&full(name), Status::Changing);
        }
        self.tupper.ok_with(line, more);
        let moment = self.recorder.now();
        let id = self.id_of("image inspect", names[0]);
        self.ledger.note(moment, &id, Status::There(Thing::Image { tree: tree.clone() }));
        for name in names {
            self.ledger.note(moment, &full(name), Status::There(Thing::Tag(id.clone())));
        }
        id
    }

    /// Makes an image of a snapshot or a container, and a snapshot of that, which shows what it holds. Returns both ids.
    pub fn commit(&self, source: &str, name: &str) -> (String, String, Arc<Tree>) {
        self.promise(&full(name), Status::Changing);
        let id = self.tupper.ok(&format!("commit --quiet {source} {name}"));
        let committed = self.recorder.now();
        let snapshot = self.tupper.ok(&format!("snapshot create {id}"));
        let snapshotted = self.recorder.now();
        let tree = Arc::new(Tree::read(&self.path_of(&snapshot)));
        self.ledger.note(committed, &id, Status::There(Thing::Image { tree: tree.clone() }));
        self.ledger.note(committed, &full(name), Status::There(Thing::Tag(id.clone())));
        let thing = Thing::Snapshot { name: None, tree: tree.clone() };
        self.ledger.note(snapshotted, &snapshot, Status::There(thing));
        (id, snapshot, tree)
    }

    pub fn tag(&self, image: &str, name: &str) {
        self.promise(&full(name), Status::Changing);
        self.tupper.ok(&format!("image tag {image} {name}"));
        self.promise(&full(name), Status::There(Thing::Tag(image.to_string())));
    }

    pub fn untag(&self, name: &str) {
        self.promise(&full(name), Status::ThereOrNot);
        self.tupper.ok(&format!("image rm {name}"));
        self.promise(&full(name), Status::Gone);
    }

    pub fn remove_image(&self, id: &str, names: &[&str]) {
        for gone in names.iter().map(|name| full(name)).chain([id.to_string()]) {
            self.promise(&gone, Status::ThereOrNot);
        }
        self.tupper.ok(&format!("image rm --force {id}"));
        for gone in names.iter().map(|name| full(name)).chain([id.to_string()]) {
            self.promise(&gone, Status::Gone);
        }
    }

    /// `more` may be a name, `--count N` or both; `tree` is what the source holds.
    pub fn snapshot(&self, source: &str, more: &str, tree: &Arc<Tree>) -> Vec<String> {
        let ids = self.tupper.lines(&format!("snapshot create {source} {more}"));
        let now = self.recorder.now();
        for (nth, id) in ids.iter().enumerate() {
            let name = more.split(' ').find(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
            let name = name.map(|name| if ids.len() > 1 { format!("{name}-{}", nth + 1) } else { name.to_string() });
            self.ledger.note(now, id, Status::There(Thing::Snapshot { name, tree: tree.clone() }));
        }
        ids
    }

    /// Makes a container: `flags` may say what it shares. Nothing runs in it yet, so it holds what its source does.
    pub fn create(&self, source: &str, tree: Option<&Arc<Tree>>, name: &str, flags: &str, command: &[&str]) -> String {
        let id = self.tupper.ok_with(&format!("create --name {name} {flags} {source}"), command);
        let made = Container { tree: tree.cloned(), ..container(name, command, &[]) };
        self.promise(&id, Status::There(Thing::Container(made)));
        id
    }

    /// A kept container that writes its name into `/synced`, calls fsync for it, and ends.
    pub fn run(&self, source: &str, name: &str) -> (String, Container) {
        let script = writes(name);
        let command = ["sh", "-c", &script];
        self.tupper.ok_with(&format!("run --name {name} {source}"), &command);
        let moment = self.recorder.now();
        let id = self.id_of("inspect", &format!("container:{name}"));
        let ran = container(name, &command, &[("synced", &format!("{name}\n"))]);
        self.ledger.note(moment, &id, Status::There(Thing::Container(ran.clone())));
        (id, ran)
    }

    /// A container whose volume is filled with what `source` has at /srv.
    pub fn fill(&self, source: &str, name: &str, volume: &str, tree: &Arc<Tree>) -> String {
        let id = format!("volume:{volume}");
        self.promise(&id, Status::Changing);
        let made = self.create(source, None, name, &format!("-v {volume}:/srv"), &["true"]);
        self.promise(&id, Status::There(Thing::Volume { tree: tree.clone(), synced: None }));
        made
    }

    /// Removes snapshots or containers: `verb` is all but the id.
    pub fn remove(&self, verb: &str, id: &str) {
        self.promise(id, Status::ThereOrNot);
        self.tupper.ok(&format!("{verb} {id}"));
        if verb.contains("--sync") {
            self.promise(id, Status::Gone);
        }
    }

    /// The id of what `inspect` finds.
    pub fn id_of(&self, inspect: &str, what: &str) -> String {
        self.tupper.json(&format!("{inspect} {what}"))[0]["Id"].as_str().expect("an id").to_string()
    }

    /// Where a snapshot's tree is.
    pub fn path_of(&self, snapshot: &str) -> PathBuf {
        PathBuf::from(self.tupper.ok(&format!("snapshot path {snapshot}")))
    }

    pub fn stop(self) -> History {
        let uuid = self.tupper.json("store info --format json")["Uuid"].as_str().expect("a UUID").to_string();
        History::new(self.recorder.stop(), self.ledger, uuid)
    }
}

/// The script that writes this into `/synced`, and calls fsync(2) for it.
pub fn writes(text: &str) -> String {
    format!("echo {text} >/synced; sync /synced; sync /")
}

pub fn container(name: &str, command: &[&str], synced: &[(&str, &str)]) -> Container {
    Container {
        name: name.to_string(),
        command: command.iter().map(ToString::to_string).collect(),
        tree: None,
        synced: synced.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect::<BTreeMap<_, _>>(),
    }
}

/// An image's name as it is listed.
pub fn full(name: &str) -> String {
    let domain = if name.contains('/') { "" } else { "localhost/" };
    let tag = if name.rsplit('/').next().is_some_and(|last| last.contains(':')) { "" } else { ":latest" };
    format!("{domain}{name}{tag}")
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
