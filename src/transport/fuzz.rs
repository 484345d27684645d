//! What a fuzzer asks of this room: documents and archives of images, whatever their bytes are.

use std::fs::File;
use std::io::Write;

use super::manifest::{Document, choose};
use super::{Platform, Stored};
use crate::archive::Limits;

pub use super::http::fuzz::headers;
pub use super::registry::fuzz::{challenge, reference, registries};

const TYPES: [Option<&str>; 5] = [
    None,
    Some("application/vnd.oci.image.manifest.v1+json"),
    Some("application/vnd.docker.distribution.manifest.list.v2+json"),
    Some("Application/Vnd.OCI.image.index.v1+json; charset=utf-8"),
    Some("text/plain"),
];

/// A manifest or an index.
pub fn manifest(bytes: &[u8]) {
    let plain = Document::parse(bytes, TYPES[0]);
    for content_type in TYPES {
        let Ok(document) = Document::parse(bytes, content_type) else { continue };
        assert!(plain.is_ok(), "more is allowed when it is called {content_type:?}");
        let Document::Index(index) = document else { continue };
        for wanted in ["linux/amd64", "linux/arm/v7", "linux/arm64/v8", "windows/s390x"] {
            let Ok(wanted) = wanted.parse::<Platform>() else { panic!("{wanted} is a platform") };
            let _ = choose(&index, &wanted);
        }
    }
}

/// An archive of images: `docker save`, or an OCI layout.
pub fn stored(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!("tupper-fuzz-archive-{}", std::process::id()));
    let write = || -> std::io::Result<File> {
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all(bytes)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    };
    let file = write().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let Ok(stored) = Stored::in_archive(file, &Platform::host(), &Limits::default()) else { return };
    for layer in stored.offers.iter().flat_map(|offer| &offer.layers) {
        let Ok(mut bytes) = stored.blobs.open(layer) else { continue };
        let _ = std::io::copy(&mut bytes, &mut std::io::sink());
    }
}
