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
