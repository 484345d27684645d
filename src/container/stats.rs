//! `stats`: what a running container uses, now.
//!
//! From its cgroup where that counts: tupper makes one only in the hierarchies that limit something (cgroup v2 counts
//! processor time in any). What no cgroup of it counts is added up from its processes: their processor time and that of
//! the children that they waited for, their share of memory (`Pss`, without the page cache), their blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;

use super::processes::{Process, processes};
use super::{Container, leftover, top};
use crate::error::Result;
use crate::kernel::cgroup;
use crate::name::{Id, ObjectName};
use crate::network::Mode;
use crate::sandbox;
use crate::store::Store;

/// What a container has used and uses.
#[derive(Debug, Clone)]
pub struct Stats {
    /// The container.
    pub id: Id,
    /// Its name.
    pub name: Option<ObjectName>,
    /// Processor time so far, in seconds.
    pub time: f64,
    /// How long it has run, in seconds.
    pub elapsed: f64,
    /// Memory in bytes.
    pub memory: u64,
    /// What it may have of that: its limit, or what the host has.
    pub memory_limit: u64,
    /// Bytes received and sent by its own network; nothing for the host's.
    pub network: Option<(u64, u64)>,
    /// Bytes read from disks and written to them.
    pub blocks: (u64, u64),
    /// Processes and threads.
    pub tasks: u64,
    /// When this was read.
    taken: Instant,
}

impl Stats {
    /// Percent of one processor since `before`, or since its start.
    pub fn processor(&self, before: Option<&Stats>) -> f64 {
        match before {
            // What children that nobody waited for have used is lost with them.
            Some(before) => top::share((self.time - before.time).max(0.0), (self.taken - before.taken).as_secs_f64()),
            None => self.average(),
        }
    }

    /// Percent of one processor since its start.
    pub fn average(&self) -> f64 {
        top::share(self.time, self.elapsed)
    }
}

/// The containers that are named, all of which have to run.
///
/// # Errors
/// A container that is not there or does not run.
pub fn running(store: &Store, named: &[String]) -> Result<Vec<Id>> {
    let id = |text: &String| {
        let container = super::find(store, text)?;
        top::running(&container).map_err(|e| e.wrap(format!("stats of container {text}")))?;
        Ok(container.id)
    };
    named.iter().map(id).collect()
}

/// What every container uses that runs, or those of them that are `wanted`.
pub fn stats(store: &Store, wanted: Option<&[Id]>) -> Result<Vec<Stats>> {
    let containers = super::list(store)?.into_iter().filter(|c| wanted.is_none_or(|wanted| wanted.contains(&c.id)));
    // One that does not run, or ends meanwhile, uses nothing.
    Ok(containers.filter_map(|container| of(store, &container, top::running(&container).ok()?).ok()).collect())
}

fn of(store: &Store, container: &Container, first: i32) -> Result<Stats> {
    let cgroups = sandbox::cgroups(&leftover::cgroup_name(store, &container.id))?;
    let processes = processes(first)?;
    let counted = |names: &[&str]| cgroups.iter().find_map(|dir| names.iter().find_map(|name| number(dir, name)));
    let host = memory_of_host();
    let limit = counted(&["memory.max", "memory.limit_in_bytes"]).unwrap_or(host);
    let started = match &container.state {
        super::State::Running(running) => running.started,
        _ => Timestamp::now(),
    };
    Ok(Stats {
        id: container.id,
        name: container.name.clone(),
        time: cgroups
            .iter()
            .find_map(|dir| processor_time(dir))
            .unwrap_or_else(|| total(&processes, |p| p.time_with_children)),
        elapsed: Timestamp::now().duration_since(started).as_secs_f64(),
        memory: counted(&["memory.current", "memory.usage_in_bytes"])
            .unwrap_or_else(|| processes.iter().map(proportional_memory).sum()),
        memory_limit: limit.min(host),
        network: (container.spec.network != Mode::Host).then(|| traffic(first)),
        blocks: cgroups.iter().find_map(|dir| blocks(dir)).unwrap_or_else(|| {
            let moved: Vec<(u64, u64)> = processes.iter().map(moved).collect();
            (moved.iter().map(|(read, _)| read).sum(), moved.iter().map(|(_, written)| written).sum())
        }),
        tasks: counted(&["pids.current"]).unwrap_or_else(|| processes.iter().map(|p| p.threads).sum()),
        taken: Instant::now(),
    })
}

fn total(processes: &[Process], of: impl Fn(&Process) -> f64) -> f64 {
    processes.iter().map(of).sum()
}

/// The number in a control file; `max`, and a file that is not there, is none.
fn number(dir: &Path, name: &str) -> Option<u64> {
    cgroup::read(&dir.join(name)).ok()?.trim().parse().ok()
}

/// cpu.stat of v2 in microseconds, cpuacct.usage of v1 in nanoseconds.
fn processor_time(dir: &Path) -> Option<f64> {
    let unified = cgroup::read(&dir.join("cpu.stat")).ok().and_then(|text| value(&text, "usage_usec"));
    unified.map(|us| us as f64 / 1e6).or_else(|| number(dir, "cpuacct.usage").map(|ns| ns as f64 / 1e9))
}

/// io.stat of v2: a line a device, `MAJ:MIN rbytes=N wbytes=N …`; on v1 a line for each that is counted, `MAJ:MIN Read N`.
fn blocks(dir: &Path) -> Option<(u64, u64)> {
    if let Ok(text) = cgroup::read(&dir.join("io.stat")) {
        return Some((pairs(&text, "rbytes="), pairs(&text, "wbytes=")));
    }
    let text = cgroup::read(&dir.join("blkio.throttle.io_service_bytes")).ok()?;
    Some((lines(&text, " Read "), lines(&text, " Write ")))
}

fn lines(text: &str, word: &str) -> u64 {
    text.lines().filter_map(|line| line.split_once(word)?.1.trim().parse::<u64>().ok()).sum()
}

fn pairs(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

/// The number in a line `NAME N`.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Its share of the memory that it maps: proc_pid_smaps(5), `Pss`.
fn proportional_memory(process: &Process) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
    line.and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(process.resident, |kib| kib * 1024)
}

/// proc_pid_io(5).
fn moved(process: &Process) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/io", process.pid)).unwrap_or_default();
    (value(&text, "read_bytes:").unwrap_or(0), value(&text, "write_bytes:").unwrap_or(0))
}

fn memory_of_host() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    line.and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(u64::MAX, |kib| kib * 1024)
}

/// Bytes received and sent by every interface but loopback: proc_pid_net(5), `dev`.
fn traffic(first: i32) -> (u64, u64) {
    let text = fs::read_to_string(PathBuf::from(format!("/proc/{first}/net/dev"))).unwrap_or_default();
    sum_of_interfaces(&text)
}

fn sum_of_interfaces(text: &str) -> (u64, u64) {
    let lines = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    lines.fold((0, 0), |(received, sent), (_, counters)| {
        let numbers: Vec<u64> = counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        (received + numbers.first().unwrap_or(&0), sent + numbers.get(8).unwrap_or(&0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n\
                   eth0: 100 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\n eth1:7 1 0 0 0 0 0 0 8 1 0 0 0 0 0 0\n";
        assert_eq!(sum_of_interfaces(dev), (107, 208));
        assert_eq!(value("usage_usec 12\nuser_usec 3", "usage_usec"), Some(12));
        let io = "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n";
        assert_eq!((pairs(io, "rbytes="), pairs(io, "wbytes=")), (11, 22));
        let legacy = "8:0 Read 5\n8:0 Write 7\n8:0 Total 12\n8:16 Read 1\nTotal 13\n";
        assert_eq!((lines(legacy, " Read "), lines(legacy, " Write ")), (6, 7));
        assert!(memory_of_host() > 1 << 20);
    }
}
