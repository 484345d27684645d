//! --size-limit: held by the simple quotas of a btrfs on which somebody turned them on.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::store::Store;
use crate::support::{eventually, sh};

const MIB: u64 = 1 << 20;

// struct btrfs_ioctl_quota_ctl_args: cmd, status. The btrfs-progs of this Debian do not know `quota enable --simple` yet.
nix::ioctl_readwrite!(quota_ctl, 0x94, 40, [u64; 2]);
const FULL: u64 = 1;
const OFF: u64 = 2;
const SIMPLE: u64 = 4;

fn quotas(store: &Store, command: u64) {
    let top = File::open(store.disk.path()).expect("the filesystem");
    let mut args = [command, 0];
    // SAFETY: the structure has the layout of btrfs_ioctl_quota_ctl_args and lives through the call.
    #[expect(unsafe_code, reason = "nix has no wrapper of it")]
    unsafe { quota_ctl(top.as_raw_fd(), &raw mut args) }.expect("simple quotas: Linux 6.7 or newer");
}

fn with_quotas() -> Store {
    let store = Store::new();
    quotas(&store, SIMPLE);
    store
}

fn inspect(store: &Store, name: &str) -> Value {
    store.json(&format!("inspect {name}"))[0].clone()
}

fn root_of(store: &Store, name: &str) -> PathBuf {
    PathBuf::from(inspect(store, name)["Rootfs"].as_str().expect("a path"))
}

/// The accounts that are limited: number and limit.
fn limited(store: &Store) -> Vec<(String, u64)> {
    let shown = sh("btrfs", &["qgroup", "show", "-r", "--raw", "--sync", store.disk.path().to_str().expect("plain")]);
    let words = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter_map(|words| Some((words.first()?.to_string(), words.get(3)?.parse().ok()?))).collect()
}

fn synced(store: &Store) {
    let at = store.disk.path();
    for what in ["filesystem", "subvolume", "filesystem"] {
        sh("btrfs", &[what, "sync", at.to_str().expect("plain")]);
    }
}

/// Writes so many MiB that nothing compresses, to the disk.
fn write(mib: u64) -> String {
    format!("dd if=/dev/urandom of=/file bs=1M count={mib} 2>&1; sync; ls -l /file | awk '{{print $5}}'")
}

#[test]
fn a_container_takes_no_more_than_its_limit() {
    let store = with_quotas();
    for verb in ["run --rm", "shell"] {
        let done = store.run_with(&format!("{verb} --size-limit 8m busybox sh -c"), &[&write(20)]).status(0);
        assert!(done.stdout.contains("Disk quota exceeded") || done.stdout.contains("quota"), "{done}");
        let wrote: u64 = done.stdout.lines().last().and_then(|line| line.trim().parse().ok()).expect("a size");
        assert!((4 * MIB..=8 * MIB).contains(&wrote), "{done}");
    }
    // What the image holds does not count, and others have no limit.
    assert_eq!(store.ok_with("run --rm --size-limit 1.5m busybox sh -c", &["echo x > /x && cat /x"]), "x");
    store.ok_with("run --rm busybox sh -c", &[&write(20)]);
    synced(&store);
    assert_eq!(limited(&store), [], "it goes with its subvolume");
}

#[test]
fn it_is_of_the_container_for_as_long_as_that_is_there() {
    let store = with_quotas();
    store.ok_with("create --name web --size-limit 8m busybox sh -c", &[&write(6)]);
    assert_eq!(inspect(&store, "web")["SizeLimit"], 8 * MIB);
    for _ in 0..2 {
        store.ok("start -a web"); // it is the same file each time
    }
    synced(&store);
    let charged = inspect(&store, "web")["SizeCharged"].as_u64().expect("bytes");
    assert!((6 * MIB..=8 * MIB).contains(&charged), "{charged}");
    assert_eq!(limited(&store).iter().map(|(_, limit)| *limit).collect::<Vec<_>>(), [8 * MIB]);
    // In the background, as a monitor starts it.
    store.ok_with("run -d --name back --size-limit 8m busybox sh -c", &[&write(20)]);
    store.ok("wait back");
    assert!(store.ok("logs back").contains("quota"));
    // The tree that a rollback gives it has the limit when it starts, and what was kept has none.
    let kept = store.ok("snapshot rollback web busybox");
    fs::write(PathBuf::from(store.ok(&format!("snapshot path {kept}"))).join("more"), vec![1; 9 << 20])
        .expect("no limit");
    store.ok("start -a web");
    let id = sh("btrfs", &["inspect-internal", "rootid", root_of(&store, "web").to_str().expect("plain")]);
    assert!(limited(&store).contains(&(format!("0/{id}"), 8 * MIB)), "{:?}", limited(&store));
    store.ok("rm web");
    store.ok("rm back");
    eventually("the limits are gone", std::time::Duration::from_secs(60), || {
        synced(&store);
        limited(&store).is_empty()
    });
    assert_eq!(inspect_without_limit(&store), (0.into(), 0.into()));
}

fn inspect_without_limit(store: &Store) -> (Value, Value) {
    store.ok("create --name plain busybox true");
    let found = inspect(store, "plain");
    (found["SizeLimit"].clone(), found["SizeCharged"].clone())
}

#[test]
fn nothing_turns_quotas_on_but_a_person() {
    let store = Store::new();
    let refused = |status| {
        let error = store.run("run --rm --size-limit 8m busybox true").fails(status);
        assert!(
            error.contains("btrfs quota enable --simple") && error.contains("older kernels do not mount"),
            "{error}"
        );
        error
    };
    assert!(refused(125).contains("quotas are off"));
    let at = store.disk.path();
    assert!(
        !std::process::Command::new("btrfs")
            .arg("qgroup")
            .arg("show")
            .arg(&at)
            .output()
            .expect("btrfs")
            .status
            .success()
    );
    quotas(&store, FULL);
    assert!(refused(125).contains("full quotas"));
    quotas(&store, OFF);
    quotas(&store, SIMPLE);
    store.ok("create --name web --size-limit 8m busybox true");
    assert!(store.run("run --rm --size-limit 64k busybox true").fails(125).contains("less than 1 MiB"));
    // They were turned off again: it would run without its limit.
    quotas(&store, OFF);
    assert!(store.run("start -a web").fails(125).contains("quotas are off"));
    assert_eq!(store.json("ps -a --format json").as_array().map(Vec::len), Some(1), "nothing was made");
    store.ok("rm web");
}

#[test]
fn the_command_for_it_is_told() {
    let store = with_quotas();
    let told = store.run("run --rm --explain=only --size-limit 8m busybox true").status(0).stderr;
    let line = told.lines().find(|line| line.contains("qgroup")).expect("the command");
    let command = line.trim_start_matches("+ ").split("  #").next().expect("a command");
    let (command, path) = command.rsplit_once(' ').expect("a path");
    assert_eq!(command, "btrfs qgroup limit 8388608");
    assert!(path.ends_with("/rootfs"), "{line}");
    // Typed, it does the same.
    store.ok("create --name web busybox true");
    let root = root_of(&store, "web");
    let words: Vec<&str> = command.split(' ').skip(1).chain([root.to_str().expect("plain")]).collect();
    sh("btrfs", &words);
    assert_eq!(limited(&store).iter().map(|(_, limit)| *limit).collect::<Vec<_>>(), [8 * MIB]);
    let warned = store.run("run --rm --privileged --size-limit 8m busybox true").status(0).stderr;
    assert!(warned.contains("subvolume"), "{warned}");
    let quiet = store.run("run --rm --size-limit 8m busybox true").status(0).stderr;
    assert_eq!(quiet, "");
}
