//! Who we are: passwords, tokens, tokens that expire, registries that are never content.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tupper::error::Kind;
use tupper::transport::registry::{Client, Credential, Surroundings};

use super::fixture::{Image, assert_is, client, options, pull, pull_with, registry};
use crate::support::http::{Asked, Reply, Server};

/// base64 of `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn with(credential: Credential) -> Client {
    let mut options = options();
    options.credential = Some(credential);
    client(options)
}

fn me() -> Client {
    with(Credential::password("me", "secret"))
}

/// A registry that wants tokens of this server; `known` says which.
fn with_tokens(image: &Image, realm: &Server, known: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    let challenge = format!(
        "Bearer realm=\"http://{}/token?x=1\",service=\"the, registry\",scope=\"repository:*:push\"",
        realm.host()
    );
    registry(image, move |asked| {
        let token = asked.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        (!token.is_some_and(&known)).then(|| Reply::new(401, "{}").with("WWW-Authenticate", challenge.as_str()))
    })
}

#[test]
fn a_password_is_shown_to_who_asks_for_it() {
    let image = Image::new();
    let server = registry(&image, |asked| {
        let known = asked.header("authorization") == Some(BASIC);
        (!known).then(|| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""))
    });
    assert_is(pull_with(&me(), &server), &image);
    // It is asked for once, and known from then on.
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|asked| asked.header("authorization").is_none()).count(), 2, "{asked:?}");
    let error = pull(&server).expect_err("nobody");
    assert_eq!(error.kind(), Kind::Permission);
    assert!(error.hint().is_some_and(|hint| hint.contains("tupper login 127.0.0.1:")), "{error:?}");
    let wrong = with(Credential::password("me", "wrong"));
    let error = pull_with(&wrong, &server).expect_err("a wrong password").to_string();
    assert!(error.contains("as me") && !error.contains("wrong"), "{error}");
}

#[test]
fn a_token_is_fetched_for_this_repository_alone() {
    let image = Image::new();
    let tokens = Server::start(|asked| match asked.header("authorization") {
        Some(BASIC) => Reply::new(200, r#"{"token":"for-me","expires_in":60}"#),
        _ => Reply::new(401, r#"{"details":"who are you"}"#),
    });
    let server = with_tokens(&image, &tokens, |token| token == "for-me");
    assert_is(pull_with(&me(), &server), &image);
    let asked: Vec<String> = tokens.asked().iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(
        asked,
        ["/token?x=1&account=me&service=the%2C+registry&scope=repository%3Aa%2Fimage%3Apull"],
        "one token, and not what the registry would like it to be for"
    );
    assert!(
        server.asked().iter().all(|asked| asked.header("authorization") != Some(BASIC)),
        "the password went astray"
    );
    assert_eq!(pull(&server).expect_err("nobody").kind(), Kind::Permission);
}

#[test]
fn tokens_are_for_everybody_where_everybody_may_pull() {
    let image = Image::new();
    let tokens = Server::start(|_| Reply::new(200, r#"{"access_token":"for-all"}"#));
    let server = with_tokens(&image, &tokens, |token| token == "for-all");
    assert_is(pull(&server), &image);
    assert!(tokens.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn an_identity_token_is_exchanged() {
    let image = Image::new();
    let tokens = Server::start(|asked| {
        let right = asked.method == "POST"
            && asked.body.contains("grant_type=refresh_token")
            && asked.body.contains("refresh_token=id%26entity")
            && asked.body.contains("scope=repository%3Aa%2Fimage%3Apull");
        if right { Reply::new(200, r#"{"access_token":"exchanged"}"#) } else { Reply::new(400, "") }
    });
    let server = with_tokens(&image, &tokens, |token| token == "exchanged");
    assert_is(pull_with(&with(Credential::IdentityToken("id&entity".to_string())), &server), &image);
}

#[test]
fn a_token_that_expires_is_fetched_again() {
    let image = Image::new();
    let made = Arc::new(AtomicUsize::new(0));
    let latest = Arc::clone(&made);
    let tokens = Server::start(move |_| {
        let nth = made.fetch_add(1, Ordering::Relaxed) + 1;
        Reply::new(200, format!(r#"{{"token":"{nth}"}}"#))
    });
    // Each token is good for one answer.
    let used = AtomicUsize::new(0);
    let server = with_tokens(&image, &tokens, move |token| {
        let token: usize = token.parse().expect("a number");
        token == latest.load(Ordering::Relaxed) && used.swap(token, Ordering::Relaxed) != token
    });
    assert_is(pull(&server), &image);
    assert_eq!(tokens.asked().len(), 4);
}

#[test]
fn a_registry_that_is_never_content_is_left() {
    let image = Image::new();
    let tokens = Server::start(|_| Reply::new(200, r#"{"token":"fresh"}"#));
    let server = with_tokens(&image, &tokens, |_| false);
    assert_eq!(pull_with(&me(), &server).expect_err("401 for ever").kind(), Kind::Permission);
    assert_eq!(tokens.asked().len(), 1);
    assert_eq!(server.count("/v2/a/image/manifests/"), 2);
    let basic = registry(&image, |_| Some(Reply::new(401, "").with("WWW-Authenticate", "Basic")));
    assert_eq!(pull_with(&me(), &basic).expect_err("401 for ever").kind(), Kind::Permission);
    assert_eq!(basic.count("/v2/a/image/manifests/"), 2);
    let silent = registry(&image, |_| Some(Reply::new(401, "")));
    assert_eq!(pull_with(&me(), &silent).expect_err("no challenge").kind(), Kind::Permission);
}

#[test]
fn a_token_server_may_not_make_us_do_things() {
    let image = Image::new();
    let huge = Reply::new(200, vec![b' '; 2 << 20]);
    let far = Reply::redirect("http://127.0.0.1:1/");
    let header = Reply::new(200, r#"{"token":"a\r\nX-Evil: 1"}"#);
    for (reply, kind) in [
        (huge, Kind::Limit),
        (Reply::new(200, "token"), Kind::Invalid),
        (Reply::new(200, r#"{"token":""}"#), Kind::Invalid),
        (header, Kind::Invalid),
        (far, Kind::Io),
        (Reply::new(403, ""), Kind::Permission),
    ] {
        let reply_of = reply.clone();
        let tokens = Server::start(move |_| reply_of.clone());
        let server = with_tokens(&image, &tokens, |_| true);
        // `true` would take any token, so what fails is the token.
        let refused = registry(&image, {
            let challenge = format!("Bearer realm=\"http://{}/\"", tokens.host());
            move |asked: &Asked| {
                asked
                    .header("authorization")
                    .is_none()
                    .then(|| Reply::new(401, "").with("WWW-Authenticate", challenge.as_str()))
            }
        });
        drop(server);
        let error = pull_with(&me(), &refused).expect_err("no token");
        assert_eq!(error.kind(), kind, "{reply:?}: {error}");
        let shown = error.to_string();
        assert!(!shown.contains("secret") && !shown.contains("X-Evil"), "{shown}");
    }
    for realm in ["file:///etc/passwd", "not a URL", ""] {
        let server = registry(&image, move |_| {
            Some(Reply::new(401, "").with("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")))
        });
        assert_eq!(pull(&server).expect_err(realm).kind(), Kind::Invalid);
    }
}

#[test]
fn a_login_is_tried_before_it_is_kept() {
    let image = Image::new();
    let server = registry(&image, |asked| {
        let known = asked.header("authorization") == Some(BASIC);
        (!known).then(|| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""))
    });
    let dir = tempfile::tempdir().expect("a directory");
    let mut around = Surroundings::none();
    around.runtime = Some(dir.path().to_path_buf());
    let client = Client::new(options(), around).expect("a client");
    let host = server.host();
    assert_eq!(client.login(&host, "me", "wrong").expect_err("a wrong password").kind(), Kind::Permission);
    assert_eq!(client.logged_in(&host).expect("readable"), None);
    client.login(&host, "me", "secret").expect("accepted");
    assert_eq!(client.logged_in(&host).expect("readable"), Some(Credential::password("me", "secret")));
    assert_is(pull_with(&client, &server), &image);
    assert!(client.logout(Some(&host)).expect("gone"));
    assert_eq!(pull_with(&client, &server).expect_err("nobody").kind(), Kind::Permission);
}
