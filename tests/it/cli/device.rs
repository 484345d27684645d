//! store init --device: a store on a block device of its own.

use std::path::Path;

use crate::support::command::Tupper;
use crate::support::disk::{Device, Disk, mounts_below};
use crate::support::store::Host;
use crate::support::{busybox, sh};

fn use_it(tupper: &Tupper) {
    tupper.ok_with("image import --name base", &[busybox().to_str().expect("a plain path")]);
    assert_eq!(tupper.ok("run --rm base echo here"), "here");
    assert_eq!(tupper.ok("store check"), "");
}

fn signature(device: &Device) -> String {
    sh("sh", &["-c", &format!("blkid -p -o value -s TYPE {} || true", device.path())])
}

fn mounted_from(root: &Path) -> String {
    sh("findmnt", &["--noheadings", "--output", "SOURCE", root.join("fs").to_str().expect("a plain path")])
}

#[test]
fn a_store_has_a_device_of_its_own_wherever_its_directory_is() {
    let _host = Host::shared();
    for (disk, device) in [Disk::ext4(1 << 30), Disk::btrfs()].into_iter().map(|disk| (disk, Device::new(600 << 20))) {
        let tupper = Tupper::new(disk.path().join("store"));
        let said = tupper.run_with("store init --compress zstd:1 --device", &[device.path()]);
        assert!(said.stderr.contains(&format!("made the store on {}", device.path())), "{said}");
        said.ok();
        assert_eq!(mounted_from(tupper.root()), device.path());
        let info = tupper.json("store info --format json");
        assert_eq!((info["Kind"].as_str(), info["Device"].as_str()), (Some("device"), Some(device.path())));
        assert_eq!(info["Compression"], "zstd:1");
        use_it(&tupper);

        // It comes back, as after a reboot.
        tupper.ok("store umount");
        assert!(mounts_below(tupper.root()).is_empty());
        let image = tupper.ok("image ls -q");
        assert_eq!(image.len(), 12);
        assert!(tupper.fails(1, "store grow +1G").contains("all of its device"));

        tupper.ok("store reset --force");
        assert!(tupper.root().read_dir().expect("ROOT").next().is_none());
        assert_eq!(signature(&device), "", "it is nobody's");
        tupper.ok_with("store init --device", &[device.path()]);
        tupper.ok("store umount");
    }
}

#[test]
fn a_device_with_something_on_it_is_refused_unless_that_may_go() {
    let _host = Host::shared();
    let disk = Disk::ext4(1 << 30);
    let (device, other) = (Device::new(600 << 20), Device::new(600 << 20));
    let tupper = Tupper::new(disk.path().join("store"));
    sh("mkfs.ext4", &["-q", device.path()]);
    let error = tupper.run_with("store init --device", &[device.path()]).fails(125);
    assert!(error.contains("existing filesystem (ext4)") && error.contains("hint: --force"), "{error}");
    assert_eq!(signature(&device), "ext4");
    assert!(tupper.root().read_dir().expect("ROOT").next().is_none(), "it made a store of something");
    tupper.ok_with("store init --force --device", &[device.path()]);
    use_it(&tupper);

    // Somebody has it.
    let second = Tupper::new(disk.path().join("second"));
    let error = second.run_with("store init --force --device", &[device.path()]).fails(125);
    assert!(error.contains("mounted"), "{error}");
    use_it(&tupper);
    let error = tupper.run_with("store init --force --device", &[other.path()]).fails(1);
    assert!(error.contains("already a store"), "{error}");
    assert_eq!(signature(&other), "");

    // One was begun in a file.
    let begun = Tupper::new(disk.path().join("begun"));
    std::fs::create_dir(begun.root()).expect("a directory");
    std::fs::File::create(begun.root().join("store.btrfs")).expect("a file").set_len(300 << 20).expect("a hole");
    let error = begun.run_with("store init --device", &[other.path()]).fails(125);
    assert!(error.contains("a store was begun there already"), "{error}");
    assert_eq!(signature(&other), "");

    for (path, why) in
        [("/dev/null", "not a block device"), ("/nonexistent", "no such file"), ("/tmp", "not a block device")]
    {
        let error = second.run_with("store init --device", &[path]).fails(125);
        assert!(error.contains(path) && error.contains(why), "{error}");
    }
    assert!(second.fails(2, "store init --force").contains("--device"));
    assert!(second.fails(2, "store init --size 1G --device /dev/null").contains("--size"));
    tupper.ok("store umount");
}

#[test]
fn a_store_without_its_device_says_so_and_takes_no_other() {
    let _host = Host::shared();
    let disk = Disk::ext4(1 << 30);
    let device = Device::new(600 << 20);
    let tupper = Tupper::new(disk.path().join("store"));
    tupper.ok_with("store init --device", &[device.path()]);
    use_it(&tupper);
    tupper.ok("store umount");
    let name = device.path().to_string();
    sh("mkfs.btrfs", &["--quiet", "--force", &name]);
    for verb in ["image ls", "run --rm base true", "store init", "store gc", "store reset --force"] {
        let error = tupper.fails(125, verb);
        assert!(error.contains("no device of this host has the filesystem"), "{verb}: {error}");
    }
    assert_eq!(signature(&device), "btrfs", "another's filesystem");
    assert!(mounts_below(tupper.root()).is_empty());
}
