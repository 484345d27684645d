//! The steps by which a network comes, a container joins it, and both go: what each is, in words and as the command that a person
//! would type, and the one call into the kernel that it takes.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use ipnet::IpNet;

use super::spec::MacAddress;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::netlink::nftables::{Nftables, Table};
use crate::kernel::netlink::route::{End, Netlink, Via};

/// What the link is called that a container has.
pub(super) const INNER: &str = "eth0";

/// Told of each step as it is done: in words, and as the command that a person would type for it.
pub type Narrate<'a> = &'a dyn Fn(&str, &str);

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    AddBridge {
        name: String,
        mac: MacAddress,
        mtu: u32,
    },
    /// An address of the host's.
    AddAddress {
        link: String,
        address: IpNet,
    },
    SetUp {
        link: String,
    },
    /// A value below /proc/sys/net, of the host.
    SetParameter {
        name: String,
        value: &'static str,
    },
    LoadTable(Table),
    AddPair {
        outer: (String, MacAddress),
        bridge: Option<String>,
        inner: MacAddress,
        mtu: u32,
    },
    /// A pair's end becomes a port of a bridge.
    Enslave {
        link: String,
        bridge: String,
    },
    /// What comes from a port of the bridge may go back to it.
    Reflect {
        link: String,
    },
    /// Whoever has the address is behind the link.
    AddRoute {
        link: String,
        to: IpAddr,
    },
    /// The container's side.
    SetInnerUp,
    AddInnerAddress(IpNet),
    AddInnerRoute {
        to: IpNet,
        via: Via,
    },
    DeleteLink(String),
    DeleteTable(String),
}

impl Step {
    pub(super) fn describe(&self) -> String {
        match self {
            Step::AddBridge { name, .. } => format!("make the bridge {name}"),
            Step::AddAddress { link, address } => format!("give {link} the address {address}"),
            Step::SetUp { link } => format!("bring {link} up"),
            Step::SetParameter { name, value } => format!("set net.{} to {value}", name.replace('/', ".")),
            Step::LoadTable(table) => format!("load the rules of the table {}", table.name),
            Step::AddPair { outer: (name, _), bridge: Some(bridge), .. } => {
                format!("make a veth pair: {name} on {bridge}, and {INNER} inside")
            }
            Step::AddPair { outer: (name, _), .. } => format!("make a veth pair: {name}, and {INNER} inside"),
            Step::Enslave { link, bridge } => format!("make {link} a port of {bridge}"),
            Step::Reflect { link } => format!("let {link} get back what came from it"),
            Step::AddRoute { link, to } => format!("reach {to} through {link}"),
            Step::SetInnerUp => format!("bring {INNER} up inside"),
            Step::AddInnerAddress(address) => format!("give {INNER} inside the address {address}"),
            Step::AddInnerRoute { to, via: Via::Gateway(gateway) } => format!("inside, reach {to} through {gateway}"),
            Step::AddInnerRoute { to, via: Via::Link } => format!("inside, reach {to} through {INNER}"),
            Step::DeleteLink(name) => format!("delete the link {name}"),
            Step::DeleteTable(name) => format!("delete the table {name}"),
        }
    }

    /// In a shell of the host, where `$BOX` is the container's first process.
    pub(super) fn command(&self) -> String {
        let inside = "nsenter --target $BOX --net ip";
        match self {
            Step::AddBridge { name, mac, mtu } => format!("ip link add {name} mtu {mtu} address {mac} type bridge"),
            Step::AddAddress { link, address } => format!("ip address add {address} dev {link}{}", more(address)),
            Step::SetUp { link } => format!("ip link set {link} up"),
            Step::SetParameter { name, value } => format!("echo {value} > /proc/sys/net/{name}"),
            Step::LoadTable(table) => {
                format!("nft 'add table inet {0}; delete table inet {0}; {table}'", table.name)
            }
            Step::AddPair { outer: (name, mac), bridge, inner, mtu } => {
                let master = bridge.as_ref().map(|bridge| format!(" master {bridge}")).unwrap_or_default();
                format!(
                    "ip link add {name} up mtu {mtu} address {mac}{master} type veth \
                     peer name {INNER} mtu {mtu} address {inner} netns $BOX"
                )
            }
            Step::Enslave { link, bridge } => format!("ip link set {link} master {bridge}"),
            Step::Reflect { link } => format!("ip link set {link} type bridge_slave hairpin on"),
            Step::AddRoute { link, to } => format!("ip route add {to} dev {link} proto static"),
            Step::SetInnerUp => format!("{inside} link set {INNER} up"),
            Step::AddInnerAddress(address) => format!("{inside} address add {address} dev {INNER}{}", more(address)),
            Step::AddInnerRoute { to, via } => {
                let to = if to.prefix_len() == 0 { "default".to_string() } else { to.to_string() };
                let six = if matches!(via, Via::Gateway(IpAddr::V6(_))) { " -6" } else { "" };
                let via = match via {
                    Via::Gateway(gateway) => format!("via {gateway} "),
                    Via::Link => String::new(),
                };
                format!("{inside}{six} route add {to} {via}dev {INNER} proto static")
            }
            Step::DeleteLink(name) => format!("ip link delete {name}"),
            Step::DeleteTable(name) => format!("nft delete table inet {name}"),
        }
    }
}

/// What the kernel does not do by itself: the address for everybody, and to ask nobody whether he has it already.
fn more(address: &IpNet) -> &'static str {
    match address {
        IpNet::V6(_) => " nodad",
        IpNet::V4(net) if net.prefix_len() < 31 => " brd +",
        IpNet::V4(_) => "",
    }
}

/// Runs steps, in this network namespace and in that of a container.
pub(super) struct Apply<'a> {
    host: Netlink,
    rules: Option<Nftables>,
    /// The container's network namespace.
    inside: Option<(BorrowedFd<'a>, Netlink)>,
    narrate: Option<Narrate<'a>>,
}

impl<'a> Apply<'a> {
    pub(super) fn new(narrate: Option<Narrate<'a>>) -> Result<Apply<'a>> {
        Ok(Apply { host: Netlink::open()?, rules: None, inside: None, narrate })
    }

    /// Steps of the container's side happen in this network namespace.
    pub(super) fn enter(&mut self, namespace: BorrowedFd<'a>) -> Result<()> {
        self.inside = Some((namespace, Netlink::open_inside(namespace)?));
        Ok(())
    }

    pub(super) fn host(&mut self) -> &mut Netlink {
        &mut self.host
    }

    pub(super) fn rules(&mut self) -> Result<&mut Nftables> {
        match &mut self.rules {
            Some(rules) => Ok(rules),
            none => Ok(none.insert(Nftables::open()?)),
        }
    }

    pub(super) fn run_all(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|step| {
            if let Some(narrate) = self.narrate {
                narrate(&step.describe(), &step.command());
            }
            self.run(step).map_err(|e| lacking(step, e)).context(|| step.describe())
        })
    }

    fn run(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::AddBridge { name, mac, mtu } => self.host.add_bridge(End { name, mac: mac.0 }, *mtu),
            Step::AddAddress { link, address } => {
                let index = self.index(link)?;
                self.host.add_address(index, *address)
            }
            Step::SetUp { link } => self.host.set_up(link),
            Step::SetParameter { name, value } => {
                let path = Path::new("/proc/sys/net").join(name);
                std::fs::write(&path, value).map_err(|e| Error::from_io(format_args!("write {}", path.display()), e))
            }
            Step::LoadTable(table) => self.rules()?.replace(table),
            Step::AddPair { outer, bridge, inner, mtu } => {
                let bridge = bridge.as_ref().map(|bridge| self.index(bridge)).transpose()?;
                let outer = End { name: &outer.0, mac: outer.1.0 };
                let namespace = self.inside.as_ref().map(|(namespace, _)| *namespace).ok_or_else(no_inside)?;
                let inner = End { name: INNER, mac: inner.0 };
                match self.host.add_pair(outer, bridge, inner, namespace, *mtu) {
                    // What the container had when it ran before: the kernel is about to remove it.
                    Err(e) if e.kind() == Kind::AlreadyExists && self.host.delete(outer.name)? => {
                        self.host.add_pair(outer, bridge, inner, namespace, *mtu)
                    }
                    made => made,
                }
            }
            Step::Enslave { link, bridge } => {
                let bridge = self.index(bridge)?;
                self.host.enslave(link, bridge)
            }
            Step::Reflect { link } => self.host.reflect(link),
            Step::AddRoute { link, to } => {
                let index = self.index(link)?;
                self.host.add_route(index, (*to).into(), Via::Link)
            }
            Step::SetInnerUp => self.inside()?.set_up(INNER),
            Step::AddInnerAddress(address) => {
                let index = self.inner_index()?;
                self.inside()?.add_address(index, *address)
            }
            Step::AddInnerRoute { to, via } => {
                let index = self.inner_index()?;
                self.inside()?.add_route(index, *to, *via)
            }
            Step::DeleteLink(name) => self.host.delete(name).map(drop),
            Step::DeleteTable(name) => self.rules()?.delete(name).map(drop),
        }
    }

    fn index(&mut self, link: &str) -> Result<u32> {
        let found = self.host.find(link)?;
        found.map(|link| link.index).ok_or_else(|| Error::new(Kind::NotFound, format!("{link}: no such link")))
    }

    fn inner_index(&mut self) -> Result<u32> {
        let found = self.inside()?.find(INNER)?;
        found.map(|link| link.index).ok_or_else(|| Error::new(Kind::NotFound, format!("{INNER}: no such link inside")))
    }

    fn inside(&mut self) -> Result<&mut Netlink> {
        self.inside.as_mut().map(|(_, netlink)| netlink).ok_or_else(no_inside)
    }
}

/// What a kernel lacks, it says in many ways.
fn lacking(step: &Step, e: Error) -> Error {
    let needs = match step {
        Step::AddBridge { .. } => "bridges (CONFIG_BRIDGE)",
        Step::AddPair { .. } => "veth pairs (CONFIG_VETH)",
        Step::LoadTable(_) => "nf_tables with NAT (CONFIG_NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_REDIR, NFT_FIB_INET)",
        _ => return e,
    };
    match e.kind() {
        Kind::Unsupported | Kind::NotFound => {
            e.with_hint(format!("this kernel may lack {needs}; --network none does without"))
        }
        _ => e,
    }
}

fn no_inside() -> Error {
    Error::new(Kind::Invalid, "there is no container yet")
}
