//! The processes of a running container, as the host's /proc tells of them.
//!
//! Its processes are those in its pid namespace and in those below it: whoever shares the namespace of its first process,
//! or descends from one who does. They come and go while they are read; one that has gone is left out.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::process;

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Process {
    /// Its id on the host.
    pub pid: i32,
    /// Its id in the container.
    pub inner_pid: i32,
    /// Its parent's id in the container; 0 when that is outside.
    pub inner_parent: i32,
    /// Its process group in the container.
    pub inner_group: i32,
    /// Its session in the container.
    pub inner_session: i32,
    /// The program's name.
    pub name: String,
    /// Its command line; empty for one that has ended.
    pub args: Vec<String>,
    /// ps(1)'s letter for what it does.
    pub state: String,
    /// The effective user on the host.
    pub uid: u32,
    /// The effective group on the host.
    pub gid: u32,
    /// The supplementary groups on the host.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// 0 none, 1 strict, 2 filter: proc_pid_status(5), `Seccomp`.
    pub seccomp: u8,
    /// The profile or label of a security module, as it names it.
    pub label: String,
    /// Its terminal's device number; 0 for none.
    pub terminal: u32,
    /// Processor time that it has used, in seconds.
    pub time: f64,
    /// Processor time that it and the children that it waited for have used, in seconds.
    pub time_with_children: f64,
    /// How long it has run, in seconds.
    pub elapsed: f64,
    /// Its niceness.
    pub nice: i32,
    /// Address space in bytes.
    pub virtual_size: u64,
    /// Memory that it has of its own or shares, in bytes.
    pub resident: u64,
    /// Its threads.
    pub threads: u64,
}

/// A process as it was found, before it is known whose it is.
struct Found {
    process: Process,
    parent: i32,
    namespace: Option<PathBuf>,
}

/// The processes of the container whose first process is `first`, in the order of their ids.
///
/// # Errors
/// [`Kind::NotFound`] when it has ended.
pub(super) fn processes(first: i32) -> Result<Vec<Process>> {
    let gone = || Error::new(Kind::NotFound, format!("process {first}: it has ended"));
    let namespace = fs::read_link(format!("/proc/{first}/ns/pid")).map_err(|_| gone())?;
    let status = fs::read_to_string(format!("/proc/{first}/status")).map_err(|_| gone())?;
    let depth = numbers(field(&status, "NSpid")).len().max(1);
    let uptime = fs::read_to_string("/proc/uptime").context(|| "read /proc/uptime")?;
    let uptime = uptime.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let pids = fs::read_dir("/proc").context(|| "read /proc")?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found: Vec<Found> = pids.filter_map(|pid| look(pid, depth, uptime)).collect();

    let shares = |found: &&Found| found.namespace.as_ref() == Some(&namespace);
    let mut ours: HashSet<i32> = found.iter().filter(shares).map(|found| found.process.pid).collect();
    loop {
        let before = ours.len();
        let children = found.iter().filter(|found| ours.contains(&found.parent));
        let children: Vec<i32> = children.map(|found| found.process.pid).collect();
        ours.extend(children);
        if ours.len() == before {
            break;
        }
    }
    let inner: std::collections::HashMap<i32, i32> =
        found.iter().map(|found| (found.process.pid, found.process.inner_pid)).collect();
    let mut all: Vec<Process> = found
        .into_iter()
        .filter(|found| ours.contains(&found.process.pid))
        .map(|found| {
            let parent = if ours.contains(&found.parent) { inner.get(&found.parent).copied() } else { None };
            Process { inner_parent: parent.unwrap_or(0), ..found.process }
        })
        .collect();
    all.sort_by_key(|process| process.inner_pid);
    Ok(all)
}

/// A process, as seen from a pid namespace that is `depth` deep. `None` when it has gone, or is not seen from there.
fn look(pid: i32, depth: usize, uptime: f64) -> Option<Found> {
    let place = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| fs::read(place.join(name)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let status = read("status")?;
    let inner = |name| numbers(field(&status, name)).get(depth - 1).copied();
    let inner_pid = i32::try_from(inner("NSpid")?).ok()?;
    let mut process = from_stat(&read("stat")?, uptime)?;
    let of_status = |name| numbers(field(&status, name));
    process.pid = pid;
    process.inner_pid = inner_pid;
    process.inner_group = inner("NSpgid").and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    process.inner_session = inner("NSsid").and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    process.uid = of_status("Uid").get(1).and_then(|n| u32::try_from(*n).ok())?;
    process.gid = of_status("Gid").get(1).and_then(|n| u32::try_from(*n).ok())?;
    process.groups = of_status("Groups").iter().filter_map(|n| u32::try_from(*n).ok()).collect();
    let set = |name| u64::from_str_radix(field(&status, name), 16).unwrap_or(0);
    process.capabilities = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(set);
    process.seccomp = field(&status, "Seccomp").parse().unwrap_or(0);
    process.threads = field(&status, "Threads").parse().unwrap_or(1);
    process.label = read("attr/current").unwrap_or_default().trim_end_matches(['\n', '\0']).to_string();
    process.args = arguments(&fs::read(place.join("cmdline")).unwrap_or_default());
    let parent = field(&status, "PPid").parse().ok()?;
    Some(Found { process, parent, namespace: fs::read_link(place.join("ns/pid")).ok() })
}

/// What proc_pid_stat(5) tells; the name, in parentheses, may hold anything.
fn from_stat(text: &str, uptime: f64) -> Option<Process> {
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_string();
    let fields: Vec<&str> = after.split_whitespace().collect();
    // The third field is the first behind the name.
    let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    let ticks = process::ticks_per_second();
    let time = (number(14)? + number(15)?) / ticks;
    Some(Process {
        name,
        state: fields.first()?.to_string(),
        terminal: number(7)? as u32,
        time,
        time_with_children: time + (number(16)? + number(17)?) / ticks,
        elapsed: (uptime - number(22)? / ticks).max(0.0),
        nice: number(19)? as i32,
        virtual_size: number(23)? as u64,
        resident: number(24)? as u64 * process::page_size(),
        ..Process::default()
    })
}

/// The value of a line `NAME:\tVALUE`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map_or("", str::trim)
}

fn numbers(text: &str) -> Vec<i64> {
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// The words of proc_pid_cmdline(5).
fn arguments(bytes: &[u8]) -> Vec<String> {
    let words = bytes.strip_suffix(b"\0").unwrap_or(bytes).split(|byte| *byte == 0);
    let words = words.map(|word| String::from_utf8_lossy(word).into_owned());
    if bytes.is_empty() { Vec::new() } else { words.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "77 (a) b (c) R 1 5 6 34816 77 4194304 100 0 0 0 200 300 50 50 20 -5 3 0 1000 4096000 25 1844";
        let found = from_stat(stat, 100.0).expect("a process");
        assert_eq!((found.name.as_str(), found.state.as_str(), found.nice), ("a) b (c", "R", -5));
        assert_eq!((found.terminal, found.virtual_size), (34816, 4_096_000));
        let ticks = process::ticks_per_second();
        assert_eq!((found.time, found.time_with_children), (500.0 / ticks, 600.0 / ticks));
        assert_eq!(from_stat("77 nonsense", 1.0), None);
    }

    #[test]
    fn this_process_is_found_with_its_words() {
        let ours = i32::try_from(std::process::id()).expect("a pid");
        let all = processes(ours).expect("we live");
        let found = all.iter().find(|process| process.pid == ours).expect("one of them");
        assert_eq!(found.args, std::env::args().collect::<Vec<_>>());
        assert!(found.resident > 0 && found.elapsed >= 0.0 && found.threads >= 1);
        assert_eq!(processes(i32::MAX).expect_err("none").kind(), Kind::NotFound);
        assert_eq!(arguments(b"a\0b c\0\0"), ["a", "b c", ""]);
        assert_eq!(arguments(b""), Vec::<String>::new());
    }
}
