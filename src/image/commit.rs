//! Commit: what was changed in a tree becomes the topmost layer of a new image (podman-commit(1)).
//!
//! The layer is packed from the differences, and that archive is applied to the base's topmost layer as any other would be:
//! so what is sealed is what everybody gets who unpacks it, and its diff id is that of what is sent elsewhere. Its cost
//! follows the differences. A tree that no image is the base of becomes a layer of all that is in it.

use std::os::fd::OwnedFd;
use std::path::Path;

use jiff::Timestamp;
use oci_spec::image::Config;
use serde_json::Value;

use super::config::{self, Change};
use super::progress::{Progress, Watched};
use super::top::{Below, Top};
use super::{Image, RECIPE, room};
use crate::error::{Error, Kind, Result};
use crate::layer::{self, Differences, Limits, Opened, Recipe};
use crate::name::{Id, ImageName};
use crate::store::Store;
use crate::subvolume::{Draft, Parent};

/// What becomes of a container or a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// The new image's name.
    pub name: Option<ImageName>,
    /// Changes to its config.
    pub changes: Vec<Change>,
    /// A comment for its history.
    pub message: Option<String>,
    /// Who has made it.
    pub author: Option<String>,
    /// All that is there becomes its only layer, instead of what differs becoming one more.
    pub squash: bool,
    /// When it counts as made, instead of now, and nothing in its new layer as modified later.
    pub created: Option<Timestamp>,
}

/// The image that a tree was made from, which nobody removes as long as this lives.
pub(crate) struct Base {
    document: Value,
    below: Below,
    parent: Parent,
}

impl Base {
    /// The image, if all of it is there.
    pub(crate) fn hold(store: &Store, image: &Image) -> Result<Option<Base>> {
        let Some(below) = Below::hold(store, image)? else { return Ok(None) };
        let Some(top) = below.held.first() else { return Ok(None) };
        let parent = top.parent()?;
        match image.document(store) {
            Ok(document) => Ok(Some(Base { document, below, parent })),
            Err(e) if e.kind() == Kind::NotFound => Ok(None), // removed a moment ago
            Err(e) => Err(e),
        }
    }

    /// What its next layer is applied to.
    pub(crate) fn draft<'a>(&self, store: &'a Store) -> Result<Draft<'a>> {
        Draft::on(store, &self.parent)
    }

    /// Its root.
    pub(crate) fn root(&self) -> Result<OwnedFd> {
        Ok(self.parent.rootfs(Path::new("/"), true)?.dir)
    }
}

/// Makes an image of a base and its draft, or of an empty one, and the layer of these differences: durable when this returns.
/// `run` makes of the base's config what the tree was run with.
pub(crate) fn commit(
    store: &Store,
    base: Option<Base>,
    draft: Option<Draft<'_>>,
    differences: Differences,
    run: impl FnOnce(Config) -> Result<Config>,
    commit: &Commit,
    progress: Progress,
) -> Result<Id> {
    let draft = draft.map_or_else(|| Draft::create(store), Ok)?;
    // What lies in the store already may be as large as it is.
    let limits = Limits { bytes: Some(u64::MAX), ..Limits::default() };
    let watch = room::watch(store, &limits)?;
    let bytes = Watched::new(Box::new(layer::pack_layer(differences)?), None, progress);
    let opened = Opened::open(move || Ok(Box::new(bytes)), &limits, watch)?;
    let recipe = Recipe::create(draft.dir()?, RECIPE)?;
    let unpacked = draft.fill(|root| opened.apply(root, Some(&recipe))).map_err(|e| match e.kind() {
        Kind::Limit => e.without_hint(),
        _ => e,
    })?;
    let (document, mut below) = base.map_or((None, Below::default()), |base| (Some(base.document), base.below));
    if commit.squash {
        below = Below::default();
    }
    let document = config::for_commit(document, unpacked.diff_id, run, commit)?;
    let config = serde_json::to_vec(&document).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    Top { draft, unpacked, below }.publish(store, &config, commit.name.as_slice())
}
