//! One repository of one registry: requests with the credentials that it asks for.
//!
//! Sources: distribution-spec, "API"; Docker's token-spec and oauth2-spec (`docs/spec/auth`). A registry says by a
//! challenge what it wants to see; what it got is kept, and asked for again once when it is refused, because tokens are
//! short-lived. A challenge by anybody whom the registry redirects to is not answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::challenge::{self, Challenge};
use super::{Credential, Reference};
use crate::error::{Context, Error, Kind, Result};
use crate::name::Digest;
use crate::transport::http::{
    self, Answer, Ask, Cause, Download, Failure, Fetched, Http, Payload, Promise, Request, Url, shown,
};
use crate::transport::manifest::Pointer;

/// The manifests and indexes that are understood here.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json";
/// A manifest or index, a config: bytes.
const DOCUMENT: u64 = 4 << 20;
/// The answer of a token server, bytes; theirs are about 3 KiB.
const TOKEN: u64 = 1 << 20;
/// Bytes of an error's explanation that are read.
const EXPLANATION: u64 = 64 << 10;

/// A repository.
pub(super) struct Repository {
    http: Arc<Http>,
    /// `HOST[:PORT]`, as it is called in names.
    host: String,
    /// `/v2/REPOSITORY`.
    path: String,
    /// What a token is to be good for (token-spec, "scope").
    scopes: Vec<String>,
    /// Whether something is to go there.
    pushes: bool,
    credential: Option<Credential>,
    insecure: bool,
    state: Mutex<State>,
}

/// What is asked for.
pub(super) enum Target<'a> {
    /// Something of the repository.
    Path(&'a str),
    /// What the registry has named, wherever it is.
    Url(&'a Url),
}

/// What talking to it has taught.
#[derive(Default)]
struct State {
    plain_http: bool,
    authorization: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Repository {
    pub(super) fn new(
        http: Arc<Http>,
        place: &Reference,
        credential: Option<Credential>,
        insecure: bool,
    ) -> Repository {
        let repository = place.name.repository();
        Repository {
            http,
            host: place.name.registry().to_string(),
            path: format!("/v2/{repository}"),
            scopes: vec![format!("repository:{repository}:pull")],
            pushes: false,
            credential,
            insecure,
            state: Mutex::default(),
        }
    }

    /// The same to push to, and to mount what these repositories of the registry have.
    pub(super) fn for_pushing(mut self, mounts: &[&str]) -> Repository {
        self.scopes = self.scopes.iter().map(|scope| format!("{scope},push")).collect();
        self.scopes.extend(mounts.iter().map(|from| format!("repository:{from}:pull")));
        self.pushes = true;
        self
    }

    /// The registry itself, to try a credential on.
    pub(super) fn registry(http: Arc<Http>, host: &str, credential: Credential, insecure: bool) -> Repository {
        Repository {
            http,
            host: host.to_string(),
            path: "/v2/".to_string(),
            scopes: Vec::new(),
            pushes: false,
            credential: Some(credential),
            insecure,
            state: Mutex::default(),
        }
    }

    /// Asks the registry whether it knows whom we say we are.
    pub(super) fn check_credential(&self) -> Result<()> {
        match self.get("", "*/*", &HeaderMap::new())? {
            answer if answer.status().is_success() => Ok(()),
            // A registry without the API's root, and yet without objection.
            answer if answer.status() == StatusCode::NOT_FOUND && self.state().authorization.is_some() => Ok(()),
            answer => Err(self.refused(answer)),
        }
    }

    /// The manifest of a tag or digest, verified, and what the registry calls it.
    pub(super) fn manifest(&self, version: &str, promise: Promise) -> Result<(Vec<u8>, Option<String>)> {
        let what = format!("manifest {version}");
        let mut promise = promise;
        if promise.digest.is_none() {
            promise.digest = version.parse().ok();
        }
        let (bytes, headers) = self.document(&format!("/manifests/{version}"), ACCEPT, DOCUMENT, &what)?;
        if promise.digest.is_none() {
            // distribution-spec, "Pulling manifests": of the bytes that came, where it is there.
            let named = headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
            promise.digest = named.and_then(|text| text.parse().ok());
        }
        verify(&bytes, promise, &what)?;
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_string);
        Ok((bytes, kind))
    }

    /// A small blob, verified.
    pub(super) fn small_blob(&self, blob: Pointer, what: &str) -> Result<Vec<u8>> {
        let (bytes, _) = self.document(&format!("/blobs/{}", blob.digest), "*/*", blob.size.max(DOCUMENT), what)?;
        verify(&bytes, Promise { digest: Some(blob.digest), size: Some(blob.size) }, what)?;
        Ok(bytes)
    }

    /// A blob as a stream that verifies itself.
    pub(super) fn blob(self: &Arc<Repository>, blob: Pointer) -> Result<Download> {
        let what = format!("blob {}", blob.digest);
        let (repository, path) = (Arc::clone(self), format!("/blobs/{}", blob.digest));
        let ask: Ask = Box::new(move |headers| {
            let answer = repository.get(&path, "*/*", &headers)?;
            match answer.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(answer),
                _ => Err(Failure::from(repository.refused(answer))),
            }
        });
        Download::open(Arc::clone(&self.http), what, Promise { digest: Some(blob.digest), size: Some(blob.size) }, ask)
    }

    fn document(&self, path: &str, accept: &'static str, limit: u64, what: &str) -> Result<(Vec<u8>, HeaderMap)> {
        let fetch = |request: &Request| self.http.fetch(request, limit, what);
        match self.ask(path, accept, &HeaderMap::new(), fetch, |fetched| match fetched {
            Fetched::Refused(answer) => Some(answer),
            Fetched::Document(..) => None,
        })? {
            Fetched::Document(bytes, headers) => Ok((bytes, headers)),
            Fetched::Refused(answer) => Err(self.refused(answer)).context(|| what.to_string()),
        }
    }

    /// The answer to a request, whatever its status.
    fn get(&self, path: &str, accept: &'static str, headers: &HeaderMap) -> Result<Answer, Failure> {
        self.ask(path, accept, headers, |request| self.http.send(request), |answer| Some(answer))
    }

    fn ask<T>(
        &self,
        path: &str,
        accept: &'static str,
        headers: &HeaderMap,
        send: impl Fn(&Request) -> Result<T, Failure>,
        head: impl Fn(&T) -> Option<&Answer>,
    ) -> Result<T, Failure> {
        let make = |url: Url| {
            let mut request = Request::get(url).accept(accept);
            request.headers.extend(headers.clone());
            request
        };
        self.ask_as(&Target::Path(path), make, send, head)
    }

    /// Asks for what `make` makes of a URL, answering one challenge, and finding out once whether the registry speaks TLS.
    ///
    /// Who we are is shown to the registry alone, wherever the target is.
    pub(super) fn ask_as<T>(
        &self,
        target: &Target<'_>,
        make: impl Fn(Url) -> Request,
        send: impl Fn(&Request) -> Result<T, Failure>,
        head: impl Fn(&T) -> Option<&Answer>,
    ) -> Result<T, Failure> {
        let mut challenged = false;
        loop {
            let (plain_http, authorization) = {
                let state = self.state();
                (state.plain_http, state.authorization.clone())
            };
            let registry = self.url("", plain_http)?.origin();
            let url = match target {
                Target::Path(path) => self.url(path, plain_http)?,
                Target::Url(url) => (*url).clone(),
            };
            let own = url.origin() == registry;
            let request = make(url).authorized(authorization.clone().filter(|_| own));
            let got = match send(&request) {
                Err(failure) if own && self.insecure && !plain_http && is_no_tls(&failure) => {
                    self.try_plain_http(failure)?;
                    continue;
                }
                got => got?,
            };
            let Some(answer) = head(&got).filter(|answer| answer.status() == StatusCode::UNAUTHORIZED) else {
                return Ok(got);
            };
            if challenged || answer.url().origin() != registry {
                return Ok(got);
            }
            challenged = true;
            if !self.authorize(answer, authorization)? {
                return Ok(got);
            }
        }
    }

    /// An insecure registry may do without TLS; what it said to TLS is what counts when it says nothing to HTTP either.
    fn try_plain_http(&self, failure: Failure) -> Result<(), Failure> {
        log::debug!("{failure}; trying plain HTTP");
        match self.http.send(&Request::get(self.url("", true)?)) {
            Ok(_) => {
                self.state().plain_http = true;
                Ok(())
            }
            Err(_) => Err(failure),
        }
    }

    fn url(&self, path: &str, plain_http: bool) -> Result<Url> {
        let scheme = if plain_http { "http" } else { "https" };
        // The registry behind this name has another (containers/image, `docker_client.go`).
        let host = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        http::parse(&format!("{scheme}://{host}{}{path}", self.path))
    }

    /// Gets what a challenge asks for; `false` when there is nothing that was not shown already.
    fn authorize(&self, answer: &Answer, shown_before: Option<HeaderValue>) -> Result<bool, Failure> {
        let Some(challenge) = challenge::best(answer.headers()) else { return Ok(false) };
        let registry = answer.url().clone();
        let mut state = self.state();
        if state.authorization != shown_before {
            // Another thread was quicker.
            return Ok(true);
        }
        let value = match challenge {
            Challenge::Basic => match &self.credential {
                Some(Credential::Password { user, password }) => basic(user, password)?,
                _ => return Ok(false),
            },
            Challenge::Bearer { realm, service } => bearer(&self.token(&registry, &realm, service.as_deref())?)?,
        };
        if Some(&value) == shown_before.as_ref() {
            return Ok(false);
        }
        state.authorization = Some(value);
        Ok(true)
    }

    /// A token from the registry's token server, which gets to see the credential.
    fn token(&self, registry: &Url, realm: &str, service: Option<&str>) -> Result<String, Failure> {
        let doing = || format!("get a token for {}", self.host);
        let mut url = http::parse(realm).context(doing)?;
        if registry.scheme() == "https" && url.scheme() != "https" {
            let why = format!("the token server {} would see the credentials without TLS: refused", shown(&url));
            return Err(Error::new(Kind::Invalid, why).wrap(doing()).into());
        }
        let mut request = Request::get(url.clone());
        if let Some(Credential::IdentityToken(token)) = &self.credential {
            let mut form = Url::parse("form:").map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "tupper")
                .append_pair("refresh_token", token)
                .extend_pairs(service.map(|service| ("service", service)))
                .extend_pairs(Some(self.scopes.join(" ")).filter(|all| !all.is_empty()).map(|all| ("scope", all)));
            request.method = Method::POST;
            request.payload = Some(Payload::form(form.query().unwrap_or_default().to_string()));
        } else {
            if let Some(Credential::Password { user, password }) = &self.credential {
                url.query_pairs_mut().append_pair("account", user);
                request = request.authorized(Some(basic(user, password)?));
            }
            url.query_pairs_mut()
                .extend_pairs(service.map(|service| ("service", service)))
                .extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
            request.url = url;
        }
        let bytes = match self.http.fetch(&request, TOKEN, "token")? {
            Fetched::Document(bytes, _) => bytes,
            Fetched::Refused(answer) => return Err(self.refused(answer).wrap(doing()).into()),
        };
        // serde_json's words would repeat what stands there.
        let bad = || Error::new(Kind::Invalid, "the token server's answer is not understood").wrap(doing());
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        token.token.or(token.access_token).filter(|token| !token.is_empty()).ok_or_else(|| bad().into())
    }

    /// The error of an answer whose status is no success.
    pub(super) fn refused(&self, answer: Answer) -> Error {
        let (status, place) = (answer.status(), shown(answer.url()));
        let says = self.explanation(answer);
        let because = says.map(|says| format!(": {says}")).unwrap_or_default();
        let known_as = match &self.credential {
            Some(credential) => {
                credential.user().map_or_else(|| " with its token".to_string(), |user| format!(" as {user}"))
            }
            None => String::new(),
        };
        let login = format!("`tupper login {}` keeps a user name and password for it", self.host);
        match status {
            StatusCode::UNAUTHORIZED if self.credential.is_some() => {
                Error::new(Kind::Permission, format!("{} does not let us in{known_as}{because}", self.host))
                    .with_hint(login)
            }
            StatusCode::UNAUTHORIZED => {
                let hint = if self.pushes { login } else { format!("{login}, if there is such an image at all") };
                Error::new(Kind::Permission, format!("{} asks who we are{because}", self.host)).with_hint(hint)
            }
            StatusCode::FORBIDDEN => {
                Error::new(Kind::Permission, format!("{} does not allow it{known_as}{because}", self.host))
                    .with_hint(login)
            }
            StatusCode::NOT_FOUND if self.pushes => {
                let error = Error::new(Kind::NotFound, format!("{} has no such place{because}", self.host));
                error.with_hint("see whether the repository is spelled as it is there, and has to be made there first")
            }
            StatusCode::NOT_FOUND => {
                let error = Error::new(Kind::NotFound, format!("{} does not have it{because}", self.host));
                error.with_hint("see whether the name and the tag are spelled as they are there")
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                let error = Error::new(Kind::Limit, format!("{} takes nothing as large as this{because}", self.host));
                error.with_hint("the registry, or a proxy before it, has a limit on the size of requests")
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Error::new(Kind::Io, format!("{} has had too many requests{because}", self.host))
                    .with_hint("try again later")
            }
            status => Error::new(Kind::Io, format!("{place} answers {status}{because}")),
        }
    }

    /// What the registry gives as reason (distribution-spec, "Error Codes").
    fn explanation(&self, answer: Answer) -> Option<String> {
        let bytes = self.http.read(answer, EXPLANATION, "reason").ok()?;
        let document: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        let first = document.get("errors")?.get(0)?;
        let text =
            ["message", "code"].iter().find_map(|key| first.get(key)?.as_str().filter(|text| !text.is_empty()))?;
        Some(text.chars().take(200).collect())
    }

    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    /// `HOST[:PORT]`.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_no_tls(failure: &Failure) -> bool {
    matches!(failure.cause(), Cause::NotTls | Cause::ConnectionRefused)
}

fn basic(user: &str, password: &str) -> Result<HeaderValue> {
    secret(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn bearer(token: &str) -> Result<HeaderValue> {
    secret(format!("Bearer {token}"))
}

fn secret(text: String) -> Result<HeaderValue> {
    let mut value =
        HeaderValue::try_from(text).map_err(|_| Error::new(Kind::Invalid, "a token that no header can hold"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn verify(bytes: &[u8], promise: Promise, what: &str) -> Result<()> {
    if let Some(size) = promise.size.filter(|size| *size != bytes.len() as u64) {
        return Err(Error::new(Kind::Invalid, format!("{what}: {} bytes came, {size} were promised", bytes.len())));
    }
    let found = Digest::from_bytes(Sha256::digest(bytes).into());
    match promise.digest.filter(|promised| *promised != found) {
        Some(promised) => {
            Err(Error::new(Kind::Invalid, format!("{what}: what came is {found}, {promised} was promised")))
        }
        None => Ok(()),
    }
}
