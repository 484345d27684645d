//! When the health of a monitor's container is checked: the monitor runs the verb that does it, one at a time.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::kernel::process::{self, Polled, Want};
use crate::kernel::{fs, signal};
use crate::name::Id;
use crate::sandbox::HealthCheck;
use crate::store::Store;

/// The checks of a container from its start to its end.
pub(super) struct Checks {
    /// What does one; nothing where there is no health check.
    command: Vec<CString>,
    interval: Duration,
    due: Instant,
    /// One that is under way.
    running: Option<OwnedFd>,
}

impl Checks {
    pub(super) fn new(store: &Store, id: &Id, check: Option<&HealthCheck>) -> Result<Checks> {
        let id = id.to_string();
        let words = ["--log-level", "off", "healthcheck", "run", &id].map(|word| fs::c_string(word.as_ref()));
        let command = || -> Result<Vec<CString>> {
            let root = [c"tupper".into(), c"--root".into(), fs::c_string(store.root().as_os_str())?];
            Ok(root.into_iter().chain(words.into_iter().collect::<Result<Vec<_>>>()?).collect())
        };
        let command = check.map(|_| command()).transpose()?.unwrap_or_default();
        let interval = check.map_or(Duration::ZERO, |check| check.interval);
        Ok(Checks { command, interval, due: Instant::now() + interval, running: None })
    }

    /// The end of the one that is under way.
    pub(super) fn wants(&self) -> Want<'_> {
        self.running.as_ref().map(|check| (check.as_fd(), Polled::READ))
    }

    /// How long to wait for the next, in milliseconds, at most.
    pub(super) fn pause(&self) -> Option<u16> {
        let waits = !self.command.is_empty() && self.running.is_none();
        // Rounded up, so that the last of it is not waited for in a loop.
        let left = || self.due.saturating_duration_since(Instant::now()).as_millis() + 1;
        waits.then(|| u16::try_from(left()).unwrap_or(u16::MAX))
    }

    /// Begins the next if it is due, and takes note of an end.
    pub(super) fn run(&mut self, ended: Polled) -> Result<()> {
        if ended.any()
            && let Some(check) = self.running.take()
        {
            process::wait(check.as_fd())?;
            self.due = Instant::now() + self.interval;
        }
        if !self.command.is_empty() && self.running.is_none() && self.due <= Instant::now() {
            let begun = process::respawn(&self.command, &[], true, |_, _| {}).and_then(process::open);
            // A host that has no process left for it now is no reason to end the container.
            self.running = begun.unwrap_or_else(|e| {
                log::warn!("begin a health check: {e}");
                None
            });
            self.due = Instant::now() + self.interval;
        }
        Ok(())
    }
}

impl Drop for Checks {
    /// One that is under way would look for a container that has ended.
    fn drop(&mut self) {
        let Some(check) = self.running.take() else { return };
        let ended = signal::send(check.as_fd(), signal::SIGKILL).and_then(|()| process::wait(check.as_fd()));
        if let Err(e) = ended {
            log::warn!("end a health check: {e}");
        }
    }
}
