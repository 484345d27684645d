//! `tupper bench …`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tupper::bench::{self, Report, Runner, Series, Way};
use tupper::error::{Context, Error, Kind};
use tupper::interrupt;
use tupper::store::Store;
use tupper::transport::Source;

use super::limits::LimitArgs;
use super::output::{self, Format};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Measure how long it takes to make a snapshot and to remove it
    Snapshot(Snapshot),
    /// Measure how long a throwaway container takes, from nothing to everything gone
    Run(Run),
    /// Measure how long it takes to import a root filesystem
    Import(Import),
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        match self {
            Verb::Snapshot(verb) => verb.run(root),
            Verb::Run(verb) => verb.run(root),
            Verb::Import(verb) => verb.run(root),
        }
    }
}

/// How often, and what becomes of the figures.
#[derive(Debug, Args)]
struct Figures {
    /// Samples of each; fewer of what takes longer than a minute in all
    #[arg(long, value_name = "N", default_value = "200", value_parser = number)]
    count: usize,
    /// Draw the figures into a file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper bench snapshot --against cp,reflink,overlay,btrfs-progs --plot bench.svg\n\n\
    Whatever it makes is removed again, by the next command if it is killed.")]
pub(super) struct Snapshot {
    /// What to make them of: an image, a snapshot or a container; by default the only image, or the one used last
    #[arg(long, value_name = "IMAGE|SNAPSHOT")]
    source: Option<String>,
    /// How many are made at once
    #[arg(long, value_name = "P", default_value = "1", value_parser = number)]
    parallel: usize,
    /// How many other snapshots of it are there meanwhile
    #[arg(long, value_name = "N", default_value = "0")]
    live: u64,
    /// Other ways to do it, measured in turn
    #[arg(long, value_name = "WAY,…", value_enum, value_delimiter = ',')]
    against: Vec<AgainstSnapshot>,
    #[command(flatten)]
    figures: Figures,
}

/// Another way to a writable tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AgainstSnapshot {
    /// `cp -a` of every byte.
    Cp,
    /// `cp -a` with shared extents.
    Reflink,
    /// An overlayfs over the source.
    Overlay,
    /// `btrfs subvolume snapshot` and `delete`.
    BtrfsProgs,
}

impl From<AgainstSnapshot> for Way {
    fn from(way: AgainstSnapshot) -> Way {
        match way {
            AgainstSnapshot::Cp => Way::Cp,
            AgainstSnapshot::Reflink => Way::Reflink,
            AgainstSnapshot::Overlay => Way::Overlay,
            AgainstSnapshot::BtrfsProgs => Way::Progs,
        }
    }
}

impl Snapshot {
    fn run(self, root: &Path) -> Result<()> {
        self.figures.require_plot()?;
        let store = open(root)?;
        let what = bench::Snapshot {
            source: source(&store, self.source, "bench snapshot")?,
            count: self.figures.count,
            parallel: self.parallel,
            live: self.live,
            against: once(self.against).into_iter().map(Way::from).collect(),
        };
        let asked = json!({ "Source": what.source, "Parallel": what.parallel, "Live": what.live });
        self.figures.show(&bench::snapshot(&store, &what)?, asked)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper bench run --against podman debian:12 true")]
pub(super) struct Run {
    /// How many run at once
    #[arg(long, value_name = "P", default_value = "1", value_parser = number)]
    parallel: usize,
    /// Other programs to do it, measured in turn
    #[arg(long, value_name = "PROGRAM,…", value_enum, value_delimiter = ',')]
    against: Vec<AgainstRun>,
    #[command(flatten)]
    figures: Figures,
    /// An image, a snapshot or a container; by default the only image, or the one used last
    #[arg(value_name = "IMAGE|SNAPSHOT")]
    source: Option<String>,
    /// The command and its arguments; `true` without one
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Another program that runs a command in a root of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AgainstRun {
    /// `podman run --rm`.
    Podman,
    /// `systemd-nspawn -x`.
    Nspawn,
    /// `bwrap`, without a snapshot.
    Bwrap,
}

impl From<AgainstRun> for Runner {
    fn from(runner: AgainstRun) -> Runner {
        match runner {
            AgainstRun::Podman => Runner::Podman,
            AgainstRun::Nspawn => Runner::Nspawn,
            AgainstRun::Bwrap => Runner::Bwrap,
        }
    }
}

impl Run {
    fn run(self, root: &Path) -> Result<()> {
        self.figures.require_plot()?;
        let store = open(root)?;
        let what = bench::Run {
            source: source(&store, self.source, "bench run")?,
            command: self.command,
            count: self.figures.count,
            parallel: self.parallel,
            against: once(self.against).into_iter().map(Runner::from).collect(),
        };
        let asked = json!({ "Source": what.source, "Command": what.command, "Parallel": what.parallel });
        self.figures.show(&bench::run(&store, &what)?, asked)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper bench import --count 20 images/debian/out/debian.tar")]
pub(super) struct Import {
    /// A tar file (plain, gzip, zstd, xz or bzip2) or a directory
    #[arg(value_name = "FILE|DIR")]
    source: String,
    #[command(flatten)]
    figures: Figures,
    #[command(flatten)]
    limits: LimitArgs,
}

impl Import {
    fn run(self, root: &Path) -> Result<()> {
        self.figures.require_plot()?;
        let source = Source::locate(&self.source)?;
        interrupt::catch()?;
        let store = Store::open_or_init(root)?;
        tupper::check::tidy(&store);
        let what = bench::Import { source, count: self.figures.count, limits: self.limits.into() };
        self.figures.show(&bench::import(&store, what)?, json!({ "Source": self.source }))
    }
}

/// The store; from here on a signal ends the measurement, and what it has made is removed.
fn open(root: &Path) -> Result<Store> {
    let store = super::open_to_make(root)?;
    interrupt::catch()?;
    Ok(store)
}

fn source(store: &Store, named: Option<String>, verb: &str) -> Result<String> {
    named.map_or_else(|| super::run::default_image(store, verb), Ok)
}

fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("nothing would be measured".to_string()),
        Ok(n @ 1..=1_000_000) => Ok(n),
        Ok(_) => Err("more than 1000000".to_string()),
        Err(e) => Err(format!("not a number: {e}")),
    }
}

/// Whoever names one twice means it once.
fn once<T: PartialEq>(named: Vec<T>) -> Vec<T> {
    let mut once = Vec::new();
    for one in named {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}

impl Figures {
    /// What can be known of the plot before minutes are spent on it.
    fn require_plot(&self) -> Result<()> {
        let Some(plot) = &self.plot else { return Ok(()) };
        let wrong = |why: &str| Err(Error::new(Kind::Invalid, format!("plot {}: {why}", plot.display())).into());
        if plot.extension().is_none_or(|extension| extension != "svg") {
            return wrong("not a name that ends in .svg, which is what is drawn");
        }
        match plot.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) if !parent.is_dir() => wrong("its directory is not there"),
            _ if plot.is_dir() => wrong("it is a directory"),
            _ => Ok(()),
        }
    }

    /// Draws and prints.
    fn show(&self, report: &Report, asked: Value) -> Result<()> {
        if let Some(plot) = &self.plot {
            std::fs::write(plot, bench::svg(report)).context(|| format!("write the plot {}", plot.display()))?;
        }
        match self.format {
            Format::Json => output::json(&document(report, asked)),
            Format::Table => table(report),
        }
    }
}

fn table(report: &Report) -> Result<()> {
    let lines = std::iter::once(&report.title).chain(&report.conditions).cloned().chain(report.machine.lines());
    output::text(&lines.map(|line| output::one_line(line) + "\n").collect::<String>())?;
    output::line("")?;
    let row = |series: &Series| {
        let samples = &series.samples;
        let mut row = vec![series.operation.to_string(), series.contender.clone(), samples.count().to_string()];
        row.extend([50, 90, 99].map(|percent| bench::time_text(samples.percentile(percent))));
        row.extend([bench::time_text(samples.max()), bench::rate_text(series.per_second())]);
        row
    };
    let operations = report.operations();
    let rows: Vec<_> = operations.iter().flat_map(|operation| report.of(operation).map(row)).collect();
    output::table(&["WHAT", "BY", "SAMPLES", "P50", "P90", "P99", "MAX", "OPS/S"], &rows)?;
    output::text(&histograms(report))
}

/// Columns of a histogram on the terminal.
const COLUMNS: usize = 56;

/// A line for each row of the table, all over one axis of time: how high a column is says how many samples are there.
fn histograms(report: &Report) -> String {
    const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let scale = report.scale();
    let width = report.series.iter().map(|series| series.contender.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for operation in report.operations() {
        text.push_str(&format!("\n{operation}\n"));
        for series in report.of(operation) {
            let counts = series.samples.histogram(scale, COLUMNS);
            let most = counts.iter().copied().max().unwrap_or(1).max(1);
            // What is there at all is seen.
            let columns: String = counts.iter().map(|count| LEVELS[(count * 8).div_ceil(most).min(8)]).collect();
            text.push_str(&format!("  {:<width$}  │{columns}│\n", series.contender));
        }
        text.push_str(&format!("  {:<width$}  {}\n", "", axis(scale)));
    }
    text
}

/// The marks of the axis with their times, as many as there is room for.
fn axis(scale: bench::Scale) -> String {
    let mut line: Vec<char> = Vec::new();
    for (place, time) in scale.marks() {
        let at = 1 + (place * COLUMNS as f64).round() as usize;
        let label: Vec<char> = format!("╵{}", bench::round_time_text(time)).chars().collect();
        if line.is_empty() || at > line.len() + 1 {
            line.resize(at, ' ');
            line.extend(label);
        }
    }
    line.into_iter().collect()
}

/// Times are in milliseconds.
fn document(report: &Report, asked: Value) -> Value {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let machine = &report.machine;
    let scale = report.scale();
    let series: Vec<Value> = report
        .series
        .iter()
        .map(|series| {
            let samples = &series.samples;
            let bound = |bucket: usize| ms(scale.time(bucket as f64 / COLUMNS as f64));
            let counts = samples.histogram(scale, COLUMNS).into_iter().enumerate().filter(|(_, count)| *count > 0);
            let histogram: Vec<Value> = counts
                .map(|(bucket, count)| json!({ "From": bound(bucket), "To": bound(bucket + 1), "Count": count }))
                .collect();
            json!({
                "Operation": series.operation, "By": series.contender, "Samples": samples.count(),
                "Min": ms(samples.min()), "Mean": ms(samples.mean()), "P50": ms(samples.percentile(50)),
                "P90": ms(samples.percentile(90)), "P99": ms(samples.percentile(99)), "Max": ms(samples.max()),
                "PerSecond": series.per_second(), "Histogram": histogram,
            })
        })
        .collect();
    json!({
        "Title": report.title, "Asked": asked, "Conditions": report.conditions, "Unit": "ms",
        "Machine": {
            "Program": machine.program, "Kernel": machine.kernel, "Processor": machine.processor,
            "Processors": machine.processors, "Memory": machine.memory, "Device": machine.device,
            "MountOptions": machine.mount_options, "NodeSize": machine.node_size, "Size": machine.size,
        },
        "Series": series,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numbers_of_something() {
        assert_eq!(number("7"), Ok(7));
        for text in ["0", "-1", "x", "", "1000001"] {
            assert!(number(text).is_err(), "{text}");
        }
        assert_eq!(once(vec![1, 2, 1, 3, 2]), [1, 2, 3]);
    }
}
