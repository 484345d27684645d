//! Being in a network: from what a container wants there to the end, when it leaves.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::others;
use super::plan::{self, Names, Place};
use super::proxy::Proxy;
use super::spec::{Dns, Driver, Join, Port};
use super::step::{Apply, Narrate, Step};
use super::used::{self, LINGER, Lock, Member, STATE, State, Used, take_away_later};
use super::{Network, find, place};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock as How};
use crate::kernel::socket::Held;
use crate::kernel::{fs, process};
use crate::name::Id;
use crate::store::Store;

/// What a container wants of the network that it is about to join.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The container.
    pub id: &'a Id,
    /// The network, and the address there.
    pub join: &'a Join,
    /// What it is called, beside the aliases.
    pub names: &'a [String],
    /// Its published ports.
    pub ports: &'a [Port],
    /// Who answers for names of others.
    pub dns: &'a Dns,
}

/// Being in a network, for as long as this lives.
#[derive(Debug)]
pub struct Membership {
    state: State,
    /// Who this is in it.
    pub member: Member,
    names: Names,
    since: Instant,
    /// Nobody waits until the network is gone.
    in_background: bool,
    /// Locked.
    _file: File,
    /// Locked, shared.
    _alive: File,
    /// Nobody else gets the published ports.
    ports: Vec<Held>,
    proxy: Mutex<Option<Proxy>>,
}

/// Joins a network, which comes into use if it was not. The container's side comes with [`Membership::connect`].
///
/// # Errors
/// [`Kind::NotFound`] for a network that there is not, [`Kind::InUse`] for an address or port that another has, [`Kind::Limit`] when no
/// address is free. The host is as it was then.
pub fn join(store: &Store, request: &Request<'_>, narrate: Option<Narrate<'_>>) -> Result<Membership> {
    join_named(store, request, narrate).context(|| format!("network {}", request.join.name))
}

fn join_named(store: &Store, request: &Request<'_>, narrate: Option<Narrate<'_>>) -> Result<Membership> {
    let network = find(store, request.join.name.as_str())?;
    let lock = used::lock()?;
    let names = Names::of(store.uuid(), &network.name);
    let ports = place::hold(&lock, request.ports)?;
    let mut apply = Apply::new(narrate)?;
    let used = lock.ensure(&names.link)?;
    let joined = enter(store, &lock, &used, network, &names, request, ports, &mut apply);
    if joined.is_err() && used.ids()?.is_empty() {
        let mut quietly = Apply::new(None)?;
        used.take_away(&lock, &mut quietly).unwrap_or_else(|e| log::warn!("take the network away again: {e}"));
    }
    joined
}

#[expect(clippy::too_many_arguments, reason = "who, where, and with what")]
fn enter(
    store: &Store,
    lock: &Lock,
    used: &Used,
    network: Network,
    names: &Names,
    request: &Request<'_>,
    (ports, held): (Vec<Port>, Vec<Held>),
    apply: &mut Apply<'_>,
) -> Result<Membership> {
    let (mut members, left) = used.members()?;
    left.iter().try_for_each(|id| used.forget(id))?;
    let state = used.state()?;
    let there = state.as_ref().map(|state| there(state, names, apply)).transpose()?.unwrap_or_default();
    let state = match state {
        // What it is like is decided anew when nobody is in it: the host's routes may be others now.
        Some(state) if !members.is_empty() || there.is_whole() => state,
        _ => {
            let state = State::decide(store, lock, network, apply)?;
            // First of all: whoever finds a network without it knows that there is nothing of it on the host.
            used.write(STATE, &state, 0o600)?;
            state
        }
    };
    let (member, number) = state.place(request, ports, &members, used.last()?)?;
    let file = fs::create_new(used.at(), member.id.to_string(), 0o600)?;
    let entered = (|| {
        // Whoever only looks has it for a moment.
        flock::lock(file.as_fd(), How::Exclusive, || "a place in the network")?;
        let json = serde_json::to_vec(&member).map_err(|e| Error::new(Kind::Io, e.to_string()))?;
        let written = (&file).write_all(&json);
        written
            .map_err(|e| Error::from_io(format_args!("write {}", used.path(&member.id.to_string()).display()), e))?;
        members.push(member.clone());
        used.tell(&state, &members)?;
        let alive = used.touch()?;
        used.note_last(&alive, number)?;
        flock::lock(alive.as_fd(), How::Shared, || "a resolver that ends")?;
        let resolver = used.ensure_resolver(&state)?;
        let port = resolver.map(|(port, _)| port);
        let is_new = resolver.is_some_and(|(_, is_new)| is_new);
        match bring(&state, names, &members, &member, there, (port, is_new)) {
            Bring::Anew(steps) => {
                clear_half(names, apply)?;
                say_what_changes(&steps);
                apply.run_all(&steps)?;
                say_who_is_in_the_way(apply, names, &state);
            }
            Bring::More(steps) => apply.run_all(&steps)?,
        }
        Ok(alive)
    })();
    match entered {
        Ok(alive) => Ok(Membership {
            state,
            member,
            names: names.clone(),
            since: Instant::now(),
            in_background: false,
            _file: file,
            _alive: alive,
            ports: held,
            proxy: Mutex::default(),
        }),
        Err(e) => {
            used.forget(&member.id)?;
            Err(e)
        }
    }
}

/// What a new member takes on the host, before its own link.
enum Bring {
    /// The whole network.
    Anew(Vec<Step>),
    /// What it has, and others had not.
    More(Vec<Step>),
}

/// One of the `members` is the new one, `member`; `resolver` is its port, and whether it is another than before.
fn bring(
    state: &State,
    names: &Names,
    members: &[Member],
    member: &Member,
    there: There,
    (resolver, is_new): (Option<u16>, bool),
) -> Bring {
    let table = state.table(names, members, resolver);
    let others = || members.iter().filter(|other| other.id != member.id);
    let loopback = !member.ports.is_empty() && state.network.driver == Driver::Bridge;
    let loopback = loopback.then(|| plan::reach_from_loopback(&names.link));
    // Rules that somebody has flushed are loaded again for those who are in it.
    if there.is_whole() || there.links && others().next().is_some() {
        let changed = !there.rules || is_new || !member.ports.is_empty();
        return Bring::More(changed.then_some(Step::LoadTable(table)).into_iter().chain(loopback).collect());
    }
    let mut steps = plan::come(&state.facts(names, forwards()), table);
    let pairs = others().map(|other| plan::pair_of(&other.id));
    steps.extend(pairs.map(|link| Step::Enslave { link, bridge: names.link.clone() }));
    steps.extend(loopback);
    Bring::Anew(steps)
}

/// What connecting a member takes, in its network namespace and at the other end.
fn connect(state: &State, names: &Names, member: &Member) -> Vec<Step> {
    let pair = plan::pair_of(&member.id);
    let published = !member.ports.is_empty();
    let place = Place { pair: &pair, addresses: &member.addresses, mac: member.mac, published };
    plan::join(&state.facts(names, (true, true)), &place)
}

/// Somebody was killed in the middle of bringing it, or of taking it away.
fn clear_half(names: &Names, apply: &mut Apply<'_>) -> Result<()> {
    if apply.host().find(&names.link)?.is_some() {
        apply.host().delete(&names.link)?;
    }
    // To delete nothing takes as long as to delete something.
    if apply.rules()?.exists(&names.table)? {
        apply.rules()?.delete(&names.table)?;
    }
    Ok(())
}

/// What there is on the host of a network in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct There {
    links: bool,
    rules: bool,
}

impl There {
    fn is_whole(self) -> bool {
        self.links && self.rules
    }
}

fn there(state: &State, names: &Names, apply: &mut Apply<'_>) -> Result<There> {
    let here = process::namespace_of_this("net")? == state.namespace;
    let links = here && (state.network.driver == Driver::Ptp || apply.host().find(&names.link)?.is_some());
    Ok(There { links, rules: apply.rules()?.exists(&names.table)? })
}

/// Whether this host forwards IPv4, and IPv6.
fn forwards() -> (bool, bool) {
    let reads = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/net").join(name));
        // A host without IPv6 has nothing to turn on.
        text.map_or(true, |text| text.trim() != "0")
    };
    (reads(plan::FORWARD), reads(plan::FORWARD_SIX))
}

fn say_what_changes(steps: &[Step]) {
    for step in steps {
        if let Step::SetParameter { name, .. } = step
            && [plan::FORWARD, plan::FORWARD_SIX].contains(&name.as_str())
        {
            log::info!("this host forwards packets from now on: net.{} is 1", name.replace('/', "."));
        }
    }
}

/// Another table may drop what this one accepts.
fn say_who_is_in_the_way(apply: &mut Apply<'_>, names: &Names, state: &State) {
    let Ok(rules) = apply.rules() else { return };
    let chains = rules.chains().unwrap_or_default();
    // Most hosts have nothing to look through.
    let mentions = chains.iter().any(|chain| chain.table != names.table);
    let mentions = mentions.then(|| rules.mentions(&names.link).ok()).flatten().unwrap_or_default();
    let facts = others::Facts {
        chains: &chains,
        mentions: &mentions,
        link: &names.link,
        six: state.network.subnets.iter().any(|subnet| subnet.net.addr().is_ipv6()),
        names: used::gateway(&state.network).is_some() && !state.network.no_dns,
    };
    others::in_the_way(&facts).iter().for_each(|text| log::warn!("{text}"));
}

impl Membership {
    /// Makes the container's link, in the network namespace that it is to have.
    pub fn connect(&self, namespace: BorrowedFd<'_>, narrate: Option<Narrate<'_>>) -> Result<()> {
        let doing = || format!("network {}", self.state.network.name);
        let mut apply = Apply::new(narrate).context(doing)?;
        apply.enter(namespace).context(doing)?;
        apply.run_all(&connect(&self.state, &self.names, &self.member)).context(doing)?;
        let proxy = Proxy::spawn(&self.ports, &self.member).context(doing)?;
        if let Ok(mut place) = self.proxy.lock() {
            *place = proxy;
        }
        Ok(())
    }

    /// When this goes, the network is taken away by another process: whoever waits for the end of the container does not wait for
    /// that.
    pub fn leave_in_background(&mut self) {
        self.in_background = true;
    }

    /// The network as it is in use.
    pub fn network(&self) -> &Network {
        &self.state.network
    }

    /// What is done when this goes, in words and as commands.
    pub fn afterwards(&self) -> Vec<(String, String)> {
        let alone = || -> Result<bool> {
            let lock = used::lock()?;
            let Some(used) = lock.open(&self.names.link)? else { return Ok(false) };
            Ok(used.members()?.0.len() <= 1)
        };
        let steps = match alone() {
            Ok(true) => plan::go(self.state.network.driver, &self.names),
            _ => Vec::new(),
        };
        steps.iter().map(|step| (step.describe(), step.command())).collect()
    }

    fn leave(&self) -> Result<()> {
        let lock = used::lock()?;
        let Some(used) = lock.open(&self.names.link)? else { return Ok(()) };
        used.forget(&self.member.id)?;
        used.touch()?;
        let (members, left) = used.members()?;
        left.iter().try_for_each(|id| used.forget(id))?;
        let mut apply = Apply::new(None)?;
        if !members.is_empty() {
            let Some(state) = used.state()? else { return Ok(()) };
            used.tell(&state, &members)?;
            if !self.member.ports.is_empty() {
                let port = used.ensure_resolver(&state)?.map(|(port, _)| port);
                apply.run_all(&[Step::LoadTable(state.table(&self.names, &members, port))])?;
            }
            return Ok(());
        }
        match self.since.elapsed() < LINGER {
            true => take_away_later(&used, LINGER),
            false if self.in_background => take_away_later(&used, Duration::ZERO),
            false => used.take_away(&lock, &mut apply),
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // What stays is found by the next who joins, and by a gc.
        self.leave().unwrap_or_else(|e| log::warn!("leave network {}: {e}", self.state.network.name));
    }
}

/// Narrates what joining and connecting would do, and does nothing. Addresses are those that it would get now.
pub fn explain(store: &Store, request: &Request<'_>, narrate: Narrate<'_>) -> Result<Explained> {
    let network = find(store, request.join.name.as_str())?;
    let lock = used::lock()?;
    let names = Names::of(store.uuid(), &network.name);
    let mut apply = Apply::new(None)?;
    let used = lock.open(&names.link)?;
    let (members, _) = used.as_ref().map(Used::members).transpose()?.unwrap_or_default();
    let state = used.as_ref().map(Used::state).transpose()?.flatten();
    let there = state.as_ref().map(|state| there(state, &names, &mut apply)).transpose()?.unwrap_or_default();
    let state = match state {
        Some(state) if there.is_whole() || !members.is_empty() => state,
        _ => State::decide(store, &lock, network, &mut apply)?,
    };
    let last = used.as_ref().map(Used::last).transpose()?.unwrap_or_default();
    let (member, _) = state.place(request, request.ports.to_vec(), &members, last)?;
    let members: Vec<Member> = members.into_iter().chain([member.clone()]).collect();
    let (Bring::Anew(steps) | Bring::More(steps)) = bring(&state, &names, &members, &member, there, (None, false));
    steps.iter().for_each(|step| narrate(&step.describe(), &step.command()));
    let told = |steps: Vec<Step>| steps.iter().map(|step| (step.describe(), step.command())).collect();
    let afterwards = if members.len() == 1 { plan::go(state.network.driver, &names) } else { Vec::new() };
    let (steps, afterwards) = (told(connect(&state, &names, &member)), told(afterwards));
    Ok(Explained { network: state.network, member, steps, afterwards })
}

/// What [`explain`] found.
#[derive(Debug)]
pub struct Explained {
    /// The network, with its nets.
    pub network: Network,
    /// Who the container would be in it.
    pub member: Member,
    /// What connecting it would take, in words and as commands.
    pub steps: Vec<(String, String)>,
    /// What would be done when it has ended.
    pub afterwards: Vec<(String, String)>,
}
