//! Who looks on while others work: readers that must never see half an object, and those who look for what is left.

use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::Kills;
use crate::random::Random;
use crate::runner::{Refused, Runner, is_id};

/// Lists and inspects.
pub fn read<'a>(runner: &'a Runner<'a>, mut random: Random) {
    while !runner.stop.load(Ordering::Acquire) {
        let (list, inspect, check): (_, _, fn(&Value)) = match random.below(3) {
            0 => ("image ls", "image inspect", image),
            1 => ("snapshot ls", "snapshot inspect", snapshot),
            _ => ("ps --all", "inspect", container),
        };
        match random.below(4) {
            0 => {
                let ended = runner.run(list, &[]);
                assert!(ended.ok().lines().count() > 0 && ended.stderr.is_empty(), "{ended}");
            }
            1 => {
                let ended = runner.run(list, &["--quiet", "--no-trunc"]);
                assert!(ended.ok().lines().all(is_id) && ended.stderr.is_empty(), "{ended}");
            }
            _ => {
                let objects = json(runner, list, &["--format", "json"]).expect("a listing never fails");
                objects.iter().for_each(check);
                if let Some(object) = random.pick(&objects) {
                    let id = object["Id"].as_str().expect("an id");
                    if let Some(found) = json(runner, inspect, &[id]) {
                        assert_eq!(found.len(), 1, "{inspect} {id}");
                        details(inspect, id, &found[0]);
                    }
                }
            }
        }
    }
}

/// Removes what is left of others; where nobody is killed, there is nothing.
pub fn collect<'a>(runner: &'a Runner<'a>, mut random: Random) {
    while !runner.stop.load(Ordering::Acquire) {
        let dry: &[&str] = if random.percent(20) { &["--dry-run"] } else { &[] };
        let ended = runner.run("store gc", dry);
        let removed = ended.ok();
        assert!(runner.kills == Kills::Some || removed.is_empty(), "nobody was killed: {ended}");
    }
}

/// Looks for damage, of which there is none, and for garbage, which only those leave who are killed.
pub fn check<'a>(runner: &'a Runner<'a>, _: Random) {
    while !runner.stop.load(Ordering::Acquire) {
        let ended = runner.run("store check", &["--format", "json"]);
        let findings: Vec<Value> = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended}"));
        assert_eq!(ended.status, i32::from(!findings.is_empty()), "{ended}");
        let wrong = |finding: &Value| runner.kills == Kills::None || finding["Garbage"] != true;
        assert!(!findings.iter().any(wrong), "{ended}");
    }
}

/// The array that a command prints; none when what it names is gone.
fn json<'a>(runner: &'a Runner<'a>, line: &str, more: &[&str]) -> Option<Vec<Value>> {
    let ended = runner.run(line, more);
    let array: Vec<Value> = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended}"));
    match ended.status {
        0 => Some(array),
        _ => {
            assert_eq!((ended.refused(), array.len()), (Refused::Missing, 0), "{ended}");
            None
        }
    }
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

fn is_texts(value: &Value) -> bool {
    value.as_array().is_some_and(|texts| texts.iter().all(is_text))
}

fn image(image: &Value) {
    let whole = image["Id"].as_str().is_some_and(is_id)
        && is_texts(&image["RepoTags"])
        && is_text(&image["CreatedAt"])
        && image["Size"].as_u64().is_some_and(|size| size > 0);
    assert!(whole, "half an image: {image}");
}

fn snapshot(snapshot: &Value) {
    let whole = snapshot["Id"].as_str().is_some_and(is_id)
        && is_texts(&snapshot["Names"])
        && is_text(&snapshot["CreatedAt"])
        && snapshot["ReadOnly"].is_boolean()
        && snapshot["Source"]["Id"].as_str().is_some_and(is_id)
        && is_text(&snapshot["Source"]["Name"])
        && is_text(&snapshot["Path"]);
    assert!(whole, "half a snapshot: {snapshot}");
}

fn container(container: &Value) {
    let state = container["State"].as_str().unwrap_or_default();
    let whole = container["Id"].as_str().is_some_and(is_id)
        && is_texts(&container["Names"])
        && is_text(&container["CreatedAt"])
        && is_text(&container["Image"])
        && container["Command"].as_array().is_some_and(|words| !words.is_empty())
        && matches!(state, "created" | "running" | "stopping" | "exited")
        && container["Pid"].is_number() == (state == "running")
        && container["ExitedAt"].is_number() == (state == "exited");
    assert!(whole, "half a container: {container}");
}

fn details(verb: &str, id: &str, found: &Value) {
    let whole = match verb {
        "image inspect" => found["RootFS"]["Layers"].as_array().is_some_and(|layers| !layers.is_empty()),
        "snapshot inspect" => found["Subvolume"]["Id"].as_u64().is_some_and(|id| id >= 256),
        _ => is_text(&found["Path"]) && is_text(&found["State"]["Status"]) && is_text(&found["Rootfs"]),
    };
    assert!(found["Id"] == id && is_text(&found["Created"]) | found["Created"].is_number() && whole, "half: {found}");
}
