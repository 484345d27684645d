//! A command's standard streams as its monitor has them: the other ends of three pipes, or of a terminal.

use std::os::fd::{AsFd, OwnedFd};

use super::message::Stream;
use crate::error::Result;
use crate::kernel::fs;
use crate::kernel::process::{self, Polled, Want};
use crate::kernel::tty::{self, Transfer, WindowSize};
use crate::sandbox::Streams;

/// The most bytes held for the command to read.
const BUFFER: usize = 64 * 1024;

/// How long a terminal that nobody has open is left alone, in milliseconds.
const PAUSE: u16 = 50;

pub(super) struct Console {
    terminal: bool,
    /// Nobody had the terminal open when it was last asked.
    closed: bool,
    input: Option<OwnedFd>,
    /// Standard output, or the terminal; and standard error.
    outputs: [Option<OwnedFd>; 2],
    /// What the command has not read yet.
    pending: Vec<u8>,
    /// There is no more to come.
    input_ends: bool,
    /// The last byte that came in ended a line, or there was none.
    at_line_start: bool,
}

impl Console {
    /// Three pipes, or two for a command that reads nothing, and the command's ends of them.
    pub(super) fn pipes(interactive: bool) -> Result<(Console, Streams)> {
        let (output, childs_output) = process::pipe()?;
        let (error, childs_error) = process::pipe()?;
        let (childs_input, input) = interactive.then(process::pipe).transpose()?.unzip();
        for end in [Some(&output), Some(&error), input.as_ref()].into_iter().flatten() {
            tty::set_nonblocking(end.as_fd())?;
        }
        let streams = Streams { input: childs_input, output: childs_output, error: childs_error };
        Ok((Console::new(false, input, [Some(output), Some(error)]), streams))
    }

    /// The master of the command's terminal.
    pub(super) fn terminal(master: OwnedFd) -> Result<Console> {
        tty::set_nonblocking(master.as_fd())?;
        let input = fs::duplicate(master.as_fd())?;
        Ok(Console::new(true, Some(input), [Some(master), None]))
    }

    fn new(terminal: bool, input: Option<OwnedFd>, outputs: [Option<OwnedFd>; 2]) -> Console {
        Console { terminal, closed: false, input, outputs, pending: Vec::new(), input_ends: false, at_line_start: true }
    }

    /// Output, if it is `wanted`, error output, and that the command reads.
    pub(super) fn wants(&self, wanted: bool) -> [Want<'_>; 3] {
        // poll(2) reports a closed terminal at once and for ever, asked for or not.
        let reads = wanted && !self.closed;
        let [output, error] = self.outputs.each_ref().map(|fd| fd.as_ref().filter(|_| reads));
        let input = self.input.as_ref().filter(|_| !self.pending.is_empty() && !self.closed);
        [output.map(read), error.map(read), input.map(|fd| (fd.as_fd(), Polled::WRITE))]
    }

    /// How long to wait at most, in milliseconds: somebody may open a closed terminal again.
    pub(super) fn pause(&self) -> Option<u16> {
        self.closed.then_some(PAUSE)
    }

    /// Moves what can be moved, and returns what the command has written; `ready` is in the order of
    /// [`Console::wants`].
    pub(super) fn run(&mut self, [output, error, input]: [Polled; 3]) -> Result<Vec<(Stream, Vec<u8>)>> {
        if input.any() {
            self.write()?;
        }
        let mut written = Vec::new();
        for (nth, stream, ready) in [(0, Stream::Output, output), (1, Stream::Error, error)] {
            if ready.any() || self.closed {
                self.read(nth, stream, &mut written)?;
            }
        }
        Ok(written)
    }

    /// Everything that is left, once the command and all its processes have ended.
    pub(super) fn drain(&mut self) -> Result<Vec<(Stream, Vec<u8>)>> {
        self.input = None;
        let mut written = Vec::new();
        for (nth, stream) in [(0, Stream::Output), (1, Stream::Error)] {
            while self.read(nth, stream, &mut written)? {}
        }
        Ok(written)
    }

    /// Whether there was something.
    fn read(&mut self, nth: usize, stream: Stream, written: &mut Vec<(Stream, Vec<u8>)>) -> Result<bool> {
        let Some(slot) = self.outputs.get_mut(nth) else { return Ok(false) };
        let Some(fd) = slot else { return Ok(false) };
        let mut bytes = Vec::new();
        let transfer = tty::read(fd.as_fd(), &mut bytes)?;
        match (transfer, self.terminal) {
            (Transfer::End, false) => *slot = None,
            (transfer, true) => self.closed = transfer == Transfer::End,
            _ => {}
        }
        if !bytes.is_empty() {
            written.push((stream, bytes));
        }
        Ok(transfer == Transfer::Moved)
    }

    /// The command has enough to read for now.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= BUFFER
    }

    /// Gives the command something to read. Without an input it is lost, as what is typed at a closed terminal.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        if self.input.is_some() && !self.input_ends && !bytes.is_empty() {
            self.at_line_start = bytes.ends_with(b"\n");
            self.pending.extend_from_slice(bytes);
        }
        self.write()
    }

    /// The command's input ends after what it has not read yet.
    pub(super) fn end_input(&mut self) -> Result<()> {
        if self.terminal {
            // After the beginning of a line the first one only hands that over (termios(3), VEOF).
            let times = if self.at_line_start { 1 } else { 2 };
            let end = self.input.as_ref().and_then(|master| tty::end_of_file_character(master.as_fd()));
            self.pending.extend(end.iter().cycle().take(end.map_or(0, |_| times)));
        } else {
            self.input_ends = true;
        }
        self.write()
    }

    /// The command's window has the size of somebody else's.
    pub(super) fn resize(&self, size: WindowSize) -> Result<()> {
        let master = self.input.as_ref().filter(|_| self.terminal);
        master.map_or(Ok(()), |master| tty::set_window_size(master.as_fd(), size))
    }

    fn write(&mut self) -> Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        if !self.pending.is_empty() && tty::write(input.as_fd(), &mut self.pending, BUFFER)? == Transfer::End {
            self.pending.clear();
            self.input_ends |= !self.terminal;
        }
        if self.input_ends && self.pending.is_empty() {
            self.input = None;
        }
        Ok(())
    }
}

fn read(fd: &OwnedFd) -> (std::os::fd::BorrowedFd<'_>, Polled) {
    (fd.as_fd(), Polled::READ)
}
