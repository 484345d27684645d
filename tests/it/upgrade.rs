//! Stores of earlier and later states of this project. `fixtures/make` says what is in the one and how it was made.

use std::fs;
use std::path::PathBuf;

use crate::support::command::Tupper;
use crate::support::disk::Disk;
use crate::support::sh;
use crate::support::store::Host;
use crate::support::tree::Tree;

const IMAGE: &str = "ba81588a847e263c48f8d2dd9340bfa2751ab9017b1af07b1b35fd82b62b38d5";
const FIRST: &str = "b99c828b8b98cdb0b6f755fa0d7bb8bc60185e4e7392df1e65c6a09ab463b859";
const SECOND: &str = "316d420f574dd42fa4abb2615fc7f6ab007e36a4f15d07c3b39e64bbd4662b11";
const NAMELESS: &str = "c3c96ad48e59756925312b007abf8b8b6a8b2bba3bd74adfe1850d61d900c441";

/// The store of November 24, 2026, on a host with another filesystem.
struct Earlier {
    tupper: Tupper,
    _host: Host,
    _disk: Disk,
}

impl Earlier {
    fn new() -> Earlier {
        let (host, disk) = (Host::shared(), Disk::ext4(1 << 30));
        let root = disk.path().join("store");
        fs::create_dir(&root).expect("mkdir");
        let file = root.join("store.btrfs");
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/store-2026-11-24.btrfs.zst");
        sh("zstd", &["-dq", "--sparse", fixture, "-o", file.to_str().expect("plain")]);
        Earlier { tupper: Tupper::new(root), _host: host, _disk: disk }
    }

    fn tree(&self) -> Tree {
        Tree::read(&self.tupper.root().join("fs"))
    }
}

#[test]
fn an_earlier_store_is_read_as_it_is_and_goes_on() {
    let earlier = Earlier::new();
    let tupper = &earlier.tupper;

    let mounted = tupper.run("store check").status(0);
    assert!(mounted.stdout.is_empty(), "{mounted}");
    let before = earlier.tree();
    assert_eq!(tupper.lines("image ls -q --no-trunc"), [IMAGE]);
    let names = tupper.json("image inspect base")[0]["RepoTags"].clone();
    assert_eq!(names, serde_json::json!(["localhost/base:latest", "registry.test/team/base:1"]));
    let mut snapshots = tupper.lines("snapshot ls -q --no-trunc");
    snapshots.sort();
    let mut all = [FIRST, SECOND, NAMELESS];
    all.sort();
    assert_eq!(snapshots, all);
    assert_eq!(tupper.lines("snapshot diff first"), ["C /etc", "A /etc/added", "C /srv", "D /srv/zeros"]);
    assert_eq!(tupper.lines("snapshot diff second first"), [""; 0], "one is a snapshot of the other");
    let failed = tupper.json("inspect failed");
    assert_eq!(failed[0]["State"]["ExitCode"], 3);
    assert_eq!(failed[0]["Config"]["Cmd"], serde_json::json!(["/bin/exit", "3"]));
    assert_eq!(failed[0]["Config"]["Hostname"], "there");
    tupper.ok("store df");
    assert_eq!(before.differences(&earlier.tree()), [""; 0], "reading changes nothing");

    // What was made then is what it was, and does what is made now.
    assert_eq!(tupper.run("run --rm first /bin/exit 5").status, 5);
    assert_eq!(tupper.run("start -a failed").status, 3);
    assert_eq!(tupper.run("run --rm registry.test/team/base:1 /bin/exit 0").status, 0);
    let undo = tupper.ok("snapshot rollback second failed");
    assert_eq!(tupper.lines("snapshot diff second failed"), [""; 0]);
    tupper.ok(&format!("snapshot rollback second {undo}"));
    assert_eq!(tupper.lines("snapshot diff second first"), [""; 0]);
    tupper.ok("volume create data");
    tupper.ok("network create front");
    let committed = tupper.ok("commit first newer");
    let path = |snapshot: &str| PathBuf::from(tupper.ok(&format!("snapshot path {snapshot}")));
    tupper.ok("snapshot create newer of-newer");
    assert_eq!(Tree::read(&path("first")).differences(&Tree::read(&path("of-newer"))), [""; 0]);
    // Its own layer came without a recipe.
    let said = tupper.run("image save base").fails(1);
    assert!(said.contains("how its archive was is not known") && said.contains("hint: "), "{said}");

    tupper.ok("rm done failed");
    tupper.ok(&format!("snapshot rm first second of-newer {NAMELESS} {undo}"));
    tupper.ok("image rm newer");
    tupper.ok(&format!("image rm -f {IMAGE}"));
    assert!(!tupper.ok("image ls -q --no-trunc").contains(&committed));
    assert_eq!(tupper.run("store check").status(0).stdout, "");
    assert_eq!(fs::read_dir(tupper.root().join("fs/layers")).expect("list").count(), 0);
}

#[test]
fn a_later_store_is_refused_and_stays_as_it_is() {
    let earlier = Earlier::new();
    let tupper = &earlier.tupper;
    tupper.ok("image ls");
    let fs = tupper.root().join("fs");
    let marker = rustix::fs::getxattr(&fs, "user.tupper.format", &mut [0; 500][..]).expect("a marker");
    let mut bytes = vec![0; marker];
    rustix::fs::getxattr(&fs, "user.tupper.format", bytes.as_mut_slice()).expect("a marker");
    let mut format: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    let mut becomes = |version: serde_json::Value| {
        format["version"] = version;
        let text = format.to_string();
        rustix::fs::setxattr(&fs, "user.tupper.format", text.as_bytes(), rustix::fs::XattrFlags::empty()).expect("set");
    };
    becomes(2.into());
    let before = earlier.tree();
    let verbs = [
        "image ls",
        "image tag base x",
        "image rm -f base",
        "image prune -f --all",
        "snapshot ls",
        "snapshot create base",
        "snapshot rm first",
        "snapshot rollback second first",
        "ps -a",
        "run --rm base /bin/exit 0",
        "start done",
        "rm done",
        "commit first x",
        "volume create v",
        "network create n",
        "store info",
        "store df",
        "store check",
        "store gc",
        "store init",
    ];
    for verb in verbs {
        let done = tupper.run(verb);
        assert_eq!(done.status, 125, "{done}");
        assert!(done.stderr.contains("store format 2 is newer than 1"), "{done}");
        assert!(done.stderr.contains("hint: use the newer tupper that made it, or another --root"), "{done}");
    }
    assert_eq!(before.differences(&earlier.tree()), [""; 0]);
    // What is no version at all is refused, too.
    for version in [serde_json::json!(0.5), serde_json::json!(-1), serde_json::json!("1"), serde_json::json!(1e300)] {
        becomes(version.clone());
        let done = tupper.run("image ls");
        assert!(done.status == 125 && done.stderr.contains("broken format marker"), "{version}: {done}");
    }
    becomes(1.into());
    assert_eq!(tupper.lines("image ls -q --no-trunc"), [IMAGE], "and it was not lost");
}
