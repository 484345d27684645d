//! shell and run -t: on a real terminal.

use crate::support::pty::Pty;
use crate::support::store::Store;

#[test]
fn a_throwaway_shell_on_a_terminal() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let mut pty = Pty::spawn(&store.command("shell busybox", &[]));
    let cooked = pty.settings();
    pty.send("tty; stty size; echo \"[$TERM]\"; touch /scribble\n");
    assert!(pty.expect("/dev/").is_ascii());
    pty.expect("24 80");
    pty.expect("[xterm]");
    pty.resize(50, 132);
    pty.send("until stty size | grep '^50 13[2]'; do sleep 0.1; done\n");
    pty.expect("50 132");
    // Ctrl-C reaches the process inside and leaves the shell alive.
    pty.send("sh -c 'echo sleeps-$((40 + 1)); exec sleep 1000'; echo interrupted with $?\n");
    pty.expect("sleeps-41");
    pty.send("\x03");
    pty.send("echo still-$((40 + 2))\n");
    pty.expect("still-42");
    pty.send("exit 5\n");
    let (status, seen) = pty.wait();
    assert_eq!(status, 5, "{seen}");
    assert_eq!(pty.settings(), cooked, "the terminal is as it was");
    before.assert_same(&store.traces());
    assert_eq!(store.ok("ps -aq"), "");
}

#[test]
fn a_command_for_the_shell_needs_no_terminal() {
    let store = Store::new();
    assert_eq!(store.ok("shell busybox echo hello"), "hello");
    assert_eq!(store.ok_with("shell busybox sh -c", &["test -t 0 || echo no terminal"]), "no terminal");
    store.run_with("shell busybox sh -c", &["exit 4"]).status(4);
    assert_eq!(store.ok("snapshot ls -q"), "");
}

#[test]
fn without_an_image_it_takes_the_only_or_the_last_one() {
    let store = Store::empty();
    store.fails(125, "shell");
    let image = crate::support::busybox();
    store.ok_with("image import --name busybox", &[image.to_str().expect("plain")]);
    let mut pty = Pty::spawn(&store.command("shell", &[]));
    pty.send("echo in-$((1 + 1)); exit\n");
    pty.expect("in-2");
    assert_eq!(pty.wait().0, 0);
}

#[test]
fn the_terminal_is_restored_whatever_ends_it() {
    let store = Store::new();
    for (keys, ends) in [("exit 0\n", 0), ("kill -9 $$; exit 6\n", 6), ("nosuch; exit\n", 127)] {
        let mut pty = Pty::spawn(&store.command("run -it --rm busybox sh", &[]));
        let cooked = pty.settings();
        pty.send("echo up-$((2 + 3))\n");
        pty.expect("up-5");
        assert_ne!(pty.settings(), cooked, "the outer terminal is raw while it runs");
        pty.send(keys);
        let (status, seen) = pty.wait();
        assert_eq!(status, ends, "{seen}");
        assert_eq!(pty.settings(), cooked, "{keys:?}");
    }
    // A signal that ends tupper itself.
    let mut pty = Pty::spawn(&store.command("run -it --rm --name victim busybox sh", &[]));
    let cooked = pty.settings();
    pty.send("echo up-$((2 + 3))\n");
    pty.expect("up-5");
    let pid = nix::unistd::Pid::from_raw(pty.pid().try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
    pty.send("exit 0\n"); // PID 1 without a handler ignores the forwarded TERM
    pty.wait();
    assert_eq!(pty.settings(), cooked);
}

#[test]
fn a_tty_is_made_without_a_terminal_outside_too() {
    let store = Store::new();
    let done = store.run("run -t --rm busybox tty").status(0);
    assert_eq!(done.stdout.trim(), "/dev/pts/0", "podman-run(1): a pseudo-TTY, whatever standard input is: {done}");
}
