//! What is left to do when a throwaway has ended.

use crate::kernel::process;
use crate::name::Id;
use crate::sandbox::Exit;
use crate::store::{IdLease, Intent, Store};
use crate::subvolume::{Removed, pool};

/// A throwaway that has ended. It is gone, and nobody can find it any more, but its tree is still to be taken apart: dropped,
/// that is done.
#[derive(Debug)]
#[must_use]
pub struct Gone<'a> {
    /// How its command ended.
    pub exit: Exit,
    pub(super) rest: Rest<'a>,
    /// The rest is done before the process ends.
    pub(super) in_the_way: bool,
}

impl Gone<'_> {
    /// Ends this process with `status`, and has the rest done by another that lives a moment longer: most of it is to forget
    /// what was in the page cache of the tree (fs/btrfs/inode.c, btrfs_delete_subvolume(), d_invalidate()). Whoever waits for
    /// this process goes on meanwhile.
    ///
    /// Returns when that cannot be, or when no other process is wanted (with the pool off), and the rest has been done.
    pub fn end_process(self, status: u8) {
        let Gone { rest, in_the_way: false, .. } = self else { return };
        let mut rest = Some(rest);
        let e = process::end_before(status, || drop(rest.take()));
        log::debug!("{e}");
    }
}

/// Dropped, it is done. Who is killed at it leaves the intent and what is in the trash, unlocked, for the next gc.
#[derive(Debug)]
pub(super) struct Rest<'a> {
    pub store: &'a Store,
    /// Its tree.
    pub removed: Option<Removed<'a>>,
    /// The layer of which more snapshots are to be ready, and what was done in this one.
    pub refill: Option<(Id, pool::Used)>,
    /// No other container has these while a process or a file may have them yet.
    pub _ids: Option<IdLease>,
    pub _intent: Intent,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if let Some(removed) = self.removed.take() {
            removed.relieve();
        }
        self.store.tidy_run();
        if let Some((chain, used)) = &self.refill
            && let Err(e) = pool::refill_later(self.store, chain, used)
        {
            log::debug!("{e}");
        }
    }
}
