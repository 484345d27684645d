//! `stop` and `wait`: podman-stop(1), podman-wait(1).
//!
//! Both end when the container is at rest: its lock is free, and what it had on the host is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::life::open_process;
use super::monitor::{Event, Request, SOCKET};
use super::record::{Life, Record};
use super::{State, leftover};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::process::{self, Polled};
use crate::kernel::{signal, socket};
use crate::name::Id;
use crate::sandbox;
use crate::store::{Running, Shelf, Store};

/// How long a container has to end by itself: podman-stop(1), `--time`.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A container that was asked to end.
#[derive(Debug)]
pub struct Stopping {
    /// Which it is.
    pub id: Id,
    dir: OwnedFd,
    monitor: Option<OwnedFd>,
    process: Option<OwnedFd>,
    deadline: Option<Instant>,
}

/// Asks a container to end, and its monitor not to start it again. `patience` is how long it has before it is killed; by
/// default what it was made with. `None` where it does not run.
pub fn begin_stop(store: &Store, text: &str, patience: Option<Duration>) -> Result<Option<Stopping>> {
    let doing = || format!("stop container {text}");
    let id = store.find_among(text, &[Shelf::Containers]).call_context(doing)?.id;
    ask_to_end(store, &id, patience).context(doing)
}

fn ask_to_end(store: &Store, id: &Id, patience: Option<Duration>) -> Result<Option<Stopping>> {
    let dir = store.open_object(Shelf::Containers, id)?;
    let container = super::open(store, id)?;
    if container.paused {
        return Err(Error::new(Kind::Invalid, "it is paused").with_hint("`tupper unpause` lets it go on"));
    }
    if matches!(container.state, State::Created | State::Exited(_)) && flock::is_free(dir.as_fd())? {
        return Ok(None);
    }
    let monitor = hold(&dir)?;
    let mut stopping = Stopping { id: *id, dir, monitor, process: None, deadline: None };
    // Looked at again: it may have been started again before it was held.
    if let Some(running) = store.running(id)
        && let Some(process) = open_process(store, id, &running)?
    {
        let patience = patience.unwrap_or(PATIENCE);
        signal::send(process.as_fd(), signal::SIGTERM)?;
        stopping.deadline = Instant::now().checked_add(patience);
        stopping.process = Some(process);
    }
    Ok(Some(stopping))
}

impl Stopping {
    /// Waits until the container has ended, killing it when its time is up.
    pub fn finish(self) -> Result<()> {
        let Some(process) = &self.process else { return self.rest() };
        if !wait_until(process, self.deadline)? {
            log::debug!("container {}: killed", self.id.short());
            signal::send(process.as_fd(), signal::SIGKILL)?;
        }
        self.rest()
    }

    fn rest(self) -> Result<()> {
        match self.monitor {
            // That its monitor was killed is an end, too.
            Some(monitor) => until_ended(&monitor, true).map(drop),
            None => at_rest(&self.dir, &self.id),
        }
    }
}

/// Waits until a container has ended, and returns its exit status. One that does not run has ended already.
pub fn wait(store: &Store, text: &str) -> Result<u8> {
    let doing = || format!("wait for container {text}");
    let id = store.find_among(text, &[Shelf::Containers]).call_context(doing)?.id;
    let dir = store.open_object(Shelf::Containers, &id).context(doing)?;
    let wait = || -> Result<u8> {
        let monitor = socket::connect(dir.as_fd(), SOCKET)?;
        let state = super::open(store, &id)?.state;
        if let State::Running(_) | State::Stopping(_) = state {
            let ended = monitor.map(|monitor| until_ended(&monitor, false)).transpose()?.flatten();
            if let Some(status) = ended {
                return Ok(status);
            }
            at_rest(&dir, &id)?;
        }
        // The directory tells, even if it has no name any more.
        let life = Life::read(dir.as_fd(), &Record::read(dir.as_fd())?)?;
        Ok(match life.state_at_rest() {
            State::Exited(ended) => ended.exit_code,
            _ => 0,
        })
    };
    wait().context(doing)
}

/// Kills a running container's first process, and with it all of them; its monitor does not start it again.
pub(super) fn kill(store: &Store, id: &Id, running: &Running) -> Result<()> {
    let dir = store.open_object(Shelf::Containers, id)?;
    hold(&dir)?;
    kill_process(store, id, running)
}

/// The same for a container that nobody holds.
pub(super) fn kill_process(store: &Store, id: &Id, running: &Running) -> Result<()> {
    let Some(process) = open_process(store, id, running)? else { return Ok(()) };
    signal::send(process.as_fd(), signal::SIGKILL)?;
    // What is frozen by the v1 freezer dies when it goes on.
    sandbox::thaw(&leftover::cgroup_name(store, id))
}

/// Tells the monitor, if there is one, not to start the container again. Returns the connection to it.
pub(super) fn hold(dir: &OwnedFd) -> Result<Option<OwnedFd>> {
    let Some(monitor) = socket::connect(dir.as_fd(), SOCKET)? else { return Ok(None) };
    if socket::send(monitor.as_fd(), &Request::Hold.encode(), &[]).is_err() {
        return Ok(None); // it has just ended
    }
    loop {
        match next(&monitor)? {
            Some(Event::Held) => return Ok(Some(monitor)),
            Some(Event::Ended { last: true, .. }) | None => return Ok(None),
            Some(_) => {}
        }
    }
}

/// Waits until the monitor says that the command has ended, for the `last` time or any, and with which status.
fn until_ended(monitor: &OwnedFd, last: bool) -> Result<Option<u8>> {
    loop {
        match next(monitor)? {
            Some(Event::Ended { exit, last: is_last }) if is_last || !last => return Ok(Some(exit.code())),
            Some(_) => {}
            None => return Ok(None),
        }
    }
}

fn next(monitor: &OwnedFd) -> Result<Option<Event>> {
    socket::receive(monitor.as_fd())?.map(|(message, _)| Event::decode(&message)).transpose()
}

/// Waits until nobody holds the container.
fn at_rest(dir: &OwnedFd, id: &Id) -> Result<()> {
    flock::lock(dir.as_fd(), Lock::Shared, || format!("container {}", id.short()))
}

/// Whether the process ended before the deadline.
fn wait_until(process: &OwnedFd, deadline: Option<Instant>) -> Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let pause = left.map(|left| u16::try_from(left.as_millis()).unwrap_or(u16::MAX));
        let [ended] = process::poll([Some((process.as_fd(), Polled::READ))], pause)?;
        if ended.any() {
            return Ok(true);
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}
