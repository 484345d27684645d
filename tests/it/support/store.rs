//! A store of a test's own, and the order in which tests may look at what belongs to the host.
//!
//! Cgroups, processes and run state are the host's, so a test that counts them must run alone: it takes the
//! lock that every other store of this test binary holds shared.

use std::fs;
use std::ops::Deref;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tempfile::TempDir;

use super::command::Tupper;
use super::disk::Disk;
use super::traces::Traces;
use super::{busybox, debian, need_root};

static HOST: RwLock<()> = RwLock::new(());

/// The host, shared with other tests or not, for as long as this lives.
pub enum Host {
    Shared(#[expect(dead_code, reason = "held, never read")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held, never read")] RwLockWriteGuard<'static, ()>),
    /// Another store of the same test has it.
    None,
}

impl Host {
    pub fn shared() -> Host {
        need_root();
        Host::Shared(HOST.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn alone() -> Host {
        need_root();
        Host::Alone(HOST.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A store as a subvolume of a btrfs of its own, with the image `busybox` in it. Derefs to its [`Tupper`].
pub struct Store {
    tupper: Tupper,
    // Dropped in this order: the disk goes while the host is still held.
    pub disk: Disk,
    host: Host,
}

impl Store {
    /// A store without images.
    pub fn empty() -> Store {
        Store::on(Host::shared())
    }

    /// A store with `busybox`.
    pub fn new() -> Store {
        let store = Store::empty();
        store.import_busybox();
        store
    }

    /// A store with `busybox`, with no other test running beside it.
    pub fn alone() -> Store {
        let store = Store::on(Host::alone());
        store.import_busybox();
        store
    }

    /// Another store with `busybox`, for a test that has one already.
    pub fn beside(other: &Store) -> Store {
        assert!(matches!(other.host, Host::Alone(_)), "a shared lock that is waited for twice can be a deadlock");
        let disk = Disk::btrfs();
        let store = Store { tupper: Tupper::new(disk.path().join("store")), disk, host: Host::None };
        store.import_busybox();
        store
    }

    fn on(host: Host) -> Store {
        let disk = Disk::btrfs();
        Store { tupper: Tupper::new(disk.path().join("store")), disk, host }
    }

    fn import_busybox(&self) {
        self.ok_with("image import --name busybox", &[busybox().to_str().expect("a plain path")]);
    }

    /// Adds the image `debian`.
    pub fn import_debian(&self) {
        self.ok_with("image import --name debian", &[debian().to_str().expect("a plain path")]);
    }

    /// What is on the host and in the store now; only a store that is [`Store::alone`] may ask.
    pub fn traces(&self) -> Traces {
        assert!(matches!(self.host, Host::Alone(_)), "other tests' containers would be seen too");
        Traces::of(&self.disk.path())
    }
}

impl Deref for Store {
    type Target = Tupper;

    fn deref(&self) -> &Tupper {
        &self.tupper
    }
}

/// The store's tupper without any file of the host's that says something of registries.
pub fn alone(store: &Store) -> (TempDir, Tupper) {
    let home = tempfile::Builder::new().prefix("tupper-home-").tempdir().expect("a scratch directory");
    let conf = home.path().join("registries.conf");
    fs::write(&conf, "").expect("a file");
    let path = |name: &str| home.path().join(name).into_os_string();
    let tupper = Tupper::new(store.root())
        .with_env("HOME", home.path())
        .with_env("XDG_RUNTIME_DIR", path("run"))
        .with_env("XDG_CONFIG_HOME", path("config"))
        .with_env("DOCKER_CONFIG", path("docker"))
        .with_env("REGISTRY_AUTH_FILE", "")
        .with_env("CONTAINERS_REGISTRIES_CONF", conf);
    (home, tupper)
}
