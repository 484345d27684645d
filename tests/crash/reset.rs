//! A reset that is killed before one of its changes leaves a store with less in it, and the next one ends it.

use std::path::Path;
use std::process::Stdio;

use crate::support::busybox;
use crate::support::command::Tupper;
use crate::support::disk::{Device, Disk, loop_devices_below, mounts_below};
use crate::support::store::Host;
use crate::sweep::asked_for;
use crate::trace;

const RESET: &str = "store reset --force";

fn fill(tupper: &Tupper, device: Option<&Device>) {
    if let Some(device) = device
        && tupper.run("store info").status != 0
    {
        tupper.ok_with("store init --force --device", &[device.path()]);
    }
    tupper.ok_with("image import --name base", &[busybox().to_str().expect("a plain path")]);
    tupper.ok("image tag base more");
    for line in
        ["snapshot create base web", "volume create data", "network create front", "create -v data:/data base true"]
    {
        tupper.ok(line);
    }
    tupper.ok("shell --network none base true"); // names the image that was used last
}

fn assert_gone(root: &Path) {
    let left: Vec<_> = root.read_dir().expect("ROOT").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!((mounts_below(root), loop_devices_below(root)), (Vec::new(), Vec::new()));
}

fn sweep(disk: &Disk, device: Option<&Device>) {
    let tupper = Tupper::new(disk.path().join("store"));
    fill(&tupper, device);
    let reset = || {
        let mut command = tupper.command(RESET, &[]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let whole = trace::run(reset(), |_| false).expect("it ends");
    assert_eq!(whole.status, 0);
    assert_gone(tupper.root());
    let total = whole.calls.len() as u64;
    // The end of it is where a store becomes none.
    let points = asked_for(total).into_iter().chain(total.saturating_sub(20)..=total);
    for number in points {
        fill(&tupper, device);
        trace::run(reset(), |call| call.number == number).expect("it ends");
        // Nobody has been told that it is gone: what is there is whole, and may be added to.
        tupper.ok("snapshot ls -q");
        if !tupper.run("store info").stdout.is_empty() {
            let check = tupper.run("store check");
            assert!(!check.stdout.contains("damage"), "killed before #{number}: {check}");
        }
        tupper.ok(RESET);
        assert_gone(tupper.root());
    }
}

#[test]
fn of_a_subvolume() {
    let _host = Host::alone();
    sweep(&Disk::btrfs(), None);
}

#[test]
fn of_an_embedded_store() {
    let _host = Host::alone();
    sweep(&Disk::ext4(2 << 30), None);
}

#[test]
fn of_a_store_on_a_device() {
    let _host = Host::alone();
    sweep(&Disk::ext4(1 << 30), Some(&Device::new(1 << 30)));
}
