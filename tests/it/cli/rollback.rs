//! snapshot rollback, and second thoughts: --keep, --rm=on-success, snapshot trash.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::id;
use crate::support::command::{Done, finish};
use crate::support::eventually;
use crate::support::store::Store;

fn root_of(store: &Store, verb: &str, name: &str) -> PathBuf {
    match verb {
        "snapshot" => PathBuf::from(store.ok(&format!("snapshot path {name}"))),
        _ => {
            let id = store.json(&format!("inspect {name}"))[0]["Id"].as_str().map(str::to_string);
            store.root().join("fs/containers").join(id.expect("an id")).join("rootfs")
        }
    }
}

/// The line, and a line for a shell inside.
fn shell(store: &Store, line: &str, inside: &str) -> Done {
    finish(store.command(line, &["sh", "-c", inside]))
}

fn read(root: &Path, name: &str) -> Option<String> {
    fs::read_to_string(root.join(name)).ok()
}

#[test]
fn a_rollback_is_an_exchange_that_can_be_undone() {
    let store = Store::new();
    for (verb, make) in [("snapshot", "snapshot create busybox web"), ("container", "create --name web busybox true")] {
        store.ok(make);
        let root = || root_of(&store, verb, "web");
        fs::write(root().join("one"), "1").expect("a file");
        store.ok("snapshot create web before");
        fs::write(root().join("one"), "2").expect("a file");
        fs::write(root().join("two"), "2").expect("a file");
        let kept = id(&store.ok("snapshot rollback web before"));
        assert_eq!((read(&root(), "one"), read(&root(), "two")), (Some("1".into()), None), "{verb}");
        let kept_root = root_of(&store, "snapshot", &kept);
        assert_eq!((read(&kept_root, "one"), read(&kept_root, "two")), (Some("2".into()), Some("2".into())), "{verb}");
        let inspect = store.json(&format!("snapshot inspect {kept}"));
        assert_eq!(inspect[0]["Source"]["Name"], "web", "it says where it is from: {inspect}");
        // What it was made from is another now.
        assert_eq!(store.ok("diff web"), "");
        // Undone.
        let again = id(&store.ok(&format!("snapshot rollback web {kept}")));
        assert_eq!((read(&root(), "one"), read(&root(), "two")), (Some("2".into()), Some("2".into())), "{verb}");
        // What was kept can be rolled back itself, and is a snapshot still.
        let of_kept = id(&store.ok(&format!("snapshot rollback {kept} busybox")));
        assert_eq!(store.ok("store gc"), "");
        assert_eq!(read(&root_of(&store, "snapshot", &kept), "one"), None);
        assert_eq!(read(&root_of(&store, "snapshot", &of_kept), "two"), Some("2".into()));
        store.ok(&format!("snapshot rm {of_kept}"));
        // Each is whole without the others, and goes as any other.
        for name in ["before", &kept, &again] {
            store.ok(&format!("snapshot rm {name}"));
        }
        assert_eq!(store.ok("store check"), "");
        assert_eq!(read(&root(), "two"), Some("2".into()));
        store.ok(if verb == "snapshot" { "snapshot rm web" } else { "rm web" });
    }
    assert_eq!(store.ok("snapshot ls -q"), "");
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn to_an_image_and_with_the_container_running() {
    let store = Store::new();
    store.ok("run -d --name web busybox sleep 100000");
    store.ok("exec web touch /made");
    let error = store.fails(1, "snapshot rollback web busybox");
    assert!(error.contains("web") && error.contains("hint: `--stop`"), "{error}");
    let kept = id(&store.ok("snapshot rollback --stop web busybox"));
    assert!(root_of(&store, "snapshot", &kept).join("made").exists());
    assert!(!root_of(&store, "container", "web").join("made").exists());
    store.ok("start web");
    store.ok("exec web true");
    assert_ne!(store.run("exec web test -e /made").status, 0, "it starts in the tree that it was rolled back to");
    store.ok("rm -f web");
    store.ok(&format!("snapshot rm {kept}"));
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn a_rollback_that_cannot_be_changes_nothing() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    store.ok("snapshot create --read-only busybox fixed");
    let before = store.ok("snapshot ls -q --no-trunc");
    for (line, why) in [
        ("snapshot rollback web web", "that is itself"),
        ("snapshot rollback web nothing", "nothing"),
        ("snapshot rollback nothing web", "nothing"),
        ("snapshot rollback fixed web", "read-only"),
        ("snapshot rollback busybox web", "busybox"),
    ] {
        let error = store.fails(1, line);
        assert!(error.contains(why), "{line}: {error}");
    }
    assert_eq!(store.ok("snapshot ls -q --no-trunc"), before);
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn what_a_throwaway_did_is_kept_under_a_name() {
    let store = Store::new();
    let done = shell(&store, "run --rm --keep mine busybox", "echo x >/made; exit 3");
    assert!(done.status == 3 && done.stderr.contains("kept as snapshot mine"), "{done}");
    assert_eq!(read(&root_of(&store, "snapshot", "mine"), "made"), Some("x\n".into()));
    assert_eq!(store.ok("ps -aq"), "");
    // Known before anything runs.
    let taken = store.fails(125, "run --rm --keep mine busybox touch /never");
    assert!(taken.contains("name mine: taken by snapshot"), "{taken}");
    store.ok("shell --keep other mine touch /more");
    let other = root_of(&store, "snapshot", "other");
    assert!(other.join("made").exists() && other.join("more").exists());
    for (line, why) in [
        ("run --keep a busybox true", "--keep goes with --rm"),
        ("run -d --rm --keep a busybox true", "in the foreground"),
        ("run --rm=on-success --keep a busybox true", "one or the other"),
        ("run --rm --ttl 1h busybox true", "--ttl goes with --rm=on-success"),
        ("create --rm=on-success busybox true", "in the foreground"),
    ] {
        let done = store.run(line);
        assert!(done.status != 0 && done.stderr.contains(why), "{line}: {done}");
    }
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn what_a_failed_one_changed_is_in_the_trash_for_a_while() {
    let store = Store::new();
    // Nothing to think twice about.
    store.ok("run --rm=on-success busybox touch /made");
    assert_eq!(store.run("run --rm=on-success busybox false").status, 1);
    assert_eq!(shell(&store, "run --rm busybox", "touch /made; exit 1").status, 1);
    assert_eq!(store.ok("snapshot trash ls -q"), "");

    let done = shell(&store, "run --rm=on-success busybox", "echo x >/made; exit 7");
    assert!(done.status == 7 && done.stderr.contains("in the trash for 1h"), "{done}");
    assert_eq!(store.ok("snapshot ls -q"), "", "it is no snapshot like others");
    let trash = store.json("snapshot trash ls --format json");
    assert_eq!(
        (trash[0]["ExitCode"].clone(), trash[0]["Source"]["Name"].clone()),
        (7.into(), "localhost/busybox:latest".into())
    );
    let id = trash[0]["Id"].as_str().expect("an id").to_string();
    assert!(
        done.stderr.contains(&format!("snapshot trash restore {}", &id[..12])),
        "what it says can be typed: {done}"
    );
    assert_eq!(store.ok("store check"), "");
    store.ok("store gc");
    assert_eq!(store.ok(&format!("snapshot trash restore {} back", &id[..12])), id);
    assert_eq!(read(&root_of(&store, "snapshot", "back"), "made"), Some("x\n".into()));
    assert!(store.fails(1, "snapshot trash restore back").contains("not in the trash"));
    assert_eq!(store.ok("snapshot trash ls -q"), "");

    // Its time is up.
    shell(&store, "shell --rm=on-success --ttl 1s busybox", "touch /made; exit 1");
    assert_eq!(store.lines("snapshot trash ls -q").len(), 1);
    eventually("it goes", Duration::from_secs(20), || {
        store.ok("store gc");
        store.ok("snapshot trash ls -q").is_empty()
    });

    for _ in 0..2 {
        shell(&store, "run --rm=on-success busybox", "touch /made; exit 1");
    }
    let all = store.lines("snapshot trash ls -q --no-trunc");
    let mut would = store.lines("snapshot trash empty --dry-run");
    let mut did = store.lines("snapshot trash empty --force");
    assert_eq!((would.len(), did.len()), (2, 2));
    would.sort();
    did.sort();
    assert_eq!(would, did);
    assert!(all.iter().all(|one| did.contains(one)));
    assert_eq!(store.ok("snapshot trash ls -q"), "");
    assert_eq!(store.lines("snapshot ls -q").len(), 1, "what was restored stays");
    assert_eq!(store.ok("store check"), "");
}
