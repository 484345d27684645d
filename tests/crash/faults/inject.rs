//! Every system call of a command that can fail, made to fail once: one run for each.
//!
//! strace(1) makes the Nth call of a name in each thread return an error instead of being made. Afterwards nothing fails
//! any more, and
//! - the command succeeded, and what it does is done; or it failed with one line that says why, and the listings show what
//!   was there before it or what would be there after it;
//! - `store gc` leaves a store in which `store check` finds nothing, and nothing more on the host than before;
//! - what was there before works.
//!
//! Without further notice each stage is sampled. `TUPPER_SWEEP=whole` takes every call with every error,
//! `TUPPER_SWEEP=mkdirat:EIO:3` that one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::scene::{Inputs, Scene, text};
use crate::images;
use crate::scene::wait_for_pool;
use crate::support::command::{Done, finish};
use crate::support::disk::Disk;
use crate::support::http::Server;
use crate::support::store::Host;

/// Points of a stage that is sampled.
const SAMPLE: usize = 8;

/// Calls, and the errors that each of them returns for one reason or another.
const FAULTS: &[(&[&str], &[&str])] = &[
    (
        &[
            "mkdir",
            "mkdirat",
            "symlinkat",
            "linkat",
            "mknodat",
            "rename",
            "renameat",
            "renameat2",
            "write",
            "pwrite64",
            "ftruncate",
            "fsetxattr",
            "lsetxattr",
            "fchmod",
            "fchmodat",
            "fchown",
            "fchownat",
            "utimensat",
            "syncfs",
            "fsync",
            "unlink",
            "unlinkat",
            "ioctl",
        ],
        &["ENOSPC", "EIO", "EROFS"],
    ),
    (&["openat", "openat2"], &["EMFILE", "ENFILE", "EIO", "ENOSPC", "EROFS", "ENOMEM"]),
    (&["open_tree", "fsopen", "fsmount", "socketpair", "socket", "signalfd4"], &["EMFILE", "ENOMEM"]),
    (&["clone3", "mount", "umount2", "move_mount", "fsconfig", "mount_setattr", "pivot_root"], &["ENOMEM", "EIO"]),
    (
        &[
            "read",
            "pread64",
            "getdents64",
            "newfstatat",
            "statx",
            "fstatfs",
            "statfs",
            "readlinkat",
            "readlink",
            "fgetxattr",
            "lgetxattr",
            "lseek",
            "flock",
        ],
        &["EIO", "ENOMEM"],
    ),
    (
        &["poll", "waitid", "recvmsg", "sendmsg", "pidfd_send_signal", "unshare", "chroot", "fchdir", "chdir"],
        &["ENOMEM"],
    ),
];

const AGAIN: &str = "resource temporarily unavailable";

fn words(error: &str) -> &'static str {
    match error {
        "ENOSPC" => "no space left on device",
        "EIO" => "I/O error",
        "EROFS" => "read-only file system",
        "EMFILE" => "too many open files",
        "ENFILE" => "file table overflow",
        "ENOMEM" => "out of memory",
        other => panic!("no words for {other}"),
    }
}

/// Where a command runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ground {
    /// In a store with something in it.
    Store,
    /// On a btrfs without a store.
    Btrfs,
    /// On an ext4 without a store.
    Ext4,
}

/// A command, and what comes before it.
struct Stage {
    line: &'static str,
    before: &'static [&'static str],
    ground: Ground,
    /// One of these words is in every error: what the command was asked to work on.
    about: &'static [&'static str],
    /// How many layers may stay for the next attempt when it fails.
    keeps: usize,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    call: String,
    error: String,
    number: u32,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.call, self.error, self.number)
    }
}

impl Stage {
    fn run(&self) {
        let _host = Host::shared();
        let place = Place::new(self.ground);
        let scene = place.scene(self);
        let counts = counted(&scene, &place, self.line, self.ground);
        scene.clean().unwrap_or_else(|e| panic!("{}: {e}", self.line));
        let after = Whole::of(&scene);
        drop(scene);
        let mut scene = place.scene(self);
        let before = Whole::of(&scene);
        // Told at once, and not with eprintln!, which a test that passes would keep to itself.
        let mut violations = Vec::new();
        let mut tried = 0;
        for point in chosen(&counts) {
            let (done, hit) = inject(&scene, &place, self.line, &point);
            let Some(hit) = hit else {
                // It was done.
                drop(scene);
                scene = place.scene(self);
                continue;
            };
            tried += 1;
            match self.judge(&scene, &point, &done, &before, &after) {
                Ok(now) if *now == before => continue,
                Ok(_) => {}
                Err(e) => {
                    let violation = scene.plain(&format!("{point} ({hit}): {e}\n    after {done}"));
                    let _ = writeln!(std::io::stderr(), "{}: {violation}", self.line);
                    violations.push(violation);
                }
            }
            drop(scene);
            scene = place.scene(self);
        }
        let line = self.line;
        let _ = writeln!(std::io::stderr(), "faults in {line}: {tried} points, {} violations", violations.len());
        assert!(violations.is_empty(), "{line}: {} of {tried}\n{}", violations.len(), violations.join("\n"));
    }
}

impl Stage {
    /// What came of it, if that is in order.
    fn judge<'w>(
        &self,
        scene: &Scene<'_>,
        point: &Point,
        done: &Done,
        before: &'w Whole,
        after: &'w Whole,
    ) -> Result<&'w Whole, String> {
        said(self, point, done)?;
        if self.ground == Ground::Store {
            let mut visible = scene.visible()?;
            // A container that was to go and could not is said, shown, and gone with the next gc.
            if done.stderr.contains("warning: clean up after container") {
                visible.retain(|line| !line.contains("<new>"));
            }
            if visible != before.visible && visible != after.visible {
                return Err(format!("something is half visible: {visible:#?}"));
            }
        }
        scene.clean()?;
        let mut made_directory = before.state.clone();
        made_directory.push("entry store".to_string());
        let kept: Vec<Vec<String>> = (1..=self.keeps).map(|layers| with_layers(&before.state, layers)).collect();
        let mut states: Vec<(&str, &[String])> = vec![
            ("before", &before.state),
            ("after", &after.state),
            ("before, with the store's directory", &made_directory),
        ];
        states.extend(kept.iter().map(|state| ("before, with layers for the next attempt", state.as_slice())));
        let came = scene.compare(&states)?;
        if came.ends_with("attempt") && done.status != 0 {
            scene.intact()?;
            return Ok(&PARTLY);
        }
        let came = if came == "after" || before == after { after } else { before };
        if done.status == 0 && came != after {
            return Err("it succeeded and did nothing".to_string());
        }
        if self.ground == Ground::Store {
            scene.intact()?;
        }
        Ok(came)
    }
}

/// Neither as before nor as after, and in order.
static PARTLY: Whole = Whole { state: Vec::new(), visible: Vec::new() };

/// The state with so many layers more.
fn with_layers(state: &[String], layers: usize) -> Vec<String> {
    let more = [
        "entry store/fs/layers/<new>",
        "entry store/fs/layers/<new>/recipe",
        "entry store/fs/layers/<new>/rootfs",
        "layers/<new>/rootfs",
    ];
    let more = more.into_iter().flat_map(|line| std::iter::repeat_n(line.to_string(), layers));
    let mut state: Vec<String> = state.iter().cloned().chain(more).collect();
    state.sort();
    state
}

/// A filesystem for the stores of a stage.
struct Place {
    // Dropped in this order.
    disk: Disk,
    inputs: Inputs,
    log: tempfile::NamedTempFile,
    registry: Server,
    made: std::cell::Cell<u32>,
}

impl Place {
    fn new(ground: Ground) -> Place {
        let disk = if ground == Ground::Ext4 { Disk::ext4(2 << 30) } else { Disk::btrfs() };
        let log = tempfile::NamedTempFile::new().expect("a file");
        Place { disk, inputs: Inputs::new(), log, registry: images::registry(), made: std::cell::Cell::new(0) }
    }

    /// A new store, as the command finds it.
    fn scene(&self, stage: &Stage) -> Scene<'_> {
        self.made.set(self.made.get() + 1);
        let top: PathBuf = self.disk.path().join(format!("top-{:04}", self.made.get()));
        let mut scene = Scene::new(top, &self.inputs, stage.ground != Ground::Store);
        for line in stage.before {
            scene.ok(line);
            wait_for_pool(scene.tupper().root(), line);
        }
        if stage.ground == Ground::Store {
            scene.learn();
        }
        scene
    }
}

/// All that can be compared.
#[derive(Clone, PartialEq, Eq)]
struct Whole {
    state: Vec<String>,
    /// What the listings show.
    visible: Vec<String>,
}

impl Whole {
    fn of(scene: &Scene<'_>) -> Whole {
        // First of all: a listing would mount a store that is not mounted.
        let state = scene.state();
        Whole { state, visible: scene.visible().unwrap_or_else(|e| panic!("{e}")) }
    }
}

/// How often a thread of the command makes each call, at the most.
fn counted(scene: &Scene<'_>, place: &Place, line: &str, ground: Ground) -> BTreeMap<String, u32> {
    let calls: Vec<&str> = FAULTS.iter().flat_map(|(calls, _)| calls.iter().copied()).collect();
    let done = strace(scene, place, line, &[&format!("trace={}", calls.join(","))]);
    assert_eq!(done.status, 0, "{line} failed without a fault: {done}");
    let log = std::fs::read(place.log.path()).expect("the log");
    let log = String::from_utf8_lossy(&log);
    let first = log.split_whitespace().next().unwrap_or_default();
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if ground == Ground::Ext4 && pid != first && !FAULTS[0].0.contains(&call) {
            continue; // mkfs.btrfs only looks
        }
        if call.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            *counts.entry((call.to_string(), pid.to_string())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for ((call, _), count) in counts {
        let entry = most.entry(call).or_default();
        *entry = count.max(*entry);
    }
    most
}

fn chosen(counts: &BTreeMap<String, u32>) -> Vec<Point> {
    let wanted = std::env::var("TUPPER_SWEEP").ok();
    let parts: Vec<&str> = wanted.iter().flat_map(|wanted| wanted.split(':')).collect();
    if let [call, error, number] = parts[..] {
        let number = number.parse().expect("TUPPER_SWEEP is `whole` or CALL:ERROR:NUMBER");
        return vec![Point { call: call.to_string(), error: error.to_string(), number }];
    }
    let whole = parts == ["whole"];
    let mut all = BTreeSet::new();
    for (calls, errors) in FAULTS {
        for call in *calls {
            let Some(count) = counts.get(*call) else { continue };
            for (nth, error) in errors.iter().enumerate() {
                for number in 1..=*count {
                    // A sample has one error for each call, another one each time.
                    if whole || number as usize % errors.len() == nth {
                        all.insert(Point { call: call.to_string(), error: error.to_string(), number });
                    }
                }
            }
        }
    }
    if whole {
        return all.into_iter().collect();
    }
    let all: Vec<Point> = all.into_iter().collect();
    let step = all.len().div_ceil(SAMPLE).max(1);
    all.into_iter().step_by(step).collect()
}

/// Runs the command with that fault; the call that failed, if there was one.
fn inject(scene: &Scene<'_>, place: &Place, line: &str, point: &Point) -> (Done, Option<String>) {
    let Point { call, error, number } = point;
    let done =
        strace(scene, place, line, &[&format!("trace={call}"), &format!("inject={call}:error={error}:when={number}")]);
    let log = std::fs::read(place.log.path()).expect("the log");
    let log = String::from_utf8_lossy(&log);
    let hits: Vec<&str> = log.lines().filter(|line| line.ends_with("(INJECTED)")).collect();
    // That it could not say why is in order; and FIONBIO, which cannot fail, is the standard library's, which panics, as does
    // tokio when it cannot write to an eventfd, which fails for other reasons only (eventfd(2)).
    let cannot_fail = ["FIONBIO", r#""\1\0\0\0\0\0\0\0", 8)"#];
    let mute = hits.iter().any(|line| line.contains(" write(2, ") || cannot_fail.iter().any(|it| line.contains(it)));
    let hit = hits.first().filter(|_| !mute).map(|line| {
        line.split_once(' ').map_or(*line, |(_, call)| call.trim()).trim_end_matches("(INJECTED)").to_string()
    });
    (done, hit)
}

fn strace(scene: &Scene<'_>, place: &Place, line: &str, expressions: &[&str]) -> Done {
    let command = scene.tupper().command(&line.replace("REGISTRY", &place.registry.host()), &[]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-o", text(place.log.path())]);
    strace.args(expressions.iter().flat_map(|expression| ["-e", expression]));
    strace.arg(command.get_program()).args(command.get_args()).stdin(std::process::Stdio::null());
    strace.current_dir(place.inputs.path(""));
    finish(strace)
}

/// Whether it said what a person needs to know: warnings, and at the end, if it failed, one error with its cause.
fn said(stage: &Stage, point: &Point, done: &Done) -> Result<(), String> {
    let lines: Vec<&str> = done.stderr.lines().collect();
    let is_error = |line: &&&str| line.starts_with("tupper: error: ");
    let errors: Vec<&&str> = lines.iter().filter(is_error).collect();
    let rest = lines.iter().filter(|line| !is_error(line));
    let plain = ["tupper: ", "hint: "];
    if let Some(strange) = rest.clone().find(|line| !plain.iter().any(|begin| line.starts_with(begin))) {
        return Err(format!("it says {strange:?}"));
    }
    match (done.status, errors.as_slice()) {
        (0, []) => return Ok(()),
        (0, _) => return Err("status 0 with an error".to_string()),
        (1 | 125, [_]) => {}
        _ => return Err("not one error with status 1 or 125".to_string()),
    }
    let runs = ["run", "start"].iter().any(|verb| stage.line.starts_with(verb));
    if runs && done.status != 125 {
        return Err("run fails with 125".to_string());
    }
    let error = errors[0].trim_start_matches("tupper: error: ");
    // What could not be done, and to what: an object that was named, or a path.
    let cause = match point.call.as_str() {
        // clone(2) of a thread: pthread_create(3) has no other word for it.
        "clone3" if error.contains(AGAIN) => AGAIN,
        _ => words(&point.error),
    };
    let what = error.split(cause).next().unwrap_or_default();
    if error.contains("run mkfs.btrfs on /") || error == format!("write to standard output: {}", words(&point.error)) {
        return Ok(()); // another program's words; ours
    }
    if what == error {
        return Err("the cause is missing".to_string());
    }
    // A step of a sandbox, and the call that failed in it.
    if runs && what.matches(": ").count() >= 2 {
        return Ok(());
    }
    if what.is_empty() || !(what.contains(" /") || stage.about.iter().any(|word| what.contains(word))) {
        return Err("the error does not name what it is about".to_string());
    }
    Ok(())
}

macro_rules! stages {
    ($($test:ident: $line:literal $(after $before:literal)* $(on $ground:ident)?, about $($about:literal)*
        $(, keeping $keeps:literal)?;)*) => {
        $(#[test] fn $test() {
            #[allow(unused_mut, unused_assignments)]
            let mut ground = Ground::Store;
            $(ground = Ground::$ground;)?
            Stage { line: $line, before: &[$($before),*], ground, about: &[$($about),*], keeps: 0 $(+ $keeps)? }.run();
        })*
    };
}

stages! {
    import: "image import --name new other.tar", about "other.tar" "store";
    import_of_a_directory: "image import --name new tree", about "tree" "store";
    import_of_the_same_bytes: "image import --name new tiny.tar", about "tiny.tar" "store";
    tag: "image tag base more", about "base" "more" "store";
    tag_takes_a_name: "image tag base it" after "image import --name it other.tar", about "base" "it" "store";
    image_rm: "image rm it" after "image import --name it other.tar", about "it" "store";
    image_rm_of_one_name: "image rm more" after "image tag base more", about "more" "store";
    image_rm_of_shared_layers: "image rm two:1" after "image load -i pair.tar", about "two" "store";
    load: "image load -i three.tar", about "three.tar" "store", keeping 3;
    load_on_a_layer_that_is_there: "image load -i three.tar" after "image load -i first.tar",
        about "three.tar" "store", keeping 2;
    load_of_names_alone: "image load -i three.tar" after "image load -i three.tar" after "image tag it:1 more"
        after "image rm it:1" after "image rm also:1", about "three.tar" "store";
    pull: "image pull --tls-verify=false REGISTRY/a/three:1", about "a/three" "store", keeping 3;
    prune: "image prune --force" after "image import --name it tiny.tar" after "image import --name it other.tar",
        about "image" "store";

    snapshot_create: "snapshot create base web", about "base" "store";
    snapshot_create_of_a_snapshot: "snapshot create --read-only keep web", about "keep" "store";
    snapshot_rm: "snapshot rm web" after "snapshot create base web", about "web" "store";
    commit: "commit keep new", about "keep" "store";
    commit_of_a_tree_without_an_image: "commit bare new" after "image import --name it other.tar"
        after "snapshot create it bare" after "image rm it", about "bare" "store";
    rollback: "snapshot rollback web keep" after "create --name web base true", about "web" "keep" "store";
    create: "create --name web base true", about "base" "store" "tmpfs" "root";
    run: "run --name web base true", about "base" "store" "tmpfs" "root";
    run_rm: "run --rm base true", about "base" "store" "tmpfs" "root";
    run_rm_from_the_pool: "run --rm --pool on base true" after "run --rm --pool on base true",
        about "base" "store" "tmpfs" "root";
    run_rm_with_limits: "run --rm --init --memory 64m base true", about "base" "store" "tmpfs" "root";
    start: "start -a web" after "create --name web base true", about "web" "store" "tmpfs" "root";
    rm: "rm web" after "run --name web base true", about "web" "store";
    gc: "store gc", about "store";
    store_init: "store init" on Btrfs, about "store";
    store_init_embedded: "store init" on Ext4, about "store";
    mount_by_a_listing: "image ls" after "store init" after "store umount" on Ext4, about "store";
    store_umount: "store umount" after "store init" on Ext4, about "store";
}
