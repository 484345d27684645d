//! A repair that is killed before one of its changes: the next one ends it, and nothing is lost in between.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::sh;
use crate::support::store::Store;
use crate::support::tree::Tree;
use crate::sweep::asked_for;
use crate::trace;

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn fs_of(store: &Store, below: &str) -> PathBuf {
    store.root().join("fs").join(below)
}

/// Has a repair of what `spoil` spoils killed before each change that is chosen of all, and another one follow; then `holds`
/// is asked.
fn sweep(store: &Store, line: &str, spoil: impl Fn(u64), holds: impl Fn(u64)) {
    spoil(0);
    let whole = trace::run(store.command(line, &[]), |_| false).expect("it ends");
    assert_eq!(whole.status, 0);
    holds(0);
    let total = whole.calls.len() as u64;
    assert!(total > 5, "{:?}", whole.calls);
    // The order of threads varies, and what decides comes at the end.
    let points: BTreeSet<u64> = asked_for(total).into_iter().chain((1..total).rev().step_by(3).take(8)).collect();
    for number in points {
        spoil(number);
        trace::run(store.command(line, &[]), |call| call.number == number).expect("it ends");
        store.run(line).status(0);
        let check = store.run("store check --deep").status(0);
        assert_eq!(check.stdout, "");
        holds(number);
    }
}

#[test]
fn a_layer_is_put_back_and_what_was_changed_is_kept() {
    let store = Store::new();
    let layer = fs_of(&store, "layers").read_dir().expect("layers").next().expect("one").expect("an entry").path();
    let rootfs = layer.join("rootfs");
    let whole = Tree::read(&rootfs);
    let read_only = |is: &str| drop(sh("btrfs", &["property", "set", "-f", text(&rootfs), "ro", is]));
    let spoil = |number: u64| {
        read_only("false");
        fs::write(rootfs.join("changed"), format!("change {number}")).expect("a file");
        read_only("true");
    };
    let holds = |number: u64| {
        Tree::read(&rootfs).assert_same(&whole);
        assert_eq!(sh("btrfs", &["property", "get", text(&rootfs), "ro"]), "ro=true");
        let kept = store.lines("snapshot ls -q --no-trunc");
        let change = |id: &String| fs::read_to_string(fs_of(&store, &format!("snapshots/{id}/rootfs/changed")));
        assert!(kept.iter().any(|id| change(id).is_ok_and(|change| change == format!("change {number}"))), "{kept:?}");
        kept.iter().for_each(|id| drop(store.ok(&format!("snapshot rm {id}"))));
    };
    sweep(&store, "store check --repair --deep", spoil, holds);
}

#[test]
fn records_and_names_are_written_anew() {
    let store = Store::new();
    let id = store.ok("snapshot create busybox web");
    let objects: Vec<PathBuf> = ["images", "layers", "snapshots"]
        .iter()
        .map(|shelf| fs_of(&store, shelf).read_dir().expect("a shelf").next().expect("one").expect("an entry").path())
        .collect();
    let name = fs_of(&store, "names/web");
    let spoil = |_| {
        for object in &objects {
            sh("setfattr", &["-n", "user.tupper.record", "-v", "{\"name\":\"web\"}", text(object)]);
        }
        sh("setfattr", &["-x", "user.tupper.subvolume", text(&objects[2])]);
        fs::remove_file(&name).expect("a name");
    };
    let holds = |_| {
        assert_eq!(store.ok("snapshot path web"), text(&fs_of(&store, &format!("snapshots/{id}/rootfs"))));
        assert_eq!(store.ok("run --rm busybox echo it runs"), "it runs");
    };
    sweep(&store, "store check --repair", spoil, holds);
}
