//! Programs that are run to be measured: from before the fork until after the wait, as a person waits for them.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::kernel::process::{self, Polled};
use crate::kernel::{fs, signal};

/// This program, whatever has become of its file.
pub(super) const THIS: &str = "/proc/self/exe";

/// How often is looked for a signal that asks to stop, in milliseconds.
const LOOK: u16 = 100;

/// How long a program has to end by itself that is asked to.
const PATIENCE: Duration = Duration::from_secs(1);

/// Fails, with the way out, unless a program of this name is in PATH.
pub(super) fn require(program: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if std::env::split_paths(&path).any(|directory| runs(&directory.join(program))) {
        return Ok(());
    }
    let error = Error::new(Kind::NotFound, format!("bench: {program}: not installed"));
    Err(error.with_hint("install it, or leave it out of --against"))
}

/// Runs it to its end, which has to be status 0. What it prints is dropped.
pub(super) fn run(command: &mut Command) -> Result<()> {
    finish(command.stdout(Stdio::null()))
}

/// Runs it to its end, and returns what it has printed.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let printed = unnamed_file()?;
    finish(command.stdout(printed.try_clone()?))?;
    read(printed)
}

/// A person who has seen enough ends it, too. Its errors go to a file: whoever it leaves behind may keep a pipe open.
fn finish(command: &mut Command) -> Result<()> {
    let name =
        if command.get_program() == THIS { "tupper".into() } else { command.get_program().display().to_string() };
    let errors = unnamed_file()?;
    command.stdin(Stdio::null()).stderr(errors.try_clone()?);
    let mut child = command.spawn().context(|| format!("run {name}"))?;
    if let Some(pidfd) = i32::try_from(child.id()).ok().map(process::open).transpose()?.flatten() {
        let mut asked: Option<Instant> = None;
        while !process::poll([Some((pidfd.as_fd(), Polled::READ))], Some(LOOK))?[0].any() {
            match asked {
                None if interrupt::caught().is_some() => {
                    signal::send(pidfd.as_fd(), signal::SIGTERM)?;
                    asked = Some(Instant::now());
                }
                // The first process of a container is spared signals that it does not expect (pid_namespaces(7)).
                Some(then) if then.elapsed() > PATIENCE => signal::send(pidfd.as_fd(), signal::SIGKILL)?,
                _ => {}
            }
        }
    }
    let status = child.wait().context(|| format!("wait for {name}"))?;
    if status.success() {
        return Ok(());
    }
    let said = read(errors)?;
    // Ours may have a hint in the last line; others say in the last what the first led to.
    let ours = said.lines().find_map(|line| line.strip_prefix("tupper: error: "));
    let why = ours.or_else(|| said.lines().rev().find(|line| !line.trim().is_empty())).unwrap_or("it did not say why");
    Err(Error::new(Kind::Io, format!("run {name}: {status}: {}", why.trim())))
}

/// Not on the filesystem that is measured.
fn unnamed_file() -> Result<File> {
    fs::unnamed_file(fs::open_directory_follow(Path::new("/run"))?.as_fd(), 0o600)
}

fn read(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context(|| "read what a program has printed")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_named() {
        require("sh").expect("a shell");
        let error = require("no-such-program").expect_err("it is not there");
        assert_eq!(error.to_string(), "bench: no-such-program: not installed");
        assert!(error.hint().is_some());
    }
}
