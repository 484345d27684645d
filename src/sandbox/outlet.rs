//! Where output goes: standard output or error, a bounded buffer in front of it.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::Result;
use crate::kernel::process::{Polled, Want};
use crate::kernel::tty::{self, Transfer};

/// The most bytes held.
const BUFFER: usize = 64 * 1024;

/// A pipe that poll(2) calls writable takes this much without blocking: pipe(7), PIPE_BUF.
const CHUNK: usize = 4096;

/// A standard stream of this process that output is written to, as fast as it is taken.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// Nothing when nobody takes it any more.
    fd: Option<OwnedFd>,
    waiting: Vec<u8>,
}

impl Outlet {
    /// Standard output (1) or error (2).
    pub(crate) fn new(number: i32) -> Result<Outlet> {
        // A terminal can block a write that poll(2) allowed; on a description of our own it does not.
        let fd = match tty::is_terminal(tty::stdio(number)) {
            true => tty::reopen_nonblocking(tty::stdio(number)).or_else(|_| tty::duplicate(number))?,
            false => tty::duplicate(number)?,
        };
        Ok(Outlet { fd: Some(fd), waiting: Vec::new() })
    }

    /// There is room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < BUFFER
    }

    /// Everything was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is to be written is added to this.
    pub(crate) fn waiting(&mut self) -> &mut Vec<u8> {
        &mut self.waiting
    }

    /// Forgets what nobody takes: whoever writes is not held up by it.
    pub(crate) fn settle(&mut self) {
        if self.fd.is_none() {
            self.waiting.clear();
        }
    }

    /// That it takes something, if there is something.
    pub(crate) fn wants(&self) -> Want<'_> {
        let fd = self.fd.as_ref().filter(|_| !self.waiting.is_empty());
        fd.map(|fd| (fd.as_fd(), Polled::WRITE))
    }

    /// Writes what it takes.
    pub(crate) fn write(&mut self) -> Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        if tty::write(fd.as_fd(), &mut self.waiting, CHUNK)? == Transfer::End {
            self.fd = None;
            self.waiting.clear();
        }
        Ok(())
    }
}
