//! Extended header records (pax(1), "pax Extended Header"): `LENGTH KEY=VALUE\n`, one after another.
//!
//! Records say what a header's fields cannot hold, and they win over them. What is not known is ignored, as POSIX
//! wants; what is known and malformed is an error.

use std::collections::BTreeMap;
use std::ffi::CString;

use crate::error::{Error, Kind, Result};
use crate::kernel::node::Time;

use super::acl;
use super::sparse::too_many_pieces;

/// What the records of one header (or of the global header) say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) modified: Option<Time>,
    pub(super) accessed: Option<Time>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) xattrs: BTreeMap<CString, Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

/// The GNU.sparse records, of whichever version (tar manual, "PAX Format, Versions 0.0, 0.1 and 1.0").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) map: Option<Vec<u64>>,
    /// Version 0.0 repeats its two keys once for each piece.
    pub(super) offset: Option<u64>,
}

impl Records {
    /// Reads records on top of those there are. `pieces` bounds a sparse map.
    pub(super) fn read(&mut self, mut bytes: &[u8], pieces: usize) -> Result<()> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or_else(|| invalid("extended header: malformed record"))?;
            self.set(key, value, pieces)?;
            bytes = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], pieces: usize) -> Result<()> {
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = field(key, value, number)?,
            b"uid" => self.uid = field(key, value, id)?,
            b"gid" => self.gid = field(key, value, id)?,
            b"mtime" => self.modified = field(key, value, time)?,
            b"atime" => self.accessed = field(key, value, time)?,
            b"SCHILY.devmajor" => self.major = field(key, value, small)?,
            b"SCHILY.devminor" => self.minor = field(key, value, small)?,
            b"SCHILY.acl.access" => self.acl(c"system.posix_acl_access", value)?,
            b"SCHILY.acl.default" => self.acl(c"system.posix_acl_default", value)?,
            _ => match (key.strip_prefix(b"SCHILY.xattr."), key.strip_prefix(b"GNU.sparse.")) {
                (Some(name), _) => self.xattr(name, value)?,
                (_, Some(name)) => self.sparse.set(name, value, pieces)?,
                _ => {}
            },
        }
        Ok(())
    }

    fn acl(&mut self, name: &std::ffi::CStr, value: &[u8]) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        self.xattr(name.to_bytes(), &acl::from_text(value)?)
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let name = CString::new(name).map_err(|_| invalid("extended header: an xattr's name contains a NUL byte"))?;
        self.xattrs.insert(name, value.to_vec());
        Ok(())
    }
}

impl SparseRecords {
    fn set(&mut self, name: &[u8], value: &[u8], pieces: usize) -> Result<()> {
        match name {
            b"major" => self.major = field(name, value, number)?,
            b"minor" => self.minor = field(name, value, number)?,
            b"name" => self.name = text(value)?,
            b"size" | b"realsize" => self.size = field(name, value, number)?,
            b"offset" => self.offset = field(name, value, number)?,
            b"numbytes" => {
                let offset = self.offset.take().ok_or_else(|| invalid("sparse map: a length without an offset"))?;
                let length = number(value).ok_or_else(|| invalid("sparse map: malformed length"))?;
                let map = self.map.get_or_insert_default();
                map.extend([offset, length]);
                bounded(map, pieces)?;
            }
            b"map" => {
                let mut map = Vec::new();
                for part in value.split(|&b| b == b',').filter(|_| !value.is_empty()) {
                    map.push(number(part).ok_or_else(|| invalid("sparse map: malformed number"))?);
                    bounded(&map, pieces)?;
                }
                self.map = Some(map);
            }
            _ => {}
        }
        Ok(())
    }
}

fn bounded(map: &[u64], pieces: usize) -> Result<()> {
    match map.len() / 2 > pieces {
        true => Err(too_many_pieces(pieces)),
        false => Ok(()),
    }
}

/// One record: its key, its value and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(number(&bytes[..space])?).ok()?;
    let (whole, rest) = bytes.split_at_checked(length)?;
    let body = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&b| b == b'=')?;
    (equals > 0).then(|| (&body[..equals], &body[equals + 1..], rest))
}

/// A value that may be empty, which takes back what a global header said.
fn field<T>(key: &[u8], value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
    if value.is_empty() {
        return Ok(None);
    }
    let malformed =
        || invalid(format!("extended header: {}={:?}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)));
    parse(value).map(Some).ok_or_else(malformed)
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>> {
    match value {
        b"" => Ok(None),
        value if value.contains(&0) => Err(invalid("extended header: a name contains a NUL byte")),
        value => Ok(Some(value.to_vec())),
    }
}

/// A decimal number: digits and nothing else.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn small(text: &[u8]) -> Option<u32> {
    number(text).and_then(|n| u32::try_from(n).ok())
}

/// An owner; 2^32-1 is not one (chown(2) reads it as "leave it").
fn id(text: &[u8]) -> Option<u32> {
    small(text).filter(|&id| id != u32::MAX)
}

/// `[-]SECONDS[.FRACTION]`; digits below a nanosecond are dropped, towards the past.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(number(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds =
        (0..9).fold(0u32, |sum, i| sum * 10 + u32::from(fraction.get(i).map_or(0, |digit| digit - b'0')));
    if !negative {
        return Some(Time { seconds, nanoseconds });
    }
    if fraction.iter().skip(9).any(|&digit| digit != b'0') {
        nanoseconds += 1;
    }
    match nanoseconds {
        0 => Some(Time { seconds: -seconds, nanoseconds: 0 }),
        n => Some(Time { seconds: (-seconds).checked_sub(1)?, nanoseconds: 1_000_000_000 - n }),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(bytes: &[u8]) -> Result<Records> {
        let mut records = Records::default();
        records.read(bytes, 4).map(|()| records)
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let good = records(b"12 path=a\nb\n9 uid=70\n19 comment=anything").expect_err("the last is too short");
        assert_eq!(good.to_string(), "extended header: malformed record");
        let good = records(b"12 path=a\nb\n10 uid=70\n").expect("well formed");
        assert_eq!((good.path.as_deref(), good.uid), (Some(&b"a\nb"[..]), Some(70)));
        for bad in [
            &b"path=a\n"[..],
            b"0 \n",
            b"3 \n",
            b"5 =a\n",
            b"-9 path=a\n",
            b"99999999999999999999999 path=a\n",
            b"10 path=abc",
            b"9 path=a\n\0\0",
            b" 9 path=a\n",
            b"11 size=-1\n",
            b"18 uid=4294967295\n",
            b"18 uid=4294967296\n",
            b"14 mtime=1.2x\n",
            b"11 path=\0b\n",
        ] {
            assert_eq!(records(bad).expect_err("malformed").kind(), Kind::Invalid, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times_reach_before_1970_and_keep_nanoseconds() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.000000001", Some((1, 1))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("-0.0000000001", Some((-1, 999_999_999))),
            ("4102444800.", Some((4_102_444_800, 0))),
            ("9223372036854775808", None),
            (".5", None),
            ("+1", None),
            ("1e3", None),
        ] {
            let found = time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn sparse_maps_of_both_early_versions_read_alike() {
        let old = records(
            b"23 GNU.sparse.offset=1\n25 GNU.sparse.numbytes=2\n23 GNU.sparse.offset=5\n25 GNU.sparse.numbytes=0\n",
        );
        let new = records(b"26 GNU.sparse.map=1,2,5,0\n");
        assert_eq!(old.expect("0.0").sparse.map, Some(vec![1, 2, 5, 0]));
        assert_eq!(new.expect("0.1").sparse.map, Some(vec![1, 2, 5, 0]));
        let many = records(b"38 GNU.sparse.map=1,1,2,1,3,1,4,1,5,1\n").expect_err("five pieces of four");
        assert_eq!(many.kind(), Kind::Limit);
    }

    #[test]
    fn an_empty_xattr_is_one_and_an_empty_field_is_none() {
        let found = records(b"24 SCHILY.xattr.user.a=\n8 path=\n").expect("well formed");
        assert_eq!(found.xattrs, BTreeMap::from([(c"user.a".to_owned(), Vec::new())]));
        assert_eq!(found.path, None);
    }

    /// As many attributes as the limit of an entry's records allows, one after the other: 50,000.
    #[test]
    fn so_many_attributes_take_a_moment() {
        let records: String = (0..50_000).map(|n| format!("26 SCHILY.xattr.u.{n:05}=x\n")).collect();
        let start = std::time::Instant::now();
        let mut found = Records::default();
        found.read(records.as_bytes(), 4).expect("well formed");
        assert_eq!(found.xattrs.len(), 50_000);
        assert!(start.elapsed().as_secs() < 4, "{:?}", start.elapsed());
    }
}
