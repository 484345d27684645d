//! The end of a store that is empty.

use std::os::fd::AsFd;

use super::{FORMAT, SHELVES, Shelf, Store, embedded, ensure_layout, run_state, unmount_soon};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::Lock;
use crate::kernel::{btrfs, fs};

/// What else lies beside the shelves.
const LAST: &str = "last";

impl Store {
    /// Removes the store itself: the subvolume, or the filesystem and its file. Durable when it returns.
    ///
    /// Nothing can be added from the moment at which nothing is there. Killed after that, it leaves a store that is half made,
    /// which the next verb that writes makes whole.
    ///
    /// # Errors
    /// A store in which there is something ([`Kind::InUse`]), which stays as it is.
    pub(crate) fn destroy(self) -> Result<()> {
        let doing = {
            let root = self.root.display().to_string();
            move || format!("remove the store {root}")
        };
        self.destroy_it().context(doing)
    }

    fn destroy_it(self) -> Result<()> {
        let making = embedded::lock(&self.root)?;
        let staging = self.staging(Lock::Exclusive)?;
        self.require_empty()?;
        // A name of what is gone. What is without a marker and has more than shelves in it would be somebody else's.
        if fs::read_link_if_any(self.dir.as_fd(), LAST)?.is_some() {
            fs::unlink(self.dir.as_fd(), LAST)?;
        }
        // From here on it is none. A shelf that is gone is nobody's to add to, whoever has it open.
        fs::remove_xattr(self.dir.as_fd(), FORMAT)?;
        let shelves = SHELVES.iter().map(|shelf| fs::remove_directory(self.dir.as_fd(), shelf.as_str()));
        for removed in shelves {
            match removed {
                Err(e) if e.kind() == Kind::NotFound => {}
                other => other?,
            }
        }
        let Store { root, dir, uuid, embedded: is_embedded } = self;
        drop((staging, dir));
        let stays = |e: Error| {
            // Somebody is in it. It is a store as it was, and empty.
            ensure_layout(&root.join("fs")).unwrap_or_else(|e| log::warn!("make it a store again: {e}"));
            e
        };
        match is_embedded {
            true => {
                unmount_soon(&root).map_err(stays)?;
                embedded::remove_file(&root, making.as_fd())?;
            }
            false => {
                btrfs::destroy(making.as_fd(), "fs".as_ref()).map_err(stays)?;
                btrfs::reclaim(making.as_fd())?;
            }
        }
        // Empty by now; what is not says something of a container, and goes with the boot.
        let _ = std::fs::remove_dir(std::path::Path::new(run_state::RUN).join(uuid));
        Ok(())
    }

    fn require_empty(&self) -> Result<()> {
        for name in fs::list(self.dir.as_fd(), ".")? {
            let shelf = name.to_str().and_then(Shelf::named);
            let found = match shelf {
                Some(shelf) => fs::list(self.shelf(shelf)?.as_fd(), ".")?.into_iter().next(),
                None if name == LAST => None,
                None => return Err(there(&name.to_string_lossy())),
            };
            if let (Some(shelf), Some(found)) = (shelf, found) {
                return Err(there(&format!("{shelf}/{}", found.display())));
            }
        }
        Ok(())
    }
}

fn there(what: &str) -> Error {
    Error::new(Kind::InUse, format!("{what} is in it"))
        .with_hint("`tupper store check` says whether it is damaged; what is not tupper's you can move out of it")
}
