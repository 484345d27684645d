//! A container that a monitor runs: run -d, start, attach, logs, wait, stop, restart.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::support::pty::Pty;
use crate::support::store::Store;
use crate::support::{command, eventually};

use super::id;

const PATIENCE: Duration = Duration::from_secs(120);

/// Ends when it is asked to.
const OBEYS: &str = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";

fn state(store: &Store, name: &str) -> (String, i64) {
    let state = store.json(&format!("inspect {name}"))[0]["State"].clone();
    (state["Status"].as_str().expect("a word").to_string(), state["ExitCode"].as_i64().expect("a number"))
}

fn comes_up(store: &Store, name: &str) {
    eventually("it says that it is up", PATIENCE, || store.ok(&format!("logs {name}")).contains("up"));
}

#[test]
fn it_goes_on_without_the_command_that_made_it() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    // Whoever reads the command's output, or its errors, to the end waits for no container.
    let mut run = store.command("run -d --name web busybox sh -c", &["echo up; exec sleep 1000"]);
    let done = run.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("tupper");
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    let made = id(String::from_utf8(done.stdout).expect("text").trim());
    comes_up(&store, "web");
    assert_eq!(state(&store, "web"), ("running".to_string(), 0));
    assert_eq!(store.json("ps --format json")[0]["Id"], made.as_str());
    let monitor = store.monitor("web");
    let descriptors = std::fs::read_dir(format!("/proc/{monitor}/fd")).expect("its descriptors");
    let leads = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.expect("one").path());
    let leads: Vec<_> = descriptors.filter_map(|entry| leads(entry).ok()).collect();
    assert!(!leads.iter().any(|to| to.starts_with("/dev/pts")), "{leads:?}");
    assert_eq!(std::fs::read_link(format!("/proc/{monitor}/cwd")).expect("a directory"), std::path::Path::new("/"));
    store.ok("stop -t 0 web");
    assert_eq!(state(&store, "web"), ("exited".to_string(), 137));
    assert_eq!(store.ok("logs web"), "up");
    store.ok("rm web");
    before.assert_same(&store.traces());
}

#[test]
fn with_rm_it_goes_at_its_end() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    store.ok("run -d --rm busybox true");
    eventually("it has gone", PATIENCE, || store.ok("ps -aq").is_empty());
    store.ok_with("run -d --rm --name job busybox sh -c", &[OBEYS]);
    comes_up(&store, "job");
    assert_eq!(store.ok("stop job"), "job");
    assert_eq!(store.ok("ps -aq"), "", "gone when stop says so");
    before.assert_same(&store.traces());
    // One whose monitor is killed is cleared away by the next command that writes.
    store.ok("run -d --rm --name job busybox sleep 1000");
    kill(store.monitor("job"), Signal::SIGKILL).expect("killed");
    eventually("it has ended", PATIENCE, || store.ok("ps -q").is_empty());
    store.ok("run --rm busybox true");
    before.assert_same(&store.traces());
}

#[test]
fn what_cannot_start_says_why() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    assert!(store.fails(127, "run -d --rm busybox nosuch").contains("nosuch"));
    assert!(store.fails(126, "run -d --rm busybox /etc").contains("/etc"));
    assert_eq!(store.ok("ps -aq"), "");
    store.fails(127, "run -d --name kept busybox nosuch");
    assert_eq!(state(&store, "kept").0, "created", "as in podman, it is there and was never started");
    store.fails(127, "start kept");
    store.ok("rm kept");
    store.fails(125, "run -d --rm --restart always busybox true");
    store.fails(125, "run -d --restart sometimes busybox true");
    store.fails(125, "start nosuch");
    before.assert_same(&store.traces());
}

#[test]
fn its_output_is_kept() {
    let store = Store::new();
    store.ok_with("run --name job busybox sh -c", &["echo out; echo err >&2; printf 'no end'"]);
    let logs = store.run("logs job").status(0);
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\nno end", "err\n"));
    let logs = store.run("logs -t job").status(0);
    let first = logs.stdout.lines().next().expect("a line");
    let (time, text) = first.split_once(' ').expect("a time and a text");
    assert!(time.starts_with("20") && time.ends_with('Z') && text == "out", "{first}");
    store.ok_with("run --name many busybox sh -c", &["seq 1 1000"]);
    assert_eq!(store.lines("logs -n 2 many"), ["999", "1000"]);
    assert_eq!(store.ok("logs --tail 0 many"), "");
    assert_eq!(store.lines("logs --tail all many").len(), 1000);
    assert_eq!(store.lines("logs --since 1h many").len(), 1000);
    assert_eq!(store.ok("logs --since 2100-01-01T00:00:00Z many"), "");
    assert_eq!(store.ok("logs --until 1h many"), "");
    store.ok("start -a many");
    assert_eq!(store.lines("logs many").len(), 2000, "the next run's is added");
    store.ok("run --name quiet --log-driver none busybox echo x");
    assert!(store.fails(1, "logs quiet").contains("--log-driver none"));
    store.fails(1, "logs nosuch");
}

#[test]
fn where_nobody_looks_a_terminal_has_a_usual_size() {
    let store = Store::alone();
    store.ok_with("run -d -t --name web busybox sh -c", &["stty size; sleep 1000"]);
    eventually("it says how large it is", PATIENCE, || store.ok("logs web").contains("24 80"));
    assert_eq!(store.ok("exec -t web stty size"), "24 80");
    store.ok("rm -f web");
}

#[test]
fn a_log_grows_to_its_limit() {
    let store = Store::new();
    store.ok_with("run --name big --log-opt max-size=100k busybox sh -c", &["seq 1 50000"]);
    let directory =
        store.root().join("fs/containers").join(store.json("inspect big")[0]["Id"].as_str().expect("an id"));
    let sizes = ["log", "log.1"].map(|name| std::fs::metadata(directory.join(name)).map_or(0, |file| file.len()));
    // A read of the command's output is 16 KiB at most, and each line has some 50 bytes before it.
    assert!(sizes[0] < 250_000 && (100_000..250_000).contains(&sizes[1]), "{sizes:?}");
    let lines = store.lines("logs big");
    let last: Vec<String> = (50_001 - lines.len()..=50_000).map(|n| n.to_string()).collect();
    assert!(lines.len() > 2000 && lines == last, "the last lines, all of them, in their order");
    // Who follows loses nothing when a new file begins.
    let script = "while ! test -e /go; do sleep 0.05; done; for i in 1 2 3 4 5 6; do seq 1 3000; sleep 0.2; done";
    store.ok_with("run -d --name slow --log-opt max-size=100k busybox sh -c", &[script]);
    let follower = store.command("logs -f slow", &[]).stdout(Stdio::piped()).spawn().expect("tupper");
    std::thread::sleep(Duration::from_millis(300));
    let root = store.json("inspect slow")[0]["Rootfs"].as_str().expect("a path").to_string();
    std::fs::write(format!("{root}/go"), "").expect("a sign");
    let seen = follower.wait_with_output().expect("its output");
    let seen = String::from_utf8(seen.stdout).expect("text");
    let want: String = (0..6).flat_map(|_| 1..=3000).map(|n| format!("{n}\n")).collect();
    assert!(seen == want, "{} bytes of {}", seen.len(), want.len());
}

#[test]
fn who_follows_sees_it_to_its_end() {
    let store = Store::new();
    store.ok_with("run -d --name web busybox sh -c", &[OBEYS]);
    let mut follower = store.command("logs -f web", &[]).stdout(Stdio::piped()).spawn().expect("tupper");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "up");
    store.ok("stop web");
    assert_eq!(lines.map(|line| line.expect("text")).collect::<Vec<_>>(), ["bye"]);
    assert_eq!(command::wait(follower, "logs -f"), 0);
    assert_eq!(store.lines("logs -f web"), ["up", "bye"], "of one that has ended it is what there is");
}

#[test]
fn stop_asks_and_then_kills() {
    let store = Store::new();
    store.ok_with("run -d --name polite busybox sh -c", &[OBEYS]);
    comes_up(&store, "polite");
    store.ok_with("run -d --name rude busybox sh -c", &["trap '' TERM; echo up; while :; do sleep 0.05; done"]);
    comes_up(&store, "rude");
    assert_eq!(store.lines("stop -t 1 polite rude"), ["polite", "rude"]);
    assert_eq!(state(&store, "polite"), ("exited".to_string(), 7));
    assert_eq!(state(&store, "rude"), ("exited".to_string(), 137));
    assert_eq!(store.ok("stop polite"), "polite", "one that has ended is as it should be");
    let failed = store.run("stop nosuch polite").status(1);
    assert_eq!(failed.stdout, "polite\n");
    assert_eq!(store.ok("stop --ignore nosuch"), "");
    store.ok("start polite");
    comes_up(&store, "polite");
    store.ok("pause polite");
    assert!(store.fails(1, "stop polite").contains("paused"));
    store.ok("unpause polite");
    assert_eq!(store.ok("stop --all").lines().count(), 1);
    // A throwaway in the foreground has no monitor, and is stopped all the same.
    let mut run = store.command("run --rm --name shy busybox sh -c", &[OBEYS]);
    let run = run.stdout(Stdio::null()).spawn().expect("tupper");
    eventually("it runs", PATIENCE, || store.ok("ps").contains("shy"));
    std::thread::sleep(Duration::from_millis(200));
    store.ok("stop shy");
    assert_eq!(command::wait(run, "run --rm"), 7);
}

#[test]
fn restart_is_stop_and_start() {
    let store = Store::new();
    store.ok_with("run -d --name web busybox sh -c", &[&format!("echo run >>/runs; {OBEYS}")]);
    comes_up(&store, "web");
    let before = store.monitor("web");
    assert_eq!(store.ok("restart web"), "web");
    assert_ne!(store.monitor("web"), before);
    eventually("it is up again", PATIENCE, || store.lines("logs web") == ["up", "bye", "up"]);
    store.ok("stop web");
    assert_eq!(store.ok("restart -t 0 web"), "web", "one that has ended is started");
    store.ok("rm -f web");
}

#[test]
fn wait_tells_how_it_ended() {
    let store = Store::new();
    let script = "while ! test -e /go; do sleep 0.05; done; exit";
    let mut waiting = Vec::new();
    for (flags, name, status) in [("-d", "kept", "3"), ("-d --rm", "gone", "4"), ("--rm", "shy", "5")] {
        let mut run =
            store.command(&format!("run {flags} --name {name} busybox sh -c"), &[&format!("{script} {status}")]);
        let run = run.stdout(Stdio::null()).spawn().expect("tupper");
        eventually("it runs", PATIENCE, || state_if_any(&store, name).as_deref() == Some("running"));
        let wait = store.command(&format!("wait {name}"), &[]).stdout(Stdio::piped()).spawn().expect("tupper");
        waiting.push((name, status, run, wait));
    }
    std::thread::sleep(Duration::from_millis(300));
    for (name, status, run, wait) in waiting {
        let root = store.json(&format!("inspect {name}"))[0]["Rootfs"].as_str().expect("a path").to_string();
        std::fs::write(format!("{root}/go"), "").expect("a sign");
        let said = wait.wait_with_output().expect("its end");
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), status, "{name}");
        command::wait(run, "run");
    }
    assert_eq!(store.ok("wait kept kept"), "3\n3", "one that has ended");
    store.ok("create --name new busybox true");
    assert_eq!(store.ok("wait new"), "0", "as docker has it, one that never ran does not run");
    store.fails(1, "wait nosuch");
    assert_eq!(store.ok("wait --ignore nosuch"), "-1");
    store.ok("run -d --name victim busybox sleep 1000");
    let wait = store.command("wait victim", &[]).stdout(Stdio::piped()).spawn().expect("tupper");
    std::thread::sleep(Duration::from_millis(200));
    kill(store.monitor("victim"), Signal::SIGKILL).expect("killed");
    assert_eq!(wait.wait_with_output().expect("its end").stdout, b"137\n");
}

fn state_if_any(store: &Store, name: &str) -> Option<String> {
    let done = store.run(&format!("inspect {name}"));
    let found: Value = serde_json::from_str(&done.stdout).ok()?;
    found[0]["State"]["Status"].as_str().map(str::to_string)
}

#[test]
fn a_policy_starts_it_again() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let restarts = |name: &str| store.json(&format!("inspect {name}"))[0]["RestartCount"].as_i64().expect("a number");
    store.ok_with("run -d --name flaky --restart on-failure:2 busybox sh -c", &["echo x; exit 4"]);
    eventually("it is given up", PATIENCE, || state(&store, "flaky") == ("exited".to_string(), 4));
    assert_eq!((store.lines("logs flaky").len(), restarts("flaky")), (3, 2));
    store.ok("run -d --name fine --restart on-failure busybox true");
    eventually("it has ended", PATIENCE, || state(&store, "fine") == ("exited".to_string(), 0));
    assert_eq!(restarts("fine"), 0);
    store.ok_with("run -d --name always --restart always busybox sh -c", &["echo x; exit 0"]);
    eventually("it was started again", PATIENCE, || restarts("always") >= 2);
    eventually("it waits", PATIENCE, || state(&store, "always").0 == "restarting");
    store.fails(1, "rm always");
    store.ok("stop always");
    assert_eq!(state(&store, "always").0, "exited");
    let count = restarts("always");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(restarts("always"), count, "what was stopped stays so");
    store.ok("start always");
    eventually("it was started again", PATIENCE, || restarts("always") >= 1);
    store.ok("rm -f always");
    // Killed by somebody, it comes back; stopped, it does not.
    store.ok("run -d --name stubborn --restart unless-stopped busybox sleep 1000");
    let pid = store.json("inspect stubborn")[0]["State"]["Pid"].as_i64().expect("a pid");
    kill(nix::unistd::Pid::from_raw(pid.try_into().expect("a pid")), Signal::SIGKILL).expect("killed");
    eventually("it runs again", PATIENCE, || restarts("stubborn") == 1 && state(&store, "stubborn").0 == "running");
    store.ok("stop -t 0 stubborn");
    assert_eq!(state(&store, "stubborn"), ("exited".to_string(), 137));
    store.ok("rm flaky fine stubborn");
    before.assert_same(&store.traces());
}

#[test]
fn one_can_go_to_it_and_away_again() {
    let store = Store::new();
    store.ok("run -dit --name shell busybox sh");
    let mut pty = Pty::spawn(&store.command("attach shell", &[]));
    let cooked = pty.settings();
    pty.send("stty size; echo at-$((1 + 1))\n");
    pty.expect("24 80");
    pty.expect("at-2");
    assert_ne!(pty.settings(), cooked);
    pty.resize(40, 100);
    pty.send("until stty size | grep '^40 10[0]'; do sleep 0.1; done\n");
    pty.expect("40 100");
    pty.send("\x10\x11");
    assert_eq!(pty.wait().0, 0);
    assert_eq!(pty.settings(), cooked);
    assert_eq!(state(&store, "shell").0, "running");
    let mut pty = Pty::spawn(&store.command("attach --detach-keys ctrl-x shell", &[]));
    pty.send("\x15echo back-$((2 + 2))\n");
    pty.expect("back-4");
    pty.send("\x18");
    assert_eq!(pty.wait().0, 0);
    // Two at once see the same.
    let mut one = Pty::spawn(&store.command("attach shell", &[]));
    let mut two = Pty::spawn(&store.command("attach shell", &[]));
    two.send("\x15echo both-$((3 + 3))\n");
    two.expect("both-6");
    one.expect("both-6");
    one.send("exit 9\n");
    assert_eq!((one.wait().0, two.wait().0), (9, 9));
    assert!(store.fails(125, "attach shell").contains("does not run"));
    let mut pty = Pty::spawn(&store.command("start -ai shell", &[]));
    pty.send("echo again-$((4 + 4)); exit 8\n");
    pty.expect("again-8");
    assert_eq!(pty.wait().0, 8);
}

#[test]
fn its_input_is_who_gives_it() {
    let store = Store::new();
    let feed = |mut command: Command, text: &str| {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tupper");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        child
    };
    let run = feed(store.command("run -i --name cat busybox cat", &[]), "hello\n");
    let said = run.wait_with_output().expect("its end");
    assert_eq!((said.status.code(), said.stdout.as_slice()), (Some(0), &b"hello\n"[..]));
    // More than any buffer holds.
    let long: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    let mut run = store.command("run -i --name sum busybox sh -c", &["sleep 0.5; md5sum"]);
    let mut run: Child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tupper");
    run.stdin.take().expect("piped").write_all(long.as_bytes()).expect("written");
    let mut sum = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("md5sum");
    sum.stdin.take().expect("piped").write_all(long.as_bytes()).expect("written");
    assert_eq!(run.wait_with_output().expect("its end").stdout, sum.wait_with_output().expect("its end").stdout);
    // Who goes away leaves the input open for the next.
    store.ok("run -di --name reader busybox cat");
    let first = feed(store.command("attach reader", &[]), "one\n");
    eventually("the first line is there", PATIENCE, || store.ok("logs reader") == "one");
    let second = feed(store.command("attach reader", &[]), "two\n");
    eventually("the second line is there", PATIENCE, || store.ok("logs reader") == "one\ntwo");
    store.ok("stop -t 0 reader");
    let [first, second] = [first, second].map(|child| child.wait_with_output().expect("its end"));
    assert_eq!((first.status.code(), second.status.code()), (Some(137), Some(137)));
    assert!(first.stdout.ends_with(b"two\n"), "{first:?}");
    assert_eq!(store.run("run --name blind busybox cat").status(0).stdout, "", "without -i there is none");
}

#[test]
fn nothing_is_lost_on_the_way() {
    let store = Store::new();
    // A reader that is slow, and more than any buffer holds.
    let run = "run --name chatty busybox sh -c 'seq 1 100000; seq 1 50000 >&2; exit 3'";
    let tupper = format!("{} --root {}", env!("CARGO_BIN_EXE_tupper"), store.root().display());
    let script = format!("({tupper} {run} 2>err; echo $? >status) | (sleep 1; cat >out)");
    let dir = tempfile::tempdir().expect("a directory");
    let done = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).status().expect("sh");
    assert!(done.success());
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect(name);
    let numbers = |last: u32| (1..=last).map(|n| format!("{n}\n")).collect::<String>();
    assert_eq!(read("status"), "3\n");
    assert!(read("out") == numbers(100_000) && read("err") == numbers(50_000));
    let logs = store.run("logs chatty").status(0);
    assert!(logs.stdout == numbers(100_000) && logs.stderr == numbers(50_000));
    // A reader that goes away holds up nobody.
    let mut run = store.command("run --name broken busybox sh -c", &["seq 1 100000; exit 4"]);
    let mut run = run.stdout(Stdio::piped()).spawn().expect("tupper");
    let mut first = [0; 2];
    run.stdout.take().expect("piped").read_exact(&mut first).expect("a line");
    assert_eq!(command::wait(run, "run"), 4);
    // A client that is stopped holds up the command, and not its end.
    let mut run = store.command("run --name held busybox sh -c", &["while :; do seq 1 1000; done"]);
    let run = run.stdout(Stdio::null()).spawn().expect("tupper");
    eventually("it runs", PATIENCE, || state_if_any(&store, "held").as_deref() == Some("running"));
    let client = nix::unistd::Pid::from_raw(run.id().cast_signed());
    kill(client, Signal::SIGSTOP).expect("stopped");
    store.ok("stop -t 0 held");
    store.ok("rm held");
    kill(client, Signal::SIGCONT).expect("goes on");
    assert_eq!(command::wait(run, "run"), 137);
}

#[test]
fn signals_reach_it_through_who_is_at_it() {
    let store = Store::new();
    for (flags, sent, want) in [("", Signal::SIGTERM, 7), ("--sig-proxy=false", Signal::SIGINT, 130)] {
        let mut run = store.command(&format!("run --name job {flags} busybox sh -c"), &[OBEYS]);
        let run = run.stdout(Stdio::null()).spawn().expect("tupper");
        eventually("it runs", PATIENCE, || state_if_any(&store, "job").as_deref() == Some("running"));
        comes_up(&store, "job");
        kill(nix::unistd::Pid::from_raw(run.id().cast_signed()), sent).expect("sent");
        assert_eq!(command::wait(run, "run"), want);
        assert_eq!(state(&store, "job").0 == "running", !flags.is_empty(), "{flags}");
        store.ok("rm -f job");
    }
    // The monitor hands on what it gets itself: a host that shuts down asks everybody.
    store.ok_with("run -d --name job --restart always busybox sh -c", &[OBEYS]);
    comes_up(&store, "job");
    kill(store.monitor("job"), Signal::SIGTERM).expect("sent");
    eventually("it has ended", PATIENCE, || state(&store, "job") == ("exited".to_string(), 7));
}

/// The private memory of a process in kB, without what the linker relocates at its start: of a debug build, that is a
/// megabyte more than of a release build.
fn written_by(process: nix::unistd::Pid) -> u64 {
    let memory = std::fs::read_to_string(format!("/proc/{process}/smaps")).expect("its memory");
    let (mut writable, mut private) = (false, 0);
    for line in memory.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [range, access, ..] if range.contains('-') && access.len() == 4 => writable = access.starts_with("rw"),
            ["Private_Dirty:" | "Private_Clean:", size, "kB"] if writable => {
                private += size.parse::<u64>().expect("a number");
            }
            _ => {}
        }
    }
    private
}

#[test]
fn many_at_once_leave_nothing() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    for _ in 0..60 {
        store.ok("run -d busybox sleep 1000");
    }
    let ids = store.lines("ps -q --no-trunc");
    assert_eq!(ids.len(), 60);
    let private = written_by(store.monitor(&ids[0]));
    assert!(private < 512, "a monitor has written {private} kB");
    assert_eq!(store.lines("stop --all -t 0").len(), 60);
    assert_eq!(store.ok("ps -q"), "");
    store.ok(&format!("rm {}", ids.join(" ")));
    before.assert_same(&store.traces());
}
