//! `cgroup`: the kernel's chain from a task to its cgroups, as far as it can be read.
//!
//! ```text
//! task_struct.cgroups ─> css_set ─> .subsys[N] ─> cgroup_subsys_state ─> .cgroup
//! ```
//!
//! Tasks that are in the same cgroups in all hierarchies share one `css_set` (include/linux/cgroup-defs.h); so tasks whose
//! /proc/PID/cgroup is the same are shown together. A hierarchy of v1 has a state for each of its controllers; in the
//! unified one (v2) a controller that is not enabled down to a cgroup has its state further up.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::processes::processes;
use super::top;
use crate::error::Result;
use crate::name::Id;
use crate::sandbox::{self, Hierarchy};
use crate::store::Store;

/// The chain of a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The container.
    pub id: Id,
    /// Its first process on the host.
    pub pid: i32,
    /// Its tasks by what they share.
    pub sets: Vec<CssSet>,
}

/// A `css_set`: tasks that are in the same cgroups everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CssSet {
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Their cgroup in each hierarchy.
    pub cgroups: Vec<Cgroup>,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id on the host.
    pub tid: i32,
    /// Its process on the host.
    pub pid: i32,
    /// Its process in the container.
    pub inner_pid: i32,
    /// Its name.
    pub name: String,
}

/// A cgroup in a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The hierarchy is the unified one (v2).
    pub unified: bool,
    /// The controllers whose states lie in it; the name of a hierarchy of v1 that has none.
    pub controllers: Vec<String>,
    /// Its path in the hierarchy.
    pub path: PathBuf,
    /// Where it is on the host, if the hierarchy is mounted.
    pub directory: Option<PathBuf>,
    /// Its id: the inode number of its directory (kernel/cgroup/cgroup.c, cgroup_id()).
    pub id: Option<u64>,
    /// What limits it, by control file.
    pub limits: BTreeMap<String, String>,
    /// What it uses, by control file.
    pub usage: BTreeMap<String, String>,
}

/// Control files that limit something: cgroup-v2.rst and cgroup-v1/.
const LIMITS: &[&str] = &[
    "cgroup.freeze",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "io.max",
    "io.weight",
    "memory.low",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.shares",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "blkio.weight",
    "blkio.bfq.weight",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "devices.list",
    "freezer.state",
];

/// Control files that count something.
const USAGE: &[&str] = &[
    "cpu.stat",
    "cpuacct.usage",
    "io.stat",
    "memory.current",
    "memory.peak",
    "memory.events",
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
    "pids.current",
    "pids.peak",
    "pids.events",
    "cgroup.stat",
];

/// The chain of a container.
///
/// # Errors
/// A container that does not run.
pub fn chain(store: &Store, text: &str) -> Result<Chain> {
    let container = super::find(store, text)?;
    let doing = || format!("cgroups of container {text}");
    let pid = top::running(&container).map_err(|e| e.wrap(doing()))?;
    let hierarchies = sandbox::hierarchies()?;
    // The lines of /proc/PID/cgroup are what two tasks have to share.
    let mut sets: Vec<(String, CssSet)> = Vec::new();
    for process in processes(pid).map_err(|e| e.wrap(doing()))? {
        for tid in threads(process.pid) {
            let place = format!("/proc/{}/task/{tid}", process.pid);
            let Ok(lines) = fs::read_to_string(format!("{place}/cgroup")) else { continue }; // it has ended
            let name = fs::read_to_string(format!("{place}/comm")).unwrap_or_default().trim_end().to_string();
            let task = Task { tid, pid: process.pid, inner_pid: process.inner_pid, name };
            match sets.iter_mut().find(|(key, _)| *key == lines) {
                Some((_, set)) => set.tasks.push(task),
                None => {
                    let cgroups = lines.lines().filter_map(|line| cgroup(line, &hierarchies)).collect();
                    sets.push((lines, CssSet { tasks: vec![task], cgroups }));
                }
            }
        }
    }
    Ok(Chain { id: container.id, pid, sets: sets.into_iter().map(|(_, set)| set).collect() })
}

fn threads(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut all: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all
}

/// A line of cgroups(7), "/proc files": `ID:CONTROLLERS:PATH`; the unified one has id 0 and names none.
fn cgroup(line: &str, hierarchies: &[Hierarchy]) -> Option<Cgroup> {
    let (number, rest) = line.split_once(':')?;
    let (names, path) = rest.split_once(':')?;
    let unified = number == "0" && names.is_empty();
    let mut controllers: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(str::to_string).collect();
    let of = |h: &&Hierarchy| match unified {
        true => h.unified,
        false => !h.unified && controllers.iter().all(|c| h.controllers.contains(c)),
    };
    let directory = hierarchies.iter().find(of).map(|h| h.mount.join(path.trim_start_matches('/')));
    if unified && let Some(directory) = &directory {
        let enabled = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        controllers = enabled.split_whitespace().map(str::to_string).collect();
    }
    let id = directory.as_ref().and_then(|directory| fs::metadata(directory).ok()).map(|found| found.ino());
    let read = |names: &[&str]| directory.as_ref().map(|directory| values(directory, names)).unwrap_or_default();
    let (mut limits, usage) = (read(LIMITS), read(USAGE));
    if let Some(directory) = &directory {
        limits.extend(huge_pages(directory));
    }
    Some(Cgroup { unified, controllers, path: PathBuf::from(path), directory, id, limits, usage })
}

/// Those of the control files that are there and say something.
fn values(directory: &Path, names: &[&str]) -> BTreeMap<String, String> {
    let read = |name: &&str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| (name.to_string(), text.to_string()))
    };
    names.iter().filter_map(read).collect()
}

/// `hugetlb.SIZE.max` and its kin of v1, which are named after the sizes that the processor has.
fn huge_pages(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let limit = |name: &&String| {
        name.starts_with("hugetlb.")
            && !name.contains("rsvd")
            && (name.ends_with(".max") || name.ends_with(".limit_in_bytes"))
    };
    let names: Vec<&str> = names.iter().filter(limit).map(String::as_str).collect();
    values(directory, &names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lead_to_the_hierarchy_that_has_the_controllers() {
        let legacy = Hierarchy {
            mount: "/no/cpu".into(),
            controllers: vec!["rw".into(), "cpu".into(), "cpuacct".into()],
            unified: false,
        };
        let named = Hierarchy { mount: "/no/systemd".into(), controllers: vec!["name=systemd".into()], unified: false };
        let unified = Hierarchy { mount: "/no/unified".into(), controllers: Vec::new(), unified: true };
        let all = [legacy, named, unified];
        let place = |line: &str| {
            let found = cgroup(line, &all).expect("a line");
            (found.unified, found.controllers.join(" "), found.directory.map(|d| d.display().to_string()))
        };
        assert_eq!(place("3:cpu,cpuacct:/a/b"), (false, "cpu cpuacct".into(), Some("/no/cpu/a/b".into())));
        assert_eq!(place("1:name=systemd:/x:y"), (false, "name=systemd".into(), Some("/no/systemd/x:y".into())));
        assert_eq!(place("0::/"), (true, String::new(), Some("/no/unified/".into())));
        assert_eq!(place("9:pids:/"), (false, "pids".into(), None));
        assert_eq!(cgroup("nonsense", &all), None);
    }
}
