//! Other processes, and what is shared with them: sockets, keys, terminals.

use std::fs;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};

use super::attack::{Target, on_the_host, program, text};
use crate::support::pty::Pty;

/// A process of the host's root that must be there at the end.
struct Bystander(Child);

impl Bystander {
    fn new() -> Bystander {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Bystander(child.expect("cat"))
    }

    /// Ends when its input ends, and not before.
    fn assert_untouched(mut self) {
        self.0.stdin.take().expect("a pipe").write_all(b"still there\n").expect("it reads");
        assert!(self.0.wait().expect("wait").success());
    }
}

#[test]
fn processes_of_the_host_are_not_signalled_traced_or_seen() {
    let bystander = Bystander::new();
    let target = Target::new();
    let pid = bystander.0.id();
    let script =
        format!("ls -d /proc/[0-9]* | wc -l; kill -0 {pid}; ls /proc/{pid}; kill -KILL -1; kill -KILL {pid}; echo end");
    // One process, and the three of the pipe: its own shell, ls, wc.
    let done = target.sh("", &script);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(lines[0].parse::<u32>().expect("a number") <= 4 && lines[1..] == ["end"], "{done}");
    bystander.assert_untouched();
}

/// CVE-2020-15257: who shares the host's network namespace reaches its abstract sockets.
#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    let name = format!("tupper-escape-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("a socket");
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            listener.accept().expect("a connection").0.write_all(b"the host's shim\n").expect("it reads");
        }
    });
    assert_eq!(on_the_host("connect", &[&name]).ok(), "the host's shim");
    let target = Target::new();
    for flags in ["", "--init", "-u nobody"] {
        let done = target.run(&format!("run --rm {flags} attack /attack/connect {name}")).status(1);
        assert_eq!(done.stdout, "connect: Connection refused\n");
    }
    // With the host's network it is reached, as the documentation says; and so the attack is real.
    let shared = target.run(&format!("run --rm --network host attack /attack/connect {name}"));
    assert_eq!(shared.ok(), "the host's shim");
    server.join().expect("the server");
}

/// keyrings(7): a user's keyring is found by number, by every process with that number in the same user namespace.
#[test]
fn keys_of_the_hosts_root_are_not_found() {
    let name = format!("tupper-escape-{}", std::process::id());
    on_the_host("key", &["add", &name, "the host's key"]).ok();
    let target = Target::new();
    let find = |flags: &str| target.run(&format!("run --rm {flags} attack /attack/key {name}")).stdout;
    let (default, init, host) = (find(""), find("--init"), find("--userns host"));
    on_the_host("key", &["remove", &name]).ok();
    for found in [default, init] {
        assert!(found.contains("session: ") && !found.contains("the host's key"), "{found}");
    }
    // The attack is real: it is found by who has the host's ids.
    assert!(host.contains("the host's key"), "{host}");
}

/// ioctl_tty(2), TIOCSTI: what is typed into the caller's terminal runs when the container has ended.
#[test]
fn nothing_is_typed_into_the_callers_terminal() {
    let target = Target::new();
    // The attack is real, for whoever has the terminal for its controlling one.
    let mut shell = Pty::spawn(&{
        let mut command = Command::new("sh");
        command.args(["-c", "\"$0\" X; read line; echo got:$line", text(&program("type"))]);
        command
    });
    shell.expect("stderr: typed");
    shell.send("\n");
    shell.expect("got:X");
    assert_eq!(shell.wait().0, 0);
    for flags in ["-i", "-it", "-i -u nobody", "-i --init", "-it --init"] {
        let run = target.command(&format!("run --rm {flags} attack /attack/type X"), &[]);
        let words: Vec<String> = std::iter::once(run.get_program()).chain(run.get_args()).map(quoted).collect();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{}; echo end''ed; read line; echo \"got:$line.\"", words.join(" "))]);
        let mut shell = Pty::spawn(&command);
        shell.expect("ended");
        shell.send("\n");
        shell.expect("got:.");
        assert_eq!(shell.wait().0, 0);
    }
}

fn quoted(word: &std::ffi::OsStr) -> String {
    format!("'{}'", word.to_str().expect("utf-8"))
}

#[test]
fn ping_needs_no_capability() {
    let target = Target::new();
    let refused = "ping: done\nraw: Operation not permitted\npacket: Operation not permitted";
    for flags in ["", "-u nobody", "--init", "-u 65534:65534"] {
        assert_eq!(target.run(&format!("run --rm {flags} attack /attack/ping")).ok(), refused);
    }
    // The attack is real: with the capability packets of others are seen.
    assert_eq!(on_the_host("ping", &[]).ok(), "ping: done\nraw: done\npacket: done".replacen("ping: done", &own(), 1));
}

/// Whether the host's root may use ping sockets is the host's setting, which is for none by default.
fn own() -> String {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").expect("a setting");
    let closed = range.split_whitespace().next() != Some("0");
    format!("ping: {}", if closed { "Permission denied" } else { "done" })
}

#[test]
fn what_the_host_shows_of_itself_is_masked() {
    let target = Target::new();
    let kept = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"];
    for path in kept.iter().filter(|path| fs::metadata(path).is_ok()) {
        let done = target.sh("", &format!("head -c1 {path} | wc -c; umount {path}; head -c1 {path} | wc -c"));
        assert_eq!(done.stdout, "0\n0\n", "{done}");
    }
    assert!(fs::read("/proc/interrupts").is_ok_and(|text| !text.is_empty()), "the host's is not empty");
}
