//! Images in archives and layouts: what `docker save`, `podman save` and skopeo write, OCI layouts and archives of them.
//!
//! `manifest.json` decides: where it is, the images are those that it lists, as docker and podman read it (docker's
//! newer archives are OCI layouts, too, but only `manifest.json` has all their names). Otherwise `index.json` of an OCI
//! layout (image-spec image-layout.md) is the list, and every document is verified by the digest that leads to it.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex};
use serde::Deserialize;

use super::files::Files;
use super::manifest::{Document, Pointer, choose, pointer};
use super::verified::Verified;
use super::{Blob, Blobs, Offer, Platform};
use crate::archive::{Index, Limits};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::name::{Digest, ImageName};

/// A manifest or an index larger than this is refused: real ones are a few KiB.
const DOCUMENT: u64 = 4 << 20;

/// Images in one archive. `docker save` of all that a machine has may be hundreds.
const IMAGES: usize = 1024;

/// Indexes within indexes: one is the layout's own, one chooses the platform.
const DEPTH: usize = 4;

/// Images that lie somewhere, and what their layers are read from.
pub struct Stored {
    /// Each image, in the order of the list.
    pub offers: Vec<Offer>,
    /// Where their layers are.
    pub blobs: Arc<dyn Blobs>,
}

impl Stored {
    /// The images in an uncompressed archive.
    ///
    /// # Errors
    /// `Invalid` when it is no archive of images, or a damaged one.
    pub fn in_archive(file: File, platform: &Platform, limits: &Limits) -> Result<Stored> {
        Stored::of(Files::Archive(Index::read(file)?), platform, limits)
    }

    /// The images in a directory that holds a layout.
    ///
    /// # Errors
    /// `Invalid` when it is no layout, or a damaged one.
    pub fn in_directory(path: &Path, platform: &Platform, limits: &Limits) -> Result<Stored> {
        Stored::of(Files::Directory(fs::open_directory_follow(path)?), platform, limits)
    }

    fn of(files: Files, platform: &Platform, limits: &Limits) -> Result<Stored> {
        let offers = if files.has("manifest.json") {
            let json = files.read("manifest.json", DOCUMENT)?;
            match json.trim_ascii_start() {
                // A manifest itself, and its blobs beside it: containers-transports(5), "dir".
                [b'{', ..] => vec![image(&files, &json, |digest| digest.id().to_string(), limits)?],
                _ => docker_archive(&files, &json, limits)?,
            }
        } else if files.has("index.json") {
            layout(&files, platform, limits)?
        } else {
            let error =
                Error::new(Kind::Invalid, "this is no image archive: it has no manifest.json and no index.json");
            return Err(if files.has("repositories") {
                error.with_hint(
                    "it is of the kind that docker wrote before 1.10: load and save it with docker 1.10 to 27",
                )
            } else {
                error.with_hint("a root filesystem is for `tupper image import`")
            });
        };
        if offers.is_empty() {
            return Err(Error::new(Kind::Invalid, "the archive lists no image"));
        }
        Ok(Stored { offers, blobs: Arc::new(Stock(files)) })
    }
}

/// The blobs of an archive or a layout.
struct Stock(Files);

impl Blobs for Stock {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send>> {
        let (reader, size) = self.0.open(&blob.location)?;
        Ok(match blob.digest {
            Some(digest) => Box::new(Verified::new(reader, digest, blob.size.unwrap_or(size))),
            None => reader,
        })
    }
}

/// An image in docker's `manifest.json` (docker image/tarexport/tarexport.go, manifestItem).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

fn docker_archive(files: &Files, json: &[u8], limits: &Limits) -> Result<Vec<Offer>> {
    let items: Vec<Item> = serde_json::from_slice(json)
        .map_err(|e| Error::new(Kind::Invalid, format!("manifest.json: not docker's list of images: {e}")))?;
    bounded(items.len())?;
    items.into_iter().map(|item| docker_image(files, item, limits)).collect()
}

fn docker_image(files: &Files, item: Item, limits: &Limits) -> Result<Offer> {
    let (_, size) = files.open(&item.config).context(|| "config of an image")?;
    limits.require_config(size)?;
    let config = files.read(&item.config, limits.config).context(|| "config of an image")?;
    if let Some(digest) = named_digest(&item.config)?
        && digest != Digest::of(&config)
    {
        return Err(Error::new(
            Kind::Invalid,
            format!("config {}: its digest is {}", item.config, Digest::of(&config)),
        ));
    }
    let names = item.repo_tags.unwrap_or_default().iter().map(|tag| tag.parse()).collect::<Result<_>>()?;
    let layers = item.layers.unwrap_or_default().into_iter().map(|location| {
        let (_, size) = files.open(&location).context(|| "layer of an image")?;
        Ok(Blob { digest: named_digest(&location)?, size: Some(size), media_type: None, location })
    });
    Ok(Offer { names, manifest: None, config, layers: layers.collect::<Result<_>>()?, place: None })
}

/// The digest that a member of an OCI-shaped archive is named after.
fn named_digest(name: &str) -> Result<Option<Digest>> {
    let hex = name.strip_prefix("blobs/sha256/");
    hex.map(|hex| format!("sha256:{hex}").parse().context(|| name.to_string())).transpose()
}

fn layout(files: &Files, platform: &Platform, limits: &Limits) -> Result<Vec<Offer>> {
    let json = files.read("index.json", DOCUMENT)?;
    let index: ImageIndex = serde_json::from_slice(&json)
        .map_err(|e| Error::new(Kind::Invalid, format!("index.json: not an index of images: {e}")))?;
    bounded(index.manifests().len())?;
    let mut offers: Vec<(Digest, Offer)> = Vec::new();
    for descriptor in wanted(&index, platform) {
        let pointer = pointer(descriptor)?;
        let name = layout_name(descriptor);
        // One image with several names has several entries.
        match offers.iter_mut().find(|(digest, _)| *digest == pointer.digest) {
            Some((_, offer)) => offer.names.extend(name),
            None => {
                let mut offer = layout_image(files, pointer, platform, limits)?;
                offer.names.extend(name);
                offers.push((pointer.digest, offer));
            }
        }
    }
    Ok(offers.into_iter().map(|(_, offer)| offer).collect())
}

/// Each entry of a layout is an image, but those that share a name are one image for several platforms.
fn wanted<'a>(index: &'a ImageIndex, platform: &Platform) -> Vec<&'a Descriptor> {
    let all = || index.manifests().iter();
    let name = |descriptor: &Descriptor| annotation(descriptor).map(str::to_string);
    let fits = |one: &Descriptor| one.platform().is_some() && platform.matches(one).is_some();
    let mut found = Vec::new();
    for descriptor in all() {
        let others = || all().filter(|other| name(other) == name(descriptor) && other.platform().is_some());
        match descriptor.platform() {
            Some(_) if others().count() > 1 && others().any(fits) => {
                let best = others().filter_map(|one| Some((platform.matches(one)?, one))).min_by_key(|(rank, _)| *rank);
                if best.is_some_and(|(_, best)| std::ptr::eq(best, descriptor)) {
                    found.push(descriptor);
                }
            }
            _ => found.push(descriptor),
        }
    }
    found
}

fn annotation(descriptor: &Descriptor) -> Option<&str> {
    // containerd keeps the whole name in its own, and a tag alone in the standard one (image-spec annotations.md).
    let annotations = descriptor.annotations().as_ref()?;
    let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    keys.iter().find_map(|key| annotations.get(*key)).map(String::as_str)
}

fn layout_name(descriptor: &Descriptor) -> Option<ImageName> {
    let text = annotation(descriptor)?;
    text.parse().inspect_err(|e| log::warn!("the image is left without a name: {e}")).ok()
}

/// The image behind a pointer: itself, or the one for the platform.
fn layout_image(files: &Files, mut at: Pointer, platform: &Platform, limits: &Limits) -> Result<Offer> {
    let mut seen = HashSet::new();
    for _ in 0..DEPTH {
        if !seen.insert(at.digest) {
            break;
        }
        if at.size > DOCUMENT {
            return Err(Error::new(Kind::Limit, format!("document {}: larger than {DOCUMENT} bytes", at.digest)));
        }
        let bytes = document(files, at, location)?;
        match Document::parse(&bytes, None).context(|| at.digest.to_string())? {
            Document::Index(index) => at = choose(&index, platform)?,
            Document::Image { .. } => return image(files, &bytes, location, limits),
        }
    }
    Err(Error::new(Kind::Invalid, format!("index {}: more than {DEPTH} indexes within each other", at.digest)))
}

/// What a manifest describes, its blobs where `location` says.
fn image(files: &Files, manifest: &[u8], location: fn(Digest) -> String, limits: &Limits) -> Result<Offer> {
    let Document::Image { config, layers } = Document::parse(manifest, None)? else {
        return Err(Error::new(Kind::Unsupported, "manifest.json: it is an index, not an image"));
    };
    limits.require_config(config.size)?;
    let config = document(files, config, location)?;
    let locate = |layer: Blob| Blob { location: layer.digest.map(location).unwrap_or_default(), ..layer };
    let layers = layers.into_iter().map(locate).collect();
    Ok(Offer { names: Vec::new(), manifest: Some(Digest::of(manifest)), config, layers, place: None })
}

fn document(files: &Files, at: Pointer, location: fn(Digest) -> String) -> Result<Vec<u8>> {
    let (reader, _) = files.open(&location(at.digest))?;
    let mut bytes = Vec::new();
    Verified::new(reader, at.digest, at.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn location(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.id())
}

fn bounded(images: usize) -> Result<()> {
    match images > IMAGES {
        true => Err(Error::new(Kind::Limit, format!("the archive lists more than {IMAGES} images"))),
        false => Ok(()),
    }
}
