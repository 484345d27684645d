//! Whom to trust: the system's authorities, those of one registry, or, when asked, anybody.
//!
//! Sources: containers-certs.d(5); the directory of a registry is the first that there is of the user's, podman's and
//! Docker's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{Context, Error, Kind, Result};

/// Whom to trust.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust {
    /// Anybody: certificates are not looked at.
    pub(crate) anybody: bool,
    /// A directory with `*.crt` (authorities) and `*.cert` with `*.key` (what to show when asked who we are).
    pub(crate) directory: Option<PathBuf>,
}

impl Trust {
    /// The directory of `HOST[:PORT]`: that of the flag, or the first of the usual ones that exists.
    pub(crate) fn directory_of(flag: Option<&Path>, home: Option<&Path>, host: &str) -> Option<PathBuf> {
        if let Some(given) = flag {
            return Some(given.to_path_buf());
        }
        let user = home.map(|home| home.join(".config/containers/certs.d"));
        let usual = user.into_iter().chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from));
        usual.map(|dir| dir.join(host)).find(|dir| dir.is_dir())
    }

    /// The configuration of a TLS client.
    ///
    /// # Errors
    /// A file in the directory that is no certificate or key; no authority at all.
    pub(super) fn config(&self) -> Result<ClientConfig> {
        let own = self.directory.as_deref().map(Own::read).transpose()?.unwrap_or_default();
        let provider = provider();
        let verifier: Arc<dyn ServerCertVerifier> = if self.anybody {
            Arc::new(Anybody(Arc::clone(&provider)))
        } else {
            let system = rustls_native_certs::load_native_certs();
            for error in &system.errors {
                log::debug!("read the system's certificates: {error}");
            }
            let mut roots = RootCertStore::empty();
            // The system's list may hold some that webpki does not take.
            roots.add_parsable_certificates(system.certs);
            for (file, authority) in &own.authorities {
                roots.add(authority.clone()).map_err(|e| bad(file, e))?;
            }
            if roots.is_empty() {
                return Err(Error::new(Kind::Unsupported, "there is no certificate authority to trust")
                    .with_hint("install the package ca-certificates, or give --cert-dir"));
            }
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            let inner = inner.build().map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
            let named = own.authorities.into_iter().map(|(_, authority)| authority).collect();
            Arc::new(NamedOrSigned { inner, named })
        };
        let builder = versions(&provider)?.dangerous().with_custom_certificate_verifier(verifier);
        match own.identity {
            None => Ok(builder.with_no_client_auth()),
            Some((file, chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| bad(&file, e)),
        }
    }
}

/// The configuration of a client that will not meet TLS.
pub(super) fn nobody() -> Result<ClientConfig> {
    Ok(versions(&provider())?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn versions(provider: &Arc<CryptoProvider>) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Kind::Unsupported, e.to_string()))
}

fn bad(file: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("{}: {why}", file.display()))
}

/// What the directory of a registry holds.
#[derive(Default)]
struct Own {
    authorities: Vec<(PathBuf, CertificateDer<'static>)>,
    identity: Option<(PathBuf, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Own {
    fn read(directory: &Path) -> Result<Own> {
        let mut own = Own::default();
        let listed = std::fs::read_dir(directory).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let mut files: Vec<PathBuf> =
            listed.context(|| format!("read {}", directory.display()))?.iter().map(std::fs::DirEntry::path).collect();
        files.sort();
        for file in files {
            match file.extension().and_then(|e| e.to_str()) {
                Some("crt") => {
                    own.authorities.extend(certificates(&file)?.into_iter().map(|one| (file.clone(), one)));
                }
                Some("cert") => {
                    let key = file.with_extension("key");
                    let text = std::fs::read(&key).context(|| format!("the key of {}", file.display()))?;
                    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|e| bad(&key, e))?;
                    own.identity = Some((file.clone(), certificates(&file)?, key));
                }
                _ => {}
            }
        }
        Ok(own)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read(file).context(|| format!("read {}", file.display()))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|e| bad(file, e))?;
    if found.is_empty() { Err(bad(file, "there is no certificate in it")) } else { Ok(found) }
}

/// Signed by one who is trusted, or named itself. Docker's recipe for a registry of one's own makes one certificate that
/// is both authority and server; webpki refuses it as a server's, Go takes it.
#[derive(Debug)]
struct NamedOrSigned {
    inner: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for NamedOrSigned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // webpki's CaUsedAsEndEntity has no name of its own in rustls. The time has been checked before it.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if self.named.contains(end_entity) => {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whoever holds the key of the certificate that is shown, whatever it says.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
