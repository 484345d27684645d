//! `tupper commit`, `tupper snapshot commit`: podman-commit(1).

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use jiff::Timestamp;
use tupper::error::Context;
use tupper::image::{self, Change};
use tupper::name::ImageName;
use tupper::{container, interrupt};

use super::output;
use super::progress::Bar;

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper commit -m 'with curl' -c 'CMD [\"bash\"]' web localhost/web:2")]
pub(super) struct Commit {
    /// A container, a snapshot, or a subvolume beside the store by its path
    #[arg(value_name = "CONTAINER|SNAPSHOT")]
    source: String,
    /// The new image's name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<ImageName>,
    /// Change the image's config by a Dockerfile instruction, such as 'CMD ["sh"]'
    #[arg(long, short, value_name = "INSTRUCTION")]
    change: Vec<Change>,
    /// A comment for the image's history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Who made it
    #[arg(long, short, value_name = "TEXT")]
    author: Option<String>,
    /// When the image counts as made, in seconds since 1970, and what is in its new layer as modified at the latest: the same
    /// tree then gives the same image
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", hide_env_values = true, value_parser = seconds)]
    source_date_epoch: Option<Timestamp>,
    /// Make one layer of all that is there, instead of one more of what differs
    #[arg(long, short)]
    squash: bool,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Let the processes of a running container go on meanwhile
    #[arg(long)]
    no_pause: bool,
    /// The same, as podman has it: --pause=false
    #[arg(
        long,
        short,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        conflicts_with = "no_pause"
    )]
    pause: Option<bool>,
    /// No progress bar
    #[arg(long, short)]
    quiet: bool,
}

fn seconds(text: &str) -> Result<Timestamp> {
    let seconds = text.parse().map_err(|_| anyhow!("not a number of seconds"))?;
    Timestamp::from_second(seconds).map_err(|_| anyhow!("out of range"))
}

impl Commit {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let store = super::open_to_make(root)?;
        interrupt::catch()?;
        let commit = image::Commit {
            name: self.name,
            changes: self.change,
            message: self.message,
            author: self.author,
            squash: self.squash,
            created: self.source_date_epoch,
        };
        let bar = Bar::new(&output::one_line(format_args!("committing {}", self.source)), self.quiet);
        let pause = self.pause.unwrap_or(!self.no_pause);
        let id = container::commit(&store, &self.source, &commit, pause, bar.callback())?;
        drop(bar);
        if let Some(file) = &self.iidfile {
            std::fs::write(file, id.to_string()).context(|| format!("image {id} is made: write {}", file.display()))?;
        }
        output::line(id)
    }
}
