//! Limits as a table: what each kind of host is told, v1, v2, both, and systemd.

use super::tests::{commands, facts, hybrid, position, spec, unified};
use super::*;
use crate::error::Kind;
use crate::sandbox::facts::Hierarchy;
use crate::sandbox::limits::{DeviceRate, HugePages, Limits, Rate};
use crate::sandbox::spec::CgroupManager;

/// Every limit, as each kind of host is told it.
#[test]
fn limits_in_the_words_of_v1_and_v2() {
    let rate = |rate, limit| DeviceRate { device: "/dev/sda".into(), rate, limit };
    let none = Limits::default;
    type Row<'a> = (Limits, &'a [&'a str], &'a [&'a str]);
    let rows: [Row<'_>; 13] = [
        (
            Limits { memory: Some(5 << 20), memory_swap: Some(-1), ..none() },
            &["5242880 > memory.max", "max > memory.swap.max"],
            &["5242880 > memory/memory.limit_in_bytes", "-1 > memory/memory.memsw.limit_in_bytes"],
        ),
        (
            Limits { memory: Some(5 << 20), memory_swap: Some(5 << 20), ..none() },
            &["5242880 > memory.max", "0 > memory.swap.max"],
            &["5242880 > memory/memory.limit_in_bytes", "5242880 > memory/memory.memsw.limit_in_bytes"],
        ),
        (
            Limits { memory_reservation: Some(4096), ..none() },
            &["4096 > memory.low"],
            &["4096 > memory/memory.soft_limit_in_bytes"],
        ),
        (
            Limits { cpu_quota: Some(5000), ..none() },
            &["'5000 100000' > cpu.max"],
            &["100000 > cpu,cpuacct/cpu.cfs_period_us", "5000 > cpu,cpuacct/cpu.cfs_quota_us"],
        ),
        (
            Limits { cpu_quota: Some(5000), cpu_period: Some(20_000), ..none() },
            &["'5000 20000' > cpu.max"],
            &["20000 > cpu,cpuacct/cpu.cfs_period_us", "5000 > cpu,cpuacct/cpu.cfs_quota_us"],
        ),
        (
            Limits { cpu_period: Some(20_000), ..none() },
            &["'max 20000' > cpu.max"],
            &["20000 > cpu,cpuacct/cpu.cfs_period_us", "-1 > cpu,cpuacct/cpu.cfs_quota_us"],
        ),
        (Limits { cpu_shares: Some(512), ..none() }, &["59 > cpu.weight"], &["512 > cpu,cpuacct/cpu.shares"]),
        (Limits { cpuset_cpus: Some("0-1".into()), ..none() }, &["0-1 > cpuset.cpus"], &["0-1 > cpuset/cpuset.cpus"]),
        (Limits { cpuset_mems: Some("0".into()), ..none() }, &["0 > cpuset.mems"], &["0 > cpuset/cpuset.mems"]),
        (Limits { pids: Some(9), ..none() }, &["9 > pids.max"], &["9 > pids/pids.max"]),
        (
            Limits { blkio_weight: Some(500), ..none() },
            &["500 > io.bfq.weight || 4950 > io.weight"],
            &["500 > blkio/blkio.bfq.weight || 500 > blkio/blkio.weight"],
        ),
        (
            Limits {
                device_rates: vec![
                    rate(Rate::ReadBps, 1),
                    rate(Rate::WriteBps, 2),
                    rate(Rate::ReadIops, 3),
                    rate(Rate::WriteIops, 4),
                ],
                ..none()
            },
            &["'8:0 rbps=1' > io.max", "'8:0 wbps=2' > io.max", "'8:0 riops=3' > io.max", "'8:0 wiops=4' > io.max"],
            &[
                "'8:0 1' > blkio/blkio.throttle.read_bps_device",
                "'8:0 2' > blkio/blkio.throttle.write_bps_device",
                "'8:0 3' > blkio/blkio.throttle.read_iops_device",
                "'8:0 4' > blkio/blkio.throttle.write_iops_device",
            ],
        ),
        (
            Limits { hugetlb: vec![HugePages { size: 2 << 20, limit: 0 }], ..none() },
            &["0 > hugetlb.2MB.max", "0 > hugetlb.2MB.rsvd.max"],
            &["0 > hugetlb/hugetlb.2MB.limit_in_bytes", "0 > hugetlb/hugetlb.2MB.rsvd.limit_in_bytes"],
        ),
    ];
    for (limits, on_unified, on_legacy) in rows {
        let limits = Limits { pids: limits.pids.or(Some(-1)), ..limits };
        let spec = Spec { limits, ..spec() };
        let set = |facts: &Facts, prefix: &str, suffix: &str| -> Vec<String> {
            let all = commands(&spec, facts).into_iter().filter(|c| c.starts_with("echo ") && !c.contains("proc"));
            let shown = all.filter(|c| !c.contains("cgroup.subtree_control") && !c.ends_with("/tasks"));
            shown.map(|c| c.replace("echo ", "").replace(prefix, "").replace(suffix, "")).collect()
        };
        assert_eq!(set(&facts(everything()), "/sys/fs/cgroup/", "tupper/c1/"), on_unified);
        assert_eq!(set(&facts(legacy()), "/sys/fs/cgroup/", "tupper/c1/"), on_legacy);
        // Nothing of the unified hierarchy is touched where v1 has the controllers.
        let hybrid =
            [legacy(), vec![Hierarchy { mount: "/u".into(), controllers: Vec::new(), unified: true }]].concat();
        assert_eq!(set(&facts(hybrid), "/sys/fs/cgroup/", "tupper/c1/"), on_legacy);
    }
}

fn everything() -> Vec<Hierarchy> {
    let controllers = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"].map(String::from).to_vec();
    vec![Hierarchy { mount: "/sys/fs/cgroup".into(), controllers, unified: true }]
}

/// Every controller on v1, two of them on one mount.
fn legacy() -> Vec<Hierarchy> {
    let mounts = ["cpu,cpuacct", "memory", "pids", "cpuset", "blkio", "hugetlb", "devices"];
    let v1 = |name: &str| Hierarchy {
        mount: Path::new("/sys/fs/cgroup").join(name),
        controllers: std::iter::once("rw").chain(name.split(',')).map(String::from).collect(),
        unified: false,
    };
    mounts.map(v1).to_vec()
}

#[test]
fn a_v1_cpuset_is_filled_before_anybody_is_in_it() {
    let limits = Limits { cpuset_cpus: Some("0".into()), ..Limits::default() };
    let found = commands(&Spec { limits, ..spec() }, &facts(legacy()));
    let fill = |directory: &str| {
        format!(
            "mkdir -p {directory} && for f in cpus mems; do grep -q . {directory}/cpuset.$f || \
             cat {directory}/../cpuset.$f > {directory}/cpuset.$f; done"
        )
    };
    let places = [
        fill("/sys/fs/cgroup/cpuset/tupper"),
        "mkdir -p /sys/fs/cgroup/cpuset/tupper/c1".to_string(),
        fill("/sys/fs/cgroup/cpuset/tupper/c1"),
        "echo 0 > /sys/fs/cgroup/cpuset/tupper/c1/cpuset.cpus".to_string(),
        "echo 0 > /sys/fs/cgroup/cpuset/tupper/c1/tasks".to_string(),
    ];
    let places: Vec<usize> = places.iter().map(|command| position(&found, command)).collect();
    assert!(places.is_sorted(), "{places:?}");
}

/// What a container that may make nodes gets, wherever the controller of devices is.
#[test]
fn devices_are_allowed_by_rules() {
    let rules = || device_rules(CapabilitySet(u64::MAX), false, &[]).expect("rules");
    let steps = |hierarchies: Vec<Hierarchy>| {
        let facts = facts(hierarchies);
        let planned = plan_cgroups(&spec(), Some(rules()), facts.ground()).map(|cgroups| cgroups.steps);
        planned.map(|steps| steps.iter().map(Step::command).collect::<Vec<_>>())
    };
    let v1 = steps(legacy()).expect("a plan");
    let deny = position(&v1, "echo a > /sys/fs/cgroup/devices/tupper/c1/devices.deny");
    assert!(deny < position(&v1, "echo 'c 1:3 rwm' > /sys/fs/cgroup/devices/tupper/c1/devices.allow"));
    assert_eq!(v1.iter().filter(|c| c.contains("devices.allow")).count(), rules().len());
    // Where only the v2 hierarchy can tell, it is used, even if everything else is on v1.
    for hierarchies in [unified(), hybrid()] {
        let last = steps(hierarchies).expect("a plan").pop().expect("a step");
        assert!(last.starts_with("# a BPF program that allows: c *:* m, b *:* m, c 1:3 rwm"), "{last}");
    }
    assert_eq!(steps(Vec::new()).expect_err("nobody can tell").kind(), Kind::Unsupported);
    assert!(!commands(&spec(), &facts(legacy())).iter().any(|c| c.contains("devices")), "the default makes no nodes");
}

#[test]
fn systemd_makes_the_scope_when_the_process_waits_for_its_root() {
    let limits = Limits { memory: Some(1 << 20), ..Limits::default() };
    let spec = Spec { limits, cgroup_manager: CgroupManager::Systemd, ..spec() };
    let found = commands(&spec, &facts(unified()));
    let directory = "/sys/fs/cgroup/machine.slice/tupper-c1.scope";
    let scope = format!(
        "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager \
         StartTransientUnit 'ssa(sv)a(sa(sv))' tupper-c1.scope fail 8 PIDs au 1 $BOX \
         Description s 'tupper container c1' Slice s 'machine.slice' Delegate b true \
         CollectMode s 'inactive-or-failed' MemoryMax t 1048576 MemorySwapMax t 1048576 TasksMax t 1024 0 && \
         until [ -d {directory} ]; do sleep 0.1; done"
    );
    let order = [
        "unshare --user --keep-caps --mount --pid --fork --kill-child --uts --ipc sh",
        "BOX=$(pgrep --parent $(pgrep --newest --exact unshare))",
        &scope,
        "cd /mnt",
        &format!("mkdir -p sys/fs/cgroup && mount --bind -o ro,nosuid,nodev,noexec {directory} sys/fs/cgroup"),
        "unshare --cgroup sh",
    ];
    let places: Vec<usize> = order.iter().map(|command| position(&found, command)).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(!found.iter().any(|c| c.contains("/tupper/")), "nothing is done below tupper's own cgroup: {found:#?}");
    let error = plan(&spec, &facts(hybrid())).expect_err("not with v1 hierarchies");
    assert_eq!((error.kind(), error.hint()), (Kind::Unsupported, Some("use --cgroup-manager cgroupfs")));
}
