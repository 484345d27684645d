//! `tupper snapshot …`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tupper::error::Kind;
use tupper::interrupt;
use tupper::snapshot::{self, Snapshot};

use super::output::{self, Listing};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make snapshots of an image, a snapshot or a container
    Create(Create),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all that is known of snapshots, as JSON
    Inspect(Inspect),
    /// Print the directory of a snapshot's root, for chroot, rsync and the like
    Path(PathOf),
    /// Remove snapshots, with all that is nested in them
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Create(verb) => verb.run(root)?,
            Verb::Ls(verb) => verb.run(root)?,
            Verb::Inspect(verb) => return verb.run(root),
            Verb::Path(verb) => verb.run(root)?,
            Verb::Rm(verb) => return verb.run(root),
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper snapshot create debian:12 web")]
pub(super) struct Create {
    /// What to make it of: a container, a snapshot or an image, by name or id
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
}

impl Create {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_to_make(root)?;
        interrupt::catch()?;
        let create = snapshot::Create { name: self.name, count: self.count, read_only: self.read_only };
        let mut text = String::new();
        for id in snapshot::create(&store, &self.source, &create)? {
            text.push_str(&format!("{id}\n"));
        }
        output::text(&text)
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    listing: Listing,
}

impl Ls {
    fn run(self, root: &Path) -> Result<()> {
        let snapshots = super::open(root)?.map(|store| snapshot::list(&store)).transpose()?.unwrap_or_default();
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
        self.listing.print(&snapshots, |snapshot| snapshot.id, summary, &titles, row)
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
        super::inspect(&self.snapshots, |text| {
            let snapshot = snapshot::find(&store, text)?;
            let subvolume = snapshot::subvolume(&store, &snapshot)?;
            let mut value = summary(&snapshot);
            value["Subvolume"] =
                json!({ "Id": subvolume.id, "Uuid": subvolume.uuid, "Generation": subvolume.generation });
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
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until the removal would survive a power cut
    #[arg(long)]
    sync: bool,
}

impl Rm {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_remove(root, self.dry_run)?;
        Ok(super::for_each(&self.snapshots, |text| {
            let removed = match self.dry_run {
                true => snapshot::find(&store, text).map(|snapshot| snapshot.id),
                false => snapshot::remove(&store, text).and_then(|id| super::synced(&store, self.sync, id)),
            };
            match removed {
                Ok(id) => output::line(id),
                Err(e) if self.force && e.kind() == Kind::NotFound => Ok(()),
                Err(e) => Err(e.into()),
            }
        }))
    }
}

fn source(snapshot: &Snapshot, whole: bool) -> String {
    match snapshot.source.name == snapshot.source.id.to_string() {
        true => output::id(&snapshot.source.id, whole),
        false => snapshot.source.name.clone(),
    }
}

fn summary(snapshot: &Snapshot) -> Value {
    json!({
        "Id": snapshot.id,
        "Names": snapshot.name.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "Created": snapshot.created.as_second(),
        "CreatedAt": snapshot.created.to_string(),
        "ReadOnly": snapshot.read_only,
        "Source": { "Kind": snapshot.source.kind, "Id": snapshot.source.id, "Name": snapshot.source.name },
        "Path": snapshot.path,
    })
}
