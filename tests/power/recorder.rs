//! A filesystem that is written to while everything that reaches its disk is recorded.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::nbd;
use crate::support::disk::{self, Disk};
use crate::support::{eventually, need_root, sh};
use crate::tape::{Tape, Unflushed};

const SIZE: u64 = 2 << 30;

/// The filesystems that hosts have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    Btrfs,
    Ext4,
    Xfs,
}

impl Filesystem {
    /// Makes one as mkfs does by default; btrfs with the node size that stores use.
    fn make(self, image: &str) {
        match self {
            Filesystem::Btrfs => sh("mkfs.btrfs", &["--quiet", "--nodesize", "8192", image]),
            Filesystem::Ext4 => sh("mkfs.ext4", &["-q", "-E", "lazy_itable_init=1,nodiscard", "-m", "0", image]),
            Filesystem::Xfs => sh("mkfs.xfs", &["-q", "-K", image]),
        };
    }

    /// Looks for damage, with the filesystem unmounted, and repairs nothing.
    fn check(self, image: &Path) {
        let image = image.to_str().expect("a plain path");
        match self {
            Filesystem::Btrfs => sh("btrfs", &["check", "--readonly", image]),
            Filesystem::Ext4 => sh("e2fsck", &["-f", "-n", image]),
            Filesystem::Xfs => sh("xfs_repair", &["-n", image]),
        };
    }
}

/// The mounted filesystem, and below it a loop device on nbdfuse(1) on a server in a thread of the test.
pub struct Recorder {
    // Dropped first: it lies in the directory of the other.
    mount: Mount,
    recording: Recording,
}

/// What was recorded, for as many power cuts as one likes.
pub struct Recording {
    filesystem: Filesystem,
    tape: Arc<Tape>,
    dir: TempDir,
}

struct Mount {
    dir: PathBuf,
    nbdfuse: Child,
}

impl Recorder {
    pub fn new(filesystem: Filesystem) -> Recorder {
        need_root();
        let dir = disk::scratch();
        let path = |name: &str| dir.path().join(name).to_str().expect("a plain path").to_string();
        let live = File::options().read(true).write(true).create_new(true).open(path("live.img")).expect("a file");
        live.set_len(SIZE).expect("a sparse file");
        filesystem.make(&path("live.img"));
        sh("cp", &["--sparse=always", &path("live.img"), &path("base.img")]);

        let tape = Arc::new(Tape::new(dir.path().join("base.img")));
        let listener = UnixListener::bind(path("socket")).expect("a socket");
        std::thread::spawn({
            let tape = tape.clone();
            move || {
                let (client, _) = listener.accept().expect("a client");
                nbd::serve(client, &live, &tape).expect("serve the disk");
            }
        });
        File::create(path("device")).expect("a mount point");
        let nbdfuse = Command::new("nbdfuse")
            .args([&path("device"), "--unix", &path("socket")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("nbdfuse: {e}; type: make setup"));
        let mount = Mount { dir: dir.path().to_path_buf(), nbdfuse };
        eventually("nbdfuse is ready", Duration::from_secs(120), || {
            std::fs::metadata(path("device")).is_ok_and(|meta| meta.len() == SIZE)
        });
        let device = sh("losetup", &["--find", "--show", "--direct-io=on", &path("device")]);
        assert_eq!(sh("losetup", &["--noheadings", "--output", "DIO", &device]), "1", "writes stay in the page cache");
        std::fs::create_dir(path("fs")).expect("a mount point");
        sh("mount", &["-o", "noatime", &device, &path("fs")]);
        // It is busy now, so it detaches itself when it is unmounted (loop(4), LOOP_CLR_FD).
        sh("losetup", &["--detach", &device]);
        Recorder { mount, recording: Recording { filesystem, tape, dir } }
    }

    /// Where the filesystem is mounted.
    pub fn path(&self) -> PathBuf {
        self.mount.dir.join("fs")
    }

    /// The moment that is now.
    pub fn now(&self) -> usize {
        self.recording.tape.now()
    }

    /// Ends the recording.
    pub fn stop(self) -> Recording {
        drop(self.mount);
        std::fs::remove_file(self.recording.dir.path().join("live.img")).expect("remove what nobody needs any more");
        self.recording
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        disk::release(&self.dir);
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

impl Recording {
    /// The moment at which it ended.
    pub fn end(&self) -> usize {
        self.tape.now()
    }

    /// The disk after a power cut at `moment`, mounted.
    pub fn cut(&self, moment: usize, unflushed: Unflushed) -> Disk {
        Disk::prepared(|image| self.tape.cut(moment, unflushed, image))
    }

    /// Fails the test if the filesystem of a [cut](Recording::cut) disk, which is unmounted for that, is damaged.
    pub fn assert_sound(&self, disk: &Disk) {
        disk.unmount();
        self.filesystem.check(&disk.image());
    }
}
