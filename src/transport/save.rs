//! Images into archives and layouts: what docker, podman and skopeo load.
//!
//! - **OCI**: a layout (image-spec image-layout.md), as a directory or in a tar archive. Every name of an image is an entry of
//!   `index.json`, by the annotations of the specification and of containerd.
//! - **docker**: what `docker save` wrote until version 24 and every tool reads: `manifest.json`, and layers uncompressed.
//!
//! A layer is in an archive once, however many images have it. The same images give the same archive. How long a compressed
//! layer is, and what its digest, is known at its end: a file gets its header then; what can only be written onwards gets it
//! from a file beside it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use oci_spec::image::MediaType;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::compress::{Compression, Compressor};
use super::{Outgoing, Output, Tars, Travelled, manifest};
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::kernel::fs;
use crate::name::{Digest, ImageName};

const BLOCK: u64 = 512;
const BUFFER: usize = 256 << 10;

/// The shape of what is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// What `docker save` writes; layers are not compressed.
    Docker,
    /// An OCI layout, its layers compressed or not.
    Oci(Option<Compression>),
}

/// Where it goes.
pub enum Target<'a> {
    /// An archive. Where it is written onwards, what is not known yet waits in a file without a name that this makes.
    Archive(&'a mut Output, &'a mut dyn FnMut() -> Result<File>),
    /// A directory that is a layout then.
    Directory(OwnedFd),
}

/// An image to save.
pub struct Saved {
    /// Its names.
    pub names: Vec<ImageName>,
    /// What it is.
    pub outgoing: Outgoing,
    /// Where its layers are read from.
    pub tars: Arc<dyn Tars>,
}

/// Told of each piece of a layer how many bytes it is, uncompressed; its error ends it.
pub type Progress<'a> = dyn Fn(u64) + Sync + 'a;

/// Writes images. What was written before an error is the caller's to remove.
///
/// # Errors
/// Those of reading the layers and of writing; [`Kind::Invalid`] for docker's shape in a directory.
pub fn save(images: &[Saved], shape: Shape, target: Target<'_>, progress: &Progress<'_>) -> Result<()> {
    let mut out = match target {
        Target::Archive(output, spool) => match output.as_file() {
            Some(file) => Out::File { file: file.try_clone().context(|| "duplicate a descriptor")?, at: 0 },
            None => Out::Stream { stream: output, spool },
        },
        Target::Directory(_) if shape == Shape::Docker => {
            return Err(Error::new(Kind::Invalid, "docker's shape is that of an archive, not of a directory"));
        }
        Target::Directory(directory) => {
            fs::ensure_directory(directory.as_fd(), "blobs", 0o755)?;
            fs::ensure_directory(directory.as_fd(), "blobs/sha256", 0o755)?;
            Out::Directory(directory)
        }
    };
    match shape {
        Shape::Docker => docker(images, &mut out, progress)?,
        Shape::Oci(compression) => oci(images, compression, &mut out, progress)?,
    }
    out.end()
}

fn docker(images: &[Saved], out: &mut Out<'_>, progress: &Progress<'_>) -> Result<()> {
    let mut written: HashMap<Digest, String> = HashMap::new();
    let mut list = Vec::new();
    for Saved { names, outgoing, tars } in images {
        let mut layers = Vec::new();
        for (number, layer) in outgoing.layers.iter().enumerate() {
            let name = match written.get(&layer.diff_id) {
                Some(name) => name.clone(),
                None => {
                    let name = format!("{}.tar", layer.diff_id.id());
                    let mut source = tars.open(number)?;
                    match out {
                        // Nothing has to wait for its end.
                        Out::Stream { stream, .. } => {
                            stream_layer(stream, &name, tars.size(number)?, &mut source, progress)?
                        }
                        _ => out.member(|_| name.clone(), |into| copy(&mut source, into, progress)).map(drop)?,
                    }
                    written.insert(layer.diff_id, name.clone());
                    name
                }
            };
            layers.push(name);
        }
        let config = format!("{}.json", Digest::of(&outgoing.config).id());
        if !list.iter().any(|image: &serde_json::Value| image["Config"] == config.as_str()) {
            out.document(&config, &outgoing.config)?;
        }
        let tags: Vec<String> = names.iter().map(ImageName::to_string).collect();
        list.push(json!({ "Config": config, "RepoTags": tags, "Layers": layers }));
    }
    out.document("manifest.json", &serialized(&json!(list))?)
}

/// A layer of which name and length are known.
fn stream_layer(
    stream: &mut Output,
    name: &str,
    size: u64,
    source: &mut dyn Read,
    progress: &Progress<'_>,
) -> Result<()> {
    stream.write_all(header(name, size)?.as_bytes()).context(|| "write the archive")?;
    // It is as long as its digest says.
    pump(source, stream, progress)?;
    stream.write_all(&padding(size)).context(|| "write the archive")
}

fn oci(images: &[Saved], compression: Option<Compression>, out: &mut Out<'_>, progress: &Progress<'_>) -> Result<()> {
    out.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut written: HashMap<Digest, Travelled> = HashMap::new();
    let mut documents: Vec<Digest> = Vec::new();
    let mut entries = Vec::new();
    for Saved { names, outgoing, tars } in images {
        let mut layers = Vec::new();
        for (number, layer) in outgoing.layers.iter().enumerate() {
            let blob = match written.get(&layer.diff_id) {
                Some(blob) => blob.clone(),
                None => {
                    let blob = layer_blob(&mut tars.open(number)?, compression, out, progress)?;
                    written.insert(layer.diff_id, blob.clone());
                    blob
                }
            };
            layers.push(blob);
        }
        let manifest = manifest::compose(manifest::Style::Oci, &outgoing.config, &layers)?;
        for document in [&outgoing.config, &manifest] {
            let digest = Digest::of(document);
            if !documents.contains(&digest) {
                documents.push(digest);
                out.document(&place(digest), document)?;
            }
        }
        let entry = json!({
            "mediaType": MediaType::ImageManifest.to_string(),
            "digest": Digest::of(&manifest).to_string(),
            "size": manifest.len(),
        });
        match names.as_slice() {
            [] => entries.push(entry),
            names => entries.extend(names.iter().map(|name| {
                let mut entry = entry.clone();
                entry["annotations"] = json!({
                    "io.containerd.image.name": name.to_string(),
                    "org.opencontainers.image.ref.name": name.to_string(),
                });
                entry
            })),
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageIndex.to_string(),
        "manifests": entries,
    });
    out.document("index.json", &serialized(&index)?)
}

/// Writes a layer as a blob of the layout.
fn layer_blob(
    source: &mut dyn Read,
    compression: Option<Compression>,
    out: &mut Out<'_>,
    progress: &Progress<'_>,
) -> Result<Travelled> {
    let (digest, size) = out.member(place, |into| match compression {
        None => copy(source, into, progress),
        Some(compression) => {
            let mut compressor = Compressor::new(Hashed::new(into.writer()?), compression)?;
            pump(source, &mut compressor, progress)?;
            let hashed = compressor.finish().context(|| "compress the layer")?;
            Ok(hashed.end())
        }
    })?;
    let media_type = manifest::Style::Oci.layer(compression.map(|compression| compression.format()));
    Ok(Travelled { digest, size, media_type, place: None })
}

fn place(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.id())
}

fn serialized(document: &serde_json::Value) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|e| Error::new(Kind::Invalid, e.to_string()))
}

fn copy(source: &mut dyn Read, into: &Data, progress: &Progress<'_>) -> Result<(Digest, u64)> {
    let mut hashed = Hashed::new(into.writer()?);
    pump(source, &mut hashed, progress)?;
    Ok(hashed.end())
}

fn pump(source: &mut dyn Read, into: &mut dyn Write, progress: &Progress<'_>) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        interrupt::check()?;
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                into.write_all(&buffer[..length]).context(|| "write the layer")?;
                progress(length as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A writer that knows what went through it.
struct Hashed<W> {
    into: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashed<W> {
    fn new(into: W) -> Hashed<W> {
        Hashed { into, hash: Sha256::new(), size: 0 }
    }

    fn end(self) -> (Digest, u64) {
        (Digest::from_bytes(self.hash.finalize().into()), self.size)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.into.write(bytes)?;
        self.hash.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// What is written to.
enum Out<'a> {
    File { file: File, at: u64 },
    Stream { stream: &'a mut Output, spool: &'a mut dyn FnMut() -> Result<File> },
    Directory(OwnedFd),
}

/// The file that a member's data is written to, from where it stands.
struct Data(File);

impl Data {
    fn writer(&self) -> Result<File> {
        self.0.try_clone().context(|| "duplicate a descriptor")
    }
}

impl Out<'_> {
    /// Writes a member whose name and length are known when its data is written.
    fn member(
        &mut self,
        name: impl Fn(Digest) -> String,
        write: impl FnOnce(&Data) -> Result<(Digest, u64)>,
    ) -> Result<(Digest, u64)> {
        match self {
            Out::File { file, at } => {
                let doing = || "write the archive";
                file.seek(SeekFrom::Start(*at + BLOCK)).context(doing)?;
                let data = Data(file.try_clone().context(doing)?);
                let (digest, size) = write(&data)?;
                file.write_all(&padding(size)).context(doing)?;
                file.seek(SeekFrom::Start(*at)).context(doing)?;
                file.write_all(header(&name(digest), size)?.as_bytes()).context(doing)?;
                *at += BLOCK + size.next_multiple_of(BLOCK);
                Ok((digest, size))
            }
            Out::Stream { stream, spool } => {
                let data = Data(spool()?);
                let (digest, size) = write(&data)?;
                let mut file = data.0;
                let mut send = || -> Result<()> {
                    file.rewind()?;
                    stream.write_all(header(&name(digest), size)?.as_bytes())?;
                    pump(&mut file, stream, &|_| ())?;
                    Ok(stream.write_all(&padding(size))?)
                };
                send().context(|| "write the archive")?;
                Ok((digest, size))
            }
            Out::Directory(directory) => {
                // Its own, so nobody finds it under the name of what it is not yet.
                const HALF: &str = "blobs/sha256/.tupper-half";
                if fs::exists_at(directory.as_fd(), HALF)? {
                    fs::unlink(directory.as_fd(), HALF)?;
                }
                let written = write(&Data(fs::create_new(directory.as_fd(), HALF, 0o644)?));
                let (digest, size) = written.inspect_err(|_| drop(fs::unlink(directory.as_fd(), HALF)))?;
                fs::rename_replace(directory.as_fd(), HALF, directory.as_fd(), name(digest))?;
                Ok((digest, size))
            }
        }
    }

    fn document(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self {
            Out::File { file, at } => {
                let mut write = || -> io::Result<()> {
                    file.seek(SeekFrom::Start(*at))?;
                    file.write_all(header(name, bytes.len() as u64)?.as_bytes())?;
                    file.write_all(bytes)?;
                    file.write_all(&padding(bytes.len() as u64))
                };
                write().context(|| format!("write {name}"))?;
                *at += BLOCK + (bytes.len() as u64).next_multiple_of(BLOCK);
                Ok(())
            }
            Out::Stream { stream, .. } => {
                let mut write = || -> io::Result<()> {
                    stream.write_all(header(name, bytes.len() as u64)?.as_bytes())?;
                    stream.write_all(bytes)?;
                    stream.write_all(&padding(bytes.len() as u64))
                };
                write().context(|| format!("write {name}"))
            }
            Out::Directory(directory) => {
                if fs::exists_at(directory.as_fd(), name)? {
                    fs::unlink(directory.as_fd(), name)?;
                }
                fs::write_new(directory.as_fd(), name, bytes, 0o644, false)
            }
        }
    }

    /// The end of the archive: two blocks of zeros.
    fn end(self) -> Result<()> {
        let zeros = [0; 2 * BLOCK as usize];
        match self {
            Out::File { mut file, at } => file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&zeros)),
            Out::Stream { stream, .. } => stream.write_all(&zeros).and_then(|()| stream.flush()),
            Out::Directory(_) => Ok(()),
        }
        .context(|| "write the end of the archive")
    }
}

/// A file of root's, of 1970: the same images give the same archive.
fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

fn padding(size: u64) -> Vec<u8> {
    vec![0; (size.wrapping_neg() % BLOCK) as usize]
}
