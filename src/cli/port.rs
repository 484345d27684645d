//! `tupper port`, and how published ports are shown.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use tupper::container::{self, Container, State};
use tupper::name::Id;
use tupper::network::{self, Port};
use tupper::store::Store;

use super::output;

#[derive(Debug, Args)]
pub(super) struct Ports {
    /// All containers
    #[arg(long, short, conflicts_with = "container")]
    all: bool,
    /// A container by name or id
    #[arg(value_name = "CONTAINER", required_unless_present = "all")]
    container: Option<String>,
    /// Only this port of the container
    #[arg(value_name = "PORT[/tcp|udp]")]
    port: Option<String>,
}

impl Ports {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let published = Published::new(&store)?;
        let Some(text) = &self.container else {
            for container in container::list(&store)?.iter().filter(|c| matches!(c.state, State::Running(_))) {
                for (inside, place) in places(&published.of(container)) {
                    output::line(format_args!("{}\t{inside} -> {place}", container.id.short()))?;
                }
            }
            return Ok(ExitCode::SUCCESS);
        };
        let container = container::find(&store, text)?;
        let all = places(&published.of(&container));
        let Some(wanted) = &self.port else {
            all.iter().try_for_each(|(inside, place)| output::line(format_args!("{inside} -> {place}")))?;
            return Ok(ExitCode::SUCCESS);
        };
        let wanted = if wanted.contains('/') { wanted.clone() } else { format!("{wanted}/tcp") };
        let found: Vec<_> = all.iter().filter(|(inside, _)| *inside == wanted).collect();
        if found.is_empty() {
            bail!("container {text}: port {wanted} is not published");
        }
        found.iter().try_for_each(|(_, place)| output::line(place))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Each port by itself: `80/tcp`, and where it is reached.
fn places(ports: &[Port]) -> Vec<(String, String)> {
    let one = |port: &Port, n: u16| {
        let host = match port.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        (format!("{}/{}", port.container + n, port.transport), format!("{host}:{}", port.host + n))
    };
    ports.iter().flat_map(|port| (0..port.count).map(move |n| one(port, n))).collect()
}

/// The published ports of containers, with the numbers that they have now.
pub(super) struct Published(BTreeMap<Id, Vec<Port>>);

impl Published {
    pub(super) fn new(store: &Store) -> Result<Published> {
        let used = network::in_use(store)?;
        Ok(Published(used.into_iter().flat_map(|used| used.members).map(|m| (m.id, m.ports)).collect()))
    }

    /// Of one that does not run, those that a person has numbered.
    pub(super) fn of(&self, container: &Container) -> Vec<Port> {
        let chosen = || container.spec.ports.iter().filter(|port| port.host != 0).cloned().collect();
        self.0.get(&container.id).cloned().unwrap_or_else(chosen)
    }
}

/// As `ps` shows them: podman-ps(1), PORTS.
pub(super) fn summary(ports: &[Port]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// podman-ps(1), `Ports` of `--format json`.
pub(super) fn listing(ports: &[Port]) -> Value {
    let one = |port: &Port| {
        json!({
            "host_ip": port.address.map(|address| address.to_string()).unwrap_or_default(),
            "host_port": port.host,
            "container_port": port.container,
            "range": port.count,
            "protocol": port.transport,
        })
    };
    ports.iter().map(one).collect()
}

/// podman-inspect(1), `NetworkSettings` and `PortBindings`.
pub(super) fn bindings(ports: &[Port]) -> Value {
    let mut all = Map::new();
    for port in ports {
        for n in 0..port.count {
            let binding = json!({
                "HostIp": port.address.map_or("0.0.0.0".to_string(), |address| address.to_string()),
                "HostPort": port.host.saturating_add(n).to_string(),
            });
            let key = format!("{}/{}", port.container + n, port.transport);
            if let Some(list) = all.entry(key).or_insert_with(|| json!([])).as_array_mut() {
                list.push(binding);
            }
        }
    }
    Value::Object(all)
}

/// podman-inspect(1), `NetworkSettings`: where a container is now.
pub(super) fn settings(store: &Store, container: &Container) -> Result<Value> {
    let ports = Published::new(store)?.of(container);
    let (mut networks, mut first) = (Map::new(), json!({}));
    let running = matches!(container.state, State::Running(_));
    if let Some((network, member)) = network::place_of(store, &container.id)?.filter(|_| running) {
        let place = |six: bool| {
            let address = member.addresses.iter().find(|address| address.is_ipv6() == six)?;
            let subnet = network.subnets.iter().find(|subnet| subnet.net.contains(address))?;
            Some((address.to_string(), subnet.gateway.to_string(), subnet.net.prefix_len()))
        };
        let (four, six) = (place(false).unwrap_or_default(), place(true).unwrap_or_default());
        let value = json!({
            "NetworkID": network.id(),
            "IPAddress": four.0,
            "IPPrefixLen": four.2,
            "Gateway": four.1,
            "GlobalIPv6Address": six.0,
            "GlobalIPv6PrefixLen": six.2,
            "IPv6Gateway": six.1,
            "MacAddress": member.mac,
            "Aliases": member.names,
        });
        first = value.clone();
        networks.insert(network.name.to_string(), value);
    } else if let Some(join) = container.spec.network.joined() {
        networks.insert(join.name.to_string(), json!({ "IPAddress": "", "Aliases": join.aliases }));
    }
    Ok(json!({
        "Ports": bindings(&ports),
        "IPAddress": first["IPAddress"].as_str().unwrap_or_default(),
        "Gateway": first["Gateway"].as_str().unwrap_or_default(),
        "MacAddress": first["MacAddress"].as_str().unwrap_or_default(),
        "GlobalIPv6Address": first["GlobalIPv6Address"].as_str().unwrap_or_default(),
        "Networks": networks,
    }))
}
