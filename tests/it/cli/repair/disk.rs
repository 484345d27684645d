//! A disk that has other bytes than were written: btrfs refuses to read what does not match its checksum.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Scene, changed, pattern, text};
use crate::support::command::wait;
use crate::support::{eventually, sh};

/// Changes these bytes wherever they lie on the disk below the filesystem.
fn rot(scene: &Scene, bytes: &[u8]) {
    sh("btrfs", &["filesystem", "sync", text(&scene.store.disk.path())]);
    let image = scene.store.disk.image();
    let words = std::str::from_utf8(bytes).expect("text");
    let places = sh("grep", &["--only-matching", "--byte-offset", "--text", "--fixed-strings", words, text(&image)]);
    let disk = File::options().write(true).open(&image).expect("the disk");
    for line in places.lines() {
        let place = line.split_once(':').expect("a place").0.parse().expect("a number");
        disk.write_at(b"ROT", place).expect("written");
    }
    assert!(!places.is_empty(), "the bytes are not on the disk");
    disk.sync_all().expect("synced");
}

#[test]
fn a_file_that_the_disk_has_spoilt_is_named() {
    let scene = Scene::new();
    let own = scene.fs(&format!("snapshots/{}/rootfs/own file", scene.web));
    fs::write(&own, pattern("own", 100_000)).expect("a file");
    let container = scene.fs(&format!("containers/{}/rootfs/theirs", scene.container));
    fs::write(&container, pattern("theirs", 100_000)).expect("a file");
    let volume = scene.fs(&format!("volumes/{}/rootfs/v", crate::support::archives::hex(b"data")));
    fs::write(&volume, pattern("volume", 100_000)).expect("a file");
    for (word, found, path) in [
        ("own", format!("snapshot snapshots/{}", scene.web), "/own file"),
        ("theirs", format!("container containers/{}", scene.container), "/theirs"),
        ("volume", format!("volume volumes/{}", crate::support::archives::hex(b"data")), "/v"),
    ] {
        // It is in the page cache, which says nothing of the disk.
        rot(&scene, &pattern(word, 100_000)[50_000..50_040]);
        assert_eq!(scene.check(""), Vec::<String>::new(), "a plain look does not read it");
        let told = scene.store.run("store check --deep").status(1);
        assert!(told.stdout.contains(path) && told.stdout.contains("I/O error"), "{told}");
        let left = scene.check("--deep --repair --force");
        assert_eq!(left, [format!("{found} person found")]);
        let at = scene.fs(&format!("{}/rootfs{path}", found.split_once(' ').expect("two words").1));
        fs::remove_file(at).expect("removed");
        assert_eq!(scene.check("--deep"), Vec::<String>::new());
    }
    scene.works();
}

#[test]
fn a_layer_that_the_disk_has_spoilt_goes_by_force_and_comes_again() {
    let scene = Scene::new();
    // What shares its extents is not read a second time, and told of once.
    scene.store.ok("snapshot create two:1 of-it");
    rot(&scene, &pattern("base", 300_000)[100_000..100_040]);
    let found = format!("layer layers/{}", scene.chains[0]);
    let told = scene.store.run("store check --deep").status(1);
    assert!(told.stdout.contains("/etc/big") && told.stdout.contains("localhost/two:1"), "{told}");
    let lines = scene.check("--deep");
    assert!(lines.contains(&format!("{found} force found")), "{lines:?}");
    let left = scene.check("--deep --repair");
    assert_eq!(left, lines, "nothing goes without --force");
    let done = scene.check("--deep --repair --force");
    assert!(done.contains(&format!("{found} force repaired")), "{done:?}");
    assert!(!scene.store.ok("image ls").contains("two"));
    assert!(scene.store.ok("snapshot ls").contains("of-it"), "a snapshot never goes");
    scene.load();
    // It has the spoilt extent still, and nobody else.
    let id = scene.store.json("snapshot inspect of-it")[0]["Id"].as_str().expect("an id").to_string();
    assert_eq!(scene.check("--deep"), [format!("snapshot snapshots/{id} person found")]);
    scene.store.ok("snapshot rm of-it");
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
    scene.works();
}

#[test]
fn what_many_share_is_read_once() {
    let scene = Scene::new();
    let read = || {
        let said = scene.store.run("store check --deep").status(0).stderr;
        said.trim().rsplit_once(", ").expect("a size").1.to_string()
    };
    let before = read();
    scene.store.ok("snapshot create --count 20 busybox");
    assert_eq!(read(), before);
    let own = scene.fs(&format!("snapshots/{}/rootfs/own", scene.web));
    fs::write(own, pattern("own", 5_000_000)).expect("a file");
    sh("btrfs", &["filesystem", "sync", text(&scene.store.disk.path())]);
    assert_ne!(read(), before);
}

#[test]
fn a_deep_look_can_be_interrupted_and_leaves_nothing() {
    let scene = Scene::new();
    scene.store.import_debian();
    let clean = scene.state();
    for flags in ["--deep", "--deep --repair"] {
        let mut command = scene.store.command(&format!("store check {flags}"), &[]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tupper");
        // It has begun to unpack something to compare with.
        let staging = scene.fs("staging");
        let drafts = |path: &Path| {
            let names =
                fs::read_dir(path).expect("staging").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.filter(|name| name.starts_with("draft-")).count()
        };
        eventually("a draft is there", Duration::from_secs(60), || drafts(&staging) > 0);
        kill(Pid::from_raw(child.id().try_into().expect("a pid")), Signal::SIGINT).expect("a signal");
        assert_eq!(wait(child, "tupper store check"), 130, "{flags}");
        assert_eq!(scene.store.ok("store gc --dry-run"), "", "{flags}");
        assert!(changed(&clean, &scene.state()).is_empty(), "{flags}");
    }
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
}
