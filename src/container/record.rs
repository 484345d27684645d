//! What the store keeps of a container beside what it runs, and who writes it.
//!
//! The [`Record`] is written by who makes the container, or renames it. Its [`Life`] is written by who runs it, and so
//! holds its lock.

use std::os::fd::BorrowedFd;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::State;
use crate::error::{Error, Kind, Result};
use crate::name::{Id, ObjectName};
use crate::sandbox::{Exit, Limits};
use crate::snapshot::Source;
use crate::store::record;

/// What a container is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub name: Option<ObjectName>,
    pub created: Timestamp,
    pub source: Source,
    /// The image at the root of where it came from.
    pub image: Option<Id>,
    pub auto_remove: bool,
    /// The most bytes that may be charged to its subvolume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<u64>,
    /// It is started by whoever makes it, so that one that is to go at its end and does not run can go.
    pub started: Option<Timestamp>,
    /// How it ended: kept here until November 2026, and read where there is no [`Life`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

impl Record {
    pub(super) fn read(dir: BorrowedFd<'_>) -> Result<Record> {
        record::read(dir)?.ok_or_else(|| Error::new(Kind::Store, "no record"))
    }
}

/// How a container fares.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Life {
    /// When it was last started.
    pub started: Option<Timestamp>,
    /// How that ended.
    pub ended: Option<Ended>,
    /// Somebody stopped it; a host that shut down did not.
    pub stopped: bool,
    /// How many times it was started again by its restart policy, since a person started it.
    pub restarts: u32,
    /// It is about to be.
    pub restarting: bool,
}

impl Life {
    pub(super) fn read(dir: BorrowedFd<'_>, record: &Record) -> Result<Life> {
        let before = || Life { started: record.started, ended: record.ended, ..Life::default() };
        Ok(record::read_life(dir)?.unwrap_or_else(before))
    }

    pub(super) fn write(&self, dir: BorrowedFd<'_>) -> Result<()> {
        record::write_life(dir, self)
    }

    /// Somebody, or its restart policy, has started it.
    pub(super) fn start(&mut self) {
        *self = Life { started: Some(Timestamp::now()), restarts: self.restarts, ..Life::default() };
    }

    /// Its command has ended.
    pub(super) fn end(&mut self, exit: &Exit) {
        let finished = Timestamp::now();
        let started = self.started.unwrap_or(finished);
        self.ended = Some(Ended { started, finished, exit_code: exit.code(), oom_killed: exit.oom_killed });
    }

    /// It was started and goes when that ends. One that was only created is kept until then, like any other.
    pub(super) fn goes(&self, record: &Record) -> bool {
        record.auto_remove && self.started.is_some()
    }

    /// What it is doing, if nobody runs it. One that was started and has no end was killed together with the tupper that
    /// ran it, so it says what podman would: 137.
    pub(super) fn state_at_rest(&self) -> State {
        match (self.started, self.ended) {
            (None, _) => State::Created,
            (Some(_), Some(ended)) => State::Exited(ended),
            (Some(started), None) => {
                State::Exited(Ended { started, finished: started, exit_code: 137, oom_killed: false })
            }
        }
    }

    /// What it is doing, if somebody holds it and none of its processes is alive.
    pub(super) fn state_between(&self) -> State {
        match (self.started, self.ended) {
            (None, _) => State::Created,
            (Some(_), Some(ended)) if self.restarting => State::Restarting(ended),
            (Some(_), Some(ended)) => State::Exited(ended),
            (Some(started), None) => State::Stopping(started),
        }
    }
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

/// What was [changed](super::update) of a container since it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Changed {
    pub limits: Limits,
}
