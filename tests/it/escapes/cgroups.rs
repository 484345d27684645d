//! Control groups: the release agent, and what lies above the container's own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::attack::{Target, text};
use crate::support::command::{Done, finish};
use crate::support::disk::scratch;
use crate::support::{eventually, sh};

/// The hierarchy's: without a controller, so that every host lets it be made.
const NAME: &str = "release-escape";

/// A cgroup v1 hierarchy that nobody else uses, and a program that the kernel would run as the host's root.
struct Hierarchy {
    dir: tempfile::TempDir,
}

impl Hierarchy {
    fn new() -> Hierarchy {
        let dir = scratch();
        let agent = dir.path().join("agent");
        fs::write(&agent, format!("#!/bin/sh\necho owned > {}\n", text(&dir.path().join("owned")))).expect("a script");
        fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        fs::create_dir(dir.path().join("fs")).expect("mkdir");
        Hierarchy { dir }
    }

    fn at(&self) -> String {
        text(&self.dir.path().join("fs")).to_string()
    }

    fn agent(&self) -> String {
        text(&self.dir.path().join("agent")).to_string()
    }

    fn ran(&self) -> bool {
        self.dir.path().join("owned").exists()
    }

    /// The attack of CVE-2022-0492 in shell: an own hierarchy, an agent, a group that becomes empty.
    fn attack(&self, at: &str) -> String {
        format!(
            "mkdir -p {at}; mount -t cgroup -o none,name=release-escape none {at} || exit 3; mkdir -p {at}/x; \
             echo {} > {at}/release_agent || exit 4; echo 1 > {at}/x/notify_on_release || exit 5; \
             sh -c \"echo \\$\\$ > {at}/x/cgroup.procs\"; sleep 1; echo attacked",
            self.agent()
        )
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        // A hierarchy ends when it is unmounted without a group, which it has for a moment after the group's removal; and it
        // is listed for a moment after its end.
        let _ = fs::remove_dir(self.dir.path().join("fs/x"));
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(500));
            let _ = Command::new("umount").arg("--quiet").arg(self.at()).status();
            let listed = || fs::read_to_string("/proc/self/cgroup").is_ok_and(|groups| groups.contains(NAME));
            for _ in 0..20 {
                if !listed() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            let _ = Command::new("mount")
                .args(["-t", "cgroup", "-o"])
                .arg(format!("none,name={NAME}"))
                .arg("none")
                .arg(self.at())
                .status();
        }
    }
}

/// CVE-2022-0492: whoever may write release_agent runs a program as the host's root.
#[test]
fn no_release_agent_is_set() {
    let hierarchy = Hierarchy::new();
    let target = Target::alone();
    let attack = hierarchy.attack("/tmp/hierarchy");
    let nested = format!("/attack/nested sh -c '{}'", attack.replace('\'', "'\\''"));
    let existing = format!(
        "for f in $(find /sys/fs/cgroup -name release_agent -o -name notify_on_release -o -name cgroup.procs); do \
         (echo {} > $f) 2>&- && echo written $f; done; find /sys/fs/cgroup -maxdepth 2 -type d | while read d; do \
         mkdir $d/escape 2>&- && echo made $d; done; true",
        hierarchy.agent()
    );
    for flags in ["", "--init", "-u nobody", "--network host"] {
        assert_eq!(target.sh(flags, &attack).status, 3, "mounting is refused");
        let done: Done = target.sh(flags, &nested);
        assert!(!done.stdout.contains("attacked") && done.status != 0, "{done}");
        assert_eq!(target.sh(flags, &existing).ok(), "");
    }
    assert!(!hierarchy.ran(), "the host ran the agent");
    // The attack is real: the host's root does it, in a mount namespace of its own.
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &hierarchy.attack(&hierarchy.at())]);
    assert_eq!(finish(command).ok(), "attacked");
    eventually("the host runs the agent", Duration::from_secs(60), || hierarchy.ran());
    // What it made lives on without a mount.
    sh("mount", &["-t", "cgroup", "-o", "none,name=release-escape", "none", &hierarchy.at()]);
    fs::write(Path::new(&hierarchy.at()).join("release_agent"), "\n").expect("no agent");
}

/// A group of the host is neither named, nor entered, nor seen.
#[test]
fn groups_of_the_host_are_out_of_sight() {
    let target = Target::new();
    let limits = "-m 64m --pids-limit 50";
    let done = target.sh(
        limits,
        "cut -d: -f3 /proc/self/cgroup | sort -u; cut -d: -f3 /proc/1/cgroup | sort -u; \
         grep -E ' cgroup2? ' /proc/self/mountinfo | cut -d' ' -f4 | sort -u; \
         grep -E ' cgroup2? ' /proc/self/mountinfo | cut -d' ' -f6 | grep -vc '^ro,'",
    );
    assert_eq!(done.stdout, "/\n/\n/\n0\n", "{done}");
    let done =
        target.sh(limits, "for d in $(find /sys/fs/cgroup -type d); do ls $d/.. $d/../..; done | grep -c tupper");
    assert_eq!(done.stdout, "0\n", "{done}");
    // A limit is not taken away from inside.
    let done = target.sh(
        limits,
        "for f in $(find /sys/fs/cgroup -name 'memory.max' -o -name 'memory.limit_in_bytes' -o -name pids.max); do \
         echo looked; echo max > $f && echo written; echo -1 > $f && echo written; done",
    );
    assert!(done.stdout.contains("looked") && !done.stdout.contains("written"), "{done}");
}
