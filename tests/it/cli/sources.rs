//! What snapshots are made of: containers, running or not, and subvolumes by their path.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::id;
use crate::support::command::{Tupper, finish, wait};
use crate::support::disk::Disk;
use crate::support::store::{Host, Store};
use crate::support::{busybox, eventually, sh};

/// Counts in /a and then in /b, each in one write.
pub(super) const COUNTS: &str =
    "i=0; while :; do i=$((i + 1)); printf %010d $i 1<>/a; printf %010d $i 1<>/b; [ $i = 100 ] && touch /started; done";

fn path_of(store: &Store, name: &str) -> PathBuf {
    PathBuf::from(store.ok(&format!("snapshot path {name}")))
}

pub(super) fn number(path: &Path) -> u64 {
    fs::read_to_string(path).expect("a file").parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A container `web` in the background that runs a script, which has come to touch /started.
pub(super) fn start(store: &Store, script: &str) -> PathBuf {
    store.ok_with("run -d --name web busybox sh -c", &[script]);
    let root = PathBuf::from(store.json("inspect web")[0]["Rootfs"].as_str().expect("a path"));
    eventually("it runs", Duration::from_secs(60), || root.join("started").exists());
    root
}

pub(super) fn is_paused(store: &Store) -> bool {
    store.json("inspect web")[0]["State"]["Paused"] == true
}

/// Nothing says that a container of the store is frozen for a moment.
pub(super) fn assert_no_sign(store: &Store) {
    let uuid = store.json("store info --format json")["Uuid"].as_str().expect("a UUID").to_string();
    let files = fs::read_dir(Path::new("/run/tupper").join(uuid)).expect("a directory").flatten();
    let left: Vec<_> =
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "freezing")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_running_container_stands_still_while_a_snapshot_is_made() {
    let store = Store::alone();
    let root = start(&store, COUNTS);
    for nth in 0..20 {
        store.ok(&format!("snapshot create web at-{nth}"));
        let path = path_of(&store, &format!("at-{nth}"));
        let (a, b) = (number(&path.join("a")), number(&path.join("b")));
        assert!(a == b || a == b + 1, "{a} and {b}");
    }
    // And while a container is made of it.
    for nth in 0..10 {
        store.ok(&format!("create --name copy-{nth} web true"));
        let root = PathBuf::from(store.json(&format!("inspect copy-{nth}"))[0]["Rootfs"].as_str().expect("a path"));
        let (a, b) = (number(&root.join("a")), number(&root.join("b")));
        assert!(a == b || a == b + 1, "{a} and {b}");
    }
    assert!(!is_paused(&store));
    let now = number(&root.join("a"));
    eventually("it goes on", Duration::from_secs(60), || number(&root.join("a")) > now);
    store.ok("snapshot create --count 3 web many");
    let counts: Vec<u64> = (1..=3).map(|nth| number(&path_of(&store, &format!("many-{nth}")).join("a"))).collect();
    assert!(counts.iter().all(|count| *count == counts[0]), "it went on between them: {counts:?}");
    store.ok("snapshot create --no-pause web loose");
    let source = &store.json("snapshot inspect loose")[0]["Source"];
    assert_eq!((source["Kind"].as_str(), source["Name"].as_str()), (Some("container"), Some("web")));
    assert_no_sign(&store);
    store.ok("rm -f web");
    store.ok("run --rm at-0 true");
}

#[test]
fn a_container_that_is_paused_already_stays_so() {
    let store = Store::alone();
    start(&store, COUNTS);
    store.ok("pause web");
    store.ok("snapshot create web copy");
    assert!(is_paused(&store));
    store.ok("unpause web");
    store.ok("rm -f web");
}

#[test]
fn a_container_goes_on_when_its_snapshot_fails() {
    let store = Store::alone();
    start(&store, COUNTS);
    store.ok("snapshot create busybox taken-2");
    store.fails(1, "snapshot create --count 3 web taken");
    assert!(!is_paused(&store));
    assert_eq!(store.lines("snapshot ls -q").len(), 1);
    // Asked to stop in the middle, as often as it takes to be in the middle.
    for nth in 0..10 {
        let mut command = store.command("snapshot create --count 200 web", &[]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tupper");
        std::thread::sleep(Duration::from_millis(10 * nth));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        wait(child, "a snapshot");
        assert!(!is_paused(&store));
    }
    store.ok("rm -f web");
}

#[test]
fn a_container_is_let_go_on_when_who_froze_it_was_killed() {
    let store = Store::alone();
    let root = start(&store, COUNTS);
    let mut frozen = 0;
    for nth in 0..40 {
        let mut command = store.command("snapshot create --count 200 web", &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tupper");
        std::thread::sleep(Duration::from_millis(5 * nth));
        child.kill().expect("kill it");
        child.wait().expect("wait for it");
        frozen += u32::from(is_paused(&store));
        if nth % 2 == 0 {
            let check = store.run("store check");
            assert!(check.stdout.contains("frozen container") || !is_paused(&store), "{check}");
            store.ok("store gc");
        } else {
            store.ok("snapshot create busybox");
        }
        assert!(!is_paused(&store));
        let now = number(&root.join("a"));
        eventually("it goes on", Duration::from_secs(60), || number(&root.join("a")) > now);
    }
    assert!(frozen > 0, "none was killed in that moment");
    assert_no_sign(&store);
    store.ok("rm -f web");
}

#[test]
fn snapshots_and_pauses_at_once_do_not_undo_each_other() {
    let store = Store::alone();
    start(&store, COUNTS);
    for round in 0..5 {
        let snapshots: Vec<_> = (0..4)
            .map(|nth| {
                let mut command = store.command(&format!("snapshot create web at-{round}-{nth}"), &[]);
                command.stdout(Stdio::null()).spawn().expect("tupper")
            })
            .collect();
        store.ok("pause web");
        for child in snapshots {
            assert_eq!(wait(child, "a snapshot"), 0);
        }
        assert!(is_paused(&store), "a snapshot let it go on");
        store.ok("unpause web");
        for nth in 0..4 {
            let path = path_of(&store, &format!("at-{round}-{nth}"));
            let (a, b) = (number(&path.join("a")), number(&path.join("b")));
            assert!(a == b || a == b + 1, "{a} and {b}");
        }
    }
    store.ok("rm -f web");
}

#[test]
fn any_subvolume_beside_the_store_is_a_source() {
    let store = Store::new();
    let (data, plain) = (store.disk.path().join("data"), store.disk.path().join("plain"));
    let [data_text, plain_text] = [&data, &plain].map(|path| path.to_str().expect("a plain path"));
    sh("btrfs", &["subvolume", "create", data_text]);
    sh("btrfs", &["subvolume", "create", data.join("nested").to_str().expect("a plain path")]);
    fs::write(data.join("file"), "of the host\n").expect("a file");
    fs::create_dir(&plain).expect("a directory");

    let done = store.run(&format!("snapshot create {data_text} copy")).status(0);
    assert!(done.stderr.contains("/nested"), "{done}");
    let path = path_of(&store, "copy");
    assert_eq!(fs::read_to_string(path.join("file")).expect("a file"), "of the host\n");
    let source = store.json("snapshot inspect copy")[0]["Source"].clone();
    assert_eq!(source, serde_json::json!({ "Kind": "path", "Id": null, "Name": data_text }));
    assert!(store.lines("snapshot ls")[1].contains(data_text));
    assert!(store.lines("snapshot tree")[1].contains(&format!("of path {data_text}, ")));
    fs::write(path.join("file"), "of the snapshot\n").expect("it is writable");
    assert_eq!(fs::read_to_string(data.join("file")).expect("a file"), "of the host\n");
    assert_eq!(
        store.ok("snapshot ls -q --no-trunc"),
        store.ok(&format!("snapshot ls -q --no-trunc --filter source={data_text}"))
    );

    // As it is written from where one is.
    let mut command = store.command("snapshot create ./data here", &[]);
    command.current_dir(store.disk.path());
    id(&finish(command).ok());
    assert_eq!(store.json("snapshot inspect here")[0]["Source"]["Name"], data_text);

    let refused = store.fails(1, &format!("snapshot create {plain_text}"));
    assert!(refused.contains("not a subvolume") && refused.contains("hint: make it one"), "{refused}");
    let refused = store.fails(1, "snapshot create /proc");
    assert!(refused.contains("another filesystem than the store") && refused.contains("hint: "), "{refused}");
    let refused = store.fails(1, &format!("snapshot create {data_text}/file"));
    assert!(refused.contains("not a directory"), "{refused}");
    let refused = store.fails(1, &format!("snapshot create {data_text}/nosuch"));
    assert!(refused.contains("no such file or directory"), "{refused}");
    store.ok("snapshot rm copy here");
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn a_container_is_made_of_a_path() {
    let store = Store::new();
    store.ok("snapshot create busybox root");
    let root = store.disk.path().join("root");
    let text = root.to_str().expect("a plain path");
    sh("btrfs", &["subvolume", "snapshot", path_of(&store, "root").to_str().expect("a plain path"), text]);
    fs::write(root.join("mark"), "").expect("a file");
    assert_eq!(store.ok(&format!("run --rm {text} ls /mark")), "/mark");
    assert_eq!(store.ok(&format!("shell {text} ls /mark")), "/mark");
    store.ok(&format!("create --name web {text} touch /more"));
    assert_eq!(store.json("inspect web")[0]["Source"]["Name"], text);
    store.ok("start -a web");
    assert!(!root.join("more").exists(), "the container worked in what it was made of");
    assert_eq!(store.lines("diff web").iter().filter(|line| line.contains("more")).count(), 1);
    let told = store.run(&format!("run --rm --explain=only {text} true")).status(0);
    assert!(told.stderr.contains(&format!("btrfs subvolume snapshot {text} ")), "{told}");
    store.run(&format!("run --rm {}/plain true", store.disk.path().display())).status(125);
    store.ok("rm web");
}

#[test]
fn the_subvolume_that_holds_the_store_is_a_source_too() {
    let store = Store::new();
    let top = store.disk.path();
    fs::write(top.join("file"), "").expect("a file");
    let done = store.run(&format!("snapshot create {} top", top.display())).status(0);
    assert!(done.stderr.contains("/store/fs"), "{done}");
    let path = path_of(&store, "top");
    assert!(path.join("file").exists());
    assert_eq!(
        fs::read_dir(path.join("store/fs")).expect("a directory").count(),
        0,
        "the store is in its own snapshot"
    );
    assert_eq!(fs::metadata(&path).expect("a subvolume").ino(), 256);
    store.ok("snapshot rm top");
    assert!(top.join("file").exists());
}

#[test]
fn an_embedded_store_says_that_it_is_a_filesystem_of_its_own() {
    let _host = Host::shared();
    let disk = Disk::ext4(2 << 30);
    let tupper = Tupper::new(disk.path().join("store"));
    tupper.ok_with("image import --name busybox", &[busybox().to_str().expect("a plain path")]);
    let refused = tupper.fails(1, &format!("snapshot create {}", disk.path().display()));
    assert!(
        refused.contains("another filesystem than the store") && refused.contains("a filesystem of its own"),
        "{refused}"
    );
    tupper.ok("store umount");
}
