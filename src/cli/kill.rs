//! `tupper kill` and `rename`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use tupper::container::{self, State};
use tupper::name::ObjectName;
use tupper::sandbox::Signal;

use super::chosen::Chosen;
use super::output;

#[derive(Debug, Args)]
pub(super) struct Kill {
    /// Which signal: a name with or without SIG, or a number
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: Signal,
    /// All that run
    #[arg(long, short, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: Chosen,
}

impl Kill {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let containers = self.chosen.names(&store, |container| matches!(container.state, State::Running(_)))?;
        Ok(super::for_each(&containers, |text| {
            container::kill_with(&store, text, self.signal)?;
            output::line(text)
        }))
    }
}

/// A signal as a flag's value.
pub(super) fn signal(text: &str) -> tupper::error::Result<Signal> {
    text.parse()
}

#[derive(Debug, Args)]
pub(super) struct Rename {
    /// Name or id
    container: String,
    /// What it is called from now on
    name: ObjectName,
}

impl Rename {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        Ok(container::rename(&super::open_to_make(root)?, &self.container, &self.name)?)
    }
}
