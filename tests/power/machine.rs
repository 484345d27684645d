//! A store on a disk that is recorded: commands and what they promise; and the same store after a power cut.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::ledger::{Known, Ledger, Status, Thing};
use crate::recorder::{Filesystem, Recorder, Recording};
use crate::support::command::Tupper;
use crate::support::sh;
use crate::support::tree::Tree;
use crate::tape::Unflushed;

const RUN: &str = "/run/tupper";

/// A store whose disk is recorded.
pub struct Machine {
    pub recorder: Recorder,
    pub tupper: Tupper,
    pub ledger: Ledger,
}

/// A recording, and what the store promised during it.
pub struct History {
    recording: Recording,
    ledger: Ledger,
    uuid: String,
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
        self.promise(&full(name), Status::ThereOrNot);
        let id = self.tupper.ok_with("image import --quiet --name", &[name, text(source)]);
        self.promise(&id, Status::There(Thing::Image { tree: tree.clone() }));
        self.promise(&full(name), Status::There(Thing::Tag(id.clone())));
        id
    }

    /// Loads an archive of one image with these names, or pulls it: `line` is the command.
    pub fn add(&self, line: &str, more: &[&str], tree: &Arc<Tree>, names: &[&str]) -> String {
        for name in names {
            self.promise(&full(name), Status::ThereOrNot);
        }
        self.tupper.ok_with(line, more);
        let moment = self.recorder.now();
        let inspected = self.tupper.json(&format!("image inspect {}", names[0]));
        let id = inspected[0]["Id"].as_str().expect("an id").to_string();
        self.ledger.note(moment, &id, Status::There(Thing::Image { tree: tree.clone() }));
        for name in names {
            self.ledger.note(moment, &full(name), Status::There(Thing::Tag(id.clone())));
        }
        id
    }

    pub fn tag(&self, image: &str, name: &str) {
        self.promise(&full(name), Status::ThereOrNot);
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

    pub fn create(&self, source: &str, name: &str, flags: &str, command: &[&str]) -> String {
        let id = self.tupper.ok_with(&format!("create --name {name} {flags} {source}"), command);
        self.promise(&id, Status::There(container(name, command, &[])));
        id
    }

    /// A kept container that writes its name into `/synced`, calls fsync for it, and ends.
    pub fn run(&self, source: &str, name: &str) -> String {
        let script = format!("echo {name} >/synced; sync /synced; sync /");
        let command = ["sh", "-c", &script];
        self.tupper.ok_with(&format!("run --name {name} {source}"), &command);
        let id = self.tupper.json(&format!("inspect container:{name}"))[0]["Id"].as_str().expect("an id").to_string();
        self.promise(&id, Status::There(container(name, &command, &[("synced", &format!("{name}\n"))])));
        id
    }

    /// A container whose volume is filled with what `source` has at /srv.
    pub fn fill(&self, source: &str, name: &str, volume: &str, tree: &Arc<Tree>) -> String {
        let id = self.create(source, name, &format!("-v {volume}:/srv"), &["true"]);
        self.promise(&format!("volume:{volume}"), Status::There(Thing::Volume { tree: tree.clone() }));
        id
    }

    /// Removes snapshots or containers: `verb` is all but the id.
    pub fn remove(&self, verb: &str, id: &str) {
        self.promise(id, Status::ThereOrNot);
        self.tupper.ok(&format!("{verb} {id}"));
        if verb.contains("--sync") {
            self.promise(id, Status::Gone);
        }
    }

    pub fn stop(self) -> History {
        let uuid = self.tupper.json("store info --format json")["Uuid"].as_str().expect("a UUID").to_string();
        History { recording: self.recorder.stop(), ledger: self.ledger, uuid }
    }
}

pub fn container(name: &str, command: &[&str], synced: &[(&str, &str)]) -> Thing {
    Thing::Container {
        name: name.to_string(),
        command: command.iter().map(ToString::to_string).collect(),
        synced: synced.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect(),
    }
}

/// An image's name as it is listed.
fn full(name: &str) -> String {
    if name.contains('/') { format!("{name}:latest") } else { format!("localhost/{name}:latest") }
}

impl History {
    /// The moment at which it ended.
    pub fn end(&self) -> usize {
        self.recording.end()
    }

    /// Fails the test unless, after a power cut at `moment`, all that was promised holds, nothing is there by half, and
    /// the next commands find their way.
    pub fn assert_survives(&self, moment: usize, unflushed: Unflushed) {
        let disk = self.recording.cut(moment, unflushed);
        // What is in a tmpfs is gone after a cut.
        let _ = std::fs::remove_dir_all(Path::new(RUN).join(&self.uuid));
        let tupper = Tupper::new(disk.path().join("store"));
        let after = After { tupper: &tupper, things: self.ledger.things() };
        after.assert_kept(&self.ledger.at(moment));
        after.assert_cleared();
        after.assert_usable();
        after.assert_sound();
        self.recording.assert_sound(&disk);
        let _ = std::fs::remove_dir_all(Path::new(RUN).join(&self.uuid));
    }
}

/// A store after a power cut.
struct After<'a> {
    tupper: &'a Tupper,
    things: BTreeMap<String, Thing>,
}

impl After<'_> {
    /// What is promised is there or gone, and all that is there looks as it has to; nothing is changed.
    fn assert_kept(&self, known: &Known) {
        let found = self.found();
        for (id, status) in known {
            match status {
                Status::There(_) => assert!(found.contains_key(id), "lost: {id} {:?}", self.things.get(id).map(short)),
                Status::Gone => assert!(!found.contains_key(id), "back: {id} {:?}", self.things.get(id).map(short)),
                Status::ThereOrNot => {}
            }
            if let (Status::There(Thing::Tag(image)), Some(Found::Tag(found))) = (status, found.get(id)) {
                assert_eq!(found, image, "tag {id}");
            }
        }
        for (id, found) in &found {
            match (found, known.get(id), self.things.get(id)) {
                // What it is now, if it is to be there; a rollback makes it another.
                (Found::Snapshot(listed), Some(Status::There(Thing::Snapshot { name, tree })), _)
                | (Found::Snapshot(listed), _, Some(Thing::Snapshot { name, tree })) => {
                    assert_eq!(listed["Names"].get(0).and_then(Value::as_str), name.as_deref(), "name of {id}");
                    tree.assert_same(&Tree::read(&PathBuf::from(listed["Path"].as_str().expect("a path"))));
                }
                (Found::Container(listed), Some(Status::There(Thing::Container { name, command, synced })), _) => {
                    assert_eq!(listed["Names"][0], **name, "name of {id}");
                    let words: Vec<&str> =
                        listed["Command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                    assert_eq!(words, *command, "command of {id}");
                    let inspected = self.tupper.json(&format!("inspect {name}"));
                    assert_eq!(inspected[0]["Id"], **id, "what {name} leads to");
                    let root = PathBuf::from(inspected[0]["Rootfs"].as_str().expect("a path"));
                    for (path, text) in synced {
                        let is = std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
                        assert_eq!(is, *text, "{path} in {id}");
                    }
                }
                // Never half filled: as it is promised, or as it was before.
                (Found::Volume(top), status, Some(Thing::Volume { tree })) => {
                    let empty = std::fs::read_dir(top).expect("a directory").next().is_none();
                    if !empty || matches!(status, Some(Status::There(_))) {
                        tree.assert_same(&Tree::read(top));
                    }
                }
                _ => {}
            }
        }
        for problem in self.problems() {
            assert_eq!(problem["Garbage"], true, "damage: {problem}");
        }
    }

    /// The next command that writes removes whatever was under way.
    fn assert_cleared(&self) {
        let dir = crate::support::disk::scratch();
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        self.tupper.ok_with("image import --quiet --name after", &[text(dir.path())]);
        assert_eq!(self.problems(), Vec::<Value>::new(), "after the first command that writes");
        self.tupper.ok("image rm localhost/after:latest");
        assert_eq!(self.tupper.ok("store gc"), "");
    }

    /// Every image has the bytes that it was made of, and in all that is there a command can run.
    fn assert_usable(&self) {
        for (id, found) in self.found() {
            if let (Found::Image, Some(Thing::Image { tree })) = (&found, self.things.get(&id)) {
                self.tupper.ok(&format!("snapshot create {id} copy"));
                tree.assert_same(&Tree::read(&PathBuf::from(self.tupper.ok("snapshot path copy"))));
                self.tupper.ok("snapshot rm copy");
                // Its layers are put together again, and verified.
                self.tupper.ok(&format!("image save -o /dev/null {id}"));
            }
            if !matches!(found, Found::Tag(_) | Found::Volume(_)) {
                self.tupper.ok(&format!("run --rm {id} true"));
            }
        }
        assert_eq!(self.problems(), Vec::<Value>::new(), "after everything was used");
    }

    fn assert_sound(&self) {
        let file = self.tupper.root().join("store.btrfs");
        if file.exists() {
            self.tupper.ok("store umount");
            sh("btrfs", &["check", "--readonly", text(&file)]);
        }
    }

    fn problems(&self) -> Vec<Value> {
        let done = self.tupper.run("store check --format json");
        let found: Vec<Value> = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done}"));
        assert_eq!(done.status, i32::from(!found.is_empty()), "{done}");
        found
    }

    /// All that is listed, by id, and tags by name.
    fn found(&self) -> BTreeMap<String, Found> {
        let mut found = BTreeMap::new();
        let listed =
            |verb: &str| self.tupper.json(&format!("{verb} --format json")).as_array().cloned().expect("a list");
        let id = |value: &Value| value["Id"].as_str().expect("an id").to_string();
        for image in listed("image ls") {
            for name in image["Names"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                found.insert(name.to_string(), Found::Tag(id(&image)));
            }
            found.insert(id(&image), Found::Image);
        }
        found.extend(listed("snapshot ls").into_iter().map(|value| (id(&value), Found::Snapshot(value))));
        let volume = |value: Value| {
            let top = PathBuf::from(value["Mountpoint"].as_str().expect("a path"));
            (format!("volume:{}", value["Name"].as_str().expect("a name")), Found::Volume(top))
        };
        found.extend(listed("volume ls").into_iter().map(volume));
        found.extend(listed("ps --all").into_iter().map(|value| (id(&value), Found::Container(value))));
        found
    }
}

/// Something that is listed, with what the listing says of it.
enum Found {
    Image,
    Tag(String),
    Snapshot(Value),
    Container(Value),
    Volume(PathBuf),
}

/// A thing without its tree.
fn short(thing: &Thing) -> String {
    match thing {
        Thing::Image { .. } => "image".to_string(),
        Thing::Tag(image) => format!("tag of {image}"),
        Thing::Snapshot { name, .. } => format!("snapshot {name:?}"),
        Thing::Container { name, .. } => format!("container {name}"),
        Thing::Volume { .. } => "volume".to_string(),
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
