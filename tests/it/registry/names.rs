//! Names to addresses, in a network of the test's own: /etc/hosts and the name server of /etc/resolv.conf, both read by
//! tupper itself.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use tupper::error::Result;
use tupper::transport::registry::Found;

use super::fixture::{Image, client, find, options, registry};
use crate::scratch::run;
use crate::support::{need_root, sh};

/// Answers as a name server for one name, with 127.0.0.1; other names do not exist (RFC 1035, 4).
fn name_server(known: &'static str) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).expect("port 53 of a network of one's own");
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        let mut name = String::new();
        let mut at = 12;
        while question[at] != 0 {
            let end = at + 1 + usize::from(question[at]);
            name += &String::from_utf8_lossy(&question[at + 1..end]).to_ascii_lowercase();
            name.push('.');
            at = end;
        }
        let end = at + 5;
        assert!(end <= length, "half a question");
        let (is_known, is_address) = (name == known, question[at + 1..at + 3] == [0, 1]);
        let answers = u8::from(is_known && is_address);
        let code = if is_known { 0x80 } else { 0x83 };
        let mut reply = question[..end].to_vec();
        reply[2..12].copy_from_slice(&[0x81, code, 0, 1, 0, answers, 0, 0, 0, 0]);
        if answers == 1 {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&reply, from).expect("an answer");
    }
}

#[test]
fn names_are_found_in_hosts_and_at_the_name_server() {
    need_root();
    if std::env::var_os("TUPPER_IT_ALONE").is_none() {
        let mut alone = Command::new("unshare");
        alone.args(["--net", "--mount"]).arg(std::env::current_exe().expect("this program"));
        let test = ["--exact", "registry::names::names_are_found_in_hosts_and_at_the_name_server"];
        let output = run(alone.args(test).env("TUPPER_IT_ALONE", "1"));
        assert!(String::from_utf8_lossy(&output).contains("1 passed"));
        return;
    }
    sh("ip", &["link", "set", "lo", "up"]);
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in [
        ("hosts", "127.0.0.1 localhost\n127.0.0.1 in-hosts.test # a comment\n"),
        ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, text).expect("a file");
        sh("mount", &["--bind", file.to_str().expect("a plain path"), &format!("/etc/{name}")]);
    }
    let image = Image::new();
    let server = registry(&image, |_| None);
    let port = server.host().rsplit_once(':').expect("a port").1.to_string();
    let found = |name: &str| -> Result<Found> { find(&client(options()), &format!("{name}:{port}/a/image:1")) };
    // Nobody is asked for these.
    for name in ["localhost", "in-hosts.test"] {
        found(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let error = found("registry.test").err().expect("no name server yet").to_string();
    assert!(error.contains("find its address"), "{error}");
    std::thread::spawn(|| name_server("registry.test."));
    found("registry.test").unwrap_or_else(|e| panic!("{e}"));
    let before = server.asked().len();
    let error = found("nowhere.test").err().expect("no such name").to_string();
    assert!(error.contains("nowhere.test") && error.ends_with("find its address: there is no such name"), "{error}");
    assert_eq!(server.asked().len(), before);
    sh("umount", &["/etc/resolv.conf"]);
    sh("umount", &["/etc/hosts"]);
}
