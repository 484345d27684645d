//! `stop`, `kill` and `wait`: podman-stop(1), podman-kill(1), podman-wait(1).
//!
//! The first and the last end when the container is at rest: its lock is free, and what it had on the host is gone.

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
use crate::sandbox::{self, Signal};
use crate::store::{Running, Shelf, Store};

/// How long a container has to end by itself: podman-stop(1), `--time`.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A container that was asked to end.
#[derive(Debug)]
pub struct Stopping {
    /// Which it is.
    pub id: Id,
    dir: OwnedFd,
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
    hold(&dir)?;
    let mut stopping = Stopping { id: *id, dir, process: None, deadline: None };
    // Looked at again: it may have been started again before it was held.
    if let Some(running) = store.running(id)
        && let Some(process) = open_process(store, id, &running)?
    {
        let made_with = container.spec.stop_timeout.map(|seconds| Duration::from_secs(seconds.into()));
        let patience = patience.or(made_with).unwrap_or(PATIENCE);
        signal::send(process.as_fd(), container.spec.stop_signal.unwrap_or(Signal::TERM).number())?;
        stopping.deadline = Instant::now().checked_add(patience);
        stopping.process = Some(process);
    }
    Ok(Some(stopping))
}

impl Stopping {
    /// Waits until the container has ended, killing it when its time is up.
    pub fn finish(self) -> Result<()> {
        if let Some(process) = &self.process
            && !wait_until(process, self.deadline)?
        {
            log::debug!("container {}: killed", self.id.short());
            signal::send(process.as_fd(), signal::SIGKILL)?;
        }
        at_rest(&self.dir, &self.id)
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
            let ended = monitor.map(|monitor| until_ended(&monitor)).transpose()?.flatten();
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

/// Sends a signal to the first process of a running container. One that asks it to end, or makes it, tells its monitor
/// not to start it again, as docker-kill(1) does.
///
/// # Errors
/// A container that does not run ([`Kind::Invalid`]).
pub fn kill_with(store: &Store, text: &str, signal: Signal) -> Result<Id> {
    let doing = || format!("kill container {text}");
    let id = store.find_among(text, &[Shelf::Containers]).call_context(doing)?.id;
    let send = || -> Result<()> {
        let dir = store.open_object(Shelf::Containers, &id)?;
        let ends =
            signal == Signal::KILL || Some(signal) == super::open(store, &id)?.spec.stop_signal.or(Some(Signal::TERM));
        let running = store.running(&id);
        let process = running.map(|running| open_process(store, &id, &running)).transpose()?.flatten();
        let process = process.ok_or_else(|| {
            let error = Error::new(Kind::Invalid, "it does not run");
            error.with_hint(format!("`tupper start {text}` starts it"))
        })?;
        if ends {
            hold(&dir)?;
        }
        signal::send(process.as_fd(), signal.number())?;
        // What is frozen by the v1 freezer dies when it goes on.
        if signal == Signal::KILL { sandbox::thaw(&leftover::cgroup_name(store, &id)) } else { Ok(()) }
    };
    send().context(doing)?;
    Ok(id)
}

/// Ends a container at once: its first process is killed, and with it all of them, and its monitor does not start it
/// again.
pub(super) fn kill(store: &Store, id: &Id) -> Result<()> {
    match store.open_object(Shelf::Containers, id) {
        Ok(dir) => hold(&dir)?,
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    store.running(id).map_or(Ok(()), |running| kill_process(store, id, &running))
}

/// Kills a container's first process.
pub(super) fn kill_process(store: &Store, id: &Id, running: &Running) -> Result<()> {
    let Some(process) = open_process(store, id, running)? else { return Ok(()) };
    signal::send(process.as_fd(), signal::SIGKILL)?;
    // What is frozen by the v1 freezer dies when it goes on.
    sandbox::thaw(&leftover::cgroup_name(store, id))
}

/// Tells the monitor, if there is one, not to start the container again. It hears that before it looks at an end that
/// comes after.
fn hold(dir: &OwnedFd) -> Result<()> {
    let Some(monitor) = socket::connect(dir.as_fd(), SOCKET)? else { return Ok(()) };
    // One that has just ended starts nothing.
    socket::send_now(monitor.as_fd(), &Request::Hold.encode()).map(drop)
}

/// Waits until the monitor says that the command has ended, and with which status.
fn until_ended(monitor: &OwnedFd) -> Result<Option<u8>> {
    while let Some((message, _)) = socket::receive(monitor.as_fd())? {
        if let Event::Ended { exit, .. } = Event::decode(&message)? {
            return Ok(Some(exit.code()));
        }
    }
    Ok(None)
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
