//! How what a subvolume refers to can be known without a look at all of it.
//!
//! A snapshot was its parent at one commit. btrfs notes in each node of a tree the generation in which it was written, so a
//! node of a snapshot that is no newer than that commit is the parent's as it was then, and refers to what the parent
//! referred to. If the parent has not changed since, a look at the newer nodes is enough: all else is the parent's.
//!
//! - **Not changed** is certain of a read-only subvolume in which no inode was written since. A writable one may lose data
//!   without that, when a file that has no name any more is closed; so where the parent is writable, its own parent is
//!   taken, and the commit that made the older of the two snapshots.
//! - Where a parent is gone, **a sibling** that is still as it was made is what the parent was at that commit. It stands in for
//!   it for all that were made later. That nothing at all was done to it, its topmost node says.
//! - What has no such ancestor is read whole.

use std::collections::HashMap;

use crate::kernel::trees::Root;

/// Snapshots of snapshots of snapshots: more than so many are not asked for what they are of.
const LINE: usize = 4096;

/// What has to be read of a subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// All of it.
    Whole,
    /// What is newer than a generation; it refers to nothing else that the subvolume at this place does not refer to.
    Since { generation: u64, base: usize },
    /// Nothing: it is what the subvolume at this place is.
    Same { base: usize },
}

impl Reading {
    /// What it goes on from.
    pub(super) fn base(self) -> Option<usize> {
        match self {
            Reading::Whole => None,
            Reading::Since { base, .. } | Reading::Same { base } => Some(base),
        }
    }
}

/// How each of the subvolumes is to be read. What is `ours` goes on from others of ours only, so that together these tell
/// all that ours refer to.
pub(super) fn readings(roots: &[Root], ours: &[bool]) -> Vec<Reading> {
    let lineage = Lineage::of(roots, ours);
    (0..roots.len()).map(|at| lineage.reading(at)).collect()
}

struct Lineage<'a> {
    roots: &'a [Root],
    ours: &'a [bool],
    places: HashMap<[u8; 16], usize>,
    /// The first of the snapshots of one parent that is still as it was made; ours and others'.
    as_made: HashMap<([u8; 16], bool), usize>,
}

impl<'a> Lineage<'a> {
    fn of(roots: &'a [Root], ours: &'a [bool]) -> Lineage<'a> {
        let places = roots.iter().enumerate().filter_map(|(at, root)| Some((root.uuid?, at))).collect();
        let mut as_made: HashMap<([u8; 16], bool), usize> = HashMap::new();
        for (at, root) in roots.iter().enumerate() {
            let Some(origin) = root.origin.filter(|_| is_as_made(root)) else { continue };
            let first = as_made.entry((origin.parent, ours[at])).or_insert(at);
            if order(root) < order(&roots[*first]) {
                *first = at;
            }
        }
        Lineage { roots, ours, places, as_made }
    }

    fn reading(&self, at: usize) -> Reading {
        let root = &self.roots[at];
        let mut line = root;
        let mut generation = u64::MAX;
        for _ in 0..LINE {
            let Some(origin) = line.origin else { break };
            generation = generation.min(origin.generation);
            let parent = self.places.get(&origin.parent).copied();
            // An ancestor is older: whatever else the records of a damaged filesystem say, nothing goes in a circle.
            let fits = |base: usize| base != at && self.roots[base].id < root.id && (self.ours[base] || !self.ours[at]);
            if let Some(base) = parent.filter(|base| fits(*base) && is_unchanged(&self.roots[*base], generation)) {
                // With its topmost node it is what it was made as; and its parent is what it was then.
                return match is_as_made(root) && generation == root.generation {
                    true => Reading::Same { base },
                    false => Reading::Since { generation, base },
                };
            }
            if let Some(base) = self.as_made.get(&(origin.parent, self.ours[at])).copied().filter(|base| fits(*base))
                && let Some(made) = self.roots[base].origin.map(|origin| origin.generation)
                && made <= generation
            {
                return Reading::Since { generation: made, base };
            }
            let Some(parent) = parent else { break };
            line = &self.roots[parent];
        }
        Reading::Whole
    }
}

/// The same of two that one commit made.
fn order(root: &Root) -> (u64, u64) {
    (root.origin.map_or(0, |origin| origin.generation), root.id)
}

/// Nothing was done to it since it was made as a snapshot, and none was made of it.
fn is_as_made(root: &Root) -> bool {
    root.origin.is_some_and(|origin| root.generation <= origin.generation)
}

/// It refers to what it did at the commit of a generation.
fn is_unchanged(root: &Root, generation: u64) -> bool {
    root.generation <= generation || root.read_only && root.written <= generation
}

#[cfg(test)]
mod tests {
    use crate::kernel::trees::Origin;

    use super::*;

    /// A subvolume: number, topmost node's generation, last write.
    fn root(id: u64, generation: u64, written: u64) -> Root {
        Root { id, uuid: Some(uuid(id)), origin: None, generation, written, read_only: false }
    }

    fn uuid(id: u64) -> [u8; 16] {
        [u8::try_from(id).expect("small"); 16]
    }

    fn of(parent: u64, generation: u64, root: Root) -> Root {
        Root { origin: Some(Origin { parent: uuid(parent), generation }), ..root }
    }

    fn sealed(root: Root) -> Root {
        Root { read_only: true, ..root }
    }

    fn all(roots: &[Root]) -> Vec<Reading> {
        readings(roots, &vec![true; roots.len()])
    }

    #[test]
    fn a_snapshot_of_what_never_changes_is_read_since_it_was_made() {
        let roots = [sealed(root(1, 30, 10)), of(1, 20, root(2, 25, 25)), of(1, 30, root(3, 30, 10))];
        assert_eq!(
            all(&roots),
            [Reading::Whole, Reading::Since { generation: 20, base: 0 }, Reading::Same { base: 0 }]
        );
        // One that a snapshot was made of has another topmost node, and may be the same or not.
        let roots = [sealed(root(1, 20, 10)), of(1, 20, root(2, 40, 10)), of(2, 40, root(3, 40, 10))];
        let since = |generation, base| Reading::Since { generation, base };
        assert_eq!(all(&roots)[1..], [since(20, 0), Reading::Same { base: 1 }]);
        // Read-only, and yet it was written to: somebody cleared the flag for a while.
        let roots = [sealed(root(1, 30, 21)), of(1, 20, root(2, 25, 25))];
        assert_eq!(all(&roots), [Reading::Whole, Reading::Whole]);
    }

    #[test]
    fn one_of_what_changes_goes_on_from_what_does_not() {
        let image = sealed(root(1, 10, 5));
        let container = of(1, 10, root(2, 50, 50));
        let kept = of(2, 40, root(3, 40, 35));
        let since = Reading::Since { generation: 10, base: 0 };
        assert_eq!(all(&[image, container, kept]), [Reading::Whole, since, since]);
        // Nothing was written to its inodes since, but a file without a name may have gone.
        let container = Root { written: 35, ..container };
        assert_eq!(all(&[image, container, kept]), [Reading::Whole, since, since]);
        // And without an image there is nothing that is as it was.
        assert_eq!(all(&[container, kept]), [Reading::Whole, Reading::Whole]);
    }

    #[test]
    fn a_sibling_stands_in_for_a_parent_that_is_gone() {
        let roots = [
            of(1, 20, root(2, 30, 30)), // changed
            of(1, 21, root(3, 21, 10)), // as it was made
            of(1, 22, root(4, 22, 10)), // later
            of(1, 23, root(5, 40, 40)),
        ];
        let since = Reading::Since { generation: 21, base: 1 };
        assert_eq!(all(&roots), [Reading::Whole, Reading::Whole, since, since]);
        // One whose parent changes, and is one of them.
        let roots = [of(1, 20, root(2, 20, 10)), of(1, 21, root(3, 50, 50)), of(3, 40, root(4, 60, 60))];
        let since = Reading::Since { generation: 20, base: 0 };
        assert_eq!(all(&roots), [Reading::Whole, since, since]);
    }

    #[test]
    fn ours_do_not_go_on_from_others() {
        let roots = [sealed(root(1, 10, 5)), of(1, 10, root(2, 20, 20)), of(1, 11, root(3, 20, 20))];
        let since = |generation| Reading::Since { generation, base: 0 };
        assert_eq!(readings(&roots, &[false, true, false]), [Reading::Whole, Reading::Whole, since(11)]);
        assert_eq!(readings(&roots, &[true, false, false]), [Reading::Whole, since(10), since(11)]);
    }

    #[test]
    fn nothing_goes_in_a_circle() {
        let roots = [of(2, 10, sealed(root(1, 10, 5))), of(1, 10, sealed(root(2, 10, 5)))];
        let found = all(&roots);
        assert_eq!(found.iter().filter(|reading| reading.base().is_some()).count(), 1, "{found:?}");
    }
}
