//! The warm pool: ready snapshots for `run --rm` and `shell`.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::command::Tupper;
use crate::support::disk::Disk;
use crate::support::store::Store;
use crate::support::{busybox, eventually, sh};

/// As people have it.
fn warm(store: &Store) -> Tupper {
    Tupper::new(store.root()).with_env("TUPPER_POOL", "on")
}

fn entries(tupper: &Tupper) -> Vec<PathBuf> {
    let read = std::fs::read_dir(tupper.root().join("fs/pool"));
    let mut found: Vec<PathBuf> = read.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Those that have their mark.
fn ready(tupper: &Tupper) -> Vec<PathBuf> {
    let mut found = entries(tupper);
    found.retain(|path| rustix::fs::getxattr(path, "user.tupper.ready", &mut [0_u8; 100][..]).is_ok());
    found
}

/// Those that have none, but for what the others are snapshots of.
fn unready(tupper: &Tupper) -> Vec<PathBuf> {
    let ready = ready(tupper);
    let mut found = entries(tupper);
    found.retain(|path| !ready.contains(path) && !is_base(path));
    found
}

fn is_base(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-"))
}

fn base(tupper: &Tupper) -> PathBuf {
    entries(tupper).into_iter().find(|path| is_base(path)).expect("a base")
}

/// Whether somebody has written in one that is ready: its last change is its own, and not that of what it is a snapshot of.
fn is_written(entry: &Path) -> bool {
    let mut mark = [0_u8; 100];
    let size = rustix::fs::getxattr(entry, "user.tupper.ready", &mut mark[..]).expect("a mark");
    let text = String::from_utf8(mark[..size].to_vec()).expect("text");
    let words: Vec<&str> = text.split(' ').collect();
    words[1] == words[2]
}

/// Until nobody makes any.
fn settle(tupper: &Tupper, count: usize) {
    eventually(&format!("{count} are ready"), Duration::from_secs(60), || ready(tupper).len() == count);
}

/// A store whose pool has been filled by a first run.
fn filled() -> (Store, Tupper) {
    let store = Store::new();
    let tupper = warm(&store);
    tupper.ok("run --rm busybox true");
    settle(&tupper, 8);
    (store, tupper)
}

#[test]
fn a_throwaway_takes_one_that_is_ready_and_more_are_made() {
    let (_store, tupper) = filled();
    let first = ready(&tupper);
    tupper.ok("run --rm busybox true");
    let left = ready(&tupper);
    assert_eq!(left.len(), 7, "{first:?} {left:?}");
    assert!(left.iter().all(|entry| first.contains(entry)));
    assert_eq!(tupper.lines("ps --all -q"), [""; 0]);
    // When half of them are gone more are made, and more than before, since they went so soon.
    (0..3).for_each(|_| drop(tupper.ok("shell busybox true")));
    settle(&tupper, 16);
    assert_eq!(tupper.ok("store check"), "");
}

#[test]
fn what_has_to_last_or_is_told_takes_none() {
    let (_store, tupper) = filled();
    let before = ready(&tupper);
    tupper.ok("run --name kept busybox true");
    tupper.ok("create busybox true");
    tupper.ok("snapshot create busybox");
    tupper.ok("run --rm --pool off busybox true");
    tupper.ok("run --rm --explain busybox true");
    tupper.ok("run --rm kept true");
    let id = tupper.ok("run --detach --rm busybox true");
    tupper.run(&format!("wait {id}"));
    assert_eq!(ready(&tupper), before);
}

fn left(tupper: &Tupper) -> Vec<PathBuf> {
    let shelves = ["trash", "staging"].map(|shelf| std::fs::read_dir(tupper.root().join("fs").join(shelf)));
    shelves.into_iter().flatten().flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn nobody_waits_for_the_tree_of_one_that_has_ended() {
    let (_store, tupper) = filled();
    tupper.ok("run --rm --pool off busybox true");
    assert!(left(&tupper).is_empty(), "it has done that itself");
    // Whoever does it, the container is gone.
    for _ in 0..10 {
        tupper.ok("run --rm busybox true");
        assert_eq!(tupper.lines("ps --all -q"), [""; 0]);
    }
    eventually("nothing is left of them", Duration::from_secs(60), || {
        left(&tupper).is_empty() && unready(&tupper).is_empty()
    });
    assert_eq!(tupper.ok("store check"), "");
}

#[test]
fn the_first_process_of_a_pid_namespace_leaves_nothing_to_another() {
    let (_store, tupper) = filled();
    let command = tupper.command("run --rm busybox true", &[]);
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc"]).arg(command.get_program()).args(command.get_args());
    unshare.env("TUPPER_POOL", "on");
    assert!(unshare.status().expect("unshare; type: make setup").success());
    assert!(left(&tupper).is_empty(), "who would have done it ended with the namespace");
    assert_eq!(ready(&tupper).len(), 7, "one was taken");
}

#[test]
fn it_is_off_with_one_setting() {
    let store = Store::new();
    for _ in 0..3 {
        Tupper::new(store.root()).with_env("TUPPER_POOL", "off").ok("run --rm busybox true");
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(entries(&store).is_empty(), "{:?}", entries(&store));
}

#[test]
fn a_ready_one_is_as_a_fresh_one() {
    let (_store, tupper) = filled();
    // But for what is mounted in each anew.
    let look = "cd /; find . -xdev -not -path ./proc -not -path ./dev -not -path ./sys -not -path './etc*' -exec stat -c '%n %f %u %g %s %Y %h %i' {} + | sort";
    let fresh = tupper.ok_with("run --rm --pool off busybox", &["sh", "-c", look]);
    let taken = tupper.ok_with("run --rm busybox", &["sh", "-c", look]);
    assert_eq!(ready(&tupper).len(), 7, "one was taken");
    assert!(fresh.lines().count() > 20);
    let differ: Vec<_> = taken.lines().zip(fresh.lines()).filter(|(taken, fresh)| taken != fresh).collect();
    assert!(differ.is_empty() && taken.len() == fresh.len(), "{differ:?}");
    // Nothing has changed in one in which nothing was changed.
    tupper.run("run --rm=on-success busybox false").status(1);
    assert_eq!(tupper.lines("snapshot trash ls -q"), [""; 0]);
    tupper.run_with("run --rm=on-success busybox", &["sh", "-c", "echo x >/x; false"]).status(1);
    let trashed = tupper.lines("snapshot trash ls -q");
    assert_eq!(trashed.len(), 1);
    tupper.ok(&format!("snapshot trash restore {} back", trashed[0]));
    let changes = tupper.lines("snapshot diff back busybox");
    assert!(changes.contains(&"A /x".to_string()) && !changes.contains(&"C /".to_string()), "{changes:?}");
}

#[test]
fn many_at_once_have_one_each() {
    let (_store, tupper) = filled();
    for round in 0..5 {
        let script = format!("ls /; touch /mine-{round}; sleep 0.1; ls /");
        let run = || tupper.run_with("run --rm busybox", &["sh", "-c", &script]).ok();
        let outputs: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a run")).collect()
        });
        for output in outputs {
            assert_eq!(output.matches("mine-").count(), 1, "somebody else was in it: {output}");
        }
    }
    eventually("nobody makes any", Duration::from_secs(60), || {
        tupper.run("store gc").status == 0 && {
            let now = entries(&tupper);
            std::thread::sleep(Duration::from_millis(600));
            now == entries(&tupper) && unready(&tupper).is_empty()
        }
    });
    assert_eq!(tupper.lines("ps --all -q"), [""; 0]);
    assert_eq!(tupper.ok("store check"), "");
}

#[test]
fn one_that_was_written_to_or_is_of_another_boot_is_nobodys() {
    let (_store, tupper) = filled();
    let entries = ready(&tupper);
    // What comes back after a cut is of a later transaction than the mark.
    sh("sync", &["--file-system", tupper.root().to_str().expect("a plain path")]);
    for entry in &entries[..4] {
        std::fs::write(entry.join("rootfs/written"), "x").expect("write");
    }
    for entry in &entries[4..] {
        let mut mark = [0_u8; 100];
        let size = rustix::fs::getxattr(entry, "user.tupper.ready", &mut mark[..]).expect("a mark");
        let text = String::from_utf8(mark[..size].to_vec()).expect("text");
        let (_, changed) = text.split_once(' ').expect("two words");
        let other = format!("00000000-0000-0000-0000-000000000000 {changed}");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(entry, "user.tupper.ready", other.as_bytes(), flags).expect("set it");
    }
    assert_eq!(tupper.ok("store check"), "", "that is in order");
    let mut seen = BTreeSet::new();
    seen.extend(tupper.ok("run --rm busybox ls /").lines().map(str::to_string));
    assert!(!seen.contains("written"), "{seen:?}");
    // Who fills it again clears them.
    eventually("others are ready", Duration::from_secs(60), || {
        let now = ready(&tupper);
        now.len() >= 8 && now.iter().all(|entry| !entries.contains(entry))
    });
}

#[test]
fn entries_are_written_in_beforehand_where_commands_write() {
    let (_store, tupper) = filled();
    let use_up = |command: &str, size: usize| {
        let known = ready(&tupper);
        (0..known.len() / 2).for_each(|_| drop(tupper.ok(&format!("run --rm busybox {command}"))));
        settle(&tupper, size);
        let mut new = ready(&tupper);
        new.retain(|entry| !known.contains(entry));
        assert!(!new.is_empty());
        new
    };
    // The first run had none, and was written in for what every container has.
    assert!(ready(&tupper).iter().all(|entry| is_written(entry)));
    assert!(use_up("true", 16).iter().all(|entry| !is_written(entry)), "true writes nothing");
    assert!(use_up("touch /x", 32).iter().all(|entry| is_written(entry)), "touch does");
    assert!(
        use_up("touch /x", 64).iter().all(|entry| is_written(entry)),
        "in those that were written in just now, too"
    );
    assert!(use_up("true", 128).iter().all(|entry| !is_written(entry)), "and true does not");
    assert_eq!(tupper.ok("run --rm busybox ls -a /").matches(".tupper").count(), 0, "nothing is left of it");
}

#[test]
fn what_every_container_has_is_made_once() {
    let (store, tupper) = filled();
    let made = |entry: &Path| std::fs::symlink_metadata(entry.join("rootfs/etc/hosts")).expect("hosts").ino();
    let inode = made(&base(&tupper));
    assert!(ready(&tupper).iter().all(|entry| made(entry) == inode));
    let layers = std::fs::read_dir(store.root().join("fs/layers")).expect("layers").flatten();
    assert!(layers.map(|layer| layer.path().join("rootfs/etc/hosts")).all(|hosts| !hosts.exists()), "not in the image");
    // One that somebody wrote in is made anew, as it was.
    std::fs::write(base(&tupper).join("rootfs/written"), "x").expect("write");
    let before = ready(&tupper);
    (0..4).for_each(|_| drop(tupper.ok("run --rm busybox true")));
    settle(&tupper, 16);
    assert!(!base(&tupper).join("rootfs/written").exists());
    let mut new = ready(&tupper);
    new.retain(|entry| !before.contains(entry));
    assert!(!new.is_empty() && new.iter().all(|entry| !entry.join("rootfs/written").exists()), "{new:?}");
}

#[test]
fn what_somebody_takes_apart_is_left_to_him() {
    let (_store, tupper) = filled();
    let id = "7".repeat(64);
    let trashed = tupper.root().join(format!("fs/trash/containers-{id}-777777777777"));
    let intent = tupper.root().join(format!("fs/staging/intent-{id}"));
    std::fs::create_dir(&trashed).expect("a directory");
    std::fs::create_dir(&intent).expect("a directory");
    let held = std::fs::File::open(&intent).expect("open it");
    held.lock().expect("flock");
    for line in ["run --rm busybox true", "tag busybox more"] {
        tupper.ok(line);
        assert!(trashed.exists() && intent.exists(), "{line}");
    }
    drop(held);
    tupper.ok("tag busybox again");
    assert!(!trashed.exists() && !intent.exists(), "nobody is at it any more");
}

#[test]
fn it_goes_with_its_image() {
    let (store, tupper) = filled();
    tupper.ok("image rm busybox");
    assert!(entries(&tupper).is_empty(), "{:?}", entries(&tupper));
    assert_eq!(store.disk.subvolumes(), ["store/fs"]);
}

#[test]
fn who_fills_it_leaves_its_callers_pipes_alone() {
    let (_store, tupper) = filled();
    for _ in 0..6 {
        let mut command = tupper.command("run --rm busybox true", &[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tupper");
        let (mut out, mut err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        assert!(child.wait().expect("wait").success());
        for fd in [out.as_fd(), err.as_fd()] {
            rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::NONBLOCK).expect("set a flag");
        }
        // It may just be closing them.
        std::thread::sleep(Duration::from_millis(5));
        let mut bytes = Vec::new();
        // An end of the file: nobody has the other end any more.
        assert_eq!(out.read_to_end(&mut bytes).expect("the end"), 0);
        assert_eq!(err.read_to_end(&mut bytes).expect("the end"), 0, "{}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn it_is_dropped_on_a_disk_that_is_nearly_full() {
    let (_host, disk) = (crate::support::store::Host::shared(), Disk::btrfs_of(512 << 20));
    let tupper = Tupper::new(disk.path().join("store")).with_env("TUPPER_POOL", "on");
    tupper.ok_with("image import --name busybox", &[busybox().to_str().expect("a plain path")]);
    tupper.ok("run --rm busybox true");
    settle(&tupper, 8);
    let filler = disk.path().join("filler");
    sh("fallocate", &["-l", "420M", filler.to_str().expect("a plain path")]);
    tupper.ok("snapshot create busybox one");
    tupper.ok("snapshot rm one");
    assert!(entries(&tupper).is_empty(), "{:?}", entries(&tupper));
    // And is not filled again.
    tupper.ok("run --rm busybox true");
    std::thread::sleep(Duration::from_secs(1));
    assert!(entries(&tupper).is_empty(), "{:?}", entries(&tupper));
    std::fs::remove_file(filler).expect("remove it");
    tupper.ok("run --rm busybox true");
    settle(&tupper, 8);
}

#[test]
fn the_store_is_unmounted_right_after_a_run() {
    let (_host, disk) = (crate::support::store::Host::shared(), Disk::ext4(2 << 30));
    let tupper = Tupper::new(disk.path().join("store")).with_env("TUPPER_POOL", "on");
    tupper.ok_with("image import --name busybox", &[busybox().to_str().expect("a plain path")]);
    for _ in 0..5 {
        tupper.ok("run --rm busybox true");
        tupper.ok("store umount");
    }
    tupper.ok("run --rm busybox dd if=/dev/zero of=/large bs=1M count=100");
    tupper.ok("store umount");
}

#[test]
fn the_store_is_removed_right_after_a_run() {
    let (_store, tupper) = filled();
    tupper.ok("run --rm busybox dd if=/dev/zero of=/large bs=1M count=100");
    tupper.ok("store reset --force");
    assert!(!tupper.root().join("fs").exists());
}

#[test]
fn what_is_ready_counts_to_its_image() {
    let (_store, tupper) = filled();
    let df = tupper.json("store df --format json");
    let image = &df["Objects"][0];
    let exclusive = image["Exclusive"]["Bytes"].as_u64().expect("a number");
    assert!(exclusive > 1 << 20, "{df}");
    assert_eq!(image["Freed"]["Bytes"].as_u64(), Some(exclusive), "{df}");
}
