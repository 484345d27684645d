//! Entries applied to the directory that is the calling thread's root.
//!
//! The thread stands in the directory it works in, so an entry costs the lookup of one name. The directories above are
//! a stack; a directory's times are set when the stream leaves it, because making what is in it changes them. A
//! directory that is entered without an entry of its own (entries out of order) gets back the times it had. Memory is
//! that of one path, however many entries there are.
//!
//! Long for one file because its parts share one invariant:
//! the stack of directories is the way to where the thread stands.
//!
//! Names resolve as they would inside: absolute links and `..` end at this root. In a root filesystem a name that
//! begins with `.wh.` is a name; in a layer it hides what lies below ([`Lower`]).

use std::cell::RefCell;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::thread;

use crate::error::{Context, Error, Kind, Result};
use crate::kernel;
use crate::kernel::fs::CWD;
use crate::kernel::node::{self, Special, Target, Time};

use super::Among;
use super::lower::{Lower, Whiteout, whiteout};
use super::recipe::{Content, Recorder};
use super::writer::{self, Metadata, SMALL, Writer};
use crate::archive::{Entries, Entry, Node, SparseMap};

/// Longest path given to the kernel at once; PATH_MAX is 4096 with the NUL (path_resolution(7)).
const LONGEST: usize = 4000;
/// Beyond this the way up is `..`, not the path from the root once more.
const FAR: usize = 1024;

/// What was applied.
pub(super) struct Applied {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// What entries are applied as.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Those of a root filesystem.
    Root,
    /// Those of a layer on top of what is there.
    Layer,
    /// Files like others.
    Among(Among),
}

/// Applies all entries. The thread has to be confined to the directory.
///
/// The recorder gets to see what an entry replaces that another of the same archive has made.
pub(super) fn apply<R: Content>(
    entries: &mut Entries<'_, R>,
    manner: Manner,
    recorder: Option<Rc<RefCell<Recorder>>>,
) -> Result<Applied> {
    thread::scope(|scope| {
        let (writer, thread) = writer::start(scope)?;
        let applied = apply_all(entries, Applier::new(manner, writer, recorder)?);
        let written = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // It is behind, so its error came first in the archive.
        written.and(applied)
    })
}

fn apply_all<R: Content>(entries: &mut Entries<'_, R>, mut applier: Applier) -> Result<Applied> {
    while let Some(mut entry) = entries.next()? {
        if !applier.admits(&mut entry) {
            entries.each_piece(|_| Ok(()))?;
            continue;
        }
        applier.apply(&entry, entries)?;
    }
    applier.writer.hand_over()?;
    applier.leave_to(0)?;
    applier.leave_root()?;
    Ok(Applied { entries: applier.entries, bytes: applier.bytes })
}

/// A directory on the way from the root to where the stream is.
struct Frame {
    /// Its path's length: all frames are prefixes of one path.
    end: usize,
    /// Accessed and modified, to be set on leaving.
    times: Option<(Time, Time)>,
    /// It is reached through a symbolic link, so `..` leads elsewhere.
    link: bool,
    /// What is made in it gets its group, and directories setgid (inode(7)).
    setgid: bool,
    /// What is made in it gets a default ACL (acl(5), "OBJECT CREATION AND DEFAULT ACLs").
    default_acl: bool,
}

struct Applier {
    path: Vec<u8>,
    stack: Vec<Frame>,
    /// The frame of the working directory, if it is one of the stack.
    standing: Option<usize>,
    entries: u64,
    bytes: u64,
    unsupported: Vec<Vec<u8>>,
    /// Directories that were made without an entry, and are not counted yet.
    unannounced: u64,
    /// Some path has led through a symbolic link.
    led: bool,
    /// What a layer may hide; a root filesystem lies on nothing.
    lower: Option<Lower>,
    among: Option<Among>,
    writer: Writer,
    recorder: Option<Rc<RefCell<Recorder>>>,
}

impl Applier {
    fn new(manner: Manner, writer: Writer, recorder: Option<Rc<RefCell<Recorder>>>) -> Result<Applier> {
        let mut root = existing(b".", b"")?;
        root.end = 0;
        Ok(Applier {
            path: Vec::new(),
            stack: vec![root],
            standing: Some(0),
            entries: 0,
            bytes: 0,
            unsupported: Vec::new(),
            unannounced: 0,
            led: false,
            lower: matches!(manner, Manner::Layer).then(Lower::new).transpose()?,
            among: match manner {
                Manner::Among(among) => Some(among),
                Manner::Root | Manner::Layer => None,
            },
            writer,
            recorder,
        })
    }

    /// Makes of an entry what it may become here; `false` where it may become nothing.
    fn admits(&self, entry: &mut Entry) -> bool {
        let Some(among) = &self.among else { return true };
        if let Some((uid, gid)) = among.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        if among.harmless {
            entry.mode &= !0o6000;
            entry.xattrs.retain(|(name, _)| name.to_bytes().starts_with(b"user."));
            if let Node::Special(Special::Character(..) | Special::Block(..)) = entry.node {
                log::warn!("{} is a device: left out", String::from_utf8_lossy(&entry.path));
                return false;
            }
        }
        true
    }

    fn apply<R: Content>(&mut self, entry: &Entry, data: &mut Entries<'_, R>) -> Result<()> {
        self.entries += 1;
        if entry.path.is_empty() {
            return self.root(entry);
        }
        let split = entry.path.iter().rposition(|&b| b == b'/');
        let (parent, name) = match split {
            Some(slash) => (&entry.path[..slash], &entry.path[slash + 1..]),
            None => (&b""[..], &entry.path[..]),
        };
        if self.lower.is_some() {
            let says = whiteout(&entry.path)?;
            if says != Whiteout::None {
                return self.whiteout(entry, parent, says);
            }
        }
        self.enter(parent)?;
        data.count(std::mem::take(&mut self.unannounced))?;
        match &entry.node {
            Node::File(map) => self.file(entry, name, map.as_ref(), data),
            Node::Directory => self.directory(entry, name),
            Node::Symlink(target) => {
                self.make(name, &entry.path, || node::create_symlink(target, name))?;
                self.finish(entry, Target::Name(name))
            }
            Node::Special(special) => {
                self.make(name, &entry.path, || node::create_special(name, *special, entry.mode))?;
                self.finish(entry, Target::Name(name))
            }
            Node::HardLink(target) => self.hard_link(entry, name, target),
        }
    }

    /// Hides what lies below; where nothing does, nothing is made.
    fn whiteout(&mut self, entry: &Entry, parent: &[u8], says: Whiteout<'_>) -> Result<()> {
        if says == Whiteout::Meta || !self.go(parent, false)? {
            return Ok(());
        }
        if let Some(recorder) = self.recorder.as_ref().filter(|_| self.led) {
            recorder.borrow_mut().hides();
        }
        match (&self.lower, says) {
            (Some(lower), Whiteout::Name(name)) => lower.hide(name),
            (Some(lower), Whiteout::Opaque) => lower.hide_all(),
            _ => Ok(()),
        }
        .map_err(|failure| failure.of(&entry.path))
    }

    /// The entry of the root itself: `./`.
    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.node != Node::Directory {
            return Err(Error::new(Kind::Invalid, "the archive's root is no directory"));
        }
        self.leave_to(0)?;
        self.stand(0)?;
        if let Some(lower) = &mut self.lower {
            let announced = node::inode_here().and_then(|inode| lower.announce(b".", inode));
            announced.map_err(|failure| failure.of(b""))?;
        }
        self.directory_metadata(entry, b".", false)?;
        let mut root = existing(b".", b"")?;
        root.end = 0;
        root.times = Some((entry.accessed, entry.modified));
        self.stack[0] = root;
        Ok(())
    }

    fn file<R: Content>(
        &mut self,
        entry: &Entry,
        name: &[u8],
        map: Option<&SparseMap>,
        data: &mut Entries<'_, R>,
    ) -> Result<()> {
        let create = || node::create_file(name, entry.mode);
        let file = match self.make(name, &entry.path, create) {
            Err(e) if e.errno() == Some(kernel::EMFILE) => {
                self.writer.wait()?;
                self.make(name, &entry.path, create)?
            }
            other => other?,
        };
        let metadata = self.metadata(entry);
        let whole = [(0, data.left())];
        data.stream().content(&entry.path, map.map_or(&whole[..], |map| &map.pieces));
        if map.is_none() && entry.xattrs.is_empty() && data.left() <= SMALL {
            self.bytes += self.writer.take(file, &entry.path, metadata, data)?;
            return Ok(());
        }
        let fail = |failure: node::Failure| failure.of(&entry.path);
        let bytes = &mut self.bytes;
        match map {
            None => data.each_piece(|piece| {
                *bytes += piece.len() as u64;
                node::write(file.as_fd(), piece).map_err(fail)
            })?,
            Some(map) => write_sparse(&file, map, data, bytes, fail)?,
        }
        self.finish(entry, Target::Open(file.as_fd()))
    }

    /// What is set of anything but a directory.
    fn metadata(&self, entry: &Entry) -> Metadata {
        let (setgid, default_acl) = self.top().map_or((false, false), |top| (top.setgid, top.default_acl));
        let symlink = matches!(entry.node, Node::Symlink(_));
        let owned = entry.uid != 0 || entry.gid != 0 || setgid;
        let moded = !symlink && (default_acl || (owned && entry.mode & 0o6000 != 0));
        Metadata {
            owner: owned.then_some((entry.uid, entry.gid)),
            no_acl: default_acl && !symlink,
            mode: moded.then_some(entry.mode),
            accessed: entry.accessed,
            modified: entry.modified,
        }
    }

    fn finish(&mut self, entry: &Entry, target: Target<'_>) -> Result<()> {
        let fail = |failure: node::Failure| failure.of(&entry.path);
        let metadata = self.metadata(entry);
        metadata.set(target).map_err(fail)?;
        self.xattrs(entry, target)?;
        metadata.set_times(target).map_err(fail)
    }

    fn directory(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        let fail = |failure: node::Failure| failure.of(&entry.path);
        let mut made = true;
        match node::create_directory(name, entry.mode) {
            Err(failure) if failure.exists() => {
                let found = node::metadata(name, false).map_err(fail)?;
                if node::is_directory(&found) {
                    made = false;
                    if let Some(lower) = &mut self.lower {
                        lower.announce(name, found.st_ino).map_err(fail)?;
                    }
                } else {
                    self.may_replace(name, &entry.path, true)?;
                    self.make_way(name, &entry.path)?;
                    node::create_directory(name, entry.mode).map_err(fail)?;
                }
            }
            other => other.map_err(fail)?,
        }
        self.directory_metadata(entry, name, made)?;
        let default_acl = match made && !self.top().is_some_and(|top| top.default_acl) {
            true => entry.xattrs.iter().any(|(name, _)| name.as_c_str() == c"system.posix_acl_default"),
            false => node::has_xattr(name, c"system.posix_acl_default").map_err(fail)?,
        };
        let times = Some((entry.accessed, entry.modified));
        self.push(name, Frame { end: 0, times, link: false, setgid: entry.mode & 0o2000 != 0, default_acl });
        Ok(())
    }

    fn directory_metadata(&mut self, entry: &Entry, name: &[u8], made: bool) -> Result<()> {
        let fail = |failure: node::Failure| failure.of(&entry.path);
        let target = Target::Name(name);
        let (setgid, default_acl) = self.top().map_or((false, false), |top| (top.setgid, top.default_acl));
        if !made || entry.uid != 0 || entry.gid != 0 || setgid {
            node::set_owner(target, entry.uid, entry.gid).map_err(fail)?;
        }
        if made && default_acl {
            node::remove_xattr(target, c"system.posix_acl_access").map_err(fail)?;
            node::remove_xattr(target, c"system.posix_acl_default").map_err(fail)?;
        }
        if !made || setgid || default_acl || entry.mode & 0o6000 != 0 {
            node::set_mode(target, entry.mode).map_err(fail)?;
        }
        self.xattrs(entry, target)
    }

    fn hard_link(&mut self, entry: &Entry, name: &[u8], target: &[u8]) -> Result<()> {
        let shown = || {
            let (path, target) = (String::from_utf8_lossy(&entry.path), String::from_utf8_lossy(target));
            format!("link {path} to {target}")
        };
        if target.is_empty() {
            return Err(Error::new(Kind::Invalid, format!("{}: the root cannot be linked", shown())));
        }
        if target == entry.path {
            return match node::metadata(name, false) {
                Ok(_) => Ok(()),
                Err(_) => Err(Error::new(Kind::Invalid, format!("{}: no such entry before it", shown()))),
            };
        }
        let place = place_of(target).map_err(|failure| missing_target(failure, shown(), &entry.path))?;
        let split = target.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let link = || match &place {
            Some(place) => node::create_hard_link_at(place.as_fd(), &target[split..], name),
            None => node::create_hard_link(&absolute(target), name),
        };
        match link() {
            Ok(()) => {}
            Err(failure) if failure.exists() => {
                if !same_file(place.as_ref().map(|place| place.as_fd()), target, split, name) {
                    self.may_replace(name, &entry.path, false)?;
                    self.make_way(name, &entry.path)?;
                    link().map_err(|failure| missing_target(failure, shown(), &entry.path))?;
                }
            }
            Err(failure) => return Err(missing_target(failure, shown(), &entry.path)),
        }
        self.lower.as_mut().map_or(Ok(()), |lower| lower.linked(name, &entry.path))
    }

    fn xattrs(&mut self, entry: &Entry, target: Target<'_>) -> Result<()> {
        for (name, value) in &entry.xattrs {
            match node::set_xattr(target, name, value) {
                Err(failure) if failure.unsupported() => self.warn_unsupported(name.to_bytes()),
                other => other
                    .map_err(|failure| failure.of(&entry.path))
                    .context(|| format!("xattr {}", name.to_string_lossy()))?,
            }
        }
        Ok(())
    }

    /// As containerd does: what the filesystem cannot keep is left out, and said once a namespace.
    fn warn_unsupported(&mut self, name: &[u8]) {
        const NAMESPACES: usize = 16;
        let namespace = name.split(|&b| b == b'.').next().unwrap_or_default();
        if self.unsupported.len() < NAMESPACES && !self.unsupported.iter().any(|known| known == namespace) {
            let shown = String::from_utf8_lossy(namespace);
            log::warn!("the filesystem keeps no {shown}.* attributes: the archive's are left out");
            self.unsupported.push(namespace.to_vec());
        }
    }

    /// Makes something; what has its name makes way.
    fn make<T>(&mut self, name: &[u8], path: &[u8], make: impl Fn() -> node::Result<T>) -> Result<T> {
        match make() {
            Err(failure) if failure.exists() => {
                self.may_replace(name, path, false)?;
                self.make_way(name, path)?;
                make()
            }
            other => other,
        }
        .map_err(|failure| failure.of(path))
    }

    /// Removes what stands where an entry is to be.
    fn make_way(&mut self, name: &[u8], path: &[u8]) -> Result<()> {
        let fail = |failure: node::Failure| failure.of(path);
        let found = node::metadata(name, false).map_err(fail)?;
        if let Some(recorder) = &self.recorder
            && self.lower.as_ref().is_none_or(|lower| !lower.is_below(&found))
        {
            // What it holds may still be on its way there.
            self.writer.wait()?;
            recorder.borrow_mut().replaces(name, path, &node::metadata(name, false).map_err(fail)?)?;
        }
        match node::is_directory(&found) {
            true => node::remove_tree(name),
            false => node::remove(name),
        }
        .map_err(fail)
    }

    /// Among other files, a directory is no file's to replace, nor the other way round, unless somebody says so.
    fn may_replace(&self, name: &[u8], path: &[u8], by_directory: bool) -> Result<()> {
        if self.among.is_none_or(|among| among.overwrite) {
            return Ok(());
        }
        let found = node::metadata(name, false).map_err(|failure| failure.of(path))?;
        let message = match (node::is_directory(&found), by_directory) {
            (true, false) => "it is a directory, and what is copied is none",
            (false, true) => "it is no directory, and what is copied is one",
            _ => return Ok(()),
        };
        let error = Error::new(Kind::Invalid, format!("overwrite {}: {message}", String::from_utf8_lossy(path)));
        Err(error.with_hint("--overwrite replaces it"))
    }

    /// Goes to the directory `parent`, leaving those that are not on the way and making those that are missing.
    fn enter(&mut self, parent: &[u8]) -> Result<()> {
        self.go(parent, true).map(drop)
    }

    /// [`enter`](Applier::enter) that makes nothing unless told to: false when there is no such directory.
    fn go(&mut self, parent: &[u8], make: bool) -> Result<bool> {
        let common = self.common(parent);
        self.leave_to(common)?;
        while self.path.len() < parent.len() {
            let start = if self.path.is_empty() { 0 } else { self.path.len() + 1 };
            let end = parent[start..].iter().position(|&b| b == b'/').map_or(parent.len(), |slash| start + slash);
            self.stand(self.stack.len() - 1)?;
            if !make && !node::metadata(&parent[start..end], true).is_ok_and(|found| node::is_directory(&found)) {
                return Ok(false);
            }
            self.enter_unannounced(&parent[start..end], &parent[..end])?;
        }
        self.stand(self.stack.len() - 1).map(|()| true)
    }

    /// The index of the last frame that is on the way to `parent`.
    fn common(&self, parent: &[u8]) -> usize {
        let same = self.path.iter().zip(parent).take_while(|(a, b)| a == b).count();
        let on_the_way =
            |frame: &Frame| frame.end <= same && (frame.end == 0 || parent.get(frame.end).is_none_or(|&b| b == b'/'));
        self.stack.partition_point(on_the_way) - 1
    }

    /// Puts a directory that had no entry just now on the stack.
    fn enter_unannounced(&mut self, name: &[u8], path: &[u8]) -> Result<()> {
        let frame = match existing(name, path) {
            Ok(frame) => frame,
            Err(error) if error.kind() == Kind::NotFound => {
                node::create_directory(name, 0o755).map_err(|failure| match failure.exists() {
                    true => Error::new(
                        Kind::Invalid,
                        format!("enter {}: it is a link to nowhere", String::from_utf8_lossy(path)),
                    ),
                    false => failure.of(path),
                })?;
                self.unannounced += 1;
                let inherits = self.top().is_some_and(|top| top.setgid || top.default_acl);
                if inherits {
                    let plain = Entry {
                        path: path.to_vec(),
                        node: Node::Directory,
                        mode: 0o755,
                        uid: 0,
                        gid: 0,
                        modified: Time { seconds: 0, nanoseconds: 0 },
                        accessed: Time { seconds: 0, nanoseconds: 0 },
                        xattrs: Vec::new(),
                    };
                    self.directory_metadata(&plain, name, true)?;
                }
                Frame { end: 0, times: None, link: false, setgid: false, default_acl: false }
            }
            Err(error) => return Err(error),
        };
        self.push(name, frame);
        Ok(())
    }

    fn push(&mut self, name: &[u8], mut frame: Frame) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        frame.end = self.path.len();
        self.led |= frame.link;
        self.stack.push(frame);
    }

    fn top(&self) -> Option<&Frame> {
        self.stack.last()
    }

    /// Makes the working directory that of frame `index`, which is the top or was just below it.
    fn stand(&mut self, index: usize) -> Result<()> {
        if self.standing == Some(index) {
            return Ok(());
        }
        let path = &self.path[..self.stack[index].end];
        let fail = |failure: node::Failure| failure.of(path);
        let mut rest = match self.standing.take() {
            Some(at) if at < index => &path[self.stack[at].end..],
            _ if path.len() < LONGEST => {
                node::change_directory(&absolute(path)).map_err(fail)?;
                b""
            }
            _ => {
                node::change_directory(b"/").map_err(fail)?;
                path
            }
        };
        while !rest.is_empty() {
            let (chunk, after) = chunk(rest.strip_prefix(b"/").unwrap_or(rest));
            node::change_directory(chunk).map_err(fail)?;
            rest = after;
        }
        self.standing = Some(index);
        Ok(())
    }

    /// Leaves all directories above frame `index`, setting their times.
    fn leave_to(&mut self, index: usize) -> Result<()> {
        while self.stack.len() - 1 > index {
            let top = self.stack.len() - 1;
            if let Some((accessed, modified)) = self.stack[top].times {
                self.set_times(top, accessed, modified)?;
            }
            let Some(left) = self.stack.pop() else { break };
            self.path.truncate(self.stack[top - 1].end);
            if self.standing == Some(top) {
                self.standing = None;
                if left.end > FAR && !left.link {
                    node::change_directory(b"..").map_err(|failure| failure.of(&self.path))?;
                    self.standing = Some(top - 1);
                }
            }
        }
        Ok(())
    }

    fn set_times(&mut self, index: usize, accessed: Time, modified: Time) -> Result<()> {
        let frame = &self.stack[index];
        let name_at = if index == 0 { 0 } else { self.stack[index - 1].end };
        let path = &self.path[..frame.end];
        let result = if self.standing == Some(index) {
            node::set_times(Target::Name(b"."), accessed, modified)
        } else if self.standing.is_some_and(|at| at + 1 == index) && !frame.link {
            let name = path[name_at..].strip_prefix(b"/").unwrap_or(&path[name_at..]);
            node::set_times(Target::Name(name), accessed, modified)
        } else if path.len() < LONGEST && !frame.link {
            node::set_times(Target::Name(&absolute(path)), accessed, modified)
        } else {
            self.stand(index)?;
            node::set_times(Target::Name(b"."), accessed, modified)
        };
        result.map_err(|failure| failure.of(&self.path[..self.stack[index].end]))
    }

    fn leave_root(&mut self) -> Result<()> {
        match self.stack[0].times {
            Some((accessed, modified)) => self.set_times(0, accessed, modified),
            None => Ok(()),
        }
    }
}

/// The frame of a directory that is there already; its times are those to go back to.
fn existing(name: &[u8], path: &[u8]) -> Result<Frame> {
    let fail = |failure: node::Failure| failure.of(path);
    let mut found = node::metadata(name, false).map_err(fail)?;
    let link = node::is_symlink(&found);
    if link {
        found = node::metadata(name, true).map_err(fail)?;
    }
    if !node::is_directory(&found) {
        let shown = String::from_utf8_lossy(path);
        return Err(Error::new(Kind::Invalid, format!("enter {shown}: it is no directory")));
    }
    let attributed = if link { [name, b"/."].concat() } else { name.to_vec() };
    let default_acl = node::has_xattr(&attributed, c"system.posix_acl_default").map_err(fail)?;
    Ok(Frame { end: 0, times: Some(Time::of(&found)), link, setgid: found.st_mode & 0o2000 != 0, default_acl })
}

fn write_sparse<R: BufRead>(
    file: &OwnedFd,
    map: &SparseMap,
    data: &mut Entries<'_, R>,
    bytes: &mut u64,
    fail: impl Fn(node::Failure) -> Error,
) -> Result<()> {
    let mut pieces = map.pieces.iter().copied();
    let (mut offset, mut left) = (0u64, 0u64);
    data.each_piece(|mut piece| {
        while !piece.is_empty() {
            while left == 0 {
                // The map's sum is the length of the data: there is a next piece as long as there is data.
                (offset, left) = pieces.next().ok_or_else(|| Error::new(Kind::Invalid, "sparse map: too short"))?;
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            // Limits on the size keep offsets below 2^63.
            node::write_at(file.as_fd(), &piece[..length], offset.cast_signed()).map_err(&fail)?;
            piece = &piece[length..];
            offset += length as u64;
            left -= length as u64;
            *bytes += length as u64;
        }
        Ok(())
    })?;
    node::set_size(file.as_fd(), map.size.cast_signed()).map_err(fail)
}

fn absolute(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

/// As much of a path as the kernel takes at once, cut at a slash, and the rest.
fn chunk(path: &[u8]) -> (&[u8], &[u8]) {
    match path.len() > LONGEST {
        true => path.split_at(path[..LONGEST].iter().rposition(|&b| b == b'/').unwrap_or(LONGEST)),
        false => (path, b""),
    }
}

/// The directory of a path that is too long for one call.
fn place_of(path: &[u8]) -> node::Result<Option<OwnedFd>> {
    if path.len() < LONGEST {
        return Ok(None);
    }
    let mut rest = &path[..path.iter().rposition(|&b| b == b'/').unwrap_or(0)];
    let mut place = node::open_place(CWD, b"/")?;
    while !rest.is_empty() {
        rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let (chunk, after) = chunk(rest);
        place = node::open_place(place.as_fd(), chunk)?;
        rest = after;
    }
    Ok(Some(place))
}

fn same_file(place: Option<BorrowedFd<'_>>, target: &[u8], split: usize, name: &[u8]) -> bool {
    let there = match place {
        Some(place) => node::metadata_at(place, &target[split..]),
        None => node::metadata(&absolute(target), false),
    };
    match (there, node::metadata(name, false)) {
        (Ok(there), Ok(here)) => (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino),
        _ => false,
    }
}

fn missing_target(failure: node::Failure, what: String, path: &[u8]) -> Error {
    match failure.missing() || failure.not_a_directory() {
        true => Error::new(Kind::Invalid, format!("{what}: no such entry before it")),
        false => failure.of(path),
    }
}
