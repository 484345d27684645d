//! `update`: other limits for a container, now if it runs, and from its next start on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::compose::check_memory;
use super::{State, leftover};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::fs;
use crate::name::Id;
use crate::sandbox::{self, Limits, Spec};
use crate::store::{Found, Shelf, Store};
use crate::subvolume::Active;

const SPEC: &str = "spec.json";
const NEW: &str = "spec.json.new";

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
    let _turn = turn(dir.as_fd())?;
    let container = super::open(store, &found.id)?;
    let runs = matches!(container.state, State::Running(_));
    // What is at rest is held, so that it is not started meanwhile with the limits that it had.
    let _held = if runs { None } else { Some(Active::open(store, found).map_err(busy)?) };
    let old = &container.spec.limits;
    let new = old.changed_by(change)?;
    check_memory(&new)?;
    let spec = Spec { limits: new.clone(), ..container.spec.clone() };
    write_new(dir.as_fd(), &spec)?;
    if runs {
        let name = leftover::cgroup_name(store, &found.id);
        sandbox::update(&name, container.spec.cgroup_manager, old, &new)?;
    }
    fs::rename_replace(dir.as_fd(), NEW, dir.as_fd(), SPEC).context(|| "keep the new limits")?;
    fs::sync(dir.as_fd())
}

fn busy(e: Error) -> Error {
    match e.kind() {
        Kind::InUse => Error::new(Kind::InUse, "it is being started or removed").with_hint("try again in a moment"),
        _ => e,
    }
}

/// Two updates of one container come one after the other.
fn turn(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    loop {
        let spec = fs::open_file_beneath(dir, SPEC.as_ref())?;
        flock::lock(spec.as_fd(), Lock::Exclusive, || "an update of the container")?;
        // The one before may have put another file in its place.
        if fs::metadata(spec.as_fd())?.st_ino == fs::metadata_at(dir, SPEC)?.st_ino {
            return Ok(spec);
        }
    }
}

/// Everything that could fail for want of room happens before a limit changes.
fn write_new(dir: BorrowedFd<'_>, spec: &Spec) -> Result<()> {
    let json = serde_json::to_vec(spec).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    match fs::unlink(dir, NEW) {
        Err(e) if e.kind() != Kind::NotFound => return Err(e),
        _ => {}
    }
    fs::write_new(dir, NEW, &json, 0o600, true)
}
