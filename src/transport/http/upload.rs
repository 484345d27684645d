//! What goes out with a request: bytes in memory, and how many of them are gone.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use reqwest::header::HeaderValue;

/// Bytes that are handed to a connection at a time.
const PIECE: usize = 64 << 10;

const FORM: &str = "application/x-www-form-urlencoded";

/// The body of a request.
#[derive(Clone)]
pub(crate) struct Payload {
    pub(super) kind: HeaderValue,
    bytes: Bytes,
}

impl Payload {
    /// Bytes of a media type.
    pub(crate) fn new(kind: &'static str, bytes: impl Into<Bytes>) -> Payload {
        Payload { kind: HeaderValue::from_static(kind), bytes: bytes.into() }
    }

    pub(crate) fn form(text: String) -> Payload {
        Payload::new(FORM, text)
    }

    pub(super) fn is_form(&self) -> bool {
        self.kind == FORM
    }

    pub(super) fn body(&self, taken: &Taken) -> reqwest::Body {
        reqwest::Body::wrap(Counted { left: self.bytes.clone(), taken: taken.clone() })
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A form may hold a token.
        write!(f, "{:?}, {} bytes", self.kind, self.bytes.len())
    }
}

/// How many bytes a connection has taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken(Arc<AtomicU64>);

impl Taken {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Counted {
    left: Bytes,
    taken: Taken,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(PIECE);
        let piece = self.left.split_to(length);
        self.taken.0.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
