//! Volumes of containers: made with them, found when they start, and those that nobody named gone with them.
//!
//! Whoever makes a container that has volumes holds `volumes/` shared until the container can be seen, and whoever removes
//! a volume exclusively: so none is removed that somebody is about to use.

use std::os::fd::{AsFd, OwnedFd};

use super::life::{Narrate, Prepared};
use super::{Container, life};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::name::VolumeName;
use crate::sandbox::{Shell, Spec, Volume};
use crate::store::{Found, Shelf, Store};
use crate::subvolume::{Active, Removed};
use crate::volume::{self, Wanted};

/// The volumes of a container that is being made. Dropped, those that nobody named go again.
pub(super) struct Provided<'a> {
    store: &'a Store,
    anonymous: Vec<VolumeName>,
    _users: Option<OwnedFd>,
}

/// Gives the volumes that nobody named their names, and all of them their places.
pub(super) fn decide(store: &Store, spec: &mut Spec) -> Result<()> {
    for volume in spec.volumes.iter_mut().filter(|volume| volume.anonymous) {
        volume.name = Some(volume::random_name(store)?);
    }
    locate(store, spec);
    Ok(())
}

/// Where the named volumes of a container lie.
pub(super) fn locate(store: &Store, spec: &mut Spec) {
    for volume in &mut spec.volumes {
        if let Some(name) = &volume.name {
            volume.source = volume::path(store, name);
        }
    }
}

/// Makes the volumes of a container that are not there, and fills those that nobody has had yet.
pub(super) fn provide<'a>(store: &'a Store, prepared: &Prepared) -> Result<Provided<'a>> {
    let mut provided = Provided { store, anonymous: Vec::new(), _users: None };
    for (volume, name) in named(&prepared.spec) {
        if provided._users.is_none() {
            store.ensure_shelf(Shelf::Volumes)?;
            let shelf = store.shelf(Shelf::Volumes)?;
            flock::lock(shelf.as_fd(), Lock::Shared, || Shelf::Volumes)?;
            provided._users = Some(shelf);
        }
        let wanted = Wanted {
            name,
            owner: volume.anonymous.then_some(prepared.found.id),
            root: &prepared.resolved.parent,
            destination: &volume.destination,
            copies: volume.copies,
        };
        provided.anonymous.extend(volume.anonymous.then(|| name.clone()));
        volume::provide(store, &wanted)?;
    }
    Ok(provided)
}

impl Provided<'_> {
    /// The container is there, and can be seen to use them.
    pub(super) fn keep(mut self) {
        self.anonymous.clear();
    }
}

impl Drop for Provided<'_> {
    fn drop(&mut self) {
        remove_all(self.store, &self.anonymous);
    }
}

/// What [`provide`] would do.
pub(super) fn narrate(store: &Store, prepared: &Prepared, narrate: Narrate<'_>) -> Result<()> {
    for (volume, name) in named(&prepared.spec) {
        let found = volume::place(name);
        if store.exists(found.shelf, &found.id)? {
            continue;
        }
        let path = volume.source.display();
        let directory = volume.source.parent().unwrap_or(&volume.source).display();
        let image = prepared.resolved.path.join(volume.destination.strip_prefix("/").unwrap_or(&volume.destination));
        let copies = || format!(" && {{ [ ! -d {0} ] || cp -a {0}/. {path}; }}", image.display());
        let copy = if volume.copies { copies() } else { String::new() };
        let command = format!("mkdir -p {directory} && btrfs subvolume create {path}{copy}");
        narrate(Shell::Host, &format!("make the volume {name}"), &command);
    }
    Ok(())
}

/// An error where a volume of a container is missing.
pub(super) fn require(store: &Store, spec: &Spec) -> Result<()> {
    for (_, name) in named(spec) {
        let found = volume::place(name);
        if !store.exists(found.shelf, &found.id)? {
            return Err(Error::new(Kind::NotFound, format!("volume {name}: it is gone")));
        }
    }
    Ok(())
}

fn named(spec: &Spec) -> impl Iterator<Item = (&Volume, &VolumeName)> {
    spec.volumes.iter().filter_map(|volume| Some((volume, volume.name.as_ref()?)))
}

fn anonymous(spec: &Spec) -> Vec<VolumeName> {
    named(spec).filter(|(volume, _)| volume.anonymous).map(|(_, name)| name.clone()).collect()
}

/// Removes a container, and the volumes of it that nobody named.
pub(super) fn remove_with(store: &Store, active: Active, spec: &Spec) -> Result<()> {
    discard_with(store, active, spec).map(Removed::relieve)
}

/// The same, but for giving the container's space back.
pub(super) fn discard_with<'a>(store: &'a Store, active: Active, spec: &Spec) -> Result<Removed<'a>> {
    let anonymous = anonymous(spec);
    // The sign that there is something left to do when the container has gone.
    let _intent = (!anonymous.is_empty()).then(|| store.intend()).transpose()?;
    let removed = active.discard(store)?;
    remove_all(store, &anonymous);
    Ok(removed)
}

/// The volumes that nobody named stay, when their container goes.
pub(super) fn disown_anonymous(store: &Store, spec: &Spec) -> Result<()> {
    anonymous(spec).iter().try_for_each(|name| volume::disown(store, name))
}

fn remove_all(store: &Store, names: &[VolumeName]) {
    for name in names {
        match volume::remove(store, name) {
            Err(e) if e.kind() != Kind::NotFound => log::warn!("{e}"),
            _ => {}
        }
    }
}

/// The containers that have a volume, whether they run or not.
pub fn users(store: &Store, name: &VolumeName) -> Result<Vec<Container>> {
    let has = |container: &Container| named(&container.spec).any(|(_, of)| of == name);
    Ok(super::list(store)?.into_iter().filter(has).collect())
}

/// Removes a volume. One that a container has is refused; with `force` that container goes, too, even if it runs.
pub fn remove_volume(store: &Store, text: &str, force: bool, dry_run: bool) -> Result<VolumeName> {
    let volume = volume::find(store, text)?;
    let doing = || format!("remove volume {}", volume.name);
    if force && !dry_run {
        for container in users(store, &volume.name).context(doing)? {
            match life::remove(store, &container.id.to_string(), &life::Removal { force, ..life::Removal::default() }) {
                Err(e) if e.kind() != Kind::NotFound => return Err(e).context(doing),
                _ => {}
            }
        }
    }
    let _nobody_comes = store.lock_shelf(Shelf::Volumes).context(doing)?;
    match users(store, &volume.name).context(doing)?.first() {
        Some(user) if !(force && dry_run) => {
            let called = user.name.as_ref().map_or_else(|| user.id.short(), ToString::to_string);
            let error = Error::new(Kind::InUse, format!("used by container {called}"));
            return Err(error.with_hint("remove that first, or use --force to remove both")).context(doing);
        }
        _ if dry_run => {}
        _ => volume::remove(store, &volume.name)?,
    }
    Ok(volume.name)
}

/// Removes the volumes that no container has and that are as `wanted`; with `dry_run` only says which.
pub fn prune_volumes(
    store: &Store,
    wanted: impl Fn(&volume::Volume) -> bool,
    dry_run: bool,
) -> Result<Vec<VolumeName>> {
    let all: Vec<_> = volume::list(store)?.into_iter().filter(wanted).collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let _nobody_comes = (!dry_run).then(|| store.lock_shelf(Shelf::Volumes)).transpose()?;
    let containers = super::list(store)?;
    let used = |name: &VolumeName| containers.iter().any(|container| named(&container.spec).any(|(_, of)| of == name));
    let mut pruned = Vec::new();
    for volume in all.into_iter().filter(|volume| !used(&volume.name)) {
        let removed = if dry_run { Ok(()) } else { volume::remove(store, &volume.name) };
        match removed {
            Err(e) if e.kind() == Kind::NotFound => {} // somebody else's removal
            Err(e) => return Err(e),
            Ok(()) => pruned.push(volume.name),
        }
    }
    Ok(pruned)
}

/// The volumes that were to go with a container that is not there any more.
pub(crate) fn lost_volumes(store: &Store) -> Result<Vec<VolumeName>> {
    let mut lost = Vec::new();
    for id in store.ids(Shelf::Volumes)? {
        // One that cannot be read is damage.
        let Ok(Some((name, owner))) = volume::owner(store, &id) else { continue };
        if !store.is_expected(Found { shelf: Shelf::Containers, id: owner })? {
            lost.push(name);
        }
    }
    Ok(lost)
}
