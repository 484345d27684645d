//! Where a store comes from, how it comes back after a reboot, and when it is refused.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::command::{Tupper, finish};
use crate::support::disk::{Disk, loop_devices_below, mounts_below};
use crate::support::store::{Host, Store};
use crate::support::traces::Traces;
use crate::support::{busybox, sh};

const GIB: u64 = 1 << 30;

fn import(tupper: &Tupper) -> String {
    tupper.ok_with("image import --name busybox", &[busybox().to_str().expect("plain")])
}

fn mount_options(at: &Path) -> String {
    sh("findmnt", &["--noheadings", "--output", "OPTIONS", "--mountpoint", at.to_str().expect("plain")])
}

#[test]
fn on_btrfs_it_is_a_subvolume() {
    let store = Store::empty();
    let done = store.run("store init");
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done}");
    assert_eq!(store.disk.subvolumes(), ["store/fs"]);
    assert!(!store.root().join("store.btrfs").exists());
    assert_eq!(loop_devices_below(store.root()), [""; 0]);
    let mode = store.root().join("fs").metadata().expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "others could reach setuid files in it");
    store.fails(1, "store init");
    assert!(store.ok("store info").contains(store.root().to_str().expect("plain")));
}

#[test]
fn elsewhere_the_first_verb_that_writes_makes_one_in_a_sparse_file() {
    let _host = Host::shared();
    let host = Disk::ext4(4 * GIB);
    let tupper = Tupper::new(host.path().join("deep/store"));
    let image = busybox();
    let done = tupper.run_with("image import", &[image.to_str().expect("plain")]);
    let file = tupper.root().join("store.btrfs");
    assert_eq!(done.stderr.lines().count(), 1, "one line says so: {done}");
    assert!(done.stderr.contains(file.to_str().expect("plain")), "{done}");
    super::id(&done.ok());

    let meta = file.metadata().expect("stat");
    let free = 4 * GIB;
    assert!(meta.size() > free / 2 && meta.size() <= free / 5 * 4, "80 % of what is free: {}", meta.size());
    assert!(meta.blocks() * 512 < 64 << 20, "not sparse: {} blocks", meta.blocks());
    let fields = sh("btrfs", &["inspect-internal", "dump-super", file.to_str().expect("plain")]);
    let nodes = fields.lines().find(|line| line.starts_with("nodesize")).expect("a node size");
    assert!(nodes.ends_with("\t8192"), "{nodes}");
    assert!(mount_options(&tupper.root().join("fs")).split(',').any(|option| option == "noatime"));

    let devices = loop_devices_below(tupper.root());
    assert_eq!(devices.len(), 1);
    let device = devices[0].split(' ').next().expect("a device").to_string();
    let flags = sh("losetup", &["--noheadings", "--raw", "--output", "AUTOCLEAR,DIO", &device]);
    assert_eq!(flags, "1 1", "autoclear and direct I/O");

    assert_eq!(tupper.run("image ls").status(0).stderr, "", "said once only");
    assert_eq!(loop_devices_below(tupper.root()), devices, "the same device again");
}

#[test]
fn it_comes_back_after_a_reboot() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    let image = import(&tupper);
    tupper.ok("snapshot create busybox web");
    tupper.ok("store umount");
    assert_eq!(mounts_below(tupper.root()), [""; 0].map(Path::new));
    crate::support::eventually("the loop device is gone", std::time::Duration::from_secs(120), || {
        loop_devices_below(tupper.root()).is_empty()
    });

    // A listing sees what is there: it mounts, and says so in one line.
    let done = tupper.run("image ls -q --no-trunc").status(0);
    assert_eq!(done.stdout.trim(), image);
    assert_eq!(done.stderr.lines().count(), 1, "{done}");
    assert!(Path::new(&tupper.ok("snapshot path web")).join("bin/busybox").exists());

    // What a host that lost power leaves: the mount is gone and the file was never told.
    sh("umount", &[tupper.root().join("fs").to_str().expect("plain")]);
    assert_eq!(tupper.ok("run --rm web echo back"), "back");
}

#[test]
fn umount_leaves_nothing_on_the_host() {
    let _host = Host::alone();
    let host = Disk::ext4(2 * GIB);
    let before = Traces::outside(&host.path());
    let tupper = Tupper::new(host.path().join("store"));
    import(&tupper);
    tupper.ok("run --rm busybox true");
    tupper.ok("store umount");
    tupper.ok("store umount"); // nothing to do is no failure
    before.assert_same(&Traces::outside(&host.path()));
}

#[test]
fn a_device_that_backs_the_file_already_is_used_again() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.ok("store init");
    let fs = tupper.root().join("fs");
    sh("umount", &[fs.to_str().expect("plain")]);
    crate::support::eventually("the loop device is gone", std::time::Duration::from_secs(120), || {
        loop_devices_below(tupper.root()).is_empty()
    });
    let device = sh("losetup", &["--find", "--show", tupper.root().join("store.btrfs").to_str().expect("plain")]);
    import(&tupper);
    let devices = loop_devices_below(tupper.root());
    assert!(devices.len() == 1 && devices[0].starts_with(&device), "two devices on one file: {devices:?}");
    sh("umount", &[fs.to_str().expect("plain")]);
    // Attached by hand, so without autoclear, unless tupper took it over: then this is late.
    let _ = Command::new("losetup").args(["--detach", &device]).output();
}

#[test]
fn what_formats_for_a_killed_init_does_not_reach_the_next_store() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tools = tempfile::tempdir().expect("a scratch directory");
    let (started, ended) = (tools.path().join("started"), tools.path().join("ended"));
    // A mkfs.btrfs that is slow: it writes to the file that it opened when whoever started it is dead.
    let script = format!(
        "#!/bin/sh\nfor file; do :; done; exec 3<>\"$file\"; : >{}; sleep 1\n\
         dd if=/dev/zero bs=1M count=64 conv=notrunc of=/proc/self/fd/3 2>/dev/null; : >{}\n",
        started.display(),
        ended.display()
    );
    std::fs::write(tools.path().join("mkfs.btrfs"), script).expect("a script");
    std::fs::set_permissions(tools.path().join("mkfs.btrfs"), PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").expect("a PATH"));
    let slow = Tupper::new(host.path().join("store")).with_env("PATH", path);
    let mut init = slow.command("store init", &[]).spawn().expect("tupper");
    let limit = std::time::Duration::from_secs(120);
    crate::support::eventually("it formats", limit, || started.exists());
    init.kill().expect("kill it");
    init.wait().expect("wait for it");

    let tupper = Tupper::new(host.path().join("store"));
    import(&tupper);
    crate::support::eventually("the slow one has ended", limit, || ended.exists());
    tupper.ok("store umount");
    tupper.ok("run --rm busybox true");
    tupper.ok("store check");
}

#[test]
fn two_first_uses_at_once_make_one_store() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    let image = busybox();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let one = || scope.spawn(|| tupper.ok_with("image import", &[image.to_str().expect("plain")]));
        [one(), one(), one(), one()].map(|thread| thread.join().expect("an import")).to_vec()
    });
    for id in &ids {
        tupper.ok(&format!("run --rm {id} true"));
    }
    assert_eq!(tupper.root().join("fs/layers").read_dir().expect("the layers").count(), 1, "one layer, kept once");
    assert_eq!(mounts_below(tupper.root()).len(), 1);
    assert_eq!(loop_devices_below(tupper.root()).len(), 1);
}

#[test]
fn init_takes_a_size_and_nodes() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.ok("store init --size 512M --node-size 16K");
    let file = tupper.root().join("store.btrfs");
    assert_eq!(file.metadata().expect("stat").size(), 512 << 20);
    let fields = sh("btrfs", &["inspect-internal", "dump-super", file.to_str().expect("plain")]);
    assert!(fields.lines().any(|line| line.starts_with("nodesize") && line.ends_with("16384")), "{fields}");
}

#[test]
fn a_disk_with_too_little_room_is_refused() {
    let _host = Host::shared();
    let host = Disk::ext4(96 << 20);
    let tupper = Tupper::new(host.path().join("store"));
    let image = busybox();
    let error = tupper.run_with("image import", &[image.to_str().expect("plain")]).fails(125);
    assert!(error.contains("free") || error.contains("room"), "{error}");
    assert!(!tupper.root().join("store.btrfs").exists(), "a half-made store stayed");
    assert_eq!(loop_devices_below(tupper.root()), [""; 0]);
    // Asked for more than there is.
    let host = Disk::ext4(GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.fails(125, "store init --size 20G");
    assert!(!tupper.root().join("store.btrfs").exists());
}

#[test]
fn a_missing_mkfs_is_named_with_its_package() {
    let _host = Host::shared();
    let host = Disk::ext4(GIB);
    let tupper = Tupper::new(host.path().join("store")).with_env("PATH", "/nonexistent");
    let error = tupper.fails(125, "store init");
    assert!(error.contains("mkfs.btrfs"), "{error}");
    assert!(error.lines().any(|line| line.starts_with("hint: ") && line.contains("btrfs-progs")), "{error}");
    assert!(!tupper.root().join("store.btrfs").exists());
}

#[test]
fn without_root_it_says_sudo() {
    let _host = Host::shared();
    // The build directory may be closed to others, and so may the place of temporary directories.
    let dir = tempfile::Builder::new().prefix("tupper-user-").tempdir_in("/tmp").expect("a scratch directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("chmod");
    let binary = dir.path().join("tupper");
    std::fs::copy(env!("CARGO_BIN_EXE_tupper"), &binary).expect("copy the binary");
    let image = dir.path().join("busybox.tar");
    std::fs::copy(busybox(), &image).expect("copy the image");
    for line in ["store init", "image import IMAGE", "run --rm busybox true"] {
        let mut user = Command::new("setpriv");
        user.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&binary);
        user.arg("--root").arg(dir.path().join("store"));
        user.args(line.replace("IMAGE", image.to_str().expect("plain")).split(' '));
        let error = finish(user).fails(125);
        assert!(error.lines().any(|line| line.starts_with("hint: ") && line.contains("sudo")), "{line}: {error}");
    }
    assert!(!dir.path().join("store").join("store.btrfs").exists());
}

#[test]
fn a_newer_format_is_refused() {
    let store = Store::new();
    let fs = store.root().join("fs");
    let fs = fs.to_str().expect("plain");
    let format = sh("getfattr", &["--absolute-names", "--only-values", "-n", "user.tupper.format", fs]);
    let mut format: serde_json::Value = serde_json::from_str(&format).expect("the format is JSON");
    assert_eq!(format["version"], 1);
    assert!(format["uuid"].as_str().is_some_and(|uuid| uuid.len() == 36), "{format}");
    format["version"] = 2.into();
    format["unheard_of"] = "field".into();
    sh("setfattr", &["-n", "user.tupper.format", "-v", &format.to_string(), fs]);
    for line in ["image ls", "snapshot create busybox", "run --rm busybox true", "store info"] {
        let error = store.fails(125, line);
        assert!(error.contains('2') && error.contains("hint: "), "{error}");
    }
    format["version"] = 1.into();
    sh("setfattr", &["-n", "user.tupper.format", "-v", &format.to_string(), fs]);
    assert_eq!(store.lines("image ls -q").len(), 1, "an unknown field alone is no newer format");
}

#[test]
fn a_half_made_store_can_be_unmounted() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.ok("store init");
    let fs = tupper.root().join("fs");
    sh("setfattr", &["-x", "user.tupper.format", fs.to_str().expect("plain")]);
    tupper.ok("store umount");
    assert_eq!(mounts_below(tupper.root()).len(), 0);
    tupper.ok("store umount");
    // And made whole by the next who writes.
    import(&tupper);
}

#[test]
fn a_store_that_is_in_use_says_by_whom() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.ok("store init");
    let mut user = Command::new("sleep").arg("600").current_dir(tupper.root().join("fs")).spawn().expect("sleep");
    let error = tupper.fails(1, "store umount");
    let reset = tupper.fails(1, "store reset --force");
    assert!(reset.contains("hint: used by sleep 600"), "{reset}");
    assert!(tupper.ok("store info").contains("images      0"), "it is a store as before");
    user.kill().and_then(|()| user.wait()).expect("end it");
    assert!(error.contains(&format!("hint: used by sleep 600 (pid {})", user.id())), "{error}");
    tupper.ok("store umount");
}

#[test]
fn after_a_reboot_a_store_is_whole() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    import(&tupper);
    tupper.ok("run --rm busybox true");
    for line in ["store check", "store gc", "store gc --dry-run"] {
        tupper.ok("store umount");
        assert_eq!(tupper.ok(line), "", "{line}");
    }
}

#[test]
fn an_embedded_store_grows_while_it_is_used() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.ok("store init --size 512M");
    import(&tupper);
    tupper.ok("run -d --name web --network none busybox sleep 600");
    let size = || tupper.json("store info --format json")["Size"].as_u64().expect("bytes");
    let file = || tupper.root().join("store.btrfs").metadata().expect("stat").size();
    assert_eq!(size(), 512 << 20);
    tupper.ok("store grow 1G");
    assert_eq!((size(), file()), (GIB, GIB));
    tupper.ok("store grow +256M");
    assert_eq!((size(), file()), (1280 << 20, 1280 << 20));
    for (too, why) in [("1G", "does not shrink"), ("900G", "free on the disk"), ("+900G", "free on the disk")] {
        let error = tupper.fails(1, &format!("store grow {too}"));
        assert!(error.contains(why), "{too}: {error}");
    }
    assert_eq!((size(), file()), (1280 << 20, 1280 << 20));
    tupper.ok("rm --force web");
    tupper.ok("store umount");
    assert_eq!(tupper.ok("store check"), "");
    assert_eq!(size(), 1280 << 20);
    // One that was killed after it had made the file larger is gone on with.
    std::fs::File::options()
        .write(true)
        .open(tupper.root().join("store.btrfs"))
        .and_then(|file| file.set_len(3 * GIB / 2))
        .expect("a larger file");
    tupper.ok("store grow 1536M");
    assert_eq!((size(), file()), (3 * GIB / 2, 3 * GIB / 2));
    let store = Store::new();
    let error = store.fails(1, "store grow 1T");
    assert!(error.contains("it is a subvolume"), "{error}");
}

#[test]
fn an_embedded_store_compresses_if_it_is_told_to() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.ok("store init --compress zstd:1");
    let options = || mount_options(&tupper.root().join("fs"));
    assert!(options().contains("compress=zstd:1"), "{}", options());
    tupper.ok("store umount");
    import(&tupper);
    for wanted in ["compress=zstd:1", "noatime", "nosuid", "nodev"] {
        assert!(options().split(',').any(|option| option == wanted), "{wanted}: {}", options());
    }
    assert_eq!(tupper.json("store info --format json")["Compression"], "zstd:1");
    assert_eq!(tupper.ok("run --rm --network none busybox echo it runs"), "it runs");
    tupper.ok("store check --deep");
    for wrong in ["zstd:16", "zstd:0", "lzo:1", "gzip", "zstd:"] {
        tupper.fails(2, &format!("store init --compress {wrong}"));
    }
    let store = Store::empty();
    let error = store.fails(125, "store init --compress lzo");
    assert!(error.contains("leave out --size, --node-size and --compress"), "{error}");
    assert!(!store.root().join("fs").exists());
}

/// A store with one of each.
fn fill(tupper: &Tupper) {
    import(tupper);
    for line in ["snapshot create busybox s", "volume create v", "network create n", "image tag busybox more"] {
        tupper.ok(line);
    }
    tupper.ok("run -d --name web --network none -v v:/data busybox sleep 600");
    tupper.run("run --rm=on-success --network none busybox mkdir /made /proc/no/no").status(1);
    tupper.ok("shell --network none busybox true");
}

#[test]
fn a_reset_leaves_nothing() {
    let _host = Host::alone();
    for host in [Disk::btrfs(), Disk::ext4(2 * GIB)] {
        let before = Traces::outside(&host.path());
        let tupper = Tupper::new(host.path().join("store"));
        assert_eq!(tupper.ok("store reset --force"), "", "there is none");
        fill(&tupper);
        let rehearsed = tupper.lines("store reset --dry-run");
        let kinds: Vec<&str> = rehearsed.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(kinds, ["container", "snapshot", "snapshot", "volume", "network", "image", "store"]);
        assert_eq!(tupper.lines("ps -q").len(), 1, "a rehearsal removes nothing");
        let input = std::fs::File::open("/dev/null").expect("no answer");
        tupper.run_reading("store reset", input).status(0);
        assert_eq!(tupper.lines("ps -q").len(), 1, "nobody said yes");
        assert_eq!(tupper.lines("store reset --force"), rehearsed);
        let left: Vec<_> = tupper.root().read_dir().expect("ROOT").collect();
        assert!(left.is_empty(), "{left:?}");
        before.assert_same(&Traces::outside(&host.path()));
        assert_eq!(tupper.ok("image ls -q"), "");
        import(&tupper); // another may be made there
    }
}

#[test]
fn a_reset_takes_only_what_the_store_recorded() {
    let store = Store::new();
    let mine = store.root().join("fs/snapshots/mine");
    sh("btrfs", &["subvolume", "create", mine.to_str().expect("plain")]);
    std::fs::write(mine.join("file"), "mine").expect("a file");
    let done = store.run("store reset --force").status(1);
    assert!(done.stderr.contains("snapshots/mine is in it"), "{done}");
    assert_eq!(std::fs::read_to_string(mine.join("file")).expect("mine"), "mine");
    import(&store); // it is a store as before
    std::fs::rename(&mine, store.disk.path().join("mine")).expect("moved out");
    store.ok("store reset --force");
    assert_eq!(store.disk.subvolumes(), ["mine"]);
}

#[test]
fn a_store_whose_file_is_gone_takes_no_more() {
    let _host = Host::shared();
    let host = Disk::ext4(2 * GIB);
    let tupper = Tupper::new(host.path().join("store"));
    tupper.ok("store init");
    std::fs::remove_file(tupper.root().join("store.btrfs")).expect("removed");
    let image = busybox();
    let error = tupper.run_with("image import", &[image.to_str().expect("plain")]).fails(125);
    assert!(error.contains("store.btrfs"), "{error}");
    tupper.ok("store umount");
}

#[test]
fn importing_the_directory_that_holds_the_store_leaves_the_store_out() {
    let _host = Host::shared();
    for disk in [Disk::ext4(4 * GIB), Disk::btrfs()] {
        let tree = disk.path().join("tree");
        let tupper = Tupper::new(tree.join("var/store"));
        std::fs::create_dir_all(tree.join("etc")).expect("a directory");
        std::fs::write(tree.join("etc/hostname"), "host\n").expect("a file");
        let done = tupper.run_with("image import --name all", &[tree.to_str().expect("plain")]);
        assert!(done.stderr.contains("var/store is no part of a layer"), "{done}");
        super::id(&done.ok());
        tupper.ok("snapshot create all s");
        let layer = tupper.ok("snapshot path s");
        assert_eq!(
            sh("find", &[&layer, "-mindepth", "1", "-printf", "%P\n"]).lines().collect::<BTreeSet<_>>(),
            BTreeSet::from(["etc", "etc/hostname", "var", "var/store"])
        );
    }
}
