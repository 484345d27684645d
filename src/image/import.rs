//! Import: a root filesystem from somewhere becomes an image with one layer.
//!
//! The order makes what is acknowledged durable and keeps what is not invisible:
//!
//! 1. unpack into a draft subvolume, computing the layer's diff id on the way
//! 2. write the config beside it; one sync takes layer and config to the disk
//! 3. seal the draft and rename it to its chain id, rename the config's directory to the image's id, point the name at it
//! 4. one more sync, then the id is returned
//!
//! A failure or a kill before 3 leaves nothing but an unlocked draft; between the renames, a layer that no image stands
//! on, or an image that still has its name in its directory. Both are garbage.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::config::{self, Change};
use super::{LayerRecord, Record, remove_unused_layers};
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::kernel::fs;
use crate::layer;
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{Draft, clear_draft, remove_object};
use crate::transport::Source;

/// What to import, and what to make of it.
#[derive(Debug)]
pub struct Import {
    /// Where the root filesystem comes from.
    pub source: Source,
    /// The image's name.
    pub name: Option<ImageName>,
    /// Changes to its config.
    pub changes: Vec<Change>,
    /// A comment for its history.
    pub message: Option<String>,
    /// Limits on what is unpacked.
    pub limits: layer::Limits,
}

/// Told how many of how many bytes of the source were read; the second is unknown for a stream.
pub type Progress = Arc<dyn Fn(u64, Option<u64>) + Send + Sync>;

/// Imports a root filesystem and returns the id of the image: durable when it returns.
pub fn import(store: &Store, import: &Import, progress: Progress) -> Result<Id> {
    run(store, import, progress).context(|| format!("import {}", import.source))
}

fn run(store: &Store, import: &Import, progress: Progress) -> Result<Id> {
    let draft = Draft::create(store)?;
    let bytes = open(store, &import.source, progress)?;
    let room = HostRoom { store, synced: AtomicU64::new(0) };
    let watch = |unpacked| room.require(unpacked);
    let unpacked = draft.fill(|rootfs| layer::unpack_watched(bytes, rootfs, &import.limits, &watch))?;
    refuse_image_archive(&draft)?;

    // The chain id of a first layer is its diff id (image-spec config.md, "Layer ChainID").
    let chain = unpacked.diff_id.id();
    let config = config::for_import(unpacked.diff_id, &import.changes, import.message.as_deref());
    let config = serde_json::to_vec(&config).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    let record = Record { chain, size: unpacked.bytes, created: Timestamp::now() };
    // The same bytes were imported before: nothing of the draft needs to reach the disk.
    let known = store.exists(Shelf::Layers, &chain)?;
    let image = ImageDraft::create(store, &config, &record, known)?;
    let layer =
        LayerRecord { diff_id: unpacked.diff_id, parent: None, size: unpacked.bytes, entries: unpacked.entries };

    if known {
        let publishing = store.lock_shelf(Shelf::Images)?;
        // It may have been removed since.
        if store.exists(Shelf::Layers, &chain)? {
            let id = image.publish(store, import.name.as_ref())?;
            drop((publishing, draft));
            store.sync()?;
            return Ok(id);
        }
    }
    draft.finish(&layer)?;
    let publishing = store.lock_shelf(Shelf::Images)?;
    draft.seal(&chain)?;
    let id = image.publish(store, import.name.as_ref()).inspect_err(|_| {
        // No command but gc would look for it.
        if let Err(e) = remove_unused_layers(store) {
            log::warn!("remove the layer of an image that was not made: {e}");
        }
    })?;
    drop(publishing);
    store.sync()?;
    Ok(id)
}

fn open(store: &Store, source: &Source, progress: Progress) -> Result<Box<dyn Read + Send>> {
    let (reader, length): (Box<dyn Read + Send>, _) = match source {
        // The store would be copied into itself, for as long as there is room.
        Source::Directory(path) => (Box::new(layer::pack(path, &[store.root()])?), None),
        _ => {
            let bytes = source.open()?;
            (bytes.reader, bytes.length)
        }
    };
    Ok(Box::new(Watched { reader, length, read: 0, progress }))
}

/// The disk under an embedded store, which must not run full meanwhile.
struct HostRoom<'a> {
    store: &'a Store,
    /// How much of what was unpacked is known to have its place there.
    synced: AtomicU64,
}

impl HostRoom<'_> {
    /// Refuses to go on when there may be no room for what was unpacked so far. As long as there is plenty this costs a
    /// look; when it becomes scarce, what was written is taken to the disk first, to know.
    fn require(&self, unpacked: u64) -> Result<()> {
        let waiting = unpacked - self.synced.load(Ordering::Relaxed);
        if self.store.require_host_room_for(waiting).is_ok() {
            return Ok(());
        }
        self.store.sync()?;
        self.synced.store(unpacked, Ordering::Relaxed);
        self.store.require_host_room()
    }
}

/// A reader that tells how far it has come.
struct Watched {
    reader: Box<dyn Read + Send>,
    length: Option<u64>,
    read: u64,
    progress: Progress,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        interrupt::check()?;
        let n = self.reader.read(buffer)?;
        self.read += n as u64;
        (self.progress)(self.read, self.length);
        Ok(n)
    }
}

/// What `docker save` or an OCI layout holds is not a root filesystem, however well it unpacks.
fn refuse_image_archive(draft: &Draft<'_>) -> Result<()> {
    let has = |path: &str| fs::exists_at(draft.rootfs(), path);
    let root = has("etc")? || has("usr")? || has("bin")?;
    if !root && (has("oci-layout")? || has("manifest.json")?) {
        let error = Error::new(Kind::Invalid, "this is an image archive, not a root filesystem");
        return Err(error.with_hint(
            "that will be for `tupper image load`, which is not there yet; import what `docker export` or \
             `podman export` writes of a container of the image instead",
        ));
    }
    Ok(())
}

/// An image's directory under its temporary name.
struct ImageDraft<'a> {
    store: &'a Store,
    id: Id,
    name: String,
    /// Locked, as everything in staging is that belongs to somebody.
    dir: OwnedFd,
    published: bool,
}

impl<'a> ImageDraft<'a> {
    /// With `durable`, its config is on the disk when this returns; else the caller syncs before it publishes.
    fn create(store: &'a Store, config: &[u8], record: &Record, durable: bool) -> Result<ImageDraft<'a>> {
        let id = Digest::from_bytes(Sha256::digest(config).into()).id();
        let (name, dir) = store.make_draft("image")?;
        let image = ImageDraft { store, id, name, dir, published: false };
        record::write(image.dir.as_fd(), record)?;
        fs::write_new(image.dir.as_fd(), super::CONFIG, config, 0o600, durable)?;
        Ok(image)
    }

    /// Makes the image visible, under its name, and durable with the caller's next sync, for which nobody has to wait: the
    /// caller holds the lock on images. Its layers are published.
    fn publish(mut self, store: &Store, name: Option<&ImageName>) -> Result<Id> {
        let (staging, images) = (store.shelf(Shelf::Staging)?, store.shelf(Shelf::Images)?);
        // Two renames, which a kill can come between: the image has its name in it until that is in its place, and one
        // with a name in it is garbage.
        let _publishing = store.intend()?;
        if let Some(name) = name {
            store.prepare_tag(self.dir.as_fd(), name, &self.id)?;
        }
        match fs::rename(staging.as_fd(), &self.name, images.as_fd(), self.id.to_string()) {
            Ok(()) => self.published = true,
            Err(e) if e.kind() == Kind::AlreadyExists => {}
            Err(e) => return Err(e).context(|| "publish the image"),
        }
        if let Some(name) = name
            && let Err(e) = store.take_tag(self.dir.as_fd(), name)
        {
            if self.published {
                match remove_object(store, Shelf::Images, &self.id, self.dir.as_fd()) {
                    Ok(removed) => removed.clear(),
                    Err(e) => log::warn!("remove image {}: {e}", self.id.short()),
                }
            }
            return Err(e);
        }
        Ok(self.id)
    }
}

impl Drop for ImageDraft<'_> {
    fn drop(&mut self) {
        if !self.published {
            clear_draft(self.store, &self.name);
        }
    }
}
