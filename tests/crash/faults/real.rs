//! Faults that are real: filesystems without room for data or for metadata, a full disk under an embedded store, a
//! read-only filesystem, processes that may open no more files.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::scene::text;
use crate::support::command::{Done, Tupper, finish, wait};
use crate::support::disk::Disk;
use crate::support::store::Host;
use crate::support::{busybox, eventually, sh};

const MIB: u64 = 1 << 20;

/// A store with an image, a snapshot with a file in it, and a container.
pub fn furnish(store: &Tupper) -> PathBuf {
    store.ok_with("image import --name base", &[text(&busybox())]);
    for name in ["keep", "web", "other"] {
        store.ok(&format!("snapshot create base {name}"));
    }
    store.ok("create --name box base true");
    store.ok("create --name spare base true");
    let keep = PathBuf::from(store.ok("snapshot path keep"));
    std::fs::write(keep.join("kept"), "from before\n").expect("a file");
    sh("sync", &["--file-system", text(&keep)]);
    keep
}

/// What was there before is whole, whatever failed since.
#[track_caller]
pub fn intact(store: &Tupper) {
    assert!(store.ok("image ls").contains("localhost/base"));
    assert!(store.ok("snapshot ls").contains("keep"));
    store.ok("inspect box");
    let keep = store.ok("snapshot path keep");
    assert_eq!(std::fs::read_to_string(Path::new(&keep).join("kept")).expect("a file"), "from before\n");
}

#[track_caller]
pub fn clean(store: &Tupper) {
    store.ok("store gc");
    assert_eq!(store.run("store check").status(0).stdout, "");
    assert_eq!(store.ok("run --rm keep cat /kept"), "from before");
}

/// One error line, of this cause.
#[track_caller]
pub fn failed_by(done: Done, status: i32, causes: &[&str]) {
    let errors: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("tupper: error: ")).collect();
    assert!(done.status == status && errors.len() == 1, "{done}");
    assert!(causes.iter().any(|cause| errors[0].contains(cause)), "{done}");
    assert!(!done.stderr.contains("panicked"), "{done}");
}

/// Takes all the room there is for data, and then, with many files that lie in the metadata, all of that.
pub fn fill(dir: &Path, metadata: bool) {
    let mut size = 1024 * MIB;
    for number in 0.. {
        let file = File::create(dir.join(format!("fill-{number}"))).expect("a file");
        while size >= 4096 && nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, size as i64).is_err()
        {
            size /= 2;
        }
        if size < 4096 {
            break;
        }
    }
    if !metadata {
        return;
    }
    let small = dir.join("small");
    std::fs::create_dir(&small).expect("a directory");
    // Up to 2048 bytes are kept in the metadata (btrfs(5), max_inline).
    let (mut failures, mut number) = (0, 0);
    while failures < 20 {
        number += 1;
        match std::fs::write(small.join(number.to_string()), [7; 1500]) {
            Ok(()) if number % 2000 == 0 => sh("sync", &["--file-system", text(&small)]),
            Ok(()) => String::new(),
            Err(_) => {
                failures += 1;
                let _ = Command::new("sync").arg("--file-system").arg(&small).stderr(Stdio::null()).status();
                String::new()
            }
        };
    }
}

fn full(metadata: bool) {
    let _host = Host::alone();
    let disk = Disk::btrfs_of(512 * MIB);
    let store = Tupper::new(disk.path().join("store"));
    let keep = furnish(&store);
    fill(&keep, metadata);

    intact(&store);
    store.run("store check").status(0);
    failed_by(store.run_with("image import --name more", &[text(&busybox())]), 1, &["no space left", "had free"]);
    // A snapshot and a container take little: it may still be there.
    for (line, status) in [("snapshot create base", 1), ("create base true", 1), ("run --rm base true", 125)] {
        let done = store.run(line);
        if done.status != 0 {
            failed_by(done, status, &["no space left"]);
        }
    }
    intact(&store);
    // To remove is what helps.
    store.ok("store gc");
    store.ok("snapshot rm web");
    store.ok("snapshot rm --sync other");
    store.ok("rm spare");
    assert!(!store.ok("snapshot ls").contains("web"));
    intact(&store);
    if metadata {
        std::fs::remove_dir_all(keep.join("small")).expect("removed");
    }
    for entry in keep.read_dir().expect("a directory").flatten() {
        if entry.file_name().to_string_lossy().starts_with("fill-") {
            std::fs::remove_file(entry.path()).expect("removed");
        }
    }
    sh("btrfs", &["filesystem", "sync", text(&keep)]);
    eventually("there is room again", Duration::from_secs(120), || {
        store.run_with("image import --name more", &[text(&busybox())]).status == 0
    });
    intact(&store);
    clean(&store);
}

#[test]
fn no_room_for_data() {
    full(false);
}

#[test]
fn no_room_for_metadata() {
    full(true);
}

#[test]
fn a_full_filesystem_gives_back_what_is_removed() {
    let _host = Host::alone();
    let disk = Disk::btrfs_of(512 * MIB);
    // The kernel commits every 30 seconds, and gives back what was removed; not here.
    sh("mount", &["-o", "remount,commit=3600", text(&disk.path())]);
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    let web = PathBuf::from(store.ok("snapshot path web"));
    // What a container may have made: subvolumes in subvolumes.
    let nested = web.join("nested");
    sh("btrfs", &["subvolume", "create", text(&nested)]);
    sh("btrfs", &["subvolume", "create", text(&nested.join("deeper"))]);
    sh("btrfs", &["property", "set", text(&nested), "ro", "true"]);
    fill(&web, true);
    failed_by(store.run_with("image import --name more", &[text(&busybox())]), 1, &["no space left", "had free"]);
    store.ok("snapshot rm web");
    eventually("there is room again", Duration::from_secs(120), || {
        store.run_with("image import --name more", &[text(&busybox())]).status == 0
    });
    store.ok("image rm --force base more");
    assert_eq!(store.run("store check").status(0).stdout, "");
}

#[test]
fn no_room_under_an_embedded_store() {
    let _host = Host::alone();
    let disk = Disk::ext4(1024 * MIB);
    let store = Tupper::new(disk.path().join("store"));
    store.ok("store init --size 512M");
    furnish(&store);
    let ballast = disk.path().join("ballast");
    std::fs::create_dir(&ballast).expect("a directory");
    fill(&ballast, false);
    for line in ["image import BUSYBOX", "image tag base more", "snapshot create base", "create base true"] {
        let done = store.run(&line.replace("BUSYBOX", text(&busybox())));
        failed_by(done, 1, &["would lose writes"]);
    }
    failed_by(store.run("run --rm base true"), 125, &["would lose writes"]);
    // What is removed is written, too.
    for line in ["snapshot rm web", "rm box", "image rm --force base", "store gc"] {
        failed_by(store.run(line), 1, &["would lose writes"]);
    }
    intact(&store);
    assert_eq!(store.run("store check").status(0).stdout, "");
    // It needs less than what is added.
    std::fs::remove_dir_all(&ballast).expect("removed");
    let ballast = File::create(disk.path().join("ballast")).expect("a file");
    let free = rustix::fs::statvfs(disk.path()).map(|found| found.f_bavail * found.f_frsize).expect("statvfs");
    nix::fcntl::fallocate(&ballast, nix::fcntl::FallocateFlags::empty(), 0, (free - 50 * MIB) as i64).expect("room");
    failed_by(store.run("snapshot create base"), 1, &["would lose writes"]);
    store.ok("snapshot rm web");
    store.ok("rm spare");
    drop(ballast);
    std::fs::remove_file(disk.path().join("ballast")).expect("removed");
    intact(&store);
    clean(&store);
}

/// The header of a file in an archive.
pub fn header(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("a name");
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

#[test]
fn an_import_stops_before_the_disk_under_an_embedded_store_is_full() {
    let _host = Host::alone();
    let disk = Disk::ext4(1024 * MIB);
    let store = Tupper::new(disk.path().join("store"));
    store.ok("store init --size 700M");
    furnish(&store);
    let ballast = File::create(disk.path().join("ballast")).expect("a file");
    let free = rustix::fs::statvfs(disk.path()).map(|found| found.f_bavail * found.f_frsize).expect("statvfs");
    nix::fcntl::fallocate(&ballast, nix::fcntl::FallocateFlags::empty(), 0, (free - 160 * MIB) as i64).expect("room");
    // A file of zeros is data to both filesystems.
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(header("big", 300 * MIB).as_bytes()).expect("written");
    file.set_len(512 + 300 * MIB + 1024).expect("sized");
    std::io::Seek::rewind(&mut file).expect("rewound");
    failed_by(store.run_reading("image import --name big -", file), 1, &["would lose writes"]);
    assert!(!store.ok("image ls").contains("localhost/big"));
    // Nothing was lost, and nothing has to be mounted again.
    store.ok("snapshot rm web");
    drop(ballast);
    std::fs::remove_file(disk.path().join("ballast")).expect("removed");
    intact(&store);
    clean(&store);
}

#[test]
fn a_disk_that_fills_up_during_an_import_takes_nothing_that_was_there() {
    let _host = Host::alone();
    let disk = Disk::ext4(1024 * MIB);
    let store = Tupper::new(disk.path().join("store"));
    store.ok("store init --size 700M");
    furnish(&store);
    let mut import = store.command("image import --name big -", &[]);
    let said = tempfile::tempfile().expect("a file");
    import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(said.try_clone().expect("dup"));
    let mut import = import.spawn().expect("an import");
    let mut input = import.stdin.take().expect("a pipe");
    let mut block = vec![0u8; MIB as usize];
    // Nothing that a filesystem could keep in less.
    block.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]);
    input.write_all(header("big", 400 * MIB).as_bytes()).expect("it reads");
    let ballast = disk.path().join("ballast");
    std::fs::create_dir(&ballast).expect("a directory");
    for number in 0..400 {
        if number == 50 {
            fill(&ballast, false);
        }
        if input.write_all(&block).is_err() {
            break; // it has given up
        }
    }
    drop(input);
    let status = wait(import, "the import");
    assert_eq!(status, 1);
    // The filesystem inside may have given up, and what it could not write cannot be read again: it says so.
    let listed = store.run("image ls");
    if listed.status != 0 {
        let unusable = listed.status == 125 && listed.stderr.contains("store umount");
        assert!(unusable || listed.stderr.contains("I/O error"), "{listed}");
    }
    // With room again, it is mounted anew.
    std::fs::remove_dir_all(&ballast).expect("removed");
    store.ok("store umount");
    assert!(!store.ok("image ls").contains("localhost/big"));
    intact(&store);
    clean(&store);
    store.ok_with("image import --name more", &[text(&busybox())]);
}

#[test]
fn a_filesystem_that_is_read_only() {
    let _host = Host::alone();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    sh("mount", &["-o", "remount,ro", text(&disk.path())]);
    intact(&store);
    assert_eq!(store.run("store check").status(0).stdout, "");
    let busybox = busybox();
    for line in ["image import BUSYBOX", "image tag base more", "image rm --force base", "snapshot create base"] {
        failed_by(store.run(&line.replace("BUSYBOX", text(&busybox))), 125, &["its filesystem is read-only"]);
    }
    for line in ["snapshot rm web", "create base true", "rm box", "run --rm base true", "start -a box", "store gc"] {
        failed_by(store.run(line), 125, &["its filesystem is read-only"]);
    }
    sh("mount", &["-o", "remount,rw", text(&disk.path())]);
    intact(&store);
    clean(&store);
}

#[test]
fn too_few_descriptors() {
    let _host = Host::alone();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    let busybox = busybox();
    for line in
        ["image import --name more BUSYBOX", "snapshot create base", "run --rm base true", "image ls", "store gc"]
    {
        let mut worked = false;
        for most in (4..=32).step_by(2) {
            let tupper = store.command(&line.replace("BUSYBOX", text(&busybox)), &[]);
            let mut limited = Command::new("prlimit");
            limited.arg(format!("--nofile={most}:{most}")).arg(tupper.get_program()).args(tupper.get_args());
            let done = finish(limited);
            worked = done.status == 0;
            if !worked {
                // 125, too, where it did not come as far as the store.
                let status = if done.status == 125 { 125 } else { 1 };
                failed_by(done, status, &["too many open files"]);
            }
            intact(&store);
        }
        assert!(worked, "{line}: 32 descriptors are not enough");
    }
    clean(&store);
}

/// A command that is killed at its Nth call of a name.
fn killed(store: &Tupper, line: &str, call: &str, number: u32) {
    let command = store.command(line, &[]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:signal=KILL:when={number}")]);
    strace.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    assert_eq!(finish(strace).status, 128 + 9, "{line}");
}

#[test]
fn what_a_killed_command_left_can_go_from_a_full_filesystem() {
    let _host = Host::alone();
    let import = format!("image import --name more {}", text(&busybox()));
    // Before the layer is published, and before the snapshot is made.
    for (line, call, number, garbage) in [
        (import.as_str(), "renameat2", 1, "left by an import that was killed"),
        ("snapshot create base half", "fsetxattr", 2, "its creation was killed"),
    ] {
        let disk = Disk::btrfs_of(512 * MIB);
        let store = Tupper::new(disk.path().join("store"));
        let keep = furnish(&store);
        killed(&store, line, call, number);
        fill(&keep, true);
        let found = store.run("store check").status(1).stdout;
        assert!(found.contains(garbage), "{found}");
        store.ok("store gc");
        assert_eq!(store.run("store check").status(0).stdout, "");
        intact(&store);
    }
}

#[test]
fn subvolumes_nested_deeper_than_there_are_descriptors_can_go() {
    let _host = Host::alone();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    let mut path = PathBuf::from(store.ok("snapshot path web"));
    for depth in 0..200 {
        // In a directory each, and with a sibling now and then.
        path = path.join("d");
        std::fs::create_dir(&path).expect("a directory");
        for name in ["n", "sibling"].into_iter().take(1 + usize::from(depth % 7 == 0)) {
            sh("btrfs", &["subvolume", "create", text(&path.join(name))]);
        }
        path = path.join("n");
    }
    let tupper = store.command("snapshot rm web", &[]);
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=24:24").arg(tupper.get_program()).args(tupper.get_args());
    let done = finish(limited);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done}");
    assert!(!disk.subvolumes().iter().any(|path| path.ends_with("/n")), "{:?}", disk.subvolumes());
    intact(&store);
    clean(&store);
}

#[test]
fn an_input_that_never_ends() {
    let _host = Host::alone();
    let disk = Disk::btrfs();
    let store = Tupper::new(disk.path().join("store"));
    furnish(&store);
    failed_by(store.run("image import /dev/zero"), 1, &["no archive"]);
    failed_by(store.run("image import /dev/urandom"), 1, &["not a tar header"]);
    let zeros = File::open("/dev/zero").expect("a device");
    failed_by(store.run_reading("image import -", zeros), 1, &["no archive"]);
    intact(&store);
    clean(&store);
}
