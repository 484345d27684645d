//! Roots that mean harm: whatever lies in them, nothing outside is touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nix::sys::stat::Mode;
use tupper::sandbox::{Spec, Users, Volume};

use super::harness::{Root, shell};

/// A place on the host that nothing may change.
struct Canary {
    dir: tempfile::TempDir,
}

impl Canary {
    fn new() -> Canary {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "untouched").expect("write");
        Canary { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    fn check(&self) {
        let names: Vec<_> =
            fs::read_dir(self.path()).expect("list").map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(names, ["file"], "something was made on the host");
        assert_eq!(fs::read_to_string(self.path().join("file")).expect("read"), "untouched");
    }
}

#[test]
fn proc_dev_and_sys_as_links_are_refused() {
    let canary = Canary::new();
    for name in ["proc", "dev", "sys"] {
        for target in [canary.path(), PathBuf::from("/etc"), PathBuf::from("bin")] {
            let root = Root::new();
            symlink(&target, root.path(name)).expect("symlink");
            let end = root.sh("true").end;
            assert!(end.contains(&format!("at /{name}: /{name} is a link")), "{name} to {target:?}: {end}");
        }
    }
    canary.check();
}

#[test]
fn links_below_etc_and_the_working_directory_stay_inside() {
    let canary = Canary::new();
    let file = canary.path().join("file");
    for target in [file.clone(), canary.path().join("new"), PathBuf::from("../../../../../../run/x/resolv.conf")] {
        let root = Root::new();
        for name in ["hosts", "hostname", "resolv.conf"] {
            symlink(&target, root.path("etc").join(name)).expect("symlink");
        }
        symlink(canary.path(), root.path("work")).expect("symlink");
        let spec = Spec { cwd: "/work/deeper".into(), ..shell("echo gone > /etc/resolv.conf; pwd -P; echo x > here") };
        let outcome = root.run(spec);
        assert_eq!(outcome.output(), canary.path().join("deeper").to_str().expect("utf-8"), "inside, where it leads");
        assert!(root.path("").join(canary.path().strip_prefix("/").expect("absolute")).join("deeper/here").exists());
        canary.check();
    }
}

#[test]
fn etc_itself_as_a_link_stays_inside() {
    let canary = Canary::new();
    let root = Root::new();
    fs::rename(root.path("etc"), root.path("etc.real")).expect("rename");
    symlink(canary.path(), root.path("etc")).expect("symlink");
    assert_eq!(root.sh("cat /etc/hostname").output(), "box");
    canary.check();
}

#[test]
fn volumes_behind_links_stay_inside() {
    let canary = Canary::new();
    let volume = tempfile::tempdir().expect("a directory");
    let root = Root::new();
    symlink(canary.path(), root.path("out")).expect("symlink");
    symlink("/proc/sys", root.path("sysctl")).expect("symlink");
    symlink("/loop", root.path("loop")).expect("symlink");
    let to = |destination: &str| Spec {
        volumes: vec![Volume::new(volume.path(), destination)],
        ..shell("echo x > /out/v/x; ls /out/v")
    };
    assert_eq!(root.run(to("/out/v")).output(), "x");
    assert!(volume.path().join("x").exists());
    let end = root.run(to("/sysctl")).end;
    assert!(end.contains("/sysctl leads into /proc"), "{end}");
    let end = root.run(to("/loop/x")).end;
    assert!(end.starts_with("error 125"), "{end}");
    canary.check();
}

#[test]
fn a_link_inside_a_volume_leads_nowhere_else() {
    let canary = Canary::new();
    let volume = tempfile::tempdir().expect("a directory");
    symlink(canary.path(), volume.path().join("out")).expect("symlink");
    let second = tempfile::tempdir().expect("a directory");
    let mount = |source: &std::path::Path, destination: &str| Volume::new(source, destination);
    let spec = Spec {
        volumes: vec![mount(volume.path(), "/v"), mount(second.path(), "/v/out/second")],
        ..shell("ls -A /v/out/; true")
    };
    assert_eq!(Root::new().run(spec).output(), "second");
    canary.check();
}

#[test]
fn passwd_files_that_are_traps() {
    type Trap = fn(&Root);
    let traps: [(Trap, &str); 4] = [
        (
            |root| nix::unistd::mkfifo(&root.path("etc/passwd"), Mode::from_bits_truncate(0o644)).expect("mkfifo"),
            "read /etc/passwd: not a regular file",
        ),
        (|root| fs::create_dir(root.path("etc/passwd")).expect("mkdir"), "read /etc/passwd: not a regular file"),
        (
            |root| fs::File::create(root.path("etc/passwd")).and_then(|f| f.set_len(1 << 30)).expect("a sparse file"),
            "read /etc/passwd: larger than 1048576 bytes",
        ),
        (
            |root| symlink("/proc/self/environ", root.path("etc/passwd")).expect("symlink"),
            "user \"web\": not in the root's /etc/passwd",
        ),
    ];
    for (set, expected) in traps {
        let root = Root::new();
        fs::remove_file(root.path("etc/passwd")).expect("remove");
        set(&root);
        let end = root.run(Spec { user: Some("web".into()), ..shell("true") }).end;
        assert!(end.contains(expected), "{end}, not {expected}");
    }
}

#[test]
fn passwd_as_a_link_to_the_hosts_is_the_roots() {
    let root = Root::new();
    fs::remove_file(root.path("etc/passwd")).expect("remove");
    // Made by this test on the host, so that following the link out would find the user.
    let host = tempfile::NamedTempFile::new().expect("a file");
    fs::write(host.path(), "hostuser:x:77:77::/:/bin/sh\n").expect("write");
    symlink(host.path(), root.path("etc/passwd")).expect("symlink");
    let end = root.run(Spec { user: Some("hostuser".into()), ..shell("true") }).end;
    assert!(end.contains("not in the root's /etc/passwd"), "{end}");
}

#[test]
fn a_root_that_cannot_be_mapped_says_how_to_do_without() {
    let root = Root::new();
    // fs/ramfs/inode.c lacks FS_ALLOW_IDMAP.
    let place = tempfile::tempdir().expect("a directory");
    let mounted = std::process::Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(place.path()).status();
    assert!(mounted.expect("mount").success());
    let copied = std::process::Command::new("cp").arg("-a").arg(root.path(".")).arg(place.path()).status();
    assert!(copied.expect("cp").success());
    let on_ramfs = Root { dir: place, unified_only: false };
    let (mapped, plain) = (on_ramfs.sh("true"), on_ramfs.run(Spec { users: Users::Host, ..shell("echo there") }));
    let unmounted = std::process::Command::new("umount").arg(on_ramfs.dir.path()).status();
    assert!(unmounted.expect("umount").success());
    assert!(mapped.end.starts_with("error 125 Unsupported clone the mount of the root"), "{mapped:?}");
    assert_eq!(plain.output(), "there");
}
