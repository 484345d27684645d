//! Few kinds of commands, very many at once: pulls of one image, pulls while others collect garbage, snapshots, and names that
//! many want.
//!
//! `TUPPER_SWEEP=whole` races pulls with collectors for ten minutes instead of seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::random::{self, Random};
use crate::runner::{Refused, Runner, locked};
use crate::support::archives::{Files, chains};
use crate::support::http::Server;
use crate::support::registry;
use crate::support::store::Store;
use crate::support::tree::Tree;
use crate::{Kills, bystander};

const PULLERS: usize = 8;

/// A layer of one file, of bytes that no compression shortens.
fn layer(name: &str, size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let bytes = (0..size / 8).flat_map(|_| random.next().to_ne_bytes()).collect();
    Files(vec![(name.to_string(), bytes)]).tar()
}

fn serve(layers: &[Vec<u8>]) -> Server {
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    registry::serve(Files::layout(None, &layers, <[u8]>::to_vec), |asked| {
        if asked.path.contains("/blobs/") {
            // Time for the others to come in between.
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    })
}

/// The layers in a store, each with its directory's inode number.
fn stored(store: &Store) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(store.root().join("fs/layers")).into_iter().flatten().flatten();
    entries
        .map(|entry| (entry.file_name().into_string().expect("text"), entry.metadata().expect("a layer").ino()))
        .collect()
}

/// Runs each of these at once, in a thread of its own, and fails the test if one fails or gets nowhere.
fn at_once<'a>(runner: &'a Runner<'a>, count: usize, work: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(count);
    std::thread::scope(|scope| {
        scope.spawn(|| runner.watch());
        std::thread::scope(|scope| {
            for nth in 0..count {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    barrier.wait();
                    runner.guard(|| work(nth));
                });
            }
        });
        runner.stop.store(true, Ordering::Release);
    });
    runner.assert_unharmed();
}

#[test]
fn sixty_four_pulls_unpack_an_image_once() {
    let store = Store::alone();
    let layers: Vec<Vec<u8>> = (0..16).map(|n| layer(&format!("f{n}"), 400_000, n)).collect();
    let borrowed: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    // One after the other from each of eight, and all of them at once.
    for (at_a_time, each) in [(PULLERS, 64 / PULLERS), (64, 1)] {
        let server = serve(&layers);
        let pull = format!("image pull --quiet --tls-verify=false {}/a/image", server.host());
        let runner = Runner::new(&store, 0, Kills::None);
        let seen = Mutex::new(BTreeMap::new());
        let ids = Mutex::new(BTreeSet::new());
        at_once(&runner, at_a_time, |nth| {
            for turn in 0..each {
                let ended = runner.run(&format!("{pull}:{}", nth * each + turn), &[]);
                locked(&ids).extend(ended.ids());
                for (layer, inode) in stored(&store) {
                    assert_eq!(*locked(&seen).entry(layer).or_insert(inode), inode, "a layer was made anew");
                }
            }
        });
        assert_eq!(locked(&ids).len(), 1, "one image");
        for layer in &layers {
            assert_eq!(server.count(&registry::blob("a/image", layer)), 1, "each layer was sent once");
        }
        for chain in chains(&borrowed) {
            assert!(stored(&store).contains_key(&chain), "no layer {chain}");
        }
        let id = locked(&ids).first().expect("one").clone();
        let names = store.json(&format!("image inspect {id}"))[0]["RepoTags"].as_array().map(Vec::len);
        assert_eq!(names, Some(64), "no name was lost");
        store.ok(&format!("image save -o /dev/null {id}"));
        store.ok(&format!("image rm --force {id}"));
        assert_eq!(stored(&store).len(), 1, "busybox has one");
        assert_eq!(store.ok("store check"), "");
    }
}

/// What pullers pull: three images with a base in common, and what is in each.
struct Images {
    servers: Vec<Server>,
    files: Vec<BTreeSet<String>>,
}

impl Images {
    fn new() -> Images {
        let layer = |name: &str, seed: u64| (name.to_string(), layer(name, 200_000, seed));
        let base = layer("base", 1);
        let images =
            [vec![base.clone(), layer("one", 2)], vec![base.clone(), layer("two", 3), layer("three", 4)], vec![base]];
        let files = images.iter().map(|layers| layers.iter().map(|(name, _)| name.clone()).collect()).collect();
        let serve = |layers: Vec<(String, Vec<u8>)>| serve(&layers.into_iter().map(|(_, tar)| tar).collect::<Vec<_>>());
        Images { servers: images.into_iter().map(serve).collect(), files }
    }
}

/// Pulls, looks whether all of it is there, and removes it again, until the time is over. Returns how often.
fn pull_and_remove<'a>(runner: &'a Runner<'a>, images: &Images, nth: usize, mut random: Random, end: Instant) -> usize {
    let mut pulls = 0;
    while Instant::now() < end && !runner.stop.load(Ordering::Acquire) {
        let which = random.below(images.servers.len());
        let name = format!("{}/a/image:{nth}", images.servers[which].host());
        let pulled = runner.try_run(&mut random, "image pull --quiet --tls-verify=false", &[&name]);
        if pulled.killed {
            // Whether it is there nobody knows; the next has it by the same name.
            continue;
        }
        let id = pulled.ids().remove(0);
        pulls += 1;
        let inspected = runner.run("image inspect", &[&name]);
        let found: Value = serde_json::from_str(inspected.ok()).expect("JSON");
        assert_eq!(found[0]["Id"], *id, "{name}");
        let copy = format!("copy-{nth}");
        runner.run("snapshot create", &[&name, &copy]).ok();
        let path = runner.run("snapshot path", &[&copy]).ok().to_string();
        let tree = Tree::read(Path::new(&path));
        let there: BTreeSet<String> = tree.0.keys().filter_map(|path| path.to_str()).map(str::to_string).collect();
        let expected: BTreeSet<String> = images.files[which].iter().cloned().chain([String::new()]).collect();
        assert_eq!(there, expected, "what {name} holds");
        if random.percent(30) {
            runner.run("image save -o /dev/null", &[&name]).ok();
        }
        runner.run("snapshot rm", &[&copy]).ok();
        let removed = runner.run("image rm", &[&name]);
        assert!(removed.ok().starts_with(&format!("Untagged: {name}")), "{removed}");
    }
    pulls
}

#[expect(clippy::print_stderr, reason = "shown when the test fails, or with --nocapture")]
fn race(kills: Kills, whole: Duration) {
    let is_whole = std::env::var("TUPPER_SWEEP").is_ok_and(|sweep| sweep == "whole");
    let time = if is_whole { whole } else { Duration::from_secs(4) };
    let seed = std::env::var("TUPPER_SEED").ok().map_or_else(random::seed, |text| text.parse().expect("a number"));
    eprintln!("to repeat the choices of this run: TUPPER_SEED={seed}");
    let store = Store::alone();
    let images = Images::new();
    let runner = Runner::new(&store, 0, kills);
    let (end, pulls) = (Instant::now() + time, AtomicUsize::new(0));
    let mut random = Random::new(seed);
    std::thread::scope(|scope| {
        scope.spawn(|| runner.watch());
        for work in [bystander::collect, bystander::collect, bystander::check] {
            let (runner, random) = (&runner, random.fork());
            scope.spawn(move || runner.guard(|| work(runner, random)));
        }
        std::thread::scope(|scope| {
            for nth in 0..PULLERS {
                let (runner, random, pulls, images) = (&runner, random.fork(), &pulls, &images);
                scope.spawn(move || {
                    runner.guard(|| {
                        pulls.fetch_add(pull_and_remove(runner, images, nth, random, end), Ordering::Relaxed);
                    });
                });
            }
        });
        runner.stop.store(true, Ordering::Release);
    });
    runner.assert_unharmed();
    eprintln!("{} pulls\n{}", pulls.load(Ordering::Relaxed), runner.summary());
    assert!(pulls.load(Ordering::Relaxed) > PULLERS, "they raced with nobody");
    if kills == Kills::Some {
        store.ok("store gc");
        for server in &images.servers {
            for nth in 0..PULLERS {
                // A pull that was killed last may have made it.
                store.run(&format!("image rm {}/a/image:{nth}", server.host()));
            }
        }
        store.ok("image prune --force");
    }
    assert_eq!(stored(&store).len(), 1, "busybox has one");
    assert_eq!(store.lines("image ls --quiet").len(), 1);
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn collectors_race_with_pulls() {
    race(Kills::None, Duration::from_secs(600));
}

#[test]
fn collectors_race_with_pulls_that_are_killed() {
    race(Kills::Some, Duration::from_secs(120));
}

#[test]
fn a_thousand_snapshots_at_once() {
    const EACH: usize = 1000 / PULLERS;
    let store = Store::alone();
    let runner = Runner::new(&store, 0, Kills::None);
    let ids = Mutex::new(BTreeMap::new());
    at_once(&runner, PULLERS, |nth| {
        let ended = runner.run(&format!("snapshot create busybox n{nth} --count {EACH}"), &[]);
        let made = ended.ids();
        assert_eq!(made.len(), EACH, "{ended}");
        locked(&ids).extend(made.into_iter().zip((1..).map(|count| format!("n{nth}-{count}"))));
    });
    let ids = ids.into_inner().expect("nobody failed");
    assert_eq!(ids.len(), EACH * PULLERS, "each has an id of its own");
    let listed = store.json("snapshot ls --format json");
    let listed: BTreeMap<String, &Value> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (one["Id"].as_str().expect("an id").to_string(), one))
        .collect();
    assert_eq!(listed.len(), ids.len());
    let one = listed.values().next().expect("a thousand");
    let tree = Tree::read(Path::new(one["Path"].as_str().expect("a path")));
    for (nth, (id, name)) in ids.iter().enumerate() {
        let listed = listed.get(id).unwrap_or_else(|| panic!("lost: {name}"));
        assert_eq!(listed["Names"][0], **name);
        let path = Path::new(listed["Path"].as_str().expect("a path"));
        if nth % 50 == 0 {
            tree.assert_same(&Tree::read(path));
        }
        assert!(path.join("bin/busybox").exists(), "{name} is empty");
    }
    assert_eq!(store.ok("store check"), "");

    let runner = Runner::new(&store, 0, Kills::None);
    let ids: Vec<&str> = ids.keys().map(String::as_str).collect();
    let chunks: Vec<&[&str]> = ids.chunks(EACH).collect();
    at_once(&runner, chunks.len(), |nth| drop(runner.run("snapshot rm", chunks[nth]).ok().to_string()));
    assert_eq!(store.ok("snapshot ls --quiet"), "");
    assert_eq!(store.ok("store check"), "");
}

/// Each name goes to one of all who want it, and what one adds to an object no other takes away.
#[test]
fn no_update_is_lost() {
    const WANT: usize = 32;
    let store = Store::alone();
    store.ok("create --name web busybox true");
    store.ok("snapshot create busybox other");
    let runner = Runner::new(&store, 0, Kills::None);
    let (made, renamed, volumes) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()), AtomicUsize::new(0));
    at_once(&runner, WANT, |nth| {
        // All names of one image are links that one lock guards.
        runner.run("image tag busybox", &[&format!("example.org/it:{nth}"), &format!("example.org/more:{nth}")]).ok();
        if nth % 2 == 0 {
            runner.run("image rm", &[&format!("example.org/more:{nth}")]).ok();
        }
        let ended = runner.run("snapshot create busybox wanted", &[]);
        match ended.status {
            0 => locked(&made).extend(ended.ids()),
            _ => assert_eq!(ended.refused(), Refused::Taken, "{ended}"),
        }
        // From one name to the next: whoever comes too late does not find it.
        let ended = runner.run("rename web", &[&format!("web-{nth}")]);
        match ended.status {
            0 => locked(&renamed).push(nth),
            _ => assert_eq!(ended.refused(), Refused::Missing, "{ended}"),
        }
        runner.run("volume create --ignore data", &[]).ok();
        let ended = runner.run("volume create once", &[]);
        volumes.fetch_add(usize::from(ended.status == 0), Ordering::Relaxed);
        assert!(ended.status == 0 || ended.stderr.contains("volume once: it exists already"), "{ended}");
    });
    let names = store.json("image inspect busybox")[0]["RepoTags"].clone();
    let names: BTreeSet<&str> = names.as_array().expect("names").iter().filter_map(Value::as_str).collect();
    let it = (0..WANT).map(|nth| format!("example.org/it:{nth}"));
    let more = (0..WANT).filter(|nth| nth % 2 == 1).map(|nth| format!("example.org/more:{nth}"));
    let expected: BTreeSet<String> = it.chain(more).chain(["localhost/busybox:latest".to_string()]).collect();
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    let [one] = &locked(&made)[..] else { panic!("not one has the name, but {made:?}") };
    assert_eq!(store.json("snapshot inspect wanted")[0]["Id"], **one);
    let [one] = &locked(&renamed)[..] else { panic!("not one renamed it, but {renamed:?}") };
    assert_eq!(store.json("ps --all --format json")[0]["Names"][0], format!("web-{one}"));
    assert_eq!(volumes.load(Ordering::Relaxed), 1, "one has made it");
    assert_eq!(store.lines("volume ls --quiet"), ["data", "once"]);
    assert_eq!(store.ok("store check"), "");
}
