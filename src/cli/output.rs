//! Standard output and standard error: lines, tables, JSON, and how sizes and times read.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Result;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::Value;
use tupper::error::Error;
use tupper::name::Id;

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// An aligned table.
    Table,
    /// An array of objects.
    Json,
}

/// The flags of every listing.
#[derive(Debug, Args)]
pub(super) struct Listing {
    /// Ids only
    #[arg(long, short)]
    quiet: bool,
    /// Nothing is cut short
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
}

/// What the flags of a listing come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Ids only.
    Quiet,
    /// An aligned table.
    Table,
    /// An array of objects.
    Json,
}

impl Listing {
    /// What the flags come to.
    pub(super) fn shape(&self) -> Shape {
        match self.format {
            _ if self.quiet => Shape::Quiet,
            Format::Table => Shape::Table,
            Format::Json => Shape::Json,
        }
    }

    /// Prints the objects as the flags say; one may have several rows in the table.
    pub(super) fn print<T>(
        &self,
        objects: &[T],
        id_of: impl Fn(&T) -> Id,
        summary: impl Fn(&T) -> Value,
        titles: &[&str],
        rows: impl Fn(&T) -> Vec<Vec<String>>,
    ) -> Result<()> {
        match self.shape() {
            Shape::Quiet => {
                text(&objects.iter().map(|object| id(&id_of(object), self.no_trunc) + "\n").collect::<String>())
            }
            Shape::Json => json(&objects.iter().map(summary).collect()),
            Shape::Table => table(titles, &objects.iter().flat_map(rows).collect::<Vec<_>>()),
        }
    }
}

/// One line on standard output.
pub(super) fn line(text: impl Display) -> Result<()> {
    self::text(&format!("{text}\n"))
}

/// Text on standard output, as it is.
pub(super) fn text(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// The same of what need not be UTF-8.
pub(super) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        // Left as it is, for is_broken_pipe.
        io::ErrorKind::BrokenPipe => e.into(),
        _ => Error::from_io("write to standard output", e).into(),
    })
}

/// One line on standard error, in one write, so that lines of several processes do not mix.
pub(super) fn note(text: impl Display) -> Result<()> {
    Ok(io::stderr().lock().write_all(format!("{text}\n").as_bytes())?)
}

/// Whether a person wants to go on with what removes so much, as podman's prune verbs ask, whoever is to answer.
pub(super) fn confirmed(what: &str) -> Result<bool> {
    note(format_args!("WARNING! This removes {what}.\nAre you sure you want to continue? [y/N] "))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The text with control characters escaped, so that it stays one line, whatever a path holds.
pub(super) fn one_line(text: impl Display) -> String {
    let mut line = String::new();
    for c in text.to_string().chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// A document on standard output.
pub(super) fn json(value: &Value) -> Result<()> {
    let mut text = String::new();
    for c in serde_json::to_string_pretty(value)?.chars() {
        // JSON wants the controls of ASCII escaped, terminals obey those of Latin-1, too. They can be in strings only.
        match c {
            '\u{7f}'..='\u{9f}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('\n');
    self::text(&text)
}

/// The reader of our output went away.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A table with aligned columns, two spaces between them. What images and containers say in it stays in its cell.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(one_line).collect()).collect();
    let mut widths: Vec<usize> = titles.iter().map(|title| title.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let titles: Vec<String> = titles.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&titles).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    self::text(&text)
}

/// Bytes as podman shows them: decimal units, three digits.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// How long ago, in the largest unit that says something.
pub(super) fn ago(then: Timestamp) -> String {
    let seconds = Timestamp::now().as_second().saturating_sub(then.as_second()).max(0);
    format!("{} ago", duration(seconds.unsigned_abs()))
}

/// In how long, in the largest unit that says something.
pub(super) fn until(then: Timestamp) -> String {
    let seconds = then.as_second().saturating_sub(Timestamp::now().as_second()).max(0);
    format!("in {}", duration(seconds.unsigned_abs()))
}

/// Seconds in the largest unit that says something.
pub(super) fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 7] = [
        (31_536_000, "year"),
        (2_592_000, "month"),
        (604_800, "week"),
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let (length, unit) = UNITS.into_iter().find(|(length, _)| seconds >= *length).unwrap_or((1, "second"));
    let count = seconds / length;
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// `sha256`-like ids are shown with 12 digits, unless asked for whole.
pub(super) fn id(id: &Id, whole: bool) -> String {
    if whole { id.to_string() } else { id.short() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (195_000_000, "195 MB"),
            (999_999, "1.00 MB"),
            (64 << 30, "68.7 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn what_a_path_holds_stays_on_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m \u{e9} \u{9b}"), "a\\nb\\u{1b}[31m \u{e9} \\u{9b}");
    }

    #[test]
    fn durations_have_one_unit() {
        for (seconds, text) in
            [(0, "0 seconds"), (1, "1 second"), (61, "1 minute"), (7200, "2 hours"), (86_400 * 20, "2 weeks")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
