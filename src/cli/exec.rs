//! `tupper exec`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use tupper::container::{self, Narrate};

use super::flags::Environment;
use super::output;

#[derive(Debug, Args)]
#[command(after_help = "Examples: tupper exec -it web bash; tupper exec -u postgres db psql")]
pub(super) struct Exec {
    /// Leave it running in the container, and print an id
    #[arg(long, short)]
    detach: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Let the command read standard input
    #[arg(long, short)]
    interactive: bool,
    #[command(flatten)]
    environment: Environment,
    /// The working directory inside
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Who runs the command
    #[arg(long, short, value_name = "NAME|UID[:GROUP|GID]")]
    user: Option<String>,
    /// Give the command every capability
    #[arg(long)]
    privileged: bool,
    /// Print each step as it is done, with the command a person would type for it
    #[arg(long)]
    explain: bool,
    /// Name or id
    container: String,
    /// The command and its arguments
    #[arg(required = true, value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Exec {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        if self.tty && self.interactive && !std::io::stdin().is_terminal() {
            log::warn!("the input device is not a terminal: -t and -i may not work together as expected");
        }
        let store = super::open_existing(root)?;
        let narrate: Option<Narrate<'_>> = self.explain.then_some(&super::run::narrate);
        let exec = container::Exec {
            args: self.args,
            env: self.environment.variables()?,
            workdir: self.workdir,
            user: self.user,
            tty: self.tty && !self.detach,
            interactive: self.interactive && !self.detach,
            privileged: self.privileged,
            term: std::env::var("TERM").ok(),
        };
        if self.detach {
            return output::line(container::exec_detached(&store, &self.container, &exec, narrate)?)
                .map(|()| ExitCode::SUCCESS);
        }
        Ok(super::run::exit_code(&container::exec(&store, &self.container, &exec, narrate)?))
    }
}
