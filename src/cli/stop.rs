//! `tupper stop`, `restart` and `wait`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tupper::container::{self, State};
use tupper::error::Kind;
use tupper::store::Store;

use super::chosen::Chosen;
use super::output;

/// Which containers, and how long they have to end.
#[derive(Debug, Args)]
struct Ending {
    /// All that run
    #[arg(long, short, conflicts_with = "containers")]
    all: bool,
    #[command(flatten)]
    chosen: Chosen,
    /// Seconds to wait before one is killed; by default what it was made with, or 10
    #[arg(long, short, visible_alias = "timeout", value_name = "SECONDS")]
    time: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// One that does not exist is no error
    #[arg(long, short)]
    ignore: bool,
    #[command(flatten)]
    ending: Ending,
}

impl Stop {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        let containers = self.ending.containers(&store)?;
        Ok(self.ending.end(&store, &containers, self.ignore, |text| output::line(text)))
    }
}

#[derive(Debug, Args)]
pub(super) struct Restart {
    #[command(flatten)]
    ending: Ending,
}

impl Restart {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_to_make(root)?;
        let containers = self.ending.containers(&store)?;
        Ok(self.ending.end(&store, &containers, false, |text| {
            container::start(&store, text, None, None)?;
            output::line(text)
        }))
    }
}

impl Ending {
    fn containers(&self, store: &Store) -> Result<Vec<String>> {
        self.chosen.names(store, |container| matches!(container.state, State::Running(_) | State::Restarting(_)))
    }

    /// All are asked to end before the first is waited for: what does not obey takes its time beside the others.
    fn end(
        &self,
        store: &Store,
        containers: &[String],
        ignore: bool,
        mut ended: impl FnMut(&str) -> Result<()>,
    ) -> ExitCode {
        let patience = self.time.map(|seconds| Duration::from_secs(seconds.into()));
        let asked: Vec<_> = containers.iter().map(|text| container::begin_stop(store, text, patience)).collect();
        let mut asked = asked.into_iter();
        super::for_each(containers, |text| {
            match asked.next() {
                Some(Err(e)) if ignore && e.kind() == Kind::NotFound => return Ok(()),
                Some(Ok(Some(stopping))) => stopping.finish()?,
                Some(Err(e)) => return Err(e.into()),
                Some(Ok(None)) | None => {}
            }
            ended(text)
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// One that does not exist has status -1
    #[arg(long)]
    ignore: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let store = super::open_existing(root)?;
        Ok(super::for_each(&self.containers, |text| match container::wait(&store, text) {
            Ok(status) => output::line(status),
            Err(e) if self.ignore && e.kind() == Kind::NotFound => output::line(-1),
            Err(e) => Err(e.into()),
        }))
    }
}
