//! What a fuzzer asks of this room: names, challenges and registries.conf, whatever their bytes are.

use std::fmt::Display;
use std::str::FromStr;

use reqwest::header::{self, HeaderMap};

use super::super::http::fuzz::values;
use super::{Reference, Registries, challenge};
use crate::error::{Error, Kind};
use crate::name::{Digest, Id, ImageName, NetworkName, ObjectName, VolumeName};
use crate::transport::Platform;

/// What a person types for an image; and for other things.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(name) = again::<ImageName>(text) {
        assert!(name.to_string().len() <= 255 && name.is_meant_by(text), "{text:?} does not mean {name}");
        let path = format!("{}/{}", name.registry(), name.repository());
        assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")), "{text:?} is the path {path}");
    }
    if let Ok(said) = text.parse::<Reference>() {
        let Ok(same) = said.to_string().parse::<Reference>() else { panic!("{said} is no reference") };
        let parts = |r: &Reference| (r.place(), r.version(), r.short, r.digest);
        assert_eq!(parts(&same), parts(&said), "{text:?}");
        let Ok(there) = said.at("registry.example:5000/mirror") else { return };
        assert_eq!((there.place().as_str(), there.short), ("registry.example:5000/mirror", false));
    }
    let _ = (again::<Digest>(text), again::<Id>(text), again::<Platform>(text));
    let _ = (again::<VolumeName>(text), again::<NetworkName>(text));
    if let Some(name) = again::<ObjectName>(text) {
        assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'), "{name} is no file's name");
    }
}

/// What is parsed and printed parses to the same.
fn again<T: FromStr<Err = Error> + Display + PartialEq>(text: &str) -> Option<T> {
    let parsed: T = text.parse().ok()?;
    assert!(parsed.to_string().parse::<T>().is_ok_and(|same| same == parsed), "{text:?} is {parsed}, and that is not");
    Some(parsed)
}

/// `WWW-Authenticate`, a header a line.
pub fn challenge(bytes: &[u8]) {
    let headers: HeaderMap = HeaderMap::from_iter(values(bytes).map(|value| (header::WWW_AUTHENTICATE, value)));
    let all: HeaderMap = values(bytes).fold(HeaderMap::new(), |mut all, value| {
        all.append(header::WWW_AUTHENTICATE, value);
        all
    });
    let _ = challenge::best(&headers);
    let _ = challenge::best(&all);
}

/// A line that names an image, and registries.conf.
pub fn registries(bytes: &[u8]) {
    let Some((named, text)) = std::str::from_utf8(bytes).ok().and_then(|text| text.split_once('\n')) else { return };
    let mut registries = Registries::default();
    if registries.add(text).is_err() {
        return;
    }
    let Ok(reference) = named.parse::<Reference>() else { return };
    for whole in registries.resolve(&reference).unwrap_or_default() {
        assert!(!whole.short, "{reference} is resolved to {whole}");
        assert_eq!((whole.name.tag(), whole.digest), (reference.name.tag(), reference.digest), "{whole}");
        let _ = registries.is_insecure(whole.name.registry());
        match registries.endpoints(&whole) {
            Ok(endpoints) => assert!(!endpoints.is_empty(), "{whole} is nowhere"),
            Err(error) => assert!(matches!(error.kind(), Kind::Permission | Kind::Invalid), "{error}"),
        }
    }
}
