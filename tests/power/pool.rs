//! The warm pool after a power cut: what somebody had is nobody's.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
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

#[test]
fn what_somebody_had_is_nobodys() {
    let _host = Host::shared();
    let recorder = Recorder::new(Filesystem::Btrfs);
    let warm = |path: PathBuf| Tupper::new(path.join("store")).with_env("TUPPER_POOL", "on");
    let tupper = warm(recorder.path());
    tupper.ok_with("image import --name busybox", &[text(&busybox())]);
    tupper.ok("run --rm busybox true");
    let is_ready = |path: &PathBuf| rustix::fs::getxattr(path, "user.tupper.ready", &mut [0; 100][..]).is_ok();
    eventually("eight are ready", Duration::from_secs(60), || {
        tupper.root().join("fs/pool").exists() && entries(&tupper).iter().filter(|path| is_ready(path)).count() == 8
    });
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
    // Nobody fills the pool any more: seven of eight are there.
    let recording = recorder.stop();

    for unflushed in [Unflushed::Lost, Unflushed::Kept, Unflushed::Mixed(1)] {
        let disk = recording.cut(moment, unflushed);
        let tupper = warm(disk.path());
        // The rename was not on the disk yet, and what was fsynced was: as if it were ready, and in the same boot.
        let back: Vec<_> =
            entries(&tupper).into_iter().filter(|path| path.join("rootfs/mine").exists() && is_ready(path)).collect();
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
