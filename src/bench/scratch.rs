//! Room for what a measurement makes, which goes with it however it ends.
//!
//! It is a draft of the store's, with a subvolume in it: when its process is killed its lock is free, and the next command
//! that writes takes it away, with the snapshots whose records say that they go with it and the image that is called
//! after it (`check::gc`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use crate::error::{Context, Kind, Result};
use crate::image;
use crate::kernel::fs;
use crate::name::ImageName;
use crate::snapshot;
use crate::store::{SCRATCH, Shelf, Store};
use crate::subvolume::Draft;

/// It lives as long as what is measured; dropped, all that was made for that is gone.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    store: &'a Store,
    draft: Draft<'a>,
}

impl<'a> Scratch<'a> {
    pub(super) fn new(store: &'a Store) -> Result<Scratch<'a>> {
        let draft = Draft::scratch(store, SCRATCH).context(|| "make room for a bench")?;
        Ok(Scratch { store, draft })
    }

    /// What snapshots that go with it have in their records.
    pub(super) fn sign(&self) -> &str {
        self.draft.name()
    }

    /// The name of images that go with it.
    pub(super) fn image_name(&self) -> Result<ImageName> {
        image::name_going_with(self.sign())
    }

    /// A directory in it.
    pub(super) fn directory(&self, name: &str) -> Result<Directory> {
        fs::make_directory(self.draft.rootfs(), name, 0o700)?;
        let fd = fs::open_directory(self.draft.rootfs(), name)?;
        let path =
            self.store.root().join("fs").join(Shelf::Staging.as_str()).join(self.sign()).join("rootfs").join(name);
        Ok(Directory { fd, path })
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let removed = || -> Result<()> {
            for id in snapshot::going_with(self.store, self.sign())? {
                match snapshot::remove(self.store, &id.to_string()) {
                    Err(e) if e.kind() == Kind::NotFound => {} // somebody else was faster
                    other => drop(other?),
                }
            }
            image::remove_going_with(self.store, self.sign())
        };
        if let Err(e) = removed() {
            log::warn!("remove what a bench has made: {e}");
        }
    }
}

/// A directory for what one contender makes.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    /// Where it is, for programs.
    pub(super) path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
