//! Names: who answers for whom, and what /etc/hosts and /etc/resolv.conf say.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};

use super::host::*;
use crate::support::eventually;

/// A name server that says of what is below example.org that it is 203.0.113.7, and knows nothing else; where a name has `long` in it,
/// over UDP that the answer is too long for it.
fn name_server(namespace: &PathBuf) {
    let (udp, tcp) = inside(namespace, || {
        (UdpSocket::bind("0.0.0.0:53").expect("port 53"), TcpListener::bind("0.0.0.0:53").expect("port 53"))
    });
    let answer = |question: &[u8], whole: bool| {
        let question = Message::from_vec(question).expect("a question");
        let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.truncation = !whole;
        // Without it glibc takes an answer with nothing in it for that of a broken server.
        reply.metadata.recursion_available = true;
        reply.add_queries(question.queries.clone());
        let name = question.queries[0].name().clone();
        if !name.to_ascii().ends_with("example.org.") {
            reply.metadata.response_code = ResponseCode::NXDomain;
        } else if whole {
            reply.add_answer(Record::from_rdata(name, 60, RData::A(A([203, 0, 113, 7].into()))));
        }
        reply.to_vec().expect("it encodes")
    };
    // They end with the test's process.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let long = buffer[..length].windows(4).any(|part| part == b"long");
            let _ = udp.send_to(&answer(&buffer[..length], !long), from);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).expect("a question");
            let reply = answer(&question, true);
            let length = u16::try_from(reply.len()).expect("short").to_be_bytes();
            let _ = stream.write_all(&[&length, reply.as_slice()].concat());
        }
    });
}

#[test]
fn containers_know_each_other_and_the_rest() {
    let net = Net::new();
    name_server(&net.outside.path());
    net.idle("web", "--network-alias www --hostname box");
    let id = net.json("inspect web")[0]["Id"].as_str().expect("an id")[..12].to_string();
    net.ok(&format!("run -d --name asker --dns {OUTSIDE} --dns-search test.example busybox sleep 100000"));
    let look = |name: &str| net.run(&format!("exec asker nslookup -type=a {name}."));
    let address = net.address("web");
    for name in ["web", "WEB", "www", "box", id.as_str()] {
        let said = look(name);
        assert!(said.stdout.contains(&format!("Address: {address}")), "{name}: {said}");
    }
    let back = net.run(&format!("exec asker nslookup {address}"));
    assert!(back.stdout.contains("name = web"), "{back}");
    // Others are asked of whom the container names; a long answer comes over TCP.
    assert!(look("example.org").stdout.contains("203.0.113.7"), "{}", look("example.org"));
    net.store.import_debian();
    let said = net.ok(&format!("run --rm --dns {OUTSIDE} debian getent ahostsv4 long.example.org"));
    assert!(said.starts_with("203.0.113.7"), "{said}");
    // One that has gone is nobody's name any more, and a new one is known at once.
    net.ok("rm -f web");
    assert!(!look("web").stdout.contains(&address));
    net.idle("web", "");
    assert!(look("web").stdout.contains(&net.address("web")));
    // In another network nobody knows it.
    net.ok("network create other");
    let said = net.run("run --rm --network other busybox nslookup -type=a web");
    assert!(!said.stdout.contains(&net.address("web")), "{said}");
}

#[test]
fn the_resolver_is_nobody_and_ends_with_the_last() {
    let net = Net::alone();
    net.idle("a", "");
    net.idle("b", "");
    let link = net.json("network inspect bridge")[0]["network_interface"].as_str().expect("a bridge").to_string();
    let resolvers = || -> Vec<u32> {
        let line = format!("^tupper resolver {link}$");
        let out = std::process::Command::new("pgrep").args(["-f", &line]).output().expect("pgrep");
        String::from_utf8_lossy(&out.stdout).lines().map(|pid| pid.parse().expect("a pid")).collect()
    };
    let found = resolvers();
    assert_eq!(found.len(), 1, "one for the network");
    let status = std::fs::read_to_string(format!("/proc/{}/status", found[0])).expect("it runs");
    for line in
        ["Uid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]
    {
        assert!(status.contains(line), "{line}: {status}");
    }
    net.ok("rm -f a");
    assert_eq!(resolvers(), found);
    net.ok("rm -f b");
    assert_eq!(resolvers(), [0; 0]);
    // Killed, it is there again with the next that joins.
    net.idle("a", "");
    crate::support::sh("kill", &["-KILL", &resolvers()[0].to_string()]);
    eventually("it has ended", PATIENCE, || resolvers().is_empty());
    net.idle("b", "");
    assert!(net.ok("exec a nslookup -type=a b").contains(&net.address("b")));
    // Even if all who ran containers are killed, it ends.
    for name in ["a", "b"] {
        nix::sys::signal::kill(net.monitor(name), nix::sys::signal::Signal::SIGKILL).expect("a monitor");
    }
    eventually("the resolver has ended", PATIENCE, || resolvers().is_empty());
}

#[test]
fn files_say_what_a_person_wants() {
    let net = Net::new();
    let cat = |flags: &str, file: &str| net.ok(&format!("run --rm {flags} busybox cat {file}"));
    let hosts = cat("--name web --hostname box --add-host db:192.0.2.5 --add-host up:host-gateway", "/etc/hosts");
    for line in ["192.0.2.5\tdb", "10.64.0.1\tup", "10.64.0.2\tbox web", "10.64.0.1\thost.containers.internal"] {
        assert!(hosts.contains(line), "{line}: {hosts}");
    }
    let text =
        cat("--dns 192.0.2.9 --dns-search a.example --dns-search b.example --dns-option ndots:3", "/etc/resolv.conf");
    assert_eq!(text, "search a.example b.example\nnameserver 10.64.0.1\noptions ndots:3");
    assert_eq!(
        cat("--network host --dns 192.0.2.9 --dns-search . --dns-opt edns0", "/etc/resolv.conf"),
        "nameserver 192.0.2.9\noptions edns0"
    );
    net.ok("network create --disable-dns plain");
    assert_eq!(
        cat("--network plain --dns 192.0.2.9 --dns-search x.example --dns-option a", "/etc/resolv.conf"),
        "search x.example\nnameserver 192.0.2.9\noptions a"
    );
    for wrong in [
        "--dns x",
        "--add-host a",
        "--add-host a:b",
        "--ip x",
        "--mac-address 01:00:00:00:00:00",
        "--network-alias a/b",
    ] {
        assert_eq!(net.run(&format!("run --rm {wrong} busybox true")).status, 125, "{wrong}");
    }
    let error = net.fails(125, "run --rm --network none --add-host a:host-gateway busybox true");
    assert!(error.contains("there is no way to the host"), "{error}");
}
