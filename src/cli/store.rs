//! `tupper store …`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use tupper::check;
use tupper::store::{FORMAT_VERSION, Options, Shelf, Store};

use super::output::{self, Format};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a store; not needed, the first verb that writes makes one
    Init(Init),
    /// Say where the store is, what it is and how full
    Info(Info),
    /// Say what images, snapshots and containers hold: alone, with others, and what removing one gives back
    Df(super::df::Df),
    /// Look for what killed commands left and for damage; with --repair, mend it
    Check(super::check::Check),
    /// Remove what killed commands left; every verb that writes does so by itself when it sees a sign of it
    Gc(Gc),
    /// Unmount an embedded store; the next verb mounts it again
    Umount,
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Init(verb) => verb.run(root)?,
            Verb::Info(verb) => verb.run(root)?,
            Verb::Df(verb) => verb.run(root)?,
            Verb::Check(verb) => return verb.run(root),
            Verb::Gc(verb) => return verb.run(root),
            Verb::Umount => Store::unmount(root)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Size of an embedded store, such as 20G; default: the smaller of 64G and 80 % of what is free
    #[arg(long, value_name = "SIZE", value_parser = super::run::bytes)]
    size: Option<u64>,
    /// The btrfs node size, such as 8K (the default) or 16K
    #[arg(long, value_name = "SIZE", value_parser = super::run::bytes)]
    node_size: Option<u64>,
}

impl Init {
    fn run(self, root: &Path) -> Result<()> {
        let node_size = self.node_size.map(u32::try_from).transpose()?;
        let store = Store::init(root, &Options { size: self.size, node_size, explicit: true })?;
        output::line(store.root().display())
    }
}

#[derive(Debug, Args)]
pub(super) struct Info {
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
}

impl Info {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        let space = store.space()?;
        let count = |shelf| Ok::<_, anyhow::Error>(store.ids(shelf)?.len());
        let (images, snapshots, containers) =
            (count(Shelf::Images)?, count(Shelf::Snapshots)?, count(Shelf::Containers)?);
        let kind = if store.is_embedded() { "embedded" } else { "subvolume" };
        if self.format == Format::Json {
            return output::json(&json!({
                "Root": store.root(), "Kind": kind, "Uuid": store.uuid(), "FormatVersion": FORMAT_VERSION,
                "Size": space.size, "Available": space.available,
                "Images": images, "Snapshots": snapshots, "Containers": containers,
            }));
        }
        output::text(&format!(
            "root        {}\nkind        {kind}\nuuid        {}\nformat      {FORMAT_VERSION}\nsize        {}\navailable   {}\n\
             images      {images}\nsnapshots   {snapshots}\ncontainers  {containers}\n",
            store.root().display(),
            store.uuid(),
            output::size(space.size),
            output::size(space.available),
        ))
    }
}

#[derive(Debug, Args)]
pub(super) struct Gc {
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl Gc {
    fn run(self, root: &Path) -> Result<ExitCode> {
        let made = check::half_made(root, self.dry_run)?;
        made.iter().try_for_each(|finding| output::line(output::one_line(finding)))?;
        if self.dry_run && !made.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let Some(store) = super::open(root)? else { return Ok(ExitCode::SUCCESS) };
        if !self.dry_run {
            store.require_writable()?;
            store.require_host_room_to_remove()?;
        }
        let swept = check::gc(&store, self.dry_run)?;
        swept.removed.iter().try_for_each(|finding| output::line(output::one_line(finding)))?;
        let mut status = ExitCode::SUCCESS;
        for error in swept.failed {
            super::report(&error.into());
            status = ExitCode::FAILURE;
        }
        Ok(status)
    }
}
