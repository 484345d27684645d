//! `tupper logs`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use tupper::container::{self, Entry, Selection, Stream};

#[derive(Debug, Args)]
#[command(after_help = "Examples: tupper logs -f web; tupper logs --tail 20 --since 10m web")]
pub(super) struct Logs {
    /// Go on with what comes, until the container ends
    #[arg(long, short)]
    follow: bool,
    /// So many lines from the end
    #[arg(long, short = 'n', value_name = "LINES", allow_hyphen_values = true, value_parser = tail)]
    tail: Option<Tail>,
    /// From that time on, or from so long ago: 2026-11-25T10:00:00Z, 10m
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Until that time, or so long ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Put the time before each line
    #[arg(long, short)]
    timestamps: bool,
    /// Name or id
    container: String,
}

/// A number of lines; `None` for all.
type Tail = Option<usize>;

impl Logs {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let selection =
            Selection { tail: self.tail.flatten(), since: self.since, until: self.until, follow: self.follow };
        let mut printer = Printer { timestamps: self.timestamps, in_line: [false, false] };
        container::logs(&store, &self.container, &selection, |entry| printer.print(entry))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints entries to the streams that they came from.
struct Printer {
    timestamps: bool,
    /// Whether a line has begun on standard output, and on standard error.
    in_line: [bool; 2],
}

impl Printer {
    fn print(&mut self, entry: &Entry) -> Result<()> {
        let [output, error] = &mut self.in_line;
        let in_line = if entry.stream == Stream::Output { output } else { error };
        let mut text = Vec::with_capacity(entry.text.len() + 40);
        if self.timestamps && !*in_line {
            text.extend_from_slice(format!("{:.9} ", entry.time).as_bytes());
        }
        text.extend_from_slice(&entry.text);
        if entry.whole {
            text.push(b'\n');
        }
        *in_line = !entry.whole;
        match entry.stream {
            Stream::Output => write(std::io::stdout().lock(), &text),
            Stream::Error => write(std::io::stderr().lock(), &text),
        }
    }
}

/// At once: somebody may be looking.
fn write(mut to: impl Write, text: &[u8]) -> Result<()> {
    to.write_all(text).and_then(|()| to.flush()).map_err(Into::into)
}

fn tail(text: &str) -> Result<Tail> {
    match text {
        "all" | "-1" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| anyhow!("not a number of lines, or all")),
    }
}

/// A time, or how long ago it was; a number is seconds since 1970.
pub(super) fn time(text: &str) -> Result<Timestamp> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok(Timestamp::from_duration(SignedDuration::try_from_secs_f64(seconds)?)?);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let ago: SignedDuration = text.parse().map_err(|_| anyhow!("not a time such as 2026-11-25T10:00:00Z, or 10m"))?;
    Ok(Timestamp::now().checked_sub(ago)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_spans() {
        assert_eq!(time("2026-11-25T10:00:00Z").expect("a time").as_second(), 1_795_600_800);
        assert_eq!(time("1795600800.5").expect("a time").as_millisecond(), 1_795_600_800_500);
        for ago in ["10m", "1h30m", "90s"] {
            assert!(time(ago).expect("a span") < Timestamp::now());
        }
        for text in ["", "x", "10q"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert_eq!((tail("all").expect("all"), tail("7").expect("seven")), (None, Some(7)));
        assert!(tail("x").is_err());
    }
}
