//! Layers that come wrong, short, late, in pieces.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tupper::error::Kind;

use super::fixture::{Image, assert_is, blob_path, client, options, pull, pull_with, registry};
use crate::support::http::{Asked, End, Reply};

/// A registry that answers the first layer so; `nth` counts from 0.
fn layer(
    image: &Image,
    reply: impl Fn(&Asked, usize, &[u8]) -> Reply + Send + Sync + 'static,
) -> crate::support::http::Server {
    let (bytes, path) = (image.layers[0].clone(), blob_path(&image.layers[0]));
    let count = AtomicUsize::new(0);
    registry(image, move |asked| {
        (asked.path == path).then(|| reply(asked, count.fetch_add(1, Ordering::Relaxed), &bytes))
    })
}

#[test]
fn an_image_is_pulled_with_one_request_a_document_and_layer() {
    let image = Image::new();
    let server = registry(&image, |_| None);
    let pulled = pull(&server);
    assert_eq!(pulled.as_ref().expect("pulled").0.names[0].to_string(), format!("{}/a/image:1", server.host()));
    assert_is(pulled, &image);
    let asked: Vec<String> = server.asked().iter().map(|asked| asked.path.clone()).collect();
    let expected = ["/v2/a/image", "/v2/a/image/manifests/1"].map(str::to_string).into_iter();
    let blobs = [&image.config, &image.layers[0], &image.layers[1]].map(|blob| blob_path(blob));
    assert_eq!(asked, expected.chain(blobs).collect::<Vec<_>>());
}

#[test]
fn wrong_bytes_are_refused_and_not_asked_for_again() {
    let image = Image::new();
    let server = layer(&image, |_, _, bytes| {
        let mut bytes = bytes.to_vec();
        bytes[1000] ^= 1;
        Reply::new(200, bytes)
    });
    let error = pull(&server).expect_err("another digest");
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("was promised"), "{error}");
    assert_eq!(server.count(&blob_path(&image.layers[0])), 1);
}

#[test]
fn another_length_is_refused_before_the_bytes() {
    let image = Image::new();
    for change in [-1, 1] {
        let server = layer(&image, move |_, _, bytes| {
            let mut bytes = bytes.to_vec();
            bytes.resize(bytes.len().checked_add_signed(change).expect("a length"), 0);
            Reply::new(200, bytes)
        });
        let error = pull(&server).expect_err("another length").to_string();
        assert!(error.contains(&format!("{} bytes", 300_000 + change)) && error.contains("300000"), "{error}");
    }
}

#[test]
fn what_ends_with_its_connection_may_be_neither_short_nor_long() {
    let image = Image::new();
    let whole = layer(&image, |_, _, bytes| Reply::new(200, bytes).ending(End::Open));
    assert_is(pull(&whole), &image);
    let short = layer(&image, |_, _, bytes| Reply::new(200, &bytes[..1000]).ending(End::Open));
    let error = pull(&short).expect_err("short").to_string();
    assert!(error.contains("ends after 1000 bytes, 300000 were promised"), "{error}");
    assert_eq!(short.count(&blob_path(&image.layers[0])), 3);
    let long = layer(&image, |_, _, bytes| Reply::new(200, [bytes, b"more"].concat()).ending(End::Open));
    match pull(&long) {
        // Either is right: what is longer than promised is refused, or not even looked at.
        Err(error) => assert!(error.to_string().contains("longer than"), "{error}"),
        pulled => assert_is(pulled, &image),
    }
}

#[test]
fn a_cut_blob_goes_on_where_it_was_cut() {
    let image = Image::new();
    let server = layer(&image, |asked, nth, bytes| match nth {
        0 => Reply::new(200, bytes).ending(End::Cut(100_000)),
        1 => Reply::range_of(asked, bytes).ending(End::Cut(100_000)),
        _ => Reply::range_of(asked, bytes),
    });
    assert_is(pull(&server), &image);
    let ranges: Vec<_> =
        server.asked().iter().filter(|a| a.path == blob_path(&image.layers[0])).map(Asked::range).collect();
    assert_eq!(ranges, [None, Some(100_000), Some(200_000)]);
}

#[test]
fn a_registry_without_ranges_starts_again() {
    let image = Image::new();
    let server = layer(&image, |_, nth, bytes| match nth {
        0 => Reply::new(200, bytes).ending(End::Cut(100_000)),
        1 => Reply::new(200, bytes).ending(End::Cut(50_000)),
        _ => Reply::new(200, bytes),
    });
    assert_is(pull(&server), &image);
}

#[test]
fn the_digest_is_that_of_all_pieces() {
    let image = Image::new();
    for (what, wrong) in [("first", 500), ("last", 250_000)] {
        let server = layer(&image, move |asked, nth, bytes| {
            let mut bytes = bytes.to_vec();
            bytes[wrong] ^= 1;
            let reply = Reply::range_of(asked, &bytes);
            if nth == 0 { reply.ending(End::Cut(100_000)) } else { reply }
        });
        let error = pull(&server).expect_err(what).to_string();
        assert!(error.contains("was promised"), "{error}");
    }
    // What is sent again does not count: the first bytes were right when they came.
    let server = layer(&image, |_, nth, bytes| match nth {
        0 => Reply::new(200, bytes).ending(End::Cut(100_000)),
        _ => Reply::new(200, [&vec![0; 100_000], &bytes[100_000..]].concat()),
    });
    assert_is(pull(&server), &image);
}

#[test]
fn another_range_than_the_one_asked_for_is_refused() {
    let image = Image::new();
    for range in ["bytes 99999-299999/300000", "bytes 100000-300000/300001", "bytes */300000", "octets 1-2/3"] {
        let server = layer(&image, move |_, nth, bytes| match nth {
            0 => Reply::new(200, bytes).ending(End::Cut(100_000)),
            _ => Reply::new(206, &bytes[100_000..]).with("Content-Range", range),
        });
        let error = pull(&server).expect_err(range);
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert_eq!(server.count(&blob_path(&image.layers[0])), 2);
    }
    let unasked = layer(&image, |_, _, bytes| Reply::new(206, bytes).with("Content-Range", "bytes 0-299999/300000"));
    assert_eq!(pull(&unasked).expect_err("unasked").kind(), Kind::Invalid);
}

#[test]
fn a_connection_that_is_always_cut_is_given_up() {
    let image = Image::new();
    let server = layer(&image, |asked, _, bytes| Reply::range_of(asked, bytes).ending(End::Cut(10)));
    let error = pull(&server).expect_err("always cut");
    assert_eq!(error.kind(), Kind::Io, "{error}");
    assert_eq!(server.count(&blob_path(&image.layers[0])), 3);
}

#[test]
fn a_stalled_body_goes_on_elsewhere_or_is_given_up() {
    let image = Image::new();
    let once = layer(&image, |asked, nth, bytes| match nth {
        0 => Reply::new(200, bytes).ending(End::Stall(100_000)),
        _ => Reply::range_of(asked, bytes),
    });
    assert_is(pull(&once), &image);
    let always = layer(&image, |asked, _, bytes| Reply::range_of(asked, bytes).ending(End::Stall(0)));
    let error = pull(&always).expect_err("stalled").to_string();
    assert!(error.contains("sends nothing for"), "{error}");
    let trickle = layer(&image, |asked, _, bytes| Reply::range_of(asked, bytes).ending(End::Trickle(30)));
    let error = pull(&trickle).expect_err("a trickle").to_string();
    assert!(error.contains("bytes in"), "{error}");
}

#[test]
fn an_error_that_passes_is_waited_for() {
    let image = Image::new();
    let server = layer(&image, |asked, nth, bytes| match nth {
        0 => Reply::new(500, "oops"),
        1 => Reply::new(503, "busy"),
        _ => Reply::range_of(asked, bytes),
    });
    assert_is(pull(&server), &image);
    let never = layer(&image, |_, _, _| Reply::new(502, "oops"));
    let error = pull(&never).expect_err("always 502").to_string();
    assert!(error.contains("502"), "{error}");
    assert_eq!(never.count(&blob_path(&image.layers[0])), 3);
}

#[test]
fn a_registry_says_how_long_to_wait() {
    let image = Image::new();
    let server = layer(&image, |asked, nth, bytes| match nth {
        0 => Reply::new(429, "").with("Retry-After", "1"),
        _ => Reply::range_of(asked, bytes),
    });
    let start = Instant::now();
    assert_is(pull(&server), &image);
    assert!(start.elapsed() >= Duration::from_secs(1), "it did not wait");
    let later = layer(&image, |_, _, _| Reply::new(429, "").with("Retry-After", "3600"));
    let error = pull(&later).expect_err("an hour").to_string();
    assert!(error.contains("3600 s"), "{error}");
    assert_eq!(later.count(&blob_path(&image.layers[0])), 1);
}

#[test]
fn documents_have_a_limit() {
    let image = Image::new();
    let huge = vec![b' '; 5 << 20];
    for end in [End::Whole, End::Open] {
        let huge = huge.clone();
        let server = registry(&image, move |asked| {
            asked.path.contains("/manifests/").then(|| Reply::new(200, huge.clone()).ending(end))
        });
        assert_eq!(pull(&server).expect_err("a huge manifest").kind(), Kind::Limit);
    }
    let config = Image::with(|manifest| manifest["config"]["size"] = json!(5 << 20));
    let server = registry(&config, |_| None);
    assert_eq!(pull(&server).expect_err("a huge config").kind(), Kind::Limit);
    assert_eq!(server.count("/v2/a/image/blobs/"), 0);
    let path = blob_path(&image.config);
    let server = registry(&image, move |asked| (asked.path == path).then(|| Reply::new(200, huge.clone())));
    assert_eq!(pull(&server).expect_err("more than promised").kind(), Kind::Limit);
}

#[test]
fn a_document_that_trickles_in_is_given_up() {
    let image = Image::new();
    let server = registry(&image, |asked| {
        asked.path.contains("/manifests/").then(|| Reply::new(200, vec![b' '; 10_000]).ending(End::Trickle(50)))
    });
    let mut options = options();
    options.settings.retries = 0;
    let error = pull_with(&client(options), &server).expect_err("a trickle").to_string();
    assert!(error.contains("not there after"), "{error}");
}
