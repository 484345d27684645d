//! What is counted of newer nodes only is what is counted of all of them, and what a removal gives back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tupper::usage::{Bytes, Figures, Known, usage};

use crate::support::store::Store;

const KIB: u64 = 1 << 10;

/// Numbers that look random: xorshift64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).expect("small")
    }

    fn pick<T: Clone>(&mut self, among: &[T]) -> Option<T> {
        (!among.is_empty()).then(|| among[self.roll(among.len())].clone())
    }
}

/// Files of 8 to 200 KiB among so many small ones that the tree has several nodes.
fn base(store: &Store) -> PathBuf {
    let dir = store.disk.path().join("base");
    for nth in 0..600 {
        fs::create_dir_all(dir.join(format!("d{}", nth % 7))).expect("a directory");
        let length = if nth % 20 == 0 { 8 * KIB + nth * 300 } else { 20 };
        fs::write(file(&dir, nth), vec![b'x'; usize::try_from(length).expect("small")]).expect("a file");
    }
    dir
}

fn file(root: &Path, nth: u64) -> PathBuf {
    root.join(format!("d{}/f{nth}", nth % 7))
}

/// Something is done to a tree.
fn change(dice: &mut Dice, root: &Path, other: &Path, held: &mut Vec<File>) {
    let mut any = |root: &Path| file(root, dice.roll(30) as u64 * 20);
    let (one, two, theirs) = (any(root), any(root), any(other));
    let length = (4 + dice.roll(60)) * 1024;
    match dice.roll(9) {
        0 | 1 => drop(fs::write(&one, vec![b'y'; length])),
        2 => drop(fs::remove_file(&one)),
        3 => drop(fs::rename(&one, &two)),
        4 => {
            if let Ok(file) = File::options().write(true).open(&one) {
                file.write_all_at(&vec![b'z'; 4096], 4096).expect("write in the middle");
            }
        }
        // The same extents in one tree, and in two.
        5 | 6 => {
            let from = if length.is_multiple_of(2048) { two } else { theirs };
            let _ = Command::new("cp").args(["--reflink=always", "--remove-destination"]).arg(from).arg(&one).output();
        }
        // Without a name, but open for a while.
        7 => {
            if let Ok(file) = File::open(&one) {
                let _ = fs::remove_file(&one); // what is read-only stays
                held.push(file);
            }
        }
        _ => drop(fs::remove_dir_all(one.parent().expect("a directory"))),
    }
}

fn fits(said: Bytes, truth: u64) -> bool {
    match said.known {
        Known::Exact => said.bytes == truth,
        Known::AtMost => said.bytes >= truth,
        Known::AtLeast => said.bytes <= truth,
    }
}

#[test]
fn newer_nodes_tell_what_all_of_them_tell() {
    let seed = match std::env::var("TUPPER_SEED") {
        Ok(seed) => seed.parse().expect("TUPPER_SEED is a number"),
        Err(_) => u64::from(std::process::id()) + 1,
    };
    let dice = &mut Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let store = Store::empty();
    let dir = base(&store);
    store.ok_with("image import --name base", &[dir.to_str().expect("plain")]);
    let opened = tupper::store::Store::open(store.root()).expect("a store").expect("there");
    fs::remove_dir_all(dir).expect("a directory");
    let path = |name: &str| {
        store
            .root()
            .join("fs/snapshots")
            .join(fs::read_link(store.root().join("fs/names").join(name)).expect("a name").file_name().expect("an id"))
            .join("rootfs")
    };

    let mut names: Vec<String> = Vec::new();
    let mut held = Vec::new();
    let mut image = true;
    for round in 0..120 {
        let source = match dice.pick(&names) {
            Some(name) if !image || dice.roll(3) > 0 => Some(name),
            _ => image.then(|| "base".to_string()),
        };
        match dice.roll(10) {
            0..4 if names.len() < 12 => {
                let Some(source) = source else { break };
                let name = format!("s{round}");
                let flag = if dice.roll(4) == 0 { "--read-only" } else { "" };
                store.ok(&format!("snapshot create {source} {name} {flag}"));
                names.push(name);
            }
            4 => held.clear(),
            _ => {
                for _ in 0..=dice.roll(3) {
                    if let (Some(name), Some(other)) = (dice.pick(&names), dice.pick(&names)) {
                        change(dice, &path(&name), &path(&other), &mut held);
                    }
                }
            }
        }
        let (newer, all) = (usage(&opened, 0).expect("counted"), usage(&opened, usize::MAX).expect("counted"));
        assert_eq!(newer.in_use, all.in_use, "TUPPER_SEED={seed}, round {round}");
        for ((node, said), (_, truth)) in newer.objects.iter().zip(&all.objects) {
            let Figures { exclusive, shared, freed } = truth;
            assert!([exclusive, shared, freed].iter().all(|truth| truth.known == Known::Exact), "{truth:?}");
            let pairs = [(said.exclusive, exclusive), (said.shared, shared), (said.freed, freed)];
            for (said, truth) in pairs {
                assert!(fits(said, truth.bytes), "TUPPER_SEED={seed}, round {round}: {node:?}: {said:?} is {truth:?}");
            }
        }
        if dice.roll(6) == 0
            && let Some((node, said)) = dice.pick(&newer.objects)
        {
            held.clear();
            let (newer, before) = (usage(&opened, 0).expect("counted"), store.disk.data());
            assert_eq!(newer.in_use, before, "TUPPER_SEED={seed}, round {round}: the filesystem says so itself");
            let said = newer.objects.iter().find(|(other, _)| other.id == node.id).map_or(said, |(_, said)| *said);
            match node.kind {
                _ if names.len() < 3 => continue, // there has to be something of which others are made
                "image" => {
                    store.ok(&format!("image rm --force {}", node.id));
                    image = false;
                }
                _ => {
                    store.ok(&format!("snapshot rm {}", node.id));
                    names.retain(|name| !node.names.contains(name));
                }
            }
            let freed = before - store.disk.data();
            assert!(fits(said.freed, freed), "TUPPER_SEED={seed}, round {round}: {node:?}: {said:?} gave back {freed}");
        }
    }
}
