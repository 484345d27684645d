//! How much of the disk a container may take: a limit on its subvolume, by the simple quotas of btrfs (btrfs-quota(8)).
//!
//! With these an extent is charged to the subvolume for which it was allocated, for as long as it is there, so that a
//! container begins with nothing, whatever its image holds. Data and metadata both count. Nobody turns them on but a person: the
//! filesystem keeps a feature bit for good, with which older kernels do not mount it. Full quotas, which others than
//! tupper have a use for, make snapshots slow and count what the image holds.
//!
//! The kernel keeps the limit with the account of the subvolume, and removes both with it
//! (btrfs_qgroup_cleanup_dropped_subvolume, fs/btrfs/qgroup.c; tried on Linux 6.18). An account to which something is still
//! charged, because a snapshot holds what the container wrote, it keeps and lets nobody remove. That limits nothing any more:
//! the number of a subvolume is never another's. `btrfs qgroup clear-stale` removes those that have become empty.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::Container;
use super::life::Narrate;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::btrfs;
use crate::kernel::fs;
use crate::kernel::trees::{Quotas, Trees};
use crate::sandbox::{self, Seccomp, Security, Shell};
use crate::store::{Shelf, Store};

/// Under less than this a container could not even begin: the nodes of its tree count, too.
const LEAST: u64 = 1 << 20;

/// Refuses a limit that could not be kept here.
///
/// # Errors
/// [`Kind::Unsupported`] where the filesystem keeps no account that it could be kept by, with what to type.
pub(super) fn check(store: &Store, limit: u64, security: &Security) -> Result<()> {
    let doing = || format!("size limit {limit}");
    if limit < LEAST {
        return Err(Error::new(Kind::Invalid, "less than 1 MiB, nothing could start")).context(doing);
    }
    require_quotas(store).context(doing)?;
    let unfiltered = security.privileged && security.seccomp == Seccomp::Default;
    if unfiltered || security.seccomp == Seccomp::Unconfined {
        log::warn!(
            "size limit: a subvolume that is made inside has none, and nothing keeps the container from making one"
        );
    }
    Ok(())
}

fn require_quotas(store: &Store) -> Result<()> {
    let at = store.root().join("fs");
    let at = sandbox::quote(&at);
    let cost =
        "it needs Linux 6.7, and older kernels do not mount the filesystem any more, even after `btrfs quota disable`";
    let (message, command) = match Trees::of(store.dir()).quotas()? {
        Quotas::Simple => return Ok(()),
        Quotas::Off => ("quotas are off on the store's filesystem", format!("`btrfs quota enable --simple {at}`")),
        Quotas::Full => (
            "the store's filesystem has full quotas, which count what the image holds, too",
            format!("`btrfs quota disable {at}` and `btrfs quota enable --simple {at}`"),
        ),
    };
    let error = Error::new(Kind::Unsupported, message);
    Err(error.with_hint(format!("{command} turns simple ones on: {cost}")))
}

/// Puts the limit on a container's subvolume, if it is not there.
pub(super) fn ensure(store: &Store, rootfs: BorrowedFd<'_>, limit: u64) -> Result<()> {
    let doing = || format!("size limit {limit}");
    let id = btrfs::info(rootfs)?.id;
    let mut trees = Trees::of(store.dir());
    if trees.quotas()? == Quotas::Simple && trees.account(id)?.limit == Some(limit) {
        return Ok(());
    }
    require_quotas(store).context(doing)?;
    btrfs::limit_size(rootfs, Some(limit)).context(doing)
}

/// The command that a person would type for it.
pub(super) fn narrate(path: &Path, limit: u64, narrate: Narrate<'_>) {
    narrate(
        Shell::Host,
        "let it take no more of the disk than that",
        &format!("btrfs qgroup limit {limit} {}", sandbox::quote(path)),
    );
}

/// The bytes that are charged to a container which has a limit of them, as of the filesystem's last commit; nothing where
/// no account is kept any more.
pub fn charged(store: &Store, container: &Container) -> Result<Option<u64>> {
    if container.size_limit.is_none() {
        return Ok(None);
    }
    let dir = store.open_object(Shelf::Containers, &container.id)?;
    let id = btrfs::info(fs::open_directory(dir.as_fd(), "rootfs")?.as_fd())?.id;
    let mut trees = Trees::of(store.dir());
    match trees.quotas()? {
        Quotas::Simple => Ok(Some(trees.account(id)?.charged)),
        Quotas::Off | Quotas::Full => Ok(None),
    }
}
