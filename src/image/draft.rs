//! An image that is about to be: its config and record, still invisible.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Record;
use super::layers::settle;
use crate::error::{Context, Kind, Result};
use crate::kernel::fs;
use crate::name::{Digest, Id, ImageName};
use crate::store::{Shelf, Store, record};
use crate::subvolume::{Held, clear_draft, remove_object};

/// How a directory in staging is called that holds nothing but names for an image that is there.
const NAMES: &str = "names";

/// Gives an image the names that lie in a draft which was left, if they are all there and decided upon.
pub(crate) fn finish_names(store: &Store, draft: &str, dir: BorrowedFd<'_>) -> Result<()> {
    if !draft.starts_with(NAMES) {
        return Ok(());
    }
    let _changing = store.lock_shelf(Shelf::Images)?;
    store.prepared_tags(dir)?.iter().try_for_each(|name| store.take_tag_left(dir, name))
}

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

    /// Makes the image visible, under its names: durable when this returns. `publishing` is the lock on images, `layers` are
    /// those that it stands on.
    pub(super) fn publish(self, names: &[ImageName], layers: &[Held], publishing: OwnedFd) -> Result<Id> {
        let (store, id) = (self.store, self.id);
        // As long as it lives somebody will look for what is left.
        let intent = store.intend()?;
        self.rename(names)?;
        layers.iter().try_for_each(|layer| settle(layer.dir()))?;
        drop((intent, publishing)); // nobody has to wait for the disk
        store.sync()?;
        Ok(id)
    }

    /// The first rename decides. The names lie in the directory that it moves, and whoever finds one of them there that is
    /// not in its place, because of a kill, puts it there.
    fn rename(mut self, names: &[ImageName]) -> Result<()> {
        let store = self.store;
        let (staging, images) = (store.shelf(Shelf::Staging)?, store.shelf(Shelf::Images)?);
        let names: BTreeSet<&ImageName> = names.iter().collect();
        let mut had = Vec::new();
        for name in names.iter().copied() {
            had.push((name, store.tagged(name)?));
            store.prepare_tag(self.dir.as_fd(), name, &self.id)?;
        }
        match fs::rename(staging.as_fd(), &self.name, images.as_fd(), self.id.to_string()) {
            Ok(()) => self.published = true,
            // The image is there, and its names are all that is new. One alone needs no more than its own rename.
            Err(e) if e.kind() == Kind::AlreadyExists && names.len() > 1 => {
                let decided = format!("{NAMES}-{}", store.new_id()?);
                fs::rename(staging.as_fd(), &self.name, staging.as_fd(), &decided).context(|| "publish the names")?;
                self.name = decided;
            }
            Err(e) if e.kind() == Kind::AlreadyExists => {}
            Err(e) => return Err(e).context(|| "publish the image"),
        }
        for (number, name) in names.into_iter().enumerate() {
            if let Err(e) = store.take_tag(self.dir.as_fd(), name) {
                self.take_back(&had[..number]).unwrap_or_else(|e| log::warn!("take the image's names back: {e}"));
                return Err(e);
            }
        }
        Ok(())
    }

    /// Undoes what was published: the names, which others may have had, and the image.
    fn take_back(&self, names: &[(&ImageName, Option<Id>)]) -> Result<()> {
        for (name, had) in names {
            match had {
                Some(other) => self.store.set_tag(name, other)?,
                None => self.store.remove_tag(name)?,
            }
        }
        if self.published {
            remove_object(self.store, Shelf::Images, &self.id, self.dir.as_fd())?.clear();
        }
        Ok(())
    }
}

impl Drop for ImageDraft<'_> {
    fn drop(&mut self) {
        if !self.published {
            clear_draft(self.store, &self.name);
        }
    }
}
