//! Pushes to registries that have some of it, that cut, refuse, forget, and that are somebody else.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tupper::error::{Kind, Result};
use tupper::transport::registry::{Credential, PushOptions, PushStep, Pushed};
use tupper::transport::{Compression, Format, Outgoing, OutgoingLayer, Style, Tars, Travelled};

use super::fixture::{client, digest, options};
use crate::scratch::Tar;
use crate::support::command::wait;
use crate::support::eventually;
use crate::support::http::{Asked, End, Reply, Server};
use crate::support::store::{Store, alone};

/// What a registry keeps: blobs by `REPOSITORY/DIGEST`, manifests by `REPOSITORY/TAG`, uploads by their number.
#[derive(Default)]
struct Kept {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<usize, Vec<u8>>,
    begun: usize,
}

#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Kept>>);

impl Registry {
    /// An honest registry, but for what `lie` answers.
    fn serve(&self, lie: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Server {
        let registry = self.clone();
        Server::start(move |asked| lie(asked).unwrap_or_else(|| registry.answer(asked)))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        change(&mut self.0.lock().expect("no thread has panicked"))
    }

    fn answer(&self, asked: &Asked) -> Reply {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let path = path.trim_start_matches("/v2/");
        let mut kept = self.0.lock().expect("no thread has panicked");
        if let Some((repository, blob)) = path.split_once("/blobs/sha256:") {
            return match kept.blobs.get(&format!("{repository}/sha256:{blob}")) {
                Some(blob) => Reply::new(200, "").with("Content-Length", blob.len().to_string()),
                None => Reply::new(404, ""),
            };
        }
        if let Some((repository, tag)) = path.split_once("/manifests/") {
            kept.manifests.insert(format!("{repository}/{tag}"), asked.bytes.clone());
            return Reply::new(201, "").with("Docker-Content-Digest", digest(&asked.bytes));
        }
        let Some((repository, upload)) = path.split_once("/blobs/uploads/") else { return Reply::new(200, "{}") };
        if asked.method == "POST" {
            let decoded = query.replace("%3A", ":").replace("%2F", "/");
            if let Some((mount, from)) = decoded.strip_prefix("mount=").and_then(|rest| rest.split_once("&from="))
                && let Some(blob) = kept.blobs.get(&format!("{from}/{mount}")).cloned()
            {
                kept.blobs.insert(format!("{repository}/{mount}"), blob);
                return Reply::new(201, "");
            }
            kept.begun += 1;
            let number = kept.begun;
            kept.uploads.insert(number, Vec::new());
            return Reply::new(202, "")
                .with("Location", format!("/v2/{repository}/blobs/uploads/{number}?state=a%2Fb"));
        }
        let number: usize = upload.parse().expect("a number");
        let Some(upload) = kept.uploads.get_mut(&number) else { return Reply::new(404, "") };
        let range = |upload: &Vec<u8>| format!("0-{}", upload.len().saturating_sub(1));
        let location = format!("/v2/{repository}/blobs/uploads/{number}?state=a%2Fb");
        assert!(query.starts_with("state=a%2Fb"), "what a location says is kept: {query}");
        match asked.method.as_str() {
            "GET" => Reply::new(204, "").with("Range", range(upload)).with("Location", location),
            "PATCH" => {
                let from = asked.header("content-range").and_then(|range| range.split_once('-'));
                if from.is_some_and(|(from, _)| from != upload.len().to_string()) {
                    return Reply::new(416, "").with("Range", range(upload));
                }
                upload.extend_from_slice(&asked.bytes);
                Reply::new(202, "").with("Range", range(upload)).with("Location", location)
            }
            "PUT" => {
                upload.extend_from_slice(&asked.bytes);
                let blob = std::mem::take(upload);
                kept.uploads.remove(&number);
                let (found, said) = (digest(&blob), query.replace("%3A", ":"));
                if !said.ends_with(&format!("digest={found}")) {
                    return Reply::new(400, r#"{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}"#);
                }
                kept.blobs.insert(format!("{repository}/{found}"), blob);
                Reply::new(201, "").with("Docker-Content-Digest", found)
            }
            "DELETE" => {
                kept.uploads.remove(&number);
                Reply::new(204, "")
            }
            other => panic!("{other} of an upload"),
        }
    }

    fn manifest(&self, name: &str) -> Value {
        self.with(|kept| serde_json::from_slice(&kept.manifests[name]).expect("JSON"))
    }

    /// The layers of an image that is there, unpacked.
    fn layers(&self, repository: &str, tag: &str) -> Vec<Vec<u8>> {
        let manifest = self.manifest(&format!("{repository}/{tag}"));
        let layers = manifest["layers"].as_array().expect("layers");
        let layer = |layer: &Value| {
            let blob = self.with(|kept| {
                kept.blobs[&format!("{repository}/{}", layer["digest"].as_str().expect("a digest"))].clone()
            });
            assert_eq!(layer["size"], blob.len());
            let mut bytes = Vec::new();
            match layer["mediaType"].as_str().expect("a media type") {
                kind if kind.ends_with("gzip") => flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut bytes),
                kind if kind.ends_with("zstd") => {
                    zstd::Decoder::new(&blob[..]).and_then(|mut z| z.read_to_end(&mut bytes))
                }
                kind => panic!("{kind}"),
            }
            .expect("compressed");
            bytes
        };
        layers.iter().map(layer).collect()
    }
}

/// An image in memory that counts how often its layers are read.
struct Memory {
    layers: Vec<Vec<u8>>,
    opened: AtomicUsize,
}

impl Tars for Memory {
    fn open(&self, layer: usize) -> Result<Box<dyn Read + Send>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Cursor::new(self.layers[layer].clone())))
    }

    fn size(&self, layer: usize) -> Result<u64> {
        Ok(self.layers[layer].len() as u64)
    }
}

struct Image {
    outgoing: Outgoing,
    tars: Arc<Memory>,
}

impl Image {
    fn of(layers: &[Vec<u8>]) -> Image {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let layer = |id: &String| OutgoingLayer { diff_id: id.parse().expect("a digest"), travelled: Vec::new() };
        Image {
            outgoing: Outgoing { config: config.to_string().into(), layers: diff_ids.iter().map(layer).collect() },
            tars: Arc::new(Memory { layers: layers.to_vec(), opened: AtomicUsize::new(0) }),
        }
    }

    fn small() -> Image {
        Image::of(&[noise(300_000), noise(70_000)])
    }

    /// One whose first layer takes three chunks, compressed too.
    fn large() -> Image {
        Image::of(&[noise(20 << 20), noise(1000)])
    }

    fn push_as(
        &self,
        name: &str,
        who: Option<Credential>,
        how: &PushOptions,
    ) -> Result<(Pushed, Vec<(usize, PushStep)>)> {
        let mut options = options();
        options.credential = who;
        let steps: Arc<Mutex<Vec<(usize, PushStep)>>> = Arc::default();
        let tell = Arc::clone(&steps);
        let tars: Arc<dyn Tars> = Arc::clone(&self.tars) as Arc<dyn Tars>;
        let progress: tupper::transport::registry::PushProgress =
            Arc::new(move |number, step| tell.lock().expect("no panic").push((number, step)));
        let pushed = client(options).push(&name.parse()?, &self.outgoing, &tars, how, &progress)?;
        let steps = steps.lock().expect("no panic").clone();
        Ok((pushed, steps))
    }

    fn push(&self, server: &Server) -> Result<Pushed> {
        self.push_as(&format!("{}/a/image:1", server.host()), None, &PushOptions::default()).map(|(pushed, _)| pushed)
    }

    /// The same, which has travelled as it was pushed.
    fn having_travelled(mut self, pushed: &Pushed) -> Image {
        for (layer, way) in self.outgoing.layers.iter_mut().zip(&pushed.layers) {
            layer.travelled = vec![way.clone()];
        }
        self.tars = Arc::new(Memory { layers: self.tars.layers.clone(), opened: AtomicUsize::new(0) });
        self
    }

    fn opened(&self) -> usize {
        self.tars.opened.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn assert_is_at(&self, registry: &Registry, repository: &str) {
        assert!(registry.layers(repository, "1") == self.tars.layers, "something else has arrived");
        let config = format!("{repository}/{}", digest(&self.outgoing.config));
        assert!(registry.with(|kept| kept.blobs[&config] == self.outgoing.config));
        assert!(registry.with(|kept| kept.uploads.is_empty()), "an upload is left");
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u64 | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn nothing(_: &Asked) -> Option<Reply> {
    None
}

fn asked(server: &Server, method: &str) -> Vec<Asked> {
    server.asked().into_iter().filter(|asked| asked.method == method).collect()
}

#[test]
fn an_image_arrives_as_it_is_and_is_sent_once() {
    let (registry, image) = (Registry::default(), Image::small());
    let server = registry.serve(nothing);
    let pushed = image.push(&server).expect("pushed");
    image.assert_is_at(&registry, "a/image");
    let place = format!("{}/a/image", server.host());
    assert!(pushed.layers.iter().all(|layer| layer.place.as_deref() == Some(place.as_str())));
    let manifest = registry.manifest("a/image/1");
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(pushed.manifest.to_string(), registry.with(|kept| digest(&kept.manifests["a/image/1"])));
    // A blob that is one chunk goes whole.
    assert_eq!((asked(&server, "POST").len(), asked(&server, "PATCH").len()), (3, 0));
    let before = server.asked().len();
    let again = image.having_travelled(&pushed);
    let (second, steps) = again.push_as(&format!("{place}:2"), None, &PushOptions::default()).expect("pushed");
    assert_eq!((second.manifest, second.layers), (pushed.manifest, pushed.layers));
    assert_eq!(again.opened(), 0, "what is there is compressed");
    assert_eq!(steps.len(), 2);
    assert!(steps.iter().all(|(_, step)| *step == PushStep::There));
    let second = server.asked().split_off(before);
    let methods: Vec<&str> = second.iter().map(|asked| asked.method.as_str()).filter(|m| *m != "GET").collect();
    assert_eq!(methods, ["HEAD", "HEAD", "HEAD", "PUT"], "plain HTTP is found out by a GET");
}

#[test]
fn a_layer_that_is_twice_in_an_image_is_sent_once() {
    let (registry, layer) = (Registry::default(), noise(1000));
    let image = Image::of(&[layer.clone(), noise(2000), layer, Vec::new(), Vec::new()]);
    let server = registry.serve(nothing);
    image.push(&server).expect("pushed");
    // An archive of no bytes among them.
    image.assert_is_at(&registry, "a/image");
    assert_eq!(image.opened(), 3);
}

#[test]
fn what_another_repository_has_is_mounted() {
    let (registry, image) = (Registry::default(), Image::small());
    let server = registry.serve(nothing);
    let pushed = image.push(&server).expect("pushed");
    let image = image.having_travelled(&pushed);
    let to = format!("{}/b/other:1", server.host());
    let (_, steps) = image.push_as(&to, None, &PushOptions::default()).expect("pushed");
    image.assert_is_at(&registry, "b/other");
    assert_eq!(image.opened(), 0);
    assert!(steps.iter().all(|(_, step)| *step == PushStep::Mounted), "{steps:?}");
    // A registry that will not: what it begins instead is what is used.
    let before = registry.with(|kept| kept.begun);
    let other = registry.clone();
    let server = registry.serve(move |asked| {
        let plain = asked.path.split_once("?mount=")?.0.to_string();
        let mut asked = asked.clone();
        asked.path = plain;
        Some(other.answer(&asked))
    });
    // The way that it has gone names this registry.
    let mut image = image;
    for way in image.outgoing.layers.iter_mut().flat_map(|layer| &mut layer.travelled) {
        way.place = Some(format!("{}/a/image", server.host()));
    }
    image.push_as(&format!("{}/c/third:1", server.host()), None, &PushOptions::default()).expect("pushed");
    image.assert_is_at(&registry, "c/third");
    assert_eq!(registry.with(|kept| kept.begun) - before, 3, "an upload for each layer and the config");
    assert_eq!(image.opened(), 2);
}

#[test]
fn chunks_go_on_where_they_were_cut() {
    for how in ["half of it arrived", "it arrived whole", "nothing arrived", "a 500", "a 416 about what comes next"] {
        let (registry, image) = (Registry::default(), Image::large());
        let (cut, other) = (AtomicUsize::new(0), registry.clone());
        let server = registry.serve(move |asked| {
            if asked.method != "PATCH" || cut.fetch_add(1, Ordering::Relaxed) != 1 {
                return None;
            }
            let part = |end: usize| {
                let mut part = asked.clone();
                part.bytes.truncate(end);
                assert_eq!(other.answer(&part).status, 202);
            };
            Some(match how {
                "half of it arrived" => {
                    part(asked.bytes.len() / 2);
                    Reply::new(0, "").ending(End::Gone)
                }
                "it arrived whole" => {
                    part(asked.bytes.len());
                    Reply::new(0, "").ending(End::Gone)
                }
                "nothing arrived" => Reply::new(0, "").ending(End::Gone),
                "a 500" => Reply::new(500, ""),
                _ => {
                    part(1000);
                    Reply::new(416, "")
                }
            })
        });
        image.push(&server).unwrap_or_else(|e| panic!("{how}: {e}"));
        image.assert_is_at(&registry, "a/image");
        assert_eq!((image.opened(), registry.with(|kept| kept.begun)), (2, 3), "{how}: it began again");
        let chunks = asked(&server, "PATCH");
        assert!(chunks.iter().all(|chunk| chunk.bytes.len() <= 8 << 20), "{how}: a chunk is larger");
        let sent: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        assert!(sent < (20 << 20) + (9 << 20), "{how}: {sent} bytes for 20 MiB");
        assert!(server.asked().iter().any(|asked| asked.method == "GET" && asked.path.contains("/uploads/")), "{how}");
    }
}

#[test]
fn an_upload_that_the_registry_has_lost_begins_again() {
    let (registry, image) = (Registry::default(), Image::large());
    let (seen, other) = (AtomicUsize::new(0), registry.clone());
    let server = registry.serve(move |asked| {
        if asked.method == "PATCH" && seen.fetch_add(1, Ordering::Relaxed) == 1 {
            other.with(|kept| kept.uploads.clear());
        }
        None
    });
    image.push(&server).expect("pushed");
    image.assert_is_at(&registry, "a/image");
    assert!(image.opened() >= 3);
    // One that loses all of them is left.
    let (registry, image) = (Registry::default(), Image::large());
    let server = registry.serve(|asked| (asked.method == "PATCH").then(|| Reply::new(404, "")));
    let error = image.push(&server).expect_err("never");
    assert!(error.to_string().contains("layer 1 of 2"), "{error}");
    assert_eq!(asked(&server, "PATCH").len(), 3);
}

#[test]
fn a_registry_that_refuses_ranges_gets_none() {
    let (registry, image) = (Registry::default(), Image::large());
    let server = registry
        .serve(|asked| (asked.header("content-range").is_some()).then(|| Reply::new(416, "").with("Range", "0-0")));
    image.push(&server).expect("pushed");
    image.assert_is_at(&registry, "a/image");
    let server = registry.serve(|asked| (asked.method == "PATCH").then(|| Reply::new(416, "")));
    let image = Image::of(&[noise((20 << 20) + 1)]);
    let error = image.push(&server).expect_err("no chunks at all").to_string();
    assert!(error.contains("416"), "{error}");
    assert!(asked(&server, "PATCH").len() <= 2);
}

#[test]
fn chunks_are_as_long_as_the_registry_wants_them() {
    let (registry, image) = (Registry::default(), Image::large());
    let other = registry.clone();
    let server = registry.serve(move |asked| {
        (asked.method == "POST").then(|| other.answer(asked).with("OCI-Chunk-Min-Length", (9 << 20).to_string()))
    });
    image.push(&server).expect("pushed");
    let lengths: Vec<usize> = asked(&server, "PATCH").iter().map(|asked| asked.bytes.len()).collect();
    assert_eq!((lengths[0], lengths[1], lengths.len()), (9 << 20, 9 << 20, 3));
    let server = registry.serve(|asked| {
        (asked.method == "POST")
            .then(|| Reply::new(202, "").with("Location", "/x").with("OCI-Chunk-Min-Length", "99999999999"))
    });
    assert_eq!(Image::of(&[noise(5)]).push(&server).expect_err("too long").kind(), Kind::Unsupported);
}

#[test]
fn the_last_word_may_be_lost() {
    let (registry, image) = (Registry::default(), Image::large());
    let (seen, other) = (AtomicUsize::new(0), registry.clone());
    let server = registry.serve(move |asked| {
        // Every other PUT is heard and not answered, the ones between fail.
        (asked.method == "PUT" && asked.path.contains("/uploads/")).then(|| {
            match seen.fetch_add(1, Ordering::Relaxed) % 2 {
                0 => {
                    other.answer(asked);
                    Reply::new(0, "").ending(End::Gone)
                }
                _ => Reply::new(503, ""),
            }
        })
    });
    image.push(&server).expect("pushed");
    registry.with(|kept| kept.uploads.clear());
    image.assert_is_at(&registry, "a/image");
}

#[test]
fn what_the_registry_calls_it_is_compared() {
    for (part, what) in [("/manifests/", "manifest 1: "), ("/blobs/uploads/", "")] {
        let (registry, image) = (Registry::default(), Image::small());
        let server = registry.serve(move |asked| {
            (asked.method == "PUT" && asked.path.contains(part))
                .then(|| Reply::new(201, "").with("Docker-Content-Digest", digest(b"something else")))
        });
        let error = image.push(&server).expect_err("something else");
        assert_eq!(error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(text.contains(what) && text.contains(&format!("calls it {}", digest(b"something else"))), "{text}");
    }
    let (registry, image) = (Registry::default(), Image::small());
    let pushed = image.push(&registry.serve(nothing)).expect("pushed");
    let server = registry.serve(|asked| {
        (asked.method == "HEAD" && asked.path.contains("/blobs/"))
            .then(|| Reply::new(200, "").with("Content-Length", "7"))
    });
    let error = image.having_travelled(&pushed).push(&server).expect_err("another length").to_string();
    assert!(error.contains("has 7 bytes of it"), "{error}");
}

#[test]
fn a_token_is_for_pushing_and_for_what_is_mounted() {
    let registry = Registry::default();
    let tokens = Server::start(|asked| match asked.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => Reply::new(200, r#"{"token":"for-me"}"#),
        _ => Reply::new(200, r#"{"token":"for-all"}"#),
    });
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", tokens.host());
    let server = registry.serve(move |asked| match asked.header("authorization") {
        Some("Bearer for-me") => None,
        // Anybody may look.
        Some(_) if asked.method == "HEAD" => None,
        _ => Some(
            Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
                .with("WWW-Authenticate", challenge.as_str()),
        ),
    });
    let mut image = Image::small();
    image.outgoing.layers[0].travelled = vec![Travelled {
        digest: digest(b"x").parse().expect("a digest"),
        size: 1,
        media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip".to_string(),
        place: Some(format!("{}/the/base", server.host())),
    }];
    let me = || Some(Credential::password("me", "secret"));
    let to = format!("{}/a/image:1", server.host());
    image.push_as(&to, me(), &PushOptions::default()).expect("pushed");
    image.assert_is_at(&registry, "a/image");
    let paths: Vec<String> = tokens.asked().iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(
        paths,
        ["/token?account=me&service=s&scope=repository%3Aa%2Fimage%3Apull%2Cpush&scope=repository%3Athe%2Fbase%3Apull"]
    );
    let error = Image::of(&[noise(7)]).push(&server).expect_err("nobody");
    assert_eq!(error.kind(), Kind::Permission);
    let text = error.to_string();
    assert!(text.contains("asks who we are: authentication required"), "{text}");
    assert!(error.hint().is_some_and(|hint| hint.contains("tupper login") && !hint.contains("such an image")));
}

#[test]
fn refusals_say_what_and_why() {
    let body = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"because of {code}"}}]}}"#);
    for (method, status, kind, what) in [
        ("POST", 403, Kind::Permission, "does not allow it: because of X"),
        ("POST", 404, Kind::NotFound, "has no such place: because of X"),
        ("PUT", 413, Kind::Limit, "takes nothing as large as this: because of X"),
        ("POST", 429, Kind::Io, "has had too many requests: because of X"),
        ("POST", 507, Kind::Io, "answers 507"),
        ("PUT", 400, Kind::Io, "answers 400"),
    ] {
        let (registry, image) = (Registry::default(), Image::small());
        let server = registry.serve(move |asked| (asked.method == method).then(|| Reply::new(status, body("X"))));
        let error = image.push(&server).expect_err(what);
        assert!(error.to_string().contains(what), "{status}: {error}");
        assert_eq!(error.kind(), kind, "{status}: {error}");
        let most = if status == 429 { 3 } else { 1 };
        assert!(asked(&server, method).len() <= most, "{status}: it was asked for again");
        assert!(registry.with(|kept| kept.manifests.is_empty()));
    }
    let image = Image::small();
    let by_digest = format!("127.0.0.1:1/a@{}", digest(b"x"));
    let zstd = Compression::new(Format::Zstd, None).expect("a level");
    let docker = PushOptions { style: Style::Docker, compression: zstd, recompress: false };
    for (name, how, why) in
        [(by_digest.as_str(), &PushOptions::default(), "what comes of a push"), ("127.0.0.1:1/a", &docker, "no zstd")]
    {
        let error = image.push_as(name, None, how).expect_err(why);
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn no_credential_goes_to_where_an_upload_is() {
    let (registry, image) = (Registry::default(), Image::small());
    let elsewhere = registry.serve(nothing);
    let (host, other) = (elsewhere.host(), registry.clone());
    let server = registry.serve(move |asked| {
        if asked.header("authorization") != Some("Basic bWU6c2VjcmV0") {
            return Some(Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        (asked.method == "POST").then(|| {
            let mut reply = other.answer(asked);
            reply.headers.iter_mut().for_each(|(_, value)| *value = format!("http://{host}{value}"));
            reply
        })
    });
    let me = Credential::password("me", "secret");
    let to = format!("{}/a/image:1", server.host());
    image.push_as(&to, Some(me), &PushOptions::default()).expect("pushed");
    image.assert_is_at(&registry, "a/image");
    assert_eq!(asked(&elsewhere, "PUT").len(), 3);
    assert!(elsewhere.asked().iter().all(|asked| asked.header("authorization").is_none()), "the password went astray");
    // One who asks there is not answered.
    let (registry, image) = (Registry::default(), Image::small());
    let curious = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""));
    let host = curious.host();
    let server = registry.serve(move |asked| match asked.method.as_str() {
        "POST" => Some(Reply::new(202, "").with("Location", format!("http://{host}/x"))),
        _ => None,
    });
    let me = Credential::password("me", "secret");
    let to = format!("{}/a/image:1", server.host());
    let error = image.push_as(&to, Some(me), &PushOptions::default()).expect_err("it asks");
    assert_eq!(error.kind(), Kind::Permission);
    assert!(curious.asked().iter().all(|asked| asked.header("authorization").is_none()));
    for location in ["file:///etc/passwd", "http://me:secret@127.0.0.1/x", ""] {
        let registry = Registry::default();
        let server = registry.serve(move |asked| {
            (asked.method == "POST").then(|| match location {
                "" => Reply::new(202, ""),
                _ => Reply::new(202, "").with("Location", location),
            })
        });
        let error = Image::of(&[noise(9)]).push(&server).expect_err(location);
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
}

#[test]
fn the_manifest_is_written_as_it_is_wanted() {
    let (registry, image) = (Registry::default(), Image::small());
    let server = registry.serve(nothing);
    let zstd = Compression::new(Format::Zstd, Some(5)).expect("a level");
    for (tag, style, compression, kinds) in [
        (
            "docker",
            Style::Docker,
            Compression::default(),
            [
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ],
        ),
        (
            "zstd",
            Style::Oci,
            zstd,
            [
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ],
        ),
    ] {
        let to = format!("{}/{tag}:1", server.host());
        image.push_as(&to, None, &PushOptions { style, compression, recompress: true }).expect("pushed");
        image.assert_is_at(&registry, tag);
        let manifest = registry.manifest(&format!("{tag}/1"));
        let found = [&manifest["mediaType"], &manifest["config"]["mediaType"], &manifest["layers"][1]["mediaType"]];
        assert_eq!(found, kinds);
        let header = asked(&server, "PUT").pop().and_then(|asked| asked.header("content-type").map(str::to_string));
        assert_eq!(header.as_deref(), Some(kinds[0]));
    }
}

#[test]
fn a_layer_that_cannot_be_read_ends_the_push() {
    struct Broken;
    impl Tars for Broken {
        fn open(&self, _: usize) -> Result<Box<dyn Read + Send>> {
            struct Bad(u64);
            impl Read for Bad {
                fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                    self.0 += 1;
                    if self.0 > 100 {
                        return Err(tupper::error::Error::new(Kind::Invalid, "its digest is another").into());
                    }
                    let noise = noise(into.len());
                    into.copy_from_slice(&noise);
                    Ok(into.len())
                }
            }
            Ok(Box::new(Bad(0)))
        }

        fn size(&self, _: usize) -> Result<u64> {
            Ok(1 << 20)
        }
    }
    let registry = Registry::default();
    let server = registry.serve(nothing);
    let tars: Arc<dyn Tars> = Arc::new(Broken);
    let image = Image::small();
    let name = format!("{}/a/image:1", server.host()).parse().expect("a name");
    let nobody: tupper::transport::registry::PushProgress = Arc::new(|_, _| {});
    let pushed = client(options()).push(&name, &image.outgoing, &tars, &PushOptions::default(), &nobody);
    let error = pushed.expect_err("broken");
    assert!(error.to_string().contains("its digest is another"), "{error}");
    assert!(registry.with(|kept| kept.uploads.is_empty() && kept.manifests.is_empty()), "an upload is left");
}

#[test]
fn a_push_that_is_interrupted_ends() {
    let store = Store::empty();
    let (home, tupper) = alone(&store);
    let file = home.path().join("root.tar");
    std::fs::write(&file, Tar::default().file("file", &noise(20 << 20)).end()).expect("a file");
    tupper.ok(&format!("image import {} --name a:1", file.display()));
    let registry = Registry::default();
    let server = registry.serve(|asked| (asked.method == "PATCH").then(|| Reply::new(202, "x").ending(End::Stall(0))));
    let mut command = tupper.command(&format!("push --tls-verify=false a:1 {}/a/image:1", server.host()), &[]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a push");
    eventually("a chunk is on its way", Duration::from_secs(60), || !asked(&server, "PATCH").is_empty());
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("sent");
    assert_eq!(wait(child, "an interrupted push"), 128 + 2);
    assert_eq!(tupper.ok("store gc --dry-run"), "");
    tupper.ok("store check");
    // It goes again, and tells nothing but where it is asked to.
    let digestfile = home.path().join("digest");
    let server = registry.serve(nothing);
    let push = format!("push --tls-verify=false --digestfile {} a:1 {}/a/image:1", digestfile.display(), server.host());
    assert_eq!(tupper.ok(&push), "");
    let manifest = registry.with(|kept| digest(&kept.manifests["a/image/1"]));
    assert_eq!(std::fs::read_to_string(&digestfile).expect("a file"), manifest);
    // What has travelled is known from then on.
    let before = server.asked().len();
    tupper.ok(&push);
    assert!(server.asked().split_off(before).iter().all(|asked| asked.method != "POST" && asked.method != "PATCH"));
    let id = tupper.ok("images -q --no-trunc").trim_start_matches("sha256:").to_string();
    let error = tupper.fails(1, &format!("push --tls-verify=false {id}"));
    assert!(error.contains("where to?") && error.contains("hint: "), "{error}");
    let error = tupper.fails(1, "push --compression-level 10 a:1");
    assert!(error.contains("gzip has 1 to 9"), "{error}");
}
