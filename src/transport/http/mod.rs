//! HTTP as images need it: requests that are repeated when it helps, redirects that carry no secrets away, bodies that
//! go on where they were cut.
//!
//! reqwest (hyper, rustls) does the protocol; what it is asked to leave alone is done here, where it can be tested:
//!
//! - **Redirects** ([`send`](Http::send)): credentials go to the origin that they are for and to no other, https never
//!   turns into http, and ten are enough.
//! - **Repeats**: 429 and 5xx, cut and timed-out connections, with a growing pause or the one that the server asks for.
//! - **Threads**: none. Each [`Session`] is a runtime of the calling thread, with connections of its own, which are kept
//!   in a pool between requests; so the process is as single-threaded as its caller, and may clone itself.
//! - **Signals**: whatever is waited for, [`interrupt`](crate::interrupt) is looked at ten times a second.
//! - **Bodies that go out** ([`upload`]): a server that takes some of one is not silent.
//! - **Names** ([`dns`]): resolved here, because a static binary must not call getaddrinfo(3).

mod body;
mod dns;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod session;
mod tls;
mod upload;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

pub(crate) use body::{Ask, Download, Promise};
pub(crate) use failure::{Cause, Failure};
pub(crate) use reqwest::Url;
use session::Session;
pub(crate) use session::{Answer, parse};
pub(crate) use tls::Trust;
pub(crate) use upload::Payload;

use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;

/// How long to wait, and how often to try again.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often a request is repeated, and a body without any progress.
    pub retries: u32,
    /// The pause before the first repeat; it doubles from one to the next.
    pub pause: Duration,
    /// The longest pause that a server may ask for (Retry-After); one that asks for more has refused.
    pub longest_pause: Duration,
    /// How long a server may be silent, in the middle of a body too.
    pub silence: Duration,
    /// How long a document (a manifest, a token) may take in all.
    pub document: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            retries: 4,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            silence: Duration::from_secs(30),
            document: Duration::from_secs(60),
        }
    }
}

/// Redirects that one request may take.
const REDIRECTS: usize = 10;
/// Bytes of a body that are read for the sake of the connection alone.
const DISCARDED: usize = 64 << 10;

/// A way to servers: whom to trust, what to wait for, and the connections that are open.
pub(crate) struct Http {
    trust: Trust,
    tls: Mutex<Option<rustls::ClientConfig>>,
    settings: Settings,
    idle: Mutex<Vec<Session>>,
}

/// What to ask for. Its credentials are for the origin of its URL.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// What goes with it.
    pub(crate) payload: Option<Payload>,
}

impl Request {
    pub(crate) fn get(url: Url) -> Request {
        Request { method: Method::GET, url, headers: HeaderMap::new(), payload: None }
    }

    /// RFC 9110, 15.4: 307 and 308 are for the same request elsewhere, the others for a GET; a form goes nowhere else.
    fn may_follow(&self, status: StatusCode) -> bool {
        let again = matches!(status.as_u16(), 307 | 308);
        match (&self.payload, &self.method) {
            (Some(payload), _) => again && !payload.is_form(),
            (None, &Method::GET | &Method::HEAD) => is_redirect(status),
            (None, _) => again,
        }
    }

    pub(crate) fn accept(mut self, types: &'static str) -> Request {
        self.headers.insert(header::ACCEPT, HeaderValue::from_static(types));
        self
    }

    pub(crate) fn authorized(mut self, value: Option<HeaderValue>) -> Request {
        self.headers.extend(value.map(|value| (header::AUTHORIZATION, value)));
        self
    }
}

impl Http {
    pub(crate) fn new(trust: Trust, settings: Settings) -> Http {
        Http { trust, tls: Mutex::new(None), settings, idle: Mutex::new(Vec::new()) }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sends a request until it is answered by something else than "later" and "elsewhere". Other statuses, of failures
    /// too, are the caller's to judge.
    pub(crate) fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let mut pauses = Pauses::new(&self.settings);
        loop {
            let (failure, asked) = match self.once(request) {
                Ok(answer) if is_later(answer.status()) => {
                    let asked = retry_after(answer.headers());
                    if pauses.are_over() {
                        return Ok(answer);
                    }
                    (Failure::transient(format!("the server answers {}", answer.status())), asked)
                }
                Ok(answer) => return Ok(answer),
                Err(failure) => (failure, None),
            };
            pauses.wait(failure, asked)?;
        }
    }

    /// Sends a request, and those that it is redirected to, once.
    pub(crate) fn once(&self, request: &Request) -> Result<Answer, Failure> {
        let mut request = request.clone();
        let mut session = self.session()?;
        for _ in 0..=REDIRECTS {
            let answer = session.send(self, &request)?;
            if !request.may_follow(answer.status()) {
                return Ok(answer);
            }
            let target = location(&request.url, answer.headers())?;
            if target.origin() != request.url.origin() {
                for secret in [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE] {
                    request.headers.remove(secret);
                }
            }
            log::debug!("{} redirects to {}", shown(&request.url), shown(&target));
            request.url = target;
            session = answer.into_session();
        }
        Err(refused(&request.url, &format!("more than {REDIRECTS} redirects")))
    }

    /// The document that answers a request: at most `limit` bytes.
    pub(crate) fn read(&self, answer: Answer, limit: u64, what: &str) -> Result<Vec<u8>, Failure> {
        let too_large =
            |n: u64| Failure::from(Error::new(Kind::Limit, format!("{what}: {n} bytes or more, the limit is {limit}")));
        if let Some(length) = answer.length().filter(|length| *length > limit) {
            return Err(too_large(length));
        }
        let end = Instant::now() + self.settings.document;
        let mut answer = answer;
        let mut bytes = Vec::new();
        while let Some(piece) = answer.piece(self.settings.silence)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(too_large(bytes.len() as u64));
            }
            if Instant::now() > end {
                return Err(Failure::transient(format!("{what}: not there after {:?}", self.settings.document)));
            }
        }
        self.give_back(answer);
        Ok(bytes)
    }

    /// [`send`](Http::send) and [`read`](Http::read) as one: a cut in the middle of the document is a reason to try
    /// again, too.
    pub(crate) fn fetch(&self, request: &Request, limit: u64, what: &str) -> Result<Fetched, Failure> {
        let mut pauses = Pauses::new(&self.settings);
        loop {
            let answer = self.send(request)?;
            if !answer.status().is_success() {
                return Ok(Fetched::Refused(answer));
            }
            let headers = answer.headers().clone();
            match self.read(answer, limit, what) {
                Ok(bytes) => return Ok(Fetched::Document(bytes, headers)),
                Err(failure) => pauses.wait(failure, None)?,
            }
        }
    }

    /// Lets go of an answer whose body nobody wants, and keeps its connection if that is short.
    pub(crate) fn discard(&self, mut answer: Answer) {
        let mut left = DISCARDED;
        while let Ok(piece) = answer.piece(session::TICK) {
            let Some(piece) = piece else { return self.give_back(answer) };
            left = left.saturating_sub(piece.len());
            if left == 0 {
                return;
            }
        }
    }

    fn session(&self) -> Result<Session> {
        match self.idle().pop() {
            Some(session) => Ok(session),
            None => Session::new(),
        }
    }

    /// Keeps the connection of an answer that was read to its end.
    pub(crate) fn give_back(&self, answer: Answer) {
        self.idle().push(answer.into_session());
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLS side, made when it is first needed: reading the system's certificates takes a few ms.
    fn tls(&self) -> Result<rustls::ClientConfig> {
        let mut made = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some(config) => Ok(config.clone()),
            None => Ok(made.insert(self.trust.config().context(|| "set up TLS")?).clone()),
        }
    }
}

/// What a URL leads to, as far as a server that is asked again vouches for the rest.
///
/// # Errors
/// The server's refusal, and what kept it from answering.
pub(crate) fn get(url: &Url) -> Result<Download> {
    let place = url.host_str().map(|host| match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_string(),
    });
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
    let directory = Trust::directory_of(None, home.as_deref(), &place.unwrap_or_default());
    let http = Arc::new(Http::new(Trust { anybody: false, directory }, Settings::default()));
    let (client, url, what) = (Arc::clone(&http), url.clone(), shown(url));
    let ask: Ask = Box::new(move |headers| {
        let mut request = Request::get(url.clone());
        request.headers = headers;
        let answer = client.send(&request)?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(answer),
            status => {
                let kind = match status.as_u16() {
                    404 | 410 => Kind::NotFound,
                    401 | 403 => Kind::Permission,
                    _ => Kind::Io,
                };
                Err(Error::new(kind, format!("{} answers {status}", shown(answer.url()))).into())
            }
        }
    });
    Download::open(http, what, Promise::default(), ask)
}

/// What came of [`Http::fetch`].
pub(crate) enum Fetched {
    /// The document, and the headers that came with it.
    Document(Vec<u8>, HeaderMap),
    /// An answer whose status is no success.
    Refused(Answer),
}

/// The pauses between repeats: each twice as long as the one before.
pub(crate) struct Pauses {
    left: u32,
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn new(settings: &Settings) -> Pauses {
        Pauses { left: settings.retries, next: settings.pause, longest: settings.longest_pause }
    }

    pub(crate) fn are_over(&self) -> bool {
        self.left == 0
    }

    /// Waits before the next try; gives the failure back when there is none.
    pub(crate) fn wait(&mut self, failure: Failure, asked: Option<Duration>) -> Result<(), Failure> {
        if !failure.is_transient() || self.left == 0 {
            return Err(failure);
        }
        let pause = asked.unwrap_or(self.next);
        if pause > self.longest {
            return Err(Failure::from(
                failure.into_error().wrap(format!("to be tried again in {} s", pause.as_secs())),
            ));
        }
        log::debug!("{failure}; trying again in {pause:?}");
        (self.left, self.next) = (self.left - 1, (self.next * 2).min(self.longest));
        pause_for(pause)?;
        Ok(())
    }
}

fn pause_for(pause: Duration) -> Result<()> {
    let end = Instant::now() + pause;
    loop {
        interrupt::check()?;
        match end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => std::thread::sleep(left.min(session::TICK)),
            _ => return Ok(()),
        }
    }
}

pub(crate) fn is_later(status: StatusCode) -> bool {
    // 501 and 505 will be the same tomorrow.
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// RFC 9110, 10.2.3; a date is not looked at: the doubling pause takes its place.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Where an answer of `from` leads to.
pub(crate) fn location(from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let target = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let target = target.and_then(|target| from.join(target).ok());
    let target = target.ok_or_else(|| refused(from, "a redirect to nowhere"))?;
    check_redirect(from, &target)?;
    Ok(target)
}

fn check_redirect(from: &Url, to: &Url) -> Result<(), Failure> {
    if !matches!(to.scheme(), "http" | "https") {
        return Err(refused(from, &format!("a redirect to {}: neither http nor https", shown(to))));
    }
    if from.scheme() == "https" && to.scheme() == "http" {
        return Err(refused(from, &format!("a redirect from https to {}", shown(to))));
    }
    // reqwest would send them.
    if !to.username().is_empty() || to.password().is_some() {
        return Err(refused(from, &format!("a redirect to {} with credentials in it", shown(to))));
    }
    Ok(())
}

fn refused(from: &Url, what: &str) -> Failure {
    Failure::from(Error::new(Kind::Invalid, format!("{}: {what}: refused", shown(from))))
}

/// The URL as messages show it: without its query, which may hold a signature, and without credentials.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails where there cannot be any.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_keep_to_the_rules() {
        let check = |from: &str, to: &str| {
            let from: Url = from.parse().expect("a URL");
            let to = from.join(to).expect("a URL");
            check_redirect(&from, &to).map_err(|failure| failure.to_string())
        };
        for (from, to) in [("http://a/x", "/y"), ("http://a/x", "https://b/"), ("https://a/x", "//b/y")] {
            assert!(check(from, to).is_ok(), "{from} {to}");
        }
        for (from, to) in [
            ("https://a/x", "http://a/x"),
            ("http://a/x", "file:///etc/passwd"),
            ("http://a/x", "ftp://b/"),
            ("http://a/x", "http://user:secret@b/"),
        ] {
            let why = check(from, to).expect_err(to);
            assert!(why.contains("refused") && !why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn a_pause_that_is_asked_for_is_seconds() {
        let asked = |value: &'static str| {
            retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(value))]))
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn messages_show_no_secrets() {
        let url: Url = "https://u:p@host:5000/v2/x?sig=secret#f".parse().expect("a URL");
        assert_eq!(shown(&url), "https://host:5000/v2/x");
    }
}
