//! A filesystem that becomes read-only under a command, and a device that fails.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::StatVfsMountFlags;
use tempfile::TempDir;

use super::real::{clean, failed_by, fill, furnish, header, intact};
use super::scene::text;
use crate::support::command::{Done, Tupper, wait};
use crate::support::disk::{self, Disk};
use crate::support::store::Host;
use crate::support::{busybox, eventually, sh};

const SIZE: u64 = 512 << 20;

/// A command that goes on beside the test.
pub struct Beside {
    child: Child,
    out: File,
    err: File,
    what: String,
}

impl Beside {
    pub fn start(mut command: Command) -> Beside {
        let (out, err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        command.stdin(Stdio::piped());
        command.stdout(out.try_clone().expect("dup")).stderr(err.try_clone().expect("dup"));
        Beside { child: command.spawn().expect("a child"), out, err, what: format!("{command:?}") }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.child.stdin.as_mut().expect("a pipe").write_all(bytes)
    }

    /// Its input ends, and it.
    pub fn end(mut self) -> Done {
        drop(self.child.stdin.take());
        let status = wait(self.child, &self.what);
        Done::of(self.what, status, self.out, self.err)
    }
}

/// The kernel makes nothing read-only in which a file is open for writing, if only for a moment more.
pub fn remount(disk: &Disk, how: &str) {
    eventually(&format!("it is {how}"), Duration::from_secs(120), || {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(disk.path()).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    });
}

/// The bytes of a small file in an archive.
fn entry(name: &str) -> Vec<u8> {
    [header(name, 512).as_bytes(), &[7; 512][..]].concat()
}

#[test]
fn a_filesystem_becomes_read_only_during_an_import() {
    let _host = Host::alone();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    let mut import = Beside::start(store.command("image import --name more -", &[]));
    // Whole buffers, so that what is in them is applied before the rest has come.
    for number in 0..2000 {
        import.write(&entry(&number.to_string())).expect("it reads");
    }
    let staging = store.root().join("fs/staging");
    let drafts = || staging.read_dir().into_iter().flatten().flatten().map(|entry| entry.path().join("rootfs/500"));
    eventually("a part is unpacked", Duration::from_secs(120), || drafts().any(|path| path.exists()));
    remount(&disk, "ro");
    // It may have given up before it has read all.
    let _ = (0..2000).try_for_each(|number| import.write(&entry(&format!("more-{number}"))));
    failed_by(import.end(), 1, &["unpack layer: create ", "read-only file system"]);
    intact(&store);
    remount(&disk, "rw");
    intact(&store);
    clean(&store);
}

#[test]
fn a_command_that_ends_on_a_read_only_filesystem_gives_its_status_all_the_same() {
    let _host = Host::alone();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    for line in ["run -i --name ends base sh -c", "run -i --rm base sh -c", "start -a -i waits"] {
        let line = match line.starts_with("start") {
            true => {
                store.ok_with("create -i --name waits base sh -c", &["read x; exit 7"]);
                store.command("start -a -i waits", &[])
            }
            false => store.command(line, &["read x; exit 7"]),
        };
        let mut run = Beside::start(line);
        eventually("it runs", Duration::from_secs(120), || !store.ok("ps -q").is_empty());
        remount(&disk, "ro");
        run.write(b"\n").expect("it reads");
        let done = run.end().status(7);
        assert!(done.stderr.starts_with("tupper: warning: "), "it could not note that it ended: {done}");
        remount(&disk, "rw");
        store.ok("store gc");
        assert_eq!(store.run("store check").status(0).stdout, "");
    }
    assert_eq!(store.lines("ps -a -q").len(), 4, "box, spare, ends and waits");
    intact(&store);
    clean(&store);
}

#[test]
fn an_embedded_store_that_is_read_only() {
    let _host = Host::alone();
    let disk = Disk::ext4(1 << 30);
    let store = Tupper::new(disk.path().join("store"));
    store.ok("store init --size 512M");
    furnish(&store);
    let fs = store.root().join("fs");
    sh("mount", &["-o", "remount,ro", text(&fs)]);
    intact(&store);
    for line in ["snapshot create base", "snapshot rm web", "image tag base more", "store gc"] {
        failed_by(store.run(line), 125, &["its filesystem is read-only"]);
    }
    let error = store.fails(125, "run --rm base true");
    assert!(error.contains("hint: ") && error.contains("store umount"), "{error}");
    // As the hint says.
    store.ok("store umount");
    clean(&store);
    store.ok("store umount");
    // Nobody can mount what lies on a filesystem that is read-only.
    remount(&disk, "ro");
    failed_by(store.run("image ls"), 125, &["store.btrfs: open: read-only file system"]);
    remount(&disk, "rw");
    intact(&store);
    clean(&store);
}

#[test]
fn an_embedded_filesystem_that_gave_up_is_mounted_anew() {
    let _host = Host::alone();
    let disk = Disk::ext4(1 << 30);
    let store = Tupper::new(disk.path().join("store"));
    store.ok("store init --size 700M");
    let keep = furnish(&store);
    let (fs, ballast) = (store.root().join("fs"), disk.path().join("ballast"));
    std::fs::create_dir(&ballast).expect("a directory");
    fill(&ballast, false);
    // What is written past tupper, by a container or the host, is accepted, and then there is no room for it.
    let read_only = || rustix::fs::statvfs(&fs).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    for number in 0..100 {
        let _ = std::fs::write(keep.join(format!("lost-{number}")), vec![7; 8 << 20]);
        let _ = Command::new("sync").arg("--file-system").arg(&fs).stderr(Stdio::null()).status();
        if read_only() {
            break;
        }
    }
    assert!(read_only(), "it has not given up");
    // What it could not write is not to be read again: proc_sys_vm(5).
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
    for line in ["image ls", "snapshot ls", "ps -a", "inspect box", "store check", "store info", "snapshot rm web"] {
        try_it(&store, line);
    }
    store.ok("store umount");
    std::fs::remove_dir_all(&ballast).expect("removed");
    intact(&store);
    clean(&store);
    store.ok_with("image import --name more", &[text(&busybox())]);
}

/// A btrfs on a device that fails when it is told to: a loop device on nbdfuse(1) on nbdkit(1).
struct Device {
    nbdfuse: Child,
    dir: TempDir,
}

impl Device {
    /// `calls` are those that can fail: `pread` or `pwrite` (nbdkit-error-filter(1)).
    fn new(calls: &str) -> Device {
        let dir = disk::scratch();
        let top = dir.path().to_path_buf();
        let path = |name: &str| text(&top.join(name)).to_string();
        File::create(path("disk.img")).and_then(|file| file.set_len(SIZE)).expect("a sparse file");
        sh("mkfs.btrfs", &["--quiet", "--nodesize", "8192", &path("disk.img")]);
        File::create(path("device")).expect("a mount point");
        std::fs::create_dir(path("fs")).expect("a mount point");
        let mut command = Command::new("nbdfuse");
        command.args([&path("device"), "--command", "nbdkit", "--single", "--filter=error", "file", &path("disk.img")]);
        command.args(["error=EIO", &format!("error-{calls}-rate=100%"), &format!("error-file={}", path("broken"))]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let nbdfuse = command.spawn().unwrap_or_else(|e| panic!("nbdfuse: {e}; type: make setup"));
        let device = Device { nbdfuse, dir };
        eventually("nbdfuse is ready", Duration::from_secs(120), || {
            std::fs::metadata(path("device")).is_ok_and(|found| found.len() == SIZE)
        });
        device.mount();
        device
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    fn mount(&self) {
        let device = sh("losetup", &["--find", "--show", "--direct-io=on", text(&self.dir.path().join("device"))]);
        sh("mount", &["-o", "noatime", &device, text(&self.path())]);
        // It is busy now, so it detaches itself when it is unmounted (loop(4), LOOP_CLR_FD).
        sh("losetup", &["--detach", &device]);
    }

    /// Nothing that was read is remembered.
    fn mount_again(&self) {
        sh("umount", &[text(&self.path())]);
        self.mount();
    }

    fn set_broken(&self, broken: bool) {
        let file = self.dir.path().join("broken");
        if broken { drop(File::create(file).expect("a file")) } else { std::fs::remove_file(file).expect("removed") }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.dir.path().join("broken"));
        disk::release(self.dir.path());
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

const LINES: [&str; 10] = [
    "image import --name more BUSYBOX",
    "image tag base more",
    "snapshot create base more",
    "snapshot rm web",
    "create base true",
    "rm spare",
    "run --rm base true",
    "start -a box",
    "store gc",
    "image rm --force base",
];

/// It fails, or what it does needed no device; but it ends, and says why.
fn try_it(store: &Tupper, line: &str) {
    let done = store.run(&line.replace("BUSYBOX", text(&busybox())));
    if done.status != 0 {
        let status = if done.status == 125 { 125 } else { 1 };
        failed_by(done, status, &["I/O error", "read-only"]);
    }
}

#[test]
fn a_device_that_takes_no_more_writes() {
    let _host = Host::alone();
    // Without TUPPER_SWEEP=whole some of them are enough.
    let whole = std::env::var("TUPPER_SWEEP").is_ok_and(|wanted| wanted == "whole");
    for first in LINES.into_iter().step_by(if whole { 1 } else { 4 }) {
        let device = Device::new("pwrite");
        let store = Tupper::new(device.path().join("store"));
        furnish(&store);
        store.ok("start -a box");
        sh("sync", &["--file-system", text(&device.path())]);
        device.set_broken(true);
        // The first finds it out, or nobody before the next commit: then the kernel makes it read-only.
        for line in [first, "image import --name more BUSYBOX", "image ls", "snapshot ls", "ps -a", "store check"] {
            try_it(&store, line);
        }
        device.set_broken(false);
        device.mount_again();
        // What was acknowledged as durable is there; what was only removed may be back.
        assert!(store.ok("snapshot ls").contains("keep"));
        let keep = PathBuf::from(store.ok("snapshot path keep"));
        assert_eq!(std::fs::read_to_string(keep.join("kept")).expect("a file"), "from before\n");
        clean(&store);
        store.ok("snapshot create keep again");
    }
}

#[test]
fn a_device_that_gives_nothing_back() {
    let _host = Host::alone();
    let device = Device::new("pread");
    let store = Tupper::new(device.path().join("store"));
    furnish(&store);
    store.ok("start -a box");
    for line in
        LINES.into_iter().chain(["image ls", "snapshot ls", "ps -a", "inspect box", "store check", "store info"])
    {
        device.mount_again();
        // The tree's root is in memory, and whatever else mounting it has read.
        store.ok("image ls");
        device.set_broken(true);
        try_it(&store, line);
        device.set_broken(false);
    }
    device.mount_again();
    assert!(store.ok("snapshot ls").contains("keep"));
    clean(&store);
}
