//! `tupper start` and `attach`, and what it means to be at a container.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgAction, Args};
use tupper::container::{self, Attachment, Container, DetachKeys, Narrate, Parted, State};

use super::chosen::Chosen;
use super::output;

/// How to be at a container.
#[derive(Debug, Args)]
pub(super) struct Attaching {
    /// The keys that let go of a container with a terminal, which goes on; none: ""
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Pass signals on to the command
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true)]
    sig_proxy: bool,
}

impl Attaching {
    pub(super) fn attachment(&self, input: bool) -> Attachment {
        Attachment { input, signals: self.sig_proxy, keys: self.detach_keys.clone() }
    }
}

/// The status of who was at a container.
pub(super) fn parted(parted: Option<Parted>) -> Result<ExitCode> {
    Ok(match parted {
        Some(Parted::Exited(exit)) => super::run::exit_code(&exit),
        Some(Parted::Interrupted(signal)) => ExitCode::from(128u8.saturating_add(u8::try_from(signal).unwrap_or(0))),
        Some(Parted::Detached) | None => ExitCode::SUCCESS,
    })
}

#[derive(Debug, Args)]
#[command(after_help = "Examples: tupper start web; tupper start -ai shell; after a reboot: tupper start --all \
                        --filter should-start-on-boot=true")]
pub(super) struct Start {
    /// Stay at the command, until it ends
    #[arg(long, short)]
    attach: bool,
    /// Let what is typed go to the command, if it reads its input
    #[arg(long, short, requires = "attach")]
    interactive: bool,
    #[command(flatten)]
    attaching: Attaching,
    /// Print each step as it is done, with the command a person would type for it
    #[arg(long)]
    explain: bool,
    /// All that do not run
    #[arg(long, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: Chosen,
}

impl Start {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_make(root)?;
        let rests = |container: &Container| matches!(container.state, State::Created | State::Exited(_));
        let containers = self.chosen.names(&store, rests)?;
        if self.attach && containers.len() != 1 {
            anyhow::bail!("start -a: one can be at one container, and these are {}", containers.len());
        }
        let narrate: Option<Narrate<'_>> = self.explain.then_some(&super::run::narrate);
        let start = |text: &str| {
            let attachment = self.attach.then(|| self.attaching.attachment(self.interactive));
            container::start(&store, text, attachment, narrate)
        };
        if let ([one], true) = (containers.as_slice(), self.attach) {
            return parted(start(one)?.follow(narrate)?);
        }
        Ok(super::for_each_run(&containers, |text| {
            start(text)?;
            output::line(text)
        }))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper attach web; ctrl-p ctrl-q lets go of it")]
pub(super) struct Attach {
    /// Type nothing to the command
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    attaching: Attaching,
    /// Name or id
    container: String,
}

impl Attach {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let attachment = self.attaching.attachment(!self.no_stdin);
        parted(Some(container::attach(&store, &self.container, attachment)?))
    }
}
