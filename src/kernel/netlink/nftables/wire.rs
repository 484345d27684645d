//! A [`Table`] as the messages of one transaction, and the questions to nf_tables.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::sys::socket::SockProtocol;

use super::super::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, Socket};
use super::{Hook, Match, Rule, Table, Verdict};
use crate::error::{Kind, Result};

/// A socket for the tables of one network namespace.
#[derive(Debug)]
pub(crate) struct Nftables(Socket);

impl Nftables {
    /// Of this process's network namespace.
    pub(crate) fn open() -> Result<Nftables> {
        Socket::open(SockProtocol::NetlinkNetFilter).map(Nftables)
    }

    /// Makes the table what it is to be, whatever it was: all of it, or nothing.
    pub(crate) fn replace(&mut self, table: &Table) -> Result<()> {
        // What was deleted is waited for when the socket is closed, for a grace period of RCU (nft_rcv_nl_event).
        let is_there = self.exists(&table.name)?;
        let mut batch = Batch::begin(&mut self.0);
        if is_there {
            batch.table(DELETE_TABLE, &table.name);
        }
        batch.table(NEW_TABLE, &table.name);
        for chain in &table.chains {
            batch.chain(&table.name, chain.hook);
            chain.rules.iter().for_each(|rule| batch.rule(&table.name, chain.hook, rule));
        }
        batch.commit()
    }

    /// Whether there is such a table.
    pub(crate) fn exists(&mut self, name: &str) -> Result<bool> {
        let (mut bytes, number) = (Vec::new(), self.0.number());
        put_message(&mut bytes, GET_TABLE, NLM_F_ACK, number, (NFPROTO_INET, 0), |a| a.text(1, name));
        self.0.send(&bytes)?;
        match self.0.receive(number, |_| {}) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Every chain that there is.
    pub(crate) fn chains(&mut self) -> Result<Vec<OfOthers>> {
        let mut found = Vec::new();
        self.dump(GET_CHAIN, |message| found.extend(chain_of(message)))?;
        Ok(found)
    }

    /// Every rule in which the link's name is.
    pub(crate) fn mentions(&mut self, link: &str) -> Result<Vec<Mention>> {
        let mut found = Vec::new();
        self.dump(GET_RULE, |message| {
            if message.windows(link.len()).any(|part| part == link.as_bytes()) {
                found.extend(place_of(message));
            }
        })?;
        Ok(found)
    }

    fn dump(&mut self, kind: u16, take: impl FnMut(&[u8])) -> Result<()> {
        let (mut bytes, number) = (Vec::new(), self.0.number());
        put_message(&mut bytes, kind, NLM_F_DUMP, number, (NFPROTO_UNSPEC, 0), |_| {});
        self.0.send(&bytes)?;
        self.0.receive(number, take)
    }

    /// Deletes the table; whether there was one.
    pub(crate) fn delete(&mut self, name: &str) -> Result<bool> {
        let mut batch = Batch::begin(&mut self.0);
        batch.table(DELETE_TABLE, name);
        match batch.commit() {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// A chain of whoever's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfOthers {
    pub(crate) family: &'static str,
    pub(crate) table: String,
    pub(crate) chain: String,
    /// Packets pass it on this way, and it drops what it does not know.
    pub(crate) drops: Option<Way>,
}

/// A way of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To this host.
    In,
    /// Through it, to another.
    Through,
}

/// A rule of whoever's that was looked for: where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mention {
    pub(crate) family: &'static str,
    pub(crate) table: String,
    pub(crate) chain: String,
}

/// What a chain's message tells.
fn chain_of(message: &[u8]) -> Option<OfOthers> {
    let attributes: Vec<(u16, &[u8])> = attributes(message.get(20..)?).collect();
    let find = |kind| attributes.iter().find(|(k, _)| *k == kind).map(|(_, value)| *value);
    let number = |value: &[u8]| value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let hook =
        self::attributes(find(4).unwrap_or_default()).find(|(kind, _)| *kind == 1).and_then(|(_, value)| number(value));
    let way = match hook {
        Some(NF_INET_LOCAL_IN) => Some(Way::In),
        Some(NF_INET_FORWARD) => Some(Way::Through),
        _ => None,
    };
    let drops = way.filter(|_| find(5).and_then(number) == Some(NF_DROP));
    Some(OfOthers { family: family(message)?, table: text(find(1)?), chain: text(find(3)?), drops })
}

/// Where a rule's message tells that it is.
fn place_of(message: &[u8]) -> Option<Mention> {
    let find = |kind| attributes(message.get(20..)?).find(|(k, _)| *k == kind).map(|(_, value)| text(value));
    Some(Mention { family: family(message)?, table: find(1)?, chain: find(2)? })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

fn family(message: &[u8]) -> Option<&'static str> {
    match *message.get(16)? {
        NFPROTO_INET => Some("inet"),
        NFPROTO_IPV4 => Some("ip"),
        NFPROTO_IPV6 => Some("ip6"),
        _ => None,
    }
}

/// The attributes of a message, by their kinds.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let number = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        let (length, kind) = (usize::from(number(0)?), number(2)? & !NESTED);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

// include/uapi/linux/netfilter.h
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
// include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NESTED: u16 = 0x8000;
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const DNAT: u32 = 1;

/// The messages of one transaction.
struct Batch<'a> {
    socket: &'a mut Socket,
    bytes: Vec<u8>,
    /// Where the last message of substance begins, and its number.
    last: (usize, u32),
}

impl Batch<'_> {
    fn begin(socket: &mut Socket) -> Batch<'_> {
        let mut batch = Batch { socket, bytes: Vec::with_capacity(4096), last: (0, 0) };
        batch.message(BATCH_BEGIN, 0, (NFPROTO_UNSPEC, 10), |_| {});
        batch
    }

    /// Done when this returns: the acknowledgement comes after the commit.
    fn commit(mut self) -> Result<()> {
        let (start, number) = self.last;
        if let Some(flags) = self.bytes.get_mut(start + 6..start + 8) {
            flags.copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags_of(flags)).to_ne_bytes());
        }
        self.message(BATCH_END, 0, (NFPROTO_UNSPEC, 10), |_| {});
        self.socket.send(&self.bytes)?;
        self.socket.receive(number, |_| {})
    }

    fn message(&mut self, kind: u16, flags: u16, family: (u8, u16), fill: impl FnOnce(&mut Attributes)) {
        let (start, number) = (self.bytes.len(), self.socket.number());
        put_message(&mut self.bytes, kind, flags, number, family, fill);
        if kind & SUBSYSTEM != 0 {
            self.last = (start, number);
        }
    }

    fn table(&mut self, kind: u16, name: &str) {
        let flags = if kind == NEW_TABLE { NLM_F_CREATE } else { 0 };
        self.message(kind, flags, (NFPROTO_INET, 0), |a| a.text(1, name));
    }

    fn chain(&mut self, table: &str, hook: Hook) {
        let (kind, number, priority) = hook.place();
        self.message(NEW_CHAIN, NLM_F_CREATE, (NFPROTO_INET, 0), |a| {
            a.text(1, table);
            a.text(3, hook.name());
            a.nested(4, |a| {
                a.number(1, number);
                a.bytes(2, &priority.to_be_bytes());
            });
            a.text(7, kind);
        });
    }

    fn rule(&mut self, table: &str, hook: Hook, rule: &Rule) {
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, (NFPROTO_INET, 0), |a| {
            a.text(1, table);
            a.text(2, hook.name());
            a.nested(4, |a| {
                rule.matches.iter().for_each(|m| m.put(a));
                rule.verdict.put(a);
            });
        });
    }
}

/// Appends a message: struct nlmsghdr, struct nfgenmsg, attributes.
fn put_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    number: u32,
    (family, resource): (u8, u16),
    fill: impl FnOnce(&mut Attributes),
) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    let mut attributes = Attributes(std::mem::take(bytes));
    fill(&mut attributes);
    *bytes = attributes.0;
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = bytes.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

fn flags_of(field: &[u8]) -> u16 {
    field.first_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

/// What messages are made of: nlattr, numbers in network byte order.
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut inner = Attributes(Vec::new());
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    /// An expression of a rule.
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes)) {
        self.nested(1, |a| {
            a.text(1, name);
            a.nested(2, fill);
        });
    }

    fn meta(&mut self, key: u32) {
        self.expression("meta", |a| {
            a.number(1, REGISTER);
            a.number(2, key);
        });
    }

    fn connection(&mut self, key: u32) {
        self.expression("ct", |a| {
            a.number(1, REGISTER);
            a.number(2, key);
        });
    }

    fn payload(&mut self, header: u32, offset: u32, length: u32) {
        self.expression("payload", |a| {
            [REGISTER, header, offset, length].into_iter().zip(1..).for_each(|(value, kind)| a.number(kind, value));
        });
    }

    fn compare(&mut self, operation: u32, value: &[u8]) {
        self.expression("cmp", |a| {
            a.number(1, REGISTER);
            a.number(2, operation);
            a.nested(3, |a| a.bytes(1, value));
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |a| {
            a.number(1, REGISTER);
            a.number(2, REGISTER);
            a.number(3, u32::try_from(mask.len()).unwrap_or(0));
            a.nested(4, |a| a.bytes(1, mask));
            a.nested(5, |a| a.bytes(1, &vec![0; mask.len()]));
        });
    }

    fn load(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |a| {
            a.number(1, register);
            a.nested(2, |a| a.bytes(1, value));
        });
    }

    fn verdict(&mut self, code: u32) {
        self.expression("immediate", |a| {
            a.number(1, 0);
            a.nested(2, |a| a.nested(2, |a| a.number(1, code)));
        });
    }

    fn link(&mut self, key: u32, operation: u32, name: &str) {
        let mut padded = [0; libc::IFNAMSIZ];
        padded.iter_mut().zip(name.bytes()).for_each(|(slot, byte)| *slot = byte);
        self.meta(key);
        self.compare(operation, &padded);
    }

    fn address(&mut self, destination: bool, operation: u32, net: IpNet) {
        // RFC 791 and RFC 8200, header formats
        let (protocol, source, length) = match net {
            IpNet::V4(_) => (NFPROTO_IPV4, 12, 4),
            IpNet::V6(_) => (NFPROTO_IPV6, 8, 16),
        };
        self.meta(META_NFPROTO);
        self.compare(EQUAL, &[protocol]);
        self.payload(NETWORK_HEADER, if destination { source + length } else { source }, length);
        if net.prefix_len() < net.max_prefix_len() {
            self.mask(&octets(net.netmask()));
        }
        self.compare(operation, &octets(net.network()));
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl Match {
    fn put(&self, a: &mut Attributes) {
        match self {
            Match::From(name) => a.link(META_IIFNAME, EQUAL, name),
            Match::NotFrom(name) => a.link(META_IIFNAME, NOT_EQUAL, name),
            Match::To(name) => a.link(META_OIFNAME, EQUAL, name),
            Match::NotTo(name) => a.link(META_OIFNAME, NOT_EQUAL, name),
            Match::Source(net) => a.address(false, EQUAL, *net),
            Match::Destination(net) => a.address(true, EQUAL, *net),
            Match::NotDestination(net) => a.address(true, NOT_EQUAL, *net),
            Match::Six(six) => {
                a.meta(META_NFPROTO);
                a.compare(EQUAL, &[if *six { NFPROTO_IPV6 } else { NFPROTO_IPV4 }]);
            }
            Match::ForHost => {
                // The result is the address's type (NFT_FIB_RESULT_ADDRTYPE), of the destination (NFTA_FIB_F_DADDR).
                a.expression("fib", |a| {
                    [REGISTER, 3, 1 << 1].into_iter().zip(1..).for_each(|(value, kind)| a.number(kind, value));
                });
                a.compare(EQUAL, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
            }
            // NF_CT_STATE_BIT of IP_CT_ESTABLISHED and IP_CT_RELATED
            Match::Established => a.any_of(CT_STATE, 1 << 1 | 1 << 2),
            // IPS_DST_NAT
            Match::Redirected => a.any_of(CT_STATUS, 1 << 5),
            Match::Port(transport, first, last) => {
                a.meta(META_L4PROTO);
                a.compare(EQUAL, &[transport.number()]);
                a.payload(TRANSPORT_HEADER, 2, 2);
                if first == last {
                    a.compare(EQUAL, &first.to_be_bytes());
                } else {
                    a.compare(AT_LEAST, &first.to_be_bytes());
                    a.compare(AT_MOST, &last.to_be_bytes());
                }
            }
        }
    }
}

impl Attributes {
    fn any_of(&mut self, key: u32, bits: u32) {
        self.connection(key);
        self.mask(&bits.to_ne_bytes());
        self.compare(NOT_EQUAL, &0u32.to_ne_bytes());
    }
}

impl Verdict {
    fn put(&self, a: &mut Attributes) {
        match self {
            Verdict::Accept => a.verdict(1),
            Verdict::Drop => a.verdict(0),
            Verdict::SendTo(address, port) => {
                a.load(REGISTER, &octets(*address));
                if let Some(port) = port {
                    a.load(SECOND_REGISTER, &port.to_be_bytes());
                }
                a.expression("nat", |a| {
                    a.number(1, DNAT);
                    a.number(2, u32::from(if address.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 }));
                    a.number(3, REGISTER);
                    if port.is_some() {
                        a.number(5, SECOND_REGISTER);
                    }
                });
            }
            Verdict::Redirect(port) => {
                a.load(REGISTER, &port.to_be_bytes());
                a.expression("redir", |a| a.number(1, REGISTER));
            }
            Verdict::Masquerade => a.expression("masq", |_| {}),
        }
    }
}
