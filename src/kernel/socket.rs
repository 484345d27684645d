//! Sockets: a connected pair for messages with a descriptor in them, one that listens in a directory, and the loopback
//! interface.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
};

use super::failed;
use super::tty::Transfer;
use crate::error::Result;

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
    match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(0) | Err(Errno::ECONNRESET) => Ok(Received::End),
        Ok(length) => {
            buffer.truncate(length);
            Ok(Received::Message(buffer))
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Received::Later),
        Err(e) => Err(failed("receive a message", e)),
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
