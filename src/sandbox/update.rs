//! Limits of a sandbox that runs, changed: what differs is written, in an order in which no write is refused for the sake
//! of one that comes later; where one is refused all the same, those before it are undone.

use std::path::{Path, PathBuf};

use super::bus;
use super::cgroups::{Ground, enable, set_limit};
use super::controllers::{CPU_PERIOD, Write};
use super::facts::{GROUP, disks, hierarchies, runs_systemd};
use super::limits::Limits;
use super::scope::{self, Property, Value};
use super::spec::CgroupManager;
use super::start;
use super::step::Step;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{cgroup, fs};

/// Changes the limits of the running sandbox whose cgroups are named `name` from `old` to `new`.
///
/// # Errors
///
/// [`Kind::Unsupported`] for a limit that this host cannot set, or that this sandbox cannot get any more while it runs;
/// or what the kernel or systemd refuses. The limits are as they were then.
pub fn update(name: &str, manager: CgroupManager, old: &Limits, new: &Limits) -> Result<()> {
    let (hierarchies, disks) = (hierarchies()?, [disks(old).unwrap_or_default(), disks(new)?].concat());
    let cgroup = Path::new(GROUP).join(name);
    let systemd = manager == CgroupManager::Systemd && runs_systemd();
    let ground = Ground { hierarchies: &hierarchies, cgroup: &cgroup, disks: &disks, systemd };
    if manager == CgroupManager::Systemd {
        let (unit, directory) = scope::locate(ground)?;
        let (old, new) = (scope::limit_properties(old, ground)?, scope::limit_properties(new, ground)?);
        let all = |file| all_above(&directory.join(file));
        let changes = changed_properties(&old, new, [&all("cpuset.cpus"), &all("cpuset.mems")]);
        return bus::set_properties(&unit, &changes);
    }
    let changes = changes(old, new, ground)?;
    let mut done = Vec::new();
    for change in &changes {
        if let Err(e) = change.make(&mut done) {
            undo(done);
            return Err(e);
        }
    }
    Ok(())
}

/// One thing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// Lets the sandbox's v2 cgroup have controllers; never undone, since it limits nothing.
    Enable { directory: PathBuf, controllers: Vec<String> },
    /// The first of the files that there is.
    Set { directory: PathBuf, write: Write },
}

impl Change {
    fn make(&self, done: &mut Vec<(PathBuf, String)>) -> Result<()> {
        match self {
            Change::Enable { directory, controllers } => start::enable(directory.clone(), controllers)
                .context(|| format!("enable {} below {}", controllers.join(", "), directory.display())),
            Change::Set { directory, write } => {
                let doing = || format!("set {} to {}", write.file, write.value.trim());
                require(directory).context(doing)?;
                let step = set_limit(directory, write);
                let Step::SetLimit { file, value, instead, optional } = &step else { return Ok(()) };
                let places = [Some((file, value)), instead.as_ref().map(|(file, value)| (file, value))];
                for (file, value) in places.into_iter().flatten() {
                    if let Ok(text) = cgroup::read(file) {
                        let text = if write.file.starts_with("cpuset.") && text.trim().is_empty() {
                            all_above(file)
                        } else {
                            text
                        };
                        done.push((file.clone(), before(&write.file, &text, value)));
                        break;
                    }
                }
                start::set_limit(file, value, instead.as_ref(), *optional).context(doing)
            }
        }
    }
}

fn require(directory: &Path) -> Result<()> {
    match fs::exists_at(fs::CWD, directory)? {
        true => Ok(()),
        // On v1 each controller has cgroups of its own, and those that limited nothing were not made at the start.
        false => {
            let message = "it was started without this cgroup controller, which on cgroup v1 it cannot get later";
            Err(Error::new(Kind::Unsupported, message).with_hint("change the limit while it is stopped"))
        }
    }
}

/// Undoes writes, the last one first. What cannot be undone is told, beside the error that is on its way.
fn undo(done: Vec<(PathBuf, String)>) {
    for (file, value) in done.into_iter().rev() {
        if let Err(e) = cgroup::write(&file, &value) {
            log::warn!("undo a change of limits: {e}");
        }
    }
}

/// What a cpuset has that has all there is: a set with processes in it cannot become empty again
/// (kernel/cgroup/cpuset.c, validate_change), so it gets what the one above it has.
fn all_above(file: &Path) -> String {
    let Some(above) = file.parent().and_then(Path::parent) else { return String::new() };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // On v2 a set that nobody has limited reads as empty, and what it comes to is in another file.
    let files = [above.join(format!("{name}.effective")), above.join(&*name)];
    files.iter().find_map(|file| cgroup::read(file).ok()).map(|text| text.trim().to_string()).unwrap_or_default()
}

/// What has to be written to a control file for it to read `text` again, where `value` is about to be written.
fn before(file: &str, text: &str, value: &str) -> String {
    let text = text.trim_end();
    let device = value.split(' ').next().filter(|word| word.contains(':'));
    let line = |start: &str| text.lines().find(|line| line.split(' ').next() == Some(start)).map(str::to_string);
    match (file, device) {
        // A line a device, and none for one without a limit.
        ("io.max", Some(device)) => {
            line(device).unwrap_or_else(|| format!("{device} rbps=max wbps=max riops=max wiops=max"))
        }
        (_, Some(device)) => line(device).unwrap_or_else(|| format!("{device} 0")),
        // A weight for every device, and lines for some.
        _ if file.ends_with("weight") && text.contains(' ') => line("default").unwrap_or_default(),
        _ => text.to_string(),
    }
}

/// What a control file reads that limits nothing.
fn unlimited(write: &Write, unified: bool) -> Write {
    let device = write.value.split(' ').next().filter(|word| word.contains(':'));
    let file = write.file.as_str();
    let value = match (file, device) {
        ("io.max", Some(device)) => {
            let key = write.value.split([' ', '=']).nth(1).unwrap_or_default();
            format!("{device} {key}=max")
        }
        (_, Some(device)) => format!("{device} 0"),
        ("cpu.max", _) => format!("max {CPU_PERIOD}"),
        ("cpu.cfs_period_us", _) => CPU_PERIOD.to_string(),
        ("cpu.weight" | "io.bfq.weight", _) => "100".to_string(),
        ("blkio.bfq.weight", _) => "500".to_string(),
        ("cpu.shares", _) => "1024".to_string(),
        ("memory.low", _) => "0".to_string(),
        ("pids.max", _) => "max".to_string(),
        _ if unified => "max".to_string(),
        _ => "-1".to_string(),
    };
    let instead = write.instead.as_ref().map(|(file, _)| {
        let weight = if file == "io.weight" { "100" } else { "500" };
        (file.clone(), weight.to_string())
    });
    Write { value, instead, ..write.clone() }
}

/// Which line of a file a write is about.
fn key(write: &Write) -> (String, String) {
    let device = write.value.split([' ', '=']).next().filter(|word| word.contains(':'));
    let what = device.map(|device| {
        let rate = write.value.split([' ', '=']).nth(1).filter(|_| write.file == "io.max").unwrap_or_default();
        format!("{device} {rate}")
    });
    (write.file.clone(), what.unwrap_or_default())
}

/// What to write to come from `old` to `new`.
fn changes(old: &Limits, new: &Limits, ground: Ground<'_>) -> Result<Vec<Change>> {
    let (before, after) = (writes(old, ground)?, writes(new, ground)?);
    let known = |all: &[Placed], (directory, write, _): &Placed| -> Option<Write> {
        all.iter().find(|(d, w, _)| d == directory && key(w) == key(write)).map(|(_, w, _)| w.clone())
    };
    let mut changes = enabled(new, ground)?;
    let mut set = |directory: &PathBuf, write: Write| changes.push(Change::Set { directory: directory.clone(), write });
    for placed in &before {
        let (directory, write, unified) = placed;
        if known(&after, placed).is_none() {
            let mut none = unlimited(write, *unified);
            if none.file.starts_with("cpuset.") {
                none.value = all_above(&directory.join(&none.file));
            }
            set(directory, none);
        }
    }
    for placed in &after {
        if known(&before, placed).as_ref() != Some(&placed.1) {
            set(&placed.0, placed.1.clone());
        }
    }
    Ok(in_order(changes))
}

/// A directory, what is written in it, and whether it is of the unified hierarchy.
type Placed = (PathBuf, Write, bool);

fn writes(limits: &Limits, ground: Ground<'_>) -> Result<Vec<Placed>> {
    let mut all = Vec::new();
    for (wanted, hierarchy) in ground.assign(limits)? {
        let directory = hierarchy.mount.join(ground.cgroup);
        let writes = if hierarchy.unified { wanted.unified } else { wanted.legacy };
        all.extend(writes.into_iter().map(|write| (directory.clone(), write, hierarchy.unified)));
    }
    Ok(all)
}

fn enabled(limits: &Limits, ground: Ground<'_>) -> Result<Vec<Change>> {
    let assigned = ground.assign(limits)?;
    let unified = assigned.iter().filter(|(_, hierarchy)| hierarchy.unified);
    let controllers: Vec<String> = unified.clone().map(|(wanted, _)| wanted.unified_name.to_string()).collect();
    let Some((_, hierarchy)) = unified.clone().next() else { return Ok(Vec::new()) };
    let steps = enable(&hierarchy.mount, &hierarchy.mount.join(ground.cgroup), &controllers);
    let changes = steps.into_iter().filter_map(|step| match step {
        Step::EnableControllers { directory, controllers } => Some(Change::Enable { directory, controllers }),
        _ => None,
    });
    Ok(changes.collect())
}

const LEGACY_MEMORY: &str = "memory.limit_in_bytes";
const LEGACY_SWAP: &str = "memory.memsw.limit_in_bytes";

/// The v1 limit of memory and swap may never be below that of memory (memory.rst, 2.4), so it is the first to grow and the
/// last to shrink.
fn in_order(mut changes: Vec<Change>) -> Vec<Change> {
    let position = |changes: &[Change], name: &str| {
        changes.iter().position(|change| matches!(change, Change::Set { write, .. } if write.file == name))
    };
    let (Some(memory), Some(swap)) = (position(&changes, LEGACY_MEMORY), position(&changes, LEGACY_SWAP)) else {
        return changes;
    };
    let Change::Set { directory, write } = &changes[memory] else { return changes };
    let number = |text: &str| text.trim().parse::<i64>().ok().filter(|n| *n >= 0).map_or(u64::MAX, i64::unsigned_abs);
    let limit = cgroup::read(&directory.join(LEGACY_SWAP)).ok().map(|text| number(&text));
    let grows = limit.is_some_and(|limit| number(&write.value) > limit);
    if grows == (memory < swap) {
        changes.swap(memory, swap);
    }
    changes
}

/// The properties of `new` that are not among the old ones, and the old ones that are gone, at their default.
/// `all` is the processors and the memory nodes that there are.
fn changed_properties(old: &[Property], new: Vec<Property>, all: [&str; 2]) -> Vec<Property> {
    let gone = old.iter().filter(|property| !new.iter().any(|n| n.name == property.name));
    let gone: Vec<Property> = gone
        .map(|Property { name, value }| {
            let value = match (*name, value) {
                ("MemoryLow", _) => Value::Number(0),
                ("AllowedCPUs", _) => Value::Set(scope::bits(all[0])),
                ("AllowedMemoryNodes", _) => Value::Set(scope::bits(all[1])),
                (_, Value::Rates(rates)) => {
                    Value::Rates(rates.iter().map(|(path, _)| (path.clone(), u64::MAX)).collect())
                }
                // "infinity", and for weights "not set".
                _ => Value::Number(u64::MAX),
            };
            Property { name, value }
        })
        .collect();
    let changed = new.into_iter().filter(|property| !old.contains(property));
    gone.into_iter().chain(changed).collect()
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
