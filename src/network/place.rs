//! The place of a container in a network: which net, which address, which ports of the host.

use std::net::IpAddr;

use ipnet::IpNet;

use super::membership::Request;
use super::plan;
use super::spec::Port;
use super::step::Apply;
use super::used::{self, InUse, Lock, Member, State};
use super::{Network, Subnet, find, own_net, subnet};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::process;
use crate::kernel::socket::{self, Held};
use crate::store::Store;

impl State {
    /// What the network is like, about to come into use.
    pub(super) fn decide(store: &Store, lock: &Lock, mut network: Network, apply: &mut Apply<'_>) -> Result<State> {
        let (mut taken, way_out) = apply.host().routes()?;
        if network.subnets.is_empty() {
            for other in super::list(store)?.into_iter().chain(lock.in_use()?.into_iter().map(|used| used.network)) {
                let is_other = other.name != network.name;
                taken.extend(other.subnets.iter().filter(|_| is_other).map(|subnet| subnet.net));
            }
            let net = IpNet::V4(own_net(&taken)?);
            network.subnets = vec![Subnet { net, gateway: subnet::nth(net, 1) }];
        } else if let Some((net, route)) = overlapping(&network, &taken) {
            let error = Error::new(Kind::InUse, format!("its net {net} overlaps with this host's route to {route}"));
            return Err(error.with_hint("make the network anew, with a --subnet that is free"));
        }
        let mtu = match (network.mtu, way_out) {
            (Some(mtu), _) => mtu,
            (None, Some(index)) => apply.host().mtu(index)?.unwrap_or(USUAL_MTU),
            (None, None) => USUAL_MTU,
        };
        let namespace = process::namespace_of_this("net")?;
        Ok(State { store: store.uuid().to_string(), network, mtu, namespace })
    }

    /// Finds a place for a new member, after the one whose address has the number `last`; and the number of its address.
    pub(super) fn place(
        &self,
        request: &Request<'_>,
        ports: Vec<Port>,
        members: &[Member],
        last: u32,
    ) -> Result<(Member, u32)> {
        let taken = |address: IpAddr| {
            let of_host = self.network.subnets.iter().any(|subnet| subnet.gateway == address);
            of_host || members.iter().any(|member| member.addresses.contains(&address))
        };
        if members.iter().any(|member| member.id == *request.id) {
            return Err(Error::new(Kind::InUse, "it is in it already"));
        }
        let wanted = [request.join.ip.map(IpAddr::V4), request.join.ip6.map(IpAddr::V6)];
        let (mut addresses, mut given) = (Vec::new(), last);
        for address in wanted.into_iter().flatten() {
            if !self.network.subnets.iter().any(|subnet| subnet::is_usable(subnet.net, address)) {
                let nets: Vec<String> = self.network.subnets.iter().map(|subnet| subnet.net.to_string()).collect();
                let problem = format!("address {address}: not one of its own, {}", nets.join(", "));
                return Err(Error::new(Kind::Invalid, problem));
            }
            if taken(address) {
                return Err(Error::new(Kind::InUse, format!("address {address}: another has it")));
            }
        }
        for Subnet { net, .. } in &self.network.subnets {
            let wanted = wanted.into_iter().flatten().find(|address| net.contains(address));
            match wanted {
                Some(address) => addresses.push(address),
                None => {
                    let number = subnet::next(*net, last, taken).ok_or_else(|| {
                        let count = subnet::numbers(*net).len() - 1;
                        let error = Error::new(Kind::Limit, format!("all {count} addresses of {net} are in use"));
                        error.with_hint("end a container, or make a network with a larger --subnet")
                    })?;
                    given = number;
                    addresses.push(subnet::nth(*net, number));
                }
            }
        }
        let mac = request
            .join
            .mac
            .unwrap_or_else(|| plan::mac_of(&addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")));
        let names = request.names.iter().chain(&request.join.aliases).cloned().collect();
        let servers = request.dns.servers.clone();
        Ok((Member { id: *request.id, addresses, mac, names, ports, servers }, given))
    }
}

/// RFC 894.
const USUAL_MTU: u32 = 1500;

fn overlapping(network: &Network, routes: &[IpNet]) -> Option<(IpNet, IpNet)> {
    let nets = network.subnets.iter().map(|subnet| subnet.net);
    nets.flat_map(|net| routes.iter().map(move |route| (net, *route))).find(|(net, route)| subnet::overlap(net, route))
}

/// Looks whether a container could join: its network is there, its addresses are of it, its ports are free.
pub fn check(store: &Store, request: &Request<'_>) -> Result<()> {
    let doing = || format!("network {}", request.join.name);
    let network = find(store, request.join.name.as_str()).context(doing)?;
    let wanted = request.join.ip.map(IpAddr::V4).into_iter().chain(request.join.ip6.map(IpAddr::V6));
    for address in wanted {
        if !network.subnets.is_empty() && !network.subnets.iter().any(|subnet| subnet.net.contains(&address)) {
            return Err(Error::new(Kind::Invalid, format!("address {address}: not one of its own"))).context(doing);
        }
    }
    if request.ports.is_empty() {
        return Ok(());
    }
    hold(&used::lock().context(doing)?, request.ports).context(doing).map(drop)
}

/// Takes the host's ports, so that nobody else does. Those that are any get numbers.
pub(super) fn hold(lock: &Lock, ports: &[Port]) -> Result<(Vec<Port>, Vec<Held>)> {
    let (mut chosen, mut held) = (Vec::new(), Vec::new());
    for port in ports {
        let (first, sockets) =
            socket::hold_ports(port.transport, port.address, port.host, port.count).map_err(|e| {
                if e.kind() != Kind::InUse {
                    return e;
                }
                let whose = |used: &InUse| {
                    let of = |member: &Member| {
                        let meets = |other: &Port| {
                            other.transport == port.transport && other.host <= port.last() && port.host <= other.last()
                        };
                        member.ports.iter().any(meets).then(|| member.names.first().cloned()).flatten()
                    };
                    used.members.iter().find_map(of)
                };
                match lock.in_use().unwrap_or_default().iter().find_map(whose) {
                    Some(name) => e.with_hint(format!("container {name} publishes it")),
                    None => e.with_hint(format!("`ss -lnp sport = :{}` tells who has it", port.host)),
                }
            })?;
        chosen.push(Port { host: first, ..port.clone() });
        held.extend(sockets);
    }
    Ok((chosen, held))
}
