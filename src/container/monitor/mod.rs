//! The monitor: the process that a container has while it runs and nobody need be there.
//!
//! ```text
//!   tupper run -d ──makes the container, locked──> monitor ──clone──> PID 1 of the container
//!        │  ^                                       │  ^ │
//!        │  └──────── began, or why not ────────────┘  │ └─ the log, the life, the lock
//!        └─ prints the id, and ends                    └──── attach, stop, wait, logs -f
//! ```
//!
//! It is this program run again, so that its memory is its own and small, with two descriptors: a socket to who made it,
//! and the container's directory, whose lock it has from then on. It holds the command's pipes or terminal, writes
//! the log, notes how the command ended, and starts it again where the policy says so. It dies only by being killed, and the
//! container with it; then the lock is free, and the next who looks clears up.

mod checks;
mod clients;
mod log;
mod message;
mod stdio;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) use clients::SOCKET;
pub(super) use log::{LOG, PREVIOUS};
pub use message::Stream;
pub(super) use message::{Attach, CHUNK, Event, Request};

use super::life::{self, Narrate, Planned};
use super::record::{Life, Record};
use super::{Container, leftover, volumes};
use crate::error::{Error, Kind, Result};
use crate::kernel::process::{self, Want};
use crate::kernel::{fs, signal, socket};
use crate::name::{Id, ObjectName};
use crate::network::Membership;
use crate::sandbox::{BlockedSignals, Exit, Restart, Signal, Spec, Supervised};
use crate::store::{Found, Shelf, Store};
use crate::subvolume::Active;
use checks::Checks;
use clients::Clients;
use log::Log;
use stdio::Console;

/// How long to wait before a container is started again for the first time; doubled each time after that.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest such wait.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// A container that ran for so long has started well, and the next wait is the first again (docker-run(1), "Restart
/// policies").
const SETTLED: Duration = Duration::from_secs(10);

/// The word by which this program knows that it is to be a monitor.
pub const VERB: &str = "monitor";

/// Runs a monitor for the container whose directory is `dir`, locked. Returns the end of a socket on which it tells
/// how the container fares, to whom says `hello`.
pub(super) fn spawn(store: &Store, id: &Id, dir: BorrowedFd<'_>, hello: &Attach, words: &[&str]) -> Result<OwnedFd> {
    let (ours, theirs) = socket::pair()?;
    socket::send(ours.as_fd(), &Request::Attach(*hello).encode(), &[])?;
    let root = fs::c_string(store.root().as_os_str())?;
    let word = |text: &str| fs::c_string(text.as_ref());
    let mut args: Vec<CString> = vec![word("tupper")?, word(VERB)?, root, word(&id.to_string())?];
    args.extend(words.iter().map(|text| word(text)).collect::<Result<Vec<_>>>()?);
    // What goes wrong in the new process is heard like everything else.
    let fail = |theirs: BorrowedFd<'_>, e| drop(socket::send_now(theirs, &Event::Failed(e).encode()));
    process::respawn(&args, &[theirs.as_fd(), dir], false, fail)?;
    Ok(ours)
}

/// What a process does that `spawn` has made: returns when the container has ended for good.
///
/// # Errors
/// Only what cannot be told to whoever made the process, which is told everything else.
pub fn monitor(root: &Path, id: &Id, narrate: Option<Narrate<'_>>) -> Result<()> {
    let [caller, dir] = process::given()?;
    process::set_name(c"tupper");
    let mut clients = Clients::new(caller);
    let event = match hold(root, id, dir, &mut clients, narrate) {
        Ok(exit) => Event::Ended { exit, last: true },
        Err(e) => Event::Failed(e),
    };
    clients.tell(&event)?;
    clients.finish()
}

/// Holds the container from its start to its end, and lets it go: its lock, and if it goes at its end, its files.
fn hold(root: &Path, id: &Id, dir: OwnedFd, clients: &mut Clients, narrate: Option<Narrate<'_>>) -> Result<Exit> {
    let found = Found { shelf: Shelf::Containers, id: *id };
    let signals = BlockedSignals::block()?;
    let store = Store::open(root)?.ok_or_else(|| Error::new(Kind::NotFound, "no store"))?;
    let _intent = store.intend()?;
    let active = Active::locked(&store, found, dir)?;
    let record = Record::read(active.dir())?;
    let life = Life { restarts: 0, ..Life::read(active.dir(), &record)? };
    clients.listen(active.dir())?;
    let mut monitor = Monitor {
        store: &store,
        found,
        active: &active,
        life,
        clients,
        signals,
        narrate,
        began: false,
        ending: false,
        stop_signal: signal::SIGTERM,
    };
    let ended = monitor.run();
    let closed = monitor.close();
    let left = if record.auto_remove { remove(&store, active) } else { Ok(()) };
    for e in [closed, left].into_iter().filter_map(Result::err) {
        clients.warn(&format!("clean up after container {}: {e}", id.short()))?;
    }
    ended
}

/// It goes at its end, and so do the volumes that nobody named.
fn remove(store: &Store, active: Active) -> Result<()> {
    match super::open(store, &active.id()) {
        Ok(container) => volumes::remove_with(store, active, &container.spec),
        Err(e) => active.remove(store).and(Err(e)),
    }
}

struct Monitor<'a> {
    store: &'a Store,
    found: Found,
    active: &'a Active,
    life: Life,
    clients: &'a mut Clients,
    signals: BlockedSignals,
    narrate: Option<Narrate<'a>>,
    /// The command ran, if only once.
    began: bool,
    /// This process is asked to end, as all are when a host shuts down.
    ending: bool,
    /// What asks the command to end.
    stop_signal: i32,
}

impl Monitor<'_> {
    /// Starts the container, and again as often as its policy says.
    fn run(&mut self) -> Result<Exit> {
        // If a monitor that ran it was killed, its command may be dying still.
        leftover::clear_host(self.store, &self.found.id)?;
        let mut pause = FIRST_PAUSE;
        loop {
            let Container { spec, name, .. } = super::open(self.store, &self.found.id)?;
            let begun = Instant::now();
            let exit = self.once(&spec, name.as_ref())?;
            if !self.life.restarting {
                return Ok(exit);
            }
            self.clients.tell(&Event::Ended { exit, last: false })?;
            pause = if begun.elapsed() >= SETTLED { FIRST_PAUSE } else { pause };
            if !self.rest(pause)? {
                return Ok(exit);
            }
            pause = LAST_PAUSE.min(pause * 2);
            self.life.restarts += 1;
        }
    }

    /// From the command's start to its end.
    fn once(&mut self, spec: &Spec, name: Option<&ObjectName>) -> Result<Exit> {
        self.stop_signal = spec.stop_signal.unwrap_or(Signal::TERM).number();
        let rootfs = self.active.rootfs(spec.read_only)?;
        let tell = self.narrate.map(life::network_narrate);
        let mut planned = life::plan(self.store, spec, name, &rootfs, self.found, tell.as_ref().map(|tell| tell as _))?;
        let mut log = Log::new(self.active.dir(), spec.log.limit())?;
        let (pipes, streams) = (!spec.tty).then(|| Console::pipes(spec.interactive)).transpose()?.unzip();
        let beside = planned.beside.take();
        planned.network.iter_mut().for_each(Membership::leave_in_background);
        let Planned { plan, network, .. } = &planned;
        let running = life::start_sandbox(plan, streams, network.as_ref(), beside, || Ok(rootfs), self.narrate)?;
        let mut sandbox = Supervised::new(running);
        let mut console = match (pipes, sandbox.take_terminal()) {
            (Some(pipes), _) => pipes,
            (None, Some(master)) => Console::terminal(master)?,
            (None, None) => return Err(Error::new(Kind::Io, "the container started without its terminal")),
        };
        self.life.start();
        self.life.write(self.active.dir())?;
        self.store.note_running(&self.found.id, sandbox.pid())?;
        if !self.began {
            self.began = true;
            self.clients.tell(&Event::Began)?;
            // Whoever reads the caller's standard error to its end waits for no container.
            process::silence()?;
        }
        let checks = Checks::new(self.store, &self.found.id, spec.health.as_ref())?;
        let followed = self.follow(&mut sandbox, &mut console, &mut log, checks);
        let exit = sandbox.exit();
        self.life.end(&exit);
        self.life.stopped = self.clients.hold;
        self.life.restarting = followed.is_ok() && self.restarts(spec.restart, &exit);
        if let Err(e) = self.life.write(self.active.dir()) {
            // It has ended all the same, and whoever waits for it learns how.
            self.clients.warn(&format!("note the end of container {}: {e}", self.found.id.short()))?;
        }
        drop(sandbox);
        self.store.forget_running(&self.found.id);
        followed.map(|()| exit)
    }

    /// Until the command and all it had has ended, and what it wrote was taken.
    fn follow(
        &mut self,
        sandbox: &mut Supervised,
        console: &mut Console,
        log: &mut Log,
        mut checks: Checks,
    ) -> Result<()> {
        let waiting = self.clients.settle()?;
        self.serve(waiting, sandbox, console)?;
        while !sandbox.has_ended() {
            let mut wanted: Vec<Want<'_>> = sandbox.wants().to_vec();
            wanted.push(checks.wants());
            wanted.extend(console.wants(!self.clients.are_behind()));
            wanted.extend(self.clients.wants(console.is_full()));
            let pause = console.pause().into_iter().chain(checks.pause()).min();
            let ready = process::poll_all(&wanted, pause)?;
            let (of_sandbox, ready) = ready.split_first_chunk().ok_or_else(too_few)?;
            let ([of_check], ready) = ready.split_first_chunk().ok_or_else(too_few)?;
            checks.run(*of_check)?;
            let (of_console, of_clients) = ready.split_first_chunk().ok_or_else(too_few)?;
            self.take(log, &console.run(*of_console)?)?;
            let requests = self.clients.run(of_clients)?;
            self.serve(requests, sandbox, console)?;
            while let Some(number) = sandbox.next_signal()? {
                self.ending |= signal::is_termination(number);
                sandbox.signal(if number == signal::SIGTERM { self.stop_signal } else { number })?;
            }
            sandbox.run(*of_sandbox)?;
        }
        // Whoever ended it may have said before that it is not to be started again.
        self.clients.settle()?;
        self.take(log, &console.drain()?)
    }

    fn take(&mut self, log: &mut Log, written: &[(Stream, Vec<u8>)]) -> Result<()> {
        written.iter().try_for_each(|(stream, bytes)| {
            log.write(*stream, bytes);
            self.clients.output(*stream, bytes)
        })
    }

    fn serve(&mut self, requests: Vec<Request>, sandbox: &Supervised, console: &mut Console) -> Result<()> {
        requests.into_iter().try_for_each(|request| match request {
            Request::Input(bytes) => console.feed(&bytes),
            Request::InputEnd => console.end_input(),
            Request::Window(size) => console.resize(size),
            Request::Signal(number) => sandbox.signal(number),
            // Clients know what they want, and which of them want it held.
            Request::Attach(_) | Request::Hold => Ok(()),
        })
    }

    /// It is not to be started again, whatever its policy says.
    fn is_held(&self) -> bool {
        self.clients.hold || self.ending
    }

    fn restarts(&self, policy: Restart, exit: &Exit) -> bool {
        !self.is_held()
            && match policy {
                Restart::No => false,
                Restart::OnFailure(most) => exit.code() != 0 && (most == 0 || self.life.restarts < most),
                Restart::Always | Restart::UnlessStopped => true,
            }
    }

    /// Waits before the container is started again; `false` when somebody wants it to stay as it is.
    fn rest(&mut self, pause: Duration) -> Result<bool> {
        let end = Instant::now() + pause;
        while !self.is_held() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(true);
            }
            let mut wanted: Vec<Want<'_>> = vec![Some((self.signals.queue.as_fd(), process::Polled::READ))];
            wanted.extend(self.clients.wants(false));
            // Rounded up, so that the last of it is not waited for in a loop.
            let pause = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            let ready = process::poll_all(&wanted, Some(pause))?;
            self.clients.run(ready.get(1..).unwrap_or_default())?;
            while let Some(number) = self.signals.queue.next()? {
                self.ending |= signal::is_termination(number);
            }
        }
        Ok(false)
    }

    /// Nobody can connect any more, and it is not started again.
    fn close(&mut self) -> Result<()> {
        self.clients.close(self.active.dir())?;
        if self.life.restarting {
            self.life.restarting = false;
            self.life.stopped = self.clients.hold;
            self.life.write(self.active.dir())?;
        }
        Ok(())
    }
}

fn too_few() -> Error {
    Error::new(Kind::Io, "poll told less than it was asked")
}
