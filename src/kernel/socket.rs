//! Sockets: a connected pair for messages with a descriptor in them, one that listens in a directory, and the loopback
//! interface.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, UnixAddr,
};

use super::failed;
use super::netlink::nftables::Transport;
use super::tty::Transfer;
use crate::error::{Error, Kind, Result};

/// The largest message, in bytes.
pub(crate) const MESSAGE: usize = 8192;

/// The most descriptors in a message.
pub(crate) const DESCRIPTORS: usize = 8;

/// socketpair(2), AF_UNIX and SOCK_SEQPACKET: each send is one message, and closing one end ends the other.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| failed("socketpair", e))
}

/// A socket that listens as `name` in the directory `at`, for messages as on a [`pair`]. What another left there under that
/// name goes.
pub(crate) fn listen(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let fail = |e| failed(format_args!("listen on the socket {name}"), e);
    let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None).map_err(fail)?;
    match nix::unistd::unlinkat(at, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(fail(e)),
    }
    socket::bind(socket.as_raw_fd(), &address(at, name)?).map_err(fail)?;
    socket::listen(&socket, socket::Backlog::MAXCONN).map_err(fail)?;
    Ok(socket)
}

/// The next that connects to a socket that listens, if somebody does.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    match socket::accept4(listener.as_raw_fd(), FLAGS) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        #[expect(unsafe_code, reason = "accept4 returns a raw descriptor")]
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
        Err(e) => Err(failed("accept a connection", e)),
    }
}

/// Connects to the socket `name` in the directory `at`; `None` when nobody listens there.
pub(crate) fn connect(at: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>> {
    let fail = |e| failed(format_args!("connect to the socket {name}"), e);
    let socket =
        socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(fail)?;
    match socket::connect(socket.as_raw_fd(), &address(at, name)?) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
        Err(e) => Err(fail(e)),
    }
}

/// The address of a socket in a directory, however long the directory's path is: unix(7) has room for 108 bytes.
fn address(at: BorrowedFd<'_>, name: &str) -> Result<UnixAddr> {
    let path = super::fs::path_of(at).join(name);
    UnixAddr::new(&path).map_err(|e| failed(format_args!("the address of the socket {name}"), e))
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// [`send`] of bytes alone that never waits: `Later` when the other end has to read first, `End` when it is gone.
pub(crate) fn send_now(socket: BorrowedFd<'_>, message: &[u8]) -> Result<Transfer> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    match socket::send(socket.as_raw_fd(), message, flags) {
        Ok(_) => Ok(Transfer::Moved),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Transfer::Later),
        Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(Transfer::End),
        Err(e) => Err(failed("send a message", e)),
    }
}

/// What [`receive_now`] found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message.
    Message(Vec<u8>),
    /// None yet.
    Later,
    /// None ever again.
    End,
}

/// [`receive`] of bytes alone that never waits.
pub(crate) fn receive_now(socket: BorrowedFd<'_>) -> Result<Received> {
    let mut buffer = vec![0; MESSAGE];
    loop {
        return match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            // As in `receive`: what was sent before comes after.
            Err(Errno::ECONNRESET) => continue,
            Ok(0) => Ok(Received::End),
            Ok(length) => {
                buffer.truncate(length);
                Ok(Received::Message(buffer))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Received::Later),
            Err(e) => Err(failed("receive a message", e)),
        };
    }
}

/// sendmsg(2) of one message, with [some](DESCRIPTORS) descriptors (unix(7), SCM_RIGHTS).
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let descriptors: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    let message = &message[..message.len().min(MESSAGE)];
    loop {
        let sent = socket::sendmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &[IoSlice::new(message)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            Err(Errno::EINTR) => continue,
            other => return other.map(drop).map_err(|e| failed("send a message", e)),
        }
    }
}

/// Whether a message was not [sent](send) because the other end is closed.
pub(crate) fn is_closed(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::EPIPE | libc::ECONNRESET))
}

/// recvmsg(2) of one message; `None` when the other end is closed.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MESSAGE];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; DESCRIPTORS]);
    let (length, descriptors) = loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match socket::recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => continue,
            // The other end closed with a message of ours unread. That is told first, once; what it sent before it
            // closed, and the end, come after (unix_release_sock, net/unix/af_unix.c).
            Err(Errno::ECONNRESET) => continue,
            Err(e) => return Err(failed("receive a message", e)),
            Ok(message) => break (message.bytes, descriptors(&message)?),
        }
    };
    buffer.truncate(length);
    Ok((length > 0).then_some((buffer, descriptors)))
}

fn descriptors(message: &socket::RecvMsg<'_, '_, UnixAddr>) -> Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for control in message.cmsgs().map_err(|e| failed("receive a descriptor", e))? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just installed these descriptors for this process, and nobody else knows them.
            #[expect(unsafe_code, reason = "SCM_RIGHTS delivers raw descriptors")]
            all.extend(descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(all)
}

/// A port of this host that is taken without being used, so that nobody else gets it.
#[derive(Debug)]
pub(crate) struct Held {
    /// Bound but not listening: whoever wants the port for himself needs SO_REUSEADDR on both (socket(7)).
    pub(crate) socket: OwnedFd,
    /// The port.
    pub(crate) port: u16,
    /// It is one of IPv6 addresses alone.
    pub(crate) six: bool,
}

/// Takes ports of this host: the first of `count`, which is `first` or any that is free for 0, and what holds them. Without an
/// address it is every one, of IPv4 and of IPv6 where there is that.
pub(crate) fn hold_ports(
    transport: Transport,
    address: Option<IpAddr>,
    first: u16,
    count: u16,
) -> Result<(u16, Vec<Held>)> {
    // Several in a row that are free are found by trying.
    let mut turns = if first == 0 { 64 } else { 1 };
    loop {
        turns -= 1;
        let hold = || -> Result<_> {
            let mut held = hold_port(transport, address, first)?;
            let start = held.first().map_or(first, |held| held.port);
            for n in 1..count {
                let port = start.checked_add(n).ok_or_else(|| in_use(transport, address, u16::MAX))?;
                held.extend(hold_port(transport, address, port)?);
            }
            Ok((start, held))
        };
        match hold() {
            Err(e) if e.kind() == Kind::InUse && turns > 0 => {}
            other => return other,
        }
    }
}

fn hold_port(transport: Transport, address: Option<IpAddr>, port: u16) -> Result<Vec<Held>> {
    let hold = |address: IpAddr, port| match bind(transport, SocketAddr::new(address, port), false) {
        Ok((socket, port)) => Ok(Some(Held { socket, port, six: address.is_ipv6() })),
        Err(Errno::EADDRINUSE) => Err(in_use(transport, Some(address).filter(|a| !a.is_unspecified()), port)),
        // A host without IPv6.
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) if address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ok(None),
        Err(e) => Err(failed(format_args!("take port {port}/{transport} of {address}"), e)),
    };
    if let Some(address) = address {
        return Ok(hold(address, port)?.into_iter().collect());
    }
    let four = hold(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)?;
    let port = four.as_ref().map_or(port, |held| held.port);
    let six = hold(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)?;
    Ok(four.into_iter().chain(six).collect())
}

fn in_use(transport: Transport, address: Option<IpAddr>, port: u16) -> Error {
    let of = address.map(|address| format!(" of {address}")).unwrap_or_default();
    Error::new(Kind::InUse, format!("port {port}/{transport}{of}: somebody has it already"))
}

/// A socket bound to an address, and its port; `early` if the address may come later (ip(7), IP_FREEBIND).
fn bind(transport: Transport, address: SocketAddr, early: bool) -> Result<(OwnedFd, u16), Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match transport {
        Transport::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Transport::Udp => (SockType::Datagram, SockProtocol::Udp),
        // Nothing of the host's listens on it through this kernel's sockets unless it has the module; the rules alone do.
        Transport::Sctp => (SockType::Datagram, SockProtocol::Udp),
    };
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    if address.is_ipv6() {
        socket::setsockopt(&socket, socket::sockopt::Ipv6V6Only, &true)?;
    }
    if early {
        socket::setsockopt(&socket, socket::sockopt::IpFreebind, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    let bound: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
    let port = bound.as_sockaddr_in().map(|a| a.port()).or(bound.as_sockaddr_in6().map(|a| a.port()));
    Ok((socket, port.unwrap_or(address.port())))
}

/// Has a socket listen that [holds](hold_ports) a port.
pub(crate) fn listen_held(socket: BorrowedFd<'_>) -> Result<()> {
    socket::listen(&socket, socket::Backlog::MAXCONN).map_err(|e| failed("listen", e))
}

/// A UDP socket and a TCP socket that listens, at one free port of an address that may come later.
pub(crate) fn name_server(address: Ipv4Addr) -> Result<(OwnedFd, OwnedFd, u16)> {
    let bind_both = || {
        let (udp, port) = bind(Transport::Udp, SocketAddr::new(address.into(), 0), true)?;
        let (tcp, _) = bind(Transport::Tcp, SocketAddr::new(address.into(), port), true)?;
        socket::listen(&tcp, socket::Backlog::MAXCONN)?;
        Ok((udp, tcp, port))
    };
    let mut turns = 16;
    loop {
        turns -= 1;
        match bind_both() {
            Err(Errno::EADDRINUSE) if turns > 0 => {}
            other => return other.map_err(|e| failed(format_args!("listen at {address}"), e)),
        }
    }
}

/// Brings `lo` up in this network namespace: netdevice(7), SIOCSIFFLAGS.
pub(crate) fn loopback_up() -> Result<()> {
    let fail = |e| failed("set the flags of lo", e);
    let socket = socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(fail)?;
    // SAFETY: all-zero is a valid ifreq; the name is shorter than its field and so NUL-terminated, and the struct
    // outlives the call.
    #[expect(unsafe_code, reason = "nix has no netdevice ioctls")]
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    Errno::result(result).map(drop).map_err(fail)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_said_before_an_end_is_heard_though_not_everything_was_listened_to() {
        for receives_now in [true, false] {
            let (ours, theirs) = pair().expect("a pair");
            send(ours.as_fd(), b"nobody reads it", &[]).expect("sent");
            send(theirs.as_fd(), b"why", &[]).expect("sent");
            drop(theirs);
            let heard = || match receives_now {
                true => match receive_now(ours.as_fd()).expect("received") {
                    Received::Message(message) => Some(message),
                    Received::End => None,
                    Received::Later => panic!("nothing more will come"),
                },
                false => receive(ours.as_fd()).expect("received").map(|(message, _)| message),
            };
            assert_eq!(heard().as_deref(), Some(&b"why"[..]), "at once: {receives_now}");
            assert_eq!(heard(), None, "at once: {receives_now}");
        }
    }
}
