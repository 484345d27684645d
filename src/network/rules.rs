//! The firewall rules of a network in use: one table of its own, which depends on nobody else's and on which nobody else's depends.
//!
//! Nothing but answers, and what is for a published port, is let in; what goes out takes the host's address. A chain that accepts cannot
//! overrule one of another table that drops: nft(8), "accept".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Subnet;
use super::spec::{Port, Transport};
use crate::kernel::netlink::nftables::{Chain, Hook, Match, Rule, Table, Verdict};

/// What the rules depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// The table's name.
    pub table: &'a str,
    /// The bridge, if the network has one.
    pub bridge: Option<&'a str>,
    pub subnets: &'a [Subnet],
    /// Nothing goes out.
    pub internal: bool,
    /// The port at which names are answered, on the gateway.
    pub resolver: Option<u16>,
    /// Published ports, and the addresses of the container that they lead to.
    pub ports: &'a [(Port, Vec<IpAddr>)],
}

const LOOPBACK: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

/// RFC 1035, section 4.2.
const DOMAIN: u16 = 53;

/// The table of a network in use.
pub(super) fn table(facts: &Facts<'_>) -> Table {
    let nets = || facts.subnets.iter().map(|subnet| subnet.net);
    let rule = |matches: Vec<Match>, verdict| Rule { matches, verdict };

    // With route_localnet an address of 127.0.0.0/8 would be the host's from inside, too (CVE-2020-8558).
    let raw = nets().filter(|net| net.addr().is_ipv4()).map(|net| match facts.bridge {
        Some(bridge) => rule(vec![Match::From(bridge.to_string()), Match::Destination(LOOPBACK)], Verdict::Drop),
        None => rule(vec![Match::Source(net), Match::Destination(LOOPBACK)], Verdict::Drop),
    });

    let mut arriving = Vec::new();
    if let Some(port) = facts.resolver {
        for Subnet { net, gateway } in facts.subnets.iter().filter(|subnet| subnet.gateway.is_ipv4()) {
            for transport in [Transport::Udp, Transport::Tcp] {
                let asked = Match::Port(transport, DOMAIN, DOMAIN);
                let matches = vec![Match::Source(*net), Match::Destination((*gateway).into()), asked];
                arriving.push(rule(matches, Verdict::Redirect(port)));
            }
        }
    }
    let mut own = Vec::new();
    for (port, addresses) in facts.ports {
        for address in addresses {
            let published = published(port, *address);
            // What is for ::1 cannot be sent elsewhere: the kernel takes its answers on loopback alone (net/ipv6/route.c,
            // rt6_need_strict). It comes in by a proxy.
            own.extend(published.iter().cloned().map(|mut rule| {
                if let [six @ Match::Six(true), Match::ForHost, ..] = rule.matches.as_mut_slice() {
                    *six = Match::NotDestination(IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)));
                }
                rule
            }));
            if !port.address.is_some_and(|address| address.is_loopback()) {
                arriving.extend(published);
            }
        }
    }

    let mut forward = Vec::new();
    for net in nets() {
        let inwards = || match facts.bridge {
            Some(bridge) => vec![Match::Six(net.addr().is_ipv6()), Match::To(bridge.to_string())],
            None => vec![Match::Destination(net)],
        };
        let outwards = || match facts.bridge {
            Some(bridge) => {
                let (from, to) = (Match::From(bridge.to_string()), Match::NotTo(bridge.to_string()));
                vec![Match::Six(net.addr().is_ipv6()), from, to]
            }
            None => vec![Match::Source(net)],
        };
        let with = |mut matches: Vec<Match>, more: Option<Match>| {
            matches.extend(more);
            matches
        };
        forward.push(rule(with(inwards(), Some(Match::Established)), Verdict::Accept));
        forward.push(rule(with(inwards(), Some(Match::Redirected)), Verdict::Accept));
        let elsewhere = facts.bridge.map(|bridge| Match::NotFrom(bridge.to_string()));
        forward.push(rule(with(inwards(), elsewhere), Verdict::Drop));
        if facts.internal {
            forward.push(rule(outwards(), Verdict::Drop));
        }
    }

    let mut leaving = Vec::new();
    for net in nets() {
        let inwards = Match::Destination(net);
        if !facts.internal {
            leaving.push(rule(vec![Match::Source(net), Match::NotDestination(net)], Verdict::Masquerade));
        }
        if !facts.ports.is_empty() {
            // Its own published port, or a neighbour's: answers have to come back through the host.
            leaving.push(rule(vec![Match::Source(net), inwards.clone(), Match::Redirected], Verdict::Masquerade));
            if net.addr().is_ipv4() {
                leaving.push(rule(vec![Match::Source(LOOPBACK), inwards], Verdict::Masquerade));
            }
        }
    }
    let chain = |hook, rules: Vec<Rule>| (!rules.is_empty()).then_some(Chain { hook, rules });
    let raw = if facts.ports.is_empty() { Vec::new() } else { raw.collect() };
    let chains = [
        chain(Hook::Raw, raw),
        chain(Hook::Destination, arriving),
        chain(Hook::OwnDestination, own),
        chain(Hook::Forward, forward),
        chain(Hook::Source, leaving),
    ];
    Table { name: facts.table.to_string(), chains: chains.into_iter().flatten().collect() }
}

/// The rules for a published port; several where the ports inside have other numbers.
fn published(port: &Port, address: IpAddr) -> Vec<Rule> {
    let place = match port.address {
        None => vec![Match::Six(address.is_ipv6()), Match::ForHost],
        Some(host) if host.is_unspecified() => vec![Match::Six(host.is_ipv6()), Match::ForHost],
        Some(host) if host == IpAddr::V6(Ipv6Addr::LOCALHOST) => return Vec::new(),
        Some(host) => vec![Match::Destination(host.into())],
    };
    let six = port.address.map(|host| host.is_ipv6());
    if six.is_some_and(|six| six != address.is_ipv6()) {
        return Vec::new();
    }
    let rule = |first, last, to: Option<u16>| {
        let mut matches = place.clone();
        matches.push(Match::Port(port.transport, first, last));
        Rule { matches, verdict: Verdict::SendTo(address, to) }
    };
    match port.host == port.container {
        true => vec![rule(port.host, port.last(), None)],
        false => (0..port.count)
            .map(|n| (port.host.saturating_add(n), port.container.saturating_add(n)))
            .map(|(host, container)| rule(host, host, Some(container)))
            .collect(),
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
