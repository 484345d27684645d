//! What the tests of a real kernel stand on: disks of their own, the binary, what a run may leave, trees, terminals.
//!
//! Nothing here skips: without root, btrfs or a Debian package the test that asked fails and says what is missing.

pub mod archives;
pub mod canary;
pub mod certificates;
pub mod command;
pub mod disk;
pub mod http;
pub mod pty;
pub mod registry;
pub mod store;
pub mod traces;
pub mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Fails the test, with what to type, unless it runs as root.
pub fn need_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root; type: sudo make test");
}

/// Runs a program that has to succeed and returns what it printed, trimmed.
pub fn sh(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}; type: make setup"));
    assert!(out.status.success(), "{program} {args:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_string()
}

/// Asks again until it holds, or the test fails after `limit`.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The tarball of the busybox recipe.
pub fn busybox() -> PathBuf {
    recipe("busybox")
}

/// The tarball of the debian recipe.
pub fn debian() -> PathBuf {
    recipe("debian")
}

/// Builds the recipe if its output is missing or older; the recipe itself holds the lock.
fn recipe(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name);
    sh(folder.join("build").to_str().expect("a plain path"), &[]);
    folder.join("out").join(format!("{name}.tar"))
}
