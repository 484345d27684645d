//! `tupper snapshot trash …`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tupper::error::Kind;
use tupper::name::ObjectName;
use tupper::snapshot::{self, Snapshot};
use tupper::store::Store;

use super::output::{self, Listing};

/// What failed containers of --rm=on-success did, for a while
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List what is in the trash
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Take something out of the trash: it is a snapshot like another then
    Restore(Restore),
    /// Remove what is in the trash
    Empty(Empty),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Ls(verb) => verb.run(root)?,
            Verb::Restore(verb) => verb.run(root)?,
            Verb::Empty(verb) => return verb.run(root),
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    listing: Listing,
}

impl Ls {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open(root)?;
        if let Some(store) = &store {
            expire(store)?;
        }
        let snapshots = store.map(|store| snapshot::trash(&store)).transpose()?.unwrap_or_default();
        let row = |snapshot: &Snapshot| {
            vec![vec![
                output::id(&snapshot.id, self.listing.no_trunc),
                super::snapshot::source(snapshot, self.listing.no_trunc),
                output::ago(snapshot.created),
                snapshot.trashed.map(|status| status.to_string()).unwrap_or_default(),
                snapshot.expires.map(output::until).unwrap_or_default(),
            ]]
        };
        let titles = ["SNAPSHOT ID", "SOURCE", "CREATED", "STATUS", "GOES"];
        self.listing.print(&snapshots, |snapshot| snapshot.id, summary, &titles, row)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper snapshot trash restore 3f2a lost-and-found")]
pub(super) struct Restore {
    /// Its id
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// The name that it gets
    name: Option<ObjectName>,
}

impl Restore {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        output::line(snapshot::restore(&store, &self.snapshot, self.name.as_ref())?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Empty {
    /// Ids; by default all
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Do not ask first
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl Empty {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_remove(root, self.dry_run)?;
        let all = match self.snapshots.is_empty() {
            true => snapshot::trash(&store)?.iter().map(|snapshot| snapshot.id.to_string()).collect(),
            false => self.snapshots,
        };
        if !self.force && !self.dry_run && !output::confirmed("all that is named of the trash")? {
            return Ok(ExitCode::FAILURE);
        }
        Ok(super::for_each(&all, |text| {
            let removed = match self.dry_run {
                true => snapshot::find_trashed(&store, text).map(|snapshot| snapshot.id),
                false => snapshot::remove_trashed(&store, text),
            };
            output::line(removed?)
        }))
    }
}

/// Removes what has been there for long enough.
fn expire(store: &Store) -> Result<()> {
    for snapshot in snapshot::expired(store)? {
        match snapshot::remove_trashed(store, &snapshot.id.to_string()) {
            Err(e) if !matches!(e.kind(), Kind::InUse | Kind::NotFound) => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}

fn summary(snapshot: &Snapshot) -> Value {
    let mut value = super::snapshot::summary(snapshot);
    value["ExitCode"] = json!(snapshot.trashed);
    value
}
