//! The tracer that sweeps stand on.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::command::Tupper;
use crate::support::disk::Disk;
use crate::support::store::{Host, Store};
use crate::trace::{Blow, first, run, run_within};

#[test]
fn a_kill_comes_just_before_a_change() {
    let _host = Host::shared();
    let disk = Disk::btrfs();
    let tupper = Tupper::new(disk.path().join("store"));
    let (root, fs) = (tupper.root(), tupper.root().join("fs"));
    let init = || tupper.command("store init", &[]);

    let killed = run(init(), first("ioctl")).expect("it ends");
    assert!(killed.killed && killed.status == 137, "{killed:?}");
    assert!(root.exists() && !fs.exists(), "the root was made before, the subvolume not yet: {killed:?}");

    let last = killed.calls.last().expect("a call").number;
    let killed = run(init(), |call| call.number == last + 1).expect("it ends");
    assert!(fs.exists() && !fs.join("names").exists(), "one change more: {killed:?}");

    let whole = run(init(), |_| false).expect("it ends");
    assert!(!whole.killed && whole.status == 0 && fs.join("names").exists(), "{whole:?}");
    tupper.ok("store info");
}

#[test]
fn children_count_until_they_are_the_command() {
    let store = Store::new();
    let traced = run(store.command("run --rm busybox sh -c", &["mkdir /made && ls /"]), |_| false).expect("it ends");
    let calls: Vec<String> = traced.calls.iter().map(ToString::to_string).collect();
    assert!(calls.iter().any(|call| call.contains("pivot_root") && call.ends_with("(child)")), "{calls:#?}");
    assert!(calls.iter().any(|call| call.contains("SNAP_CREATE") && !call.ends_with("(child)")), "{calls:#?}");
    assert!(!calls.iter().any(|call| call.contains("/made")), "the command's own: {calls:#?}");
}

#[test]
fn what_does_not_end_is_named_and_killed() {
    let store = Store::alone();
    let before = store.disk.subvolumes();
    let sleeps = store.command("run --rm busybox sleep 600", &[]);
    let error = run_within(Duration::from_secs(1), Blow::First(Signal::SIGKILL), sleeps, |_| false)
        .expect_err("it does not end");
    assert!(error.contains("sleep") && error.contains("tupper"), "{error}");
    assert_eq!(store.traces().named("process"), [""; 0], "it left processes");
    store.ok("store gc");
    assert_eq!(store.disk.subvolumes(), before);
}
