//! Limits as people give them: read back from inside and outside, held, reported, changed, and gone at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::command::{finish, wait};
use crate::support::eventually;
use crate::support::store::Store;

/// The host has the controller on a v1 hierarchy.
fn legacy(controller: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let of_controller = |line: &str| line.split(' ').nth(3).is_some_and(|all| all.split(',').any(|o| o == controller));
    mounts.lines().any(|line| line.contains(" cgroup ") && of_controller(line))
}

/// Where the unified hierarchy is, on a host that has v1 beside it or not.
fn unified() -> PathBuf {
    let pure = PathBuf::from("/sys/fs/cgroup");
    if pure.join("cgroup.controllers").exists() { pure } else { pure.join("unified") }
}

/// The directory of the controller's hierarchy.
fn mount(controller: &str) -> PathBuf {
    if legacy(controller) { Path::new("/sys/fs/cgroup").join(controller) } else { unified() }
}

/// What a file of its cgroup reads inside, with these flags: the one of v1 or that of v2, whichever the host has.
fn inside(store: &Store, flags: &str, controller: &str, v1: &str, v2: &str) -> String {
    let file = mount(controller).join(if legacy(controller) { v1 } else { v2 });
    store.ok(&format!("run --rm {flags} busybox cat {}", file.display()))
}

#[test]
fn every_limit_is_what_was_asked_for() {
    let store = Store::new();
    let v1_or_v2 =
        |controller: &str, v1: &str, v2: &str| if legacy(controller) { v1.to_string() } else { v2.to_string() };
    for (flags, controller, v1, v2) in [
        ("-m 64m", "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
        ("-m 64m", "memory", ("memory.memsw.limit_in_bytes", "134217728"), ("memory.swap.max", "67108864")),
        (
            "-m 64m --memory-swap 96m",
            "memory",
            ("memory.memsw.limit_in_bytes", "100663296"),
            ("memory.swap.max", "33554432"),
        ),
        (
            "-m 64m --memory-swap -1",
            "memory",
            ("memory.memsw.limit_in_bytes", "9223372036854771712"),
            ("memory.swap.max", "max"),
        ),
        ("--memory-reservation 32m", "memory", ("memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432")),
        ("--cpus 0.5", "cpu", ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")),
        ("--cpu-quota 5000 --cpu-period 20000", "cpu", ("cpu.cfs_quota_us", "5000"), ("cpu.max", "5000 20000")),
        ("--cpu-period 20000", "cpu", ("cpu.cfs_period_us", "20000"), ("cpu.max", "max 20000")),
        ("--cpu-shares 512", "cpu", ("cpu.shares", "512"), ("cpu.weight", "59")),
        ("--cpuset-cpus 1", "cpuset", ("cpuset.cpus", "1"), ("cpuset.cpus", "1")),
        ("--cpuset-mems 0", "cpuset", ("cpuset.mems", "0"), ("cpuset.mems", "0")),
        ("--pids-limit 20", "pids", ("pids.max", "20"), ("pids.max", "20")),
    ] {
        let found = inside(&store, flags, controller, v1.0, v2.0);
        assert_eq!(found, v1_or_v2(controller, v1.1, v2.1), "{flags}");
    }
    assert_eq!(store.ok("run --rm --cpuset-cpus 1 busybox nproc"), "1");
    let allowed = store.ok("run --rm --cpuset-cpus 0-1 --cpuset-mems 0 busybox grep -h allowed_list /proc/self/status");
    assert_eq!(
        allowed.split_whitespace().collect::<Vec<_>>(),
        ["Cpus_allowed_list:", "0-1", "Mems_allowed_list:", "0"]
    );
}

#[test]
fn a_disk_is_read_and_written_at_a_rate() {
    let store = Store::new();
    let disk = fs::canonicalize("/sys/dev/block").expect("sysfs");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let place = store.disk.path();
    let line = mounts.lines().find(|line| line.contains(place.to_str().expect("plain"))).expect("the store's mount");
    let device = line.rsplit_once(" - ").expect("a mount").1.split(' ').nth(1).expect("a device");
    assert!(disk.exists() && device.starts_with("/dev/loop"), "{device}");
    let number = device.trim_start_matches("/dev/loop");
    let flags = format!("--device-read-bps {device}:1m --device-write-iops {device}:7");
    if legacy("blkio") {
        let read = inside(&store, &flags, "blkio", "blkio.throttle.read_bps_device", "");
        assert_eq!(read, format!("7:{number} 1048576"));
        let written = inside(&store, &flags, "blkio", "blkio.throttle.write_iops_device", "");
        assert_eq!(written, format!("7:{number} 7"));
    } else {
        let read = inside(&store, &flags, "io", "", "io.max");
        assert_eq!(read, format!("7:{number} rbps=1048576 wbps=max riops=max wiops=7"));
    }
    // Which file there is depends on the scheduler.
    let script =
        "cd /sys/fs/cgroup; cat blkio/blkio.bfq.weight blkio/blkio.weight io.bfq.weight io.weight 2>/dev/null; true";
    let weight = store.ok_with("run --rm --blkio-weight 500 busybox sh -c", &[script]);
    let expected = ["500", "default 500", "default 4950"];
    assert!(weight.lines().next().is_some_and(|line| expected.contains(&line)), "{weight}");
    let error = store.fails(125, "run --rm --device-read-bps /dev/null:1m busybox true");
    assert!(error.contains("/dev/null: not a block device"), "{error}");
}

#[test]
fn what_makes_no_sense_is_a_usage_error_that_names_the_flag() {
    let store = Store::new();
    for (flags, named) in [
        ("--memory-swap 32m -m 64m", "--memory-swap"),
        ("--memory-swap 32m", "--memory-swap"),
        ("--memory-reservation 2g -m 1g", "--memory-reservation"),
        ("--cpus 1 --cpu-quota 5000", "--cpu-quota"),
        ("--cpus 1 --cpu-period 5000", "--cpu-period"),
        ("--cpu-period 5", "--cpu-period"),
        ("--cpu-quota 5", "--cpu-quota"),
        ("--cpu-shares 1", "--cpu-shares"),
        ("--cpuset-cpus 1-", "--cpuset-cpus"),
        ("--blkio-weight 5", "--blkio-weight"),
        ("--hugetlb 2m", "--hugetlb"),
        ("--device-read-bps /dev/sda", "--device-read-bps"),
        ("--cgroup-manager other", "--cgroup-manager"),
    ] {
        let error = store.fails(125, &format!("run --rm {flags} busybox true"));
        assert!(error.contains(named), "{flags}: {error}");
        let error = store.fails(2, &format!("create {flags} busybox true"));
        assert!(error.contains(named), "{flags}: {error}");
    }
    assert_eq!(store.ok("ps -aq"), "");
    // The kernel knows what it does not have, and the step says what it was.
    let error = store.fails(125, "run --rm --cpuset-cpus 4000 busybox true");
    assert!(error.contains("set cpuset.cpus to 4000"), "{error}");
}

#[test]
fn huge_pages_and_a_cgroup_manager_that_the_host_lacks() {
    let store = Store::new();
    // Where v1 has no such controller the unified hierarchy may, on a host that otherwise limits by v1, too.
    let flags = "--hugetlb 2m=64m";
    match fs::read_to_string(unified().join("cgroup.controllers")).is_ok_and(|all| all.contains("hugetlb")) {
        true => {
            let found = inside(&store, flags, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
            assert_eq!(found, "67108864");
        }
        false => {
            let error = store.fails(125, &format!("run --rm {flags} busybox true"));
            assert!(error.contains("limit hugetlb: this host has no such cgroup controller"), "{error}");
        }
    }
    if !Path::new("/run/systemd/system").exists() {
        let error = store.fails(125, "run --rm --cgroup-manager systemd busybox true");
        assert!(error.contains("does not run systemd\nhint: use --cgroup-manager cgroupfs"), "{error}");
    }
}

#[test]
fn a_limit_that_is_reached_is_told_with_its_flag() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let hog = store.run("run --rm -m 16m busybox tail /dev/zero").status(137);
    assert!(hog.stderr.contains("the memory limit was reached") && hog.stderr.contains("(-m sets"), "{hog}");
    assert_eq!(hog.stderr.lines().count(), 1, "{hog}");
    let bomb = "for i in $(seq 100); do sleep 1000 & done";
    let bomb = store.run_with("run --rm --pids-limit 30 busybox sh -c", &[bomb]).status(2);
    let told: Vec<&str> = bomb.stderr.lines().filter(|line| line.contains("--pids-limit")).collect();
    assert_eq!(told.len(), 1, "{bomb}");
    before.assert_same(&store.traces());
    assert_eq!(store.run("run --rm -m 64m --pids-limit 30 busybox true").stderr, "", "nothing was reached");
}

/// Who may make nodes makes those of any device, and uses few: on whichever kind of host.
#[test]
fn nodes_that_a_container_makes_are_of_little_use() {
    let store = Store::new();
    let script = "mknod /dev/k c 1 11 && mknod /dev/n c 1 3 && echo x >/dev/n && head -c 1 /dev/zero | wc -c && head -c 1 /dev/k";
    let flags = "run --rm --userns host --cap-add mknod";
    let done = store.run_with(&format!("{flags} busybox sh -c"), &[script]).status(1);
    assert_eq!(done.stdout, "1\n", "{done}");
    assert!(done.stderr.contains("/dev/k: Operation not permitted"), "{done}");
    let more = store.run_with(&format!("{flags} --privileged busybox sh -c"), &["head -c 0 /dev/kmsg && echo open"]);
    assert_eq!(more.ok(), "open", "the rules are off");
}

/// A container that runs until it is ended.
fn running(store: &Store, flags: &str) -> Child {
    let mut command = store.command(&format!("run --rm --name it {flags} busybox sleep 100000"), &[]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tupper");
    eventually("it runs", Duration::from_secs(120), || !store.ok("ps -q").is_empty());
    child
}

fn end(store: &Store, child: Child) {
    store.ok("rm -f it");
    assert_eq!(wait(child, "the container's tupper"), 137);
}

/// As the host lists them.
fn all_processors() -> String {
    let v1 = mount("cpuset").join("cpuset.cpus");
    let file = if v1.exists() { v1 } else { mount("cpuset").join("cpuset.cpus.effective") };
    fs::read_to_string(file).expect("the host's processors").trim().to_string()
}

/// A file of the running container's cgroup, from outside.
fn outside(store: &Store, controller: &str, file: &str) -> String {
    let group = mount(controller).join("tupper");
    let id = store.ok("ps -q --no-trunc");
    let entries = fs::read_dir(&group).expect("tupper's cgroup");
    let ours = entries.map(|e| e.expect("an entry").path()).find(|p| p.to_string_lossy().ends_with(&id));
    fs::read_to_string(ours.expect("its cgroup").join(file)).expect("a control file").trim().to_string()
}

#[test]
fn limits_of_what_runs_go_up_and_down() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let child = running(&store, "-m 64m --cpus 0.5 --pids-limit 20 --cpuset-cpus 0-1");
    let (v1, memory) = (legacy("memory"), if legacy("memory") { "memory.limit_in_bytes" } else { "memory.max" });
    let swap = if v1 { "memory.memsw.limit_in_bytes" } else { "memory.swap.max" };
    let swap_of = |total: u64, memory: u64| if v1 { total } else { total - memory }.to_string();
    // Over the old limit of memory and swap together, and below it again.
    for (flags, bytes, total) in [
        ("-m 512m", 512u64 << 20, 1024u64 << 20),
        ("-m 32m", 32 << 20, 64 << 20),
        ("-m 48m --memory-swap 48m", 48 << 20, 48 << 20),
        ("--memory-swap 300m", 48 << 20, 300 << 20),
        ("-m 256m", 256 << 20, 300 << 20),
    ] {
        store.ok(&format!("update {flags} it"));
        assert_eq!(outside(&store, "memory", memory), bytes.to_string(), "{flags}");
        assert_eq!(outside(&store, "memory", swap), swap_of(total, bytes), "{flags}");
    }
    store.ok("update -m 0 --memory-swap 0 it");
    let none = if v1 { "9223372036854771712" } else { "max" };
    assert_eq!([memory, swap].map(|file| outside(&store, "memory", file)), [none, none]);

    let quota = if legacy("cpu") { "cpu.cfs_quota_us" } else { "cpu.max" };
    for (flags, v1, v2) in [
        ("--cpus 2", "200000", "200000 100000"),
        ("--cpu-quota 5000 --cpu-period 10000", "5000", "5000 10000"),
        ("--cpu-quota -1", "-1", "max 10000"),
        ("--cpus 0.25", "25000", "25000 100000"),
    ] {
        store.ok(&format!("update {flags} it"));
        assert_eq!(outside(&store, "cpu", quota), if legacy("cpu") { v1 } else { v2 }, "{flags}");
    }
    store.ok("update --pids-limit 7 --cpuset-cpus 1 it");
    assert_eq!(outside(&store, "pids", "pids.max"), "7");
    assert_eq!(outside(&store, "cpuset", "cpuset.cpus"), "1");
    store.ok("update --pids-limit -1 it");
    store.ok_with("update --cpuset-cpus", &["", "it"]);
    assert_eq!(outside(&store, "cpuset", "cpuset.cpus"), all_processors());
    assert_eq!(outside(&store, "pids", "pids.max"), "max");
    let recorded = &store.json("inspect it")[0]["HostConfig"];
    assert_eq!((&recorded["Memory"], &recorded["PidsLimit"]), (&0.into(), &(-1).into()), "{recorded}");
    assert_eq!((&recorded["CpusetCpus"], &recorded["NanoCpus"]), (&"".into(), &250_000_000.into()), "{recorded}");
    end(&store, child);
    before.assert_same(&store.traces());
}

#[test]
fn an_update_that_fails_changes_nothing() {
    let store = Store::alone();
    let child = running(&store, "-m 64m --cpus 0.5 --cpuset-cpus 0");
    let record = store.json("inspect it")[0]["HostConfig"].clone();
    // All but the last of these could be done.
    let error = store.fails(1, "update -m 128m --cpus 1 --pids-limit 9 --cpuset-cpus 4000 it");
    assert!(error.contains("set cpuset.cpus to 4000"), "{error}");
    let memory = if legacy("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(outside(&store, "memory", memory), (64 << 20).to_string());
    assert_eq!(outside(&store, "pids", "pids.max"), "1024");
    assert_eq!(outside(&store, "cpuset", "cpuset.cpus"), "0");
    assert_eq!(store.json("inspect it")[0]["HostConfig"], record);
    let error = store.fails(2, "update --memory-swap 5m it");
    assert!(error.contains("--memory-swap"), "{error}");
    store.fails(2, "update it");
    store.fails(1, "update -m 64m nosuch");
    end(&store, child);
}

#[test]
fn a_controller_that_it_was_started_without() {
    let store = Store::alone();
    let child = running(&store, "");
    let done = store.run("update -m 64m it");
    if legacy("memory") {
        let error = done.fails(1);
        assert!(error.contains("cgroup v1") && error.contains("hint: "), "{error}");
        assert_eq!(store.json("inspect it")[0]["HostConfig"]["Memory"], 0);
    } else {
        done.ok();
        assert_eq!(outside(&store, "memory", "memory.max"), (64 << 20).to_string());
    }
    end(&store, child);
}

#[test]
fn what_does_not_run_gets_its_limits_at_its_next_start() {
    let store = Store::new();
    store.ok("create --name one busybox cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max");
    store.ok("create --name two -m 64m busybox true");
    assert_eq!(store.ok("update --pids-limit 33 one two"), "one\ntwo");
    assert_eq!(store.run("start -a one").stdout, "33\n");
    let recorded = &store.json("inspect two")[0]["HostConfig"];
    assert_eq!((&recorded["Memory"], &recorded["PidsLimit"]), (&(64 << 20).into(), &33.into()), "{recorded}");
    store.fails(2, "update -m 64m --memory-swap 32m two");
    let updates = (40..48).map(|n| store.command(&format!("update --pids-limit {n} --cpu-shares {n} two"), &[]));
    let done: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = updates.map(|command| scope.spawn(|| finish(command))).collect();
        all.into_iter().map(|thread| thread.join().expect("an update")).collect()
    });
    done.into_iter().for_each(|done| drop(done.ok()));
    let recorded = &store.json("inspect two")[0]["HostConfig"];
    assert_eq!(recorded["PidsLimit"], recorded["CpuShares"], "one after the other: {recorded}");
    store.ok("rm one two");
}
