//! btrfs's own traps: subvolumes that a container makes in its root.

use std::fs;
use std::path::Path;

use super::attack::{Target, on_the_host, text};
use crate::support::canary::Canary;
use crate::support::sh;

/// What the ioctls leave, made from outside: nested, read-only, deep, below a directory that is not the owner's to enter.
fn litter(root: &Path, canary: &Path) {
    let sub = |path: &Path| sh("btrfs", &["--quiet", "subvolume", "create", text(path)]);
    let set = |path: &Path| sh("btrfs", &["property", "set", text(path), "ro", "true"]);
    let outer = root.join("outer");
    sub(&outer);
    fs::create_dir_all(outer.join("a/b")).expect("mkdir");
    sub(&outer.join("a/b/inner"));
    fs::write(outer.join("a/b/inner/file"), "x").expect("a file");
    std::os::unix::fs::symlink(canary, outer.join("a/b/inner/link")).expect("a link");
    std::os::unix::fs::symlink(canary.join("etc"), root.join("var/tmp/link")).expect("a link");
    set(&outer.join("a/b/inner"));
    set(&outer);
    let nowhere = root.join("nowhere");
    fs::create_dir(&nowhere).expect("mkdir");
    sub(&nowhere.join("deep"));
    fs::set_permissions(&nowhere, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("chmod");
}

#[test]
fn nested_and_read_only_subvolumes_go_with_their_container() {
    let canary = Canary::new();
    let target = Target::new();
    let before = target.disk.subvolumes();
    // The attack is real: what a container may do without a filter on its system calls, its owner may do here.
    let (id, root) = target.create("", "true");
    let done = on_the_host("subvolume", &[text(&root)]);
    assert!(done.stdout.contains("create: done\nmake read-only: done"), "{done}");
    litter(&root, canary.path());
    let simple = std::process::Command::new("rm").args(["-rf", text(&root)]).output().expect("rm");
    assert!(!simple.status.success(), "rm -rf does not get rid of them");
    target.ok(&format!("rm {id}"));
    assert_eq!(target.disk.subvolumes(), before);
    let (id, root) = target.create("", "true");
    litter(&root, canary.path());
    target.ok(&format!("start -a {id}"));
    // In a snapshot of it they are empty directories, which is no trap either.
    let copy = target.ok(&format!("snapshot create {id}"));
    target.ok(&format!("snapshot rm {copy}"));
    target.ok(&format!("rm -f {id}"));
    assert_eq!(target.disk.subvolumes(), before);
    assert_eq!(target.ok("store check"), "");
    canary.assert_untouched();
}

/// SUBVOL_CREATE and its kin need no capability: only the filter on system calls refuses them.
#[test]
fn subvolumes_are_not_made_inside() {
    let target = Target::new();
    let before = target.disk.subvolumes();
    for flags in ["", "--init", "-w /tmp"] {
        let done = target.run(&format!("run --rm {flags} attack /attack/subvolume /root")).ok();
        assert!(done.contains("create: ") && !done.contains("done"), "{done}");
    }
    // The attack is real, and what it leaves goes with the container.
    let done = target.run("run --rm --security-opt seccomp=unconfined attack /attack/subvolume /root").ok();
    assert!(done.contains("create: done\nmake read-only: done\n"), "{done}");
    assert_eq!(target.disk.subvolumes(), before);
}
