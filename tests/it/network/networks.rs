//! `network create`, `ls`, `inspect`, `rm` and `prune`, and the place that a container has in a network.

use serde_json::json;

use super::host::*;
use crate::support::eventually;

#[test]
fn networks_are_made_listed_and_removed() {
    let net = Net::new();
    let before = net.host.state();
    assert_eq!(net.ok("network create --label team=web front"), "front");
    assert_eq!(net.ok("network create --driver ptp --internal pairs"), "pairs");
    assert_eq!(net.lines("network ls -q"), ["bridge", "front", "pairs", "ptp"]);
    assert!(net.lines("network ls")[2].ends_with("front   bridge"), "{}", net.ok("network ls"));
    assert_eq!(net.lines("network ls -q --filter driver=ptp"), ["pairs", "ptp"]);
    assert_eq!(net.lines("network ls -q --filter label=team=web"), ["front"]);
    assert!(net.fails(1, "network create front").contains("it exists already"));
    assert_eq!(net.ok("network create --ignore front"), "front");
    assert!(net.fails(1, "network create bridge").contains("there always is one"));
    assert!(net.fails(1, "network rm bridge").contains("there always is one"));
    assert_eq!(net.host.state(), before, "nothing is on the host before somebody is in it");

    let found = &net.json("network inspect front")[0];
    assert_eq!(found["subnets"], json!([{ "subnet": "10.72.0.0/24", "gateway": "10.72.0.1" }]));
    assert_eq!(
        (&found["driver"], &found["internal"], &found["dns_enabled"]),
        (&json!("bridge"), &json!(false), &json!(true))
    );
    net.idle("a", "--network front:ip=10.72.0.9,alias=x --mac-address 02:00:00:00:00:07");
    let found = &net.json("network inspect front")[0];
    let members = found["containers"].as_object().expect("members");
    let member = members.values().next().expect("a member");
    assert_eq!(member["name"], "a");
    assert_eq!(member["interfaces"]["eth0"]["mac_address"], "02:00:00:00:00:07");
    assert_eq!(member["interfaces"]["eth0"]["subnets"][0]["ipnet"], "10.72.0.9/24");
    assert!(net.host.state().contains(found["network_interface"].as_str().expect("a bridge")));
    assert_eq!(net.ok("exec a cat /sys/class/net/eth0/address"), "02:00:00:00:00:07");

    assert!(net.fails(1, "network rm front").contains("containers have it"));
    net.ok("stop -t 0 a");
    assert!(net.fails(1, "network rm front").contains("containers have it"), "it is to be there when that is started");
    assert_eq!(net.ok("network prune --force --dry-run"), "pairs");
    assert_eq!(net.ok("network prune --force"), "pairs");
    assert_eq!(net.lines("network rm --force front"), ["front"]);
    assert_eq!(net.ok("ps -aq"), "");
    assert_eq!(net.lines("network ls -q"), ["bridge", "ptp"]);
    for verb in ["run --rm", "run -d", "create"] {
        let error = net.run(&format!("{verb} --network front busybox true"));
        assert!(error.status != 0 && error.stderr.contains("front: no such network"), "{error}");
    }
    assert!(net.run("network inspect front").stderr.contains("front: no such network"));
    net.remove_all(&before);
}

#[test]
fn nets_are_free_of_what_the_host_has() {
    let net = Net::new();
    net.host.sh("ip route add 10.64.0.0/14 via 192.0.2.2; ip route add blackhole 10.72.0.0/24");
    assert_eq!(net.ok("run --rm busybox hostname -i"), "10.68.0.2");
    net.ok("network create a");
    let subnet = |name: &str| net.json(&format!("network inspect {name}"))[0]["subnets"][0]["subnet"].clone();
    assert_eq!(subnet("a"), "10.72.1.0/24");
    for (subnet, why) in [
        ("10.66.0.0/24", "overlaps with this host's route to 10.64.0.0/14"),
        ("10.72.1.128/25", "overlaps with network a"),
        ("10.99.0.1/24", "the net that it is in is 10.99.0.0/24"),
        ("10.99.0.0/31", "not of 4 to 2^24 addresses"),
    ] {
        let error = net.fails(1, &format!("network create --subnet {subnet} b"));
        assert!(error.contains(why), "{subnet}: {error}");
    }
    assert!(net.fails(1, "network create --subnet 10.99.0.0/24 --gateway 10.98.0.1 b").contains("not an address"));
    net.ok("network create --subnet 10.99.0.0/24 --gateway 10.99.0.254 b");
    assert_eq!(net.ok("run --rm --network b busybox hostname -i"), "10.99.0.1");
    // A route that came later.
    net.host.sh("ip route add 10.99.0.0/16 via 192.0.2.2");
    eventually("it is not in use any more", PATIENCE, || net.host.sh("ip -o link show type bridge").is_empty());
    let error = net.fails(125, "run --rm --network b busybox true");
    assert!(error.contains("its net 10.99.0.0/24 overlaps with this host's route to 10.99.0.0/16"), "{error}");
}

#[test]
fn addresses_are_given_out_once_and_run_out() {
    let net = Net::new();
    net.ok("network create --subnet 10.99.0.0/29 small");
    for name in ["a", "b", "c", "d", "e"] {
        net.idle(name, "--network small");
    }
    let error = net.fails(125, "run --rm --network small busybox true");
    assert!(error.contains("network small: all 5 addresses of 10.99.0.0/29 are in use"), "{error}");
    assert!(error.contains("hint: end a container"), "{error}");
    let gone = net.address("c");
    net.ok("rm -f c");
    assert_eq!(net.ok("run --rm --network small busybox hostname -i"), gone, "the only one that is free");
    for (ip, why) in [
        ("10.99.0.2", "another has it"),
        ("10.99.0.1", "another has it"),
        ("10.99.0.7", "not one of its own"),
        ("10.99.0.0", "not one of its own"),
        ("10.98.0.2", "not one of its own"),
    ] {
        let error = net.fails(125, &format!("run --rm --network small --ip {ip} busybox true"));
        assert!(error.contains(why), "{ip}: {error}");
    }
    net.ok("rm -f --all");
    // Who has just left is not replaced at once: others may still know the address as that one's.
    let next = || net.ok("run --rm --network small busybox hostname -i");
    net.idle("stays", "--network small");
    assert_ne!(next(), next());
    net.ok("rm -f stays");
}

#[test]
fn a_hundred_are_on_one_bridge() {
    let net = Net::alone();
    let before = net.host.state();
    let traces = net.store.traces();
    for number in 0..100 {
        net.ok(&format!("run -d --name c{number} busybox sleep 100000"));
    }
    let (first, last) = (net.namespace("c0"), net.namespace("c99"));
    let _last = Answerer::at(&last, 80);
    assert_eq!(ask(&first, &format!("{}:80", net.address("c99"))), Some(net.address("c0")));
    assert_eq!(net.host.sh("ip -o link").matches(": tupperv").count(), 100);
    let members = net.json("network inspect bridge")[0]["containers"].as_object().expect("members").len();
    assert_eq!(members, 100);
    drop(_last);
    net.remove_all(&before);
    eventually("nothing is left", PATIENCE, || net.store.traces() == traces);
}
