//! `store check` and `store gc`: what they find, what goes, and what is left alone.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::support::command::Tupper;
use crate::support::disk::Disk;
use crate::support::store::{Host, Store};
use crate::support::{busybox, debian, eventually, sh};

const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn fs(store: &Tupper, below: &str) -> PathBuf {
    store.root().join("fs").join(below)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn subvolume(path: &Path) {
    sh("btrfs", &["subvolume", "create", text(path)]);
}

/// The findings of `store check`, as `garbage KIND PATH` or `damage KIND PATH`; the exit status has to agree.
fn check(store: &Tupper) -> BTreeSet<String> {
    let done = store.run("store check --format json");
    let found: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done}"));
    let found: BTreeSet<String> = found.as_array().expect("an array").iter().map(line).collect();
    let done = done.status(i32::from(!found.is_empty()));
    let table = store.run("store check");
    assert_eq!(table.stdout.lines().count(), if found.is_empty() { 0 } else { found.len() + 1 }, "{table}");
    assert_eq!(done.status, table.status);
    found
}

fn line(finding: &serde_json::Value) -> String {
    let word = if finding["Garbage"].as_bool().expect("a flag") { "garbage" } else { "damage" };
    assert!(!finding["Problem"].as_str().expect("a text").is_empty());
    format!("{word} {} {}", finding["Kind"].as_str().expect("a text"), finding["Path"].as_str().expect("a text"))
}

fn uuid(store: &Tupper) -> String {
    store.json("store info --format json")["Uuid"].as_str().expect("a uuid").to_string()
}

/// The cgroup hierarchy in which processes are limited.
fn hierarchy() -> PathBuf {
    let legacy = PathBuf::from("/sys/fs/cgroup/pids");
    if legacy.exists() { legacy } else { PathBuf::from("/sys/fs/cgroup") }
}

#[test]
fn a_store_that_is_whole_has_nothing_to_find() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    store.ok("create --name box web true");
    store.ok("run --rm busybox true");
    assert_eq!(check(&store), BTreeSet::new());
    assert_eq!(store.ok("store gc"), "");
}

#[test]
fn where_no_store_is_there_is_nothing_to_find() {
    let _host = Host::shared();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    assert_eq!(check(&store), BTreeSet::new());
    assert_eq!(store.ok("store gc"), "");
    assert!(!store.root().exists(), "looking makes nothing");
}

#[test]
fn what_killed_commands_leave_is_found_and_removed() {
    let store = Store::alone();
    store.ok("snapshot create busybox web");
    let before = store.traces();
    let uuid = uuid(&store);

    std::fs::create_dir(fs(&store, "staging/draft-1")).expect("a draft");
    subvolume(&fs(&store, "staging/draft-1/rootfs"));
    std::fs::create_dir(fs(&store, "staging/intent-1")).expect("an intent");
    symlink(format!("../images/{ID}"), fs(&store, "staging/tag-1")).expect("a link");
    std::fs::create_dir(fs(&store, &format!("snapshots/{ID}"))).expect("a snapshot");
    std::fs::create_dir(fs(&store, &format!("containers/{ID}"))).expect("a container");
    std::fs::write(fs(&store, &format!("containers/{ID}/spec.json")), "{").expect("a spec");
    symlink(format!("../snapshots/{ID}"), fs(&store, "names/stale")).expect("a name");
    symlink(format!("../images/{ID}"), fs(&store, "tags/localhost%gone:latest")).expect("a tag");
    let trash = format!("trash/snapshots-{ID}-000000000000");
    std::fs::create_dir(fs(&store, &trash)).expect("a removed object");
    let cgroup = hierarchy().join("tupper").join(format!("{uuid}-{ID}"));
    std::fs::create_dir_all(&cgroup).expect("a cgroup");
    let run = PathBuf::from("/run/tupper").join(&uuid);
    std::fs::create_dir_all(&run).expect("run state");
    let run = run.join(format!("{ID}.json"));
    std::fs::write(&run, "{}").expect("run state");

    let expected: BTreeSet<String> = [
        "draft staging/draft-1".to_string(),
        "intent staging/intent-1".to_string(),
        "link staging/tag-1".to_string(),
        format!("snapshot snapshots/{ID}"),
        format!("container containers/{ID}"),
        "name names/stale".to_string(),
        "tag tags/localhost%gone:latest".to_string(),
        format!("removed object {trash}"),
        format!("cgroup {}", cgroup.display()),
        format!("run state {}", run.display()),
    ]
    .map(|found| format!("garbage {found}"))
    .into();
    assert_eq!(check(&store), expected);

    let rehearsed = store.lines("store gc --dry-run");
    assert_eq!(rehearsed.len(), expected.len());
    assert_eq!(check(&store), expected, "a rehearsal changes nothing");
    assert_eq!(store.lines("store gc"), rehearsed, "what is said to go is what goes");
    assert_eq!(check(&store), BTreeSet::new());
    before.assert_same(&store.traces());
    assert_eq!(store.lines("snapshot ls -q").len(), 1, "the snapshot that is whole stays");
}

#[test]
fn the_next_command_that_writes_cleans_up_and_says_so() {
    let store = Store::new();
    for sign in ["staging/draft-1", "staging/intent-1", &format!("trash/snapshots-{ID}-000000000000")] {
        std::fs::create_dir(fs(&store, sign)).expect("a sign");
        std::fs::create_dir(fs(&store, &format!("snapshots/{ID}"))).expect("a half-made snapshot");
        assert_eq!(store.run("snapshot ls").status(0).stderr, "", "a listing changes nothing");
        assert!(fs(&store, sign).exists());
        let done = store.run("snapshot create busybox").status(0);
        assert!(done.stderr.contains("removed what a command left that was killed"), "{done}");
        assert!(!fs(&store, sign).exists() && !fs(&store, &format!("snapshots/{ID}")).exists(), "{sign}");
        assert_eq!(store.run("snapshot create busybox").status(0).stderr, "");
    }
    assert_eq!(check(&store), BTreeSet::new());
}

#[test]
fn what_somebody_holds_is_no_garbage() {
    let store = Store::new();
    let draft = fs(&store, "staging/draft-1");
    std::fs::create_dir(&draft).expect("a draft");
    let mut holder = std::process::Command::new("flock").arg(&draft).args(["sleep", "100"]).spawn().expect("flock");
    eventually("it is locked", Duration::from_secs(120), || {
        !std::process::Command::new("flock").arg("-n").arg(&draft).arg("true").status().expect("flock").success()
    });
    assert_eq!(check(&store), BTreeSet::new());
    assert_eq!(store.ok("store gc"), "");
    assert!(draft.exists());
    // flock(1) and the sleep both hold it.
    sh("pkill", &["--parent", &holder.id().to_string()]);
    holder.wait().expect("ended");
    assert_eq!(store.lines("store gc").len(), 1);
    assert!(!draft.exists());
}

#[test]
fn a_subvolume_that_the_store_did_not_record_stays() {
    let store = Store::new();
    let (draft, trash) = (fs(&store, "staging/draft-1"), fs(&store, &format!("trash/layers-{ID}-000000000000")));
    for object in [&draft, &trash] {
        std::fs::create_dir(object).expect("a directory");
        subvolume(&object.join("rootfs"));
        std::fs::write(object.join("rootfs/precious"), "data").expect("a file");
    }
    subvolume(&fs(&store, "own"));
    assert_eq!(check(&store).len(), 3);
    let done = store.run("store gc").status(1);
    assert_eq!(done.stdout, "", "{done}");
    assert_eq!(done.stderr.matches("not the subvolume that the store recorded").count(), 2, "{done}");
    store.run("snapshot create busybox").status(0);
    for file in [draft.join("rootfs/precious"), trash.join("rootfs/precious")] {
        assert_eq!(std::fs::read_to_string(&file).expect("still there"), "data");
    }
    assert!(fs(&store, "own").exists());
    assert!(check(&store).contains("damage subvolume own"));
}

#[test]
fn a_layer_that_no_image_stands_on_goes() {
    let store = Store::new();
    let image = store.ok("image ls -q --no-trunc");
    let layers = || fs(&store, "layers").read_dir().expect("layers").count();
    // As far as an import comes that is killed between its last renames.
    std::fs::rename(fs(&store, &format!("images/{image}")), fs(&store, "staging/image-1")).expect("renamed");
    assert_eq!(layers(), 1);
    let found = check(&store);
    assert!(found.contains("garbage draft staging/image-1"), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("garbage layer layers/")), "{found:?}");
    assert!(found.contains("garbage tag tags/localhost%busybox:latest"), "{found:?}");
    store.ok("store gc");
    assert_eq!((layers(), check(&store)), (0, BTreeSet::new()));
}

#[test]
fn damage_is_reported_and_left_alone() {
    let store = Store::new();
    let image = store.ok("image ls -q --no-trunc");
    let layer = fs(&store, "layers").read_dir().expect("layers").next().expect("one").expect("an entry").path();
    let snapshot = |name: &str| store.ok(&format!("snapshot create busybox {name}"));
    let (plain, other, unnamed, unrecorded) = (snapshot("a"), snapshot("b"), snapshot("c"), snapshot("d"));

    let config = fs(&store, &format!("images/{image}/config.json"));
    let bytes = std::fs::read_to_string(&config).expect("a config");
    std::fs::write(&config, bytes.replace("\"os\":\"linux\"", "\"os\":\"Linux\"")).expect("written");
    sh("btrfs", &["property", "set", text(&layer.join("rootfs")), "ro", "false"]);
    for (id, by) in [(&plain, "mkdir"), (&other, "subvolume")] {
        let rootfs = fs(&store, &format!("snapshots/{id}/rootfs"));
        sh("btrfs", &["subvolume", "delete", text(&rootfs)]);
        match by {
            "mkdir" => std::fs::create_dir(&rootfs).expect("a directory"),
            _ => subvolume(&rootfs),
        }
    }
    std::fs::remove_file(fs(&store, "names/c")).expect("a name");
    sh("setfattr", &["-x", "user.tupper.record", text(&fs(&store, &format!("snapshots/{unrecorded}")))]);
    std::fs::write(fs(&store, "names/file"), "").expect("a file");
    std::fs::create_dir(fs(&store, "images/strange")).expect("a directory");
    std::fs::create_dir(fs(&store, &format!("layers/{ID}"))).expect("a directory");

    let expected: BTreeSet<String> = [
        format!("image images/{image}"),
        format!("layer {}", layer.strip_prefix(fs(&store, "")).expect("below").display()),
        format!("snapshot snapshots/{plain}"),
        format!("snapshot snapshots/{other}"),
        format!("snapshot snapshots/{unnamed}"),
        format!("snapshot snapshots/{unrecorded}"),
        "name names/file".to_string(),
        "image images/strange".to_string(),
        format!("layer layers/{ID}"),
    ]
    .map(|found| format!("damage {found}"))
    .into();
    assert_eq!(check(&store), expected);
    assert_eq!(store.ok("store gc"), "");
    assert_eq!(check(&store), expected);
}

#[test]
fn a_second_loop_device_and_strange_mounts_are_reported() {
    let _host = Host::shared();
    let disk = Disk::ext4(2 << 30);
    let store = Tupper::new(disk.path().join("store"));
    store.ok("store init");
    assert_eq!(check(&store), BTreeSet::new());
    let file = store.root().join("store.btrfs");
    let device = sh("losetup", &["--find", "--show", text(&file)]);
    let inside = fs(&store, "trash");
    sh("mount", &["-t", "tmpfs", "none", text(&inside)]);
    let found = check(&store);
    sh("umount", &[text(&inside)]);
    sh("losetup", &["--detach", &device]);
    let expected = [&file, &inside].map(|path| format!("damage host {}", path.display()));
    assert_eq!(found, expected.into());
    assert_eq!(check(&store), BTreeSet::new());
}

#[test]
fn a_store_whose_making_was_killed_is_made_whole() {
    let _host = Host::shared();
    let (btrfs, ext4) = (Disk::btrfs(), Disk::ext4(2 << 30));
    let half_made = Tupper::new(btrfs.path().join("store"));
    std::fs::create_dir(half_made.root()).expect("a directory");
    subvolume(&half_made.root().join("fs"));
    let drafted = Tupper::new(ext4.path().join("store"));
    std::fs::create_dir(drafted.root()).expect("a directory");
    std::fs::write(drafted.root().join("store.btrfs.new"), "half").expect("a file");
    for (store, left, whole) in [(half_made, "fs", true), (drafted, "store.btrfs.new", false)] {
        let found: BTreeSet<String> = [format!("garbage store {}", store.root().join(left).display())].into();
        assert_eq!(check(&store), found);
        assert_eq!(store.lines("store gc --dry-run").len(), 1);
        assert_eq!(check(&store), found);
        store.ok("store gc");
        assert_eq!(check(&store), BTreeSet::new());
        assert_eq!(store.run("store info").status, i32::from(!whole), "{left}");
        assert!(!store.root().join("store.btrfs.new").exists());
    }
}

#[test]
fn what_is_no_store_is_not_made_one() {
    let _host = Host::shared();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("data"));
    let fs = store.root().join("fs");
    std::fs::create_dir(store.root()).expect("a directory");
    subvolume(&fs);
    std::fs::write(fs.join("precious"), "data").expect("a file");
    let mode = std::fs::metadata(&fs).expect("stat").permissions();
    let error = store.run_with("image import", &[text(&busybox())]).fails(125);
    assert!(error.contains("is no store") && error.contains("hint: "), "{error}");
    assert_eq!(store.ok("store gc"), "");
    assert_eq!(sh("ls", &["-A", text(&fs)]), "precious");
    assert_eq!(std::fs::metadata(&fs).expect("stat").permissions(), mode);
}

#[test]
fn a_command_that_outlives_its_tupper_is_ended() {
    let store = Store::alone();
    store.ok_with("image import --name debian", &[text(&debian())]);
    let before = store.traces();
    for pids in ["1024", "-1"] {
        // Root as PID 1 may clear the signal that ends it with its parent.
        let mut running = store
            .command(
                &format!("run --rm --pids-limit {pids} debian sh -c"),
                &["exec setpriv --pdeathsig clear sh -c 'echo on; sleep 73519'"],
            )
            .stdout(Stdio::piped())
            .spawn()
            .expect("a run");
        let mut on = [0; 3];
        std::io::Read::read_exact(running.stdout.as_mut().expect("a pipe"), &mut on).expect("it runs");
        eventually("it is noted", Duration::from_secs(120), || !store.ok("ps -q").is_empty());
        running.kill().and_then(|()| running.wait()).expect("killed");
        let found = check(&store);
        assert!(found.iter().any(|line| line.starts_with("garbage container ")), "{found:?}");
        store.ok("store gc");
        assert_eq!(check(&store), BTreeSet::new());
        before.assert_same(&store.traces());
        assert_eq!(sh("sh", &["-c", "pgrep -f '[s]leep 73519' || true"]), "", "the command lives");
    }
}
