//! The pty: a test's own pair stands in for a person's terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};
use tupper::sandbox::Spec;

use super::harness::{Outcome, Root, Supervisor, eventually, shell, wait_for};

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

struct Person {
    keyboard: File,
    terminal: OwnedFd,
    supervisor: Supervisor,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn sit_down(root: &Root, script: &str) -> Person {
    let OpenptyResult { master, slave } = openpty(Some(&size(30, 99)), None).expect("a pty");
    let spec = Spec { tty: true, interactive: true, ..shell(script) };
    let supervisor = root.spawn_on(spec, Some(slave.try_clone().expect("dup")));
    Person { keyboard: master.into(), terminal: slave, supervisor }
}

impl Person {
    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("type");
    }

    fn sees(&mut self, text: &str) -> String {
        wait_for(&mut self.keyboard, text)
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).expect("settings").local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// The outcome, once the terminal is as it was.
    fn leaves(self) -> Outcome {
        let terminal = self.terminal.try_clone().expect("dup");
        let outcome = self.supervisor.finish();
        let flags = tcgetattr(&terminal).expect("settings").local_flags;
        assert!(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO), "the terminal is put back");
        outcome
    }
}

#[test]
fn a_terminal_of_its_own() {
    let root = Root::new();
    let mut person = sit_down(
        &root,
        "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; stty size; \
                                      stat -c %T /dev/console; ls /dev/pts; cat /dev/tty & sleep 0; exit 5",
    );
    let seen = person.sees("ptmx");
    let lines: Vec<&str> = seen.lines().map(str::trim_end).collect();
    assert_eq!(lines[..4], ["/dev/pts/0", "all", "30 99", "0"], "{seen:?}");
    assert_eq!(person.leaves().end, "code 5 false");
}

#[test]
fn keys_arrive_and_the_window_follows() {
    let root = Root::new();
    let script = "trap 'stty size' WINCH; echo ready; while read line; do echo \"<$line>\"; done; echo bye";
    let mut person = sit_down(&root, script);
    person.sees("ready");
    assert!(person.is_raw(), "the sandbox's terminal does the editing");
    person.types("one\r");
    person.sees("<one>");
    // SAFETY: TIOCSWINSZ takes a pointer to a live struct winsize.
    #[expect(unsafe_code, reason = "an ioctl")]
    unsafe { set_window_size(person.keyboard.as_raw_fd(), &size(40, 120)) }.expect("resize");
    person.supervisor.signal(Signal::SIGWINCH);
    person.sees("40 120");
    person.types("\x04");
    person.sees("bye");
    assert_eq!(person.leaves().end, "code 0 false");
}

#[test]
fn control_keys_are_the_sandboxs() {
    let root = Root::new();
    let mut person = sit_down(&root, "trap 'echo interrupted' INT; echo ready; sleep 30; echo after; read x");
    person.sees("ready");
    person.types("\x03");
    person.sees("after");
    person.types("\r");
    assert_eq!(person.leaves().end, "code 0 false");
}

#[test]
fn no_output_is_lost_at_the_end() {
    let root = Root::new();
    for _ in 0..5 {
        let mut person = sit_down(&root, "seq 1 5000; exit 3");
        let seen = person.sees("\n5000\r");
        assert_eq!(seen.lines().count(), 5000);
        assert_eq!(person.leaves().end, "code 3 false");
    }
}

#[test]
fn the_terminal_is_put_back_when_the_start_fails_or_a_signal_ends_it() {
    let root = Root::new();
    let mut person = sit_down(&root, "echo ready; exec sleep 600");
    person.sees("ready");
    eventually("raw mode", || person.is_raw());
    for _ in 0..3 {
        person.supervisor.signal_and_wait(Signal::SIGTERM);
    }
    assert_eq!(person.leaves().end, "signal 9 false");

    let OpenptyResult { master: _master, slave } = openpty(None, None).expect("a pty");
    let spec = Spec { tty: true, interactive: true, args: vec!["nosuch".into()], ..shell("") };
    let outcome = root.spawn_on(spec, Some(slave.try_clone().expect("dup"))).finish();
    assert!(outcome.end.starts_with("error 127"), "{outcome:?}");
    assert!(tcgetattr(&slave).expect("settings").local_flags.contains(LocalFlags::ICANON));
}

/// A supervisor whose standard input and output are a socket: what a script has that asks for a terminal.
fn scripted(root: &Root, script: &str) -> (std::os::unix::net::UnixStream, Supervisor) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let spec = Spec { tty: true, interactive: true, ..shell(script) };
    (ours, root.spawn_on(spec, Some(theirs.into())))
}

#[test]
fn the_end_of_input_is_passed_on() {
    let root = Root::new();
    for input in ["word\n", "word", ""] {
        let (mut ours, supervisor) = scripted(&root, "stty -echo; echo ready; cat; echo; echo end");
        // The shell turns the echo off before anything is typed.
        let mut ready = Vec::new();
        while !ready.ends_with(b"ready\r\n") {
            let mut byte = [0];
            ours.read_exact(&mut byte).expect("read");
            ready.extend(byte);
        }
        ours.write_all(input.as_bytes()).expect("write");
        ours.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let mut seen = String::new();
        ours.read_to_string(&mut seen).expect("read");
        assert!(seen.starts_with(input.trim_end()) && seen.trim_end().ends_with("end"), "{input:?}: {seen:?}");
        assert_eq!(supervisor.finish().end, "code 0 false");
    }
}

#[test]
fn a_slow_reader_gets_everything() {
    let root = Root::new();
    let (mut ours, supervisor) = scripted(&root, "seq 1 60000");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut seen = String::new();
    ours.read_to_string(&mut seen).expect("read");
    assert_eq!(seen.lines().count(), 60000);
    assert_eq!(supervisor.finish().end, "code 0 false");
}

#[test]
fn a_reader_that_leaves_does_not_hold_it_up() {
    let root = Root::new();
    let (ours, supervisor) = scripted(&root, "seq 1 60000; exit 6");
    drop(ours);
    assert_eq!(supervisor.finish().end, "code 6 false");
}
