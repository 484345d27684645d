//! Images of several layers that commands load and pull: small, and with something in common.

use std::path::Path;

use crate::support::archives::Files;
use crate::support::http::Server;
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
/// `pair.tar`, two images with the same base; and `one.tar`, the first of those.
pub fn save(dir: &Path) {
    let [base, one, two, top] = layers();
    Files::docker(&[(&["localhost/it:1", "localhost/also:1"], &[&base, &one, &top])]).save(dir, "three.tar");
    sh("gzip", &["-k", dir.join("three.tar").to_str().expect("a plain path")]);
    Files::docker(&[(&["localhost/first:1"], &[&base])]).save(dir, "first.tar");
    let pair: [(&[&str], &[&[u8]]); 2] =
        [(&["localhost/one:1"], &[&base, &one]), (&["localhost/two:1"], &[&base, &two, &top])];
    Files::docker(&pair).save(dir, "pair.tar");
    Files::docker(&pair[..1]).save(dir, "one.tar");
}

/// A registry with the image of `three.tar`.
pub fn registry() -> Server {
    let [base, one, _, top] = layers();
    registry::serve(Files::layout(None, &[&base, &one, &top], registry::gzip), |_| None)
}
