//! The posture as a table: which steps, in which order, for which spec on which host.

use super::*;
use crate::error::Kind;
use crate::network::{Files, Mode};
use crate::sandbox::facts::{Disk, Hierarchy, Masked};
use crate::sandbox::limits::Limits;
use crate::sandbox::rlimit::ResourceLimit;
use crate::sandbox::seccomp::Seccomp;
use crate::sandbox::security::Security;
use crate::sandbox::shell::Shell;
use crate::sandbox::spec::Volume;
use crate::sandbox::user::User;
use crate::sandbox::users::{IdMap, Users};

pub(super) fn hybrid() -> Vec<Hierarchy> {
    let v1 = |name: &str| Hierarchy {
        mount: Path::new("/sys/fs/cgroup").join(name),
        controllers: vec!["rw".into(), name.into()],
        unified: false,
    };
    let unified = Hierarchy { mount: "/sys/fs/cgroup/unified".into(), controllers: Vec::new(), unified: true };
    vec![v1("cpu"), v1("memory"), v1("pids"), unified]
}

pub(super) fn unified() -> Vec<Hierarchy> {
    let controllers = ["cpuset", "cpu", "io", "memory", "pids"].map(String::from).to_vec();
    vec![Hierarchy { mount: "/sys/fs/cgroup".into(), controllers, unified: true }]
}

pub(super) fn facts(hierarchies: Vec<Hierarchy>) -> Facts {
    Facts {
        cgroup: "tupper/c1".into(),
        hierarchies,
        disks: vec![Disk { path: "/dev/sda".into(), major: 8, minor: 0 }],
        systemd: true,
        user: User { uid: 0, gid: 0, groups: Vec::new(), home: Some("/root".into()) },
        maps: Some(Maps::range(231_072, 231_072)),
        beside: None,
        volume_directories: Vec::new(),
        rootfs: "/store/c1/rootfs".into(),
        rootfs_read_only: false,
        files: Files {
            hosts: "127.0.0.1\tlocalhost\n127.0.1.1\tbox\n".into(),
            resolv_conf: "nameserver 192.0.2.1\n".into(),
        },
        masked: vec![
            Masked { path: "/proc/kcore".into(), directory: false },
            Masked { path: "/sys/firmware".into(), directory: true },
        ],
        read_only: vec!["/proc/bus".into(), "/proc/sys".into()],
        capabilities: CapabilitySet((1 << 41) - 1),
        devices: Vec::new(),
        given: Vec::new(),
        apparmor: None,
        mqueue: true,
        kernel: (6, 1),
        ping: true,
    }
}

pub(super) fn spec() -> Spec {
    Spec { hostname: "box".into(), args: vec!["sh".into()], env: vec!["PATH=/bin".into()], ..Spec::default() }
}

pub(super) fn commands(spec: &Spec, facts: &Facts) -> Vec<String> {
    plan(spec, facts).expect("a plan").steps().iter().map(Step::command).collect()
}

pub(super) fn position(commands: &[String], command: &str) -> usize {
    commands.iter().position(|c| c == command).unwrap_or_else(|| panic!("{command:?} is not in {commands:#?}"))
}

/// Everything, in order: a change of the posture is a change of this list.
#[test]
fn the_default_posture_on_a_unified_host() {
    let expected = [
        "+ mkdir -p /sys/fs/cgroup && echo '+pids' > /sys/fs/cgroup/cgroup.subtree_control",
        "+ mkdir -p /sys/fs/cgroup/tupper && echo '+pids' > /sys/fs/cgroup/tupper/cgroup.subtree_control",
        "+ mkdir -p /sys/fs/cgroup/tupper/c1",
        "+ echo 1024 > /sys/fs/cgroup/tupper/c1/pids.max",
        "+ # mounted where it is attached",
        "+ chown --dereference 231072 /proc/self/fd/[012]",
        "++ echo $$ > /sys/fs/cgroup/tupper/c1/cgroup.procs && unshare --user --keep-caps --mount --pid --fork --kill-child --uts --ipc sh",
        "++ setpriv --pdeathsig KILL sh",
        "++ setsid --wait sh",
        "++ umask 0000",
        "++ hostname box",
        "++ unshare --net sh",
        "++ ip link set lo up",
        "+ BOX=$(pgrep --parent $(pgrep --newest --exact unshare))",
        "+ printf '0 231072 65536\\n' > /proc/$BOX/uid_map && printf '0 231072 65536\\n' > /proc/$BOX/gid_map",
        "+ nsenter --target $BOX --mount mount --bind -o nosuid,nodev,X-mount.idmap=/proc/$BOX/ns/user /store/c1/rootfs /mnt",
        "+ nsenter --target $BOX --mount --user sh -c 'mkdir -p /mnt/dev' && nsenter --target $BOX --mount mount -t tmpfs -o nosuid,noexec,mode=0755,size=64k,uid=231072,gid=231072 tmpfs /mnt/dev",
        "+ nsenter --target $BOX --mount sh -c 'mknod -m 0666 /mnt/dev/null c 1 3 && chown 231072:231072 /mnt/dev/null'",
        "+ nsenter --target $BOX --mount sh -c 'mknod -m 0666 /mnt/dev/zero c 1 5 && chown 231072:231072 /mnt/dev/zero'",
        "+ nsenter --target $BOX --mount sh -c 'mknod -m 0666 /mnt/dev/full c 1 7 && chown 231072:231072 /mnt/dev/full'",
        "+ nsenter --target $BOX --mount sh -c 'mknod -m 0666 /mnt/dev/random c 1 8 && chown 231072:231072 /mnt/dev/random'",
        "+ nsenter --target $BOX --mount sh -c 'mknod -m 0666 /mnt/dev/urandom c 1 9 && chown 231072:231072 /mnt/dev/urandom'",
        "+ nsenter --target $BOX --mount sh -c 'mknod -m 0666 /mnt/dev/tty c 5 0 && chown 231072:231072 /mnt/dev/tty'",
        "++ setpriv --reuid 0 --regid 0 --clear-groups sh",
        "++ setpriv --pdeathsig KILL sh",
        "++ mount --make-rprivate /",
        "++ keyctl session - sh",
        "++ cd /mnt",
        "++ mkdir -p proc && mount -t proc -o nosuid,nodev,noexec proc proc",
        "++ echo '0 65535' > proc/sys/net/ipv4/ping_group_range",
        "++ # it is there",
        "++ mkdir -p sys && mount -t sysfs -o nosuid,nodev,noexec sysfs sys && mount -o remount,bind,ro,nosuid,nodev,noexec sys",
        "++ ln -s /proc/self/fd dev/fd",
        "++ ln -s /proc/self/fd/0 dev/stdin",
        "++ ln -s /proc/self/fd/1 dev/stdout",
        "++ ln -s /proc/self/fd/2 dev/stderr",
        "++ ln -s pts/ptmx dev/ptmx",
        "++ ln -s /proc/kcore dev/core",
        "++ mkdir -p dev/pts && mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts",
        "++ mkdir -p dev/shm && mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=65536k tmpfs dev/shm",
        "++ mkdir -p dev/mqueue && mount -t mqueue -o nosuid,nodev,noexec mqueue dev/mqueue",
        "++ mount -t tmpfs -o nosuid,nodev,noexec,mode=0755 tmpfs /dev && mkdir -p /dev/empty && printf '127.0.0.1\\tlocalhost\\n127.0.1.1\\tbox\\n' > /dev/hosts && printf 'box\\n' > /dev/hostname && printf 'nameserver 192.0.2.1\\n' > /dev/resolv.conf",
        "++ mkdir -p sys/fs/cgroup && mount --rbind -o ro,nosuid,nodev,noexec /sys/fs/cgroup/tupper/c1 sys/fs/cgroup",
        "++ mount --bind dev/null proc/kcore",
        "++ mount --bind -o ro,nosuid,nodev,noexec /dev/empty sys/firmware",
        "++ mount --bind -o ro,nosuid,nodev,noexec proc/bus proc/bus",
        "++ mount --bind -o ro,nosuid,nodev,noexec proc/sys proc/sys",
        "++ { [ -e etc/hosts ] || touch etc/hosts; } && mount --bind -o nosuid,nodev,noexec /dev/hosts etc/hosts",
        "++ { [ -e etc/hostname ] || touch etc/hostname; } && mount --bind -o nosuid,nodev,noexec /dev/hostname etc/hostname",
        "++ { [ -e etc/resolv.conf ] || touch etc/resolv.conf; } && mount --bind -o nosuid,nodev,noexec /dev/resolv.conf etc/resolv.conf",
        "++ unshare --cgroup sh",
        "++ pivot_root . .",
        "++ umount --lazy . && cd /",
        "++ ulimit -c 0",
        "++ umask 0022",
        "++ setpriv --bounding-set -all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+setfcap --reuid 0 --regid 0 --clear-groups sh",
        "++ setpriv --inh-caps -all --ambient-caps -all sh",
        "++ setpriv --no-new-privs sh",
        "++ setpriv --pdeathsig KILL sh",
        "++ # with < /dev/null at the end",
        "++ trap - HUP INT QUIT PIPE TERM",
        "++ cd /",
        "++ exec 3>&-  # and every higher one",
        "++ # no command loads a filter of system calls",
        "++ exec env -i PATH=/bin HOME=/root sh < /dev/null",
    ];
    let typed = |step: &Step| format!("{} {}", if step.shell() == Shell::Host { "+" } else { "++" }, step.command());
    let found: Vec<String> = plan(&spec(), &facts(unified())).expect("a plan").steps().iter().map(typed).collect();
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "step {i}");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn a_step_says_what_it_does() {
    let plan = plan(&spec(), &facts(unified())).expect("a plan");
    let said: Vec<String> = plan.steps().iter().map(Step::describe).collect();
    for expected in [
        "set pids.max to 1024",
        "new namespaces: user, mount, pid, uts, ipc, in cgroup /sys/fs/cgroup/tupper/c1",
        "new namespace: network",
        "mount proc at /proc",
        "mask /proc/kcore",
        "keep 11 capabilities",
        "run sh",
    ] {
        assert!(said.iter().any(|s| s == expected), "{expected:?} is not in {said:#?}");
    }
}

#[test]
fn no_step_of_the_host_follows_the_clone() {
    for hierarchies in [unified(), hybrid()] {
        let plan = plan(&spec(), &facts(hierarchies)).expect("a plan");
        let sides: Vec<Side> = plan.steps().iter().map(Step::side).collect();
        let clone = plan.steps().iter().position(|s| matches!(s, Step::Clone { .. })).expect("a clone");
        assert!(sides[..=clone].iter().all(|s| *s == Side::Before));
        assert!(sides[clone + 1..].iter().all(|s| *s != Side::Before));
        // The parent's steps are where the new process waits for them.
        let waits = plan.steps().iter().position(|s| matches!(s, Step::AwaitRoot)).expect("a wait");
        let parents = sides.iter().filter(|s| **s == Side::Parent).count();
        assert!(parents > 2 && sides[waits + 1..=waits + parents].iter().all(|s| *s == Side::Parent));
        // Nothing is made in the root by a process that is not its root.
        assert!(matches!(plan.steps()[waits + parents + 1], Step::BecomeRoot));
        // Privileges go before anything of the root runs, and nothing but these steps comes after.
        let last: Vec<_> = plan.steps().iter().rev().take(4).collect();
        assert!(matches!(last[0], Step::Exec { .. }), "{last:?}");
    }
}

#[test]
fn limits_go_to_the_hierarchy_that_has_the_controller() {
    let limits = Limits { memory: Some(1 << 20), millicpus: Some(1500), pids: Some(32), ..Limits::default() };
    let spec = Spec { limits, ..spec() };
    let found = commands(&spec, &facts(unified()));
    for expected in [
        "mkdir -p /sys/fs/cgroup && echo '+memory +cpu +pids' > /sys/fs/cgroup/cgroup.subtree_control",
        "echo 1048576 > /sys/fs/cgroup/tupper/c1/memory.max",
        "echo 1048576 > /sys/fs/cgroup/tupper/c1/memory.swap.max",
        "echo '150000 100000' > /sys/fs/cgroup/tupper/c1/cpu.max",
        "echo 32 > /sys/fs/cgroup/tupper/c1/pids.max",
    ] {
        position(&found, expected);
    }
    let found = commands(&spec, &facts(hybrid()));
    for expected in [
        "echo 1048576 > /sys/fs/cgroup/memory/tupper/c1/memory.limit_in_bytes",
        "echo 2097152 > /sys/fs/cgroup/memory/tupper/c1/memory.memsw.limit_in_bytes",
        "echo 100000 > /sys/fs/cgroup/cpu/tupper/c1/cpu.cfs_period_us",
        "echo 150000 > /sys/fs/cgroup/cpu/tupper/c1/cpu.cfs_quota_us",
        "echo 32 > /sys/fs/cgroup/pids/tupper/c1/pids.max",
        "echo 0 > /sys/fs/cgroup/memory/tupper/c1/tasks",
        "mkdir -p sys/fs/cgroup/cpu && \
         mount --rbind -o ro,nosuid,nodev,noexec /sys/fs/cgroup/cpu/tupper/c1 sys/fs/cgroup/cpu",
    ] {
        position(&found, expected);
    }
    // The namespace is rooted at the cgroup the process is in by then.
    assert!(position(&found, "echo 0 > /sys/fs/cgroup/pids/tupper/c1/tasks") < position(&found, "unshare --cgroup sh"));
    assert!(!found.iter().any(|c| c.contains("/unified")), "the v2 hierarchy limits nothing here");
}

#[test]
fn a_limit_that_nobody_asked_for_is_left_out_where_it_cannot_be_set() {
    let none = Vec::new();
    let found = commands(&spec(), &facts(none.clone()));
    assert!(!found.iter().any(|c| c.contains("cgroup.procs") || c.contains("tasks") || c.contains("pids.max")));
    let unlimited = Spec { limits: Limits { pids: Some(-1), ..Limits::default() }, ..spec() };
    assert!(!commands(&unlimited, &facts(hybrid())).iter().any(|c| c.contains("pids")));
    let asked = Spec { limits: Limits { pids: Some(5), ..Limits::default() }, ..spec() };
    let error = plan(&asked, &facts(none)).expect_err("it cannot be set");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(error.to_string(), "limit pids: this host has no such cgroup controller");
}

#[test]
fn the_mount_points_are_those_of_the_steps() {
    let spec = Spec {
        tty: true,
        volumes: vec![volume("/a", "/srv/deep/er"), volume("/b", "/srv")],
        tmpfs: vec![Tmpfs { destination: "/run".into(), options: String::new() }],
        ..spec()
    };
    let plan = plan(&spec, &facts(hybrid())).expect("a plan");
    let found: Vec<_> = plan.mount_points().map(|p| p.to_str().expect("utf-8")).collect();
    let expected = [
        "/",
        "/proc",
        "/dev",
        "/sys",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/dev/console",
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/pids",
        "/proc/kcore",
        "/sys/firmware",
        "/proc/bus",
        "/proc/sys",
        "/srv",
        "/run",
        "/srv/deep/er",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    ];
    assert_eq!(found, expected, "outer volumes come first");
}

fn volume(source: &str, destination: &str) -> Volume {
    Volume::new(source, destination)
}

/// A name, a spec and facts, commands that the plan has and commands that it has not.
type Case<'a> = (&'a str, Spec, &'a Facts, &'a [&'a str], &'a [&'a str]);

#[test]
fn what_a_spec_adds_and_takes_away() {
    let base = facts(unified());
    let user = Facts { user: User { uid: 33, gid: 34, groups: vec![4, 5], home: None }, ..base.clone() };
    let cases: &[Case<'_>] = &[
        (
            "host network",
            Spec { network: Mode::Host, ..spec() },
            &base,
            &["nsenter --target $BOX --mount --user sh -c 'mkdir -p /mnt/sys' && \
                 nsenter --target $BOX --mount mount -t sysfs -o nosuid,nodev,noexec sysfs /mnt/sys && \
                 nsenter --target $BOX --mount mount -o remount,bind,ro,nosuid,nodev,noexec /mnt/sys"],
            &["ip link set lo up", "echo '0 65535' > proc/sys/net/ipv4/ping_group_range"],
        ),
        ("read-only", Spec { read_only: true, ..spec() }, &base, &["mount -o remount,bind,ro ."], &[]),
        (
            "sealed root",
            spec(),
            &Facts { rootfs_read_only: true, ..base.clone() },
            &["mount -o remount,bind,ro ."],
            &[],
        ),
        (
            "interactive",
            Spec { interactive: true, ..spec() },
            &base,
            &["exec env -i PATH=/bin HOME=/root sh"],
            &["# with < /dev/null at the end"],
        ),
        (
            "tty",
            Spec { tty: true, ..spec() },
            &base,
            &[
                "touch dev/console && mount --bind dev/pts/0 dev/console",
                "setsid --ctty --wait sh <> /dev/console >&0 2>&0",
            ],
            &["# with < /dev/null at the end"],
        ),
        ("init", Spec { init: true, ..spec() }, &base, &["sh"], &[]),
        (
            "user",
            spec(),
            &user,
            &[
                "setpriv --bounding-set -all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
                 +net_bind_service,+sys_chroot,+setfcap --reuid 33 --regid 34 --groups 4,5 sh",
                "setpriv --inh-caps -all --ambient-caps -all sh",
                "exec env -i PATH=/bin HOME=/ sh < /dev/null",
            ],
            &[],
        ),
        ("home", Spec { env: vec!["HOME=/h".into()], ..spec() }, &base, &["exec env -i HOME=/h sh < /dev/null"], &[]),
        ("cwd", Spec { cwd: "/srv/x".into(), ..spec() }, &base, &["mkdir -p srv/x", "cd /srv/x"], &["cd /"]),
        (
            "no user namespace",
            Spec { volumes: vec![volume("/a", "/b")], ..spec() },
            &Facts { maps: None, ..base.clone() },
            &[
                "echo '0 2147483647' > proc/sys/net/ipv4/ping_group_range",
                "nsenter --target $BOX --mount mount --bind -o nosuid,nodev /store/c1/rootfs /mnt",
                "nsenter --target $BOX --mount sh -c 'mknod -m 0666 /mnt/dev/null c 1 3'",
                "mkdir -p b && mount --rbind -o nosuid,nodev /a b",
            ],
            &[],
        ),
        (
            "a user's own streams",
            spec(),
            &user,
            &["chown --dereference 231105 /proc/self/fd/[012]"],
            &["chown --dereference 231072 /proc/self/fd/[012]"],
        ),
        (
            "own hosts",
            Spec { volumes: vec![volume("/h", "/etc/hosts")], ..spec() },
            &base,
            &["nsenter --target $BOX --mount --user sh -c 'mkdir -p /mnt/etc/hosts' && nsenter --target $BOX \
                 --mount mount --rbind -o nosuid,nodev,X-mount.idmap=/proc/$BOX/ns/user /h /mnt/etc/hosts"],
            &["{ [ -e etc/hosts ] || touch etc/hosts; } && mount --bind -o nosuid,nodev,noexec /dev/hosts etc/hosts"],
        ),
        (
            "tmpfs",
            Spec {
                tmpfs: vec![Tmpfs { destination: "/t".into(), options: "size=1m,exec,ro,mode=700".into() }],
                ..spec()
            },
            &base,
            &[
                "mkdir -p t && mount -t tmpfs -o nosuid,nodev,size=1m,mode=700 tmpfs t && mount -o remount,bind,ro,nosuid,nodev t",
            ],
            &[],
        ),
        (
            "no mqueue",
            spec(),
            &Facts { mqueue: false, ..base.clone() },
            &[],
            &["mkdir -p dev/mqueue && mount -t mqueue -o nosuid,nodev,noexec mqueue dev/mqueue"],
        ),
    ];
    for (name, spec, facts, with, without) in cases {
        let found = commands(spec, facts);
        for expected in *with {
            assert!(found.iter().any(|c| c == expected), "{name}: {expected:?} is not in {found:#?}");
        }
        for unexpected in *without {
            assert!(!found.iter().any(|c| c == unexpected), "{name}: {unexpected:?}");
        }
    }
}

#[test]
fn the_last_word_on_privileges_comes_in_the_order_in_which_it_lasts() {
    let user = User { uid: 33, gid: 34, groups: Vec::new(), home: None };
    let found = commands(&Spec { init: true, ..spec() }, &Facts { user, ..facts(unified()) });
    let order = [
        "pivot_root . .",
        "umount --lazy . && cd /",
        "setpriv --bounding-set -all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
         +sys_chroot,+setfcap --reuid 33 --regid 34 --clear-groups sh",
        "setpriv --no-new-privs sh",
        "sh",
        "trap - HUP INT QUIT PIPE TERM",
        "exec 3>&-  # and every higher one",
    ];
    let places: Vec<usize> = order.iter().map(|c| position(&found, c)).collect();
    assert!(places.is_sorted(), "{places:?}");
    // Once at the start, and once more after each change of the user.
    let deaths: Vec<usize> =
        found.iter().enumerate().filter(|(_, c)| *c == "setpriv --pdeathsig KILL sh").map(|(i, _)| i).collect();
    assert_eq!(deaths.len(), 3);
    assert!(places[2] < deaths[2] && deaths[2] < places[4]);
}

#[test]
fn specs_that_make_no_sense_are_refused() {
    let tmpfs = |destination: &str, options: &str| Spec {
        tmpfs: vec![Tmpfs { destination: destination.into(), options: options.into() }],
        ..spec()
    };
    let to = |destination: &str| Spec { volumes: vec![volume("/a", destination)], ..spec() };
    let limits = |limits| Spec { limits, ..spec() };
    let cases = [
        ("no command", Spec { args: Vec::new(), ..spec() }),
        ("NUL", Spec { args: vec!["a\0b".into()], ..spec() }),
        ("hostname", Spec { hostname: String::new(), ..spec() }),
        ("hostname", Spec { hostname: "h".repeat(65), ..spec() }),
        ("hostname", Spec { hostname: "a\nb".into(), ..spec() }),
        ("working directory", Spec { cwd: "srv".into(), ..spec() }),
        ("volume source", Spec { volumes: vec![volume("a", "/b")], ..spec() }),
        ("volume b", to("b")),
        ("volume /", to("/")),
        ("volume /proc", to("/proc")),
        ("volume /proc/sys", to("/proc/sys")),
        ("volume /dev", to("/dev")),
        ("volume /a/../proc", to("/a/../proc")),
        ("tmpfs /sys", tmpfs("/sys", "")),
        ("tmpfs /t: option \"dev\"", tmpfs("/t", "dev")),
        ("tmpfs /t: option \"mode=9\"", tmpfs("/t", "mode=9")),
        ("tmpfs /t: option \"x=y\"", tmpfs("/t", "size=1m,x=y")),
        ("limit memory", limits(Limits { memory: Some(0), ..Limits::default() })),
        ("limit cpus", limits(Limits { millicpus: Some(9), ..Limits::default() })),
    ];
    for (names, spec) in cases {
        let error = plan(&spec, &facts(unified())).expect_err(names);
        assert_eq!(error.kind(), Kind::Invalid, "{names}: {error}");
        assert!(error.to_string().contains(names), "{error} does not name {names}");
    }
}

#[test]
fn who_is_not_mapped_cannot_run_anything() {
    let one = |size| vec![IdMap { inside: 0, outside: 1000, size }];
    let base = Facts { maps: Some(Maps { uids: one(33), gids: one(100) }), ..facts(unified()) };
    let by = |uid, gid, groups| Facts { user: User { uid, gid, groups, home: None }, ..base.clone() };
    plan(&spec(), &by(32, 99, vec![5])).expect("mapped");
    for (says, facts) in [
        ("user 33:", by(33, 34, Vec::new())),
        ("group 100:", by(32, 100, Vec::new())),
        ("group 101:", by(32, 99, vec![5, 101])),
    ] {
        let error = plan(&spec(), &facts).expect_err(says);
        assert!(error.to_string().starts_with(says) && error.hint().is_some(), "{error}");
    }
    // Of a map without group 5 devpts would be refused, and ping_group_range by one that is shorter.
    let found = commands(&spec(), &Facts { maps: Some(Maps { uids: one(5), gids: one(5) }), ..base.clone() });
    position(
        &found,
        "mkdir -p dev/pts && mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=0620 devpts dev/pts",
    );
    position(&found, "echo '0 4' > proc/sys/net/ipv4/ping_group_range");
}

#[test]
fn a_spec_is_a_document() {
    let spec: Spec = serde_json::from_str(r#"{"args":["a"],"network":"host","limits":{"pids":7}}"#).expect("it parses");
    assert_eq!((&spec.network, spec.limits.pids, spec.cwd.to_str()), (&Mode::Host, Some(7), Some("/")));
    assert_eq!(spec.users, Users::Auto, "what is not said is the default");
    let text = serde_json::to_string(&spec).expect("it prints");
    assert_eq!(serde_json::from_str::<Spec>(&text).expect("it parses again"), spec);
    serde_json::from_str::<Spec>(r#"{"previleged":true}"#).expect_err("a word it does not know");
}

#[test]
fn the_filter_of_system_calls_comes_as_late_as_it_can() {
    let facts = facts(unified());
    let with = |security: Security, init| commands(&Spec { security, init, ..spec() }, &facts);
    let filter = "# no command loads a filter of system calls";
    let none = || Security::default();
    let unconfined = Security { seccomp: Seccomp::Unconfined, ..none() };
    let privileged = Security { privileged: true, ..none() };
    for security in [unconfined, privileged] {
        assert!(!with(security, false).iter().any(|c| c == filter));
    }
    // Without no_new_privs it needs a capability, and comes before they go.
    let found = with(Security { no_new_privileges: false, ..none() }, true);
    let bounding = found.iter().position(|c| c.starts_with("setpriv --bounding-set")).expect("a bounding set");
    assert_eq!(position(&found, filter), bounding - 1);
    // Init is under it.
    let steps = plan(&Spec { init: true, ..spec() }, &facts).expect("a plan");
    let fork = steps.steps().iter().position(|step| matches!(step, Step::ForkInit)).expect("init");
    let found = with(none(), true);
    assert_eq!(position(&found, filter), fork - 1);
    assert!(position(&found, "setpriv --no-new-privs sh") < fork);
    // What a container may get decides what it may call.
    let length = |security: Security| {
        let steps = plan(&Spec { security, ..spec() }, &facts).expect("a plan");
        let filters = steps.steps().iter().filter_map(|step| match step {
            Step::FilterCalls(filter) => Some(filter.program.clone()),
            _ => None,
        });
        filters.collect::<Vec<_>>()
    };
    assert_ne!(length(none()), length(Security { cap_add: vec!["sys_admin".into()], ..none() }));
}

#[test]
fn limits_of_processes_are_set_from_outside() {
    let limit = |name, soft, hard| ResourceLimit::new(name, soft, hard).expect("a limit");
    let ulimits = vec![limit("nofile", Some(64), Some(128)), limit("core", None, None)];
    let security = Security { ulimits, ..Security::default() };
    let found = commands(&Spec { security, ..spec() }, &facts(unified()));
    position(&found, "prlimit --pid $BOX --nofile=64:128");
    position(&found, "prlimit --pid $BOX --core=unlimited:unlimited");
    assert!(!found.iter().any(|c| c == "ulimit -c 0"), "core files are as one says");
}
