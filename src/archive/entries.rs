//! The framing of a tar archive: headers, what belongs to them, and data.
//!
//! A header is parsed by `tar::Header`; what lies between headers is walked here, because every length in it is
//! foreign: extended headers and long names are bounded, sparse maps are kept as maps, and where readers of tar
//! disagree about what an archive says, it is refused rather than guessed. Formats: V7, ustar and pax (POSIX.1-2001
//! pax(1)), GNU (tar manual, "Basic Tar Format") and star.
//!
//! A third of this file are tests.

use std::io::BufRead;

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::node::{Special, Time};

use super::header::{check_sum, major, minor, numeric, owner, size_of, unsigned};
use super::pax::{self, Records};
use super::sparse::{SparseMap, too_many_pieces};
use super::{Limits, exceeded};

const BLOCK: usize = 512;

/// One entry, its names clean: no leading `/`, no `.` or `..`, no empty part; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) node: Node,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Time,
    pub(crate) accessed: Time,
    pub(crate) xattrs: Vec<(std::ffi::CString, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A regular file; without a map its data is all of it.
    File(Option<SparseMap>),
    /// Another name of an earlier entry, clean as an entry's own.
    HardLink(Vec<u8>),
    /// A symbolic link and its target as it is.
    Symlink(Vec<u8>),
    Directory,
    Special(Special),
}

/// The entries of an uncompressed stream.
pub(crate) struct Entries<'a, R> {
    stream: R,
    limits: &'a Limits,
    /// Bytes read so far, for errors.
    position: u64,
    /// Data of the current entry, and the padding behind it, still to be read.
    data: u64,
    padding: u64,
    count: u64,
    global: Records,
    /// It may end without saying so.
    verified: bool,
    /// Bytes that the pieces of sparse files take on the disk.
    pieces: u64,
}

/// What comes before an entry's own header.
#[derive(Default)]
struct Before {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<'a, R: BufRead> Entries<'a, R> {
    pub(crate) fn new(stream: R, limits: &'a Limits) -> Entries<'a, R> {
        let global = Records::default();
        Entries { stream, limits, position: 0, data: 0, padding: 0, count: 0, global, verified: false, pieces: 0 }
    }

    /// [`new`](Entries::new) for a stream of which the caller knows otherwise that it is whole, by its digest: it may lack
    /// the blocks at its end and what fills up the last file. `umoci insert` leaves them out, Go's archive/tar reads on.
    pub(crate) fn of_verified(stream: R, limits: &'a Limits) -> Entries<'a, R> {
        Entries { verified: true, ..Entries::new(stream, limits) }
    }

    pub(crate) fn into_inner(self) -> R {
        self.stream
    }

    /// The stream, which is not to be read.
    pub(crate) fn stream(&mut self) -> &mut R {
        &mut self.stream
    }

    /// The next entry; after the last one the stream has been read to its end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.skip_data()?;
        let at = self.position;
        let entry = self.next_header().context(|| format!("header at byte {at}"))?;
        if entry.is_some() {
            self.count(1)?;
        }
        Ok(entry)
    }

    /// Counts entries, and what comes to be without one: directories on the way to a name of 64 KiB are 32,768.
    pub(crate) fn count(&mut self, more: u64) -> Result<()> {
        self.count = self.count.saturating_add(more);
        match self.count > self.limits.entries {
            true => {
                let what = format!("the archive has more than {} entries", self.limits.entries);
                Err(exceeded(what, "--max-entries"))
            }
            false => Ok(()),
        }
    }

    /// Hands out the data of the current entry, piece by piece, as it comes.
    pub(crate) fn each_piece(&mut self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while self.data > 0 {
            let available = self.stream.fill_buf()?;
            if available.is_empty() {
                return Err(truncated());
            }
            let length = usize::try_from(self.data).unwrap_or(usize::MAX).min(available.len());
            take(&available[..length])?;
            self.stream.consume(length);
            self.data -= length as u64;
            self.position += length as u64;
        }
        Ok(())
    }

    /// Where the data of the current entry begins, and how long it is.
    pub(crate) fn data(&self) -> (u64, u64) {
        (self.position, self.data)
    }

    /// Leaves the rest of the current entry's data unread: `seek` moves the stream on by as many bytes.
    pub(crate) fn seek_over(&mut self, seek: impl FnOnce(&mut R, i64) -> std::io::Result<()>) -> Result<()> {
        let length = std::mem::take(&mut self.data).saturating_add(std::mem::take(&mut self.padding));
        let far = |_| invalid("an entry is longer than any file");
        seek(&mut self.stream, i64::try_from(length).map_err(far)?)?;
        self.position = self.position.saturating_add(length);
        Ok(())
    }

    fn skip_data(&mut self) -> Result<()> {
        self.each_piece(|_| Ok(()))?;
        self.data = std::mem::take(&mut self.padding);
        if self.verified && self.data > 0 && self.stream.fill_buf()?.is_empty() {
            self.data = 0;
        }
        self.each_piece(|_| Ok(()))
    }

    fn next_header(&mut self) -> Result<Option<Entry>> {
        let mut before = Before::default();
        // Every turn reads a header, so the limit on entries' worth of headers is the stream's own length.
        loop {
            let Some(header) = self.header()? else {
                return match before {
                    Before { records: None, name: None, link: None } => Ok(None),
                    _ => Err(truncated()),
                };
            };
            let size = size_of(&header)?;
            match header.entry_type().as_byte() {
                b'x' | b'X' => {
                    let bytes = self.read_extra(size, self.limits.pax, "extended header", "--max-pax")?;
                    let mut records = self.global.clone();
                    records.read(&bytes, self.limits.sparse_pieces)?;
                    once(&mut before.records, records, "extended headers")?;
                }
                b'g' => {
                    let bytes = self.read_extra(size, self.limits.pax, "global extended header", "--max-pax")?;
                    self.global.read(&bytes, self.limits.sparse_pieces)?;
                    let Records { path, link, size, sparse, xattrs, .. } = &self.global;
                    // The values of a single file; for all of them they only make readers disagree.
                    if path.is_some() || link.is_some() || size.is_some() || *sparse != Default::default() {
                        return Err(invalid("global extended header: names or measures a single file"));
                    }
                    // A megabyte of them would be written for each header of 512 bytes.
                    if !xattrs.is_empty() {
                        return Err(unsupported("global extended header".into(), "holds attributes of all files"));
                    }
                }
                b'L' => once(&mut before.name, self.read_name(size)?, "long names")?,
                b'K' => once(&mut before.link, self.read_name(size)?, "long link names")?,
                // A volume's label is no file; GNU tar prints it and goes on.
                b'V' => self.start_data(size),
                _ => return self.entry(&header, size, before).map(Some),
            }
            self.skip_data()?;
        }
    }

    /// The next header, or nothing at the end of the archive: two blocks of zeros, or one at the very end of the stream.
    fn header(&mut self) -> Result<Option<tar::Header>> {
        let mut header = tar::Header::new_old();
        if !self.read_block(header.as_mut_bytes())? {
            return match self.position {
                _ if self.verified => Ok(None),
                0 => Err(invalid("the archive is empty")),
                _ => Err(truncated()),
            };
        }
        if is_zero(header.as_bytes()) {
            if self.read_block(header.as_mut_bytes())? && !is_zero(header.as_bytes()) {
                return Err(invalid("a single block of zeros amid the archive"));
            }
            self.skip_padding()?;
            return Ok(None);
        }
        check_sum(&header)?;
        let bytes = header.as_mut_bytes();
        // POSIX wants version "00" behind the magic; some writers leave it blank and use the prefix all the same.
        if bytes[257..263] == *b"ustar\0" {
            bytes[263..265].copy_from_slice(b"00");
        }
        Ok(Some(header))
    }

    fn entry(&mut self, header: &tar::Header, header_size: u64, before: Before) -> Result<Entry> {
        let records = before.records.unwrap_or_else(|| self.global.clone());
        // The record wins, or data of one reader are headers of another (CVE-2025-62518).
        let size = records.size.unwrap_or(header_size);
        let sparse_name = records.sparse.name.clone();
        let name = sparse_name.or(records.path).or(before.name).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || records.link.or(before.link).or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let path = self.clean(&name)?;
        let kind = match header.entry_type().as_byte() {
            // V7 had no type for directories but the slash, and writers kept that.
            0 | b'0' | b'7' if name.ends_with(b"/") => b'5',
            kind => kind,
        };
        let named = || String::from_utf8_lossy(&path).into_owned();
        let node = match kind {
            0 | b'0' | b'7' => {
                self.start_data(size);
                Node::File(self.pax_sparse(&records.sparse).context(named)?)
            }
            b'S' => Node::File(Some(self.gnu_sparse(header, size).context(named)?)),
            b'1' => Node::HardLink(self.clean(&link().unwrap_or_default())?),
            b'2' => Node::Symlink(link().unwrap_or_default()),
            b'3' => Node::Special(Special::Character(
                records.major.map_or_else(|| major(header), Ok)?,
                records.minor.map_or_else(|| minor(header), Ok)?,
            )),
            b'4' => Node::Special(Special::Block(
                records.major.map_or_else(|| major(header), Ok)?,
                records.minor.map_or_else(|| minor(header), Ok)?,
            )),
            b'5' => Node::Directory,
            b'6' => Node::Special(Special::Fifo),
            // GNU's incremental backups: a directory whose data lists its names.
            b'D' => {
                self.start_data(size);
                Node::Directory
            }
            b'M' => return Err(unsupported(named(), "continues a file of another volume")),
            kind => return Err(unsupported(named(), &format!("is of the unknown kind {:?}", char::from(kind)))),
        };
        if let Node::File(Some(map)) = &node {
            self.take_room(map).context(named)?;
        }
        // Some readers skip data there and some read it as headers.
        if size > 0 && !matches!(kind, 0 | b'0' | b'7' | b'S' | b'D') {
            return Err(invalid(format!("{}: has data, which its kind cannot have", named())));
        }
        if matches!(&node, Node::Symlink(target) if target.is_empty() || target.contains(&0)) {
            return Err(invalid(format!("{}: a symbolic link to nowhere", named())));
        }
        let old = header.as_old();
        let modified = match records.modified {
            Some(time) => time,
            None => Time { seconds: numeric(&old.mtime, header.mtime(), "mtime")?, nanoseconds: 0 },
        };
        Ok(Entry {
            node,
            mode: (numeric(&old.mode, header.mode().map(u64::from), "mode")? & 0o7777) as u32,
            uid: records.uid.map_or_else(|| owner(&old.uid, header.uid(), "uid"), Ok)?,
            gid: records.gid.map_or_else(|| owner(&old.gid, header.gid(), "gid"), Ok)?,
            modified,
            accessed: records.accessed.unwrap_or(modified),
            xattrs: records.xattrs.into_iter().collect(),
            path,
        })
    }

    /// The map that PAX records give, or the one at the start of the data (version 1.0).
    fn pax_sparse(&mut self, sparse: &pax::SparseRecords) -> Result<Option<SparseMap>> {
        let pieces = match (sparse.major, sparse.minor, &sparse.map) {
            (Some(1), Some(0), _) => self.sparse_map_in_data()?,
            (None | Some(0), _, Some(map)) => SparseMap::pairs(map)?,
            (None, _, None) => return self.whole(),
            _ => return Err(unsupported("sparse map".into(), "is of an unknown version")),
        };
        let size = sparse.size.ok_or_else(|| invalid("sparse map: no size of the file"))?;
        self.apparent(size)?;
        SparseMap::new(pieces, size, self.data, self.limits).map(Some)
    }

    fn whole(&self) -> Result<Option<SparseMap>> {
        self.apparent(self.data).map(|()| None)
    }

    /// tar manual, "PAX Format, Version 1.0": lines of decimal numbers, first of all their count, filled up to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut numbers = Vec::new();
        let mut expected = 1u64;
        let mut digits = Vec::new();
        while (numbers.len() as u64) < expected {
            let mut block = [0; BLOCK];
            if self.data < BLOCK as u64 {
                return Err(invalid("sparse map: longer than the data"));
            }
            if !self.read_block(&mut block)? {
                return Err(truncated());
            }
            self.data -= BLOCK as u64;
            for byte in block {
                if (numbers.len() as u64) == expected {
                    break;
                }
                match byte {
                    b'\n' => numbers.push(pax::number(&digits).ok_or_else(|| invalid("sparse map: malformed number"))?),
                    digit if digits.len() < 20 => {
                        digits.push(digit);
                        continue;
                    }
                    _ => return Err(invalid("sparse map: malformed number")),
                }
                digits.clear();
                if numbers.len() == 1 {
                    if numbers[0] > self.limits.sparse_pieces as u64 {
                        return Err(too_many_pieces(self.limits.sparse_pieces));
                    }
                    expected += 2 * numbers[0];
                }
            }
        }
        SparseMap::pairs(&numbers[1..])
    }

    /// The map in a GNU header and the blocks that continue it, which are no part of the data.
    fn gnu_sparse(&mut self, header: &tar::Header, stored: u64) -> Result<SparseMap> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file without a GNU header"))?;
        let mut pieces = Vec::new();
        let mut add = |slots: &[tar::GnuSparseHeader]| {
            for slot in slots.iter().filter(|slot| !slot.is_empty()) {
                let offset = numeric(&slot.offset, slot.offset(), "offset")?;
                let length = numeric(&slot.numbytes, slot.length(), "length")?;
                pieces.push((unsigned(offset)?, unsigned(length)?));
            }
            match pieces.len() > self.limits.sparse_pieces {
                true => Err(too_many_pieces(self.limits.sparse_pieces)),
                false => Ok(()),
            }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            if !read_block(&mut self.stream, &mut self.position, block.as_mut_bytes())? {
                return Err(truncated());
            }
            add(block.sparse())?;
            more = block.is_extended();
        }
        let size = unsigned(numeric(&gnu.realsize, gnu.real_size(), "real size")?)?;
        self.start_data(stored);
        self.apparent(size)?;
        SparseMap::new(pieces, size, stored, self.limits)
    }

    /// A piece of one byte takes a block, so the bytes of the archive do not bound what sparse files take.
    fn take_room(&mut self, map: &SparseMap) -> Result<()> {
        const SMALLEST: u64 = 4096;
        let blocks = |&(offset, length): &(u64, u64)| match length {
            0 => 0,
            _ => (offset.saturating_add(length)).div_ceil(SMALLEST) - offset / SMALLEST,
        };
        let taken = map.pieces.iter().map(blocks).fold(0, u64::saturating_add).saturating_mul(SMALLEST);
        self.pieces = self.pieces.saturating_add(taken);
        match self.limits.bytes.is_some_and(|limit| self.pieces > limit) {
            true => Err(self.limits.too_large("the sparse files of the archive take")),
            false => Ok(()),
        }
    }

    fn apparent(&self, size: u64) -> Result<()> {
        match size > self.limits.file_size {
            true => {
                Err(exceeded(format!("the file is larger than {} bytes", self.limits.file_size), "--max-file-size"))
            }
            false => Ok(()),
        }
    }

    /// A clean name within the limits.
    fn clean(&self, name: &[u8]) -> Result<Vec<u8>> {
        if name.len() > self.limits.name {
            return Err(self.long_name());
        }
        if name.contains(&0) {
            return Err(invalid("a name contains a NUL byte"));
        }
        let clean = clean(name);
        let depth = clean.split(|&b| b == b'/').count();
        if depth > self.limits.depth {
            let what = format!("a name is more than {} directories deep", self.limits.depth);
            return Err(exceeded(what, "--max-depth"));
        }
        Ok(clean)
    }

    fn long_name(&self) -> Error {
        exceeded(format!("a name is longer than {} bytes", self.limits.name), "--max-name")
    }

    /// The data of a GNU long name: a C string.
    fn read_name(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut name = self.read_extra(size, self.limits.name, "long name", "--max-name")?;
        name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
        Ok(name)
    }

    /// All data of a header that is about the next one.
    fn read_extra(&mut self, size: u64, limit: usize, what: &str, flag: &str) -> Result<Vec<u8>> {
        if size > limit as u64 {
            return Err(exceeded(format!("{what}: larger than {limit} bytes"), flag));
        }
        self.start_data(size);
        let mut bytes = Vec::new();
        self.each_piece(|piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// How much of the entry's data is still to be read.
    pub(crate) fn left(&self) -> u64 {
        self.data
    }

    fn start_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Reads what lies behind the end of the archive: it is not looked at, and belongs to the digest.
    fn skip_padding(&mut self) -> Result<()> {
        let end = self.position;
        loop {
            let length = self.stream.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.stream.consume(length);
            self.position += length as u64;
            if self.position - end > self.limits.padding {
                let limit = self.limits.padding;
                // A device that never ends, most of all.
                return Err(match self.count {
                    0 => Error::new(
                        Kind::Invalid,
                        format!("no archive: no entry before its end, and more than {limit} bytes behind it"),
                    ),
                    _ => exceeded(format!("more than {limit} bytes behind the end of the archive"), "--max-padding"),
                });
            }
        }
    }

    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        read_block(&mut self.stream, &mut self.position, block)
    }
}

/// A name without what would lead out of the root: `..` takes back a part and ends at the top.
pub(crate) fn clean(name: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(name.len());
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => clean.truncate(clean.iter().rposition(|&b| b == b'/').unwrap_or(0)),
            part => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    clean
}

/// Reads a block; false when the stream has ended before it.
fn read_block(stream: &mut impl BufRead, position: &mut u64, block: &mut [u8; BLOCK]) -> Result<bool> {
    let mut length = 0;
    while length < BLOCK {
        let available = stream.fill_buf()?;
        if available.is_empty() {
            return if length == 0 { Ok(false) } else { Err(truncated()) };
        }
        let part = available.len().min(BLOCK - length);
        block[length..length + part].copy_from_slice(&available[..part]);
        stream.consume(part);
        *position += part as u64;
        length += part;
    }
    Ok(true)
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|&b| b == 0)
}

fn once<T>(slot: &mut Option<T>, value: T, what: &str) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("two {what} for one entry"))),
    }
}

fn truncated() -> Error {
    Error::new(Kind::Invalid, "the archive is truncated")
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message)
}

fn unsupported(object: String, why: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{object}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, name: &[u8], change: impl Fn(&mut tar::Header)) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(0);
        header.set_mode(0o100644);
        change(&mut header);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn first(blocks: &[u8]) -> Result<Entry> {
        let limits = Limits::default();
        let bytes = [blocks, &[0; 1024]].concat();
        Entries::new(&bytes[..], &limits).next().map(|entry| entry.expect("one entry"))
    }

    fn changed(change: impl Fn(&mut tar::Header)) -> Result<Entry> {
        first(&header(b'0', b"f", change))
    }

    #[test]
    fn names_are_clean() {
        let limits = Limits::default();
        let entries = Entries::new(&b""[..], &limits);
        for (name, clean) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/a", "a"),
            ("../../a", "a"),
            ("a/../b", "b"),
            ("a/b/../../../c", "c"),
            ("a/..", ""),
            (".", ""),
            ("", ""),
            ("...", "..."),
            ("a/.b/..c", "a/.b/..c"),
        ] {
            assert_eq!(entries.clean(name.as_bytes()).expect("clean"), clean.as_bytes(), "{name}");
        }
    }

    #[test]
    fn numbers_are_octal_blank_or_base_256() {
        let mtime = |field: [u8; 12]| changed(|header| header.as_old_mut().mtime = field).map(|e| e.modified.seconds);
        for (field, expected) in [
            (*b"00000000017\0", Some(15)),
            (*b"         17 ", Some(15)),
            (*b"777777777777", Some(0o777777777777)),
            ([0; 12], Some(0)),
            ([b' '; 12], Some(0)),
            ([0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            ([0xff; 12], Some(-1)),
            ([0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], None),
            ([0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], None),
            (*b"-0000000001\0", None),
            (*b"+0000000001\0", None),
            (*b"00000000008\0", None),
        ] {
            assert_eq!(mtime(field).ok(), expected, "{field:?}");
        }
        let uid = |field: [u8; 8]| changed(|header| header.as_old_mut().uid = field).map(|e| e.uid);
        assert_eq!(uid([0x80, 0, 0, 0, 0, 1, 0x86, 0xa0]).expect("100000"), 100_000);
        for bad in [[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x80, 0, 0, 1, 0, 0, 0, 0], [0xff; 8]] {
            assert!(uid(bad).is_err(), "{bad:?}");
        }
        assert!(changed(|header| header.as_old_mut().size = [0xff; 12]).is_err());
    }

    #[test]
    fn headers_of_every_format_are_read() {
        let dev = |header: &mut tar::Header| {
            header.set_device_major(8).and(header.set_device_minor(1)).expect("ustar has devices");
        };
        let special = |special| Node::Special(special);
        for (kind, name, node) in [
            (b'0', "f", Node::File(None)),
            (0, "f", Node::File(None)),
            (b'7', "f", Node::File(None)),
            (0, "d/", Node::Directory),
            (b'0', "d/", Node::Directory),
            (b'5', "d", Node::Directory),
            (b'D', "d", Node::Directory),
            (b'3', "c", special(Special::Character(8, 1))),
            (b'4', "b", special(Special::Block(8, 1))),
            (b'6', "p", special(Special::Fifo)),
        ] {
            let entry = first(&header(kind, name.as_bytes(), dev)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!((entry.node, entry.mode), (node, 0o644), "{name}");
        }
        // A prefix counts whatever the version behind POSIX's magic, and in star's longer field; GNU has none.
        let prefixed = |magic: &[u8; 8]| {
            changed(|header| {
                header.as_mut_bytes()[257..265].copy_from_slice(magic);
                header.as_mut_bytes()[345..350].copy_from_slice(b"usr/x");
            })
            .map(|entry| entry.path)
        };
        assert_eq!(prefixed(b"ustar\x0000").expect("ustar"), b"usr/x/f");
        assert_eq!(prefixed(b"ustar\0\0\0").expect("no version"), b"usr/x/f");
        assert_eq!(prefixed(b"ustar  \0").expect("GNU"), b"f");
        assert_eq!(prefixed(&[0; 8]).expect("V7"), b"f");
    }

    #[test]
    fn the_sum_is_of_unsigned_or_signed_bytes() {
        let mut block = header(b'0', b"\xff\xfe", |_| {});
        assert!(first(&block).is_ok());
        let signed: i32 =
            block[..148].iter().chain(&block[156..]).map(|&b| i32::from(b.cast_signed())).sum::<i32>() + 256;
        block[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        assert!(first(&block).is_ok());
        block[0] = b'x';
        let error = first(&block).expect_err("changed");
        assert_eq!(error.to_string(), "header at byte 0: not a tar header (its checksum is wrong)");
    }

    #[test]
    fn a_gnu_sparse_map_goes_on_in_further_blocks() {
        let mut gnu = tar::Header::new_gnu();
        gnu.set_entry_type(tar::EntryType::GNUSparse);
        gnu.set_size(3);
        gnu.set_mode(0o600);
        gnu.set_uid(0);
        gnu.set_gid(0);
        gnu.set_mtime(0);
        gnu.as_old_mut().name[0] = b's';
        let fields = gnu.as_gnu_mut().expect("GNU");
        fields.set_real_size(4096);
        fields.set_is_extended(true);
        fields.sparse[0].set_offset(0);
        fields.sparse[0].set_length(1);
        gnu.set_cksum();
        let mut more = tar::GnuExtSparseHeader::new();
        more.sparse_mut()[0].set_offset(1024);
        more.sparse_mut()[0].set_length(2);
        let mut data = [0; BLOCK];
        data[..3].copy_from_slice(b"abc");
        let bytes = [&gnu.as_bytes()[..], more.as_bytes(), &data, &[0; 1024]].concat();
        let limits = Limits::default();
        let mut entries = Entries::new(&bytes[..], &limits);
        let map = SparseMap { pieces: vec![(0, 1), (1024, 2)], size: 4096 };
        assert_eq!(entries.next().expect("sound").expect("one").node, Node::File(Some(map)));
        let mut found = Vec::new();
        let mut take = |piece: &[u8]| {
            found.extend_from_slice(piece);
            Ok(())
        };
        entries.each_piece(&mut take).expect("sound");
        assert_eq!(found, b"abc");
        assert_eq!(entries.next().expect("sound"), None);
    }

    #[test]
    fn a_volume_label_is_no_entry_and_a_dangling_extended_header_is_a_cut() {
        let label = header(b'V', b"label", |_| {});
        let file = header(b'0', b"f", |_| {});
        assert_eq!(first(&[&label[..], &file].concat()).expect("sound").path, b"f");
        let limits = Limits::default();
        let bytes = [&header(b'x', b"x", |_| {})[..], &[0; 1024]].concat();
        assert!(Entries::new(&bytes[..], &limits).next().is_err());
    }

    #[test]
    fn behind_its_end_an_archive_does_not_go_on_for_ever() {
        let limits = Limits { padding: 2048, ..Limits::default() };
        let all = |begin: &[u8], behind: usize| {
            let bytes = [begin, &[0; 1024], &vec![7; behind]].concat();
            let mut entries = Entries::new(&bytes[..], &limits);
            while entries.next().map_err(|e| e.kind())?.is_some() {}
            Ok(())
        };
        let file = header(b'0', b"f", |_| {});
        assert_eq!((all(&file, 2048), all(&file, 2049)), (Ok(()), Err(Kind::Limit)));
        assert_eq!((all(&[], 2048), all(&[], 2049)), (Ok(()), Err(Kind::Invalid)));
    }
}
