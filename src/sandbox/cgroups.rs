//! The cgroups of a plan: which hierarchy carries which limit, on a unified (v2), a legacy (v1) or a hybrid host.
//!
//! Only controllers that limit something get a cgroup: each one more costs a directory and an attach.

use std::path::{Path, PathBuf};

use super::facts::{Facts, GROUP, Hierarchy, hierarchies};
use super::spec::Limits;
use super::step::Step;
use crate::error::{Error, Kind, Result};
use crate::kernel::{cgroup, fs};

/// How many processes a sandbox may have when nobody says; podman's default is twice that (containers.conf(5),
/// `pids_limit`).
const DEFAULT_PIDS: i64 = 1024;

/// A CPU quota's period in microseconds: the kernel's default (cgroup-v2.rst, cpu.max).
const CPU_PERIOD: u64 = 100_000;

/// What the limits come to: cgroups to make, to be in and to show.
#[derive(Default)]
pub(super) struct Cgroups {
    pub(super) steps: Vec<Step>,
    /// The v2 cgroup to clone into.
    pub(super) unified: Option<PathBuf>,
    /// The v1 cgroups to attach to.
    pub(super) attach: Vec<PathBuf>,
    pub(super) places: Vec<CgroupPlace>,
    pub(super) oom_events: Option<PathBuf>,
}

/// A cgroup of the sandbox and where it sees it.
pub(super) struct CgroupPlace {
    pub(super) directory: PathBuf,
    pub(super) view: PathBuf,
}

/// A controller that has something to limit: the writes for v2 and for v1, and whether the person asked for it.
struct Wanted {
    controller: &'static str,
    explicit: bool,
    unified: Vec<(&'static str, String, bool)>,
    legacy: Vec<(&'static str, String, bool)>,
}

fn wanted(limits: &Limits) -> Vec<Wanted> {
    let mut all = Vec::new();
    if let Some(bytes) = limits.memory {
        // As much swap as memory, docker's and podman's default: `--memory-swap` is twice `--memory`.
        all.push(Wanted {
            controller: "memory",
            explicit: true,
            unified: vec![("memory.max", bytes.to_string(), false), ("memory.swap.max", bytes.to_string(), true)],
            legacy: vec![
                ("memory.limit_in_bytes", bytes.to_string(), false),
                ("memory.memsw.limit_in_bytes", bytes.saturating_mul(2).to_string(), true),
            ],
        });
    }
    if let Some(millicpus) = limits.millicpus {
        let quota = u64::from(millicpus) * CPU_PERIOD / 1000;
        all.push(Wanted {
            controller: "cpu",
            explicit: true,
            unified: vec![("cpu.max", format!("{quota} {CPU_PERIOD}"), false)],
            legacy: vec![
                ("cpu.cfs_period_us", CPU_PERIOD.to_string(), false),
                ("cpu.cfs_quota_us", quota.to_string(), false),
            ],
        });
    }
    let pids = limits.pids.unwrap_or(DEFAULT_PIDS);
    if pids > 0 {
        let write = vec![("pids.max", pids.to_string(), false)];
        all.push(Wanted { controller: "pids", explicit: limits.pids.is_some(), unified: write.clone(), legacy: write });
    }
    all
}

/// Plans the cgroups that `limits` need on the host of these `facts`.
pub(super) fn plan_cgroups(limits: &Limits, facts: &Facts) -> Result<Cgroups> {
    let mut all = Cgroups::default();
    let offers = |h: &&Hierarchy, controller: &str| h.controllers.iter().any(|c| c == controller);
    let mut on_unified = Vec::new();
    for wanted in wanted(limits) {
        let hierarchy = facts.hierarchies.iter().find(|h| offers(h, wanted.controller));
        match hierarchy {
            Some(hierarchy) if hierarchy.unified => on_unified.push(wanted),
            Some(hierarchy) => plan_legacy(&mut all, hierarchy, &wanted, facts),
            None if wanted.explicit => {
                let message = format!("limit {}: this host has no such cgroup controller", wanted.controller);
                return Err(Error::new(Kind::Unsupported, message));
            }
            None => {}
        }
    }
    // On a host with v1 hierarchies too, the unified one is left alone unless it limits something.
    let pure = facts.hierarchies.iter().all(|h| h.unified);
    if let Some(unified) = facts.hierarchies.iter().find(|h| h.unified && (pure || !on_unified.is_empty())) {
        plan_unified(&mut all, unified, &on_unified, facts, pure);
    }
    Ok(all)
}

fn plan_legacy(all: &mut Cgroups, hierarchy: &Hierarchy, wanted: &Wanted, facts: &Facts) {
    let directory = hierarchy.mount.join(&facts.cgroup);
    if !all.attach.contains(&directory) {
        all.steps.push(Step::MakeCgroup { directory: directory.clone() });
        all.attach.push(directory.clone());
        let name = hierarchy.mount.file_name().unwrap_or(wanted.controller.as_ref());
        let view = Path::new("/sys/fs/cgroup").join(name);
        all.places.push(CgroupPlace { directory: directory.clone(), view });
    }
    set_limits(all, &directory, &wanted.legacy);
    if wanted.controller == "memory" {
        all.oom_events = Some(directory.join("memory.oom_control"));
    }
}

fn plan_unified(all: &mut Cgroups, hierarchy: &Hierarchy, wanted: &[Wanted], facts: &Facts, pure: bool) {
    let directory = hierarchy.mount.join(&facts.cgroup);
    let controllers: Vec<String> = wanted.iter().map(|w| w.controller.to_string()).collect();
    if !controllers.is_empty() {
        // A controller must be enabled in every cgroup above the one it limits: cgroup-v2.rst, "Top-down Constraint".
        let mut above: Vec<&Path> =
            directory.ancestors().skip(1).take_while(|a| a.starts_with(&hierarchy.mount)).collect();
        above.reverse();
        for parent in above {
            let (directory, controllers) = (parent.to_path_buf(), controllers.clone());
            all.steps.push(Step::EnableControllers { directory, controllers });
        }
    }
    all.steps.push(Step::MakeCgroup { directory: directory.clone() });
    for wanted in wanted {
        set_limits(all, &directory, &wanted.unified);
        if wanted.controller == "memory" {
            all.oom_events = Some(directory.join("memory.events"));
        }
    }
    let view = if pure { PathBuf::from("/sys/fs/cgroup") } else { PathBuf::from("/sys/fs/cgroup/unified") };
    all.places.push(CgroupPlace { directory: directory.clone(), view });
    all.unified = Some(directory);
}

fn set_limits(all: &mut Cgroups, directory: &Path, writes: &[(&'static str, String, bool)]) {
    for (file, value, optional) in writes {
        let (file, value, optional) = (directory.join(file), value.clone(), *optional);
        all.steps.push(Step::SetLimit { file, value, optional });
    }
}

/// The cgroups with this name, of whatever sandbox had it, in every hierarchy.
pub fn cgroups(name: &str) -> Result<Vec<PathBuf>> {
    let places = hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount.join(GROUP).join(name));
    let mut found = Vec::new();
    for directory in places {
        if fs::exists_at(fs::CWD, &directory)? {
            found.push(directory);
        }
    }
    Ok(found)
}

/// The names of all cgroups of sandboxes on this host.
pub fn cgroup_names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for hierarchy in hierarchies()? {
        match cgroup::children(&hierarchy.mount.join(GROUP)) {
            Ok(found) => names.extend(found),
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(names)
}

/// Kills what still runs in the cgroups with this name, and removes them: their sandbox's supervisor is dead.
pub fn clear_cgroups(name: &str) -> Result<()> {
    cgroups(name)?.iter().try_for_each(|directory| cgroup::clear(directory))
}
