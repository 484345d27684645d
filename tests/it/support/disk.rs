//! A filesystem of a test's own: a sparse file, a loop device, a mount; gone when dropped, after a panic too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{need_root, sh};

/// A mounted filesystem on a file. Everything mounted below it goes with it.
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// A btrfs of 4 GiB (sparse) with the node size that stores use.
    pub fn btrfs() -> Disk {
        Disk::btrfs_of(4 << 30)
    }

    /// One of this size.
    pub fn btrfs_of(bytes: u64) -> Disk {
        Disk::new(bytes, &["mkfs.btrfs", "--quiet", "--nodesize", "8192"])
    }

    /// An ext4: a filesystem without snapshots, for a store to be embedded in.
    pub fn ext4(bytes: u64) -> Disk {
        Disk::new(bytes, &["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"])
    }

    fn new(bytes: u64, mkfs: &[&str]) -> Disk {
        need_root();
        let dir = tempfile::Builder::new().prefix("tupper-test-").tempdir().expect("a scratch directory");
        let disk = Disk { dir };
        let image = disk.dir.path().join("disk.img");
        std::fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        std::fs::create_dir(disk.path()).expect("a mount point");
        let image = image.to_str().expect("a plain path");
        sh(mkfs[0], &[&mkfs[1..], &[image]].concat());
        sh("mount", &["-o", "loop,noatime", image, disk.path().to_str().expect("a plain path")]);
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    /// The paths of all subvolumes, sorted, relative to the top; btrfs only.
    pub fn subvolumes(&self) -> Vec<String> {
        subvolumes(&self.path())
    }

    /// Unmounts it now, and fails the test if something keeps it busy.
    pub fn unmount(self) {
        assert!(unmount_below(self.dir.path()), "{} stays busy", self.path().display());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !unmount_below(self.dir.path()) {
            let (mounts, devices) = (mounts_below(self.dir.path()), loop_devices_below(self.dir.path()));
            // Something still holds it: out of the way at least, so that the directory can be removed.
            for mount in mounts.iter().rev() {
                let _ = Command::new("umount").arg("--lazy").arg(mount).status();
            }
            if !std::thread::panicking() {
                panic!("stayed busy: mounts {mounts:?}, loop devices {devices:?}");
            }
        }
    }
}

/// The paths of all subvolumes of the btrfs mounted at `top`, sorted.
pub fn subvolumes(top: &Path) -> Vec<String> {
    let listed = sh("btrfs", &["subvolume", "list", top.to_str().expect("a plain path")]);
    let mut paths: Vec<String> =
        listed.lines().filter_map(|line| line.split_once(" path ")).map(|(_, path)| path.to_string()).collect();
    paths.sort();
    paths
}

/// The mount points below `dir`, outermost first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    // proc_pid_mountinfo(5): the fifth field is the mount point; scratch directories have no character it escapes.
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|at| at.starts_with(dir))
        .collect()
}

/// The loop devices whose backing file lies below `dir`, as `DEVICE FILE`.
pub fn loop_devices_below(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("a plain path");
    sh("losetup", &["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"])
        .lines()
        .filter(|line| line.split_once(' ').is_some_and(|(_, file)| file.starts_with(dir)))
        .map(str::to_string)
        .collect()
}

/// Unmounts everything below `dir`, innermost first; a loop device lets go of its file a moment after its mount.
fn unmount_below(dir: &Path) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        for mount in mounts_below(dir).iter().rev() {
            let _ = Command::new("umount").arg("--quiet").arg(mount).stderr(std::process::Stdio::null()).status();
        }
        let clear = mounts_below(dir).is_empty() && loop_devices_below(dir).is_empty();
        if clear || Instant::now() > end {
            return clear;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
