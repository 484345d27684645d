//! Throwaway containers: from nothing to a command that has ended, and everything gone, as a person waits for it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;

use super::program::{self, THIS};
use super::rounds::{Contender, Plan, measure};
use super::scratch::Scratch;
use super::{Machine, Report, at_once};
use crate::check;
use crate::error::{Context, Result};
use crate::snapshot;
use crate::store::Store;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Run {
    /// What containers are made of: an image, a snapshot or a container.
    pub source: String,
    /// What runs in them; `true` when it is empty.
    pub command: Vec<String>,
    /// Samples of each runner.
    pub count: usize,
    /// How many run at once.
    pub parallel: usize,
    /// Other programs that can do it, measured in turn.
    pub against: Vec<Runner>,
}

/// Another program that runs a command in a root of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// `podman run --rm` on an overlay of the root.
    Podman,
    /// `systemd-nspawn -x`, which makes a snapshot of the root, too.
    Nspawn,
    /// `bwrap` in the root itself: no snapshot, no cgroup.
    Bwrap,
}

/// Measures whole runs: each sample is a process of `run --rm --network none`, or of another program.
///
/// # Errors
/// A program that is not installed, before anything is done.
pub fn run(store: &Store, what: &Run) -> Result<Report> {
    let plan = Plan::new(what.count, what.parallel)?;
    for runner in &what.against {
        program::require(runner.program())?;
    }
    let source = snapshot::resolve(store, &what.source).call_context(|| format!("bench runs of {}", what.source))?;
    let scratch = Scratch::new(store)?;
    let command = if what.command.is_empty() { vec!["true".to_string()] } else { what.command.clone() };
    let mut contenders: Vec<Box<dyn Contender + '_>> =
        vec![Box::new(Ours { store, source: &what.source, command: &command })];
    if !what.against.is_empty() {
        let directory = scratch.directory("run")?;
        source.parent.snapshot(directory.as_fd(), "root")?;
        for runner in &what.against {
            contenders.push(Box::new(Theirs { runner: *runner, root: directory.path.join("root"), command: &command }));
        }
    }
    let series = measure(&contenders, plan, &|| store.sync()).inspect_err(|_| {
        // A run that had to be killed is cleaned up as any other.
        check::tidy(store);
    })?;
    Ok(Report {
        title: format!("A throwaway container of {}: start {}, exit, gone", source.source.name, command.join(" ")),
        conditions: vec![format!("{}, each a whole process, without a network", at_once(what.parallel))],
        machine: Machine::look(store)?,
        series,
    })
}

const OPERATIONS: &[&str] = &["run"];

struct Ours<'a> {
    store: &'a Store,
    source: &'a str,
    command: &'a [String],
}

impl Contender for Ours<'_> {
    fn name(&self) -> String {
        "tupper run --rm".to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    fn perform(&self, _: usize, _: usize) -> Result<()> {
        let mut command = Command::new(THIS);
        command.arg("--root").arg(self.store.root()).args(["run", "--rm", "--network", "none", "--", self.source]);
        program::run(command.args(self.command))
    }
}

impl Runner {
    fn program(self) -> &'static str {
        match self {
            Runner::Podman => "podman",
            Runner::Nspawn => "systemd-nspawn",
            Runner::Bwrap => "bwrap",
        }
    }
}

struct Theirs<'a> {
    runner: Runner,
    root: PathBuf,
    command: &'a [String],
}

impl Contender for Theirs<'_> {
    fn name(&self) -> String {
        match self.runner {
            Runner::Podman => "podman run --rm",
            Runner::Nspawn => "systemd-nspawn -x",
            Runner::Bwrap => "bwrap, no snapshot",
        }
        .to_string()
    }

    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    fn perform(&self, _: usize, _: usize) -> Result<()> {
        let mut command = Command::new(self.runner.program());
        match self.runner {
            Runner::Podman => {
                let mut overlaid = self.root.clone().into_os_string();
                overlaid.push(":O");
                command.args(["run", "--rm", "--network", "none", "--rootfs"]).arg(overlaid);
            }
            Runner::Nspawn => {
                command.args(["--quiet", "--ephemeral", "--private-network", "--register=no", "--keep-unit"]);
                command.arg("--directory").arg(&self.root).arg("--");
            }
            Runner::Bwrap => {
                command.arg("--bind").arg(&self.root);
                command.args(["/", "--proc", "/proc", "--dev", "/dev", "--unshare-all"]).arg("--");
            }
        }
        program::run(command.args(self.command))
    }
}
