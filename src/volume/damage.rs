//! What is wrong with a volume's record, and how it is written anew.

use std::os::fd::AsFd;

use jiff::Timestamp;

use super::{Record, place, read};
use crate::error::Result;
use crate::kernel::{btrfs, fs};
use crate::name::{Id, VolumeName};
use crate::store::record::{self, Condition};
use crate::store::{Damage, Found, Shelf, Store};
use crate::subvolume::Active;

/// What is wrong with a volume's record. `names` are those by which containers know volumes: a volume lies at the digest of
/// its name, so one of them may be it.
pub(crate) fn damage(store: &Store, id: &Id, names: &[VolumeName]) -> Result<Vec<Damage>> {
    let id = *id;
    let dir = store.open_object(Shelf::Volumes, &id)?;
    let problem = match record::examine::<Record>(dir.as_fd())? {
        Condition::Good(record) if place(&record.name).id == id => return Ok(Vec::new()),
        Condition::Good(record) => format!("the name {} is not the one that it lies at", record.name),
        Condition::Newer(problem) => return Ok(vec![Damage::by_hand(problem, "use the newer tupper that wrote it")]),
        Condition::Broken(problem) => problem,
    };
    let of_record = record::field(&record::fields(dir.as_fd()), "name");
    let name = of_record.iter().chain(names).find(|name| place(name).id == id).cloned();
    Ok(vec![match name {
        Some(name) => {
            let way_out = format!("write its record anew, as the volume {name}");
            Damage::now(problem, way_out, move |store| rewrite(store, name))
        }
        None => Damage::by_hand(problem, "nothing tells its name: take what it holds to a new volume, by its path"),
    }])
}

/// Writes a volume's record with what can be read of it. It is nobody's but its own from now on.
fn rewrite(store: &Store, name: VolumeName) -> Result<()> {
    let Found { shelf, id } = place(&name);
    let active = Active::open(store, Found { shelf, id })?;
    if read(active.dir()).is_ok_and(|record| record.name == name) {
        return Ok(());
    }
    let made = btrfs::info(fs::open_directory(active.dir(), "rootfs")?.as_fd())?.created;
    let fields = record::fields(active.dir());
    let record = Record {
        created: record::field::<Timestamp>(&fields, "created").unwrap_or(made),
        labels: record::field(&fields, "labels").unwrap_or_default(),
        nocow: record::field(&fields, "nocow").unwrap_or_default(),
        fresh: false,
        anonymous: record::field(&fields, "anonymous").unwrap_or_default(),
        owner: None,
        name,
    };
    record::write(active.dir(), &record)
}
