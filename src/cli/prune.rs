//! `tupper snapshot prune`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use tupper::error::Kind;
use tupper::snapshot::{self, Retention};

use super::output;
use super::snapshot_filter::{Filter, Filters};

#[derive(Debug, Args)]
#[command(
    after_help = "Example: tupper snapshot prune --filter source=web --keep-daily 7 --keep-weekly 4 --dry-run\n\n\
    What any rule keeps is kept, unless it has expired (snapshot create --expiry). Hours, days and so on are those of this \
    host's clock, weeks begin on Monday, and those without a snapshot do not count."
)]
pub(super) struct Prune {
    /// Look only at those of which this is so: id, name, label, source, since, before
    #[arg(long, value_name = "KEY=VALUE", value_parser = |text: &str| text.parse::<Filter>())]
    filter: Vec<Filter>,
    /// Retention the newest N
    #[arg(long, value_name = "N", value_parser = count())]
    keep_last: Option<u32>,
    /// Retention the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", value_parser = count())]
    keep_hourly: Option<u32>,
    /// The same of days
    #[arg(long, value_name = "N", value_parser = count())]
    keep_daily: Option<u32>,
    /// The same of weeks
    #[arg(long, value_name = "N", value_parser = count())]
    keep_weekly: Option<u32>,
    /// The same of months
    #[arg(long, value_name = "N", value_parser = count())]
    keep_monthly: Option<u32>,
    /// The same of years
    #[arg(long, value_name = "N", value_parser = count())]
    keep_yearly: Option<u32>,
    /// Do not ask first
    #[arg(long, short)]
    force: bool,
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// A rule that keeps none is none.
fn count() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..)
}

impl Prune {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        if super::open(root)?.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        let number = Option::unwrap_or_default;
        let keep = Retention {
            last: number(self.keep_last),
            hourly: number(self.keep_hourly),
            daily: number(self.keep_daily),
            weekly: number(self.keep_weekly),
            monthly: number(self.keep_monthly),
            yearly: number(self.keep_yearly),
        };
        let removes = match keep.is_empty() {
            true => "all snapshots that have expired",
            false => "all snapshots that have expired or that no rule keeps",
        };
        if !self.force && !self.dry_run && !output::confirmed(removes)? {
            return Ok(ExitCode::SUCCESS);
        }
        let store = super::open_to_remove(root, self.dry_run)?;
        let snapshots = Filters::new(&store, &self.filter)?.select(&store, Err)?;
        let ids: Vec<String> =
            snapshot::prunable(snapshots, &keep).into_iter().map(|snapshot| snapshot.id.to_string()).collect();
        Ok(super::for_each(&ids, |id| {
            let whole = format!("snapshot:{id}");
            let removed = match self.dry_run {
                true => snapshot::check_free(&store, &whole),
                false => snapshot::remove(&store, &whole).map(drop),
            };
            match removed {
                Ok(()) => output::line(id),
                Err(e) if e.kind() == Kind::InUse => output::note(format_args!("snapshot {id} stays: it is in use")),
                Err(e) if e.kind() == Kind::NotFound => Ok(()), // somebody else removed it meanwhile
                Err(e) => Err(e.into()),
            }
        }))
    }
}
