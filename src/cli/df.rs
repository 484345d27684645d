//! `tupper store df`

use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tupper::snapshot::Node;
use tupper::usage::{self, Bytes, Figures, Known, Usage};

use super::output::{self, Format};

#[derive(Debug, Args)]
#[command(
    after_help = "Data is counted as it lies on the disk, compressed; small files lie in the metadata and count for \
    nothing. FREED is what removing that one object gives back. A number after ≤ or ≥ is a bound: so many snapshots have \
    changed that not all were read whole."
)]
pub(super) struct Df {
    /// Read all of what has changed, however many they are, so that no number is a bound
    #[arg(long)]
    exact: bool,
    /// Nothing is cut short
    #[arg(long)]
    no_trunc: bool,
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
}

impl Df {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let usage = match super::open(root)? {
            Some(store) => usage::usage(&store, if self.exact { usize::MAX } else { usage::FEW })?,
            None => Usage::default(),
        };
        if self.format == Format::Json {
            return output::json(&json!({
                "Objects": usage.objects.iter().map(summary).collect::<Vec<_>>(),
                "Total": { "InUse": usage.in_use, "Data": usage.data, "Metadata": usage.metadata },
            }));
        }
        let row = |(node, figures): &(Node, Figures)| {
            vec![
                node.kind.to_string(),
                output::id(&node.id, self.no_trunc),
                size(figures.exclusive),
                size(figures.shared),
                size(figures.freed),
                node.names.join(", "),
            ]
        };
        let rows: Vec<Vec<String>> = usage.objects.iter().map(row).collect();
        output::table(&["KIND", "ID", "EXCLUSIVE", "SHARED", "FREED", "NAMES"], &rows)?;
        output::line(format_args!(
            "total: {} in use by these; on the filesystem {} of data, {} of metadata",
            output::size(usage.in_use),
            output::size(usage.data),
            output::size(usage.metadata),
        ))
    }
}

/// `≤ 4.1 kB`.
pub(super) fn size(Bytes { bytes, known }: Bytes) -> String {
    let sign = match known {
        Known::Exact => "",
        Known::AtMost => "≤ ",
        Known::AtLeast => "≥ ",
    };
    format!("{sign}{}", output::size(bytes))
}

fn summary((node, figures): &(Node, Figures)) -> Value {
    let mut value = super::tree::known(node);
    let of_it = self::figures(figures);
    if let (Value::Object(value), Value::Object(figures)) = (&mut value, of_it) {
        value.extend(figures);
    }
    value
}

/// What an object holds, and what each number says.
pub(super) fn figures(figures: &Figures) -> Value {
    let bytes = |Bytes { bytes, known }: Bytes| {
        let known = match known {
            Known::Exact => "exact",
            Known::AtMost => "at-most",
            Known::AtLeast => "at-least",
        };
        json!({ "Bytes": bytes, "Is": known })
    };
    json!({
        "Exclusive": bytes(figures.exclusive), "Shared": bytes(figures.shared), "Freed": bytes(figures.freed),
    })
}
