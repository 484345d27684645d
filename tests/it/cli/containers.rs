//! create, start, ps, rm: a container that stays.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::support::store::Store;
use crate::support::{command, eventually};

use super::id;

#[test]
fn without_rm_it_stays_and_starts_again() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    store.run_with("run --name job busybox sh -c", &["echo run >>/log; cat /log; exit 3"]).status(3);
    let listed = store.json("ps -a --format json");
    assert_eq!(listed[0]["State"], "exited", "{listed}");
    assert_eq!(listed[0]["ExitCode"], 3);
    assert!(listed[0]["Names"].to_string().contains("job"), "{listed}");
    assert_eq!(store.ok("ps -q"), "", "it does not run");
    let table = store.lines("ps -a");
    assert!(
        ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"].iter().all(|t| table[0].contains(t)),
        "{table:?}"
    );

    let done = store.run("start -a job").status(3);
    assert_eq!(done.stdout, "run\nrun\n", "its files are kept");
    store.ok("rm job");
    assert_eq!(store.ok("ps -aq"), "");
    before.assert_same(&store.traces());
    store.fails(1, "rm job");
}

#[test]
fn create_makes_and_start_runs() {
    let store = Store::new();
    let made = id(&store.ok("create --name later -e A=1 --hostname h -m 64m busybox sh -c hostname"));
    let listed = store.json("ps -a --format json");
    assert_eq!(
        (listed[0]["Id"].as_str(), listed[0]["State"].as_str()),
        (Some(made.as_str()), Some("created")),
        "{listed}"
    );
    assert_eq!(store.run("start -a later").status(0).stdout, "h\n");
    store.ok(&format!("rm {}", &made[..10]));
}

#[test]
fn names_are_shared_with_snapshots() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    store.fails(125, "run --name web busybox true");
    store.ok("create --name app busybox true");
    store.fails(1, "snapshot create busybox app");
    assert_eq!(store.ok("ps -aq").lines().count(), 1);
    assert_eq!(store.ok("snapshot ls -q").lines().count(), 1, "a container is no snapshot in listings");
}

#[test]
fn a_running_one_is_listed_and_not_removed_unforced() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let mut command = store.command("run --name busy --init busybox sleep 60", &[]);
    let child = command.spawn().expect("tupper");
    crate::support::eventually("it runs", std::time::Duration::from_secs(120), || !store.ok("ps -q").is_empty());
    assert_eq!(store.json("ps --format json")[0]["State"], "running");
    // What the other tests find nothing of is to be seen while it is there.
    let during = store.traces();
    for kind in ["cgroup", "process", "run", "subvolume"] {
        assert!(during.named(kind).len() > before.named(kind).len(), "no {kind} of a running container: {during:#?}");
    }
    store.fails(1, "rm busy");
    assert_eq!(store.ok("start busy"), "busy", "as in podman, what runs already is no error");
    store.ok("rm -f busy");
    assert_eq!(command::wait(child, "run"), 137);
    assert_eq!(store.ok("ps -aq"), "");
    before.assert_same(&store.traces());
}

#[test]
fn a_killed_one_has_ended_and_starts_again() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    for flags in ["", "--rm"] {
        // The second time there is nothing to wait for.
        let script = "test -e /again && exit 4; touch /again; sleep 100";
        let mut running = store.command(&format!("run {flags} --name job busybox sh -c"), &[script]);
        let running = running.stdout(Stdio::null()).spawn().expect("a run");
        eventually("it runs", Duration::from_secs(120), || !store.ok("ps -q").is_empty());
        // Who runs it is a monitor, or the command itself.
        let holder = store.monitor("job");
        assert_eq!(holder.as_raw() == running.id().cast_signed(), flags == "--rm");
        kill(holder, Signal::SIGKILL).expect("killed");
        assert_eq!(command::wait(running, "run"), 137);
        eventually("it has ended", Duration::from_secs(120), || store.ok("ps -q").is_empty());
        let listed = store.json("ps -a --format json");
        assert_eq!(
            (listed[0]["State"].as_str(), listed[0]["ExitCode"].as_i64()),
            (Some("exited"), Some(137)),
            "{listed}"
        );
        match flags {
            // Its cgroup was left behind, and is cleared first.
            "" => {
                store.run("start -a job").status(4);
                store.ok("rm job");
            }
            // It was to go at its end: the next command that writes sees to it.
            _ => drop(store.ok("run --rm busybox true")),
        }
        before.assert_same(&store.traces());
    }
}

#[test]
fn a_throwaway_that_was_only_created_has_not_ended() {
    let store = Store::new();
    store.ok("create --rm --name later busybox true");
    assert_eq!(store.json("ps -a --format json")[0]["State"], "created");
    store.run("start -a later").status(0);
    assert_eq!(store.ok("ps -aq"), "", "it goes when its command ends");
}

#[test]
fn what_it_runs_may_be_large() {
    let store = Store::new();
    // An environment larger than one attribute holds, and than one word of a command line may be.
    let values: Vec<String> = ('a'..='d').map(|c| format!("{}={}", c, c.to_string().repeat(100_000))).collect();
    let mut arguments: Vec<&str> = values.iter().flat_map(|value| ["-e", value]).collect();
    arguments.extend(["--name", "big", "busybox", "sh", "-c", "echo ${#a} ${#d}"]);
    store.run_with("create", &arguments).status(0);
    assert_eq!(store.run("start -a big").status(0).stdout, "100000 100000\n");
    let env = store.json("inspect big")[0]["Config"]["Env"].clone();
    assert!(values.iter().all(|value| env.as_array().expect("a list").contains(&value.as_str().into())));
    store.ok("store check");
}

/// What it runs was a file until November 2026.
#[test]
fn one_that_was_made_with_a_file_starts() {
    let store = Store::new();
    let id = id(&store.ok("create --name old busybox echo works"));
    let directory = store.root().join("fs/containers").join(id);
    let (name, spec) = ("user.tupper.spec", directory.join("spec.json"));
    let mut value = [0; 4096];
    let length = rustix::fs::getxattr(&directory, name, &mut value[..]).expect("what it runs");
    std::fs::write(&spec, &value[..length]).expect("the file");
    rustix::fs::removexattr(&directory, name).expect("no attribute");
    assert_eq!(store.run("start -a old").status(0).stdout, "works\n");
    store.ok("store check");
    std::fs::write(&spec, "{").expect("the file");
    assert!(store.fails(125, "start -a old").contains("spec"));
    std::fs::remove_file(&spec).expect("the file");
    assert!(store.fails(125, "start -a old").contains("spec.json"));
    store.ok("rm old");
}
