//! /etc/hosts and /etc/resolv.conf of a container.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::spec::{Dns, HostEntry};
use super::used::gateway;
use super::{Member, Network};
use crate::error::{Error, Kind, Result};

/// The two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// /etc/hosts: hosts(5).
    pub hosts: String,
    /// /etc/resolv.conf: resolv.conf(5).
    pub resolv_conf: String,
}

/// What a container is called, and what a person wants its files to say.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// Its host name.
    pub hostname: &'a str,
    /// Who it is in its network, if it is in one.
    pub place: Option<(&'a Network, &'a Member)>,
    /// It has the host's network.
    pub of_host: bool,
    /// Who is asked for names.
    pub dns: &'a Dns,
    /// More lines of /etc/hosts.
    pub entries: &'a [HostEntry],
}

/// What a container sees of its names, given the host's own files.
///
/// # Errors
/// [`Kind::Invalid`] for the host's address where it has none.
pub fn files(who: &Who<'_>, host_hosts: &str, host_resolv_conf: &str) -> Result<Files> {
    Ok(Files { hosts: hosts(who, host_hosts)?, resolv_conf: resolv_conf(who, host_resolv_conf) })
}

/// The names of the host that podman's and docker's containers know.
const HOST_NAMES: &str = "host.containers.internal host.docker.internal";

fn hosts(who: &Who<'_>, host_hosts: &str) -> Result<String> {
    let host = match who.place {
        Some((network, _)) => network.subnets.first().map(|subnet| subnet.gateway),
        None => who.of_host.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    let mut text = String::new();
    // The first line that has a name is the one that counts.
    for HostEntry { name, address } in who.entries {
        let Some(address) = address.or(host) else {
            let error = Error::new(Kind::Invalid, format!("--add-host {name}: there is no way to the host"));
            return Err(error.with_hint("--network bridge has one"));
        };
        let _ = writeln!(text, "{address}\t{name}");
    }
    if who.of_host {
        return Ok(text + host_hosts);
    }
    text += "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    match who.place {
        Some((_, member)) => {
            let more = member.names.iter().find(|name| *name != who.hostname);
            let more = more.map(|name| format!(" {name}")).unwrap_or_default();
            for address in &member.addresses {
                let _ = writeln!(text, "{address}\t{}{more}", who.hostname);
            }
        }
        None => {
            let _ = writeln!(text, "127.0.1.1\t{}", who.hostname);
        }
    }
    if let Some(host) = host {
        let _ = writeln!(text, "{host}\t{HOST_NAMES}");
    }
    Ok(text)
}

fn resolv_conf(who: &Who<'_>, of_host: &str) -> String {
    let Dns { servers, search, options } = who.dns;
    let answers = who.place.filter(|(network, _)| !network.no_dns).and_then(|(network, _)| gateway(network));
    if answers.is_none() && who.place.is_none() && who.dns == &Dns::default() {
        return of_host.to_string();
    }
    let host = parse(of_host);
    let of_person = |own: &[String], host: Vec<String>| if own.is_empty() { host } else { own.to_vec() };
    let servers = match (answers, servers.is_empty()) {
        (Some(gateway), _) => vec![IpAddr::V4(gateway)],
        (None, false) => servers.clone(),
        // One that answers on the host's loopback is not there inside.
        (None, true) => host.servers.into_iter().filter(|s| who.of_host || !s.is_loopback()).collect(),
    };
    let mut text = String::new();
    let search = of_person(search, host.search);
    // podman-run(1), --dns-search: a dot is none.
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let options = of_person(options, host.options);
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

/// What a resolv.conf(5) says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resolving {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

pub(super) fn parse(text: &str) -> Resolving {
    let mut found = Resolving::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            // An address with a zone is none that another could use.
            Some("nameserver") => found.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
            Some("search" | "domain") => found.search = words.map(str::to_string).collect(),
            Some("options") => found.options.extend(words.map(str::to_string)),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
