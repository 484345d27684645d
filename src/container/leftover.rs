//! What is left of a container on the host, and of itself, when the tupper that ran it was killed.
//!
//! A container ends with the process that runs it. Where nobody holds its lock, whatever is there of it is a leftover:
//! a command that made itself independent of its parent's end, its cgroups, what was noted of it as running, and, if it
//! was to go at its end, the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::monitor::SOCKET;
use super::record::{Life, Record};
use super::stop::kill_process;
use crate::error::{Context, Result};
use crate::kernel::{fs, process};
use crate::name::Id;
use crate::sandbox;
use crate::store::{Found, Shelf, Store, record};
use crate::subvolume::{self, Active};

/// Something that is left of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// Its command, still alive.
    Process(i32),
    /// A cgroup of it.
    Cgroup(PathBuf),
    /// What was noted of it as running.
    RunState(PathBuf),
    /// The range of ids that it had.
    Ids(PathBuf),
    /// Where its monitor listened, and nobody does any more.
    Socket,
    /// A directory in which it was being made.
    Unfinished,
    /// The container: it ran, and was to go at its end.
    Container,
}

/// What is left of the container `id`, of which `dir` is the directory, locked by the caller, if it has one.
pub(crate) fn leftovers(store: &Store, id: &Id, dir: Option<BorrowedFd<'_>>) -> Result<Vec<Leftover>> {
    let mut left: Vec<Leftover> = store.running(id).iter().map(|running| Leftover::Process(running.pid)).collect();
    left.extend(sandbox::cgroups(&cgroup_name(store, id))?.into_iter().map(Leftover::Cgroup));
    left.extend(store.run_state(id).into_iter().map(Leftover::RunState));
    let leases = store.left_ids()?.into_iter().filter(|(of, _)| of == id);
    left.extend(leases.map(|(_, path)| Leftover::Ids(path)));
    let Some(dir) = dir else { return Ok(left) };
    if !store.exists(Shelf::Containers, id)? {
        left.push(Leftover::Unfinished);
    } else {
        let goes = || match record::read::<Record>(dir)? {
            Some(record) => Life::read(dir, &record).map(|life| life.goes(&record)),
            None => Ok(false),
        };
        if goes().context(|| format!("container {}", id.short()))? {
            left.push(Leftover::Container);
        } else if fs::exists_at(dir, SOCKET)? {
            left.push(Leftover::Socket);
        }
    }
    Ok(left)
}

/// Clears everything that [`leftovers`] finds.
pub(crate) fn clear(store: &Store, id: &Id, dir: Option<OwnedFd>, left: &[Leftover]) -> Result<()> {
    clear_host(store, id)?;
    let Some(dir) = dir else { return Ok(()) };
    let found = Found { shelf: Shelf::Containers, id: *id };
    if left.contains(&Leftover::Container) {
        return Active::locked(store, found, dir)?.remove(store);
    }
    if left.contains(&Leftover::Socket) {
        fs::unlink(dir.as_fd(), SOCKET)?;
    }
    if left.contains(&Leftover::Unfinished) {
        return subvolume::clear_unfinished(store, found, dir.as_fd());
    }
    Ok(())
}

/// Ends what still runs of a container that nobody holds, and clears what it left outside the store.
pub(super) fn clear_host(store: &Store, id: &Id) -> Result<()> {
    if let Some(running) = store.running(id)
        && let Some(process) = process::open(running.pid)?
    {
        kill_process(store, id, &running)?;
        process::wait_gone(process.as_fd())?;
    }
    sandbox::clear_cgroups(&cgroup_name(store, id))?;
    store.forget_running(id);
    store.forget_ids(id)
}

/// The ids of containers that something on the host is left of and that are not in the store any more.
pub(crate) fn orphans(store: &Store) -> Result<Vec<Id>> {
    let prefix = format!("{}-", store.uuid());
    let mut ids = store.run_states();
    ids.extend(store.left_ids()?.into_iter().map(|(id, _)| id));
    let of_cgroup = |name: &String| name.strip_prefix(&prefix)?.parse::<Id>().ok();
    ids.extend(sandbox::cgroup_names()?.iter().filter_map(of_cgroup));
    ids.sort_unstable();
    ids.dedup();
    let mut orphans = Vec::new();
    for id in ids {
        if !store.is_expected(Found { shelf: Shelf::Containers, id })? {
            orphans.push(id);
        }
    }
    Ok(orphans)
}

/// The name of a container's cgroups tells whose they are: several stores share a host.
pub(super) fn cgroup_name(store: &Store, id: &Id) -> String {
    format!("{}-{id}", store.uuid())
}
