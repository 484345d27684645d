//! `top`: what the processes of a container are, in the descriptors of podman-top(1).

use std::os::fd::AsFd;
use std::path::Path;

use super::processes::{Process, processes};
use super::{Container, State};
use crate::error::{Error, Kind, Result};
use crate::kernel::resolve;
use crate::sandbox::{self, Maps};
use crate::store::{Shelf, Store};

/// The largest /etc/passwd or /etc/group that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// What is shown when nobody says.
pub const DEFAULT: [&str; 8] = ["user", "pid", "ppid", "pcpu", "etime", "tty", "time", "args"];

/// A table: the titles of its columns, and its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// A title for each descriptor.
    pub titles: Vec<&'static str>,
    /// A row for each process.
    pub rows: Vec<Vec<String>>,
}

/// What a column says of a process.
type Column = fn(&Process, &Names) -> String;

/// The descriptors, their aliases of ps(1), and the titles.
const DESCRIPTORS: &[(&[&str], &str, Column)] = &[
    (&["args", "command"], "COMMAND", |p, _| command(p)),
    (&["comm"], "COMMAND", |p, _| p.name.clone()),
    (&["capinh"], "INHERITED CAPS", |p, _| capabilities(p.capabilities[0])),
    (&["capprm"], "PERMITTED CAPS", |p, _| capabilities(p.capabilities[1])),
    (&["capeff"], "EFFECTIVE CAPS", |p, _| capabilities(p.capabilities[2])),
    (&["capbnd"], "BOUNDING CAPS", |p, _| capabilities(p.capabilities[3])),
    (&["capamb"], "AMBIENT CAPS", |p, _| capabilities(p.capabilities[4])),
    (&["etime"], "ELAPSED", |p, _| span(p.elapsed)),
    (&["group"], "GROUP", |p, names| names.group(p.gid)),
    (&["groups"], "GROUPS", |p, names| p.groups.iter().map(|gid| names.group(*gid)).collect::<Vec<_>>().join(",")),
    (&["hgroup"], "HGROUP", |p, _| host_name("/etc/group", p.gid)),
    (&["hpid"], "HPID", |p, _| p.pid.to_string()),
    (&["huser"], "HUSER", |p, _| host_name("/etc/passwd", p.uid)),
    (&["label"], "LABEL", |p, _| p.label.clone()),
    (&["nice"], "NI", |p, _| p.nice.to_string()),
    (&["pcpu", "%cpu"], "%CPU", |p, _| format!("{:.3}", share(p.time, p.elapsed))),
    (&["pgid", "pgrp"], "PGID", |p, _| p.inner_group.to_string()),
    (&["pid"], "PID", |p, _| p.inner_pid.to_string()),
    (&["ppid"], "PPID", |p, _| p.inner_parent.to_string()),
    (&["rss"], "RSS", |p, _| (p.resident / 1024).to_string()),
    (&["seccomp"], "SECCOMP", |p, _| {
        ["disabled", "strict", "filter"].get(usize::from(p.seccomp)).unwrap_or(&"?").to_string()
    }),
    (&["session", "sid"], "SID", |p, _| p.inner_session.to_string()),
    (&["state", "stat"], "STATE", |p, _| p.state.clone()),
    (&["threads", "nlwp"], "NLWP", |p, _| p.threads.to_string()),
    (&["time"], "TIME", |p, _| span(p.time)),
    (&["tty"], "TTY", |p, _| terminal(p.terminal)),
    (&["user"], "USER", |p, names| names.user(p.uid)),
    (&["vsz"], "VSZ", |p, _| (p.virtual_size / 1024).to_string()),
];

/// The names of all descriptors.
pub fn descriptors() -> impl Iterator<Item = &'static str> {
    DESCRIPTORS.iter().filter_map(|(names, ..)| names.first().copied())
}

/// The processes of a running container, with a column for each of `wanted`.
///
/// # Errors
/// A container that does not run; a descriptor that there is not ([`Kind::Invalid`]).
pub fn top(store: &Store, text: &str, wanted: &[String]) -> Result<Table> {
    let container = super::find(store, text)?;
    let doing = || format!("top of container {text}");
    let columns = wanted.iter().map(|name| column(name)).collect::<Result<Vec<_>>>().map_err(|e| e.wrap(doing()))?;
    let first = running(&container).map_err(|e| e.wrap(doing()))?;
    let processes = processes(first).map_err(|e| e.wrap(doing()))?;
    let names = Names::of(store, &container, first);
    let row = |process: &Process| columns.iter().map(|(_, say)| say(process, &names)).collect();
    Ok(Table { titles: columns.iter().map(|(title, _)| *title).collect(), rows: processes.iter().map(row).collect() })
}

/// The first process of a container that runs.
pub(super) fn running(container: &Container) -> Result<i32> {
    match &container.state {
        State::Running(running) => Ok(running.pid),
        state => Err(Error::new(Kind::Invalid, format!("it is not running, but {}", state.as_str()))),
    }
}

fn column(name: &str) -> Result<(&'static str, Column)> {
    let wanted = name.trim_start_matches('-').to_ascii_lowercase();
    // ps(1)'s code for it; its small letter is another.
    let wanted = if name == "%C" { "pcpu".to_string() } else { wanted };
    let known = DESCRIPTORS.iter().find(|(names, ..)| names.contains(&wanted.as_str()));
    known.map(|(_, title, say)| (*title, *say)).ok_or_else(|| {
        let all: Vec<&str> = descriptors().collect();
        Error::new(Kind::Invalid, format!("{name}: not a descriptor"))
            .with_hint(format!("there are: {}", all.join(", ")))
    })
}

/// Who users and groups are inside.
struct Names {
    maps: Option<Maps>,
    passwd: String,
    group: String,
}

impl Names {
    fn of(store: &Store, container: &Container, first: i32) -> Names {
        let root = crate::kernel::fs::open_directory_follow(&store.rootfs_path(Shelf::Containers, &container.id));
        let read = |path: &str| {
            let root = root.as_ref().ok()?;
            let bytes = resolve::read_in_root(root.as_fd(), Path::new(path), FILE_LIMIT).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        Names {
            maps: sandbox::maps_of(first),
            passwd: read("/etc/passwd").unwrap_or_default(),
            group: read("/etc/group").unwrap_or_default(),
        }
    }

    fn user(&self, outside: u32) -> String {
        named(&self.passwd, self.maps.as_ref().map_or(Some(outside), |maps| maps.uid_inside(outside)))
    }

    fn group(&self, outside: u32) -> String {
        named(&self.group, self.maps.as_ref().map_or(Some(outside), |maps| maps.gid_inside(outside)))
    }
}

fn host_name(file: &str, id: u32) -> String {
    named(&std::fs::read_to_string(file).unwrap_or_default(), Some(id))
}

/// The name of an id in the text of passwd(5) or group(5), or the id; who is not mapped has none.
fn named(text: &str, id: Option<u32>) -> String {
    let Some(id) = id else { return "?".to_string() };
    let entry = |line: &&str| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(id);
    let name = text.lines().find(entry).and_then(|line| line.split(':').next());
    name.map_or_else(|| id.to_string(), str::to_string)
}

fn command(process: &Process) -> String {
    match process.args.is_empty() {
        true => format!("[{}]", process.name),
        false => process.args.join(" "),
    }
}

fn capabilities(set: u64) -> String {
    let all = sandbox::CapabilitySet(set).names();
    match set {
        0 => "none".to_string(),
        _ if set.count_ones() as usize == sandbox::CapabilitySet(u64::MAX).names().len() => "full".to_string(),
        _ => all.iter().map(|name| name.to_ascii_uppercase()).collect::<Vec<_>>().join(","),
    }
}

/// Percent of one processor.
pub(super) fn share(time: f64, elapsed: f64) -> f64 {
    if elapsed > 0.0 { 100.0 * time / elapsed } else { 0.0 }
}

/// `1h2m3.45s`: hours and minutes only where there are any.
pub(super) fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    let (hours, minutes) = (whole / 3600, whole / 60 % 60);
    let rest = seconds - (hours * 3600 + minutes * 60) as f64;
    let hours = if hours > 0 { format!("{hours}h") } else { String::new() };
    let minutes = if minutes > 0 || !hours.is_empty() { format!("{minutes}m") } else { String::new() };
    format!("{hours}{minutes}{rest:.2}s")
}

/// A terminal by its device number, which is split as the old one: proc_pid_stat(5), `tty_nr`.
fn terminal(number: u32) -> String {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00);
    match major {
        0 => "?".to_string(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        5 if minor == 1 => "console".to_string(),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_terminals_and_names_read_as_in_podman() {
        assert_eq!([0.0, 61.5, 3600.0].map(span), ["0.00s", "1m1.50s", "1h0m0.00s"]);
        assert_eq!([0, 34816, 34817, 1025, 1281].map(terminal), ["?", "pts/0", "pts/1", "tty1", "console"]);
        let passwd = "root:x:0:0::/:\nweb:x:33:33::/:\nbroken\n";
        assert_eq!([Some(0), Some(33), Some(7), None].map(|id| named(passwd, id)), ["root", "web", "7", "?"]);
    }

    #[test]
    fn descriptors_have_one_title_and_aliases() {
        for name in DEFAULT.iter().chain(&["%C", "-args", "HUSER"]) {
            column(name).expect(name);
        }
        let error = column("nonsense").expect_err("there is none");
        assert!(error.hint().is_some_and(|hint| hint.contains("capeff")), "{error}");
    }

    #[test]
    fn capabilities_are_named() {
        assert_eq!(capabilities(0), "none");
        assert_eq!(capabilities(0b11), "CHOWN,DAC_OVERRIDE");
        assert_eq!(capabilities((1 << 41) - 1), "full");
    }
}
