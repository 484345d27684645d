//! The scene of a sweep: a store that a command was prepared for, all that can be seen of it, and how it is cleaned up.
//!
//! What is made anew in each scene differs in ids, paths and times only. Ids are replaced by what they stand for, times
//! are left out, and so is the status with which a container ended, which depends on when it was killed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::images;
use crate::support::command::{Done, Tupper, finish, wait};
use crate::support::disk::{self, Device, Disk};
use crate::support::http::Server;
use crate::support::traces::Traces;
use crate::support::{busybox, eventually, sh};
use crate::trace;

/// The kernel ends some things a moment after the call that ended them: loop devices, cgroups.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is in the snapshot `keep`.
const KEPT: &str = "from before\n";

/// Fields of listings that time changes, or that say how far a container came before it was killed.
const VOLATILE: [&str; 10] =
    ["created", "Created", "CreatedAt", "Status", "StartedAt", "Exited", "ExitedAt", "ExitCode", "ExpiresAt", "Pid"];

/// What was done in a scene before.
pub enum Before {
    /// `tupper LINE`.
    Done(&'static str),
    /// `tupper LINE`, which ends with this status.
    Failed(&'static str, i32),
    /// `tupper LINE`, killed at its Nth system call of this name that changes something.
    Killed(&'static str, &'static str, u32),
}

/// Where the command runs, and what is there before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A store on btrfs with the image `base` and a snapshot `keep` of it.
    Store,
    /// A btrfs without a store.
    Btrfs,
    /// An ext4 without a store.
    Ext4,
}

/// A filesystem for stores, and what their commands read.
pub struct Place {
    // Dropped in this order.
    disk: Disk,
    device: Device,
    inputs: TempDir,
    busybox: PathBuf,
    ground: Ground,
    registry: Server,
    stores: Cell<u32>,
}

impl Place {
    pub fn new(ground: Ground) -> Place {
        let disk = match ground {
            Ground::Ext4 => Disk::ext4(2 << 30),
            Ground::Store | Ground::Btrfs => Disk::btrfs(),
        };
        let inputs = tempfile::Builder::new().prefix("tupper-sweep-").tempdir().expect("a scratch directory");
        let tree = inputs.path().join("tree");
        for directory in ["bin", "etc/deep/er", "var"] {
            std::fs::create_dir_all(tree.join(directory)).expect("a directory");
        }
        std::fs::write(tree.join("etc/file"), vec![7; 100_000]).expect("a file");
        std::os::unix::fs::symlink("etc/file", tree.join("link")).expect("a link");
        if ground != Ground::Ext4 {
            let beside = disk.path().join("beside");
            sh("btrfs", &["subvolume", "create", beside.to_str().expect("a plain path")]);
            std::fs::write(beside.join("file"), KEPT).expect("a file");
        }
        let at = |name: &str| inputs.path().join(name).to_str().expect("a plain path").to_string();
        sh("tar", &["-C", &at("tree"), "-cf", &at("tiny.tar"), "."]);
        sh("tar", &["-C", &at("tree"), "-cf", &at("other.tar"), "./etc"]);
        images::save(inputs.path());
        let registry = images::registry();
        Place { disk, device: Device::new(1 << 30), inputs, busybox: busybox(), ground, registry, stores: Cell::new(0) }
    }
}

/// A store in which the command is about to run.
pub struct Scene {
    tupper: Tupper,
    ground: Ground,
    inputs: PathBuf,
    /// Where the registry is.
    registry: String,
    /// A block device for stores.
    device: String,
    /// What ids stand for that were there before.
    labels: BTreeMap<String, String>,
    uuid: String,
    /// Where the snapshot `keep` holds something that no image does.
    keepsake: PathBuf,
    beside: Option<Child>,
    /// It is about networks, so that those are looked at, too.
    networks: bool,
    /// Something may run that nobody waits for.
    detached: bool,
}

impl Scene {
    pub fn prepare(place: &Place, before: &[Before], beside: Option<&str>, networks: bool) -> Scene {
        place.stores.set(place.stores.get() + 1);
        let mut scene = Scene {
            tupper: Tupper::new(place.disk.path().join(format!("store-{}", place.stores.get()))),
            ground: place.ground,
            inputs: place.inputs.path().to_path_buf(),
            registry: place.registry.host(),
            device: place.device.path().to_string(),
            labels: BTreeMap::new(),
            uuid: String::new(),
            keepsake: PathBuf::new(),
            beside: None,
            networks,
            detached: before.iter().any(|before| matches!(before, Before::Done(line) if line.contains("run -d"))),
        };
        let _ = std::fs::remove_dir_all(scene.out());
        std::fs::create_dir(scene.out()).expect("a directory");
        if scene.ground == Ground::Store {
            scene.ok(&format!("image import --name base {}", place.busybox.display()));
            scene.ok("snapshot create base keep");
            scene.keepsake = PathBuf::from(scene.ok("snapshot path keep")).join("kept");
            std::fs::write(&scene.keepsake, KEPT).expect("write into the snapshot");
            // The first run leaves what is made once: which image was used last.
            scene.ok("run --rm base true");
        }
        for before in before {
            match before {
                Before::Done(line) => {
                    scene.ok(line);
                    wait_for_pool(scene.root(), line);
                }
                Before::Failed(line, status) => drop(scene.tupper(line).status(*status)),
                Before::Killed(line, call, nth) => {
                    let seen = AtomicU32::new(0);
                    let kills = |made: &trace::Call| {
                        let before = seen.fetch_add(u32::from(made.name == *call), Ordering::Relaxed);
                        before + 1 == *nth && made.name == *call
                    };
                    let traced = trace::run(scene.traced(line), kills).unwrap_or_else(|e| panic!("{e}"));
                    assert!(traced.killed, "{line}: no {call}");
                }
            }
        }
        if let Some(line) = beside {
            let mut command = scene.command(line);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            scene.beside = Some(command.spawn().expect("tupper"));
            eventually("the container runs", Duration::from_secs(120), || !scene.ok("ps -q").is_empty());
        }
        scene.learn();
        scene
    }

    /// What this `tupper LINE` prints; it has to succeed.
    pub fn ok(&self, line: &str) -> String {
        self.tupper(line).ok()
    }

    /// Kills, by SIGKILL, the process whose container `web` runs meanwhile.
    pub fn kill_beside(&mut self) {
        let monitor = self.tupper.monitor("web");
        nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).expect("kill it");
        let mut child = self.beside.take().expect("something runs beside it");
        child.wait().expect("wait for it");
    }

    /// Runs this `tupper LINE`, and kills the monitor that it makes when its command has just been started.
    pub fn kill_monitor_of(&self, line: &str) {
        // It is about to say so.
        let begins = |call: &trace::Call| call.name == "sendto" && call.to_string().ends_with("(child)");
        let traced =
            trace::run_dealing(trace::Blow::Caller, self.traced(line), begins).unwrap_or_else(|e| panic!("{e}"));
        assert!(traced.killed, "{line}: {:?}", traced.calls);
    }

    fn tupper(&self, line: &str) -> Done {
        finish(self.command(line))
    }

    fn command(&self, line: &str) -> Command {
        // As a shell reads it.
        let (line, input) = line.split_once(" < ").map_or((line, None), |(line, input)| (line, Some(input)));
        let beside = self.root().with_file_name("beside");
        let mut line = line.replace("REGISTRY", &self.registry).replace("DIGEST", &images::digest());
        line = line.replace("DEVICE", &self.device);
        line = line.replace("BESIDE", beside.to_str().expect("a plain path"));
        if line.contains("TRASHED") {
            line = line.replace("TRASHED", &self.ok("snapshot trash ls --quiet --no-trunc"));
        }
        let mut command = self.tupper.command(&line, &[]);
        command.current_dir(&self.inputs);
        if let Some(input) = input {
            command.stdin(File::open(self.inputs.join(input)).expect("an input"));
        }
        command
    }

    /// The command as the tracer runs it: standard output is a file, so that an acknowledgement is a change.
    pub fn traced(&self, line: &str) -> Command {
        let mut command = self.command(line);
        let said = File::create(self.inputs.join("said")).expect("a file");
        command.stderr(said.try_clone().expect("dup")).stdout(said);
        command
    }

    /// What the last traced command printed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.inputs.join("said")).unwrap_or_default()
    }

    fn root(&self) -> &Path {
        self.tupper.root()
    }

    /// Where commands write files of the host's.
    fn out(&self) -> PathBuf {
        self.inputs.join("out")
    }

    /// The layers that are there, each with the inode number of its directory.
    pub fn layers(&self) -> BTreeMap<String, u64> {
        let entries = std::fs::read_dir(self.root().join("fs/layers")).expect("layers").flatten();
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.ino())).collect()
    }

    fn has_store(&self) -> bool {
        self.root().join("fs/names").exists()
    }

    /// Gives each id that is there a name: its shelf, and how many came to it before.
    fn learn(&mut self) {
        if !self.has_store() {
            return;
        }
        let info = self.tupper.json("store info --format json");
        self.uuid = info["Uuid"].as_str().expect("a UUID").to_string();
        for shelf in ["images", "layers", "snapshots", "containers"] {
            let entries = std::fs::read_dir(self.root().join("fs").join(shelf)).expect("a shelf").flatten();
            let mut born: Vec<_> = entries
                .map(|entry| (entry.metadata().and_then(|meta| meta.created()).expect("statx"), entry.file_name()))
                .collect();
            born.sort();
            for (nth, (_, id)) in born.into_iter().enumerate() {
                self.labels.insert(id.to_string_lossy().into_owned(), format!("<{shelf} {}>", nth + 1));
            }
        }
    }

    /// Cleans up what a killed command left; `store check` finds nothing afterwards.
    pub fn clean(&self, cleaning: Cleaning) -> Result<(), String> {
        let lines: &[&str] = match (cleaning, self.ground) {
            (Cleaning::None, _) => return Ok(()),
            (Cleaning::Gc, _) => &["store gc", "store check"],
            (Cleaning::Next, Ground::Store) => &["snapshot create base probe", "snapshot rm probe", "store check"],
            (Cleaning::Next, _) => &["image import --name probe other.tar", "image rm probe", "store check"],
        };
        if self.networks {
            // Until then whoever was to take a network away may be about to (LINGER, src/network/used.rs).
            std::thread::sleep(Duration::from_millis(700));
        }
        let failed = lines.iter().map(|line| self.tupper(line)).find(|done| done.status != 0);
        failed.map_or(Ok(()), |done| Err(done.to_string()))
    }

    /// What a killed command left is garbage, and not damage.
    pub fn undamaged(&self) -> Result<(), String> {
        let done = self.tupper("store check --format json");
        let Ok(Value::Array(found)) = serde_json::from_str(&done.stdout) else {
            // There is no store yet.
            return if self.ground == Ground::Store { Err(done.to_string()) } else { Ok(()) };
        };
        let damage = found.iter().find(|finding| finding["Garbage"] != true);
        damage.map_or(Ok(()), |damage| Err(format!("damage: {damage}")))
    }

    /// What was there before is still whole.
    pub fn intact(&self) -> Result<(), String> {
        if self.ground != Ground::Store {
            return Ok(());
        }
        let kept = std::fs::read_to_string(&self.keepsake).map_err(|e| format!("the snapshot from before: {e}"))?;
        let run = self.tupper("run --rm base cat /etc/nsswitch.conf");
        match (kept == KEPT, run.status == 0 && run.stdout == "hosts: files dns\n") {
            (true, true) => Ok(()),
            (false, _) => Err(format!("the snapshot from before holds {kept:?}")),
            (_, false) => Err(format!("the image from before: {run}")),
        }
    }

    /// Asks for the state again until it is one that was waited for, or patience ends: soon where nobody cleaned up.
    pub fn settle(&mut self, cleaning: Cleaning, mut is_it: impl FnMut(&[String]) -> bool) {
        let end = Instant::now() + if cleaning == Cleaning::None { PATIENCE / 20 } else { PATIENCE };
        while !is_it(&self.state()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything that can be compared, a line each, sorted: mounts, loop devices and subvolumes of the store, its cgroups
    /// and run state, processes of tupper, directory entries, and the listings.
    pub fn state(&mut self) -> Vec<String> {
        // A child that nobody waits for stays.
        self.beside.as_mut().map(Child::try_wait);
        // First of all: a listing would mount a store that is not mounted.
        let mut lines = self.traces();
        entries(self.root(), self.root(), &mut lines);
        let out = std::fs::read_dir(self.out()).into_iter().flatten().flatten();
        lines.extend(out.map(|entry| format!("file {} holds {}", entry.file_name().display(), summary(&entry.path()))));
        let listings = ["image ls", "snapshot ls", "snapshot trash ls", "ps -a", "volume ls", "network ls"];
        for listing in &listings[..if self.networks { 6 } else { 5 }] {
            let done = self.tupper(&format!("{listing} --format json"));
            let Ok(Value::Array(listed)) = serde_json::from_str(&done.stdout) else {
                lines.push(done.to_string());
                continue;
            };
            for mut object in listed {
                if let Some(top) = object["Mountpoint"].as_str() {
                    let entries = std::fs::read_dir(top).map_or(0, Iterator::count);
                    lines.push(format!("volume {} holds {entries} entries", object["Name"]));
                }
                object.as_object_mut().expect("an object").retain(|name, _| !VOLATILE.contains(&name.as_str()));
                lines.push(format!("{listing}: {object}"));
            }
        }
        let mut lines: Vec<String> = lines.iter().map(|line| self.plain(line)).collect();
        lines.sort();
        lines
    }

    fn traces(&self) -> Vec<String> {
        let traces = Traces::outside(self.root());
        let mut lines = if self.networks { networks() } else { Vec::new() };
        for line in traces.named("") {
            // Which process, which device: the kernel's choice. And other stores have cgroups and run state, too.
            match line.split_once(' ').expect("a kind of trace") {
                // Those of other stores are other sweeps'.
                ("process", pid) if !self.networks && !is_about(pid, self.root()) => {}
                ("process", _) => lines.push("process".to_string()),
                ("cgroup" | "run", path) if self.uuid.is_empty() || !path.contains(&self.uuid) => {}
                // Which range of ids is free depends on who else is on the host.
                ("run", path) if path.starts_with("/run/tupper/ids/") => {
                    let whose = path.split_once('.').expect("a range and whose it is").1;
                    lines.push(format!("range of ids {whose}"));
                }
                ("loop", device) => lines.push(format!("loop {}", device.split(' ').next_back().expect("a file"))),
                _ => lines.push(line.to_string()),
            }
        }
        if self.has_store() {
            // Their paths begin at the top of the filesystem, which other stores may share.
            let root = self.root().file_name().expect("a name").to_string_lossy();
            // btrfs-subvolume(8): below the subvolume that is asked about, paths begin there.
            let top = match self.ground {
                Ground::Ext4 => self.root().join("fs"),
                Ground::Store | Ground::Btrfs => self.root().parent().expect("the mount").to_path_buf(),
            };
            let subvolumes = disk::subvolumes(&top);
            let ours =
                subvolumes.iter().filter(|path| self.ground == Ground::Ext4 || path.split('/').next() == Some(&root));
            // Their directories are looked at.
            let ours = ours.filter(|path| !path.contains("fs/pool/"));
            lines.extend(ours.map(|path| format!("subvolume {path}").replace(&*root, "<store>")));
        }
        lines
    }

    /// The line without what is another one each time.
    pub fn plain(&self, line: &str) -> String {
        let line = line.replace(self.root().to_str().expect("a plain path"), "<root>");
        let line = line.replace(self.inputs.to_str().expect("a plain path"), "<inputs>");
        let line = if self.uuid.is_empty() { line } else { line.replace(&self.uuid, "<uuid>") };
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

impl Drop for Scene {
    fn drop(&mut self) {
        let beside = self.beside.take();
        if beside.is_some() || self.detached {
            for id in self.tupper("ps -q").stdout.lines() {
                self.tupper(&format!("rm --force {id}"));
            }
        }
        if let Some(child) = beside {
            wait(child, "what ran beside a sweep");
        }
        if self.ground == Ground::Ext4 {
            // Its file takes place on the disk, and its name.
            self.tupper("store umount");
            let _ = std::fs::remove_dir_all(self.root());
        }
    }
}

/// How many bytes a file has: of two that differ in it, one is not whole.
fn summary(path: &Path) -> String {
    match path.is_dir() {
        true => format!("{} entries", std::fs::read_dir(path).map_or(0, Iterator::count)),
        false => format!("{} bytes", std::fs::metadata(path).map_or(0, |meta| meta.len())),
    }
}

/// Every entry below `dir`, but what is in root filesystems: its path, and where it leads.
pub fn entries(top: &Path, dir: &Path, lines: &mut Vec<String>) {
    // A root that is not there and one that is empty are the same to everybody.
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // Ready snapshots come and go, and so does what they are snapshots of; what is there of the pool and has no mark was left by
        // somebody who was killed.
        if is_ready(&path) || has_mark(&path, "user.tupper.base") {
            continue;
        }
        let shown = path.strip_prefix(top).expect("below the top").display();
        match std::fs::read_link(&path) {
            // Which filesystem it is that was made.
            Ok(target) if target.starts_with("/dev") => lines.push(format!("entry {shown} -> a device")),
            Ok(target) => lines.push(format!("entry {shown} -> {}", target.display())),
            Err(_) => lines.push(format!("entry {shown}")),
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "rootfs" {
            entries(top, &path, lines);
        }
    }
}

/// Until what a first `tupper LINE` has made for the next is there.
pub fn wait_for_pool(root: &Path, line: &str) {
    let entries = || std::fs::read_dir(root.join("fs/pool")).into_iter().flatten().flatten();
    let filled = || entries().filter(|entry| is_ready(&entry.path())).count() == 8;
    let quiet = || std::fs::read_dir(root.join("fs/staging")).is_ok_and(|mut staging| staging.next().is_none());
    if line.contains("--pool on") {
        eventually("the pool is filled", PATIENCE, || filled() && quiet());
    }
}

fn is_ready(entry: &Path) -> bool {
    has_mark(entry, "user.tupper.ready")
}

fn has_mark(entry: &Path, name: &str) -> bool {
    rustix::fs::getxattr(entry, name, &mut [0; 100][..]).is_ok()
}

/// How what a killed command left is cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleaning {
    /// By `store gc`.
    Gc,
    /// By the next command that writes.
    Next,
    /// Not at all.
    None,
}

impl Cleaning {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Cleaning::Gc => "`store gc`",
            Cleaning::Next => "the next command",
            Cleaning::None => "nothing",
        }
    }
}

/// Whether the command line of a process names the store at `root`: that of a command, its children and its monitor.
pub fn is_about(pid: &str, root: &Path) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains(root.to_str().expect("a plain path")))
}

/// Links, rules and networks in use, of whichever store: sweeps that are about networks run alone.
fn networks() -> Vec<String> {
    let links = std::fs::read_dir("/sys/class/net").expect("links").flatten();
    let links = links.filter(|link| link.file_name().to_string_lossy().starts_with("tupper"));
    let mut lines: Vec<String> = links.map(|_| "link".to_string()).collect();
    let tables = sh("nft", &["list", "tables"]);
    lines.extend(tables.lines().filter(|line| line.contains("tupper_")).map(|_| "table of rules".to_string()));
    let used = std::fs::read_dir("/run/tupper/networks").into_iter().flatten();
    lines.extend(used.map(|_| "network in use".to_string()));
    lines
}
