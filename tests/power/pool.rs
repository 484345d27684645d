//! The warm pool after a power cut: what somebody had is nobody's.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::machine::text;
use crate::recorder::{Filesystem, Recorder};
use crate::support::command::Tupper;
use crate::support::store::Host;
use crate::support::{busybox, eventually, sh};
use crate::tape::Unflushed;

fn entries(tupper: &Tupper) -> Vec<PathBuf> {
    std::fs::read_dir(tupper.root().join("fs/pool")).expect("a pool").flatten().map(|entry| entry.path()).collect()
}

/// The mark of one that is ready: the boot, the last change, the last writing of its tree, the layer.
fn mark(entry: &Path) -> Option<Vec<String>> {
    let mut text = [0; 100];
    let size = rustix::fs::getxattr(entry, "user.tupper.ready", &mut text[..]).ok()?;
    Some(std::str::from_utf8(&text[..size]).expect("text").split(' ').map(str::to_string).collect())
}

#[test]
fn what_somebody_had_is_nobodys() {
    cut_while_somebody_has_one(true);
}

#[test]
fn what_somebody_had_that_was_not_written_in_before_is_nobodys() {
    cut_while_somebody_has_one(false);
}

fn cut_while_somebody_has_one(written: bool) {
    let _host = Host::shared();
    let recorder = Recorder::new(Filesystem::Btrfs);
    let warm = |path: PathBuf| Tupper::new(path.join("store")).with_env("TUPPER_POOL", "on");
    let tupper = warm(recorder.path());
    tupper.ok_with("image import --name busybox", &[text(&busybox())]);
    // The first run finds none, and writes what every container has in its own: so those that are made then are written in.
    tupper.ok("run --rm busybox true");
    let ready = || entries(&tupper).into_iter().filter_map(|path| Some((mark(&path)?, path))).collect::<Vec<_>>();
    let are_ready = |count| {
        eventually(&format!("{count} are ready"), Duration::from_secs(60), || {
            tupper.root().join("fs/pool").exists() && ready().len() == count
        });
    };
    are_ready(8);
    let is_written = |mark: &[String]| mark[1] == mark[2];
    if !written {
        (0..4).for_each(|_| drop(tupper.ok("run --rm busybox true")));
        are_ready(16);
        for (_, path) in ready().iter().filter(|(mark, _)| is_written(mark)) {
            sh("btrfs", &["subvolume", "delete", text(&path.join("rootfs"))]);
            std::fs::remove_dir(path).expect("remove it");
        }
    }
    let marks: Vec<_> = ready().into_iter().map(|(mark, _)| mark).collect();
    assert!(!marks.is_empty() && marks.iter().all(|mark| is_written(mark) == written), "{marks:?}");
    sh("sync", &["--file-system", text(tupper.root())]);

    let script = "echo text >/mine; sync /mine; echo ready; read line";
    let mut command = tupper.command("run --rm --interactive busybox", &["sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tupper");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("read");
    assert_eq!(line, "ready\n");
    let moment = recorder.now();
    drop(child.stdin.take());
    assert!(child.wait().expect("wait").code().is_some());
    // Nobody fills the pool any more: more than half are there.
    let recording = recorder.stop();

    for unflushed in [Unflushed::Lost, Unflushed::Kept, Unflushed::Mixed(1)] {
        let disk = recording.cut(moment, unflushed);
        let tupper = warm(disk.path());
        // The rename was not on the disk yet, and what was fsynced was: as if it were ready, and in the same boot.
        let back: Vec<_> = entries(&tupper)
            .into_iter()
            .filter(|path| path.join("rootfs/mine").exists() && mark(path).is_some())
            .collect();
        assert_eq!(back.len(), 1, "{unflushed:?}");
        for _ in 0..6 {
            let seen = tupper.ok("run --rm busybox ls /");
            assert!(!seen.contains("mine"), "{unflushed:?}: {seen}");
        }
        eventually("it was cleared", Duration::from_secs(60), || !back[0].exists());
        assert_eq!(tupper.ok("store check"), "", "{unflushed:?}");
        recording.assert_sound(&disk);
    }
}
