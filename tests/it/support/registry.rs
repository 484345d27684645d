//! A registry of the tests' own: it has one image, whatever it is asked for by name.

use serde_json::Value;

use super::archives::{Files, hex};
use super::http::{Asked, Reply, Server};

/// What an honest registry answers that has the first image of a layout.
pub fn answer(files: &Files, asked: &Asked) -> Reply {
    let path = asked.path.as_str();
    if path == "/v2/" {
        return Reply::new(200, "{}");
    }
    if let Some((_, wanted)) = path.split_once("/manifests/") {
        let index: Value = serde_json::from_slice(files.get("index.json")).expect("JSON");
        let digest = index["manifests"][0]["digest"].as_str().expect("a digest");
        if !wanted.contains(':') || wanted == digest {
            let manifest = files.get(&digest.replace("sha256:", "blobs/sha256/"));
            return Reply::new(200, manifest).with("Content-Type", "application/vnd.oci.image.manifest.v1+json");
        }
    }
    let blob = path.split_once("/blobs/sha256:").map(|(_, digest)| format!("blobs/sha256/{digest}"));
    match blob.and_then(|name| files.0.iter().find(|(there, _)| *there == name)) {
        Some((_, blob)) => Reply::range_of(asked, blob),
        None => Reply::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such thing"}]}"#),
    }
}

/// An honest registry, but for what `lie` answers.
pub fn serve(files: Files, lie: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Server {
    Server::start(move |asked| lie(asked).unwrap_or_else(|| answer(&files, asked)))
}

/// The path of a layer in the registry, as its bytes travel.
pub fn blob(repository: &str, travels: &[u8]) -> String {
    format!("/v2/{repository}/blobs/sha256:{}", hex(travels))
}

/// As most layers travel.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).and_then(|()| encoder.finish()).expect("to memory")
}
