//! What is written to come from some limits to others, and what undoes it.

use super::*;
use crate::sandbox::facts::{Disk, Hierarchy};
use crate::sandbox::limits::{DeviceRate, Rate};

fn hierarchies(unified: bool) -> Vec<Hierarchy> {
    if unified {
        let controllers = ["cpuset", "cpu", "io", "memory", "pids"].map(String::from).to_vec();
        return vec![Hierarchy { mount: "/c".into(), controllers, unified }];
    }
    let v1 = |name: &str| Hierarchy { mount: Path::new("/c").join(name), controllers: vec![name.into()], unified };
    ["cpuset", "cpu", "blkio", "memory", "pids"].map(v1).to_vec()
}

fn said(old: &Limits, new: &Limits, unified: bool) -> Vec<String> {
    let hierarchies = hierarchies(unified);
    let disks = [Disk { path: "/dev/sda".into(), major: 8, minor: 0 }];
    let ground = Ground { hierarchies: &hierarchies, cgroup: Path::new("tupper/x"), disks: &disks, systemd: false };
    let changes = changes(old, new, ground).expect("changes");
    let set = changes.iter().filter_map(|change| match change {
        Change::Set { write, .. } => Some(format!("{}={}", write.file, write.value.trim())),
        Change::Enable { .. } => None,
    });
    set.collect()
}

#[test]
fn only_what_differs_is_written_and_what_is_gone_is_lifted() {
    let rate = |limit| DeviceRate { device: "/dev/sda".into(), rate: Rate::ReadBps, limit };
    let none = Limits::default;
    type Row<'a> = (Limits, Limits, &'a [&'a str], &'a [&'a str]);
    let rows: [Row<'_>; 8] = [
        (none(), none(), &[], &[]),
        (
            Limits { memory: Some(8), ..none() },
            Limits { memory: Some(8), pids: Some(5), ..none() },
            &["pids.max=5"],
            &["pids.max=5"],
        ),
        (
            Limits { memory: Some(8), ..none() },
            Limits { memory: Some(8), memory_swap: Some(9), ..none() },
            &["memory.swap.max=1"],
            &["memory.memsw.limit_in_bytes=9"],
        ),
        (
            Limits { memory_reservation: Some(8), ..none() },
            none(),
            &["memory.low=0"],
            &["memory.soft_limit_in_bytes=-1"],
        ),
        (
            Limits { millicpus: Some(500), cpu_shares: Some(2), ..none() },
            none(),
            &["cpu.max=max 100000", "cpu.weight=100"],
            &["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=-1", "cpu.shares=1024"],
        ),
        (none(), Limits { pids: Some(-1), ..none() }, &["pids.max=max"], &["pids.max=max"]),
        (
            Limits { device_rates: vec![rate(5)], ..none() },
            Limits { device_rates: vec![rate(6)], ..none() },
            &["io.max=8:0 rbps=6"],
            &["blkio.throttle.read_bps_device=8:0 6"],
        ),
        (
            Limits { device_rates: vec![rate(5)], ..none() },
            none(),
            &["io.max=8:0 rbps=max"],
            &["blkio.throttle.read_bps_device=8:0 0"],
        ),
    ];
    for (old, new, on_unified, on_legacy) in rows {
        assert_eq!(said(&old, &new, true), on_unified, "{old:?} {new:?}");
        assert_eq!(said(&old, &new, false), on_legacy, "{old:?} {new:?}");
    }
}

#[test]
fn a_controller_that_is_new_is_enabled_first() {
    let hierarchies = hierarchies(true);
    let ground = Ground { hierarchies: &hierarchies, cgroup: Path::new("tupper/x"), disks: &[], systemd: false };
    let limits = Limits { cpu_shares: Some(2), pids: Some(-1), ..Limits::default() };
    let all = changes(&Limits { pids: Some(-1), ..Limits::default() }, &limits, ground).expect("changes");
    let enables = |place: &str| Change::Enable { directory: place.into(), controllers: vec!["cpu".into()] };
    assert_eq!(all[..2], [enables("/c"), enables("/c/tupper")]);
    assert!(matches!(&all[2..], [Change::Set { .. }]), "{all:?}");
}

#[test]
fn what_undoes_a_write_is_what_the_file_read() {
    for (file, text, value, expected) in [
        ("memory.max", "max\n", "5", "max"),
        ("cpu.max", "max 100000\n", "5 10", "max 100000"),
        ("cpuset.cpus", "0-1\n", "0", "0-1"),
        ("io.max", "", "8:0 rbps=5", "8:0 rbps=max wbps=max riops=max wiops=max"),
        ("io.max", "8:16 rbps=1\n8:0 rbps=2 wbps=max\n", "8:0 rbps=5", "8:0 rbps=2 wbps=max"),
        ("blkio.throttle.read_bps_device", "8:16 7\n", "8:0 5", "8:0 0"),
        ("blkio.throttle.read_bps_device", "8:0 7\n", "8:0 5", "8:0 7"),
        ("io.weight", "default 100\n8:0 50\n", "7", "default 100"),
        ("cpu.weight", "100\n", "7", "100"),
    ] {
        assert_eq!(before(file, text, value), expected, "{file} {text:?}");
    }
}

#[test]
fn properties_that_are_gone_get_their_default() {
    let property = |name, value| Property { name, value };
    let old = [
        property("MemoryMax", Value::Number(5)),
        property("MemoryLow", Value::Number(5)),
        property("AllowedCPUs", Value::Set(vec![1])),
        property("IOReadBandwidthMax", Value::Rates(vec![("/dev/sda".into(), 5)])),
        property("TasksMax", Value::Number(5)),
    ];
    let new = vec![property("TasksMax", Value::Number(5)), property("CPUWeight", Value::Number(7))];
    let expected = [
        property("MemoryMax", Value::Number(u64::MAX)),
        property("MemoryLow", Value::Number(0)),
        property("AllowedCPUs", Value::Set(vec![7])),
        property("IOReadBandwidthMax", Value::Rates(vec![("/dev/sda".into(), u64::MAX)])),
        property("CPUWeight", Value::Number(7)),
    ];
    assert_eq!(changed_properties(&old, new, ["0-2", "0"]), expected);
}
