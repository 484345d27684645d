//! The files of a cgroup: cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{failed, fs, process, signal};
use crate::error::{Context, Error, Kind, Result};

/// The largest control file worth reading, in bytes.
const LIMIT: u64 = 1 << 16;

/// One write(2) of a value to a control file: the kernel takes each write as a whole.
pub(crate) fn write(file: &Path, value: &str) -> Result<()> {
    let fail = |e| failed(format_args!("write {value:?} to {}", file.display()), e);
    let fd = nix::fcntl::open(file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
    nix::unistd::write(&fd, value.as_bytes()).map(drop).map_err(fail)
}

/// The value of a control file.
pub(crate) fn read(file: &Path) -> Result<String> {
    let bytes = fs::read_small(fs::CWD, file, LIMIT)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// mkdir(2) of a cgroup and the one above it. One that somebody who was killed left behind, with its limits, makes way;
/// one that processes are in does not ([`Kind::InUse`]).
pub(crate) fn make(directory: &Path) -> Result<()> {
    let made = fs::make_directory(fs::CWD, directory, 0o755);
    match (made, directory.parent()) {
        (Err(e), Some(parent)) if e.kind() == Kind::NotFound => fs::ensure_directory(fs::CWD, parent, 0o755)?,
        (Err(e), _) if e.kind() == Kind::AlreadyExists => remove(directory)?,
        (made, _) => return made,
    }
    fs::make_directory(fs::CWD, directory, 0o755)
}

/// Opens a cgroup for CLONE_INTO_CGROUP.
pub(crate) fn open(directory: &Path) -> Result<OwnedFd> {
    fs::open_directory(fs::CWD, directory)
}

/// Puts this process, which has one thread, into a v1 cgroup.
///
/// A thread that writes 0 to `tasks` moves itself, the one case in which the kernel does not take the lock that stops
/// every fork and exit on the machine and costs an RCU grace period (kernel/cgroup/cgroup.c, cgroup_procs_write_start,
/// since Linux 5.3).
pub(crate) fn attach_self(directory: &Path) -> Result<()> {
    write(&directory.join("tasks"), "0")
}

/// The path of a process's cgroup in the unified hierarchy, as this process's cgroup namespace shows it: cgroups(7).
pub(crate) fn unified_path_of(pid: i32) -> Result<String> {
    let text = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_string())
}

/// Gives a v1 cpuset, made if it is missing, the processors and memory of the one above it, where it has none.
pub(crate) fn inherit_cpuset(directory: &Path) -> Result<()> {
    ensure(directory)?;
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (ours, above) = (directory.join(name), directory.with_file_name(name));
        if read(&ours)?.trim().is_empty() {
            write(&ours, read(&above)?.trim())?;
        }
    }
    Ok(())
}

/// Whether the processes of a cgroup are frozen: cgroup.freeze of v2, freezer.state of v1; `None` where it has neither.
pub(crate) fn is_frozen(directory: &Path) -> Result<Option<bool>> {
    let read_if_any = |name| match read(&directory.join(name)) {
        Err(e) if is_gone(&e) => Ok(None),
        text => text.map(Some),
    };
    if let Some(text) = read_if_any("cgroup.freeze")? {
        return Ok(Some(text.trim() == "1"));
    }
    Ok(read_if_any("freezer.state")?.map(|text| text.trim() != "THAWED"))
}

/// Freezes a v2 cgroup and waits until all of it is: cgroup-v2.rst, `cgroup.freeze`.
pub(crate) fn freeze_unified(directory: &Path) -> Result<()> {
    write(&directory.join("cgroup.freeze"), "1")?;
    wait_for(directory, "cgroup.events", |text| text.lines().any(|line| line == "frozen 1"))
}

/// Freezes a v1 cgroup of the freezer and waits until all of it is: cgroup-v1/freezer-subsystem.rst.
pub(crate) fn freeze_legacy(directory: &Path) -> Result<()> {
    write(&directory.join("freezer.state"), "FROZEN")?;
    wait_for(directory, "freezer.state", |text| text.trim() == "FROZEN")
}

/// Lets a frozen cgroup go on, whichever of the two it is; one that is gone, or cannot freeze, is no error.
pub(crate) fn thaw(directory: &Path) -> Result<()> {
    for (name, value) in [("cgroup.freeze", "0"), ("freezer.state", "THAWED")] {
        match write(&directory.join(name), value) {
            Err(e) if is_gone(&e) => {}
            other => return other,
        }
    }
    Ok(())
}

/// The cgroup, or the file in it, is not there: a file that was open when its cgroup was removed says ENODEV (kernfs).
fn is_gone(e: &Error) -> bool {
    e.kind() == Kind::NotFound || e.errno() == Some(Errno::ENODEV as i32)
}

/// Ten seconds at most: a process that waits for a dead network filesystem freezes when that comes back. A signal that
/// [asks to stop](signal::noted_termination) ends the wait.
fn wait_for(directory: &Path, name: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
    for _ in 0..10_000 {
        if holds(&read(&directory.join(name))?) {
            return Ok(());
        }
        if signal::noted_termination().is_some() {
            return Err(failed(format_args!("freeze {}", directory.display()), Errno::EINTR));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(failed(format_args!("freeze {}", directory.display()), Errno::ETIMEDOUT))
}

/// Moves a process into a cgroup; one that has ended is no error.
pub(crate) fn attach(directory: &Path, pid: i32) -> Result<()> {
    match write(&directory.join("cgroup.procs"), &pid.to_string()) {
        Err(e) if e.errno() == Some(Errno::ESRCH as i32) => Ok(()),
        other => other,
    }
}

/// rmdir(2) of a cgroup; one that is not there is no error.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    match nix::unistd::unlinkat(fs::CWD.as_fd(), directory, nix::unistd::UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(failed(format_args!("remove {}", directory.display()), e)),
    }
}

/// mkdir(2) of a cgroup that may be there already.
pub(crate) fn ensure(directory: &Path) -> Result<()> {
    fs::ensure_directory(fs::CWD, directory, 0o755).context(|| "make a cgroup")
}

/// [`remove`], again for a moment while it is busy: a process leaves its cgroup a little after it was reaped, and what was
/// in it may have made others below it.
pub(crate) fn remove_patiently(directory: &Path) -> Result<()> {
    for _ in 0..50 {
        match remove(directory) {
            Err(e) if e.kind() == Kind::InUse => {
                children(directory)?.iter().try_for_each(|name| clear(&directory.join(name)))?;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            other => return other,
        }
    }
    remove(directory)
}

/// The cgroups directly below this one.
pub(crate) fn children(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in fs::list(fs::CWD, directory)? {
        if let Some(name) = name.to_str()
            && fs::metadata_at(fs::CWD, directory.join(name)).is_ok_and(|found| super::node::is_directory(&found))
        {
            found.push(name.to_string());
        }
    }
    Ok(found)
}

/// Waits until somebody else has removed an empty cgroup, for five seconds; whoever has not by then will not.
pub(crate) fn await_removal(directory: &Path) -> Result<()> {
    for _ in 0..2500 {
        if !fs::exists_at(fs::CWD, directory)? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    remove_patiently(directory)
}

/// Kills every process in a cgroup and in those below it, and removes them. One that is not there is no error.
pub(crate) fn clear(directory: &Path) -> Result<()> {
    kill(directory)?;
    remove_patiently(directory)
}

/// Kills every process in a cgroup and in those below it, which it removes. One that is not there is no error.
pub(crate) fn kill(directory: &Path) -> Result<()> {
    let below = match children(directory) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        below => below?,
    };
    below.iter().try_for_each(|name| clear(&directory.join(name)))?;
    // A process may fork while the others are killed; none can once all are.
    for _ in 0..100 {
        let members = members(directory)?;
        if members.is_empty() {
            break;
        }
        for pid in members {
            let Some(process) = process::open(pid)? else { continue };
            // The number is held now; it is ours if it still is in there.
            if self::members(directory)?.contains(&pid) {
                signal::send(process.as_fd(), signal::SIGKILL)?;
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Ok(())
}

/// The processes in a cgroup: cgroup.procs, without those of another pid namespace, which it shows as 0.
pub(crate) fn members(directory: &Path) -> Result<Vec<i32>> {
    let text = match read(&directory.join("cgroup.procs")) {
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        text => text?,
    };
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}
