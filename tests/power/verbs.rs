//! Every verb that promises something, and a power cut right after it returned.

use std::fs;
use std::io::Write as _;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use crate::after::Clearing;
use crate::ledger::{Status, Thing};
use crate::machine::{Machine, container, text};
use crate::recorder::Filesystem;
use crate::support::archives::Files;
use crate::support::http::Server;
use crate::support::store::Host;
use crate::support::tree::Tree;
use crate::support::{busybox, disk, registry, sh};
use crate::tape::{Random, Unflushed};

/// A root filesystem with busybox's most needed names and files of all sizes, made of `seed`.
pub fn source(dir: &Path, seed: u64, files: usize) -> Arc<Tree> {
    fs::create_dir(dir).expect("mkdir");
    sh("tar", &["-C", text(dir), "-xpf", text(&busybox()), "bin/arch", "etc/passwd", "etc/group"]);
    fs::rename(dir.join("bin/arch"), dir.join("bin/busybox")).expect("all names are links to one file");
    for name in ["sh", "true", "sync"] {
        symlink("busybox", dir.join("bin").join(name)).expect("symlink");
    }
    let mut random = Random::new(seed);
    for nth in 0..files {
        // A third fits into the metadata (btrfs(5), max_inline), some are of several extents.
        let size = match nth % 3 {
            0 => random.below(2000),
            1 => random.below(40_000),
            _ => random.below(if nth % 20 == 2 { 1_000_000 } else { 9000 }),
        };
        let bytes: Vec<u8> = (0..size / 8 + 1).flat_map(|_| random.below(usize::MAX).to_ne_bytes()).collect();
        let folder = dir.join(format!("srv/{}", nth % 7));
        fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(nth.to_string()), bytes)).expect("write");
    }
    Arc::new(Tree::read(dir))
}

/// An image of layers, each with files of all sizes, and what they make together.
pub struct Layered {
    pub tree: Arc<Tree>,
    layers: Vec<Vec<u8>>,
}

impl Layered {
    /// Made in `dir` of the tree `base`, and of more of `seed`.
    pub fn new(dir: &Path, base: &Path, seed: u64) -> Layered {
        let whole = dir.join("whole");
        fs::create_dir_all(&whole).expect("mkdir");
        let mut layers = Vec::new();
        for (nth, from) in [base, &dir.join("1"), &dir.join("2")].into_iter().enumerate() {
            if nth > 0 {
                let mut random = Random::new(seed + nth as u64);
                let folder = from.join(format!("opt/{nth}"));
                fs::create_dir_all(&folder).expect("mkdir");
                for size in [100, 3000, 50_000, 700_000] {
                    let bytes: Vec<u8> = (0..size / 8).flat_map(|_| random.below(usize::MAX).to_ne_bytes()).collect();
                    fs::write(folder.join(size.to_string()), bytes).expect("write");
                }
            }
            let tar = dir.join(format!("{nth}.tar"));
            sh("tar", &["-C", text(from), "--format=pax", "-cf", text(&tar), "."]);
            sh("tar", &["-C", text(&whole), "-xpf", text(&tar)]);
            layers.push(fs::read(tar).expect("a layer"));
        }
        Layered { tree: Arc::new(Tree::read(&whole)), layers }
    }

    fn layers(&self) -> Vec<&[u8]> {
        self.layers.iter().map(Vec::as_slice).collect()
    }

    pub fn registry(&self) -> Server {
        registry::serve(Files::layout(None, &self.layers(), registry::gzip), |_| None)
    }
}

/// Runs every verb, cuts after each, and fails with all that did not hold.
fn every_verb(filesystem: Filesystem) {
    let _host = Host::shared();
    let scratch = disk::scratch();
    let [first, second] = [1, 2].map(|n| scratch.path().join(n.to_string()));
    let tree = source(&first, 1, 100);
    let small = source(&second, 2, 10);

    let base = scratch.path().join("base");
    source(&base, 3, 10);
    let layered = Layered::new(&scratch.path().join("layered"), &base, 4);
    let archive = Files::docker(&[(&["localhost/loaded:latest", "localhost/also:latest"], &layered.layers())]);
    let archive = archive.save(scratch.path(), "archive.tar");
    let other = Layered::new(&scratch.path().join("other"), &base, 5);
    let registry = other.registry();

    let machine = Machine::new(filesystem);
    let Machine { recorder, tupper, .. } = &machine;
    let mut steps: Vec<(&str, usize)> = Vec::new();
    let mut done = |verb| steps.push((verb, recorder.now()));

    tupper.ok("store init");
    done("store init");
    let image = machine.import(&first, &tree, "first");
    done("image import");
    machine.tag(&image, "more");
    done("image tag");
    machine.untag("first");
    done("image rm of one name of several");
    let loaded = machine.add("image load -i", &[text(&archive)], &layered.tree, &["loaded", "also"]);
    done("image load");
    let pulled = format!("{}/pulled", registry.host());
    let line = format!("image pull --quiet --tls-verify=false {pulled}");
    let pulled_id = machine.add(&line, &[], &other.tree, &[&pulled]);
    done("image pull of an image with the same base");
    machine.remove_image(&loaded, &["loaded", "also"]);
    done("image rm of an image whose base another has");
    machine.remove_image(&pulled_id, &[&pulled]);
    let other = machine.import(&second, &small, "more");
    done("image import that takes another's name");
    machine.snapshot(&image, "one", &tree);
    done("snapshot create");
    machine.snapshot(&image, "many --count 20", &tree);
    done("snapshot create --count");
    machine.snapshot("one", "--read-only", &tree);
    done("snapshot create --read-only of a snapshot");

    let source = tupper.ok("snapshot create more written");
    let path = tupper.ok("snapshot path written");
    fs::write(Path::new(&path).join("fresh"), vec![7; 200_000]).expect("write");
    fs::create_dir(Path::new(&path).join("made")).expect("mkdir");
    let written = Arc::new(Tree::read(Path::new(&path)));
    machine.snapshot("written", "of-written", &written);
    machine.promise(&source, Status::There(Thing::Snapshot { name: Some("written".into()), tree: written }));
    done("snapshot create of a snapshot just written to");

    let tree_of = |name: &str| Arc::new(Tree::read(Path::new(&tupper.ok(&format!("snapshot path {name}")))));
    tupper.ok_with("run --rm --suppress-sync --keep kept more", &["sh", "-c", "echo text >/made; sync"]);
    let id_of =
        |name: &str| tupper.json(&format!("snapshot inspect {name}"))[0]["Id"].as_str().expect("an id").to_string();
    let there = |name: Option<&str>, tree: &Arc<Tree>| {
        Status::There(Thing::Snapshot { name: name.map(Into::into), tree: Arc::clone(tree) })
    };
    let kept = tree_of("kept");
    machine.promise(&id_of("kept"), there(Some("kept"), &kept));
    done("run --rm --keep");
    let written = tree_of("written");
    let aside = tupper.ok("snapshot rollback written kept");
    machine.promise(&source, there(Some("written"), &kept));
    machine.promise(&aside, there(None, &written));
    done("snapshot rollback");

    let created = machine.create("more", Some(&small), "created", "", &["sh", "-c", "echo a b"]);
    done("create");
    machine.create("more", Some(&small), "throwaway", "--rm", &["true"]);
    done("create --rm");
    let (ran, _) = machine.run("more", "ran");
    done("run");
    let before = tupper.lines("ps --all --no-trunc").len();
    tupper.ok_with("run --rm more", &["sh", "-c", "echo x >/x; sync /x"]);
    assert_eq!(tupper.lines("ps --all --no-trunc").len(), before);
    done("run --rm");

    tupper.ok("volume create made");
    let top = tupper.json("volume inspect made")[0]["Mountpoint"].as_str().expect("a path").to_string();
    let tree = Arc::new(Tree::read(Path::new(&top)));
    machine.promise("volume:made", Status::There(Thing::Volume { tree, synced: None }));
    done("volume create");
    let served = Arc::new(Tree::read(&second.join("srv")));
    let filled = machine.fill("more", "filled", "full", &served);
    done("create with a volume that is filled");
    machine.promise("volume:made", Status::ThereOrNot);
    tupper.ok("volume rm --sync made");
    machine.promise("volume:made", Status::Gone);
    done("volume rm --sync");
    machine.remove("rm --sync", &filled);
    done("rm --sync of one with a volume");

    for (verb, flags) in [("run, cut while it runs", "--name running"), ("run --rm, cut while it runs", "--rm")] {
        let script = "echo text >/synced; sync /synced; echo ready; read line";
        let command = ["more", "sh", "-c", script];
        let mut child = tupper.command(&format!("run --interactive {flags}"), &command);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tupper");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n");
        if !flags.contains("--rm") {
            let id = tupper.json("inspect running")[0]["Id"].as_str().expect("an id").to_string();
            machine.promise(
                &id,
                Status::There(Thing::Container(container("running", &command[1..], &[("synced", "text\n")]))),
            );
        }
        done(verb);
        drop(child.stdin.take());
        assert!(child.wait().expect("wait").code().is_some());
    }

    let [plain, synced, last] = ["many-1", "many-2", "many-3"]
        .map(|name| tupper.json(&format!("snapshot inspect {name}"))[0]["Id"].as_str().expect("an id").to_string());
    machine.remove("snapshot rm", &plain);
    done("snapshot rm");
    machine.remove("snapshot rm --sync", &synced);
    done("snapshot rm --sync");
    machine.remove("rm", &created);
    done("rm");
    machine.remove("rm --sync", &ran);
    done("rm --sync");
    machine.remove("snapshot rm", &last);
    machine.remove_image(&image, &[]);
    done("image rm");
    machine.remove_image(&other, &["more"]);
    done("image rm --force");
    let history = machine.stop();

    let mut failed = Vec::new();
    let kinds = [Unflushed::Kept, Unflushed::Mixed(1), Unflushed::Mixed(2)];
    let whole = std::env::var("TUPPER_SWEEP").is_ok_and(|sweep| sweep == "whole");
    for (number, (verb, moment)) in steps.into_iter().enumerate() {
        // Each filesystem's test takes another of the others, in turn.
        let others = if whole { &kinds[..] } else { &kinds[(number + filesystem as usize) % kinds.len()..][..1] };
        for unflushed in std::iter::once(&Unflushed::Lost).chain(others).copied() {
            let holds = std::panic::catch_unwind(|| history.assert_survives(moment, unflushed, Clearing::Next));
            let _ = writeln!(
                std::io::stderr(),
                "{verb}, {unflushed:?}: {}",
                if holds.is_ok() { "holds" } else { "DOES NOT HOLD" }
            );
            failed.extend(holds.is_err().then(|| format!("{verb}, {unflushed:?}")));
        }
    }
    assert!(failed.is_empty(), "does not survive a power cut: {failed:#?}");
}

#[test]
fn every_verb_holds_on_btrfs() {
    every_verb(Filesystem::Btrfs);
}

#[test]
fn every_verb_holds_embedded_in_ext4() {
    every_verb(Filesystem::Ext4);
}

#[test]
fn every_verb_holds_embedded_in_xfs() {
    every_verb(Filesystem::Xfs);
}
