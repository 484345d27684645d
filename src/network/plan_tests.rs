//! Networks as lists of steps: which, in which order, for which driver.

use super::*;
use crate::kernel::netlink::nftables::Table;

fn subnet(net: &str, gateway: &str) -> Subnet {
    Subnet { net: net.parse().expect("a net"), gateway: gateway.parse().expect("an address") }
}

fn commands(steps: &[Step]) -> Vec<String> {
    // Whether this host has IPv6 is not a question here.
    steps.iter().map(Step::command).filter(|command| !command.contains("accept_ra")).collect()
}

fn names() -> Names {
    Names { link: "tupperb1".into(), table: "tupper_1".into() }
}

fn empty() -> Table {
    Table { name: "tupper_1".into(), chains: Vec::new() }
}

const LOAD: &str = "nft 'add table inet tupper_1; delete table inet tupper_1; table inet tupper_1 { }'";

#[test]
fn a_bridge_comes_and_goes() {
    let (names, subnets) = (names(), [subnet("10.64.0.0/16", "10.64.0.1"), subnet("fd00::/64", "fd00::1")]);
    let driver = Driver::Bridge;
    let facts =
        Facts { names: &names, driver, subnets: &subnets, internal: false, mtu: 1400, forwards: (false, false) };
    let mac = mac_of("tupperb1");
    let made = format!("ip link add tupperb1 mtu 1400 address {mac} type bridge");
    let addresses = ["ip address add 10.64.0.1/16 dev tupperb1 brd +", "ip address add fd00::1/64 dev tupperb1 nodad"];
    let forward = ["echo 1 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"];
    let up = "ip link set tupperb1 up";
    let want = [&[made.as_str()][..], &addresses, &[up], &forward, &[LOAD]].concat();
    assert_eq!(commands(&come(&facts, empty())), want);
    let quiet = [&[made.as_str()][..], &addresses, &[up, LOAD]].concat();
    assert_eq!(commands(&come(&Facts { forwards: (true, true), ..facts }, empty())), quiet);
    assert_eq!(commands(&come(&Facts { internal: true, ..facts }, empty())), quiet);
    assert_eq!(commands(&go(driver, &names)), ["nft delete table inet tupper_1", "ip link delete tupperb1"]);
    // Of pairs there is nothing before a container is in the network.
    let pairs = Facts { driver: Driver::Ptp, forwards: (true, true), ..facts };
    assert_eq!(commands(&come(&pairs, empty())), [LOAD]);
    assert_eq!(commands(&go(Driver::Ptp, &names)), ["nft delete table inet tupper_1"]);
}

#[test]
fn a_container_joins() {
    let (names, subnets) = (names(), [subnet("10.64.0.0/16", "10.64.0.1")]);
    let driver = Driver::Bridge;
    let facts = Facts { names: &names, driver, subnets: &subnets, internal: false, mtu: 1500, forwards: (true, true) };
    let addresses = ["10.64.0.2".parse().expect("an address")];
    let mac = MacAddress([2, 0, 0, 0, 0, 7]);
    let place = Place { pair: "tupperv1", addresses: &addresses, mac, published: true };
    let outer = mac_of("tupperv1");
    let pair = |master: &str| {
        format!(
            "ip link add tupperv1 up mtu 1500 address {outer}{master} type veth \
             peer name eth0 mtu 1500 address 02:00:00:00:00:07 netns $BOX"
        )
    };
    let inside = |line: &str| format!("nsenter --target $BOX --net ip {line}");
    let on_bridge = [
        pair(" master tupperb1"),
        "ip link set tupperv1 type bridge_slave hairpin on".to_string(),
        inside("link set eth0 up"),
        inside("address add 10.64.0.2/16 dev eth0 brd +"),
        inside("route add default via 10.64.0.1 dev eth0 proto static"),
    ];
    assert_eq!(commands(&join(&facts, &place)), on_bridge);
    assert_eq!(commands(&join(&Facts { internal: true, ..facts }, &place)), on_bridge[..4], "it has no way out");
    let at_pair = [
        pair(""),
        inside("link set eth0 up"),
        "ip address add 10.64.0.1/32 dev tupperv1".to_string(),
        "ip route add 10.64.0.2 dev tupperv1 proto static".to_string(),
        inside("address add 10.64.0.2/32 dev eth0"),
        inside("route add 10.64.0.1/32 dev eth0 proto static"),
        inside("route add default via 10.64.0.1 dev eth0 proto static"),
        "echo 1 > /proc/sys/net/ipv4/conf/tupperv1/route_localnet".to_string(),
    ];
    assert_eq!(commands(&join(&Facts { driver: Driver::Ptp, ..facts }, &place)), at_pair);
}

#[test]
fn names_fit_a_link() {
    let names = Names::of("6a9ae7a0-store", &NetworkName::bridge());
    assert_eq!((names.link.len(), names.link.starts_with(BRIDGE)), (15, true));
    assert_ne!(names, Names::of("another-store", &NetworkName::bridge()));
    assert_eq!(pair_of(&Id::from_bytes([0xab; 32])), "tuppervabababab");
    assert_eq!(mac_of("x").0[0] & 3, 2, "nobody's own, and of one interface");
}
