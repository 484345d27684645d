//! rtnetlink(7): links, addresses and routes of a network namespace.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::SockProtocol;

use super::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, Socket};
use crate::error::{Kind, Result};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// A socket for the links, addresses and routes of one network namespace.
#[derive(Debug)]
pub(crate) struct Netlink(Socket);

/// A network interface that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
}

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// To a neighbour.
    Gateway(IpAddr),
    /// Out of the link: whoever it is for is at the other end.
    Link,
}

impl Netlink {
    /// Of this process's network namespace.
    pub(crate) fn open() -> Result<Netlink> {
        Socket::open(SockProtocol::NetlinkRoute).map(Netlink)
    }

    /// Of another.
    pub(crate) fn open_inside(namespace: BorrowedFd<'_>) -> Result<Netlink> {
        Socket::open_inside(SockProtocol::NetlinkRoute, namespace).map(Netlink)
    }

    /// `ip link add NAME mtu MTU address MAC type bridge`. Its own address, so that it is not that of whichever port comes first
    /// and udev gives it no other (addr_assign_type NET_ADDR_SET).
    pub(crate) fn add_bridge(&mut self, end: End<'_>, mtu: u32) -> Result<()> {
        let mut message = named(end.name);
        message.attributes.extend([
            LinkAttribute::Address(end.mac.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ]);
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `ip link add OUTER up master BRIDGE type veth peer name INNER netns PID`: a pair, one end here and on the bridge with
    /// the index `master`, the other in the network namespace of `inside`, and not up yet: the first of a pair cannot be before
    /// the second is there (drivers/net/veth.c, veth_open).
    pub(crate) fn add_pair(
        &mut self,
        outer: End<'_>,
        master: Option<u32>,
        inner: End<'_>,
        inside: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<()> {
        let end = |end: End<'_>| {
            let mut message = named(end.name);
            message.attributes.extend([LinkAttribute::Address(end.mac.to_vec()), LinkAttribute::Mtu(mtu)]);
            message
        };
        let mut peer = end(inner);
        peer.attributes.push(LinkAttribute::NetNsFd(inside.as_raw_fd()));
        let mut message = up(end(outer));
        message.attributes.extend(master.map(LinkAttribute::Controller));
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `ip link set NAME master BRIDGE`, by its index.
    pub(crate) fn enslave(&mut self, name: &str, master: u32) -> Result<()> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Controller(master));
        self.request(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// `ip link set NAME type bridge_slave hairpin on`: what comes from a port may go back to it.
    pub(crate) fn reflect(&mut self, name: &str) -> Result<()> {
        let mut message = named(name);
        let data = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
        let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.request(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// `ip link set NAME up`.
    pub(crate) fn set_up(&mut self, name: &str) -> Result<()> {
        self.request(RouteNetlinkMessage::NewLink(up(named(name))), 0)
    }

    /// `ip link del NAME`; whether there was one.
    pub(crate) fn delete(&mut self, name: &str) -> Result<bool> {
        match self.request(RouteNetlinkMessage::DelLink(named(name)), 0) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The link with this name, if there is one.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>> {
        self.look(named(name))
    }

    fn look(&mut self, message: LinkMessage) -> Result<Option<Link>> {
        let mut found = None;
        let asked = self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK, |answer| {
            found = found.take().or(link(answer));
        });
        match asked {
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            _ => Ok(found),
        }
    }

    /// `ip address add ADDRESS dev LINK`, of which nobody asks first whether another has it.
    pub(crate) fn add_address(&mut self, link: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = link;
        message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        match address {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
        }
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `ip route add DESTINATION [via GATEWAY] dev LINK`.
    pub(crate) fn add_route(&mut self, link: u32, destination: IpNet, via: Via) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if via == Via::Link { RouteScope::Link } else { RouteScope::Universe };
        if destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(route_address(destination.addr())));
        }
        if let Via::Gateway(gateway) = via {
            message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
        }
        message.attributes.push(RouteAttribute::Oif(link));
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The nets that this host has routes to, and the index of the link that all else leaves by (IPv4).
    pub(crate) fn routes(&mut self) -> Result<(Vec<IpNet>, Option<u32>)> {
        let (mut nets, mut ways) = (Vec::new(), Vec::new());
        self.ask(RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP, |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return };
            let (mut address, mut link, mut metric) = (None, None, 0);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
                    RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
                    RouteAttribute::Oif(index) => link = Some(*index),
                    RouteAttribute::Priority(priority) => metric = *priority,
                    _ => {}
                }
            }
            match (address, route.header.destination_prefix_length) {
                (_, 0) if route.header.address_family == AddressFamily::Inet => ways.extend(link.map(|l| (metric, l))),
                (Some(address), prefix @ 1..) => nets.extend(IpNet::new(address, prefix)),
                _ => {}
            }
        })?;
        Ok((nets, ways.into_iter().min().map(|(_, link)| link)))
    }

    /// The largest packet that a link carries, in bytes.
    pub(crate) fn mtu(&mut self, index: u32) -> Result<Option<u32>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.look(message).map(|link| link.map(|link| link.mtu))
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.ask(message, flags | NLM_F_ACK, |_| {})
    }

    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.0.number();
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes)?;
        self.0.receive(message.header.sequence_number, |bytes| {
            // What this version of the crate cannot read is none of the things that are looked for.
            if let Ok(NetlinkPayload::InnerMessage(answer)) = NetlinkMessage::deserialize(bytes).map(|m| m.payload) {
                take(answer);
            }
        })
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn link(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let mut link = Link { index: message.header.index, name: String::new(), mac: None, mtu: 0 };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            _ => {}
        }
    }
    Some(link)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}
