//! Staying with a sandbox until it ends: one loop over its signals, its end, and its terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::relay::Relay;
use super::start::Running;
use super::tally::Tally;
use crate::error::Result;
use crate::kernel::process::{self, Ended, Polled, Want};
use crate::kernel::signal;

/// After so many interrupts or termination requests that had no effect the sandbox is killed, as docker's client
/// gives up after three.
pub(crate) const PATIENCE: u32 = 3;

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The command's status.
    pub status: Status,
    /// The kernel killed something in it for lack of memory.
    pub oom_killed: bool,
    /// The limit of processes kept something in it from forking.
    pub pids_limited: bool,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It exited with this status.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// As a shell reports it: the status, or 128 and the number of the signal.
    pub fn code(&self) -> u8 {
        match self.status {
            Status::Code(code) => code,
            Status::Signal(signal) => 128u8.saturating_add(u8::try_from(signal).unwrap_or(127)),
        }
    }
}

/// A sandbox that runs, as a loop over descriptors sees it: what it is waited for, and what has come of that.
#[derive(Debug)]
pub(crate) struct Supervised {
    running: Running,
    tally: Tally,
    ended: Option<Ended>,
}

impl Supervised {
    pub(crate) fn new(mut running: Running) -> Supervised {
        let tally = Tally::new(std::mem::take(&mut running.counters));
        Supervised { running, tally, ended: None }
    }

    /// The other end of its terminal, once.
    pub(crate) fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.running.terminal.take()
    }

    /// Its process, its signals, and what counts against its limits.
    pub(crate) fn wants(&self) -> [Want<'_>; 4] {
        let process = self.ended.is_none().then_some((self.pidfd(), Polled::READ));
        let signals = Some((self.running.signals.queue.as_fd(), Polled::READ));
        let [memory, pids] = self.tally.wants();
        [process, signals, memory, pids]
    }

    /// Takes note of what happened; `ready` is in the order of [`Supervised::wants`]. Returns whether it has just ended.
    pub(crate) fn run(&mut self, [process, _, memory, pids]: [Polled; 4]) -> Result<bool> {
        if memory.any() || pids.any() {
            self.tally.look_again();
        }
        if process.any() {
            self.ended = Some(process::wait(self.pidfd())?);
            self.running.process.reaped = true;
        }
        Ok(process.any())
    }

    /// The next signal that arrived here and is meant for it.
    pub(crate) fn next_signal(&self) -> Result<Option<i32>> {
        self.running.signals.queue.next()
    }

    /// Sends its first process a signal.
    pub(crate) fn signal(&self, number: i32) -> Result<()> {
        if self.ended.is_some() { Ok(()) } else { signal::send(self.pidfd(), number) }
    }

    /// The process id of its first process on the host.
    pub(crate) fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Its first process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// How it ended. What it had outside goes with this value; what still runs, because a loop over it failed, is killed.
    pub(crate) fn exit(&mut self) -> Exit {
        let ended = self.ended.unwrap_or(Ended::Signaled(signal::SIGKILL));
        // With an init it is the command's end that init passes on.
        self.tally.finish(matches!(ended, Ended::Signaled(signal::SIGKILL) | Ended::Exited(137)));
        let status = match ended {
            Ended::Exited(code) => Status::Code(code),
            Ended::Signaled(signal) => Status::Signal(signal),
        };
        Exit { status, oom_killed: self.tally.oom_killed, pids_limited: self.tally.pids_limited }
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.running.process.pidfd.as_fd()
    }
}

pub(super) fn supervise(running: Running) -> Result<Exit> {
    let interactive = running.interactive;
    let mut sandbox = Supervised::new(running);
    let mut relay = sandbox.take_terminal().map(|master| Relay::new(master, interactive)).transpose()?;
    follow(&mut sandbox, relay.as_mut())?;
    drop(relay);
    Ok(sandbox.exit())
}

/// Until the process has ended and its terminal has nothing more to say.
fn follow(sandbox: &mut Supervised, mut relay: Option<&mut Relay>) -> Result<()> {
    let mut impatience = 0;
    while !sandbox.has_ended() || relay.as_ref().is_some_and(|relay| !relay.is_finished()) {
        let [master, input, output] = relay.as_ref().map_or([None; 3], |relay| relay.wants());
        let pause = relay.as_ref().and_then(|relay| relay.pause());
        let [process, signals, memory, pids] = sandbox.wants();
        let ready = process::poll([process, signals, memory, pids, master, input, output], pause)?;
        let [process, signals, memory, pids, terminal @ ..] = ready;

        if let Some(relay) = relay.as_deref_mut() {
            relay.run(terminal)?;
        }
        while let Some(number) = sandbox.next_signal()? {
            if number == signal::SIGWINCH {
                relay.as_deref().map_or(Ok(()), Relay::resize)?;
                continue;
            }
            impatience += u32::from(signal::is_termination(number));
            if sandbox.has_ended() && impatience >= PATIENCE {
                // Whoever should read the rest of the output does not.
                return Ok(());
            }
            sandbox.signal(if impatience >= PATIENCE { signal::SIGKILL } else { number })?;
        }
        if sandbox.run([process, signals, memory, pids])?
            && let Some(relay) = relay.as_deref_mut()
        {
            relay.end();
        }
    }
    Ok(())
}
