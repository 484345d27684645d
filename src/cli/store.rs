//! `tupper store …`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use tupper::check::{self, reset};
use tupper::store::{FORMAT_VERSION, Options, Shelf, Size, Store};

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
    /// Make an embedded store larger, while it is used
    Grow(Grow),
    /// Unmount an embedded store; the next verb mounts it again
    Umount,
    /// Remove the store with all that is in it
    Reset(Reset),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        match self {
            Verb::Init(verb) => verb.run(root)?,
            Verb::Info(verb) => verb.run(root)?,
            Verb::Df(verb) => verb.run(root)?,
            Verb::Check(verb) => return verb.run(root),
            Verb::Gc(verb) => return verb.run(root),
            Verb::Grow(verb) => verb.run(root)?,
            Verb::Umount => Store::unmount(root)?,
            Verb::Reset(verb) => return verb.run(root),
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Size of an embedded store, such as 20G; default: the smaller of 64G and 80 % of what is free
    #[arg(long, value_name = "SIZE", value_parser = super::run::bytes)]
    size: Option<u64>,
    /// A block device to format and to have the store on, all of it, instead of a file below the store's directory
    #[arg(long, value_name = "DEVICE", conflicts_with = "size")]
    device: Option<PathBuf>,
    /// Format the device whatever is on it, which is lost
    #[arg(long, requires = "device")]
    force: bool,
    /// The btrfs node size, such as 8K (the default) or 16K
    #[arg(long, value_name = "SIZE", value_parser = super::run::bytes)]
    node_size: Option<u64>,
    /// Compress what is written to an embedded store: zstd[:1-15], zlib[:1-9] or lzo
    #[arg(long, value_name = "HOW", value_parser = compression)]
    compress: Option<String>,
}

/// btrfs(5), `compress=`.
fn compression(text: &str) -> Result<String> {
    let (algorithm, level) = text.split_once(':').map_or((text, None), |(algorithm, level)| (algorithm, Some(level)));
    let highest = match algorithm {
        "zstd" => 15,
        "zlib" => 9,
        "lzo" => 0,
        _ => bail!("not zstd, zlib or lzo"),
    };
    match level.map(str::parse::<u8>) {
        None => Ok(text.to_string()),
        Some(Ok(level)) if (1..=highest).contains(&level) => Ok(text.to_string()),
        Some(_) if highest == 0 => bail!("lzo has no levels"),
        Some(_) => bail!("the level of {algorithm} is 1 to {highest}"),
    }
}

impl Init {
    fn run(self, root: &Path) -> Result<()> {
        let node_size = self.node_size.map(u32::try_from).transpose()?;
        let Init { size, device, force, compress, .. } = self;
        let store = Store::init(root, &Options { size, node_size, device, force, compress, explicit: true })?;
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
        let device = store.device()?;
        let kind = match &device {
            Some(_) => "device",
            None if store.is_embedded() => "embedded",
            None => "subvolume",
        };
        let named = device.as_ref().map(|device| device.display().to_string()).unwrap_or_default();
        let compression = store.compression()?;
        if self.format == Format::Json {
            return output::json(&json!({
                "Root": store.root(), "Kind": kind, "Device": named, "Uuid": store.uuid(), "FormatVersion": FORMAT_VERSION,
                "Size": space.size, "Available": space.available, "Compression": compression.unwrap_or_default(),
                "Images": images, "Snapshots": snapshots, "Containers": containers,
            }));
        }
        let kind = if named.is_empty() { kind.to_string() } else { format!("{kind} {named}") };
        let kind = compression.map_or(kind.clone(), |how| format!("{kind}, compressed by {how}"));
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
pub(super) struct Grow {
    /// How large it is to be, such as 128G, or how much larger, such as +32G
    #[arg(value_name = "[+]SIZE", value_parser = size)]
    size: Size,
}

fn size(text: &str) -> Result<Size> {
    match text.strip_prefix('+') {
        Some(more) => super::run::bytes(more).map(Size::More),
        None => super::run::bytes(text).map(Size::Of),
    }
}

impl Grow {
    fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        store.require_writable()?;
        output::line(output::size(store.grow(self.size)?))
    }
}

#[derive(Debug, Args)]
pub(super) struct Reset {
    /// Do not ask first
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl Reset {
    fn run(self, root: &Path) -> Result<ExitCode> {
        if !self.dry_run {
            // One that a reset has left which was killed is half a store.
            check::half_made(root, false)?;
        }
        let Some(store) = super::open(root)? else { return Ok(ExitCode::SUCCESS) };
        let path = store.root().display().to_string();
        let removes = format!(
            "all containers, those that run, too, all snapshots, volumes, networks and images, and the store {path} itself"
        );
        if !self.force && !self.dry_run && !output::confirmed(&removes)? {
            return Ok(ExitCode::SUCCESS);
        }
        drop(store);
        let store = super::open_to_remove(root, self.dry_run)?;
        let mut status = ExitCode::SUCCESS;
        for object in reset::contents(&store)? {
            match if self.dry_run { Ok(()) } else { reset::remove(&store, &object) } {
                Ok(()) => output::line(&object)?,
                Err(e) => {
                    super::report(&e.into());
                    status = ExitCode::FAILURE;
                }
            }
        }
        if status != ExitCode::SUCCESS {
            return Ok(status);
        }
        if !self.dry_run {
            reset::end(store)?;
        }
        output::line(format_args!("store {path}"))?;
        Ok(status)
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
