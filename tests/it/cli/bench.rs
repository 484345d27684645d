//! bench snapshot, run and import: what they say, what they draw, and that nothing of it stays.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::command::{Tupper, wait};
use crate::support::disk::scratch;
use crate::support::store::Store;
use crate::support::{busybox, eventually};

/// Names in `staging/`: what is under way.
fn staging(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.root().join("fs/staging")).expect("the shelf");
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing of a bench is there, and the kernel has done its part.
#[track_caller]
fn nothing_is_left(store: &Store, subvolumes: &[String]) {
    assert_eq!(staging(store), [""; 0]);
    assert_eq!(store.ok("snapshot ls -q"), "");
    assert_eq!(store.ok("ps -aq"), "");
    store.ok("store check");
    eventually("the space is given back", Duration::from_secs(120), || store.disk.subvolumes() == subvolumes);
}

/// Each series as `OPERATION BY`, checked for the fields that every one has.
fn series(report: &Value) -> Vec<String> {
    let all = report["Series"].as_array().unwrap_or_else(|| panic!("series: {report}"));
    let names = all.iter().map(|one| {
        let number = |field: &str| one[field].as_f64().unwrap_or_else(|| panic!("{field}: {one}"));
        let fields = ["Min", "P50", "P90", "P99", "Max"].map(number);
        assert!(fields[0] > 0.0 && fields.is_sorted(), "{one}");
        assert!(number("PerSecond") > 0.0 && number("Mean") <= number("Max"), "{one}");
        let counts = one["Histogram"].as_array().expect("buckets").iter().map(|bucket| bucket["Count"].as_u64());
        assert_eq!(counts.map(|count| count.expect("a number")).sum::<u64>(), one["Samples"], "{one}");
        format!("{} {}", one["Operation"].as_str().expect("text"), one["By"].as_str().expect("text"))
    });
    names.collect()
}

/// Elements that are closed in the order in which they were opened, attributes in quotes, no bare `&` or `<`.
fn require_well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml.trim_end();
    while let Some((text, tag)) = rest.split_once('<') {
        for reference in text.split('&').skip(1) {
            let (name, _) = reference.split_once(';').unwrap_or_else(|| panic!("a bare &: {text}"));
            assert!(["amp", "lt", "gt", "quot"].contains(&name), "{name}");
        }
        assert!(!open.is_empty() || text.trim().is_empty(), "text outside: {text}");
        let (tag, after) = tag.split_once('>').expect("a tag that ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        assert!(!tag.contains('<'), "{tag}");
        if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().expect("a name"));
        }
    }
    assert!(open.is_empty() && rest.is_empty(), "{open:?} {rest:?}");
}

#[test]
fn snapshots_are_measured_beside_every_other_way() {
    let store = Store::new();
    let before = store.disk.subvolumes();
    let plots = scratch();
    let plot = plots.path().join("a plot.svg");
    let line =
        "bench snapshot --count 3 --parallel 2 --live 2 --against cp,reflink,overlay,btrfs-progs,cp --format json";
    let report = store.run_with(line, &["--plot", plot.to_str().expect("a plain path")]).ok();
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let ways = ["tupper, a call", "tupper, a process", "cp -a", "cp -a --reflink", "overlayfs", "btrfs-progs"];
    let mut expected: Vec<String> =
        ways.iter().flat_map(|way| [format!("create {way}"), format!("remove {way}")]).collect();
    let mut found = series(&report);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert!(report["Series"].as_array().expect("series").iter().all(|one| one["Samples"] == 3), "{report}");
    assert_eq!((&report["Asked"]["Parallel"], &report["Asked"]["Live"]), (&2.into(), &2.into()));
    let machine = &report["Machine"];
    assert_eq!(machine["NodeSize"], 8192);
    assert!(machine["Kernel"].as_str().is_some_and(|kernel| kernel.starts_with("Linux ")), "{machine}");
    assert!(machine["Device"].as_str().is_some_and(|device| device.starts_with("/dev/loop")), "{machine}");
    assert!(machine["MountOptions"].as_array().is_some_and(|all| all.contains(&"noatime".into())), "{machine}");
    let svg = fs::read_to_string(&plot).expect("the plot");
    require_well_formed(&svg);
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""), "{svg}");
    for text in ["busybox", "cp -a --reflink", "8 KiB nodes", " ms<", "prefers-color-scheme:dark"] {
        assert!(svg.contains(text), "{text}: {svg}");
    }
    nothing_is_left(&store, &before);
}

#[test]
fn the_table_has_figures_and_a_histogram_of_each() {
    let store = Store::new();
    let before = store.disk.subvolumes();
    store.ok("snapshot create busybox web");
    let table = store.ok("bench snapshot --source web --count 4");
    store.ok("snapshot rm web");
    for text in ["like web", "8 KiB nodes", "WHAT", "P99", "OPS/S", "one at a time, beside no other snapshot"] {
        assert!(table.contains(text), "{text}: {table}");
    }
    assert_eq!(
        table.lines().filter(|line| line.contains("tupper, a call") && line.contains('│')).count(),
        2,
        "{table}"
    );
    assert!(table.lines().any(|line| line.starts_with("create  tupper, a call  4 ")), "{table}");
    nothing_is_left(&store, &before);
}

/// A directory of programs, each of which notes its arguments in a file of its name and succeeds.
fn programs(names: &[&str]) -> tempfile::TempDir {
    let dir = scratch();
    for name in names {
        let path = dir.path().join(name);
        fs::write(&path, "#!/bin/sh\necho \"$@\" >>\"$0.said\"\n").expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    dir
}

fn with_path(store: &Store, path: &Path) -> Tupper {
    Tupper::new(store.root()).with_env("PATH", format!("{}:/usr/bin:/bin", path.display()))
}

#[test]
fn runs_are_measured_beside_other_programs() {
    let store = Store::new();
    let before = store.disk.subvolumes();
    let names = ["podman", "systemd-nspawn", "bwrap"];
    let dir = programs(&names);
    let tupper = with_path(&store, dir.path());
    let report = tupper.json("bench run --count 2 --format json --against podman,nspawn,bwrap busybox sh -c true");
    let expected = ["run tupper run --rm", "run podman run --rm", "run systemd-nspawn -x", "run bwrap, no snapshot"];
    assert_eq!(series(&report), expected);
    for name in names {
        let said = fs::read_to_string(dir.path().join(format!("{name}.said"))).expect("it was run");
        assert!(said.lines().count() >= 2 && said.lines().all(|line| line.ends_with(" sh -c true")), "{name}: {said}");
    }
    // The only image, and `true`.
    assert!(store.ok("bench run --count 2 --parallel 2").contains("start true, exit, gone"));
    let error = store.fails(1, "bench run --count 2 busybox false");
    assert!(error.contains("run tupper: exit status: 1"), "{error}");
    let error = store.fails(1, "bench run --count 2 busybox no-such-program");
    assert!(error.contains("no-such-program") && !error.contains("hint"), "{error}");
    nothing_is_left(&store, &before);
}

#[test]
fn imports_are_measured() {
    let store = Store::empty();
    let file = busybox();
    let file = file.to_str().expect("a plain path");
    let report = store.ok_with("bench import --count 2 --format json", &[file]);
    assert_eq!(
        series(&serde_json::from_str(&report).expect("JSON")),
        ["import tupper, a call", "remove tupper, a call"]
    );
    assert_eq!(store.ok("image ls -q"), "");
    nothing_is_left(&store, &["store/fs".to_string()]);
    // A layer that is there would not be unpacked: that is no measurement, and the image stays.
    store.ok_with("image import --name busybox", &[file]);
    let error = store.run_with("bench import", &[file]).fails(1);
    assert!(error.contains("in the store already") && error.contains("hint: remove that image"), "{error}");
    assert_eq!(store.lines("image ls -q").len(), 1);
    assert_eq!(staging(&store), [""; 0]);
    for (source, why) in [("-", "read once"), ("/no/such", "no such file"), ("http://127.0.0.1:1/x.tar", "read once")] {
        let error = store.run_with("bench import", &[source]).fails(1);
        assert!(error.contains(why) && error.contains(source.trim_matches('-')), "{error}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_it_begins() {
    let store = Store::empty();
    let error = store.fails(1, "bench snapshot");
    assert!(error.contains("no store there yet"), "{error}");
    store.ok("store init");
    let error = store.fails(1, "bench snapshot");
    assert!(error.contains("bench snapshot: no image in the store yet") && error.contains("hint: "), "{error}");
    let file = busybox();
    store.ok_with("image import --name busybox", &[file.to_str().expect("a plain path")]);
    for line in
        ["snapshot --count 0", "snapshot --parallel 0", "run --count x", "snapshot --against tar", "snapshot --live -1"]
    {
        store.fails(2, &format!("bench {line}"));
    }
    for (line, why) in [
        ("snapshot --plot x.png", "plot x.png: not a name that ends in .svg"),
        ("run --plot /no/such/x.svg", "plot /no/such/x.svg: its directory is not there"),
        ("snapshot --source nosuch", "nosuch"),
        ("run nosuch", "nosuch"),
        ("snapshot --live 2000000", "2000000"),
        ("snapshot --parallel 5000", "parallel 5000: not below 1024"),
    ] {
        let error = store.fails(1, &format!("bench {line}"));
        assert!(error.contains(why), "{line}: {error}");
    }
    let empty = scratch();
    let tupper = Tupper::new(store.root()).with_env("PATH", empty.path());
    for (line, program) in [
        ("snapshot --against overlay,btrfs-progs", "btrfs"),
        ("snapshot --against cp", "cp"),
        ("run --against nspawn", "systemd-nspawn"),
    ] {
        let error = tupper.fails(1, &format!("bench {line}"));
        assert!(error.contains(&format!("bench: {program}: not installed\nhint: ")), "{line}: {error}");
    }
    assert_eq!(staging(&store), [""; 0]);
}

#[test]
fn one_that_is_ended_leaves_nothing() {
    let store = Store::new();
    let before = store.disk.subvolumes();
    let cases = [
        ("bench snapshot --count 100000 --live 5 --parallel 3 --against cp,overlay,btrfs-progs", Signal::SIGINT, 5),
        ("bench snapshot --count 100000 --live 5 --against cp,overlay,btrfs-progs", Signal::SIGKILL, 5),
        // Its first process would not mind being asked.
        ("bench run --count 100000 busybox sleep 1000", Signal::SIGTERM, 0),
    ];
    for (line, signal, live) in cases {
        let mut command = store.command(line, &[]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        eventually("it is at it", Duration::from_secs(60), || match live {
            0 => store.ok("ps -q").lines().count() == 1,
            live => store.ok("snapshot ls -q").lines().count() >= live,
        });
        std::thread::sleep(Duration::from_millis(500));
        kill(pid, signal).expect("it runs");
        assert_eq!(wait(child, line), 128 + signal as i32, "{line}");
        if signal == Signal::SIGKILL {
            // What it ran may be about to end.
            eventually("a gc finds all of it", Duration::from_secs(60), || {
                store.ok("store gc");
                store.run("store check").status == 0 && store.ok("snapshot ls -q").is_empty()
            });
        }
        nothing_is_left(&store, &before);
    }
}

#[test]
fn an_import_that_was_killed_is_gone_with_the_next_gc() {
    let store = Store::empty();
    store.ok("store init");
    let file = busybox();
    for _ in 0..3 {
        let mut command = store.command("bench import --count 100000", &[file.to_str().expect("a plain path")]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn");
        eventually("it has an image", Duration::from_secs(60), || !store.ok("image ls -q").is_empty());
        child.kill().expect("it runs");
        child.wait().expect("it was killed");
        store.ok("store gc");
        assert_eq!(store.ok("image ls -q"), "");
        nothing_is_left(&store, &["store/fs".to_string()]);
    }
}
