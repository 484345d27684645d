//! The flags of run, create and shell about networks: podman-run(1), "--network" to "--add-host".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use tupper::name::NetworkName;
use tupper::network::{Dns, HostEntry, Join, MacAddress, Mode, Port, Transport};

/// Which network, and which place in it.
#[derive(Debug, Args)]
pub(super) struct Networking {
    /// The network: a bridge with a way out (default), a bare pair (ptp), one that `network create` made, the host's, another
    /// container's, or none; NAME:ip=…,ip6=…,mac=…,alias=… says more of its place there
    #[arg(
        long,
        visible_alias = "net",
        value_name = "bridge|ptp|NAME|host|none|container:C",
        default_value = "bridge",
        env = "TUPPER_NETWORK",
        hide_default_value = true,
        hide_env = true,
        value_parser = choice
    )]
    network: Choice,
    /// Reach a port of the container at one of the host: 8080:80, 127.0.0.1:8080:80, 53:53/udp, 8000-8010:8000-8010; without
    /// HOST at one that is free
    #[arg(long, short, value_name = "[[IP:][HOST]:]CONTAINER[/tcp|udp]", value_parser = port)]
    publish: Vec<Port>,
    /// Reach every port that the image exposes at one of the host that is free
    #[arg(long, short = 'P')]
    publish_all: bool,
    /// Its address in the network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Its IPv6 address in the network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// The hardware address of its link
    #[arg(long, value_name = "MAC")]
    mac_address: Option<MacAddress>,
    /// Another name for it in the network
    #[arg(long, value_name = "NAME")]
    network_alias: Vec<String>,
    /// Who is asked for names of others, instead of the host's servers
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// A domain to look names up in, instead of the host's; . for none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// An option of resolv.conf, instead of the host's
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// A line of /etc/hosts; host-gateway is the host
    #[arg(long, value_name = "NAME:ADDRESS|host-gateway", value_parser = host_entry)]
    add_host: Vec<HostEntry>,
}

/// What `--network` says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    None,
    Host,
    Of(String),
    Join(Join),
}

/// Which network, as the library wants it; the container whose it is by name or id.
pub(super) struct Chosen {
    pub(super) mode: Mode,
    pub(super) of: Option<String>,
}

impl Networking {
    pub(super) fn chosen(&self) -> Result<Chosen> {
        let of = match &self.network {
            Choice::Of(text) => Some(text.clone()),
            _ => None,
        };
        let Choice::Join(join) = &self.network else {
            let wants_place = self.ip.is_some() || self.ip6.is_some() || self.mac_address.is_some();
            if wants_place || !self.network_alias.is_empty() {
                bail!("--ip, --ip6, --mac-address and --network-alias: only in a network of tupper's");
            }
            let mode = if self.network == Choice::Host { Mode::Host } else { Mode::None };
            return Ok(Chosen { mode, of });
        };
        let mut join = join.clone();
        join.ip = self.ip.or(join.ip);
        join.ip6 = self.ip6.or(join.ip6);
        join.mac = self.mac_address.or(join.mac);
        join.aliases.extend(self.network_alias.clone());
        if let Some(alias) = join.aliases.iter().find(|alias| !is_host_name(alias)) {
            bail!("--network-alias {alias}: not a host name");
        }
        Ok(Chosen { mode: Mode::Joined(join), of })
    }

    pub(super) fn ports(&self) -> Vec<Port> {
        self.publish.clone()
    }

    pub(super) fn publish_all(&self) -> bool {
        self.publish_all
    }

    pub(super) fn dns(&self) -> Dns {
        Dns { servers: self.dns.clone(), search: self.dns_search.clone(), options: self.dns_option.clone() }
    }

    pub(super) fn hosts(&self) -> Vec<HostEntry> {
        self.add_host.clone()
    }
}

fn choice(text: &str) -> Result<Choice> {
    Ok(match text {
        "none" => Choice::None,
        "host" => Choice::Host,
        "default" => Choice::Join(Join::new(NetworkName::bridge())),
        _ => match text.split_once(':') {
            Some(("container", "")) | Some(("", _)) => bail!("not a network"),
            Some(("container", name)) => Choice::Of(name.to_string()),
            Some((name, options)) => Choice::Join(with_options(Join::new(name.parse()?), options)?),
            None => Choice::Join(Join::new(text.parse()?)),
        },
    })
}

fn with_options(mut join: Join, options: &str) -> Result<Join> {
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("ip", value)) => match value.parse::<IpAddr>().context("ip")? {
                IpAddr::V4(address) => join.ip = Some(address),
                IpAddr::V6(address) => join.ip6 = Some(address),
            },
            Some(("ip6", value)) => join.ip6 = Some(value.parse().context("ip6")?),
            Some(("mac", value)) => join.mac = Some(value.parse()?),
            Some(("alias", value)) => join.aliases.push(value.to_string()),
            _ => bail!("{option:?}: not ip=, ip6=, mac= or alias="),
        }
    }
    Ok(join)
}

/// RFC 1123, section 2.1, and the underscore that people use.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// `[[IP:][HOST]:]CONTAINER[/PROTOCOL]`, ranges on both sides of the same length.
fn port(text: &str) -> Result<Port> {
    let (places, transport) = match text.rsplit_once('/') {
        Some((places, transport)) => (places, transport.parse()?),
        None => (text, Transport::Tcp),
    };
    let (rest, container) = match places.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, places),
    };
    let (address, host) = match rest {
        None => (None, ""),
        Some(rest) if rest.starts_with('[') => {
            let (address, host) = rest[1..].split_once(']').ok_or_else(|| anyhow!("a ] is missing"))?;
            let host = host.strip_prefix(':').ok_or_else(|| anyhow!("not [IP]:HOST:CONTAINER"))?;
            (Some(address), host)
        }
        Some(rest) => match rest.split_once(':') {
            Some((address, host)) => (Some(address), host),
            None if rest.parse::<IpAddr>().is_ok() => (Some(rest), ""),
            None => (None, rest),
        },
    };
    let address = address.filter(|address| !address.is_empty());
    let address =
        address.map(|address| address.parse::<IpAddr>().with_context(|| format!("{address:?}"))).transpose()?;
    let (first, count) = range(container)?;
    let (host, hosts) = if host.is_empty() { (0, count) } else { range(host)? };
    if hosts != count {
        bail!("{hosts} ports of the host for {count} of the container");
    }
    Ok(Port {
        address: address.filter(|a| *a != IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        host,
        container: first,
        count,
        transport,
    })
}

fn range(text: &str) -> Result<(u16, u16)> {
    let number = |text: &str| match text.parse::<u16>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(anyhow!("{text:?}: not a port, 1 to 65535")),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if last < first {
        bail!("{text:?}: ends before it begins");
    }
    Ok((first, last - first + 1))
}

fn host_entry(text: &str) -> Result<HostEntry> {
    let (name, address) = text.split_once([':', '=']).ok_or_else(|| anyhow!("not NAME:ADDRESS"))?;
    if !is_host_name(name) {
        bail!("{name:?}: not a host name");
    }
    let address = match address {
        "host-gateway" => None,
        _ => Some(
            address.trim_start_matches('[').trim_end_matches(']').parse().with_context(|| format!("{address:?}"))?,
        ),
    };
    Ok(HostEntry { name: name.to_string(), address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_podman_takes_them() {
        let rows = [
            ("80", None, 0, 80, 1, Transport::Tcp),
            ("8080:80", None, 8080, 80, 1, Transport::Tcp),
            (":80", None, 0, 80, 1, Transport::Tcp),
            ("53:53/udp", None, 53, 53, 1, Transport::Udp),
            ("127.0.0.1:8080:80", Some("127.0.0.1"), 8080, 80, 1, Transport::Tcp),
            ("0.0.0.0:8080:80", None, 8080, 80, 1, Transport::Tcp),
            ("127.0.0.1::80", Some("127.0.0.1"), 0, 80, 1, Transport::Tcp),
            ("[::1]:8080:80", Some("::1"), 8080, 80, 1, Transport::Tcp),
            ("8000-8010:9000-9010", None, 8000, 9000, 11, Transport::Tcp),
            ("9000-9010/UDP", None, 0, 9000, 11, Transport::Udp),
        ];
        for (text, address, host, container, count, transport) in rows {
            let address = address.map(|address| address.parse().expect("an address"));
            assert_eq!(port(text).expect(text), Port { address, host, container, count, transport }, "{text}");
        }
        for wrong in [
            "",
            "0",
            "x",
            "80:",
            "65536",
            "0:80",
            "8080:0",
            "1-3:1-2",
            "3-1",
            "80/icmp",
            "1.2.3:1:2",
            "[::1:8080:80",
            "::1:1:2:3",
        ] {
            port(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn networks_as_podman_takes_them() {
        assert_eq!(choice("none").expect("none"), Choice::None);
        assert_eq!(choice("container:web").expect("another's"), Choice::Of("web".to_string()));
        let Choice::Join(join) =
            choice("front:ip=10.0.0.2,mac=02:00:00:00:00:01,alias=db,alias=sql").expect("a network")
        else {
            panic!("a network")
        };
        assert_eq!((join.name.as_str(), join.ip), ("front", Some(Ipv4Addr::new(10, 0, 0, 2))));
        assert_eq!(join.aliases, ["db", "sql"]);
        for wrong in ["", "container:", ":x", "a/b", "front:ip=x", "front:mtu=3", "front:mac=01:00:00:00:00:00"] {
            choice(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn hosts_have_names_and_addresses() {
        assert_eq!(host_entry("db:10.0.0.2").expect("one").address, Some(IpAddr::from([10, 0, 0, 2])));
        assert_eq!(host_entry("db:host-gateway").expect("the host").address, None);
        assert_eq!(host_entry("db:[::1]").expect("one"), host_entry("db:::1").expect("one"));
        for wrong in ["db", "db:", ":1.2.3.4", "a b:1.2.3.4", "db:x"] {
            host_entry(wrong).expect_err(wrong);
        }
    }
}
