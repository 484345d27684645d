//! --all, --filter and --latest of start, stop, kill, rm and pause; what a host starts again.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::support::eventually;
use crate::support::store::Store;

const PATIENCE: Duration = Duration::from_secs(120);

fn status(store: &Store, name: &str) -> String {
    store.json(&format!("inspect {name}"))[0]["State"]["Status"].as_str().expect("a word").to_string()
}

#[test]
fn all_are_those_that_it_can_be_done_to() {
    let store = Store::alone();
    for name in ["a", "b", "c"] {
        store.ok(&format!("create --name {name} --label is={name} busybox sleep 1000"));
    }
    assert_eq!(store.lines("start --filter label=is=a b c"), [""; 0], "a filter narrows what is named");
    assert_eq!(store.lines("start --filter label=is=b a b c"), ["b"]);
    assert_eq!(store.lines("start --all").len(), 2);
    assert_eq!(store.lines("start --all").len(), 0, "they run already");
    assert_eq!(store.lines("pause --filter label=is=a").len(), 1);
    assert_eq!(store.lines("pause -a").len(), 2, "one is paused already");
    assert_eq!(store.lines("unpause -a").len(), 3);
    assert_eq!(store.lines("kill -l").len(), 1);
    eventually("the last is gone", PATIENCE, || status(&store, "c") == "exited");
    assert_eq!(store.lines("stop -t 0 -a").len(), 2);
    store.ok("start a");
    let done = store.run("rm -a");
    assert_eq!((done.status, done.stdout.lines().count()), (1, 2), "{done}");
    assert!(done.stderr.contains("it is running"), "{done}");
    assert_eq!(store.lines("rm -af").len(), 1);
    assert_eq!(store.lines("rm -af").len(), 0);
    for line in ["stop", "stop -a x", "stop -l x", "rm --filter", "rm --filter x", "kill"] {
        store.fails(2, line);
    }
    store.fails(125, "start");
    store.fails(125, "start -a --all");
}

#[test]
fn a_host_that_shuts_down_stops_nothing_for_good() {
    let store = Store::alone();
    // The stop signal says how it ends, also where its monitor is asked.
    let script = "trap 'exit 3' QUIT; trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done";
    for (name, policy) in [("always", "always"), ("unless", "unless-stopped"), ("failing", "on-failure"), ("no", "no")]
    {
        let line = format!("run -d --stop-signal QUIT --restart {policy} --name {name} busybox sh -c");
        store.ok_with(&line, &[script]);
        eventually("it is up", PATIENCE, || store.ok(&format!("logs {name}")).contains("up"));
    }
    let on_boot = || {
        let mut names: Vec<String> = store
            .json("ps -a --filter should-start-on-boot=true --format json")
            .as_array()
            .expect("a list")
            .iter()
            .map(|c| c["Names"][0].as_str().expect("a name").to_string())
            .collect();
        names.sort();
        names
    };
    assert_eq!(on_boot(), ["always", "unless"]);
    // systemd asks every process of the host to end.
    for name in ["always", "unless", "failing", "no"] {
        kill(store.monitor(name), Signal::SIGTERM).expect("a monitor");
        eventually("it has ended", PATIENCE, || status(&store, name) == "exited");
        assert_eq!(store.json(&format!("inspect {name}"))[0]["State"]["ExitCode"], 3);
    }
    assert_eq!(on_boot(), ["always", "unless"]);
    assert_eq!(store.lines("start --all --filter should-start-on-boot=true").len(), 2);
    assert_eq!((status(&store, "unless"), status(&store, "failing")), ("running".to_string(), "exited".to_string()));
    store.ok("stop -a");
    assert_eq!(on_boot(), ["always"], "somebody stopped the other");
    assert_eq!(store.lines("ps -aq --filter restart-policy=on-failure").len(), 1);
    store.ok("rm -af");
}
