//! `store check --repair` and `--deep`: damage of every kind is planted on a real store, found, and mended as the table in
//! docs/durability.md says; nothing else changes, and a second check has nothing left to say, or what cannot be mended.

mod content;
mod disk;
mod hostile;
mod images;
mod names;
mod records;
mod roots;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::scratch::Tar;
use crate::support::archives::{Files, chains};
use crate::support::command::{Done, Tupper};
use crate::support::disk::scratch;
use crate::support::sh;
use crate::support::store::Store;
use crate::support::tree::xattrs;

const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const RECORD: &str = "user.tupper.record";
const SUBVOLUME: &str = "user.tupper.subvolume";

/// A store with images of one and of two layers, snapshots, a container and a volume.
struct Scene {
    store: Store,
    /// Where its disk does not reach.
    beside: TempDir,
    /// The image of two layers, as an archive.
    archive: PathBuf,
    /// The chain ids of its layers, lowest first.
    chains: Vec<String>,
    /// Its id, and that of busybox.
    two: String,
    busybox: String,
    /// Of the snapshots `web` and `child`, and of the container `box`.
    web: String,
    child: String,
    container: String,
}

/// Bytes that no other file has.
fn pattern(word: &str, length: usize) -> Vec<u8> {
    (0..).flat_map(|n: u32| format!("{word} {n:8} ").into_bytes()).take(length).collect()
}

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::default()
            .directory("./etc")
            .file("./etc/big", &pattern("base", 300_000))
            .file("./etc/small", b"small\n")
            .file("./etc/gone", b"gone\n")
            .symlink("./link", "etc/small")
            .hard_link("./hard", "./etc/small")
            .end(),
        Tar::default()
            .file("etc/.wh.gone", b"")
            .file("one", &pattern("one", 200_000))
            .file("etc/more", b"more\n")
            .end(),
    ]
}

impl Scene {
    fn new() -> Scene {
        let store = Store::new();
        let layers = layers();
        let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
        let beside = scratch();
        let archive = Files::docker(&[(&["localhost/two:1"], &layers)]).save(beside.path(), "two.tar");
        store.ok(&format!("image load -i {}", text(&archive)));
        let web = store.ok("snapshot create busybox web");
        let child = store.ok("snapshot create web child");
        store.ok("volume create data");
        let container = store.ok("create --name box -v data:/data busybox true");
        let image =
            |name: &str| store.json(&format!("image inspect {name}"))[0]["Id"].as_str().expect("an id").to_string();
        let (two, busybox) = (image("two:1"), image("busybox"));
        let scene = Scene { store, beside, archive, chains: chains(&layers), two, busybox, web, child, container };
        assert_eq!(scene.check(""), Vec::<String>::new());
        scene
    }

    fn fs(&self, below: &str) -> PathBuf {
        self.store.root().join("fs").join(below)
    }

    /// What `store check FLAGS` says of each finding: `KIND PATH BY OUTCOME`, sorted.
    #[track_caller]
    fn check(&self, flags: &str) -> Vec<String> {
        said(&self.store.run(&format!("store check --format json {flags}")))
    }

    /// Loads the image of two layers again.
    fn load(&self) {
        self.store.ok(&format!("image load -i {}", text(&self.archive)));
    }

    /// Everything that lies in the store, but for the times of directories.
    fn state(&self) -> BTreeMap<PathBuf, String> {
        state(&self.store)
    }

    /// Damage that a plain repair mends is found, told by a rehearsal, and mended.
    #[track_caller]
    fn mended(&self, found: &str) {
        self.mended_by("", found, "repair");
    }

    /// Damage that a repair with `flags` mends; without them it stays as it is.
    #[track_caller]
    fn mended_by(&self, flags: &str, found: &str, by: &str) {
        let deep = if flags.contains("--deep") { "--deep" } else { "" };
        let planted = self.state();
        assert_eq!(self.check(deep), [format!("{found} {by} found")]);
        assert_eq!(self.check(&format!("--repair --dry-run {flags}")), [format!("{found} {by} found")]);
        if by == "force" {
            let left = self.check(&format!("--repair {deep}"));
            assert_eq!(left, [format!("{found} {by} found")], "without --force it stays");
        }
        assert_eq!(changed(&planted, &self.state()), BTreeSet::new(), "to look changes nothing");
        let done = self.check(&format!("--repair {flags}"));
        assert!(done.contains(&format!("{found} {by} repaired")), "{done:?}");
        assert!(done.iter().all(|line| line.ends_with(" repaired")), "{done:?}");
        assert_eq!(self.check("--deep"), Vec::<String>::new(), "after the repair");
    }

    /// Damage that nothing mends, and that nothing is lost by trying.
    #[track_caller]
    fn stays(&self, flags: &str, found: &str) {
        let planted = self.state();
        let left = self.check(&format!("--repair {flags}"));
        assert_eq!(left, [found]);
        assert_eq!(changed(&planted, &self.state()), BTreeSet::new(), "nothing is lost by trying");
    }

    /// All images can be saved, and run, and everything has its name.
    #[track_caller]
    fn works(&self) {
        let out = self.beside.path().join("out.tar");
        let _ = fs::remove_file(&out);
        self.store.ok(&format!("image save -o {} two:1 busybox", text(&out)));
        self.store.ok("run --rm busybox true");
        self.store.ok("run --rm web true");
        self.store.ok("start --attach box");
        assert_eq!(self.store.ok("snapshot path web"), text(&self.fs(&format!("snapshots/{}/rootfs", self.web))));
    }
}

/// The findings that a check printed as JSON; its status has to fit.
#[track_caller]
fn said(done: &Done) -> Vec<String> {
    assert!(!done.stderr.contains("panicked"), "{done}");
    let found: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done}"));
    let found = found.as_array().expect("an array");
    let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().expect("a text").to_string();
    let mut lines = Vec::new();
    for finding in found {
        assert!(!text(finding, "Problem").is_empty() && !text(finding, "Action").is_empty(), "{finding}");
        assert_eq!(finding["Error"].is_string(), text(finding, "Outcome") == "failed", "{finding}");
        lines.push(["Kind", "Path", "By", "Outcome"].map(|key| text(finding, key)).join(" "));
    }
    let left = found.iter().any(|finding| finding["Outcome"] != "repaired");
    assert_eq!(done.status, i32::from(left), "{done}");
    lines.sort();
    lines
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn state(store: &Tupper) -> BTreeMap<PathBuf, String> {
    let top = store.root().join("fs");
    let mut state = BTreeMap::new();
    let mut next = vec![PathBuf::new()];
    while let Some(below) = next.pop() {
        let path = top.join(&below);
        let found = fs::symlink_metadata(&path).expect("an entry");
        let (mode, owner) = (found.mode(), (found.uid(), found.gid()));
        let mut told = format!("{mode:o} {owner:?} {:?} {:?}", found.rdev(), xattrs(&path));
        if found.is_dir() {
            next.extend(
                fs::read_dir(&path).expect("a directory").map(|entry| below.join(entry.expect("one").file_name())),
            );
        } else {
            told += &format!(" {} {:?}", found.len(), (found.mtime(), found.mtime_nsec()));
        }
        if found.is_symlink() {
            told += &format!(" -> {:?}", fs::read_link(&path).expect("a link"));
        }
        // The larger ones, of busybox, are told by their times.
        if found.is_file() && found.len() < 400_000 {
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&path).expect("a file"));
            told += &format!(" {:x}", hasher.finish());
        }
        state.insert(below, told);
    }
    state
}

/// The paths at which two states differ.
fn changed(one: &BTreeMap<PathBuf, String>, other: &BTreeMap<PathBuf, String>) -> BTreeSet<PathBuf> {
    let paths = one.keys().chain(other.keys());
    paths.filter(|path| one.get(*path) != other.get(*path)).cloned().collect()
}

fn set(object: &Path, name: &str, value: &[u8]) {
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    sh("setfattr", &["-n", name, "-v", &format!("0x{hex}"), text(object)]);
}

fn get(object: &Path, name: &str) -> String {
    sh("getfattr", &["--only-values", "-n", name, text(object)])
}

fn unset(object: &Path, name: &str) {
    sh("setfattr", &["-x", name, text(object)]);
}

fn read_only(subvolume: &Path, is: bool) {
    sh("btrfs", &["property", "set", "-f", text(subvolume), "ro", if is { "true" } else { "false" }]);
}
