//! The cgroups of a plan: which hierarchy carries which limit, on a unified (v2), a legacy (v1) or a hybrid host.
//!
//! Only controllers that limit something get a cgroup: each one more costs a directory and an attach.

use std::path::{Path, PathBuf};

use super::controllers::{Wanted, Write, legacy_devices, wanted};
use super::devices::DeviceRule;
use super::facts::{Disk, Facts, GROUP, Hierarchy, hierarchies};
use super::limits::Limits;
use super::scope::{self, Scope};
use super::spec::{CgroupManager, Spec};
use super::step::Step;
use crate::error::{Error, Kind, Result};
use crate::kernel::{cgroup, fs};

/// What the limits come to: cgroups to make, to be in and to show.
#[derive(Default)]
pub(super) struct Cgroups {
    pub(super) steps: Vec<Step>,
    /// The v2 cgroup to clone into.
    pub(super) unified: Option<PathBuf>,
    /// The v1 cgroups to attach to.
    pub(super) attach: Vec<PathBuf>,
    pub(super) places: Vec<CgroupPlace>,
    /// The scope of systemd that stands for all of them.
    pub(super) scope: Option<Scope>,
    pub(super) counters: Counters,
}

/// The control files that count, as far as their cgroups are there, what the kernel did because of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counters {
    /// In a line `oom_kill N`, kills for lack of memory.
    pub(super) memory: Option<PathBuf>,
    /// In a line `max N`, forks that the limit of processes refused.
    pub(super) pids: Option<PathBuf>,
    /// Somebody else removes the cgroup when the last process has ended, so they are watched until then.
    pub(super) fleeting: bool,
}

/// A cgroup of the sandbox and where it sees it.
pub(super) struct CgroupPlace {
    pub(super) directory: PathBuf,
    pub(super) view: PathBuf,
}

/// What limits are planned on: the part of the [`Facts`] that they need.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) hierarchies: &'a [Hierarchy],
    pub(super) cgroup: &'a Path,
    pub(super) disks: &'a [Disk],
    pub(super) systemd: bool,
}

impl Facts {
    pub(super) fn ground(&self) -> Ground<'_> {
        let Facts { hierarchies, cgroup, disks, systemd, .. } = self;
        Ground { hierarchies, cgroup, disks, systemd: *systemd }
    }
}

impl<'a> Ground<'a> {
    /// The hierarchy with the controller.
    fn hierarchy(&self, wanted: &Wanted) -> Option<&'a Hierarchy> {
        self.hierarchies.iter().find(|h| offers(h, if h.unified { wanted.unified_name } else { wanted.legacy_name }))
    }

    pub(super) fn is_unified(&self) -> bool {
        self.hierarchies.iter().all(|h| h.unified)
    }

    /// Every controller that has something to limit, with its hierarchy. One that is not there is an error if somebody
    /// asked for the limit.
    pub(super) fn assign(&self, limits: &Limits) -> Result<Vec<(Wanted, &'a Hierarchy)>> {
        let mut assigned = Vec::new();
        for wanted in wanted(limits, self.disks)? {
            match self.hierarchy(&wanted) {
                Some(hierarchy) => assigned.push((wanted, hierarchy)),
                None if wanted.explicit => {
                    let message = format!("limit {}: this host has no such cgroup controller", wanted.unified_name);
                    return Err(Error::new(Kind::Unsupported, message));
                }
                None => {}
            }
        }
        Ok(assigned)
    }
}

fn offers(hierarchy: &Hierarchy, controller: &str) -> bool {
    hierarchy.controllers.iter().any(|c| c == controller)
}

/// Plans the cgroups that the limits of `spec` need on this ground, and the `devices` that are allowed, if that has to be
/// said.
pub(super) fn plan_cgroups(spec: &Spec, devices: Option<Vec<DeviceRule>>, ground: Ground<'_>) -> Result<Cgroups> {
    if spec.cgroup_manager == CgroupManager::Systemd {
        return scope::plan(&spec.limits, devices, ground);
    }
    let mut all = Cgroups::default();
    let mut on_unified = Vec::new();
    for (wanted, hierarchy) in ground.assign(&spec.limits)? {
        match hierarchy.unified {
            true => on_unified.push(wanted),
            false => plan_legacy(&mut all, hierarchy, &wanted, ground),
        }
    }
    let mut rules_on_unified = None;
    if let Some(rules) = devices {
        match ground.hierarchies.iter().find(|h| !h.unified && offers(h, "devices")) {
            Some(hierarchy) => plan_legacy(&mut all, hierarchy, &legacy_devices(&rules), ground),
            None => rules_on_unified = Some(rules),
        }
    }
    // On a host with v1 hierarchies too, the unified one is left alone unless it limits something.
    let needed = ground.is_unified() || !on_unified.is_empty() || rules_on_unified.is_some();
    match ground.hierarchies.iter().find(|h| h.unified && needed) {
        Some(unified) => plan_unified(&mut all, unified, &on_unified, rules_on_unified, ground),
        None if rules_on_unified.is_some() => return Err(no_device_rules()),
        None => {}
    }
    Ok(all)
}

fn no_device_rules() -> Error {
    let message = "limit devices: no cgroup hierarchy is mounted, so the container could use every device of the host";
    Error::new(Kind::Unsupported, message).with_hint("drop the capabilities MKNOD and SYS_ADMIN")
}

fn plan_legacy(all: &mut Cgroups, hierarchy: &Hierarchy, wanted: &Wanted, ground: Ground<'_>) {
    let directory = hierarchy.mount.join(ground.cgroup);
    if !all.attach.contains(&directory) {
        let cpuset = offers(hierarchy, "cpuset");
        // A v1 cpuset takes no process before it has both processors and memory, and no more of them than the one above:
        // Documentation/admin-guide/cgroup-v1/cpusets.rst, 1.4.
        let inherit = |directory: &Path| Step::InheritCpuset { directory: directory.to_path_buf() };
        all.steps.extend(directory.parent().filter(|_| cpuset).map(inherit));
        all.steps.push(Step::MakeCgroup { directory: directory.clone() });
        all.steps.extend(cpuset.then(|| inherit(&directory)));
        all.attach.push(directory.clone());
        let name = hierarchy.mount.file_name().unwrap_or(wanted.legacy_name.as_ref());
        let view = Path::new("/sys/fs/cgroup").join(name);
        all.places.push(CgroupPlace { directory: directory.clone(), view });
    }
    all.steps.extend(wanted.legacy.iter().map(|write| set_limit(&directory, write)));
    all.counters.note(wanted, &directory, "memory.oom_control");
}

fn plan_unified(
    all: &mut Cgroups,
    hierarchy: &Hierarchy,
    wanted: &[Wanted],
    devices: Option<Vec<DeviceRule>>,
    ground: Ground<'_>,
) {
    let directory = hierarchy.mount.join(ground.cgroup);
    let controllers: Vec<String> = wanted.iter().map(|w| w.unified_name.to_string()).collect();
    all.steps.extend(enable(&hierarchy.mount, &directory, &controllers));
    all.steps.push(Step::MakeCgroup { directory: directory.clone() });
    for wanted in wanted {
        all.steps.extend(wanted.unified.iter().map(|write| set_limit(&directory, write)));
        all.counters.note(wanted, &directory, "memory.events");
    }
    all.steps.extend(devices.map(|rules| Step::RestrictDevices { directory: directory.clone(), rules }));
    let pure = ground.is_unified();
    let view = if pure { PathBuf::from("/sys/fs/cgroup") } else { PathBuf::from("/sys/fs/cgroup/unified") };
    all.places.push(CgroupPlace { directory: directory.clone(), view });
    all.unified = Some(directory);
}

/// A controller must be enabled in every cgroup above the one it limits: cgroup-v2.rst, "Top-down Constraint".
pub(super) fn enable(mount: &Path, directory: &Path, controllers: &[String]) -> Vec<Step> {
    if controllers.is_empty() {
        return Vec::new();
    }
    let mut above: Vec<&Path> = directory.ancestors().skip(1).take_while(|a| a.starts_with(mount)).collect();
    above.reverse();
    let enable =
        |parent: &Path| Step::EnableControllers { directory: parent.to_path_buf(), controllers: controllers.to_vec() };
    above.into_iter().map(enable).collect()
}

impl Counters {
    pub(super) fn note(&mut self, wanted: &Wanted, directory: &Path, memory: &str) {
        match wanted.unified_name {
            "memory" => self.memory = Some(directory.join(memory)),
            "pids" => self.pids = Some(directory.join("pids.events")),
            _ => {}
        }
    }
}

/// The step of one write.
pub(super) fn set_limit(directory: &Path, write: &Write) -> Step {
    let instead = write.instead.as_ref().map(|(file, value)| (directory.join(file), value.clone()));
    let (file, value) = (directory.join(&write.file), write.value.clone());
    Step::SetLimit { file, value, instead, optional: write.optional }
}

/// The cgroups with this name, of whatever sandbox had it, in every hierarchy.
pub fn cgroups(name: &str) -> Result<Vec<PathBuf>> {
    cgroups_in(&hierarchies()?, name)
}

/// Those of them that are in these hierarchies.
pub(super) fn cgroups_in(hierarchies: &[Hierarchy], name: &str) -> Result<Vec<PathBuf>> {
    let of_scope = hierarchies.iter().filter(|h| h.unified).map(|h| scope::directory(&h.mount, name));
    let places = hierarchies.iter().map(|hierarchy| hierarchy.mount.join(GROUP).join(name)).chain(of_scope);
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
    let below = |directory: &Path| match cgroup::children(directory) {
        Err(e) if e.kind() == Kind::NotFound => Ok(Vec::new()),
        found => found,
    };
    for hierarchy in hierarchies()? {
        names.extend(below(&hierarchy.mount.join(GROUP))?);
        if hierarchy.unified {
            names.extend(below(&hierarchy.mount.join(scope::SLICE))?.iter().filter_map(|unit| scope::name_in(unit)));
        }
    }
    Ok(names)
}

/// Kills what still runs in the cgroups with this name, and removes them: their sandbox's supervisor is dead.
pub fn clear_cgroups(name: &str) -> Result<()> {
    let all = cgroups(name)?;
    // What is frozen by the v1 freezer does not even die.
    all.iter().try_for_each(|directory| cgroup::thaw(directory))?;
    all.iter().try_for_each(|directory| match directory.ends_with(Path::new(GROUP).join(name)) {
        true => cgroup::clear(directory),
        // systemd removes a scope that has become empty.
        false => cgroup::kill(directory).and_then(|()| cgroup::await_removal(directory)),
    })
}
