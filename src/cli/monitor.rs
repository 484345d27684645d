//! What this program is when it is a container's monitor, a network's resolver or a container's proxy. Nobody types it: `container::launch` runs it so.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use tupper::container::{self, Narrate};

/// Without clap: what it would leave in memory would stay as long as the container runs.
pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    ended(run(arguments))
}

/// What it is when it is a network's resolver: `network` runs it so.
pub(super) fn resolver(arguments: &[OsString]) -> ExitCode {
    ended(match arguments {
        [link] => text(link).and_then(|link| Ok(tupper::network::resolve(&link)?)),
        _ => Err(anyhow!("this verb is for tupper itself")),
    })
}

/// What it is when it forwards connections to a container: `network` runs it so.
pub(super) fn proxy(arguments: &[OsString]) -> ExitCode {
    let targets: Result<Vec<_>> = arguments.iter().map(|word| Ok(text(word)?.parse()?)).collect();
    ended(targets.and_then(|targets| Ok(tupper::network::forward(&targets)?)))
}

fn ended(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => super::failed(&e, true),
    }
}

fn text(word: &OsString) -> Result<String> {
    word.to_str().map(str::to_string).ok_or_else(|| anyhow!("not text"))
}

fn run(arguments: &[OsString]) -> Result<()> {
    let [root, id, level, rest @ ..] = arguments else {
        return Err(anyhow!("this verb is for tupper itself"));
    };
    super::logger::init(text(level)?.parse()?);
    let narrate: Option<Narrate<'_>> = (!rest.is_empty()).then_some(&super::run::narrate);
    Ok(container::monitor(Path::new(root), &text(id)?.parse()?, narrate)?)
}
