//! Makes the disk and what is recorded on it agree again.
//!
//! Two kinds of disagreement. *Garbage* is what a process left that was killed, in this boot or before a power cut:
//! nobody holds its lock, nobody was told that it exists, and [`gc`] removes it. *Damage* is what no tupper leaves,
//! killed or not; [`check`] says what can be done about it, and [`repair`] does what it may: what the disk tells is written
//! anew, and nothing goes that could be somebody's, unless a person says so. docs/durability.md has a table of both.

mod damage;
mod deep;
mod reading;
mod repair;
pub mod reset;
mod sweep;

use std::fmt;
use std::path::{Path, PathBuf};

pub use reading::Verified;
pub use repair::repair;
pub use sweep::{Swept, gc, tidy};

use crate::error::{Error, Kind, Result};
use crate::name::Id;
use crate::store::{Damage, Mend, Store, Work};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is: `draft`, `snapshot`, `container`, `layer`, `tag`, `cgroup`, …
    pub kind: &'static str,
    /// Where it is: below the store's `fs/`, or an absolute path elsewhere on the host.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// Left by somebody who was killed; [`gc`] removes it.
    pub garbage: bool,
    /// What can be done about it, or was.
    pub way_out: String,
    /// Who does that.
    pub by: By,
    /// What has become of it.
    pub outcome: Outcome,
}

/// Who can do something about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A [`repair`].
    Repair,
    /// A [`repair`] that may remove what could be somebody's.
    Force,
    /// A person.
    Person,
}

/// What has become of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was done.
    Found,
    /// It is as it should be again, or gone.
    Repaired,
    /// That was tried, and this was in the way.
    Failed(String),
}

impl Finding {
    fn garbage(kind: &'static str, path: impl Into<PathBuf>, problem: impl Into<String>) -> Finding {
        Finding {
            kind,
            path: path.into(),
            problem: problem.into(),
            garbage: true,
            way_out: "remove it".to_string(),
            by: By::Repair,
            outcome: Outcome::Found,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.path.display(), self.problem)
    }
}

/// Damage at its place, with what mends it.
struct Case {
    finding: Finding,
    work: Option<Work>,
}

impl Case {
    fn of(kind: &'static str, path: impl Into<PathBuf>, damage: Damage) -> Case {
        let (by, work) = match damage.mend {
            Mend::Now(work) => (By::Repair, Some(work)),
            Mend::ByForce(work) => (By::Force, Some(work)),
            Mend::ByHand => (By::Person, None),
        };
        let finding = Finding {
            kind,
            path: path.into(),
            problem: damage.problem,
            garbage: false,
            way_out: damage.way_out,
            by,
            outcome: Outcome::Found,
        };
        Case { finding, work }
    }
}

/// What a deep look tells of its progress: the bytes that it has read.
pub type Progress<'a> = &'a dyn Fn(u64);

/// Looks for garbage and damage, and changes nothing. A deep look reads all content, too, and tells how far it is.
///
/// # Errors
/// A store that cannot be read; a signal that came meanwhile.
pub fn check(store: &Store, deep: Option<Progress<'_>>) -> Result<(Vec<Finding>, Verified)> {
    let missing = damage::missing_shelves(store)?;
    if !missing.is_empty() {
        // Without these nothing can be looked for.
        return Ok((missing.into_iter().map(|case| case.finding).collect(), Verified::default()));
    }
    let swept = gc(store, true)?;
    let mut findings = swept.removed;
    findings.retain(|finding| ![sweep::TRASHED, sweep::READY].contains(&finding.kind));
    let mut cases = damage::find(store)?;
    let mut verified = Verified::default();
    if let Some(progress) = deep {
        let (found, read) = deep::find(store, progress)?;
        cases.extend(found);
        verified = read;
    }
    findings.extend(cases.into_iter().map(|case| case.finding));
    let unswept = unswept(&swept.failed, &findings);
    findings.extend(unswept);
    Ok((findings, verified))
}

/// What a gc could not look at, or remove, unless that is for the damage of an object which is told of.
fn unswept(failed: &[Error], findings: &[Finding]) -> Vec<Finding> {
    let told: Vec<String> = findings
        .iter()
        .filter(|finding| finding.outcome != Outcome::Repaired)
        .filter_map(|finding| Some(finding.path.file_name()?.to_str()?.parse::<Id>().ok()?.short()))
        .collect();
    let way_out = "mend what else is found, or look at what is there";
    let case = |e: &Error| Case::of("store", ".", Damage::by_hand(e.to_string(), e.hint().unwrap_or(way_out)));
    let failed = failed.iter().filter(|e| !told.iter().any(|id| e.to_string().contains(id)));
    failed.map(|e| case(e).finding).collect()
}

/// What is left at `root` of a store whose making was killed. Unless this is a `dry_run`, the making is finished.
pub fn half_made(root: &Path, dry_run: bool) -> Result<Vec<Finding>> {
    let left = Store::half_made(root, !dry_run).map_err(|e| e.with_kind(Kind::Store))?;
    Ok(left.into_iter().map(|name| Finding::garbage("store", root.join(name), "its making was killed")).collect())
}
