//! The canonical archive of a directory: the same tree gives the same bytes.
//!
//! Entries in the order of a sorted walk, the root as `./` first, directories with a slash at their end, numeric
//! owners, no names of owners. An entry has a ustar header, and an extended one (pax(1)) only for what does not fit:
//! names above 100 bytes, large numbers, times other than whole seconds from 1970 on, extended attributes (ACLs among
//! them, as they are kept on the disk) and maps of sparse files (GNU's version 1.0). Later names of a file are hard
//! links to its first. Two blocks of zeros end it. The digest of these bytes is the diff id of a directory, so their
//! form may not change.
//!
//! What another filesystem or subvolume holds below a mount point is left out, as are sockets and what the caller wants
//! left out; each with a warning.
//! Names longer than PATH_MAX are an error.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::lower::PREFIX as WHITEOUT;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::node;

const BLOCK: usize = 512;
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 4;
/// Two blocks of zeros.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// The largest number of an 8 and of a 12 byte field: octal digits and a NUL.
const SMALL: u64 = 0o7777777;
const LARGE: u64 = 0o77777777777;

/// The stream of an archive that is being packed, by a thread that ends when this is dropped.
pub struct Packed {
    /// Gone first when this is dropped, which ends the thread.
    filled: Option<Receiver<Result<Vec<u8>>>>,
    buffer: Vec<u8>,
    position: usize,
    thread: Option<JoinHandle<()>>,
}

/// Packs a directory into its canonical archive. What fails underway is an error of the stream.
///
/// The directories `without`, by whatever path they are met, become empty ones.
///
/// # Errors
/// That of stat(2) when a directory cannot be seen, or of starting a thread.
pub fn pack(directory: &Path, without: &[&Path]) -> Result<Packed> {
    let root = std::fs::metadata(directory).context(|| format!("pack {}", directory.display()))?;
    if !root.is_dir() {
        return Err(Error::new(Kind::Invalid, format!("pack {}: it is no directory", directory.display())));
    }
    let mut left_out = Vec::new();
    for path in without {
        let found = std::fs::metadata(path).context(|| format!("leave out {}", path.display()))?;
        left_out.push((found.dev(), found.ino()));
    }
    let path = directory.to_path_buf();
    start(move |out| {
        let mut packer = Packer::new(out, root.dev());
        packer.left_out = left_out;
        packer.pack(&path, true).context(|| format!("pack {}", path.display()))
    })
}

/// A part of a tree that somebody may change meanwhile, to be packed as if it lay somewhere else.
#[derive(Debug)]
pub struct Piece {
    /// Nothing outside of it is read, whatever links its files become: it is the root of the thread that reads.
    pub directory: OwnedFd,
    /// What in it, if not the directory itself.
    pub name: Option<OsString>,
    /// What that is called in the archive; where it is empty, only what is in a directory is packed.
    pub called: Vec<u8>,
}

/// Packs a piece of a tree.
///
/// # Errors
/// That of starting a thread; what fails underway is an error of the stream.
pub fn pack_piece(piece: Piece) -> Result<Packed> {
    start(move |out| {
        node::confine(piece.directory.as_fd()).map_err(|failure| failure.of(b""))?;
        let root = Path::new("/");
        let mut packer = Packer::new(out, std::fs::metadata(root)?.dev());
        match piece.name {
            None => {
                let top = !piece.called.is_empty();
                packer.prefix = piece.called;
                packer.pack(root, top)
            }
            Some(name) => {
                let path = root.join(name);
                let found = std::fs::symlink_metadata(&path).context(|| format!("read {}", path.display()))?;
                packer.entry(&piece.called, &path, &found).context(|| format!("read {}", path.display()))?;
                packer.end()
            }
        }
    })
}

/// Runs what packs on a thread of its own; what is written comes out of the stream.
pub(super) fn start(pack: impl FnOnce(&mut Out) -> Result<()> + Send + 'static) -> Result<Packed> {
    let (sender, filled) = sync_channel(BUFFERS);
    let run = move || {
        let mut out = Out { sender, buffer: Vec::new() };
        if let Err(error) = pack(&mut out).and_then(|()| out.flush()) {
            // Nobody wants it when the stream was dropped, which is then the error itself.
            let _ = out.sender.send(Err(error));
        }
    };
    let thread = thread::Builder::new().name("layer-pack".into()).spawn(run).context(|| "start a thread")?;
    Ok(Packed { filled: Some(filled), buffer: Vec::new(), position: 0, thread: Some(thread) })
}

impl Read for Packed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position == self.buffer.len() {
            match self.filled.as_ref().and_then(|filled| filled.recv().ok()) {
                Some(next) => self.buffer = next?,
                None => return Ok(0),
            }
            self.position = 0;
        }
        let length = into.len().min(self.buffer.len() - self.position);
        into[..length].copy_from_slice(&self.buffer[self.position..][..length]);
        self.position += length;
        Ok(length)
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        self.filled = None;
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// The writing end: full buffers go out.
pub(super) struct Out {
    sender: SyncSender<Result<Vec<u8>>>,
    buffer: Vec<u8>,
}

impl Out {
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let length = bytes.len().min(BUFFER - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// A piece of a file.
    pub(super) fn data(&mut self, mut file: &File, offset: u64, length: u64) -> Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        let mut left = length;
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(BUFFER).min(BUFFER)];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            match file.read(&mut buffer[..part]) {
                Ok(0) => return Err(Error::new(Kind::Io, "it became shorter while it was read")),
                Ok(n) => {
                    self.write(&buffer[..n])?;
                    left -= n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn pad(&mut self, length: u64) -> Result<()> {
        let padding = length.wrapping_neg() % BLOCK as u64;
        self.write(&[0; BLOCK][..padding as usize])
    }

    fn flush(&mut self) -> Result<()> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER));
        if full.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(full)).map_err(|_| Error::new(Kind::Io, "nobody reads the archive any more"))
    }
}

pub(super) struct Packer<'a> {
    out: &'a mut Out,
    /// What stands before every name.
    prefix: Vec<u8>,
    /// The root's filesystem.
    device: u64,
    /// The device and inode of directories that are packed as if they were empty.
    left_out: Vec<(u64, u64)>,
    /// First names of files that have several.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// It is a layer, in which some names are no files'.
    pub(super) layer: bool,
    /// Nothing is later: seconds since 1970.
    pub(super) latest: Option<i64>,
}

impl Packer<'_> {
    pub(super) fn new(out: &mut Out, device: u64) -> Packer<'_> {
        let (prefix, left_out, names) = (Vec::new(), Vec::new(), HashMap::new());
        Packer { out, prefix, device, left_out, names, layer: false, latest: None }
    }

    /// All that is in `root`, and that itself if it is the `top` of what is packed.
    pub(super) fn pack(&mut self, root: &Path, top: bool) -> Result<()> {
        let mut walk = walkdir::WalkDir::new(root).same_file_system(true).sort_by_file_name().into_iter();
        while let Some(entry) = walk.next() {
            let entry = entry.map_err(|e| match e.io_error().and_then(io::Error::raw_os_error) {
                Some(errno) => Error::from_errno(format_args!("read {}", shown(e.path())), errno),
                None => Error::new(Kind::Io, e.to_string()),
            })?;
            let name = entry.path().strip_prefix(root).unwrap_or(entry.path()).as_os_str().as_bytes();
            let path = if name.is_empty() { root.join(".") } else { entry.path().to_path_buf() };
            let found = std::fs::symlink_metadata(&path).context(|| format!("read {}", path.display()))?;
            let slash: &[u8] = if name.is_empty() || self.prefix.is_empty() { b"" } else { b"/" };
            if top || !name.is_empty() {
                let called = [&self.prefix, slash, name].concat();
                self.entry(&called, &path, &found).context(|| format!("read {}", path.display()))?;
            }
            // The walk does not enter what is mounted; skipping that would skip the directory that it lies in.
            if found.dev() == self.device && self.left_out.contains(&(found.dev(), found.ino())) {
                log::warn!("{} is no part of a layer: what it holds is left out", path.display());
                walk.skip_current_dir();
            }
        }
        self.end()
    }

    /// What ends an archive.
    pub(super) fn end(&mut self) -> Result<()> {
        self.out.write(&END)
    }

    /// The sign that what has this name below is not there any more (image-spec layer.md, "Whiteouts").
    pub(super) fn whiteout(&mut self, name: &[u8]) -> Result<()> {
        let at = name.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(0);
        blank(&mut header);
        self.write_header(header, &Records::default(), &[&name[..at], WHITEOUT, &name[at..]].concat())
    }

    /// What is at `path`, as `name`.
    pub(super) fn entry(&mut self, name: &[u8], path: &Path, found: &Metadata) -> Result<()> {
        if self.layer {
            require_name(name)?;
        }
        let kind = found.file_type();
        if kind.is_socket() {
            log::warn!("{} is a socket: left out", path.display());
            return Ok(());
        }
        if found.dev() != self.device {
            log::warn!("{} is a mount point: what it holds is left out", path.display());
        }
        let mut header = tar::Header::new_ustar();
        let mut records = Records::default();
        let mut name = name.to_vec();
        if !kind.is_dir() && found.nlink() > 1 {
            if let Some(first) = self.names.get(&(found.dev(), found.ino())) {
                header.set_entry_type(tar::EntryType::Link);
                let first = first.clone();
                link(&mut header, &mut records, &first);
                metadata(&mut header, &mut records, found, self.latest);
                return self.write_header(header, &records, &name);
            }
            self.names.insert((found.dev(), found.ino()), name.clone());
        }
        metadata(&mut header, &mut records, found, self.latest);
        for (xattr, value) in node::xattrs(path.as_os_str().as_bytes()).map_err(|failure| failure.of(&name))? {
            if xattr.to_bytes().contains(&b'=') {
                log::warn!("{}: xattr {} cannot be archived: left out", path.display(), xattr.to_string_lossy());
                continue;
            }
            records.add(&[b"SCHILY.xattr.", xattr.to_bytes()].concat(), &value);
        }
        if kind.is_file() {
            return self.file(header, records, &name, path, found);
        }
        let entry_type = if kind.is_dir() {
            if name.is_empty() {
                name.push(b'.');
            }
            name.push(b'/');
            tar::EntryType::Directory
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path)?;
            link(&mut header, &mut records, target.as_os_str().as_bytes());
            tar::EntryType::Symlink
        } else if kind.is_fifo() {
            tar::EntryType::Fifo
        } else {
            device(&mut header, &mut records, found.rdev());
            if kind.is_char_device() { tar::EntryType::Char } else { tar::EntryType::Block }
        };
        header.set_entry_type(entry_type);
        self.write_header(header, &records, &name)
    }

    fn file(
        &mut self,
        mut header: tar::Header,
        mut records: Records,
        name: &[u8],
        path: &Path,
        found: &Metadata,
    ) -> Result<()> {
        header.set_entry_type(tar::EntryType::Regular);
        let size = found.size();
        let file = node::open_to_read(path)?;
        let pieces = match found.blocks() * 512 < size {
            true => node::data_pieces(file.as_fd(), size).map_err(|failure| failure.of(name))?,
            false => vec![(0, size)],
        };
        if pieces == [(0, size)] || size == 0 {
            set_size(&mut header, &mut records, size);
            self.write_header(header, &records, name)?;
            self.out.data(&file, 0, size)?;
            return self.out.pad(size);
        }
        let mut map = format!("{}\n", pieces.len() + 1);
        for (offset, length) in &pieces {
            map += &format!("{offset}\n{length}\n");
        }
        // GNU tar: an empty piece at the end says where the last hole ends.
        map += &format!("{size}\n0\n");
        let stored: u64 = pieces.iter().map(|(_, length)| length).sum();
        let on_tape = (map.len() as u64).next_multiple_of(BLOCK as u64) + stored;
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add(b"GNU.sparse.name", name);
        records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        set_size(&mut header, &mut records, on_tape);
        self.write_header(header, &records, name)?;
        self.out.write(map.as_bytes())?;
        self.out.pad(map.len() as u64)?;
        for (offset, length) in pieces {
            self.out.data(&file, offset, length)?;
        }
        self.out.pad(stored)
    }

    fn write_header(&mut self, mut header: tar::Header, records: &Records, name: &[u8]) -> Result<()> {
        let mut records = records.clone();
        if name.len() > 100 {
            records.add(b"path", name);
        }
        if !records.0.is_empty() {
            let mut extended = tar::Header::new_ustar();
            extended.set_entry_type(tar::EntryType::XHeader);
            extended.set_mode(0o644);
            extended.set_size(records.0.len() as u64);
            put(&mut extended.as_old_mut().name, b"PaxHeader");
            blank(&mut extended);
            self.out.write(extended.as_bytes())?;
            self.out.write(&records.0)?;
            self.out.pad(records.0.len() as u64)?;
        }
        put(&mut header.as_old_mut().name, name);
        header.set_cksum();
        self.out.write(header.as_bytes())
    }
}

/// Extended header records as bytes.
#[derive(Default, Clone)]
struct Records(Vec<u8>);

impl Records {
    /// Adds a record; its length counts its own digits.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

fn metadata(header: &mut tar::Header, records: &mut Records, found: &Metadata, latest: Option<i64>) {
    header.set_mode(found.mode() & 0o7777);
    let (uid, gid) = (u64::from(found.uid()), u64::from(found.gid()));
    header.set_uid(fitting(records, b"uid", uid, SMALL));
    header.set_gid(fitting(records, b"gid", gid, SMALL));
    header.set_size(0);
    let modified = (found.mtime(), found.mtime_nsec());
    let (seconds, nanoseconds) = latest.map_or(modified, |latest| modified.min((latest, 0)));
    let whole = u64::try_from(seconds).ok().filter(|&seconds| seconds <= LARGE && nanoseconds == 0);
    header.set_mtime(whole.unwrap_or(0));
    if whole.is_none() {
        records.add(b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    header.set_device_major(0).and(header.set_device_minor(0)).unwrap_or_default();
}

/// Refuses a name that in a layer says that something else is not there.
pub(super) fn require_name(name: &[u8]) -> Result<()> {
    let last = name.rsplit(|&b| b == b'/').next().unwrap_or_default();
    if !last.starts_with(WHITEOUT) {
        return Ok(());
    }
    let name = String::from_utf8_lossy(name);
    let message = format!("/{name}: in a layer, a name that begins with .wh. says that something was deleted");
    Err(Error::new(Kind::Invalid, message).with_hint("give it another name"))
}

fn blank(header: &mut tar::Header) {
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_device_major(0).and(header.set_device_minor(0)).unwrap_or_default();
    header.set_cksum();
}

/// Seconds as pax writes them: the sign is that of the whole number.
fn time(seconds: i64, nanoseconds: i64) -> String {
    let whole = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if whole < 0 { "-" } else { "" };
    let (seconds, fraction) = (whole.abs() / 1_000_000_000, whole.abs() % 1_000_000_000);
    match fraction {
        0 => format!("{sign}{seconds}"),
        _ => format!("{sign}{seconds}.{}", format!("{fraction:09}").trim_end_matches('0')),
    }
}

fn set_size(header: &mut tar::Header, records: &mut Records, size: u64) {
    header.set_size(fitting(records, b"size", size, LARGE));
}

fn device(header: &mut tar::Header, records: &mut Records, number: u64) {
    let (major, minor) = node::device_numbers(number);
    // Both fit the field now, and a ustar header has it.
    let major = fitting(records, b"SCHILY.devmajor", u64::from(major), SMALL) as u32;
    let minor = fitting(records, b"SCHILY.devminor", u64::from(minor), SMALL) as u32;
    header.set_device_major(major).and(header.set_device_minor(minor)).unwrap_or_default();
}

/// The number for the header's field: itself, or 0 and a record.
fn fitting(records: &mut Records, key: &[u8], number: u64, largest: u64) -> u64 {
    if number <= largest {
        return number;
    }
    records.add(key, number.to_string().as_bytes());
    0
}

fn link(header: &mut tar::Header, records: &mut Records, target: &[u8]) {
    if target.len() > 100 {
        records.add(b"linkpath", target);
    }
    put(&mut header.as_old_mut().linkname, target);
}

/// As much of a name as the field holds.
fn put(field: &mut [u8; 100], name: &[u8]) {
    let length = name.len().min(field.len());
    field[..length].copy_from_slice(&name[..length]);
}

fn shown(path: Option<&Path>) -> String {
    path.map(PathBuf::from).unwrap_or_default().display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_digits() {
        for (value, expected) in [(&b"1"[..], "6 a=1\n"), (b"1234", "9 a=1234\n"), (b"12345", "11 a=12345\n")] {
            let mut records = Records::default();
            records.add(b"a", value);
            assert_eq!(String::from_utf8_lossy(&records.0), expected);
        }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        for (seconds, nanoseconds, expected) in
            [(1, 0, "1"), (1, 500_000_000, "1.5"), (-2, 500_000_000, "-1.5"), (-1, 999_999_999, "-0.000000001")]
        {
            assert_eq!(time(seconds, nanoseconds), expected);
        }
    }
}
