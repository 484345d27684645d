//! Containers: a snapshot, and a process in a sandbox whose root it is.
//!
//! ARCHITECTURE.md, "The life of a container", draws the states and says who writes what. A container is a directory
//! `containers/ID/`: its record, its life, what it runs and the limits that it was given since, as xattrs, and the
//! subvolume. It is in use while somebody holds the lock on that directory: its monitor, or the command line that runs it
//! in the foreground.

mod attach;
mod chain;
mod commit;
mod compose;
mod copy;
mod damage;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod gone;
mod health;
mod in_place;
mod launch;
mod leftover;
mod life;
mod logs;
mod monitor;
mod names;
mod networks;
mod pause;
mod processes;
mod record;
mod rename;
mod session;
mod size;
mod stats;
mod stop;
mod top;
mod update;
mod volumes;

use std::os::fd::AsFd;

use jiff::Timestamp;

pub use attach::attach;
pub use chain::{Cgroup, Chain, CssSet, Task, chain};
pub use commit::commit;
pub use compose::{ImageVolumes, Options};
pub use copy::{Copying, End, copy, copy_in, copy_out};
pub(crate) use damage::{damage, volumes_in_use};
pub use exec::{Exec, exec, exec_detached};
pub use gone::Gone;
pub use health::{Checked, Condition, Health, HealthOptions, check_health, in_shell};
pub use in_place::run_in_place;
pub use launch::{Launched, launch, start};
pub(crate) use leftover::{Leftover, clear, leftovers, orphans};
pub use life::{Create, Narrate, Removal, create, explain, remove, run};
pub use logs::{Entry, Selection, logs};
pub use monitor::{Stream, VERB as MONITOR, monitor};
pub use networks::{containers_of, remove_network, unused_networks};
pub(crate) use pause::thaw_left;
pub use pause::{pause, snapshot, unpause};
pub use record::Ended;
pub use rename::rename;
pub use session::{Attachment, DetachKeys, Parted};
pub use size::charged;
pub use stats::{Stats, running, stats};
pub use stop::{PATIENCE, Stopping, begin_stop, kill_with, wait};
pub use top::{DEFAULT as DEFAULT_DESCRIPTORS, Table, descriptors, top};
pub use update::update;
pub(crate) use volumes::lost_volumes;
pub use volumes::{prune_volumes, remove_volume, users};

use record::{Changed, Life, Record};

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{flock, fs};
use crate::name::{Id, ObjectName};
use crate::sandbox::{Freezers, Spec};
use crate::snapshot::Source;
use crate::store::{self, Running, Shelf, Store};

/// The largest `spec.json` that is read.
const OLD_SPEC_LIMIT: u64 = 4 << 20;

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It was never started.
    Created,
    /// Its command runs.
    Running(Running),
    /// It is being started or cleared away, and nothing of it runs; since when it was started.
    Stopping(Timestamp),
    /// Its command ended, and is about to be started again.
    Restarting(Ended),
    /// Its command ended.
    Exited(Ended),
}

impl State {
    /// podman-ps(1)'s word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running(_) => "running",
            State::Stopping(_) => "stopping",
            State::Restarting(_) => "restarting",
            State::Exited(_) => "exited",
        }
    }
}

/// A container as it lies in the store.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: Option<ObjectName>,
    /// When it was made.
    pub created: Timestamp,
    /// What it was made from.
    pub source: Source,
    /// The image at the root of where it came from.
    pub image: Option<Id>,
    /// It goes when its command ends.
    pub auto_remove: bool,
    /// The most bytes of the disk that may be charged to it.
    pub size_limit: Option<u64>,
    /// What it runs.
    pub spec: Spec,
    /// What it is doing.
    pub state: State,
    /// How many times it was started again by its restart policy.
    pub restarts: u32,
    /// Somebody stopped it; one that ended by itself, or with its host, was not stopped.
    pub stopped: bool,
    /// It runs, and every process of it is frozen.
    pub paused: bool,
    /// How it is, if it runs and has a health check.
    pub health: Option<Health>,
}

impl Container {
    /// podman-ps(1)'s word for what it is doing.
    pub fn status(&self) -> &'static str {
        if self.paused { "paused" } else { self.state.as_str() }
    }
}

/// Every container, newest first.
pub fn list(store: &Store) -> Result<Vec<Container>> {
    list_but(store, Err)
}

/// [`list`], told of those that cannot be read.
pub fn list_but(store: &Store, broken: impl FnMut(Error) -> Result<()>) -> Result<Vec<Container>> {
    let freezers = Freezers::default();
    let mut containers = store.each(Shelf::Containers, |id| open_among(store, id, &freezers), broken)?;
    containers.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
    Ok(containers)
}

/// The container that `text` names.
pub fn find(store: &Store, text: &str) -> Result<Container> {
    open(store, &store.find_among(text, &[Shelf::Containers])?.id)
}

fn open(store: &Store, id: &Id) -> Result<Container> {
    open_among(store, id, &Freezers::default())
}

/// One of several, for all of which the host is looked at once.
fn open_among(store: &Store, id: &Id, freezers: &Freezers) -> Result<Container> {
    let dir = store.open_object(Shelf::Containers, id)?;
    let read = || -> Result<Container> {
        let record = Record::read(dir.as_fd())?;
        let life = Life::read(dir.as_fd(), &record)?;
        let json = match store::record::read_spec(dir.as_fd())? {
            Some(json) => json,
            // Until November 2026 it was a file.
            None => fs::read_small(dir.as_fd(), "spec.json", OLD_SPEC_LIMIT).map_err(|e| e.with_kind(Kind::Store))?,
        };
        let broken = |e| Error::new(Kind::Store, format!("read the spec: {e}"));
        let mut spec: Spec = serde_json::from_slice(&json).map_err(broken)?;
        if let Some(Changed { limits }) = store::record::read_limits(dir.as_fd())? {
            spec.limits = limits;
        }
        volumes::locate(store, &mut spec);
        let state = match store.running(id) {
            Some(running) => State::Running(running),
            None if life.ended.is_some() && !life.restarting || life.started.is_none() => life.state_at_rest(),
            None if flock::is_free(dir.as_fd())? => life.state_at_rest(),
            None => life.state_between(),
        };
        let checked = matches!(state, State::Running(_)) && spec.health.is_some();
        Ok(Container {
            id: *id,
            name: record.name,
            created: record.created,
            source: record.source,
            image: record.image,
            auto_remove: record.auto_remove,
            size_limit: record.size_limit,
            spec,
            restarts: life.restarts,
            stopped: life.stopped,
            health: checked.then(|| store.health(id).unwrap_or_default()),
            paused: matches!(state, State::Running(_)) && freezers.is_frozen(&leftover::cgroup_name(store, id))?,
            state,
        })
    };
    read().context(|| format!("container {}", id.short()))
}
