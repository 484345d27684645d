//! top, stats, cgroup, pause: looking at containers that run, and stopping them for a while.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::eventually;
use crate::support::store::Store;

/// A container that runs a script, and the tupper that runs it.
struct Running<'a> {
    store: &'a Store,
    name: &'a str,
    tupper: Child,
}

impl<'a> Running<'a> {
    fn start(store: &'a Store, name: &'a str, flags: &str, script: &str) -> Running<'a> {
        let line = format!("run --rm --name {name} {flags} busybox sh -c");
        let mut command = store.command(&line, &[&format!("{script}\ntouch /started\nwait")]);
        let tupper = command.stdout(Stdio::null()).spawn().expect("tupper");
        let running = Running { store, name, tupper };
        eventually("it runs", Duration::from_secs(120), || {
            store.run(&format!("inspect {name}")).stdout.contains("\"Running\": true")
                && running.rootfs().join("started").exists()
        });
        running
    }

    fn inspect(&self) -> Value {
        self.store.json(&format!("inspect {}", self.name))[0].clone()
    }

    fn rootfs(&self) -> std::path::PathBuf {
        self.inspect()["Rootfs"].as_str().expect("a path").into()
    }

    fn pid(&self) -> i64 {
        self.inspect()["State"]["Pid"].as_i64().expect("a pid")
    }

    fn end(self) {
        self.store.ok(&format!("rm -f {}", self.name));
    }
}

impl Drop for Running<'_> {
    /// What a failed test leaves must not take the processors from the others.
    fn drop(&mut self) {
        self.store.run(&format!("rm -f {}", self.name));
        let _ = self.tupper.wait();
    }
}

/// The processes whose pid namespace is that of this one, and their processor time in ticks.
fn times(first: i64) -> BTreeMap<i64, u64> {
    let namespace = |pid: i64| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = namespace(first).expect("it lives");
    let pids = fs::read_dir("/proc").expect("processes").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i64>().ok());
    let time = |pid: i64| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some((pid, fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?))
    };
    pids.filter(|pid| namespace(*pid).as_ref() == Some(&ours)).filter_map(time).collect()
}

#[test]
fn top_shows_the_processes_as_they_are_inside_and_outside() {
    let store = Store::new();
    let script = "echo web:x:77:77::/:/bin/sh >> /etc/passwd; su -s /bin/sh web -c 'sleep 1000' & sleep 1001 &";
    let running = Running::start(&store, "box", "", script);
    eventually("both sleep", Duration::from_secs(60), || store.ok("top box args").matches("sleep 100").count() >= 3);
    let lines = store.lines("top box");
    for title in ["USER", "PID", "PPID", "%CPU", "ELAPSED", "TTY", "TIME", "COMMAND"] {
        assert!(lines[0].contains(title), "{}", lines[0]);
    }
    let words: Vec<Vec<&str>> = lines[1..].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0][..3], ["root", "1", "0"], "{lines:?}");
    assert!(
        words.iter().any(|line| line[0] == "web" && line[1] != "1" && line.ends_with(&["sleep", "1000"])),
        "{lines:?}"
    );

    let pid = running.pid();
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("a map");
    let base: u32 = map.split_whitespace().nth(1).expect("a range").parse().expect("a number");
    let outside = store.lines("top box hpid,huser user capeff state seccomp");
    let first: Vec<&str> = outside[1].split_whitespace().collect();
    assert_eq!(first[..3], [pid.to_string().as_str(), base.to_string().as_str(), "root"]);
    assert!(first[3].contains("CHOWN,DAC_OVERRIDE"), "{outside:?}");
    assert!(
        outside.iter().any(|line| line.contains(&format!(" {} ", base + 77)) && line.contains(" none ")),
        "{outside:?}"
    );

    assert!(store.lines("top box comm").contains(&"sleep".to_string()));
    let refused = store.fails(1, "top box nonsense");
    assert!(refused.contains("nonsense: not a descriptor") && refused.contains("hint: there are: args"), "{refused}");
    running.end();
    store.ok("create --name later busybox true");
    for verb in ["top", "stats --no-stream", "cgroup", "pause", "unpause"] {
        let refused = store.fails(1, &format!("{verb} later"));
        assert!(refused.contains("not running, but created"), "{verb}: {refused}");
        store.fails(1, &format!("{verb} nobody"));
    }
}

#[test]
fn stats_say_what_it_uses() {
    let store = Store::alone();
    assert_eq!(store.ok("stats --no-stream --format json"), "[]");
    let busy = "dd if=/dev/zero of=/dev/shm/x bs=1M count=24 2>/dev/null; while :; do :; done & sleep 1000 &";
    let running = Running::start(&store, "busy", "-m 100m --pids-limit 50", busy);
    let one = |line: &str| store.json(line)[0].clone();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_else(|| panic!("{key}: {value}")).to_string();
    let percent = |value: &Value, key: &str| text(value, key).trim_end_matches('%').parse::<f64>().expect("a number");
    eventually("it has used time", Duration::from_secs(60), || {
        percent(&one("stats --no-stream --format json busy"), "cpu_percent") > 10.0
    });
    let found = one("stats --no-stream --format json");
    assert_eq!((text(&found, "name").as_str(), text(&found, "pids").as_str()), ("busy", "3"), "{found}");
    let memory = text(&found, "mem_usage");
    assert!(memory.ends_with("/ 104.9 MB") || memory.ends_with("/ 105 MB"), "{memory}");
    assert!((24.0..60.0).contains(&percent(&found, "mem_percent")), "24 MiB of 100: {found}");
    assert_eq!(text(&found, "net_io"), "0 B / 0 B");
    assert_eq!(store.lines("stats --no-stream")[0].split("  ").filter(|title| !title.is_empty()).count(), 10);
    running.end();

    // Without a limit no cgroup counts on a host with v1: the processes do.
    let running = Running::start(&store, "free", "--pids-limit -1 --network host", "sleep 1000 & sleep 1000 &");
    let found = one("stats --no-stream --format json free");
    assert_eq!((text(&found, "pids").as_str(), text(&found, "net_io").as_str()), ("3", "-- / --"), "{found}");
    assert!(percent(&found, "mem_percent") < 1.0, "{found}");
    running.end();
}

#[test]
fn stats_go_on_until_they_are_interrupted() {
    let store = Store::new();
    let running = Running::start(&store, "box", "", "sleep 1000 &");
    let mut command = store.command("stats -i 1 box", &[]);
    let stats = command.stdout(Stdio::piped()).spawn().expect("tupper");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(stats.id()).expect("a pid"));
    std::thread::sleep(Duration::from_millis(2500));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("kill");
    let output = stats.wait_with_output().expect("its end");
    let said = String::from_utf8(output.stdout).expect("utf-8");
    assert!(said.matches("CPU %").count() >= 4, "a title and its average, twice at the least: {said}");
    assert!(output.status.success(), "{:?}", output.status);
    // They end with what they are about.
    let mut command = store.command("stats -i 1 box", &[]);
    let mut stats = command.stdout(Stdio::null()).spawn().expect("tupper");
    running.end();
    assert!(stats.wait().expect("its end").success());
}

#[test]
fn the_chain_to_the_cgroups_is_the_kernels() {
    let store = Store::new();
    let running = Running::start(&store, "box", "-m 64m --pids-limit 77", "sleep 1000 & sleep 1000 &");
    let chain = store.json("cgroup --format json box");
    assert_eq!(chain["Pid"].as_i64(), Some(running.pid()));
    let sets = chain["CssSets"].as_array().expect("sets");
    assert_eq!(sets.len(), 1, "all are in the same cgroups: {chain}");
    let tasks: Vec<i64> =
        sets[0]["Tasks"].as_array().expect("tasks").iter().filter_map(|t| t["Tid"].as_i64()).collect();
    assert_eq!(tasks, times(running.pid()).into_keys().collect::<Vec<_>>());
    assert_eq!((&sets[0]["Tasks"][0]["InnerPid"], &sets[0]["Tasks"][0]["Name"]), (&1.into(), &"sh".into()));

    let cgroups = sets[0]["Cgroups"].as_array().expect("cgroups");
    let lines = fs::read_to_string(format!("/proc/{}/cgroup", running.pid())).expect("cgroups");
    assert_eq!(cgroups.len(), lines.lines().count());
    for cgroup in cgroups {
        let Some(directory) = cgroup["Directory"].as_str() else { continue };
        assert_eq!(cgroup["Id"].as_u64(), fs::metadata(directory).ok().map(|found| found.ino()), "{cgroup}");
        let path = cgroup["Path"].as_str().expect("a path");
        assert!(
            lines.lines().any(|line| line.ends_with(path)) && directory.ends_with(path.trim_start_matches('/')),
            "{cgroup}"
        );
        for (file, value) in cgroup["Limits"].as_object().expect("limits") {
            let read = fs::read_to_string(format!("{directory}/{file}")).expect(file);
            assert_eq!(value.as_str(), Some(read.trim()), "{file}");
        }
    }
    let limit = |file: &str| cgroups.iter().find_map(|cgroup| cgroup["Limits"][file].as_str());
    assert_eq!(limit("pids.max"), Some("77"), "{chain}");
    assert_eq!(limit("memory.max").or(limit("memory.limit_in_bytes")), Some("67108864"), "{chain}");
    let drawn = store.ok("cgroup box");
    for words in ["css_set 1: 3 tasks", "pid 1 inside", "limit pids.max = 77", "usage pids.current = 3"] {
        assert!(drawn.contains(words), "{words}: {drawn}");
    }
    running.end();
}

/// Processes all the time, none of which lives for long.
const FORKS: &str = "while :; do (:); (: | :); done & while :; do sleep 0 & done & while :; do :; done &";

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let running = Running::start(&store, "forks", "", FORKS);
    let pid = running.pid();
    for _ in 0..5 {
        assert_eq!(store.ok("pause forks"), "forks");
        let still = times(pid);
        assert!(still.len() >= 4, "{still:?}");
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(times(pid), still, "something went on");
        assert!(store.lines("ps")[1].contains("Paused"));
        assert_eq!(store.json("ps --format json")[0]["State"], "paused");
        assert_eq!(running.inspect()["State"]["Paused"], true);
        assert!(store.fails(1, "pause forks").contains("paused already"));
        assert_eq!(store.ok("unpause forks"), "forks");
        eventually("it goes on", Duration::from_secs(60), || times(pid) != still);
        assert!(store.fails(1, "unpause forks").contains("not paused"));
    }
    assert!(store.lines("ps")[1].contains("Up "));
    running.end();
    before.assert_same(&store.traces());
}

#[test]
fn a_paused_container_can_be_removed_and_its_tupper_killed() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let running = Running::start(&store, "first", "-m 64m", FORKS);
    store.ok("pause first");
    running.end();
    // A process that has ended and that nobody waits for.
    let running = Running::start(&store, "zombie", "", "sleep 1 & touch /started; exec sleep 1000");
    eventually("there is a zombie", Duration::from_secs(60), || {
        store.lines("top zombie state").contains(&"Z".to_string())
    });
    store.ok("pause zombie");
    store.ok("unpause zombie");
    running.end();
    before.assert_same(&store.traces());

    let mut running = Running::start(&store, "second", "-m 64m", FORKS);
    store.ok("pause second");
    running.tupper.kill().expect("kill");
    running.tupper.wait().expect("its end");
    store.ok("store gc");
    before.assert_same(&store.traces());
}
