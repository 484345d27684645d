//! The files of a cgroup: cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{failed, fs, process, signal};
use crate::error::{Context, Kind, Result};

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

/// [`remove`], again for a moment while it is busy: a process leaves its cgroup a little after it was reaped.
pub(crate) fn remove_patiently(directory: &Path) -> Result<()> {
    for _ in 0..50 {
        match remove(directory) {
            Err(e) if e.kind() == Kind::InUse => std::thread::sleep(std::time::Duration::from_millis(2)),
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
fn members(directory: &Path) -> Result<Vec<i32>> {
    let text = match read(&directory.join("cgroup.procs")) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}
