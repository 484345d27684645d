use super::*;
use crate::name::{Id, NetworkName};
use crate::network::{Driver, Join, MacAddress, Subnet};

fn network(no_dns: bool) -> Network {
    let subnet = Subnet { net: "10.64.0.0/16".parse().expect("a net"), gateway: "10.64.0.1".parse().expect("one") };
    let mut network = Network::own(NetworkName::bridge(), Driver::Bridge);
    network.subnets = vec![subnet];
    network.no_dns = no_dns;
    network
}

fn member() -> Member {
    Member {
        id: Id::from_bytes([7; 32]),
        addresses: vec!["10.64.0.2".parse().expect("one")],
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        names: vec!["web".into(), "0707".into()],
        ports: Vec::new(),
        servers: Vec::new(),
    }
}

const RESOLV_CONF: &str = "# theirs\nnameserver 127.0.0.53\nnameserver 192.0.2.9\nsearch example.org\noptions edns0\n";

#[test]
fn in_a_network_the_gateway_answers() {
    let (network, member) = (network(false), member());
    let entries = [HostEntry { name: "db".into(), address: None }];
    let who = Who {
        hostname: "box",
        place: Some((&network, &member)),
        of_host: false,
        dns: &Dns::default(),
        entries: &entries,
    };
    let files = files(&who, "", RESOLV_CONF).expect("two files");
    assert_eq!(files.resolv_conf, "search example.org\nnameserver 10.64.0.1\noptions edns0\n");
    let hosts = "10.64.0.1\tdb\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        10.64.0.2\tbox web\n10.64.0.1\thost.containers.internal host.docker.internal\n";
    assert_eq!(files.hosts, hosts);
}

#[test]
fn without_a_resolver_it_is_the_host_s_or_a_person_s_servers() {
    let (network, member) = (network(true), member());
    let own = Dns { servers: vec!["192.0.2.8".parse().expect("one")], search: vec![".".into()], options: Vec::new() };
    let text = |place, of_host, dns: &Dns| {
        let who = Who { hostname: "box", place, of_host, dns, entries: &[] };
        files(&who, "h\n", RESOLV_CONF).expect("two files").resolv_conf
    };
    let place = Some((&network, &member));
    assert_eq!(text(place, false, &Dns::default()), "search example.org\nnameserver 192.0.2.9\noptions edns0\n");
    assert_eq!(text(place, false, &own), "nameserver 192.0.2.8\noptions edns0\n");
    assert_eq!(text(None, true, &own), "nameserver 192.0.2.8\noptions edns0\n");
    for of_host in [true, false] {
        assert_eq!(text(None, of_host, &Dns::default()), RESOLV_CONF);
    }
}

#[test]
fn the_host_has_an_address_where_there_is_a_way_to_it() {
    let entries = [HostEntry { name: "host".into(), address: None }];
    let who = Who { hostname: "box", place: None, of_host: false, dns: &Dns::default(), entries: &entries };
    let error = files(&who, "", "").expect_err("none");
    assert_eq!(error.to_string(), "--add-host host: there is no way to the host");
    let host = files(&Who { of_host: true, ..who }, "192.0.2.1\tme\n", "").expect("two files");
    assert_eq!(host.hosts, "127.0.0.1\thost\n192.0.2.1\tme\n");
    assert_eq!(Join::new(NetworkName::ptp()).name.as_str(), "ptp");
}
