//! What all workers share: names that they take from each other, objects that one removes while another uses them.
//!
//! A single worker cannot know what becomes of them, but every id is made once and removed at most once, and who was
//! told so is remembered here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::random::Random;
use crate::runner::{Ended, Refused, Runner, locked};
use crate::support::archives::{self, Files};
use crate::support::{busybox, sh};
use crate::{BASE, Kills};

/// Names of each kind: few, so that workers meet.
const NAMES: usize = 6;

/// The objects of one kind, by id.
#[derive(Default)]
pub struct Ids {
    pub made: BTreeSet<String>,
    pub removed: BTreeSet<String>,
    /// Those of which one command said that it was the one that removed them.
    told: BTreeSet<String>,
    /// Who removed them was killed.
    pub doubtful: BTreeSet<String>,
}

impl Ids {
    /// Those that must be there in the end.
    pub fn left(&self) -> impl Iterator<Item = &String> {
        self.made.iter().filter(|id| !self.removed.contains(*id) && !self.doubtful.contains(*id))
    }

    fn note_removed(&mut self, id: &str, ended: &Ended) {
        self.removed.insert(id.to_string());
        assert!(self.told.insert(id.to_string()), "{id} was removed before: {ended}");
    }
}

pub struct Pool<'a> {
    pub runner: &'a Runner<'a>,
    pub snapshots: Mutex<Ids>,
    pub containers: Mutex<Ids>,
    pub images: Mutex<Ids>,
    /// Tags that are given once only.
    pub tags: Mutex<Ids>,
    serial: AtomicUsize,
    archives: [PathBuf; 2],
    /// What loaded images are made of: a base, which is a layer of imported ones, too, and what goes on top.
    layers: [Vec<u8>; 4],
    directory: TempDir,
}

impl<'a> Pool<'a> {
    pub fn new(runner: &'a Runner<'a>) -> Pool<'a> {
        let directory = tempfile::Builder::new().prefix("tupper-stress-").tempdir().expect("a scratch directory");
        let archives = [busybox(), with_one_more_file(directory.path())];
        let (snapshots, containers, images, tags) = Default::default();
        let serial = AtomicUsize::new(0);
        let file = |name: &str| Files(vec![(name.to_string(), name.as_bytes().to_vec())]).tar();
        let base = std::fs::read(busybox()).expect("an archive");
        let layers = [base, file("one"), file("two"), file("three")];
        Pool { runner, snapshots, containers, images, tags, serial, archives, layers, directory }
    }

    /// One of two archives: the layer of one is always there, that of the other comes and goes.
    pub fn archive(&self, random: &mut Random) -> String {
        self.archives[random.below(2)].to_str().expect("a plain path").to_string()
    }

    /// Something to make snapshots of, that may be there or not.
    pub fn source(&self, random: &mut Random) -> String {
        match random.below(3) {
            0 => snapshot_name(random),
            1 => container_name(random),
            _ => tag(random),
        }
    }

    pub fn work(&self, number: usize, random: &mut Random) {
        match random.below(12) {
            0..2 => self.make_snapshot(random),
            2 => self.remove_snapshot(random),
            3..5 => self.make_container(random),
            5 => self.start(random),
            6 => self.remove_container(random),
            7 => self.throwaway(random),
            8 => self.import(random),
            9 => self.load(random),
            10 => self.tag(number, random),
            _ => self.remove_image(random),
        }
    }

    fn make_snapshot(&self, random: &mut Random) {
        let (name, source) = (snapshot_name(random), self.source_or_base(random));
        let ended = self.runner.try_run(random, "snapshot create", &[&source, &name]);
        self.made(&self.snapshots, &source, &ended);
    }

    fn make_container(&self, random: &mut Random) {
        let (name, source) = (container_name(random), self.source_or_base(random));
        let more = ["--name", &name, &source, "sh", "-c", "sleep 0.02; exit 7"];
        let ended = self.runner.try_run(random, "create", &more);
        self.made(&self.containers, &source, &ended);
    }

    fn source_or_base(&self, random: &mut Random) -> String {
        if random.percent(60) { BASE.to_string() } else { self.source(random) }
    }

    fn made(&self, ids: &Mutex<Ids>, source: &str, ended: &Ended) {
        match ended.status {
            0 => locked(ids).made.extend(ended.ids()),
            _ if ended.killed => {}
            _ => {
                let refused = ended.refused();
                let missing = refused == Refused::Missing && source != BASE;
                assert!(refused == Refused::Taken || missing, "{ended}");
            }
        }
    }

    fn remove_snapshot(&self, random: &mut Random) {
        // Killed, nobody knows which one a name stood for.
        let handle = match self.runner.kills == Kills::None && random.percent(50) {
            true => snapshot_name(random),
            false => match pick(&self.snapshots, random) {
                Some(id) => id,
                None => return self.make_snapshot(random),
            },
        };
        let ended = self.runner.try_run(random, "snapshot rm", &[&handle]);
        match ended.status {
            0 => {
                let [id] = &ended.ids()[..] else { panic!("{ended}") };
                locked(&self.snapshots).note_removed(id, &ended);
            }
            _ if ended.killed => drop(locked(&self.snapshots).doubtful.insert(handle)),
            _ => assert!(matches!(ended.refused(), Refused::Missing | Refused::Busy), "{ended}"),
        }
    }

    fn start(&self, random: &mut Random) {
        let name = container_name(random);
        let ended = self.runner.try_run(random, "start --attach", &[&name]);
        match ended.status {
            7 | 137 => {}
            _ => assert!(matches!(ended.refused(), Refused::Missing | Refused::Busy), "{ended}"),
        }
    }

    fn remove_container(&self, random: &mut Random) {
        let Some(id) = pick(&self.containers, random) else { return self.make_container(random) };
        let force = random.percent(50);
        let ended = self.runner.try_run(random, if force { "rm --force" } else { "rm" }, &[&id]);
        let mut containers = locked(&self.containers);
        match ended.status {
            // What several remove by force is gone for each of them.
            0 if force => drop(containers.removed.insert(id)),
            0 => containers.note_removed(&id, &ended),
            _ if ended.killed => drop(containers.doubtful.insert(id)),
            _ => {
                let refused = ended.refused();
                assert!(!force && matches!(refused, Refused::Missing | Refused::Busy), "{ended}");
            }
        }
    }

    fn throwaway(&self, random: &mut Random) {
        let source = self.source(random);
        let ended = self.runner.try_run(random, "run --rm", &[&source, "sh", "-c", "exit 5"]);
        match ended.status {
            5 => {}
            _ if ended.killed => {}
            _ => assert_eq!(ended.refused(), Refused::Missing, "{ended}"),
        }
    }

    fn import(&self, random: &mut Random) {
        let (tag, archive) = (tag(random), self.archive(random));
        let ended = self.runner.try_run(random, "image import --quiet", &["--name", &tag, &archive]);
        match ended.killed {
            true => drop(self.runner.untold.fetch_add(1, Ordering::Relaxed)),
            false => locked(&self.images).made.extend(ended.ids()),
        }
    }

    /// An image of its own, of layers that others have.
    fn load(&self, random: &mut Random) {
        let [base, rest @ ..] = &self.layers;
        let mut layers = vec![base.as_slice()];
        layers.extend(rest.iter().filter(|_| random.percent(60)).map(Vec::as_slice));
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut config = archives::config(&layers);
        config["author"] = serial.to_string().into();
        let config = config.to_string().into_bytes();
        let (id, names) = (archives::hex(&config), [tag(random), tag(random)]);
        let archive = Files::docker_of(config, &names.each_ref().map(String::as_str), &layers);
        let path = archive.save(self.directory.path(), &format!("{serial}.tar"));
        let ended = self.runner.try_run(random, "image load --quiet --input", &[path.to_str().expect("a plain path")]);
        std::fs::remove_file(path).expect("an archive");
        match ended.killed {
            true => drop(self.runner.untold.fetch_add(1, Ordering::Relaxed)),
            false => {
                assert!(ended.ok().lines().all(|line| line.starts_with("Loaded image: example.org/pool/")), "{ended}");
                locked(&self.images).made.insert(id);
            }
        }
    }

    fn tag(&self, number: usize, random: &mut Random) {
        let name = match random.percent(70) {
            true => format!("example.org/once/w{number}-{}:t", self.serial.fetch_add(1, Ordering::Relaxed)),
            false => tag(random),
        };
        let image = tag(random);
        let ended = self.runner.try_run(random, "image tag", &[&image, &name]);
        match ended.status {
            0 if name.starts_with("example.org/once/") => drop(locked(&self.tags).made.insert(name)),
            0 => {}
            _ if ended.killed => {}
            _ => assert_eq!(ended.refused(), Refused::Missing, "{ended}"),
        }
    }

    fn remove_image(&self, random: &mut Random) {
        let (line, handle) = match (self.runner.kills, random.below(3)) {
            (Kills::None, 0) => ("image rm", tag(random)),
            (Kills::None, 1) => ("image rm --force", tag(random)),
            _ => match pick(&self.images, random) {
                Some(id) => ("image rm --force", id),
                None => return self.import(random),
            },
        };
        let ended = self.runner.try_run(random, line, &[&handle]);
        match ended.status {
            0 => {
                for said in ended.ok().lines() {
                    match said.split_once(": ") {
                        Some(("Deleted", id)) => locked(&self.images).note_removed(id, &ended),
                        Some(("Untagged", tag)) if tag.starts_with("example.org/once/") => {
                            locked(&self.tags).note_removed(tag, &ended);
                        }
                        Some(("Untagged", _)) => {}
                        _ => panic!("{ended}"),
                    }
                }
            }
            _ if ended.killed => drop(locked(&self.images).doubtful.insert(handle)),
            _ => assert!(matches!(ended.refused(), Refused::Missing | Refused::Busy), "{ended}"),
        }
    }
}

/// An id that was made; it may be gone.
fn pick(ids: &Mutex<Ids>, random: &mut Random) -> Option<String> {
    let ids = locked(ids);
    // Mostly one that is there, as far as is known.
    let left: Vec<&String> = if random.percent(80) { ids.left().collect() } else { ids.made.iter().collect() };
    random.pick(&left).map(ToString::to_string)
}

fn snapshot_name(random: &mut Random) -> String {
    format!("pool-s{}", random.below(NAMES))
}

fn container_name(random: &mut Random) -> String {
    format!("pool-c{}", random.below(NAMES))
}

fn tag(random: &mut Random) -> String {
    format!("example.org/pool/{}:t", random.below(NAMES))
}

/// The archive of busybox, and a file.
fn with_one_more_file(directory: &Path) -> PathBuf {
    let archive = directory.join("more.tar");
    std::fs::copy(busybox(), &archive).expect("copy an archive");
    std::fs::write(directory.join("more"), "more\n").expect("write a file");
    let plain = |path: &Path| path.to_str().expect("a plain path").to_string();
    sh("tar", &["--append", "--file", &plain(&archive), "--directory", &plain(directory), "more"]);
    archive
}
