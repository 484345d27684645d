//! `tupper pause` and `unpause`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use tupper::container::{self, Container, State};
use tupper::error::Result as Done;
use tupper::name::Id;
use tupper::store::Store;

use super::chosen::Chosen;
use super::output;

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper pause web; tupper ps; tupper unpause web")]
pub(super) struct Pause {
    /// All that it can be done to
    #[arg(long, short, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: Chosen,
}

impl Pause {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        self.each(root, false, container::pause)
    }

    pub(super) fn undo(self, root: &Path) -> Result<ExitCode> {
        self.each(root, true, container::unpause)
    }

    fn each(self, root: &Path, paused: bool, change: fn(&Store, &str) -> Done<Id>) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let can = |container: &Container| matches!(container.state, State::Running(_)) && container.paused == paused;
        let containers = self.chosen.names(&store, can)?;
        Ok(super::for_each(&containers, |text| {
            change(&store, text)?;
            output::line(text)
        }))
    }
}
