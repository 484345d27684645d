//! What a run may leave on a host: counted before and after, by name, so that a difference says what it is.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::disk;

/// One thing a line: mounts, loop devices and subvolumes of one directory; cgroups, processes and run state of tupper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What there is now, in and below `top` (a mounted btrfs) and on the host.
    pub fn of(top: &Path) -> Traces {
        let mut found = Traces::outside(top);
        found.0.extend(disk::subvolumes(top).into_iter().map(|path| format!("subvolume {path}")));
        found
    }

    /// The same without subvolumes, for a directory on any filesystem.
    pub fn outside(top: &Path) -> Traces {
        let mut found = BTreeSet::new();
        // Mounts are counted, not named once: two on one point are two.
        for (nth, mount) in disk::mounts_below(top).into_iter().enumerate() {
            found.insert(format!("mount {nth} {}", mount.display()));
        }
        found.extend(disk::loop_devices_below(top).into_iter().map(|device| format!("loop device {device}")));
        found.extend(cgroups().into_iter().map(|path| format!("cgroup {}", path.display())));
        found.extend(processes().into_iter().map(|pid| format!("process {pid}")));
        found.extend(files_below(Path::new("/run/tupper")).into_iter().map(|path| format!("run {}", path.display())));
        Traces(found)
    }

    /// Fails the test unless there is now exactly what there was.
    #[track_caller]
    pub fn assert_same(&self, now: &Traces) {
        let more: Vec<_> = now.0.difference(&self.0).collect();
        let gone: Vec<_> = self.0.difference(&now.0).collect();
        assert!(more.is_empty() && gone.is_empty(), "left behind: {more:#?}\ngone: {gone:#?}");
    }

    /// The lines that begin with this.
    pub fn named(&self, kind: &str) -> Vec<&str> {
        self.0.iter().map(String::as_str).filter(|line| line.starts_with(kind)).collect()
    }
}

/// The cgroups of containers, on any hierarchy: inside one named after tupper, and called by a store's and a container's id.
fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        // One that goes away while it is read is not left behind.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.iter().any(is_id) && dir.iter().any(|part| part.to_string_lossy().starts_with("tupper")) {
                    found.push(path.clone());
                }
                todo.push(path);
            }
        }
    }
    found
}

fn is_id(part: &OsStr) -> bool {
    let id = part.as_encoded_bytes().rsplit(|byte| *byte == b'-').next().unwrap_or_default();
    id.len() == 64 && id.iter().all(u8::is_ascii_hexdigit)
}

/// The processes of the binary under test, and the zombies that it or this test has not waited for. Those that the host's
/// init has adopted are its own to wait for, and it may take its time. What another run of tests has started, perhaps with
/// the same binary, is that one's.
fn processes() -> Vec<String> {
    let name = Path::new(env!("CARGO_BIN_EXE_tupper"));
    let is_tupper = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == name);
    let mut above_us = vec![std::process::id()];
    above_us.extend(ancestors(std::process::id()));
    let is_ours = |pid: u32| {
        let above = ancestors(pid);
        // An orphan's parent is one of ours, too: init, or whoever adopts.
        let first = above.iter().find(|pid| !is_tupper(pid));
        above.contains(&std::process::id()) || first.is_none_or(|pid| above_us.contains(pid))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let mut found: Vec<u32> = pids.iter().copied().filter(is_tupper).filter(|pid| is_ours(*pid)).collect();
    let parents: Vec<u32> = found.iter().copied().chain([std::process::id()]).collect();
    let is_zombie = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (name, rest) = stat.rsplit_once(") ").unwrap_or_default();
        name.contains("(tupper") && rest.starts_with("Z ")
    };
    let adopted = |pid: &u32| !ancestors(*pid).first().is_some_and(|parent| parents.contains(parent));
    found.extend(pids.iter().filter(|pid| is_zombie(pid) && !adopted(pid)));
    found.iter().map(u32::to_string).collect()
}

/// The parent of a process, its parent, and so on.
fn ancestors(pid: u32) -> Vec<u32> {
    let parent = |pid: &u32| -> Option<u32> {
        // proc_pid_stat(5): after the name, in parentheses, come the state and the parent.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        (parent != 0).then_some(parent)
    };
    std::iter::successors(parent(&pid), parent).collect()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => found.extend(files_below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}
