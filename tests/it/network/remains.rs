//! What is left of networks: nothing, whoever was killed; and what others have is left alone.

use nix::sys::signal::{Signal, kill};

use super::host::*;
use crate::support::eventually;

#[test]
fn a_short_one_leaves_nothing_a_moment_later() {
    let net = Net::alone();
    let (before, traces) = (net.host.state(), net.store.traces());
    for network in ["bridge", "ptp", "bridge"] {
        net.ok(&format!("run --rm --network {network} -p 8080:80 busybox true"));
    }
    eventually("links and rules are gone", PATIENCE, || net.host.state() == before);
    eventually("nothing is left", PATIENCE, || net.store.traces() == traces);
    // What fails leaves no more.
    net.fails(127, "run --rm busybox nosuchcommand");
    net.fails(125, "run --rm --ip 10.1.1.1 busybox true");
    eventually("nothing is left", PATIENCE, || net.host.state() == before && net.store.traces() == traces);
    // One that was there for longer takes everything away itself.
    net.ok("run --rm busybox sleep 1.2");
    eventually("the pair is gone", PATIENCE, || !net.host.state().contains("tupperv"));
    assert_eq!(net.host.state(), before);
}

#[test]
fn who_was_killed_leaves_what_a_gc_and_the_next_take_away() {
    let net = Net::alone();
    let (before, traces) = (net.host.state(), net.store.traces());
    for next_run in [false, true] {
        net.idle("a", "-p 8080:80");
        net.idle("b", "");
        kill(net.monitor("a"), Signal::SIGKILL).expect("a monitor");
        eventually("its container died with it", PATIENCE, || net.ok("ps -q").lines().count() == 1);
        // Its port is free, its address too, and its name is nobody's.
        net.ok("run --rm -p 8080:80 busybox true");
        kill(net.monitor("b"), Signal::SIGKILL).expect("a monitor");
        eventually("its container died with it", PATIENCE, || net.ok("ps -q").is_empty());
        if next_run {
            net.ok("run --rm busybox true");
            net.ok("rm --all");
        } else {
            let swept = net.ok("store gc");
            assert!(swept.contains("network /run/tupper/networks/tupperb"), "{swept}");
            net.ok("rm --all");
        }
        eventually("nothing is left", PATIENCE, || net.host.state() == before && net.store.traces() == traces);
        assert_eq!(net.ok("store check"), "");
    }
}

#[test]
fn who_was_killed_while_it_took_a_network_away_leaves_it_to_the_next() {
    let net = Net::alone();
    let before = net.host.state();
    net.ok("run --rm busybox true");
    let root = net.store.root().to_str().expect("plain").as_bytes().to_vec();
    let is_ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(root.len()).any(|part| part == root)
    };
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(is_ours);
    for pid in pids {
        let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL); // one that has just ended is as good
    }
    // As far as that had come: the file that tells when somebody was there last has gone already.
    for used in std::fs::read_dir("/run/tupper/networks").expect("networks in use").flatten() {
        std::fs::remove_file(used.path().join("alive")).expect("it was there");
    }
    assert_ne!(net.host.state(), before, "nobody is left to take it away");
    net.ok("snapshot create busybox after");
    assert_eq!(net.host.state(), before);
}

#[test]
fn rules_that_somebody_flushed_are_there_again() {
    let net = Net::new();
    let outside = net.outside.path();
    let _outside = Answerer::at(&outside, 82);
    let a = net.idle("a", "-p 8080:80");
    let _a = Answerer::at(&a, 80);
    net.host.sh("nft flush ruleset");
    assert_eq!(ask_in_vain(&outside, &format!("{HOST}:8080")), None);
    net.ok("run --rm busybox true");
    assert!(ask(&outside, &format!("{HOST}:8080")).is_some());
    assert_eq!(ask(&a, &format!("{OUTSIDE}:82")), Some(HOST.to_string()));
}

#[test]
fn the_rules_of_others_are_left_alone_and_named_where_they_are_in_the_way() {
    let net = Net::new();
    let theirs = "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }";
    let mine = "table inet mine { set s { type ipv4_addr; elements = { 1.2.3.4 }; }; }";
    net.host.sh(&format!("nft '{theirs}'; nft '{mine}'"));
    let rules = net.host.sh("nft list ruleset");
    let _outside = Answerer::at(&net.outside.path(), 82);
    let done = net.run("run -d --name a busybox sleep 100000");
    let said = "the firewall's chain ip filter FORWARD drops what it does not know";
    assert!(done.status == 0 && done.stderr.contains(said), "{done}");
    let a = net.namespace("a");
    assert_eq!(ask_in_vain(&a, &format!("{OUTSIDE}:82")), None, "that one is in the way indeed");
    // What it says helps.
    let admit = done.stderr.lines().find(|line| line.contains(said)).expect("a line");
    let command = admit.split("to admit this network: ").nth(1).expect("a command");
    let command = command.replace("iptables -I FORWARD -i", "nft insert rule ip filter FORWARD iifname");
    let command = command.replace("iptables -I FORWARD -o", "nft insert rule ip filter FORWARD oifname");
    net.host.sh(&command.replace("-j ACCEPT", "accept"));
    assert_eq!(ask(&a, &format!("{OUTSIDE}:82")), Some(HOST.to_string()));
    net.ok("rm -f a");
    // Said once: whoever has admitted it knows.
    let again = net.run("run --rm busybox true");
    assert!(again.status == 0 && again.stderr.is_empty(), "{again}");
    eventually("it is gone", PATIENCE, || net.host.sh("ip -o link show type bridge").is_empty());
    net.host.sh("nft flush chain ip filter FORWARD");
    assert_eq!(net.host.sh("nft list ruleset"), rules);
}

#[test]
fn names_are_answered_once_the_host_lets_them_in() {
    let net = Net::new();
    net.host.sh("nft 'table ip filter { chain INPUT { type filter hook input priority filter; policy drop; }; }'");
    let done = net.run("run -d --name a busybox sleep 100000");
    let admit = done.stderr.lines().find(|line| line.contains("INPUT drops what it does not know")).expect("a line");
    let ask = || net.run("exec a timeout 2 nslookup a").status;
    assert_ne!(ask(), 0, "that one is in the way indeed");
    let command = admit.split("to admit this network: ").nth(1).expect("a command");
    let command = command.replace("iptables -I INPUT -i", "nft insert rule ip filter INPUT iifname");
    net.host.sh(&command.replace("-m conntrack --ctstate DNAT -j ACCEPT", "ct status dnat accept"));
    assert_eq!(ask(), 0);
    let _host = Answerer::at(&net.host.path(), 83);
    assert_eq!(ask_in_vain(&net.namespace("a"), &format!("{HOST}:83")), None, "and nothing else");
}

#[test]
fn forwarding_is_turned_on_and_said() {
    let net = Net::new();
    net.host.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let first = net.run("run --rm busybox true");
    assert!(first.stderr.contains("net.ipv4.ip_forward is 1"), "{first}");
    let second = net.run("run --rm busybox true");
    assert!(!second.stderr.contains("ip_forward"), "{second}");
    assert_eq!(net.host.sh("cat /proc/sys/net/ipv4/ip_forward"), "1");
}

#[test]
fn killed_at_any_time_it_leaves_what_goes() {
    let net = Net::alone();
    let (before, traces) = (net.host.state(), net.store.traces());
    for turn in 0..24 {
        let mut command = net.command("run --rm -p 8080:80 busybox sleep 0.02", &[]);
        let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("tupper");
        std::thread::sleep(std::time::Duration::from_millis(turn * 4));
        let _ = child.kill();
        child.wait().expect("its end");
    }
    // The next does not stumble over it.
    net.ok("run --rm -p 8080:80 busybox true");
    net.ok("store gc");
    eventually("nothing is left", PATIENCE, || net.host.state() == before && net.store.traces() == traces);
    assert_eq!(net.ok("store check"), "");
}
