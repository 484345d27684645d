//! One blob on its way into a repository.
//!
//! Sources: distribution-spec, "Pushing blobs", "Cancel a blob upload", "Mounting a blob from another repository".
//! A blob that is one chunk goes whole, by POST and PUT; a larger one by a PATCH for each chunk. After a chunk that failed the
//! registry is asked where the upload stands, and what it does not have yet is sent again; a registry that does not know any
//! more has lost it, and only then does the blob begin again.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use sha2::{Digest as _, Sha256};

use super::repository::{Repository, Target};
use crate::error::{Error, Kind, Result};
use crate::name::Digest;
use crate::transport::http::{self, Answer, Failure, Pauses, Payload, Request, Url};

/// Bytes of a chunk. Two are in memory for each layer that is under way.
const CHUNK: usize = 8 << 20;
/// Bytes that a registry may want a chunk to have at least.
const LARGEST_CHUNK: usize = 64 << 20;

const BYTES: &str = "application/octet-stream";

/// A part of a blob.
pub(super) struct Chunk {
    bytes: Bytes,
    /// The blob's digest and size, with its last chunk.
    last: Option<(Digest, u64)>,
}

/// A writer that cuts a blob into chunks.
pub(super) struct Chunks {
    size: usize,
    filling: Vec<u8>,
    hash: Sha256,
    total: u64,
    into: SyncSender<Chunk>,
}

impl Chunks {
    pub(super) fn new(size: usize, into: SyncSender<Chunk>) -> Chunks {
        Chunks { size, filling: Vec::new(), hash: Sha256::new(), total: 0, into }
    }

    fn send(&mut self, last: Option<(Digest, u64)>) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.filling).into();
        self.into.send(Chunk { bytes, last }).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// The blob has ended.
    pub(super) fn end(mut self) -> io::Result<()> {
        let digest = Digest::from_bytes(self.hash.clone().finalize().into());
        self.send(Some((digest, self.total)))
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full one waits for the next byte: the last chunk is known as such.
        if self.filling.len() == self.size && !bytes.is_empty() {
            self.send(None)?;
        }
        let length = bytes.len().min(self.size - self.filling.len());
        self.filling.extend_from_slice(&bytes[..length]);
        self.hash.update(&bytes[..length]);
        self.total += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why an upload came to nothing.
pub(super) enum End {
    /// The registry does not have what it had; another upload may do better.
    Lost(Error),
    /// Another would not.
    Failed(Error),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failed(failure.into())
    }
}

/// What came of asking for an upload.
pub(super) enum Begun<'a> {
    /// It is not needed: the blob is mounted.
    Mounted,
    /// The place to send it to.
    Upload(Upload<'a>),
}

impl Repository {
    /// Whether the blob is there (distribution-spec, "Checking if content exists in the registry").
    ///
    /// A registry that lets nobody ask is one that does not have it: what it has against us, it says to what follows.
    pub(super) fn has_blob(&self, digest: Digest, size: u64) -> Result<bool> {
        let path = format!("/blobs/{digest}");
        let answer =
            self.repeated(&Target::Path(&path), |url| Request { method: Method::HEAD, ..Request::get(url) })?;
        let (status, length) = (answer.status(), answer.length());
        match status.as_u16() {
            200 => {
                self.http().discard(answer);
                match length.filter(|length| *length != size) {
                    None => Ok(true),
                    Some(length) => {
                        let why = format!("blob {digest}: the registry has {length} bytes of it, it has {size}");
                        Err(Error::new(Kind::Invalid, why))
                    }
                }
            }
            401 | 403 | 404 | 405 => {
                self.http().discard(answer);
                Ok(false)
            }
            _ => Err(self.refused(answer)),
        }
    }

    /// Asks for an upload, or for a blob that another repository of the registry has.
    pub(super) fn begin(&self, mount: Option<(Digest, &str)>) -> Result<Begun<'_>> {
        let path = match mount {
            None => "/blobs/uploads/".to_string(),
            Some((digest, from)) => {
                let mut query = Url::parse("query:").map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
                query.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
                format!("/blobs/uploads/?{}", query.query().unwrap_or_default())
            }
        };
        let answer = self.repeated(&Target::Path(&path), |url| request(Method::POST, url, Bytes::new()))?;
        match answer.status() {
            StatusCode::CREATED if mount.is_some() => {
                self.http().discard(answer);
                Ok(Begun::Mounted)
            }
            StatusCode::ACCEPTED => {
                let location = http::location(answer.url(), answer.headers())?;
                // distribution-spec, "Pushing a blob in chunks": what a registry wants a chunk to have at least.
                let least = answer.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok());
                let least: usize = least.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
                if least > LARGEST_CHUNK {
                    let why = format!("{} wants chunks of {least} bytes: {LARGEST_CHUNK} are possible", self.host());
                    return Err(Error::new(Kind::Unsupported, why));
                }
                self.http().discard(answer);
                Ok(Begun::Upload(Upload { repository: self, location, at: 0, chunk: CHUNK.max(least), ranges: true }))
            }
            _ => Err(self.refused(answer)),
        }
    }

    /// Puts a manifest, and compares what the registry calls it (distribution-spec, "Pushing Manifests").
    pub(super) fn put_manifest(&self, version: &str, kind: &'static str, bytes: &[u8]) -> Result<Digest> {
        let bytes = Bytes::copy_from_slice(bytes);
        let path = format!("/manifests/{version}");
        let answer = self.repeated(&Target::Path(&path), |url| Request {
            method: Method::PUT,
            payload: Some(Payload::new(kind, bytes.clone())),
            ..Request::get(url)
        })?;
        if !answer.status().is_success() {
            return Err(self.refused(answer));
        }
        let digest = Digest::of(&bytes);
        called(answer.headers(), digest)?;
        self.http().discard(answer);
        Ok(digest)
    }

    /// An answer, after repeats where they help.
    fn repeated(&self, target: &Target<'_>, make: impl Fn(Url) -> Request) -> Result<Answer, Failure> {
        self.ask_as(target, make, |request| self.http().send(request), |answer| Some(answer))
    }

    /// An answer to what must not be said twice.
    fn once(&self, target: &Target<'_>, make: impl Fn(Url) -> Request) -> Result<Answer, Failure> {
        self.ask_as(target, make, |request| self.http().once(request), |answer| Some(answer))
    }
}

/// An upload that a registry has begun.
pub(super) struct Upload<'a> {
    repository: &'a Repository,
    location: Url,
    /// Bytes that the registry has.
    at: u64,
    /// Bytes of a chunk.
    chunk: usize,
    /// Whether chunks say where they belong.
    ranges: bool,
}

impl Upload<'_> {
    pub(super) fn chunk_size(&self) -> usize {
        self.chunk
    }

    /// Sends a blob as its chunks come; `None` when they end before it does.
    pub(super) fn send_all(mut self, chunks: Receiver<Chunk>) -> Result<Option<(Digest, u64)>, End> {
        let sent = self.send_each(chunks);
        if matches!(sent, Err(End::Failed(_)) | Ok(None)) {
            self.cancel();
        }
        sent
    }

    fn send_each(&mut self, chunks: Receiver<Chunk>) -> Result<Option<(Digest, u64)>, End> {
        for Chunk { bytes, last } in chunks {
            match last {
                Some((digest, size)) if self.at == 0 => {
                    self.put(digest, size, &bytes)?;
                    return Ok(Some((digest, size)));
                }
                _ => self.patch(&bytes)?,
            }
            if let Some((digest, size)) = last {
                self.put(digest, size, &Bytes::new())?;
                return Ok(Some((digest, size)));
            }
        }
        Ok(None)
    }

    /// Sends a blob that is in memory.
    pub(super) fn send_whole(mut self, digest: Digest, bytes: &Bytes) -> Result<(), End> {
        self.put(digest, bytes.len() as u64, bytes)
    }

    /// Sends a chunk, until the registry has all of it.
    fn patch(&mut self, chunk: &Bytes) -> Result<(), End> {
        let (start, end) = (self.at, self.at + chunk.len() as u64);
        let mut pauses = Pauses::new(self.repository.http().settings());
        while self.at < end {
            let rest = chunk.slice(usize::try_from(self.at - start).unwrap_or(usize::MAX).min(chunk.len())..);
            let range = self.ranges.then(|| format!("{}-{}", self.at, end - 1));
            let make = |url: Url| {
                let mut request = request(Method::PATCH, url, rest.clone());
                let range = range.as_deref().and_then(|range| HeaderValue::from_str(range).ok());
                request.headers.extend(range.map(|range| (header::CONTENT_RANGE, range)));
                request
            };
            let (failure, asked) = match self.repository.once(&Target::Url(&self.location), make) {
                Ok(answer) if answer.status().is_success() => {
                    self.follow(&answer)?;
                    self.repository.http().discard(answer);
                    self.at = end;
                    break;
                }
                Ok(answer) if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
                    let before = self.at;
                    let refused = self.repository.refused(answer);
                    self.at = self.stands(start, end)?;
                    if self.at != before {
                        // It knows better; that it does so for ever is what the pauses are counted for.
                        (Failure::transient(refused.to_string()), Some(Duration::ZERO))
                    } else if self.ranges {
                        // As Docker does it: without saying what comes next anyway.
                        self.ranges = false;
                        continue;
                    } else {
                        return Err(End::Failed(refused));
                    }
                }
                Ok(answer) => self.later_or_refused(answer)?,
                Err(failure) => (failure.again(), None),
            };
            pauses.wait(failure, asked)?;
            self.at = self.stands(start, end)?;
        }
        Ok(())
    }

    /// Ends the upload: the blob is there, whole, by this digest. `bytes` are those that are still missing.
    fn put(&mut self, digest: Digest, size: u64, bytes: &Bytes) -> Result<(), End> {
        let mut pauses = Pauses::new(self.repository.http().settings());
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        loop {
            let make = |url: Url| request(Method::PUT, url, bytes.clone());
            let (failure, asked) = match self.repository.once(&Target::Url(&url), make) {
                Ok(answer) if answer.status().is_success() => {
                    called(answer.headers(), digest).map_err(End::Failed)?;
                    self.repository.http().discard(answer);
                    return Ok(());
                }
                Ok(answer) => self.later_or_refused(answer)?,
                Err(failure) => (failure.again(), None),
            };
            pauses.wait(failure, asked)?;
            // What was answered to the one before may be lost.
            if self.repository.has_blob(digest, size).map_err(End::Failed)? {
                return Ok(());
            }
            if !bytes.is_empty() || self.stands(size, size)? != size {
                return Err(End::Lost(Error::new(Kind::Io, "the registry has lost the end of an upload")));
            }
            url.clone_from(&self.location);
            url.query_pairs_mut().append_pair("digest", &digest.to_string());
        }
    }

    /// What an answer that is no success means: that it may be said again, after so long; that there is no such upload; or
    /// a refusal.
    fn later_or_refused(&self, answer: Answer) -> Result<(Failure, Option<Duration>), End> {
        let status = answer.status();
        if http::is_later(status) {
            let asked = http::retry_after(answer.headers());
            let error = self.repository.refused(answer);
            return Ok((Failure::transient(error.to_string()), asked));
        }
        let error = self.repository.refused(answer);
        Err(if status == StatusCode::NOT_FOUND { End::Lost(error) } else { End::Failed(error) })
    }

    /// Asks how much the registry has (distribution-spec, "Pushing a blob in chunks": GET of the location); it has to be
    /// between these two.
    fn stands(&mut self, start: u64, end: u64) -> Result<u64, End> {
        let answer = self.repository.repeated(&Target::Url(&self.location), Request::get)?;
        if !answer.status().is_success() {
            return Err(End::Lost(self.repository.refused(answer)));
        }
        let range = answer.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
        let at = match range.and_then(|range| range.rsplit_once('-')?.1.trim().parse::<u64>().ok()) {
            // distribution says so of nothing and of one byte.
            Some(0) | None => 0,
            Some(last) => last.saturating_add(1),
        };
        self.follow(&answer)?;
        self.repository.http().discard(answer);
        if (start..=end).contains(&at) {
            log::debug!("the upload stands at {at}");
            return Ok(at);
        }
        let why = format!("the registry has {at} bytes of an upload, {start} to {end} were sent");
        Err(End::Lost(Error::new(Kind::Io, why)))
    }

    /// The upload goes on where the answer says.
    fn follow(&mut self, answer: &Answer) -> Result<(), Failure> {
        if answer.headers().contains_key(header::LOCATION) {
            self.location = http::location(answer.url(), answer.headers())?;
        }
        Ok(())
    }

    /// Tells the registry that nothing more comes. One that does not hear it forgets the upload by itself.
    pub(super) fn cancel(self) {
        let make = |url: Url| Request { method: Method::DELETE, ..Request::get(url) };
        match self.repository.once(&Target::Url(&self.location), make) {
            Ok(answer) => self.repository.http().discard(answer),
            Err(failure) => log::debug!("cancel an upload: {failure}"),
        }
    }
}

fn request(method: Method, url: Url, bytes: Bytes) -> Request {
    Request { method, url, headers: HeaderMap::new(), payload: Some(Payload::new(BYTES, bytes)) }
}

/// Compares what the registry calls something with what it is.
fn called(headers: &HeaderMap, digest: Digest) -> Result<()> {
    let says = headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
    match says.filter(|says| *says != digest.to_string()) {
        None => Ok(()),
        Some(says) => {
            let says: String = says.chars().take(200).collect();
            Err(Error::new(Kind::Invalid, format!("the registry calls it {says}, it is {digest}")))
        }
    }
}
