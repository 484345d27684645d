//! A container's proxy: a small process that takes connections to its published TCP ports at IPv6 addresses of the host, where the
//! rules cannot send them on: to ::1, and to any where the container has IPv4 alone. It ends with the one that runs the container.
//!
//! Whoever answers sees the host's address, as behind docker's proxy.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::resolver::become_nobody;
use super::spec::Transport;
use super::used::Member;
use crate::error::Result;
use crate::kernel::process::{self, Polled, Want};
use crate::kernel::socket::{self, Held};
use crate::kernel::{fs, signal};

/// The word by which this program knows that it is to be a proxy.
pub const VERB: &str = "proxy";

/// How many connections there are at the same time; what comes on top waits.
const MOST: usize = 512;

/// How long the container has to take a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a thread needs that copies.
const STACK: usize = 64 << 10;

/// A proxy that runs; killed when this is dropped.
#[derive(Debug)]
pub(super) struct Proxy(OwnedFd);

impl Proxy {
    /// Runs one for what is held for a container, if there is anything for it to do.
    pub(super) fn spawn(held: &[Held], member: &Member) -> Result<Option<Proxy>> {
        let target = |held: &Held| {
            let port = member
                .ports
                .iter()
                .find(|port| port.transport == Transport::Tcp && (port.host..=port.last()).contains(&held.port))?;
            let address = member.addresses.first()?;
            Some(SocketAddr::new(*address, port.container + (held.port - port.host)))
        };
        let wanted: Vec<_> = held.iter().filter(|held| held.six).filter_map(|h| Some((h, target(h)?))).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        wanted.iter().try_for_each(|(held, _)| socket::listen_held(held.socket.as_fd()))?;
        let word = |text: &str| fs::c_string(text.as_ref());
        let mut args = vec![word("tupper")?, word(VERB)?];
        for (_, target) in &wanted {
            args.push(word(&target.to_string())?);
        }
        let sockets: Vec<BorrowedFd<'_>> = wanted.iter().map(|(held, _)| held.socket.as_fd()).collect();
        let pid = process::respawn(&args, &sockets, true, |_, _| {})?;
        Ok(process::open(pid)?.map(Proxy))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let ended = signal::send(self.0.as_fd(), signal::SIGKILL).and_then(|()| process::wait(self.0.as_fd()));
        ended.map_or_else(|e| log::warn!("end the container's proxy: {e}"), drop);
    }
}

/// What a process does that `spawn` has made: one socket for each target.
pub fn run(targets: &[SocketAddr]) -> Result<()> {
    let listeners: Vec<TcpListener> = process::given_all(targets.len())?.into_iter().map(TcpListener::from).collect();
    become_nobody()?;
    // The change of user cleared it: prctl(2), PR_SET_PDEATHSIG.
    process::die_with_parent()?;
    listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let wanted: Vec<Want<'_>> = listeners.iter().map(|l| Some((l.as_fd(), Polled::READ))).collect();
        let ready = process::poll_all(&wanted, None)?;
        for ((listener, target), _) in listeners.iter().zip(targets).zip(ready).filter(|(_, ready)| ready.any()) {
            if busy.load(Ordering::Relaxed) >= MOST {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            let Ok((client, _)) = listener.accept() else { continue };
            let (busy, target) = (Arc::clone(&busy), *target);
            busy.fetch_add(1, Ordering::Relaxed);
            let served = std::thread::Builder::new().stack_size(STACK).spawn({
                let busy = Arc::clone(&busy);
                move || {
                    let _ = forward(&client, target);
                    busy.fetch_sub(1, Ordering::Relaxed);
                }
            });
            if served.is_err() {
                busy.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Both ways, until neither has anything to say.
fn forward(client: &TcpStream, target: SocketAddr) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect_timeout(&target, PATIENCE)?;
    std::thread::scope(|scope| {
        let there = || copy(client, &server);
        let builder = std::thread::Builder::new().stack_size(STACK);
        let back = builder.spawn_scoped(scope, there).map(drop);
        back.and_then(|()| copy(&server, client))
    })
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
    let copied = std::io::copy(&mut from, &mut to);
    // Whoever has said all hears the rest still.
    to.shutdown(std::net::Shutdown::Write)?;
    copied.map(drop)
}
