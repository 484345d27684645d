//! What lies below a layer, and how a layer hides it (image-spec layer.md, "Whiteouts").
//!
//! A whiteout hides what lower layers hold and never what its own layer does, wherever in the archive it stands. So
//! everything that an archive makes has to be told from what was there before. Its inode number tells: the draft is a
//! btrfs subvolume, where numbers only grow, so whatever has a number from before the first entry is from below. Two
//! things a layer makes without a new inode, and they are remembered: a lower directory that has an entry of its own (a
//! bit each), and a hard link to a lower file (its name, so their number has a limit).
//!
//! Hiding is removing: the draft is a snapshot, and what it loses stays whole in the layer below.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString};

use crate::error::{Error, Kind, Result};
use crate::kernel::directory::Directory;
use crate::kernel::fs::{self, CWD};
use crate::kernel::node::{self, Target, Time};

/// Hard links from a layer to files below it. Those who write layers write such a file again, with its links.
const LINKS: usize = 65_536;

pub(super) const PREFIX: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name in a layer says about the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whiteout<'a> {
    /// Nothing: it is an entry.
    None,
    /// What has this name, beside it, is hidden.
    Name(&'a [u8]),
    /// All that is in its directory is hidden.
    Opaque,
    /// AUFS's own notes, which are nothing to others.
    Meta,
}

/// Finds whiteouts in a clean path.
pub(super) fn whiteout(path: &[u8]) -> Result<Whiteout<'_>> {
    let invalid = |why: &str| {
        let path = String::from_utf8_lossy(path);
        Err(Error::new(Kind::Invalid, format!("whiteout {path}: {why}")))
    };
    let mut parts = path.split(|&b| b == b'/').peekable();
    while let Some(part) = parts.next() {
        if !part.starts_with(PREFIX) {
            continue;
        }
        if part == OPAQUE && parts.peek().is_none() {
            return Ok(Whiteout::Opaque);
        }
        if part.starts_with(META) && part != OPAQUE {
            return Ok(Whiteout::Meta);
        }
        return match (&part[PREFIX.len()..], parts.peek()) {
            (_, Some(_)) => invalid("something lies below it"),
            (b"" | b"." | b"..", None) => invalid("it names nothing"),
            (name, None) => Ok(Whiteout::Name(name)),
        };
    }
    Ok(Whiteout::None)
}

/// What a layer has made so far, as opposed to what it found.
pub(super) struct Lower {
    /// Lower inodes have smaller numbers.
    first: u64,
    /// Lower directories that have an entry in this layer: a bit for each number.
    announced: BTreeMap<u64, u64>,
    /// Names that this layer has given to lower files: the number of the directory, and the name.
    links: HashSet<(u64, Vec<u8>)>,
}

impl Lower {
    /// What the directory that we stand in holds now is what lies below.
    pub(super) fn new() -> Result<Lower> {
        let first = node::next_inode().map_err(|failure| failure.of(b""))?;
        Ok(Lower { first, announced: BTreeMap::new(), links: HashSet::new() })
    }

    /// Notes that a directory found by this layer has an entry in it: all that is known of it is in there.
    pub(super) fn announce(&mut self, name: &[u8], inode: u64) -> node::Result<()> {
        if inode < self.first && !self.is_announced(inode) {
            *self.announced.entry(inode / 64).or_default() |= 1 << (inode % 64);
            node::clear_xattrs(Target::Name(name))?;
        }
        Ok(())
    }

    fn is_announced(&self, inode: u64) -> bool {
        self.announced.get(&(inode / 64)).is_some_and(|bits| bits & (1 << (inode % 64)) != 0)
    }

    /// Notes a hard link that was made where we stand.
    pub(super) fn linked(&mut self, name: &[u8], path: &[u8]) -> Result<()> {
        let fail = |failure: node::Failure| failure.of(path);
        if node::metadata(name, false).map_err(fail)?.st_ino < self.first {
            if self.links.len() >= LINKS {
                let message = format!("the layer has more than {LINKS} hard links to files of layers below");
                return Err(Error::new(Kind::Limit, message));
            }
            self.links.insert((node::inode_here().map_err(fail)?, name.to_vec()));
        }
        Ok(())
    }

    /// Whether something is from below, and nothing of this layer's own was reached through it.
    pub(super) fn is_below(&self, found: &fs::Stat) -> bool {
        found.st_ino < self.first && !node::is_directory(found) && !node::is_symlink(found)
    }

    /// Hides what lies below under this name, where we stand.
    pub(super) fn hide(&self, name: &[u8]) -> node::Result<()> {
        let found = match node::metadata(name, false) {
            Ok(found) => found,
            Err(failure) if failure.missing() => return Ok(()),
            Err(failure) => return Err(failure),
        };
        if found.st_ino >= self.first {
            return Ok(());
        }
        if node::is_directory(&found) {
            let c_name = CString::new(name).unwrap_or_default();
            let here = Directory::open(CWD, c".", 0)?;
            let inner = Directory::open(here.fd(), &c_name, 0)?;
            let state = State::of(&inner)?;
            self.clear(inner)?;
            return self.leave(&here, &c_name, &state);
        }
        match self.links.is_empty() || !self.links.contains(&(node::inode_here()?, name.to_vec())) {
            true => node::remove(name),
            false => Ok(()),
        }
    }

    /// Hides all that lies below where we stand.
    pub(super) fn hide_all(&self) -> node::Result<()> {
        self.clear(Directory::open(CWD, c".", 0)?)
    }

    /// Removes what is from below in a directory, with memory for one path.
    fn clear(&self, top: Directory) -> node::Result<()> {
        let mut state = State::of(&top)?;
        let mut at = top;
        // The way down: how each directory was, the name that we went on with, and where to go on after it.
        let mut way: Vec<(State, CString, i64)> = Vec::new();
        loop {
            match at.next()? {
                // What is in a directory of this layer's own is of this layer.
                Some(found) if found.inode >= self.first => {}
                Some(found) if found.directory => {
                    let inner = Directory::open(at.fd(), &found.name, 0)?;
                    way.push((std::mem::replace(&mut state, State::of(&inner)?), found.name, found.next));
                    at = inner;
                }
                Some(found) => {
                    if self.links.is_empty() || !self.links.contains(&(state.inode, found.name.to_bytes().to_vec())) {
                        at.remove(&found.name)?;
                    }
                }
                None => {
                    let Some((above, name, next)) = way.pop() else { return Ok(()) };
                    at = Directory::open(at.fd(), c"..", next)?;
                    self.leave(&at, &name, &state)?;
                    state = above;
                }
            }
        }
    }

    /// After a lower directory was cleared: it goes, unless this layer has something in it, or an entry for it.
    fn leave(&self, parent: &Directory, name: &CStr, state: &State) -> node::Result<()> {
        let announced = self.is_announced(state.inode);
        if !announced && parent.remove_if_empty(name)? {
            return Ok(());
        }
        let inner = Directory::open(parent.fd(), name, 0)?;
        if !announced {
            // As if it had been hidden before this layer made it anew, without an entry.
            return inner.set_default_metadata();
        }
        node::set_times(Target::Open(inner.fd()), state.accessed, state.modified)
    }
}

/// How a directory was before something in it was removed.
struct State {
    inode: u64,
    accessed: Time,
    modified: Time,
}

impl State {
    fn of(directory: &Directory) -> node::Result<State> {
        let (inode, accessed, modified) = directory.metadata()?;
        Ok(State { inode, accessed, modified })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_hides() {
        for (path, says) in [
            ("a/b", Whiteout::None),
            ("a/wh.b", Whiteout::None),
            ("a.wh.b", Whiteout::None),
            (".wh.a", Whiteout::Name(b"a")),
            ("d/.wh.a", Whiteout::Name(b"a")),
            ("d/.wh..a", Whiteout::Name(b".a")),
            ("d/.wh....", Whiteout::Name(b"...")),
            (".wh..wh..opq", Whiteout::Opaque),
            ("d/e/.wh..wh..opq", Whiteout::Opaque),
            (".wh..wh.plnk", Whiteout::Meta),
            (".wh..wh.plnk/1.2", Whiteout::Meta),
            ("d/.wh..wh.aufs", Whiteout::Meta),
        ] {
            assert_eq!(whiteout(path.as_bytes()).expect(path), says, "{path}");
        }
        for path in [".wh.", "d/.wh.", ".wh..", "d/.wh...", ".wh.a/b", "d/.wh.a/b/c", ".wh..wh..opq/x"] {
            assert_eq!(whiteout(path.as_bytes()).expect_err(path).kind(), Kind::Invalid, "{path}");
        }
    }
}
