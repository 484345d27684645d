//! Whether a layer still holds what its archive did.
//!
//! ```text
//! recipe + files ──> archive ──> digest: that of the record?
//!                       └──apply──> a draft on the layer below ──compare──> the layer's tree
//! ```
//!
//! The archive alone does not tell: what a recipe takes from the files of a layer is their content, and not how they are
//! called, whose they are, or that there is one more. So the archive that was verified is unpacked once more, as when the layer
//! was made, and the two trees have to be the same. The draft goes again; or it takes the place of a layer that
//! somebody changed.
//!
//! A draft begins as a snapshot of the layer below when that is known to be whole, and is made from the lowest layer up
//! otherwise. Where a layer below has no recipe, or does not yield its archive, only the archive is verified.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use super::damage::lock_alone;
use super::layers::require_record;
use super::{LayerRecord, RECIPE, room};
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::kernel::fs;
use crate::layer::{self, Limits, Opened, Unpacked};
use crate::name::Id;
use crate::store::{Shelf, Store};
use crate::subvolume::{Draft, Held, pool};

/// What a layer holds.
#[derive(Debug)]
pub(crate) enum Content {
    /// What its archive held; or as far as that can be told, which is its content.
    Whole,
    /// It has no recipe, so nobody knows.
    Unknown,
    /// Its recipe is damaged.
    Recipe(String),
    /// Not its archive's content any more.
    Other(String),
    /// Its archive's content, but these paths are not as they were.
    Changed(Vec<PathBuf>),
}

/// Whether a layer holds what its archive did. Those in `whole` are known to.
pub(crate) fn verify(
    store: &Store,
    chain: &Id,
    whole: &HashSet<Id>,
    compare: impl Fn(BorrowedFd<'_>, BorrowedFd<'_>) -> Result<Vec<PathBuf>>,
) -> Result<Content> {
    verified(store, chain, whole, &compare).map(|(content, _)| content)
}

/// Makes a layer what its archive holds, if that can be put together: the tree that is there goes.
pub(crate) fn put_back(
    store: &Store,
    chain: &Id,
    compare: impl Fn(BorrowedFd<'_>, BorrowedFd<'_>) -> Result<Vec<PathBuf>>,
) -> Result<()> {
    let (content, draft) = verified(store, chain, &HashSet::new(), &compare)?;
    let draft = match (content, draft) {
        (Content::Changed(_), Some(draft)) => draft,
        (Content::Whole, _) => return Ok(()),
        (content, _) => return Err(Error::new(Kind::Store, format!("it cannot be put back: {content:?}"))),
    };
    draft.finish()?;
    let _changing = store.lock_shelf(Shelf::Images)?;
    let dir = lock_alone(store, chain)?;
    draft.take_root_of(dir.as_fd())?;
    // What is ready for somebody is a snapshot of what was there.
    pool::forget(store, Some(chain))
}

/// What a layer holds, and the tree that it should be if that could be made.
fn verified<'a>(
    store: &'a Store,
    chain: &Id,
    whole: &HashSet<Id>,
    compare: &impl Fn(BorrowedFd<'_>, BorrowedFd<'_>) -> Result<Vec<PathBuf>>,
) -> Result<(Content, Option<Draft<'a>>)> {
    let gone = || Error::new(Kind::NotFound, format!("layer {}: it is gone", chain.short()));
    let held = Held::layer(store, chain)?.ok_or_else(gone)?;
    let recipe = match recipe_of(held.dir()) {
        Ok(Some(recipe)) => recipe,
        Ok(None) => return Ok((Content::Unknown, None)),
        Err(e) if e.tells_nothing() => return Err(e),
        Err(e) => return Ok((Content::Recipe(e.to_string()), None)),
    };
    if let Err(e) = layer::rebuilt_size(&recipe) {
        if e.tells_nothing() {
            return Err(e);
        }
        return Ok((Content::Recipe(format!("its recipe cannot be read: {e}")), None));
    }
    // Where nothing can be written there is no draft.
    let base = match store.require_writable() {
        Ok(()) => Base::of(store, chain, whole)?,
        Err(_) => None,
    };
    let base = match base {
        Some(base) => base,
        None => return archive_alone(&held, require_record(store, chain)?).map(|content| (content, None)),
    };
    // How an archive is applied that lies on nothing depends on whether it came as a layer or as a root.
    let lowest = require_record(store, chain)?.parent.is_none();
    let manners: &[Manner] = if lowest { &[Manner::Layer, Manner::Root] } else { &[Manner::Layer] };
    let mut found = None;
    for manner in manners {
        interrupt::check()?;
        let draft = base.draft(store)?;
        if let Err(problem) = apply(store, &held, chain, &draft, *manner)? {
            // What the other manner makes of it would be the same.
            return Ok((Content::Other(problem), None));
        }
        let changed = compare(draft.rootfs(), held.rootfs()?.as_fd())?;
        if changed.is_empty() {
            return Ok((Content::Whole, None));
        }
        if found.as_ref().is_none_or(|(least, _): &(Vec<PathBuf>, _)| changed.len() < least.len()) {
            found = Some((changed, draft));
        }
    }
    Ok(found.map_or((Content::Unknown, None), |(changed, draft)| (Content::Changed(changed), Some(draft))))
}

#[derive(Debug, Clone, Copy)]
enum Manner {
    Layer,
    Root,
}

/// What a layer is put on.
struct Base {
    /// The uppermost layer below it that is known to be whole.
    whole: Option<Id>,
    /// Those between that and it, lowest first.
    between: Vec<Id>,
}

impl Base {
    /// Nothing where a layer below does not yield its archive.
    fn of(store: &Store, chain: &Id, whole: &HashSet<Id>) -> Result<Option<Base>> {
        let mut base = Base { whole: None, between: Vec::new() };
        let mut below = require_record(store, chain)?.parent;
        while let Some(layer) = below.filter(|layer| !base.between.contains(layer)) {
            if whole.contains(&layer) {
                base.whole = Some(layer);
                break;
            }
            let Some(held) = Held::layer(store, &layer)? else { return Ok(None) };
            match archive_alone(&held, require_record(store, &layer)?)? {
                Content::Whole => {}
                _ => return Ok(None),
            }
            base.between.insert(0, layer);
            below = require_record(store, &layer)?.parent;
        }
        Ok(Some(base))
    }

    fn draft<'a>(&self, store: &'a Store) -> Result<Draft<'a>> {
        let gone = |layer: &Id| Error::new(Kind::NotFound, format!("layer {}: it is gone", layer.short()));
        let draft = match &self.whole {
            None => Draft::create(store)?,
            Some(layer) => {
                let held = Held::layer(store, layer)?.ok_or_else(|| gone(layer))?;
                Draft::on(store, &held.parent()?)?
            }
        };
        for layer in &self.between {
            let held = Held::layer(store, layer)?.ok_or_else(|| gone(layer))?;
            if let Err(problem) = apply(store, &held, layer, &draft, Manner::Layer)? {
                return Err(Error::new(Kind::Store, format!("layer {}: {problem}", layer.short())));
            }
        }
        Ok(draft)
    }
}

/// Unpacks the archive of a layer into a draft; or says why it is not its archive.
fn apply(
    store: &Store,
    held: &Held,
    chain: &Id,
    draft: &Draft<'_>,
    manner: Manner,
) -> Result<std::result::Result<(), String>> {
    let record = require_record(store, chain)?;
    let gone = || Error::new(Kind::NotFound, "its recipe is gone");
    let archive = layer::rebuild(recipe_of(held.dir())?.ok_or_else(gone)?, held.rootfs()?)?;
    let limits = room::limits(store, &accepted())?;
    let watch = room::watch(store, &limits)?;
    let unpacked: Result<Unpacked> = match manner {
        Manner::Layer => Opened::open(|| Ok(Box::new(archive)), &limits, watch)?.apply(draft.rootfs(), None),
        Manner::Root => layer::unpack_watched(Box::new(archive), draft.rootfs(), &limits, watch, None),
    };
    interrupt::check()?;
    match unpacked {
        Ok(unpacked) if unpacked.diff_id == record.diff_id => Ok(Ok(())),
        Ok(_) => Ok(Err("what it holds is not its archive's content".to_string())),
        Err(e) if e.tells_nothing() || e.kind() == Kind::Limit => {
            Err(e.with_hint("the archive of each layer is unpacked once more to be compared with it"))
        }
        Err(e) => Ok(Err(e.to_string())),
    }
}

/// Limits for an archive that was accepted once, whatever a person set then.
pub(super) fn accepted() -> Limits {
    let Limits { bytes, of_free, file_size, depth, name, pax, sparse_pieces, config, .. } = Limits::default();
    let [depth, name, pax, sparse_pieces] = [depth, name, pax, sparse_pieces].map(|limit| limit * 16);
    let (file_size, padding, entries) = (file_size * 16, u64::MAX, u64::MAX);
    Limits { bytes, of_free, file_size, padding, entries, depth, name, pax, sparse_pieces, config }
}

/// Whether a layer yields its archive, and nothing of the rest.
fn archive_alone(held: &Held, record: LayerRecord) -> Result<Content> {
    let recipe = match recipe_of(held.dir()) {
        Ok(Some(recipe)) => recipe,
        Ok(None) => return Ok(Content::Unknown),
        Err(e) if e.tells_nothing() => return Err(e),
        Err(e) => return Ok(Content::Recipe(e.to_string())),
    };
    let digest = layer::digest(layer::rebuild(recipe, held.rootfs()?)?, interrupt::check);
    interrupt::check()?;
    Ok(match digest {
        Ok(digest) if digest == record.diff_id => Content::Whole,
        Ok(_) => Content::Other("what it holds is not its archive's content".to_string()),
        Err(e) if e.tells_nothing() => return Err(e),
        Err(e) => Content::Other(e.to_string()),
    })
}

/// A layer's recipe, if it has one: those that are older than recipes have none, and it is empty where none could be made.
pub(super) fn recipe_of(dir: BorrowedFd<'_>) -> Result<Option<File>> {
    match fs::open_file_beneath(dir, RECIPE.as_ref()).map(File::from) {
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        opened => {
            let recipe = opened.context(|| "its recipe")?;
            if !recipe.metadata().is_ok_and(|found| found.is_file()) {
                return Err(Error::new(Kind::Store, "its recipe is no file"));
            }
            Ok(layer::is_recipe(&recipe)?.then_some(recipe))
        }
    }
}

/// A layer has no recipe from now on: it can be used, and not saved.
pub(crate) fn clear_recipe(store: &Store, chain: &Id) -> Result<()> {
    let _changing = store.lock_shelf(Shelf::Images)?;
    let dir = lock_alone(store, chain)?;
    let fresh = format!("{RECIPE}.new");
    match fs::unlink(dir.as_fd(), &fresh) {
        Err(e) if e.kind() != Kind::NotFound => return Err(e),
        _ => {}
    }
    fs::write_new(dir.as_fd(), &fresh, b"", 0o600, true)?;
    fs::rename_replace(dir.as_fd(), &fresh, dir.as_fd(), RECIPE)
}

/// The bytes in the files of a layer's tree, and how many entries it has.
pub(super) fn count(store: &Store, chain: &Id) -> Result<(u64, u64)> {
    let (mut bytes, mut entries) = (0u64, 0u64);
    for entry in walkdir::WalkDir::new(store.rootfs_path(Shelf::Layers, chain)).same_file_system(true) {
        let entry = entry.map_err(|e| Error::new(Kind::Io, e.to_string()))?;
        let found = entry.metadata().map_err(|e| Error::new(Kind::Io, e.to_string()))?;
        entries += 1;
        bytes = bytes.saturating_add(if found.is_file() { found.len() } else { 0 });
    }
    Ok((bytes, entries))
}
