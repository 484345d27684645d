//! What the order of tupper's steps takes from the kernel: what is on the disk right after a call returned.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use crate::recorder::{Filesystem, Recorder, Recording};
use crate::support::disk::Disk;
use crate::support::sh;
use crate::tape::Unflushed;

const FATES: [Unflushed; 4] = [Unflushed::Lost, Unflushed::Kept, Unflushed::Mixed(1), Unflushed::Mixed(2)];

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn subvolume(verb: &str, path: &Path) {
    sh("btrfs", &["subvolume", verb, text(path)]);
}

fn snapshot(source: &Path, path: &Path) {
    sh("btrfs", &["subvolume", "snapshot", text(source), text(path)]);
}

fn sync_filesystem(path: &Path) {
    nix::unistd::syncfs(File::open(path).expect("open")).expect("syncfs");
}

fn set_xattr(path: &Path) {
    rustix::fs::setxattr(path, "user.record", &[7; 1500], XattrFlags::empty()).expect("set an attribute");
}

fn has_xattr(path: &Path) -> bool {
    rustix::fs::getxattr(path, "user.record", &mut [0; 2000][..]) == Ok(1500)
}

fn write_synced(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).and_then(|()| File::open(path)?.sync_all()).expect("write and fsync");
}

/// Looks at the disk after a cut at `moment`, whatever the disk did with the writes since its last flush.
fn after_cut(recording: &Recording, moment: usize, look: impl Fn(Unflushed, &Disk)) {
    for unflushed in FATES {
        let disk = recording.cut(moment, unflushed);
        look(unflushed, &disk);
        recording.assert_sound(&disk);
    }
}

/// Metadata of every kind, made in `dir`: nothing of it is synced.
fn make_metadata(dir: &Path) {
    fs::create_dir(dir.join("made")).expect("mkdir");
    set_xattr(&dir.join("made"));
    symlink("made", dir.join("link")).expect("symlink");
    fs::create_dir(dir.join("before"))
        .and_then(|()| fs::rename(dir.join("before"), dir.join("after")))
        .expect("rename");
    fs::rename(dir.join("old"), dir.join("new")).expect("rename what is there");
}

fn metadata_is_there(dir: &Path) -> Vec<bool> {
    vec![
        dir.join("made").is_dir(),
        has_xattr(&dir.join("made")),
        fs::read_link(dir.join("link")).is_ok_and(|target| target == Path::new("made")),
        dir.join("after").is_dir() && !dir.join("before").exists(),
        dir.join("new").is_dir() && !dir.join("old").exists(),
    ]
}

/// A recorded btrfs with a subvolume `source` and a directory `old`, all on the disk.
fn prepared() -> (Recorder, PathBuf) {
    let recorder = Recorder::new(Filesystem::Btrfs);
    let top = recorder.path();
    subvolume("create", &top.join("source"));
    fs::create_dir(top.join("old")).expect("mkdir");
    sync_filesystem(&top);
    (recorder, top)
}

#[test]
fn a_snapshot_commits_all_metadata_and_its_source() {
    let (recorder, top) = prepared();
    make_metadata(&top);
    fs::write(top.join("source/data"), vec![7; 300_000]).expect("write");
    fs::write(top.join("elsewhere"), b"not synced").expect("write");
    write_synced(&top.join("synced"), b"synced");
    snapshot(&top.join("source"), &top.join("made/rootfs"));
    let moment = recorder.now();
    let recording = recorder.stop();
    after_cut(&recording, moment, |unflushed, disk| {
        let top = disk.path();
        assert_eq!(metadata_is_there(&top), [true; 5], "{unflushed:?}");
        assert_eq!(disk.subvolumes(), ["made/rootfs", "source"]);
        for data in ["source/data", "made/rootfs/data"] {
            assert_eq!(fs::read(top.join(data)).expect("the data"), vec![7; 300_000], "{data} {unflushed:?}");
        }
        assert_eq!(fs::read(top.join("synced")).expect("the file"), b"synced");
        // Why a document beside the subvolume needs an fsync of its own.
        assert_eq!(fs::read(top.join("elsewhere")).expect("the file"), b"", "{unflushed:?}");
    });
}

#[test]
fn creating_a_subvolume_commits_nothing() {
    let (recorder, top) = prepared();
    make_metadata(&top);
    subvolume("create", &top.join("made/rootfs"));
    let moment = recorder.now();
    let recording = recorder.stop();
    after_cut(&recording, moment, |unflushed, disk| {
        assert_eq!(metadata_is_there(&disk.path()), [false; 5], "{unflushed:?}");
        assert_eq!(disk.subvolumes(), ["source"]);
    });
}

#[test]
fn snapshots_that_share_a_commit_are_all_on_the_disk_when_they_return() {
    let (recorder, top) = prepared();
    fs::write(top.join("source/data"), vec![7; 300_000]).expect("write");
    let moments: Vec<usize> = std::thread::scope(|scope| {
        let make = |n: usize| {
            let (recorder, top) = (&recorder, &top);
            scope.spawn(move || {
                let dir = top.join(n.to_string());
                fs::create_dir(&dir).expect("mkdir");
                set_xattr(&dir);
                snapshot(&top.join("source"), &dir.join("rootfs"));
                recorder.now()
            })
        };
        let threads: Vec<_> = (0..20).map(make).collect();
        threads.into_iter().map(|thread| thread.join().expect("makes a snapshot")).collect()
    });
    let recording = recorder.stop();
    for (n, moment) in moments.into_iter().enumerate() {
        let disk = recording.cut(moment, Unflushed::Lost);
        let dir = disk.path().join(n.to_string());
        assert!(has_xattr(&dir), "snapshot {n}");
        assert_eq!(fs::read(dir.join("rootfs/data")).expect("the data").len(), 300_000, "snapshot {n}");
        recording.assert_sound(&disk);
    }
}

#[test]
fn sealing_is_on_the_disk_after_syncfs() {
    let (recorder, top) = prepared();
    fs::create_dir(top.join("draft")).expect("mkdir");
    subvolume("create", &top.join("draft/rootfs"));
    fs::write(top.join("draft/rootfs/data"), vec![7; 300_000]).expect("write");
    set_xattr(&top.join("draft"));
    fs::write(top.join("draft/config.json"), b"{}").expect("write");
    sync_filesystem(&top);
    let finished = recorder.now();
    sh("btrfs", &["property", "set", text(&top.join("draft/rootfs")), "ro", "true"]);
    fs::rename(top.join("draft"), top.join("layer")).expect("rename");
    let renamed = recorder.now();
    sync_filesystem(&top);
    let sealed = recorder.now();
    let recording = recorder.stop();
    for (moment, published) in [(finished, false), (renamed, false), (sealed, true)] {
        after_cut(&recording, moment, |unflushed, disk| {
            // What is on the disk only because the disk happened to write it proves nothing.
            let dir = disk.path().join(if disk.path().join("layer").exists() { "layer" } else { "draft" });
            assert!(dir.ends_with(if published { "layer" } else { "draft" }), "{unflushed:?}");
            assert!(has_xattr(&dir));
            assert_eq!(fs::read(dir.join("rootfs/data")).expect("the data"), vec![7; 300_000]);
            assert_eq!(fs::read(dir.join("config.json")).expect("the config"), b"{}");
            let read_only = sh("btrfs", &["property", "get", text(&dir.join("rootfs")), "ro"]);
            // The flag is a commit of its own, which the rename came after.
            assert_eq!(read_only, if moment == finished { "ro=false" } else { "ro=true" }, "{unflushed:?}");
        });
    }
}

#[test]
fn an_fsync_brings_a_new_directory_back_without_what_was_made_beside_it() {
    let recorder = Recorder::new(Filesystem::Btrfs);
    let top = recorder.path();
    for dir in ["staging", "containers", "names"] {
        fs::create_dir(top.join(dir)).expect("mkdir");
    }
    sync_filesystem(&top);
    symlink("../containers/new", top.join("staging/new")).expect("symlink");
    fs::create_dir(top.join("containers/new")).expect("mkdir");
    set_xattr(&top.join("containers/new"));
    symlink("../containers/new", top.join("names/new")).expect("symlink");
    write_synced(&top.join("containers/new/spec.json"), b"{}");
    let moment = recorder.now();
    let recording = recorder.stop();
    after_cut(&recording, moment, |unflushed, disk| {
        let top = disk.path();
        // The log holds the file, the directories that it lies in and their xattrs (btrfs_log_all_parents,
        // fs/btrfs/tree-log.c), and nothing else: order of creation is not order of appearance.
        assert_eq!(fs::read(top.join("containers/new/spec.json")).expect("the file"), b"{}", "{unflushed:?}");
        assert!(has_xattr(&top.join("containers/new")), "{unflushed:?}");
        for made_before in ["staging/new", "names/new"] {
            assert!(fs::symlink_metadata(top.join(made_before)).is_err(), "{made_before} {unflushed:?}");
        }
    });
}

#[test]
fn a_removal_is_whole_or_did_not_happen() {
    let (recorder, top) = prepared();
    for dir in ["object", "trash"] {
        fs::create_dir(top.join(dir)).expect("mkdir");
    }
    fs::write(top.join("source/data"), vec![7; 300_000]).expect("write");
    snapshot(&top.join("source"), &top.join("object/rootfs"));
    fs::rename(top.join("object"), top.join("trash/object")).expect("rename");
    let renamed = recorder.now();
    // Somebody else's commit.
    snapshot(&top.join("source"), &top.join("other"));
    let committed = recorder.now();
    subvolume("delete", &top.join("trash/object/rootfs"));
    let destroyed = recorder.now();
    fs::remove_dir(top.join("trash/object")).expect("rmdir");
    // Somebody else's fsync: does its log tell of the removal?
    fs::create_dir(top.join("new")).expect("mkdir");
    write_synced(&top.join("new/spec.json"), b"{}");
    let logged = recorder.now();
    sync_filesystem(&top);
    let synced = recorder.now();
    let recording = recorder.stop();
    for (moment, at, there) in [
        (renamed, "object", true),
        (committed, "trash/object", true),
        (destroyed, "trash/object", true),
        (logged, "trash/object", true),
        (synced, "trash/object", false),
    ] {
        after_cut(&recording, moment, |unflushed, disk| {
            let data = fs::read(disk.path().join(at).join("rootfs/data")).ok();
            assert_eq!(data.is_some_and(|data| data == vec![7; 300_000]), there, "{at} {unflushed:?}");
            assert_eq!(disk.path().join("object").exists(), at == "object", "{unflushed:?}");
            assert_eq!(disk.path().join("trash/object").exists(), there && at != "object", "{unflushed:?}");
        });
    }
}

#[test]
fn a_link_that_is_replaced_leads_here_or_there() {
    let (recorder, top) = prepared();
    symlink("one", top.join("tag")).expect("symlink");
    sync_filesystem(&top);
    symlink("two", top.join("draft")).and_then(|()| fs::rename(top.join("draft"), top.join("tag"))).expect("rename");
    let renamed = recorder.now();
    write_synced(&top.join("old/spec.json"), b"{}");
    let logged = recorder.now();
    sync_filesystem(&top);
    let synced = recorder.now();
    let recording = recorder.stop();
    for (moment, target) in [(renamed, "one"), (logged, "one"), (synced, "two")] {
        after_cut(&recording, moment, |unflushed, disk| {
            assert_eq!(fs::read_link(disk.path().join("tag")).expect("a link"), Path::new(target), "{unflushed:?}");
            assert!(fs::symlink_metadata(disk.path().join("draft")).is_err());
        });
    }
}

#[test]
fn an_fsync_in_a_snapshot_is_kept() {
    let (recorder, top) = prepared();
    snapshot(&top.join("source"), &top.join("old/rootfs"));
    fs::create_dir_all(top.join("old/rootfs/var/lib")).expect("mkdir");
    fs::write(top.join("old/rootfs/var/unsynced"), b"unsynced").expect("write");
    write_synced(&top.join("old/rootfs/var/lib/synced"), b"synced");
    let moment = recorder.now();
    let recording = recorder.stop();
    after_cut(&recording, moment, |unflushed, disk| {
        let var = disk.path().join("old/rootfs/var");
        assert_eq!(fs::read(var.join("lib/synced")).expect("the file"), b"synced", "{unflushed:?}");
        assert!(!var.join("unsynced").exists(), "{unflushed:?}");
    });
}

/// A btrfs in a sparse file on `filesystem`, made and used as an embedded store is.
fn a_file_with_a_filesystem(filesystem: Filesystem) {
    let recorder = Recorder::new(filesystem);
    let dir = recorder.path().join("deep/store");
    fs::create_dir_all(&dir).expect("mkdir");
    let [draft, file, at] = ["store.btrfs.new", "store.btrfs", "fs"].map(|name| dir.join(name));
    {
        let image = File::create(&draft).expect("a file");
        image.set_len(512 << 20).expect("a sparse file");
        sh("mkfs.btrfs", &["--quiet", "--metadata", "single", "--nodesize", "8192", text(&draft)]);
        image.sync_all().expect("fsync");
    }
    fs::rename(&draft, &file).expect("rename");
    let renamed = recorder.now();
    File::open(&dir).and_then(|dir| dir.sync_all()).expect("fsync");
    let named = recorder.now();

    fs::create_dir(&at).expect("mkdir");
    let device = sh("losetup", &["--find", "--show", "--direct-io=on", text(&file)]);
    sh("mount", &["-o", "noatime", &device, text(&at)]);
    sh("losetup", &["--detach", &device]);
    subvolume("create", &at.join("source"));
    fs::write(at.join("source/data"), vec![7; 3_000_000]).expect("write");
    sync_filesystem(&at);
    let synced = recorder.now();
    fs::write(at.join("source/more"), vec![8; 3_000_000]).expect("write");
    snapshot(&at.join("source"), &at.join("snap"));
    let snapped = recorder.now();
    let recording = recorder.stop();

    after_cut(&recording, renamed, |unflushed, disk| {
        // The file's own fsync took its first name; the second needs one of the directory.
        assert!(disk.path().join("deep/store/store.btrfs.new").exists(), "{unflushed:?}");
    });
    for (moment, want) in [(named, vec![]), (synced, vec!["source"]), (snapped, vec!["snap", "source"])] {
        after_cut(&recording, moment, |unflushed, disk| {
            let file = disk.path().join("deep/store/store.btrfs");
            sh("btrfs", &["check", "--readonly", text(&file)]);
            let inner = Disk::prepared(|image| drop(sh("cp", &["--sparse=always", text(&file), text(image)])));
            assert_eq!(inner.subvolumes(), want, "{unflushed:?}");
            for name in &want {
                assert_eq!(fs::read(inner.path().join(name).join("data")).expect("the data"), vec![7; 3_000_000]);
            }
            if want.contains(&"snap") {
                assert_eq!(fs::read(inner.path().join("snap/more")).expect("the data"), vec![8; 3_000_000]);
            }
        });
    }
}

#[test]
fn a_sync_in_a_file_on_ext4_reaches_the_disk() {
    a_file_with_a_filesystem(Filesystem::Ext4);
}

#[test]
fn a_sync_in_a_file_on_xfs_reaches_the_disk() {
    a_file_with_a_filesystem(Filesystem::Xfs);
}
