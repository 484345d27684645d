//! A process in namespaces and cgroups of its own, with a given root.
//!
//! Two halves: [`plan`] turns a [`Spec`] and the [`Facts`] into a list of [`Step`]s, a value without a system call in
//! it; [`start`] runs the list from top to bottom, one arm a step. A step can say what it does in words and as a shell
//! command, and a failed one names itself in the error.
//!
//! The list has two parts: the host's steps, which end with clone3, and the child's, which end with exec. What the child
//! needs of the host is handed to it as detached mounts, so that it looks nothing up on the host but its own cgroups;
//! what it does in the root is resolved below the root's descriptor, before pivot_root.
//!
//! It must not know where a root comes from: a [`Rootfs`](crate::rootfs::Rootfs) is a descriptor.
//!
//! A sandbox ends with its supervisor, even one that was killed (PR_SET_PDEATHSIG); a command that is PID 1 itself
//! (no `init`) and root could clear that for itself, as it could with any supervisor that is its parent.

mod apparmor;
mod bus;
mod cgroups;
mod controllers;
mod devices;
mod enter;
mod exec;
mod facts;
mod freezer;
mod init;
mod limits;
mod outlet;
mod plan;
mod relay;
mod report;
mod rlimit;
mod scope;
pub(crate) mod seccomp;
mod security;
mod shell;
mod signals;
mod spec;
mod start;
mod step;
mod supervise;
mod tally;
mod terminal;
mod update;
mod user;
mod users;

pub use cgroups::{cgroup_names, cgroups, clear_cgroups};
pub use devices::{DeviceRule, device_rules, restrict_devices};
pub(crate) use enter::candidates;
pub use exec::{Inside, plan_exec};
pub use facts::{Device, Disk, Facts, Hierarchy, Masked, hierarchies, owner};
pub use freezer::{Freezers, freeze, thaw};
pub use limits::{DeviceRate, HugePages, Limits, Rate};
pub(crate) use outlet::Outlet;
pub use plan::{Plan, is_place_for_volume, plan};
pub use rlimit::ResourceLimit;
pub use scope::{Property, Scope, Value};
pub use seccomp::{ArchMap, Argument, Document, Filter, Instruction, Matches, NamedRule, Seccomp};
pub use security::Security;
pub use shell::Shell;
pub(crate) use shell::quote;
pub(crate) use signals::BlockedSignals;
pub use signals::Signal;
pub use spec::{CgroupManager, DeviceRequest, HealthCheck, LogDriver, Restart, Spec, Tmpfs, Volume};
pub use start::{Running, Streams, enter, start};
pub use step::{Attributes, CapabilitySet, Side, Step};
pub use supervise::{Exit, Status};
pub(crate) use supervise::{PATIENCE, Supervised};
pub(crate) use terminal::RawTerminal;
pub use update::update;
pub use user::User;
pub use users::{IdMap, Maps, RANGE, Users, has_host_root, maps_of};
