//! Which system calls a sandbox may make.
//!
//! ```text
//!     calls (a table) ─> usual ──┐
//!                                ├─> profile ── compile ─> a program for the kernel
//!     Docker's JSON ──> docker ──┘
//! ```
//!
//! All of it is pure; `kernel/seccomp.rs` loads the program.

mod calls;
mod compile;
mod docker;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod profile;
mod usual;

use serde::{Deserialize, Serialize};

pub use self::docker::{ArchMap, Argument, Document, Matches, NamedRule};
use super::security::Security;
use super::step::CapabilitySet;
use crate::error::{Error, Kind, Result};
pub use crate::kernel::seccomp::Instruction;
use crate::kernel::seccomp::MAX_INSTRUCTIONS;
use profile::Profile;

/// Which system calls a sandbox may make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// tupper's own list.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those of a profile, in Docker's words.
    Profile(Box<Document>),
}

/// What is loaded into the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The program.
    pub program: Vec<Instruction>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
    /// It is tupper's own list, not a profile.
    pub usual: bool,
    /// What makes data durable is answered, and not done.
    pub suppress_sync: bool,
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = if self.usual { "tupper's list" } else { "the profile" };
        let but = if self.suppress_sync { ", and do nothing for fsync and its like" } else { "" };
        write!(f, "make only the system calls of {whose}{but} ({} instructions of BPF)", self.program.len())
    }
}

/// The filter for a sandbox whose processes may get the capabilities in `bounding`, on a kernel of this version.
pub(super) fn filter(security: &Security, bounding: CapabilitySet, kernel: (u32, u32)) -> Result<Option<Filter>> {
    let seccomp = security.seccomp();
    let (mut profile, flags) = match seccomp {
        Seccomp::Unconfined if security.suppress_sync => (Profile::open(), 0),
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default => (usual::usual(bounding), 0),
        Seccomp::Profile(document) => document.profile(bounding, kernel)?,
    };
    if security.suppress_sync {
        profile.suppress_sync();
    }
    let program = compile::compile(&profile);
    if program.len() > MAX_INSTRUCTIONS {
        let length = program.len();
        let message = format!("seccomp profile: {length} instructions, and the kernel takes {MAX_INSTRUCTIONS}");
        return Err(Error::new(Kind::Invalid, message));
    }
    Ok(Some(Filter { program, flags, usual: *seccomp == Seccomp::Default, suppress_sync: security.suppress_sync }))
}
