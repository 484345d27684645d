//! exec: another command in a running container is as its own is.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::pty::Pty;
use crate::support::store::Store;
use crate::support::{command, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

fn first(store: &Store, name: &str) -> i64 {
    store.json(&format!("inspect {name}"))[0]["State"]["Pid"].as_i64().expect("a pid")
}

/// What status(5) says of privileges.
fn privileges(status: &str) -> Vec<&str> {
    let names = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:"];
    status.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).collect()
}

#[test]
fn it_is_where_and_what_the_container_is() {
    let store = Store::new();
    for (nth, flags) in [
        "",
        "--userns host",
        "--userns keep-id",
        "--network host",
        "--privileged",
        "--read-only",
        "--init",
        "-u 33:34",
        "--security-opt no-new-privileges=false",
        "--security-opt seccomp=unconfined --cap-drop all",
        "-m 64m --cpus 1 --pids-limit 50 --ulimit nofile=100:200",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("c{nth}");
        // The command shows what it is itself.
        let show =
            "cat /proc/self/status >/tmp/status; cat /proc/self/limits >/tmp/limits; touch /tmp/there; exec sleep 1000";
        store.ok_with(&format!("run -d --tmpfs /tmp {flags} --name {name} busybox sh -c"), &[show]);
        let exec = |script: &str| store.ok_with(&format!("exec {name} sh -c"), &[script]);
        eventually("it runs", PATIENCE, || exec("ls /tmp").contains("there"));
        let pid = first(&store, &name);
        for namespace in ["user", "mnt", "uts", "ipc", "net", "cgroup", "pid"] {
            let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("a namespace");
            let ours = exec(&format!("readlink /proc/self/ns/{namespace}"));
            assert_eq!(ours, theirs.to_str().expect("plain"), "{flags}: {namespace}");
        }
        let (theirs, ours) = (exec("cat /tmp/status"), exec("cat /proc/self/status"));
        assert_eq!(privileges(&ours), privileges(&theirs), "{flags}");
        assert_eq!(exec("cat /proc/self/limits"), exec("cat /tmp/limits"), "{flags}");
        assert_eq!(exec("cat /proc/self/cgroup"), exec("cat /proc/1/cgroup"), "{flags}");
        let home = if flags == "-u 33:34" { "/var/www" } else { "/root" };
        let want = format!("{}\n0022\n/\n{home} tupper", exec("hostname"));
        assert_eq!(exec("hostname; umask; pwd; echo $HOME $container"), want, "{flags}");
        let outside = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
        let mut sleeping = store.command(&format!("exec {name} sleep 1000"), &[]).spawn().expect("tupper");
        let second = eventually_second(&store, &name);
        assert_eq!(std::fs::read_to_string(format!("/proc/{second}/cgroup")).expect("its cgroups"), outside, "{flags}");
        // Killed, it takes its command along, and nothing else.
        sleeping.kill().and_then(|()| sleeping.wait()).expect("killed");
        eventually("it has ended", PATIENCE, || !std::path::Path::new(&format!("/proc/{second}")).exists());
        assert_eq!(exec("echo still there"), "still there");
        store.ok(&format!("rm -f {name}"));
    }
}

/// The host's number of a `sleep 1000` that is not the container's first process.
fn eventually_second(store: &Store, name: &str) -> i64 {
    let mut found = None;
    eventually("it runs", PATIENCE, || {
        let first = first(store, name);
        let lines = store.lines(&format!("top {name} hpid args"));
        let mut sleeping = lines.iter().filter(|line| line.contains("sleep 1000"));
        found = sleeping.find_map(|line| {
            line.split_whitespace().next()?.parse::<i64>().ok().filter(|pid| {
                *pid != first
                    && std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
                        let inner = text.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
                        // Neither PID 1 nor what init runs.
                        inner.split_whitespace().last().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 3)
                    })
            })
        });
        found.is_some()
    });
    found.expect("found")
}

#[test]
fn its_flags_are_over_those_of_the_container() {
    let store = Store::new();
    store.ok("run -d --name c -e A=1 -w /tmp -u 33 busybox sleep 1000");
    let exec = |flags: &str, script: &str| store.ok_with(&format!("exec {flags} c sh -c"), &[script]);
    assert_eq!(exec("", "echo $A $(pwd) $(id -u)"), "1 /tmp 33");
    assert_eq!(exec("-e A=2 -e B=3 -w / -u root", "echo $A$B $(pwd) $(id -u)"), "23 / 0");
    assert_eq!(exec("-u 7:8", "id -u; id -g"), "7\n8");
    let bounding = |flags: &str| exec(flags, "grep CapBnd /proc/self/status");
    assert_ne!(bounding("--privileged"), bounding(""));
    store.run("exec -u nobodythere c true").fails(125);
    store.run("exec -w relative c true").fails(125);
    store.run("exec c nosuch").fails(127);
    store.run("exec c /etc").fails(126);
    store.run_with("exec c sh -c", &["exit 5"]).status(5);
    store.run_with("exec c sh -c", &["kill -9 $$"]).status(137);
    store.run("exec nosuch true").fails(125);
    store.run("exec c").status(125);
    store.ok("pause c");
    assert!(store.run("exec c true").fails(125).contains("paused"));
    store.ok("unpause c");
    store.ok("stop -t 0 c");
    assert!(store.run("exec c true").fails(125).contains("does not run"));
    assert!(store.run("exec c true").stderr.contains("tupper start c"));
}

#[test]
fn its_streams_are_the_callers() {
    let store = Store::new();
    store.ok("run -d --name c busybox sleep 1000");
    let mut cat = store.command("exec -i c sh -c", &["cat; echo err >&2; exit 3"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tupper");
    let long: String = (0..100_000).map(|n| format!("{n}\n")).collect();
    let mut input = cat.stdin.take().expect("piped");
    let text = long.clone();
    let feeder = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let done = cat.wait_with_output().expect("its end");
    feeder.join().expect("the feeder").expect("written");
    assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(3), &b"err\n"[..]));
    assert!(done.stdout == long.as_bytes());
    assert_eq!(store.ok("exec c cat"), "", "without -i there is nothing to read");
    let mut pty = Pty::spawn(&store.command("exec -it c sh", &[]));
    let cooked = pty.settings();
    pty.send("tty; stty size; echo \"[$TERM]\"\n");
    pty.expect("/dev/pts/");
    pty.expect("24 80");
    pty.expect("[xterm]");
    pty.resize(30, 90);
    pty.send("until stty size | grep '^30 9[0]'; do sleep 0.1; done\n");
    pty.expect("30 90");
    pty.send("sh -c 'echo sleeps-$((40 + 1)); exec sleep 1000'\n");
    pty.expect("sleeps-41");
    pty.send("\x03");
    pty.send("echo still-$((40 + 2))\n");
    pty.expect("still-42");
    pty.send("exit 6\n");
    assert_eq!(pty.wait().0, 6);
    assert_eq!(pty.settings(), cooked);
    // A signal reaches the command.
    let trap = "trap 'exit 9' TERM; touch /tmp/up; while :; do sleep 0.05; done";
    let waiting = store.command("exec c sh -c", &[trap]).stdout(Stdio::null()).spawn().expect("tupper");
    eventually("it is up", PATIENCE, || store.ok("exec c ls /tmp").contains("up"));
    kill(Pid::from_raw(waiting.id().cast_signed()), Signal::SIGTERM).expect("sent");
    assert_eq!(command::wait(waiting, "exec"), 9);
    store.ok("rm -f c");
}

#[test]
fn a_detached_one_stays_until_the_container_ends() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    store.ok("run -d --name c --init --pids-limit 20 busybox sleep 1000");
    let id = store.ok_with(
        "exec -d c sh -c",
        &["readlink /proc/self/fd/0 >/fds; readlink /proc/self/fd/2 >>/fds; echo x; exec sleep 2000"],
    );
    assert_eq!(id.len(), 64);
    eventually("it runs", PATIENCE, || store.ok("top c args").contains("sleep 2000"));
    assert_eq!(store.ok("exec c cat /fds"), "/dev/null\n/dev/null");
    store.run("exec -d c nosuch").fails(127);
    // The limits of the container are the commands'.
    let forks = store.run_with("exec c sh -c", &["for i in $(seq 30); do sleep 100 & done; wait"]);
    assert_ne!(forks.status, 0);
    assert!(forks.stderr.contains("fork"), "{forks}");
    // Its end is that of all that runs in it.
    let sleeping = store.command("exec c sleep 3000", &[]).spawn().expect("tupper");
    eventually("it runs", PATIENCE, || store.ok("top c args").contains("sleep 3000"));
    store.ok("stop -t 0 c");
    assert_eq!(command::wait(sleeping, "exec"), 137);
    store.ok("rm c");
    before.assert_same(&store.traces());
}

#[test]
fn a_throwaway_in_the_foreground_can_be_joined() {
    let store = Store::new();
    let mut run =
        store.command("run --rm --name c busybox sh -c", &["while ! test -e /go; do sleep 0.05; done; exit 4"]);
    let run = run.stdout(Stdio::null()).spawn().expect("tupper");
    eventually("it runs", PATIENCE, || store.run("exec c true").status == 0);
    store.ok("exec c touch /go");
    assert_eq!(command::wait(run, "run"), 4);
}
