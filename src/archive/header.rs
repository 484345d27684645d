//! The fields of a header block, read with `tar::Header` and checked for what that lets pass.

use crate::error::{Error, Kind, Result};

const BLOCK: usize = 512;

/// pax(1), "ustar Interchange Format", chksum: the sum of the bytes, its own field as spaces. Old writers summed
/// signed bytes.
pub(super) fn check_sum(header: &tar::Header) -> Result<()> {
    let wrong = || invalid("not a tar header (its checksum is wrong)");
    let stated = numeric(&header.as_old().cksum, header.cksum().map(u64::from), "checksum").map_err(|_| wrong())?;
    let bytes = header.as_bytes();
    let others = || bytes[..148].iter().chain(&bytes[156..]);
    let unsigned: i64 = others().map(|&b| i64::from(b)).sum::<i64>() + 8 * i64::from(b' ');
    let signed: i64 = others().map(|&b| i64::from(b.cast_signed())).sum::<i64>() + 8 * i64::from(b' ');
    match stated == unsigned || stated == signed {
        true => Ok(()),
        false => Err(wrong()),
    }
}

/// A number of a header: octal digits, blank for 0, or GNU's base 256.
pub(super) fn numeric(field: &[u8], parsed: std::io::Result<u64>, what: &str) -> Result<i64> {
    let malformed = || invalid(format!("malformed {what}"));
    if field.iter().all(|&b| matches!(b, 0 | b' ')) {
        return Ok(0);
    }
    let value = parsed.map_err(|_| malformed())?;
    let fits = match field {
        // The parser looks at the last eight bytes; what is before them must be their sign.
        [0x80, high @ .., _, _, _, _, _, _, _, _] => high.iter().all(|&b| b == 0) && value.cast_signed() >= 0,
        [0x80, ..] => value.cast_signed() >= 0,
        [0xff, high @ .., _, _, _, _, _, _, _, _] => high.iter().all(|&b| b == 0xff) && value.cast_signed() < 0,
        _ => field.iter().all(|&b| matches!(b, b'0'..=b'7' | b' ' | 0)) && value.cast_signed() >= 0,
    };
    fits.then_some(value.cast_signed()).ok_or_else(malformed)
}

/// A size; a negative one is malformed.
pub(super) fn unsigned(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| invalid("a negative size"))
}

/// The size of the data behind a header, as the header has it.
pub(super) fn size_of(header: &tar::Header) -> Result<u64> {
    unsigned(numeric(&header.as_old().size, header.entry_size(), "size")?)
}

/// An owner; 2^32-1 is not one (chown(2) reads it as "leave it").
pub(super) fn owner(field: &[u8], parsed: std::io::Result<u64>, what: &str) -> Result<u32> {
    let value = numeric(field, parsed, what)?;
    u32::try_from(value)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| invalid(format!("{what} {value}: not an owner")))
}

/// A device's major number.
pub(super) fn major(header: &tar::Header) -> Result<u32> {
    device(header.device_major(), header.as_bytes(), 329)
}

/// A device's minor number.
pub(super) fn minor(header: &tar::Header) -> Result<u32> {
    device(header.device_minor(), header.as_bytes(), 337)
}

fn device(parsed: std::io::Result<Option<u32>>, header: &[u8; BLOCK], at: usize) -> Result<u32> {
    let field = &header[at..at + 8];
    if field.iter().all(|&b| matches!(b, 0 | b' ')) {
        return Ok(0);
    }
    if field[0] == 0x80 {
        // Device numbers above 2^21 are base 256, which the parser knows for other fields only.
        let value = field[1..].iter().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
        return u32::try_from(value).map_err(|_| invalid("malformed device number"));
    }
    match parsed {
        Ok(Some(number)) => Ok(number),
        _ => Err(invalid("malformed device number")),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message)
}
