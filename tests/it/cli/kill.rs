//! kill: a signal to the first process of a container.

use std::time::Duration;

use crate::support::eventually;
use crate::support::store::Store;

/// Says each signal that it gets, and ends with the last.
const SAYS: &str = "for s in HUP USR1 RTMIN+3; do trap \"echo $s\" $s; done; trap 'echo TERM; exit 3' TERM; echo ready; \
                    while :; do sleep 0.1; done";

fn says(store: &Store, name: &str, flags: &str) {
    // busybox's trap knows no RTMIN+3, but 37.
    let script = SAYS.replace("RTMIN+3", "37");
    store.ok_with(&format!("run -d --name {name} {flags} busybox sh -c"), &[&script]);
    eventually("it is ready", Duration::from_secs(120), || store.ok(&format!("logs {name}")).contains("ready"));
}

#[test]
fn the_first_process_gets_the_signal() {
    let store = Store::new();
    says(&store, "web", "");
    for (signal, said) in [("HUP", "HUP"), ("sigusr1", "USR1"), ("37", "37"), ("SIGRTMIN+3", "37\n37")] {
        assert_eq!(store.ok(&format!("kill -s {signal} web")), "web");
        eventually(signal, Duration::from_secs(120), || store.ok("logs web").ends_with(said));
    }
    assert_eq!(store.ok("kill --signal TERM web"), "web");
    assert_eq!(store.ok("wait web"), "3");
    let error = store.fails(1, "kill web");
    assert!(error.contains("it does not run"), "{error}");
    store.fails(2, "kill -s NOTHING web");
    store.fails(2, "kill -s 0 web");
    store.fails(1, "kill nobody");
}

#[test]
fn without_a_signal_it_is_killed() {
    let store = Store::new();
    let ids: Vec<String> = (0..3).map(|_| store.ok("run -d busybox sleep 600")).collect();
    store.ok(&format!("pause {}", ids[0]));
    let mut killed = store.lines("kill --all");
    killed.sort();
    let mut wanted = ids.clone();
    wanted.sort();
    assert_eq!(killed, wanted, "the one that was paused, too");
    for id in &ids {
        assert_eq!(store.ok(&format!("wait {id}")), "137");
    }
    assert_eq!(store.ok("kill -a"), "");
}

#[test]
fn who_is_killed_is_not_started_again() {
    let store = Store::new();
    says(&store, "web", "--restart always");
    store.ok("kill -s HUP web");
    eventually("it hears", Duration::from_secs(120), || store.ok("logs web").ends_with("HUP"));
    store.ok("kill web");
    assert_eq!(store.ok("wait web"), "137");
    assert_eq!(store.json("ps -a --format json")[0]["State"], "exited");
    assert_eq!(store.json("ps -a --format json")[0]["Restarts"], 0);
}

#[test]
fn stop_sends_what_it_was_made_with() {
    let store = Store::new();
    says(&store, "hup", "--stop-signal HUP --stop-timeout 0");
    says(&store, "usr", "--stop-signal SIGUSR1");
    assert_eq!(store.json("inspect hup")[0]["Config"]["StopSignal"], 1);
    assert_eq!(store.json("inspect hup")[0]["Config"]["StopTimeout"], 0);
    store.ok("stop hup");
    assert_eq!(store.ok("wait hup"), "137", "HUP does not end it, and it had no time");
    store.ok("stop -t 1 usr");
    assert!(store.ok("logs usr").ends_with("USR1"));
}
