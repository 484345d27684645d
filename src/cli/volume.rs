//! `tupper volume`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tupper::error::{Error, Kind};
use tupper::name::VolumeName;
use tupper::store::Store;
use tupper::volume::{self, Volume};
use tupper::{check, container};

use super::output::{self, Format};
use super::{Broken, Removing};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a volume, which outlives the containers that write to it
    Create(Create),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all that is known of volumes, as JSON
    Inspect(Inspect),
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove the volumes that no container has
    Prune(Prune),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Create(verb) => verb.run(root)?,
            Verb::Ls(verb) => verb.run(root)?,
            Verb::Inspect(verb) => return verb.run(root),
            Verb::Rm(verb) => return verb.run(root),
            Verb::Prune(verb) => verb.run(root)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper volume create data; tupper run --rm -v data:/srv IMAGE touch /srv/x")]
pub(super) struct Create {
    /// Neither copy the files in it on write nor checksum them, as databases like it (btrfs(5), nodatacow)
    #[arg(long)]
    nocow: bool,
    /// Note something of it
    #[arg(long, short, value_name = "K[=V]")]
    label: Vec<String>,
    /// One that is there already is no error
    #[arg(long)]
    ignore: bool,
    /// Its name; without one 64 digits
    name: Option<VolumeName>,
}

impl Create {
    fn run(self, root: &Path) -> Result<()> {
        let store = Store::open_or_init(root)?;
        check::tidy(&store);
        let mut labels = BTreeMap::new();
        self.label.iter().try_for_each(|text| super::flags::label(text, &mut labels))?;
        let create = volume::Create { name: self.name, labels, nocow: self.nocow };
        match (volume::create(&store, &create), create.name) {
            (Err(e), Some(name)) if self.ignore && e.kind() == Kind::AlreadyExists => output::line(name),
            (made, _) => output::line(made?),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Names only
    #[arg(long, short)]
    quiet: bool,
    /// Only those of which this is so: name=TEXT in the name, label=K[=V], dangling=true|false (no container has it)
    #[arg(long, short, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
}

impl Ls {
    fn run(self, root: &Path) -> Result<()> {
        let mut broken = Broken::default();
        let mut volumes = match super::open(root)? {
            Some(store) => selected(&store, &self.filter, |e| broken.note(e))?,
            None => Vec::new(),
        };
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        match self.format {
            _ if self.quiet => output::text(&volumes.iter().map(|v| format!("{}\n", v.name)).collect::<String>())?,
            Format::Json => output::json(&volumes.iter().map(details).collect())?,
            Format::Table => {
                let rows: Vec<_> = volumes.iter().map(|v| vec!["local".to_string(), v.name.to_string()]).collect();
                output::table(&["DRIVER", "VOLUME NAME"], &rows)?;
            }
        }
        broken.report()
    }
}

/// podman-volume-ls(1), `--filter`: of several with one key one has to be so, but for label all.
fn selected(
    store: &Store,
    filters: &[String],
    broken: impl FnMut(Error) -> tupper::error::Result<()>,
) -> Result<Vec<Volume>> {
    let mut volumes = volume::list_but(store, broken)?;
    let (mut names, mut dangling) = (Vec::new(), Vec::new());
    for filter in filters {
        match filter.split_once('=') {
            Some(("name", text)) => names.push(text),
            Some(("dangling", "true" | "1")) => dangling.push(true),
            Some(("dangling", "false" | "0")) => dangling.push(false),
            Some(("label", label)) => {
                let (key, value) = label.split_once('=').map_or((label, None), |(key, value)| (key, Some(value)));
                volumes.retain(|v| v.labels.get(key).is_some_and(|has| value.is_none_or(|value| value == has)));
            }
            _ => bail!("--filter {filter}: not name=TEXT, label=K[=V] or dangling=true|false"),
        }
    }
    volumes.retain(|v| names.is_empty() || names.iter().any(|text| v.name.as_str().contains(text)));
    if !dangling.is_empty() {
        let free = container::prune_volumes(store, |_| true, true)?;
        volumes.retain(|v| dangling.contains(&free.contains(&v.name)));
    }
    Ok(volumes)
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Names, or what only one name begins with
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

impl Inspect {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        super::inspect(&self.volumes, |text| Ok(details(&volume::find(&store, text)?)))
    }
}

/// podman-volume-inspect(1).
fn details(volume: &Volume) -> Value {
    json!({
        "Name": volume.name,
        "Driver": "local",
        "Mountpoint": volume.path,
        "CreatedAt": volume.created.to_string(),
        "Labels": volume.labels,
        "Scope": "local",
        "Options": {},
        "Anonymous": volume.anonymous,
        "NoCow": volume.nocow,
    })
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// All of them
    #[arg(long, short, conflicts_with = "volumes")]
    all: bool,
    /// Remove the containers that have one, too, even if they run; one that does not exist is no error
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    removing: Removing,
    /// Names, or what only one name begins with
    #[arg(required_unless_present = "all", value_name = "VOLUME")]
    volumes: Vec<String>,
}

impl Rm {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_remove(root, self.removing.dry_run)?;
        let volumes = match self.all {
            true => volume::list(&store)?.into_iter().map(|volume| volume.name.to_string()).collect(),
            false => self.volumes,
        };
        let done = super::for_each(&volumes, |text| {
            let removed = container::remove_volume(&store, text, self.force, self.removing.dry_run);
            match removed.and_then(|name| self.removing.synced(&store, name)) {
                Ok(name) => output::line(name),
                Err(e) if self.force && e.kind() == Kind::NotFound => Ok(()),
                Err(e) => Err(e.into()),
            }
        });
        self.removing.finish(&store)?;
        Ok(done)
    }
}

#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Only those of which this is so: name=TEXT in the name, label=K[=V]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask first
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    fn run(self, root: &Path) -> Result<()> {
        if super::open(root)?.is_none() {
            return Ok(());
        }
        let removes = "all volumes that no container has, and what is in them";
        if !self.force && !self.dry_run && !output::confirmed(removes)? {
            return Ok(());
        }
        let store = super::open_to_remove(root, self.dry_run)?;
        let wanted: Vec<VolumeName> = selected(&store, &self.filter, Err)?.into_iter().map(|v| v.name).collect();
        let pruned = container::prune_volumes(&store, |volume| wanted.contains(&volume.name), self.dry_run)?;
        pruned.into_iter().try_for_each(output::line)
    }
}
