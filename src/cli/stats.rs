//! `tupper stats`

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tupper::container::{self, Stats as Used};
use tupper::interrupt;

use super::output::{self, Format};

/// Clears a terminal and begins at its top: ECMA-48, ED and CUP.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

#[derive(Debug, Args)]
#[command(
    after_help = "Examples: tupper stats --no-stream; tupper stats -i 1 web\n\nWhat no cgroup of a container counts is \
    added up from its processes: memory then is their share (Pss), without the page cache."
)]
pub(super) struct Stats {
    /// Names or ids; by default every container that runs
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// On a terminal, show each time below the last
    #[arg(long)]
    no_reset: bool,
    /// Seconds between two times
    #[arg(long, short, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86400))]
    interval: u64,
    /// How to print
    #[arg(long, default_value = "table")]
    format: Format,
}

impl Stats {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        interrupt::catch()?;
        let clear = std::io::stdout().is_terminal() && !self.no_stream && !self.no_reset;
        let named = container::running(&store, &self.containers)?;
        let wanted = (!named.is_empty()).then_some(named.as_slice());
        let mut before: Vec<Used> = Vec::new();
        loop {
            let now = container::stats(&store, wanted)?;
            let last = |used: &Used| before.iter().find(|before| before.id == used.id).cloned();
            let rows: Vec<Row> = now.iter().map(|used| Row::of(used, last(used).as_ref())).collect();
            if clear {
                output::text(CLEAR)?;
            }
            match self.format {
                Format::Json => output::json(&Value::Array(rows.iter().map(Row::json).collect()))?,
                Format::Table => output::table(&TITLES, &rows.iter().map(Row::cells).collect::<Vec<_>>())?,
            }
            if self.no_stream || now.is_empty() && wanted.is_some() {
                return Ok(());
            }
            before = now;
            if interrupt::pause(Duration::from_secs(self.interval)) {
                return Ok(());
            }
        }
    }
}

/// podman-stats(1).
const TITLES: [&str; 10] =
    ["ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET IO", "BLOCK IO", "PIDS", "CPU TIME", "AVG CPU %"];

/// What is said of a container, in words.
struct Row {
    id: String,
    name: String,
    processor: String,
    memory: String,
    memory_percent: String,
    network: String,
    blocks: String,
    tasks: u64,
    time: String,
    average: String,
}

impl Row {
    fn of(used: &Used, before: Option<&Used>) -> Row {
        let pair = |(a, b): (u64, u64)| format!("{} / {}", output::size(a), output::size(b));
        let percent = |value: f64| format!("{value:.2}%");
        Row {
            id: used.id.short(),
            name: used.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            processor: percent(used.processor(before)),
            memory: pair((used.memory, used.memory_limit)),
            memory_percent: percent(100.0 * used.memory as f64 / used.memory_limit.max(1) as f64),
            network: used.network.map_or("-- / --".to_string(), pair),
            blocks: pair(used.blocks),
            tasks: used.tasks,
            time: format!("{:.3}s", used.time),
            average: percent(used.average()),
        }
    }

    fn cells(&self) -> Vec<String> {
        let Row { id, name, processor, memory, memory_percent, network, blocks, tasks, time, average } = self;
        let tasks = &tasks.to_string();
        [id, name, processor, memory, memory_percent, network, blocks, tasks, time, average].map(String::clone).to_vec()
    }

    /// podman's keys.
    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "cpu_percent": self.processor,
            "mem_usage": self.memory,
            "mem_percent": self.memory_percent,
            "net_io": self.network,
            "block_io": self.blocks,
            "pids": self.tasks.to_string(),
            "cpu_time": self.time,
            "avg_cpu": self.average,
        })
    }
}
