//! Garbage: what processes left that were killed.
//!
//! Every object is locked by whoever makes, uses or removes it, so looking for garbage disturbs nobody: what is locked is
//! no garbage. A subvolume goes only if the store recorded its UUID, or if it is empty.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::Finding;
use crate::container::{self, Leftover};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Unused};
use crate::name::{Id, ImageName, VolumeName};
use crate::store::{Found, Left, SCRATCH, Shelf, Store};
use crate::subvolume::{self, pool};
use crate::{network, snapshot, volume};

/// What a [`gc`] came to.
#[derive(Debug, Default)]
pub struct Swept {
    /// What was removed.
    pub removed: Vec<Finding>,
    /// What could not be; it is found again by the next.
    pub failed: Vec<Error>,
}

/// What goes with the next gc, and is in order until then.
pub(super) const TRASHED: &str = "trashed snapshot";

/// What went stale in the pool: the same.
pub(super) const READY: &str = "ready snapshot";

/// Removes what processes left that were killed. With `dry_run` nothing is changed, and what would go is returned.
///
/// # Errors
/// A store that cannot be read. What fails for one object is in the result.
pub fn gc(store: &Store, dry_run: bool) -> Result<Swept> {
    let mut sweep = Sweep { store, dry_run, swept: Swept::default() };
    let left = store.left_behind().context(|| "look for what is left")?;
    // Drafts and intents are the sign that there is something to do: they go last.
    let (signs, objects): (Vec<Left>, _) =
        left.into_iter().partition(|left| matches!(left, Left::Draft(_) | Left::Link(_)));
    objects.iter().for_each(|left| sweep.left(left));
    sweep.rest();
    signs.iter().for_each(|left| sweep.left(left));
    if !dry_run && signs.iter().any(|left| matches!(left, Left::Link(_))) {
        store.clear_links().unwrap_or_else(|e| sweep.swept.failed.push(e));
    }
    Ok(sweep.swept)
}

/// Does a [`gc`] if something looks as if a process had been killed. Cheap otherwise: two directories are listed.
///
/// What fails is said and left: it is in nobody's way. One command of many does it; the others wait, and find it done.
pub fn tidy(store: &Store) {
    let swept = match store.turn_to_tidy() {
        Ok(None) if !network::seems_left(store) => return,
        Ok(None) => gc(store, false),
        Ok(Some(_turn)) => gc(store, false),
        Err(e) => return log::warn!("look for what a killed command left: {e}"),
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

struct Sweep<'a> {
    store: &'a Store,
    dry_run: bool,
    swept: Swept,
}

impl Sweep<'_> {
    /// Notes what is found, which `remove` removes, unless this is a rehearsal.
    fn note(&mut self, found: Vec<Finding>, remove: impl FnOnce() -> Result<()>) {
        match if self.dry_run { Ok(()) } else { remove() } {
            Ok(()) => self.swept.removed.extend(found),
            Err(e) => {
                let what = found.first().map(|first| format!("{} {}", first.kind, first.path.display()));
                self.swept.failed.push(e.wrap(what.unwrap_or_default()));
            }
        }
    }

    fn left(&mut self, left: &Left) {
        let dir = match self.store.take_left(left) {
            Ok(Some(dir)) => dir,
            // A link has no lock.
            Ok(None) if matches!(left, Left::Link(_)) => {
                self.swept.removed.push(Finding::garbage("link", left.path(), "left by a command that was killed"));
                return;
            }
            Ok(None) => return, // another gc is at it, or it runs again
            Err(e) => return self.swept.failed.push(e),
        };
        let store = self.store;
        match left {
            Left::Link(_) => {}
            Left::Draft(name) => {
                let (kind, problem) = match name.split_once('-') {
                    Some(("intent", _)) => ("intent", "who made or ran something was killed"),
                    Some((SCRATCH, _)) => {
                        if !self.going_with(name) {
                            return; // the next gc is to see that there was a bench
                        }
                        ("draft", "left by a bench that was killed")
                    }
                    _ => ("draft", "left by an import that was killed"),
                };
                let clear = || {
                    image::finish_names(store, name, dir.as_fd())?;
                    subvolume::clear(&store.shelf(Shelf::Staging)?, name)
                };
                self.note(vec![Finding::garbage(kind, left.path(), problem)], clear);
            }
            Left::Removed(name) => {
                let clear = || {
                    match left.object() {
                        // Its names and layers go while it says that they have to.
                        Some(object) if object.shelf == Shelf::Images => drop(image::unused(store, true)?),
                        Some(object) => subvolume::release_name(store, object, dir.as_fd()),
                        None => {}
                    }
                    subvolume::clear(&store.shelf(Shelf::Trash)?, name)
                };
                let problem = "left by a removal that was killed";
                self.note(vec![Finding::garbage("removed object", left.path(), problem)], clear);
            }
            Left::Object(found) if found.shelf == Shelf::Containers => self.container(&found.id, Some(dir)),
            Left::Object(found) => match store.exists(found.shelf, &found.id) {
                Ok(true) => {} // its maker finished it after all
                Ok(false) => {
                    let finding = Finding::garbage("snapshot", found.path(), "its creation was killed");
                    self.note(vec![finding], || subvolume::clear_unfinished(store, *found, dir.as_fd()));
                }
                Err(e) => self.swept.failed.push(e),
            },
        }
    }

    /// What a bench has made that was killed, beside its draft, which is the sign of it and goes after it: whether it may.
    fn going_with(&mut self, draft: &str) -> bool {
        let (store, failed) = (self.store, self.swept.failed.len());
        let problem = "made by a bench that was killed";
        match snapshot::going_with(store, draft) {
            Ok(ids) => ids.into_iter().for_each(|id| {
                let path = Found { shelf: Shelf::Snapshots, id }.path();
                self.note(vec![Finding::garbage("snapshot", path, problem)], || {
                    snapshot::remove(store, &id.to_string()).map(drop)
                });
            }),
            Err(e) => self.swept.failed.push(e),
        }
        match image::going_with(store, draft) {
            Ok(Some(id)) => {
                let path = Found { shelf: Shelf::Images, id }.path();
                self.note(vec![Finding::garbage("image", path, problem)], || image::remove_going_with(store, draft));
            }
            Ok(None) => {}
            Err(e) => self.swept.failed.push(e),
        }
        self.swept.failed.len() == failed
    }

    /// What is left of a container, whose locked directory is `dir`, if it has one.
    fn container(&mut self, id: &Id, dir: Option<OwnedFd>) {
        let store = self.store;
        let left = match container::leftovers(store, id, dir.as_ref().map(AsFd::as_fd)) {
            Ok(left) if left.is_empty() => return,
            Ok(left) => left,
            Err(e) => return self.swept.failed.push(e),
        };
        let place = Found { shelf: Shelf::Containers, id: *id }.path();
        let finding = |leftover: &Leftover| match leftover {
            Leftover::Process(pid) => {
                Finding::garbage("process", format!("/proc/{pid}"), format!("it outlived the tupper that ran {place}"))
            }
            Leftover::Cgroup(path) => Finding::garbage("cgroup", path, format!("{place} does not run")),
            Leftover::RunState(path) => Finding::garbage("run state", path, format!("{place} does not run")),
            Leftover::Ids(path) => Finding::garbage("range of ids", path, format!("{place} does not run")),
            Leftover::Socket => Finding::garbage("socket", format!("{place}/socket"), "its monitor was killed"),
            Leftover::Unfinished => Finding::garbage("container", &place, "its creation was killed"),
            Leftover::Container => {
                Finding::garbage("container", &place, "it was to be removed at its end, and was killed before that")
            }
        };
        let found = left.iter().map(finding).collect();
        self.note(found, || container::clear(store, id, dir, &left));
    }

    /// A volume whose container has gone, or never came to be.
    fn volume(&mut self, name: &VolumeName) {
        let store = self.store;
        let finding = Finding::garbage("volume", volume::place(name).path(), "it was to go with its container");
        self.note(vec![finding], || match volume::remove(store, name) {
            Err(e) if e.kind() == Kind::NotFound => Ok(()), // its container's removal was faster
            other => other,
        });
    }

    /// A container that was, or was about to be, frozen for a snapshot.
    fn freezing(&mut self, id: &Id, frozen: bool) {
        // Somebody may just be making the file. Taking it away is in nobody's way, and not worth a word.
        if !frozen && self.dry_run {
            return;
        }
        let path = Found { shelf: Shelf::Containers, id: *id }.path();
        let finding = Finding::garbage("frozen container", path, "who made a snapshot of it was killed");
        let store = self.store;
        self.note(frozen.then_some(finding).into_iter().collect(), || container::thaw_left(store, id));
    }

    /// What has no lock of its own: leftovers of containers that are not there, layers, tags, names.
    fn rest(&mut self) {
        match self.store.left_freezing() {
            Ok(left) => left.iter().for_each(|(id, frozen)| self.freezing(id, *frozen)),
            Err(e) => self.swept.failed.push(e),
        }
        match container::orphans(self.store) {
            Ok(ids) => ids.iter().for_each(|id| self.container(id, None)),
            Err(e) => self.swept.failed.push(e),
        }
        match snapshot::unfinished(self.store) {
            Ok(ids) => ids.iter().for_each(|id| {
                let finding = Finding::garbage(
                    "snapshot",
                    Found { shelf: Shelf::Snapshots, id: *id }.path(),
                    "the rollback that it was for was killed",
                );
                self.note(vec![finding], || snapshot::clear_unfinished(self.store, id));
            }),
            Err(e) => self.swept.failed.push(e),
        }
        match snapshot::expired(self.store) {
            Ok(expired) => expired.iter().for_each(|snapshot| {
                let found = Found { shelf: Shelf::Snapshots, id: snapshot.id };
                let finding = Finding::garbage(TRASHED, found.path(), "its time in the trash is up");
                self.note(vec![finding], || snapshot::clear_unfinished(self.store, &snapshot.id));
            }),
            Err(e) => self.swept.failed.push(e),
        }
        match pool::garbage(self.store) {
            Ok(names) => names.iter().for_each(|name| {
                let path = Path::new(Shelf::Pool.as_str()).join(name);
                let finding = Finding::garbage(READY, path, "nobody will take it");
                self.note(vec![finding], || pool::clear_garbage(self.store, name));
            }),
            Err(e) => self.swept.failed.push(e),
        }
        match container::lost_volumes(self.store) {
            Ok(names) => names.iter().for_each(|name| self.volume(name)),
            Err(e) => self.swept.failed.push(e),
        }
        match network::left(self.store) {
            Ok(paths) => paths.iter().for_each(|path| {
                let finding = Finding::garbage("network", path, "who ran a container in it was killed");
                self.note(vec![finding], || network::tidy(path));
            }),
            Err(e) => self.swept.failed.push(e),
        }
        match image::unused(self.store, !self.dry_run) {
            Ok(unused) => self.swept.removed.extend(unused.into_iter().map(unused_finding)),
            Err(e) => self.swept.failed.push(e),
        }
        match self.store.stale_names(!self.dry_run) {
            Ok(names) => self.swept.removed.extend(names.into_iter().map(|name| {
                Finding::garbage("name", Path::new(Shelf::Names.as_str()).join(name), "its object is gone")
            })),
            Err(e) => self.swept.failed.push(e),
        }
    }
}

fn tag_path(name: &ImageName) -> PathBuf {
    Path::new(Shelf::Tags.as_str()).join(name.to_string().replace('/', "%"))
}

fn unused_finding(unused: Unused) -> Finding {
    match unused {
        Unused::Pending(name) => Finding::garbage("tag", tag_path(&name), "killed before it was in its place"),
        Unused::Tag(name) => Finding::garbage("tag", tag_path(&name), "its image is gone"),
        Unused::Layer(chain) => {
            Finding::garbage("layer", Found { shelf: Shelf::Layers, id: chain }.path(), "no image stands on it")
        }
    }
}
