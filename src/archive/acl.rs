//! POSIX ACLs from the text that star and GNU tar write to the attribute that the kernel keeps.
//!
//! Text: acl(5), "ACL TEXT FORMS"; star adds the number as a fourth field. Attribute: include/uapi/linux/posix_acl_xattr.h,
//! version 2, little-endian.

use crate::error::{Error, Kind, Result};

use super::pax::number;

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The attribute's value for an ACL in text form, its entries in the order that the kernel asks for.
pub(super) fn from_text(text: &[u8]) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    for line in text.split(|&b| b == b'\n' || b == b',') {
        let line = line.split(|&b| b == b'#').next().unwrap_or_default().trim_ascii();
        if !line.is_empty() {
            entries.push(entry(line)?);
        }
    }
    // fs/posix_acl.c, posix_acl_valid(): owner, users, group, groups, mask, other.
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok(value)
}

fn entry(line: &[u8]) -> Result<(u16, u32, u16)> {
    let shown = String::from_utf8_lossy(line);
    let malformed = || Error::new(Kind::Invalid, format!("acl entry {shown:?}: malformed"));
    let fields: Vec<&[u8]> = line.split(|&b| b == b':').map(|field| field.trim_ascii()).collect();
    let (kind, who, permissions, numeric) = match fields[..] {
        [kind, who, permissions] => (kind, who, permissions, None),
        [kind, who, permissions, numeric] => (kind, who, permissions, Some(numeric)),
        // acl(5): mask and other have nobody to name and may leave the field out.
        [kind @ (b"m" | b"mask" | b"o" | b"other"), permissions] => (kind, &b""[..], permissions, None),
        _ => return Err(malformed()),
    };
    let tag = match (kind, who.is_empty()) {
        (b"u" | b"user", true) => USER_OBJ,
        (b"u" | b"user", false) => USER,
        (b"g" | b"group", true) => GROUP_OBJ,
        (b"g" | b"group", false) => GROUP,
        (b"m" | b"mask", true) => MASK,
        (b"o" | b"other", true) => OTHER,
        _ => return Err(malformed()),
    };
    let id = match tag {
        USER | GROUP => number(numeric.unwrap_or(who)).and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            Error::new(Kind::Invalid, format!("acl entry {shown:?}: a name without its number")).with_hint(
                "write the archive with tar --xattrs --xattrs-include='*' and without --acls, which keeps numbers",
            )
        })?,
        _ => NO_ID,
    };
    let mut bits = 0;
    for permission in permissions {
        bits |= match permission {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => 0,
            _ => return Err(malformed()),
        };
    }
    Ok((tag, id, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_text_give_one_attribute() {
        let expected = [
            &[2, 0, 0, 0][..],
            &[1, 0, 7, 0, 255, 255, 255, 255],
            &[2, 0, 4, 0, 0xe8, 3, 0, 0],
            &[4, 0, 5, 0, 255, 255, 255, 255],
            &[0x10, 0, 5, 0, 255, 255, 255, 255],
            &[0x20, 0, 4, 0, 255, 255, 255, 255],
        ]
        .concat();
        for text in [
            "user::rwx\nuser:1000:r--\ngroup::r-x\nmask::r-x\nother::r--\n",
            "u::rwx,g::rx,m:rx,o:r,u:1000:r",
            "user::rwx,user:lisa:r--:1000,group::r-x,mask::r-x,other::r--",
            "# owner: root\nuser::rwx\nother::r-- # a remark\nmask::r-x\ngroup::r-x\nuser:1000:r--",
        ] {
            assert_eq!(from_text(text.as_bytes()).expect("an acl"), expected, "{text}");
        }
    }

    #[test]
    fn a_name_without_a_number_says_what_to_do() {
        let error = from_text(b"user::rwx,user:lisa:r--").expect_err("lisa is nobody");
        assert!(error.to_string().contains("user:lisa:r--"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--xattrs-include")));
        for bad in ["user", "user::rwz", "x::rwx", "other:5:r", "user:1:2:3:4", "user:-1:r"] {
            assert!(from_text(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
