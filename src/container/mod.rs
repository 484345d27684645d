//! Containers: a snapshot, and a process in a sandbox whose root it is.
//!
//! ```text
//!            create              start, run            the command ends
//!   (none) ─────────> created ─────────────> running ─────────────────> exited ──rm──> (none)
//!                                               └── --rm: removed at the end ────────────┘
//! ```
//!
//! A container is a directory `containers/ID/`: the record (name, source, how it last ended), the spec (what it runs) and
//! the limits that it was given since, as xattrs, and the subvolume. It is running while somebody holds the lock on that
//! directory, which is the process that started it, in the foreground. That process notes the start in the record, and
//! the end; where the end is missing and nothing runs, it was killed before it could.

mod chain;
mod compose;
mod leftover;
mod life;
mod names;
mod pause;
mod processes;
mod stats;
mod top;
mod update;

use std::os::fd::AsFd;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use chain::{Cgroup, Chain, CssSet, Task, chain};
pub use compose::Options;
pub(crate) use leftover::{Leftover, clear, leftovers, orphans};
pub use life::{Create, Narrate, create, explain, remove, run, start};
pub use pause::{pause, unpause};
pub use stats::{Stats, running, stats};
pub use top::{DEFAULT as DEFAULT_DESCRIPTORS, Table, descriptors, top};
pub use update::update;

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;
use crate::name::{Id, ObjectName};
use crate::sandbox::{self, Limits, Spec};
use crate::snapshot::Source;
use crate::store::{Running, Shelf, Store, record};

/// The largest `spec.json` that is read.
const OLD_SPEC_LIMIT: u64 = 4 << 20;

/// What the store records of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: Option<ObjectName>,
    created: Timestamp,
    source: Source,
    /// The image at the root of where it came from.
    image: Option<Id>,
    auto_remove: bool,
    /// When it was last started.
    started: Option<Timestamp>,
    /// How that ended.
    ended: Option<Ended>,
}

impl Record {
    /// It was started and goes when that ends. One that was only created is kept until then, like any other.
    fn goes_at_its_end(&self) -> bool {
        self.auto_remove && self.started.is_some()
    }

    /// What it is doing, if no process of it is alive. One that was started and has no end was killed together with
    /// the tupper that ran it, so it says what podman would: 137.
    fn state_at_rest(&self) -> State {
        match (self.started, self.ended) {
            (None, _) => State::Created,
            (Some(_), Some(ended)) => State::Exited(ended),
            (Some(started), None) => {
                State::Exited(Ended { started, finished: started, exit_code: 137, oom_killed: false })
            }
        }
    }
}

/// What was [changed](update) of a container since it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Changed {
    limits: Limits,
}

/// How a container's command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When it was started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Its exit status; 128+N when signal N ended it.
    pub exit_code: u8,
    /// The kernel killed a process of it because its memory limit was reached.
    pub oom_killed: bool,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It was never started.
    Created,
    /// Its command runs.
    Running(Running),
    /// Its command ended.
    Exited(Ended),
}

impl State {
    /// podman-ps(1)'s word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running(_) => "running",
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
    /// What it runs.
    pub spec: Spec,
    /// What it is doing.
    pub state: State,
    /// It runs, and every process of it is frozen.
    pub paused: bool,
}

impl Container {
    /// podman-ps(1)'s word for what it is doing.
    pub fn status(&self) -> &'static str {
        if self.paused { "paused" } else { self.state.as_str() }
    }
}

/// Every container, newest first.
pub fn list(store: &Store) -> Result<Vec<Container>> {
    let mut containers = Vec::new();
    for id in store.ids(Shelf::Containers)? {
        match open(store, &id) {
            Ok(container) => containers.push(container),
            Err(e) if e.kind() == Kind::NotFound => {} // removed while we looked
            Err(e) => return Err(e),
        }
    }
    containers.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
    Ok(containers)
}

/// The container that `text` names.
pub fn find(store: &Store, text: &str) -> Result<Container> {
    open(store, &store.find_among(text, &[Shelf::Containers])?.id)
}

fn open(store: &Store, id: &Id) -> Result<Container> {
    let dir = store.open_object(Shelf::Containers, id)?;
    let read = || -> Result<Container> {
        let record: Record = record::read(dir.as_fd())?.ok_or_else(|| Error::new(Kind::Store, "no record"))?;
        let json = match record::read_spec(dir.as_fd())? {
            Some(json) => json,
            // Until November 2026 it was a file.
            None => fs::read_small(dir.as_fd(), "spec.json", OLD_SPEC_LIMIT).map_err(|e| e.with_kind(Kind::Store))?,
        };
        let broken = |e| Error::new(Kind::Store, format!("read the spec: {e}"));
        let mut spec: Spec = serde_json::from_slice(&json).map_err(broken)?;
        if let Some(Changed { limits }) = record::read_limits(dir.as_fd())? {
            spec.limits = limits;
        }
        let state = store.running(id).map_or_else(|| record.state_at_rest(), State::Running);
        Ok(Container {
            id: *id,
            name: record.name,
            created: record.created,
            source: record.source,
            image: record.image,
            auto_remove: record.auto_remove,
            spec,
            paused: matches!(state, State::Running(_)) && sandbox::is_frozen(&leftover::cgroup_name(store, id))?,
            state,
        })
    };
    read().context(|| format!("container {}", id.short()))
}
