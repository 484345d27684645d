//! `tupper cp`: out of containers, into them, between them, and archives.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use crate::support::canary::Canary;
use crate::support::sh;
use crate::support::store::Store;

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

#[test]
fn files_go_both_ways_whether_it_runs_or_not() {
    let store = Store::alone();
    let host = tempfile::tempdir().expect("a directory");
    let (in_, out) = (host.path().join("in"), host.path().join("out"));
    fs::write(&in_, "from the host").expect("a file");
    fs::set_permissions(&in_, fs::Permissions::from_mode(0o640)).expect("chmod");
    std::os::unix::fs::chown(&in_, Some(1234), Some(1234)).expect("chown");
    store.ok("create --name web -v data:/srv busybox sleep 1000");
    for state in ["created", "running"] {
        if state == "running" {
            store.ok("start web");
        }
        store.ok_with("cp", &[text(&in_), &format!("web:/{state}")]);
        store.ok_with("cp", &[&format!("web:{state}"), text(&out)]);
        assert_eq!(read(&out), "from the host");
        let copied = fs::metadata(&out).expect("a file");
        assert_eq!((copied.uid(), copied.mode() & 0o7777), (0, 0o640), "root's, and as it was otherwise");
        // Volumes are the container's files, too.
        store.ok_with("cp", &[text(&in_), &format!("web:/srv/{state}")]);
    }
    let seen = store.ok_with("exec web sh -c", &["cat /created /srv/created; stat -c %u:%a /running /srv/running"]);
    assert_eq!(seen, "from the hostfrom the host0:640\n0:640");
    store.ok_with("cp --archive=false", &[text(&in_), "web:/kept"]);
    assert_eq!(store.ok("exec web stat -c %u:%g /kept"), "1234:1234");
    // What is in memory has no place to copy to.
    let error = store.fails(1, "cp web:/dev/null /tmp/x");
    assert!(error.contains("/dev: in the memory of the running container") && error.contains("hint: "), "{error}");
    store.ok("rm -f web");
    store.ok("volume rm data");
}

#[test]
fn it_is_the_container_s_user_s() {
    let store = Store::alone();
    let host = tempfile::tempdir().expect("a directory");
    fs::create_dir(host.path().join("tree")).expect("a directory");
    fs::write(host.path().join("tree/file"), "x").expect("a file");
    store.ok("create --name web -u 33:34 busybox true");
    store.ok_with("cp", &[text(&host.path().join("tree")), "web:/tmp/"]);
    let rootfs = store.json("inspect web")[0]["Rootfs"].as_str().expect("a path").to_string();
    for path in ["tmp/tree", "tmp/tree/file"] {
        let found = fs::metadata(Path::new(&rootfs).join(path)).expect(path);
        assert_eq!((found.uid(), found.gid()), (33, 34), "{path}");
    }
    store.ok("rm web");
}

/// The rules of cp(1), as podman-cp(1) and docker-cp(1) have them; the same on the host's side and in a container.
#[test]
fn where_it_comes_to_lie() {
    let store = Store::alone();
    store.ok("create --name web busybox true");
    let rootfs = store.json("inspect web")[0]["Rootfs"].as_str().expect("a path").to_string();
    let host = tempfile::tempdir().expect("a directory");
    // Source, destination, and what is there then; without one it is refused.
    let rows: [(&str, &str, Option<&str>); 15] = [
        ("file", "new", Some("new")),
        ("file", "there", Some("there")),
        ("file", "dir", Some("dir/file")),
        ("file", "dir/", Some("dir/file")),
        ("file", "dir/new", Some("dir/new")),
        ("file", "new/", None),
        ("file", "missing/new", None),
        ("file", "there/", None),
        ("tree", "new", Some("new/deep/leaf")),
        ("tree", "new/", Some("new/deep/leaf")),
        ("tree", "dir", Some("dir/tree/deep/leaf")),
        ("tree/.", "dir", Some("dir/deep/leaf")),
        ("tree/.", "new", Some("new/deep/leaf")),
        ("tree", "there", None),
        ("link", "new", Some("new/deep/leaf")),
    ];
    let furnish = |top: &Path| {
        let _ = fs::remove_dir_all(top);
        for dir in ["from/tree/deep", "to/dir"] {
            fs::create_dir_all(top.join(dir)).expect("a directory");
        }
        for file in ["from/file", "from/tree/deep/leaf"] {
            fs::write(top.join(file), "copied").expect("a file");
        }
        fs::write(top.join("to/there"), "before").expect("a file");
        symlink("tree", top.join("from/link")).expect("a link");
    };
    for (from, to, there) in rows {
        for into in [true, false] {
            let (outside, inside) = (host.path().join("x"), Path::new(&rootfs).join("x"));
            furnish(&outside);
            furnish(&inside);
            let (out, in_) = (outside.display().to_string(), "web:/x".to_string());
            let (source, goal, result) = if into { (&out, &in_, &inside) } else { (&in_, &out, &outside) };
            let (source, goal) = (format!("{source}/from/{from}"), format!("{goal}/to/{to}"));
            let done = store.run_with("cp", &[&source, &goal]);
            match there {
                Some(there) => {
                    assert_eq!(done.status, 0, "{source} to {goal}: {done}");
                    assert_eq!(read(result.join("to").join(there)), "copied", "{source} to {goal}");
                }
                None => {
                    assert_eq!(done.status, 1, "{source} to {goal}: {done}");
                    assert_eq!(read(result.join("to/there")), "before");
                }
            }
        }
    }
    store.fails(1, "cp web:/no/such/file /tmp/x");
    store.fails(1, "cp /no/such/file web:/x");
    store.fails(1, "cp nobody:/x /tmp/x");
    store.fails(1, "cp /etc/passwd /tmp/x");
    store.ok("rm web");
}

#[test]
fn everything_about_files_is_copied_and_nothing_dangerous_out() {
    let store = Store::alone();
    let host = tempfile::tempdir().expect("a directory");
    let script = "mkdir -p /t/d; cd /t; echo x >f; ln f g; ln -s f s; ln -s /etc/passwd a; mkfifo p; touch -d @1000000000 f; \
                  chmod 4755 f; chmod 2711 d; mknod n c 1 3; head -c 5000 /dev/zero >z";
    store.ok_with("run --name web --userns host --cap-add mknod busybox sh -c", &[script]);
    store.ok_with("cp web:/t", &[text(&host.path().join("t"))]);
    let meta = |name: &str| fs::symlink_metadata(host.path().join("t").join(name)).expect(name);
    assert_eq!((meta("f").mode() & 0o7777, meta("f").mtime()), (0o755, 1_000_000_000), "no setuid file comes out");
    assert_eq!(meta("g").ino(), meta("f").ino());
    assert_eq!(fs::read_link(host.path().join("t/a")).expect("a link"), Path::new("/etc/passwd"));
    assert!(fs::symlink_metadata(host.path().join("t/n")).is_err(), "no device comes out");
    // From one container to the other all of it goes.
    store.ok("create --name other busybox true");
    store.ok("cp web:/t other:/u");
    let rootfs = store.json("inspect other")[0]["Rootfs"].as_str().expect("a path").to_string();
    let inside = |name: &str| fs::symlink_metadata(Path::new(&rootfs).join("u").join(name)).expect(name);
    assert_eq!((inside("f").mode() & 0o7777, inside("n").rdev()), (0o4755, libc_makedev()));
    assert_eq!(inside("d").mode() & 0o7777, 0o2711);
    store.ok("rm web other");
}

/// makedev(3) of /dev/null.
fn libc_makedev() -> u64 {
    fs::metadata("/dev/null").expect("a device").rdev()
}

#[test]
fn archives_go_through_standard_streams() {
    let store = Store::alone();
    let host = tempfile::tempdir().expect("a directory");
    store.ok_with("run --name web busybox sh -c", &["mkdir -p /srv/d; echo one >/srv/d/f"]);
    let mut out = store.command("cp web:/srv -", &[]);
    let archive = out.stdout(Stdio::piped()).output().expect("tupper");
    assert!(archive.status.success());
    let file = host.path().join("a.tar");
    fs::write(&file, &archive.stdout).expect("a file");
    let listed = sh("tar", &["-tf", text(&file)]);
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["srv/", "srv/d/", "srv/d/f"]);
    for (archive, to) in [(file.clone(), "web:/tmp"), (compressed(&file), "web:/var")] {
        let mut in_ = store.command("cp -", &[to]);
        let done = in_.stdin(fs::File::open(archive).expect("a file")).output().expect("tupper");
        assert!(done.status.success(), "{done:?}");
    }
    store.ok_with("cp web:/tmp/srv/d/f", &[text(&host.path().join("f"))]);
    store.ok_with("cp web:/var/srv/d/f", &[text(&host.path().join("g"))]);
    assert_eq!((read(host.path().join("f")).as_str(), read(host.path().join("g")).as_str()), ("one\n", "one\n"));
    let mut nonsense = store.command("cp - web:/tmp", &[]);
    let done = nonsense.stdin(fs::File::open("/proc/self/exe").expect("a file")).output().expect("tupper");
    assert_eq!(done.status.code(), Some(1));
    store.fails(1, "cp - web:/no/such/directory");
    store.ok("rm web");
}

fn compressed(file: &Path) -> std::path::PathBuf {
    sh("gzip", &["-k", text(file)]);
    file.with_extension("tar.gz")
}

#[test]
fn what_is_read_only_or_of_another_kind_stays() {
    let store = Store::alone();
    let host = tempfile::tempdir().expect("a directory");
    let file = host.path().join("file");
    fs::write(&file, "x").expect("a file");
    fs::create_dir_all(host.path().join("tree/dir")).expect("a directory");
    fs::write(host.path().join("tree/file"), "y").expect("a file");
    let volume = format!("{}:/rw", host.path().display());
    store.ok_with("create --name web --read-only -v data:/ro:ro -v", &[&volume, "busybox", "true"]);
    for to in ["web:/", "web:/etc/x", "web:/ro"] {
        let error = store.run_with("cp", &[text(&file), to]).status(1).stderr;
        assert!(error.contains("read-only in the container"), "{error}");
    }
    store.ok_with("cp", &[text(&file), "web:/rw/new"]);
    assert_eq!(read(host.path().join("new")), "x", "through the volume");
    store.ok("rm web");

    store.ok_with("run --name web busybox sh -c", &["mkdir -p /t/tree/file; echo x >/t/tree/dir"]);
    let done = store.run_with("cp", &[text(&host.path().join("tree")), "web:/t"]).status(1);
    assert!(done.stderr.contains("overwrite tree/") && done.stderr.contains("--overwrite"), "{done}");
    store.ok_with("cp --overwrite", &[text(&host.path().join("tree")), "web:/t"]);
    store.ok_with("cp web:/t/tree/file", &[text(&host.path().join("back"))]);
    assert_eq!(read(host.path().join("back")), "y");
    store.ok("rm web");
    store.ok("volume rm data");
}

/// CVE-2018-15664, CVE-2019-14271: links of a container lead nowhere outside of it.
#[test]
fn links_lead_nowhere_else() {
    let canary = Canary::new();
    let store = Store::alone();
    let host = tempfile::tempdir().expect("a directory");
    fs::write(host.path().join("file"), "x").expect("a file");
    let script = format!(
        "ln -s {0} /out; ln -s ../../../..{0} /up; mkdir /d; ln -s / /d/root; ln -s /proc/self/root{0} /magic",
        canary.path().display()
    );
    store.ok_with("run --name web busybox sh -c", &[&script]);
    for path in ["/out/etc/passwd", "/up/etc/passwd", "/magic/etc/passwd", "/d/root/out/etc/passwd"] {
        store.run_with("cp", &[&format!("web:{path}"), text(&host.path().join("stolen"))]).status(1);
        store.run_with("cp", &[text(&host.path().join("file")), &format!("web:{path}")]).status(1);
    }
    // Over a link that is there, the file that it leads to inside.
    store.ok_with("cp", &[text(&host.path().join("file")), "web:/d/root/new"]);
    store.ok_with("cp web:/new", &[text(&host.path().join("back"))]);
    canary.assert_untouched();
    store.ok("rm web");
}
