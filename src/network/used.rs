//! Networks in use, and who is in them.
//!
//! ```text
//! /run/tupper/networks/          locked while anything below is changed; open to nobody, but passable for resolvers
//!   tupperb1a2b3c4d/             a network in use, named as its bridge is
//!     network                    what it is like: its nets, the store that it is of
//!     ID                         a member: its addresses, names and ports; locked by whoever runs it
//!     names                      what the resolver has to know of the members; anybody may read it
//!     resolver                   the port at which names are answered; locked by the resolver
//!     linger                     locked by who takes it away when nobody has come for a while
//!     alive                      locked shared by whoever runs a member: the resolver ends when nobody does; as old as
//!                                the last coming or going; holds the number of the address that was given out last
//! ```
//!
//! The first to join a network brings its bridge and rules; who leaves last takes them away, or has that done a moment later
//! ([`LINGER`]). What was left by somebody who was killed is found by the locks: the next who joins, or a gc, takes it away.

use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Network;
use super::plan::{self, Facts, Names};
use super::resolver::{self, Known};
use super::rules;
use super::spec::{Driver, MacAddress, Port};
use super::step::Apply;
use crate::error::{Error, Kind, Result};
use crate::kernel::flock::{self, Lock as How};
use crate::kernel::netlink::nftables::Table;
use crate::kernel::{fs, process, signal, socket};
use crate::name::{Id, NetworkName};
use crate::store::Store;

const PLACE: &str = "/run/tupper/networks";

/// A network that nobody was in for long stays for so long when the last has left it: to take a bridge away takes the kernel some ten
/// milliseconds (net/core/dev.c, netdev_run_todo waits for RCU), more than all else about a short-lived container.
pub(super) const LINGER: Duration = Duration::from_millis(300);

/// A network in use.
#[derive(Debug, Clone)]
pub struct InUse {
    /// The network, with its nets.
    pub network: Network,
    /// Its bridge.
    pub bridge: Option<String>,
    /// Who is in it.
    pub members: Vec<Member>,
}

/// A container in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The container.
    pub id: Id,
    /// Its addresses, one of each net.
    pub addresses: Vec<IpAddr>,
    /// The hardware address of its link.
    pub mac: MacAddress,
    /// What it is called.
    pub names: Vec<String>,
    /// Its published ports, none of the host's 0.
    pub ports: Vec<Port>,
    /// Whom the resolver asks for it about others' names; by default the host's servers.
    pub servers: Vec<IpAddr>,
}

/// The document of a network in use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub store: String,
    pub network: Network,
    pub mtu: u32,
    /// The network namespace that its links are in.
    pub namespace: u64,
}

impl State {
    pub(super) fn names(&self) -> Names {
        Names::of(&self.store, &self.network.name)
    }

    pub(super) fn facts<'a>(&'a self, names: &'a Names, forwards: (bool, bool)) -> Facts<'a> {
        Facts {
            names,
            driver: self.network.driver,
            subnets: &self.network.subnets,
            internal: self.network.internal,
            mtu: self.mtu,
            forwards,
        }
    }

    pub(super) fn table(&self, names: &Names, members: &[Member], resolver: Option<u16>) -> Table {
        let ports: Vec<_> = members.iter().flat_map(|member| plan::targets(&member.ports, &member.addresses)).collect();
        rules::table(&rules::Facts {
            table: &names.table,
            bridge: (self.network.driver == Driver::Bridge).then_some(names.link.as_str()),
            subnets: &self.network.subnets,
            internal: self.network.internal,
            resolver,
            ports: &ports,
        })
    }
}

/// The right to change what is in use.
#[derive(Debug)]
pub(super) struct Lock(OwnedFd);

/// Waits for the right to change what is in use.
pub(super) fn lock() -> Result<Lock> {
    let directory = match fs::open_directory_follow(Path::new(PLACE)) {
        Err(e) if e.kind() == Kind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create("/run/tupper");
            made.map_err(|e| Error::from_io("make /run/tupper", e))?;
            fs::ensure_directory(fs::CWD, PLACE, 0o711)?;
            fs::open_directory_follow(Path::new(PLACE))?
        }
        other => other?,
    };
    flock::lock(directory.as_fd(), How::Exclusive, || "the networks")?;
    Ok(Lock(directory))
}

impl Lock {
    /// Every network in use on this host, of whatever store.
    pub(super) fn in_use(&self) -> Result<Vec<InUse>> {
        let (mut all, ours) = (Vec::new(), process::namespace_of_this("net")?);
        for name in fs::list(self.0.as_fd(), ".")? {
            let Some(used) = fs::open_directory_if_any(self.0.as_fd(), &name)? else { continue };
            let used = Used { directory: used, link: name.to_string_lossy().into_owned() };
            // One in another network namespace has nothing to do with this one.
            if used.state()?.is_some_and(|state| state.namespace == ours) {
                all.extend(used.describe()?);
            }
        }
        Ok(all)
    }

    pub(super) fn open(&self, link: &str) -> Result<Option<Used>> {
        let directory = fs::open_directory_if_any(self.0.as_fd(), link)?;
        Ok(directory.map(|directory| Used { directory, link: link.to_string() }))
    }

    pub(super) fn ensure(&self, link: &str) -> Result<Used> {
        fs::ensure_directory(self.0.as_fd(), link, 0o755)?;
        let directory = fs::open_directory(self.0.as_fd(), link)?;
        Ok(Used { directory, link: link.to_string() })
    }
}

/// The directory of a network in use.
#[derive(Debug)]
pub(super) struct Used {
    directory: OwnedFd,
    link: String,
}

pub(super) const STATE: &str = "network";
const NAMES: &str = "names";
const RESOLVER: &str = "resolver";
const ALIVE: &str = "alive";
const LINGERS: &str = "linger";
const LARGEST: u64 = 1 << 20;

impl Used {
    pub(super) fn at(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// A document that is whole or not there.
    fn read<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>> {
        match fs::read_small(self.at(), name, LARGEST) {
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) => Err(e),
        }
    }

    pub(super) fn write<T: Serialize>(&self, name: &str, document: &T, mode: u32) -> Result<()> {
        let json = serde_json::to_vec(document).map_err(|e| Error::new(Kind::Io, e.to_string()))?;
        let draft = format!("{name}.new");
        match fs::unlink(self.at(), &draft) {
            Err(e) if e.kind() != Kind::NotFound => return Err(e),
            _ => {}
        }
        fs::write_new(self.at(), &draft, &json, mode, false)?;
        // Where this is on a disk, a rename that replaces writes what is not written yet (fs/ext4/namei.c, ext4_rename).
        match fs::exchange(self.at(), &draft, self.at(), name) {
            Ok(()) => fs::unlink(self.at(), &draft),
            Err(_) => fs::rename_replace(self.at(), &draft, self.at(), name),
        }
    }

    pub(super) fn state(&self) -> Result<Option<State>> {
        self.read(STATE)
    }

    pub(super) fn ids(&self) -> Result<Vec<Id>> {
        Ok(fs::list(self.at(), ".")?.into_iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// The members, and apart those that nobody runs any more.
    pub(super) fn members(&self) -> Result<(Vec<Member>, Vec<Id>)> {
        let (mut members, mut left) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match (self.is_left(&id)?, self.read::<Member>(&id.to_string())?) {
                (false, Some(member)) => members.push(member),
                (true, _) => left.push(id),
                (false, None) => {} // just being given back
            }
        }
        members.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        Ok((members, left))
    }

    fn is_left(&self, id: &Id) -> Result<bool> {
        let name = id.to_string();
        Ok(fs::exists_at(self.at(), &name)? && self.is_free(&name)?)
    }

    /// Whether nobody has locked a file that may not be there.
    fn is_free(&self, name: &str) -> Result<bool> {
        match fs::open_file_beneath(self.at(), Path::new(name)) {
            Err(e) if e.kind() == Kind::NotFound => Ok(true),
            Err(e) => Err(e),
            Ok(file) => flock::is_free(file.as_fd()),
        }
    }

    pub(super) fn forget(&self, id: &Id) -> Result<()> {
        match fs::unlink(self.at(), id.to_string()) {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other,
        }
    }

    fn describe(&self) -> Result<Option<InUse>> {
        let Some(state) = self.state()? else { return Ok(None) };
        let (members, _) = self.members()?;
        let bridge = (state.network.driver == Driver::Bridge).then(|| self.link.clone());
        Ok(Some(InUse { network: state.network, bridge, members }))
    }

    /// Tells the resolver who is there.
    pub(super) fn tell(&self, state: &State, members: &[Member]) -> Result<()> {
        let known = Known { internal: state.network.internal, members: members.to_vec() };
        self.write(NAMES, &known, 0o644)
    }

    /// The number of the address that was given out last.
    pub(super) fn last(&self) -> Result<u32> {
        let mut text = String::new();
        let _ = self.lock_file(ALIVE)?.read_to_string(&mut text);
        // Whatever else is there: who has just left may still be known to others, and that is all.
        Ok(text.trim().parse().unwrap_or_default())
    }

    /// This one is given out.
    pub(super) fn note_last(&self, alive: &File, number: u32) -> Result<()> {
        let written = alive.write_at(format!("{number:010}").as_bytes(), 0);
        written.map(drop).map_err(|e| Error::from_io(format_args!("write {}", self.path(ALIVE).display()), e))
    }

    /// Somebody comes or goes.
    pub(super) fn touch(&self) -> Result<File> {
        let alive = self.lock_file(ALIVE)?;
        let path = self.path(ALIVE);
        alive
            .set_modified(SystemTime::now())
            .map_err(|e| Error::from_io(format_args!("touch {}", path.display()), e))?;
        Ok(alive)
    }

    /// The port at which names are answered, and whether it was not before.
    pub(super) fn ensure_resolver(&self, state: &State) -> Result<Option<(u16, bool)>> {
        let Some(gateway) = gateway(&state.network).filter(|_| !state.network.no_dns) else { return Ok(None) };
        let mut file = self.lock_file(RESOLVER)?;
        match flock::try_lock(file.as_fd()) {
            Err(e) if e.kind() == Kind::InUse => {
                return Ok(Some((resolver_of(&mut file)?.0, false)));
            }
            other => other?,
        }
        let (udp, tcp, port) = socket::name_server(gateway)?;
        let alive = self.lock_file(ALIVE)?;
        let fail = |e| Error::from_io(format_args!("write {}", self.path(RESOLVER).display()), e);
        file.rewind().and_then(|()| file.set_len(0)).map_err(fail)?;
        file.write_all(port.to_string().as_bytes()).map_err(fail)?;
        let pid = resolver::spawn(&self.link, [udp.as_fd(), tcp.as_fd(), file.as_fd(), alive.as_fd()])?;
        file.write_all(format!(" {pid}").as_bytes()).map_err(fail)?;
        Ok(Some((port, true)))
    }

    /// Where a file lies, for people.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        Path::new(PLACE).join(&self.link).join(name)
    }

    /// A file that is there to be locked.
    pub(super) fn lock_file(&self, name: &str) -> Result<File> {
        let path = fs::path_of(self.at()).join(name);
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        opened.map_err(|e| Error::from_io(format_args!("open {}", self.path(name).display()), e))
    }

    /// Ends the resolver, if there is one.
    fn end_resolver(&self) -> Result<()> {
        let mut file = self.lock_file(RESOLVER)?;
        if flock::is_free(file.as_fd())? {
            return Ok(());
        }
        let (_, Some(pid)) = resolver_of(&mut file)? else {
            // Who ran it was killed before that was noted. It ends by itself: nobody is in the network.
            return flock::lock(file.as_fd(), How::Exclusive, || "a resolver that ends");
        };
        if let Some(process) = process::open(pid)?
            && !flock::is_free(file.as_fd())?
        {
            signal::send(process.as_fd(), signal::SIGKILL)?;
            process::wait_gone(process.as_fd())?;
        }
        Ok(())
    }

    /// Takes away what there is of the network on the host; nobody is in it.
    pub(super) fn take_away(&self, lock: &Lock, apply: &mut Apply<'_>) -> Result<()> {
        self.end_resolver()?;
        if let Some(state) = self.state()?
            && process::namespace_of_this("net")? == state.namespace
        {
            apply.run_all(&plan::go(state.network.driver, &state.names()))?;
        }
        // Last of all what says whose it is: until then it is that store's to take away what is left.
        let mut files = fs::list(self.at(), ".")?;
        files.sort_by_key(|name| name == STATE);
        files.into_iter().try_for_each(|name| fs::unlink(self.at(), name))?;
        fs::remove_directory(lock.0.as_fd(), &self.link)
    }
}

/// The port at which a resolver answers, and its process, if that was noted.
fn resolver_of(file: &mut File) -> Result<(u16, Option<i32>)> {
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|e| Error::from_io("read who the resolver is", e))?;
    let (port, pid) = text.split_once(' ').unwrap_or((&text, ""));
    let port = port.parse().map_err(|_| Error::new(Kind::Io, "the resolver is not known"))?;
    Ok((port, pid.parse().ok()))
}

/// For how long a network that nobody is in stays yet, of a `linger`.
pub(super) fn stays(alive: &File, linger: Duration) -> Duration {
    // A clock that was set back is no reason to wait for it.
    let since = alive.metadata().and_then(|found| found.modified()).ok().and_then(|last| last.elapsed().ok());
    since.map_or(Duration::ZERO, |since| linger.saturating_sub(since))
}

/// A process of its own takes a network away when nobody was in it for so long. The caller has the lock.
pub(super) fn take_away_later(used: &Used, linger: Duration) -> Result<()> {
    let waits = used.lock_file(LINGERS)?;
    match flock::try_lock(waits.as_fd()) {
        // One who waits is enough.
        Err(e) if e.kind() == Kind::InUse => return Ok(()),
        other => other?,
    }
    let alive = used.lock_file(ALIVE)?;
    process::orphan(|| {
        // Not even standard error: whoever reads that to its end waits for nobody. Nor the locks of who made it.
        let _ = process::leave_all(&[waits.as_fd(), alive.as_fd()])
            .and_then(|()| linger_there(&used.link, &alive, linger, waits));
    })
    .map(drop)
}

fn linger_there(link: &str, alive: &File, linger: Duration, waits: File) -> Result<()> {
    loop {
        std::thread::sleep(stays(alive, linger));
        let lock = lock()?;
        if stays(alive, linger).is_zero() {
            // Whoever leaves next sees that nobody waits any more.
            drop(waits);
            return take_away_if_left(&lock, link).map(drop);
        }
    }
}

/// Takes a network away if nobody is in it; whether there was one, and nobody was.
fn take_away_if_left(lock: &Lock, link: &str) -> Result<bool> {
    let Some(used) = lock.open(link)? else { return Ok(false) };
    let (members, left) = used.members()?;
    if !members.is_empty() {
        left.iter().try_for_each(|id| used.forget(id))?;
        return Ok(false);
    }
    used.take_away(lock, &mut Apply::new(None)?).map(|()| true)
}

/// Takes a network of the store's away that is in use no more.
///
/// # Errors
/// [`Kind::InUse`] when somebody is in it.
pub(super) fn clear(store: &Store, name: &NetworkName) -> Result<()> {
    let names = Names::of(store.uuid(), name);
    let lock = lock()?;
    let Some(used) = lock.open(&names.link)? else { return Ok(()) };
    match used.members()?.0.len() {
        0 => used.take_away(&lock, &mut Apply::new(None)?),
        count => Err(Error::new(Kind::InUse, format!("{count} containers are in it"))),
    }
}

/// The network that a container is in now, and who it is there.
pub fn place_of(store: &Store, id: &Id) -> Result<Option<(Network, Member)>> {
    let mut found = None;
    for_each_used(store, |used, state| {
        let member = used.read::<Member>(&id.to_string())?;
        found = found.take().or(member.map(|member| (state.network.clone(), member)));
        Ok(())
    })?;
    Ok(found)
}

/// The networks of the store that are in use.
pub fn in_use(store: &Store) -> Result<Vec<InUse>> {
    let mut all = Vec::new();
    for_each_used(store, |used, _| {
        all.extend(used.describe()?);
        Ok(())
    })?;
    Ok(all)
}

fn for_each_used(store: &Store, mut look: impl FnMut(&Used, &State) -> Result<()>) -> Result<()> {
    all_used()?.iter().try_for_each(|used| match used.state()? {
        Some(state) if state.store == store.uuid() => look(used, &state),
        _ => Ok(()),
    })
}

/// Every network in use, of whatever store and on whatever host.
fn all_used() -> Result<Vec<Used>> {
    let place = Path::new(PLACE);
    let mut all = Vec::new();
    if place.exists() {
        let entries = std::fs::read_dir(place).map_err(|e| Error::from_io(format_args!("read {PLACE}"), e))?;
        for entry in entries.flatten() {
            let link = entry.file_name().to_string_lossy().into_owned();
            // Gone meanwhile, if there is none.
            let directory = fs::open_directory_if_any(fs::CWD, entry.path())?;
            all.extend(directory.map(|directory| Used { directory, link }));
        }
    }
    Ok(all)
}

/// What is left of networks and members of the store: the files of members that nobody runs, and directories of networks that nobody
/// is in and that nobody will take away.
pub fn left(store: &Store) -> Result<Vec<PathBuf>> {
    if !Path::new(PLACE).exists() {
        return Ok(Vec::new());
    }
    // Who joins or leaves is not in the middle of it.
    let _lock = lock()?;
    find_left(store, |used| used.is_free(LINGERS))
}

/// Whether something seems to be [left](left). Takes no lock that somebody could be in want of.
pub fn seems_left(store: &Store) -> bool {
    let long_ago = |used: &Used| match fs::open_file_beneath(used.at(), Path::new(ALIVE)) {
        // Who was taking it away was killed; made anew, it would look as if somebody had just left.
        Err(e) if e.kind() == Kind::NotFound => Ok(true),
        other => Ok(stays(&File::from(other?), 2 * LINGER).is_zero()),
    };
    find_left(store, long_ago).is_ok_and(|left| !left.is_empty())
}

fn find_left(store: &Store, nobody_waits: impl Fn(&Used) -> Result<bool>) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for used in all_used()? {
        let place = Path::new(PLACE).join(&used.link);
        match used.state()? {
            Some(state) if state.store == store.uuid() => {}
            Some(_) => continue,
            // Who was about to bring it was killed before anything else.
            None => {
                all.push(place);
                continue;
            }
        }
        let (members, left) = used.members()?;
        match members.is_empty() {
            true if nobody_waits(&used)? => all.push(place),
            true => {}
            false => all.extend(left.iter().map(|id| place.join(id.to_string()))),
        }
    }
    Ok(all)
}

/// Takes every network of the store away that nobody is in, at once.
pub fn settle(store: &Store) -> Result<()> {
    let mut links = Vec::new();
    for_each_used(store, |used, _| {
        if used.members()?.0.is_empty() {
            links.push(used.link.clone());
        }
        Ok(())
    })?;
    links.iter().try_for_each(|link| take_away_if_left(&lock()?, link).map(drop))
}

/// Takes [what is left](left) away.
pub fn tidy(left: &Path) -> Result<()> {
    let link = left.strip_prefix(PLACE).ok().and_then(|path| path.iter().next());
    let Some(link) = link.and_then(|link| link.to_str()) else { return Ok(()) };
    take_away_if_left(&lock()?, link).map(drop)
}

/// The nets that this host has routes to.
pub(super) fn routes() -> Result<Vec<IpNet>> {
    Apply::new(None)?.host().routes().map(|(nets, _)| nets)
}

/// Where the resolver of a network finds what it has to know.
pub(super) fn known(link: &str) -> PathBuf {
    Path::new(PLACE).join(link).join(NAMES)
}

/// The address of a network's gateway that names are asked of.
pub(super) fn gateway(network: &Network) -> Option<Ipv4Addr> {
    network.subnets.iter().find_map(|subnet| match subnet.gateway {
        IpAddr::V4(gateway) => Some(gateway),
        IpAddr::V6(_) => None,
    })
}
