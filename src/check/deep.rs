//! Content: every file is read, and every layer has to hold what its archive did.

use std::collections::HashSet;
use std::path::PathBuf;

use super::damage::{kind_of, layers_bottom_up};
use super::reading::{Reading, Verified};
use super::repair::{compare, put_back, some_of, told};
use super::{Case, Progress};
use crate::error::{Kind, Result};
use crate::image::{self, Content};
use crate::interrupt;
use crate::kernel::fs;
use crate::name::Id;
use crate::store::{Damage, Found, Mend, Shelf, Store};
use crate::subvolume::{self, Root};

/// What is damaged in what objects hold.
pub(super) fn find(store: &Store, progress: Progress<'_>) -> Result<(Vec<Case>, Verified)> {
    let mut reading = Reading::new(progress);
    let mut whole = HashSet::new();
    let mut cases = Vec::new();
    for chain in layers_bottom_up(store)? {
        let found = Found { shelf: Shelf::Layers, id: chain };
        // Of any other it is told already, and it is verified when that is mended.
        if !subvolume::root(store, found).is_ok_and(|root| root == Root::Its) || !image::is_sealed(store, &chain)? {
            continue;
        }
        let unreadable = read(store, found, &mut reading)?;
        let damage = match unreadable {
            None => continue,
            Some(problem) if !problem.is_empty() => Some(lost(store, chain, problem)?),
            Some(_) => layer(store, chain, &mut whole, &mut reading.verified)?,
        };
        cases.extend(damage.map(|damage| Case::of(kind_of(found.shelf), found.path(), damage)));
    }
    for shelf in [Shelf::Snapshots, Shelf::Containers, Shelf::Volumes] {
        for id in store.ids(shelf)? {
            let found = Found { shelf, id };
            let Some(problem) = read(store, found, &mut reading)?.filter(|problem| !problem.is_empty()) else {
                continue;
            };
            let way_out = "take these files from elsewhere, or remove them: what they held is lost";
            cases.push(Case::of(kind_of(shelf), found.path(), Damage::by_hand(problem, way_out)));
        }
    }
    Ok((cases, reading.verified))
}

/// Reads all that an object holds: what cannot be read, if something cannot; nothing for one that is gone.
fn read(store: &Store, found: Found, reading: &mut Reading<'_>) -> Result<Option<String>> {
    let rootfs = match fs::open_directory(store.dir(), format!("{}/rootfs", found.path())) {
        Ok(rootfs) => rootfs,
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        Err(e) if fs::is_other_now(&e) => return Ok(None), // no directory, which is told of already
        Err(e) => return Err(e),
    };
    let unreadable = match reading.tree(rootfs) {
        Ok(unreadable) => unreadable,
        Err(e) => {
            interrupt::check()?;
            // Nothing is lost because we could not look.
            return match e.kind() {
                Kind::NotFound => Ok(None),
                _ => Err(e),
            };
        }
    };
    let Some((_, why)) = unreadable.first() else { return Ok(Some(String::new())) };
    let paths: Vec<PathBuf> = unreadable.iter().map(|(path, _)| path.clone()).collect();
    Ok(Some(format!("{why}: {}", some_of(&paths))))
}

/// What is wrong with a layer that can be read.
fn layer(store: &Store, chain: Id, whole: &mut HashSet<Id>, verified: &mut Verified) -> Result<Option<Damage>> {
    let content = match image::verify(store, &chain, whole, compare) {
        Ok(content) => content,
        Err(e) => {
            interrupt::check()?;
            if e.kind() == Kind::NotFound {
                return Ok(None); // removed meanwhile, or its record is missing, which is told of already
            }
            let problem = format!("it cannot be verified: {e}");
            return Ok(Some(Damage::by_hand(problem, e.hint().unwrap_or("mend what else is found"))));
        }
    };
    let problem = told(&content);
    Ok(match content {
        Content::Whole => {
            verified.layers += 1;
            whole.insert(chain);
            None
        }
        Content::Unknown => {
            verified.unknown += 1;
            None
        }
        Content::Recipe(_) => {
            let way_out = "go without: it can be used then, and not saved or pushed";
            Some(Damage::by_force(problem, way_out, move |store| image::clear_recipe(store, &chain)))
        }
        Content::Other(_) => Some(lost(store, chain, problem)?),
        Content::Changed(_) => Some(Damage {
            problem,
            way_out: "put it back as its recipe tells, and keep what is there as a snapshot".to_string(),
            mend: Mend::Now(Box::new(move |store, force| put_back(store, &chain, force))),
        }),
    })
}

/// A layer whose content nobody can put together again.
fn lost(store: &Store, chain: Id, problem: String) -> Result<Damage> {
    let (_, names) = image::made_of(store, &chain)?;
    let way_out = format!("remove the images that stand on it, which can come again then: {names}");
    Ok(Damage::by_force(problem, way_out, move |store| image::remove_images_on(store, &chain)))
}
