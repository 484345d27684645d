//! What holds for every verb: help, versions, wrong usage, what a listing of nothing is.

use std::fs::OpenOptions;
use std::process::Command;

use crate::support::command::{Tupper, finish};
use crate::support::disk::Disk;
use crate::support::need_root;
use crate::support::store::{Host, Store};

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
    assert_eq!(tupper.ok("help"), tupper.ok("--help"));
    assert_eq!(tupper.ok("help image import"), tupper.ok("image import --help"));
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
    assert_eq!(tupper.lines("store df").len(), 2, "the titles and a total");
    assert_eq!(tupper.json("store df --format json")["Objects"], serde_json::json!([]));
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
    let verbs = ["import", "load", "pull", "ls", "inspect", "history", "tag", "rm", "prune"];
    let images = verbs.map(|verb| format!("tupper-image-{verb}.1"));
    let others = ["tupper.1", "tupper-snapshot-create.1", "tupper-run.1", "tupper-login.1", "tupper-logout.1"];
    for page in images.iter().map(String::as_str).chain(others) {
        assert!(pages.join(page).is_file(), "{page}");
    }
    for verb in ["import", "load", "pull"] {
        let page = std::fs::read_to_string(pages.join(format!("tupper-image-{verb}.1"))).expect("a page");
        assert!(page.contains("max\\-entries") && page.contains("10000000"), "{page}");
    }
    let completion = tupper.ok("completion bash");
    for word in ["history", "prune", "load", "pull", "--max-size"] {
        assert!(completion.contains(word), "{word}");
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

#[test]
fn hints_on_usage_lead_somewhere() {
    let (_dir, tupper) = nowhere();
    assert!(tupper.fails(2, "image ls --formt json").contains("'--format'"));
    for line in ["ps -d", "image ls --nosuchflag"] {
        let error = tupper.fails(2, line);
        assert!(error.contains("hint: see `tupper --help`"), "{error}");
    }
    let error = tupper.fails(2, "--log-level loud ps");
    assert!(error.contains("off, error, warn, info, debug, trace"), "{error}");
    for level in ["off", "trace", "WARN"] {
        tupper.ok(&format!("--log-level {level} ps"));
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_with_an_object() {
    let (dir, tupper) = nowhere();
    for line in ["version", "--help", "ps", "completion bash"] {
        let mut command = tupper.command(line, &[]);
        let full = OpenOptions::new().write(true).open("/dev/full").expect("full(4)");
        let done = command.stdout(full).output().expect("it starts");
        assert_eq!(done.status.code(), Some(1), "{line}");
        assert_eq!(
            String::from_utf8_lossy(&done.stderr),
            "tupper: error: write to standard output: no space left on device\n",
            "{line}"
        );
        // Somebody who has seen enough is no error.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let done = tupper.command(line, &[]).stdout(writer).output().expect("it starts");
        assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(0), &b""[..]), "{line}");
    }
    assert!(tupper.fails(1, "man /dev/null").ends_with("create the directory /dev/null: file exists"));

    let gone = dir.path().join("gone");
    std::fs::create_dir(&gone).expect("a directory");
    let mut command = Command::new("sh");
    command.args(["-c", "rmdir \"$PWD\" && exec \"$0\" --root store ps", env!("CARGO_BIN_EXE_tupper")]);
    command.current_dir(&gone);
    let error = finish(command).fails(1);
    assert!(error.ends_with("store store: find the working directory: no such file or directory"), "{error}");
}

#[test]
fn a_notice_stays_on_one_line_whatever_a_path_holds() {
    let _host = Host::shared();
    let disk = Disk::ext4(4 << 30);
    let tupper = Tupper::new(disk.path().join("new\nline\u{1b}[31m"));
    let done = tupper.run("store init");
    // umount(8) would not find it again.
    tupper.ok("store umount");
    assert!(done.stderr.contains("new\\nline\\u{1b}[31m"), "{done}");
    assert!(done.stderr.lines().all(|line| line.starts_with("tupper: ")), "{done}");
    done.ok();
}
