//! `exec`: another command in a container that runs (podman-exec(1)).

use std::path::PathBuf;

use super::compose::Environment;
use super::life::{Narrate, open_process, step_narrate};
use super::{State, leftover};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::process;
use crate::name::Id;
use crate::sandbox::{self, Exit, Inside, Spec, Streams};
use crate::store::{Running, Store};

/// What is to run, and how.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// Variables over those of the container, `K=V` each.
    pub env: Vec<String>,
    /// The working directory; by default the container's.
    pub workdir: Option<String>,
    /// `name|uid[:group|gid]`; by default who the container's command runs as.
    pub user: Option<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Let it read standard input.
    pub interactive: bool,
    /// Give it every capability that there is.
    pub privileged: bool,
    /// The kind of the caller's terminal.
    pub term: Option<String>,
}

/// Runs a command in a running container, and stays until it ends; it ends with this process.
///
/// # Errors
/// A container that does not run, or is paused ([`Kind::Invalid`]); as for a container's own command.
pub fn exec(store: &Store, text: &str, exec: &Exec, narrate: Option<Narrate<'_>>) -> Result<Exit> {
    let doing = || format!("exec in container {text}");
    let running = enter(store, text, exec, false, None, narrate).call_context(doing)?;
    running.supervise().context(doing)
}

/// Runs a command in a running container, and leaves it there: it reads nothing, nobody sees what it writes, and it ends
/// with the container. Returns an id for it, which is as good as none.
pub fn exec_detached(store: &Store, text: &str, exec: &Exec, narrate: Option<Narrate<'_>>) -> Result<Id> {
    let doing = || format!("exec in container {text}");
    enter(store, text, exec, true, None, narrate).call_context(doing)?.leave();
    store.new_id()
}

fn enter(
    store: &Store,
    text: &str,
    exec: &Exec,
    stays: bool,
    streams: Option<Streams>,
    narrate: Option<Narrate<'_>>,
) -> Result<sandbox::Running> {
    let container = super::find(store, text)?;
    let running = match &container.state {
        State::Running(_) if container.paused => {
            let error = Error::new(Kind::Invalid, format!("exec in container {text}: it is paused"));
            return Err(error.with_hint(format!("`tupper unpause {text}` lets it go on")));
        }
        State::Running(running) => running,
        _ => {
            let error = Error::new(Kind::Invalid, format!("exec in container {text}: it does not run"));
            return Err(error.with_hint(format!("`tupper start {text}` starts it")));
        }
    };
    enter_found(store, &container.id, &container.spec, running, exec, stays, streams, narrate)
}

#[expect(clippy::too_many_arguments, reason = "what, where, how")]
pub(super) fn enter_found(
    store: &Store,
    id: &Id,
    spec: &Spec,
    running: &Running,
    exec: &Exec,
    stays: bool,
    streams: Option<Streams>,
    narrate: Option<Narrate<'_>>,
) -> Result<sandbox::Running> {
    let gone = || Error::new(Kind::Invalid, "the container has just ended");
    let first = open_process(store, id, running)?.ok_or_else(gone)?;
    let spec = compose(spec, exec);
    if sandbox::has_host_root(running.pid) {
        // What has become the command's first program by an interpreter of /proc/self/exe can be held until it has ended.
        process::run_sealed()?;
    }
    // It is read by number, and true if that process lives afterwards: `enter` looks.
    let inside = Inside::gather(&spec, running.pid, &leftover::cgroup_name(store, id))?;
    let plan = sandbox::plan_exec(&spec, &inside, stays)?;
    let tell = narrate.map(step_narrate);
    sandbox::enter(&plan, first, streams, tell.as_ref().map(|tell| tell as _))
}

/// The container's spec, as it is for this command.
fn compose(spec: &Spec, exec: &Exec) -> Spec {
    let mut env = Environment::of(spec.env.clone());
    if exec.tty {
        env.set(&format!("TERM={}", exec.term.as_deref().unwrap_or("xterm")));
    }
    exec.env.iter().for_each(|variable| env.set(variable));
    let mut security = spec.security.clone();
    if exec.privileged {
        security.cap_add = vec!["all".to_string()];
        security.cap_drop.clear();
    }
    Spec {
        args: exec.args.clone(),
        env: env.into(),
        cwd: exec.workdir.as_ref().map_or(spec.cwd.clone(), PathBuf::from),
        user: exec.user.clone().or(spec.user.clone()),
        tty: exec.tty,
        interactive: exec.interactive,
        security,
        ..spec.clone()
    }
}
