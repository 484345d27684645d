//! What a monitor and its clients tell each other: one message each over a sequenced-packet socket. The first byte says
//! which it is.

use crate::error::{Error, Kind, Result};
use crate::kernel::socket;
use crate::kernel::tty::WindowSize;
use crate::sandbox::{Exit, Status};

/// The most bytes of a stream in a message.
pub(in super::super) const CHUNK: usize = socket::MESSAGE - 2;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Output,
    /// Standard error.
    Error,
}

/// What a client wants of its connection. Without a word it is told how the container fares, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct Attach {
    /// The output, as it comes.
    pub output: bool,
    /// That the log has grown.
    pub log: bool,
    /// Where its input ends, the container's does.
    pub ends_input: bool,
}

/// From a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Request {
    /// What the client wants from here on.
    Attach(Attach),
    /// Bytes for the command to read.
    Input(Vec<u8>),
    /// There are no more.
    InputEnd,
    /// The size of the client's window.
    Window(WindowSize),
    /// A signal for the command.
    Signal(i32),
    /// When the command ends, leave it at that.
    Hold,
}

/// From the monitor.
#[derive(Debug)]
pub(in super::super) enum Event {
    /// The command runs.
    Began,
    /// It does not, and nothing will come any more.
    Failed(Error),
    /// Output of it.
    Output(Stream, Vec<u8>),
    /// The log has grown.
    Logged,
    /// Something went wrong that is nobody's failure.
    Warned(String),
    /// It has ended, and its lock is free unless it is to be started again.
    Ended {
        /// How.
        exit: Exit,
        /// It is not to be started again.
        last: bool,
    },
}

impl Request {
    pub(in super::super) fn encode(&self) -> Vec<u8> {
        match self {
            Request::Attach(Attach { output, log, ends_input }) => {
                vec![b'A', u8::from(*output), u8::from(*log), u8::from(*ends_input)]
            }
            Request::Input(bytes) => [b"I", bytes.as_slice()].concat(),
            Request::InputEnd => vec![b'E'],
            Request::Window(WindowSize { rows, columns }) => {
                let ([r1, r2], [c1, c2]) = (rows.to_be_bytes(), columns.to_be_bytes());
                vec![b'W', r1, r2, c1, c2]
            }
            Request::Signal(number) => vec![b'S', u8::try_from(*number).unwrap_or(0)],
            Request::Hold => vec![b'H'],
        }
    }

    pub(in super::super) fn decode(message: &[u8]) -> Result<Request> {
        Ok(match message {
            [b'A', output, log, ends_input] => {
                Request::Attach(Attach { output: *output != 0, log: *log != 0, ends_input: *ends_input != 0 })
            }
            [b'I', bytes @ ..] => Request::Input(bytes.to_vec()),
            [b'E'] => Request::InputEnd,
            [b'W', r1, r2, c1, c2] => Request::Window(WindowSize {
                rows: u16::from_be_bytes([*r1, *r2]),
                columns: u16::from_be_bytes([*c1, *c2]),
            }),
            [b'S', number] => Request::Signal(i32::from(*number)),
            [b'H'] => Request::Hold,
            _ => return Err(nonsense()),
        })
    }
}

impl Event {
    pub(in super::super) fn encode(&self) -> Vec<u8> {
        match self {
            Event::Began => vec![b'B'],
            Event::Failed(error) => [b"F", error.to_bytes().as_slice()].concat(),
            Event::Output(Stream::Output, bytes) => [b"O", bytes.as_slice()].concat(),
            Event::Output(Stream::Error, bytes) => [b"R", bytes.as_slice()].concat(),
            Event::Logged => vec![b'L'],
            Event::Warned(text) => [b"N", &text.as_bytes()[..text.len().min(CHUNK)]].concat(),
            Event::Ended { exit, last } => {
                let (signaled, number) = match exit.status {
                    Status::Code(code) => (0, code),
                    Status::Signal(signal) => (1, u8::try_from(signal).unwrap_or(0)),
                };
                vec![b'X', signaled, number, u8::from(exit.oom_killed), u8::from(exit.pids_limited), u8::from(*last)]
            }
        }
    }

    pub(in super::super) fn decode(message: &[u8]) -> Result<Event> {
        Ok(match message {
            [b'B'] => Event::Began,
            [b'F', error @ ..] => Event::Failed(Error::from_bytes(error)),
            [b'O', bytes @ ..] => Event::Output(Stream::Output, bytes.to_vec()),
            [b'R', bytes @ ..] => Event::Output(Stream::Error, bytes.to_vec()),
            [b'L'] => Event::Logged,
            [b'N', text @ ..] => Event::Warned(String::from_utf8_lossy(text).into_owned()),
            [b'X', signaled, number, oom_killed, pids_limited, last] => {
                let status = if *signaled == 0 { Status::Code(*number) } else { Status::Signal(i32::from(*number)) };
                let exit = Exit { status, oom_killed: *oom_killed != 0, pids_limited: *pids_limited != 0 };
                Event::Ended { exit, last: *last != 0 }
            }
            _ => return Err(nonsense()),
        })
    }
}

fn nonsense() -> Error {
    Error::new(Kind::Io, "a message between a container's monitor and its client makes no sense")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let requests = [
            Request::Attach(Attach { output: true, log: false, ends_input: true }),
            Request::Input(vec![0, 10, 255]),
            Request::InputEnd,
            Request::Window(WindowSize { rows: 300, columns: 7 }),
            Request::Signal(64),
            Request::Hold,
        ];
        for request in requests {
            assert_eq!(Request::decode(&request.encode()).expect("decoded"), request);
        }
        let exit = Exit { status: Status::Signal(9), oom_killed: true, pids_limited: false };
        let error = Error::new(Kind::CommandNotFound, "run x: not found").with_hint("y");
        let events = [
            Event::Began,
            Event::Failed(error),
            Event::Output(Stream::Error, vec![0, 10]),
            Event::Output(Stream::Output, vec![]),
            Event::Logged,
            Event::Warned("a disk is full".to_string()),
            Event::Ended { exit, last: true },
        ];
        for event in events {
            let arrived = Event::decode(&event.encode()).expect("decoded");
            assert_eq!(format!("{arrived:?}"), format!("{event:?}"));
            if let Event::Failed(error) = arrived {
                assert_eq!((error.kind(), error.hint()), (Kind::CommandNotFound, Some("y")));
            }
        }
        for wrong in [&b""[..], b"?", b"A", b"X12", b"W1"] {
            assert!(Request::decode(wrong).is_err() && Event::decode(wrong).is_err());
        }
    }
}
