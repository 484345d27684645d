//! What the store promised and when: by acknowledging a command, it made the command's effect durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::support::tree::Tree;

/// Something in a store, as it has to look.
#[derive(Debug, Clone)]
pub enum Thing {
    Image {
        tree: Arc<Tree>,
    },
    /// A name of an image, and the image.
    Tag(String),
    Snapshot {
        name: Option<String>,
        tree: Arc<Tree>,
    },
    Volume {
        tree: Arc<Tree>,
    },
    /// A container, and the files in it that something called fsync(2) for.
    Container {
        name: String,
        command: Vec<String>,
        synced: BTreeMap<String, String>,
    },
}

/// What is known of a thing at some moment.
#[derive(Debug, Clone)]
pub enum Status {
    There(Thing),
    /// It is being removed, or was without `--sync`; or a tag is given to another image.
    ThereOrNot,
    Gone,
}

/// Things by id, tags by name, volumes by `volume:` and theirs.
pub type Known = BTreeMap<String, Status>;

/// Every change of what is known, with the moment from which it holds.
#[derive(Default)]
pub struct Ledger {
    changes: Mutex<Vec<(usize, String, Status)>>,
}

impl Ledger {
    pub fn note(&self, moment: usize, id: &str, status: Status) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push((moment, id.to_string(), status));
    }

    /// What is known at `moment`.
    pub fn at(&self, moment: usize) -> Known {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let until = changes.iter().filter(|(when, ..)| *when <= moment);
        until.map(|(_, id, status)| (id.clone(), status.clone())).collect()
    }

    /// Everything that ever was, as it looked when it was new: what is acknowledged after a cut may be there before.
    pub fn things(&self) -> BTreeMap<String, Thing> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let things = changes.iter().rev().filter_map(|(_, id, status)| match status {
            Status::There(thing) => Some((id.clone(), thing.clone())),
            _ => None,
        });
        things.collect()
    }
}
