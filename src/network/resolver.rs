//! The resolver of a network: a small process that answers for the names of its members, and asks the host's servers for all
//! others. It comes with the first member and ends with the last.
//!
//! It is this program run again, as nobody, with no capability, two sockets, and two files to lock: what it reads comes from
//! containers. One for a network, and not one for each container or the host: whoever asks there may know these names and no
//! others, and its end is that of the network. Messages are hickory-proto's; there is no cache, since the host's servers have one.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use serde::{Deserialize, Serialize};

use super::files::parse;
use super::used::{self, LINGER, Member};
use crate::error::{Error, Kind, Result};
use crate::kernel::capability::{self, CapabilitySet};
use crate::kernel::flock;
use crate::kernel::{fs, process};

/// The word by which this program knows that it is to be a resolver.
pub const VERB: &str = "resolver";

/// What a resolver has to know.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Known {
    /// Nothing goes out of the network, questions neither.
    pub internal: bool,
    pub members: Vec<Member>,
}

/// Who the resolver is: the overflow user, whom the kernel takes for nobody (Documentation/admin-guide/sysctl/fs.rst).
const NOBODY: u32 = 65534;

/// How many questions of UDP, and connections of TCP, are dealt with at the same time; what comes on top is refused.
const MOST: usize = 256;

/// How long a server has for its answer, each time that it is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the servers are asked before nobody knows: as glibc does, resolv.conf(5), "attempts".
const ATTEMPTS: usize = 2;

/// How long somebody who has connected may say nothing: RFC 7766, section 6.2.3, "on the order of a few seconds".
const IDLE: Duration = Duration::from_secs(10);

/// The largest message over UDP that is read: RFC 6891, section 6.2.5, names 4096.
const LARGEST: usize = 4096;

/// Runs the resolver of the network with this link. Returns its process.
pub(super) fn spawn(link: &str, given: [BorrowedFd<'_>; 4]) -> Result<i32> {
    let word = |text: &str| fs::c_string(text.as_ref());
    process::respawn_orphan(&[word("tupper")?, word(VERB)?, word(link)?], &given)
}

/// What a process does that `spawn` has made: returns when nobody is in the network any more.
pub fn run(link: &str) -> Result<()> {
    let [udp, tcp, lock, alive] = process::given()?;
    become_nobody()?;
    let resolver = Arc::new(Resolver { path: used::known(link), known: Mutex::default(), busy: AtomicUsize::new(0) });
    let (of_udp, of_tcp) = (Arc::clone(&resolver), resolver);
    let tcp = TcpListener::from(tcp);
    std::thread::spawn(move || of_tcp.serve_tcp(&tcp));
    let udp = Arc::new(UdpSocket::from(udp));
    std::thread::spawn(move || of_udp.serve_udp(&udp));
    await_end(&File::from(alive))?;
    // Whoever joins now waits until this process has ended, lock and all.
    drop(lock);
    Ok(())
}

/// For a process that deals with strangers: from here on it can do nothing to this host, and says nothing.
pub(super) fn become_nobody() -> Result<()> {
    process::set_name(c"tupper");
    process::silence()?;
    let forbidden = |e: Error| e.wrap("become nobody");
    capability::limit_bounding_set(CapabilitySet(0)).map_err(forbidden)?;
    capability::set_identity(NOBODY, NOBODY, &[]).map_err(forbidden)?;
    capability::set_no_new_privileges().map_err(forbidden)
}

/// Waits until nobody runs a member, and nobody has come for a while.
fn await_end(alive: &File) -> Result<()> {
    loop {
        flock::await_free(alive.as_fd())?;
        std::thread::sleep(used::stays(alive, LINGER));
        match flock::try_lock(alive.as_fd()) {
            Err(e) if e.kind() == Kind::InUse => {}
            Ok(()) if !used::stays(alive, LINGER).is_zero() => flock::unlock(alive.as_fd())?,
            other => return other,
        }
    }
}

struct Resolver {
    path: PathBuf,
    known: Mutex<(Option<SystemTime>, Arc<Known>)>,
    /// Questions that somebody is asked about.
    busy: AtomicUsize,
}

/// What becomes of a question.
#[derive(Debug, PartialEq)]
enum Answer {
    /// It is answered.
    Known(Vec<u8>),
    /// Others are asked: these, or the host's servers.
    Ask(Vec<IpAddr>),
    /// It is no question.
    Nothing,
}

impl Resolver {
    /// Who is there now.
    fn known(&self) -> Arc<Known> {
        let Ok(mut known) = self.known.lock() else { return Arc::default() };
        let changed = std::fs::metadata(&self.path).and_then(|found| found.modified()).ok();
        if changed.is_none() || changed != known.0 {
            let read = std::fs::read(&self.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            *known = (changed, Arc::new(read.unwrap_or_default()));
        }
        Arc::clone(&known.1)
    }

    /// One more that others are asked about, unless there are too many; the number goes back when what is returned goes.
    fn admit(self: &Arc<Self>) -> Option<Busy> {
        let busy = Busy(Arc::clone(self));
        (self.busy.fetch_add(1, Ordering::Relaxed) < MOST).then_some(busy)
    }

    fn serve_udp(self: Arc<Self>, socket: &Arc<UdpSocket>) {
        let mut buffer = [0; LARGEST];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let question = buffer.get(..length).unwrap_or_default();
            match answer(&self.known(), from.ip(), question) {
                Answer::Known(bytes) => drop(socket.send_to(&bytes, from)),
                Answer::Nothing => {}
                Answer::Ask(servers) => {
                    let Some(busy) = self.admit() else {
                        let _ = socket.send_to(&refuse(question), from);
                        continue;
                    };
                    let (socket, question) = (Arc::clone(socket), question.to_vec());
                    let asked = std::thread::Builder::new().stack_size(STACK).spawn(move || {
                        let found = ask(&servers, |server| ask_udp(server, &question));
                        let _ = socket.send_to(&found.unwrap_or_else(|| refuse(&question)), from);
                        drop(busy);
                    });
                    drop(asked); // for want of memory it is asked again
                }
            }
        }
    }

    fn serve_tcp(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let Ok((stream, from)) = listener.accept() else { continue };
            let Some(busy) = self.admit() else { continue };
            let resolver = Arc::clone(&self);
            let served = std::thread::Builder::new().stack_size(STACK).spawn(move || {
                let _ = resolver.serve(stream, from.ip());
                drop(busy);
            });
            drop(served);
        }
    }

    fn serve(&self, mut stream: TcpStream, from: IpAddr) -> std::io::Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(IDLE))?;
        loop {
            let question = receive(&mut stream)?;
            let reply = match answer(&self.known(), from, &question) {
                Answer::Known(bytes) => bytes,
                Answer::Nothing => return Ok(()),
                Answer::Ask(servers) => {
                    ask(&servers, |server| ask_tcp(server, &question)).unwrap_or_else(|| refuse(&question))
                }
            };
            send(&mut stream, &reply)?;
        }
    }
}

/// What a thread needs that asks and answers.
const STACK: usize = 64 << 10;

struct Busy(Arc<Resolver>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first answer of somebody, who are the host's servers if it is nobody in particular.
fn ask(servers: &[IpAddr], mut one: impl FnMut(SocketAddr) -> std::io::Result<Vec<u8>>) -> Option<Vec<u8>> {
    let of_host = || parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()).servers;
    let servers = if servers.is_empty() { of_host() } else { servers.to_vec() };
    let rounds = std::iter::repeat_n(servers, ATTEMPTS).flatten();
    rounds.map(|server| SocketAddr::new(server, 53)).find_map(|server| one(server).ok())
}

fn ask_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let anywhere: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port that nobody can guess, and only that server is heard: RFC 5452, sections 4.5 and 9.1.
    let socket = UdpSocket::bind((anywhere, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer)?;
        // The number of the question is that of the answer: RFC 1035, section 4.1.1.
        if length >= 12 && buffer.get(..2) == question.get(..2) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

fn ask_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    send(&mut stream, question)?;
    receive(&mut stream)
}

/// RFC 1035, section 4.2.2: the length before each message.
fn receive(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn send(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

/// What is to be said to a question of `from`.
fn answer(known: &Known, from: IpAddr, question: &[u8]) -> Answer {
    // What is no question gets no answer: two servers could go on for ever.
    let Ok(message) = Message::from_vec(question) else { return Answer::Nothing };
    if message.metadata.message_type != MessageType::Query {
        return Answer::Nothing;
    }
    let reply = |code, answers: Vec<Record>| {
        let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
        reply.metadata.recursion_desired = message.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = !answers.is_empty();
        reply.metadata.response_code = code;
        reply.add_queries(message.queries.clone());
        reply.add_answers(answers);
        reply.to_vec().map_or(Answer::Nothing, Answer::Known)
    };
    let [query] = message.queries.as_slice() else { return reply(ResponseCode::FormErr, Vec::new()) };
    if message.metadata.op_code != OpCode::Query {
        return reply(ResponseCode::NotImp, Vec::new());
    }
    match records(known, query) {
        Some(records) => reply(ResponseCode::NoError, records),
        None if known.internal => reply(ResponseCode::NXDomain, Vec::new()),
        None => {
            let of_member = known.members.iter().find(|member| member.addresses.contains(&from));
            Answer::Ask(of_member.map(|member| member.servers.clone()).unwrap_or_default())
        }
    }
}

/// The records of a name of the network; none of that type is no error.
fn records(known: &Known, query: &Query) -> Option<Vec<Record>> {
    if query.query_class() != DNSClass::IN {
        return None;
    }
    let record = |data| Record::from_rdata(query.name().clone(), 0, data);
    let text = query.name().to_ascii().to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    if let Ok(net) = query.name().parse_arpa_name()
        && let Some(member) = known.members.iter().find(|member| member.addresses.contains(&net.addr()))
        && net.prefix_len() == net.max_prefix_len()
    {
        let name = member.names.first().and_then(|name| Name::from_ascii(name).ok());
        let asked = query.query_type() == RecordType::PTR;
        return Some(name.filter(|_| asked).map(|name| record(RData::PTR(PTR(name)))).into_iter().collect());
    }
    let meant = |member: &&Member| member.names.iter().any(|name| name.eq_ignore_ascii_case(text));
    let addresses: Vec<IpAddr> = known.members.iter().filter(meant).flat_map(|m| m.addresses.clone()).collect();
    if addresses.is_empty() {
        return None;
    }
    let data = addresses.into_iter().filter_map(|address| match (address, query.query_type()) {
        (IpAddr::V4(address), RecordType::A | RecordType::ANY) => Some(RData::A(A(address))),
        (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(address))),
        _ => None,
    });
    Some(data.map(record).collect())
}

/// That nobody knows.
fn refuse(question: &[u8]) -> Vec<u8> {
    let Ok(message) = Message::from_vec(question) else { return Vec::new() };
    let mut reply = Message::error_msg(message.metadata.id, message.metadata.op_code, ResponseCode::ServFail);
    reply.add_queries(message.queries);
    reply.to_vec().unwrap_or_default()
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
