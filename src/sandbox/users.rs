//! The ids of a sandbox: which users and groups of the host stand behind those inside.
//!
//! A root filesystem keeps plain ids on the disk, whatever the map: its mount is id-mapped by the same user namespace, so
//! that user 33 inside is user 33 on the disk and, for every other process, the host's user that the map says.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::spec::invalid;
use crate::error::Result;

/// How many ids a range of a container's own has.
pub const RANGE: u32 = 1 << 16;

/// The most lines that uid_map and gid_map take: user_namespaces(7), UID_GID_MAP_MAX_EXTENTS.
const MOST_LINES: usize = 340;

/// Which ids a sandbox is to have: podman-run(1), `--userns`, `--uidmap`, `--gidmap`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Users {
    /// A range of its own, so that neither the host's users nor other containers' are its.
    #[default]
    Auto,
    /// The host's: no user namespace.
    Host,
    /// The host's, in a user namespace of its own: every id is itself, and its root has no power over the host.
    #[serde(rename = "keep-id")]
    KeepId,
    /// A range of its own; root, who calls, is not mapped, as in `auto`.
    NoMap,
    /// As these maps say.
    Maps(Maps),
}

impl Users {
    /// A range of the host's has to be leased for it.
    pub fn wants_range(&self) -> bool {
        matches!(self, Users::Auto | Users::NoMap)
    }

    /// The maps, given the range that was leased if one was [wanted](Users::wants_range); `None` without a user namespace.
    pub fn maps(&self, leased: Option<&Maps>) -> Option<Maps> {
        match self {
            Users::Host => None,
            Users::Auto | Users::NoMap => leased.cloned(),
            Users::KeepId => {
                let all = vec![IdMap { inside: 0, outside: 0, size: u32::MAX }];
                Some(Maps { uids: all.clone(), gids: all })
            }
            Users::Maps(maps) => Some(maps.clone()),
        }
    }
}

/// What uid_map and gid_map of a user namespace say: user_namespaces(7).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Maps {
    /// Users.
    pub uids: Vec<IdMap>,
    /// Groups.
    pub gids: Vec<IdMap>,
}

/// A line of uid_map or gid_map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The first id inside.
    pub inside: u32,
    /// What it is on the host.
    pub outside: u32,
    /// How many follow one another, this one included.
    pub size: u32,
}

impl Maps {
    /// [`RANGE`] ids from 0 on, of which the first are these on the host.
    pub fn range(first_uid: u32, first_gid: u32) -> Maps {
        let range = |outside| vec![IdMap { inside: 0, outside, size: RANGE }];
        Maps { uids: range(first_uid), gids: range(first_gid) }
    }

    /// What a user inside is on the host.
    pub fn uid(&self, inside: u32) -> Option<u32> {
        outside(&self.uids, inside)
    }

    /// What a group inside is on the host.
    pub fn gid(&self, inside: u32) -> Option<u32> {
        outside(&self.gids, inside)
    }

    /// What a user of the host's is inside.
    pub fn uid_inside(&self, outside: u32) -> Option<u32> {
        inside(&self.uids, outside)
    }

    /// What a group of the host's is inside.
    pub fn gid_inside(&self, outside: u32) -> Option<u32> {
        inside(&self.gids, outside)
    }

    /// The last group of those that follow group 0 without a gap: what ping_group_range may end with.
    pub(super) fn last_gid(&self) -> u32 {
        self.gids.iter().find(|map| map.inside == 0).map_or(0, |map| map.size - 1)
    }

    /// An error unless the kernel takes them and there is a root inside, who sets the sandbox up.
    pub(super) fn validate(&self) -> Result<()> {
        check("uidmap", &self.uids)?;
        check("gidmap", &self.gids)
    }
}

/// The maps of a running process; `None` when it has ended, or lives in this process's user namespace.
pub fn maps_of(pid: i32) -> Option<Maps> {
    let read = |pid: &str, name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let pid = pid.to_string();
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    if namespace(&pid)? == namespace("self")? {
        return None;
    }
    Some(Maps { uids: parse(&read(&pid, "uid_map")?)?, gids: parse(&read(&pid, "gid_map")?)? })
}

/// Whether a process's user namespace has the host's root in it, as which inside whatever.
pub fn has_host_root(pid: i32) -> bool {
    maps_of(pid).is_none_or(|maps| maps.uid_inside(0).is_some())
}

/// The text of uid_map or gid_map.
fn parse(text: &str) -> Option<Vec<IdMap>> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some(IdMap { inside: numbers.next()??, outside: numbers.next()??, size: numbers.next()?? })
    };
    text.lines().map(line).collect()
}

fn outside(maps: &[IdMap], inside: u32) -> Option<u32> {
    let map = maps.iter().find(|map| inside >= map.inside && inside - map.inside < map.size)?;
    Some(map.outside + (inside - map.inside))
}

fn inside(maps: &[IdMap], outside: u32) -> Option<u32> {
    let map = maps.iter().find(|map| outside >= map.outside && outside - map.outside < map.size)?;
    Some(map.inside + (outside - map.outside))
}

fn check(what: &str, maps: &[IdMap]) -> Result<()> {
    if maps.len() > MOST_LINES {
        return Err(invalid(format!("{what}: {} ranges, of which the kernel takes {MOST_LINES}", maps.len())));
    }
    for (at, map) in maps.iter().enumerate() {
        // 4294967295 is no id: (uid_t) -1.
        let fits = |first: u32| u64::from(first) + u64::from(map.size) <= u64::from(u32::MAX);
        if map.size == 0 || !fits(map.inside) || !fits(map.outside) {
            return Err(invalid(format!("{what} {map}: not a range of ids")));
        }
        let overlap = |a: u32, b: u32, size: u32| {
            let (a, b) = (u64::from(a), u64::from(b));
            a < b + u64::from(size) && b < a + u64::from(map.size)
        };
        let other = maps[..at].iter().find(|other| {
            overlap(map.inside, other.inside, other.size) || overlap(map.outside, other.outside, other.size)
        });
        if let Some(other) = other {
            return Err(invalid(format!("{what} {map}: has ids of {other}")));
        }
    }
    if outside(maps, 0).is_none() {
        return Err(invalid(format!("{what}: 0 is not mapped, and root sets the container up")));
    }
    Ok(())
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.size)
    }
}

/// The text for uid_map or gid_map: user_namespaces(7), "User and group ID mappings".
pub(super) fn text(maps: &[IdMap]) -> String {
    let lines: Vec<String> = maps.iter().map(|m| format!("{} {} {}", m.inside, m.outside, m.size)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(list: &[(u32, u32, u32)]) -> Vec<IdMap> {
        list.iter().map(|&(inside, outside, size)| IdMap { inside, outside, size }).collect()
    }

    #[test]
    fn ids_are_those_of_the_maps() {
        let both = maps(&[(0, 1000, 1), (1, 5000, 10)]);
        let found = Maps { uids: both.clone(), gids: maps(&[(0, 7, 5)]) };
        let inside = [0, 1, 10, 11, u32::MAX];
        assert_eq!(inside.map(|id| found.uid(id)), [Some(1000), Some(5000), Some(5009), None, None]);
        assert_eq!((found.gid(4), found.gid(5), found.last_gid()), (Some(11), None, 4));
        assert_eq!((found.uid_inside(5009), found.uid_inside(5010), found.gid_inside(11)), (Some(10), None, Some(4)));
        assert_eq!(text(&both), "0 1000 1\n1 5000 10");
        assert_eq!(super::parse("         0       1000          1\n 1 5000 10\n"), Some(both));
        assert_eq!((super::parse("0 1"), maps_of(1), maps_of(i32::MAX)), (None, None, None));
        let leased = Maps::range(1 << 20, 1 << 21);
        assert_eq!((leased.uid(65535), leased.gid(33)), (Some((1 << 20) + 65535), Some((1 << 21) + 33)));
        assert_eq!(Users::Auto.maps(Some(&leased)), Some(leased.clone()));
        assert_eq!(Users::Host.maps(Some(&leased)), None);
        let kept = Users::KeepId.maps(None).expect("maps");
        assert_eq!((kept.uid(0), kept.uid(4_294_967_294)), (Some(0), Some(4_294_967_294)));
        kept.validate().expect("the kernel takes it");
    }

    #[test]
    fn maps_that_the_kernel_would_not_take_are_refused() {
        let good = maps(&[(0, 1000, 10)]);
        let cases = [
            ("not a range", maps(&[(0, 1000, 0)])),
            ("not a range", maps(&[(0, 4_294_967_290, 6)])),
            ("not a range", maps(&[(4_294_967_290, 0, 6), (0, 9, 1)])),
            ("has ids of 0:1000:10", maps(&[(0, 1000, 10), (9, 5000, 1)])),
            ("has ids of 0:1000:10", maps(&[(0, 1000, 10), (10, 1009, 2)])),
            ("0 is not mapped", maps(&[(1, 1000, 10)])),
            ("0 is not mapped", Vec::new()),
            ("341 ranges", (0..341).map(|n| IdMap { inside: n, outside: n + 5, size: 1 }).collect()),
        ];
        for (says, bad) in cases {
            for found in [
                Maps { uids: bad.clone(), gids: good.clone() }.validate(),
                Maps { uids: good.clone(), gids: bad }.validate(),
            ] {
                let error = found.expect_err(says).to_string();
                assert!(error.contains(says), "{error} does not say {says}");
            }
        }
    }
}
