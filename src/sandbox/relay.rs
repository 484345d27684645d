//! The relay between a person's terminal, or whatever stands in for it, and the sandbox's.
//!
//! Two bounded buffers, one each way: whoever does not read holds up the one that writes, and nothing is lost. At the
//! end the sandbox's terminal is read until it says that nobody has it open any more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::terminal::RawTerminal;
use crate::error::Result;
use crate::kernel::process::Polled;
use crate::kernel::tty::{self, Transfer};

/// The most bytes held for one direction.
const BUFFER: usize = 64 * 1024;

/// A pipe that poll(2) calls writable takes this much without blocking: pipe(7), PIPE_BUF.
const CHUNK: usize = 4096;

/// How long a terminal that nobody has open is left alone, in milliseconds.
const PAUSE: u16 = 50;

/// What a descriptor is waited for, if it is.
type Want<'a> = Option<(BorrowedFd<'a>, Polled)>;

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
    /// Where output goes, while anybody takes it.
    output: Option<OwnedFd>,
    to_person: Vec<u8>,
    /// What the person's terminal was before.
    _raw: Option<RawTerminal>,
}

impl Relay {
    pub(super) fn new(master: OwnedFd, interactive: bool) -> Result<Relay> {
        tty::set_nonblocking(master.as_fd())?;
        let input = interactive.then(|| tty::duplicate(0)).transpose()?;
        // A terminal can block a write that poll(2) allowed; on a description of our own it does not.
        let output = match tty::is_terminal(tty::stdio(1)) {
            true => tty::reopen_nonblocking(tty::stdio(1)).or_else(|_| tty::duplicate(1))?,
            false => tty::duplicate(1)?,
        };
        let raw = if interactive { RawTerminal::enter()? } else { None };
        let relay = Relay {
            master,
            closed: false,
            ended: false,
            input,
            to_sandbox: Vec::new(),
            at_line_start: true,
            output: Some(output),
            to_person: Vec::new(),
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
        self.ended && self.closed && self.to_person.is_empty()
    }

    /// What the sandbox's terminal, the input and the output are waited for.
    pub(super) fn wants(&self) -> [Want<'_>; 3] {
        let mut events = Polled::NOTHING;
        if self.to_person.len() < BUFFER {
            events = events | Polled::READ;
        }
        if !self.to_sandbox.is_empty() {
            events = events | Polled::WRITE;
        }
        // poll(2) reports a closed terminal at once and for ever, asked for or not.
        let master = (events.any() && !self.closed).then(|| (self.master.as_fd(), events));
        let input = self.input.as_ref().filter(|_| self.to_sandbox.len() < BUFFER);
        let output = self.output.as_ref().filter(|_| !self.to_person.is_empty());
        [master, input.map(|fd| (fd.as_fd(), Polled::READ)), output.map(|fd| (fd.as_fd(), Polled::WRITE))]
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
        if (master.any() || self.closed && !self.ended) && self.to_person.len() < BUFFER {
            self.read_master()?;
        }
        if output.any() {
            self.write_output()?;
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
        match tty::read(self.master.as_fd(), &mut self.to_person)? {
            Transfer::Moved => self.closed = false,
            Transfer::Later => self.closed = false,
            Transfer::End => self.closed = true,
        }
        if self.output.is_none() {
            self.to_person.clear();
        }
        Ok(())
    }

    fn write_output(&mut self) -> Result<()> {
        let Some(output) = &self.output else { return Ok(()) };
        if tty::write(output.as_fd(), &mut self.to_person, CHUNK)? == Transfer::End {
            // Nobody takes it any more; the sandbox goes on without being held up.
            self.output = None;
            self.to_person.clear();
        }
        Ok(())
    }
}
