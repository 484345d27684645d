//! Who the command runs as: `name|uid[:group|gid]`, looked up in the texts of passwd(5) and group(5).
//!
//! The rules are those of docker and podman: a number needs no entry; without a group the user's own, and then the
//! groups that list the user as a member too; a number without an entry has group 0.

use std::path::PathBuf;

use crate::error::{Error, Kind, Result};

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The home directory that /etc/passwd names.
    pub home: Option<PathBuf>,
}

/// Looks `wanted` up in the texts of a passwd and a group file; either is empty when the root has none.
pub(super) fn lookup(wanted: Option<&str>, passwd: &str, group: &str) -> Result<User> {
    let wanted = wanted.filter(|w| !w.is_empty()).unwrap_or("0");
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (if user.is_empty() { "0" } else { user }, Some(group).filter(|g| !g.is_empty())),
        None => (wanted, None),
    };
    let entry = find_user(user, passwd);
    let uid = match (&entry, user.parse::<u32>()) {
        (Some(entry), _) => entry.uid,
        // (uid_t) -1 means "leave it as it is" to setresuid(2).
        (None, Ok(uid)) if uid != u32::MAX => uid,
        _ => return Err(Error::new(Kind::NotFound, format!("user {user:?}: not in the root's /etc/passwd"))),
    };
    let gid = match wanted_group {
        Some(name) => find_group(name, group)?,
        None => entry.as_ref().map_or(0, |e| e.gid),
    };
    let groups = match (&entry, wanted_group) {
        (Some(entry), None) => memberships(entry.name, group),
        _ => Vec::new(),
    };
    Ok(User { uid, gid, groups, home: entry.map(|e| PathBuf::from(e.home)).filter(|h| h.is_absolute()) })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn find_user<'a>(user: &str, passwd: &'a str) -> Option<Entry<'a>> {
    let number = user.parse::<u32>().ok();
    let by_name = users(passwd).find(|e| e.name == user);
    by_name.or_else(|| users(passwd).find(|e| Some(e.uid) == number))
}

fn users(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(Entry { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

fn find_group(wanted: &str, group: &str) -> Result<u32> {
    let named = groups(group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
    named
        .or_else(|| id(wanted))
        .ok_or_else(|| Error::new(Kind::NotFound, format!("group {wanted:?}: not in the root's /etc/group")))
}

fn memberships(user: &str, group: &str) -> Vec<u32> {
    let mut found: Vec<u32> =
        groups(group).filter(|(_, _, members)| members.split(',').any(|m| m == user)).map(|(_, gid, _)| gid).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, gid) = (fields.next()?, fields.nth(1)?);
        Some((name, id(gid)?, fields.next().unwrap_or_default()))
    })
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:/bin/sh\n1000:x:7:8::relative:\n\
                          neg:x:4294967295:0::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:4:web,root\ntty:x:5:web\nagain:x:4:web\n";

    #[test]
    fn users_and_groups_resolve_as_docker_does() {
        /// What is asked for; uid, gid, groups and home.
        type Case<'a> = (Option<&'a str>, Option<(u32, u32, &'a [u32], Option<&'a str>)>);
        let cases: &[Case<'_>] = &[
            (None, Some((0, 0, &[4], Some("/root")))),
            (Some(""), Some((0, 0, &[4], Some("/root")))),
            (Some("web"), Some((33, 34, &[4, 5], Some("/var/www")))),
            (Some("33"), Some((33, 34, &[4, 5], Some("/var/www")))),
            (Some("web:log"), Some((33, 4, &[], Some("/var/www")))),
            (Some("web:99"), Some((33, 99, &[], Some("/var/www")))),
            (Some("12345"), Some((12345, 0, &[], None))),
            (Some("12345:tty"), Some((12345, 5, &[], None))),
            // A name wins over the number it reads as; a home that is not absolute is none.
            (Some("1000"), Some((7, 8, &[], None))),
            (Some(":tty"), Some((0, 5, &[], Some("/root")))),
            (Some("nobody"), None),
            (Some("web:nogroup"), None),
            (Some("4294967295"), None),
            (Some("0:4294967295"), None),
            (Some("neg"), None),
            (Some("-1"), None),
        ];
        for (wanted, expected) in cases {
            let found = lookup(*wanted, PASSWD, GROUP).ok();
            let expected = expected.map(|(uid, gid, groups, home)| User {
                uid,
                gid,
                groups: groups.to_vec(),
                home: home.map(PathBuf::from),
            });
            assert_eq!(found, expected, "{wanted:?}");
        }
    }

    #[test]
    fn numbers_need_no_files() {
        assert_eq!(lookup(Some("5:6"), "", "").expect("numbers").gid, 6);
        let error = lookup(Some("web"), "", "").expect_err("no such user");
        assert_eq!(error.to_string(), "user \"web\": not in the root's /etc/passwd");
    }
}
