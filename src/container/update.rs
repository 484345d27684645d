//! `update`: other limits for a container, now if it runs, and from its next start on.

use std::os::fd::AsFd;

use super::compose::check_memory;
use super::{Changed, State, leftover};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::name::Id;
use crate::sandbox::{self, Limits};
use crate::store::{Found, Shelf, Store, record};
use crate::subvolume::Active;

/// Changes a container's limits, and its record of them. Where that fails, both are as they were.
///
/// # Errors
///
/// [`Kind::Invalid`] for limits that make no sense together with those that it has; [`Kind::InUse`] for a container that
/// is just being started; and what [`sandbox::update`] says.
pub fn update(store: &Store, text: &str, change: &Limits) -> Result<Id> {
    let doing = || format!("update container {text}");
    let found = store.find_among(text, &[Shelf::Containers]).call_context(doing)?;
    update_found(store, found, change).context(doing)?;
    Ok(found.id)
}

fn update_found(store: &Store, found: Found, change: &Limits) -> Result<()> {
    let dir = store.open_object(Shelf::Containers, &found.id)?;
    // Two updates come one after the other. Whoever runs the container holds its directory's lock, so this is another.
    let _turn = store.lock_shelf(Shelf::Containers)?;
    let container = super::open(store, &found.id)?;
    let runs = matches!(container.state, State::Running(_));
    // What is at rest is held, so that it is not started meanwhile with the limits that it had.
    let _held = if runs { None } else { Some(Active::open(store, found).map_err(busy)?) };
    let old = &container.spec.limits;
    let new = old.changed_by(change)?;
    check_memory(&new)?;
    let name = leftover::cgroup_name(store, &found.id);
    let manager = container.spec.cgroup_manager;
    if runs {
        sandbox::update(&name, manager, old, &new)?;
    }
    let kept = record::write_limits(dir.as_fd(), &Changed { limits: new.clone() }).and_then(|()| fs::sync(dir.as_fd()));
    if kept.is_err()
        && runs
        && let Err(e) = sandbox::update(&name, manager, &new, old)
    {
        log::warn!("undo a change of limits: {e}");
    }
    kept
}

fn busy(e: Error) -> Error {
    match e.kind() {
        Kind::InUse => Error::new(Kind::InUse, "it is being started or removed").with_hint("try again in a moment"),
        _ => e,
    }
}
