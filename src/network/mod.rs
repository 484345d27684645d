//! Networks: what joins containers to each other, to the host and through it to others.
//!
//! ```text
//!   host ── bridge tupperb… ─┬─ tupperv… ══ eth0   container        (driver bridge)
//!                            └─ tupperv… ══ eth0   container
//!   host ─────────────────────── tupperv… ══ eth0   container        (driver ptp)
//! ```
//!
//! Two halves, as in the sandbox: `plan.rs` says which links, addresses, routes and rules a network and a container in it
//! take, as a list of `step.rs`'s steps; `membership.rs` has them run, and `used.rs` keeps who is in which network.
//!
//! What people make is a document below the store's `networks/`. What is in use is the host's, and ends with its boot; `used.rs` draws it.
//!
//! It must not know what a container is: a member is an id, names, and a network namespace.

mod files;
mod membership;
mod others;
mod place;
mod plan;
mod proxy;
mod resolver;
mod rules;
mod spec;
mod step;
mod subnet;
mod used;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use files::{Files, Who, files};
pub use membership::{Explained, Membership, Request, explain, join};
pub use place::check;
pub use proxy::{VERB as PROXY, run as forward};
pub use resolver::{VERB as RESOLVER, run as resolve};
pub use spec::{Dns, Driver, HostEntry, Join, MacAddress, Mode, Port, Transport};
pub use step::Narrate;
pub use used::{InUse, Member, in_use, left, place_of, seems_left, settle, tidy};

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::name::{Digest, Id, NetworkName};
use crate::store::{Damage, Shelf, Store};

/// A network as people made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// How its links are made.
    pub driver: Driver,
    /// Its nets; those of the two networks that there always are are chosen when they come into use.
    pub subnets: Vec<Subnet>,
    /// Nothing goes out of it.
    #[serde(default)]
    pub internal: bool,
    /// The largest packet in bytes; by default that of the host's way out.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Nobody answers for names in it.
    #[serde(default)]
    pub no_dns: bool,
    /// What people note of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
}

/// A net, and the host's address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The net.
    pub net: IpNet,
    /// The host's address, by which everything else is reached.
    pub gateway: IpAddr,
}

impl Network {
    /// Its id: the sha256 of its name.
    pub fn id(&self) -> Id {
        Digest::of(self.name.as_str().as_bytes()).id()
    }

    /// It has IPv6.
    pub fn has_six(&self) -> bool {
        self.subnets.iter().any(|subnet| subnet.net.addr().is_ipv6())
    }

    /// One that there always is.
    fn own(name: NetworkName, driver: Driver) -> Network {
        Network {
            name,
            driver,
            subnets: Vec::new(),
            internal: false,
            mtu: None,
            no_dns: false,
            labels: BTreeMap::new(),
            created: Timestamp::UNIX_EPOCH,
        }
    }

    /// It is one of those that there always are.
    pub fn is_own(&self) -> bool {
        own().iter().any(|own| own.name == self.name)
    }
}

fn own() -> [Network; 2] {
    [Network::own(NetworkName::bridge(), Driver::Bridge), Network::own(NetworkName::ptp(), Driver::Ptp)]
}

/// How a network is made.
#[derive(Debug, Clone)]
pub struct Create {
    /// Its name.
    pub name: NetworkName,
    /// How its links are made.
    pub driver: Driver,
    /// Its nets, at most one of IPv4 and one of IPv6; without one, one of IPv4 that is free.
    pub subnets: Vec<IpNet>,
    /// The host's addresses in them; by default the first of each.
    pub gateways: Vec<IpAddr>,
    /// Nothing goes out of it.
    pub internal: bool,
    /// It has IPv6, too.
    pub six: bool,
    /// The largest packet in bytes.
    pub mtu: Option<u32>,
    /// Nobody answers for names in it.
    pub no_dns: bool,
    /// What people note of it.
    pub labels: BTreeMap<String, String>,
}

/// The smallest MTU that IPv4 and IPv6 work with: RFC 8200, section 5.
const LEAST_MTU: u32 = 1280;

/// Makes a network, durable when this returns; nothing of it is on the host before a container is in it.
///
/// # Errors
/// [`Kind::AlreadyExists`] for a name that one has, [`Kind::InUse`] for a net that the host or another network uses.
pub fn create(store: &Store, create: &Create) -> Result<()> {
    let doing = || format!("network {}", create.name);
    if own().iter().any(|own| own.name == create.name) {
        return Err(Error::new(Kind::AlreadyExists, "there always is one of this name")).context(doing);
    }
    if create.mtu.is_some_and(|mtu| !(LEAST_MTU..=65535).contains(&mtu)) {
        return Err(Error::new(Kind::Invalid, format!("mtu: not {LEAST_MTU} to 65535 bytes"))).context(doing);
    }
    // Whoever chooses a net does so alone.
    let lock = used::lock().context(doing)?;
    let taken = taken(store, &lock).context(doing)?;
    let network = Network {
        name: create.name.clone(),
        driver: create.driver,
        subnets: subnets(store, create, &taken).context(doing)?,
        internal: create.internal,
        mtu: create.mtu,
        no_dns: create.no_dns,
        labels: create.labels.clone(),
        created: Timestamp::now(),
    };
    write(store, &network).context(doing)
}

/// A net that is used, and by whom.
struct Taken {
    net: IpNet,
    by: String,
}

/// The nets of the host's routes, of the store's networks, and of networks in use.
fn taken(store: &Store, lock: &used::Lock) -> Result<Vec<Taken>> {
    let routes = used::routes()?.into_iter().map(|net| Taken { net, by: format!("this host's route to {net}") });
    let mut all: Vec<Taken> = routes.collect();
    for network in list(store)?.into_iter().chain(lock.in_use()?.into_iter().map(|used| used.network)) {
        let by = format!("network {}", network.name);
        all.extend(network.subnets.iter().map(|subnet| Taken { net: subnet.net, by: by.clone() }));
    }
    Ok(all)
}

fn subnets(store: &Store, create: &Create, taken: &[Taken]) -> Result<Vec<Subnet>> {
    let six = |net: &IpNet| net.addr().is_ipv6();
    let mut nets = create.subnets.clone();
    nets.sort_by_key(six);
    if nets.len() > 2 || (nets.len() == 2 && six(&nets[0]) == six(&nets[1])) {
        return Err(Error::new(Kind::Invalid, "--subnet: at most one of IPv4 and one of IPv6"));
    }
    for net in &nets {
        // A container, the host, and the two that no one can have.
        let bits = net.max_prefix_len() - net.prefix_len();
        if !(2..=if six(net) { 124 } else { 24 }).contains(&bits) {
            return Err(Error::new(Kind::Invalid, format!("--subnet {net}: not of 4 to 2^24 addresses")));
        }
        if net.trunc() != *net {
            let error = Error::new(Kind::Invalid, format!("--subnet {net}: an address, not a net"));
            return Err(error.with_hint(format!("the net that it is in is {}", net.trunc())));
        }
        if let Some(Taken { by, .. }) = taken.iter().find(|taken| subnet::overlap(&taken.net, net)) {
            return Err(Error::new(Kind::InUse, format!("--subnet {net}: overlaps with {by}")));
        }
    }
    let of_others: Vec<IpNet> = taken.iter().map(|taken| taken.net).collect();
    if nets.iter().all(six) {
        let net = subnet::free(subnet::USUAL, &of_others).ok_or_else(no_net)?;
        nets.insert(0, IpNet::V4(net));
    }
    if create.six && !nets.iter().any(six) {
        nets.push(IpNet::V6(subnet::local(&format!("{}/{}", store.uuid(), create.name), &of_others)));
    }
    let gateway = |net: &IpNet| create.gateways.iter().find(|gateway| gateway.is_ipv6() == six(net));
    for gateway in &create.gateways {
        if !nets.iter().any(|net| subnet::is_usable(*net, *gateway)) {
            return Err(Error::new(
                Kind::Invalid,
                format!("--gateway {gateway}: not an address of the network's nets"),
            ));
        }
    }
    Ok(nets
        .iter()
        .map(|net| Subnet { net: *net, gateway: gateway(net).copied().unwrap_or_else(|| subnet::nth(*net, 1)) })
        .collect())
}

fn no_net() -> Error {
    let error = Error::new(Kind::Limit, "no net of 10.64.0.0/12 is free of this host's routes and networks");
    error.with_hint("--subnet says which to take")
}

fn write(store: &Store, network: &Network) -> Result<()> {
    store.require_writable()?;
    store.ensure_shelf(Shelf::Networks)?;
    let json = serde_json::to_vec(network).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    let mut file = store.unnamed_file()?;
    file.write_all(&json).and_then(|()| file.sync_all()).map_err(|e| Error::from_io("write it", e))?;
    let shelf = store.shelf(Shelf::Networks)?;
    fs::name_file(file.as_fd(), shelf.as_fd(), network.name.as_str()).map_err(|e| match e.kind() {
        Kind::AlreadyExists => {
            let error = Error::new(Kind::AlreadyExists, "it exists already");
            error.with_hint("`tupper network ls` lists what there is")
        }
        _ => e,
    })?;
    store.sync()
}

/// Every network: those that there always are, and those that people made, by name. One whose document is damaged is left out.
pub fn list(store: &Store) -> Result<Vec<Network>> {
    let mut networks = own().to_vec();
    for name in names(store)? {
        match read(store, &name) {
            Ok(network) => networks.push(network),
            Err(e) if e.kind() == Kind::NotFound => {} // removed while we looked
            Err(e) => log::warn!("network {name}: {e}"),
        }
    }
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(networks)
}

fn names(store: &Store) -> Result<Vec<NetworkName>> {
    let shelf = match store.shelf(Shelf::Networks) {
        // Older than networks are.
        Err(e) if e.kind() == Kind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(fs::list(shelf.as_fd(), ".")?.into_iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// The largest document that is read, in bytes.
const LARGEST: u64 = 1 << 20;

fn read(store: &Store, name: &NetworkName) -> Result<Network> {
    let bytes = fs::read_small(store.shelf(Shelf::Networks)?.as_fd(), name.as_str(), LARGEST)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::new(Kind::Store, e.to_string()))
}

/// The network of this name, or the only one whose id begins so.
pub fn find(store: &Store, text: &str) -> Result<Network> {
    let missing = || {
        let error = Error::new(Kind::NotFound, format!("{text}: no such network"));
        error.with_hint("`tupper network ls` lists what there is")
    };
    if let Some(own) = own().into_iter().find(|own| own.name.as_str() == text) {
        return Ok(own);
    }
    if let Ok(name) = text.parse::<NetworkName>() {
        match read(store, &name) {
            Err(e) if e.kind() == Kind::NotFound => {}
            other => return other.context(|| format!("network {name}")),
        }
    }
    let is_id = text.len() >= 3 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let meant = list(store)?.into_iter().filter(|network| is_id && network.id().to_string().starts_with(text));
    match meant.collect::<Vec<_>>().as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(missing()),
        _ => Err(Error::new(Kind::Invalid, format!("{text}: several networks' ids begin with it"))),
    }
}

/// Removes a network's document. Whoever calls knows that nobody is in it.
pub(crate) fn remove(store: &Store, name: &NetworkName) -> Result<()> {
    let doing = || format!("remove network {name}");
    if own().iter().any(|own| own.name == *name) {
        return Err(Error::new(Kind::Invalid, "there always is one of this name")).context(doing);
    }
    used::clear(store, name).context(doing)?;
    fs::unlink(store.shelf(Shelf::Networks)?.as_fd(), name.as_str()).context(doing)
}

/// What is wrong with the documents of networks: a file's name, and what. A network in use goes on without.
pub(crate) fn damage(store: &Store) -> Result<Vec<(OsString, Damage)>> {
    let shelf = match store.shelf(Shelf::Networks) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut wrong = Vec::new();
    for file in fs::list(shelf.as_fd(), ".")? {
        let Some(name) = file.to_str().and_then(|name| name.parse::<NetworkName>().ok()) else {
            wrong.push((file, Damage::by_hand("no network has such a name", "move it out of the store")));
            continue;
        };
        let problem = match read(store, &name) {
            Ok(network) if network.name == name => continue,
            Ok(network) => format!("it says that it is {}", network.name),
            Err(e) if e.kind() == Kind::NotFound => continue,
            Err(e) => e.to_string(),
        };
        let way_out = format!("remove its document; `tupper network create {name}` makes it again");
        wrong.push((file, Damage::by_force(problem, way_out, move |store| remove(store, &name))));
    }
    Ok(wrong)
}

/// 10.64.0.0/16 or the like, for a network that there always is.
fn own_net(taken: &[IpNet]) -> Result<Ipv4Net> {
    subnet::free(subnet::LARGE, taken).or_else(|| subnet::free(subnet::USUAL, taken)).ok_or_else(no_net)
}
