//! How fast it is, here: measures snapshots, containers and imports, beside what else a person could use.
//!
//! ```text
//! contenders ──rounds──> samples ──stats──> percentiles, histogram ──plot──> SVG
//! take turns             sorted             of each operation
//! ```
//!
//! A measurement makes nothing that stays: all of it goes with a scratch room, when the measurement has ended, well or not,
//! and with the next command that writes when it was killed.

mod import;
mod machine;
mod plot;
mod program;
mod rounds;
mod run;
mod scratch;
mod snapshot;
mod stats;

use std::time::Duration;

pub use import::{Import, import};
pub use machine::Machine;
pub use plot::svg;
pub use run::{Run, Runner, run};
pub use snapshot::{Snapshot, Way, snapshot};
pub use stats::{Samples, Scale, rate_text, round_time_text, time_text};

/// What was measured, and on what.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was done, for a heading.
    pub title: String,
    /// How it was done.
    pub conditions: Vec<String>,
    /// What it was done on.
    pub machine: Machine,
    /// The figures, in the order in which they were asked for; this program's come first.
    pub series: Vec<Series>,
}

/// One operation of one contender.
#[derive(Debug, Clone)]
pub struct Series {
    /// Who did it.
    pub contender: String,
    /// What was done.
    pub operation: &'static str,
    /// How long each took.
    pub samples: Samples,
    /// How long all of them took; less than their sum where several were done at once.
    pub wall: Duration,
}

impl Series {
    /// How many were done in a second.
    pub fn per_second(&self) -> f64 {
        self.samples.count() as f64 / self.wall.as_secs_f64().max(1e-9)
    }
}

impl Report {
    /// The operations, each once, in their order.
    pub fn operations(&self) -> Vec<&'static str> {
        let mut operations: Vec<&'static str> = Vec::new();
        for series in &self.series {
            if !operations.contains(&series.operation) {
                operations.push(series.operation);
            }
        }
        operations
    }

    /// The figures of an operation.
    pub fn of<'a>(&'a self, operation: &'a str) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| series.operation == operation)
    }

    /// The axis of time that all of them have in common.
    pub fn scale(&self) -> Scale {
        Scale::of(self.series.iter().map(|series| &series.samples))
    }
}

/// `1 at a time` or `8 at once`.
fn at_once(parallel: usize) -> String {
    if parallel == 1 { "one at a time".to_string() } else { format!("{parallel} at once") }
}
