//! Small flags of run and create: variables and labels from files, devices, what is noted of a container.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use tupper::sandbox::{DeviceRequest, Signal};

use super::kill::signal;
use super::run::bytes;

/// Variables: podman-run(1), `--env`, `--env-file`.
#[derive(Debug, Default, Args)]
pub(super) struct Environment {
    /// Set a variable; without a value it is the caller's, and K* are all of the caller's that begin so
    #[arg(long, short, value_name = "K[=V]")]
    env: Vec<String>,
    /// Set the variables in a file, one a line, as --env takes them; # begins a comment
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl Environment {
    /// `K=V` each, those of files first.
    pub(super) fn variables(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for file in &self.env_file {
            for line in lines(file)? {
                variable(&line, &mut all).with_context(|| format!("--env-file {}", file.display()))?;
            }
        }
        self.env.iter().try_for_each(|text| variable(text, &mut all)).context("--env")?;
        Ok(all)
    }
}

fn variable(text: &str, all: &mut Vec<String>) -> Result<()> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let name = name.trim_start();
    if name.is_empty() {
        bail!("{text:?}: a variable without a name");
    }
    let of_caller = || std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    match (value, name.strip_suffix('*')) {
        (Some(value), _) => all.push(format!("{name}={value}")),
        (None, Some(prefix)) => {
            all.extend(of_caller().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| format!("{k}={v}")));
        }
        (None, None) => all.extend(of_caller().filter(|(k, _)| k == name).map(|(k, v)| format!("{k}={v}"))),
    }
    Ok(())
}

/// The lines of a file that say something, without the blanks before them.
fn lines(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_string).collect())
}

/// What a container has of the host's devices and memory.
#[derive(Debug, Default, Args)]
pub(super) struct Devices {
    /// Let it use a device of the host, or all in a directory; DST is below /dev, and rwm: read, write, make nodes
    #[arg(long, value_name = "SRC[:DST][:rwm]", value_parser = device)]
    pub(super) device: Vec<DeviceRequest>,
    /// The size of /dev/shm; 0 for no limit [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = shm_size)]
    pub(super) shm_size: Option<u64>,
}

fn device(text: &str) -> Result<DeviceRequest> {
    let is_access = |part: &str| !part.is_empty() && part.bytes().all(|byte| b"rwm".contains(&byte));
    let (source, destination, access) = match *text.split(':').collect::<Vec<_>>().as_slice() {
        [source] => (source, source, "rwm"),
        [source, access] if is_access(access) => (source, source, access),
        [source, destination] => (source, destination, "rwm"),
        [source, destination, access] if is_access(access) => (source, destination, access),
        _ => bail!("not SRC[:DST][:rwm]"),
    };
    if !source.starts_with('/') {
        bail!("{source}: not an absolute path");
    }
    let plain = Path::new(destination).components().all(|part| part.as_os_str() != OsStr::new(".."));
    if !plain || !destination.starts_with("/dev/") {
        bail!("{destination}: not below /dev, and a device elsewhere could not be opened; give SRC:/dev/NAME");
    }
    let may = |letter| access.contains(letter);
    let destination = Path::new(destination).components().collect();
    Ok(DeviceRequest { source: source.into(), destination, read: may('r'), write: may('w'), make: may('m') })
}

fn shm_size(text: &str) -> Result<u64> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

/// What is noted of a container.
#[derive(Debug, Default, Args)]
pub(super) struct Notes {
    /// Note something of it
    #[arg(long, short, value_name = "K[=V]")]
    label: Vec<String>,
    /// Note what a file says, K=V a line
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Write the container's id to a file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub(super) cidfile: Option<PathBuf>,
    /// What `stop` sends first [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    pub(super) stop_signal: Option<Signal>,
    /// Seconds that `stop` waits before it kills [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub(super) stop_timeout: Option<u32>,
}

impl Notes {
    /// Those of files first; who comes later decides.
    pub(super) fn labels(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for file in &self.label_file {
            for line in lines(file)? {
                label(&line, &mut all).with_context(|| format!("--label-file {}", file.display()))?;
            }
        }
        self.label.iter().try_for_each(|text| label(text, &mut all)).context("--label")?;
        Ok(all)
    }
}

pub(super) fn label(text: &str, all: &mut BTreeMap<String, String>) -> Result<()> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        bail!("{text:?}: a label without a name");
    }
    all.insert(key.to_string(), value.to_string());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_a_place_below_dev_and_an_access() {
        let found = device("/dev/fuse").expect("a device");
        assert_eq!(found.destination, Path::new("/dev/fuse"));
        assert!(found.read && found.write && found.make);
        let found = device("/dev/sda:r").expect("a device");
        assert_eq!((found.destination.as_path(), found.read, found.write), (Path::new("/dev/sda"), true, false));
        let found = device("/srv/node:/dev/xvda/a:rw").expect("a device");
        assert_eq!((found.destination.as_path(), found.write, found.make), (Path::new("/dev/xvda/a"), true, false));
        for wrong in [
            "",
            "sda",
            "/dev/a:/dev/b:rwx",
            "/dev/a::r",
            "/dev/a:/mnt",
            "/dev/a:/dev/../etc",
            "/srv/node",
            "/dev/a:/dev/b:r:w",
        ] {
            device(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn variables_come_from_words_and_from_the_caller() {
        let all = |text: &str| {
            let mut all = Vec::new();
            variable(text, &mut all).map(|()| all)
        };
        assert_eq!(all(" A=b =c").expect("one"), ["A=b =c"]);
        assert_eq!(all("A=").expect("one"), ["A="]);
        assert_eq!(all("NOBODY_HAS_THIS").expect("none"), [""; 0]);
        let path = format!("PATH={}", std::env::var("PATH").expect("a search path"));
        assert_eq!(all("PATH").expect("one"), std::slice::from_ref(&path));
        assert!(all("PA*").expect("some").contains(&path));
        for wrong in ["", "=", "=x"] {
            all(wrong).expect_err(wrong);
        }
    }
}
