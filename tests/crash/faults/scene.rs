//! A store in which a command is about to fail, and how it is judged afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::images;
use crate::scene::{entries, is_about};
use crate::support::command::{Done, Tupper};
use crate::support::traces::Traces;
use crate::support::{busybox, disk, sh};

/// The kernel ends some things a moment after the call that ended them: loop devices, orphaned processes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is in the snapshot `keep`.
const KEPT: &str = "from before\n";

/// What commands read: `tiny.tar` and `other.tar`, archives of a busybox with little beside it, and `tree/`.
pub struct Inputs {
    dir: tempfile::TempDir,
}

impl Inputs {
    pub fn new() -> Inputs {
        let dir = tempfile::Builder::new().prefix("tupper-faults-").tempdir().expect("a scratch directory");
        let inputs = Inputs { dir };
        images::save(inputs.dir.path());
        let tree = inputs.path("tree");
        for directory in ["bin", "etc/deep/er", "var"] {
            std::fs::create_dir_all(tree.join(directory)).expect("a directory");
        }
        sh("tar", &["-C", text(&tree), "-xf", text(&busybox()), "bin/arch", "bin/sh", "bin/true"]);
        std::fs::write(tree.join("etc/file"), vec![7; 100_000]).expect("a file");
        std::fs::hard_link(tree.join("etc/file"), tree.join("etc/hard")).expect("a link");
        std::os::unix::fs::symlink("etc/file", tree.join("link")).expect("a link");
        sh("mkfifo", &[text(&tree.join("fifo"))]);
        sh("setfattr", &["-n", "user.note", "-v", "it", text(&tree.join("etc/file"))]);
        sh("chown", &["-R", "1:1", text(&tree.join("var"))]);
        let at = |name| inputs.path(name).to_str().expect("a plain path").to_string();
        sh("tar", &["--xattrs", "-C", text(&tree), "-cf", &at("tiny.tar"), "."]);
        sh("tar", &["-C", text(&tree), "-cf", &at("other.tar"), "./etc", "./bin"]);
        inputs
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A store with the image `base` and the snapshot `keep` of it, which holds something of its own.
pub struct Scene<'a> {
    tupper: Tupper,
    inputs: &'a Inputs,
    /// Below it lies nothing but this store.
    top: PathBuf,
    uuid: String,
    /// What the ids of objects that were there before are called.
    labels: BTreeMap<String, String>,
}

impl<'a> Scene<'a> {
    /// The store is made, unless `bare`.
    pub fn new(top: PathBuf, inputs: &'a Inputs, bare: bool) -> Scene<'a> {
        std::fs::create_dir_all(&top).expect("a directory");
        let mut scene =
            Scene { tupper: Tupper::new(top.join("store")), inputs, top, uuid: String::new(), labels: BTreeMap::new() };
        if !bare {
            scene.ok("image import --name base tiny.tar");
            scene.ok("snapshot create base keep");
            std::fs::write(scene.keepsake(), KEPT).expect("write into the snapshot");
            // The first run leaves what is made once: which image was used last.
            scene.ok("run --rm base true");
            scene.learn();
        }
        scene
    }

    pub fn tupper(&self) -> &Tupper {
        &self.tupper
    }

    /// Runs a line in the directory of the inputs.
    pub fn run(&self, line: &str) -> Done {
        let mut command = self.tupper.command(line, &[]);
        command.current_dir(self.inputs.dir.path());
        crate::support::command::finish(command)
    }

    pub fn ok(&self, line: &str) -> String {
        self.run(line).ok()
    }

    /// Notes which objects are there.
    pub fn learn(&mut self) {
        let info: serde_json::Value = serde_json::from_str(&self.ok("store info --format json")).expect("JSON");
        self.uuid = info["Uuid"].as_str().expect("a UUID").to_string();
        for shelf in ["images", "layers", "snapshots", "containers"] {
            let entries = std::fs::read_dir(self.fs().join(shelf)).expect("a shelf").flatten();
            let born = |entry: &std::fs::DirEntry| entry.metadata().and_then(|meta| meta.created()).expect("statx");
            let mut ids: Vec<_> = entries.map(|entry| (born(&entry), entry.file_name())).collect();
            ids.sort();
            for (nth, (_, id)) in ids.into_iter().enumerate() {
                self.labels.insert(id.to_string_lossy().into_owned(), format!("<{shelf} {}>", nth + 1));
            }
        }
    }

    /// What the listings show, ids of objects that were not there before as `<new>`.
    pub fn visible(&self) -> Result<Vec<String>, String> {
        let mut lines = Vec::new();
        for listing in
            ["image ls --no-trunc --format json", "snapshot ls --no-trunc --format json", "ps -a --format json"]
        {
            let done = self.run(listing);
            // The first may have to mount the store, and says so.
            let strange = done.stderr.lines().any(|line| !line.starts_with("tupper: mounted the embedded store "));
            if done.status != 0 || strange {
                return Err(format!("a listing failed: {done}"));
            }
            let Ok(serde_json::Value::Array(listed)) = serde_json::from_str(&done.stdout) else {
                return Err(format!("a listing is no array: {done}"));
            };
            lines.extend(listed.iter().map(|object| self.plain(&format!("{} {}", object["Id"], object["Names"]))));
        }
        lines.sort();
        Ok(lines)
    }

    /// Everything that is there: entries of the store outside of root filesystems, and what is on the host for it.
    pub fn state(&self) -> Vec<String> {
        let mut lines = Vec::new();
        entries(&self.top, &self.top, &mut lines);
        let traces = Traces::outside(&self.top);
        for line in traces.named("") {
            match line.split_once(' ').expect("a kind of trace") {
                // Those of other stores are other tests'.
                ("process", pid) if !is_about(pid, &self.top) => {}
                ("cgroup" | "run", path) if self.uuid.is_empty() || !path.contains(&self.uuid) => {}
                // Which process, which device: the kernel's choice.
                ("process", _) => lines.push("process".to_string()),
                ("loop", device) => lines.push(format!("loop {}", device.rsplit(' ').next().unwrap_or_default())),
                _ => lines.push(line.to_string()),
            }
        }
        // An embedded store that is not mounted is an empty directory.
        if self.fs().join("images").exists() {
            // The path of a subvolume begins at the top of the filesystem, which other stores may share.
            let ours = self.top.file_name().expect("a name").to_str().expect("a plain path");
            let below = disk::subvolumes(&self.fs()).into_iter();
            let below = below.filter(|path| !path.contains("pool/"));
            lines.extend(below.filter(|path| path.contains(ours) || !path.contains("store")));
        }
        let mut lines: Vec<String> = lines.iter().map(|line| self.plain(line)).collect();
        lines.sort();
        lines
    }

    /// Judges what a failed command left, as soon as nothing fails any more.
    pub fn clean(&self) -> Result<(), String> {
        for line in ["store gc", "store check"] {
            let done = self.run(line);
            // The first may have to mount the store, and says so.
            let strange = done.stderr.lines().any(|line| !line.starts_with("tupper: mounted the embedded store "));
            if done.status != 0 || strange {
                return Err(done.to_string());
            }
        }
        Ok(())
    }

    /// Which of these states it is in, or how it differs from the nearest.
    pub fn compare<'s>(&self, states: &[(&'s str, &[String])]) -> Result<&'s str, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.state();
            match states.iter().find(|(_, state)| *state == now.as_slice()) {
                Some((what, _)) => return Ok(what),
                None if Instant::now() > end => return Err(nearest(&now, states)),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// What was there before is still whole.
    pub fn intact(&self) -> Result<(), String> {
        let kept = std::fs::read_to_string(self.keepsake()).map_err(|e| format!("the snapshot from before: {e}"))?;
        if kept != KEPT {
            return Err(format!("the snapshot from before holds {kept:?}"));
        }
        let run = self.run("run --rm base sh -c true");
        if run.status != 0 || !run.stderr.is_empty() {
            return Err(format!("the image from before: {run}"));
        }
        Ok(())
    }

    pub fn fs(&self) -> PathBuf {
        self.tupper.root().join("fs")
    }

    fn keepsake(&self) -> PathBuf {
        let names = self.fs().join("names");
        let target = std::fs::read_link(names.join("keep")).unwrap_or_default();
        names.join(target).join("rootfs/kept")
    }

    /// The line without what is another one each time.
    pub fn plain(&self, line: &str) -> String {
        let mut line = line.replace(text(&self.top), "<top>").replace(text(self.inputs.dir.path()), "<inputs>");
        if !self.uuid.is_empty() {
            line = line.replace(&self.uuid, "<uuid>");
        }
        if let Some(name) = self.top.file_name() {
            line = line.replace(name.to_str().expect("a plain path"), "<top>");
        }
        let mut plain = String::new();
        for part in line.split_inclusive(|c: char| !c.is_ascii_hexdigit()) {
            let digits = part.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
            match digits.len() {
                64 => plain.push_str(self.labels.get(digits).map_or("<new>", String::as_str)),
                _ => plain.push_str(digits),
            }
            plain.push_str(&part[digits.len()..]);
        }
        plain
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        // An embedded store holds a loop device and room.
        if self.tupper.root().join("store.btrfs").exists() {
            self.run("store umount");
            let _ = std::fs::remove_dir_all(&self.top);
        }
    }
}

fn nearest(now: &[String], states: &[(&str, &[String])]) -> String {
    let less = |a: &[String], b: &[String]| -> Vec<String> {
        let b: BTreeSet<&String> = b.iter().collect();
        a.iter().filter(|line| !b.contains(line)).cloned().collect()
    };
    let differences = states.iter().map(|(what, state)| (what, less(now, state), less(state, now)));
    let (what, more, missing) =
        differences.min_by_key(|(_, more, missing)| more.len() + missing.len()).expect("a state");
    let mut text = format!("nearest to {what:?}:");
    for (sign, lines) in [('+', more), ('-', missing)] {
        lines.iter().for_each(|line| write!(text, "\n      {sign} {line}").expect("a string"));
    }
    text
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
