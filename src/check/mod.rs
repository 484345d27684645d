//! Makes the disk and what is recorded on it agree again.
//!
//! Two kinds of disagreement. *Garbage* is what a process left that was killed, in this boot or before a power cut:
//! nobody holds its lock, nobody was told that it exists, and [`gc`] removes it. *Damage* is what no tupper leaves,
//! killed or not; [`check`] reports it and nothing is done about it here.
//!
//! Every object is locked by whoever makes, uses or removes it, so looking for garbage disturbs nobody: what is locked is
//! no garbage. A subvolume goes only if the store recorded its UUID, or if it is empty.

mod damage;

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::container::{self, Leftover};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Unused};
use crate::name::Id;
use crate::store::{Found, Left, Shelf, Store};
use crate::subvolume;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is: `draft`, `snapshot`, `container`, `layer`, `tag`, `cgroup`, …
    pub kind: &'static str,
    /// Where it is: below the store's `fs/`, or an absolute path elsewhere on the host.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// Left by somebody who was killed; [`gc`] removes it.
    pub garbage: bool,
}

impl Finding {
    fn garbage(kind: &'static str, path: impl Into<PathBuf>, problem: impl Into<String>) -> Finding {
        Finding { kind, path: path.into(), problem: problem.into(), garbage: true }
    }

    fn damage(kind: &'static str, path: impl Into<PathBuf>, problem: impl Into<String>) -> Finding {
        Finding { kind, path: path.into(), problem: problem.into(), garbage: false }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.path.display(), self.problem)
    }
}

/// What a [`gc`] came to.
#[derive(Debug, Default)]
pub struct Swept {
    /// What was removed.
    pub removed: Vec<Finding>,
    /// What could not be; it is found again by the next.
    pub failed: Vec<Error>,
}

impl Swept {
    /// Notes what is found; it goes by `remove`, unless this is a rehearsal (`None`).
    fn note(&mut self, found: Vec<Finding>, remove: Option<Result<()>>) {
        match remove {
            Some(Err(e)) => {
                let what = found.first().map(|first| format!("{} {}", first.kind, first.path.display()));
                self.failed.push(e.wrap(what.unwrap_or_default()));
            }
            _ => self.removed.extend(found),
        }
    }
}

/// Looks for garbage and damage, and changes nothing.
pub fn check(store: &Store) -> Result<Vec<Finding>> {
    let swept = gc(store, true)?;
    let mut findings = swept.removed;
    findings.extend(damage::find(store)?);
    findings.extend(swept.failed.into_iter().map(|e| Finding::damage("store", ".", e.to_string())));
    Ok(findings)
}

/// Removes what processes left that were killed. With `dry_run` nothing is changed, and what would go is returned.
///
/// # Errors
/// A store that cannot be read. What fails for one object is in the result.
pub fn gc(store: &Store, dry_run: bool) -> Result<Swept> {
    let mut swept = Swept::default();
    for left in store.left_behind(!dry_run).context(|| "look for what is left")? {
        sweep_left(store, left, dry_run, &mut swept);
    }
    match container::orphans(store) {
        Ok(ids) => ids.iter().for_each(|id| sweep_container(store, id, None, dry_run, &mut swept)),
        Err(e) => swept.failed.push(e),
    }
    // After the drafts and the images that were being removed, for what they leave.
    match image::unused(store, !dry_run) {
        Ok(unused) => swept.removed.extend(unused.into_iter().map(unused_finding)),
        Err(e) => swept.failed.push(e),
    }
    match store.stale_names(!dry_run) {
        Ok(names) => {
            swept.removed.extend(names.into_iter().map(|name| {
                Finding::garbage("name", Path::new(Shelf::Names.as_str()).join(name), "its object is gone")
            }))
        }
        Err(e) => swept.failed.push(e),
    }
    Ok(swept)
}

/// Does a [`gc`] if something looks as if a process had been killed. Cheap otherwise: two directories are listed.
///
/// What fails is said and left: it is in nobody's way.
pub fn tidy(store: &Store) {
    let swept = match store.seems_unclean() {
        Ok(false) => return,
        Ok(true) => gc(store, false),
        Err(e) => Err(e),
    };
    match swept {
        Ok(swept) => {
            swept.removed.iter().for_each(|finding| log::debug!("removed {finding}"));
            swept.failed.iter().for_each(|e| log::warn!("clean up after a command that was killed: {e}"));
            if !swept.removed.is_empty() {
                log::info!("removed what a command left that was killed: {}", summary(&swept.removed));
            }
        }
        Err(e) => log::warn!("clean up after a command that was killed: {e}"),
    }
}

/// `2 drafts, 1 container`.
fn summary(findings: &[Finding]) -> String {
    let mut kinds: Vec<&str> = findings.iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    let counted = kinds.chunk_by(|a, b| a == b).map(|same| match same {
        [one] => format!("1 {one}"),
        many => format!("{} {}s", many.len(), many[0]),
    });
    counted.collect::<Vec<_>>().join(", ")
}

fn sweep_left(store: &Store, left: Left, dry_run: bool, swept: &mut Swept) {
    let staging = |name: &str| Path::new(Shelf::Staging.as_str()).join(name);
    let act = |remove: &dyn Fn() -> Result<()>| (!dry_run).then(remove);
    match left {
        Left::Link { name } => {
            swept.removed.push(Finding::garbage("link", staging(&name), "left by a command that was killed"));
        }
        Left::Draft { name, dir: _locked } => {
            let found = Finding::garbage("draft", staging(&name), "left by an import that was killed");
            let clear = || store.shelf(Shelf::Staging).and_then(|staging| subvolume::clear(&staging, &name));
            swept.note(vec![found], act(&clear));
        }
        Left::Removed { name, object, dir } => {
            let path = Path::new(Shelf::Trash.as_str()).join(&name);
            let found = Finding::garbage("removed object", path, "left by a removal that was killed");
            let clear = || {
                if let Some(object) = object {
                    subvolume::release_name(store, object, dir.as_fd());
                }
                if object.is_some_and(|object| object.shelf == Shelf::Images) {
                    // Its names and layers go while it says that they have to.
                    image::unused(store, true)?;
                }
                store.shelf(Shelf::Trash).and_then(|trash| subvolume::clear(&trash, &name))
            };
            swept.note(vec![found], act(&clear));
        }
        Left::Object { found, intent, dir } if found.shelf == Shelf::Containers => {
            sweep_container(store, &found.id, Some(dir), dry_run, swept);
            if intent {
                end_intent(store, found, act, swept);
            }
        }
        Left::Object { found, intent, dir } => {
            if !store.exists(found.shelf, &found.id) {
                let finding = Finding::garbage("snapshot", found.path(), "its creation was killed");
                swept.note(vec![finding], act(&|| subvolume::clear_unfinished(store, found, dir.as_fd())));
            }
            if intent {
                end_intent(store, found, act, swept);
            }
        }
    }
}

fn end_intent(
    store: &Store,
    found: Found,
    act: impl Fn(&dyn Fn() -> Result<()>) -> Option<Result<()>>,
    swept: &mut Swept,
) {
    let path = Path::new(Shelf::Staging.as_str()).join(found.id.to_string());
    let finding = Finding::garbage("intent", path, format!("who made or ran {} was killed", found.path()));
    swept.note(vec![finding], act(&|| store.clear_intent(found)));
}

fn sweep_container(store: &Store, id: &Id, dir: Option<std::os::fd::OwnedFd>, dry_run: bool, swept: &mut Swept) {
    let left = match container::leftovers(store, id, dir.as_ref().map(AsFd::as_fd)) {
        Ok(left) if left.is_empty() => return,
        Ok(left) => left,
        Err(e) => return swept.failed.push(e),
    };
    let place = Found { shelf: Shelf::Containers, id: *id }.path();
    let finding = |leftover: &Leftover| match leftover {
        Leftover::Process(pid) => {
            Finding::garbage("process", format!("/proc/{pid}"), format!("it outlived the tupper that ran {place}"))
        }
        Leftover::Cgroup(path) => Finding::garbage("cgroup", path, format!("{place} does not run")),
        Leftover::RunState(path) => Finding::garbage("run state", path, format!("{place} does not run")),
        Leftover::Unfinished => Finding::garbage("container", &place, "its creation was killed"),
        Leftover::Container => {
            Finding::garbage("container", &place, "it was to be removed at its end, and was killed before that")
        }
    };
    let found = left.iter().map(finding).collect();
    let cleared = (!dry_run).then(|| container::clear(store, id, dir, &left));
    swept.note(found, cleared);
}

fn unused_finding(unused: Unused) -> Finding {
    match unused {
        Unused::Tag(name) => {
            let path = Path::new(Shelf::Tags.as_str()).join(name.to_string().replace('/', "%"));
            Finding::garbage("tag", path, "its image is gone")
        }
        Unused::Layer(chain) => {
            Finding::garbage("layer", Found { shelf: Shelf::Layers, id: chain }.path(), "no image stands on it")
        }
    }
}

/// What is left at `root` of a store whose making was killed. Unless this is a `dry_run`, the making is finished.
pub fn half_made(root: &Path, dry_run: bool) -> Result<Vec<Finding>> {
    let left = Store::half_made(root, !dry_run).map_err(|e| e.with_kind(Kind::Store))?;
    Ok(left.into_iter().map(|name| Finding::garbage("store", root.join(name), "its making was killed")).collect())
}
