//! What a command sees of itself and of its surroundings.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tupper::network;
use tupper::sandbox::{Spec, Tmpfs, Volume};

use super::harness::{Root, plan_of, shell};

#[test]
fn the_mounts_are_those_that_the_plan_lists() {
    let root = Root::new();
    let volume = tempfile::tempdir().expect("a directory");
    let spec = Spec {
        volumes: vec![Volume::new(volume.path(), "/srv/deep")],
        tmpfs: vec![Tmpfs { destination: "/run".into(), options: "size=1m".into() }],
        ..shell("cut -d' ' -f5 /proc/self/mountinfo")
    };
    let mut planned: Vec<String> = plan_of(&root, &spec).mount_points().map(|p| p.display().to_string()).collect();
    let outcome = root.run(spec);
    let mut found: Vec<String> = outcome.lines().into_iter().map(String::from).collect();
    planned.sort();
    found.sort();
    assert_eq!(found, planned);
}

#[test]
fn it_has_namespaces_of_its_own() {
    let outcome = Root::new().sh("echo $$; for n in mnt pid uts ipc net cgroup; do readlink /proc/self/ns/$n; done; \
                                  hostname; cat /etc/hostname; cat /proc/self/cgroup | cut -d: -f3 | sort -u");
    let lines = outcome.lines();
    assert_eq!(lines[0], "1");
    for (name, inside) in ["mnt", "pid", "uts", "ipc", "net", "cgroup"].iter().zip(&lines[1..]) {
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
        assert!(inside.starts_with(name), "{inside}");
        assert_ne!(outside.to_str(), Some(*inside), "{name}");
    }
    assert_eq!(lines[7..], ["box", "box", "/"]);
}

#[test]
fn it_has_loopback_and_nothing_else_unless_it_has_the_hosts_network() {
    let root = Root::new();
    let outcome = root.sh("ls /sys/class/net; ip -o addr show lo | grep -c 'inet 127.0.0.1'; \
                           cat /proc/sys/net/ipv4/ping_group_range");
    assert_eq!(outcome.lines(), ["lo", "1", "0\t65535"]);
    let host =
        root.run(Spec { network: network::Mode::Host, ..shell("readlink /proc/self/ns/net; touch /sys/x; echo $?") });
    let outside = fs::read_link("/proc/self/ns/net").expect("a namespace");
    assert_eq!(host.lines(), [outside.to_str().expect("utf-8"), "1"]);
}

fn status(root: &Root, spec: Spec) -> BTreeMap<String, String> {
    let outcome = root.run(spec);
    let pairs = outcome.output().lines().filter_map(|l| l.split_once(':'));
    pairs.map(|(k, v)| (k.to_string(), v.trim().to_string())).collect()
}

#[test]
fn privileges_are_the_defaults() {
    let root = Root::new();
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP: capability.h
    // numbers 0 1 3 4 5 6 7 8 10 18 31.
    let eleven = "00000000800405fb";
    let none = "0000000000000000";
    let as_root = status(&root, shell("cat /proc/self/status"));
    for (key, value) in [("CapPrm", eleven), ("CapEff", eleven), ("CapBnd", eleven), ("CapInh", none), ("CapAmb", none)]
    {
        assert_eq!(as_root[key], value, "{key}");
    }
    assert_eq!((as_root["NoNewPrivs"].as_str(), as_root["Umask"].as_str()), ("1", "0022"));
    let args = ["cat", "/proc/self/status"].map(String::from).to_vec();
    let as_root = status(&root, Spec { args, ..shell("") });
    assert_eq!((as_root["SigBlk"].as_str(), as_root["SigIgn"].as_str()), (none, none));
    let as_web = status(&root, Spec { user: Some("web".into()), ..shell("cat /proc/self/status") });
    for key in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(as_web[key], none, "{key}");
    }
    assert_eq!(as_web["CapBnd"], eleven);
    assert_eq!((as_web["Uid"].as_str(), as_web["Gid"].as_str()), ("33\t33\t33\t33", "34\t34\t34\t34"));
    assert_eq!(as_web["Groups"], "4");
}

#[test]
fn it_inherits_nothing() {
    let spec =
        Spec { cwd: "/made/for/it".into(), ..shell("ls /proc/self/fd | wc -l; pwd; env | sort; ulimit -c; cat; tty") };
    let outcome = Root::new().run(spec);
    assert_eq!(outcome.end, "code 1 false", "tty fails without a terminal");
    // Four: 0, 1, 2 and the directory that ls reads.
    let expected = ["4", "/made/for/it", "HOME=/root", "PATH=/bin", "PWD=/made/for/it", "SHLVL=1", "0", "not a tty"];
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn masked_paths_show_nothing_and_read_only_ones_take_nothing() {
    let root = Root::new();
    let plan = plan_of(&root, &shell("true"));
    let masked = plan.steps().iter().filter(|s| s.describe().starts_with("mask "));
    let masked: Vec<String> = masked.filter_map(|s| s.mount_point()).map(|p| p.display().to_string()).collect();
    assert!(
        masked.contains(&"/proc/keys".to_string()) && masked.contains(&"/proc/interrupts".to_string()),
        "{masked:?}"
    );
    let script =
        format!("for p in {}; do if [ -d $p ]; then ls -A $p; else cat $p; fi; done | wc -c", masked.join(" "));
    assert_eq!(root.sh(&script).output(), "0");
    let outcome = root.sh("for f in /sys/x /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /sys/fs/cgroup/x \
                           /proc/sysrq-trigger /proc/irq/default_smp_affinity; do \
                           (echo 1 > $f) 2> /dev/null && echo $f; done; mount -o remount,rw /proc/sys 2>&1; true");
    assert_eq!(outcome.lines(), ["mount: permission denied (are you root?)"]);
}

#[test]
fn its_devices_work_and_those_of_the_image_do_not() {
    let root = Root::new();
    let mode = Mode::from_bits_truncate(0o666);
    mknod(&root.path("zero"), SFlag::S_IFCHR, mode, makedev(1, 5)).expect("mknod");
    let outcome = root.sh("head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x > /dev/null; \
                           (echo x > /dev/full) 2>&1 | grep -c 'No space'; \
                           stat -c '%a %t:%T' /dev/null; ls -l /dev/ptmx /dev/stdin | wc -l; \
                           echo a > /dev/shm/x; cat /dev/shm/x; ls -d /dev/mqueue; cat /dev/stdin | wc -c; \
                           head -c 1 /zero 2>&1; mknod /dev/mem c 1 1 2>&1; ls /dev/fuse /dev/mem 2>&1 | wc -l");
    let expected = [
        "4",
        "4",
        "1",
        "666 1:3",
        "2",
        "a",
        "/dev/mqueue",
        "0",
        "head: /zero: Permission denied",
        "mknod: /dev/mem: Operation not permitted",
        "2",
    ];
    assert_eq!(outcome.lines(), expected);
}

#[test]
fn volumes_show_the_host_and_only_as_far_as_allowed() {
    let root = Root::new();
    let host = tempfile::tempdir().expect("a directory");
    fs::write(host.path().join("file"), "from the host").expect("write");
    fs::create_dir(host.path().join("sub")).expect("mkdir");
    let volume = |source: &str, destination: &str, read_only| Volume {
        read_only,
        ..Volume::new(host.path().join(source), destination)
    };
    let spec = Spec {
        volumes: vec![
            volume("file", "/new/place/file", true),
            volume("", "/rw", false),
            volume("", "/ro", true),
            volume("sub", "/ro/sub", false),
        ],
        ..shell(
            "cat /new/place/file; echo; echo in > /rw/in; (echo in > /ro/no) 2>&1 | grep -c 'Read-only'; \
                 echo deep > /ro/sub/deep; cat /rw/sub/deep; (echo x > /new/place/file) 2>&1 | grep -c 'Read-only'; \
                 grep -E ' /(rw|ro) ' /proc/self/mountinfo | grep -c nosuid,nodev",
        )
    };
    assert_eq!(root.run(spec).lines(), ["from the host", "1", "deep", "1", "2"]);
    assert_eq!(fs::read_to_string(host.path().join("in")).expect("read"), "in\n");
    assert!(!host.path().join("no").exists());
    let missing = Spec { volumes: vec![volume("nothing", "/x", false)], ..shell("true") };
    let end = root.run(missing).end;
    assert!(end.contains("NotFound clone the mount of") && end.contains("nothing: no such file"), "{end}");
}

#[test]
fn read_only_roots_and_tmpfs() {
    let root = Root::new();
    let spec = Spec {
        read_only: true,
        tmpfs: vec![Tmpfs { destination: "/tmp".into(), options: "size=64k,mode=700".into() }],
        cwd: "/srv".into(),
        ..shell(
            "(touch /x) 2>&1 | grep -c Read-only; echo y > /tmp/y; cat /tmp/y; stat -c %a /tmp; \
                 head -c 100000 /dev/zero 2>/dev/null > /tmp/z; stat -c %s /tmp/z; pwd; \
                 (echo '#' >> /etc/hosts) 2>&1 | grep -c Read-only",
        )
    };
    let outcome = root.run(spec);
    let lines = outcome.lines();
    assert_eq!(lines[..3], ["1", "y", "700"]);
    assert!(lines[3].parse::<u32>().expect("a size") <= 65536);
    assert_eq!(lines[4..], ["/srv", "1"]);
}

#[test]
fn the_files_it_is_given_are_not_the_roots() {
    let root = Root::new();
    root.write("etc/resolv.conf", b"nameserver 192.0.2.9\n");
    let outcome = root.sh("echo mine > /etc/resolv.conf; cat /etc/hosts; echo evil > /etc/hostname; echo kept > /kept");
    assert!(outcome.output().contains("127.0.0.1\tlocalhost") && outcome.output().contains("box"));
    assert_eq!(fs::read_to_string(root.path("etc/resolv.conf")).expect("read"), "nameserver 192.0.2.9\n");
    assert_eq!(fs::read_to_string(root.path("etc/hostname")).expect("read"), "", "made empty, as a mount point");
    assert_eq!(fs::read_to_string(root.path("kept")).expect("read"), "kept\n");
}
