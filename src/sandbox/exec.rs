//! Another command in a sandbox that runs: podman-exec(1), nsenter(1).
//!
//! The new process is made in the sandbox's pid namespace, by a parent that stays outside, and joins the rest itself. It
//! is as the command is: the same cgroup, user namespace, capabilities, filter and limits. Until it is the new command nobody
//! inside can look into it (CVE-2019-5736, CVE-2024-21626): it is not dumpable, and its memory is of the host's user
//! namespace (kernel/ptrace.c, __ptrace_may_access).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use super::apparmor;
use super::cgroups::{Counters, cgroups};
use super::facts::{hierarchies, who};
use super::plan::{Plan, Who, plan_command, require_mapped, validate_command};
use super::seccomp::{self, Seccomp};
use super::security::ALL_CAPABILITIES;
use super::spec::Spec;
use super::step::{CapabilitySet, Step};
use super::user::User;
use super::users::{Maps, Users, maps_of};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{capability, cgroup, process, resolve};
use crate::rootfs::Rootfs;

/// The namespaces that are joined after the pid namespace, in the order of `man setns`.
const NAMESPACES: &[&str] = &["user", "mnt", "uts", "ipc", "net", "cgroup"];

/// What a plan for another command has to know of the sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// Its first process.
    pub pid: i32,
    /// Its namespaces that are not this process's.
    pub namespaces: Vec<&'static str>,
    /// Its cgroup in the unified hierarchy.
    pub unified: Option<PathBuf>,
    /// Its cgroups in hierarchies of v1.
    pub legacy: Vec<PathBuf>,
    /// Who the command runs as.
    pub user: User,
    /// What stands behind the users and groups inside.
    pub maps: Option<Maps>,
    /// What the host's root may do.
    pub capabilities: CapabilitySet,
    /// The AppArmor profile to run under.
    pub apparmor: Option<String>,
    /// The kernel's version, for a seccomp profile that asks for it.
    pub kernel: (u32, u32),
}

impl Inside {
    /// Reads it of the sandbox whose first process is `pid` and whose cgroups are named `name`. It is true of that process
    /// if it still lives afterwards.
    pub fn gather(spec: &Spec, pid: i32, name: &str) -> Result<Inside> {
        let gone = |e: Error| e.with_kind(Kind::NotFound);
        let mut namespaces = Vec::new();
        for name in NAMESPACES {
            if process::namespace(pid, name).map_err(gone)? != process::namespace_of_this(name)? {
                namespaces.push(*name);
            }
        }
        let path = PathBuf::from(format!("/proc/{pid}/root"));
        let root = Rootfs { dir: resolve::open_root_of(pid).map_err(gone)?, path, read_only: true };
        let unified = hierarchies()?.into_iter().find(|hierarchy| hierarchy.unified);
        let (ours, legacy): (Vec<_>, Vec<_>) = cgroups(name)?
            .into_iter()
            .partition(|directory| unified.as_ref().is_some_and(|unified| directory.starts_with(&unified.mount)));
        Ok(Inside {
            pid,
            namespaces,
            // What runs inside may have moved on to one below it, where alone processes may be then.
            unified: match (ours.into_iter().next(), unified) {
                (Some(ours), Some(unified)) => {
                    let path = cgroup::unified_path_of(pid).map_err(gone)?;
                    let now = unified.mount.join(path.trim_start_matches('/'));
                    Some(if now.starts_with(&ours) { now } else { ours })
                }
                _ => None,
            },
            legacy,
            user: who(spec, &root)?,
            maps: maps_of(pid),
            capabilities: match spec.security.asks_for_more() {
                true => capability::bounding_set(spec.users != Users::Host),
                false => ALL_CAPABILITIES,
            },
            apparmor: apparmor::profile(&spec.security)?.map(|(name, _)| name),
            kernel: match spec.security.seccomp {
                Seccomp::Profile(_) => process::kernel_version(),
                Seccomp::Default | Seccomp::Unconfined => (0, 0),
            },
        })
    }
}

/// Plans what `spec` says of a command, in the sandbox that it says it of. One that `stays` goes on without this process.
///
/// # Errors
/// As [`plan`](super::plan()).
pub fn plan_exec(spec: &Spec, inside: &Inside, stays: bool) -> Result<Plan> {
    validate_command(spec)?;
    if let Some(maps) = &inside.maps {
        require_mapped(maps, &inside.user)?;
    }
    let capabilities = spec.security.capabilities(inside.capabilities)?;
    let filter = seccomp::filter(&spec.security, capabilities, inside.kernel)?;
    let dies = (!stays).then_some(Step::DieWithParent);
    let mut steps = Vec::new();
    let owner = inside.maps.as_ref().map_or(Some(inside.user.uid), |maps| maps.uid(inside.user.uid)).unwrap_or(0);
    if owner != 0 && !spec.tty && !stays {
        steps.push(Step::OwnStreams { uid: owner });
    }
    steps.push(Step::CloneInside { pid: inside.pid, cgroup: inside.unified.clone() });
    steps.push(Step::Hide);
    steps.extend(dies.clone());
    steps.extend(inside.legacy.iter().cloned().map(|directory| Step::Attach { directory }));
    steps.push(Step::NewSession);
    steps.extend(spec.security.ulimits.iter().cloned().map(Step::LimitSelf));
    steps.push(Step::Join { pid: inside.pid, namespaces: inside.namespaces.clone() });
    if inside.maps.is_some() {
        steps.push(Step::BecomeRoot);
        steps.extend(dies.clone());
    }
    steps.push(Step::JoinKeyring);
    if !spec.security.ulimits.iter().any(|limit| limit.name == "core") {
        steps.push(Step::ForbidCoreFiles);
    }
    steps.push(Step::SetUmask(0o022));
    if spec.tty {
        steps.push(Step::OpenTerminal { owner: inside.user.uid, console: false });
    }
    let who = Who { user: &inside.user, apparmor: inside.apparmor.as_deref(), capabilities };
    let first = steps.len();
    plan_command(&mut steps, &Spec { init: false, ..spec.clone() }, &who, filter);
    if stays {
        let (before, mut command) = (steps.drain(..first).collect::<Vec<_>>(), steps);
        command.retain(|step| !matches!(step, Step::DieWithParent));
        let last = command.iter().position(|step| matches!(step, Step::ResetSignals)).unwrap_or(0);
        command.insert(last, Step::CloseOutput);
        steps = before;
        steps.extend(command);
    }
    Ok(Plan { steps, tty: spec.tty, interactive: spec.interactive, counters: Counters::default(), freezer: None })
}

/// Whether a process still lives: what was read of its number before is true of it.
pub(super) fn lives(process: BorrowedFd<'_>) -> Result<()> {
    match process::poll([Some((process.as_fd(), process::Polled::READ))], Some(0))? {
        [ended] if ended.any() => Err(Error::new(Kind::NotFound, "it has just ended")),
        _ => Ok(()),
    }
    .context(|| "join the container")
}
