//! Redirects: blobs lie elsewhere, secrets do not go there.

use tupper::error::Kind;
use tupper::transport::registry::{Client, Credential, Surroundings};

use super::fixture::{Image, assert_is, blob_path, client, options, pull, pull_with, registry};
use crate::support::http::{Reply, Server};

fn with_password() -> Client {
    let mut options = options();
    options.credential = Some(Credential::password("me", "secret"));
    client(options)
}

/// A registry that wants a password and has its blobs at another server.
fn with_blobs_at(image: &Image, elsewhere: String) -> Server {
    registry(image, move |asked| {
        if asked.header("authorization").is_none() {
            return Some(Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"here\""));
        }
        asked.path.contains("/blobs/").then(|| Reply::redirect(format!("http://{elsewhere}{}?signature=x", asked.path)))
    })
}

#[test]
fn blobs_come_from_elsewhere_and_the_password_stays_here() {
    let image = Image::new();
    let store = image.clone();
    let elsewhere = Server::start(move |asked| {
        let mut plain = asked.clone();
        plain.path = asked.path.replace("?signature=x", "");
        store.answer(&plain)
    });
    let server = with_blobs_at(&image, elsewhere.host());
    assert_is(pull_with(&with_password(), &server), &image);
    let asked = elsewhere.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|asked| asked.header("authorization").is_none()), "{asked:?}");
    assert!(server.asked().iter().any(|asked| asked.header("authorization").is_some()));
}

#[test]
fn a_challenge_from_elsewhere_is_not_answered() {
    let image = Image::new();
    let elsewhere = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"mine\""));
    let server = with_blobs_at(&image, elsewhere.host());
    assert_eq!(pull_with(&with_password(), &server).expect_err("401").kind(), Kind::Permission);
    let asked = elsewhere.asked();
    assert!(asked.len() == 1 && asked[0].header("authorization").is_none(), "{asked:?}");
}

#[test]
fn redirects_end() {
    let image = Image::new();
    let path = blob_path(&image.layers[0]);
    let server =
        registry(&image, move |asked| asked.path.starts_with(&path).then(|| Reply::redirect(asked.path.clone())));
    let error = pull(&server).expect_err("a loop").to_string();
    assert!(error.contains("more than 10 redirects"), "{error}");
    assert_eq!(server.count(&blob_path(&image.layers[0])), 11);
}

#[test]
fn redirects_to_what_is_not_the_web_are_refused() {
    let image = Image::new();
    for (target, why) in [
        ("file:///etc/passwd", "neither http nor https"),
        ("ftp://127.0.0.1/x", "neither http nor https"),
        ("http://user:password@127.0.0.1/x", "with credentials in it"),
        ("http://[::", "nowhere"),
    ] {
        let server = registry(&image, move |asked| asked.path.contains("/blobs/").then(|| Reply::redirect(target)));
        let error = pull(&server).expect_err(target);
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(why) && !error.to_string().contains("password@"), "{error}");
    }
    let silent = registry(&image, |asked| asked.path.contains("/blobs/").then(|| Reply::new(302, "")));
    assert!(pull(&silent).expect_err("no target").to_string().contains("nowhere"));
}

#[test]
fn a_mirror_is_asked_first_and_gets_no_password_of_the_registry() {
    let image = Image::new();
    let mirror = registry(&image, |_| Some(Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"mirror\"")));
    let server = registry(&image, |_| None);
    let conf = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "[[registry]]\nlocation = '{}'\n[[registry.mirror]]\nlocation = '{}/copy'\n",
        server.host(),
        mirror.host()
    );
    std::fs::write(conf.path(), text).expect("a file");
    let mut around = Surroundings::none();
    around.registries_conf = Some(conf.path().to_path_buf());
    let mut options = options();
    options.credential = Some(Credential::password("me", "secret"));
    let client = Client::new(options, around).expect("a client");
    assert_is(pull_with(&client, &server), &image);
    let asked = mirror.asked();
    assert!(asked.iter().any(|asked| asked.path == "/v2/copy/a/image/manifests/1"), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.header("authorization").is_none()), "{asked:?}");
}
