//! `tupper network`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde_json::{Value, json};
use tupper::error::Kind;
use tupper::name::NetworkName;
use tupper::network::{self, Driver, InUse, Network, Subnet};
use tupper::store::Store;
use tupper::{check, container};

use super::output::{self, Format};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a network, which is on the host while containers are in it
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all that is known of networks, and who is in them, as JSON
    Inspect(Inspect),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove the networks that no container has
    Prune(Prune),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Create(verb) => verb.run(root)?,
            Verb::Ls(verb) => verb.run(root)?,
            Verb::Inspect(verb) => return verb.run(root),
            Verb::Rm(verb) => return verb.run(root),
            Verb::Prune(verb) => verb.run(root)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How the links of a network are made.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DriverName {
    /// A bridge that every container has a port of.
    #[default]
    Bridge,
    /// A pair for each container, whose other end is the host's.
    Ptp,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper network create back --internal; tupper run -d --name db --network back IMAGE")]
pub(super) struct Create {
    /// How its links are made: a bridge that every container has a port of, or a pair for each container
    #[arg(long, short, value_name = "bridge|ptp", value_enum, default_value_t, hide_possible_values = true)]
    driver: DriverName,
    /// Its net, at most one of IPv4 and one of IPv6; by default one that nobody has
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNet>,
    /// The host's address in it [default: the first]
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Nothing goes out of it
    #[arg(long)]
    internal: bool,
    /// It has IPv6, too
    #[arg(long)]
    ipv6: bool,
    /// Nobody answers for names in it
    #[arg(long)]
    disable_dns: bool,
    /// mtu=BYTES: the largest packet [default: that of the host's way out]
    #[arg(long, short, value_name = "K=V", value_parser = mtu)]
    opt: Option<u32>,
    /// Note something of it
    #[arg(long, value_name = "K[=V]")]
    label: Vec<String>,
    /// One that is there already is no error
    #[arg(long)]
    ignore: bool,
    /// Its name
    name: NetworkName,
}

fn mtu(text: &str) -> Result<u32> {
    match text.split_once('=') {
        Some(("mtu" | "com.docker.network.driver.mtu", value)) => Ok(value.parse()?),
        _ => bail!("not mtu=BYTES"),
    }
}

impl Create {
    fn run(self, root: &Path) -> Result<()> {
        let store = Store::open_or_init(root)?;
        check::tidy(&store);
        let mut labels = BTreeMap::new();
        self.label.iter().try_for_each(|text| super::flags::label(text, &mut labels))?;
        let create = network::Create {
            name: self.name.clone(),
            driver: match self.driver {
                DriverName::Bridge => Driver::Bridge,
                DriverName::Ptp => Driver::Ptp,
            },
            six: self.ipv6 || self.subnet.iter().any(|net| net.addr().is_ipv6()),
            subnets: self.subnet,
            gateways: self.gateway,
            internal: self.internal,
            mtu: self.opt,
            no_dns: self.disable_dns,
            labels,
        };
        match network::create(&store, &create) {
            Err(e) if self.ignore && e.kind() == Kind::AlreadyExists => {}
            made => made?,
        }
        output::line(self.name)
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Names only
    #[arg(long, short)]
    quiet: bool,
    /// Print ids whole
    #[arg(long)]
    no_trunc: bool,
    /// Only those of which this is so: name=TEXT in the name, id=START, driver=DRIVER, label=K[=V], dangling=true|false (no
    /// container has it)
    #[arg(long, short, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
}

impl Ls {
    fn run(self, root: &Path) -> Result<()> {
        let Some(store) = super::open(root)? else { return print(&self, &[], &[]) };
        let networks = selected(&store, &self.filter)?;
        print(&self, &networks, &network::in_use(&store)?)
    }
}

fn print(ls: &Ls, networks: &[Network], used: &[InUse]) -> Result<()> {
    match ls.format {
        _ if ls.quiet => output::text(&networks.iter().map(|n| format!("{}\n", n.name)).collect::<String>()),
        Format::Json => output::json(&networks.iter().map(|n| details(n, used)).collect()),
        Format::Table => {
            let row = |n: &Network| vec![output::id(&n.id(), ls.no_trunc), n.name.to_string(), n.driver.to_string()];
            output::table(&["NETWORK ID", "NAME", "DRIVER"], &networks.iter().map(row).collect::<Vec<_>>())
        }
    }
}

/// podman-network-ls(1), `--filter`: of several with one key one has to be so, but for label all.
fn selected(store: &Store, filters: &[String]) -> Result<Vec<Network>> {
    let mut networks = network::list(store)?;
    let (mut names, mut ids, mut drivers, mut dangling) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for filter in filters {
        match filter.split_once('=') {
            Some(("name", text)) => names.push(text),
            Some(("id", text)) => ids.push(text),
            Some(("driver", text)) => drivers.push(text),
            Some(("dangling", "true" | "1")) => dangling.push(true),
            Some(("dangling", "false" | "0")) => dangling.push(false),
            Some(("label", label)) => {
                let (key, value) = label.split_once('=').map_or((label, None), |(key, value)| (key, Some(value)));
                networks.retain(|n| n.labels.get(key).is_some_and(|has| value.is_none_or(|value| value == has)));
            }
            _ => bail!("--filter {filter:?}: not name=, id=, driver=, label= or dangling=true|false"),
        }
    }
    networks.retain(|n| {
        (names.is_empty() || names.iter().any(|text| n.name.as_str().contains(text)))
            && (ids.is_empty() || ids.iter().any(|text| n.id().to_string().starts_with(text)))
            && (drivers.is_empty() || drivers.iter().any(|text| n.driver.to_string() == *text))
    });
    if !dangling.is_empty() {
        let unused: Vec<NetworkName> = container::unused_networks(store)?.into_iter().map(|n| n.name).collect();
        networks.retain(|n| dangling.contains(&unused.contains(&n.name)));
    }
    Ok(networks)
}

/// podman-network-inspect(1); of a network in use it is what it is like now.
fn details(network: &Network, used: &[InUse]) -> Value {
    let used = used.iter().find(|used| used.network.name == network.name);
    let subnets: Vec<Subnet> = used.map_or(&network.subnets, |used| &used.network.subnets).clone();
    let containers = used.into_iter().flat_map(|used| &used.members).map(|member| {
        let addresses: Vec<_> = member
            .addresses
            .iter()
            .filter_map(|address| {
                let subnet = subnets.iter().find(|subnet| subnet.net.contains(address))?;
                let net = format!("{address}/{}", subnet.net.prefix_len());
                Some(json!({ "ipnet": net, "gateway": subnet.gateway }))
            })
            .collect();
        let links = json!({ "eth0": { "subnets": addresses, "mac_address": member.mac } });
        (member.id.to_string(), json!({ "name": member.names.first(), "interfaces": links }))
    });
    json!({
        "name": network.name,
        "id": network.id(),
        "driver": network.driver,
        "network_interface": used.and_then(|used| used.bridge.as_ref()),
        "created": network.created.to_string(),
        "subnets": subnets.iter().map(|s| json!({ "subnet": s.net, "gateway": s.gateway })).collect::<Vec<_>>(),
        "ipv6_enabled": network.has_six(),
        "internal": network.internal,
        "dns_enabled": !network.no_dns,
        "labels": network.labels,
        "options": network.mtu.map(|mtu| json!({ "mtu": mtu.to_string() })).unwrap_or(json!({})),
        "ipam_options": { "driver": "host-local" },
        "containers": containers.collect::<serde_json::Map<_, _>>(),
    })
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Networks by name or id
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl Inspect {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let used = network::in_use(&store)?;
        super::inspect(&self.networks, |text| Ok(details(&network::find(&store, text)?, &used)))
    }
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Remove the containers that have it, too
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Networks by name or id
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl Rm {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_remove(root, self.dry_run)?;
        let remove = |text: &str| -> Result<()> {
            if self.force {
                let name = network::find(&store, text)?.name;
                let removal = container::Removal { force: true, volumes: false, dry_run: self.dry_run };
                for user in container::containers_of(&store, &name)? {
                    let id = container::remove(&store, &user.id.to_string(), &removal)?;
                    if self.dry_run {
                        output::line(id)?;
                    }
                }
                if self.dry_run {
                    return output::line(name);
                }
            }
            output::line(container::remove_network(&store, text, self.dry_run)?)
        };
        Ok(super::for_each(&self.networks, remove))
    }
}

#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Do not ask
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    fn run(self, root: &Path) -> Result<()> {
        if super::open(root)?.is_none() {
            return Ok(());
        }
        if !self.dry_run && !self.force && !output::confirmed("all networks that no container has")? {
            return Ok(());
        }
        let store = super::open_to_remove(root, self.dry_run)?;
        for network in container::unused_networks(&store)? {
            match container::remove_network(&store, network.name.as_str(), self.dry_run) {
                Err(e) if matches!(e.kind(), Kind::InUse | Kind::NotFound) => {} // taken, or removed, meanwhile
                other => output::line(other?)?,
            }
        }
        Ok(())
    }
}
