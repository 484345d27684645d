//! Ranges of user and group ids, each for one container at a time on the whole host, whichever store it is of.
//!
//! A lease is a file in /run/tupper/ids, named `UID.STORE.CONTAINER`, that its holder has locked. Its directory is locked
//! while one is given out, and open to root alone: whoever can open a file can lock it.
//!
//! A lease that nobody holds was left by a tupper that was killed. Its range is given out again when there is no other,
//! unless the container runs on; a gc removes it.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::Store;
use super::run_state::{RUN, running};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::fs;
use crate::name::Id;

/// How many ids a range has: what Debian's images and systemd's services expect (systemd's UIDS-GIDS.md).
const SIZE: u32 = 1 << 16;

/// Where ranges are taken from if root has none in /etc/subuid and /etc/subgid: above what sssd gives to users of a
/// directory by default (sssd-ldap(5), `ldap_idmap_range_max`), below systemd's foreign ids; and so outside the range of
/// systemd-nspawn, 524288 to 1879048191 (systemd's UIDS-GIDS.md).
const OWN: std::ops::Range<u32> = 0x7739_0000..0x7ffe_0000;

/// A range of user ids and one of group ids, for as long as this lives.
#[derive(Debug)]
pub(crate) struct IdLease {
    /// The first user.
    pub(crate) uid: u32,
    /// The first group.
    pub(crate) gid: u32,
    directory: OwnedFd,
    name: String,
    /// Locked.
    _file: File,
}

impl Drop for IdLease {
    fn drop(&mut self) {
        // One that stays is given out again, or removed by a gc.
        let _ = fs::unlink(self.directory.as_fd(), &self.name);
    }
}

impl Store {
    /// Leases a range for a container that is about to run.
    ///
    /// # Errors
    /// [`Kind::Limit`] when all are taken.
    pub(crate) fn lease_ids(&self, id: &Id) -> Result<IdLease> {
        let doing = || "lease a range of user ids";
        let directory = open().context(doing)?;
        flock::lock(directory.as_fd(), Lock::Exclusive, || "the ranges of user ids").context(doing)?;
        let [subuid, subgid] = ["/etc/subuid", "/etc/subgid"].map(read);
        let (ranges, of_root) = ranges(&subuid, &subgid);
        let names = names(&directory)?;
        let taken: HashSet<u32> = names.iter().filter_map(|name| Some(parse(name)?.0)).collect();
        let mut free = ranges.iter().find(|(uid, _)| !taken.contains(uid)).copied();
        if free.is_none() {
            let left: HashSet<u32> =
                names.iter().filter_map(|name| reclaim(&directory, name).transpose()).collect::<Result<_>>()?;
            free = ranges.iter().find(|(uid, _)| left.contains(uid)).copied();
        }
        let Some((uid, gid)) = free else { return Err(exhausted(ranges.len(), of_root)).context(doing) };
        let name = format!("{uid}.{}.{id}", self.uuid());
        let file = fs::create_new(directory.as_fd(), &name, 0o600).context(doing)?;
        flock::try_lock(file.as_fd()).context(doing)?;
        let directory = fs::open_directory(directory.as_fd(), ".")?; // without the lock
        Ok(IdLease { uid, gid, directory, name, _file: file })
    }

    /// The ranges of containers of this store that nobody holds any more: the container, and the file.
    ///
    /// Who leases one locks it before the directory is free again, so a lease that can be locked then was left.
    pub(crate) fn left_ids(&self) -> Result<Vec<(Id, PathBuf)>> {
        let doing = || format!("look for ranges in {}", place().display());
        let ours = |name: &String| parse(name).is_some_and(|(_, store, _)| store == self.uuid());
        let Some(directory) = fs::open_directory_if_any(fs::CWD, place()).context(doing)? else {
            return Ok(Vec::new());
        };
        if !names(&directory)?.iter().any(ours) {
            return Ok(Vec::new());
        }
        flock::lock(directory.as_fd(), Lock::Exclusive, || "the ranges of user ids").context(doing)?;
        let mut left = Vec::new();
        for name in names(&directory)?.into_iter().filter(ours) {
            if let Some((_, _, id)) = parse(&name)
                && is_left(&directory, &name).context(doing)?
            {
                left.push((id, place().join(&name)));
            }
        }
        Ok(left)
    }

    /// Gives back the range of a container that has ended, and that nobody holds.
    pub(crate) fn forget_ids(&self, id: &Id) -> Result<()> {
        for (_, path) in self.left_ids()?.into_iter().filter(|(of, _)| of == id) {
            let _ = std::fs::remove_file(path); // removed by another, or in nobody's way
        }
        Ok(())
    }
}

fn place() -> PathBuf {
    Path::new(RUN).join("ids")
}

fn open() -> Result<OwnedFd> {
    match fs::open_directory_follow(&place()) {
        Err(e) if e.kind() == Kind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o755).create(RUN)?;
            fs::ensure_directory(fs::CWD, place(), 0o700)?;
            fs::open_directory_follow(&place())
        }
        other => other,
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default() // a host without it gives root none
}

fn names(directory: &OwnedFd) -> Result<Vec<String>> {
    Ok(fs::list(directory.as_fd(), ".")?.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// The first user, the store and the container of a lease's name.
fn parse(name: &str) -> Option<(u32, &str, Id)> {
    let (uid, rest) = name.split_once('.')?;
    let (store, id) = rest.split_once('.')?;
    Some((uid.parse().ok()?, store, id.parse().ok()?))
}

/// Whether nobody holds a lease. The directory is locked.
fn is_left(directory: &OwnedFd, name: &str) -> Result<bool> {
    let file = match fs::open_file_beneath(directory.as_fd(), Path::new(name)) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(false), // just given back
        file => file?,
    };
    match flock::try_lock(file.as_fd()) {
        Err(e) if e.kind() == Kind::InUse => Ok(false),
        // Its holder may have given it back since it was opened.
        other => other.and_then(|()| fs::is_at(file.as_fd(), directory.as_fd(), name)),
    }
}

/// Takes a lease away that nobody holds, of a container that does not run: the range's first user, if it did.
fn reclaim(directory: &OwnedFd, name: &str) -> Result<Option<u32>> {
    let Some((uid, store, id)) = parse(name) else { return Ok(None) };
    if !fs::exists_at(directory.as_fd(), name)? {
        return Ok(Some(uid)); // just given back
    }
    if !is_left(directory, name)? || running(&Path::new(RUN).join(store).join(format!("{id}.json"))).is_some() {
        return Ok(None);
    }
    match fs::unlink(directory.as_fd(), name) {
        Err(e) if e.kind() != Kind::NotFound => Err(e),
        _ => Ok(Some(uid)),
    }
}

fn exhausted(ranges: usize, of_root: bool) -> Error {
    let whose = if of_root { "that /etc/subuid and /etc/subgid give to root" } else { "that are tupper's" };
    let error = Error::new(Kind::Limit, format!("all {ranges} ranges of {SIZE} ids {whose} are in use"));
    error.with_hint("give root a larger range there, end a container, or use --userns host, --uidmap or keep-id")
}

/// The ranges to give out, users and groups, and whether they are root's in these texts (subuid(5)).
fn ranges(subuid: &str, subgid: &str) -> (Vec<(u32, u32)>, bool) {
    let of_root = |text| entries(text).filter(|(name, ..)| matches!(*name, "root" | "0")).collect::<Vec<_>>();
    let (uids, gids) = (of_root(subuid), of_root(subgid));
    if !uids.is_empty() && !gids.is_empty() {
        let slots = |entries: Vec<(&str, u32, u32)>| {
            entries
                .into_iter()
                .flat_map(|(_, first, size)| (0..size / SIZE).map(move |n| first + n * SIZE))
                .collect::<Vec<_>>()
        };
        return (slots(uids).into_iter().zip(slots(gids)).collect(), true);
    }
    let others: Vec<_> = entries(subuid).chain(entries(subgid)).collect();
    let free = |first: &u32| {
        let end = u64::from(*first) + u64::from(SIZE);
        others.iter().all(|(_, start, size)| {
            end <= u64::from(*start) || u64::from(*first) >= u64::from(*start) + u64::from(*size)
        })
    };
    (OWN.step_by(SIZE as usize).filter(free).map(|first| (first, first)).collect(), false)
}

/// `name:first:size` a line; what lies beyond the ids that there are is left out.
fn entries(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, first, size): (_, u32, u32) =
            (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((name, first, size.min(u32::MAX - first)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_roots_where_it_has_some() {
        let (found, of_root) = ranges("me:100000:65536\nroot:231072:131073\n", "root:500000:65536\nroot:900000:65536");
        assert_eq!((found, of_root), (vec![(231_072, 500_000), (296_608, 900_000)], true));
        assert_eq!(ranges("root:100000:65535", "root:100000:65536"), (Vec::new(), true), "too small for one");
        assert_eq!(ranges("0:65536:65536", "0:65536:65536").0, [(65536, 65536)]);
    }

    #[test]
    fn tuppers_own_ranges_are_nobody_elses() {
        let (all, of_root) = ranges("me:100000:65536\n# nonsense\nx:y:z\n", "");
        assert!(!of_root && all.len() > 2000, "{}", all.len());
        assert!(all.iter().all(|(uid, gid)| uid == gid && uid % SIZE == 0));
        let taken = |entry: String, field: bool| {
            let (uids, gids) = if field { (entry.as_str(), "") } else { ("", entry.as_str()) };
            ranges(uids, gids).0
        };
        let first = all[0].0;
        for field in [true, false] {
            assert_eq!(taken(format!("me:{first}:1"), field), all[1..]);
            assert_eq!(taken(format!("me:{}:2", first + SIZE - 1), field), all[2..]);
            assert_eq!(taken(format!("me:{first}:4294967295"), field), []);
        }
        // systemd's ranges: UIDS-GIDS.md.
        for (start, end) in [(0, 65535), (524_288, 1_879_048_191), (2_147_352_576, 2_147_418_111), (1 << 31, u32::MAX)]
        {
            assert!(all.iter().all(|(uid, _)| *uid > end || uid + (SIZE - 1) < start));
        }
    }

    #[test]
    fn a_lease_is_named_after_what_has_it() {
        let id = Id::from_bytes([7; 32]);
        let name = format!("231072.1-2-3.{id}");
        assert_eq!(parse(&name), Some((231_072, "1-2-3", id)));
        assert_eq!(parse("231072.1-2-3"), None);
    }
}
