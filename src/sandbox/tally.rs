//! What the kernel did because of a limit, as the cgroups count it: kills for lack of memory, forks refused.
//!
//! Cgroups of our own are read when the sandbox has ended. One that systemd removes as soon as its last process has
//! ended is watched while it is there: the kernel says with POLLPRI that a count has changed (cgroup-v2.rst, "memory.events";
//! kernel/cgroup/cgroup.c, cgroup_file_notify), and counts a kill before it sends the signal (mm/oom_kill.c).

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::cgroups::Counters;
use crate::error::Kind;
use crate::kernel::cgroup;
use crate::kernel::process::Polled;

#[derive(Debug)]
pub(super) struct Tally {
    counters: Counters,
    watched: [Option<File>; 2],
    /// The file that counts kills in the cgroup above, and what it counted at the start.
    above: Option<(PathBuf, u64)>,
    /// What was seen so far: kills, refused forks.
    pub(super) oom_killed: bool,
    pub(super) pids_limited: bool,
}

impl Tally {
    pub(super) fn new(counters: Counters) -> Tally {
        let open = |file: &Option<PathBuf>| {
            // What cannot be opened has been removed already: nothing has run for long enough to be counted.
            file.as_ref().filter(|_| counters.fleeting).and_then(|file| File::open(file).ok())
        };
        let watched = [open(&counters.memory), open(&counters.pids)];
        let above = above(&counters).map(|file| {
            let count = last(&file).map_or(0, |text| count(&text, "oom_kill"));
            (file, count)
        });
        let mut tally = Tally { counters, watched, above, oom_killed: false, pids_limited: false };
        tally.look_again();
        tally
    }

    /// The files to wait for.
    pub(super) fn wants(&self) -> [Option<(BorrowedFd<'_>, Polled)>; 2] {
        self.watched.each_ref().map(|file| file.as_ref().map(|file| (file.as_fd(), Polled::PRIORITY)))
    }

    /// Reads the files that are watched. One that cannot be read any more has been removed, and would be ready for ever.
    pub(super) fn look_again(&mut self) {
        let read = self.watched.each_mut().map(|slot| {
            let mut text = String::new();
            let file = slot.as_mut()?;
            match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
                Ok(_) => Some(text),
                Err(_) => {
                    *slot = None;
                    None
                }
            }
        });
        self.note(read);
    }

    /// Reads the files a last time: the sandbox has ended, and by SIGKILL if it was `killed`.
    pub(super) fn finish(&mut self, killed: bool) {
        if self.counters.fleeting {
            self.look_again();
            self.oom_killed |= killed && self.counted_above();
            return;
        }
        self.note([self.counters.memory.as_deref(), self.counters.pids.as_deref()].map(|file| file.and_then(last)));
    }

    /// Where systemd was faster, the cgroup above still tells: it counts the kills of all that are below it. That one is
    /// somebody else's can only be taken for ours when both end at the same time, and ours was killed for another reason.
    fn counted_above(&self) -> bool {
        let lost = self.counters.memory.is_some() && self.watched[0].is_none();
        let Some((file, before)) = self.above.as_ref().filter(|_| lost) else { return false };
        last(file).is_some_and(|text| count(&text, "oom_kill") > *before)
    }

    fn note(&mut self, [memory, pids]: [Option<String>; 2]) {
        self.oom_killed |= memory.is_some_and(|text| count(&text, "oom_kill") > 0);
        self.pids_limited |= pids.is_some_and(|text| count(&text, "max") > 0);
    }
}

/// The file of the cgroup above that counts the same, where somebody else removes ours.
fn above(counters: &Counters) -> Option<PathBuf> {
    let file = counters.memory.as_ref().filter(|_| counters.fleeting)?;
    Some(file.parent()?.with_file_name(file.file_name()?))
}

/// What is in a file of a cgroup of our own.
fn last(file: &Path) -> Option<String> {
    match cgroup::read(file) {
        Ok(text) => Some(text),
        // pids.events is newer than the limit (Linux 4.8), and memory.oom_control counts since 4.13.
        Err(e) if e.kind() == Kind::NotFound => None,
        Err(e) => {
            log::warn!("{e}");
            None
        }
    }
}

/// The count in the line `NAME N` of memory.events and pids.events (v2), memory.oom_control and pids.events (v1).
fn count(text: &str, name: &str) -> u64 {
    let mut counts = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    counts.next().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_their_names() {
        let events = "low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\noom_group_kill 3\n";
        assert_eq!((count(events, "oom_kill"), count(events, "max")), (0, 7));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!((count("max 0\n", "max"), count("", "max")), (0, 0));
    }
}
