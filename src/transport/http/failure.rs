//! Why a request came to nothing: an error for people, and what a caller can do about it.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use crate::error::{Error, Kind};

/// A failed request.
pub(crate) struct Failure {
    error: Error,
    transient: bool,
    cause: Cause,
}

/// What a caller may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Nobody listens there.
    ConnectionRefused,
    /// Its name leads to no address.
    NoAddress,
    /// What answers does not speak TLS.
    NotTls,
    /// Its certificate is not trusted.
    Untrusted,
    /// Anything else.
    Other,
}

impl Failure {
    /// One that may be gone at the next try.
    pub(crate) fn transient(message: impl Into<String>) -> Failure {
        Failure { error: Error::new(Kind::Io, message), transient: true, cause: Cause::Other }
    }

    /// What went well until it was lost: worth another try.
    pub(crate) fn lost(error: Error) -> Failure {
        Failure { error, transient: true, cause: Cause::Other }
    }

    pub(crate) fn is_transient(&self) -> bool {
        self.transient
    }

    pub(crate) fn cause(&self) -> Cause {
        self.cause
    }

    /// The same, worth another try: in the middle of a body a server or a network that is gone may come back.
    pub(crate) fn again(mut self) -> Failure {
        self.transient |= matches!(self.cause, Cause::ConnectionRefused | Cause::NoAddress);
        self
    }

    pub(crate) fn into_error(self) -> Error {
        self.error
    }

    /// What reqwest says, in one line.
    pub(super) fn of(error: &reqwest::Error, url: &str) -> Failure {
        let mut chain: Vec<&(dyn StdError + 'static)> = Vec::new();
        let mut next: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(cause) = next {
            chain.push(cause);
            next = cause.source().or_else(|| {
                let io = cause.downcast_ref::<io::Error>()?;
                io.get_ref().map(|inner| inner as &(dyn StdError + 'static))
            });
        }
        let tls = chain.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>());
        let io = chain.iter().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let ours = chain.iter().find_map(|cause| cause.downcast_ref::<Error>());
        // The last has the reason; those above it say that there is one.
        let reason = chain.last().map_or_else(|| error.to_string(), ToString::to_string);
        let (cause, transient) = match (tls, io) {
            (Some(rustls::Error::InvalidCertificate(_)), _) => (Cause::Untrusted, false),
            (Some(rustls::Error::InvalidMessage(_)), _) => (Cause::NotTls, false),
            (Some(_), _) => (Cause::Other, false),
            _ if error.is_dns() => (Cause::NoAddress, false),
            (None, Some(io::ErrorKind::ConnectionRefused)) => (Cause::ConnectionRefused, false),
            // What cannot even be asked for will not get better.
            _ => (Cause::Other, !(error.is_builder() || ours.is_some())),
        };
        let (reason, hint) = match (tls, cause) {
            (Some(rustls::Error::InvalidCertificate(why)), _) => (certificate(why), Some(UNTRUSTED)),
            (_, Cause::NotTls) => ("the server does not speak TLS".to_string(), Some(NOT_TLS)),
            (_, Cause::ConnectionRefused) => ("connection refused".to_string(), Some(NOBODY)),
            (_, Cause::NoAddress) => (format!("find its address: {reason}"), None),
            _ if error.is_timeout() => ("it takes too long".to_string(), None),
            _ => (reason, None),
        };
        let error = Error::new(Kind::Io, format!("{url}: {reason}"));
        Failure { error: hint.into_iter().fold(error, Error::with_hint), transient, cause }
    }
}

const UNTRUSTED: &str = "put the certificate of its authority into /etc/containers/certs.d/HOST:PORT/ca.crt or into a \
                         directory for --cert-dir, or, where the network is trusted, give --tls-verify=false";
const NOT_TLS: &str = "where plain HTTP is meant, give --tls-verify=false, or an `insecure` entry in registries.conf";
const NOBODY: &str = "nothing listens there: see whether host and port are right and the server is running";

fn certificate(why: &rustls::CertificateError) -> String {
    use rustls::CertificateError as E;
    let why = match why {
        E::UnknownIssuer => "it is signed by an unknown authority".to_string(),
        E::Expired | E::ExpiredContext { .. } => "it has expired".to_string(),
        E::NotValidYet | E::NotValidYetContext { .. } => "it is not valid yet".to_string(),
        E::NotValidForName | E::NotValidForNameContext { .. } => "it is for another name".to_string(),
        other => other.to_string(),
    };
    format!("its certificate is not trusted: {why}")
}

impl From<Error> for Failure {
    /// For what no other try would change.
    fn from(error: Error) -> Failure {
        Failure { error, transient: false, cause: Cause::Other }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        failure.error
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}
