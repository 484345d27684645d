//! Rules for devices, in front of the kernel: each of the two controllers decides as they say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tupper::sandbox::{CapabilitySet, DeviceRule, device_rules, restrict_devices};

/// A cgroup of the test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn below(mount: &Path) -> Cgroup {
        let cgroup = Cgroup(mount.join(format!("tupper-test-{}", std::process::id())));
        fs::create_dir(&cgroup.0).expect("a cgroup");
        cgroup
    }

    /// What a shell in it says and how it ends.
    fn sh(&self, script: &str) -> String {
        let script = format!("echo $$ > {}/cgroup.procs && {script}", self.0.display());
        let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        super::harness::eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

fn rules() -> Vec<DeviceRule> {
    device_rules(CapabilitySet(u64::MAX), false, &[]).expect("rules for who may make nodes")
}

/// What may be used, and what may only be made.
fn assert_held(cgroup: &Cgroup) {
    let dir = tempfile::tempdir_in("/dev").expect("a directory where nodes work");
    let dir = dir.path().display();
    let used = cgroup.sh("echo x > /dev/null && head -c 2 /dev/zero | wc -c && head -c 2 /dev/urandom | wc -c && \
                          head -c 1 /dev/full | wc -c && echo done");
    assert_eq!(used.split_whitespace().collect::<Vec<_>>(), ["2", "2", "1", "done"]);
    // /dev/kmsg, a loop device, and the control device of loop devices.
    for (kind, major, minor) in [("c", 1, 11), ("b", 7, 0), ("c", 10, 237)] {
        let tried = cgroup.sh(&format!("mknod {dir}/n {kind} {major} {minor} && head -c 1 {dir}/n; rm {dir}/n"));
        assert!(tried.contains("Operation not permitted"), "{kind} {major}:{minor}: {tried}");
        assert!(!tried.contains("mknod"), "a node may be made: {tried}");
    }
    assert_eq!(cgroup.sh("exec 3<> /dev/ptmx && echo open").trim(), "open");
}

#[test]
fn a_program_decides_on_v2() {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mount = mounts.lines().find(|line| line.contains(" cgroup2 ")).expect("the unified hierarchy");
    let cgroup = Cgroup::below(Path::new(mount.split(' ').nth(1).expect("a mount point")));
    let before = cgroup.sh("head -c 0 /dev/kmsg && echo open");
    assert!(before.contains("open"), "without a program it can be read: {before}");
    restrict_devices(&cgroup.0, &rules()).expect("a program");
    assert_held(&cgroup);
    // A second one can only take away.
    restrict_devices(&cgroup.0, &[]).expect("another program");
    assert!(cgroup.sh("cat /dev/null").contains("Operation not permitted"));
}

#[test]
fn the_controller_of_v1_reads_the_same_rules() {
    // A host that has no v1 hierarchies lets nobody mount this one either.
    let devices = Path::new("/sys/fs/cgroup/devices");
    if !devices.join("devices.list").exists() {
        assert!(Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), "neither v1 nor v2");
        return;
    }
    let cgroup = Cgroup::below(devices);
    fs::write(cgroup.0.join("devices.deny"), "a").expect("deny");
    for rule in rules() {
        fs::write(cgroup.0.join("devices.allow"), rule.to_string()).expect("allow");
    }
    assert_held(&cgroup);
    let listed = fs::read_to_string(cgroup.0.join("devices.list")).expect("the list");
    let expected: Vec<String> = rules().iter().map(ToString::to_string).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
}
