//! Device nodes and what stands in for them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::attack::{Target, text};
use crate::support::canary::Canary;
use crate::support::command::finish;
use crate::support::disk::scratch;
use crate::support::pty::Pty;

/// A block device of a test's own, with something to read on it.
struct Block {
    dir: tempfile::TempDir,
    name: String,
    number: u64,
}

impl Block {
    fn new() -> Block {
        let dir = scratch();
        let file = dir.path().join("disk");
        fs::write(&file, "the host's disk\n".repeat(4096)).expect("a file");
        let name = crate::support::sh("losetup", &["--find", "--show", text(&file)]);
        let number = std::os::unix::fs::MetadataExt::rdev(&fs::metadata(&name).expect("a device"));
        Block { dir, name, number }
    }

    /// A node of it that everybody may open.
    fn node(&self, at: &Path) {
        mknod(at, SFlag::S_IFBLK, Mode::from_bits_truncate(0o666), self.number).expect("mknod");
        fs::set_permissions(at, fs::Permissions::from_mode(0o666)).expect("chmod");
    }

    fn assert_untouched(&self) {
        assert!(fs::read(self.dir.path().join("disk")).expect("the file").starts_with(b"the host's disk\n"));
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        crate::support::sh("losetup", &["--detach", &self.name]);
    }
}

#[test]
fn device_nodes_of_images_and_volumes_are_not_opened() {
    let block = Block::new();
    let volume = scratch();
    block.node(&volume.path().join("disk"));
    let target = Target::with(|root| {
        block.node(&root.join("disk"));
        mknod(&root.join("memory"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 1)).expect("mknod");
    });
    // The attack is real: on the host the node is a disk.
    let mut command = Command::new("head");
    command.args(["-n1", text(&volume.path().join("disk"))]);
    assert_eq!(finish(command).ok(), "the host's disk");
    let script = "for f in /disk /memory /v/disk; do [ -b $f ] || [ -c $f ] || echo missing $f; \
                  head -c 1 $f; echo x > $f; done; mknod /tmp/d b 7 0; mknod /dev/d b 7 0; head -c 1 /tmp/d /dev/d";
    for flags in ["", "--init", "-u nobody", "-u 0:6"] {
        let done = target.sh(&format!("{flags} -v {}:/v", text(volume.path())), script);
        assert_eq!(done.stdout, "", "{done}");
        assert!(done.stderr.matches("denied").count() >= 6, "{done}");
    }
    block.assert_untouched();
}

/// CVE-2025-31133 and CVE-2025-52565: what is bound over masked paths and the console was looked up in the image.
#[test]
fn links_at_the_devices_of_an_image_lead_nowhere() {
    let canary = Canary::new();
    let names = ["null", "console", "tty", "zero", "ptmx", "pts", "shm", "mqueue", "fd", "stdin", "core"];
    for to in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", text(&canary.path().join("etc/passwd"))] {
        let target = Target::with(|root| {
            fs::remove_dir_all(root.join("dev")).expect("remove");
            fs::create_dir(root.join("dev")).expect("mkdir");
            for name in names {
                symlink(to, root.join("dev").join(name)).expect("a link");
            }
        });
        let script = "stat -c '%n %F %t:%T' /dev/null /dev/zero; wc -c < /proc/keys; \
                      for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do echo x > $f && echo written; done";
        let done = target.sh("", script);
        assert_eq!(
            done.stdout, "/dev/null character special file 1:3\n/dev/zero character special file 1:5\n0\n",
            "{done}"
        );
        let inside = "stat -c '%F' /dev/console; tty; echo x > /proc/sys/kernel/core_pattern || echo end";
        let mut terminal = Pty::spawn(&target.command("run --rm -it attack sh -c", &[inside]));
        terminal.expect("character special file");
        terminal.expect("end");
        assert_eq!(terminal.wait().0, 0);
    }
    canary.assert_untouched();
}
