//! Whose the extents are: from what was read of each subvolume to the bytes of each object.
//!
//! An extent belongs to every object with a subvolume that refers to it. What was read of a subvolume is perhaps only what
//! its base does not have, and of what that has it may have lost some: so an extent of a base may be another object's, too,
//! and then what seems to be its alone is a bound.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use super::lineage::Reading;
use super::{Bytes, Figures, Known};
use crate::kernel::trees::Extent;

/// An object, by its place; or one that is none of those that are asked for; or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Object(usize),
    Other,
    Several,
}

impl Owner {
    pub(super) fn and(self, other: Owner) -> Owner {
        if self == other { self } else { Owner::Several }
    }
}

/// A subvolume, whose it is and what was read of it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub owner: Owner,
    /// The objects that it is a part of.
    pub objects: Vec<usize>,
    /// It stays for a while when they are removed.
    pub stays: bool,
    pub reading: Reading,
    /// Where the extents begin that were read of it, in order, each once.
    pub extents: Vec<u64>,
}

impl Part {
    /// Of these objects, or of none; not read yet.
    pub(super) fn of(objects: &[usize]) -> Part {
        let owner = match objects {
            [] => Owner::Other,
            [one] => Owner::Object(*one),
            _ => Owner::Several,
        };
        Part { owner, objects: objects.to_vec(), stays: false, reading: Reading::Whole, extents: Vec::new() }
    }
}

/// What is known of an extent.
#[derive(Debug, Clone, Copy)]
struct Held {
    length: u64,
    owner: Owner,
    stays: bool,
}

/// What was read of all subvolumes.
#[derive(Debug, Default)]
pub(super) struct Tally {
    parts: Vec<Part>,
    lengths: HashMap<u64, u64>,
}

impl Tally {
    pub(super) fn new(parts: Vec<Part>) -> Tally {
        Tally { parts, lengths: HashMap::new() }
    }

    /// Notes what was read of a part, which is that now. Of one that is no object's, only what others refer to matters.
    pub(super) fn read(&mut self, part: usize, reading: Reading, extents: Vec<Extent>) {
        let ours = !self.parts[part].objects.is_empty();
        let mut starts = Vec::with_capacity(extents.len());
        for Extent { start, length } in extents {
            if ours {
                self.lengths.insert(start, length);
            }
            if ours || self.lengths.contains_key(&start) {
                starts.push(start);
            }
        }
        starts.sort_unstable();
        starts.dedup();
        let part = &mut self.parts[part];
        (part.reading, part.extents) = (reading, starts);
    }

    /// Who owns what is in each part: who owns another that is the same does, too.
    fn owners(&self) -> Vec<Owner> {
        let mut owners: Vec<Owner> = self.parts.iter().map(|part| part.owner).collect();
        // A part goes on from a base, that from another, and none in a circle: from the outermost inwards.
        for at in self.outermost_first() {
            if let Reading::Same { base } = self.parts[at].reading {
                owners[base] = owners[base].and(owners[at]);
            }
        }
        owners
    }

    /// Those that go on from most others first.
    fn outermost_first(&self) -> Vec<usize> {
        let depth = |mut at: usize| {
            let mut depth = 0usize;
            while let Some(base) = self.parts[at].reading.base() {
                (at, depth) = (base, depth + 1);
            }
            depth
        };
        let mut order: Vec<(usize, usize)> = (0..self.parts.len()).map(|at| (depth(at), at)).collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        order.into_iter().map(|(_, at)| at).collect()
    }

    /// The parts that go on from one of which only one object knows, and that may refer to more of it than was read of them:
    /// by the base, those of which the least was read first.
    pub(super) fn doubtful(&self) -> HashMap<usize, Vec<usize>> {
        let owners = self.owners();
        let mut doubtful: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, part) in self.parts.iter().enumerate() {
            if let Reading::Since { base, .. } = part.reading
                && matches!(owners[base], Owner::Object(_))
                && owners[at] != owners[base]
            {
                doubtful.entry(base).or_default().push(at);
            }
        }
        doubtful.values_mut().for_each(|parts| parts.sort_by_key(|at| (self.parts[*at].extents.len(), *at)));
        doubtful
    }

    /// The figures of so many objects, and the bytes of all of them together.
    pub(super) fn figures(&self, objects: usize) -> (Vec<Figures>, u64) {
        let mut alone = vec![[0u64; 2]; objects];
        let held = self.held();
        for extent in held.values() {
            if let Owner::Object(object) = extent.owner {
                alone[object][0] += extent.length;
                alone[object][1] += if extent.stays { 0 } else { extent.length };
            }
        }
        let mut bounded = vec![false; objects];
        let owners = self.owners();
        for base in self.doubtful().into_keys() {
            if let Owner::Object(object) = owners[base] {
                bounded[object] = true;
            }
        }
        let mut of = vec![Vec::new(); objects];
        for (at, part) in self.parts.iter().enumerate() {
            part.objects.iter().for_each(|object| of[*object].push(at));
        }
        let reach = Reach { tally: self, known: RefCell::new(HashMap::new()) };
        let figures = (0..objects).map(|object| {
            let [exclusive, freed] = alone[object];
            // A bound that nothing is left of is none.
            let is = |bytes: u64| if bounded[object] && bytes > 0 { Known::AtMost } else { Known::Exact };
            let (all, whole) = reach.of(&of[object]);
            let shared = match (is(exclusive), whole) {
                (Known::Exact, true) => Bytes { bytes: all - exclusive, known: Known::Exact },
                (Known::Exact, false) => Bytes { bytes: all - exclusive, known: Known::AtMost },
                (_, true) => Bytes { bytes: all - exclusive, known: Known::AtLeast },
                (_, false) => Bytes { bytes: all, known: Known::AtMost },
            };
            let exclusive = Bytes { bytes: exclusive, known: is(exclusive) };
            Figures { exclusive, shared, freed: Bytes { bytes: freed, known: is(freed) } }
        });
        (figures.collect(), self.lengths.values().sum())
    }

    fn held(&self) -> HashMap<u64, Held> {
        let mut held: HashMap<u64, Held> = HashMap::with_capacity(self.lengths.len());
        for (part, owner) in self.parts.iter().zip(self.owners()) {
            for start in &part.extents {
                // Others' were read when ours were not all known yet, and may name what is none of ours.
                let Some(length) = self.lengths.get(start).copied() else { continue };
                let entry = held.entry(*start).or_insert(Held { length, owner, stays: false });
                entry.owner = entry.owner.and(owner);
                entry.stays |= part.stays;
            }
        }
        held
    }
}

/// What parts and all that they go on from refer to together.
struct Reach<'a> {
    tally: &'a Tally,
    /// Bytes, by part.
    known: RefCell<HashMap<usize, u64>>,
}

impl Reach<'_> {
    /// The bytes that the parts of an object refer to, at most, and whether it is all of them.
    fn of(&self, parts: &[usize]) -> (u64, bool) {
        let whole = parts.iter().all(|part| self.is_whole(*part, parts));
        let bytes = match parts {
            [part] => self.bytes(*part),
            parts => {
                let mut lines: HashSet<usize> = HashSet::new();
                parts.iter().for_each(|part| lines.extend(self.line(*part)));
                let extents = lines.iter().flat_map(|part| &self.tally.parts[*part].extents);
                extents.collect::<HashSet<_>>().into_iter().map(|start| self.length(*start)).sum()
            }
        };
        (bytes, whole)
    }

    fn length(&self, start: u64) -> u64 {
        self.tally.lengths.get(&start).copied().unwrap_or_default()
    }

    /// A part, what it goes on from, and so on.
    fn line(&self, part: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(part), |part| self.tally.parts[*part].reading.base())
    }

    /// Whether what a part has lost of its base is not counted among what its object has.
    fn is_whole(&self, part: usize, parts: &[usize]) -> bool {
        match self.tally.parts[part].reading {
            Reading::Whole => true,
            Reading::Same { base } => self.is_whole(base, parts),
            Reading::Since { base, .. } => parts.contains(&base) && self.is_whole(base, parts),
        }
    }

    fn bytes(&self, part: usize) -> u64 {
        if let Some(bytes) = self.known.borrow().get(&part) {
            return *bytes;
        }
        let own = &self.tally.parts[part];
        let bytes = match own.reading.base() {
            None => own.extents.iter().map(|start| self.length(*start)).sum(),
            Some(base) => {
                let is_new = |start: &&u64| {
                    self.line(base).all(|below| self.tally.parts[below].extents.binary_search(start).is_err())
                };
                self.bytes(base) + own.extents.iter().filter(is_new).map(|start| self.length(*start)).sum::<u64>()
            }
        };
        self.known.borrow_mut().insert(part, bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Extents that begin at these places, each as long as its place says.
    fn extents(starts: &[u64]) -> Vec<Extent> {
        starts.iter().map(|start| Extent { start: *start, length: *start }).collect()
    }

    /// Parts: the objects each is of, how it is read, and what was found.
    fn tally(parts: &[(&[usize], Reading, &[u64])]) -> Tally {
        let mut tally = Tally::new(parts.iter().map(|(objects, ..)| Part::of(objects)).collect());
        for (at, (_, reading, found)) in parts.iter().enumerate() {
            tally.read(at, *reading, extents(found));
        }
        tally
    }

    fn told(figures: &Figures) -> [String; 3] {
        [figures.exclusive, figures.shared, figures.freed].map(|found| {
            let sign = match found.known {
                Known::Exact => "",
                Known::AtMost => "<",
                Known::AtLeast => ">",
            };
            format!("{sign}{}", found.bytes)
        })
    }

    fn since(base: usize) -> Reading {
        Reading::Since { generation: 1, base }
    }

    #[test]
    fn what_one_alone_refers_to_is_exclusive() {
        // An extent that is named twice is one; one that another's subvolume has, too, is shared.
        let tally = tally(&[
            (&[0], Reading::Whole, &[1, 2, 4, 4, 64]),
            (&[1], Reading::Whole, &[2, 8]),
            (&[], Reading::Whole, &[1, 16]),
        ]);
        let (figures, all) = tally.figures(2);
        assert_eq!(told(&figures[0]), ["68", "3", "68"]);
        assert_eq!(told(&figures[1]), ["8", "2", "8"]);
        assert_eq!(all, 1 + 2 + 4 + 8 + 64);
    }

    #[test]
    fn a_leaf_is_exact_and_its_base_a_bound() {
        let tally = tally(&[(&[0], Reading::Whole, &[1, 2]), (&[1], since(0), &[2, 8])]);
        let (figures, all) = tally.figures(2);
        // 2 was found in both; whether the leaf has 1 is not known.
        assert_eq!(told(&figures[0]), ["<1", ">2", "<1"]);
        assert_eq!(told(&figures[1]), ["8", "<3", "8"]);
        assert_eq!(all, 11);
        assert_eq!(tally.doubtful(), HashMap::from([(0, vec![1])]));
    }

    #[test]
    fn what_is_the_same_shares_all() {
        let tally =
            tally(&[(&[0], Reading::Whole, &[1, 2]), (&[1], Reading::Same { base: 0 }, &[]), (&[2], since(1), &[4])]);
        let (figures, _) = tally.figures(3);
        assert_eq!(told(&figures[0]), ["0", "3", "0"]);
        assert_eq!(told(&figures[1]), ["0", "3", "0"]);
        assert_eq!(told(&figures[2]), ["4", "<3", "4"]);
    }

    #[test]
    fn a_bound_of_nothing_is_exact() {
        let tally = tally(&[
            (&[0], Reading::Whole, &[1, 2]),
            (&[1], since(0), &[8]),
            (&[2], Reading::Whole, &[1, 2]), // of many, one that was read whole
        ]);
        assert_eq!(told(&tally.figures(3).0[0]), ["0", "3", "0"]);
    }

    #[test]
    fn layers_of_an_image_are_one() {
        let mut tally = tally(&[
            (&[0, 1], Reading::Whole, &[1, 2]), // both images stand on it
            (&[0], since(0), &[2, 4]),
            (&[1], since(0), &[8]),
            (&[1], since(2), &[16]),
        ]);
        let (figures, _) = tally.figures(2);
        assert_eq!(told(&figures[0]), ["4", "3", "4"]);
        assert_eq!(told(&figures[1]), ["24", "3", "24"]);
        // One that is unfinished stands on a layer: it does not go with its image.
        tally.parts[2].stays = true;
        assert_eq!(told(&tally.figures(2).0[1]), ["24", "3", "16"]);
    }

    #[test]
    fn what_others_hold_counts_for_nobody() {
        let mut tally = tally(&[(&[0], Reading::Whole, &[1, 2]), (&[], since(0), &[])]);
        assert_eq!(told(&tally.figures(1).0[0]), ["<3", ">0", "<3"]);
        tally.read(1, Reading::Whole, extents(&[2, 4]));
        assert_eq!(told(&tally.figures(1).0[0]), ["1", "2", "1"]);
        assert_eq!(tally.figures(1).1, 3);
    }
}
