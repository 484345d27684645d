//! Who reaches whom: containers on one bridge, on two, without a way out, with bare pairs, and the world outside.

use std::path::PathBuf;

use super::host::*;

/// The host's own namespace, and the world's.
fn places(net: &Net) -> (PathBuf, PathBuf) {
    (net.host.path(), net.outside.path())
}

#[test]
fn two_on_a_bridge_the_host_and_the_world() {
    let net = Net::new();
    let before = net.host.state();
    let (host, outside) = places(&net);
    let (a, b) = (net.idle("a", ""), net.idle("b", ""));
    let (address_a, address_b) = (net.address("a"), net.address("b"));
    assert_eq!((address_a.as_str(), address_b.as_str()), ("10.64.0.2", "10.64.0.3"));

    let _b = Answerer::at(&b, 80);
    assert_eq!(ask(&a, &format!("{address_b}:80")), Some(address_a.clone()));
    assert_eq!(ask_udp(&a, &format!("{address_b}:80"), PATIENCE), Some(address_a.clone()));
    assert_eq!(ask(&host, &format!("{address_b}:80")), Some("10.64.0.1".to_string()));
    let _host = Answerer::at(&host, 81);
    assert_eq!(ask(&a, "10.64.0.1:81"), Some(address_a.clone()));
    assert_eq!(ask(&a, &format!("{HOST}:81")), Some(address_a.clone()));
    // Outside nobody knows of containers: it is the host who asks.
    let _outside = Answerer::at(&outside, 82);
    assert_eq!(ask(&a, &format!("{OUTSIDE}:82")), Some(HOST.to_string()));
    assert_eq!(ask_udp(&a, &format!("{OUTSIDE}:82"), PATIENCE), Some(HOST.to_string()));
    // And nobody from there comes in, even if he knows the way.
    net.outside.sh(&format!("ip route add 10.64.0.0/16 via {HOST}"));
    assert_eq!(ask_in_vain(&outside, &format!("{address_b}:80")), None);
    drop((_b, _host, _outside));
    net.remove_all(&before);
}

#[test]
fn ping_goes_everywhere() {
    let net = Net::new();
    net.store.import_debian();
    net.idle("other", "");
    let places = ["127.0.0.1", "10.64.0.1", "other", OUTSIDE];
    let script = places.map(|whom| format!("ping -c 1 -W 30 {whom}")).join("; ");
    let said = net.debian("", &script);
    assert_eq!(said.matches("1 received").count(), places.len(), "{said}");
    // That of busybox knows raw sockets alone.
    for whom in places {
        let said = net.ok(&format!("run --rm --cap-add net_raw busybox ping -c 1 -W 30 {whom}"));
        assert!(said.contains("1 packets received"), "{whom}: {said}");
    }
}

#[test]
fn two_bridges_do_not_meet() {
    let net = Net::new();
    let before = net.host.state();
    net.ok("network create front");
    net.ok("network create back");
    let (a, b) = (net.idle("a", "--network front"), net.idle("b", "--network back"));
    let (address_a, address_b) = (net.address("a"), net.address("b"));
    assert!(address_a.starts_with("10.72.0.") && address_b.starts_with("10.72.1."), "{address_a} {address_b}");
    let (_a, _b) = (Answerer::at(&a, 80), Answerer::at(&b, 80));
    assert_eq!(ask_in_vain(&a, &format!("{address_b}:80")), None);
    assert_eq!(ask_in_vain(&b, &format!("{address_a}:80")), None);
    assert_eq!(ask_udp(&a, &format!("{address_b}:80"), SILENCE), None);
    // What is published is for everybody.
    let c = net.idle("c", "--network back -p 8080:80");
    let _c = Answerer::at(&c, 80);
    assert!(ask(&a, &format!("{HOST}:8080")).is_some());
    drop((_a, _b, _c));
    net.remove_all(&before);
}

#[test]
fn an_internal_one_has_no_way_out() {
    let net = Net::new();
    let before = net.host.state();
    let (_, outside) = places(&net);
    net.ok("network create --internal hidden");
    net.ok("network create --internal --driver ptp pairs");
    let _outside = Answerer::at(&outside, 80);
    for network in ["hidden", "pairs"] {
        let (a, b) = (net.idle("a", &format!("--network {network}")), net.idle("b", &format!("--network {network}")));
        let _b = Answerer::at(&b, 80);
        if network == "hidden" {
            assert_eq!(ask(&a, &format!("{}:80", net.address("b"))), Some(net.address("a")));
        }
        assert_eq!(ask_in_vain(&a, &format!("{OUTSIDE}:80")), None, "{network}");
        // Not even for one who makes a route.
        let gateway = if network == "hidden" { "10.72.0.1" } else { "10.72.1.1" };
        let pid = a.iter().nth(2).and_then(|pid| pid.to_str()).expect("a pid");
        crate::support::sh("nsenter", &["-t", pid, "-n", "ip", "route", "add", "default", "via", gateway]);
        assert_eq!(ask_in_vain(&a, &format!("{OUTSIDE}:80")), None, "{network}");
        drop(_b);
        net.remove_all(&before);
    }
}

#[test]
fn a_bare_pair_has_the_host_at_its_other_end() {
    let net = Net::new();
    let before = net.host.state();
    let (host, outside) = places(&net);
    let (a, b) = (net.idle("a", "--network ptp -p 8080:80"), net.idle("b", "--network ptp"));
    let (address_a, address_b) = (net.address("a"), net.address("b"));
    assert_ne!(address_a, address_b);
    assert!(!net.host.state().contains("tupperb"), "there is no bridge");
    let (_a, _b) = (Answerer::at(&a, 80), Answerer::at(&b, 80));
    assert_eq!(ask(&host, &format!("{address_b}:80")), Some("10.64.0.1".to_string()));
    let _host = Answerer::at(&host, 81);
    assert_eq!(ask(&a, "10.64.0.1:81"), Some(address_a.clone()));
    let _outside = Answerer::at(&outside, 82);
    assert_eq!(ask(&b, &format!("{OUTSIDE}:82")), Some(HOST.to_string()));
    assert_eq!(ask_in_vain(&b, &format!("{address_a}:80")), None, "one pair is not another");
    assert_eq!(ask(&outside, &format!("{HOST}:8080")), Some(OUTSIDE.to_string()));
    assert!(ask(&host, "127.0.0.1:8080").is_some());
    drop((_a, _b));
    net.remove_all(&before);
}

#[test]
fn six_is_as_four() {
    let net = Net::new();
    net.host.sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    let before = net.host.state();
    let (host, outside) = places(&net);
    net.ok("network create --ipv6 --subnet fd00:7::/64 dual");
    let a = net.idle("a", "--network dual -p 8080:80");
    let b = net.idle("b", "--network dual --ip6 fd00:7::77");
    let _a = Answerer::at(&a, 80);
    let _b = Answerer::at(&b, 80);
    assert_eq!(ask(&a, "[fd00:7::77]:80"), Some("fd00:7::2".to_string()));
    assert_eq!(ask(&host, "[fd00:7::77]:80"), Some("fd00:7::1".to_string()));
    let _outside = Answerer::at(&outside, 82);
    assert_eq!(ask(&a, &format!("[{OUTSIDE_SIX}]:82")), Some(HOST_SIX.to_string()));
    assert_eq!(ask(&outside, &format!("[{HOST_SIX}]:8080")), Some(OUTSIDE_SIX.to_string()));
    assert_eq!(ask(&outside, &format!("{HOST}:8080")), Some(OUTSIDE.to_string()));
    assert!(ask(&host, "[::1]:8080").is_some());
    net.outside.sh(&format!("ip -6 route add fd00:7::/64 via {HOST_SIX}"));
    assert_eq!(ask_in_vain(&outside, "[fd00:7::77]:80"), None);
    let said = net.ok("run --rm --network dual busybox nslookup -type=aaaa b");
    assert!(said.contains("fd00:7::77"), "{said}");
    drop((_a, _b));
    net.remove_all(&before);
}

#[test]
fn packets_are_as_large_as_those_of_the_way_out() {
    let net = Net::new();
    net.host.sh("ip link set up0 mtu 1400");
    let mtu = |network: &str| net.ok(&format!("run --rm --network {network} busybox cat /sys/class/net/eth0/mtu"));
    assert_eq!((mtu("bridge"), mtu("ptp")), ("1400".to_string(), "1400".to_string()));
    net.ok("network create --opt mtu=1300 small");
    assert_eq!(mtu("small"), "1300");
    net.fails(1, "network create --opt mtu=100 tiny");
}

#[test]
fn a_container_shares_another_s_network() {
    let net = Net::new();
    net.store.import_debian();
    let a = net.idle("a", "-p 8080:80");
    let (_, outside) = places(&net);
    // It may do there what the other may: listen at a low port, and ping.
    net.ok_with(
        "run -d --name b --network container:a busybox sh -c",
        &["mkdir /w; echo beside >/w/index.html; exec httpd -f -p 80 -h /w"],
    );
    assert_eq!(net.namespace("b").read_link().expect("a link"), a.read_link().expect("a link"));
    let fetch = |url: &str| net.run(&format!("run --rm --network container:a busybox wget -qO- http://{url}/")).ok();
    crate::support::eventually("it serves", PATIENCE, || {
        net.run("run --rm --network container:a busybox wget -qO- http://127.0.0.1/").status == 0
    });
    assert_eq!((fetch("127.0.0.1"), fetch("a")), ("beside".to_string(), "beside".to_string()));
    assert!(ask_raw(&outside, &format!("{HOST}:8080")).contains("200 OK"));
    let said = net.debian("--network container:a", "ping -c 1 -W 30 127.0.0.1");
    assert!(said.contains("1 received"), "{said}");
    // Its ids are those of the other.
    let map = |name: &str| net.ok(&format!("exec {name} cat /proc/self/uid_map"));
    assert_eq!(map("a"), map("b"));
    let error = net.fails(125, "run --rm --network container:nobody busybox true");
    assert!(error.contains("nobody: no such container"), "{error}");
    net.ok("stop -t 0 a");
    let error = net.fails(125, "run --rm --network container:a busybox true");
    assert!(error.contains("it does not run"), "{error}");
}

/// What somebody says to a request for `/`.
fn ask_raw(from: &PathBuf, address: &str) -> String {
    let address: std::net::SocketAddr = address.parse().expect("an address");
    inside(from, move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect_timeout(&address, PATIENCE).expect("to connect");
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("to ask");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    })
}

/// CVE-2020-13401: a container that says it is a router, and gets what the host sends into the world.
#[test]
fn the_host_believes_no_router_inside() {
    let net = Net::new();
    net.host.sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; ip -6 route del default");
    let a = net.idle("a", "");
    let bridge = net.json("network inspect bridge")[0]["network_interface"].as_str().expect("a bridge").to_string();
    let believes = || net.host.sh("ip -6 route show default").contains(&bridge);
    crate::support::eventually("it can speak", PATIENCE, || advertise(&a));
    std::thread::sleep(SILENCE);
    assert!(!believes());
    // One that did would.
    net.host.sh(&format!("echo 2 > /proc/sys/net/ipv6/conf/{bridge}/accept_ra"));
    crate::support::eventually("it would be believed", PATIENCE, || advertise(&a) && believes());
}

/// Sends a router advertisement to all that are near (RFC 4861, section 4.2); whether that could be done already.
fn advertise(namespace: &PathBuf) -> bool {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    inside(namespace, || {
        let protocol = SockProtocol::IcmpV6;
        let socket = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), protocol).expect("a raw socket");
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).expect("to say that it is near");
        let link = nix::net::if_::if_nametoindex("eth0").expect("its link");
        let everybody = std::net::SocketAddrV6::new("ff02::1".parse().expect("an address"), 0, 0, link);
        let mut message = [0; 16];
        (message[0], message[4]) = (134, 64);
        message[6..8].copy_from_slice(&1800u16.to_be_bytes());
        sendto(socket.as_raw_fd(), &message, &SockaddrIn6::from(everybody), MsgFlags::empty()).is_ok()
    })
}
