//! diff: what a container, a snapshot or an image has that what it was made from has not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::scratch::Tar;
use crate::support::archives::Files;
use crate::support::store::Store;

fn rootfs(store: &Store, name: &str) -> PathBuf {
    PathBuf::from(store.json(&format!("inspect {name}"))[0]["Rootfs"].as_str().expect("a path"))
}

/// What a diff prints, without a walk through all of both trees.
#[track_caller]
fn known(store: &Store, line: &str) -> String {
    let done = store.run(&format!("--log-level debug {line}"));
    assert!(done.stderr.contains("inodes were written since generation"), "{done}");
    done.ok()
}

#[test]
fn each_kind_of_change_is_told() {
    let store = Store::new();
    let script = "set -e; mkdir -p /base/deep/er /base/gone/with; cd /base
        for f in same touched written mode owner gone/with/child replaced reset linked to_dir; do echo $f >$f; done
        ln -s same link; ln -s same relinked; ln -s same same_link; mkdir to_file; echo x >to_file/x; echo a >deep/er/file
        mknod node c 1 3; mkfifo fifo";
    store.run_with("run --name base --userns host --cap-add mknod busybox sh -c", &[script]).status(0);
    store.ok("snapshot create base tree");
    let script = "set -e; cd /base
        echo new >added; mkdir -p new/dir; echo x >new/dir/file
        touch -d @1 touched; echo x >>written; chmod 600 mode; chown 5 owner; rm -r gone
        echo other000 >r; touch -r replaced r; mv r replaced
        touch -r reset t; echo teser >reset; touch -r t reset; rm t
        ln -s written l; mv l relinked; ln linked /elsewhere; rm to_dir; mkdir to_dir; rm -r to_file; echo f >to_file
        echo b >>deep/er/file; rm node; mknod node c 1 5; chmod 711 /base/new; mv fifo fifo2; rm link; ln -s same link";
    store.run_with("run --name job --userns host --cap-add mknod tree sh -c", &[script]).status(0);
    let wanted = "C /base
A /base/added
C /base/deep
C /base/deep/er
C /base/deep/er/file
D /base/fifo
A /base/fifo2
D /base/gone
C /base/link
C /base/mode
A /base/new
A /base/new/dir
A /base/new/dir/file
C /base/node
C /base/owner
C /base/relinked
C /base/replaced
C /base/reset
C /base/to_dir
C /base/to_file
C /base/touched
C /base/written
A /elsewhere";
    assert_eq!(known(&store, "diff job"), wanted);
    store.ok("snapshot create job snap");
    assert_eq!(store.ok("diff snap"), "", "it is what it was made from");
    assert_eq!(known(&store, "diff snap tree"), wanted, "and that is what it was made from");
    let lists = store.json("diff --format json job");
    assert_eq!(lists["deleted"], serde_json::json!(["/base/fifo", "/base/gone"]));
    assert_eq!(lists["added"].as_array().expect("a list").len(), 6);
    assert_eq!(lists["renamed_from"], serde_json::json!({ "/base/fifo2": "/base/fifo" }));
    assert_eq!(store.ok("snapshot diff snap tree"), wanted, "the same by another verb");
    assert_eq!(store.json("diff --format json snap"), serde_json::json!({}));
}

#[test]
fn what_the_sandbox_mounts_over_is_not_the_container_s() {
    let store = Store::new();
    store.run("run --name job busybox true").status(0);
    let lines = store.lines("diff job");
    assert!(lines.iter().all(|line| line == "C /etc"), "{lines:?}");
    store.ok_with(
        "run --name wrote busybox sh -c",
        &["echo x >/dev/shm/x; echo y >/tmp/y || mkdir /tmp && echo y >/tmp/y"],
    );
    let lines = store.lines("diff wrote");
    assert!(lines.contains(&"A /tmp/y".to_string()) && !lines.iter().any(|line| line.contains("/dev")), "{lines:?}");
}

#[test]
fn attributes_and_names_are_seen_as_they_are() {
    let store = Store::new();
    store.ok("create --name job busybox true");
    let top = rootfs(&store, "job");
    fs::write(top.join("line\nend"), "").expect("a file");
    rustix::fs::setxattr(top.join("bin"), "user.a", b"1", rustix::fs::XattrFlags::empty()).expect("an attribute");
    // Out of the root there is nothing to see.
    std::os::unix::fs::symlink("/proc", top.join("out")).expect("a link");
    assert_eq!(store.ok("diff job"), "C /bin\nA /line\\nend\nA /out");
    assert_eq!(store.json("diff --format json job")["added"][0], "/line\nend");
    fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).expect("a mode");
    assert_eq!(store.ok("diff job").lines().count(), 3, "the root itself is not named");
}

#[test]
fn what_has_no_base_any_more_needs_one() {
    let store = Store::new();
    store.ok("snapshot create busybox tree");
    store.ok("create --name job tree true");
    assert_eq!(store.ok("diff job"), "");
    store.ok("snapshot rm tree");
    let error = store.fails(1, "diff job");
    assert!(error.contains("what it was made from") && error.contains("hint: name something else"), "{error}");
    assert_eq!(store.ok("diff job busybox"), "");
    store.fails(1, "diff nobody");
    store.fails(1, "diff job nobody");
    let all = store.lines("diff busybox");
    assert!(all.len() > 1 && all.iter().all(|line| line.starts_with("A /")), "an image of one layer: {all:?}");
}

#[test]
fn an_image_is_compared_with_the_layer_below() {
    let store = Store::empty();
    let below = Tar::default().directory("etc").file("etc/gone", b"x").file("etc/base", b"1").end();
    let above = Tar::default().file("etc/.wh.gone", b"").file("etc/base", b"2").file("top", b"3").end();
    let files = Files::docker(&[(&["two:1"], &[&below, &above])]);
    store.ok_with("image load -q -i", &[files.save(&store.disk.path(), "two.tar").to_str().expect("a path")]);
    assert_eq!(known(&store, "diff two:1"), "C /etc\nC /etc/base\nD /etc/gone\nA /top");
}

#[test]
fn contents_are_told_as_unified_diffs() {
    let store = Store::new();
    store.ok("snapshot create busybox base");
    let base = PathBuf::from(store.ok("snapshot path base")).join("t");
    fs::create_dir(&base).expect("a directory");
    let old = ["conf", "gone", "mode", "kind"];
    old.iter().for_each(|name| fs::write(base.join(name), "a\nb\nc\n").expect("a file"));
    fs::write(base.join("bytes"), b"a\0b").expect("a file");
    fs::write(base.join("large"), vec![b'x'; 2 << 20]).expect("a file");
    store.ok("snapshot create base web");
    let web = PathBuf::from(store.ok("snapshot path web")).join("t");
    fs::write(web.join("conf"), "a\nB\nc\n").expect("a file");
    fs::write(web.join("bytes"), b"a\0c").expect("a file");
    fs::write(web.join("large"), vec![b'y'; 2 << 20]).expect("a file");
    fs::write(web.join("li\nne"), b"caf\xe9").expect("a file");
    fs::set_permissions(web.join("mode"), fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::remove_file(web.join("gone")).expect("removed");
    fs::remove_file(web.join("kind")).expect("removed");
    std::os::unix::fs::symlink("conf", web.join("kind")).expect("a link");
    let removed = "@@ -1,3 +0,0 @@\n-a\n-b\n-c\n";
    let wanted = format!(
        "C /t
C /t/bytes
Binary files a/t/bytes and b/t/bytes differ
C /t/conf
--- a/t/conf
+++ b/t/conf
@@ -1,3 +1,3 @@
 a
-b
+B
 c
D /t/gone
--- a/t/gone
+++ /dev/null
{removed}C /t/kind
--- a/t/kind
+++ /dev/null
{removed}C /t/large
Files a/t/large and b/t/large differ
A /t/li\\nne
--- /dev/null
+++ b/t/li\\nne
@@ -0,0 +1 @@
+caf\u{fffd}
\\ No newline at end of file
C /t/mode"
    );
    assert_eq!(store.ok("snapshot diff --content web"), wanted);
    assert_eq!(store.ok("diff --content web base"), wanted);
    let raw = store.command("diff --content web", &[]).output().expect("tupper").stdout;
    assert!(raw.windows(5).any(|bytes| bytes == b"+caf\xe9"), "the bytes of the file");
    let error = store.fails(2, "diff --content --format json web");
    assert!(error.contains("cannot be used with"), "{error}");
}
