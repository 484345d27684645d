//! What holds for every verb: help, versions, wrong usage, what a listing of nothing is.

use crate::support::command::Tupper;
use crate::support::need_root;
use crate::support::store::Store;

fn nowhere() -> (tempfile::TempDir, Tupper) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let tupper = Tupper::new(dir.path().join("store"));
    (dir, tupper)
}

#[test]
fn version_and_help_need_no_store() {
    let (dir, tupper) = nowhere();
    assert!(tupper.ok("version").contains(env!("CARGO_PKG_VERSION")));
    assert!(tupper.ok("--version").contains(env!("CARGO_PKG_VERSION")));
    for verb in ["--help", "image --help", "snapshot create --help", "run --help", "store --help"] {
        assert!(tupper.ok(verb).contains("Usage:"), "{verb}");
    }
    assert_eq!(dir.path().read_dir().expect("read").count(), 0, "help made a store");
}

#[test]
fn wrong_usage_is_status_2() {
    let (_dir, tupper) = nowhere();
    for line in ["", "nosuchverb", "image", "image import", "image ls --nosuchflag", "snapshot create", "snapshot rm"] {
        let done = tupper.run(line).status(2);
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{done}");
    }
    // run, exec and shell keep 1 to 124 for their command (podman-run(1), "Exit Status").
    for line in ["run", "run --nosuchflag image"] {
        tupper.run(line).status(125);
    }
}

#[test]
fn listing_nothing_makes_nothing() {
    need_root();
    let (dir, tupper) = nowhere();
    for line in ["image ls", "snapshot ls", "ps -a"] {
        assert!(tupper.lines(line).len() <= 1, "{line}: more than the titles");
        assert_eq!(tupper.ok(&format!("{line} -q")), "");
        assert_eq!(tupper.json(&format!("{line} --format json")), serde_json::json!([]));
    }
    assert_eq!(dir.path().read_dir().expect("read").count(), 0, "a listing made a store");
}

#[test]
fn completions_and_man_pages_name_every_verb() {
    let (dir, tupper) = nowhere();
    for shell in ["bash", "zsh", "fish"] {
        assert!(tupper.ok(&format!("completion {shell}")).contains("snapshot"), "{shell}");
    }
    let pages = dir.path().join("man");
    std::fs::create_dir(&pages).expect("a directory");
    tupper.ok_with("man", &[pages.to_str().expect("plain")]);
    for page in ["tupper.1", "tupper-image-import.1", "tupper-snapshot-create.1", "tupper-run.1"] {
        assert!(pages.join(page).is_file(), "{page}");
    }
}

#[test]
fn empty_names_are_called_empty() {
    let store = Store::empty();
    store.ok("store init");
    for (line, more) in [
        ("snapshot path", &[""][..]),
        ("image import", &[""]),
        ("image inspect", &[""]),
        ("image tag", &["", "name"]),
        ("run --rm", &["", "true"]),
        ("snapshot path", &["snapshot:"]),
    ] {
        let done = store.run_with(line, more);
        assert!(done.stderr.contains("is empty"), "{done}");
    }
}
