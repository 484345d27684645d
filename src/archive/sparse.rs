//! The map of a sparse file: which pieces of it the archive holds.

use crate::error::{Error, Kind, Result};

use super::{Limits, exceeded};

/// Where the data of a file goes; the rest of it are holes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Offset and length of each piece, ascending, none overlapping, all within `size`.
    pub(crate) pieces: Vec<(u64, u64)>,
    /// The file's size, holes included.
    pub(crate) size: u64,
}

impl SparseMap {
    /// Checks a map: ascending, within the file, and of exactly the `stored` bytes that the archive holds.
    pub(crate) fn new(pieces: Vec<(u64, u64)>, size: u64, stored: u64, limits: &Limits) -> Result<SparseMap> {
        let wrong = |what: &str| Err(Error::new(Kind::Invalid, format!("sparse map: {what}")));
        if pieces.len() > limits.sparse_pieces {
            return Err(too_many_pieces(limits.sparse_pieces));
        }
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, length) in &pieces {
            if offset < end {
                return wrong("pieces overlap");
            }
            end = match offset.checked_add(length) {
                Some(end) if end <= size => end,
                _ => return wrong("a piece lies beyond the end of the file"),
            };
            sum += length;
        }
        if sum != stored {
            return wrong("its pieces are not what the archive holds");
        }
        Ok(SparseMap { pieces, size })
    }

    /// The map from the flat list of offsets and lengths that PAX 0.0 and 0.1 records hold.
    pub(crate) fn pairs(flat: &[u64]) -> Result<Vec<(u64, u64)>> {
        match flat.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|&[offset, length]| (offset, length)).collect()),
            _ => Err(Error::new(Kind::Invalid, "sparse map: an offset without a length")),
        }
    }
}

pub(super) fn too_many_pieces(limit: usize) -> Error {
    exceeded(format!("sparse map: more than {limit} pieces"), "--max-sparse-pieces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_ascends_within_the_file_and_matches_what_is_stored() {
        let limits = Limits { sparse_pieces: 3, ..Limits::default() };
        let check = |pieces: &[(u64, u64)], size, stored| SparseMap::new(pieces.to_vec(), size, stored, &limits);
        assert!(check(&[], 10, 0).is_ok());
        assert!(check(&[(0, 4), (4, 2), (10, 0)], 10, 6).is_ok());
        for (pieces, size, stored) in [
            (&[(4, 2), (0, 4)][..], 10, 6),
            (&[(0, 4), (3, 2)], 10, 6),
            (&[(8, 4)], 10, 4),
            (&[(u64::MAX, 2)], u64::MAX, 2),
            (&[(0, 4)], 10, 5),
        ] {
            assert_eq!(check(pieces, size, stored).expect_err("wrong").kind(), Kind::Invalid, "{pieces:?}");
        }
        assert_eq!(check(&[(0, 0); 4], 0, 0).expect_err("four").kind(), Kind::Limit);
        assert!(SparseMap::pairs(&[1]).is_err());
    }
}
