//! An image that is about to be: its config and record, still invisible.

use std::os::fd::{AsFd, OwnedFd};

use super::Record;
use crate::error::{Context, Kind, Result};
use crate::kernel::fs;
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{clear_draft, remove_object};

/// An image's directory under its temporary name.
pub(super) struct ImageDraft<'a> {
    store: &'a Store,
    id: Id,
    name: String,
    /// Locked, as everything in staging is that belongs to somebody.
    dir: OwnedFd,
    published: bool,
}

impl<'a> ImageDraft<'a> {
    /// With `durable`, its config is on the disk when this returns; else the caller syncs before it publishes.
    pub(super) fn create(store: &'a Store, config: &[u8], record: &Record, durable: bool) -> Result<ImageDraft<'a>> {
        let id = Digest::of(config).id();
        let (name, dir) = store.make_draft("image")?;
        let image = ImageDraft { store, id, name, dir, published: false };
        record::write(image.dir.as_fd(), record)?;
        fs::write_new(image.dir.as_fd(), super::CONFIG, config, 0o600, durable)?;
        Ok(image)
    }

    /// Makes the image visible, under its names, and durable with the caller's next sync, for which nobody has to wait: the
    /// caller holds the lock on images. Its layers are published.
    pub(super) fn publish(mut self, names: &[ImageName]) -> Result<Id> {
        let store = self.store;
        let (staging, images) = (store.shelf(Shelf::Staging)?, store.shelf(Shelf::Images)?);
        // Several renames, which a kill can come between: the image has its names in it until they are in their place, and
        // one that has some and got none is garbage.
        let _publishing = store.intend()?;
        for name in names {
            store.prepare_tag(self.dir.as_fd(), name, &self.id)?;
        }
        match fs::rename(staging.as_fd(), &self.name, images.as_fd(), self.id.to_string()) {
            Ok(()) => self.published = true,
            Err(e) if e.kind() == Kind::AlreadyExists => {}
            Err(e) => return Err(e).context(|| "publish the image"),
        }
        for (number, name) in names.iter().enumerate() {
            if let Err(e) = store.take_tag(self.dir.as_fd(), name) {
                if self.published && number == 0 {
                    match remove_object(store, Shelf::Images, &self.id, self.dir.as_fd()) {
                        Ok(removed) => removed.clear(),
                        Err(e) => log::warn!("remove image {}: {e}", self.id.short()),
                    }
                }
                return Err(e);
            }
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
