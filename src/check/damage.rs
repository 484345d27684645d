//! Damage: what no tupper leaves, killed or not.
//!
//! Everything is looked at without a lock, while others work; what seems wrong is looked at a second time, since an
//! object may have been removed in between.

use std::os::fd::AsFd;
use std::path::{Component, Path};

use super::Finding;
use crate::error::{Kind, Result};
use crate::kernel::{btrfs, fs};
use crate::name::Id;
use crate::store::{Found, Shelf, Store};
use crate::{container, image, network, snapshot, subvolume, volume};

/// What is damaged.
pub(super) fn find(store: &Store) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for shelf in [Shelf::Images, Shelf::Layers, Shelf::Snapshots, Shelf::Containers, Shelf::Volumes] {
        let directory = match store.shelf(shelf) {
            // Older than volumes are.
            Err(e) if e.kind() == Kind::NotFound && shelf == Shelf::Volumes => continue,
            other => other?,
        };
        for name in fs::list(directory.as_fd(), ".")? {
            let path = Path::new(shelf.as_str()).join(&name);
            match name.to_str().and_then(|name| name.parse::<Id>().ok()) {
                None => findings.push(Finding::damage(kind_of(shelf), path, "no object has such a name")),
                Some(id) => findings.extend(twice(|| object(store, Found { shelf, id }))?),
            }
        }
    }
    findings.extend(
        network::damage(store)?
            .into_iter()
            .map(|(name, problem)| Finding::damage("network", Path::new(Shelf::Networks.as_str()).join(name), problem)),
    );
    findings.extend(links(store, Shelf::Tags)?);
    findings.extend(links(store, Shelf::Names)?);
    findings.extend(strangers(store)?);
    findings.extend(store.host_damage()?.into_iter().map(|(path, problem)| Finding::damage("host", path, problem)));
    Ok(findings)
}

fn kind_of(shelf: Shelf) -> &'static str {
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
fn twice(look: impl Fn() -> Result<Option<Finding>>) -> Result<Option<Finding>> {
    match look()? {
        Some(_) => look(),
        None => Ok(None),
    }
}

fn object(store: &Store, found: Found) -> Result<Option<Finding>> {
    if !store.exists(found.shelf, &found.id)? {
        // Half-made snapshots and containers are garbage; images and layers come by one rename, whole.
        let whole = matches!(found.shelf, Shelf::Snapshots | Shelf::Containers) || !store.is_claimed(found)?;
        let missing = if found.shelf == Shelf::Images { "config.json" } else { "rootfs" };
        return Ok(
            (!whole).then(|| Finding::damage(kind_of(found.shelf), found.path(), format!("it has no {missing}")))
        );
    }
    match broken(store, found) {
        Ok(problem) => Ok(problem.map(|problem| Finding::damage(kind_of(found.shelf), found.path(), problem))),
        Err(e) if e.kind() == Kind::NotFound && !store.is_claimed(found)? => Ok(None), // removed meanwhile
        Err(e) => Ok(Some(Finding::damage(kind_of(found.shelf), found.path(), e.to_string()))),
    }
}

/// What is wrong with an object that is there; an error says so, too.
fn broken(store: &Store, found: Found) -> Result<Option<String>> {
    if found.shelf == Shelf::Images {
        return image::damage(store, &found.id);
    }
    if let Some(problem) = subvolume::damage(store, found)? {
        return Ok(Some(problem));
    }
    let name = match found.shelf {
        Shelf::Layers => return image::layer_damage(store, &found.id),
        Shelf::Volumes => return volume::damage(store, &found.id),
        Shelf::Snapshots => match snapshot::find(store, &format!("snapshot:{}", found.id)) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(None), // a rollback is making it, or was; or removed meanwhile
            snapshot => snapshot?.name,
        },
        _ => match container::find(store, &format!("container:{}", found.id)) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(None), // garbage, or removed meanwhile
            container => container?.name,
        },
    };
    match name {
        Some(name) if store.named(&name)? != Some(found) => Ok(Some(format!("the name {name} does not lead to it"))),
        _ => Ok(None),
    }
}

/// Entries among the names and tags that are no links of ours.
fn links(store: &Store, shelf: Shelf) -> Result<Vec<Finding>> {
    let strange = store.strange_links(shelf)?;
    let path = |name| Path::new(shelf.as_str()).join(name);
    Ok(strange.into_iter().map(|name| Finding::damage(kind_of(shelf), path(name), "no link of the store")).collect())
}

/// Subvolumes of the store at places where it makes none.
fn strangers(store: &Store) -> Result<Vec<Finding>> {
    let subvolumes = btrfs::nested(store.dir())?;
    let strange = subvolumes.into_iter().filter(|path| !is_place(path));
    Ok(strange.map(|path| Finding::damage("subvolume", path, "the store made none there")).collect())
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
