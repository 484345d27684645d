//! Images of several layers that commands load and pull: small, and with something in common.

use std::path::Path;

use crate::support::archives::{Files, hex};
use crate::support::http::{Asked, Reply, Server};
use crate::support::{registry, sh};

/// A base, two that go on from it, and one for on top.
fn layers() -> [Vec<u8>; 4] {
    let layer = |files: &[(&str, usize)]| {
        Files(files.iter().map(|(name, size)| (name.to_string(), vec![7; *size])).collect()).tar()
    };
    [
        layer(&[("etc/base", 100_000), ("etc/gone", 3)]),
        layer(&[("etc/.wh.gone", 0), ("one", 5)]),
        layer(&[("two", 300_000)]),
        layer(&[("top", 9)]),
    ]
}

/// Writes `three.tar`, an image of three layers with two names, and that compressed; `first.tar`, the lowest of them alone;
/// `pair.tar`, two images with the same base; `one.tar`, the first of those; and `layout/`, what is in the registry.
pub fn save(dir: &Path) {
    let [base, one, two, top] = layers();
    travelling().write(&dir.join("layout"));
    Files::docker(&[(&["localhost/it:1", "localhost/also:1"], &[&base, &one, &top])]).save(dir, "three.tar");
    sh("gzip", &["-k", dir.join("three.tar").to_str().expect("a plain path")]);
    Files::docker(&[(&["localhost/first:1"], &[&base])]).save(dir, "first.tar");
    let pair: [(&[&str], &[&[u8]]); 2] =
        [(&["localhost/one:1"], &[&base, &one]), (&["localhost/two:1"], &[&base, &two, &top])];
    Files::docker(&pair).save(dir, "pair.tar");
    Files::docker(&pair[..1]).save(dir, "one.tar");
}

/// A registry with the image of `three.tar`. It takes what is pushed, and forgets it, so that each push is the same.
pub fn registry() -> Server {
    registry::serve(travelling(), pushed)
}

/// What the image of `three.tar` is called there by its manifest.
pub fn digest() -> String {
    let index: serde_json::Value = serde_json::from_slice(travelling().get("index.json")).expect("JSON");
    index["manifests"][0]["digest"].as_str().expect("a digest").to_string()
}

fn travelling() -> Files {
    let [base, one, _, top] = layers();
    Files::layout(Some("localhost/it:1"), &[&base, &one, &top], registry::gzip)
}

/// The answer to a push: distribution-spec, "Pushing blobs" in chunks.
fn pushed(asked: &Asked) -> Option<Reply> {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    Some(match asked.method.as_str() {
        "HEAD" if path.contains("/blobs/") => Reply::new(404, ""),
        "POST" => Reply::new(202, "").with("Location", format!("{path}1")),
        "PATCH" => {
            let last =
                asked.header("content-range").and_then(|range| range.split_once('-')).map_or("0", |(_, last)| last);
            Reply::new(202, "").with("Location", path).with("Range", format!("0-{last}"))
        }
        "PUT" if path.contains("/manifests/") => {
            Reply::new(201, "").with("Docker-Content-Digest", format!("sha256:{}", hex(&asked.bytes)))
        }
        "PUT" => {
            let digest = query.replace("%3A", ":").replace("digest=", "");
            Reply::new(201, "").with("Docker-Content-Digest", digest)
        }
        "DELETE" => Reply::new(204, ""),
        _ => return None,
    })
}
