//! Who talks to a monitor: whoever made it, and whoever has connected since.
//!
//! Each has a queue of what it was not sent yet. A client that takes the output and does not read holds it up, as a
//! terminal does; all others are told things small and few.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::message::{Attach, CHUNK, Event, Request, Stream};
use crate::error::Result;
use crate::kernel::fs;
use crate::kernel::process::{self, Polled, Want};
use crate::kernel::socket::{self, Received};
use crate::kernel::tty::Transfer;

/// The socket's name in the container's directory.
pub(in super::super) const SOCKET: &str = "socket";

/// What a client may have waiting that does not take the output; one that lets this much wait reads nothing any more.
const PATIENCE: usize = 64;

pub(super) struct Clients {
    listener: Option<OwnedFd>,
    all: Vec<Client>,
    /// Somebody wants the command not to be started again.
    pub(super) hold: bool,
}

struct Client {
    socket: OwnedFd,
    attach: Attach,
    queue: VecDeque<Vec<u8>>,
    gone: bool,
}

impl Clients {
    /// Who is there already.
    pub(super) fn new(first: OwnedFd) -> Clients {
        Clients { listener: None, all: vec![Client::new(first)], hold: false }
    }

    /// Others may connect by a socket in the container's directory.
    pub(super) fn listen(&mut self, dir: BorrowedFd<'_>) -> Result<()> {
        self.listener = Some(socket::listen(dir, SOCKET)?);
        Ok(())
    }

    /// Nobody can any more.
    pub(super) fn close(&mut self, dir: BorrowedFd<'_>) -> Result<()> {
        self.listener = None;
        fs::unlink(dir, SOCKET)
    }

    /// Those that connect, what clients say, and where there is something for them, that they take it. A command that does
    /// not read its input holds up those that send it some.
    pub(super) fn wants(&self, input_is_full: bool) -> impl Iterator<Item = Want<'_>> {
        let listener = self.listener.as_ref().map(|fd| (fd.as_fd(), Polled::READ));
        let clients = self.all.iter().map(move |client| {
            let mut events = Polled::NOTHING;
            if !(input_is_full && client.attach.output) {
                events = events | Polled::READ;
            }
            if !client.queue.is_empty() {
                events = events | Polled::WRITE;
            }
            events.any().then_some((client.socket.as_fd(), events))
        });
        std::iter::once(listener).chain(clients)
    }

    /// Moves what can be moved, and returns what is asked of the container; `ready` is in the order of
    /// [`Clients::wants`].
    pub(super) fn run(&mut self, ready: &[Polled]) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        let (listener, clients) = ready.split_first().unwrap_or((&Polled::NOTHING, &[]));
        for (client, ready) in self.all.iter_mut().zip(clients) {
            if ready.any() {
                client.flush()?;
                self.hold |= client.listen_to(&mut requests)?;
            }
        }
        if listener.any()
            && let Some(listener) = &self.listener
        {
            while let Some(socket) = socket::accept(listener.as_fd())? {
                self.all.push(Client::new(socket));
            }
        }
        self.all.retain(|client| !client.gone);
        Ok(requests)
    }

    /// Hears everything that was said so far, and by those who have just connected, too.
    pub(super) fn settle(&mut self) -> Result<Vec<Request>> {
        self.run(&[Polled::READ])?;
        let ready = vec![Polled::READ; self.all.len() + 1];
        self.run(&ready)
    }

    /// Tells everybody.
    pub(super) fn tell(&mut self, event: &Event) -> Result<()> {
        let message = event.encode();
        self.all.iter_mut().try_for_each(|client| client.send(message.clone()))
    }

    /// Tells everybody of something that went wrong, and whoever still reads this process's standard error.
    pub(super) fn warn(&mut self, text: &str) -> Result<()> {
        log::warn!("{text}");
        self.tell(&Event::Warned(text.to_string()))
    }

    /// Hands output to those who take it, and tells those who read the log of it.
    pub(super) fn output(&mut self, stream: Stream, bytes: &[u8]) -> Result<()> {
        for client in &mut self.all {
            if client.attach.output {
                for chunk in bytes.chunks(CHUNK) {
                    client.send(Event::Output(stream, chunk.to_vec()).encode())?;
                }
            }
            // One that waits to be read is as good as many.
            if client.attach.log && client.queue.is_empty() {
                client.send(Event::Logged.encode())?;
            }
        }
        Ok(())
    }

    /// Somebody who takes the output has not taken all of it yet.
    pub(super) fn are_behind(&self) -> bool {
        self.all.iter().any(|client| client.attach.output && !client.queue.is_empty())
    }

    /// Waits until everybody has been told everything, or has gone.
    pub(super) fn finish(mut self) -> Result<()> {
        loop {
            for client in &mut self.all {
                client.flush()?;
            }
            self.all.retain(|client| !client.gone && !client.queue.is_empty());
            if self.all.is_empty() {
                return Ok(());
            }
            let wanted: Vec<Want<'_>> = self.all.iter().map(|c| Some((c.socket.as_fd(), Polled::WRITE))).collect();
            process::poll_all(&wanted, None)?;
        }
    }
}

impl Client {
    fn new(socket: OwnedFd) -> Client {
        Client { socket, attach: Attach::default(), queue: VecDeque::new(), gone: false }
    }

    fn send(&mut self, message: Vec<u8>) -> Result<()> {
        self.queue.push_back(message);
        if !self.attach.output && self.queue.len() > PATIENCE {
            self.gone = true;
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        while !self.gone
            && let Some(message) = self.queue.front()
        {
            match socket::send_now(self.socket.as_fd(), message)? {
                Transfer::Moved => drop(self.queue.pop_front()),
                Transfer::Later => break,
                Transfer::End => self.gone = true,
            }
        }
        Ok(())
    }

    /// Takes what the client has said so far. Returns whether it wants the command held.
    fn listen_to(&mut self, requests: &mut Vec<Request>) -> Result<bool> {
        let mut hold = false;
        while !self.gone {
            match socket::receive_now(self.socket.as_fd())? {
                Received::Later => break,
                Received::End => self.gone = true,
                Received::Message(message) => match Request::decode(&message) {
                    Ok(Request::Attach(attach)) => self.attach = attach,
                    Ok(Request::Hold) => hold = true,
                    Ok(Request::InputEnd) if !self.attach.ends_input => {}
                    // The rest after more was read of the input.
                    Ok(request @ Request::Input(_)) => {
                        requests.push(request);
                        break;
                    }
                    Ok(request) => requests.push(request),
                    Err(_) => self.gone = true,
                },
            }
        }
        Ok(hold)
    }
}
