//! Names to addresses without libc: /etc/hosts and /etc/resolv.conf, read here.
//!
//! A static binary must not call getaddrinfo(3): it would load the shared libraries of the very glibc it was linked
//! with. hickory-resolver knows both files; reqwest's own switch for it asks Google's servers where resolv.conf(5) is
//! missing or unreadable, which is not ours to do.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::error::{Context, Error, Kind, Result};

/// The resolver of one session. It is made at the first name, inside that session's runtime.
#[derive(Default)]
pub(super) struct Resolver(Arc<OnceLock<TokioResolver>>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let made = Arc::clone(&self.0);
        Box::pin(async move {
            let resolver = match made.get() {
                Some(resolver) => resolver,
                None => {
                    let new = resolver()?;
                    made.get_or_init(|| new)
                }
            };
            let found = resolver.lookup_ip(name.as_str()).await.map_err(explained)?;
            let found: Vec<SocketAddr> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// In words, where hickory shows its query.
fn explained(error: NetError) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        error if error.is_nx_domain() => Error::new(Kind::NotFound, "there is no such name").into(),
        error if error.is_no_records_found() => Error::new(Kind::NotFound, "the name has no address").into(),
        error => error.into(),
    }
}

fn resolver() -> Result<TokioResolver> {
    let fail = |e: &dyn std::fmt::Display| Error::from(std::io::Error::other(e.to_string()));
    let mut builder = match std::fs::metadata(Path::new("/etc/resolv.conf")) {
        // resolv.conf(5): without the file, the name server on this machine is asked.
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![local]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        _ => TokioResolver::builder_tokio().map_err(|e| fail(&e)).context(|| "read /etc/resolv.conf")?,
    };
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    builder.build().map_err(|e| fail(&e)).context(|| "set up the resolver")
}
