//! What the store promised and when: by acknowledging a command, it made the command's effect durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

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
    /// A snapshot in the trash.
    Trashed {
        tree: Arc<Tree>,
    },
    /// A volume, and the files in it that something called fsync(2) for, if something wrote to it.
    Volume {
        tree: Arc<Tree>,
        synced: Option<BTreeMap<String, String>>,
    },
    Container(Container),
    /// A network, as it is listed.
    Network(Value),
    /// Something that is written to.
    Anything,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub name: String,
    pub command: Vec<String>,
    /// All that it holds, unless it ran.
    pub tree: Option<Arc<Tree>>,
    /// The files in it that something called fsync(2) for.
    pub synced: BTreeMap<String, String>,
}

/// What is known of a thing from some moment on.
#[derive(Debug, Clone)]
pub enum Status {
    There(Thing),
    /// A command is at it that makes it, or makes it another: what was there is there or already the other.
    Changing,
    /// It is being removed, or was without `--sync`.
    ThereOrNot,
    Gone,
}

/// What has to be so of a thing at some moment.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Whether it is there; `None` where either is right.
    pub there: Option<bool>,
    /// How it may look, if it is there.
    pub looks: Vec<Thing>,
    /// It may also look as it is promised next.
    open: bool,
}

/// Things by id, tags by name, volumes by `volume:` and theirs, networks by `network:` and theirs.
pub type Known = BTreeMap<String, Expected>;

/// Every change of what is known, with the moment from which it holds.
#[derive(Default)]
pub struct Ledger {
    changes: Mutex<Vec<(usize, String, Status)>>,
}

impl Ledger {
    pub fn note(&self, moment: usize, id: &str, status: Status) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push((moment, id.to_string(), status));
    }

    /// What is known at `moment`, of everything that ever was: what is acknowledged after a cut may be there before.
    pub fn at(&self, moment: usize) -> Known {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        changes.sort_by_key(|(when, ..)| *when);
        let mut known = Known::new();
        for (when, id, status) in changes {
            let new = Expected { open: true, ..Expected::default() };
            let expected = known.entry(id).or_insert(new);
            match status {
                Status::There(thing) if when <= moment => {
                    *expected = Expected { there: Some(true), looks: vec![thing], open: false };
                }
                Status::There(thing) if expected.open => {
                    expected.looks.push(thing);
                    expected.open = false;
                }
                Status::Changing if when <= moment => {
                    expected.there = expected.there.filter(|there| *there);
                    expected.open = true;
                }
                Status::ThereOrNot if when <= moment => {
                    expected.there = None;
                    expected.open = true;
                }
                Status::Gone if when <= moment => {
                    *expected = Expected { there: Some(false), ..Expected::default() };
                }
                _ => {}
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(image: &str) -> Status {
        Status::There(Thing::Tag(image.to_string()))
    }

    #[test]
    fn what_is_right_depends_on_the_moment() {
        let ledger = Ledger::default();
        for (moment, status) in [
            (10, Status::Changing),
            (20, tag("a")),
            (30, Status::Changing),
            (40, tag("b")),
            (50, Status::ThereOrNot),
            (60, Status::Gone),
        ] {
            ledger.note(moment, "it", status);
        }
        let at = |moment| {
            let expected = ledger.at(moment).remove("it").expect("known");
            let looks = expected.looks.into_iter().map(|thing| match thing {
                Thing::Tag(image) => image,
                other => panic!("{other:?}"),
            });
            (expected.there, looks.collect::<Vec<_>>().concat())
        };
        for (moment, there, looks) in [
            (5, None, "a"),
            (15, None, "a"),
            (25, Some(true), "a"),
            (35, Some(true), "ab"),
            (45, Some(true), "b"),
            (55, None, "b"),
            (65, Some(false), ""),
        ] {
            assert_eq!(at(moment), (there, looks.to_string()), "at {moment}");
        }
    }
}
