//! One request at a time on the calling thread: a runtime, and the connections that live in it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{self, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use tokio::runtime::Runtime;

use super::dns::Resolver;
use super::upload::Taken;
use super::{Failure, Http, Request, shown};
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;

/// How often a wait looks at what else could end it.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(15);

/// A runtime with its clients. A client's connections are driven by the runtime that they were made in, and by no other.
pub(super) struct Session {
    // Before the runtime, which their connections end with.
    clients: Vec<(Route, Client)>,
    runtime: Runtime,
}

/// What needs a client of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    tls: bool,
    /// The proxies of the environment are for other hosts, as in podman (Go's net/http).
    loopback: bool,
}

impl Session {
    pub(super) fn new() -> Result<Session> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        Ok(Session { clients: Vec::new(), runtime: runtime.context(|| "start an HTTP client")? })
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) fn send(mut self, http: &Http, request: &Request) -> Result<Answer, Failure> {
        let client = self.client(http, &request.url)?;
        let mut builder = client.request(request.method.clone(), request.url.clone()).headers(request.headers.clone());
        let taken = Taken::default();
        if let Some(payload) = &request.payload {
            builder = builder.header(header::CONTENT_TYPE, payload.kind.clone()).body(payload.body(&taken));
        }
        let answer = self.wait_while(CONNECT + http.settings().silence, builder.send(), || taken.bytes())?;
        match answer {
            Some(Ok(response)) => Ok(Answer { response, session: self }),
            Some(Err(error)) => Err(Failure::of(&error, &shown(&request.url))),
            None => Err(Failure::transient(format!("{}: no answer", shown(&request.url)))),
        }
    }

    /// The client for a URL.
    fn client(&mut self, http: &Http, url: &Url) -> Result<Client> {
        let route = Route { tls: url.scheme() == "https", loopback: is_loopback(url) };
        if let Some((_, client)) = self.clients.iter().find(|(known, _)| *known == route) {
            return Ok(client.clone());
        }
        // Without a configuration reqwest would ask for the system's certificates, for plain HTTP, too.
        let tls = if route.tls { http.tls()? } else { super::tls::nobody()? };
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(Resolver::default()))
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT)
            .referer(false)
            .user_agent(concat!("tupper/", env!("CARGO_PKG_VERSION")));
        if route.loopback {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| Failure::of(&e, "set up an HTTP client").into_error())?;
        self.clients.push((route, client.clone()));
        Ok(client)
    }

    /// Runs to the future's end, or to that of the time (`None`), or until a signal asks to stop.
    fn wait<F: Future>(&self, limit: Duration, future: F) -> Result<Option<F::Output>> {
        self.wait_while(limit, future, || 0)
    }

    /// [`wait`](Session::wait), the time beginning anew whenever `progress` gives another number.
    fn wait_while<F: Future>(
        &self,
        limit: Duration,
        future: F,
        progress: impl Fn() -> u64,
    ) -> Result<Option<F::Output>> {
        self.runtime.block_on(async {
            let mut future = pin!(future);
            let mut end = Instant::now() + limit;
            let mut mark = 0;
            loop {
                interrupt::check()?;
                if let Ok(output) = tokio::time::timeout(TICK, future.as_mut()).await {
                    return Ok(Some(output));
                }
                let now = progress();
                if now != mark {
                    (mark, end) = (now, Instant::now() + limit);
                }
                if Instant::now() > end {
                    return Ok(None);
                }
            }
        })
    }
}

/// The answer to a request: its head, and its body piece by piece.
pub(crate) struct Answer {
    // Before the session, whose connection it reads from.
    response: reqwest::Response,
    session: Session,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Where it came from, after redirects.
    pub(crate) fn url(&self) -> &Url {
        self.response.url()
    }

    /// The bytes of its body, where the head says so.
    pub(crate) fn length(&self) -> Option<u64> {
        self.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The next piece of the body; `None` at its end. A server that is silent for longer than `silence` has failed.
    pub(crate) fn piece(&mut self, silence: Duration) -> Result<Option<Bytes>, Failure> {
        let Answer { response, session } = self;
        let url = shown(response.url());
        match session.wait(silence, response.chunk())? {
            Some(Ok(piece)) => Ok(piece),
            Some(Err(error)) => Err(Failure::of(&error, &url)),
            None => Err(Failure::transient(format!("{url}: the server sends nothing for {} s", silence.as_secs_f32()))),
        }
    }

    /// The session, for the next request.
    pub(super) fn into_session(self) -> Session {
        self.session
    }
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// A URL from text: http or https, with a host.
pub(crate) fn parse(text: &str) -> Result<Url> {
    let bad = |why: &str| Error::new(Kind::Invalid, format!("URL {text:?}: {why}"));
    let url: Url = text.parse().map_err(|e| bad(&format!("{e}")))?;
    match (url.scheme(), url.host_str()) {
        ("http" | "https", Some(_)) => Ok(url),
        _ => Err(bad("neither http nor https")),
    }
}
