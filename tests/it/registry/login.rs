//! Logging in: on a terminal, through a pipe, and what is not said aloud.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use nix::sys::termios::LocalFlags;

use super::fixture::{Image, registry};
use crate::support::http::{Reply, Server};
use crate::support::pty::Pty;
use crate::support::store::{Store, alone};

/// A registry that lets in `me` with the password `secret`.
fn with_password() -> Server {
    registry(&Image::new(), |asked| {
        // me:secret
        (asked.header("authorization") != Some("Basic bWU6c2VjcmV0"))
            .then(|| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"here\""))
    })
}

#[test]
fn a_password_is_asked_for_without_echo() {
    let (server, store) = (with_password(), Store::empty());
    let (home, tupper) = alone(&store);
    let login = format!("login --tls-verify=false {}", server.host());
    let mut terminal = Pty::spawn(&tupper.command(&login, &[]));
    terminal.expect("Username: ");
    terminal.send("me\n");
    terminal.expect("Password: ");
    terminal.send("secret\n");
    terminal.expect("Login Succeeded!");
    let (status, seen) = terminal.wait();
    assert!(status == 0 && seen.contains("me") && !seen.contains("secret"), "{status}: {seen}");
    let file = home.path().join("run/containers/auth.json");
    assert_eq!(fs::metadata(&file).expect("kept").permissions().mode() & 0o777, 0o600);
    assert_eq!(tupper.ok(&format!("login --get-login {}", server.host())), "me");
    assert!(!store.root().exists(), "a store was made for nothing");
    // Ctrl-C leaves the terminal as it was.
    let mut terminal = Pty::spawn(&tupper.command(&format!("{login} -u me"), &[]));
    let shows = |terminal: &Pty| terminal.settings().local_flags.contains(LocalFlags::ECHO);
    assert!(shows(&terminal));
    terminal.expect("Password: ");
    assert!(!shows(&terminal));
    terminal.send("sec\u{3}");
    terminal.expect("interrupted");
    let (status, seen) = terminal.wait();
    assert!(status == 128 + 2 && !seen.contains("sec") && shows(&terminal), "{status}: {seen}");
    // The name may be given; a wrong password changes nothing.
    let mut terminal = Pty::spawn(&tupper.command(&format!("{login} -u you"), &[]));
    terminal.expect("Password: ");
    terminal.send("wrong\n");
    terminal.expect("does not let us in as you");
    assert_eq!(terminal.wait().0, 1);
    assert_eq!(tupper.ok(&format!("login --get-login {}", server.host())), "me");
    // A pull asks for what --creds leaves out.
    tupper.ok(&format!("logout {}", server.host()));
    let pull = format!("pull --tls-verify=false --creds me {}/a/image:2", server.host());
    let mut terminal = Pty::spawn(&tupper.command(&pull, &[]));
    terminal.expect("Password: ");
    terminal.send("secret\n");
    terminal.expect("does not have it");
    let (status, seen) = terminal.wait();
    assert!(status == 1 && !seen.contains("secret"), "{status}: {seen}");
}

#[test]
fn without_a_terminal_the_password_comes_through_a_pipe() {
    let (server, store) = (with_password(), Store::empty());
    let (home, tupper) = alone(&store);
    let login = |more: &str, input: &str| {
        let file = home.path().join("input");
        fs::write(&file, input).expect("a file");
        let line = format!("login --tls-verify=false {more} {}", server.host());
        tupper.run_reading(&line, File::open(&file).expect("a file"))
    };
    for more in ["", "-u me", "--password-stdin"] {
        let error = login(more, "secret\n").fails(1);
        assert!(error.contains("no terminal to ask on") && error.contains("--password-stdin"), "{error}");
    }
    login("-u me --password-stdin", "").fails(1);
    login("-u me:you --password-stdin", "secret\n").fails(1);
    login("-u me -p secret --password-stdin", "").fails(2);
    assert_eq!(server.asked().len(), 0, "something was asked without a password");
    assert_eq!(login("-u me --password-stdin", "secret\r\n").ok(), "Login Succeeded!");
    assert_eq!(login("-u me -p secret", "").ok(), "Login Succeeded!");
}

#[test]
fn no_error_tells_a_password() {
    let (server, store) = (with_password(), Store::empty());
    let (_home, tupper) = alone(&store);
    for creds in ["hunter2", "me:hunter2", ":hunter2", "hunter2:"] {
        let done = tupper.run(&format!("pull --tls-verify=false --creds {creds} {}/a/image:1", server.host()));
        let as_user = format!("as {creds}").trim_end_matches(':').to_string();
        let said = done.fails(1).replace(&as_user, "");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
