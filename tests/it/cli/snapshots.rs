//! snapshot create, ls, inspect, path, rm.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::id;
use crate::support::store::Store;
use crate::support::tree::Tree;
use crate::support::{eventually, sh};

fn path_of(store: &Store, name: &str) -> PathBuf {
    PathBuf::from(store.ok(&format!("snapshot path {name}")))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn a_snapshot_is_a_writable_copy_of_its_own() {
    let store = Store::new();
    let web = id(&store.ok("snapshot create busybox web"));
    let path = path_of(&store, "web");
    assert_eq!(path_of(&store, &web[..6]), path, "a prefix will do");
    fs::write(path.join("hello"), "hello\n").expect("it is writable");
    store.ok("snapshot create busybox fresh");
    assert!(!path_of(&store, "fresh").join("hello").exists(), "the image changed");
    store.ok("snapshot create web copy");
    assert!(path_of(&store, "copy").join("hello").exists(), "a snapshot of a snapshot has its changes");
    fs::remove_file(path.join("hello")).expect("remove");
    assert!(path_of(&store, "copy").join("hello").exists(), "the copy is independent");
    Tree::read(&path_of(&store, "fresh")).differences(&Tree::read(&path)).iter().for_each(|line| {
        // The top directory's time is all that writing and removing a file left.
        assert!(line.starts_with(": mtime"), "{line}");
    });
}

#[test]
fn the_first_digits_of_an_id_do_not_hide_an_image_that_is_called_so() {
    let store = Store::new();
    let snapshot = store.ok("snapshot create busybox");
    fs::write(path_of(&store, &snapshot).join("in-the-snapshot"), "").expect("write");
    // The name of an image has to begin with a letter or a digit, which an id always does.
    let digits = &snapshot[..4];
    assert_eq!(
        store.run(&format!("run --rm {digits} ls /in-the-snapshot")).status,
        0,
        "without one, it is the snapshot"
    );
    store.ok(&format!("image tag busybox {digits}"));
    assert_eq!(store.run(&format!("run --rm {digits} ls /in-the-snapshot")).status, 1, "the image that somebody named");
    let of_snapshot = format!("run --rm snapshot:{digits} ls /in-the-snapshot");
    assert_eq!(store.run(&of_snapshot).status, 0, "who means the snapshot can say so");
    assert_eq!(store.run(&format!("run --rm {snapshot} ls /in-the-snapshot")).status, 0, "a whole id is an id");
}

#[test]
fn listings_and_inspect_agree() {
    let store = Store::new();
    let web = store.ok("snapshot create busybox web");
    let anonymous = store.ok("snapshot create busybox");
    let table = store.lines("snapshot ls");
    assert_eq!(table.len(), 3, "{table:?}");
    assert!(table.iter().any(|line| line.contains("web") && line.contains(&web[..12])), "{table:?}");
    let mut ids = store.lines("snapshot ls -q --no-trunc");
    ids.sort();
    let mut expected = vec![web.clone(), anonymous];
    expected.sort();
    assert_eq!(ids, expected);
    let json = store.json("snapshot ls --format json");
    assert!(json.as_array().is_some_and(|all| all.iter().any(|one| one["Id"] == web.as_str())), "{json}");
    let inspect = store.json("snapshot inspect web");
    assert_eq!(inspect[0]["Id"], web.as_str());
    assert_eq!(inspect[0]["Names"], serde_json::json!(["web"]));
    assert_eq!(inspect[0]["Path"].as_str().map(Path::new), Some(path_of(&store, "web").as_path()));
}

#[test]
fn many_at_once_are_numbered() {
    let store = Store::new();
    let ids = store.lines("snapshot create --count 12 busybox web");
    assert_eq!(ids.len(), 12);
    for (at, one) in ids.iter().enumerate() {
        assert_eq!(path_of(&store, &format!("web-{}", at + 1)), path_of(&store, &id(one)));
    }
    // Whichever thread was faster, the last of them is the newest.
    let newest_first = store.lines("snapshot ls -q --no-trunc");
    assert_eq!(newest_first, ids.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(store.lines("snapshot create --count 3 busybox").len(), 3);
    // A name that is taken fails the whole, and leaves nothing of it.
    store.ok("snapshot create busybox db-2");
    let state = || (store.ok("snapshot ls -q --no-trunc"), store.disk.subvolumes());
    let before = state();
    let error = store.fails(1, "snapshot create --count 3 busybox db");
    assert!(error.contains("db-2"), "{error}");
    assert_eq!(state(), before);
}

#[test]
fn read_only_means_it() {
    let store = Store::new();
    store.ok("snapshot create --read-only busybox fixed");
    let path = path_of(&store, "fixed");
    let error = fs::write(path.join("x"), "").expect_err("it is read-only");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    store.ok("snapshot create fixed loose");
    fs::write(path_of(&store, "loose").join("x"), "").expect("a snapshot of it is writable");
    store.ok("snapshot rm fixed");
}

#[test]
fn removal_takes_nested_and_read_only_subvolumes_along() {
    let store = Store::new();
    let before = store.disk.subvolumes();
    store.ok("snapshot create busybox web");
    let path = path_of(&store, "web");
    // What a process inside may leave: subvolumes in subvolumes, some read-only, below directories, with odd names.
    fs::create_dir_all(path.join("var/lib/machines")).expect("directories");
    for nested in ["var/lib/machines/a", "var/lib/machines/a/b", "var/lib/machines/a/b/c d", "tmp/x"] {
        sh("btrfs", &["subvolume", "create", text(&path.join(nested))]);
    }
    for nested in ["var/lib/machines/a/b/c d", "var/lib/machines/a"] {
        sh("btrfs", &["property", "set", text(&path.join(nested)), "ro", "true"]);
    }
    sh("btrfs", &["property", "set", text(&path), "ro", "true"]);
    store.ok("snapshot rm web");
    eventually("the space is given back", Duration::from_secs(120), || store.disk.subvolumes() == before);
    assert_eq!(store.ok("snapshot ls -q"), "");
    store.fails(1, "snapshot rm web");
}

#[test]
fn several_are_removed_at_once_and_each_failure_is_told() {
    let store = Store::new();
    let before = store.disk.subvolumes();
    store.ok("snapshot create --count 3 busybox web");
    let done = store.run("snapshot rm web-1 nosuch web-2 web-3").status(1);
    assert!(done.stderr.contains("nosuch"), "{done}");
    assert_eq!(store.ok("snapshot ls -q"), "");
    eventually("the space is given back", Duration::from_secs(120), || store.disk.subvolumes() == before);
}

#[test]
fn names_are_checked_and_unique() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    let error = store.fails(1, "snapshot create busybox web");
    assert!(error.contains("web"), "{error}");
    for name in ["../x", "a/b", ".hidden"] {
        // As a value that cannot be parsed it is wrong usage.
        let status = store.run(&format!("snapshot create busybox {name}")).status;
        assert!(matches!(status, 1 | 2), "{name}: {status}");
    }
    let error = store.fails(1, "snapshot create nosuch:1");
    assert!(error.contains("nosuch:1"), "{error}");
    store.ok("snapshot rm web");
    store.ok("snapshot create busybox web");
}

#[test]
fn a_name_is_looked_up_among_snapshots_first() {
    let store = Store::new();
    store.ok("snapshot create busybox app");
    fs::write(path_of(&store, "app").join("mark"), "").expect("a file");
    store.ok("image tag busybox app");
    assert_eq!(store.ok("run --rm app ls /mark"), "/mark");
    assert_eq!(store.ok("run --rm snapshot:app ls /mark"), "/mark");
    store.run("run --rm image:app ls /mark").status(1);
}

#[test]
fn nested_subvolumes_are_told_of() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    sh("btrfs", &["subvolume", "create", text(&path_of(&store, "web").join("srv/nested"))]);
    let done = store.run("snapshot create web copy").status(0);
    assert!(done.stderr.contains("/srv/nested"), "{done}");
}

#[test]
fn who_waits_for_the_space_gets_it() {
    let store = Store::new();
    store.ok("snapshot create busybox large");
    let written = store.ok("snapshot path large");
    let used = || store.disk.data();
    let before = used();
    let script = format!("head -c 300M /dev/urandom > {written}/data && sync -f {written}");
    crate::support::sh("sh", &["-c", &script]);
    assert!(used() > before + (250 << 20));
    store.ok("snapshot rm --wait large");
    let info = crate::support::sh("btrfs", &["filesystem", "df", "--raw", store.disk.path().to_str().expect("plain")]);
    let data = info.lines().find(|line| line.starts_with("Data, single")).expect("its data");
    let now: u64 = data.rsplit_once("used=").expect("what is used").1.parse().expect("a number");
    assert!(now < before + (50 << 20), "{now} bytes are still in use, {before} were before");
    let listed = crate::support::sh("btrfs", &["subvolume", "list", "-d", store.disk.path().to_str().expect("plain")]);
    assert_eq!(listed, "", "there are subvolumes left to clean");
    store.ok("volume create data");
    assert_eq!(store.ok("volume rm --wait --sync data"), "data");
    store.ok("create --name web busybox true");
    assert_eq!(store.ok("rm --wait web"), "web");
    // Nothing goes, and nothing is waited for.
    store.ok("snapshot create busybox stays");
    store.ok("snapshot rm --dry-run --wait stays");
    store.ok("snapshot path stays");
}
