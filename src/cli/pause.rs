//! `tupper pause` and `unpause`

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use tupper::container;
use tupper::error::Result as Done;
use tupper::name::Id;
use tupper::store::Store;

use super::output;

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper pause web; tupper ps; tupper unpause web")]
pub(super) struct Pause {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Pause {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        self.each(root, container::pause)
    }

    pub(super) fn undo(self, root: &Path) -> Result<ExitCode> {
        self.each(root, container::unpause)
    }

    fn each(self, root: &Path, change: fn(&Store, &str) -> Done<Id>) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        Ok(super::for_each(&self.containers, |text| {
            change(&store, text)?;
            output::line(text)
        }))
    }
}
