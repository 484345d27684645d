//! nf_tables, the kernel's side of nft(8): a table of rules that comes and goes as a whole
//! (include/uapi/linux/netfilter/nf_tables.h).
//!
//! A [`Table`] is a value with nft's own notation for [`Display`](fmt::Display); what `wire.rs` sends is what that text says.

mod wire;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
pub(crate) use wire::{Mention, Nftables, OfOthers, Way};

use crate::error::{Error, Kind, Result};

/// A table of the family inet, with its chains and their rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) chains: Vec<Chain>,
}

/// A base chain, named as its hook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Rule>,
}

/// Where a chain is asked, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Before anything is made of a packet that came in, its connection not known yet.
    Raw,
    /// Where a packet that came in is for.
    Destination,
    /// Where a packet of this host's own is for.
    OwnDestination,
    /// Whether a packet may go through this host.
    Forward,
    /// Who a packet that leaves says it is from.
    Source,
}

/// What happens to packets for which all of it is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
}

/// Something that is so of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    From(String),
    NotFrom(String),
    To(String),
    NotTo(String),
    /// Its source address is in this net.
    Source(IpNet),
    /// Its destination address is in this net.
    Destination(IpNet),
    NotDestination(IpNet),
    /// It is IPv6, or else IPv4.
    Six(bool),
    /// It is for an address of this host.
    ForHost,
    /// It belongs to a connection that is known, or is about one.
    Established,
    /// A rule has changed where its connection goes.
    Redirected,
    /// It is for one of these ports, first and last.
    Port(Transport, u16, u16),
}

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// tcp(7).
    Tcp,
    /// udp(7).
    Udp,
    /// Stream Control Transmission Protocol, RFC 9260.
    Sctp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    /// It goes to another host, and there to the port that it was for or to another.
    SendTo(IpAddr, Option<u16>),
    /// It goes to another port of this host.
    Redirect(u16),
    /// It is from this host.
    Masquerade,
}

impl Hook {
    /// The chain's type, the hook's number and its priority (include/uapi/linux/netfilter.h and netfilter_ipv4.h).
    fn place(self) -> (&'static str, u32, i32) {
        match self {
            Hook::Raw => ("filter", 0, -300),
            Hook::Destination => ("nat", 0, -100),
            Hook::Forward => ("filter", 2, 0),
            Hook::OwnDestination => ("nat", 3, -100),
            Hook::Source => ("nat", 4, 100),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Hook::Raw => "raw",
            Hook::Destination => "prerouting",
            Hook::Forward => "forward",
            Hook::OwnDestination => "output",
            Hook::Source => "postrouting",
        }
    }

    fn hook(self) -> &'static str {
        if self == Hook::Raw { "prerouting" } else { self.name() }
    }
}

impl Transport {
    fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        }
    }
}

impl std::str::FromStr for Transport {
    type Err = Error;

    fn from_str(text: &str) -> Result<Transport> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Transport::Tcp),
            "udp" => Ok(Transport::Udp),
            "sctp" => Ok(Transport::Sctp),
            _ => Err(Error::new(Kind::Invalid, format!("protocol {text:?}: not tcp, udp or sctp"))),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        })
    }
}

impl fmt::Display for Table {
    /// Of one line, as an argument of nft(8).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table inet {} {{ ", self.name)?;
        for Chain { hook, rules } in &self.chains {
            let (kind, _, priority) = hook.place();
            write!(f, "chain {} {{ type {kind} hook {} priority {priority}; ", hook.name(), hook.hook())?;
            rules.iter().try_for_each(|rule| write!(f, "{rule}; "))?;
            f.write_str("}; ")?;
        }
        f.write_str("}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.matches.iter().try_for_each(|m| write!(f, "{m} "))?;
        write!(f, "{}", self.verdict)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::From(name) => write!(f, "iifname \"{name}\""),
            Match::NotFrom(name) => write!(f, "iifname != \"{name}\""),
            Match::To(name) => write!(f, "oifname \"{name}\""),
            Match::NotTo(name) => write!(f, "oifname != \"{name}\""),
            Match::Source(net) => write!(f, "{} saddr {}", ip(net.addr()), short(*net)),
            Match::Destination(net) => write!(f, "{} daddr {}", ip(net.addr()), short(*net)),
            Match::NotDestination(net) => write!(f, "{} daddr != {}", ip(net.addr()), short(*net)),
            Match::Six(six) => write!(f, "meta nfproto {}", if *six { "ipv6" } else { "ipv4" }),
            Match::ForHost => f.write_str("fib daddr type local"),
            Match::Established => f.write_str("ct state established,related"),
            Match::Redirected => f.write_str("ct status dnat"),
            Match::Port(transport, first, last) if first == last => write!(f, "{transport} dport {first}"),
            Match::Port(transport, first, last) => write!(f, "{transport} dport {first}-{last}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::SendTo(address, None) => write!(f, "dnat {} to {address}", ip(*address)),
            Verdict::SendTo(IpAddr::V4(address), Some(port)) => write!(f, "dnat ip to {address}:{port}"),
            Verdict::SendTo(IpAddr::V6(address), Some(port)) => write!(f, "dnat ip6 to [{address}]:{port}"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
            Verdict::Masquerade => f.write_str("masquerade"),
        }
    }
}

fn ip(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// As nft writes it: one address without its prefix.
fn short(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.trunc().to_string() }
}
