//! What the environment says of where configuration and credentials are.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The variables that podman and Docker look at, and the top of the system's files.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Where `etc` and `run` are: `/`.
    pub root: PathBuf,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub config: Option<PathBuf>,
    /// `$DOCKER_CONFIG`: a directory.
    pub docker_config: Option<PathBuf>,
    /// `$REGISTRY_AUTH_FILE`.
    pub auth_file: Option<PathBuf>,
    /// `$CONTAINERS_REGISTRIES_CONF`.
    pub registries_conf: Option<PathBuf>,
    /// The user.
    pub uid: u32,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Surroundings {
        let path = |name: &str| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        Surroundings {
            root: PathBuf::from("/"),
            home: path("HOME"),
            runtime: path("XDG_RUNTIME_DIR"),
            config: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            auth_file: path("REGISTRY_AUTH_FILE"),
            registries_conf: path("CONTAINERS_REGISTRIES_CONF"),
            // proc_pid(5): it belongs to the effective user. Without proc nothing else here would work.
            uid: std::fs::metadata("/proc/self").map_or(0, |found| found.uid()),
        }
    }

    /// No files and no variables.
    pub fn none() -> Surroundings {
        Surroundings {
            root: PathBuf::from("/nonexistent"),
            home: None,
            runtime: None,
            config: None,
            docker_config: None,
            auth_file: None,
            registries_conf: None,
            uid: 0,
        }
    }
}
