//! Snapshots, beside other ways to get a tree of one's own: copies, overlays, what btrfs-progs do.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::program::{self, THIS};
use super::rounds::{Contender, Plan, measure};
use super::scratch::{Directory, Scratch};
use super::{Machine, Report, at_once};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{fs, mount};
use crate::name::Id;
use crate::snapshot::{self, Create, Resolved};
use crate::store::Store;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What snapshots are made of: an image, a snapshot or a container.
    pub source: String,
    /// Samples of each way and operation.
    pub count: usize,
    /// How many are made at once.
    pub parallel: usize,
    /// How many other snapshots of the source are there meanwhile.
    pub live: u64,
    /// Other ways to do it, measured in turn.
    pub against: Vec<Way>,
}

/// Another way to a writable tree that is like the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `cp -a`, every byte copied; `rm -rf`.
    Cp,
    /// `cp -a --reflink=always`: the files' extents are shared; `rm -rf`.
    Reflink,
    /// An overlayfs over the source, mounted with directories of its own.
    Overlay,
    /// `btrfs subvolume snapshot` and `delete`.
    Progs,
}

const OPERATIONS: &[&str] = &["create", "remove"];

/// Measures how long it takes to make a snapshot and to remove it.
///
/// # Errors
/// A program that is not installed, before anything is done.
pub fn snapshot(store: &Store, what: &Snapshot) -> Result<Report> {
    let plan = Plan::new(what.count, what.parallel)?;
    for way in &what.against {
        way.require()?;
    }
    let doing = || format!("bench snapshots of {}", what.source);
    let source = snapshot::resolve(store, &what.source).call_context(doing)?;
    let scratch = Scratch::new(store)?;
    let beside = Create { count: Some(what.live), goes_with: Some(scratch.sign().to_string()), ..Create::default() };
    if what.live > 0 {
        snapshot::create(store, &what.source, &beside)?;
    }
    let mut contenders: Vec<Box<dyn Contender + '_>> = vec![Box::new(Call::new(store, what, &scratch))];
    if !what.against.is_empty() {
        contenders.push(Box::new(Process { call: Call::new(store, what, &scratch) }));
    }
    for way in &what.against {
        contenders.push(way.contender(&source, &scratch)?);
    }
    let series = measure(&contenders, plan, &|| store.sync())?;
    Ok(Report {
        title: format!("A writable tree like {}: making one, removing it", source.source.name),
        conditions: conditions(what),
        machine: Machine::look(store)?,
        series,
    })
}

fn conditions(what: &Snapshot) -> Vec<String> {
    let live = match what.live {
        0 => "no other snapshot of it".to_string(),
        1 => "1 other snapshot of it".to_string(),
        many => format!("{many} other snapshots of it"),
    };
    let mut said = vec![format!("{}, beside {live}", at_once(what.parallel))];
    if !what.against.is_empty() {
        said.push("\"tupper, a call\" is the library's, the others are whole processes, but for overlayfs".to_string());
        said.push("what tupper and btrfs-progs have made is durable, what the others have made is not yet".to_string());
    }
    said
}

impl Way {
    fn require(self) -> Result<()> {
        match self {
            Way::Cp | Way::Reflink => program::require("cp").and_then(|()| program::require("rm")),
            Way::Progs => program::require("btrfs"),
            Way::Overlay => Ok(()),
        }
    }

    fn contender(self, source: &Resolved, scratch: &Scratch<'_>) -> Result<Box<dyn Contender>> {
        let from = source.path.clone();
        Ok(match self {
            Way::Cp => Box::new(Copy { how: "never", name: "cp -a", from, into: scratch.directory("cp")? }),
            Way::Reflink => {
                Box::new(Copy { how: "always", name: "cp -a --reflink", from, into: scratch.directory("reflink")? })
            }
            Way::Progs => Box::new(Progs { from, into: scratch.directory("progs")? }),
            Way::Overlay => Box::new(Overlay {
                lower: fs::open_directory_follow(&from)?,
                into: scratch.directory("overlay")?,
                mounts: Made::default(),
            }),
        })
    }
}

/// What was made and is still to be removed, by its number.
#[derive(Debug)]
struct Made<T>(Mutex<BTreeMap<usize, T>>);

impl<T> Default for Made<T> {
    fn default() -> Made<T> {
        Made(Mutex::new(BTreeMap::new()))
    }
}

impl<T> Made<T> {
    fn put(&self, n: usize, made: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(n, made);
    }

    fn take(&self, n: usize) -> Result<T> {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&n);
        made.ok_or_else(|| Error::new(Kind::NotFound, format!("number {n} was not made")))
    }
}

/// As a program that has the library in it.
struct Call<'a> {
    store: &'a Store,
    source: &'a str,
    create: Create,
    made: Made<Id>,
}

impl<'a> Call<'a> {
    fn new(store: &'a Store, what: &'a Snapshot, scratch: &Scratch<'_>) -> Call<'a> {
        let create = Create { goes_with: Some(scratch.sign().to_string()), ..Create::default() };
        Call { store, source: &what.source, create, made: Made::default() }
    }
}

impl Contender for Call<'_> {
    fn name(&self) -> String {
        "tupper, a call".to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    fn perform(&self, operation: usize, n: usize) -> Result<()> {
        match operation {
            0 => {
                snapshot::create(self.store, self.source, &self.create)?.into_iter().for_each(|id| self.made.put(n, id))
            }
            _ => drop(snapshot::remove(self.store, &self.made.take(n)?.to_string())?),
        }
        Ok(())
    }
}

/// As a person types it: a process for each.
struct Process<'a> {
    call: Call<'a>,
}

impl Contender for Process<'_> {
    fn name(&self) -> String {
        "tupper, a process".to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    fn perform(&self, operation: usize, n: usize) -> Result<()> {
        let mut command = Command::new(THIS);
        command.arg("--root").arg(self.call.store.root()).arg("snapshot");
        match operation {
            0 => {
                let goes_with = self.call.create.goes_with.iter().map(|sign| format!("--goes-with={sign}"));
                let id = program::output(command.arg("create").args(goes_with).args(["--", self.call.source]))?;
                self.call.made.put(n, id.trim().parse()?);
                Ok(())
            }
            _ => program::run(command.arg("rm").arg(self.call.made.take(n)?.to_string())),
        }
    }
}

struct Copy {
    how: &'static str,
    name: &'static str,
    from: PathBuf,
    into: Directory,
}

impl Contender for Copy {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    fn perform(&self, operation: usize, n: usize) -> Result<()> {
        let at = self.into.path.join(n.to_string());
        match operation {
            0 => program::run(
                Command::new("cp").arg("-a").arg(format!("--reflink={}", self.how)).arg(&self.from).arg(at),
            ),
            _ => program::run(Command::new("rm").arg("-rf").arg(at)),
        }
    }
}

struct Progs {
    from: PathBuf,
    into: Directory,
}

impl Contender for Progs {
    fn name(&self) -> String {
        "btrfs-progs".to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    fn perform(&self, operation: usize, n: usize) -> Result<()> {
        let at = self.into.path.join(n.to_string());
        let mut command = Command::new("btrfs");
        command.arg("subvolume");
        match operation {
            0 => program::run(command.arg("snapshot").arg(&self.from).arg(at)),
            _ => program::run(command.arg("delete").arg(at)),
        }
    }
}

/// Mounted, and attached nowhere: nobody else sees it, and it ends with this process.
struct Overlay {
    lower: OwnedFd,
    into: Directory,
    mounts: Made<OwnedFd>,
}

impl Contender for Overlay {
    fn name(&self) -> String {
        "overlayfs".to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    fn perform(&self, operation: usize, n: usize) -> Result<()> {
        let name = n.to_string();
        if operation == 0 {
            fs::make_directory(self.into.as_fd(), &name, 0o700)?;
            let made = fs::open_directory(self.into.as_fd(), &name)?;
            let [upper, work] = ["upper", "work"].map(|name| {
                fs::make_directory(made.as_fd(), name, 0o755)?;
                fs::open_directory(made.as_fd(), name)
            });
            let (upper, work) = (upper?, work?);
            // By descriptor: a path may hold what means something in these options.
            let option = |name: &str, fd: &OwnedFd| format!("{name}={}", fs::path_of(fd.as_fd()).display());
            let options = [option("lowerdir", &self.lower), option("upperdir", &upper), option("workdir", &work)];
            self.mounts.put(n, mount::new_filesystem("overlay", &options, mount::Attributes::default())?);
            return Ok(());
        }
        drop(self.mounts.take(n)?);
        let at: &Path = &self.into.path.join(name);
        std::fs::remove_dir_all(at).context(|| format!("remove {}", at.display()))
    }
}
