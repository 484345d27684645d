//! Disks that are too small for an image of several layers, or become read-only while it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::broken::{Beside, remount};
use super::real::{clean, failed_by, furnish, intact};
use super::scene::text;
use crate::support::archives::Files;
use crate::support::command::Tupper;
use crate::support::disk::{self, Disk};
use crate::support::store::Host;
use crate::support::{eventually, registry, sh};

const MIB: usize = 1 << 20;

/// A layer with a file of so many MiB that nothing makes smaller.
fn layer(name: &str, size: usize) -> Vec<u8> {
    let noise = (0..(size * MIB) as u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]);
    Files(vec![(name.to_string(), noise.collect())]).tar()
}

fn stored(store: &Tupper) -> usize {
    store.root().join("fs/layers").read_dir().expect("layers").count()
}

/// Takes all but so many MiB of what is free.
fn leave(disk: &Disk, left: usize) -> std::path::PathBuf {
    let path = disk.path().join("ballast");
    let ballast = std::fs::File::create(&path).expect("a file");
    let free = rustix::fs::statvfs(disk.path()).map(|found| found.f_bavail * found.f_frsize).expect("statvfs");
    let taken = free as i64 - (left * MIB) as i64;
    nix::fcntl::fallocate(&ballast, nix::fcntl::FallocateFlags::empty(), 0, taken).expect("room");
    path
}

#[test]
fn a_commit_that_the_disk_has_no_room_for_leaves_nothing() {
    let _host = Host::alone();
    let disk = Disk::btrfs_of(512 * MIB as u64);
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    let big = std::path::PathBuf::from(store.ok("snapshot path web")).join("big");
    let noise = (0..(90 * MIB) as u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]);
    std::fs::write(&big, noise.collect::<Vec<u8>>()).expect("a file");
    sh("sync", &["--file-system", text(&big)]);
    let (before, ballast) = (stored(&store), leave(&disk, 50));
    failed_by(store.run("commit web new"), 1, &["no space left"]);
    assert_eq!(stored(&store), before, "a layer of what did not fit");
    assert_eq!(store.ok("store gc --dry-run"), "");
    assert!(!store.ok("image ls").contains("new"));
    intact(&store);
    std::fs::remove_file(ballast).expect("removed");
    eventually("there is room again", Duration::from_secs(60), || store.run("commit web new").status == 0);
    assert_eq!(stored(&store), before + 1);
    clean(&store);
}

#[test]
fn a_load_that_the_disk_has_no_room_for_leaves_nothing() {
    let _host = Host::alone();
    let disk = Disk::btrfs_of(512 * MIB as u64);
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    let scratch = disk::scratch();
    let layers = [layer("a", 3), layer("b", 3), layer("c", 120)];
    let archive = Files::docker(&[(&["localhost/it:1"], &layers.each_ref().map(Vec::as_slice))]);
    let archive = archive.save(scratch.path(), "it.tar");
    let ballast = leave(&disk, 60);

    let before = stored(&store);
    failed_by(store.run_with("image load -i", &[text(&archive)]), 1, &["no space left", "had free"]);
    assert_eq!(stored(&store), before, "layers of what did not fit");
    assert_eq!(store.ok("store gc --dry-run"), "");
    intact(&store);
    // From a pipe it is kept first, if half of what is free is enough for that.
    let file = std::fs::File::open(&archive).expect("an archive");
    failed_by(store.run_reading("image load -i /dev/stdin", file), 1, &["no space left", "had free", "half of what"]);
    assert_eq!(stored(&store), before);
    std::fs::remove_file(ballast).expect("removed");
    eventually("there is room again", Duration::from_secs(60), || {
        store.run_with("image load -i", &[text(&archive)]).status == 0
    });
    assert_eq!(stored(&store), before + 3);
    intact(&store);
    clean(&store);
}

#[test]
fn a_filesystem_becomes_read_only_during_a_pull() {
    let _host = Host::alone();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    let before = stored(&store);
    let layers = [layer("a", 1), layer("b", 1), layer("c", 1)];
    let layers = layers.each_ref().map(Vec::as_slice);
    let held = Arc::new(AtomicBool::new(true));
    let (holds, top) = (Arc::clone(&held), registry::blob("a/it", layers[2]));
    let server = registry::serve(Files::layout(None, &layers, <[u8]>::to_vec), move |asked| {
        while asked.path == top && holds.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    });
    let name = format!("{}/a/it:1", server.host());
    let pull = Beside::start(store.command("image pull --tls-verify=false", &[&name]));
    eventually("two layers are there", Duration::from_secs(60), || stored(&store) == before + 2);
    remount(&disk, "ro");
    held.store(false, Ordering::Relaxed);
    failed_by(pull.end(), 1, &["read-only file system"]);
    intact(&store);
    remount(&disk, "rw");
    store.ok("store gc");
    assert_eq!(stored(&store), before + 2, "they wait for the next attempt");
    store.ok_with("image pull --tls-verify=false", &[&name]);
    for layer in &layers[..2] {
        assert_eq!(server.count(&registry::blob("a/it", layer)), 1, "asked for again");
    }
    assert_eq!(stored(&store), before + 3);
    intact(&store);
    clean(&store);
}
