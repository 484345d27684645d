//! What the caller has open, and what tupper has: no way to the host's files (CVE-2024-21626).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::attack::{Target, program, text};
use crate::support::command::{Done, finish};
use crate::support::disk::scratch;

/// As many descriptors as tupper and its caller could have, and some more.
const DESCRIPTORS: std::ops::Range<i32> = 3..32;

/// Runs the command with the directory open as descriptor 7, which does not close at exec.
fn leaking(dir: &Path, command: &Command) -> Done {
    let mut caller = Command::new("sh");
    caller.args(["-c", "exec 7<\"$0\"; exec \"$@\""]).arg(dir).arg(command.get_program()).args(command.get_args());
    caller.stdin(Stdio::null());
    finish(caller)
}

/// A directory of the host with a program that tells where it comes from.
fn trap() -> tempfile::TempDir {
    let dir = scratch();
    fs::copy(program("swap"), dir.path().join("program")).expect("a program");
    fs::write(dir.path().join("secret"), "the host's\n").expect("a file");
    dir
}

#[test]
fn no_descriptor_of_the_caller_arrives() {
    let target = Target::new();
    let dir = trap();
    // The attack is real: whatever the caller starts has it.
    let mut command = Command::new("cat");
    command.arg("/proc/self/fd/7/secret");
    assert_eq!(leaking(dir.path(), &command).ok(), "the host's");
    let script = "ls -l /proc/self/fd; cat /proc/self/fd/*/secret";
    for flags in ["", "--init"] {
        let run = target.command(&format!("run --rm {flags} attack sh -c"), &[script]);
        let done = leaking(dir.path(), &run).status(1);
        assert!(!done.stdout.contains(text(dir.path())) && !done.stdout.contains("the host's"), "{done}");
        // 0, 1, 2 and the directory that ls reads.
        assert_eq!(done.stdout.lines().filter(|line| line.starts_with('l')).count(), 4, "{done}");
    }
}

#[test]
fn no_descriptor_is_a_working_directory() {
    let target = Target::new();
    let dir = trap();
    let mut command = Command::new("sh");
    command.args(["-c", "cd /proc/self/fd/7 && cat secret"]);
    assert_eq!(leaking(dir.path(), &command).ok(), "the host's");
    for number in DESCRIPTORS {
        for place in ["self", "1"] {
            let line = format!("run --rm -w /proc/{place}/fd/{number} attack cat secret");
            let error = leaking(dir.path(), &target.command(&line, &[])).fails(125);
            assert!(error.contains(&format!("/proc/{place}/fd/{number}")), "{error}");
        }
    }
    // The same through a link of the image.
    target.import("linked", |root| symlink("/proc/self/fd/7", root.join("work")).expect("a link"));
    let error = leaking(dir.path(), &target.command("run --rm -w /work linked cat secret", &[])).fails(125);
    assert!(error.contains("/work"), "{error}");
}

#[test]
fn no_descriptor_leads_to_the_command() {
    let target = Target::new();
    let dir = trap();
    // The attack is real: a program is found through a directory that is open. 2 is its own answer.
    let through = "/proc/self/fd/7/program";
    assert_eq!(leaking(dir.path(), &Command::new(through)).status, 2);
    let trapped = dir.path().join("program");
    let up = "../".repeat(10);
    for flags in ["", "--init"] {
        let line = format!("run --rm {flags} attack {through}");
        leaking(dir.path(), &target.command(&line, &[])).fails(127);
        // tupper's own: the store's, the root's before it was one.
        for number in DESCRIPTORS {
            let line = format!("run --rm {flags} attack /proc/self/fd/{number}/{up}{}", text(&trapped));
            leaking(dir.path(), &target.command(&line, &[])).fails(127);
        }
    }
    // The interpreter of a script is looked up by the kernel, after everything that tupper could check.
    target.import("script", |root| {
        fs::write(root.join("script"), format!("#!{through}\n")).expect("a script");
        fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o755)).expect("chmod");
    });
    leaking(dir.path(), &target.command("run --rm script /script", &[])).fails(127);
}
