//! What lies where in an uncompressed archive in a file: nothing is extracted, members are read where they are.
//!
//! For archives whose members are documents and layers. Links among members (an old `docker save` writes a layer that
//! two images share once, and symlinks to it) are followed by name within the archive, never on the host.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::entries::{Entries, Node};
use super::{Limits, clean};
use crate::error::{Error, Kind, Result};

/// Real archives have a few members for each layer.
const MEMBERS: u64 = 65_536;
/// Real names are digests in a directory or two.
const NAME: usize = 512;
/// Links that are followed from a name to its bytes.
const HOPS: usize = 8;

/// The members of an archive by their clean names.
#[derive(Debug)]
pub(crate) struct Index {
    file: Arc<File>,
    members: HashMap<Vec<u8>, Place>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Where its bytes begin, and how many there are.
    Bytes(u64, u64),
    /// Another name, clean.
    Link(Vec<u8>),
    /// A directory, a device: nothing to be read.
    Other,
}

/// A member's bytes.
#[derive(Debug)]
pub(crate) struct Member {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Index {
    /// Reads the headers of an archive from its start.
    pub(crate) fn read(mut file: File) -> Result<Index> {
        file.rewind()?;
        let length = file.metadata()?.len();
        let limits = Limits { entries: MEMBERS, name: NAME, depth: NAME, ..Limits::default() };
        let mut entries = Entries::new(BufReader::new(&file), &limits);
        let mut members = HashMap::new();
        // These limits have no flag.
        while let Some(entry) = entries.next().map_err(Error::without_hint)? {
            let (offset, size) = entries.data();
            let place = match entry.node {
                Node::File(None) if offset.checked_add(size).is_some_and(|end| end <= length) => {
                    Place::Bytes(offset, size)
                }
                Node::File(None) => return Err(Error::new(Kind::Invalid, "the archive is truncated")),
                Node::HardLink(target) => Place::Link(target),
                Node::Symlink(target) => Place::Link(linked(&entry.path, &target)),
                Node::File(Some(_)) | Node::Directory | Node::Special(_) => Place::Other,
            };
            let file = !matches!(place, Place::Other);
            if members.insert(entry.path.clone(), place).is_some_and(|before| file || before != Place::Other) {
                // Readers disagree which of them counts.
                let name = String::from_utf8_lossy(&entry.path).into_owned();
                return Err(Error::new(Kind::Invalid, format!("{name}: is in the archive twice")));
            }
            entries.seek_over(|stream, length| stream.seek_relative(length))?;
        }
        drop(entries);
        Ok(Index { file: Arc::new(file), members })
    }

    /// Whether there is a member of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(&clean(name.as_bytes()))
    }

    /// The member of this name: its bytes, and how many they are. Names are those of members, whatever is in them:
    /// `/` and `..` end at the top of the archive.
    pub(crate) fn open(&self, name: &str) -> Result<(Member, u64)> {
        let mut at = clean(name.as_bytes());
        for _ in 0..HOPS {
            match self.members.get(&at) {
                Some(Place::Bytes(offset, size)) => {
                    return Ok((Member { file: self.file.clone(), offset: *offset, left: *size }, *size));
                }
                Some(Place::Link(target)) => at.clone_from(target),
                Some(Place::Other) => return Err(Error::new(Kind::Invalid, format!("{name}: is no plain file"))),
                None => return Err(Error::new(Kind::NotFound, format!("{name}: is not in the archive"))),
            }
        }
        Err(Error::new(Kind::Invalid, format!("{name}: a loop of links")))
    }
}

/// Where a symbolic link of this name leads, within the archive.
fn linked(name: &[u8], target: &[u8]) -> Vec<u8> {
    match (target, name.iter().rposition(|&b| b == b'/')) {
        ([b'/', ..], _) | (_, None) => clean(target),
        (_, Some(slash)) => clean(&[&name[..=slash], target].concat()),
    }
}

impl Read for Member {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let length = self.file.read_at(&mut into[..wanted], self.offset)?;
        if length == 0 && wanted > 0 {
            // It was whole when it was indexed.
            return Err(Error::new(Kind::Invalid, "the archive became shorter").into());
        }
        self.offset += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}
