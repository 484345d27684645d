//! The networks of containers: who joins which and under which names, and what becomes of networks that containers have.

use std::os::fd::OwnedFd;

use super::life::open_process;
use super::{Container, list};
use crate::error::{Context, Error, Kind, Result};
use crate::name::{Id, NetworkName, ObjectName};
use crate::network::{self, Explained, Member, Membership, Mode, Narrate, Network, Request};
use crate::sandbox::Spec;
use crate::store::{Shelf, Store};

/// What it is called in its network: its name, its short id, and its host name where that is another.
fn names(id: &Id, name: Option<&ObjectName>, spec: &Spec) -> Vec<String> {
    let mut names: Vec<String> = name.map(ToString::to_string).into_iter().chain([id.short()]).collect();
    if !names.contains(&spec.hostname) && spec.hostname != "localhost" {
        names.push(spec.hostname.clone());
    }
    names
}

fn with_request<T>(
    id: &Id,
    name: Option<&ObjectName>,
    spec: &Spec,
    act: impl FnOnce(&Request<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let Some(join) = spec.network.joined() else { return Ok(None) };
    let names = names(id, name, spec);
    act(&Request { id, join, names: &names, ports: &spec.ports, dns: &spec.dns }).map(Some)
}

/// Joins a container that is about to run to its network, if it is to be in one.
pub(super) fn join(
    store: &Store,
    id: &Id,
    name: Option<&ObjectName>,
    spec: &Spec,
    narrate: Option<Narrate<'_>>,
) -> Result<Option<Membership>> {
    with_request(id, name, spec, |request| network::join(store, request, narrate))
}

/// Looks whether it could.
pub(super) fn check(store: &Store, id: &Id, spec: &Spec) -> Result<()> {
    with_request(id, None, spec, |request| network::check(store, request)).map(drop)
}

/// Narrates it.
pub(super) fn explain(
    store: &Store,
    id: &Id,
    name: Option<&ObjectName>,
    spec: &Spec,
    narrate: Narrate<'_>,
) -> Result<Option<Explained>> {
    with_request(id, name, spec, |request| network::explain(store, request, narrate))
}

/// The containers that are in a network when they run.
pub fn containers_of(store: &Store, name: &NetworkName) -> Result<Vec<Container>> {
    let mut all = list(store)?;
    all.retain(|container| container.spec.network.joined().is_some_and(|join| join.name == *name));
    Ok(all)
}

/// Removes a network.
///
/// # Errors
/// [`Kind::InUse`] for one that containers have, running or not.
pub fn remove_network(store: &Store, text: &str, dry_run: bool) -> Result<NetworkName> {
    let Network { name, .. } = network::find(store, text)?;
    let doing = || format!("remove network {name}");
    let users = containers_of(store, &name).context(doing)?;
    if !users.is_empty() {
        let of = users.iter().map(|container| container.id.short()).collect::<Vec<_>>().join(", ");
        let error = Error::new(Kind::InUse, format!("containers have it: {of}"));
        return Err(error.with_hint("remove those first, or use --force to remove them with it")).context(doing);
    }
    if !dry_run {
        network::remove(store, &name)?;
    }
    Ok(name)
}

/// The networks that people made and that no container has.
pub fn unused_networks(store: &Store) -> Result<Vec<Network>> {
    let used: Vec<NetworkName> =
        list(store)?.into_iter().filter_map(|c| Some(c.spec.network.joined()?.name.clone())).collect();
    let mut all = network::list(store)?;
    all.retain(|network| !network.is_own() && !used.contains(&network.name));
    Ok(all)
}

/// A container whose network another has.
pub(super) struct Beside {
    pub pid: i32,
    pub process: OwnedFd,
    /// Its place in its network, if it is in one.
    pub place: Option<(Network, Member)>,
}

/// The container whose network this one is to have, which has to run.
pub(super) fn beside(store: &Store, spec: &Spec) -> Result<Option<Beside>> {
    let Mode::Container(id) = &spec.network else { return Ok(None) };
    let doing = || format!("the network of container {}", id.short());
    let down = || {
        let error = Error::new(Kind::Invalid, "it does not run");
        error.with_hint(format!("`tupper start {}` starts it", id.short()))
    };
    if !store.exists(Shelf::Containers, id)? {
        return Err(Error::new(Kind::NotFound, "there is no such container any more")).context(doing);
    }
    let running = store.running(id).ok_or_else(down).context(doing)?;
    let process = open_process(store, id, &running)?.ok_or_else(down).context(doing)?;
    Ok(Some(Beside { pid: running.pid, process, place: network::place_of(store, id)? }))
}
