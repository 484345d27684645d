//! An image into a registry: what it does not have yet, and the manifest at last.
//!
//! ```text
//! layer: there by a digest that it has travelled by? ─> in another repository? ─> compress ─> chunks ─> upload
//!        HEAD                                           POST ?mount&from          threads     8 MiB     PATCH, PUT
//! ```
//!
//! Several layers are under way at once, each by connections of its own. What is compressed is not kept: a layer whose
//! upload the registry has lost is compressed again.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bytes::Bytes;

use super::repository::Repository;
use super::upload::{Begun, Chunks, End, Upload};
use super::{Client, Reference};
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::name::Digest;
use crate::transport::http::{Failure, Pauses};
use crate::transport::{Compression, Compressor, Format, Outgoing, OutgoingLayer, Style, Tars, Travelled, manifest};

/// Layers that are under way at once, as many as a pull has.
const IN_FLIGHT: usize = 3;
/// Other repositories that one layer is asked for in.
const MOUNTS: usize = 2;
/// Other repositories that a token is asked for.
const PLACES: usize = 8;

/// How to push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Whose manifest it is to be.
    pub style: Style,
    /// What compresses layers that have not travelled yet.
    pub compression: Compression,
    /// Whether a layer that has travelled by another compression is compressed again.
    pub recompress: bool,
}

/// What becomes of a layer that is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushStep {
    /// The registry has it already.
    There,
    /// It comes from another repository of the registry.
    Mounted,
    /// So many of so many bytes were read, uncompressed.
    Read(u64, Option<u64>),
    /// The registry has it.
    Sent,
}

/// Told what becomes of each layer, by its number from the lowest up.
pub type PushProgress = Arc<dyn Fn(usize, PushStep) + Send + Sync>;

/// An image that was pushed.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its layers as the registry has them, lowest first.
    pub layers: Vec<Travelled>,
}

impl Client {
    /// Pushes an image to where the reference says; without a registry that is docker.io (podman-push(1)). Mirrors are for
    /// pulling.
    ///
    /// # Errors
    /// [`Kind::Permission`] when the registry does not let us, [`Kind::Limit`] when something is too large for it,
    /// [`Kind::Invalid`] when it calls something by another digest than its own or the options do not fit together, else
    /// those of the network and of `tars`.
    pub fn push(
        &self,
        reference: &Reference,
        outgoing: &Outgoing,
        tars: &Arc<dyn Tars>,
        options: &PushOptions,
        progress: &PushProgress,
    ) -> Result<Pushed> {
        if reference.digest.is_some() {
            let error = Error::new(Kind::Invalid, "a digest is what comes of a push");
            return Err(error.with_hint("write REGISTRY/REPOSITORY:TAG"));
        }
        if (options.style, options.compression.format()) == (Style::Docker, Format::Zstd) {
            return Err(Error::new(Kind::Invalid, "docker's manifests know no zstd").with_hint("--format oci does"));
        }
        let name = match reference.short {
            true => reference.at(&format!("docker.io/{}", reference.name.repository()))?,
            false => reference.clone(),
        };
        let leads_nowhere = || Error::new(Kind::NotFound, "the name leads nowhere");
        let endpoint = self.registries.endpoints(&name)?.pop().ok_or_else(leads_nowhere)?;
        let place = &endpoint.reference;
        let host = place.name.registry();
        let mut mounts: Vec<&str> = outgoing.layers.iter().flat_map(|layer| mounts(layer, place)).collect();
        mounts.sort_unstable();
        mounts.dedup();
        mounts.truncate(PLACES);
        let credential = self.credential(&name, place)?;
        let (http, insecure) = self.http(host, endpoint.insecure);
        let repository = Repository::new(http, place, credential, insecure).for_pushing(&mounts);
        let pushing = Pushing {
            repository: &repository,
            place,
            outgoing,
            tars: &**tars,
            options,
            progress,
            failed: Mutex::default(),
        };
        let layers = pushing.blobs()?;
        let manifest = manifest::compose(options.style, &outgoing.config, &layers)?;
        interrupt::check()?;
        let doing = || format!("manifest {}", place.version());
        let manifest = repository.put_manifest(&place.version(), options.style.manifest(), &manifest).context(doing)?;
        Ok(Pushed { manifest, layers })
    }
}

/// The other repositories of the registry that a layer may be in.
fn mounts<'a>(layer: &'a OutgoingLayer, place: &Reference) -> impl Iterator<Item = &'a str> {
    layer.travelled.iter().filter_map(|way| mount(way, place))
}

fn mount<'a>(way: &'a Travelled, place: &Reference) -> Option<&'a str> {
    let (host, repository) = way.place.as_deref()?.split_once('/')?;
    (host == place.name.registry() && repository != place.name.repository()).then_some(repository)
}

struct Pushing<'a> {
    repository: &'a Repository,
    place: &'a Reference,
    outgoing: &'a Outgoing,
    tars: &'a dyn Tars,
    options: &'a PushOptions,
    progress: &'a PushProgress,
    /// What the first thread to fail failed with; the others stop then.
    failed: Mutex<Option<Error>>,
}

impl Pushing<'_> {
    /// Config and layers: when this returns the registry has all.
    fn blobs(&self) -> Result<Vec<Travelled>> {
        // On this thread: who we are, and whether the registry speaks TLS, is found out once.
        let config = Bytes::copy_from_slice(&self.outgoing.config);
        let digest = Digest::of(&config);
        let there = self.repository.has_blob(digest, config.len() as u64).context(|| format!("config {digest}"))?;
        if !there {
            self.config(digest, &config).context(|| format!("config {digest}"))?;
        }
        let layers = &self.outgoing.layers;
        // Of several that are the same the first goes for all.
        let first = |number: usize| layers.iter().position(|layer| layer.diff_id == layers[number].diff_id);
        let jobs: Vec<usize> = (0..layers.len()).filter(|number| first(*number) == Some(*number)).collect();
        let next = AtomicUsize::new(0);
        let done: Mutex<BTreeMap<Digest, Travelled>> = Mutex::default();
        let work = || {
            while self.failed().is_none()
                && let Some(number) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let layer = &layers[*number];
                let doing = || format!("layer {} of {} ({})", number + 1, layers.len(), layer.diff_id.id().short());
                match self.layer(*number).context(doing) {
                    Ok(way) => drop(done.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.diff_id, way)),
                    Err(e) => drop(self.failed().get_or_insert(e)),
                }
            }
        };
        thread::scope(|scope| {
            let more = IN_FLIGHT.min(jobs.len()).saturating_sub(1);
            // Where there is no thread to be had, fewer do it.
            let threads: Vec<_> =
                (0..more).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
            work();
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        if let Some(e) = self.failed().take() {
            return Err(e);
        }
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing = || Error::new(Kind::Io, "a layer was not pushed: a thread has failed");
        layers.iter().map(|layer| done.get(&layer.diff_id).cloned().ok_or_else(missing)).collect()
    }

    fn failed(&self) -> MutexGuard<'_, Option<Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self, digest: Digest, bytes: &Bytes) -> Result<()> {
        self.until_kept(None, |upload| upload.send_whole(digest, bytes))
    }

    /// A layer: found, mounted or sent.
    fn layer(&self, number: usize) -> Result<Travelled> {
        interrupt::check()?;
        let layer = &self.outgoing.layers[number];
        let ways: Vec<Travelled> = layer.travelled.iter().filter_map(|way| self.acceptable(way)).collect();
        let mut asked: Vec<Digest> = Vec::new();
        for way in &ways {
            if !asked.contains(&way.digest) && self.repository.has_blob(way.digest, way.size)? {
                (self.progress)(number, PushStep::There);
                return Ok(self.here(way.clone()));
            }
            asked.push(way.digest);
        }
        let mut begun = None;
        for (way, from) in ways.iter().filter_map(|way| Some((way, mount(way, self.place)?))).take(MOUNTS) {
            match self.repository.begin(Some((way.digest, from))) {
                Ok(Begun::Mounted) => {
                    if let Some(upload) = begun.take() {
                        Upload::cancel(upload);
                    }
                    (self.progress)(number, PushStep::Mounted);
                    return Ok(self.here(way.clone()));
                }
                Ok(Begun::Upload(upload)) => {
                    if let Some(before) = begun.replace(upload) {
                        Upload::cancel(before);
                    }
                }
                // A registry that knows no mounts, or lets us have none.
                Err(e) => {
                    interrupt::check()?;
                    log::debug!("mount {} from {from}: {e}", way.digest);
                }
            }
        }
        let (digest, size) = self.until_kept(begun, |upload| self.send(number, upload))?;
        (self.progress)(number, PushStep::Sent);
        let media_type = self.options.style.layer(Some(self.options.compression.format()));
        Ok(self.here(Travelled { digest, size, media_type, place: None }))
    }

    /// Begins uploads until the registry keeps one to its end.
    fn until_kept<'r, T>(
        &'r self,
        mut begun: Option<Upload<'r>>,
        send: impl Fn(Upload<'r>) -> Result<T, End>,
    ) -> Result<T> {
        let mut pauses = Pauses::new(self.repository.http().settings());
        loop {
            let upload = match begun.take() {
                Some(upload) => upload,
                None => match self.repository.begin(None)? {
                    Begun::Upload(upload) => upload,
                    Begun::Mounted => return Err(Error::new(Kind::Invalid, "a mount that nobody asked for")),
                },
            };
            match send(upload) {
                Ok(sent) => return Ok(sent),
                Err(End::Failed(e)) => return Err(e),
                Err(End::Lost(e)) => {
                    log::debug!("{e}; beginning again");
                    pauses.wait(Failure::lost(e), None)?;
                }
            }
        }
    }

    /// Compresses a layer into an upload.
    fn send(&self, number: usize, upload: Upload<'_>) -> Result<(Digest, u64), End> {
        // Nothing waits in it: while one chunk is sent, the next fills.
        let (into, chunks) = sync_channel(0);
        let into = Chunks::new(upload.chunk_size(), into);
        thread::scope(|scope| {
            let compress = thread::Builder::new().spawn_scoped(scope, || self.compress(number, into));
            let compress = compress.context(|| "start a thread").map_err(End::Failed)?;
            let sent = upload.send_all(chunks);
            let compressed = compress.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (sent?, compressed) {
                (Some(sent), _) => Ok(sent),
                (None, Err(e)) => Err(End::Failed(e)),
                (None, Ok(())) => Err(End::Failed(Error::new(Kind::Io, "the layer ends before its end"))),
            }
        })
    }

    fn compress(&self, number: usize, into: Chunks) -> Result<()> {
        let mut tar = self.tars.open(number)?;
        let size = self.tars.size(number).ok();
        let mut compressor = Compressor::new(into, self.options.compression)?;
        let mut buffer = vec![0; 256 << 10];
        let mut read = 0;
        loop {
            interrupt::check()?;
            if self.failed().is_some() {
                return Err(Error::new(Kind::Io, "another layer has failed"));
            }
            let length = tar.read(&mut buffer)?;
            if length == 0 {
                return Ok(compressor.finish()?.end()?);
            }
            compressor.write_all(&buffer[..length])?;
            read += length as u64;
            (self.progress)(number, PushStep::Read(read, size));
        }
    }

    /// The layer as it has travelled, if it may go so, in this manifest's words.
    fn acceptable(&self, way: &Travelled) -> Option<Travelled> {
        let compressed = match &way.media_type {
            kind if kind.ends_with("gzip") => Some(Format::Gzip),
            kind if kind.ends_with("zstd") => Some(Format::Zstd),
            kind if kind.ends_with(".tar") => None,
            _ => return None,
        };
        let wanted = !self.options.recompress || compressed == Some(self.options.compression.format());
        let known = (self.options.style, compressed) != (Style::Docker, Some(Format::Zstd));
        (wanted && known).then(|| Travelled { media_type: self.options.style.layer(compressed), ..way.clone() })
    }

    fn here(&self, way: Travelled) -> Travelled {
        Travelled { place: Some(self.place.place()), ..way }
    }
}
