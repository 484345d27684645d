//! What btrfs knows of two subvolumes is what a walk through both finds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags};
use tupper::snapshot::{Became, Change, changes, known_changes, walked_changes};

use crate::scratch::{Scratch, shell};
use crate::support::{debian, sh};

/// A change of a tree: what is done, and the numbers by which its objects are chosen among those that are there.
pub type Step = (u8, u16, u16);

/// How two subvolumes come to be related; the new one is named first.
#[derive(Debug, Clone, Copy)]
enum Kin {
    /// A snapshot of the other.
    Child,
    /// The other is a snapshot of it.
    Parent,
    /// Snapshots of a third that was changed between them.
    Siblings,
    /// A snapshot of a snapshot, both of which were changed.
    Grandchild,
    /// A snapshot of one that is not there any more, and so is the other.
    Orphans,
}

const KINDS: [Kin; 5] = [Kin::Child, Kin::Parent, Kin::Siblings, Kin::Grandchild, Kin::Orphans];

fn subvolume(at: &Path, name: &str) -> PathBuf {
    sh("btrfs", &["--quiet", "subvolume", "create", at.join(name).to_str().expect("a plain path")]);
    at.join(name)
}

fn snapshot(of: &Path, name: &str) -> PathBuf {
    let path = of.with_file_name(name);
    let [of, to] = [of, &path].map(|path| path.to_str().expect("a plain path"));
    sh("btrfs", &["--quiet", "subvolume", "snapshot", of, to]);
    path
}

fn remove(path: &Path) {
    sh("btrfs", &["--quiet", "subvolume", "delete", path.to_str().expect("a plain path")]);
}

/// Enough for a tree of several nodes, with something of each kind.
pub fn fill(top: &Path) {
    shell(
        "mkdir -p d0/d1/d2 d3 d4/d5; for d in d0 d0/d1 d0/d1/d2 d3 d4/d5; do
             for i in $(seq 25); do echo $d $i >$d/file$i; done; ln -s file1 $d/link; mkfifo $d/fifo; done
         ln d0/file1 d3/hard; ln d0/file1 d4/hard; setfattr -n user.a -v 1 d3/file2; head -c 300000 /dev/zero >d4/large",
        top,
    );
}

/// Everything below the top, by its path there, sorted.
fn all(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest = vec![top.to_path_buf()];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry")) {
            if entry.file_type().expect("a type").is_dir() {
                rest.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// fs::write, which waits at a FIFO for somebody who reads.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK).open(path)?.write_all(bytes)
}

/// Does a step; one that cannot be done is none.
pub fn apply(top: &Path, (what, a, b): Step) {
    let paths = all(top);
    let directories: Vec<&PathBuf> = paths.iter().filter(|path| !path.is_symlink() && path.is_dir()).collect();
    let pick = |number: u16| paths.get(usize::from(number) % paths.len().max(1)).cloned().unwrap_or(top.join("none"));
    let place = |number: u16| {
        let directory = directories.get(usize::from(number) % (directories.len() + 1)).copied();
        directory.map_or(top, PathBuf::as_path).join(format!("n{}", number % 7))
    };
    let open = |path: &Path| match fs::symlink_metadata(path)?.is_file() {
        true => OpenOptions::new().write(true).open(path),
        false => Err(io::ErrorKind::InvalidInput.into()),
    };
    let name = if b % 2 == 0 { "user.a" } else { "user.b" };
    let value = b.to_le_bytes();
    let _: io::Result<()> = match what % 21 {
        0 => write(&place(a), &value),
        1 => open(&pick(a)).and_then(|file| file.set_len(0).and_then(|()| file.write_all_at(&value, 0))),
        2 => open(&pick(a)).and_then(|file| file.write_all_at(&value, file.metadata()?.len())),
        3 => open(&pick(a)).and_then(|file| file.set_len(u64::from(b) * 3)),
        4 => match pick(a) {
            path if path.is_symlink() => Ok(()),
            path => fs::set_permissions(path, fs::Permissions::from_mode(0o600 | u32::from(b & 0o177))),
        },
        5 => std::os::unix::fs::lchown(pick(a), Some(u32::from(b % 3)), None),
        6 => rustix::fs::lsetxattr(pick(a), name, &value, XattrFlags::empty()).map_err(Into::into),
        7 => rustix::fs::lremovexattr(pick(a), name).map_err(Into::into),
        8 | 9 => fs::rename(pick(a), place(b)),
        10 => fs::rename(pick(a), pick(b)),
        11 => rustix::fs::renameat_with(CWD, pick(a), CWD, pick(b), RenameFlags::EXCHANGE).map_err(Into::into),
        12 => fs::hard_link(pick(a), place(b)),
        13 => symlink(format!("to{}", b % 3), place(a)),
        14 => fs::create_dir(place(a)),
        15 => match pick(a) {
            path if path.is_dir() && !path.is_symlink() => fs::remove_dir_all(path),
            path => fs::remove_file(path),
        },
        16 => match pick(a) {
            path if path.is_dir() && !path.is_symlink() => {
                fs::remove_dir_all(&path).and_then(|()| write(&path, &value))
            }
            path => fs::remove_file(&path).and_then(|()| fs::create_dir(path)),
        },
        17 => rustix::fs::mknodat(CWD, place(a), FileType::CharacterDevice, Mode::RWXU, u64::from(b % 2))
            .map_err(Into::into),
        // Other bytes of the same size and of the same time, and the same bytes once more.
        18 => open(&pick(a)).and_then(|file| {
            let meta = file.metadata()?;
            file.write_all_at(&value[..value.len().min(usize::try_from(meta.len()).unwrap_or(2))], 0)?;
            file.set_modified(meta.modified()?)
        }),
        19 => open(&pick(a)).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(b.into()))),
        // What comes and goes uses up a number.
        _ => write(&place(a), &value).and_then(|()| fs::remove_file(place(a))),
    };
}

/// The two subvolumes, the new one first.
fn related(disk: &Path, kin: Kin, steps: [&[Step]; 3]) -> (PathBuf, PathBuf) {
    let apply_all = |to: &Path, steps: &[Step]| {
        steps.iter().for_each(|step| apply(to, *step));
        // Two files that are made on either side in one tick of the clock can be one to a walk.
        std::thread::sleep(Duration::from_millis(12));
    };
    let base = snapshot(&disk.join("base"), "old");
    apply_all(&base, steps[0]);
    let child = snapshot(&base, "new");
    let (new, old) = match kin {
        Kin::Child => (child, base),
        Kin::Parent => (base, child),
        Kin::Siblings | Kin::Orphans => {
            apply_all(&base, steps[0]);
            let other = snapshot(&base, "other");
            if matches!(kin, Kin::Orphans) {
                remove(&base);
            }
            (other, child)
        }
        Kin::Grandchild => {
            apply_all(&child, steps[0]);
            (snapshot(&child, "other"), base)
        }
    };
    apply_all(&new, steps[1]);
    apply_all(&old, steps[2]);
    (new, old)
}

/// What btrfs knows, which must be what a walk finds.
fn compared(old: &Path, new: &Path) -> Vec<Change> {
    let [old, new] = [old, new].map(|path| File::open(path).expect("a directory"));
    let known = known_changes(old.as_fd(), new.as_fd()).expect("a diff").expect("known, they are related");
    let plain = |changes: &[Change]| changes.iter().map(|c| (c.path.clone(), c.became)).collect::<Vec<_>>();
    let walked = walked_changes(Some(old.as_fd()), new.as_fd()).expect("a diff");
    assert_eq!(plain(&known), plain(&walked));
    known
}

/// Names of a tree: its paths by inode number, directory's inode number and name.
fn names(top: &Path) -> BTreeMap<u64, BTreeMap<(u64, PathBuf), PathBuf>> {
    let mut found: BTreeMap<u64, BTreeMap<_, _>> = BTreeMap::new();
    for path in all(top) {
        let inode = |path: &Path| fs::symlink_metadata(path).expect("it is there").ino();
        let name = (inode(path.parent().expect("below the top")), PathBuf::from(path.file_name().expect("a name")));
        let below = Path::new("/").join(path.strip_prefix(top).expect("below the top"));
        found.entry(inode(&path)).or_default().insert(name, below);
    }
    found
}

/// The renames between a subvolume that was not changed since and its snapshot.
fn renames(old: &Path, new: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let (old, new) = (names(old), names(new));
    let mut found = BTreeMap::new();
    for (inode, has) in &new {
        let Some(had) = old.get(inode) else { continue };
        let lone = |of: &BTreeMap<(u64, PathBuf), PathBuf>, other: &BTreeMap<_, PathBuf>| {
            of.iter()
                .filter(|(name, _)| !other.contains_key(*name))
                .map(|(_, path)| path.clone())
                .collect::<BTreeSet<_>>()
        };
        let (got, lost) = (lone(has, had), lone(had, has));
        found.extend(got.difference(&lost).cloned().zip(lost.difference(&got).cloned()));
    }
    found
}

#[test]
fn what_btrfs_knows_is_what_a_walk_finds() {
    let scratch = Scratch::new();
    let disk = scratch.path();
    fill(&subvolume(&disk, "base"));
    let steps = |most| proptest::collection::vec((any::<u8>(), any::<u16>(), any::<u16>()), 0..most);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 100, ..Config::default() });
    let result = runner.run(&(0..KINDS.len(), steps(8), steps(25), steps(8)), |(kin, before, of_new, of_old)| {
        let (new, old) = related(&disk, KINDS[kin], [&before, &of_new, &of_old]);
        let result = std::panic::catch_unwind(|| {
            let forth = compared(&old, &new);
            compared(&new, &old);
            if of_old.is_empty() && matches!(KINDS[kin], Kin::Child) {
                check_renames(&forth, &renames(&old, &new));
            }
        });
        for name in ["old", "new", "other"].map(|name| disk.join(name)).iter().filter(|path| path.exists()) {
            remove(name);
        }
        result.map_err(|why| {
            let text = why.downcast_ref::<String>().cloned().unwrap_or_default();
            TestCaseError::fail(format!("{:?}: {text}", KINDS[kin]))
        })
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}

fn check_renames(changes: &[Change], wanted: &BTreeMap<PathBuf, PathBuf>) {
    let told = |change: &Change| Some((change.path.clone(), change.renamed_from.clone()?));
    let told: BTreeMap<PathBuf, PathBuf> = changes.iter().filter_map(told).collect();
    // What is the same under a name of something that was the same is no change.
    let is_change = |path: &Path| changes.iter().any(|c| c.path == path && c.became != Became::Deleted);
    let wanted: BTreeMap<_, _> =
        wanted.iter().filter(|(new, _)| is_change(new)).map(|(n, o)| (n.clone(), o.clone())).collect();
    assert_eq!(told, wanted);
}

#[test]
fn renames_are_told_by_what_was_renamed() {
    let scratch = Scratch::new();
    let old = subvolume(&scratch.path(), "old");
    fill(&old);
    let new = snapshot(&old, "new");
    let script =
        "mv d3 moved; mv d0/file2 d0/file3; mv d4/d5/file1 d4/d5/other; ln d4/large d4/second; mv d4/hard d4/hard2
        mv d0/file4 t; mv d0/file5 d0/file4; mv t d0/file5; mv moved/file3 d0/out; echo new >d4/d5/file1";
    shell(script, &new);
    let changes = compared(&old, &new);
    check_renames(&changes, &renames(&old, &new));
    let told: Vec<String> = changes
        .iter()
        .filter_map(|c| Some(format!("{} {}", c.path.display(), c.renamed_from.as_ref()?.display())))
        .collect();
    let wanted = [
        "/d0/file3 /d0/file2",
        "/d0/file4 /d0/file5",
        "/d0/file5 /d0/file4",
        "/d0/out /d3/file3",
        "/d4/d5/other /d4/d5/file1",
        "/d4/hard2 /d4/hard",
        "/moved /d3",
    ];
    assert_eq!(told, wanted);
}

#[test]
fn two_files_of_one_number_are_no_rename() {
    let scratch = Scratch::new();
    let old = subvolume(&scratch.path(), "old");
    fill(&old);
    let new = snapshot(&old, "new");
    fs::write(old.join("d0/was"), "x").expect("a file");
    fs::write(new.join("d0/is"), "x").expect("a file");
    let inode = |path: PathBuf| fs::metadata(path).expect("a file").ino();
    assert_eq!(inode(old.join("d0/was")), inode(new.join("d0/is")), "each is the next of its subvolume");
    let changes = compared(&old, &new);
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(changes.iter().all(|change| change.renamed_from.is_none()), "{changes:?}");
}

#[test]
fn where_btrfs_does_not_know_both_are_walked() {
    let scratch = Scratch::new();
    let old = subvolume(&scratch.path(), "old");
    fill(&old);
    let new = snapshot(&old, "new");
    let other = subvolume(&scratch.path(), "other");
    shell("cp -a ../old/. .", &other);
    let open = |path: &Path| File::open(path).expect("a directory");
    let unknown = |old: &Path, new: &Path| {
        assert!(known_changes(open(old).as_fd(), open(new).as_fd()).expect("no failure").is_none(), "{new:?}");
        let lines = changes(Some(open(old).as_fd()), open(new).as_fd()).expect("a diff");
        lines.into_iter().map(|change| (change.path.display().to_string(), change.became)).collect::<Vec<_>>()
    };
    assert_eq!(unknown(&old, &other), [], "not related");
    assert_eq!(unknown(&old.join("d0"), &new.join("d0")), [], "not subvolumes");
    fs::write(subvolume(&new.join("d0"), "nested").join("in"), "x").expect("a file");
    let nested = ["/d0", "/d0/nested", "/d0/nested/in"].map(str::to_string);
    let became = [Became::Changed, Became::Added, Became::Added];
    assert_eq!(unknown(&old, &new), nested.into_iter().zip(became).collect::<Vec<_>>(), "it has another in it");
}

#[test]
fn ten_changes_cost_what_ten_changes_cost() {
    let scratch = Scratch::new();
    let old = subvolume(&scratch.path(), "old");
    sh("tar", &["-xf", debian().to_str().expect("a plain path"), "-C", old.to_str().expect("a plain path")]);
    let new = snapshot(&old, "new");
    for path in all(&new).iter().filter(|path| path.is_file() && !path.is_symlink()).step_by(600).take(10) {
        fs::write(path, "changed").expect("written");
    }
    let [old, new] = [old, new].map(|path| File::open(path).expect("a directory"));
    let least = |work: &dyn Fn() -> usize| {
        let once = |_| {
            let start = Instant::now();
            assert!(work() >= 10);
            start.elapsed()
        };
        (0..7).map(once).min().expect("some")
    };
    let known = least(&|| known_changes(old.as_fd(), new.as_fd()).expect("a diff").expect("related").len());
    let walked = least(&|| walked_changes(Some(old.as_fd()), new.as_fd()).expect("a diff").len());
    assert!(known * 10 < walked, "known {known:?}, walked {walked:?}");
}
