//! snapshot tree; labels, filters, expiry and prune.

use std::fs::File;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::store::Store;

/// The names of snapshots, sorted.
fn names(store: &Store, flags: &str) -> Vec<String> {
    let listed = store.json(&format!("snapshot ls --format json {flags}"));
    let mut names: Vec<String> = listed
        .as_array()
        .expect("an array")
        .iter()
        .map(|one| one["Names"][0].as_str().unwrap_or_default().to_string())
        .collect();
    names.sort();
    names
}

/// The line of the tree that names this, up to its kind.
fn line(lines: &[String], name: &str) -> String {
    let line =
        lines.iter().find(|line| line.contains(&format!("{name} ("))).unwrap_or_else(|| panic!("{name}: {lines:#?}"));
    line.split(',').next().unwrap_or_default().to_string()
}

#[test]
fn the_tree_shows_what_was_made_of_what() {
    let store = Store::new();
    let image = store.ok("image ls -q --no-trunc");
    let web = store.ok("snapshot create busybox web");
    let copy = store.ok("snapshot create web copy");
    let shop = store.ok("create --name shop copy true");
    let late = store.ok("snapshot create shop late");
    let other = store.ok("create --name other busybox true");
    let lines = store.lines("snapshot tree");
    assert_eq!(lines.len(), 6, "{lines:#?}");
    let short = |id: &str| id[..12].to_string();
    assert_eq!(line(&lines, "localhost/busybox:latest"), format!("localhost/busybox:latest (image {}", short(&image)));
    assert_eq!(line(&lines, "web"), format!("├── web (snapshot {}", short(&web)));
    assert_eq!(line(&lines, "copy"), format!("│   └── copy (snapshot {}", short(&copy)));
    assert_eq!(line(&lines, "shop"), format!("│       └── shop (container {}", short(&shop)));
    assert_eq!(line(&lines, "late"), format!("│           └── late (snapshot {}", short(&late)));
    assert_eq!(line(&lines, "other"), format!("└── other (container {}", short(&other)));
    assert!(lines.iter().all(|line| line.ends_with(" ago)")), "{lines:#?}");
    // What each holds alone; of an image all.
    assert!(lines[0].contains("MB, "), "{lines:#?}");
    assert!(lines[1..].iter().all(|line| line.contains(", +0 B, ")), "{lines:#?}");
    assert_eq!(store.lines("snapshot tree -q --no-trunc"), [&*image, &web, &copy, &shop, &late, &other]);
    let tree = store.json("snapshot tree --format json");
    let top = &tree[0];
    assert_eq!((&top["Kind"], &top["Id"]), (&json!("image"), &json!(image)));
    assert_eq!(top["Children"].as_array().map(Vec::len), Some(2));
    assert_eq!(top["Children"][0]["Size"]["Exclusive"], json!({ "Bytes": 0, "Is": "exact" }));
    assert_eq!(top["Children"][0]["Children"][0]["Children"][0]["Children"][0]["Names"], json!(["late"]));
    assert_eq!(top["Children"][1]["Children"], json!([]));

    // inspect says the same of one.
    let inspected = store.json("snapshot inspect copy")[0].clone();
    assert_eq!(inspected["Parent"], json!({ "Kind": "snapshot", "Id": web, "Names": ["web"] }));
    assert_eq!(inspected["Children"], json!([{ "Kind": "container", "Id": shop, "Names": ["shop"] }]));
    assert!(store.json("snapshot ls --format json")[0].get("Parent").is_none());

    // What hangs below something that goes falls to the image, and from there to the top.
    store.ok("snapshot rm copy");
    let lines = store.lines("snapshot tree");
    assert_eq!(line(&lines, "shop"), format!("├── shop (container {}", short(&shop)));
    assert!(lines.iter().any(|line| line.contains("shop (") && line.contains("of snapshot copy, ")), "{lines:#?}");
    assert_eq!(line(&lines, "late"), format!("│   └── late (snapshot {}", short(&late)));
    assert_eq!(store.json("snapshot inspect late")[0]["Parent"]["Names"], json!(["shop"]));
    store.ok("rm shop other");
    store.ok("rmi -f busybox");
    let lines = store.lines("snapshot tree");
    assert_eq!(line(&lines, "late"), format!("late (snapshot {}", short(&late)));
    assert_eq!(line(&lines, "web"), format!("web (snapshot {}", short(&web)));
    assert_eq!(store.json("snapshot inspect web")[0]["Parent"], Value::Null);
}

#[test]
fn the_tree_of_nothing_is_empty() {
    let store = Store::empty();
    assert_eq!(store.ok("snapshot tree"), "");
    assert_eq!(store.json("snapshot tree --format json"), json!([]));
}

#[test]
fn snapshots_are_found_by_labels_and_more() {
    let store = Store::new();
    store.ok("snapshot create busybox first --label tier=front --label kept");
    let first = &store.json("snapshot inspect first")[0];
    assert_eq!(first["Labels"], json!({ "tier": "front", "kept": "" }));
    assert_eq!(first["ExpiresAt"], Value::Null);
    store.ok("snapshot create first second -l tier=back");
    store.ok("create --name shop busybox true");
    store.ok("snapshot create shop third");
    store.ok("snapshot create --count 2 busybox many --label tier=front");
    for (flags, expected) in [
        ("--filter label=tier", vec!["first", "many-1", "many-2", "second"]),
        ("--filter label=tier=front", vec!["first", "many-1", "many-2"]),
        ("--filter label=tier=front --filter label=kept", vec!["first"]),
        ("--filter label=tie", vec![]),
        ("--filter name=^many", vec!["many-1", "many-2"]),
        ("--filter name=first --filter name=second", vec!["first", "second"]),
        ("--filter source=shop", vec!["third"]),
        ("--filter source=first", vec!["second"]),
        ("--filter source=busybox", vec!["first", "many-1", "many-2"]),
        ("--filter source=nosuch", vec![]),
        ("--filter before=third", vec!["first", "second"]),
        ("--filter since=second", vec!["many-1", "many-2", "third"]),
        ("--filter since=first --filter before=third", vec!["second"]),
    ] {
        assert_eq!(names(&store, flags), expected, "{flags}");
    }
    let first = first["Id"].as_str().expect("an id");
    assert_eq!(names(&store, &format!("--filter id={}", &first[..8])), ["first"]);
    assert!(store.fails(1, "snapshot ls --filter since=nosuch").contains("nosuch"));
    for wrong in ["color=red", "name", "name=("] {
        store.fails(2, &format!("snapshot ls --filter {wrong}"));
    }
    assert!(store.fails(1, "snapshot create busybox --label =x").contains("without a name"));
    let large = format!("k={}", "v".repeat(3000));
    assert!(store.run_with("snapshot create busybox --label", &[&large]).fails(1).contains("labels: more than"));
}

#[test]
fn what_has_expired_is_pruned() {
    let store = Store::new();
    store.ok("snapshot create busybox stays");
    store.ok("snapshot create busybox later --expiry 7d");
    let soon = store.ok("snapshot create busybox soon --expiry 1ms");
    std::thread::sleep(Duration::from_millis(10));
    assert!(store.json("snapshot inspect later")[0]["ExpiresAt"].as_str().is_some_and(|time| time.contains('T')));
    // Nobody says yes.
    assert_eq!(store.ok("snapshot prune"), "");
    assert_eq!(names(&store, "").len(), 3);
    assert_eq!(store.ok("snapshot prune --dry-run"), soon);
    assert_eq!(names(&store, "").len(), 3);
    assert_eq!(store.ok("snapshot prune --force --filter name=stays"), "");
    assert_eq!(store.ok("snapshot prune --force"), soon);
    assert_eq!(names(&store, ""), ["later", "stays"]);
    assert_eq!(store.ok("snapshot prune --force"), "");
    for wrong in ["--expiry 7", "--expiry 0s", "--expiry=-1h"] {
        store.fails(2, &format!("snapshot create busybox {wrong}"));
    }
}

#[test]
fn rules_say_what_is_kept() {
    let store = Store::new();
    let ids: Vec<String> = (0..5).map(|nth| store.ok(&format!("snapshot create busybox at-{nth}"))).collect();
    store.ok("snapshot create busybox other");
    let of_them = "--filter name=^at-";
    let told = store.lines(&format!("snapshot prune --dry-run --keep-last 2 {of_them}"));
    assert_eq!(told, [2, 1, 0].map(|nth: usize| ids[nth].clone()), "the newest first");
    // All were made within an hour or two, so within two periods of any length.
    for rule in ["hourly", "daily", "weekly", "monthly", "yearly"] {
        let told = store.lines(&format!("snapshot prune --dry-run --keep-{rule} 9 {of_them}"));
        assert!((3..=4).contains(&told.len()) && !told.contains(&ids[4]), "{rule}: {told:?}");
    }
    // One in use stays, and is told of. Nothing of tupper's holds one for long.
    let busy = File::open(store.root().join("fs/snapshots").join(&ids[1])).expect("a directory");
    busy.lock().expect("flock");
    for flags in ["--dry-run", "--force"] {
        let done = store.run(&format!("snapshot prune {flags} --keep-last 2 {of_them}")).status(0);
        assert_eq!(done.stdout.lines().collect::<Vec<_>>(), [&ids[2], &ids[0]], "{flags}");
        assert!(done.stderr.contains(&ids[1]) && done.stderr.contains("in use"), "{done}");
    }
    drop(busy);
    assert_eq!(names(&store, ""), ["at-1", "at-3", "at-4", "other"]);
    assert_eq!(store.ok(&format!("snapshot prune --force --keep-last 2 {of_them}")), ids[1]);
    // What has expired goes, whatever rule would keep it, and does not count.
    let soon = store.ok("snapshot create busybox at-5 --expiry 1ms");
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(store.ok(&format!("snapshot prune --force --keep-last 2 {of_them}")), soon);
    assert_eq!(names(&store, ""), ["at-3", "at-4", "other"]);
    store.fails(2, "snapshot prune --keep-last 0");
    assert_eq!(store.ok("store check"), "");
}
