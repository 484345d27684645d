//! An image that is about to be: its config and record, still invisible.

use std::os::fd::{AsFd, OwnedFd};

use super::Record;
use crate::error::{Context, Kind, Result};
use crate::kernel::fs;
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::clear_draft;

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
    pub(super) fn create(store: &'a Store, config: &[u8], record: &Record) -> Result<ImageDraft<'a>> {
        let id = Digest::of(config).id();
        let (name, dir) = store.make_draft("image")?;
        let image = ImageDraft { store, id, name, dir, published: false };
        record::write(image.dir.as_fd(), record)?;
        fs::write_new(image.dir.as_fd(), "config.json", config, 0o600, false)?;
        Ok(image)
    }

    /// Makes the image visible and durable. The caller holds the lock on images, and its layers are published.
    pub(super) fn publish(mut self, names: &[ImageName]) -> Result<Id> {
        let (staging, images) = (self.store.shelf(Shelf::Staging)?, self.store.shelf(Shelf::Images)?);
        match fs::rename(staging.as_fd(), &self.name, images.as_fd(), self.id.to_string()) {
            Ok(()) => self.published = true,
            Err(e) if e.kind() == Kind::AlreadyExists => {}
            Err(e) => return Err(e).context(|| "publish the image"),
        }
        for name in names {
            self.store.set_tag(name, &self.id)?;
        }
        self.store.sync()?;
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
