//! Mends what is damaged, as far as the disk tells and a person lets us.
//!
//! What one object lacks another may tell only when it is mended itself, so everything is looked at again until nothing
//! more can be done. Garbage goes at the end: what can be read decides what that is. Each mending takes the lock of what it
//! changes, and is one xattr, one rename or one exchange; a kill in between leaves what the next check finds.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::reading::Verified;
use super::{Case, Finding, Outcome, Progress, damage, deep, gc, unswept};
use crate::error::{Error, Kind, Result};
use crate::image::{self, Content};
use crate::interrupt;
use crate::name::Id;
use crate::snapshot;
use crate::store::{Damage, Found, Mend, Shelf, Store};
use crate::subvolume::{self, Root};

/// How often everything is looked at: an image needs its layers, a name its object.
const ROUNDS: usize = 4;

/// What is said of a subvolume that would be destroyed, and may be anybody's.
const NOT_OURS: &str = "the store did not record this subvolume, and destroys no other: make a snapshot of it elsewhere, and \
                        delete it (btrfs subvolume delete)";

/// Mends what is found by a [check](super::check), deep or not, and returns it all with what has become of it. Only with
/// `force` something goes that could be somebody's, and no snapshot, container or volume goes even then. Durable when it
/// returns.
///
/// # Errors
/// A store that cannot be read; a signal that came meanwhile. What fails for one finding is told with it.
pub fn repair(store: &Store, force: bool, deep: Option<Progress<'_>>) -> Result<(Vec<Finding>, Verified)> {
    let _intent = store.intend()?;
    let mut told = Vec::new();
    for case in damage::missing_shelves(store)? {
        told.push(mend(store, case, force));
    }
    let mut verified = Verified::default();
    // What takes long is done once, when what is cheap to mend is mended.
    let mut still = rounds(store, force, &mut told)?;
    if let Some(progress) = deep {
        let (found, read) = deep::find(store, progress)?;
        verified = read;
        for case in found {
            told.push(mend(store, case, force));
        }
        still = rounds(store, force, &mut told)?;
    }
    told.extend(still);
    store.sync()?;
    let swept = gc(store, false)?;
    told.extend(swept.removed.into_iter().map(|finding| Finding { outcome: Outcome::Repaired, ..finding }));
    let unswept = unswept(&swept.failed, &told);
    told.extend(unswept);
    store.sync()?;
    Ok((told, verified))
}

/// Mends until nothing more can be: what was mended is told, and what is left returned.
fn rounds(store: &Store, force: bool, told: &mut Vec<Finding>) -> Result<Vec<Finding>> {
    let mut still = Vec::new();
    for _ in 0..ROUNDS {
        interrupt::check()?;
        still.clear();
        let mut mended = false;
        for case in damage::find(store)? {
            interrupt::check()?;
            let finding = mend(store, case, force);
            match finding.outcome {
                Outcome::Repaired => {
                    mended = true;
                    told.push(finding);
                }
                _ => still.push(finding),
            }
        }
        if !mended {
            break;
        }
    }
    Ok(still)
}

fn mend(store: &Store, case: Case, force: bool) -> Finding {
    let Case { mut finding, work } = case;
    let Some(work) = work.filter(|_| force || finding.by == super::By::Repair) else { return finding };
    match work(store, force) {
        Ok(done) => {
            finding.way_out = done;
            finding.outcome = Outcome::Repaired;
        }
        Err(e) => finding.outcome = Outcome::Failed(e.to_string()),
    }
    finding
}

/// A layer whose root nobody vouches for: it is verified, and sealed again. One that was changed is put back, and what was
/// changed is kept. What cannot be verified goes with the images that stand on it, by force.
pub(super) fn reseal(problem: &str, chain: Id) -> Damage {
    let work = move |store: &Store, force: bool| match image::verify(store, &chain, &Default::default(), compare)? {
        Content::Whole => {
            image::seal(store, &chain)?;
            Ok("verify it by its recipe, and seal it again".to_string())
        }
        Content::Changed(_) => put_back(store, &chain, force),
        content if subvolume::root(store, Found { shelf: Shelf::Layers, id: chain })? != Root::Its => {
            Err(Error::new(Kind::Store, format!("{}; {NOT_OURS}", told(&content))))
        }
        content if force => {
            image::remove_images_on(store, &chain)?;
            Ok(format!("remove the images that stand on it: {}", told(&content)))
        }
        content => {
            let (_, names) = image::made_of(store, &chain)?;
            let error =
                format!("{}; with --force the images go that stand on it, and can come again: {names}", told(&content));
            Err(Error::new(Kind::Store, error))
        }
    };
    let way_out = "verify it by its recipe, and seal it again or put it back";
    Damage { problem: problem.to_string(), way_out: way_out.to_string(), mend: Mend::Now(Box::new(work)) }
}

/// Makes a layer again what its archive holds. What was changed is kept as a snapshot, unless it may go.
pub(super) fn put_back(store: &Store, chain: &Id, force: bool) -> Result<String> {
    let layer = Found { shelf: Shelf::Layers, id: *chain };
    if subvolume::root(store, layer)? != Root::Its {
        return Err(Error::new(Kind::Store, format!("it is not what it should be; {NOT_OURS}")));
    }
    let kept = (!force).then(|| snapshot::keep_layer(store, chain)).transpose()?;
    image::put_back(store, chain, compare)?;
    Ok(match kept {
        Some(kept) => format!("put it back as its recipe tells; what was there is the snapshot {}", kept.short()),
        None => "put it back as its recipe tells".to_string(),
    })
}

/// What is wrong with the content of a layer.
pub(super) fn told(content: &Content) -> String {
    match content {
        Content::Whole => "it is whole".to_string(),
        Content::Unknown => "it has no recipe, so nobody can tell whether it was changed".to_string(),
        Content::Recipe(problem) | Content::Other(problem) => problem.clone(),
        Content::Changed(paths) => format!("not as its archive has it: {}", some_of(paths)),
    }
}

/// The paths at which a layer's tree is not what it should be.
pub(super) fn compare(should: BorrowedFd<'_>, is: BorrowedFd<'_>) -> Result<Vec<PathBuf>> {
    let changes = snapshot::walked_changes(Some(should), is)?;
    Ok(changes.into_iter().map(|change| change.path).collect())
}

/// How paths are shown of which there may be many.
pub(super) fn some_of(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = paths.iter().take(SHOWN).map(|path| path.display().to_string()).collect();
    match paths.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
