//! What a container may do beyond the default, and less: capabilities, new privileges, what of /proc and /sys it sees.

use std::fs;

use crate::support::command::Done;
use crate::support::store::Store;

fn script(store: &Store, flags: &str, script: &str) -> Done {
    store.run_with(&format!("run --rm {flags} busybox sh -c"), &[script])
}

/// CapInh, CapPrm, CapEff, CapBnd and CapAmb.
fn sets(store: &Store, flags: &str) -> [u64; 5] {
    let said = script(store, flags, "grep ^Cap /proc/self/status").ok();
    let masks: Vec<u64> = said
        .lines()
        .map(|line| u64::from_str_radix(line.rsplit('\t').next().expect("a mask"), 16).expect("hexadecimal"))
        .collect();
    masks.try_into().expect("five sets")
}

/// The eleven of podman's default.
const DEFAULT: u64 = 0x8004_05fb;
const NET_RAW: u64 = 1 << 13;

#[test]
fn capabilities_are_added_and_dropped_and_never_inherited() {
    let store = Store::new();
    for (flags, kept) in [
        ("", DEFAULT),
        ("--cap-add NET_RAW", DEFAULT | NET_RAW),
        ("--cap-add cap_net_raw --cap-drop chown,setuid", (DEFAULT | NET_RAW) & !(1 | 1 << 7)),
        ("--cap-drop all", 0),
        ("--cap-drop ALL --cap-add kill", 1 << 5),
        ("--userns host --cap-add NET_RAW", DEFAULT | NET_RAW),
    ] {
        assert_eq!(sets(&store, flags), [0, kept, kept, kept, 0], "{flags}");
        let [inherited, permitted, effective, bounding, ambient] = sets(&store, &format!("{flags} -u 33"));
        assert_eq!([inherited, permitted, effective, bounding, ambient], [0, 0, 0, kept, 0], "{flags}, as a user");
    }
    let [.., bounding, _] = sets(&store, "--cap-add ALL");
    let last: u32 =
        fs::read_to_string("/proc/sys/kernel/cap_last_cap").expect("a number").trim().parse().expect("a number");
    assert_eq!(bounding, (1 << (last + 1)) - 1, "all that the kernel knows, in a user namespace");
    for (flags, says) in [
        ("--cap-add nonsense", "cap-add nonsense: not a capability"),
        ("--cap-drop cap_cap_kill", "not a capability"),
        ("--security-opt nonsense", "security-opt nonsense: not"),
        ("--security-opt no-new-privileges=perhaps", "not true or false"),
        ("--security-opt mask=proc", "not an absolute path"),
    ] {
        let refused = store.fails(125, &format!("run --rm {flags} busybox true"));
        assert!(refused.contains(says), "{flags}: {refused}");
    }
    // What the host's root lacks, as on a host in a container, nobody gets from it.
    let ours = fs::read_to_string("/proc/self/status").expect("a status");
    let ours = ours.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).expect("a set");
    if u64::from_str_radix(ours, 16).expect("hexadecimal") & (1 << 24) == 0 {
        let refused = store.fails(125, "run --rm --userns host --cap-add SYS_RESOURCE busybox true");
        assert!(refused.contains("the host's root lacks it"), "{refused}");
    }
}

#[test]
fn a_capability_that_is_added_can_be_used() {
    let store = Store::new();
    let link = "ip link add x type dummy 2>/dev/null || ip addr add 127.0.0.9/32 dev lo";
    script(&store, "", link).status(2);
    script(&store, "--cap-add NET_ADMIN", link).ok();
    // Of the container's own network, and of no other.
    script(&store, "--cap-add NET_ADMIN --network host", "ip addr add 127.0.0.9/32 dev lo").status(2);
}

#[test]
fn paths_are_hidden_and_shown() {
    let store = Store::new();
    let seen = |flags: &str| script(&store, flags, "ls /sys/firmware | wc -l; cat /proc/interrupts | wc -l").ok();
    assert_eq!(seen(""), "0\n0");
    let shown = seen("--security-opt unmask=/proc/interrupts");
    assert!(shown.starts_with("0\n") && shown != "0\n0", "{shown}");
    assert_ne!(seen("--security-opt unmask=ALL"), "0\n0");
    assert_eq!(seen("--security-opt mask=/proc/meminfo"), "0\n0");
    let hidden = "cat /proc/meminfo /etc/passwd | wc -c; ls /bin | wc -l; ls -d /nothing 2>/dev/null | wc -l";
    assert_eq!(
        script(&store, "--security-opt mask=/proc/meminfo:/etc/passwd:/nothing --security-opt mask=/sbin", hidden)
            .ok()
            .lines()
            .next(),
        Some("0")
    );
    let write = "echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward";
    script(&store, "--cap-add NET_ADMIN", write).status(1);
    assert_eq!(script(&store, "--cap-add NET_ADMIN --security-opt unmask=/proc/sys", write).ok(), "1");
}

#[test]
fn privileged_is_everything_that_the_host_s_root_may() {
    let store = Store::new();
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).expect("a set");
    let look = "grep -E '^CapEff|^NoNewPrivs' /proc/self/status | cut -f2; ls /sys/firmware | wc -l; \
                cat /proc/self/uid_map | wc -l; [ -w /proc/sys/kernel/core_pattern ] && echo sysctl; \
                mkdir -p /mnt && mount -t tmpfs none /mnt && echo mounted; ls /dev | wc -l";
    let done = script(&store, "--privileged", look).status(0);
    assert!(done.stderr.contains("privileged"), "it says so: {done}");
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines[..2], [bounding, "0"]);
    assert_ne!(lines[2], "0", "nothing is hidden");
    assert_eq!(lines[3..6], ["1", "sysctl", "mounted"]);
    // Every device of the host's, but terminals.
    let host = fs::read_dir("/dev").expect("devices").filter_map(|entry| entry.ok());
    let nodes = host.filter(|entry| {
        use std::os::unix::fs::FileTypeExt;
        entry.file_type().is_ok_and(|kind| kind.is_block_device() || kind.is_char_device())
    });
    assert!(lines[6].parse::<usize>().expect("a number") >= nodes.count(), "{done}");
    assert_eq!(
        script(&store, "--privileged", "cat /proc/self/uid_map").ok().split_whitespace().nth(2),
        Some("4294967295")
    );

    // In a user namespace it is root of that alone.
    let inside = script(&store, "--privileged --userns auto", "ls /dev | grep -c loop; cat /proc/self/uid_map | wc -l");
    assert_eq!(inside.stdout, "0\n1\n", "{inside}");
    store.run("run --rm --privileged --userns auto busybox mount -t btrfs /dev/loop0 /mnt").status(1);
}
