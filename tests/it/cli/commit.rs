//! commit: what a container or a snapshot has come to becomes the topmost layer of an image.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tupper::image::Commit;
use tupper::layer::{Difference, Differences, pack_layer};
use tupper::{container, snapshot};

use super::id;
use super::load::{assert_clean, stored, text};
use super::sources::{COUNTS, assert_no_sign, is_paused, number, start};
use crate::changes::{Step, apply, fill};
use crate::scratch::{Scratch, Tar, shell};
use crate::support::archives::{Files, config};
use crate::support::store::Store;
use crate::support::tree::Tree;
use crate::support::{eventually, sh};

/// What the sandbox mounts over, and made for that.
const MOUNT_POINTS: [&str; 8] =
    ["dev", "proc", "sys", "run", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"];

fn rootfs(store: &Store, name: &str) -> PathBuf {
    PathBuf::from(store.json(&format!("inspect {name}"))[0]["Rootfs"].as_str().expect("a path"))
}

fn snapshot_path(store: &Store, name: &str) -> PathBuf {
    PathBuf::from(store.ok(&format!("snapshot path {name}")))
}

/// What a snapshot of an image holds.
fn tree(store: &Store, image: &str) -> Tree {
    let name = store.ok(&format!("snapshot create {image}"));
    let tree = Tree::read(&snapshot_path(store, &name));
    store.ok(&format!("snapshot rm {name}"));
    tree
}

fn without_mount_points(mut tree: Tree) -> Tree {
    tree.0.retain(|path, _| !MOUNT_POINTS.iter().any(|place| path == Path::new(place)));
    tree
}

/// An image's config as it lies in the store.
fn document(store: &Store, image: &str) -> Value {
    let id = store.json(&format!("image inspect {image}"))[0]["Id"].as_str().expect("an id").to_string();
    let json = fs::read(store.root().join("fs/images").join(id).join("config.json")).expect("a config");
    serde_json::from_slice(&json).expect("JSON")
}

/// The entries of a layer's archive, as the store has counted them.
fn entries(store: &Store, chain: &str) -> u64 {
    let mut value = vec![0; 4096];
    let dir = store.root().join("fs/layers").join(chain);
    let length = rustix::fs::getxattr(dir, "user.tupper.record", &mut value[..]).expect("a record");
    let record: Value = serde_json::from_slice(&value[..length]).expect("JSON");
    record["entries"].as_u64().expect("a number")
}

/// An archive's entries: kind, name, and what a link leads to.
fn listed(directory: &Path, paths: &[(&str, Difference)], latest: Option<i64>) -> Vec<String> {
    let paths: BTreeMap<PathBuf, Difference> = paths.iter().map(|(path, is)| (PathBuf::from(path), *is)).collect();
    let directory = File::open(directory).expect("a directory").into();
    let packed = pack_layer(Differences { directory, paths: Some(paths), latest }).expect("a layer");
    let mut archive = tar::Archive::new(packed);
    let line = |entry: tar::Entry<'_, _>| {
        let header = entry.header();
        let link = entry.link_name().expect("a name").map(|to| format!(" {}", to.display())).unwrap_or_default();
        let late = header.mtime().expect("a time") > 1_000_000_000;
        let kind = char::from(header.entry_type().as_byte());
        format!("{kind} {}{link}{}", entry.path().expect("a path").display(), if late { " late" } else { "" })
    };
    archive.entries().expect("entries").map(|entry| line(entry.expect("an entry"))).collect()
}

#[test]
fn each_kind_of_change_is_in_the_layer() {
    let store = Store::new();
    store.ok("snapshot create busybox raw");
    shell(
        "mkdir -p b/deep/er b/gone/with b/renamed/in b/to_file; cd b
        for f in same written mode owner gone/with/child replaced to_dir deep/er/file renamed/in/x to_file/x l1 x1; do
            echo $f >$f; done
        ln l1 l2; ln l1 deep/l3; ln x1 x2; ln -s same link; mknod node c 1 3; mkfifo fifo; touch -d @1 old",
        &snapshot_path(&store, "raw"),
    );
    store.ok("commit raw base:1");
    tree(&store, "base:1").assert_same(&Tree::read(&snapshot_path(&store, "raw")));
    store.ok("create --name job base:1 true");
    shell(
        "echo top >top; cd b; mkdir -p new/dir; echo x >new/dir/file
        echo x >>written; chmod 4711 mode; chown 5:6 owner; rm -r gone; mv renamed moved; echo x >other; mv other replaced
        rm to_dir; mkdir to_dir; echo y >to_dir/y; rm -r to_file; echo f >to_file; ln -sfn elsewhere link
        rm node; mknod node b 7 300; rm fifo; ln l2 l4; echo more >>deep/er/file; rm x2; echo x2 >x2
        touch -d '1969-12-31 23:59:58.25 UTC' before; touch -d '2260-01-01 UTC' after; touch -hd @5.000000001 link
        setfattr -n user.a -v 1 deep; setfattr -n trusted.b -v 2 new/dir; setcap cap_net_raw+ep mode || true
        truncate -s 50M hole; echo end >>hole; mkdir was; rmdir was; chmod 1777 deep
        mkdir -m 2775 setgid; setfacl -d -m u:7:rwx setgid || true",
        &rootfs(&store, "job"),
    );
    let made = id(&store.ok("snapshot commit job made:1"));
    assert_eq!(store.json("image inspect made:1")[0]["Id"], json!(made));
    let source = Tree::read(&rootfs(&store, "job"));
    tree(&store, "made:1").assert_same(&source);
    assert_eq!(store.ok("diff made:1"), store.ok("diff job"), "the layer is what differs");
    // And back again, on top of that.
    store.ok("create --name back made:1 true");
    shell(
        "cd b; rm -r to_dir; echo f >to_dir; rm to_file; mkdir to_file; mv moved renamed; rm l1; cp l2 l1; rm -r setgid
        echo >>x1; rm hole; ln mode linked; touch .",
        &rootfs(&store, "back"),
    );
    store.ok("commit back made:2");
    tree(&store, "made:2").assert_same(&Tree::read(&rootfs(&store, "back")));
    assert_eq!(document(&store, "made:2")["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(4));
    assert_clean(&store);
}

#[test]
fn what_the_sandbox_mounts_over_is_not_in_the_layer() {
    let store = Store::new();
    store.ok_with("run --name job busybox sh -c", &["mkdir -p /srv && echo x >/srv/x; echo y >/dev/shm/y"]);
    store.ok("commit job made");
    let (is, source) = (tree(&store, "made"), Tree::read(&rootfs(&store, "job")));
    without_mount_points(is.clone()).assert_same(&without_mount_points(source.clone()));
    let base = tree(&store, "busybox");
    for place in MOUNT_POINTS {
        assert_eq!(is.0.get(Path::new(place)), base.0.get(Path::new(place)), "{place}");
    }
    assert!(
        MOUNT_POINTS
            .iter()
            .any(|place| source.0.contains_key(Path::new(place)) && !is.0.contains_key(Path::new(place)))
    );
    // What somebody has put there, where nothing is mounted, is his.
    fs::write(rootfs(&store, "job").join("run/mine"), "x").expect("a file");
    store.ok("commit job more");
    assert_eq!(tree(&store, "more").entry("run/mine").size, 1);
    store.ok("run --rm made cat /srv/x");
}

#[test]
fn the_archive_is_sorted_and_says_what_it_hides() {
    let scratch = Scratch::new();
    let top = scratch.make("top");
    shell(
        "mkdir d e; echo 1 >d/a; ln d/a e/b; ln d/a z; echo 2 >d/c; python3 -c '
import socket; socket.socket(socket.AF_UNIX).bind(\"d/s\"); socket.socket(socket.AF_UNIX).bind(\"d/t\")'
        find . -exec touch -hd @2000000000 {} +",
        &top,
    );
    use Difference::{Added, Changed, Deleted};
    let paths =
        [("/d", Changed), ("/d/c", Added), ("/d/gone", Deleted), ("/d/s", Changed), ("/d/t", Added), ("/z", Added)];
    let late = [
        "5 ./ late",
        "5 d/ late",
        "0 d/a late",
        "0 d/c late",
        "0 d/.wh.gone",
        "0 d/.wh.s",
        "5 e/ late",
        "1 e/b d/a late",
        "1 z d/a late",
    ];
    assert_eq!(listed(&top, &paths, None), late);
    assert_eq!(listed(&top, &paths, Some(1_000_000_000)), late.map(|line| line.trim_end_matches(" late").to_string()));
    for name in ["/d/.wh.x", "/.wh..wh..opq", "/.wh."] {
        let directory = File::open(&top).expect("a directory").into();
        let paths = Some([(PathBuf::from(name), Deleted)].into());
        let error = pack_layer(Differences { directory, paths, latest: None }).map(drop).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
    fs::write(top.join("d/.wh.x"), "").expect("a file");
    let directory = File::open(&top).expect("a directory").into();
    let mut whole = pack_layer(Differences { directory, paths: None, latest: None }).expect("a layer");
    let error = whole.read_to_end(&mut Vec::new()).expect_err("a name that no layer can hold");
    assert!(error.to_string().contains("/d/.wh.x"), "{error}");
}

#[test]
fn a_running_container_goes_on() {
    let store = Store::alone();
    let root = start(&store, COUNTS);
    let pid = store.json("inspect web")[0]["State"]["Pid"].clone();
    for nth in 0..5 {
        store.ok(&format!("commit web at:{nth}"));
        let name = store.ok(&format!("snapshot create at:{nth}"));
        let path = snapshot_path(&store, &name);
        let (a, b) = (number(&path.join("a")), number(&path.join("b")));
        assert!(a == b || a == b + 1, "{a} and {b}");
    }
    assert!(!is_paused(&store));
    let now = number(&root.join("a"));
    eventually("it goes on", std::time::Duration::from_secs(60), || number(&root.join("a")) > now);
    assert_eq!(store.json("inspect web")[0]["State"]["Pid"], pid, "the same process");
    store.ok("commit --no-pause web loose");
    store.ok("commit --pause=false web loose");
    store.ok("commit -p web loose");
    store.fails(2, "commit --no-pause --pause web loose");
    store.ok("pause web");
    store.ok("commit web still");
    assert!(is_paused(&store), "one that was paused stays so");
    store.ok("unpause web");
    assert_no_sign(&store);
    store.ok("rm -f web");
}

/// An image whose config is the same wherever it is loaded, and holds what tupper does not know.
fn load_base(store: &Store) {
    let layer = Tar::default().directory("etc").file("etc/base", b"1").directory("bin").file("bin/x", b"x").end();
    let mut config = config(&[&layer]);
    config["config"] = json!({ "Cmd": ["/bin/x"], "Env": ["A=1", "TERM=dumb"], "Labels": { "z": "1", "a": "2", "m": "3" },
        "ExposedPorts": { "80/tcp": {}, "79/tcp": {}, "78/udp": {} },
        "Healthcheck": { "Test": ["CMD", "true"] }, "OnBuild": ["RUN x"], "ArgsEscaped": true });
    config["author"] = json!("somebody");
    config["docker_version"] = json!("99");
    let files = Files::docker_of(serde_json::to_vec(&config).expect("JSON"), &["base:1"], &[&layer]);
    store.ok_with("image load -q -i", &[text(&files.save(&store.disk.path(), "base.tar"))]);
}

#[test]
fn the_same_tree_is_the_same_image() {
    let store = Store::alone();
    let other = Store::beside(&store);
    let made: Vec<[String; 2]> = [&store, &other]
        .map(|store| {
            load_base(store);
            store.ok("create --name job -e B=2 -l y=1 -l b=2 base:1 /bin/x y");
            store.ok("snapshot create base:1 snap");
            for root in [rootfs(store, "job"), snapshot_path(store, "snap")] {
                shell("mkdir d; echo 1 >d/a; ln d/a d/b; rm etc/base; setfattr -n user.x -v 1 d", &root);
            }
            ["job", "snap"].map(|source| store.ok(&format!("commit --source-date-epoch 1000000000 {source}")))
        })
        .to_vec();
    assert_eq!(made[0], made[1], "in two stores, at two times");
    let layers = stored(&store);
    let tupper = |line: &str| {
        let mut command = store.command(line, &[]);
        command.env("SOURCE_DATE_EPOCH", "1000000000");
        crate::support::command::finish(command)
    };
    assert_eq!(tupper("commit job").ok(), made[0][0]);
    store.ok("commit job other:1");
    let before = stored(&store);
    store.ok("commit job other:2");
    assert_eq!(stored(&store), before, "the same layer, whenever it is made");
    assert_eq!(before.len(), layers.len() + 1, "with the times that things have");
    let document = document(&store, &made[0][0]);
    assert_eq!(document["created"], "2001-09-09T01:46:40Z");
    let root = tree(&store, &made[0][0]);
    assert_eq!(root.entry("d/a").mtime, (1_000_000_000, 0));
    assert_eq!(root.entry("d").mtime, (1_000_000_000, 0));
    assert!(root.entry("bin/x").mtime.0 < 1_000_000_000, "what is older stays");
    for wrong in ["x", "", "1.5", "99999999999999999"] {
        store.run_with("commit job new --source-date-epoch", &[wrong]).fails(2);
    }
}

#[test]
fn the_config_is_the_base_s_and_what_the_container_was_run_with() {
    let store = Store::new();
    load_base(&store);
    store.ok("create --name job -t -e B=2 -w /srv -u 7 -l own=1 --stop-signal INT base:1 /bin/x y");
    let file = store.disk.path().join("id");
    let made = store.ok_with(
        "commit -q -m",
        &[
            "a message",
            "-a",
            "Somebody <else>",
            "--iidfile",
            text(&file),
            "-c",
            "ENV C=3",
            "--change",
            "LABEL own=2",
            "-c",
            "EXPOSE 443",
            "job",
            "made:1",
        ],
    );
    assert_eq!(fs::read_to_string(file).expect("a file"), made);
    let (base, is) = (document(&store, "base:1"), document(&store, "made:1"));
    let wanted = json!({ "Cmd": ["/bin/x", "y"], "Env": ["TERM=dumb", "A=1", "B=2", "C=3"],
        "Labels": { "z": "1", "a": "2", "m": "3", "own": "2" }, "WorkingDir": "/srv", "User": "7", "StopSignal": "2",
        "ExposedPorts": { "78/udp": {}, "79/tcp": {}, "80/tcp": {}, "443/tcp": {} },
        "Healthcheck": { "Test": ["CMD", "true"] }, "OnBuild": ["RUN x"], "ArgsEscaped": true });
    assert_eq!(is["config"], wanted);
    for same in ["architecture", "os", "docker_version"] {
        assert_eq!(is[same], base[same], "{same}");
    }
    assert_eq!(is["author"], "Somebody <else>");
    let step = &is["history"][1];
    assert_eq!(is["history"].as_array().map(Vec::len), Some(2));
    assert_eq!((&step["created_by"], &step["comment"]), (&json!("tupper commit"), &json!("a message")));
    assert_eq!((&step["author"], &step["created"]), (&is["author"], &is["created"]));
    assert_eq!(is["rootfs"]["diff_ids"][0], base["rootfs"]["diff_ids"][0]);
    let history = store.json("image history --format json made:1");
    assert_eq!(history.as_array().map(Vec::len), Some(2));
    assert_eq!((&history[0]["CreatedBy"], &history[0]["comment"]), (&json!("tupper commit"), &json!("a message")));
    // A snapshot has not been run with anything.
    store.ok("snapshot create job snap");
    store.ok("commit snap made:2");
    assert_eq!(document(&store, "made:2")["config"], base["config"]);
    assert_eq!(document(&store, "made:2")["author"], "somebody");
    // Without a name, and with one that another had.
    let nameless = store.ok("commit snap");
    assert_eq!(store.json(&format!("image inspect {nameless}"))[0]["RepoTags"], json!([]));
    store.ok("commit snap made:1");
    assert_ne!(store.json("image inspect made:1")[0]["Id"], json!(made));
    // It runs as what it was made of.
    store.ok_with("run --name ran busybox sh -c", &["echo $0 >/said", "it"]);
    store.ok("commit ran again");
    store.ok("run --name second again");
    assert_eq!(fs::read_to_string(rootfs(&store, "second").join("said")).expect("a file"), "it\n");
    assert_clean(&store);
}

#[test]
fn ten_changes_make_a_layer_of_ten_changes() {
    let store = Store::empty();
    store.import_debian();
    store.ok("snapshot create debian web");
    let files = sh("find", &[text(&snapshot_path(&store, "web")), "-type", "f", "-links", "1", "-path", "*/share/*"]);
    let changed: Vec<&str> = files.lines().step_by(97).take(10).collect();
    assert_eq!(changed.len(), 10);
    for path in &changed {
        fs::write(path, "changed").expect("written");
    }
    let before = stored(&store);
    let done = store.run("--log-level debug commit web made");
    assert!(done.stderr.contains("inodes were written since generation"), "both trees were walked: {done}");
    done.ok();
    let new: Vec<String> = stored(&store).into_iter().filter(|chain| !before.contains(chain)).collect();
    // The files, and the directories above them.
    let below = |path: &str| Path::new(path).ancestors().count() as u64;
    let most = 1 + changed.iter().map(|path| below(path)).sum::<u64>();
    assert!((11..=most).contains(&entries(&store, &new[0])), "{}", entries(&store, &new[0]));
    tree(&store, "made").assert_same(&Tree::read(&snapshot_path(&store, "web")));
}

#[test]
fn without_the_image_all_of_it_is_a_layer() {
    let store = Store::new();
    store.ok_with("run --name job busybox sh -c", &["echo x >/x; exit 0"]);
    store.ok("snapshot create job snap");
    store.ok("rm job");
    store.ok("image rm --force busybox");
    assert!(stored(&store).is_empty());
    let done = store.run("commit snap whole");
    assert!(done.stderr.contains("snap: no image that it was made from is here"), "{done}");
    done.ok();
    let is = document(&store, "whole");
    assert_eq!(
        (is["rootfs"]["diff_ids"].as_array().map(Vec::len), is["history"].as_array().map(Vec::len)),
        (Some(1), Some(1))
    );
    tree(&store, "whole").assert_same(&Tree::read(&snapshot_path(&store, "snap")));
    store.ok("run --rm whole cat /x");
    // A subvolume of the host's, and a snapshot of one.
    let host = store.disk.path().join("host");
    sh("btrfs", &["--quiet", "subvolume", "create", text(&host)]);
    shell("mkdir etc; echo h >etc/hosts; ln etc/hosts same", &host);
    store.ok_with("commit", &[text(&host), "host:1"]);
    store.ok_with("snapshot create", &[text(&host), "of-host"]);
    store.ok("commit of-host host:2");
    for name in ["host:1", "host:2"] {
        tree(&store, name).assert_same(&Tree::read(&host));
    }
    // And where it is asked for.
    load_base(&store);
    store.ok("create --name other base:1 x");
    store.ok("commit -s other one");
    let one = document(&store, "one");
    assert_eq!(
        (one["rootfs"]["diff_ids"].as_array().map(Vec::len), one["history"].as_array().map(Vec::len)),
        (Some(1), Some(1))
    );
    assert_eq!(one["config"]["OnBuild"], document(&store, "base:1")["config"]["OnBuild"]);
    tree(&store, "one").assert_same(&Tree::read(&rootfs(&store, "other")));
    assert_eq!(store.json("image history --format json host:1").as_array().map(Vec::len), Some(1));
    assert_clean(&store);
}

#[test]
fn what_cannot_be_committed_is_said_and_leaves_nothing() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    let before = (stored(&store), store.ok("image ls -q --no-trunc"));
    assert!(store.fails(1, "commit nobody new").contains("nobody"));
    let error = store.fails(1, "commit busybox new");
    assert!(error.contains("commit busybox: it is an image") && error.contains("hint: `tupper tag`"), "{error}");
    store.fails(2, "commit web UPPER:1");
    store.fails(2, "commit web new --change NOTHING");
    store.fails(2, "commit");
    assert!(store.fails(1, "commit /nowhere new").contains("/nowhere"));
    fs::write(snapshot_path(&store, "web").join("etc/.wh.x"), "").expect("a file");
    let error = store.fails(1, "commit web new");
    assert!(error.contains("commit web: ") && error.contains("/etc/.wh.x"), "{error}");
    assert_eq!((stored(&store), store.ok("image ls -q --no-trunc")), before);
    assert_clean(&store);
    assert_eq!(store.ok("store gc --dry-run"), "");
    // The base was removed meanwhile, or is removed afterwards: the new image stands by itself.
    fs::remove_file(snapshot_path(&store, "web").join("etc/.wh.x")).expect("removed");
    store.ok("commit web new");
    store.ok("image rm busybox");
    assert_clean(&store);
    store.ok("run --rm new true");
    store.ok("image rm new");
    assert!(stored(&store).is_empty());
}

#[test]
fn what_is_committed_is_what_was_there() {
    let store = Store::empty();
    let base = store.disk.path().join("tree");
    fs::create_dir(&base).expect("a directory");
    fill(&base);
    store.ok_with("image import --name base", &[text(&base)]);
    let library = tupper::store::Store::open(store.root()).expect("a store").expect("it is there");
    let steps = |most| proptest::collection::vec((any::<u8>(), any::<u16>(), any::<u16>()), 0..most);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 60, ..Config::default() });
    let path = |id: &tupper::name::Id| store.root().join(format!("fs/snapshots/{id}/rootfs"));
    let fork = |of: &str| snapshot::create(&library, of, &snapshot::Create::default()).expect("a snapshot").remove(0);
    // A layer on top of the base, and one on top of that.
    let result = runner.run(&(steps(15), steps(15)), |layers: (Vec<Step>, Vec<Step>)| {
        let mut below = "image:base".to_string();
        let mut made = Vec::new();
        let mut result = Ok(());
        for steps in [layers.0, layers.1] {
            let work = fork(&below);
            steps.iter().for_each(|step| apply(&path(&work), *step));
            let quiet = std::sync::Arc::new(|_, _| {});
            let image = container::commit(&library, &format!("snapshot:{work}"), &Commit::default(), true, quiet);
            let image = image.expect("an image");
            let copy = fork(&format!("image:{image}"));
            let differences = Tree::read(&path(&work)).differences(&Tree::read(&path(&copy)));
            for id in [work, copy] {
                snapshot::remove(&library, &format!("snapshot:{id}")).expect("removed");
            }
            below = format!("image:{image}");
            made.push(below.clone());
            if !differences.is_empty() {
                result = Err(TestCaseError::fail(differences.join("\n")));
                break;
            }
        }
        for image in made.iter().rev() {
            tupper::image::remove(&library, image, true, false).expect("removed");
        }
        result
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    drop(library);
    assert_clean(&store);
}
