//! The relay between a person's terminal, or whatever stands in for it, and the sandbox's.
//!
//! Two bounded buffers, one each way: whoever does not read holds up the one that writes, and nothing is lost. At the
//! end the sandbox's terminal is read until it says that nobody has it open any more.

use std::os::fd::{AsFd, OwnedFd};

use super::outlet::Outlet;
use super::terminal::RawTerminal;
use crate::error::Result;
use crate::kernel::process::{Polled, Want};
use crate::kernel::tty::{self, Transfer};

/// The most bytes held for one direction.
const BUFFER: usize = 64 * 1024;

/// How long a terminal that nobody has open is left alone, in milliseconds.
const PAUSE: u16 = 50;

/// The relay's state.
#[derive(Debug)]
pub(super) struct Relay {
    master: OwnedFd,
    /// Nobody had the sandbox's end open when it was last asked.
    closed: bool,
    /// The sandbox has ended: when nobody has its terminal open, nobody ever will.
    ended: bool,
    /// Where the person's keystrokes come from, while they do.
    input: Option<OwnedFd>,
    to_sandbox: Vec<u8>,
    /// The last byte that came in ended a line, or there was none.
    at_line_start: bool,
    /// Where output goes.
    output: Outlet,
    /// What the person's terminal was before.
    _raw: Option<RawTerminal>,
}

impl Relay {
    pub(super) fn new(master: OwnedFd, interactive: bool) -> Result<Relay> {
        tty::set_nonblocking(master.as_fd())?;
        let input = interactive.then(|| tty::duplicate(0)).transpose()?;
        let output = Outlet::new(1)?;
        let raw = if interactive { RawTerminal::enter()? } else { None };
        let relay = Relay {
            master,
            closed: false,
            ended: false,
            input,
            to_sandbox: Vec::new(),
            at_line_start: true,
            output,
            _raw: raw,
        };
        // The window may have changed while the sandbox was made.
        relay.resize()?;
        Ok(relay)
    }

    /// The sandbox has ended: what is left is to hand over the rest of its output.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.closed = false;
        self.input = None;
        self.to_sandbox.clear();
    }

    /// The sandbox has ended and everything it wrote was handed over.
    pub(super) fn is_finished(&self) -> bool {
        self.ended && self.closed && self.output.is_empty()
    }

    /// What the sandbox's terminal, the input and the output are waited for.
    pub(super) fn wants(&self) -> [Want<'_>; 3] {
        let mut events = Polled::NOTHING;
        if self.output.has_room() {
            events = events | Polled::READ;
        }
        if !self.to_sandbox.is_empty() {
            events = events | Polled::WRITE;
        }
        // poll(2) reports a closed terminal at once and for ever, asked for or not.
        let master = (events.any() && !self.closed).then(|| (self.master.as_fd(), events));
        let input = self.input.as_ref().filter(|_| self.to_sandbox.len() < BUFFER);
        [master, input.map(|fd| (fd.as_fd(), Polled::READ)), self.output.wants()]
    }

    /// How long to wait at most, in milliseconds: a process in the sandbox may open a closed terminal again.
    pub(super) fn pause(&self) -> Option<u16> {
        (self.closed && !self.ended).then_some(PAUSE)
    }

    /// Moves what can be moved; `ready` is in the order of [`Relay::wants`].
    pub(super) fn run(&mut self, [master, input, output]: [Polled; 3]) -> Result<()> {
        if input.any() {
            self.read_input()?;
        }
        if !self.to_sandbox.is_empty() {
            self.write_master()?;
        }
        if (master.any() || self.closed && !self.ended) && self.output.has_room() {
            self.read_master()?;
        }
        if output.any() {
            self.output.write()?;
        }
        Ok(())
    }

    /// The person's window is the sandbox's.
    pub(super) fn resize(&self) -> Result<()> {
        let size = [0, 1, 2].into_iter().find_map(|n| tty::window_size(tty::stdio(n)));
        size.map_or(Ok(()), |size| tty::set_window_size(self.master.as_fd(), size))
    }

    fn read_input(&mut self) -> Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        match tty::read(input.as_fd(), &mut self.to_sandbox)? {
            Transfer::Moved => self.at_line_start = self.to_sandbox.last() == Some(&b'\n'),
            Transfer::Later => {}
            Transfer::End => {
                self.input = None;
                // After the beginning of a line the first one only hands that over (termios(3), VEOF).
                let times = if self.at_line_start { 1 } else { 2 };
                let end = tty::end_of_file_character(self.master.as_fd());
                self.to_sandbox.extend(end.iter().cycle().take(end.map_or(0, |_| times)));
            }
        }
        Ok(())
    }

    fn write_master(&mut self) -> Result<()> {
        // Nobody has it open to read: what was typed is lost, as on any terminal.
        if tty::write(self.master.as_fd(), &mut self.to_sandbox, BUFFER)? == Transfer::End {
            self.to_sandbox.clear();
        }
        Ok(())
    }

    fn read_master(&mut self) -> Result<()> {
        match tty::read(self.master.as_fd(), self.output.waiting())? {
            Transfer::Moved => self.closed = false,
            Transfer::Later => self.closed = false,
            Transfer::End => self.closed = true,
        }
        self.output.settle();
        Ok(())
    }
}
