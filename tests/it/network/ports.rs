//! Published ports: from everywhere, held for as long, refused where another has them.

use std::net::{TcpListener, UdpSocket};

use super::host::*;

#[test]
fn a_published_port_is_reached_from_everywhere() {
    let net = Net::new();
    let before = net.host.state();
    let (host, outside) = (net.host.path(), net.outside.path());
    let a = net.idle("a", "-p 8080:80 -p 8053:80/udp -p 127.0.0.1:9000:80 -p 7000-7002:7000-7002");
    let b = net.idle("b", "");
    let _a = Answerer::at(&a, 80);
    for from in [&host, &outside, &b, &a] {
        assert!(ask(from, &format!("{HOST}:8080")).is_some(), "{}", from.display());
        assert!(ask_udp(from, &format!("{HOST}:8053"), PATIENCE).is_some(), "{}", from.display());
    }
    // The source is who has asked, but where answers would go past the host.
    assert_eq!(ask(&outside, &format!("{HOST}:8080")), Some(OUTSIDE.to_string()));
    for address in ["127.0.0.1", "127.0.0.7", "10.64.0.1"] {
        assert!(ask(&host, &format!("{address}:8080")).is_some(), "{address}");
        assert!(ask_udp(&host, &format!("{address}:8053"), PATIENCE).is_some(), "{address}");
    }
    for address in ["[::1]:8080".to_string(), format!("[{HOST_SIX}]:8080")] {
        assert!(ask(&host, &address).is_some(), "{address}");
    }
    assert!(ask(&outside, &format!("[{HOST_SIX}]:8080")).is_some());
    assert!(ask(&host, "127.0.0.1:9000").is_some());
    assert_eq!(ask_in_vain(&outside, &format!("{HOST}:9000")), None, "only for the host");
    assert_eq!(ask_in_vain(&host, &format!("{HOST}:9000")), None);
    let _range = Answerer::at(&a, 7002);
    assert!(ask(&outside, &format!("{HOST}:7002")).is_some());

    let ports = "0.0.0.0:8080->80/tcp, 0.0.0.0:8053->80/udp, 127.0.0.1:9000->80/tcp, 0.0.0.0:7000-7002->7000-7002/tcp";
    assert!(net.ok("ps").contains(ports), "{}", net.ok("ps"));
    assert_eq!(net.ok("port a 80/tcp"), "0.0.0.0:8080\n127.0.0.1:9000");
    drop((_a, _range));
    net.remove_all(&before);
}

#[test]
fn nobody_else_gets_a_port_meanwhile() {
    let net = Net::new();
    let host = net.host.path();
    net.idle("a", "-p 8080:80 -p 53:53/udp");
    let bind = |udp: bool, address: &'static str| {
        inside(&host, move || if udp { UdpSocket::bind(address).is_ok() } else { TcpListener::bind(address).is_ok() })
    };
    for address in ["0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080", "192.0.2.1:8080"] {
        assert!(!bind(false, address), "{address}");
    }
    assert!(!bind(true, "0.0.0.0:53") && bind(true, "0.0.0.0:8080"));
    let error = net.fails(125, "run --rm -p 8080:1 busybox true");
    assert!(
        error.contains("port 8080/tcp: somebody has it already") && error.contains("container a publishes it"),
        "{error}"
    );
    let error = net.fails(125, "run -d --name shop -p 127.0.0.1:8080:1 busybox true");
    assert!(error.contains("port 8080/tcp of 127.0.0.1"), "{error}");
    assert_eq!(net.run("inspect shop").status, 1, "nothing was made");
    // Nor does tupper take one that another program has.
    let taken = inside(&host, || TcpListener::bind("0.0.0.0:8081").expect("a port"));
    let error = net.fails(125, "run --rm -p 8081:1 busybox true");
    assert!(error.contains("port 8081/tcp") && error.contains("ss -lnp sport = :8081"), "{error}");
    drop(taken);
    net.ok("run --rm -p 8081:1 busybox true");
    // One that was created takes its port when it is started.
    net.ok("create --name c -p 8080:1 busybox sleep 1000");
    let error = net.fails(125, "start c");
    assert!(error.contains("port 8080/tcp: somebody has it already"), "{error}");
    net.ok("stop -t 0 a");
    net.ok("start c");
    let error = net.fails(125, "start a");
    assert!(error.contains("container c publishes it"), "{error}");
    net.ok("rm -f --all");
    assert!(bind(false, "0.0.0.0:8080"));
}

#[test]
fn a_port_that_is_free_can_be_anyone() {
    let net = Net::new();
    let a = net.idle("a", "-p 80 -p 90-92 -p 127.0.0.1::53/udp");
    let _a = Answerer::at(&a, 80);
    let place = net.ok("port a 80");
    let port = place.strip_prefix("0.0.0.0:").expect("a place");
    assert!(ask(&net.outside.path(), &format!("{HOST}:{port}")).is_some(), "{place}");
    assert!(net.ok("port a 53/udp").starts_with("127.0.0.1:"));
    assert_eq!(net.lines("port a").len(), 5);
    assert!(net.fails(1, "port a 81").contains("81"));
    net.ok("rm -f a");
    // What an image exposes, where that is wanted.
    net.ok_with("image import --name web --change", &["EXPOSE 80 53/udp", net_busybox()]);
    net.ok("run -d --name b -P web sleep 1000");
    let ports = net.lines("port b");
    assert!(ports.len() == 2 && ports.iter().any(|p| p.starts_with("53/udp -> 0.0.0.0:")), "{ports:?}");
    net.ok("rm -f b");
}

fn net_busybox() -> &'static str {
    let path = crate::support::busybox().into_os_string().into_string().expect("a plain path");
    Box::leak(path.into_boxed_str())
}

/// CVE-2020-8558: with route_localnet, what listens at the host's loopback only would be open to its neighbours.
#[test]
fn the_host_s_loopback_is_its_own() {
    let net = Net::new();
    let (host, outside) = (net.host.path(), net.outside.path());
    let a = net.idle("a", "-p 8080:80");
    let _secret = Answerer::bound(&host, "127.0.0.1:5432");
    assert!(ask(&host, "127.0.0.1:5432").is_some(), "it is there");
    let pid = a.iter().nth(2).and_then(|pid| pid.to_str()).expect("a pid");
    for (namespace, from, gateway) in
        [(&a, pid.to_string(), "10.64.0.1"), (&outside, net.outside.pid().to_string(), HOST)]
    {
        // As an attacker would: loopback is a net like others, behind the host.
        let enter = ["-t", &from, "-n", "sh", "-euc"];
        let line = format!(
            "for link in /proc/sys/net/ipv4/conf/*; do echo 1 > $link/route_localnet; done; \
             ip address del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via {gateway}"
        );
        crate::support::sh("nsenter", &[&enter[..], &[&line]].concat());
        assert_eq!(ask_in_vain(namespace, "127.0.0.1:5432"), None, "{gateway}");
    }
}

#[test]
fn ports_without_a_network_of_its_own_do_nothing() {
    let net = Net::new();
    for network in ["none", "host"] {
        let done = net.run(&format!("run --rm --network {network} -p 8080:80 busybox true"));
        assert!(done.status == 0 && done.stderr.contains("published ports do nothing"), "{done}");
    }
    for wrong in ["0:80", "80:0", "x", "1-2:1", "70000", "80/icmp"] {
        assert_eq!(net.run(&format!("run --rm -p {wrong} busybox true")).status, 125, "{wrong}");
    }
}
