//! store df: what it says is what the filesystem gives back.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::command::finish;
use crate::support::sh;
use crate::support::store::Store;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// So many bytes that no compression makes less of.
fn noise(bytes: u64) -> Vec<u8> {
    let mut state = bytes + u64::from(std::process::id());
    let mut next = || {
        // Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).expect("a byte")
    };
    (0..bytes).map(|_| next()).collect()
}

fn write(root: &Path, name: &str, bytes: u64) {
    fs::write(root.join(name), noise(bytes)).expect("write a file");
}

/// A store with an image `base` of two files: `large` of 2 MiB, `other` of 1.
fn with_base() -> Store {
    with_base_among(0)
}

/// And as many files before these, and after them, that are nothing but names.
fn with_base_among(empty: u64) -> Store {
    let store = Store::empty();
    let dir = store.disk.path().join("base");
    for name in ["a-dir", "z-dir"] {
        fs::create_dir_all(dir.join(name)).expect("a directory");
        (0..empty).for_each(|nth| write(&dir, &format!("{name}/{nth}"), 0));
    }
    write(&dir, "large", 2 * MIB);
    write(&dir, "other", MIB);
    store.ok_with("image import --name base", &[dir.to_str().expect("plain")]);
    fs::remove_dir_all(&dir).expect("a directory");
    store
}

fn snapshot(store: &Store, source: &str, name: &str) -> PathBuf {
    store.ok(&format!("snapshot create {source} {name}"));
    PathBuf::from(store.ok(&format!("snapshot path {name}")))
}

fn df(store: &Store, flags: &str) -> Value {
    let data = store.disk.data();
    let found = store.json(&format!("store df --format json {flags}"));
    assert_eq!(found["Total"]["Data"], data, "the filesystem says so itself: {found}");
    found
}

/// What df says of an object: the number, and what it says.
fn figure(df: &Value, name: &str, which: &str) -> (u64, String) {
    let of_name = |object: &&Value| {
        let mut names = object["Names"].as_array().expect("names").iter().map(|n| n.as_str().expect("a name"));
        names.any(|n| n == name || n == format!("localhost/{name}:latest"))
    };
    let object =
        df["Objects"].as_array().expect("objects").iter().find(of_name).unwrap_or_else(|| panic!("{name}: {df}"));
    let figure = &object[which];
    (figure["Bytes"].as_u64().expect("bytes"), figure["Is"].as_str().expect("a word").to_string())
}

#[track_caller]
fn exact(df: &Value, name: &str, which: &str) -> u64 {
    let (bytes, is) = figure(df, name, which);
    assert_eq!(is, "exact", "{which} of {name}: {df:#}");
    bytes
}

/// Removes the objects one after the other, and compares what each gives back with what was said of it before.
#[track_caller]
fn removed_in_turn(store: &Store, removals: &[(&str, &str)]) {
    for (verb, name) in removals {
        let said = df(store, "");
        let (exclusive, freed) = (exact(&said, name, "Exclusive"), exact(&said, name, "Freed"));
        let before = store.disk.data();
        store.ok(&format!("{verb} {name}"));
        assert_eq!(before - store.disk.data(), freed, "{verb} {name} gave back something else: {said:#}");
        assert_eq!(exclusive, freed, "{name}");
    }
}

const SNAPSHOT: &str = "snapshot rm";
const IMAGE: &str = "image rm --force";

#[test]
fn what_a_leaf_rewrote_is_its_own() {
    let store = with_base();
    let [one, two] = ["one", "two"].map(|name| snapshot(&store, "base", name));
    let said = df(&store, "");
    for name in ["one", "two", "base"] {
        assert_eq!([exact(&said, name, "Exclusive"), exact(&said, name, "Shared")], [0, 3 * MIB], "{name}: {said}");
    }
    // A new file, one that is small enough for the metadata, and one of the image's, of which another lets go.
    write(&one, "new", 3 * MIB);
    write(&one, "small", 100);
    write(&one, "large", 5 * MIB);
    fs::remove_file(two.join("large")).expect("a file of the image");
    let said = df(&store, "");
    for (name, exclusive, shared) in [("one", 8, 1), ("base", 2, 1), ("two", 0, 1)] {
        let found = [exact(&said, name, "Exclusive"), exact(&said, name, "Shared")];
        assert_eq!(found, [exclusive * MIB, shared * MIB], "{name}: {said}");
    }
    assert_eq!(said["Total"]["InUse"], 11 * MIB);
    removed_in_turn(&store, &[(SNAPSHOT, "one"), (IMAGE, "base"), (SNAPSHOT, "two")]);
    assert_eq!(df(&store, "")["Total"]["InUse"], 0);
}

#[test]
fn extents_are_whole_as_long_as_any_of_them_is_referred_to() {
    let store = with_base();
    let one = snapshot(&store, "base", "one");
    write(&one, "file", MIB);
    store.disk.data(); // to the disk, as one extent
    sh(
        "cp",
        &["--reflink=always", one.join("file").to_str().expect("plain"), one.join("copy").to_str().expect("plain")],
    );
    let file = fs::OpenOptions::new().write(true).open(one.join("file")).expect("open");
    file.write_all_at(&noise(64 * KIB), 256 * KIB).expect("write in the middle");
    sh("fallocate", &["--length", "2MiB", one.join("ahead").to_str().expect("plain")]);
    // A hole is nothing.
    fs::File::create(one.join("hole")).expect("a file").set_len(8 * MIB).expect("a hole");
    assert_eq!(exact(&df(&store, ""), "one", "Exclusive"), MIB + 64 * KIB + 2 * MIB);
    // The copy goes: the extent is whole still, though some of it is in no file.
    fs::remove_file(one.join("copy")).expect("a file");
    assert_eq!(exact(&df(&store, ""), "one", "Exclusive"), MIB + 64 * KIB + 2 * MIB);
    // A snapshot has it, too, and then alone.
    snapshot(&store, "one", "two");
    fs::remove_file(one.join("file")).expect("a file");
    let alone = || ["one", "two"].map(|name| exact(&df(&store, ""), name, "Exclusive"));
    assert_eq!(alone(), [0, 0], "it is open still");
    drop(file);
    assert_eq!(alone(), [0, MIB + 64 * KIB]);
    removed_in_turn(&store, &[(SNAPSHOT, "two"), (SNAPSHOT, "one"), (IMAGE, "base")]);
}

#[test]
fn what_is_compressed_counts_as_it_lies_on_the_disk() {
    let store = with_base();
    let one = snapshot(&store, "base", "one");
    let file = one.join("zeros");
    fs::write(&file, "").expect("a file");
    sh("btrfs", &["property", "set", file.to_str().expect("plain"), "compression", "zstd"]);
    fs::write(&file, vec![7; 4 << 20]).expect("write");
    let said = exact(&df(&store, ""), "one", "Exclusive");
    assert!(said > 0 && said < MIB, "{said}");
    removed_in_turn(&store, &[(SNAPSHOT, "one")]);
}

#[test]
fn a_parent_may_be_written_to_or_go() {
    let store = with_base();
    // A chain of three, in each of which something changes before and after the next is made of it.
    let one = snapshot(&store, "base", "one");
    write(&one, "a", MIB);
    let two = snapshot(&store, "one", "two");
    write(&one, "a", 2 * MIB);
    write(&two, "b", 3 * MIB);
    let three = snapshot(&store, "two", "three");
    fs::remove_file(two.join("a")).expect("a file");
    write(&three, "c", 5 * MIB);
    let said = df(&store, "");
    let alone = ["one", "two", "three"].map(|name| exact(&said, name, "Exclusive"));
    assert_eq!(alone, [2 * MIB, 0, MIB + 5 * MIB]);
    // The parent of three goes: it alone has b, and nobody knows what its parent was any more.
    removed_in_turn(&store, &[(SNAPSHOT, "two")]);
    let said = df(&store, "");
    assert_eq!(exact(&said, "three", "Exclusive"), 9 * MIB);
    // Siblings whose parent is gone: what one has lost another may have.
    store.ok("snapshot create three sib --count 3");
    let sibling = |name: &str| PathBuf::from(store.ok(&format!("snapshot path {name}")));
    fs::remove_file(sibling("sib-1").join("c")).expect("a file");
    write(&sibling("sib-3"), "d", 7 * MIB);
    removed_in_turn(&store, &[(SNAPSHOT, "three"), (SNAPSHOT, "sib-2")]);
    assert_eq!(exact(&df(&store, ""), "sib-3", "Exclusive"), 5 * MIB + 7 * MIB, "c is its alone");
    removed_in_turn(&store, &[(IMAGE, "base"), (SNAPSHOT, "sib-3"), (SNAPSHOT, "one"), (SNAPSHOT, "sib-1")]);
    assert_eq!(store.disk.data(), 0);
}

#[test]
fn an_image_is_its_layers_however_many_names_it_has() {
    let store = with_base();
    store.ok("image tag base other");
    let said = df(&store, "");
    assert_eq!(said["Objects"].as_array().map(Vec::len), Some(1), "one image: {said}");
    let all = exact(&said, "base", "Freed");
    // Of two images that share a layer, each has only its own alone.
    let root = snapshot(&store, "base", "root");
    write(&root, "more", 3 * MIB);
    let archive = store.disk.path().join("more.tar");
    sh("tar", &["-C", root.to_str().expect("plain"), "-cf", archive.to_str().expect("plain"), "."]);
    store.ok_with("image import --name more", &[archive.to_str().expect("plain")]);
    fs::remove_file(&archive).expect("a file");
    removed_in_turn(&store, &[(SNAPSHOT, "root")]);
    let said = df(&store, "");
    assert_eq!(exact(&said, "base", "Freed"), all);
    assert_eq!(exact(&said, "other", "Freed"), all, "the same image");
    let before = store.disk.data();
    store.ok("image rm base");
    assert_eq!(store.disk.data(), before, "only a name");
    removed_in_turn(&store, &[(IMAGE, "more"), (IMAGE, "other")]);
    assert_eq!(store.disk.data(), 0);
}

#[test]
fn a_container_has_its_log_and_what_is_nested_in_it() {
    let store = with_base();
    store.ok("create --name web base true");
    let id = store.json("inspect web")[0]["Id"].as_str().expect("an id").to_string();
    let dir = store.root().join("fs/containers").join(id);
    write(&dir, "log", MIB);
    let nested = dir.join("rootfs/nested");
    sh("btrfs", &["subvolume", "create", nested.to_str().expect("plain")]);
    write(&nested, "deep", 3 * MIB);
    let deeper = nested.join("deeper");
    sh("btrfs", &["subvolume", "snapshot", nested.to_str().expect("plain"), deeper.to_str().expect("plain")]);
    write(&deeper, "new", 5 * MIB);
    // What a volume shares with it is not its alone.
    store.ok("volume create v");
    let volume = store.json("volume inspect v")[0]["Mountpoint"].as_str().map(PathBuf::from).expect("a path");
    write(&dir.join("rootfs"), "both", 2 * MIB);
    let [from, to] =
        [dir.join("rootfs/both"), volume.join("both")].map(|path| path.to_str().expect("plain").to_string());
    sh("cp", &["--reflink=always", &from, &to]);
    assert_eq!(exact(&df(&store, ""), "web", "Exclusive"), 9 * MIB);
    removed_in_turn(&store, &[("rm", "web")]);
}

/// What lies beside the only layer, in bytes on the disk.
fn recipe(store: &Store) -> u64 {
    let mut layers = fs::read_dir(store.root().join("fs/layers")).expect("layers");
    let layer = layers.next().expect("a layer").expect("an entry").path();
    fs::metadata(layer.join("recipe")).expect("a recipe").blocks() * 512
}

#[test]
fn of_many_that_changed_a_bound_is_no_less_than_the_truth() {
    // What is written in one is far from what the image has, so that it is not read with it.
    let store = with_base_among(500);
    store.ok("snapshot create base s --count 70");
    let root = |nth: usize| PathBuf::from(store.ok(&format!("snapshot path s-{nth}")));
    for nth in 1..=70 {
        match nth {
            // Those in which the least was written have lost what the others have.
            1 | 2 => fs::remove_file(root(nth).join("large")).expect("a file"),
            nth => ["new", "more"].iter().for_each(|name| write(&root(nth), name, (nth as u64) * 4 * KIB)),
        }
    }
    let (said, truth) = (df(&store, ""), df(&store, "--exact"));
    let (bound, is) = figure(&said, "base", "Exclusive");
    let recipe = recipe(&store);
    assert_eq!((is.as_str(), exact(&truth, "base", "Exclusive")), ("at-most", recipe), "{said}");
    assert_eq!(bound, 2 * MIB + recipe);
    for nth in 1..=70 {
        let name = format!("s-{nth}");
        let alone = exact(&said, &name, "Exclusive");
        assert_eq!(alone, if nth < 3 { 0 } else { nth * 8 * KIB });
        assert_eq!(alone, exact(&truth, &name, "Exclusive"));
        let (shared, is) = figure(&said, &name, "Shared");
        let known = exact(&truth, &name, "Shared");
        match is.as_str() {
            "exact" => assert_eq!(shared, known),
            is => assert!(is == "at-most" && shared >= known, "{said}"),
        }
    }
    let table = store.ok("store df");
    let row = table.lines().find(|line| line.starts_with("image")).expect("a row");
    assert!(row.contains("≤ ") && row.contains("≥ "), "{row}");
    removed_in_turn(&store, &[(SNAPSHOT, "s-1"), (SNAPSHOT, "s-70")]);
    // With few enough of them all numbers are exact.
    (3..=8).for_each(|nth| drop(store.ok(&format!("snapshot rm s-{nth}"))));
    removed_in_turn(&store, &[(IMAGE, "base")]);
}

#[test]
fn who_may_not_look_is_told() {
    let store = with_base();
    let mut command = Command::new("setpriv");
    let inner = store.command("store df", &[]);
    command.args(["--bounding-set", "-sys_admin"]).arg(inner.get_program()).args(inner.get_args());
    let done = finish(command).status(1);
    assert!(done.stderr.contains("CAP_SYS_ADMIN") && done.stderr.contains("not permitted"), "{done}");
}
