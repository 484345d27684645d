//! image save and export: what went in comes out.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;

use serde_json::Value;
use tupper::layer::{Limits, unpack_watched};

use super::load::text;
use crate::scratch::{Scratch, Tar, rebuilt, recipe};
use crate::support::archives::{Files, hex};
use crate::support::sh;
use crate::support::store::Store;
use crate::support::tree::Tree;

/// The files of an archive.
fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").to_str().expect("text").to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read");
        (name, bytes)
    });
    entries.collect()
}

fn member<'a>(members: &'a [(String, Vec<u8>)], name: &str) -> &'a [u8] {
    &members.iter().find(|(there, _)| there == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// An archive of many kinds of entries; what is large enough is not kept twice.
fn many_kinds() -> Vec<u8> {
    let big = vec![b'b'; 100_000];
    let sparse = [b"2\n4096\n600\n70000\n0\n".to_vec(), vec![0; 493], vec![b's'; 600]].concat();
    let mut bytes = Tar::default()
        .directory("./")
        .directory("./d")
        .file("./d/big", &big)
        .file("./d/small", b"small")
        .file("./d/empty", b"")
        .hard_link("./d/again", "./d/big")
        .symlink("./l", "d")
        .file("./l/through", &[b't'; 3000])
        .pax(&[("SCHILY.xattr.user.a", b"b"), ("mtime", b"12.5")])
        .file("./x", &[b'x'; 1000])
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"70000"),
        ])
        .file("./s", &sparse)
        .file("n".repeat(180), &[b'n'; 700])
        .end();
    bytes.extend(vec![0; 8192]);
    bytes
}

#[test]
fn what_was_imported_comes_out_to_the_last_byte() {
    let (store, scratch) = (Store::empty(), tempfile::tempdir().expect("a directory"));
    let layer = many_kinds();
    let file = scratch.path().join("in.tar");
    fs::write(&file, &layer).expect("written");
    let id = store.ok(&format!("image import {} --name kinds", text(&file)));
    let out = scratch.path().join("out.tar");
    store.ok(&format!("save -o {} kinds", text(&out)));
    let saved = members(&fs::read(&out).expect("an archive"));
    assert!(member(&saved, &format!("{}.tar", hex(&layer))) == layer, "the layer is another");
    assert_eq!(hex(member(&saved, &format!("{id}.json"))), id);
    let list = json(member(&saved, "manifest.json"));
    assert_eq!(list[0]["RepoTags"], serde_json::json!(["localhost/kinds:latest"]));
    // What can only be written onwards is the same, and so is the second time.
    let stream = crate::scratch::run(&mut store.command("image save kinds", &[]));
    assert!(stream == fs::read(&out).expect("an archive"), "a stream is another archive");
    // Of the content nothing is there twice.
    let recipe = store.root().join("fs/layers").join(hex(&layer)).join("recipe");
    assert!(fs::metadata(recipe).expect("a recipe").len() < 2000);
}

#[test]
fn an_image_has_its_id_wherever_it_was() {
    let (store, other, scratch) = (Store::empty(), Store::empty(), tempfile::tempdir().expect("a directory"));
    let layers = [
        Tar::default().directory("etc").file("etc/base", &[1; 5000]).file("etc/gone", b"x").end(),
        Tar::default().file("etc/.wh.gone", b"").file("etc/base", &[2; 6000]).end(),
        Tar::default().directory("d").file("d/two", &[3; 700]).end(),
    ];
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let shared: Vec<&[u8]> = layers[..2].to_vec();
    let files = Files::docker(&[(&["one:1", "one:2"], &layers), (&["two:1"], &shared)]);
    let archive = scratch.path().join("in.tar");
    fs::write(&archive, files.tar()).expect("written");
    store.ok(&format!("load -q -i {}", text(&archive)));
    let id = |store: &Store, name: &str| store.json(&format!("image inspect {name}"))[0]["Id"].clone();
    let (one, two) = (id(&store, "one:1"), id(&store, "two:1"));
    for (flags, name) in [
        ("", "docker.tar"),
        ("--format oci-archive", "oci.tar"),
        ("--format oci-archive --uncompressed", "plain.tar"),
        ("--format oci-archive --compression-format zstd --compression-level 5", "zstd.tar"),
        ("--format oci-dir", "layout"),
    ] {
        let path = scratch.path().join(name);
        store.ok(&format!("save {flags} -o {} one:1 two:1 one:2 one:1", text(&path)));
        other.ok(&format!("load -q -i {}", text(&path)));
        assert_eq!(
            (id(&other, "one:1"), id(&other, "one:2"), id(&other, "two:1")),
            (one.clone(), one.clone(), two.clone())
        );
        assert_eq!(other.lines("image ls -q --no-trunc").len(), 2);
        other.ok("image rm -f one:1 one:2 two:1");
        // By its id an image has no name.
        store.ok(&format!("save {flags} -o {} {}", text(&path), one.as_str().expect("an id")));
        other.ok(&format!("load -q -i {}", text(&path)));
        assert_eq!(other.json("image ls --format json")[0]["Names"], serde_json::json!([]));
        other.ok("image prune -f");
    }
    // Each layer once.
    let docker = members(&fs::read(scratch.path().join("docker.tar")).expect("an archive"));
    assert_eq!(docker.iter().filter(|(name, _)| name.ends_with(".tar")).count(), 3);
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn what_a_layer_replaces_itself_is_kept() {
    let scratch = Scratch::new();
    let twice = Tar::default()
        .directory("d")
        .file("d/a", &[1; 4000])
        .file("d/b", &[9; 4000])
        .file("d/a", &[2; 5000])
        .hard_link("d/c", "d/a")
        .file("d/a", &[3; 6000])
        .symlink("d/b", "a")
        .end();
    // Where paths do not lead where they led: no recipe.
    let led_elsewhere = Tar::default()
        .directory("x")
        .directory("y")
        .symlink("l", "x")
        .file("l/f", &[1; 4000])
        .symlink("l", "y")
        .file("l/f", &[2; 4000])
        .end();
    let too_much = Tar::default().file("f", &vec![1; 17 << 20]).file("f", &vec![2; 17 << 20]).end();
    for (number, (archive, kept)) in [(twice, true), (led_elsewhere, false), (too_much, false)].into_iter().enumerate()
    {
        let into = File::open(scratch.make(&number.to_string())).expect("a directory");
        let (_beside, recipe) = recipe();
        let bytes = Box::new(std::io::Cursor::new(archive.clone()));
        let watch = std::sync::Arc::new(|_| Ok(()));
        unpack_watched(bytes, into.as_fd(), &Limits::default(), watch, Some(&recipe)).expect("unpacked");
        assert_eq!(rebuilt(&recipe, into), kept.then_some(archive), "{number}");
    }
}

#[test]
fn a_layer_that_was_made_without_a_recipe_says_so() {
    let store = Store::new();
    let layers = store.root().join("fs/layers");
    for layer in fs::read_dir(&layers).expect("layers") {
        fs::remove_file(layer.expect("a layer").path().join("recipe")).expect("a recipe");
    }
    let out = store.root().join("out.tar");
    let told = store.fails(1, &format!("save -o {} busybox", text(&out)));
    assert!(told.contains("save busybox: layer ") && told.contains("hint: `tupper image export`"), "{told}");
    assert!(
        !out.exists()
            && !fs::read_dir(store.root())
                .expect("listed")
                .any(|entry| { entry.expect("an entry").file_name().to_string_lossy().contains(".tupper-") })
    );
    store.ok(&format!("image export -o {} busybox", text(&out)));
    // A layer that is not what it was is noticed.
    let store = Store::new();
    let layer = fs::read_dir(store.root().join("fs/layers")).expect("layers").next().expect("one").expect("a layer");
    let rootfs = layer.path().join("rootfs");
    sh("btrfs", &["property", "set", text(&rootfs), "ro", "false"]);
    let program = fs::read_dir(rootfs.join("bin")).expect("programs").next().expect("one").expect("a program").path();
    let mut bytes = fs::read(&program).expect("a program");
    bytes[100] ^= 1;
    fs::write(&program, bytes).expect("written");
    let out = store.root().join("out.tar");
    let told = store.fails(1, &format!("save -o {} busybox", text(&out)));
    assert!(told.contains("its digest is"), "{told}");
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_saved_is_told() {
    let store = Store::new();
    let out = store.root().join("out.tar");
    fs::write(&out, b"mine").expect("written");
    for (line, why) in [
        ("save -o OUT nothing", "nothing"),
        ("save -o OUT --compression-format gzip busybox", "not compressed"),
        ("save --format oci-dir busybox", "name it with -o"),
        ("save --format oci-archive --compression-level 99 -o OUT busybox", "level 99"),
        ("save -o /nowhere/out.tar busybox", "/nowhere/out.tar"),
        ("save -o / busybox", "it is a directory"),
        ("export -o OUT nothing", "nothing"),
        ("save -o /dev/full busybox", "no space"),
    ] {
        let told = store.fails(1, &line.replace("OUT", text(&out)));
        assert!(told.contains(why), "{line}: {told}");
    }
    store.fails(2, "save");
    assert_eq!(fs::read(&out).expect("there"), b"mine");
    store.ok("save -o /dev/null busybox");
    store.ok(&format!("save -o {} busybox", text(&out)));
    assert!(fs::read(&out).expect("there").len() > 1_000_000);
}

#[test]
fn an_export_is_the_root_of_what_it_is_of() {
    let store = Store::new();
    let script = "mkdir -p d; echo new > d/file; ln d/file d/other; ln -s file d/link; rm bin/wc; mkfifo d/fifo; chmod 4711 d/file";
    store.ok_with("run --name web --userns host busybox sh -c", &[script]);
    let exported = |source: &str| {
        let top = tempfile::tempdir().expect("a directory");
        let tar = top.path().join("x.tar");
        store.ok(&format!("export -o {} {source}", text(&tar)));
        let into = top.path().join("root");
        fs::create_dir(&into).expect("made");
        sh("tar", &["-xpf", text(&tar), "--xattrs", "--xattrs-include=*", "-C", text(&into)]);
        (Tree::read(&into), top)
    };
    let tree = |shelf: &str, id: &str| Tree::read(&store.root().join("fs").join(shelf).join(id).join("rootfs"));
    let container = store.json("inspect web")[0]["Id"].as_str().expect("an id").to_string();
    let (found, _kept) = exported("web");
    tree("containers", &container).assert_same(&found);
    let snapshot = store.ok("snapshot create web");
    let (found, _kept) = exported(&snapshot);
    tree("snapshots", &snapshot).assert_same(&found);
    // And round again: the same image.
    let stream = |source: &str| crate::scratch::run(&mut store.command(&format!("export {source}"), &[]));
    let first = stream("busybox");
    let file = store.root().join("again.tar");
    fs::write(&file, &first).expect("written");
    store.ok(&format!("import {} --name again", text(&file)));
    assert!(stream("again") == first, "an export of an import of an export is another");
    assert_eq!(store.ok("store check"), "");
    assert_eq!(fs::read_dir(store.root().join("fs/staging")).expect("staging").count(), 0);
}
