//! Limits hold, and an OOM kill is reported.

use tupper::sandbox::{Limits, Spec};

use super::harness::{Root, shell};

#[test]
fn a_fork_bomb_hits_the_limit() {
    let spec = Spec {
        limits: Limits { pids: Some(32), ..Limits::default() },
        ..shell("for i in $(seq 100); do sleep 30 & done 2> /dev/null; true")
    };
    let outcome = Root::new().run(Spec { args: spec.args.clone(), init: true, ..spec.clone() });
    // The shell gives up at a fork that fails.
    assert!(outcome.stderr.contains("fork") || outcome.end.starts_with("code 2"), "{outcome:?}");
    assert!(outcome.end.ends_with(" pids"), "it is reported: {outcome:?}");
    let view = Root::new().run(Spec {
        args: shell("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2> /dev/null; true").args,
        ..spec
    });
    assert_eq!(view.output(), "32");
}

#[test]
fn the_default_limits_processes() {
    let outcome = Root::new().sh("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2> /dev/null; true");
    assert_eq!(outcome.output(), "1024");
}

#[test]
fn running_out_of_memory_is_told_apart() {
    let limits = Limits { memory: Some(16 << 20), ..Limits::default() };
    let spec = Spec { limits, ..shell("head -c 200m /dev/zero | tail -n 1 | wc -c; tail -n 1 /dev/zero") };
    let outcome = Root::new().run(spec.clone());
    assert!(outcome.end.ends_with(" true"), "{outcome:?}");
    let within = Root::new().run(Spec { args: shell("true").args, ..spec });
    assert_eq!(within.end, "code 0 false");
}

#[test]
fn processor_time_is_limited() {
    let limits = Limits { millicpus: Some(250), ..Limits::default() };
    let script = "cat /sys/fs/cgroup/cpu*/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2> /dev/null; true";
    let outcome = Root::new().run(Spec { limits, ..shell(script) });
    assert!(["25000", "25000 100000"].contains(&outcome.output()), "{outcome:?}");
}

#[test]
fn a_unified_hierarchy_has_it_from_the_start() {
    let root = Root { unified_only: true, ..Root::new() };
    let outcome = root.sh("head -n 1 /sys/fs/cgroup/cgroup.procs; grep ^0: /proc/self/cgroup; \
                           grep -c ' /sys/fs/cgroup ro,.* - cgroup2 ' /proc/self/mountinfo");
    assert_eq!(outcome.lines(), ["1", "0::/", "1"]);
}
