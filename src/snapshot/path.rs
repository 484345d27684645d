//! Sources by path: any subvolume on the store's filesystem.

use std::os::fd::AsFd;
use std::path::Path;

use super::{Resolved, Source};
use crate::error::{Error, Kind, Result};
use crate::kernel::{btrfs, fs};
use crate::store::Store;
use crate::subvolume::Parent;

/// Whether a source is meant as a path: it begins as no name does.
pub(super) fn is_path(text: &str) -> bool {
    ["/", "./", "../"].iter().any(|start| text.starts_with(start))
}

/// Finds the subvolume whose top directory is at the path `text`.
pub(super) fn resolve(store: &Store, text: &str) -> Result<Resolved> {
    let dir = fs::open_directory_follow(Path::new(text))?;
    // Where the open directory is, however the way there is written.
    let path = fs::read_link(fs::CWD, fs::path_of(dir.as_fd()))?;
    let (ours, theirs) = (store.dir(), dir.as_fd());
    if !fs::filesystem(theirs)?.btrfs || btrfs::filesystem_uuid(ours)? != btrfs::filesystem_uuid(theirs)? {
        let error = Error::new(Kind::Unsupported, format!("{text}: on another filesystem than the store"));
        return Err(error.with_hint(match store.is_embedded() {
            true => "this store is a filesystem of its own, where nothing of the host's lies: `tupper image import` copies it there",
            false => "a snapshot shares what it holds, so it lies beside its source: use a --root there, or `tupper image import`",
        }));
    }
    if !btrfs::is_subvolume(theirs)? {
        let error = Error::new(Kind::Invalid, format!("{text}: a directory, not a subvolume"));
        return Err(error.with_hint(
            "make it one (`btrfs subvolume create`, then move what it holds), or `tupper image import` it",
        ));
    }
    if btrfs::info(theirs)?.uuid == [0; 16] {
        // The top of a filesystem that mkfs.btrfs made before it gave it one. Its snapshots could not be told from others.
        let error = Error::new(Kind::Unsupported, format!("{text}: a subvolume without a UUID"));
        return Err(error.with_hint("make a snapshot of it with `btrfs subvolume snapshot`, and name that"));
    }
    let source = Source { kind: "path".to_string(), id: None, name: path.display().to_string() };
    Ok(Resolved { parent: Parent::of(dir)?, source, image: None, layer: None, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_that_it_is_one() {
        for path in ["/", "/srv/data", "./data", "../data", "/srv/a:b"] {
            assert!(is_path(path), "{path}");
        }
        for name in ["web", "docker.io/library/debian:12", "snapshot:web", ".", "..", ".hidden/x", "", "a/../b"] {
            assert!(!is_path(name), "{name}");
        }
    }
}
