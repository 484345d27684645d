//! What a fuzzer asks of this room: whatever the bytes are, entries stay within the limits.

use std::io::{BufReader, Read};

use super::entries::{Entries, Entry, Node, clean};
use super::pax::Records;
use super::{Limits, SparseMap};

const BLOCK: usize = 512;
const PIECES: usize = 64;

/// Small, so that a short input meets them.
fn limits() -> Limits {
    let small = Limits { entries: 64, depth: 16, name: 300, pax: 4096, sparse_pieces: PIECES, ..Limits::default() };
    Limits { bytes: Some(1 << 30), file_size: 1 << 40, padding: 4096, ..small }
}

/// A tar archive, as it is and with its checksums set right, which no fuzzer finds.
pub fn archive(bytes: &[u8]) {
    let mut summed = bytes.to_vec();
    for block in summed.as_chunks_mut::<BLOCK>().0 {
        if &block[257..262] == b"ustar" {
            let sum: u32 =
                block.iter().enumerate().map(|(at, &b)| if at / 4 == 37 || at / 4 == 38 { 32 } else { b.into() }).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    for bytes in [bytes, &summed] {
        let plain = read(bytes, BLOCK * 4, false);
        assert_eq!(plain, read(bytes, 7, false), "it depends on how the stream is cut");
        let verified = read(bytes, BLOCK, true);
        assert!(plain.1.is_some() || verified == plain, "a whole archive is another when its end may be missing");
    }
}

/// The entries, each with a sum of its data, and the error.
fn read(bytes: &[u8], buffer: usize, verified: bool) -> (Vec<(Entry, u64)>, Option<String>) {
    let (limits, stream) = (limits(), BufReader::with_capacity(buffer, bytes));
    let mut entries = if verified { Entries::of_verified(stream, &limits) } else { Entries::new(stream, &limits) };
    let mut found = Vec::new();
    loop {
        let entry = match entries.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                let rest = entries.into_inner().bytes().count();
                assert_eq!(rest, 0, "the stream is read to its end");
                return (found, None);
            }
            Err(error) => return (found, Some(error.to_string())),
        };
        sound(&entry, entries.left(), &limits);
        let mut sum = 0u64;
        let data = entries.each_piece(|piece| {
            sum = piece.iter().fold(sum, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            Ok(())
        });
        found.push((entry, sum));
        if let Err(error) = data {
            return (found, Some(error.to_string()));
        }
    }
}

fn sound(entry: &Entry, data: u64, limits: &Limits) {
    let named = |name: &[u8]| {
        assert!(name.len() <= limits.name && clean(name) == name && !name.contains(&0), "{entry:?}");
        assert!(name.split(|&b| b == b'/').count() <= limits.depth, "{entry:?}");
    };
    named(&entry.path);
    match &entry.node {
        Node::HardLink(target) => named(target),
        Node::Symlink(target) => assert!(!target.is_empty() && !target.contains(&0), "{entry:?}"),
        Node::File(None) => assert!(data <= limits.file_size, "{entry:?}"),
        Node::File(Some(SparseMap { pieces, size })) => {
            assert!(pieces.len() <= limits.sparse_pieces && *size <= limits.file_size, "{entry:?}");
            assert!(pieces.is_sorted_by(|a, b| a.0 + a.1 <= b.0), "{entry:?}");
            assert!(pieces.last().is_none_or(|(offset, length)| offset + length <= *size), "{entry:?}");
            assert_eq!(pieces.iter().map(|piece| piece.1).sum::<u64>(), data, "{entry:?}");
        }
        Node::Directory | Node::Special(_) => {}
    }
    assert!(entry.mode <= 0o7777 && entry.uid != u32::MAX && entry.gid != u32::MAX, "{entry:?}");
    assert!(entry.modified.nanoseconds < 1_000_000_000 && entry.accessed.nanoseconds < 1_000_000_000, "{entry:?}");
    // The attribute of an ACL is at most twice as long as its text.
    let attributes: usize = entry.xattrs.iter().map(|(name, value)| name.count_bytes() + value.len()).sum();
    assert!(attributes <= 3 * limits.pax, "{attributes} bytes of attributes");
}

/// Extended header records.
pub fn pax(bytes: &[u8]) {
    let mut records = Records::default();
    if records.read(bytes, PIECES).is_err() {
        return;
    }
    for time in [records.modified, records.accessed].into_iter().flatten() {
        assert!(time.nanoseconds < 1_000_000_000, "{time:?}");
    }
    assert!(records.sparse.map.as_ref().is_none_or(|map| map.len() <= 2 * PIECES));
    // What is said again says the same, but for a sparse map, whose pieces are added.
    if records.sparse.map.is_none() && records.sparse.offset.is_none() {
        let mut again = records.clone();
        assert!(again.read(bytes, PIECES).is_ok() && again == records, "{again:?} instead of {records:?}");
    }
}
