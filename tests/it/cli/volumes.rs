//! Named volumes: volume create, ls, inspect, rm, prune; -v NAME:DST, -v DST, --mount, and volumes that images declare.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::archives::{Files, config};
use crate::support::canary::Canary;
use crate::support::store::Store;
use crate::support::{busybox, eventually, sh};

const PATIENCE: Duration = Duration::from_secs(120);

fn top(store: &Store, volume: &str) -> PathBuf {
    let path = store.json(&format!("volume inspect {volume}"))[0]["Mountpoint"].clone();
    PathBuf::from(path.as_str().expect("a path"))
}

#[test]
fn it_outlives_its_containers_and_is_shared() {
    let store = Store::alone();
    let before = store.traces();
    assert_eq!(store.ok("volume ls -q"), "");
    assert_eq!(store.ok("volume create --label team=web data"), "data");
    let error = store.fails(1, "volume create data");
    assert!(error.contains("volume data: it exists already"), "{error}");
    assert_eq!(store.ok("volume create --ignore data"), "data");
    store.ok_with("run --rm -v data:/srv busybox sh -c", &["echo hello >/srv/file; chown 5:6 /srv/file"]);
    assert_eq!(store.ok("run --rm -v data:/other:ro busybox cat /other/file"), "hello");
    let end = store.run_with("run --rm -v data:/srv:ro busybox sh -c", &["echo x >/srv/file"]);
    assert!(end.status == 1 && end.stderr.contains("Read-only"), "{end}");
    // Root inside is not root outside, and the disk says what is inside.
    let file = fs::metadata(top(&store, "data").join("file")).expect("a file");
    assert_eq!((file.uid(), file.gid()), (5, 6));
    assert_eq!(store.ok("volume ls"), "DRIVER  VOLUME NAME\nlocal   data");
    let volume = store.json("volume inspect da")[0].clone();
    assert_eq!(
        (&volume["Name"], &volume["Driver"], &volume["Anonymous"]),
        (&json!("data"), &json!("local"), &json!(false))
    );
    assert_eq!(volume["Labels"]["team"], "web");

    store.ok("run -d --name one -v data:/srv busybox sleep 1000");
    store.ok("run -d --name two --mount type=volume,src=data,dst=/data busybox sleep 1000");
    store.ok("exec one touch /srv/shared");
    store.ok("exec two test -e /data/shared");
    let mount = store.json("inspect two")[0]["Mounts"][0].clone();
    assert_eq!((&mount["Type"], &mount["Name"], &mount["RW"]), (&json!("volume"), &json!("data"), &json!(true)));
    assert_eq!(store.lines("ps -q --filter volume=data").len(), 2);
    let error = store.fails(1, "volume rm data");
    assert!(error.contains("remove volume data: used by container ") && error.contains("hint: "), "{error}");
    store.ok("stop -t 0 -a");
    store.fails(1, "volume rm data");
    assert_eq!(store.ok("volume prune -f"), "");
    store.ok("rm one");
    store.ok("start two");
    assert_eq!(store.ok("volume rm --force --dry-run data"), "data");
    assert_eq!(store.ok("volume rm --force data"), "data");
    assert_eq!(store.ok("ps -aq"), "", "its containers went with it");
    store.fails(1, "volume rm data");
    assert_eq!(store.ok("volume rm --force data"), "");
    assert_eq!(store.ok("store check"), "");
    before.assert_same(&store.traces());
}

#[test]
fn it_is_filled_once_from_the_image() {
    let store = Store::alone();
    let script = "mkdir -p /srv/deep; echo one >/srv/deep/file; ln /srv/deep/file /srv/link; ln -s deep/file /srv/soft; \
                  chown 33:34 /srv/deep; chmod 2750 /srv; touch -d @1000000000 /srv/deep/file; mkfifo /srv/pipe";
    store.ok_with("run --name made busybox sh -c", &[script]);
    store.ok("snapshot create made source");
    store.ok("rm made");
    assert_eq!(store.ok("run --rm -v full:/srv source cat /srv/deep/file"), "one");
    let path = top(&store, "full");
    let meta = |name: &str| fs::symlink_metadata(path.join(name)).expect(name);
    assert_eq!(meta(".").permissions().mode() & 0o7777, 0o2750, "its own mode");
    assert_eq!((meta("deep").uid(), meta("deep").gid()), (33, 34));
    assert_eq!((meta("link").ino(), meta("deep/file").mtime()), (meta("deep/file").ino(), 1_000_000_000));
    assert_eq!(fs::read_link(path.join("soft")).expect("a link"), PathBuf::from("deep/file"));
    // Once: what is there is somebody's.
    store.ok("run --rm -v full:/srv source rm -r /srv/deep /srv/link");
    store.ok("run --rm -v full:/srv source test ! -e /srv/deep");
    store.ok("run --rm -v empty:/srv:nocopy source test ! -e /srv/deep");
    store.ok("run --rm -v empty:/srv source test ! -e /srv/deep");
    store.ok("run --rm -v none:/no/such/place source test ! -e /no/such/place/x");
    // One that was made by hand is as good as new; one that somebody put something into is not.
    store.ok("volume create made");
    store.ok("run --rm -v made:/srv source test -e /srv/deep/file");
    store.ok("volume create used");
    fs::write(top(&store, "used").join("mine"), "x").expect("a file");
    store.ok("run --rm -v used:/srv source test ! -e /srv/deep");
    // Several at once fill it once.
    let runs: Vec<_> = (0..8)
        .map(|_| store.command("run --rm -v many:/srv source cat /srv/deep/file", &[]).spawn().expect("tupper"))
        .collect();
    for mut run in runs {
        assert!(run.wait().expect("ended").success());
    }
    store.ok("volume prune -f");
    assert_eq!(store.ok("volume ls -q"), "");
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn a_link_in_an_image_does_not_fill_it_with_the_host() {
    let canary = Canary::new();
    let store = Store::alone();
    let script =
        format!("ln -s {0} /out; ln -s ../../../../../../{0} /up; ln -s /proc/1/root /magic", canary.path().display());
    store.ok_with("run --name made busybox sh -c", &[&script]);
    store.ok("snapshot create made evil");
    store.ok("rm made");
    for (n, place) in ["/out", "/up", "/magic/etc"].iter().enumerate() {
        let end = store.run_with("run --rm", &["-v", &format!("v{n}:{place}"), "evil", "true"]);
        let left = store.run(&format!("volume inspect v{n}"));
        if left.status == 0 {
            assert_eq!(fs::read_dir(top(&store, &format!("v{n}"))).expect("a directory").count(), 0, "{end}");
        }
    }
    canary.assert_untouched();
}

#[test]
fn what_nobody_named_goes_with_its_container() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    store.ok_with("run --rm -v /data busybox sh -c", &["echo x >/data/x; grep -q ' /data ' /proc/mounts"]);
    assert_eq!(store.ok("volume ls -q"), "", "gone with --rm");
    store.ok("run -d --rm --name job -v /data busybox sleep 1000");
    let [name] = &store.lines("volume ls -q")[..] else { panic!("one") };
    assert_eq!(name.len(), 64);
    assert_eq!(store.json(&format!("volume inspect {name}"))[0]["Anonymous"], true);
    store.ok("stop -t 0 job");
    assert_eq!(store.ok("volume ls -q"), "");
    // Killed, it goes with what is cleared away.
    store.ok("run -d --rm --name job -v /data busybox sleep 1000");
    nix::sys::signal::kill(store.monitor("job"), nix::sys::signal::Signal::SIGKILL).expect("killed");
    eventually("it has ended", PATIENCE, || store.ok("ps -q").is_empty());
    store.ok("store gc");
    assert_eq!(store.ok("volume ls -q"), "");
    // Of one that stays it stays, until somebody wants it to go.
    store.ok("create --name kept -v /data busybox true");
    store.ok("rm kept");
    assert_eq!(store.lines("volume ls -q --filter dangling=true").len(), 1);
    assert_eq!(store.ok("store gc"), "", "it is no garbage");
    assert_eq!(store.lines("volume prune -f --dry-run").len(), 1);
    assert_eq!(store.lines("volume prune -f").len(), 1);
    store.ok("create --name kept -v /data busybox true");
    store.ok("start -a kept");
    store.ok("rm -v kept");
    assert_eq!(store.ok("volume ls -q"), "");
    // A container that cannot be made leaves none.
    store.fails(125, "run --rm -v /data --name kept --cidfile /no/such/place busybox true");
    assert_eq!(store.ok("volume ls -q"), "");
    before.assert_same(&store.traces());
}

#[test]
fn an_image_declares_some() {
    let store = Store::alone();
    let layer = fs::read(busybox()).expect("a tarball");
    let mut document = config(&[&layer]);
    document["config"]["Volumes"] =
        json!({ "/data": {}, "/proc/sys": {}, "/dev/x": {}, "relative": {}, "/a/../b": {} });
    let archive = Files::docker_of(serde_json::to_vec(&document).expect("json"), &["localhost/declares:1"], &[&layer]);
    let archive = archive.save(&store.disk.path(), "image.tar");
    store.ok_with("image load -q -i", &[archive.to_str().expect("a path")]);
    store.ok_with("create --name one declares:1 sh -c", &["grep -q ' /data ' /proc/mounts"]);
    let mounts = store.json("inspect one")[0]["Mounts"].clone();
    assert_eq!((mounts.as_array().map(Vec::len), &mounts[0]["Destination"]), (Some(1), &json!("/data")), "{mounts}");
    store.ok("start -a one");
    store.ok("rm -v one");
    assert_eq!(store.ok("volume ls -q"), "");
    store.ok("run --name two -v mine:/data declares:1 true");
    assert_eq!(store.ok("volume ls -q"), "mine", "a person's takes its place");
    store.ok_with("run --rm --image-volume ignore declares:1 sh -c", &["! grep -q ' /data ' /proc/mounts"]);
    let kind = store
        .ok_with("run --rm --image-volume tmpfs declares:1 sh -c", &["grep ' /data ' /proc/mounts | cut -d' ' -f1"]);
    assert_eq!(kind, "tmpfs");
    store.ok("rm two");
}

#[test]
fn mounts_in_words() {
    let store = Store::alone();
    let host = tempfile::tempdir().expect("a directory");
    fs::write(host.path().join("file"), "from the host").expect("a file");
    let bind = format!("type=bind,src={},dst=/host,ro", host.path().display());
    let flags =
        ["--mount", &bind, "--mount", "type=tmpfs,dst=/mem,tmpfs-size=1m", "--mount", "type=volume,src=v,dst=/v"];
    let script = "cat /host/file; ! touch /host/x 2>/dev/null; df -k /mem | tail -1 | awk '{print $2}'; touch /v/x";
    let mut arguments = flags.to_vec();
    arguments.extend(["busybox", "sh", "-c", script]);
    assert_eq!(store.ok_with("run --rm", &arguments), "from the host1024");
    assert!(top(&store, "v").join("x").exists());
    let error = store.fails(125, "run --rm --mount type=bind,src=/etc,dst=/x,colour=red busybox true");
    assert!(error.contains("colour"), "{error}");
    store.fails(125, "run --rm -v a:/x -v b:/x busybox true");
    assert_eq!(store.ok("volume ls -q"), "v");
}

#[test]
fn nocow_is_inherited() {
    let store = Store::alone();
    store.ok("volume create --nocow db");
    assert_eq!(store.json("volume inspect db")[0]["NoCow"], true);
    store.ok("run --rm -v db:/srv busybox touch /srv/file");
    let path = top(&store, "db").join("file");
    let flags = sh("lsattr", &[path.to_str().expect("a path")]);
    assert!(flags.split_whitespace().next().is_some_and(|flags| flags.contains('C')), "{flags}");
    store.ok("volume rm db");
}

#[test]
fn damage_is_seen_and_old_stores_have_none() {
    let store = Store::alone();
    // As a store of before volumes were.
    fs::remove_dir(store.root().join("fs/volumes")).expect("empty");
    for line in ["volume ls", "volume prune -f", "store check", "store gc", "ps -a"] {
        store.ok(line);
    }
    store.ok("run --rm -v data:/srv busybox touch /srv/x");
    assert_eq!(store.ok("store check"), "");
    let object = top(&store, "data").parent().expect("a directory").to_path_buf();
    fs::rename(&object, object.with_file_name("0".repeat(64))).expect("renamed");
    let found: Value = serde_json::from_str(&store.run("store check --format json").stdout).expect("json");
    assert!(found[0]["Kind"] == "volume" && found[0]["Garbage"] == false, "{found}");
    fs::rename(object.with_file_name("0".repeat(64)), &object).expect("renamed");
    symlink("x", object.with_file_name("stranger")).expect("a link");
    store.run("store check").status(1);
    fs::remove_file(object.with_file_name("stranger")).expect("removed");
    store.ok("volume rm data");
}

#[test]
fn nonsense_is_refused() {
    let store = Store::alone();
    for line in
        ["volume create a/b", "volume create -x", "volume rm", "volume ls --filter colour=red", "volume inspect"]
    {
        assert_ne!(store.run(line).status, 0, "{line}");
    }
    let error = store.fails(1, "volume rm nothing");
    assert!(error.contains("nothing: no such volume") && error.contains("hint: "), "{error}");
    let error = store.fails(125, "run --rm -v na/me:/x busybox true");
    assert!(error.contains("neither a path"), "{error}");
}
