//! User namespaces: whose ids a container has, and whose its files are.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::command::{Done, finish};
use crate::support::eventually;
use crate::support::store::Store;

const MAP: &str = "cat /proc/self/uid_map /proc/self/gid_map";

/// The overflow user: what an id that is not mapped shows as (user_namespaces(7), "Unmapped user and group IDs").
const NOBODY: &str = "65534";

fn script(store: &Store, flags: &[&str], script: &str) -> Done {
    store.run_with("run --rm", &[flags, &["busybox", "sh", "-c", script]].concat())
}

/// The lines of uid_map or gid_map, one after the other.
fn maps(text: &str) -> Vec<[u32; 3]> {
    let line = |line: &str| {
        let numbers: Vec<u32> = line.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        numbers.try_into().expect("three numbers")
    };
    text.lines().map(line).collect()
}

/// The files of leases, of all stores. Who was killed has left some, and the store's own gc has them to clear.
fn leases() -> BTreeSet<PathBuf> {
    let files = fs::read_dir("/run/tupper/ids").into_iter().flatten();
    files.map(|file| file.expect("an entry").path()).collect()
}

/// A `sleep` that runs in a container, and the tupper that runs it.
struct Sleeping {
    tupper: Child,
    pid: i64,
}

impl Sleeping {
    fn start(store: &Store, name: &str) -> Sleeping {
        let mut command = store.command(&format!("run --rm --name {name} busybox sleep 1000"), &[]);
        let tupper = command.stdout(Stdio::null()).spawn().expect("tupper");
        let mut pid = 0;
        eventually("it runs", Duration::from_secs(120), || {
            let running = store.json("ps --format json");
            let ours = running.as_array().into_iter().flatten().find(|c| c["Names"][0] == name);
            pid = ours.and_then(|c| c["Pid"].as_i64()).unwrap_or_default();
            pid != 0
        });
        Sleeping { tupper, pid }
    }

    fn map(&self) -> [u32; 3] {
        maps(&fs::read_to_string(format!("/proc/{}/uid_map", self.pid)).expect("a map"))[0]
    }

    fn end(mut self, store: &Store, name: &str) {
        store.ok(&format!("rm -f {name}"));
        self.tupper.wait().expect("its end");
    }
}

#[test]
fn root_inside_is_a_user_of_the_containers_own() {
    let store = Store::new();
    let found = maps(&script(&store, &[], MAP).ok());
    assert_eq!(found.len(), 2, "one range: {found:?}");
    for [inside, outside, size] in found {
        assert_eq!((inside, size), (0, 65536));
        assert!(outside >= 65536, "never a user of the host's: {outside}");
        assert!(!(524_288..1_879_048_192).contains(&outside), "systemd-nspawn's: {outside}");
    }
    let inside = script(&store, &[], "readlink /proc/self/ns/user").ok();
    assert_ne!(fs::read_link("/proc/self/ns/user").expect("a namespace").to_string_lossy(), inside);
}

#[test]
fn the_disk_keeps_plain_ids() {
    let store = Store::new();
    let made = "touch /mine && mkdir /dir && touch /dir/web && chown 33:34 /dir/web && chmod 4755 /dir/web && id -u";
    assert_eq!(store.run_with("run --name job busybox sh -c", &[made]).ok(), "0");
    let rootfs = store.json("inspect job")[0]["Rootfs"].as_str().expect("a path").to_string();
    let owner = |path: &str| {
        let found = fs::metadata(Path::new(&rootfs).join(path)).expect(path);
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!((owner("mine"), owner("dir/web")), ((0, 0, 0o644), (33, 34, 0o4755)));
    // And shows them to the next that starts, whatever range that has, and in a snapshot.
    let look = ["sh", "-c", "stat -c %u:%g /mine /dir/web"];
    assert_eq!(store.run_with("run --rm job", &look).ok(), "0:0\n33:34");
    assert_eq!(store.run_with("run --rm --userns host job", &look).ok(), "0:0\n33:34");
}

#[test]
fn no_two_containers_have_the_same_range_and_each_is_given_back() {
    let store = Store::alone();
    let (before, had) = (store.traces(), leases());
    let (a, b) = (Sleeping::start(&store, "a"), Sleeping::start(&store, "b"));
    let ([_, first, _], [_, second, _]) = (a.map(), b.map());
    assert_ne!(first, second);
    let told = &store.json("inspect a")[0]["HostConfig"];
    assert_eq!(
        (&told["UsernsMode"], &told["IDMappings"]["UidMap"][0]),
        (&"private".into(), &format!("0:{first}:65536").into())
    );
    let status = fs::read_to_string(format!("/proc/{}/status", a.pid)).expect("a process");
    assert!(status.contains(&format!("Uid:\t{first}\t{first}\t{first}\t{first}\n")), "{status}");
    assert_eq!(leases().difference(&had).count(), 2);
    let place = fs::metadata("/run/tupper/ids").expect("a directory");
    assert_eq!((place.uid(), place.mode() & 0o777), (0, 0o700), "whoever can open a lease can lock it");
    a.end(&store, "a");
    b.end(&store, "b");
    before.assert_same(&store.traces());
}

#[test]
fn the_range_of_a_killed_tupper_is_found_and_given_back() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let (before, had) = (store.traces(), leases());
    let mut killed = Sleeping::start(&store, "killed");
    killed.tupper.kill().expect("kill");
    killed.tupper.wait().expect("its end");
    let left = leases();
    let left: Vec<&PathBuf> = left.difference(&had).collect();
    assert_eq!(left.len(), 1);
    let found = store.run("store check").status(1).stdout;
    assert!(found.contains(left[0].to_str().expect("utf-8")), "{found}");
    store.ok("store gc");
    before.assert_same(&store.traces());
}

/// `tupper LINE MORE` on a host whose /etc/subuid and /etc/subgid hold this.
fn with_subids(store: &Store, subuid: &str, subgid: &str, line: &str, more: &[&str]) -> Command {
    let directory = store.disk.path();
    let (uid, gid) = (directory.join("subuid"), directory.join("subgid"));
    fs::write(&uid, subuid).expect("a file");
    fs::write(&gid, subgid).expect("a file");
    let tupper = store.command(line, more);
    let mut command = Command::new("unshare");
    // The files may be missing on the host.
    let script = "mkdir -p \"$1/etc\" && touch /etc/subuid /etc/subgid && mount --bind \"$2\" /etc/subuid && \
                  mount --bind \"$3\" /etc/subgid && shift 3 && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&directory).args([uid, gid]);
    command.arg(tupper.get_program()).args(tupper.get_args()).stdin(Stdio::null());
    command
}

#[test]
fn roots_range_in_subuid_is_used_and_can_be_used_up() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    let (uids, gids) = ("me:100000:65536\nroot:1500000000:65536\n", "root:1600000000:70000\n");
    let map = finish(with_subids(&store, uids, gids, "run --rm busybox sh -c", &[MAP])).ok();
    assert_eq!(maps(&map), [[0, 1_500_000_000, 65536], [0, 1_600_000_000, 65536]]);

    let mut first = with_subids(&store, uids, gids, "run --rm --name first busybox sleep 1000", &[]);
    let mut first = first.stdout(Stdio::null()).spawn().expect("tupper");
    eventually("it runs", Duration::from_secs(120), || !store.ok("ps -q").is_empty());
    let refused = finish(with_subids(&store, uids, gids, "run --rm busybox true", &[])).fails(125);
    for words in ["lease a range of user ids: all 1 ranges", "/etc/subuid", "hint: ", "--userns host"] {
        assert!(refused.contains(words), "{refused}");
    }
    // Others do not need one.
    finish(with_subids(&store, uids, gids, "run --rm --userns host busybox true", &[])).ok();
    store.ok("rm -f first");
    first.wait().expect("its end");
    finish(with_subids(&store, uids, gids, "run --rm busybox true", &[])).ok();

    // What a killed one has left is nobody's.
    let mut killed = with_subids(&store, uids, gids, "run --rm --name killed busybox sleep 1000", &[]);
    let mut killed = killed.stdout(Stdio::null()).spawn().expect("tupper");
    eventually("it runs", Duration::from_secs(120), || !store.ok("ps -q").is_empty());
    killed.kill().expect("kill");
    killed.wait().expect("its end");
    eventually("it has ended", Duration::from_secs(120), || store.ok("ps -q").is_empty());
    let of_range = |path: &&PathBuf| path.to_string_lossy().contains("/1500000000.");
    assert_eq!(leases().iter().filter(of_range).count(), 1);
    let other = Store::beside(&store);
    finish(with_subids(&other, uids, gids, "run --rm busybox true", &[])).ok();
    store.ok("store gc");
    // Others' leases that nobody held went when all were taken.
    assert_eq!(store.traces().named("cgroup"), before.named("cgroup"));
}

#[test]
fn other_maps_are_what_was_asked_for() {
    let store = Store::new();
    let all = [0, 0, u32::MAX];
    let host = fs::read_link("/proc/self/ns/user").expect("a namespace").to_string_lossy().into_owned();
    let look = format!("readlink /proc/self/ns/user; {MAP}");
    for (flags, own, expected) in [
        (&["--userns", "host"][..], false, vec![all, all]),
        (&["--userns", "keep-id"], true, vec![all, all]),
        (&["--uidmap", "0:1500000000:1000"], true, vec![[0, 1_500_000_000, 1000]; 2]),
        (&["--gidmap", "0:1500000000:1000"], true, vec![[0, 1_500_000_000, 1000]; 2]),
        (
            &["--uidmap", "0:1500000000:10", "--uidmap", "10:1600000000", "--gidmap", "0:7:6"],
            true,
            vec![[0, 1_500_000_000, 10], [10, 1_600_000_000, 1], [0, 7, 6]],
        ),
    ] {
        let said = script(&store, flags, &look).ok();
        let (namespace, map) = said.split_once('\n').expect("lines");
        assert_eq!((namespace != host, maps(map)), (own, expected), "{flags:?}");
    }
    let auto = maps(&script(&store, &["--userns", "nomap"], MAP).ok());
    assert!(auto[0][1] >= 65536 && auto[0][2] == 65536, "{auto:?}");
    // A root of the host's in a namespace of its own has no power over the host.
    script(&store, &["--userns", "keep-id"], "hostname x && ! nice -n -5 true 2>/dev/null").status(1);
}

#[test]
fn ids_that_are_not_mapped_are_nobodys() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    let rootfs = PathBuf::from(store.ok("snapshot path web"));
    fs::write(rootfs.join("secret"), "x").expect("a file");
    fs::set_permissions(rootfs.join("secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
    chown(rootfs.join("secret"), Some(33), Some(70000)).expect("chown");
    let look = |flags: &[&str]| {
        let probe = "stat -c %u:%g /secret; cat /secret 2>&1 || true";
        store.run_with("run --rm", &[flags, &["web", "sh", "-c", probe]].concat()).ok()
    };
    assert_eq!(look(&[]), format!("33:{NOBODY}\ncat: can't open '/secret': Permission denied"));
    let few = look(&["--uidmap", "0:1500000000:10", "--gidmap", "0:1500000000:80000"]);
    assert!(few.starts_with(&format!("{NOBODY}:70000\ncat: can't open")), "{few}");
    assert_eq!(look(&["--uidmap", "0:1500000000:80000"]), "33:70000\nx");

    let refused = store.fails(125, "run --rm -u 33 --uidmap 0:1500000000:10 busybox true");
    assert!(refused.contains("user 33: not one of those") && refused.contains("hint: --uidmap"), "{refused}");
    for (flags, says) in [
        ("--uidmap 1:1500000000:10", "0 is not mapped"),
        ("--uidmap 0:1500000000:10 --uidmap 5:1600000000:10", "has ids of"),
        ("--gidmap 0:1:0", "not a range"),
        ("--gidmap zero", "not INSIDE:OUTSIDE"),
        ("--userns mine", "not auto, host"),
        ("--userns host --uidmap 0:1:1", "cannot be used with"),
    ] {
        let refused = store.fails(125, &format!("run --rm {flags} busybox true"));
        assert!(refused.contains(says), "{flags}: {refused}");
    }
    assert_eq!(store.ok("ps -aq"), "");
}

#[test]
fn volumes_show_whose_files_are_as_the_disk_has_it() {
    let store = Store::new();
    let data = store.disk.path().join("data");
    fs::create_dir(&data).expect("a directory");
    fs::write(data.join("web"), "w").expect("a file");
    chown(data.join("web"), Some(33), Some(34)).expect("chown");
    let volume = format!("{}:/data", data.display());
    let look = "stat -c %u:%g /data /data/web; touch /data/made && stat -c %u:%g /data/made";
    assert_eq!(script(&store, &["-v", &volume], look).ok(), "0:0\n33:34\n0:0");
    assert_eq!(fs::metadata(data.join("made")).expect("made").uid(), 0);
    let file = format!("{}:/etc/web", data.join("web").display());
    assert_eq!(script(&store, &["-v", &file], "stat -c %u /etc/web; cat /etc/web").ok(), "33\nw");

    // As it is: the host's users are not mapped, and so nobody's.
    let plain =
        script(&store, &["-v", &format!("{volume}:noidmap")], "stat -c %u:%g /data/web; touch /data/x").status(1);
    assert_eq!(plain.stdout, format!("{NOBODY}:{NOBODY}\n"), "{plain}");
    let host = script(&store, &["--userns", "host", "-v", &volume], "stat -c %u:%g /data/web; touch /data/x").ok();
    assert_eq!(host, "33:34");
}

#[test]
fn a_volume_that_cannot_be_mapped_is_mounted_with_a_note() {
    let store = Store::new();
    let done = script(&store, &["-v", "/sys/kernel/mm:/data:ro"], "stat -c %u /data; ls /data | wc -l").status(0);
    assert!(done.stdout.starts_with(NOBODY) && !done.stdout.ends_with("\n0\n"), "{done}");
    assert!(done.stderr.contains("volume /sys/kernel/mm: its filesystem cannot map ids"), "{done}");

    // One below a volume that can be: ramfs cannot (fs/ramfs/inode.c lacks FS_ALLOW_IDMAP).
    let data = store.disk.path().join("data");
    fs::create_dir_all(data.join("below")).expect("a directory");
    let tupper = store.command("run --rm", &["-v", &format!("{}:/data", data.display())]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t ramfs ramfs \"$1\" && shift && exec \"$@\"", "sh"]);
    command.arg(data.join("below")).arg(tupper.get_program()).args(tupper.get_args());
    command.args(["busybox", "stat", "-c", "%u", "/data", "/data/below"]).stdin(Stdio::null());
    let done = finish(command).status(0);
    assert_eq!(done.stdout, format!("0\n{NOBODY}\n"), "{done}");
    assert!(done.stderr.contains("below it is a filesystem that cannot map ids"), "{done}");
}
