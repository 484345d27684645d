//! `tupper ps`.

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};
use tupper::container::{self, Container, State};
use tupper::network::Port;
use tupper::store::Store;

use super::Broken;
use super::filter::{Filter, Filters};
use super::output::{self, Listing};
use super::port::Published;

#[derive(Debug, Args)]
#[command(after_help = "Examples: tupper ps -a --filter label=team=web --filter status=exited; tupper ps -lq")]
pub(super) struct Ps {
    /// Also those that do not run
    #[arg(long, short)]
    all: bool,
    /// Only those of which this is so: id, name (regular expressions), label, status, exited, ancestor, before, since,
    /// volume, network, health. Of several with one key one has to be so, but for label all
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = |text: &str| text.parse::<Filter>())]
    filter: Vec<Filter>,
    /// Only so many that were made last, whether they run or not
    #[arg(long, short = 'n', value_name = "N", conflicts_with = "latest")]
    last: Option<usize>,
    /// Only the one that was made last, whether it runs or not
    #[arg(long, short)]
    latest: bool,
    /// By what to sort
    #[arg(long, value_name = "KEY", default_value = "created")]
    sort: Key,
    #[command(flatten)]
    listing: Listing,
}

/// podman-ps(1), `--sort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Key {
    /// What it runs.
    Command,
    /// The newest first.
    Created,
    /// Its id.
    Id,
    /// What it was made from.
    Image,
    /// Its name.
    Names,
    /// How long it has run.
    Runningfor,
    /// What it is doing.
    Status,
}

impl Ps {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let store = super::open(root)?;
        let mut broken = Broken::default();
        let containers = store.as_ref().map(|store| self.select(store, &mut broken)).transpose()?.unwrap_or_default();
        let published = store.as_ref().map(Published::new).transpose()?;
        let ports = |container: &Container| published.as_ref().map(|all| all.of(container)).unwrap_or_default();
        let titles = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
        let row = |container: &Container| vec![row(container, &ports(container), self.listing.no_trunc)];
        let summary = |container: &Container| summary(container, &ports(container));
        self.listing.print(&containers, |container| container.id, summary, &titles, row)?;
        broken.report()
    }

    fn select(&self, store: &Store, broken: &mut Broken) -> Result<Vec<Container>> {
        let filters = Filters::new(store, &self.filter)?;
        let last = if self.latest { Some(1) } else { self.last };
        let all = self.all || last.is_some() || filters.say_status();
        let mut containers = container::list_but(store, |e| broken.note(e))?;
        containers.retain(|c| (all || matches!(c.state, State::Running(_))) && filters.take(c));
        containers.truncate(last.unwrap_or(usize::MAX));
        self.sort.sort(&mut containers);
        Ok(containers)
    }
}

impl Key {
    /// They are the newest first already; those that are the same stay so.
    fn sort(self, containers: &mut [Container]) {
        match self {
            Key::Created => {}
            Key::Command => containers.sort_by(|a, b| a.spec.args.cmp(&b.spec.args)),
            Key::Id => containers.sort_by_key(|c| c.id),
            Key::Image => containers.sort_by(|a, b| a.source.name.cmp(&b.source.name)),
            Key::Names => containers.sort_by(|a, b| a.name.cmp(&b.name)),
            Key::Runningfor => containers.sort_by_key(|c| std::cmp::Reverse(super::container::life(&c.state).1)),
            Key::Status => containers.sort_by_key(Container::status),
        }
    }
}

fn row(container: &Container, ports: &[Port], whole: bool) -> Vec<String> {
    let mut command = container.spec.args.join(" ");
    if !whole && command.chars().count() > 20 {
        command = command.chars().take(17).collect::<String>() + "...";
    }
    vec![
        output::id(&container.id, whole),
        container.source.name.clone(),
        command,
        output::ago(container.created),
        status(container),
        super::port::summary(ports),
        container.name.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}

fn status(container: &Container) -> String {
    match &container.state {
        State::Running(_) if container.paused => "Paused".to_string(),
        State::Created => "Created".to_string(),
        State::Running(running) => {
            let seconds = Timestamp::now().as_second().saturating_sub(running.started.as_second());
            let health = container.health.as_ref().map(|health| format!(" ({})", health.condition.as_str()));
            format!("Up {}{}", output::duration(seconds.max(0).unsigned_abs()), health.unwrap_or_default())
        }
        State::Stopping(_) => "Stopping".to_string(),
        State::Restarting(ended) => format!("Restarting ({}) {}", ended.exit_code, output::ago(ended.finished)),
        State::Exited(ended) => format!("Exited ({}) {}", ended.exit_code, output::ago(ended.finished)),
    }
}

/// podman-ps(1), `--format json`.
fn summary(container: &Container, ports: &[Port]) -> Value {
    let (pid, started, finished, exit_code) = super::container::life(&container.state);
    json!({
        "Id": container.id,
        "Names": container.name.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "Image": container.source.name,
        "ImageID": container.image,
        "Command": container.spec.args,
        "Created": container.created.as_second(),
        "CreatedAt": container.created.to_string(),
        "AutoRemove": container.auto_remove,
        "State": container.status(),
        "Status": status(container),
        "Exited": matches!(container.state, State::Exited(_)),
        "ExitedAt": finished.map(|time| time.as_second()),
        "ExitCode": exit_code,
        "StartedAt": started.map(|time| time.as_second()),
        "Labels": container.spec.labels,
        "Mounts": container.spec.volumes.iter().map(|volume| &volume.destination).collect::<Vec<_>>(),
        "Networks": container.spec.network.joined().map(|join| &join.name).into_iter().collect::<Vec<_>>(),
        "Ports": super::port::listing(ports),
        "Pid": pid,
        "Restarts": container.restarts,
    })
}
