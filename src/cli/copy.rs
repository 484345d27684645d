//! `tupper cp`.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail};
use clap::{ArgAction, Args};
use tupper::container::{self, Copying, End};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples: tupper cp web:/etc/passwd . ; tupper cp site/. web:/srv ; tar c site | tupper cp - web:/srv\n\n\
                        A path begins with / or ., or has no colon. SRC/. is what is in the directory SRC."
)]
pub(super) struct Cp {
    /// Files become the container's user's, on the host root's; =false: they keep their owners
    #[arg(long, short, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true)]
    archive: bool,
    /// Replace directories by other files, and other files by directories
    #[arg(long)]
    overwrite: bool,
    /// What to copy; -: a tar archive on standard input
    #[arg(value_name = "[CONTAINER:]SRC|-")]
    source: String,
    /// Where to; -: a tar archive on standard output
    #[arg(value_name = "[CONTAINER:]DST|-")]
    destination: String,
}

impl Cp {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let copying = Copying { keep_owners: !self.archive, overwrite: self.overwrite };
        let (from, to) = (end(&self.source), end(&self.destination));
        let in_container = |end: &Option<End>| matches!(end, Some(End::Container { .. }));
        if !in_container(&from) && !in_container(&to) {
            bail!("cp: neither SRC nor DST is in a container: CONTAINER:PATH");
        }
        let store = super::open_existing(root)?;
        match (from, to) {
            (Some(from), Some(to)) => Ok(container::copy(&store, &from, &to, &copying)?),
            (None, Some(to)) => Ok(container::copy_in(&store, Box::new(io::stdin()), &to, &copying)?),
            (Some(from), None) => {
                if io::IsTerminal::is_terminal(&io::stdout()) {
                    bail!("cp: an archive is not for a terminal; give a file as standard output");
                }
                let mut out = io::stdout().lock();
                container::copy_out(&store, &from, &mut out)?;
                Ok(out.flush()?)
            }
            (None, None) => bail!("cp: one of SRC and DST is in a container"),
        }
    }
}

/// Nothing for `-`.
fn end(text: &str) -> Option<End> {
    if text == "-" {
        return None;
    }
    Some(match text.split_once(':') {
        Some((container, path)) if !container.is_empty() && !container.contains('/') && !text.starts_with('.') => {
            End::Container { container: container.to_string(), path: Path::new("/").join(path) }
        }
        _ => End::Host(text.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_of_containers_or_of_the_host() {
        let inside =
            |container: &str, path: &str| Some(End::Container { container: container.to_string(), path: path.into() });
        assert_eq!(end("web:/etc/passwd"), inside("web", "/etc/passwd"));
        assert_eq!(end("web:etc/."), inside("web", "/etc/."));
        assert_eq!(end("web:a:b"), inside("web", "/a:b"));
        assert_eq!(end("web:"), inside("web", "/"));
        for host in ["/a:b", "./a:b", "../a:b", "a/b:c", "plain", ":x", "."] {
            assert_eq!(end(host), Some(End::Host(host.into())), "{host}");
        }
        assert_eq!(end("-"), None);
    }
}
