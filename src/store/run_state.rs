//! What runs now, in /run/tupper: for listings only. That a container is in use is the lock on its directory.
//!
//! A file says which process is a container's; it is true as long as that very process lives: same boot, same pid,
//! same start time (proc_pid_stat(5), field 22). So it needs no clean-up to be right, and a pid that was reused is
//! not mistaken for it.

use std::fs;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::{Context, Error, Result};
use crate::kernel::flock::{self, Lock};
use crate::name::Id;

/// What belongs to the host and ends with its boot.
pub(super) const RUN: &str = "/run/tupper";

/// The extension of a file that is being written.
const DRAFT: &str = "new";

/// The extension of the file that says how well a container is.
const HEALTH: &str = "health";

/// The extension of the file whose lock allows to freeze a container or to let it go on, and which is not empty while that
/// is for a moment only.
const FREEZING: &str = "freezing";

/// What a file of that kind holds while its container is frozen for a moment.
const FOR_A_MOMENT: &[u8] = b"1";

/// A running container's first process.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Running {
    /// Its pid on the host.
    pub pid: i32,
    /// When it was started.
    pub started: Timestamp,
    start_ticks: u64,
    boot: String,
}

impl Store {
    /// Notes that `pid` is the container's first process.
    pub(crate) fn note_running(&self, id: &Id, pid: i32) -> Result<()> {
        let (Some(start_ticks), Some(boot)) = (start_ticks(pid), boot_id()) else {
            return Ok(()); // it has ended already
        };
        let running = Running { pid, started: Timestamp::now(), start_ticks, boot };
        let path = self.run_path(id);
        let draft = path.with_extension(DRAFT);
        let json = serde_json::to_vec(&running).map_err(std::io::Error::other)?;
        let write = || fs::write(&draft, &json).and_then(|()| fs::rename(&draft, &path));
        let mut written = write();
        // The directory goes with the last container's file, perhaps a moment after we have made it.
        for _ in 0..10 {
            match (&written, path.parent()) {
                (Err(e), Some(parent)) if e.kind() == std::io::ErrorKind::NotFound => {
                    written = fs::create_dir_all(parent).and_then(|()| write());
                }
                _ => break,
            }
        }
        written.map_err(Error::from).context(|| format!("note the running container in {}", path.display()))
    }

    /// The container's first process, if it is alive.
    pub fn running(&self, id: &Id) -> Option<Running> {
        running(&self.run_path(id))
    }

    /// What was noted last of how well the running container is.
    pub(crate) fn health<T: DeserializeOwned>(&self, id: &Id) -> Option<T> {
        let file = fs::File::open(self.run_path(id).with_extension(HEALTH)).ok()?;
        file.lock_shared().ok()?;
        serde_json::from_reader(file).ok()
    }

    /// Notes how well the running container is, after what was noted last.
    pub(crate) fn note_health<T>(&self, id: &Id, after: impl FnOnce(Option<T>) -> T) -> Result<T>
    where
        T: DeserializeOwned + Serialize,
    {
        let path = self.run_path(id).with_extension(HEALTH);
        let note = || -> std::io::Result<T> {
            let mut file = fs::File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            file.lock()?;
            // One that was being written when its writer was killed says nothing.
            let now = after(serde_json::from_reader(&file).ok());
            let json = serde_json::to_vec(&now).map_err(std::io::Error::other)?;
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&json)?;
            Ok(now)
        };
        let noted = note().map_err(Error::from).context(|| format!("note the health in {}", path.display()));
        // It may have ended meanwhile, and been forgotten.
        if self.running(id).is_none() {
            let _ = fs::remove_file(&path);
        }
        noted
    }

    /// Forgets what was noted of a container that has ended.
    pub(crate) fn forget_running(&self, id: &Id) {
        self.forget_run_files(id);
        self.tidy_run();
    }

    /// The same, but for [`tidy_run`](Store::tidy_run).
    pub(crate) fn forget_run_files(&self, id: &Id) {
        // The file says nothing once its process is gone; one that stays is only untidy.
        let path = self.run_path(id);
        let _ = fs::remove_file(path.with_extension(DRAFT));
        let _ = fs::remove_file(path.with_extension(HEALTH));
        let _ = fs::remove_file(path.with_extension(FREEZING));
        let _ = fs::remove_file(&path);
    }

    /// Removes the directory for what runs of this store, if nothing does.
    pub(crate) fn tidy_run(&self) {
        let _ = fs::remove_dir(Path::new(RUN).join(self.uuid()));
    }

    /// The file that notes the container as running, if there is one, true or not.
    pub(crate) fn run_state(&self, id: &Id) -> Option<PathBuf> {
        let path = self.run_path(id);
        let noted = path.exists() || [DRAFT, HEALTH, FREEZING].iter().any(|kind| path.with_extension(kind).exists());
        noted.then_some(path)
    }

    /// The containers that are noted as running, truly or not.
    pub(crate) fn run_states(&self) -> Vec<Id> {
        let files = fs::read_dir(PathBuf::from(RUN).join(self.uuid())).into_iter().flatten().flatten();
        files.filter_map(|file| Path::new(&file.file_name()).file_stem()?.to_str()?.parse().ok()).collect()
    }

    /// The right to freeze a running container and to let it go on, as soon as nobody else has it.
    pub(crate) fn lock_freezing(&self, id: &Id) -> Result<Freezing> {
        let path = self.run_path(id).with_extension(FREEZING);
        let doing = || format!("open {}", path.display());
        loop {
            let opened = fs::File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(Error::from).context(doing)?;
            flock::lock(file.as_fd(), Lock::Exclusive, || format!("container {}", id.short()))?;
            // Otherwise whoever had it has taken it away.
            if is_at(&file, &path) {
                let for_a_moment = file.metadata().map_err(Error::from).context(doing)?.len() > 0;
                return Ok(Freezing { file, path, for_a_moment });
            }
        }
    }

    /// The containers whose [`lock_freezing`](Store::lock_freezing) somebody left who was killed, and whether they are frozen,
    /// or were about to be. Of one that is not, that may be about to be locked.
    pub(crate) fn left_freezing(&self) -> Result<Vec<(Id, bool)>> {
        let mut left = Vec::new();
        for id in self.run_states() {
            let Ok(file) = fs::File::open(self.run_path(&id).with_extension(FREEZING)) else { continue };
            // Under the lock nobody changes it: what it says before and after is so in between.
            let for_a_moment = || file.metadata().is_ok_and(|found| found.len() > 0);
            let before = for_a_moment();
            if flock::is_free(file.as_fd())? && for_a_moment() == before {
                left.push((id, before));
            }
        }
        left.sort_unstable();
        left.dedup();
        Ok(left)
    }

    fn run_path(&self, id: &Id) -> PathBuf {
        PathBuf::from(RUN).join(self.uuid()).join(format!("{id}.json"))
    }
}

/// The right to freeze a container and to let it go on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Freezing {
    file: fs::File,
    path: PathBuf,
    for_a_moment: bool,
}

impl Freezing {
    /// It is frozen, or about to be, by somebody who is to let it go on; if that is not who asks, by one who was killed.
    pub(crate) fn is_for_a_moment(&self) -> bool {
        self.for_a_moment
    }

    /// Says that it is, so that somebody else lets it go on if this process cannot; or that it is not.
    pub(crate) fn set_for_a_moment(&mut self, now: bool) -> Result<()> {
        if now == self.for_a_moment {
            return Ok(());
        }
        let written = match now {
            true => self.file.write_all(FOR_A_MOMENT),
            false => self.file.set_len(0).and_then(|()| self.file.rewind()),
        };
        written.map_err(Error::from).context(|| format!("write {}", self.path.display()))?;
        self.for_a_moment = now;
        Ok(())
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        if self.for_a_moment || !is_at(&self.file, &self.path) {
            return;
        }
        // Who waits for its lock makes another.
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => log::warn!("remove {}: {e}", self.path.display()),
            _ => {}
        }
    }
}

/// Whether the open file is the one at this path.
fn is_at(file: &fs::File, path: &Path) -> bool {
    let number = |found: &fs::Metadata| (found.dev(), found.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(ours), Ok(there)) if number(&ours) == number(&there))
}

/// The process that a run state's file notes, if it is alive.
pub(super) fn running(path: &Path) -> Option<Running> {
    let running: Running = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let alive = boot_id()? == running.boot && start_ticks(running.pid)? == running.start_ticks;
    alive.then_some(running)
}

/// The number of this boot: random(4), "/proc interfaces".
///
/// It is what it was as long as this process lives.
pub(crate) fn boot_id() -> Option<String> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_string());
    BOOT.get_or_init(read).clone()
}

fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses and may hold anything, parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" | "x" => None, // dead, and only not reaped yet
        _ => fields.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let ours = i32::try_from(std::process::id()).expect("a pid");
        assert!(start_ticks(ours).expect("we live") > 0);
        assert_eq!(start_ticks(ours), start_ticks(ours));
        assert_eq!(start_ticks(i32::MAX), None);
    }
}
