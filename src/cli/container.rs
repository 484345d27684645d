//! `tupper rm` and `inspect`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use tupper::container::{self, Container, State};
use tupper::error::Kind;
use tupper::network::{HostEntry, Mode};
use tupper::sandbox::{self, DeviceRequest, IdMap, LogDriver, Restart, Signal, Users, Volume};

use super::Removing;
use super::chosen::Chosen;
use super::output;

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// All of them; without --force those that run are refused
    #[arg(long, short, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: Chosen,
    /// Kill one that runs; one that does not exist is no error
    #[arg(long, short)]
    force: bool,
    /// Remove its volumes that nobody named, too
    #[arg(long, short)]
    volumes: bool,
    #[command(flatten)]
    removing: Removing,
}

impl Rm {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_remove(root, self.removing.dry_run)?;
        let containers = self.chosen.names(&store, |_| true)?;
        let removal = container::Removal { force: self.force, volumes: self.volumes, dry_run: self.removing.dry_run };
        let done = super::for_each(&containers, |text| {
            let removed = container::remove(&store, text, &removal);
            match removed.and_then(|id| self.removing.synced(&store, id)) {
                Ok(_) => output::line(text),
                Err(e) if self.force && e.kind() == Kind::NotFound => Ok(()),
                Err(e) => Err(e.into()),
            }
        });
        if !self.removing.dry_run {
            tupper::network::settle(&store)?;
        }
        self.removing.finish(&store)?;
        Ok(done)
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Inspect {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        super::inspect(&self.containers, |text| {
            let container = container::find(&store, text)?;
            let mut value = details(&container);
            value["NetworkSettings"] = super::port::settings(&store, &container)?;
            value["SizeLimit"] = json!(container.size_limit.unwrap_or(0));
            value["SizeCharged"] = json!(container::charged(&store, &container)?.unwrap_or(0));
            value["Rootfs"] = json!(store.rootfs_path(tupper::store::Shelf::Containers, &container.id));
            Ok(value)
        })
    }
}

/// podman-container-inspect(1).
fn details(container: &Container) -> Value {
    let mut details = all_but_limits(container);
    if let Some(host_config) = details["HostConfig"].as_object_mut() {
        host_config.extend(super::resources::details(&container.spec.limits));
    }
    details
}

fn all_but_limits(container: &Container) -> Value {
    let (pid, started, finished, exit_code) = life(&container.state);
    let spec = &container.spec;
    let oom = matches!(&container.state, State::Exited(ended) if ended.oom_killed);
    json!({
        "Id": container.id,
        "Name": container.name,
        "Created": container.created.to_string(),
        "Path": spec.args.first(),
        "Args": spec.args.get(1..),
        "Image": container.image,
        "ImageName": container.source.name,
        "RestartCount": container.restarts,
        "Source": { "Kind": container.source.kind, "Id": container.source.id, "Name": container.source.name },
        "State": {
            "Status": container.status(),
            "Paused": container.paused,
            "Running": matches!(container.state, State::Running(_)),
            "OOMKilled": oom,
            "Pid": pid.unwrap_or(0),
            "ExitCode": exit_code,
            "StartedAt": started.map(|time| time.to_string()),
            "FinishedAt": finished.map(|time| time.to_string()),
            "Health": container.health.as_ref().map(super::health::state),
        },
        "Config": {
            "Hostname": spec.hostname,
            "User": spec.user.clone().unwrap_or_default(),
            "Env": spec.env,
            "Cmd": spec.args,
            "WorkingDir": spec.cwd,
            "Tty": spec.tty,
            "OpenStdin": spec.interactive,
            "Labels": spec.labels,
            "StopSignal": spec.stop_signal.unwrap_or(Signal::TERM).number(),
            "Healthcheck": spec.health.as_ref().map(super::health::config),
            "StopTimeout": spec.stop_timeout.map_or(container::PATIENCE.as_secs(), u64::from),
        },
        "HostConfig": {
            "AutoRemove": container.auto_remove,
            "ReadonlyRootfs": spec.read_only,
            "Init": spec.init,
            "ShmSize": spec.shm_size.unwrap_or(64 << 20),
            "Devices": spec.devices.iter().map(device).collect::<Vec<_>>(),
            "NetworkMode": network_mode(&spec.network),
            "PortBindings": super::port::bindings(&spec.ports),
            "Dns": spec.dns.servers,
            "DnsSearch": spec.dns.search,
            "DnsOptions": spec.dns.options,
            "ExtraHosts": spec.hosts.iter().map(extra_host).collect::<Vec<_>>(),
            "UsernsMode": userns(&spec.users),
            "IDMappings": maps(container),
            "CgroupManager": spec.cgroup_manager,
            "RestartPolicy": restart_policy(spec.restart),
            "LogConfig": log_config(spec.log),
            "Tmpfs": spec.tmpfs.iter().map(|t| (t.destination.display().to_string(), json!(t.options))).collect::<serde_json::Map<_, _>>(),
        },
        "Mounts": spec.volumes.iter().map(mount).collect::<Vec<_>>(),
    })
}

fn extra_host(entry: &HostEntry) -> String {
    format!("{}:{}", entry.name, entry.address.map_or("host-gateway".to_string(), |address| address.to_string()))
}

fn network_mode(mode: &Mode) -> String {
    match mode {
        Mode::None => "none".to_string(),
        Mode::Host => "host".to_string(),
        Mode::Container(id) => format!("container:{id}"),
        Mode::Joined(join) => join.name.to_string(),
    }
}

/// podman's word for it, and how often it is started again at most.
pub(super) fn policy(policy: Restart) -> (&'static str, u32) {
    match policy {
        Restart::No => ("no", 0),
        Restart::OnFailure(most) => ("on-failure", most),
        Restart::Always => ("always", 0),
        Restart::UnlessStopped => ("unless-stopped", 0),
    }
}

fn restart_policy(restart: Restart) -> Value {
    let (name, most) = policy(restart);
    json!({ "Name": name, "MaximumRetryCount": most })
}

fn log_config(driver: LogDriver) -> Value {
    match driver {
        LogDriver::K8sFile { max_size } => json!({ "Type": "k8s-file", "Size": max_size }),
        LogDriver::None => json!({ "Type": "none" }),
    }
}

fn mount(volume: &Volume) -> Value {
    let mut mount = json!({
        "Type": if volume.name.is_some() { "volume" } else { "bind" },
        "Source": volume.source, "Destination": volume.destination, "RW": !volume.read_only,
    });
    if let Some(name) = &volume.name {
        mount["Name"] = json!(name);
        mount["Driver"] = json!("local");
    }
    mount
}

fn device(request: &DeviceRequest) -> Value {
    let letters = [(request.read, 'r'), (request.write, 'w'), (request.make, 'm')];
    let access: String = letters.iter().filter(|(may, _)| *may).map(|(_, letter)| letter).collect();
    json!({ "PathOnHost": request.source, "PathInContainer": request.destination, "CgroupPermissions": access })
}

/// podman's word for it: a container with ids of its own has a private user namespace.
fn userns(users: &Users) -> &'static str {
    if *users == Users::Host { "host" } else { "private" }
}

/// The maps that a running container has, and those that another is certain to get.
fn maps(container: &Container) -> Value {
    let maps = match &container.state {
        State::Running(running) => sandbox::maps_of(running.pid),
        _ => container.spec.users.maps(None),
    };
    let lines = |maps: &[IdMap]| maps.iter().map(ToString::to_string).collect::<Vec<_>>();
    maps.map_or(Value::Null, |maps| json!({ "UidMap": lines(&maps.uids), "GidMap": lines(&maps.gids) }))
}

/// Pid, start, end and exit status, as far as there are any.
pub(super) fn life(state: &State) -> (Option<i32>, Option<Timestamp>, Option<Timestamp>, u8) {
    match state {
        State::Created => (None, None, None, 0),
        State::Running(running) => (Some(running.pid), Some(running.started), None, 0),
        State::Stopping(started) => (None, Some(*started), None, 0),
        State::Restarting(ended) | State::Exited(ended) => {
            (None, Some(ended.started), Some(ended.finished), ended.exit_code)
        }
    }
}
