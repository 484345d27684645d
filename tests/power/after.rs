//! The same store after a power cut: what was promised is there and whole, nothing is there by half, and the next commands
//! find their way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ledger::{Expected, Known, Ledger, Thing};
use crate::machine::text;
use crate::recorder::Recording;
use crate::support::command::Tupper;
use crate::support::sh;
use crate::support::tree::Tree;
use crate::tape::Unflushed;

const RUN: &str = "/run/tupper";

/// A recording, and what the store promised during it.
pub struct History {
    recording: Recording,
    ledger: Ledger,
    uuid: String,
}

/// What clears away what was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clearing {
    /// The next command that writes.
    Next,
    /// `store gc`.
    Gc,
}

impl History {
    pub fn new(recording: Recording, ledger: Ledger, uuid: String) -> History {
        History { recording, ledger, uuid }
    }

    /// The moment at which it ended.
    pub fn end(&self) -> usize {
        self.recording.end()
    }

    /// Fails the test unless, after a power cut at `moment`, all that was promised holds.
    pub fn assert_survives(&self, moment: usize, unflushed: Unflushed, clearing: Clearing) {
        let disk = self.recording.cut(moment, unflushed);
        // What is in a tmpfs is gone after a cut.
        let _ = fs::remove_dir_all(Path::new(RUN).join(&self.uuid));
        let tupper = Tupper::new(disk.path().join("store"));
        let after = After { tupper: &tupper, known: self.ledger.at(moment) };
        after.assert_kept();
        after.assert_cleared(clearing);
        after.assert_usable();
        after.assert_sound();
        self.recording.assert_sound(&disk);
        let _ = fs::remove_dir_all(Path::new(RUN).join(&self.uuid));
    }
}

struct After<'a> {
    tupper: &'a Tupper,
    known: Known,
}

/// Something that is listed, with what the listing says of it.
enum Found {
    Image,
    Tag(String),
    Snapshot(Value),
    Trashed(Value),
    Container(Value),
    Volume(PathBuf),
    Network(Value),
}

impl After<'_> {
    /// What is promised is there or gone, and all that is there looks as it has to; nothing is changed.
    fn assert_kept(&self) {
        let found = self.found();
        for (id, Expected { there, looks, .. }) in &self.known {
            let what = || looks.iter().map(Thing::short).collect::<Vec<_>>().join(" or ");
            match there {
                Some(true) => assert!(found.contains_key(id), "lost: {id} {}", what()),
                Some(false) => assert!(!found.contains_key(id), "back: {id}"),
                None => {}
            }
        }
        for (id, found) in &found {
            // What is nobody's is told of when it was cleared.
            let Some(Expected { there, looks, .. }) = self.known.get(id) else { continue };
            // A volume that is about to be filled.
            if let (Found::Volume(top), None) = (found, there)
                && fs::read_dir(top).expect("a directory").next().is_none()
            {
                continue;
            }
            let acknowledged = *there == Some(true);
            let problems: Vec<String> =
                looks.iter().filter_map(|thing| self.differs(found, thing, acknowledged)).collect();
            assert!(problems.len() < looks.len(), "{id} is none of these:\n{}", problems.join("\n"));
        }
        for problem in self.problems() {
            assert_eq!(problem["Garbage"], true, "damage: {problem}");
        }
    }

    /// How what was found differs from what it may be. What an image holds is looked at later.
    fn differs(&self, found: &Found, thing: &Thing, acknowledged: bool) -> Option<String> {
        let named = |listed: &Value, name: Option<&str>| {
            let is = listed["Names"].get(0).and_then(Value::as_str);
            (is != name).then(|| format!("the name {is:?}, not {name:?}"))
        };
        let tree = |listed: &Value, tree: &Tree| different(tree, Path::new(listed["Path"].as_str().expect("a path")));
        let problem = match (found, thing) {
            (_, Thing::Anything) | (Found::Image, Thing::Image { .. }) => None,
            (Found::Tag(is), Thing::Tag(image)) => (is != image).then(|| format!("it leads to {is}")),
            (Found::Snapshot(listed), Thing::Snapshot { name, tree: all }) => {
                named(listed, name.as_deref()).or_else(|| tree(listed, all))
            }
            (Found::Trashed(listed), Thing::Trashed { tree: all }) => tree(listed, all),
            (Found::Volume(top), Thing::Volume { tree, synced: None }) => different(tree, top),
            (Found::Volume(top), Thing::Volume { tree, synced: Some(synced) }) => {
                let mut now = Tree::read(top);
                // Written to: there may be more in it, so its top has another time.
                now.0.retain(|path, _| path.as_os_str() != "" && tree.0.contains_key(path));
                let mut tree = tree.as_ref().clone();
                tree.0.remove(Path::new(""));
                first_of(tree.differences(&now)).or_else(|| not_synced(synced, top))
            }
            (Found::Network(is), Thing::Network(listed)) => (is != listed).then(|| format!("{is}")),
            (Found::Container(listed), Thing::Container(container)) => {
                let words: Vec<&str> =
                    listed["Command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let root = self.root_of(listed);
                let changed = container.tree.as_ref().and_then(|tree| different(tree, &root));
                named(listed, Some(&container.name))
                    .or_else(|| (words != container.command).then(|| format!("the command {words:?}")))
                    .or(changed)
                    // Its command may not have come so far.
                    .or_else(|| acknowledged.then(|| not_synced(&container.synced, &root)).flatten())
            }
            _ => Some("another kind of thing".to_string()),
        };
        problem.map(|problem| format!("  {}: {problem}", thing.short()))
    }

    /// Where a container's tree is, and it has to be what the container's name leads to.
    fn root_of(&self, listed: &Value) -> PathBuf {
        let name = listed["Names"][0].as_str().expect("a name");
        let inspected = self.tupper.json(&format!("inspect container:{name}"));
        assert_eq!(inspected[0]["Id"], listed["Id"], "what {name} leads to");
        PathBuf::from(inspected[0]["Rootfs"].as_str().expect("a path"))
    }

    /// Whatever was under way goes, and nothing is left that nobody made.
    fn assert_cleared(&self, clearing: Clearing) {
        if clearing == Clearing::Gc {
            self.tupper.ok("store gc");
            assert_eq!(self.problems(), Vec::<Value>::new(), "after a gc");
        }
        let dir = crate::support::disk::scratch();
        fs::create_dir(dir.path().join("etc")).expect("mkdir");
        self.tupper.ok_with("image import --quiet --name after", &[text(dir.path())]);
        assert_eq!(self.problems(), Vec::<Value>::new(), "after the first command that writes");
        self.tupper.ok("image rm localhost/after:latest");
        assert_eq!(self.tupper.ok("store gc"), "");
        for id in self.found().keys() {
            assert!(self.known.contains_key(id), "nobody made {id}");
        }
    }

    /// Every image has the bytes that it was made of, and in all that is there a command can run.
    fn assert_usable(&self) {
        for (id, found) in self.found() {
            if let (Found::Image, Some([Thing::Image { tree }])) = (&found, self.known.get(&id).map(|e| &e.looks[..])) {
                self.tupper.ok(&format!("snapshot create {id} copy"));
                let copy = PathBuf::from(self.tupper.ok("snapshot path copy"));
                assert_eq!(different(tree, &copy), None, "image {id}");
                self.tupper.ok("snapshot rm copy");
                // Its layers are put together again, and verified.
                self.tupper.ok(&format!("image save -o /dev/null {id}"));
            }
            match found {
                Found::Image | Found::Container(_) => drop(self.tupper.ok(&format!("run --rm {id} true"))),
                Found::Snapshot(_) => {
                    self.tupper.ok(&format!("run --rm {id} true"));
                    self.tupper.ok(&format!("snapshot rm {id}"));
                }
                Found::Trashed(_) => drop(self.tupper.ok(&format!("snapshot trash restore {id}"))),
                Found::Volume(_) | Found::Network(_) | Found::Tag(_) => {}
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

    /// All that is listed, by id, and tags, volumes and networks by name.
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
        found.extend(listed("snapshot trash ls").into_iter().map(|value| (id(&value), Found::Trashed(value))));
        let volume = |value: Value| {
            let top = PathBuf::from(value["Mountpoint"].as_str().expect("a path"));
            (format!("volume:{}", value["Name"].as_str().expect("a name")), Found::Volume(top))
        };
        found.extend(listed("volume ls").into_iter().map(volume));
        // Those that there always are were made by nobody.
        let made = listed("network ls").into_iter().filter(|value| !["bridge", "ptp"].contains(&name_of(value)));
        found.extend(made.map(|value| (format!("network:{}", name_of(&value)), Found::Network(value))));
        found.extend(listed("ps --all").into_iter().map(|value| (id(&value), Found::Container(value))));
        found
    }
}

fn name_of(network: &Value) -> &str {
    network["name"].as_str().expect("a name")
}

impl Thing {
    /// Without its tree.
    fn short(&self) -> String {
        match self {
            Thing::Image { .. } => "image".to_string(),
            Thing::Tag(image) => format!("tag of {image}"),
            Thing::Snapshot { name, .. } => format!("snapshot {name:?}"),
            Thing::Trashed { .. } => "snapshot in the trash".to_string(),
            Thing::Container(container) => format!("container {}", container.name),
            Thing::Volume { synced, .. } => format!("volume with {synced:?}"),
            Thing::Anything => "anything".to_string(),
            Thing::Network(listed) => format!("network {}", listed["name"]),
        }
    }
}

fn different(tree: &Tree, top: &Path) -> Option<String> {
    first_of(tree.differences(&Tree::read(top)))
}

fn first_of(differences: Vec<String>) -> Option<String> {
    (!differences.is_empty()).then(|| {
        format!("{} differences:\n    {}", differences.len(), differences[..differences.len().min(20)].join("\n    "))
    })
}

fn not_synced(synced: &BTreeMap<String, String>, top: &Path) -> Option<String> {
    synced.iter().find_map(|(path, text)| match fs::read_to_string(top.join(path)) {
        Ok(is) if is == *text => None,
        Ok(is) => Some(format!("{path} says {is:?}, not {text:?}")),
        Err(e) => Some(format!("{path}: {e}")),
    })
}
