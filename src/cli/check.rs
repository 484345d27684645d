//! `tupper store check`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tupper::check::{self, By, Finding, Outcome, Verified};
use tupper::interrupt;
use tupper::store::Store;

use super::output::{self, Format};
use super::progress::Bar;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing found, or all of it repaired; 1 something found or left; 125 no usable store.\n\
                        Without --force, nothing goes that could be somebody's; snapshots, containers and volumes never do."
)]
pub(super) struct Check {
    /// Read all content: layers are compared with the digests of their archives, and all other files read, which the disk's
    /// checksums verify
    #[arg(long)]
    deep: bool,
    /// Mend what the disk tells enough about, and remove what killed commands left
    #[arg(long)]
    repair: bool,
    /// With --repair: remove what is beyond repair and can come again, such as an image that lacks its config
    #[arg(long, requires = "repair")]
    force: bool,
    /// With --repair: say what would be done, and do nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
    /// No progress bar
    #[arg(long, short)]
    quiet: bool,
}

impl Check {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let repair = self.repair && !self.dry_run;
        let mut findings = check::half_made(root, !repair)?;
        if repair {
            findings.iter_mut().for_each(|finding| finding.outcome = Outcome::Repaired);
        }
        if (repair || findings.is_empty())
            && let Some(store) = super::open(root)?
        {
            findings.extend(self.look(&store, repair)?);
        }
        match self.format {
            Format::Json => output::json(&findings.iter().map(details).collect())?,
            Format::Table if findings.is_empty() => {}
            Format::Table => {
                let rows: Vec<Vec<String>> = findings.iter().map(|finding| row(finding).to_vec()).collect();
                output::table(&["WHAT", "KIND", "PATH", "PROBLEM", "REMEDY"], &rows)?;
            }
        }
        let left = |by: By| findings.iter().any(|f| f.by == by && f.outcome == Outcome::Found);
        if !self.repair && findings.iter().any(|finding| finding.garbage) {
            output::note("hint: `tupper store gc` removes the garbage, and so does the next command that writes")?;
        } else if !self.repair && left(By::Repair) {
            output::note("hint: `tupper store check --repair` does what it can")?;
        } else if repair && !self.force && left(By::Force) {
            output::note("hint: --force does the rest that can be done")?;
        }
        let all_repaired = findings.iter().all(|finding| finding.outcome == Outcome::Repaired);
        Ok(ExitCode::from(u8::from(!all_repaired)))
    }

    fn look(&self, store: &Store, repair: bool) -> Result<Vec<Finding>> {
        interrupt::catch()?;
        if repair {
            store.require_writable()?;
            store.require_host_room_to_remove()?;
        }
        let bar = Bar::new("reading what is stored", self.quiet || !self.deep);
        let tell = bar.callback();
        let tell = |bytes: u64| tell(bytes, None);
        let deep = self.deep.then_some(&tell as check::Progress<'_>);
        let (findings, verified) =
            if repair { check::repair(store, self.force, deep)? } else { check::check(store, deep)? };
        drop(bar);
        if self.deep {
            output::note(summary(&verified))?;
        }
        Ok(findings)
    }
}

/// What a deep look has verified.
fn summary(verified: &Verified) -> String {
    let Verified { layers, unknown, files, bytes } = *verified;
    let unknown = match unknown {
        0 => String::new(),
        _ => format!(", {unknown} without a recipe by the disk's checksums only"),
    };
    format!("verified {layers} layers by their digests{unknown}; read {files} files, {}", output::size(bytes))
}

fn row(finding: &Finding) -> [String; 5] {
    let what = if finding.garbage { "garbage" } else { "damage" };
    let remedy = match (&finding.outcome, finding.by) {
        (Outcome::Repaired, _) => format!("done: {}", finding.way_out),
        (Outcome::Failed(why), _) => format!("failed: {}: {why}", finding.way_out),
        (Outcome::Found, By::Repair) => format!("--repair: {}", finding.way_out),
        (Outcome::Found, By::Force) => format!("--repair --force: {}", finding.way_out),
        (Outcome::Found, By::Person) => finding.way_out.clone(),
    };
    [what.to_string(), finding.kind.to_string(), finding.path.display().to_string(), finding.problem.clone(), remedy]
}

fn details(finding: &Finding) -> serde_json::Value {
    let by = match finding.by {
        By::Repair => "repair",
        By::Force => "force",
        By::Person => "person",
    };
    let (outcome, error) = match &finding.outcome {
        Outcome::Found => ("found", None),
        Outcome::Repaired => ("repaired", None),
        Outcome::Failed(why) => ("failed", Some(why)),
    };
    json!({
        "Kind": finding.kind,
        // Names need not be UTF-8.
        "Path": finding.path.to_string_lossy(),
        "Problem": finding.problem,
        "Garbage": finding.garbage,
        "Action": finding.way_out,
        "By": by,
        "Outcome": outcome,
        "Error": error,
    })
}
