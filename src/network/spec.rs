//! What a person wants of a network: documents, kept in records.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
pub use crate::kernel::netlink::nftables::Transport;
use crate::name::{Id, NetworkName};

/// Which network a container has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A network namespace of its own with nothing but loopback.
    #[default]
    None,
    /// The host's.
    Host,
    /// That of another container, while that runs.
    Container(Id),
    /// One of tupper's.
    Joined(Join),
}

impl Mode {
    /// A network namespace of its own.
    pub fn is_own(&self) -> bool {
        matches!(self, Mode::None | Mode::Joined(_))
    }

    /// What it wants of a network of tupper's, if it is in one.
    pub fn joined(&self) -> Option<&Join> {
        match self {
            Mode::Joined(join) => Some(join),
            _ => None,
        }
    }
}

/// What a container wants of its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The network.
    pub name: NetworkName,
    /// What it is called there beside its name.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The address that it is to have.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// The hardware address that it is to have.
    #[serde(default)]
    pub mac: Option<MacAddress>,
}

impl Join {
    /// Of this network, and nothing of it.
    pub fn new(name: NetworkName) -> Join {
        Join { name, aliases: Vec::new(), ip: None, ip6: None, mac: None }
    }
}

/// How the links of a network are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge that every container has a port of.
    #[default]
    Bridge,
    /// A pair for each container, whose other end is the host's.
    Ptp,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::Bridge => "bridge",
            Driver::Ptp => "ptp",
        })
    }
}

/// Ports of the host at which ports of a container are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The host's address; every one without.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// The first port of the host; one that is free if it is 0.
    pub host: u16,
    /// The first port of the container.
    pub container: u16,
    /// How many.
    pub count: u16,
    /// Of which protocol.
    pub transport: Transport,
}

impl Port {
    /// The last port of the host.
    pub fn last(&self) -> u16 {
        self.host.saturating_add(self.count.saturating_sub(1))
    }
}

impl fmt::Display for Port {
    /// As `ps` shows it: podman-ps(1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |first: u16| match self.count {
            0 | 1 => first.to_string(),
            count => format!("{first}-{}", first.saturating_add(count - 1)),
        };
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => write!(f, "0.0.0.0:")?,
        }
        write!(f, "{}->{}/{}", range(self.host), range(self.container), self.transport)
    }
}

/// Who a container asks for names, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// The servers; by default the host's.
    pub servers: Vec<IpAddr>,
    /// The domains that are tried; by default the host's.
    pub search: Vec<String>,
    /// Options of resolv.conf(5); by default the host's.
    pub options: Vec<String>,
}

/// A line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// The name.
    pub name: String,
    /// Its address; without one that of the host as the container sees it.
    pub address: Option<IpAddr>,
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<MacAddress> {
        let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
        let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
        // The lowest bit of the first is that of groups.
        bytes.filter(|bytes| bytes[0] & 1 == 0 && *bytes != [0; 6]).map(MacAddress).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("hardware address {text:?}: not like 02:00:00:00:00:01, of one interface"),
            )
        })
    }
}

impl TryFrom<String> for MacAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<MacAddress> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}
