//! Commit: a new image of what a container or a snapshot has come to.
//!
//! A snapshot of the source is made first, in `staging/`: what is read stands still, and the source goes on. It is compared with
//! the image at the root of where the source came from, and what differs becomes a layer on top of that image's.

use std::os::fd::AsFd;
use std::thread;

use oci_spec::image::Config;

use super::{Source, diff, resolve, warn_of_nested};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{self, Base, Commit, Progress};
use crate::kernel::fs;
use crate::layer::Differences;
use crate::name::Id;
use crate::store::{Shelf, Store, kind_word};
use crate::subvolume::Draft;

/// Makes an image of `text`: durable, under its name, when it returns. `hold` holds the source still, and what it returns is
/// dropped as soon as that was copied; it is called when there is a sign already that something is under way. `run` makes of
/// the config of the image below that of the new one, before the changes that `commit` asks for.
pub(crate) fn commit_held<T>(
    store: &Store,
    text: &str,
    commit: &Commit,
    progress: Progress,
    hold: impl FnOnce(&Source) -> Result<T>,
    run: impl FnOnce(&Source, Config) -> Result<Config>,
) -> Result<Id> {
    let doing = || format!("commit {text}");
    let resolved = resolve(store, text).call_context(doing)?;
    if resolved.layer.is_some() {
        let error = Error::new(Kind::Invalid, "it is an image, in which nothing changes");
        return Err(error.with_hint("`tupper tag` gives it another name")).context(doing);
    }
    warn_of_nested(&resolved).context(doing)?;
    let make = || -> Result<Id> {
        let base = resolved.image.as_ref().map(|image| Base::hold(store, image)).transpose()?.flatten();
        let copy = || {
            let _intent = store.intend()?;
            let _held = hold(&resolved.source)?;
            Draft::on(store, &resolved.parent)
        };
        // Each waits for a commit of btrfs, and at once they share one.
        let (scratch, draft) = thread::scope(|scope| {
            let draft = base.as_ref().filter(|_| !commit.squash).map(|base| scope.spawn(|| base.draft(store)));
            let scratch = copy();
            let draft = draft.map(|draft| draft.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (scratch, draft.transpose())
        });
        let (scratch, draft) = (scratch?, draft?);
        let directory = fs::duplicate(scratch.rootfs())?;
        let paths = match &base {
            Some(_) if commit.squash => None,
            Some(base) => {
                let of_container = resolved.source.kind == kind_word(Shelf::Containers);
                Some(diff::differences(base.root()?.as_fd(), scratch.rootfs(), of_container)?)
            }
            None => {
                log::warn!(
                    "{}: no image that it was made from is here: all of it becomes one layer",
                    resolved.source.name
                );
                None
            }
        };
        let differences = Differences { directory, paths, latest: commit.created.map(|created| created.as_second()) };
        image::commit(store, base, draft, differences, |config| run(&resolved.source, config), commit, progress)
    };
    make().context(doing)
}
