//! flock(2): locks on open directories, and who holds the one that is waited for.
//!
//! A lock belongs to the open file, so it ends when the last copy of the descriptor is closed: it dies with its holder.
//! Whoever has waited for [`PATIENCE`] says on whom.

use std::convert::Infallible;
use std::fmt::{Display, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use nix::errno::Errno;

use super::{failed, fs, signal};
use crate::error::{Error, Kind, Result};

/// How long a wait is nobody's business.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much of a holder's command line is shown, in characters.
const COMMAND_LENGTH: usize = 60;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// By one.
    Exclusive,
    /// Together with others who want it shared.
    Shared,
}

/// Waits for the lock of the open file behind `fd`. `what` says to a person who waits whose it is.
///
/// A signal that [asks to stop](signal::noted_termination) ends the wait with an error.
pub(crate) fn lock<D: Display>(fd: BorrowedFd<'_>, how: Lock, what: impl FnOnce() -> D) -> Result<()> {
    let operation = match how {
        Lock::Exclusive => libc::LOCK_EX,
        Lock::Shared => libc::LOCK_SH,
    };
    match flock(fd, operation | libc::LOCK_NB) {
        Ok(()) => return Ok(()),
        Err(Errno::EWOULDBLOCK) => {}
        Err(e) => return Err(failed(format_args!("lock {}", fs::name_of(fd)), e)),
    }
    let what = what().to_string();
    std::thread::scope(|scope| {
        let (locked, waiting) = mpsc::channel();
        // Without the thread, for want of memory say, the wait is only silent.
        let _ = std::thread::Builder::new().name("lock-wait".into()).spawn_scoped(scope, || report(waiting, fd, &what));
        let result = wait(fd, operation).map_err(|e| match (e, signal::noted_termination()) {
            (Errno::EINTR, Some(signal)) => {
                Error::new(Kind::Io, format!("wait for the lock of {what}: interrupted by signal {signal}"))
            }
            _ => failed(format_args!("lock {}", fs::name_of(fd)), e),
        });
        drop(locked);
        result
    })
}

/// Waits until nobody has the lock of the open file behind `fd`, however long that is: nobody is told.
pub(crate) fn await_free(fd: BorrowedFd<'_>) -> Result<()> {
    wait(fd, libc::LOCK_EX)
        .and_then(|()| flock(fd, libc::LOCK_UN))
        .map_err(|e| failed(format_args!("wait for the lock of {}", fs::name_of(fd)), e))
}

/// Gives the lock of the open file behind `fd` back.
pub(crate) fn unlock(fd: BorrowedFd<'_>) -> Result<()> {
    flock(fd, libc::LOCK_UN).map_err(|e| failed(format_args!("unlock {}", fs::name_of(fd)), e))
}

/// Takes the lock of the open file behind `fd` for itself; [`Kind::InUse`], at once, when somebody has it.
pub(crate) fn try_lock(fd: BorrowedFd<'_>) -> Result<()> {
    flock(fd, libc::LOCK_EX | libc::LOCK_NB).map_err(|e| failed(format_args!("lock {}", fs::name_of(fd)), e))
}

/// Whether nobody has the lock of the open file behind `fd` for itself. Asking takes it shared for a moment.
pub(crate) fn is_free(fd: BorrowedFd<'_>) -> Result<bool> {
    match flock(fd, libc::LOCK_SH | libc::LOCK_NB) {
        Err(Errno::EWOULDBLOCK) => Ok(false),
        asked => asked
            .and_then(|()| flock(fd, libc::LOCK_UN))
            .map(|()| true)
            .map_err(|e| failed(format_args!("lock {}", fs::name_of(fd)), e)),
    }
}

/// [`flock`], again after a signal that does not ask to stop. It blocks: whoever only asked now and then would lose the
/// lock to those who block.
fn wait(fd: BorrowedFd<'_>, operation: libc::c_int) -> Result<(), Errno> {
    loop {
        match flock(fd, operation) {
            Err(Errno::EINTR) if signal::noted_termination().is_none() => continue,
            other => return other,
        }
    }
}

fn flock(fd: BorrowedFd<'_>, operation: libc::c_int) -> Result<(), Errno> {
    #[expect(unsafe_code, reason = "nix's Flock wants to own the descriptor; ours is used for openat, too")]
    // SAFETY: flock takes a descriptor, which the borrow keeps open, and an integer.
    let result = unsafe { libc::flock(fd.as_raw_fd(), operation) };
    Errno::result(result).map(drop)
}

/// Says who holds the lock if it is still waited for after [`PATIENCE`]. The other end of `waiting` goes when it is not.
fn report(waiting: mpsc::Receiver<Infallible>, fd: BorrowedFd<'_>, what: &str) {
    if waiting.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let holders = holders(fd);
    if waiting.try_recv() == Err(TryRecvError::Disconnected) {
        return; // let go of while we looked
    }
    log::info!("waiting for the lock of {what}: held by {}", describe_all(&holders));
}

/// Processes as a person knows them.
pub(crate) fn describe_all(processes: &[i32]) -> String {
    match processes {
        // Neither proc_locks(5) nor /proc shows one of another pid namespace.
        [] => "a process that cannot be seen from here".to_string(),
        [one] => describe(*one),
        [first, second] => format!("{} and {}", describe(*first), describe(*second)),
        [first, others @ ..] => format!("{} and {} others", describe(*first), others.len()),
    }
}

/// The processes that hold the lock of the open file behind `fd`, as far as they can be seen.
fn holders(fd: BorrowedFd<'_>) -> Vec<i32> {
    let Ok(file) = fs::metadata(fd) else { return Vec::new() };
    let file = (file.st_dev, file.st_ino);
    let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut found: Vec<i32> = takers(&table, file.1).into_iter().filter(|pid| holds(*pid, file)).collect();
    if found.is_empty() {
        // Who took it has ended and left a copy of the descriptor to another.
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        found = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        found.retain(|pid| holds(*pid, file));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// From /proc/locks: who took a flock on a file of this inode number. The device there is that of the filesystem,
/// which a btrfs subvolume does not share (its stat(2) has one of its own), so the number is all there is to go by.
fn takers(table: &str, inode: u64) -> Vec<i32> {
    table.lines().filter_map(|line| taker(line, inode)).collect()
}

/// proc_locks(5): `1: FLOCK  ADVISORY  WRITE 4711 00:1f:256 0 EOF`; `1: -> FLOCK …` is one who waits for that.
fn taker(line: &str, inode: u64) -> Option<i32> {
    let mut fields = line.split_whitespace().skip(1);
    let (kind, _advisory, _access) = (fields.next()?, fields.next()?, fields.next()?);
    let pid = fields.next()?.parse().ok()?;
    let found = fields.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
    (kind == "FLOCK" && found == inode).then_some(pid)
}

/// Whether the process has that very file open with a flock on it: proc_pid_fdinfo(5) shows the locks of each
/// descriptor in the format of /proc/locks.
fn holds(pid: i32, (device, inode): (u64, u64)) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = std::fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
    descriptors.map(|entry| entry.file_name()).any(|number| {
        let info = std::fs::read_to_string(process.join("fdinfo").join(&number)).unwrap_or_default();
        let locked = info.lines().filter_map(|line| line.strip_prefix("lock:")).any(|l| taker(l, inode).is_some());
        // Only of such a file: a stat(2) of any descriptor could block, on a network filesystem for one.
        locked
            && std::fs::metadata(process.join("fd").join(&number)).is_ok_and(|m| (m.dev(), m.ino()) == (device, inode))
    })
}

/// A process as a person knows it: `tupper image import x.tar (pid 4711)`.
fn describe(pid: i32) -> String {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let command = std::fs::read(process.join("cmdline")).ok().map(|bytes| command_line(&bytes));
    let command = command.filter(|text| !text.is_empty());
    // Of a process that cleared its arguments, and of one that has ended meanwhile.
    let name = || std::fs::read(process.join("comm")).map(|bytes| command_line(bytes.trim_ascii_end()));
    match command.map_or_else(name, Ok) {
        Ok(command) => format!("{command} (pid {pid})"),
        Err(_) => format!("pid {pid}"),
    }
}

/// The bytes of /proc/PID/cmdline on one line: the program without its directories, then its arguments, cut short.
fn command_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut arguments = text.split('\0').filter(|argument| !argument.is_empty());
    let Some(program) = arguments.next() else { return String::new() };
    let mut line = Path::new(program).file_name().map_or(program.into(), |name| name.to_string_lossy()).into_owned();
    for argument in arguments {
        let _ = write!(line, " {argument}");
    }
    let mut escaped = String::new();
    for c in line.chars() {
        if c.is_control() { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    match escaped.char_indices().nth(COMMAND_LENGTH) {
        Some(_) => escaped.chars().take(COMMAND_LENGTH - 3).collect::<String>() + "...",
        None => escaped,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_takers_are_those_of_that_inode_who_do_not_wait() {
        let table = "1: POSIX  ADVISORY  WRITE 10 fe:00:256 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 11 00:1f:256 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 12 00:1f:256 0 EOF\n\
                     3: FLOCK  ADVISORY  READ  13 00:1f:256 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 14 00:1f:2560 0 EOF\n\
                     5: OFDLCK ADVISORY  WRITE -1 00:1f:256 0 EOF\n\
                     nonsense\n";
        assert_eq!(takers(table, 256), [11, 13]);
        assert_eq!(takers(table, 1), [0; 0]);
    }

    #[test]
    fn a_command_line_is_short_and_on_one_line() {
        assert_eq!(command_line(b"/usr/bin/tupper\0image\0import\0x.tar\0"), "tupper image import x.tar");
        assert_eq!(command_line(b"tupper\0run\0a\nb\x1b[31m\0"), "tupper run a\\nb\\u{1b}[31m");
        assert_eq!(command_line(b"\xff\0"), "\u{fffd}");
        assert_eq!(command_line(b""), "");
        let long = command_line(format!("x\0{}\0", "\u{e9}".repeat(200)).as_bytes());
        assert_eq!((long.chars().count(), long.ends_with("\u{e9}...")), (COMMAND_LENGTH, true));
    }

    #[test]
    fn a_holder_is_found_among_those_who_have_the_file_open() {
        let (locked, free) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        try_lock(locked.as_fd()).expect("nobody has it");
        let ours = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(holders(locked.as_fd()), [ours]);
        assert_eq!(holders(free.as_fd()), [0; 0], "open, and not locked");
        assert!(describe(ours).ends_with(&format!(" (pid {ours})")), "{}", describe(ours));
    }
}
