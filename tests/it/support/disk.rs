//! A filesystem of a test's own: a sparse file, a loop device, a mount; gone when dropped, after a panic too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

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
        Disk::prepared(|image| {
            std::fs::File::create(image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
            sh(mkfs[0], &[&mkfs[1..], &[image.to_str().expect("a plain path")]].concat());
        })
    }

    /// The filesystem in the file that `make` makes at the path that it is given.
    pub fn prepared(make: impl FnOnce(&Path)) -> Disk {
        need_root();
        let disk = Disk { dir: scratch() };
        make(&disk.image());
        std::fs::create_dir(disk.path()).expect("a mount point");
        let [image, at] = [disk.image(), disk.path()].map(|path| path.to_str().expect("a plain path").to_string());
        sh("mount", &["-o", "loop,noatime", &image, &at]);
        disk
    }

    /// The file that the filesystem is in.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    /// The paths of all subvolumes, sorted, relative to the top; btrfs only.
    pub fn subvolumes(&self) -> Vec<String> {
        subvolumes(&self.path())
    }

    /// The bytes of data that a btrfs says are in use, when all that was removed is gone.
    pub fn data(&self) -> u64 {
        let at = self.path();
        let at = at.to_str().expect("a plain path");
        for what in ["filesystem", "subvolume", "filesystem"] {
            sh("btrfs", &[what, "sync", at]);
        }
        let found = sh("btrfs", &["filesystem", "df", "--raw", at]);
        let line = found.lines().find(|line| line.starts_with("Data, single")).expect("its data");
        line.rsplit_once("used=").expect("what is used").1.parse().expect("a number")
    }

    /// Unmounts it now, and fails the test if something keeps it busy. The file stays as long as this value.
    pub fn unmount(&self) {
        assert!(unmount_below(self.dir.path()), "{} stays busy", self.path().display());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        release(self.dir.path());
    }
}

/// A block device, without a filesystem as yet; gone when dropped. Sparse.
pub struct Device {
    _dir: TempDir,
    path: String,
}

impl Device {
    pub fn new(bytes: u64) -> Device {
        need_root();
        let dir = scratch();
        let image = dir.path().join("device.img");
        std::fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        let path = sh("losetup", &["--find", "--show", image.to_str().expect("a plain path")]);
        Device { _dir: dir, path }
    }

    /// What it is called.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A directory of a test's own.
pub fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("tupper-test-").tempdir().expect("a scratch directory")
}

/// Unmounts everything below `dir`, at the end of a test. What stays busy fails the test, unless it failed before.
pub fn release(dir: &Path) {
    if !unmount_below(dir) {
        let (mounts, devices) = (mounts_below(dir), loop_devices_below(dir));
        // Something still holds it: out of the way at least, so that the directory can be removed.
        for mount in mounts.iter().rev() {
            let _ = Command::new("umount").arg("--lazy").arg(mount).status();
        }
        if !std::thread::panicking() {
            panic!("stayed busy: mounts {mounts:?}, loop devices {devices:?}");
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

/// Unmounts everything below `dir`, innermost first; a loop device lets go of its file a moment after its mount. Tries are
/// counted, not time: on a busy disk one of them takes as long as it takes.
fn unmount_below(dir: &Path) -> bool {
    for _ in 0..5000 {
        for mount in mounts_below(dir).iter().rev() {
            let _ = Command::new("umount").arg("--quiet").arg(mount).stderr(Stdio::null()).status();
        }
        let devices = loop_devices_below(dir);
        if devices.is_empty() && mounts_below(dir).is_empty() {
            return true;
        }
        for device in devices.iter().filter_map(|line| line.split(' ').next()) {
            // One that was attached and not mounted does not go by itself.
            let _ = Command::new("losetup").arg("--detach").arg(device).stderr(Stdio::null()).status();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
