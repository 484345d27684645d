//! Manifests and indexes: which blobs an image is made of.
//!
//! Sources: image-spec manifest.md and image-index.md; Docker's "Image Manifest V 2, Schema 2". What a document is, it
//! says itself (`mediaType`) or the registry says (`Content-Type`); where both speak they have to agree, and one that
//! reads as manifest and index at once is refused (CVE-2021-41190).

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::compress::Format;
use super::{Blob, Platform, Travelled};
use crate::error::{Error, Kind, Result};
use crate::name::Digest;

const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A document that was fetched.
#[derive(Debug)]
pub(super) enum Document {
    /// An image: its config and layers, lowest first.
    Image { config: Pointer, layers: Vec<Blob> },
    /// Several.
    Index(Box<ImageIndex>),
}

/// What a descriptor points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pointer {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

impl Document {
    /// Reads a document; `content_type` is what the registry called it.
    pub(super) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document> {
        let bad = |why: String| Error::new(Kind::Invalid, why);
        let shape: Shape = serde_json::from_slice(bytes).map_err(|e| bad(format!("not a manifest: {e}")))?;
        if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
            return Err(Error::new(
                Kind::Unsupported,
                "an image of Docker's schema 1, which nobody has made since 2017",
            ));
        }
        let called = content_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        // What these say is nothing.
        let called = called.filter(|text| {
            !matches!(text.as_str(), "" | "text/plain" | "application/octet-stream" | "application/json")
        });
        if let Some((called, says)) =
            called.as_ref().zip(shape.media_type.as_ref()).filter(|(called, says)| called != says)
        {
            return Err(bad(format!("a document that the registry calls {called:?} and that calls itself {says:?}")));
        }
        let index = shape.manifests.is_some();
        let image = shape.config.is_some() || shape.layers.is_some();
        if index == image {
            let what = if index { "both an image and" } else { "neither an image nor" };
            return Err(bad(format!("a document that is {what} an index")));
        }
        let kind = shape.media_type.or(called);
        let expected = if index { INDEXES } else { MANIFESTS };
        if let Some(kind) = kind.filter(|kind| !expected.contains(&kind.as_str())) {
            return Err(Error::new(Kind::Unsupported, format!("media type {kind:?} is not that of an image")));
        }
        let malformed = |e: serde_json::Error| bad(format!("malformed: {e}"));
        if index {
            return Ok(Document::Index(Box::new(serde_json::from_slice(bytes).map_err(malformed)?)));
        }
        let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(malformed)?;
        let kind = manifest.config().media_type().to_string();
        if !CONFIGS.contains(&kind.as_str()) {
            return Err(Error::new(
                Kind::Unsupported,
                format!("not a container image but an artifact: its config is {kind:?}"),
            ));
        }
        let layers = manifest.layers().iter().map(layer);
        Ok(Document::Image { config: pointer(manifest.config())?, layers: layers.collect::<Result<_>>()? })
    }
}

/// Whose words a manifest is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// image-spec manifest.md.
    #[default]
    Oci,
    /// "Image Manifest V 2, Schema 2".
    Docker,
}

impl Style {
    /// The media type of a manifest.
    pub(super) fn manifest(self) -> &'static str {
        MANIFESTS[self as usize]
    }

    /// The media type of a layer, compressed or not.
    pub(super) fn layer(self, compressed: Option<Format>) -> String {
        match (self, compressed) {
            (Style::Oci, None) => "application/vnd.oci.image.layer.v1.tar".to_string(),
            (Style::Oci, Some(format)) => format!("application/vnd.oci.image.layer.v1.tar+{format}"),
            (Style::Docker, None) => "application/vnd.docker.image.rootfs.diff.tar".to_string(),
            (Style::Docker, Some(format)) => format!("application/vnd.docker.image.rootfs.diff.tar.{format}"),
        }
    }
}

/// The manifest of an image: of its config and its layers as they travel, lowest first. The same gives the same bytes.
pub(super) fn compose(style: Style, config: &[u8], layers: &[Travelled]) -> Result<Vec<u8>> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| json!({ "mediaType": layer.media_type, "digest": layer.digest.to_string(), "size": layer.size }))
        .collect();
    let config = json!({
        "mediaType": CONFIGS[style as usize],
        "digest": Digest::of(config).to_string(),
        "size": config.len(),
    });
    let manifest = json!({ "schemaVersion": 2, "mediaType": style.manifest(), "config": config, "layers": layers });
    serde_json::to_vec(&manifest).map_err(|e| Error::new(Kind::Invalid, e.to_string()))
}

/// The digest and size of a descriptor.
pub(super) fn pointer(descriptor: &Descriptor) -> Result<Pointer> {
    Ok(Pointer { digest: descriptor.digest().to_string().parse()?, size: descriptor.size() })
}

/// A layer is a tar stream; what compresses it, its first bytes say. Layers that lie elsewhere (`urls`) are asked for
/// here like all others: a manifest does not make this program fetch what it likes from where it likes.
fn layer(descriptor: &Descriptor) -> Result<Blob> {
    let kind = descriptor.media_type().to_string();
    let known = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
    let rest = known.iter().find_map(|prefix| kind.strip_prefix(prefix));
    let tar = rest.is_some_and(|rest| {
        let rest = rest.strip_suffix("+gzip").or(rest.strip_suffix("+zstd")).unwrap_or(rest);
        let rest = rest.strip_suffix(".gzip").or(rest.strip_suffix(".zstd")).unwrap_or(rest);
        matches!(rest, "v1.tar" | "nondistributable.v1.tar" | "diff.tar" | "foreign.diff.tar")
    });
    if !tar {
        return Err(Error::new(Kind::Unsupported, format!("layer of the media type {kind:?}")));
    }
    let Pointer { digest, size } = pointer(descriptor)?;
    Ok(Blob { digest: Some(digest), size: Some(size), media_type: Some(kind), location: String::new() })
}

/// The image of an index for a platform.
///
/// # Errors
/// [`Kind::NotFound`], naming what there is.
pub(super) fn choose(index: &ImageIndex, wanted: &Platform) -> Result<Pointer> {
    let nested = |kind: &MediaType| INDEXES.contains(&kind.to_string().as_str());
    let mut best: Option<(usize, &Descriptor)> = None;
    for descriptor in index.manifests() {
        let Some(platform) = descriptor.platform() else { continue };
        let (os, architecture) = (os(platform.os()), architecture(platform.architecture()));
        let rank = wanted.rank(&os, &architecture, platform.variant().as_deref());
        if let Some(rank) = rank.filter(|rank| best.is_none_or(|(least, _)| *rank < least)) {
            best = Some((rank, descriptor));
        }
    }
    // One that does not say what it is for will do when none says that it is for this.
    let unnamed = index.manifests().iter().find(|descriptor| descriptor.platform().is_none());
    let unnamed =
        unnamed.filter(|one| nested(one.media_type()) || MANIFESTS.contains(&one.media_type().to_string().as_str()));
    if let Some(found) = best.map(|(_, found)| found).or(unnamed) {
        return pointer(found);
    }
    let mut there: Vec<String> = Vec::new();
    for platform in index.manifests().iter().filter_map(|descriptor| descriptor.platform().as_ref()) {
        let variant = platform.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
        let text = format!("{}/{}{variant}", os(platform.os()), architecture(platform.architecture()));
        // Attestations are no images.
        if !text.starts_with("unknown/") && !there.contains(&text) && there.len() < 32 {
            there.push(text);
        }
    }
    let there = if there.is_empty() { "nothing".to_string() } else { there.join(", ") };
    let error = Error::new(Kind::NotFound, format!("no image for {wanted}, there is {there}"));
    Err(error.with_hint("--platform OS/ARCHITECTURE chooses another"))
}

fn os(os: &Os) -> String {
    os.to_string()
}

fn architecture(architecture: &Arch) -> String {
    architecture.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn manifest(config: &str, layer: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"sha256:{HEX}","size":2}},
               "layers":[{{"mediaType":"{layer}","digest":"sha256:{HEX}","size":3}}]}}"#
        )
    }

    #[test]
    fn layers_are_tar_streams_and_images_have_image_configs() {
        for layer in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            let text = manifest(CONFIGS[0], layer);
            let Ok(Document::Image { layers, .. }) = Document::parse(text.as_bytes(), Some(MANIFESTS[0])) else {
                panic!("{layer}")
            };
            assert_eq!(layers[0].size, Some(3));
            assert_eq!(layers[0].media_type.as_deref(), Some(layer));
        }
        for (config, layer) in [
            (CONFIGS[0], "application/vnd.oci.image.layer.v1.tar+encrypted"),
            (CONFIGS[0], "application/wasm"),
            ("application/vnd.cncf.helm.config.v1+json", "application/vnd.oci.image.layer.v1.tar"),
        ] {
            let refused = Document::parse(manifest(config, layer).as_bytes(), None).expect_err(layer);
            assert_eq!(refused.kind(), Kind::Unsupported);
        }
    }

    #[test]
    fn a_document_is_one_thing() {
        let good = manifest(CONFIGS[0], "application/vnd.oci.image.layer.v1.tar");
        let parse = |text: &str, kind: &str| Document::parse(text.as_bytes(), Some(kind)).map_err(|e| e.to_string());
        assert!(parse(&good, "text/plain; charset=utf-8").is_ok());
        assert!(parse(&good, "").is_ok());
        for (text, kind, why) in [
            (good.as_str(), INDEXES[0], "not that of an image"),
            (good.as_str(), "text/html", "not that of an image"),
            ("{}", "", "neither"),
            ("[]", "", "not a manifest"),
            ("<html>", "text/html", "not a manifest"),
            (&good.replacen('{', r#"{"manifests":[],"#, 1), "", "both"),
            (&good.replacen('{', r#"{"mediaType":"application/x","#, 1), MANIFESTS[0], "calls itself"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "", "schema 1"),
            (&good.replace("\"size\":3", "\"size\":-3"), "", "malformed"),
            (&good.replace(HEX, "../../etc/passwd"), "", "malformed"),
            (&good.replace("sha256", "md5"), "", ""),
        ] {
            let refused = parse(text, kind).expect_err(why);
            assert!(refused.contains(why), "{why}: {refused}");
        }
    }

    #[test]
    fn the_platform_decides_and_a_missing_one_is_told_what_there_is() {
        let entry = |nth: usize, platform: &str| {
            let hex = format!("{nth:064}");
            format!(r#"{{"mediaType":"{}","digest":"sha256:{hex}","size":{nth},{platform}}}"#, MANIFESTS[0])
        };
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{}]}}"#,
            entry(1, r#""platform":{"os":"linux","architecture":"arm64","variant":"v8"}"#),
            entry(2, r#""platform":{"os":"linux","architecture":"amd64"}"#),
            entry(3, r#""platform":{"os":"unknown","architecture":"unknown"}"#),
        );
        let Ok(Document::Index(index)) = Document::parse(index.as_bytes(), Some(INDEXES[1])) else {
            panic!("an index")
        };
        let choose = |text: &str| choose(&index, &text.parse().expect(text));
        assert_eq!(choose("linux/amd64").expect("there").size, 2);
        assert_eq!(choose("linux/arm64").expect("there").size, 1);
        let missing = choose("linux/s390x").expect_err("not there");
        assert_eq!(missing.to_string(), "no image for linux/s390x, there is linux/arm64/v8, linux/amd64");
        assert_eq!(missing.kind(), Kind::NotFound);
    }
}
