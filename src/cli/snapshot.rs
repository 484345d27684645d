//! `tupper snapshot …`

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};
use tupper::error::Kind;
use tupper::snapshot::{self, Snapshot};
use tupper::{container, interrupt};

use super::output::{self, Listing};
use super::prune::Prune;
use super::snapshot_filter::{Filter, Filters};
use super::tree::{self, Tree};
use super::{Broken, Removing};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make snapshots of an image, a snapshot, a container or a subvolume
    Create(Create),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Draw what was made of what: images, snapshots and containers
    Tree(Tree),
    /// Show all that is known of snapshots, as JSON
    Inspect(Inspect),
    /// Print the directory of a snapshot's root, for chroot, rsync and the like
    Path(PathOf),
    /// Show what differs in a snapshot from what it was made from, or from another
    Diff(super::diff::Diff),
    /// Remove snapshots, with all that is nested in them
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove the snapshots that have expired, and those that no --keep rule keeps
    Prune(Prune),
    /// Make an image of what a container or a snapshot has come to
    Commit(super::commit::Commit),
    /// Put a container or snapshot back to what another is, and keep what was there
    Rollback(Rollback),
    /// What failed containers of --rm=on-success changed, for a while
    #[command(subcommand)]
    Trash(super::trash::Verb),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Create(verb) => verb.run(root)?,
            Verb::Ls(verb) => verb.run(root)?,
            Verb::Tree(verb) => verb.run(root)?,
            Verb::Inspect(verb) => return verb.run(root),
            Verb::Path(verb) => verb.run(root)?,
            Verb::Diff(verb) => verb.run(root)?,
            Verb::Rm(verb) => return verb.run(root),
            Verb::Prune(verb) => return verb.run(root),
            Verb::Commit(verb) => verb.run(root)?,
            Verb::Rollback(verb) => verb.run(root)?,
            Verb::Trash(verb) => return verb.run(root),
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper snapshot create debian:12 web")]
pub(super) struct Create {
    /// What to make it of: a container, a snapshot or an image, by name or id; or a subvolume beside the store, by its
    /// path: /srv/data, ./data
    #[arg(value_name = "SRC")]
    source: String,
    /// Its name
    name: Option<String>,
    /// How many; with a NAME they are NAME-1 to NAME-N
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Nothing in it may be changed
    #[arg(long, short)]
    read_only: bool,
    /// Note something of it
    #[arg(long, short, value_name = "K[=V]")]
    label: Vec<String>,
    /// Let `snapshot prune` remove it after so long: 30m, 1h, 7d, 2w, 6mo, 1y
    #[arg(long, value_name = "TIME", value_parser = after)]
    expiry: Option<Timestamp>,
    /// Let the processes of a running container go on meanwhile
    #[arg(long)]
    no_pause: bool,
    /// The entry of staging/ that they go with: for `bench snapshot`
    #[arg(long, hide = true)]
    goes_with: Option<String>,
}

/// So long from now, by the calendar and the clock of this host.
fn after(text: &str) -> Result<Timestamp> {
    let span: Span = text.parse().map_err(|_| anyhow!("not a time like 1h or 7d"))?;
    let now = Timestamp::now();
    let then =
        now.to_zoned_datetime(TimeZone::system()).checked_add(span).map_err(|_| anyhow!("too long"))?.timestamp();
    if then <= now {
        bail!("not after now");
    }
    Ok(then)
}

impl Create {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_to_make(root)?;
        interrupt::catch()?;
        let mut labels = BTreeMap::new();
        self.label.iter().try_for_each(|text| super::flags::label(text, &mut labels)).context("--label")?;
        let create = snapshot::Create {
            name: self.name,
            count: self.count,
            read_only: self.read_only,
            labels,
            expires: self.expiry,
            goes_with: self.goes_with,
        };
        let mut text = String::new();
        for id in container::snapshot(&store, &self.source, &create, !self.no_pause)? {
            text.push_str(&format!("{id}\n"));
        }
        output::text(&text)
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    listing: Listing,
    /// Only those of which this is so: id, name, label, source, since, before
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = |text: &str| text.parse::<Filter>())]
    filter: Vec<Filter>,
}

impl Ls {
    fn run(self, root: &Path) -> Result<()> {
        let mut broken = Broken::default();
        let snapshots = match super::open(root)? {
            Some(store) => Filters::new(&store, &self.filter)?.select(&store, |e| broken.note(e))?,
            None => Vec::new(),
        };
        let row = |snapshot: &Snapshot| {
            vec![vec![
                output::id(&snapshot.id, self.listing.no_trunc),
                source(snapshot, self.listing.no_trunc),
                output::ago(snapshot.created),
                if snapshot.read_only { "ro" } else { "rw" }.to_string(),
                snapshot.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            ]]
        };
        let titles = ["SNAPSHOT ID", "SOURCE", "CREATED", "MODE", "NAMES"];
        self.listing.print(&snapshots, |snapshot| snapshot.id, summary, &titles, row)?;
        broken.report()
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

impl Inspect {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let all = snapshot::tree(&store)?;
        super::inspect(&self.snapshots, |text| {
            let snapshot = snapshot::find(&store, text)?;
            let subvolume = snapshot::subvolume(&store, &snapshot)?;
            let mut value = summary(&snapshot);
            value["Subvolume"] =
                json!({ "Id": subvolume.id, "Uuid": subvolume.uuid, "Generation": subvolume.generation });
            value["Parent"] = all.parent(&snapshot.id).map_or(Value::Null, tree::known);
            value["Children"] = all.children(&snapshot.id).map(tree::known).collect();
            Ok(value)
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct PathOf {
    /// Name or id
    snapshot: String,
}

impl PathOf {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        output::line(snapshot::find(&store, &self.snapshot)?.path.display())
    }
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Names or ids
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// One that does not exist is no error
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    removing: Removing,
}

impl Rm {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_remove(root, self.removing.dry_run)?;
        let done = super::for_each(&self.snapshots, |text| {
            let removed = match self.removing.dry_run {
                true => snapshot::find(&store, text).map(|snapshot| snapshot.id),
                false => snapshot::remove(&store, text).and_then(|id| self.removing.synced(&store, id)),
            };
            match removed {
                Ok(id) => output::line(id),
                Err(e) if self.force && e.kind() == Kind::NotFound => Ok(()),
                Err(e) => Err(e.into()),
            }
        });
        self.removing.finish(&store)?;
        Ok(done)
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: tupper snapshot rollback web before-upgrade; the id that it prints undoes it: tupper snapshot rollback web ID"
)]
pub(super) struct Rollback {
    /// What to put back: a container that does not run, or a snapshot
    #[arg(value_name = "CONTAINER|SNAPSHOT")]
    object: String,
    /// What it is to be: an image, a snapshot or a container
    to: String,
    /// Stop the container first
    #[arg(long)]
    stop: bool,
}

impl Rollback {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_to_make(root)?;
        if self.stop
            && let Some(stopping) = container::begin_stop(&store, &self.object, None)?
        {
            stopping.finish()?;
        }
        let kept = snapshot::rollback(&store, &self.object, &self.to).map_err(|e| match e.kind() {
            Kind::InUse => e.with_hint("`--stop` ends the container first; what runs would stay in the old tree"),
            _ => e,
        })?;
        output::line(kept)
    }
}

pub(super) fn source(snapshot: &Snapshot, whole: bool) -> String {
    match &snapshot.source.id {
        Some(id) if snapshot.source.name == id.to_string() => output::id(id, whole),
        _ => snapshot.source.name.clone(),
    }
}

pub(super) fn summary(snapshot: &Snapshot) -> Value {
    json!({
        "Id": snapshot.id,
        "Names": snapshot.name.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "Created": snapshot.created.as_second(),
        "CreatedAt": snapshot.created.to_string(),
        "ReadOnly": snapshot.read_only,
        "Source": { "Kind": snapshot.source.kind, "Id": snapshot.source.id, "Name": snapshot.source.name },
        "Labels": snapshot.labels,
        "ExpiresAt": snapshot.expires.map(|expires| expires.to_string()),
        "Path": snapshot.path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_time_from_now() {
        let from_now = |text| after(text).expect(text).duration_since(Timestamp::now()).as_secs();
        for (text, seconds) in [("90s", 90), ("1h", 3600), ("2h30m", 9000)] {
            assert!((seconds - 30..=seconds).contains(&from_now(text)), "{text}: {}", from_now(text));
        }
        // Days are perhaps an hour longer or shorter.
        for (text, days) in [("7d", 7), ("2w", 14), ("1mo", 30), ("1y", 365)] {
            let hours = from_now(text) / 3600;
            assert!((days * 24 - 51..=days * 24 + 49).contains(&hours), "{text}: {hours} hours");
        }
        for wrong in ["", "7", "d", "-1h", "0s", "1h ago", "tomorrow", "99999y"] {
            after(wrong).expect_err(wrong);
        }
    }
}
