//! The kernel's switches: calls and files that change the host as a whole.

use std::collections::BTreeMap;
use std::fs;

use super::attack::{Target, on_the_host, program, text};

fn results(output: &str) -> BTreeMap<&str, &str> {
    output.lines().filter_map(|line| line.split_once(": ")).collect()
}

#[test]
fn calls_that_change_the_host_are_refused() {
    let target = Target::new();
    let calls = program("calls");
    // In namespaces of its own: what the host's root may do is done, harmlessly.
    let control = on_the_host("/usr/bin/unshare", &["--mount", "--uts", text(&calls)]).ok();
    let control = results(&control);
    let real = control.values().filter(|result| **result == "reached").count();
    assert!(real >= 15, "few of the attacks are real: {control:?}");
    for flags in ["", "--init", "-u nobody", "--network host"] {
        let inside = target.run(&format!("run --rm {flags} attack /attack/calls")).ok();
        let inside = results(&inside);
        assert_eq!(inside.len(), control.len(), "{inside:?}");
        let reached: Vec<_> = inside.iter().filter(|(_, result)| **result == "reached").collect();
        assert!(reached.is_empty(), "{flags}: {reached:?}");
    }
}

#[test]
fn files_that_change_the_host_are_not_written() {
    let files = [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/vm/panic_on_oom",
        "/proc/irq/default_smp_affinity",
        "/proc/bus/pci/00/00.0",
        "/proc/fs/xfs/stat",
        "/proc/timer_stats",
        "/proc/kcore",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/profiling",
        "/sys/power/state",
        "/sys/module/loop/parameters/max_loop",
        "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/cgroup.procs",
        "/dev/kmsg",
        "/dev/mem",
    ];
    let there = files.iter().filter(|file| fs::metadata(file).is_ok()).count();
    assert!(there >= 6, "few of the attacks are real: {there}");
    let before: Vec<_> =
        files.iter().filter(|f| f.starts_with("/proc/sys/kernel")).map(fs::read).map(Result::ok).collect();
    let target = Target::new();
    let script = format!(
        "for f in {}; do [ -e $f ] && [ $f != /proc/kcore ] && [ $f != /proc/timer_stats ] && \
         (echo 1 > $f) 2>&- && echo $f; done; for t in /proc/sys /sys /proc /sys/fs/cgroup; do \
         mount -o remount,rw $t && echo remounted $t; umount $t && echo unmounted $t; done; \
         for d in $(find /sys /proc/sys /proc/irq -maxdepth 2 -type d); do \
         mkdir $d/x && echo made $d/x; done; true",
        files.join(" ")
    );
    for flags in ["", "--init", "--network host"] {
        let done = target.sh(flags, &script);
        assert_eq!((done.status, done.stdout.as_str()), (0, ""), "{done}");
    }
    let after: Vec<_> =
        files.iter().filter(|f| f.starts_with("/proc/sys/kernel")).map(fs::read).map(Result::ok).collect();
    assert_eq!(before, after);
}

/// Calls that need no capability, and have been the way to most holes of the kernel.
#[test]
fn calls_that_are_not_on_the_list_are_refused() {
    let target = Target::new();
    let control = target.run("run --rm --security-opt seccomp=unconfined attack /attack/unlisted").ok();
    assert!(results(&control).values().filter(|result| **result == "done").count() >= 2, "few are real: {control}");
    for flags in ["", "--init", "-u nobody", "--userns host"] {
        let inside = target.run(&format!("run --rm {flags} attack /attack/unlisted")).ok();
        let inside = results(&inside);
        assert_eq!(inside.len(), 3, "{inside:?}");
        for (call, result) in inside {
            assert!(["Operation not permitted", "Function not implemented"].contains(&result), "{call}: {result}");
        }
    }
}

/// Root of a user namespace of its own has every capability there: it is not let in, and were it, would have no power over
/// the container's mounts, devices and control groups.
#[test]
fn a_user_namespace_inside_is_refused_and_would_be_powerless() {
    let target = Target::new();
    for flags in ["", "--init", "-u nobody"] {
        let done = target.run(&format!("run --rm {flags} attack /attack/nested true")).status(1);
        assert_eq!(done.stdout, "unshare: Operation not permitted\n", "{done}");
    }
    let inside = target.run("run --rm --security-opt seccomp=unconfined attack /attack/nested true").ok();
    let inside = results(&inside);
    assert_eq!((inside["unshare"], inside["nf_tables"]), ("done", "done"), "the attack is real: {inside:?}");
    for call in ["mount cgroup", "remount /proc/sys", "unmask", "mknod"] {
        assert_ne!(inside[call], "done", "{call}: {inside:?}");
    }
}
