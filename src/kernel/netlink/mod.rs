//! netlink(7): requests that the kernel acknowledges, and the two families that make a network: [`route`] for links,
//! addresses and routes, [`nftables`] for rules.
//!
//! A socket belongs to the network namespace that it was made in, whoever uses it later.

pub(crate) mod nftables;
pub(crate) mod route;

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

use super::{failed, process};
use crate::error::{Error, Kind, Result};

// include/uapi/linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The length of a message's header: struct nlmsghdr.
const HEADER: usize = 16;

/// Enough for a message of a dump: NLMSG_GOODSIZE, include/linux/netlink.h, and what the kernel makes of a reader that
/// offers more.
const BUFFER: usize = 32 << 10;

#[derive(Debug)]
struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// In this process's network namespace.
    fn open(protocol: SockProtocol) -> Result<Socket> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
            .map_err(|e| failed("open a netlink socket", e))?;
        Ok(Socket { socket, sequence: 0 })
    }

    /// In another.
    fn open_inside(protocol: SockProtocol, namespace: BorrowedFd<'_>) -> Result<Socket> {
        process::inside_network(namespace, || Socket::open(protocol))
    }

    /// The number of the next message.
    fn number(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    fn send(&self, messages: &[u8]) -> Result<()> {
        match socket::send(self.socket.as_raw_fd(), messages, MsgFlags::empty()) {
            Ok(length) if length == messages.len() => Ok(()),
            Ok(_) => Err(failed("send to the kernel", Errno::EMSGSIZE)),
            Err(e) => Err(failed("send to the kernel", e)),
        }
    }

    /// Hands each message of the answer on to `take`, until the one with this number is acknowledged or a dump has ended.
    fn receive(&self, until: u32, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(failed("receive from the kernel", e)),
                Ok(length) => length,
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((message, after)) = first(rest) {
                rest = after;
                match message.kind {
                    NLMSG_ERROR => match errno(message.payload) {
                        0 if message.sequence == until => return Ok(()),
                        0 => {}
                        code => return Err(refused(Errno::from_raw(-code))),
                    },
                    NLMSG_DONE => return Ok(()),
                    _ => take(message.whole),
                }
            }
        }
    }
}

fn refused(errno: Errno) -> Error {
    let error = failed("netlink", errno);
    // Of a link.
    if errno == Errno::ENODEV { error.with_kind(Kind::NotFound) } else { error }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    whole: &'a [u8],
    payload: &'a [u8],
}

/// The first message of several, and what comes after it.
fn first(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let number = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let length = usize::try_from(number(0)?).ok()?;
    let kind = bytes.get(4..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))?;
    let (whole, payload) = (bytes.get(..length)?, bytes.get(HEADER..length)?);
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind, sequence: number(8)?, whole, payload }, after))
}

/// The code of an acknowledgement: 0, or a negative errno.
fn errno(payload: &[u8]) -> i32 {
    payload.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code))
}
