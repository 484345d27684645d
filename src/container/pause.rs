//! `pause` and `unpause`: podman-pause(1), podman-unpause(1).

use super::processes::{Process, processes};
use super::{leftover, top};
use crate::error::{Context, Error, Kind, Result};
use crate::name::Id;
use crate::sandbox;
use crate::store::Store;

/// Freezes every process of a running container.
///
/// # Errors
/// A container that does not run or is paused already ([`Kind::Invalid`]); a host that cannot freeze.
pub fn pause(store: &Store, text: &str) -> Result<Id> {
    change(store, text, true).context(|| format!("pause container {text}"))
}

/// Lets a paused container go on.
///
/// # Errors
/// A container that is not paused ([`Kind::Invalid`]).
pub fn unpause(store: &Store, text: &str) -> Result<Id> {
    change(store, text, false).context(|| format!("unpause container {text}"))
}

fn change(store: &Store, text: &str, freeze: bool) -> Result<Id> {
    let container = super::find(store, text)?;
    let first = top::running(&container)?;
    let name = leftover::cgroup_name(store, &container.id);
    match (freeze, container.paused) {
        (true, true) => return Err(Error::new(Kind::Invalid, "it is paused already")),
        (false, false) => return Err(Error::new(Kind::Invalid, "it is not paused")),
        (true, false) => {
            // One that has ended, with all its threads, and was not waited for is listed in no cgroup of v1.
            let ended = |process: &Process| process.state.starts_with(['Z', 'X']) && process.threads <= 1;
            let alive = || {
                let all = processes(first)?.into_iter();
                Ok(all.filter(|process| !ended(process)).map(|process| process.pid).collect())
            };
            sandbox::freeze(&name, alive)?;
        }
        (false, true) => sandbox::thaw(&name)?,
    }
    Ok(container.id)
}
