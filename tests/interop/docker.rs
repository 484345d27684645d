//! Docker: what it holds of a container, `docker export` carries into a snapshot, but for the three things that no
//! export holds. They are stated here ([`exported`]) and tested, so that a change in either is seen.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::command::{Tupper, finish, wait};
use crate::support::disk::Disk;
use crate::support::store::Host;
use crate::support::tree::{Entry, Tree};
use crate::support::{debian, eventually, sh};

/// A dockerd with the btrfs driver, on a btrfs, a socket and a folder of its own; gone when dropped.
pub struct Docker {
    daemon: Option<Child>,
    // The socket's path has to be short (unix(7): 108 bytes).
    pub run: TempDir,
    pub disk: Disk,
    _host: Host,
}

impl Docker {
    pub fn start() -> Docker {
        let host = Host::alone();
        let disk = Disk::btrfs();
        let run = tempfile::Builder::new().prefix("td-").tempdir_in("/tmp").expect("a scratch directory");
        let log = File::create(run.path().join("log")).expect("a file");
        let daemon = Command::new("dockerd")
            .arg("--data-root")
            .arg(disk.path().join("docker"))
            .arg("--exec-root")
            .arg(run.path().join("exec"))
            .arg("-H")
            .arg(format!("unix://{}/sock", run.path().display()))
            .arg("-p")
            .arg(run.path().join("pid"))
            .args(["--bridge=none", "--iptables=false", "--storage-driver=btrfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("dockerd: {e}; type: make setup"));
        let mut docker = Docker { daemon: Some(daemon), run, disk, _host: host };
        eventually("dockerd answers", Duration::from_secs(120), || {
            let ended =
                docker.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().is_ok_and(|status| status.is_some()));
            assert!(
                !ended,
                "dockerd ended:\n{}",
                fs::read_to_string(docker.run.path().join("log")).unwrap_or_default()
            );
            docker.command(&["info"]).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        });
        docker
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", format!("unix://{}/sock", self.run.path().display()))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn ok(&self, args: &[&str]) -> String {
        finish(self.command(args)).ok()
    }

    /// The subvolume in which the btrfs driver keeps a container's files.
    fn rootfs(&self, container: &str) -> PathBuf {
        let data = self.disk.path().join("docker");
        let mount = data.join("image/btrfs/layerdb/mounts").join(container).join("mount-id");
        data.join("btrfs/subvolumes").join(fs::read_to_string(mount).expect("the layer database"))
    }

    /// The subvolume in which the btrfs driver keeps a layer and all below it.
    pub fn layer(&self, chain: &str) -> PathBuf {
        let data = self.disk.path().join("docker");
        let cache = data.join("image/btrfs/layerdb/sha256").join(chain).join("cache-id");
        data.join("btrfs/subvolumes").join(fs::read_to_string(cache).expect("the layer database"))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            let pid = Pid::from_raw(daemon.id().try_into().expect("a pid"));
            // It ends its containerd before it ends itself.
            let _ = kill(pid, Signal::SIGTERM);
            wait(daemon, "dockerd");
        }
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Beside a Debian, what few images hold.
fn add_rare_things(top: &Path) {
    let path = |name: &str| top.join("rare").join(name);
    let text = |name: &str| path(name).to_str().expect("plain").to_string();
    fs::create_dir_all(path("dir")).expect("directories");
    fs::set_permissions(path("dir"), PermissionsExt::from_mode(0o3771)).expect("chmod");
    fs::write(path("file"), "content\n").expect("a file");
    chown(path("file"), Some(70_000), Some(3_000_000)).expect("chown");
    fs::hard_link(path("file"), path("dir/again")).expect("a hard link");
    fs::write(path("setuid"), "x").expect("a file");
    chown(path("setuid"), Some(1000), Some(33)).expect("chown");
    fs::set_permissions(path("setuid"), PermissionsExt::from_mode(0o6755)).expect("chmod");
    fs::write(path("ping"), "x").expect("a file");
    sh("setcap", &["cap_net_raw+ep", &text("ping")]);
    sh("mkfifo", &["--mode", "640", &text("fifo")]);
    sh("mknod", &["--mode", "620", &text("tty"), "c", "5", "0"]);
    sh("mknod", &["--mode", "660", &text("disk"), "b", "259", "70000"]);
    fs::write(path(&"n".repeat(255)), "long\n").expect("a file");
    fs::create_dir_all(path(&format!("{0}/{0}/{0}", "p".repeat(200)))).expect("a long path");
    fs::write(path("dir").join(std::ffi::OsStr::from_bytes(b"latin-\xe9")), "not UTF-8\n").expect("a file");
    symlink("/etc/passwd", path("absolute")).expect("a symlink");
    symlink("t".repeat(300), path("long target")).expect("a symlink");
    let sparse = File::create(path("sparse")).expect("a file");
    sparse.set_len(64 << 20).expect("a hole");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 32 << 20).expect("an island");
    sh("touch", &["--date", "2040-06-07 08:09:10 UTC", &text("ping")]);
}

/// What the container's files have that an import into Docker drops on the way in (a time before 1970) or an export
/// leaves out; so it is set in Docker's own subvolume.
fn add_what_docker_loses(rootfs: &Path) {
    let text = |name: &str| rootfs.join("rare").join(name).to_str().expect("plain").to_string();
    sh("setfattr", &["-n", "user.note", "-v", "lost", &text("file")]);
    sh("setfattr", &["-n", "trusted.note", "-v", "lost", &text("dir")]);
    sh("setfacl", &["-m", "u:1234:rwx", &text("setuid")]);
    sh("touch", &["--date", "1969-12-31 23:00:00 UTC", &text("setuid")]);
    sh("touch", &["--date", "2001-02-03 04:05:06.789012345 UTC", &text("file")]);
    let (kind, mode) = (rustix::fs::FileType::Socket, rustix::fs::Mode::from_raw_mode(0o755));
    rustix::fs::mknodat(rustix::fs::CWD, text("socket"), kind, mode, 0).expect("a socket");
}

/// What of a container's entry `docker export` writes: whole seconds, and of the attributes the capability alone
/// (docker 20.10 pkg/archive/archive.go, FileInfoHeader and ReadSecurityXattrToTarHeader); sockets not at all (addTarFile
/// leaves out what tar has no type for).
fn exported(held: &Tree) -> Tree {
    let keep = |(path, entry): (&PathBuf, &Entry)| {
        let mut entry = entry.clone();
        entry.mtime.1 = 0;
        entry.xattrs.retain(|name, _| name == "security.capability");
        (entry.kind != "socket").then(|| (path.clone(), entry))
    };
    Tree(held.0.iter().filter_map(keep).collect())
}

/// A Debian with rare things, imported into Docker, and a container made of it.
fn container(docker: &Docker) -> String {
    let root = docker.disk.path().join("root");
    fs::create_dir(&root).expect("a directory");
    sh("tar", &["-C", text(&root), "--xattrs", "--xattrs-include=*", "-xpf", text(&debian())]);
    add_rare_things(&root);
    let tarball = docker.disk.path().join("root.tar");
    let xattrs = ["--xattrs", "--xattrs-include=*", "--sparse", "--format=posix", "--numeric-owner"];
    sh("tar", &[&["-C", text(&root)], &xattrs[..], &["-cf", text(&tarball), "."]].concat());
    docker.ok(&["import", text(&tarball), "debian:12"]);
    docker.ok(&["create", "debian:12", "true"])
}

#[test]
fn an_exported_container_becomes_the_same_snapshot() {
    let docker = Docker::start();
    let container = container(&docker);
    let rootfs = docker.rootfs(&container);
    add_what_docker_loses(&rootfs);
    let held = Tree::read(&rootfs);
    assert_rare_things_are_held(&held);

    let tupper = Tupper::new(docker.disk.path().join("store"));
    let mut export = docker.command(&["export", &container]).stdout(Stdio::piped()).spawn().expect("docker");
    let mut import = tupper.command("image import - --name debian:12", &[]);
    import.stdin(export.stdout.take().expect("piped"));
    finish(import).ok();
    assert_eq!(wait(export, "docker export"), 0);
    tupper.ok("snapshot create debian:12 web");

    let mut snapshot = Tree::read(Path::new(&tupper.ok("snapshot path web")));
    // The export has no entry for the top directory itself: its owner and mode are the image's default.
    let expected = exported(&held);
    let top = snapshot.0.get_mut(Path::new("")).expect("the top");
    assert_eq!((top.mode, top.uid, top.gid), (0o755, 0, 0));
    *top = expected.entry("").clone();
    expected.assert_same(&snapshot);
    assert!(tupper.ok("run --rm debian:12 apt-get --version").starts_with("apt "));
}

#[test]
fn an_export_leaves_out_what_is_said_here_and_no_more() {
    let docker = Docker::start();
    let container = container(&docker);
    let rootfs = docker.rootfs(&container);
    add_what_docker_loses(&rootfs);
    let tarball = docker.disk.path().join("export.tar");
    docker.ok(&["export", "-o", text(&tarball), &container]);
    // GNU tar is the witness: what it can restore of the export is what there was to be restored.
    let witness = docker.disk.path().join("witness");
    fs::create_dir(&witness).expect("a directory");
    sh("tar", &["-C", text(&witness), "--xattrs", "--xattrs-include=*", "--acls", "-xpf", text(&tarball)]);
    let expected = exported(&Tree::read(&rootfs));
    let mut restored = Tree::read(&witness);
    restored.0.insert(PathBuf::new(), expected.entry("").clone());
    expected.assert_same(&restored);
    let names = sh("tar", &["-tf", text(&tarball)]);
    assert!(names.lines().all(|name| !name.starts_with("./") && !name.starts_with('/')), "names are bare");
}

/// The test would prove little if Docker had lost them before.
fn assert_rare_things_are_held(held: &Tree) {
    let rare = |name: &str| held.entry(Path::new("rare").join(name)).clone();
    assert_eq!(rare("file").mtime, (981_173_106, 789_012_345));
    assert_eq!((rare("file").uid, rare("file").gid), (70_000, 3_000_000));
    assert_eq!(rare("dir/again").same_as, rare("file").same_as);
    assert!(rare("file").same_as.is_some() && rare("file").xattrs.contains_key("user.note"));
    assert!(rare("ping").xattrs.contains_key("security.capability"));
    assert!(rare("setuid").xattrs.contains_key("system.posix_acl_access"));
    assert_eq!((rare("setuid").mode & 0o6000, rare("setuid").mtime.0), (0o6000, -3600));
    assert_eq!(rare("ping").mtime.0, 2_222_669_350);
    assert_eq!((rare("disk").kind, rare("disk").device), ("block device", (259, 70_000)));
    assert_eq!((rare("tty").kind, rare("fifo").kind, rare("socket").kind), ("character device", "fifo", "socket"));
    assert_eq!(rare("sparse").size, 64 << 20);
    assert!(held.0.len() > 5000, "a Debian has more than {} entries", held.0.len());
}
