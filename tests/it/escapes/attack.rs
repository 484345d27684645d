//! What the attacks stand on: an image of busybox and the attack programs, and two names that are exchanged without a
//! pause.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use crate::support::command::{Done, finish};
use crate::support::store::Store;
use crate::support::{busybox, disk, sh};

/// So many times at the least two names are exchanged while tupper works on them.
pub const EXCHANGES: u64 = 10_000;

/// The attack program of this name, to be run on the host.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let out = BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/escapes/programs");
        sh(folder.join("build").to_str().expect("a plain path"), &[]);
        folder.join("out")
    });
    out.join(name)
}

/// Runs an attack program, or another, on the host.
pub fn on_the_host(name: &str, args: &[&str]) -> Done {
    let mut command = match name.starts_with('/') {
        true => Command::new(name),
        false => Command::new(program(name)),
    };
    command.args(args);
    finish(command)
}

/// A root filesystem on the host: busybox, and the programs in /attack.
pub fn root() -> TempDir {
    let dir = disk::scratch();
    let (top, tarball) = (text(dir.path()), busybox());
    sh("tar", &["-xf", text(&tarball), "-C", top]);
    let programs = program("");
    sh("cp", &["-r", text(&programs), dir.path().join("attack").to_str().expect("a plain path")]);
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    dir
}

/// A store with the image `attack`.
pub struct Target {
    store: Store,
}

impl Target {
    pub fn new() -> Target {
        Target::with(|_| ())
    }

    /// With no other test running beside it that has a store.
    pub fn alone() -> Target {
        let target = Target { store: Store::alone() };
        target.import("attack", |_| ());
        target
    }

    /// The image is changed before it is imported.
    pub fn with(prepare: impl FnOnce(&Path)) -> Target {
        let target = Target { store: Store::empty() };
        target.import("attack", prepare);
        target
    }

    /// Imports another image.
    pub fn import(&self, name: &str, prepare: impl FnOnce(&Path)) {
        let root = root();
        prepare(root.path());
        self.store.ok_with(&format!("image import --name {name}"), &[text(root.path())]);
    }

    /// `run --rm FLAGS attack sh -c SCRIPT`.
    pub fn sh(&self, flags: &str, script: &str) -> Done {
        self.store.run_with(&format!("run --rm {flags} attack sh -c"), &[script])
    }

    /// Makes a container that runs the script, and returns its id and where its root lies.
    pub fn create(&self, flags: &str, script: &str) -> (String, PathBuf) {
        let id = self.store.ok_with(&format!("create {flags} attack sh -c"), &[script]);
        let root = self.store.json(&format!("inspect {id}"))[0]["Rootfs"].as_str().map(PathBuf::from);
        (id, root.expect("where its root is"))
    }
}

impl Deref for Target {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// Two names, exchanged by a thread of their own until this is dropped.
pub struct Exchange {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    /// Both must exist.
    pub fn between(one: impl Into<PathBuf>, other: impl Into<PathBuf>) -> Exchange {
        let (one, other) = (one.into(), other.into());
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE)
                    .unwrap_or_else(|e| panic!("exchange {} and {}: {e}", one.display(), other.display()));
                counted.fetch_add(1, Ordering::Relaxed);
                // The others get something of a machine with few processors, at a different point each time.
                std::thread::yield_now();
            }
        });
        Exchange { stop, count, thread: Some(thread) }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Repeats `attempt` for at least `least` times and [`EXCHANGES`] exchanges.
    pub fn during(self, least: u32, mut attempt: impl FnMut()) {
        let mut attempts = 0;
        while attempts < least || self.count() < EXCHANGES {
            attempt();
            attempts += 1;
            let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(!ended, "the exchanging ended after {} times", self.count());
        }
    }

    /// Repeats `attempt` until it says that the exchange came in between, which it must at some time.
    pub fn until(self, mut attempt: impl FnMut() -> bool) {
        let mut attempts = 0u64;
        while !attempt() {
            attempts += 1;
            assert!(attempts < 50_000_000, "{} exchanges, and never in between", self.count());
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = joined
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
