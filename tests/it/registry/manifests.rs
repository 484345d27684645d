//! Manifests and indexes that are not what they should be, and which of several images is taken.

use serde_json::{Value, json};
use tupper::error::Kind;

use super::fixture::{INDEX, Image, MANIFEST, assert_is, client, digest, find, manifest_path, options, pull, registry};
use crate::support::http::{Reply, Server};

fn entry(bytes: &[u8], kind: &str, platform: &Value) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len(), "platform": platform})
}

fn index(entries: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes()
}

/// A registry whose tag is the first of these indexes, and whose digests are the others.
fn with_indexes(image: &Image, indexes: &[Vec<u8>]) -> Server {
    let indexes = indexes.to_vec();
    registry(image, move |asked| {
        let tag = asked.path.ends_with("/manifests/1");
        let found = if tag { indexes.first() } else { indexes.iter().find(|index| asked.path == manifest_path(index)) };
        found.map(|index| Reply::new(200, index.as_slice()).with("Content-Type", INDEX))
    })
}

#[test]
fn the_platform_chooses_from_an_index() {
    let image = Image::new();
    let other = Image::with(|manifest| manifest["annotations"] = json!({"for": "arm64"}));
    let entries = [
        entry(&other.manifest, MANIFEST, &json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        entry(&image.manifest, MANIFEST, &json!({"os": "linux", "architecture": "amd64"})),
    ];
    let server = with_indexes(&image, &[index(&entries)]);
    assert_is(pull(&server), &image);
    assert_eq!(server.count(&manifest_path(&image.manifest)), 1);
    let name = format!("{}/a/image:1", server.host()).parse().expect("a name");
    let missing =
        client(options()).find(&name, &"linux/riscv64".parse().expect("a platform")).err().expect("not there");
    assert_eq!(missing.kind(), Kind::NotFound);
    assert!(missing.to_string().contains("linux/arm64/v8, linux/amd64"), "{missing}");
    assert!(missing.hint().is_some_and(|hint| hint.contains("--platform")));
}

#[test]
fn an_index_may_hold_indexes_but_not_for_ever() {
    let image = Image::new();
    let here = json!({"os": "linux", "architecture": "amd64"});
    let mut indexes = vec![index(&[entry(&image.manifest, MANIFEST, &here)])];
    for depth in 1..=5 {
        let above = index(&[entry(&indexes[0], INDEX, &here)]);
        indexes.insert(0, above);
        let server = with_indexes(&image, &indexes);
        match depth {
            1..=3 => assert_is(pull(&server), &image),
            _ => assert_eq!(pull(&server).expect_err("too deep").kind(), Kind::Limit, "{depth}"),
        }
    }
}

#[test]
fn an_index_that_leads_to_itself_does_not() {
    let image = Image::new();
    // No index can hold its own digest; a registry can only pretend that this is the one.
    let index = index(&[entry(&image.manifest, MANIFEST, &json!({"os": "linux", "architecture": "amd64"}))]);
    let lie = index.clone();
    let server = registry(&image, move |asked| {
        asked.path.contains("/manifests/").then(|| Reply::new(200, lie.as_slice()).with("Content-Type", INDEX))
    });
    let error = pull(&server).expect_err("a loop");
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("promised"), "{error}");
    assert_eq!(server.count("/v2/a/image/manifests/"), 2);
}

#[test]
fn a_manifest_has_the_digest_that_it_was_asked_for_by() {
    let image = Image::new();
    let server = registry(&image, |_| None);
    let host = server.host();
    let by_digest = format!("{host}/a/image@{}", digest(&image.manifest));
    let found = find(&client(options()), &by_digest).expect("there");
    assert_eq!((found.digest().to_string(), found.name()), (digest(&image.config), None));
    let lie = Image::with(|manifest| manifest["annotations"] = json!({"not": "it"}));
    let path = manifest_path(&image.manifest);
    let server = registry(&image, move |asked| (asked.path == path).then(|| Reply::new(200, lie.manifest.as_slice())));
    let by_digest = format!("{}/a/image@{}", server.host(), digest(&image.manifest));
    assert_eq!(find(&client(options()), &by_digest).err().expect("a lie").kind(), Kind::Invalid);
    // And the one that the registry says it has.
    let (bytes, claimed) = (image.manifest.clone(), digest(b"another"));
    let server = registry(&image, move |asked| {
        let reply = Reply::new(200, bytes.as_slice()).with("Docker-Content-Digest", claimed.as_str());
        asked.path.contains("/manifests/").then_some(reply)
    });
    assert_eq!(pull(&server).expect_err("a lie").kind(), Kind::Invalid);
}

#[test]
fn what_is_no_image_is_refused_for_what_it_is() {
    let image = Image::new();
    for (kind, body, why) in [
        ("text/html", "<html>login</html>", "not a manifest"),
        ("application/json", "{}", "neither an image nor an index"),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1}"#, "schema 1"),
        (INDEX, std::str::from_utf8(&image.manifest).expect("JSON"), "calls itself"),
        (MANIFEST, r#"{"config":{},"layers":[],"manifests":[]}"#, "both an image and an index"),
    ] {
        let body = body.to_string();
        let server = registry(&image, move |asked| {
            asked.path.contains("/manifests/").then(|| Reply::new(200, body.as_str()).with("Content-Type", kind))
        });
        let error = pull(&server).expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    for (pointer, value, why) in [
        ("/config/mediaType", json!("application/vnd.cncf.helm.config.v1+json"), "artifact"),
        ("/layers/1/mediaType", json!("application/vnd.oci.image.layer.v1.tar+encrypted"), "media type"),
        ("/layers/1/digest", json!("sha256:../../../etc/passwd"), "manifest"),
        ("/layers/1/digest", json!(format!("sha256:{}/../x", "0".repeat(59))), "manifest"),
        ("/layers/1/size", json!(-1), "malformed"),
        ("/config/digest", json!(format!("sha512:{}", "0".repeat(128))), "sha256"),
    ] {
        let image = Image::with(|manifest| *manifest.pointer_mut(pointer).expect("there") = value.clone());
        let server = registry(&image, |_| None);
        let error = pull(&server).expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(server.count("/v2/a/image/blobs/"), 0);
    }
}

#[test]
fn what_is_not_there_is_told_on_one_line() {
    let image = Image::new();
    let server = registry(&image, |_| None);
    let error = find(&client(options()), &format!("{}/a/other:1", server.host())).err().expect("not there");
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("does not have it: no such\\nthing"), "{error}");
}
