//! Save: images into archives and layouts, and files into a plain archive.

use std::path::Path;

use super::{find, outgoing};
use crate::error::{Context, Result};
use crate::kernel::fs;
use crate::name::Id;
use crate::store::Store;
use crate::transport::{self, Output, Saved, Shape, Target};

/// Where images are saved.
pub enum Place<'a> {
    /// In an archive.
    Archive(&'a mut Output),
    /// In a directory, made if it is missing, that is a layout then.
    Directory(&'a Path),
}

/// Saves images under the names by which they are asked for; one that is asked for by its id has none (docker-save(1)).
/// `progress` is told of every piece how many bytes it is.
///
/// # Errors
/// Those of the store and of [`transport::save`].
pub fn save(
    store: &Store,
    wanted: &[String],
    shape: Shape,
    place: Place<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let mut images: Vec<(Id, Saved)> = Vec::new();
    for text in wanted {
        let image = find(store, text)?;
        let name = image.named(text).cloned();
        match images.iter_mut().find(|(id, _)| *id == image.id) {
            Some((_, saved)) => saved.names.extend(name),
            None => {
                let (outgoing, tars) = outgoing(store, &image)?;
                images.push((image.id, Saved { names: name.into_iter().collect(), outgoing, tars }));
            }
        }
    }
    let images: Vec<Saved> = images
        .into_iter()
        .map(|(_, mut saved)| {
            saved.names.sort();
            saved.names.dedup();
            saved
        })
        .collect();
    let mut spool = || store.unnamed_file();
    let target = match place {
        Place::Archive(output) => Target::Archive(output, &mut spool),
        Place::Directory(path) => {
            std::fs::create_dir_all(path).context(|| format!("make {}", path.display()))?;
            Target::Directory(fs::open_directory_follow(path)?)
        }
    };
    transport::save(&images, shape, target, progress).context(|| format!("save {}", wanted.join(", ")))
}
