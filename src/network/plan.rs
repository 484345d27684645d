//! Which links, addresses, routes and rules a network takes, and a container in it: values, without a system call in them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Subnet;
use super::spec::{Driver, MacAddress, Port};
use super::step::Step;
use crate::kernel::netlink::nftables::Table;
use crate::kernel::netlink::route::Via;
use crate::name::{Digest, Id, NetworkName};

/// What everything of a network is called on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The bridge, and the directory below /run/tupper/networks.
    pub link: String,
    pub table: String,
}

impl Names {
    /// The same for one store and name each time; a link's name has at most 15 bytes (include/uapi/linux/if.h, IFNAMSIZ).
    pub(super) fn of(store: &str, network: &NetworkName) -> Names {
        let digest = Digest::of(format!("{store}/{network}").as_bytes()).id().to_string();
        let short = digest.get(..8).unwrap_or_default();
        Names { link: format!("{BRIDGE}{short}"), table: format!("tupper_{short}") }
    }
}

/// How the names of bridges begin.
pub(super) const BRIDGE: &str = "tupperb";

/// The host's end of a container's pair.
pub(super) fn pair_of(id: &Id) -> String {
    format!("tupperv{}", id.to_string().get(..8).unwrap_or_default())
}

/// A hardware address of nobody's own (IEEE 802, locally administered), the same for the same address each time, so that who
/// knew the last holder of the address reaches the next.
pub(super) fn mac_of(seed: &str) -> MacAddress {
    let digest = Digest::of(seed.as_bytes()).id().to_string();
    let byte = |at: usize| digest.get(at * 2..at * 2 + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(0);
    MacAddress([0x02, byte(0), byte(1), byte(2), byte(3), byte(4)])
}

/// What a network in use is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub names: &'a Names,
    pub driver: Driver,
    pub subnets: &'a [Subnet],
    pub internal: bool,
    pub mtu: u32,
    /// The host does not forward IPv4, or IPv6, yet.
    pub forwards: (bool, bool),
}

/// From nothing to a network that containers can join.
pub(super) fn come(facts: &Facts<'_>, table: Table) -> Vec<Step> {
    let mut steps = Vec::new();
    let link = &facts.names.link;
    let six = |subnet: &Subnet| subnet.net.addr().is_ipv6();
    if facts.driver == Driver::Bridge {
        let mac = mac_of(link);
        steps.push(Step::AddBridge { name: link.clone(), mac, mtu: facts.mtu });
        steps.extend(own_ends(link));
        for Subnet { net, gateway } in facts.subnets {
            steps.push(Step::AddAddress { link: link.clone(), address: with_prefix(*gateway, *net) });
        }
        steps.push(Step::SetUp { link: link.clone() });
    }
    if !facts.internal {
        let forward = |name: &str| Step::SetParameter { name: name.to_string(), value: "1" };
        if !facts.forwards.0 && !facts.subnets.iter().all(six) {
            steps.push(forward(FORWARD));
        }
        if !facts.forwards.1 && facts.subnets.iter().any(six) {
            steps.push(forward(FORWARD_SIX));
        }
    }
    steps.push(Step::LoadTable(table));
    steps
}

/// Below /proc/sys/net: Documentation/networking/ip-sysctl.rst.
pub(super) const FORWARD: &str = "ipv4/ip_forward";
pub(super) const FORWARD_SIX: &str = "ipv6/conf/all/forwarding";

/// The host believes nothing that a container says of routes: CVE-2020-13401.
fn own_ends(link: &str) -> Option<Step> {
    let name = format!("ipv6/conf/{link}/accept_ra");
    std::path::Path::new("/proc/sys/net/ipv6").exists().then_some(Step::SetParameter { name, value: "0" })
}

/// From a network that containers can join to nothing.
pub(super) fn go(driver: Driver, names: &Names) -> Vec<Step> {
    let bridge = (driver == Driver::Bridge).then(|| Step::DeleteLink(names.link.clone()));
    [Step::DeleteTable(names.table.clone())].into_iter().chain(bridge).collect()
}

/// What a container has in a network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub pair: &'a str,
    pub addresses: &'a [IpAddr],
    pub mac: MacAddress,
    /// Ports of it are published.
    pub published: bool,
}

/// Joins a container to its network.
pub(super) fn join(facts: &Facts<'_>, place: &Place<'_>) -> Vec<Step> {
    let pair = place.pair.to_string();
    let bridge = (facts.driver == Driver::Bridge).then(|| facts.names.link.clone());
    let mut steps = vec![Step::AddPair {
        outer: (pair.clone(), mac_of(&pair)),
        bridge: bridge.clone(),
        inner: place.mac,
        mtu: facts.mtu,
    }];
    match bridge {
        Some(_) => steps.push(Step::Reflect { link: pair.clone() }),
        None => steps.extend(own_ends(&pair)),
    }
    steps.push(Step::SetInnerUp);
    let subnet_of = |address: &IpAddr| facts.subnets.iter().find(|subnet| subnet.net.contains(address));
    for (address, Subnet { net, gateway }) in place.addresses.iter().filter_map(|a| Some((*a, subnet_of(a)?))) {
        match facts.driver {
            Driver::Bridge => steps.push(Step::AddInnerAddress(with_prefix(address, *net))),
            Driver::Ptp => {
                // At either end of a pair there is one address, and nobody else.
                steps.push(Step::AddAddress { link: pair.clone(), address: IpNet::from(*gateway) });
                steps.push(Step::AddRoute { link: pair.clone(), to: address });
                steps.push(Step::AddInnerAddress(IpNet::from(address)));
                steps.push(Step::AddInnerRoute { to: IpNet::from(*gateway), via: Via::Link });
            }
        }
        let everything = if address.is_ipv4() { IpNet::V4(Default::default()) } else { IpNet::V6(Default::default()) };
        if !facts.internal {
            steps.push(Step::AddInnerRoute { to: everything, via: Via::Gateway(*gateway) });
        } else if facts.driver == Driver::Ptp {
            steps.push(Step::AddInnerRoute { to: *net, via: Via::Gateway(*gateway) });
        }
    }
    if place.published && facts.driver == Driver::Ptp {
        steps.push(reach_from_loopback(&pair));
    }
    steps
}

/// The sysctl without which 127.0.0.1 would be no source of what leaves through a link; the rules keep it from being more.
pub(super) fn reach_from_loopback(link: &str) -> Step {
    Step::SetParameter { name: format!("ipv4/conf/{link}/route_localnet"), value: "1" }
}

/// The ports of a container, with the addresses that they lead to.
pub(super) fn targets(ports: &[Port], addresses: &[IpAddr]) -> Vec<(Port, Vec<IpAddr>)> {
    ports.iter().map(|port| (port.clone(), addresses.to_vec())).collect()
}

fn with_prefix(address: IpAddr, net: IpNet) -> IpNet {
    IpNet::new(address, net.prefix_len()).unwrap_or(net)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
