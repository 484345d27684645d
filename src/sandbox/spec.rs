//! What a person wants of a sandbox: a document, kept in a container's record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::security::Security;
use super::signals::Signal;
use super::users::Users;
use crate::error::{Error, Kind};
use crate::name::VolumeName;
use crate::network::{Dns, HostEntry, Mode, Port};

/// A process in its own namespaces: what it runs and what it may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// The host name inside, at most 64 bytes (gethostname(2)).
    pub hostname: String,
    /// The command and its arguments; never empty.
    pub args: Vec<String>,
    /// The whole environment, `NAME=value` each; HOME is added when it lacks one.
    pub env: Vec<String>,
    /// The working directory, absolute; made when it is missing.
    pub cwd: PathBuf,
    /// `name|uid[:group|gid]`, looked up in the root's /etc/passwd and /etc/group; root by default.
    pub user: Option<String>,
    /// Give it a terminal of its own.
    pub tty: bool,
    /// Let it read standard input; without this it reads /dev/null.
    pub interactive: bool,
    /// Run it below a PID 1 of ours that forwards signals and reaps.
    pub init: bool,
    /// Let it write nothing to its root.
    pub read_only: bool,
    /// Places of the host that it sees.
    pub volumes: Vec<Volume>,
    /// Empty filesystems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// What it may use up.
    pub limits: Limits,
    /// Who makes its cgroup.
    pub cgroup_manager: CgroupManager,
    /// Which network it has.
    pub network: Mode,
    /// Its ports that are reached at ports of the host.
    pub ports: Vec<Port>,
    /// Who it asks for names.
    pub dns: Dns,
    /// More lines of its /etc/hosts.
    pub hosts: Vec<HostEntry>,
    /// Which users and groups of the host are behind those inside.
    pub users: Users,
    /// What it may do.
    pub security: Security,
    /// Whether it is started again when it has ended.
    pub restart: Restart,
    /// What becomes of its output.
    pub log: LogDriver,
    /// What asks it to end; TERM by default.
    pub stop_signal: Option<Signal>,
    /// The seconds that it then has before it is killed.
    pub stop_timeout: Option<u32>,
    /// The size of its /dev/shm in bytes; 64 MiB by default, and 0 for no limit.
    pub shm_size: Option<u64>,
    /// Devices of the host that it may use.
    pub devices: Vec<DeviceRequest>,
    /// What people note of it.
    pub labels: BTreeMap<String, String>,
    /// What tells whether it is well.
    pub health: Option<HealthCheck>,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec {
            hostname: "localhost".to_string(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: None,
            tty: false,
            interactive: false,
            init: false,
            read_only: false,
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            limits: Limits::default(),
            cgroup_manager: CgroupManager::default(),
            network: Mode::None,
            ports: Vec::new(),
            dns: Dns::default(),
            hosts: Vec::new(),
            users: Users::Auto,
            security: Security::default(),
            restart: Restart::No,
            log: LogDriver::default(),
            stop_signal: None,
            stop_timeout: None,
            shm_size: None,
            devices: Vec::new(),
            labels: BTreeMap::new(),
            health: None,
        }
    }
}

/// A place of the host mounted into the sandbox, and what is mounted below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// A directory or file of the host, absolute.
    pub source: PathBuf,
    /// Where it shows inside, absolute; made when it is missing.
    pub destination: PathBuf,
    /// Nothing is written through it, nor through what is mounted below it.
    #[serde(default)]
    pub read_only: bool,
    /// Whose a file is inside is what the disk says of it; otherwise it is the host's user, who may not be mapped. Without
    /// a user namespace there is no difference.
    #[serde(default = "yes")]
    pub mapped: bool,
    /// The name of the volume, where the source is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeName>,
    /// It is a volume that nobody named.
    #[serde(default)]
    pub anonymous: bool,
    /// A volume that nobody has had yet is filled with what the root has at the destination.
    #[serde(default = "yes")]
    pub copies: bool,
}

impl Volume {
    /// A place of the host at a place inside.
    pub fn new(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Volume {
        Volume {
            source: source.into(),
            destination: destination.into(),
            read_only: false,
            mapped: true,
            name: None,
            anonymous: false,
            copies: true,
        }
    }
}

fn yes() -> bool {
    true
}

/// A device of the host's, or a directory of them, for the sandbox: podman-run(1), `--device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRequest {
    /// Where it is on the host, links followed.
    pub source: PathBuf,
    /// Where it shows inside, below /dev.
    pub destination: PathBuf,
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// Nodes of it can be made.
    pub make: bool,
}

/// A command that tells by its exit status whether the sandbox is well: podman-healthcheck(1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The command and its arguments; never empty.
    pub args: Vec<String>,
    /// From the start, and from the end of one check, to the next.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// So long after the start a failure says nothing, unless the sandbox was well before.
    pub start_period: Duration,
    /// So many failures in a row mean that it is not well.
    pub retries: u32,
    /// It is killed then.
    pub kills: bool,
}

/// A new tmpfs in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// Where it shows inside, absolute; made when it is missing.
    pub destination: PathBuf,
    /// mount(8) options, comma-separated: `size`, `mode`, `nr_inodes`, `uid`, `gid` and the flags `ro rw exec noexec
    /// suid nosuid nodev`; by default `rw,noexec,nosuid,nodev,mode=1777`.
    #[serde(default)]
    pub options: String,
}

/// When a command is started again that has ended: podman-run(1), `--restart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When its status is not 0, so many times in a row; 0 for no end.
    OnFailure(u32),
    /// Until somebody stops it.
    Always,
    /// The same, but where a host starts its containers again it leaves one alone that somebody had stopped.
    UnlessStopped,
}

/// What becomes of the output of a command that is not in the foreground: podman-run(1), `--log-driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// It is kept in a file of the container's, as podman's driver of that name does.
    K8sFile {
        /// The bytes after which a new file begins; the one before is kept.
        max_size: u64,
    },
    /// Nobody keeps it.
    None,
}

impl LogDriver {
    /// Twice as much may be kept, with the file before.
    pub const MAX_SIZE: u64 = 16 << 20;

    /// The bytes after which a new file begins, if anything is kept.
    pub fn limit(self) -> Option<u64> {
        match self {
            LogDriver::K8sFile { max_size } => Some(max_size),
            LogDriver::None => None,
        }
    }
}

impl Default for LogDriver {
    fn default() -> LogDriver {
        LogDriver::K8sFile { max_size: LogDriver::MAX_SIZE }
    }
}

/// Who makes the sandbox's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupManager {
    /// tupper, below a cgroup of its own.
    #[default]
    Cgroupfs,
    /// systemd, as a scope in machine.slice.
    Systemd,
}

/// The error for a spec that makes no sense.
pub(super) fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, message)
}
