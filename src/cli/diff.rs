//! `tupper diff`.

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use tupper::snapshot::{self, Became, Change};

use super::output;

#[derive(Debug, Args)]
#[command(after_help = "A line each, sorted by path: A what was added, C what was changed, D what was deleted.")]
pub(super) struct Diff {
    /// How to print
    #[arg(long, default_value = "lines", hide_default_value = true)]
    format: Format,
    /// A container, a snapshot or an image, by name or id
    #[arg(value_name = "CONTAINER|SNAPSHOT|IMAGE")]
    object: String,
    /// What to compare it with, instead of what it was made from
    #[arg(value_name = "BASE")]
    base: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line each.
    #[value(hide = true)]
    Lines,
    /// Three lists of paths.
    Json,
}

impl Diff {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let changes = snapshot::diff(&super::open_existing(root)?, &self.object, self.base.as_deref())?;
        match self.format {
            Format::Lines => output::text(&changes.iter().map(line).collect::<String>()),
            Format::Json => output::json(&lists(&changes)),
        }
    }
}

fn line(change: &Change) -> String {
    let letter = match change.became {
        Became::Added => 'A',
        Became::Changed => 'C',
        Became::Deleted => 'D',
    };
    format!("{letter} {}\n", output::one_line(change.path.display()))
}

/// podman-diff(1): what there is none of has no list.
fn lists(changes: &[Change]) -> serde_json::Value {
    let mut lists = serde_json::Map::new();
    for (key, became) in [("changed", Became::Changed), ("added", Became::Added), ("deleted", Became::Deleted)] {
        let paths: Vec<_> =
            changes.iter().filter(|c| c.became == became).map(|c| json!(c.path.to_string_lossy())).collect();
        if !paths.is_empty() {
            lists.insert(key.to_string(), paths.into());
        }
    }
    lists.into()
}
