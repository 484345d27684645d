//! Freezing a sandbox: its v2 cgroup where it has one; else one in the freezer's hierarchy of v1, made when it is asked for and
//! gone with the sandbox, so that nobody pays for it who does not pause.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use super::cgroups::{cgroups, cgroups_in};
use super::facts::{GROUP, Hierarchy, hierarchies};
use crate::error::{Error, Kind, Result};
use crate::kernel::cgroup;

/// How often processes are looked for that were made while the others were moved.
const ROUNDS: usize = 1000;

/// Where the freezer's cgroup of a sandbox is on a host that has it on v1.
pub(super) fn legacy(hierarchies: &[Hierarchy], name: &Path) -> Option<PathBuf> {
    let freezes = |h: &&Hierarchy| !h.unified && h.controllers.iter().any(|c| c == "freezer");
    hierarchies.iter().find(freezes).map(|h| h.mount.join(name))
}

/// The hierarchies that can freeze, looked up once for however many sandboxes are asked about, and for none not at all.
#[derive(Debug, Default)]
pub struct Freezers(OnceCell<Vec<Hierarchy>>);

impl Freezers {
    /// Whether the sandbox whose cgroups have this name is frozen.
    pub fn is_frozen(&self, name: &str) -> Result<bool> {
        let hierarchies = match self.0.get() {
            Some(hierarchies) => hierarchies,
            None => {
                let freezes = |h: &Hierarchy| h.unified || h.controllers.iter().any(|c| c == "freezer");
                let found = hierarchies()?.into_iter().filter(freezes).collect();
                self.0.get_or_init(|| found)
            }
        };
        for directory in cgroups_in(hierarchies, name)? {
            if let Some(frozen) = cgroup::is_frozen(&directory)? {
                return Ok(frozen);
            }
        }
        Ok(false)
    }
}

/// Freezes every process of the sandbox; `processes` lists them.
///
/// # Errors
/// [`Kind::Unsupported`] on a host that has neither cgroup v2 for it nor the v1 freezer.
pub fn freeze(name: &str, processes: impl Fn() -> Result<Vec<i32>>) -> Result<()> {
    for directory in cgroups(name)? {
        if directory.join("cgroup.freeze").exists() {
            return or_thaw(&directory, cgroup::freeze_unified(&directory));
        }
    }
    let group = Path::new(GROUP).join(name);
    let Some(directory) = legacy(&hierarchies()?, &group) else {
        return Err(Error::new(Kind::Unsupported, "this host has no cgroup freezer"));
    };
    if !directory.exists() {
        cgroup::make(&directory)?;
    }
    or_thaw(&directory, freeze_all(&directory, processes))
}

/// What could not be frozen as a whole goes on.
fn or_thaw(directory: &Path, frozen: Result<()>) -> Result<()> {
    if frozen.is_err()
        && let Err(e) = cgroup::thaw(directory)
    {
        log::warn!("let the container go on: {e}");
    }
    frozen
}

/// What is moved takes along what it forks from then on, and who is moved later is frozen on arrival.
fn freeze_all(directory: &Path, processes: impl Fn() -> Result<Vec<i32>>) -> Result<()> {
    // Twice, because a chain of processes that each make the next can slip past one reading of /proc.
    let mut quiet = 0;
    for _ in 0..ROUNDS {
        let inside = cgroup::members(directory)?;
        let outside: Vec<i32> = processes()?.into_iter().filter(|pid| !inside.contains(pid)).collect();
        quiet = if outside.is_empty() && cgroup::is_frozen(directory)? == Some(true) { quiet + 1 } else { 0 };
        if quiet == 2 {
            return Ok(());
        }
        outside.into_iter().try_for_each(|pid| cgroup::attach(directory, pid))?;
        cgroup::freeze_legacy(directory)?;
    }
    Err(Error::new(Kind::InUse, "freeze its processes: it makes them faster than they can be counted"))
}

/// Lets the sandbox go on.
pub fn thaw(name: &str) -> Result<()> {
    cgroups(name)?.iter().try_for_each(|directory| cgroup::thaw(directory))
}
