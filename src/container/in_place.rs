//! The verb run in a snapshot itself: what its command changes is in the snapshot at once.

use super::life::{
    Create, Narrate, Planned, narrate_afterwards, narrate_leaving, network_narrate, plan, prepare, start_sandbox,
    until_end,
};
use super::volumes;
use crate::error::{Context, Error, Kind, Result};
use crate::sandbox::Exit;
use crate::snapshot::{Resolved, Source};
use crate::store::{Found, Shelf, Store, kind_word};
use crate::subvolume::Active;

/// Runs a command in the foreground in a snapshot itself, which is in use for as long: `Kind::InUse` when it is already. There is
/// no container to be seen, and nothing of one is left.
pub fn run_in_place(store: &Store, create: &Create, narrate: Option<Narrate<'_>>) -> Result<Exit> {
    let doing = || format!("run in {}", create.source);
    let prepared = prepare(store, create, true).context(doing)?;
    let active = Active::open(store, snapshot(&prepared.resolved).context(doing)?).context(doing)?;
    let rootfs = active.rootfs(prepared.spec.read_only).context(doing)?;
    // Before anything is made on the host for it; the intent lasts until all of that is gone.
    let _intent = store.intend_for(&prepared.found.id).context(doing)?;
    let tell = narrate.map(network_narrate);
    let tell = tell.as_ref().map(|tell| tell as _);
    let Planned { plan, network, beside, ids: _ids } =
        plan(store, &prepared.spec, None, &rootfs, prepared.found, tell).call_context(doing)?;
    if let Some(narrate) = narrate {
        volumes::narrate(store, &prepared, narrate).context(doing)?;
    }
    // Those that nobody named go when this is dropped.
    let _provided = volumes::provide(store, &prepared).context(doing)?;
    let started = start_sandbox(&plan, None, network.as_ref(), beside, || Ok(rootfs), narrate).call_context(doing);
    let exit = until_end(store, &prepared, started);
    if let Some(narrate) = narrate {
        narrate_afterwards(&plan, narrate);
        narrate_leaving(network.as_ref(), narrate);
    }
    drop(network);
    store.tidy_run();
    exit
}

/// The snapshot that a container is to work in itself.
pub(super) fn snapshot(resolved: &Resolved) -> Result<Found> {
    match &resolved.source {
        Source { kind, id: Some(id), .. } if kind == kind_word(Shelf::Snapshots) => {
            Ok(Found { shelf: Shelf::Snapshots, id: *id })
        }
        Source { kind, name, .. } => {
            let error = Error::new(Kind::Invalid, format!("{kind} {name} is no snapshot"));
            Err(error.with_hint("`tupper snapshot create` makes one of it, which can be worked in itself"))
        }
    }
}
