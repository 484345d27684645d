//! What is wrong with what is recorded of a container, and how it is mended.
//!
//! Its record can be written anew, with what btrfs knows. What it runs is nowhere else: such a container can only be
//! looked into, as a snapshot of it. Nothing is done to one that runs.

use std::os::fd::AsFd;

use super::record::{Changed, Life, Record};
use super::{OLD_SPEC_LIMIT, Spec};
use crate::error::{Error, Kind, Result};
use crate::kernel::fs;
use crate::name::{Id, VolumeName};
use crate::snapshot;
use crate::store::record::{self, Condition};
use crate::store::{Damage, Found, Shelf, Store};
use crate::subvolume::Active;

/// What is wrong with what is recorded of a container.
pub(crate) fn damage(store: &Store, id: &Id) -> Result<Vec<Damage>> {
    let id = *id;
    let found = Found { shelf: Shelf::Containers, id };
    let dir = store.open_object(Shelf::Containers, &id)?;
    let newer = |problem: String| Damage::by_hand(problem, "use the newer tupper that wrote it");
    let mut wrong = Vec::new();
    match record::examine::<Record>(dir.as_fd())? {
        Condition::Good(_) => {}
        Condition::Newer(problem) => wrong.push(newer(problem)),
        Condition::Broken(problem) => {
            let way_out = "write its record anew, with what can be read of it and what btrfs knows";
            wrong.push(Damage::now(problem, way_out, move |store| rewrite(store, found)));
        }
    }
    match record::examine_life::<Life>(dir.as_fd())? {
        None | Some(Condition::Good(_)) => {}
        Some(Condition::Newer(problem)) => wrong.push(newer(problem)),
        Some(Condition::Broken(problem)) => {
            let problem = format!("how it fared: {problem}");
            wrong.push(Damage::now(problem, "forget how it fared", move |store| {
                record::forget_life(Active::open(store, found)?.dir())
            }));
        }
    }
    match record::examine_limits::<Changed>(dir.as_fd())? {
        None | Some(Condition::Good(_)) => {}
        Some(Condition::Newer(problem)) => wrong.push(newer(problem)),
        Some(Condition::Broken(problem)) => {
            let problem = format!("its changed limits: {problem}");
            wrong.push(Damage::now(problem, "give it the limits again that it was made with", move |store| {
                record::forget_limits(Active::open(store, found)?.dir())
            }));
        }
    }
    if let Err(e) = spec(store, &id) {
        if e.errno().is_some() && e.kind() != Kind::NotFound {
            return Err(e);
        }
        let way_out = format!(
            "keep what it holds (tupper snapshot create container:{}), and remove it: what it ran is lost",
            id.short()
        );
        wrong.push(Damage::by_hand(format!("what it runs: {e}"), way_out));
    }
    Ok(wrong)
}

/// What a container runs.
fn spec(store: &Store, id: &Id) -> Result<Spec> {
    let dir = store.open_object(Shelf::Containers, id)?;
    let json = match record::read_spec(dir.as_fd())? {
        Some(json) => json,
        None => fs::read_small(dir.as_fd(), "spec.json", OLD_SPEC_LIMIT)?,
    };
    serde_json::from_slice(&json).map_err(|e| Error::new(Kind::Store, format!("read the spec: {e}")))
}

fn rewrite(store: &Store, found: Found) -> Result<()> {
    let active = Active::open(store, found)?;
    let fields = record::fields(active.dir());
    let origins = snapshot::origins(store, found)?;
    let record = Record {
        name: record::field(&fields, "name").or(store.names_of(found)?.into_iter().next()),
        created: record::field(&fields, "created").unwrap_or(origins.created),
        source: record::field(&fields, "source").unwrap_or(origins.source),
        image: record::field(&fields, "image").unwrap_or(origins.image),
        // What may go by itself has to say so whole.
        auto_remove: false,
        size_limit: record::field(&fields, "size_limit").unwrap_or_default(),
        started: record::field(&fields, "started").unwrap_or_default(),
        ended: record::field(&fields, "ended").unwrap_or_default(),
    };
    record::write(active.dir(), &record)
}

/// The names of the volumes that containers have, as far as these can be read.
pub(crate) fn volumes_in_use(store: &Store) -> Result<Vec<VolumeName>> {
    let specs = store.ids(Shelf::Containers)?.into_iter().filter_map(|id| spec(store, &id).ok());
    Ok(specs.flat_map(|spec| spec.volumes).filter_map(|volume| volume.name).collect())
}
