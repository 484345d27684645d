//! TLS: whom a pull trusts, what it shows, and that nothing leads it away from there.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tupper::error::Result;

use tupper::transport::registry::Surroundings;

use super::fixture::{Image, Pulled, assert_is, client, options, pull_with, registry};
use crate::support::certificates;
use crate::support::command::finish;
use crate::support::http::{Asked, Reply, Server};
use crate::support::store::{Store, alone};

/// What a server shows that has `server.crt` and `server.key` of a directory, and, where `clients` says so, wants to see
/// a certificate of its authority.
fn shows(dir: &Path, clients: bool) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = |name: &str| CertificateDer::from_pem_file(dir.join(name)).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.expect("versions");
    let builder = if clients {
        let mut roots = RootCertStore::empty();
        roots.add(certificate("ca.crt")).expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.expect("a verifier"))
    } else {
        builder.with_no_client_auth()
    };
    builder.with_single_cert(vec![certificate("server.crt")], key).expect("a certificate and its key")
}

fn made(make: impl FnOnce(&Path)) -> TempDir {
    let dir = tempfile::Builder::new().prefix("tupper-certificates-").tempdir().expect("a scratch directory");
    make(dir.path());
    dir
}

/// A registry that speaks TLS, honest but for what `lie` answers.
fn secure(
    image: &Image,
    config: ServerConfig,
    lie: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let image = image.clone();
    Server::with_tls(config, move |asked| lie(asked).unwrap_or_else(|| image.answer(asked)))
}

/// A pull that trusts whom the directory says.
fn pull_trusting(certs: &Path, server: &Server) -> Result<Pulled> {
    let mut options = options();
    options.tls_verify = Some(true);
    options.cert_dir = Some(certs.to_path_buf());
    pull_with(&client(options), server)
}

#[test]
fn a_redirect_out_of_tls_is_refused() {
    let (image, dir) = (Image::new(), made(certificates::authority));
    let elsewhere = registry(&image, |_| None);
    let honest = secure(&image, shows(dir.path(), false), |_| None);
    assert_is(pull_trusting(&dir.path().join("certs"), &honest), &image);
    for part in ["/blobs/", "/manifests/"] {
        let plain = elsewhere.host();
        let server = secure(&image, shows(dir.path(), false), move |asked| {
            asked.path.contains(part).then(|| Reply::redirect(format!("http://{plain}{}", asked.path)))
        });
        let error = pull_trusting(&dir.path().join("certs"), &server).expect_err("a redirect").to_string();
        assert!(error.contains("a redirect from https to http://") && error.contains("refused"), "{error}");
        assert_eq!(server.count("/v2/a/image/manifests/"), 1, "it was tried again");
    }
    assert_eq!(elsewhere.asked(), [], "something was asked for without TLS");
    // From one server with TLS to another it may lead.
    let other = honest.host();
    let server = secure(&image, shows(dir.path(), false), move |asked| {
        asked.path.contains("/blobs/").then(|| Reply::redirect(format!("https://{other}{}", asked.path)))
    });
    assert_is(pull_trusting(&dir.path().join("certs"), &server), &image);
}

#[test]
fn a_token_server_without_tls_sees_no_password() {
    let (image, dir) = (Image::new(), made(certificates::authority));
    let realm = Server::start(|_| Reply::new(200, r#"{"token":"t"}"#));
    let host = realm.host();
    let server = secure(&image, shows(dir.path(), false), move |_| {
        Some(Reply::new(401, "").with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\"")))
    });
    let error = pull_trusting(&dir.path().join("certs"), &server).expect_err("no TLS").to_string();
    assert!(error.contains("without TLS: refused"), "{error}");
    assert_eq!(realm.asked(), []);
}

#[test]
fn who_is_asked_for_a_certificate_shows_that_of_the_directory() {
    let (image, dir) = (Image::new(), made(certificates::authority));
    let server = secure(&image, shows(dir.path(), true), |_| None);
    let certs = dir.path().join("certs");
    pull_trusting(&certs, &server).expect_err("nothing was shown");
    assert_eq!(server.asked(), [], "a request without a certificate was answered");
    std::fs::copy(dir.path().join("client.crt"), certs.join("me.cert")).expect("a copy");
    let error = pull_trusting(&certs, &server).expect_err("no key").to_string();
    assert!(error.contains("the key of") && error.contains("me.cert"), "{error}");
    std::fs::copy(dir.path().join("client.key"), certs.join("me.key")).expect("a copy");
    assert_is(pull_trusting(&certs, &server), &image);
    // The same in the place where podman looks.
    let home = tempfile::tempdir().expect("a directory");
    let usual = home.path().join(".config/containers/certs.d").join(server.host());
    std::fs::create_dir_all(&usual).expect("directories");
    for name in ["ca.crt", "me.cert", "me.key"] {
        std::fs::copy(certs.join(name), usual.join(name)).expect("a copy");
    }
    let mut around = Surroundings::none();
    around.home = Some(home.path().to_path_buf());
    let mut strict = options();
    strict.tls_verify = Some(true);
    let client = tupper::transport::registry::Client::new(strict, around).expect("a client");
    assert_is(pull_with(&client, &server), &image);
}

#[test]
fn what_is_no_certificate_is_named() {
    let (image, dir) = (Image::new(), made(certificates::authority));
    let server = secure(&image, shows(dir.path(), false), |_| None);
    let certs = dir.path().join("certs");
    std::fs::write(certs.join("empty.crt"), "nothing\n").expect("a file");
    let error = pull_trusting(&certs, &server).expect_err("no certificate").to_string();
    assert!(error.contains("empty.crt: there is no certificate in it"), "{error}");
}

#[test]
fn who_named_itself_is_trusted_in_its_time_alone() {
    let image = Image::new();
    for (make, trusted) in
        [(certificates::itself as fn(&Path), true), (certificates::itself_long_ago as fn(&Path), false)]
    {
        let dir = made(make);
        let certs = dir.path().join("certs");
        std::fs::create_dir(&certs).expect("a directory");
        std::fs::copy(dir.path().join("server.crt"), certs.join("ca.crt")).expect("a copy");
        let server = secure(&image, shows(dir.path(), false), |_| None);
        if trusted {
            assert_is(pull_trusting(&certs, &server), &image);
        } else {
            let error = pull_trusting(&certs, &server).expect_err("expired").to_string();
            assert!(error.contains("it has expired"), "{error}");
        }
    }
}

#[test]
fn a_system_without_authorities_says_so() {
    let (image, dir, store) = (Image::new(), made(certificates::authority), Store::empty());
    let (_home, tupper) = alone(&store);
    let server = secure(&image, shows(dir.path(), false), |_| None);
    let bare = |line: String| {
        let command = tupper.command(&line, &[]);
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-ec", "mount -t tmpfs none /etc/ssl; exec \"$@\"", "sh"]);
        unshare.arg(command.get_program()).args(command.get_args());
        unshare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        finish(unshare)
    };
    let pull = format!("pull {}/a/image:1", server.host());
    let error = bare(pull.clone()).fails(1);
    assert!(error.contains("no certificate authority to trust") && error.contains("ca-certificates"), "{error}");
    // With one of its own it gets as far as the layers, which are none.
    let error = bare(format!("{pull} --cert-dir {}", dir.path().join("certs").display())).fails(1);
    assert!(error.contains("layer 1 of 2"), "{error}");
}
