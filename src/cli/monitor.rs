//! What this program is when it is a container's monitor. Nobody types it: `container::launch` runs it so.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use tupper::container::{self, Narrate};

/// Without clap: what it would leave in memory would stay as long as the container runs.
pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    let done = run(arguments);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => super::failed(&e, true),
    }
}

fn run(arguments: &[OsString]) -> Result<()> {
    let [root, id, level, rest @ ..] = arguments else {
        return Err(anyhow!("this verb is for tupper itself"));
    };
    let text = |word: &OsString| word.to_str().map(str::to_string).ok_or_else(|| anyhow!("not text"));
    super::logger::init(text(level)?.parse()?);
    let narrate: Option<Narrate<'_>> = (!rest.is_empty()).then_some(&super::run::narrate);
    Ok(container::monitor(Path::new(root), &text(id)?.parse()?, narrate)?)
}
