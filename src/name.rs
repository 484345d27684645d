//! Names and digests: parsed once at the edge, valid ever after.
//!
//! Sources: digests OCI image-spec descriptor.md, "Digests"; image names distribution-spec "Pulling manifests" and
//! containers/image `docker/reference`; object names podman-create(1) `--name`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind, Result};

/// Thirty-two bytes written as 64 hex digits: the shape of every id in tupper.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

impl Id {
    /// The id with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Id {
        Id(bytes)
    }

    /// The first twelve digits, as tables show it.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Id> {
        let bad = || Error::new(Kind::Invalid, format!("id {text:?}: not 64 lower-case hex digits"));
        if text.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = hex(pair[0]).zip(hex(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
        }
        Ok(Id(bytes))
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// A sha256 digest, written `sha256:HEX`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Id);

impl Digest {
    /// The digest whose value is these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(Id(bytes))
    }

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Id(Sha256::digest(bytes).into()))
    }

    /// The value without its algorithm: what an image's id is.
    pub fn id(&self) -> Id {
        self.0
    }
}

impl From<Id> for Digest {
    fn from(id: Id) -> Digest {
        Digest(id)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest> {
        text.strip_prefix("sha256:").and_then(|value| value.parse().ok()).map(Digest).ok_or_else(|| {
            Error::new(Kind::Invalid, format!("digest {text:?}: not sha256: and 64 lower-case hex digits"))
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a snapshot or container: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 200 bytes (podman-create(1)).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

impl ObjectName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ObjectName {
    type Err = Error;

    fn from_str(text: &str) -> Result<ObjectName> {
        require_plain(text)?;
        // A name that reads as an id would hide the object with that id.
        if text.len() == 64 && text.parse::<Id>().is_ok() {
            return Err(Error::new(Kind::Invalid, format!("name {text:?}: reads as an id")));
        }
        Ok(ObjectName(text.to_string()))
    }
}

impl TryFrom<String> for ObjectName {
    type Error = Error;

    fn try_from(text: String) -> Result<ObjectName> {
        text.parse()
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> String {
        name.0
    }
}

/// The name of a volume: as that of a snapshot or container, and it may read as an id, as those do that nobody chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<VolumeName> {
        require_plain(text)?;
        Ok(VolumeName(text.to_string()))
    }
}

impl TryFrom<String> for VolumeName {
    type Error = Error;

    fn try_from(text: String) -> Result<VolumeName> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.0
    }
}

/// The name of a network: as that of a volume. `none`, `host`, `container` and `default` mean something else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

impl NetworkName {
    /// The network that there always is, and that containers are in by default.
    pub fn bridge() -> NetworkName {
        NetworkName("bridge".to_string())
    }

    /// The network that there always is for bare pairs.
    pub fn ptp() -> NetworkName {
        NetworkName("ptp".to_string())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NetworkName {
    type Err = Error;

    fn from_str(text: &str) -> Result<NetworkName> {
        require_plain(text)?;
        if matches!(text, "none" | "host" | "container" | "default") {
            return Err(Error::new(Kind::Invalid, format!("name {text:?}: not the name of a network")));
        }
        Ok(NetworkName(text.to_string()))
    }
}

impl TryFrom<String> for NetworkName {
    type Error = Error;

    fn try_from(text: String) -> Result<NetworkName> {
        text.parse()
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> String {
        name.0
    }
}

fn require_plain(text: &str) -> Result<()> {
    let first = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first && rest && text.len() <= 200 {
        return Ok(());
    }
    let problem = "not a letter or digit followed by letters, digits, '_', '.' or '-' (at most 200)";
    Err(Error::new(Kind::Invalid, format!("name {text:?}: {problem}")))
}

/// The name of an image: `REGISTRY/REPOSITORY:TAG`, as podman completes it.
///
/// `debian`, `debian:12` and `localhost/debian:12` parse; a name without a registry gets `localhost`, one without a
/// tag `latest`, and `docker.io/debian` is `docker.io/library/debian` (containers-registries.conf(5)). At most 255 bytes in
/// all, because the store keeps it as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    registry: String,
    repository: String,
    tag: String,
}

impl ImageName {
    /// `HOST[:PORT]`, or `localhost`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path below the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl ImageName {
    /// Whether somebody who writes `text` may mean this name: it is the name, or has no registry and is the end of it, as
    /// podman looks for images that are there: `debian:12` for `docker.io/library/debian:12`.
    pub fn is_meant_by(&self, text: &str) -> bool {
        let Ok(said) = text.parse::<ImageName>() else { return false };
        let ends = || self.repository.strip_suffix(&said.repository).is_some_and(|r| r.is_empty() || r.ends_with('/'));
        said == *self || (!names_registry(text) && said.tag == self.tag && ends())
    }
}

/// Whether the first part of an image's name is a registry: it has a dot or a port, or is `localhost`.
fn names_registry(text: &str) -> bool {
    text.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost")
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageName> {
        let bad = |why: &str| Error::new(Kind::Invalid, format!("image name {text:?}: {why}"));
        if text.contains('@') {
            return Err(bad("names a digest, where a tag is needed"));
        }
        // A colon after the last slash begins the tag; one before it belongs to the registry's port.
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match text[last..].split_once(':') {
            Some((name, tag)) => (&text[..last + name.len()], tag),
            None => (text, "latest"),
        };
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if names_registry(path) => (first, rest),
            _ => ("localhost", path),
        };
        if !is_registry(registry) {
            return Err(bad("the registry is not HOST[:PORT]"));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(bad("the repository is not made of lower-case letters, digits and single '.', '_' or '-'"));
        }
        let tag_ok = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag_ok {
            return Err(bad("the tag is not letters, digits, '_', '.' or '-' (at most 128)"));
        }
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let repository = match repository {
            official if registry == "docker.io" && !official.contains('/') => format!("library/{official}"),
            repository => repository.to_string(),
        };
        let name = ImageName { registry: registry.to_string(), repository, tag: tag.to_string() };
        match name.to_string().len() {
            0..=255 => Ok(name),
            n => Err(bad(&format!("{n} bytes long with registry and tag, more than 255"))),
        }
    }
}

/// Labels between dots, and a port (containers/image `docker/reference`): the host is the name of a directory, too.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let label = |label: &str| {
        let letters = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && letters
    };
    host.split('.').all(label) && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, the distribution-spec's path component.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    if !alphanumeric(bytes.first()) || !alphanumeric(bytes.last()) {
        return false;
    }
    bytes
        .split(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        .filter(|gap| !gap.is_empty())
        .all(|gap| matches!(gap, b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_the_end_of_whole_ones() {
        let name: ImageName = "docker.io/library/debian:12".parse().expect("a name");
        for text in ["docker.io/library/debian:12", "docker.io/debian:12", "library/debian:12", "debian:12"] {
            assert!(name.is_meant_by(text), "{text}");
        }
        for text in ["debian", "ian:12", "localhost/debian:12", "quay.io/debian:12", "debian:1", "", "y/debian:12"] {
            assert!(!name.is_meant_by(text), "{text}");
        }
    }

    #[test]
    fn image_names_are_completed_as_podman_does() {
        for (text, whole) in [
            ("debian", "localhost/debian:latest"),
            ("debian:12", "localhost/debian:12"),
            ("localhost/debian:12", "localhost/debian:12"),
            ("my/app", "localhost/my/app:latest"),
            ("quay.io/a/b-c__d.e:v1.0", "quay.io/a/b-c__d.e:v1.0"),
            ("127.0.0.1:5000/deb:multi", "127.0.0.1:5000/deb:multi"),
            ("host:5000/deb", "host:5000/deb:latest"),
            ("docker.io/debian:12", "docker.io/library/debian:12"),
            ("docker.io/a/b", "docker.io/a/b:latest"),
        ] {
            assert_eq!(text.parse::<ImageName>().expect(text).to_string(), whole);
        }
        for text in
            ["", "/", "a/", "/a", "A", "a b", "a:", "a:-x", "a@sha256:00", "a..b", "a/../b", "a:b:c", "-a", "a/b_-c"]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
        for text in ["../a", "./a", ".../a", "a./b", ".a/b", "-a.b/c", "a.b-/c", "a.b:/c", "a.b:x/c", "a:1:2/c"] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
        assert!(format!("{}:1", "a".repeat(300)).parse::<ImageName>().is_err());
    }

    #[test]
    fn digests_are_strict() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(format!("sha256:{hex}").parse::<Digest>().expect("valid").to_string(), format!("sha256:{hex}"));
        for text in [
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            "sha256:../..".into(),
            format!("sha256:{hex}0"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn object_names_never_leave_their_directory() {
        for text in ["", ".", "..", "a/b", "-a", ".a", "a\n", "é", &"a".repeat(201), &"0".repeat(64)] {
            assert!(text.parse::<ObjectName>().is_err(), "{text:?}");
        }
        assert!("web-1_x.y".parse::<ObjectName>().is_ok());
    }
}
