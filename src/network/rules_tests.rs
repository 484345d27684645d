//! Rules as a table: which chains and rules, for which network and ports.

use super::*;

fn subnet(net: &str, gateway: &str) -> Subnet {
    Subnet { net: net.parse().expect("a net"), gateway: gateway.parse().expect("an address") }
}

fn port(text: &str, host: u16, container: u16, count: u16) -> Port {
    let address = (!text.is_empty()).then(|| text.parse().expect("an address"));
    Port { address, host, container, count, transport: Transport::Tcp }
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().expect("an address")).collect()
}

/// The rules of the chain with this name.
fn chain(table: &Table, hook: Hook) -> Vec<String> {
    let rules = table.chains.iter().find(|chain| chain.hook == hook).map(|chain| chain.rules.as_slice());
    rules.unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn a_bridge_lets_answers_in_and_everything_out() {
    let subnets = [subnet("10.64.0.0/16", "10.64.0.1")];
    let facts = Facts {
        table: "tupper_1",
        bridge: Some("tupperb1"),
        subnets: &subnets,
        internal: false,
        resolver: Some(4000),
        ports: &[],
    };
    let text = "table inet tupper_1 { \
        chain prerouting { type nat hook prerouting priority -100; \
        ip saddr 10.64.0.0/16 ip daddr 10.64.0.1 udp dport 53 redirect to :4000; \
        ip saddr 10.64.0.0/16 ip daddr 10.64.0.1 tcp dport 53 redirect to :4000; }; \
        chain forward { type filter hook forward priority 0; \
        meta nfproto ipv4 oifname \"tupperb1\" ct state established,related accept; \
        meta nfproto ipv4 oifname \"tupperb1\" ct status dnat accept; \
        meta nfproto ipv4 oifname \"tupperb1\" iifname != \"tupperb1\" drop; }; \
        chain postrouting { type nat hook postrouting priority 100; \
        ip saddr 10.64.0.0/16 ip daddr != 10.64.0.0/16 masquerade; }; }";
    assert_eq!(table(&facts).to_string(), text);
}

#[test]
fn an_internal_one_lets_nothing_out() {
    let subnets = [subnet("10.72.0.0/24", "10.72.0.1")];
    let bridge = Facts { table: "t", bridge: Some("b"), subnets: &subnets, internal: true, resolver: None, ports: &[] };
    let last = |facts: &Facts<'_>| chain(&table(facts), Hook::Forward).pop().expect("a rule");
    assert_eq!(last(&bridge), "meta nfproto ipv4 iifname \"b\" oifname != \"b\" drop");
    assert_eq!(chain(&table(&bridge), Hook::Source), [""; 0]);
    let pairs = Facts { bridge: None, ..bridge };
    assert_eq!(last(&pairs), "ip saddr 10.72.0.0/24 drop");
}

#[test]
fn published_ports_lead_inside_from_everywhere() {
    let subnets = [subnet("10.64.0.0/16", "10.64.0.1"), subnet("fd00::/64", "fd00::1")];
    let both = addresses(&["10.64.0.2", "fd00::2"]);
    let ports = [
        (port("", 8080, 80, 1), both.clone()),
        (port("127.0.0.1", 90, 90, 3), both.clone()),
        (port("192.0.2.1", 100, 200, 2), both),
    ];
    let facts =
        Facts { table: "t", bridge: Some("b"), subnets: &subnets, internal: false, resolver: None, ports: &ports };
    let table = table(&facts);
    let arriving = [
        "meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.64.0.2:80",
        "meta nfproto ipv6 fib daddr type local tcp dport 8080 dnat ip6 to [fd00::2]:80",
        "ip daddr 192.0.2.1 tcp dport 100 dnat ip to 10.64.0.2:200",
        "ip daddr 192.0.2.1 tcp dport 101 dnat ip to 10.64.0.2:201",
    ];
    assert_eq!(chain(&table, Hook::Destination), arriving);
    let own = chain(&table, Hook::OwnDestination);
    let six = "ip6 daddr != ::1 fib daddr type local tcp dport 8080 dnat ip6 to [fd00::2]:80";
    assert!(own.contains(&six.to_string()), "{own:#?}");
    assert!(own.contains(&"ip daddr 127.0.0.1 tcp dport 90-92 dnat ip to 10.64.0.2".to_string()), "{own:#?}");
    assert_eq!(chain(&table, Hook::Raw), ["iifname \"b\" ip daddr 127.0.0.0/8 drop"]);
    let leaving = [
        "ip saddr 10.64.0.0/16 ip daddr != 10.64.0.0/16 masquerade",
        "ip saddr 10.64.0.0/16 ip daddr 10.64.0.0/16 ct status dnat masquerade",
        "ip saddr 127.0.0.0/8 ip daddr 10.64.0.0/16 masquerade",
        "ip6 saddr fd00::/64 ip6 daddr != fd00::/64 masquerade",
        "ip6 saddr fd00::/64 ip6 daddr fd00::/64 ct status dnat masquerade",
    ];
    assert_eq!(chain(&table, Hook::Source), leaving);
}
