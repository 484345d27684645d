//! run, create and shell on an image that is not here yet, or not as the registry has it: --pull.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::archives::Files;
use crate::support::command::Tupper;
use crate::support::http::Server;
use crate::support::store::{Store, alone};
use crate::support::{busybox, registry};

/// A registry that has a busybox, and another one from when the flag is set.
fn server(changed: &Arc<AtomicBool>) -> Server {
    let busybox = std::fs::read(busybox()).expect("an archive");
    let more = Files(vec![("more".to_string(), b"more".to_vec())]).tar();
    let layout = |layers: &[&[u8]]| Files::layout(None, layers, <[u8]>::to_vec);
    let (first, second) = (layout(&[&busybox]), layout(&[&busybox, &more]));
    let changed = changed.clone();
    registry::serve(first, move |asked| changed.load(Ordering::Relaxed).then(|| registry::answer(&second, asked)))
}

/// It as somebody has it who has set nothing.
fn unset(tupper: Tupper) -> Tupper {
    tupper.with_env("TUPPER_PULL", "missing")
}

const INSECURE: &str = "--tls-verify=false";

#[test]
fn an_image_that_is_not_here_is_pulled_once() {
    let changed = Arc::default();
    let server = server(&changed);
    let (image, store) = (format!("{}/a/image:1", server.host()), Store::empty());
    let (_home, tupper) = alone(&store);
    let tupper = unset(tupper);
    let run = |more: &str| tupper.run_with(&format!("run --rm {INSECURE} {more}"), &[&image, "ls", "/"]);

    assert!(run("--pull never").fails(125).contains("no store there yet"));
    assert!(!tupper.root().join("fs").exists());
    // There is no store either.
    let first = run("");
    assert!(first.stderr.contains(&format!("pulling {image}")), "{first}");
    assert!(first.ok().contains("bin"));
    let asked = server.count("/v2/");
    let again = run("");
    assert_eq!((again.stderr.as_str(), server.count("/v2/")), ("", asked), "it asks again");
    again.ok();

    changed.store(true, Ordering::Relaxed);
    assert!(!run("--pull missing").ok().contains("more"));
    assert!(!run("--pull never").ok().contains("more"));
    let newer = run("--pull newer -q");
    assert_eq!(newer.stderr, "");
    assert!(newer.ok().contains("more"));
    changed.store(false, Ordering::Relaxed);
    assert!(!run("--pull always").ok().contains("more"), "the other one is back");
    assert_eq!(tupper.ok("image ls -q").lines().count(), 2);
    assert_eq!(tupper.ok("store check"), "");
}

#[test]
fn a_registry_that_cannot_be_asked_is_in_the_way_of_always_only() {
    let server = server(&Arc::default());
    let image = format!("{}/a/image:1", server.host());
    let store = Store::empty();
    let (_home, tupper) = alone(&store);
    tupper.ok_with(&format!("image pull {INSECURE}"), &[&image]);
    let gone = server.host();
    drop(server);
    let run = |when: &str| tupper.run_with(&format!("run --rm --pull {when} {INSECURE}"), &[&image, "echo", "here"]);
    for when in ["missing", "never"] {
        assert_eq!(run(when).ok(), "here");
    }
    let newer = run("newer");
    assert!(newer.stderr.contains("the image that is here is taken: pull"), "{newer}");
    assert_eq!(newer.ok(), "here");
    let error = run("always").fails(125);
    assert!(error.contains(&format!("pull {image}")) && error.contains("refused"), "{error}");

    let other = format!("{gone}/a/other");
    let error = tupper.run_with(&format!("run --rm --pull missing {INSECURE}"), &[&other, "true"]).fails(125);
    assert!(error.contains(&format!("{other}: no such container or snapshot or image here: pull {other}")), "{error}");
    assert_eq!(tupper.ok("ps -aq"), "");
}

#[test]
fn what_can_only_be_something_else_is_not_asked_for() {
    let store = Store::new();
    let (_home, tupper) = alone(&store);
    let tupper = unset(tupper);
    tupper.ok("snapshot create busybox web");
    // Whatever is called so in a registry.
    assert_eq!(tupper.ok("run --rm --pull always web echo here"), "here");
    let id = "0".repeat(64);
    for what in ["container:web2", "snapshot:web2", &id, &format!("sha256:{id}"), "./web2", "/web2"] {
        let done = tupper.run_with("run --rm --pull always", &[what, "true"]);
        assert!(!done.stderr.contains("pull"), "{done}");
        done.fails(125);
    }
    let error = tupper.run("run --rm web2 true").fails(125);
    assert!(error.contains("web2: no such container or snapshot or image here: pull web2:latest"), "{error}");
    assert!(error.contains("hint: write it in full"), "{error}");
}

#[test]
fn an_image_is_known_by_its_digest_too_and_who_only_asks_changes_nothing() {
    let server = server(&Arc::default());
    let store = Store::empty();
    let (_home, tupper) = alone(&store);
    let tupper = unset(tupper);
    let place = format!("{}/a/image", server.host());

    let only = tupper.run_with(&format!("run --rm --explain=only {INSECURE}"), &[&place, "true"]);
    only.fails(125);
    assert_eq!(server.count("/v2/"), 0);

    let id = tupper.ok_with(&format!("create {INSECURE}"), &[&place, "true"]);
    assert_eq!(id.len(), 64);
    tupper.ok_with("rm", &[&id]);
    let inspected: serde_json::Value = serde_json::from_str(&tupper.ok_with("image inspect", &[&place])).expect("JSON");
    let digest = inspected[0]["Digest"].as_str().expect("a digest");
    tupper.ok_with("image rm --force", &[&place]);
    let by_digest = format!("{place}@{digest}");
    assert_eq!(tupper.ok_with(&format!("run --rm {INSECURE}"), &[&by_digest, "echo", "here"]), "here");
    assert_eq!(tupper.ok_with(&format!("shell {INSECURE}"), &[&by_digest, "echo", "here"]), "here");
}

#[test]
fn the_platform_is_part_of_what_is_wanted() {
    let server = server(&Arc::default());
    let store = Store::empty();
    let (_home, tupper) = alone(&store);
    let tupper = unset(tupper);
    let image = format!("{}/a/image:1", server.host());
    let run = |more: &str| tupper.run_with(&format!("run --rm {INSECURE} {more}"), &[&image, "true"]);
    run("").ok();
    let asked = server.count("/v2/a/image/manifests/");
    let here = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    run(&format!("--platform {here}")).ok();
    assert_eq!(server.count("/v2/a/image/manifests/"), asked, "it is one for this platform");
    // The one that the registry has is for this platform whatever it is asked for.
    let other = run("--platform linux/s390x");
    assert!(server.count("/v2/a/image/manifests/") > asked, "{other}");
}
