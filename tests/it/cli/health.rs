//! Health checks: --health-cmd, those of images, healthcheck run, and what tells of them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::archives::{Files, config};
use crate::support::store::Store;
use crate::support::{busybox, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

fn health(store: &Store, name: &str) -> Value {
    store.json(&format!("inspect {name}"))[0]["State"]["Health"].clone()
}

fn load(store: &Store, name: &str, config: &Value, layer: &[u8]) {
    let archive = Files::docker_of(serde_json::to_vec(config).expect("json"), &[name], &[layer]);
    let archive = archive.save(&store.disk.path(), "image.tar");
    store.ok_with("image load -q -i", &[archive.to_str().expect("a path")]);
}

fn becomes(store: &Store, name: &str, word: &str) {
    eventually(&format!("it is {word}"), PATIENCE, || health(store, name)["Status"] == word);
}

#[test]
fn a_container_becomes_well_and_ill_and_well_again() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let check = "test -e /well && echo it is here";
    store.ok_with(
        "run -d --name web --health-interval 200ms --health-retries 2 --health-cmd",
        &[check, "busybox", "sleep", "1000"],
    );
    assert_eq!(store.json("inspect web")[0]["Config"]["Healthcheck"]["Retries"], 2);
    becomes(&store, "web", "unhealthy");
    assert!(store.ok("ps").contains(" (unhealthy)"));
    store.ok("exec web touch /well");
    becomes(&store, "web", "healthy");
    let now = health(&store, "web");
    assert_eq!(now["FailingStreak"], 0, "{now}");
    let last = now["Log"].as_array().and_then(|log| log.last()).expect("a check").clone();
    assert_eq!((&last["ExitCode"], &last["Output"]), (&json!(0), &json!("it is here\n")), "{now}");
    assert!(store.ok("ps").contains(" (healthy)"));
    assert_eq!(store.lines("ps -q --filter health=healthy").len(), 1);
    assert!(store.lines("ps -q --filter health=unhealthy").is_empty());
    assert_eq!(store.run("healthcheck run web").status(0).stdout, "");
    store.ok("exec web rm /well");
    becomes(&store, "web", "unhealthy");
    assert_eq!(store.run("healthcheck run web").status(1).stdout, "unhealthy\n");
    assert!(health(&store, "web")["Log"].as_array().is_some_and(|log| log.len() <= 5));
    store.ok("stop -t 0 web");
    assert_eq!(health(&store, "web"), Value::Null, "one that does not run is not well or ill");
    let error = store.fails(1, "healthcheck run web");
    assert!(error.contains("it does not run"), "{error}");
    store.ok("rm web");
    before.assert_same(&store.traces());
}

#[test]
fn a_check_that_takes_too_long_has_failed_and_holds_up_nobody() {
    let store = Store::alone();
    store.ok_with(
        "run -d --name slow --health-interval 100ms --health-timeout 300ms --health-retries 1 --health-cmd",
        &["sleep 1000", "busybox", "sleep", "1000"],
    );
    becomes(&store, "slow", "unhealthy");
    let last = health(&store, "slow")["Log"][0].clone();
    assert_eq!(last["ExitCode"], -1, "{last}");
    assert!(last["Output"].as_str().is_some_and(|text| text.contains("longer than 300ms")), "{last}");
    store.ok("rm -f slow");

    // One that would take for ever does not keep the container from its end.
    store.ok_with(
        "run -d --name long --health-interval 100ms --health-timeout 1h --health-cmd",
        &["touch /began; sleep 1000", "busybox", "sleep", "1000"],
    );
    eventually("a check is under way", PATIENCE, || store.run("exec long test -e /began").status == 0);
    store.ok("stop -t 0 long");
    assert_eq!(store.ok("wait long"), "137");
    store.ok("rm long");
}

#[test]
fn what_a_check_leaves_behind_or_writes_is_bounded() {
    let store = Store::alone();
    let check = "yes & yes | head -c 100000; sleep 0.1; kill %1";
    store.ok_with("run -d --name loud --health-interval 1h --health-cmd", &[check, "busybox", "sleep", "1000"]);
    store.run("healthcheck run loud").status(0);
    let output = health(&store, "loud")["Log"][0]["Output"].as_str().map(str::len);
    assert_eq!(output, Some(4096));
    store.ok("rm -f loud");
}

#[test]
fn one_that_is_not_well_is_killed_and_started_again_where_that_is_asked_for() {
    let store = Store::alone();
    store.ok("run -d --name ill --restart on-failure:1 --health-on-failure kill --health-interval 100ms --health-retries 1 --health-cmd false busybox sleep 1000");
    eventually("it was started again, and killed again", PATIENCE, || {
        store.json("inspect ill")[0]["State"]["Status"] == "exited"
    });
    let container = store.json("inspect ill")[0].clone();
    assert_eq!((&container["RestartCount"], &container["State"]["ExitCode"]), (&json!(1), &json!(137)), "{container}");
    store.ok("rm ill");
}

#[test]
fn an_image_says_how_and_flags_say_otherwise() {
    let store = Store::alone();
    let layer = std::fs::read(busybox()).expect("a tarball");
    let mut document = config(&[&layer]);
    document["config"]["Healthcheck"] = json!({ "Test": ["CMD-SHELL", "test -e /well"], "Interval": 100_000_000_u64, "Timeout": 60_000_000_000_u64, "Retries": 1 });
    load(&store, "localhost/checked:1", &document, &layer);
    store.ok("run -d --name web checked:1 sleep 1000");
    becomes(&store, "web", "unhealthy");
    store.ok("rm -f web");
    store.ok("run -d --name web --no-healthcheck checked:1 sleep 1000");
    assert_eq!(health(&store, "web"), Value::Null);
    let error = store.fails(1, "healthcheck run web");
    assert!(error.contains("has no health check") && error.contains("hint: "), "{error}");
    store.ok("rm -f web");
    store.ok("run -d --name web --health-start-period 1h checked:1 sleep 1000");
    store.run("healthcheck run web").status(1);
    assert_eq!(health(&store, "web")["Status"], "starting", "a failure says nothing yet");
    store.ok("exec web touch /well");
    becomes(&store, "web", "healthy");
    store.ok("pause web");
    let error = store.fails(1, "healthcheck run web");
    assert!(error.contains("it is paused"), "{error}");
    store.ok("unpause web");
    store.ok("rm -f web");

    document["config"]["Healthcheck"] = json!({ "Test": "true" });
    load(&store, "localhost/broken:1", &document, &layer);
    let error = store.fails(125, "run -d broken:1 sleep 1000");
    assert!(error.contains("the image's health check: ") && error.contains("--no-healthcheck"), "{error}");
}

#[test]
fn nonsense_is_refused() {
    let store = Store::alone();
    for line in [
        "run -d --health-cmd [ busybox true",
        "run -d --health-interval 5 busybox true",
        "run -d --health-retries 0 busybox true",
        "run -d --health-on-failure pray busybox true",
    ] {
        store.fails(125, line);
    }
    assert_eq!(store.ok("ps -aq"), "");
}
