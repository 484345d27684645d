//! What a fuzzer asks of this room: the headers of an answer, a line each.

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::body::{content_range, validator};
use super::{Url, parse, retry_after, shown};

/// The lines of the bytes that can be a header's value.
pub(crate) fn values(bytes: &[u8]) -> impl Iterator<Item = HeaderValue> + '_ {
    bytes.split(|&b| b == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok())
}

/// Headers that say how a body goes on, when to ask again, and where to.
pub fn headers(bytes: &[u8]) {
    for value in values(bytes) {
        let with = |name: HeaderName| HeaderMap::from_iter([(name, value.clone())]);
        if let Some((first, Some(total))) = content_range(&with(header::CONTENT_RANGE)) {
            let again = format!("bytes {first}-/{total}").parse().map(|value| (header::CONTENT_RANGE, value));
            assert_eq!(content_range(&HeaderMap::from_iter(again)), Some((first, Some(total))));
        }
        let weak = validator(&with(header::ETAG)).is_some_and(|tag| tag.as_bytes().starts_with(b"W/"));
        assert!(!weak, "a weak tag validates nothing");
        let _ = retry_after(&with(header::RETRY_AFTER));
        // A redirect.
        let Some(url) = value.to_str().ok().and_then(|text| parse(text).ok()) else { continue };
        assert!(matches!(url.scheme(), "http" | "https") && url.has_host());
        let secrets = |url: &Url| url.password().is_some() || !url.username().is_empty() || url.query().is_some();
        assert!(parse(&shown(&url)).is_ok_and(|shown| !secrets(&shown)), "{} shows a secret", shown(&url));
        assert!(parse(url.as_str()).is_ok_and(|again| again == url), "{url} is another when it is read again");
    }
}
