//! Registries: an image by its name, over the OCI distribution API.
//!
//! ```text
//! debian:12 ─ Reference ─> registries.conf ─> endpoints ─> manifest ─> index? choose ─> Found
//!             as typed     aliases, search    mirrors,                 a platform       config, layers
//!             (reference)  (registries)       its own (repository)     (manifest)
//! ```
//!
//! What comes from a registry is believed when its digest is right, and its digest comes from what was believed before:
//! the manifest's from the name (`@sha256:…`) or from nobody (a tag), all others from the manifest. Documents have a
//! limit of 4 MiB, an index may lead to another, four deep.
//!
//! The other way ([`Client::push`]) a registry is asked for every blob before it is sent, and what it calls things afterwards
//! is compared with what they are.
//!
//! The types of manifests are those of oci-spec. oci-client is not used: its `pull` holds layers in memory, what it resumes
//! it does not verify from the first byte, redirects and the pace of repeats are not its caller's to decide, and it
//! reads none of podman's files; what would be left of it are a few requests.

mod challenge;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod push;
mod reference;
mod registries;
mod repository;
mod surroundings;
mod upload;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

pub use credentials::Credential;
pub use push::{PushOptions, PushProgress, PushStep, Pushed};
pub use reference::Reference;
pub use surroundings::Surroundings;

use super::http::{Http, Promise, Trust};
use super::manifest::{self, Document, Pointer};
use super::{Blob, Blobs, Offer, Platform};
use crate::archive::Limits;
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::name::{Digest, ImageName};
use credentials::Keyring;
use registries::{Endpoint, Registries};
use repository::Repository;

pub use super::http::Settings;

/// Indexes that lead to one another.
const DEPTH: usize = 4;

/// How to get at registries.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether certificates are verified; `None` leaves it to registries.conf.
    pub tls_verify: Option<bool>,
    /// Who we are, to the registry of the name and to no mirror of it.
    pub credential: Option<Credential>,
    /// The one auth file to look at.
    pub auth_file: Option<PathBuf>,
    /// The one directory of certificates to look at.
    pub cert_dir: Option<PathBuf>,
    /// Patience.
    pub settings: Settings,
}

/// A client of registries.
pub struct Client {
    options: Options,
    around: Surroundings,
    registries: Registries,
    keyring: Keyring,
}

impl Client {
    /// A client as the options and the configuration files say.
    ///
    /// # Errors
    /// A configuration file that cannot be read or understood.
    pub fn new(options: Options, around: Surroundings) -> Result<Client> {
        let registries = Registries::read(&around)?;
        let keyring = Keyring::new(&around, options.auth_file.as_deref(), &registries.credential_helpers);
        Ok(Client { options, around, registries, keyring })
    }

    /// Finds an image: asks for manifests, and for nothing else.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when no place that the name leads to has it for this platform, [`Kind::Permission`] when they
    /// do not let us in, [`Kind::Invalid`] when what they say does not fit together.
    pub fn find(&self, reference: &Reference, platform: &Platform) -> Result<Found> {
        let mut failures = Vec::new();
        for candidate in self.registries.resolve(reference)? {
            for endpoint in self.registries.endpoints(&candidate)? {
                match self.find_at(&candidate, &endpoint, platform) {
                    Ok(found) => return Ok(found),
                    Err(failure) => {
                        interrupt::check()?;
                        log::debug!("{}: {failure}", endpoint.reference);
                        failures.push((endpoint.reference, failure));
                    }
                }
            }
        }
        // The last is the most authoritative: mirrors come before what they mirror.
        match failures.pop() {
            Some((_, failure)) if failures.is_empty() => Err(failure),
            Some((place, failure)) => {
                let others: Vec<String> = failures.iter().map(|(place, why)| format!("; {place}: {why}")).collect();
                let (kind, hint) = (failure.kind(), failure.hint().map(str::to_string));
                let error = Error::new(kind, format!("{place}: {failure}{}", others.concat()));
                Err(hint.into_iter().fold(error, Error::with_hint))
            }
            None => Err(Error::new(Kind::NotFound, "the name leads nowhere")),
        }
    }

    fn find_at(&self, name: &Reference, endpoint: &Endpoint, platform: &Platform) -> Result<Found> {
        let place = &endpoint.reference;
        let credential = self.credential(name, place)?;
        let (http, insecure) = self.http(place.name.registry(), endpoint.insecure);
        let repository = Arc::new(Repository::new(http, place, credential, insecure));
        let mut version = place.version();
        let mut promise = Promise::default();
        for _ in 0..=DEPTH {
            let (bytes, kind) = repository.manifest(&version, promise)?;
            match Document::parse(&bytes, kind.as_deref()).context(|| format!("manifest {version}"))? {
                Document::Image { config, layers } => {
                    return Ok(Found {
                        name: name.image_name(),
                        manifest: Digest::of(&bytes),
                        config,
                        layers,
                        place: place.place(),
                        repository,
                    });
                }
                Document::Index(index) => {
                    let chosen = manifest::choose(&index, platform)?;
                    version = chosen.digest.to_string();
                    promise = Promise { digest: Some(chosen.digest), size: Some(chosen.size) };
                }
            }
        }
        Err(Error::new(Kind::Limit, format!("more than {DEPTH} indexes that lead to one another")))
    }

    /// Who we are at a place that a name leads to.
    fn credential(&self, name: &Reference, place: &Reference) -> Result<Option<Credential>> {
        match &self.options.credential {
            Some(given) if place.name.registry() == name.name.registry() => Ok(Some(given.clone())),
            _ => self.keyring.find(&place.place()),
        }
    }

    /// The way to a registry, and whether it may be insecure.
    fn http(&self, host: &str, insecure: bool) -> (Arc<Http>, bool) {
        let insecure = self.options.tls_verify.map_or(insecure, |verify| !verify);
        let directory = Trust::directory_of(self.options.cert_dir.as_deref(), self.around.home.as_deref(), host);
        let trust = Trust { anybody: insecure, directory };
        (Arc::new(Http::new(trust, self.options.settings.clone())), insecure)
    }

    /// Keeps a user's name and password for a registry, once the registry has accepted them.
    ///
    /// # Errors
    /// [`Kind::Permission`] when it does not.
    pub fn login(&self, host: &str, user: &str, password: &str) -> Result<()> {
        let host = registry_name(host)?;
        let (http, insecure) = self.http(&host, self.registries.is_insecure(&host));
        let registry = Repository::registry(http, &host, Credential::password(user, password), insecure);
        registry.check_credential()?;
        self.keyring.store(&host, user, password)
    }

    /// Forgets what is kept for a registry, or for all. Whether there was something.
    ///
    /// # Errors
    /// The auth file's.
    pub fn logout(&self, host: Option<&str>) -> Result<bool> {
        let host = host.map(registry_name).transpose()?;
        self.keyring.erase(host.as_deref())
    }

    /// Who we are to a registry.
    ///
    /// # Errors
    /// The auth files'.
    pub fn logged_in(&self, host: &str) -> Result<Option<Credential>> {
        self.keyring.find(&registry_name(host)?)
    }
}

/// `HOST[:PORT]` of what people type for a registry.
fn registry_name(text: &str) -> Result<String> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let host = bare.trim_end_matches('/');
    let name: ImageName = format!("{host}/x").parse()?;
    if host.is_empty() || name.registry() == "localhost" && host != "localhost" {
        return Err(Error::new(Kind::Invalid, format!("registry {text:?}: not HOST[:PORT]")));
    }
    Ok(name.registry().to_string())
}

/// An image that a registry has.
pub struct Found {
    name: Option<ImageName>,
    manifest: Digest,
    config: Pointer,
    layers: Vec<Blob>,
    place: String,
    repository: Arc<Repository>,
}

impl Found {
    /// The digest of its config, which is its id.
    pub fn digest(&self) -> Digest {
        self.config.digest
    }

    /// The name that it gets here: none where it was asked for by digest.
    pub fn name(&self) -> Option<&ImageName> {
        self.name.as_ref()
    }

    /// Fetches the config, and so all that is to be known before the layers.
    ///
    /// # Errors
    /// Those of the registry; [`Kind::Limit`] for a config that is too large.
    pub fn offer(&self, limits: &Limits) -> Result<Offer> {
        limits.require_config(self.config.size)?;
        let config = self.repository.small_blob(self.config, &format!("config {}", self.config.digest))?;
        let names = self.name.iter().cloned().collect();
        let (layers, place) = (self.layers.clone(), Some(self.place.clone()));
        Ok(Offer { names, manifest: Some(self.manifest), config, layers, place })
    }
}

impl Blobs for Found {
    /// Asks for the layer; may be called by several threads at once, each of which gets a connection of its own.
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send>> {
        let (Some(digest), Some(size)) = (blob.digest, blob.size) else {
            return Err(Error::new(Kind::Invalid, "a layer without digest and size"));
        };
        Ok(Box::new(self.repository.blob(Pointer { digest, size })?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_as_people_do() {
        for (text, name) in [
            ("https://quay.io/", "quay.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("localhost", "localhost"),
            ("index.docker.io", "docker.io"),
        ] {
            assert_eq!(registry_name(text).expect(text), name);
        }
        for text in ["", "quay", "a b.io", "quay.io/x/../y", "/"] {
            assert!(registry_name(text).is_err(), "{text}");
        }
    }
}
