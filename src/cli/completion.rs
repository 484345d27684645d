//! `tupper completion SHELL`, and the man pages that `make install` puts in place.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use clap_complete::Shell;
use tupper::error::Context;

use super::output;

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper completion bash > /etc/bash_completion.d/tupper")]
pub(super) struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "tupper", &mut script);
        output::text(&String::from_utf8_lossy(&script))
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where the pages go
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<()> {
        let directory = self.directory.display();
        std::fs::create_dir_all(&self.directory).context(|| format!("create the directory {directory}"))?;
        clap_mangen::generate_to(super::command(), &self.directory)
            .context(|| format!("write man pages into {directory}"))?;
        Ok(())
    }
}
