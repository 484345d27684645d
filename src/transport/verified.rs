//! A reader that knows what it has to be (the idea is umoci's VerifiedReadCloser).

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind};
use crate::name::Digest;

/// Fails at the end, or before, when the bytes are not those of the digest and the size.
pub(super) struct Verified<R> {
    reader: R,
    wanted: Digest,
    /// Of how many bytes more its size is known.
    left: Option<u64>,
    hash: Option<Sha256>,
}

/// A reader that fails at its end when its bytes are not those of the digest.
pub(crate) fn verified<R: Read>(reader: R, wanted: Digest) -> impl Read + use<R> {
    Verified { reader, wanted, left: None, hash: Some(Sha256::new()) }
}

impl<R: Read> Verified<R> {
    pub(super) fn new(reader: R, wanted: Digest, size: u64) -> Verified<R> {
        Verified { reader, wanted, left: Some(size), hash: Some(Sha256::new()) }
    }

    fn wrong(&self, why: &str) -> io::Error {
        Error::new(Kind::Invalid, format!("blob {}: {why}", self.wanted)).into()
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(into)?;
        if into.is_empty() {
            return Ok(0);
        }
        if let Some(left) = &mut self.left {
            match left.checked_sub(length as u64) {
                Some(rest) => *left = rest,
                None => return Err(self.wrong("is longer than its descriptor says")),
            }
        }
        if length > 0 {
            if let Some(hash) = &mut self.hash {
                hash.update(&into[..length]);
            }
            return Ok(length);
        }
        if self.left.is_some_and(|left| left > 0) {
            return Err(self.wrong("is shorter than its descriptor says"));
        }
        match self.hash.take().map(|hash| Digest::from_bytes(hash.finalize().into())) {
            Some(found) if found != self.wanted => Err(self.wrong(&format!("its digest is {found}"))),
            _ => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_digest_and_the_size() {
        let digest = Digest::from_bytes(Sha256::digest(b"text").into());
        let read = |bytes: &'static [u8], size| {
            let mut text = Vec::new();
            Verified::new(bytes, digest, size).read_to_end(&mut text).map(|_| text).map_err(|e| e.to_string())
        };
        assert_eq!(read(b"text", 4).expect("it is"), b"text");
        for (bytes, size, why) in [
            (&b"tex"[..], 4, "shorter"),
            (b"text", 5, "shorter"),
            (b"text", 3, "longer"),
            (b"texts", 4, "longer"),
            (b"tent", 4, "its digest is sha256:"),
            (b"", 0, "its digest is sha256:"),
        ] {
            let error = read(bytes, size).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }
}
