//! What flags are by default, from files.

use std::fs;
use std::path::Path;

use crate::support::command::{Done, Tupper, finish};
use crate::support::disk;
use crate::support::store::Store;

/// Runs the words of `line` with this as the user's settings.
fn with(settings: &str, tupper: &Tupper, line: &str) -> Done {
    let home = disk::scratch();
    fs::create_dir(home.path().join("tupper")).expect("mkdir");
    fs::write(home.path().join("tupper/tupper.toml"), settings).expect("write");
    let mut command = tupper.command(line, &[]);
    command.env_remove("TUPPER_NETWORK").env_remove("TUPPER_POOL").env("XDG_CONFIG_HOME", home.path());
    finish(command)
}

#[test]
fn a_setting_holds_where_nothing_is_typed() {
    let store = Store::new();
    let alone = "run --rm busybox ls /sys/class/net";
    assert_eq!(with("network = 'none'", &store, alone).ok(), "lo");
    let host = with("network = 'none'", &store, "run --rm --network host busybox ls /sys/class/net").ok();
    assert_eq!(host.lines().count(), fs::read_dir("/sys/class/net").expect("list").count(), "what is typed wins");
    let quiet = with("log-level = 'off'\nnetwork = 'none'", &store, "run --rm --no-such-flag busybox true");
    assert!(quiet.fails(125).contains("--no-such-flag"), "an error is no message that can be turned off");
    let done = with("root = '/nonexistent'", &store, "store info --format json");
    assert!(done.ok().contains(store.root().to_str().expect("plain")), "--root was typed");
}

#[test]
fn a_store_is_where_the_settings_say() {
    let store = Store::new();
    let settings = format!("root = {:?}", store.root());
    let mut command = store.command("image ls -q", &[]);
    let home = disk::scratch();
    fs::create_dir(home.path().join("tupper")).expect("mkdir");
    fs::write(home.path().join("tupper/tupper.toml"), settings).expect("write");
    let words: Vec<_> = command.get_args().skip(2).map(std::ffi::OsStr::to_os_string).collect();
    let mut bare = std::process::Command::new(command.get_program());
    bare.args(words).env_remove("TUPPER_ROOT").env("XDG_CONFIG_HOME", home.path()).stdin(std::process::Stdio::null());
    assert_eq!(
        finish(bare).ok(),
        finish({
            command.env_remove("XDG_CONFIG_HOME");
            command
        })
        .ok()
    );
}

#[test]
fn what_is_wrong_with_settings_is_said_by_file() {
    let store = Store::new();
    for (settings, status, why) in [
        ("pool = 'maybe'", 125, "tupper/tupper.toml: invalid value 'maybe' for '--pool"),
        ("pool = off", 125, "tupper/tupper.toml: line 1: "),
        ("colour = 'on'", 125, "tupper/tupper.toml: colour: no such key; there are root, "),
        ("\u{1b}]0;x\u{7} = 1", 125, "tupper/tupper.toml: line 1: "),
    ] {
        let done = with(settings, &store, "run --rm --network none busybox true");
        let said = done.fails(status);
        assert!(said.contains(why), "{settings}: {said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    let home = disk::scratch();
    fs::create_dir_all(home.path().join("tupper/tupper.toml")).expect("mkdir");
    let mut command = store.command("image ls", &[]);
    command.env("XDG_CONFIG_HOME", home.path());
    let said = finish(command).fails(125);
    assert!(said.contains("tupper.toml: is a directory"), "{said}");
}

#[test]
fn the_example_has_every_key_with_what_holds_without_it() {
    let example = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tupper.toml")).expect("read");
    let all: String = example
        .lines()
        .filter_map(|line| line.strip_prefix('#').filter(|key| !key.starts_with(' ')))
        .collect::<Vec<_>>()
        .join("\n");
    let store = Store::new();
    assert_eq!(all.lines().count(), 6, "{all}");
    with(&all, &store, "image ls").ok();
    let said = with("nothing = 'x'", &store, "image ls").fails(125);
    for line in all.lines() {
        let (key, _) = line.split_once(" = ").expect("a key");
        assert!(said.contains(key), "{key}: {said}");
    }
}
