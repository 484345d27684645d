//! run --in-place: in a snapshot itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::command::wait;
use crate::support::eventually;
use crate::support::store::Store;

fn path(store: &Store, snapshot: &str) -> PathBuf {
    store.ok(&format!("snapshot path {snapshot}")).into()
}

#[test]
fn what_a_command_changes_is_in_the_snapshot_and_nothing_else_is_left() {
    let store = Store::alone();
    store.ok("snapshot create busybox web");
    store.ok("run --rm busybox true");
    let before = store.traces();
    let script = "echo it > /made && chown 7:8 /made && touch /vol/x && exit 3";
    store.run_with("run --in-place -v /vol -m 64m web sh -c", &[script]).status(3);
    let made = fs::metadata(path(&store, "web").join("made")).expect("the file");
    assert_eq!((made.uid(), made.gid()), (7, 8), "ids are those inside, as in every snapshot");
    assert_eq!(store.ok("run --rm --in-place web cat /made"), "it", "--rm says the same");
    assert_eq!(store.ok("run --rm web cat /made"), "it");
    before.assert_same(&store.traces());
    for listing in ["ps -aq", "volume ls -q", "store check"] {
        assert_eq!(store.ok(listing), "", "{listing}");
    }

    store.ok("snapshot create --read-only web fixed");
    let refused = store.run("run --in-place fixed touch /x");
    assert!(refused.stderr.contains("Read-only file system"), "{refused}");
    refused.status(1);
    let steps = store.run("run --in-place --explain=only web true");
    assert!(steps.stderr.contains("pivot_root") && !steps.stderr.contains("btrfs"), "{steps}");
    assert_eq!(steps.stdout, "");
}

#[test]
fn one_works_in_a_snapshot_at_a_time() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    let mut first = store.command("run --in-place --init web sh -c", &["touch /begun && sleep 1000"]);
    let first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a run");
    let begun = path(&store, "web").join("begun");
    eventually("it runs", Duration::from_secs(120), || begun.exists());
    for other in ["run --in-place web true", "snapshot rm web", "snapshot rollback web busybox"] {
        let done = store.run(other);
        assert!(done.stderr.contains("in use"), "{done}");
        done.fails(if other.starts_with("run") { 125 } else { 1 });
    }
    store.ok("store gc");
    store.ok("snapshot create web copy");
    assert_eq!(store.ok("run --rm web ls /begun"), "/begun", "others may have one of their own made of it");
    kill(Pid::from_raw(first.id().cast_signed()), Signal::SIGTERM).expect("asked to end");
    assert_eq!(wait(first, "run"), 143);
    store.ok("run --in-place web true");
    store.ok("snapshot rm web");
}

#[test]
fn one_whose_tupper_is_killed_leaves_the_snapshot_to_the_next() {
    let store = Store::alone();
    store.ok("snapshot create busybox web");
    store.ok("run --rm busybox true");
    let before = store.traces();
    let mut run = store.command("run --in-place -v /vol web sh -c", &["touch /begun && sleep 1000"]);
    let run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a run");
    let begun = path(&store, "web").join("begun");
    eventually("it runs", Duration::from_secs(120), || begun.exists());
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGKILL).expect("killed");
    assert_eq!(wait(run, "run"), 137);
    assert_eq!(store.ok("run --in-place web ls /begun"), "/begun");
    store.ok("store gc");
    before.assert_same(&store.traces());
    assert_eq!(store.ok("volume ls -q"), "");
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn only_a_snapshot_can_be_worked_in() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    store.ok("create --name shop busybox true");
    for (source, kind) in [("busybox", "image localhost/busybox:latest"), ("shop", "container shop")] {
        let error = store.run_with("run --in-place", &[source, "true"]).fails(125);
        assert!(error.contains(&format!("{kind} is no snapshot")) && error.contains("snapshot create"), "{error}");
    }
    for flag in ["-d", "--name x", "--keep x", "--cidfile /x", "--restart always", "--size-limit 1g", "--rm=on-success"]
    {
        let error = store.fails(125, &format!("run --in-place {flag} web true"));
        assert!(error.contains("--in-place"), "{error}");
    }
    assert_eq!(store.ok("store check"), "");
}
