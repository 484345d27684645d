//! Staying with a sandbox until it ends: one loop over its signals, its end, and its terminal.

use std::os::fd::AsFd;

use super::relay::Relay;
use super::start::Running;
use super::tally::Tally;
use crate::error::Result;
use crate::kernel::process::{self, Ended, Polled};
use crate::kernel::signal;

/// After so many interrupts or termination requests that had no effect the sandbox is killed, as docker's client
/// gives up after three.
const PATIENCE: u32 = 3;

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

pub(super) fn supervise(mut running: Running) -> Result<Exit> {
    let mut relay = running.terminal.take().map(|master| Relay::new(master, running.interactive)).transpose()?;
    let mut tally = Tally::new(std::mem::take(&mut running.counters));
    let ended = follow(&mut running, relay.as_mut(), &mut tally)?;
    // With an init it is the command's end that init passes on.
    tally.finish(matches!(ended, Ended::Signaled(signal::SIGKILL) | Ended::Exited(137)));
    running.cgroups.remove();
    let status = match ended {
        Ended::Exited(code) => Status::Code(code),
        Ended::Signaled(signal) => Status::Signal(signal),
    };
    Ok(Exit { status, oom_killed: tally.oom_killed, pids_limited: tally.pids_limited })
}

/// Until the process has ended and its terminal has nothing more to say.
fn follow(running: &mut Running, mut relay: Option<&mut Relay>, tally: &mut Tally) -> Result<Ended> {
    let mut ended = None;
    let mut impatience = 0;
    loop {
        if let Some(ended) = ended
            && relay.as_ref().is_none_or(|relay| relay.is_finished())
        {
            return Ok(ended);
        }
        let pidfd = running.process.pidfd.as_fd();
        let [master, input, output] = relay.as_ref().map_or([None; 3], |relay| relay.wants());
        let queue = Some((running.signals.queue.as_fd(), Polled::READ));
        let process = ended.is_none().then_some((pidfd, Polled::READ));
        let pause = relay.as_ref().and_then(|relay| relay.pause());
        let [memory, pids] = tally.wants();
        let ready = process::poll([queue, process, master, input, output, memory, pids], pause)?;
        if ready[5].any() || ready[6].any() {
            tally.look_again();
        }

        if let Some(relay) = relay.as_deref_mut() {
            relay.run([ready[2], ready[3], ready[4]])?;
        }
        while let Some(number) = running.signals.queue.next()? {
            if number == signal::SIGWINCH {
                relay.as_deref().map_or(Ok(()), Relay::resize)?;
                continue;
            }
            impatience += u32::from(signal::is_termination(number));
            if let Some(ended) = ended.filter(|_| impatience >= PATIENCE) {
                // Whoever should read the rest of the output does not.
                return Ok(ended);
            }
            signal::send(pidfd, if impatience >= PATIENCE { signal::SIGKILL } else { number })?;
        }
        if ready[1].any() {
            ended = Some(process::wait(pidfd)?);
            running.process.reaped = true;
            if let Some(relay) = relay.as_deref_mut() {
                relay.end();
            }
        }
    }
}
