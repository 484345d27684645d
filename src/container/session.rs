//! A person at a container whose monitor runs it: `run`, `start -a` and `attach`.

use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

use super::monitor::{CHUNK, Event, Request, Stream};
use crate::error::{Error, Kind, Result};
use crate::kernel::process::{self, Polled};
use crate::kernel::signal;
use crate::kernel::socket::{self, Received};
use crate::kernel::tty::{self, Transfer};
use crate::sandbox::{BlockedSignals, Exit, Outlet, PATIENCE, RawTerminal, Status};

/// The keys that let go of a container: podman-attach(1), `--detach-keys`. None for no such keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    /// Control-P, then Control-Q.
    fn default() -> DetachKeys {
        DetachKeys(vec![0x10, 0x11])
    }
}

impl FromStr for DetachKeys {
    type Err = Error;

    /// Keys with commas between them, each a letter or `ctrl-` and one of `a-z @ [ \ ] ^ _`.
    fn from_str(text: &str) -> Result<DetachKeys> {
        let key = |key: &str| match (key.strip_prefix("ctrl-").map(str::as_bytes), key.as_bytes()) {
            (Some([key @ (b'a'..=b'z' | b'@' | b'['..=b'_')]), _) => Ok(key & 0x1f),
            (None, [key]) if key.is_ascii_graphic() => Ok(*key),
            _ => Err(Error::new(
                Kind::Invalid,
                format!("{key:?} is no key: a letter, or ctrl- and one of a-z @ [ \\ ] ^ _"),
            )),
        };
        let keys = text.split(',').filter(|_| !text.is_empty());
        keys.map(key).collect::<Result<_>>().map(DetachKeys)
    }
}

/// How the person and the container parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parted {
    /// The command has ended.
    Exited(Exit),
    /// The person has gone, and the container goes on.
    Detached,
    /// This signal ended the person's side, and the container goes on.
    Interrupted(i32),
}

/// What a person wants of a session.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// What is typed goes to the container.
    pub input: bool,
    /// Signals that this process gets go to the container.
    pub signals: bool,
    /// What lets go of it, if it has a terminal.
    pub keys: DetachKeys,
}

/// A container that somebody is at.
#[derive(Debug)]
pub(super) struct Session {
    pub socket: OwnedFd,
    /// The container has a terminal.
    pub tty: bool,
    pub attachment: Attachment,
    /// From before the container was started, so that none is lost and none leaves a raw terminal behind.
    pub signals: BlockedSignals,
}

/// What is on its way.
struct Traffic {
    socket: OwnedFd,
    input: Option<OwnedFd>,
    /// What was typed and may be the beginning of the keys that let go.
    held: Vec<u8>,
    keys: Vec<u8>,
    /// What the monitor is to be told.
    requests: Vec<Request>,
    outputs: [Outlet; 2],
    exit: Option<Exit>,
    detached: bool,
}

impl Session {
    /// Stays until the command ends or the person lets go.
    pub(super) fn follow(self) -> Result<Parted> {
        let Attachment { input, signals, keys: DetachKeys(keys) } = self.attachment;
        let _raw = if self.tty && input { RawTerminal::enter()? } else { None };
        let mut traffic = Traffic {
            socket: self.socket,
            input: input.then(|| tty::duplicate(0)).transpose()?,
            held: Vec::new(),
            keys: if self.tty { keys } else { Vec::new() },
            requests: Vec::new(),
            outputs: [Outlet::new(1)?, Outlet::new(2)?],
            exit: None,
            detached: false,
        };
        traffic.resize(self.tty);
        let mut impatience = 0;
        loop {
            match traffic.exit {
                _ if traffic.detached => return Ok(Parted::Detached),
                Some(exit) if traffic.outputs.iter().all(Outlet::is_empty) || impatience >= PATIENCE => {
                    return Ok(Parted::Exited(exit));
                }
                _ => {}
            }
            let [socket, input, output, error] = traffic.wants();
            let queue = Some((self.signals.queue.as_fd(), Polled::READ));
            let ready = process::poll([queue, socket, input, output, error], None)?;
            let [_, of_traffic @ ..] = ready;
            traffic.run(of_traffic)?;
            while let Some(number) = self.signals.queue.next()? {
                if number == signal::SIGWINCH {
                    traffic.resize(self.tty);
                    continue;
                }
                if !signals {
                    return Ok(Parted::Interrupted(number));
                }
                impatience += u32::from(signal::is_termination(number));
                let number = if impatience >= PATIENCE { signal::SIGKILL } else { number };
                traffic.requests.push(Request::Signal(number));
            }
        }
    }
}

impl Traffic {
    fn wants(&self) -> [process::Want<'_>; 4] {
        let mut events = Polled::NOTHING;
        if self.exit.is_none() && self.outputs.iter().all(Outlet::has_room) {
            events = events | Polled::READ;
        }
        if !self.requests.is_empty() {
            events = events | Polled::WRITE;
        }
        let socket = events.any().then_some((self.socket.as_fd(), events));
        let input = self.input.as_ref().filter(|_| self.requests.is_empty());
        let [output, error] = self.outputs.each_ref().map(Outlet::wants);
        [socket, input.map(|fd| (fd.as_fd(), Polled::READ)), output, error]
    }

    fn run(&mut self, [socket, input, output, error]: [Polled; 4]) -> Result<()> {
        if input.any() {
            self.read_input()?;
        }
        self.send()?;
        if socket.any() {
            self.receive()?;
        }
        for (outlet, ready) in self.outputs.iter_mut().zip([output, error]) {
            if ready.any() {
                outlet.write()?;
            }
        }
        Ok(())
    }

    /// The container's window is to be as large as the person's.
    fn resize(&mut self, tty: bool) {
        let size = [0, 1, 2].into_iter().find_map(|n| tty::window_size(tty::stdio(n)));
        self.requests.extend(size.filter(|_| tty).map(Request::Window));
    }

    fn read_input(&mut self) -> Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        let mut typed = Vec::new();
        match tty::read(input.as_fd(), &mut typed)? {
            Transfer::Moved => {
                let (passed, detached) = sift(&self.keys, &mut self.held, &typed);
                self.requests.extend(passed.chunks(CHUNK).map(|bytes| Request::Input(bytes.to_vec())));
                self.detached = detached;
            }
            Transfer::Later => {}
            Transfer::End => {
                self.input = None;
                self.requests.push(Request::InputEnd);
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        while let Some(request) = self.requests.first() {
            match socket::send_now(self.socket.as_fd(), &request.encode())? {
                Transfer::Moved => drop(self.requests.remove(0)),
                Transfer::Later => break,
                // Why is about to be received.
                Transfer::End => self.requests.clear(),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        while self.exit.is_none() && self.outputs.iter().all(Outlet::has_room) {
            match socket::receive_now(self.socket.as_fd())? {
                Received::Later => break,
                Received::Message(message) => match Event::decode(&message)? {
                    Event::Output(stream, bytes) => {
                        let [output, error] = &mut self.outputs;
                        let outlet = if stream == Stream::Output { output } else { error };
                        outlet.waiting().extend(bytes);
                        outlet.settle();
                    }
                    Event::Ended { exit, .. } => self.exit = Some(exit),
                    Event::Failed(e) => return Err(e),
                    Event::Warned(text) => log::warn!("{text}"),
                    Event::Began | Event::Logged => {}
                },
                Received::End => {
                    log::warn!("the container's monitor was killed, and the container with it");
                    let status = Status::Signal(signal::SIGKILL);
                    self.exit = Some(Exit { status, oom_killed: false, pids_limited: false });
                }
            }
        }
        Ok(())
    }
}

/// Looks for `keys` in what is typed; `held` is what was kept back of what was typed before. Returns what is to be passed
/// on, and whether the keys were typed.
fn sift(keys: &[u8], held: &mut Vec<u8>, typed: &[u8]) -> (Vec<u8>, bool) {
    if keys.is_empty() {
        return (typed.to_vec(), false);
    }
    let mut passed = Vec::new();
    for byte in typed {
        held.push(*byte);
        if held == keys {
            return (passed, true);
        }
        // What cannot become the keys any more is passed on.
        while !keys.starts_with(held) {
            passed.push(held.remove(0));
        }
    }
    (passed, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_podman_reads_them() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(keys("ctrl-p,ctrl-q").expect("keys"), DetachKeys::default().0);
        assert_eq!(keys("a,ctrl-@,ctrl-[").expect("keys"), [b'a', 0, 27]);
        assert_eq!(keys("").expect("none"), [0u8; 0]);
        for text in ["ctrl-", "ctrl-ab", "ab", "ctrl-p,", "ctrl-1"] {
            assert!(keys(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_found_in_what_is_typed() {
        // A comma is where one read ends and the next begins.
        let rows = [
            ("pq", "xpq", "x", true),
            ("pq", "p,q", "", true),
            ("pq", "p,x,p", "px", false),
            ("pq", "ppq", "p", true),
            ("ppq", "pppq", "p", true),
            ("", "pq", "pq", false),
        ];
        for (keys, typed, want, detached) in rows {
            let (mut held, mut passed, mut found) = (Vec::new(), Vec::new(), false);
            for typed in typed.split(',') {
                let (more, now) = sift(keys.as_bytes(), &mut held, typed.as_bytes());
                passed.extend(more);
                found |= now;
            }
            assert_eq!((passed.as_slice(), found), (want.as_bytes(), detached), "{typed}");
        }
    }
}
