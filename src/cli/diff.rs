//! `tupper diff`, `tupper snapshot diff`.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use tupper::snapshot::{self, Became, Change, Content, Text};

use super::output;

#[derive(Debug, Args)]
#[command(
    after_help = "A line each, sorted by path: A what was added, C what was changed, D what was deleted. What was renamed \
                        is one D and one A; in JSON, `renamed_from` has the old path by the new one."
)]
pub(super) struct Diff {
    /// How to print
    #[arg(long, default_value = "lines", hide_default_value = true)]
    format: Format,
    /// Follow each line by what differs in the file, as a unified diff
    #[arg(long)]
    content: bool,
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
        if self.content && self.format == Format::Json {
            let why = "the argument '--content' cannot be used with '--format json'";
            return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, why).into());
        }
        let diff = snapshot::diff(&super::open_existing(root)?, &self.object, self.base.as_deref())?;
        if self.format == Format::Json {
            return output::json(&lists(&diff.changes));
        }
        if !self.content {
            return output::text(&diff.changes.iter().map(line).collect::<String>());
        }
        for change in &diff.changes {
            output::text(&line(change))?;
            if let Some(content) = diff.content(change)? {
                output::bytes(&unified(change, &content))?;
            }
        }
        Ok(())
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

/// As git-diff(1) has it, so that patch -p1 takes it.
fn unified(change: &Change, content: &Content) -> Vec<u8> {
    let name = |side, is_there| match is_there {
        true => format!("{side}{}", output::one_line(change.path.display())),
        false => "/dev/null".to_string(),
    };
    let (old, new) = (name("a", content.old), name("b", content.new));
    match &content.text {
        Text::Binary => format!("Binary files {old} and {new} differ\n").into_bytes(),
        Text::Large => format!("Files {old} and {new} differ\n").into_bytes(),
        Text::Lines(lines) => {
            let mut text = format!("--- {old}\n+++ {new}\n").into_bytes();
            match std::io::stdout().is_terminal() {
                false => text.extend(lines),
                // What a container wrote is nothing that a terminal obeys.
                true => text.extend(harmless(&String::from_utf8_lossy(lines)).into_bytes()),
            }
            text
        }
    }
}

fn harmless(text: &str) -> String {
    let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// podman-diff(1): what there is none of has no list. Ours is one more: old paths by new ones.
fn lists(changes: &[Change]) -> serde_json::Value {
    let mut lists = serde_json::Map::new();
    for (key, became) in [("changed", Became::Changed), ("added", Became::Added), ("deleted", Became::Deleted)] {
        let paths: Vec<_> =
            changes.iter().filter(|c| c.became == became).map(|c| json!(c.path.to_string_lossy())).collect();
        if !paths.is_empty() {
            lists.insert(key.to_string(), paths.into());
        }
    }
    let renamed: serde_json::Map<_, _> = changes
        .iter()
        .filter_map(|c| {
            Some((c.path.to_string_lossy().into_owned(), json!(c.renamed_from.as_ref()?.to_string_lossy())))
        })
        .collect();
    if !renamed.is_empty() {
        lists.insert("renamed_from".to_string(), renamed.into());
    }
    lists.into()
}
