//! `tupper top`

use std::path::Path;

use anyhow::Result;
use clap::Args;
use tupper::container;

use super::output;

#[derive(Debug, Args)]
#[command(
    after_help = "Example: tupper top web user pid pcpu capeff args\n\nDescriptors, as in podman-top(1): args capamb \
    capbnd capeff capinh capprm comm etime group groups hgroup hpid huser label nice pcpu pgid pid ppid rss seccomp session \
    state threads time tty user vsz. Those that begin with h are the host's, the others the container's; rss and vsz are KiB."
)]
pub(super) struct Top {
    /// Name or id
    container: String,
    /// What to show of each process [default: user pid ppid pcpu etime tty time args]
    #[arg(value_name = "DESCRIPTOR", allow_hyphen_values = true)]
    descriptors: Vec<String>,
}

impl Top {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let store = super::open_existing(root)?;
        let named = self.descriptors.iter().flat_map(|word| word.split([',', ' '])).filter(|word| !word.is_empty());
        let mut wanted: Vec<String> = named.map(str::to_string).collect();
        if wanted.is_empty() {
            wanted = container::DEFAULT_DESCRIPTORS.map(str::to_string).to_vec();
        }
        let table = container::top(&store, &self.container, &wanted)?;
        output::table(&table.titles, &table.rows)
    }
}
