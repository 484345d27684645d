//! Imports: a root filesystem's archive becomes an image, durable, and is removed again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::rounds::{Contender, Plan, measure};
use super::scratch::Scratch;
use super::{Machine, Report};
use crate::error::{Error, Kind, Result};
use crate::image;
use crate::layer::Limits;
use crate::name::{Id, ImageName};
use crate::store::{Shelf, Store};
use crate::transport::Source;

/// What to measure.
#[derive(Debug)]
pub struct Import {
    /// A file or a directory: what can be read again.
    pub source: Source,
    /// How often.
    pub count: usize,
    /// Limits on what is unpacked.
    pub limits: Limits,
}

/// Measures how long it takes to import it, and to remove the image.
///
/// # Errors
/// A source that can be read only once, and one whose layer is in the store already: it would not be unpacked.
pub fn import(store: &Store, what: Import) -> Result<Report> {
    let plan = Plan::new(what.count, 1)?;
    let title = format!("Import of {}, durable; removing the image", what.source);
    match &what.source {
        Source::File(path) if path.is_file() => {}
        Source::Directory(_) => {}
        source => {
            let error =
                Error::new(Kind::Invalid, format!("bench imports of {source}: it is read once for each sample"));
            return Err(error.with_hint("name a file or a directory"));
        }
    }
    let scratch = Scratch::new(store)?;
    let name = scratch.image_name()?;
    let limits = what.limits;
    let import =
        image::Import { source: what.source, name: Some(name.clone()), changes: Vec::new(), message: None, limits };
    let imports = Imports { store, import, name };
    imports.require_new()?;
    let series = measure(&[Box::new(imports)], plan, &|| store.sync())?;
    Ok(Report {
        title,
        conditions: vec!["read from the page cache; the image is on the disk when it is counted".to_string()],
        machine: Machine::look(store)?,
        series,
    })
}

struct Imports<'a> {
    store: &'a Store,
    import: image::Import,
    name: ImageName,
}

impl Imports<'_> {
    fn import(&self) -> Result<Id> {
        image::import(self.store, &self.import, Arc::new(|_, _| {}))
    }

    fn remove(&self) -> Result<()> {
        image::remove(self.store, &self.name.to_string(), true, false).map(drop)
    }

    /// Imports it once, to see whether that makes a layer.
    fn require_new(&self) -> Result<()> {
        let before: BTreeSet<Id> = self.store.ids(Shelf::Layers)?.into_iter().collect();
        self.import()?;
        let made = self.store.ids(Shelf::Layers)?.into_iter().any(|layer| !before.contains(&layer));
        self.remove()?;
        if made {
            return Ok(());
        }
        let message =
            format!("bench imports of {}: it is in the store already, and would not be unpacked", self.import.source);
        Err(Error::new(Kind::AlreadyExists, message)
            .with_hint("remove that image first, or measure in another store with --root"))
    }
}

impl Contender for Imports<'_> {
    fn name(&self) -> String {
        "tupper, a call".to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        &["import", "remove"]
    }

    fn perform(&self, operation: usize, _: usize) -> Result<()> {
        match operation {
            0 => self.import().map(drop),
            _ => self.remove(),
        }
    }
}
