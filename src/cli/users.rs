//! `--userns`, `--uidmap` and `--gidmap`: podman-run(1)'s words.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use tupper::sandbox::{IdMap, Maps, Users};

#[derive(Debug, Args)]
pub(super) struct UserFlags {
    /// Whose ids the container has: a range of its own (auto, nomap), the host's without a user namespace (host), or the
    /// host's in one (keep-id) [default: auto]
    #[arg(long, value_name = "auto|host|keep-id|nomap", value_parser = userns, conflicts_with_all = ["uidmap", "gidmap"])]
    userns: Option<Users>,
    /// The users SIZE from INSIDE on are the host's from OUTSIDE on; can be given again
    #[arg(long, value_name = "INSIDE:OUTSIDE[:SIZE]", value_parser = map)]
    uidmap: Vec<IdMap>,
    /// As --uidmap, for groups; where one of the two is missing it is as the other
    #[arg(long, value_name = "INSIDE:OUTSIDE[:SIZE]", value_parser = map)]
    gidmap: Vec<IdMap>,
}

impl UserFlags {
    /// Of a privileged container that nobody says anything about: the host's.
    pub(super) fn users(self, privileged: bool) -> Users {
        match (self.uidmap.is_empty(), self.gidmap.is_empty()) {
            (true, true) if privileged => self.userns.unwrap_or(Users::Host),
            (true, true) => self.userns.unwrap_or_default(),
            (false, true) => Users::Maps(Maps { gids: self.uidmap.clone(), uids: self.uidmap }),
            (true, false) => Users::Maps(Maps { uids: self.gidmap.clone(), gids: self.gidmap }),
            (false, false) => Users::Maps(Maps { uids: self.uidmap, gids: self.gidmap }),
        }
    }
}

fn userns(text: &str) -> Result<Users> {
    match text {
        "auto" | "" => Ok(Users::Auto),
        "host" => Ok(Users::Host),
        "keep-id" => Ok(Users::KeepId),
        "nomap" => Ok(Users::NoMap),
        _ => bail!("not auto, host, keep-id or nomap"),
    }
}

fn map(text: &str) -> Result<IdMap> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| anyhow!("{text:?} is not an id"));
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [inside, outside] => Ok(IdMap { inside: number(inside)?, outside: number(outside)?, size: 1 }),
        [inside, outside, size] => {
            Ok(IdMap { inside: number(inside)?, outside: number(outside)?, size: number(size)? })
        }
        _ => bail!("not INSIDE:OUTSIDE[:SIZE]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_have_two_or_three_numbers() {
        assert_eq!(map("0:1000").expect("two"), IdMap { inside: 0, outside: 1000, size: 1 });
        assert_eq!(map("0:1000:65536").expect("three"), IdMap { inside: 0, outside: 1000, size: 65536 });
        for text in ["", "0", "0:x", "0:1:2:3", "0:-1:2", "0:4294967296:1"] {
            assert!(map(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_map_stands_for_both() {
        let one = map("0:1000:5").expect("a map");
        let flags = |uidmap: &[IdMap], gidmap: &[IdMap]| UserFlags {
            userns: None,
            uidmap: uidmap.into(),
            gidmap: gidmap.into(),
        };
        let both = Users::Maps(Maps { uids: vec![one], gids: vec![one] });
        assert_eq!(flags(&[one], &[]).users(false), both);
        assert_eq!(flags(&[], &[one]).users(false), both);
        assert_eq!(flags(&[], &[]).users(false), Users::Auto);
        assert_eq!(flags(&[], &[]).users(true), Users::Host);
    }
}
