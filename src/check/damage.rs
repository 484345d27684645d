//! Damage: what no tupper leaves, killed or not, and who can mend it.
//!
//! Everything is looked at without a lock, while others work; what seems wrong is looked at a second time, since an
//! object may have been removed in between.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Component, Path};

use super::{Case, repair};
use crate::error::{Kind, Result};
use crate::kernel::{btrfs, fs};
use crate::name::{Id, VolumeName};
use crate::store::{Damage, Found, Named, SHELVES, Shelf, Store, record};
use crate::subvolume::{self, Root};
use crate::{container, image, network, snapshot, volume};

/// What lies beside a layer's root.
const BESIDE_LAYER: [&str; 2] = ["recipe", "recipe.new"];

/// The order in which one can be mended with what the one before it tells.
const OBJECTS: [Shelf; 5] = [Shelf::Layers, Shelf::Images, Shelf::Snapshots, Shelf::Containers, Shelf::Volumes];

/// Shelves that stores of before November 2026 lack, and need not have.
const LATER: [Shelf; 3] = [Shelf::Volumes, Shelf::Networks, Shelf::Pool];

/// The shelves that are missing.
pub(super) fn missing_shelves(store: &Store) -> Result<Vec<Case>> {
    let mut missing = Vec::new();
    for shelf in SHELVES.into_iter().filter(|shelf| !LATER.contains(shelf)) {
        if !fs::exists_at(store.dir(), shelf.as_str())? {
            let work = move |store: &Store| store.ensure_shelf(shelf);
            missing.push(Case::of("store", shelf.as_str(), Damage::now("it is missing", "make it, empty", work)));
        }
    }
    Ok(missing)
}

/// What is damaged.
pub(super) fn find(store: &Store) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let volumes = container::volumes_in_use(store)?;
    for shelf in OBJECTS {
        let directory = match store.shelf(shelf) {
            // Older than volumes are.
            Err(e) if e.kind() == Kind::NotFound && shelf == Shelf::Volumes => continue,
            other => other?,
        };
        for name in fs::list(directory.as_fd(), ".")? {
            let path = Path::new(shelf.as_str()).join(&name);
            let found = name.to_str().and_then(|name| name.parse().ok()).map(|id| Found { shelf, id });
            match found {
                Some(found) => {
                    let wrong = twice(|| object(store, found, &volumes))?;
                    cases.extend(wrong.into_iter().map(|damage| Case::of(kind_of(shelf), &path, damage)));
                }
                None => {
                    let stranger = Damage::by_hand("no object has such a name", "move it out of the store");
                    cases.push(Case::of(kind_of(shelf), path, stranger));
                }
            }
        }
    }
    let networks = network::damage(store)?.into_iter();
    cases.extend(
        networks.map(|(file, damage)| Case::of("network", Path::new(Shelf::Networks.as_str()).join(file), damage)),
    );
    cases.extend(links(store, Shelf::Tags)?);
    cases.extend(links(store, Shelf::Names)?);
    cases.extend(strangers(store)?);
    cases.extend(store.host_damage()?.into_iter().map(|(path, problem)| {
        let way_out = "take it away (losetup --detach, umount), when nothing uses it";
        Case::of("host", path, Damage::by_hand(problem, way_out))
    }));
    Ok(cases)
}

pub(super) fn kind_of(shelf: Shelf) -> &'static str {
    match shelf {
        Shelf::Images => "image",
        Shelf::Layers => "layer",
        Shelf::Snapshots => "snapshot",
        Shelf::Containers => "container",
        Shelf::Tags => "tag",
        Shelf::Names => "name",
        Shelf::Volumes => "volume",
        Shelf::Networks => "network",
        Shelf::Pool => "ready snapshot",
        Shelf::Staging => "draft",
        Shelf::Trash => "removed object",
    }
}

/// What is wrong is only wrong if it is so a moment later, too.
fn twice(look: impl Fn() -> Result<Vec<Damage>>) -> Result<Vec<Damage>> {
    match look()?.is_empty() {
        true => Ok(Vec::new()),
        false => look(),
    }
}

fn object(store: &Store, found: Found, volumes: &[VolumeName]) -> Result<Vec<Damage>> {
    if !store.exists(found.shelf, &found.id)? {
        return half(store, found);
    }
    match broken(store, found, volumes) {
        Ok(wrong) => Ok(wrong),
        Err(e) if e.kind() == Kind::NotFound && !store.is_claimed(found)? => Ok(Vec::new()), // removed meanwhile
        Err(e) => Ok(vec![Damage::by_hand(e.to_string(), "dmesg(1) tells whether the disk is at fault")]),
    }
}

/// What is wrong with the directory of an object that is not there.
fn half(store: &Store, found: Found) -> Result<Vec<Damage>> {
    // Half-made snapshots and containers are garbage; images and layers come by one rename, whole.
    if matches!(found.shelf, Shelf::Snapshots | Shelf::Containers) || !store.is_claimed(found)? {
        return Ok(Vec::new());
    }
    let is_directory = fs::open_directory(store.dir(), found.path()).is_ok();
    Ok(match found.shelf {
        _ if !is_directory => vec![Damage::by_hand("it is no directory", "move it out of the store")],
        Shelf::Images => image::damage(store, &found.id)?,
        Shelf::Layers => vec![Damage::now("it has no rootfs", "remove what is left of it", move |store| {
            subvolume::remove_empty(store, found, &BESIDE_LAYER)
        })],
        _ => vec![Damage::by_force("it has no rootfs", "remove what is left of it", move |store| {
            subvolume::remove_empty(store, found, &[])
        })],
    })
}

/// What is wrong with an object that is there; an error says so, too.
fn broken(store: &Store, found: Found, volumes: &[VolumeName]) -> Result<Vec<Damage>> {
    let id = found.id;
    let mut wrong = match found.shelf {
        Shelf::Images => return image::damage(store, &id),
        Shelf::Layers => image::layer_damage(store, &id)?,
        Shelf::Snapshots => snapshot::damage(store, &id)?,
        Shelf::Containers => match container::damage(store, &id) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(Vec::new()), // garbage, or removed meanwhile
            wrong => wrong?,
        },
        _ => volume::damage(store, &id, volumes)?,
    };
    wrong.extend(root(store, found)?);
    if matches!(found.shelf, Shelf::Snapshots | Shelf::Containers) {
        wrong.extend(name(store, found)?);
    }
    Ok(wrong)
}

/// What is wrong with an object's `rootfs`.
fn root(store: &Store, found: Found) -> Result<Option<Damage>> {
    let root = subvolume::root(store, found)?;
    let layer = found.shelf == Shelf::Layers;
    let problem = match root {
        Root::None => "its rootfs is no subvolume",
        Root::Unrecorded => "nothing says which subvolume its rootfs is",
        Root::Another => "its rootfs is not the subvolume that the store recorded",
        Root::Its if layer && !image::is_sealed(store, &found.id)? => {
            "it is not read-only: somebody may have changed it"
        }
        Root::Its => return Ok(None),
    };
    Ok(Some(match root {
        Root::None => Damage::by_hand(problem, "copy what is there to another place, and remove the object"),
        Root::Its | Root::Unrecorded | Root::Another if layer => repair::reseal(problem, found.id),
        Root::Its | Root::Unrecorded => Damage::now(problem, "take the one that is there for its own", move |store| {
            subvolume::adopt_root(store, found)
        }),
        Root::Another => Damage::by_force(problem, "take the one that is there for its own", move |store| {
            subvolume::adopt_root(store, found)
        }),
    }))
}

/// What is wrong with the name of an object.
fn name(store: &Store, found: Found) -> Result<Option<Damage>> {
    let dir = store.open_object(found.shelf, &found.id)?;
    // One whose record cannot be read is told of already.
    let Ok(Some(Named { name: Some(name) })) = record::read(dir.as_fd()) else { return Ok(None) };
    if store.named(&name)? == Some(found) {
        return Ok(None);
    }
    let problem = format!("the name {name} does not lead to it");
    let way_out = "make it lead there, unless it is another's";
    Ok(Some(Damage::now(problem, way_out, move |store| store.restore_name(found).map(drop))))
}

/// Entries among the names and tags that are no links of ours.
fn links(store: &Store, shelf: Shelf) -> Result<Vec<Case>> {
    let directory = store.shelf(shelf)?;
    let case = |file: OsString| {
        let path = Path::new(shelf.as_str()).join(&file);
        let is_directory = fs::open_directory(directory.as_fd(), &file).is_ok();
        let damage = match is_directory {
            true => Damage::by_hand("no link of the store", "move it out of the store"),
            false => Damage::by_force("no link of the store", "remove it", move |store| {
                store.remove_strange_link(shelf, &file)
            }),
        };
        Case::of(kind_of(shelf), path, damage)
    };
    Ok(store.strange_links(shelf)?.into_iter().map(case).collect())
}

/// Subvolumes of the store at places where it makes none.
fn strangers(store: &Store) -> Result<Vec<Case>> {
    let subvolumes = btrfs::nested(store.dir())?;
    let strange = subvolumes.into_iter().filter(|path| !is_place(path));
    let way_out = "make a snapshot of it elsewhere, or copy it, and delete it (btrfs subvolume delete)";
    Ok(strange.map(|path| Case::of("subvolume", path, Damage::by_hand("the store made none there", way_out))).collect())
}

/// `SHELF/ANY/rootfs`.
fn is_place(path: &Path) -> bool {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    let [shelf, _, "rootfs"] = parts[..] else { return false };
    !matches!(Shelf::named(shelf), None | Some(Shelf::Images | Shelf::Tags | Shelf::Names))
}

/// The ids of the layers, each behind those that it stands on; those whose records cannot be read first.
pub(super) fn layers_bottom_up(store: &Store) -> Result<Vec<Id>> {
    let mut layers = image::layers_top_down(store)?;
    layers.reverse();
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subvolumes_lie_in_their_objects() {
        for path in ["layers/x/rootfs", "snapshots/x/rootfs", "staging/draft-x/rootfs", "trash/x/rootfs"] {
            assert!(is_place(Path::new(path)), "{path}");
        }
        for path in ["rootfs", "layers/rootfs", "images/x/rootfs", "layers/x/other", "layers/x/rootfs/nested", "own"] {
            assert!(!is_place(Path::new(path)), "{path}");
        }
    }
}
