//! The command line from end to end: the journeys of a user, through the binary.

mod bench;
mod check;
mod chosen;
mod commit;
mod containers;
mod copy;
mod debian;
mod detached;
mod device;
mod df;
mod diff;
mod exec;
mod flags;
mod health;
mod history;
mod hostile;
mod images;
mod in_place;
mod keep;
mod kill;
mod limits;
mod load;
mod locks;
mod look;
mod pool;
mod privileges;
mod ps;
mod pull;
mod rename;
mod repair;
mod rollback;
mod run;
mod save;
mod seccomp;
mod settings;
mod shell;
mod size;
mod snapshots;
mod sources;
mod store;
mod usage;
mod users;
mod volumes;
mod wanted;

/// The 64 hex digits of an id; the test fails if it is none.
#[track_caller]
fn id(text: &str) -> String {
    assert!(
        text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()),
        "no id: {text:?}"
    );
    text.to_string()
}
