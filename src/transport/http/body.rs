//! A body that verifies itself, and goes on where it was cut.
//!
//! The digest is that of the bytes as the reader gave them out, from the first to the last, over however many
//! connections they came; so it does not matter what a server sends again, or whether it honours ranges at all.
//! (RFC 9110, 14: ranges; 13.1.5: If-Range.)

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use reqwest::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::{Answer, Failure, Http, Pauses};
use crate::error::{Error, Kind, Result};
use crate::name::Digest;

/// What was promised about a body.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Promise {
    pub(crate) digest: Option<Digest>,
    /// In bytes.
    pub(crate) size: Option<u64>,
}

/// Asks for the body with these headers more; the answer's status is 200, 206 or 416.
pub(crate) type Ask = Box<dyn Fn(HeaderMap) -> Result<Answer, Failure> + Send>;

/// Progress that earns a connection a full count of repeats again.
const PROGRESS: u64 = 64 << 10;
/// Less than this in a time of silence is silence.
const TRICKLE: u64 = 1 << 10;

/// The reader of a body.
pub(crate) struct Download {
    ask: Ask,
    http: Arc<Http>,
    /// The body, as messages call it.
    what: String,
    promise: Promise,
    answer: Option<Answer>,
    /// What says that a later answer is of the same body, where there is no digest.
    validator: Option<HeaderValue>,
    piece: Bytes,
    /// Bytes that came, and their digest.
    done: u64,
    hash: Sha256,
    /// Bytes of the answer that were there before.
    skip: u64,
    /// Bytes that the answer still owes, where its head says so.
    owed: Option<u64>,
    pauses: Pauses,
    /// Where it was when the repeats began to count.
    mark: u64,
    waited: Duration,
    came: u64,
    ended: bool,
    failed: bool,
}

impl Download {
    /// Asks for the body; its first byte is on its way when this returns.
    pub(crate) fn open(http: Arc<Http>, what: String, promise: Promise, ask: Ask) -> Result<Download> {
        let pauses = Pauses::new(http.settings());
        let mut download = Download {
            ask,
            http,
            what,
            promise,
            answer: None,
            validator: None,
            piece: Bytes::new(),
            done: 0,
            hash: Sha256::new(),
            skip: 0,
            owed: None,
            pauses,
            mark: 0,
            waited: Duration::ZERO,
            came: 0,
            ended: promise.size == Some(0),
            failed: false,
        };
        if download.ended {
            download.verify()?;
        } else {
            download.connect()?;
        }
        Ok(download)
    }

    /// Its size, promised or announced.
    pub(crate) fn size(&self) -> Option<u64> {
        self.promise.size.or(self.owed.filter(|_| self.done == 0))
    }

    fn wrong(&self, why: impl std::fmt::Display) -> Failure {
        Failure::from(Error::new(Kind::Invalid, format!("{}: {why}", self.what)))
    }

    /// Asks for what is missing.
    fn connect(&mut self) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        if self.done > 0 {
            headers.extend(HeaderValue::try_from(format!("bytes={}-", self.done)).map(|range| (header::RANGE, range)));
            headers.extend(self.validator.clone().map(|validator| (header::IF_RANGE, validator)));
        }
        let answer = (self.ask)(headers).map_err(|failure| if self.done > 0 { failure.again() } else { failure })?;
        let length = answer.length();
        self.skip = 0;
        match answer.status().as_u16() {
            200 if self.done > 0 && self.promise.digest.is_none() => {
                return Err(self.wrong("the server cannot go on where the connection was cut"));
            }
            200 => self.skip = self.done,
            206 if self.done > 0 => {
                let (start, total) = content_range(answer.headers()).ok_or_else(|| self.wrong("a malformed range"))?;
                let same = total.zip(self.promise.size).is_none_or(|(total, size)| total == size);
                if start != self.done || !same {
                    return Err(self.wrong(format!("the server sends another range than from byte {}", self.done)));
                }
            }
            status => return Err(self.wrong(format!("the server answers {status} to byte {}", self.done))),
        }
        self.owed = length;
        if let Some((length, size)) = length.zip(self.promise.size) {
            let whole = length.saturating_add(self.done - self.skip);
            if whole != size {
                return Err(self.wrong(format!("the server has {whole} bytes of it, {size} were promised")));
            }
        }
        if self.done == 0 {
            self.validator = validator(answer.headers());
        }
        self.answer = Some(answer);
        Ok(())
    }

    /// Fetches until there is a piece, or the body has ended and is what was promised.
    fn fill(&mut self) -> Result<()> {
        while self.piece.is_empty() && !self.ended {
            if let Err(failure) = self.step() {
                self.answer = None;
                // Without a digest only a validator tells that the rest is of the same body.
                if self.done > 0 && self.promise.digest.is_none() && self.validator.is_none() {
                    return Err(failure.into_error());
                }
                if self.done >= self.mark + PROGRESS {
                    (self.mark, self.pauses) = (self.done, Pauses::new(self.http.settings()));
                }
                self.pauses.wait(failure, None)?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Failure> {
        let Some(answer) = &mut self.answer else { return self.connect() };
        let silence = self.http.settings().silence;
        let start = Instant::now();
        let piece = answer.piece(silence)?;
        self.waited += start.elapsed();
        let Some(mut piece) = piece else { return self.end_of_answer() };
        self.came += piece.len() as u64;
        if self.waited > silence {
            let came = std::mem::take(&mut self.came);
            self.waited = Duration::ZERO;
            if came < TRICKLE {
                return Err(Failure::transient(format!("{}: {came} bytes in {} s", self.what, silence.as_secs())));
            }
        }
        self.owed = self.owed.map(|owed| owed.saturating_sub(piece.len() as u64));
        let known = self.skip.min(piece.len() as u64);
        self.skip -= known;
        piece.advance(usize::try_from(known).unwrap_or(usize::MAX));
        if self.promise.size.is_some_and(|size| self.done + piece.len() as u64 > size) {
            return Err(self.wrong(format!("longer than the {} bytes that were promised", self.size().unwrap_or(0))));
        }
        self.done += piece.len() as u64;
        self.hash.update(&piece);
        self.piece = piece;
        if self.promise.size == Some(self.done) {
            self.verify()?;
            self.ended = true;
            self.keep_connection();
        }
        Ok(())
    }

    /// The answer has ended as its head said, or its head said nothing: then it may just as well have been cut.
    fn end_of_answer(&mut self) -> Result<(), Failure> {
        match self.promise.size {
            Some(size) => Err(Failure::transient(format!(
                "{}: it ends after {} bytes, {size} were promised",
                self.what, self.done
            ))),
            None => {
                self.verify()?;
                self.ended = true;
                self.keep_connection();
                Ok(())
            }
        }
    }

    fn verify(&self) -> Result<()> {
        let Some(promised) = self.promise.digest else { return Ok(()) };
        let found = Digest::from_bytes(self.hash.clone().finalize().into());
        if found == promised {
            return Ok(());
        }
        Err(Error::new(Kind::Invalid, format!("{}: what came is {found}, {promised} was promised", self.what)))
    }

    /// The next request takes the connection, if the answer owes nothing more and so has ended.
    fn keep_connection(&mut self) {
        let owes_nothing = self.owed == Some(0);
        if let Some(mut answer) = self.answer.take().filter(|_| owes_nothing)
            && matches!(answer.piece(Duration::ZERO), Ok(None))
        {
            self.http.give_back(answer);
        }
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.failed {
            return Err(Error::new(Kind::Invalid, format!("{}: it has failed already", self.what)).into());
        }
        self.failed = true;
        self.fill()?;
        self.failed = false;
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// RFC 9110, 14.4: `bytes FIRST-LAST/TOTAL`, the total perhaps unknown.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = value.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.trim().parse().ok()?) };
    Some((first.trim().parse().ok()?, total))
}

/// RFC 9110, 13.1.5: a strong entity tag, else the date.
pub(super) fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let tag = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    tag.or_else(|| headers.get(header::LAST_MODIFIED)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        let range = |value: &'static str| {
            content_range(&HeaderMap::from_iter([(header::CONTENT_RANGE, HeaderValue::from_static(value))]))
        };
        assert_eq!(range("bytes 10-19/20"), Some((10, Some(20))));
        assert_eq!(range("bytes 10-19/*"), Some((10, None)));
        for bad in ["bytes */20", "10-19/20", "bytes -19/20", "bytes 10-19", "bytes a-b/c", ""] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_weak_tag_validates_nothing() {
        let tag =
            |value: &'static str| validator(&HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static(value))]));
        assert_eq!(tag("W/\"1\""), None);
        assert!(tag("\"1\"").is_some());
    }
}
