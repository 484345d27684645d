//! What a person types for an image in a registry: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`.
//!
//! Sources: containers/image `docker/reference`; distribution-spec, "Pulling manifests". A digest wins over a tag
//! beside it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};
use crate::name::{Digest, ImageName};

/// A reference, short (without a registry) or whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The name; that of a short one is completed with `localhost`, which means nothing yet.
    pub(super) name: ImageName,
    /// Without a registry.
    pub(super) short: bool,
    /// The manifest's digest, where one is given.
    pub(super) digest: Option<Digest>,
}

impl Reference {
    /// The same image at another `HOST[:PORT]/REPOSITORY`.
    ///
    /// # Errors
    /// When that is no name.
    pub(super) fn at(&self, place: &str) -> Result<Reference> {
        let name: ImageName = format!("{place}:{}", self.name.tag()).parse()?;
        Ok(Reference { name, short: false, digest: self.digest })
    }

    /// `HOST[:PORT]/REPOSITORY`.
    pub(super) fn place(&self) -> String {
        format!("{}/{}", self.name.registry(), self.name.repository())
    }

    /// What the manifest is asked for by: the digest, or the tag.
    pub(super) fn version(&self) -> String {
        self.digest.map_or_else(|| self.name.tag().to_string(), |digest| digest.to_string())
    }

    /// The name that the image gets here: none where it was asked for by digest.
    pub(super) fn image_name(&self) -> Option<ImageName> {
        self.digest.is_none().then(|| self.name.clone())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let bad = |why: &str| Error::new(Kind::Invalid, format!("image {text:?}: {why}"));
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        if rest.contains("://") {
            return Err(bad("not a name in a registry").with_hint("write REGISTRY/REPOSITORY:TAG"));
        }
        let (named, digest) = match rest.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse::<Digest>().map_err(|e| bad(&e.to_string()))?)),
            None => (rest, None),
        };
        let name: ImageName = named.parse()?;
        let short = !named.starts_with(&format!("{}/", name.registry())) && name.registry() == "localhost";
        Ok(Reference { name, short, digest })
    }
}

/// As it was typed, with its tag: a short one has no registry yet.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.short {
            write!(f, "{}/", self.name.registry())?;
        }
        match self.digest {
            Some(digest) => write!(f, "{}@{digest}", self.name.repository()),
            None => write!(f, "{}:{}", self.name.repository(), self.name.tag()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_podman_does() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, whole, short) in [
            ("debian", "debian:latest", true),
            ("my/app:1", "my/app:1", true),
            ("localhost/debian", "localhost/debian:latest", false),
            ("docker.io/debian", "docker.io/library/debian:latest", false),
            ("docker://index.docker.io/debian:12", "docker.io/library/debian:12", false),
            ("docker.io/a/b", "docker.io/a/b:latest", false),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", false),
            (&format!("quay.io/a@{digest}"), &format!("quay.io/a@{digest}"), false),
            (&format!("quay.io/a:1@{digest}"), &format!("quay.io/a@{digest}"), false),
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!((reference.to_string().as_str(), reference.short), (whole, short));
        }
        for text in ["", "a@", "a@sha256:00", "a@md5:00", "oci://x/y", "https://quay.io/a", "A/b", "quay.io/../a"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
