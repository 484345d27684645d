//! AppArmor, where the host has it: a profile of tupper's own, loaded once a boot, or one that a person names.
//!
//! As with podman and docker, a host without apparmor_parser(8) counts as one without AppArmor: nothing could be loaded.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::security::Security;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::resolve;

/// The name of tupper's profile; another text needs another name, because one that is loaded is left alone.
const NAME: &str = "tupper-default-1";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER: &str = "/sbin/apparmor_parser";

/// The profile that a sandbox is to run under, and whether that is tupper's and not loaded yet.
pub(super) fn profile(security: &Security) -> Result<Option<(String, bool)>> {
    let wanted = match security.apparmor.as_deref() {
        Some("unconfined") => return Ok(None),
        None if security.privileged => return Ok(None),
        other => other,
    };
    // No more than this on a host without it.
    let enabled = std::fs::read(ENABLED).is_ok_and(|text| text.starts_with(b"Y"));
    let there = enabled && resolve::probe(Path::new(PARSER)).is_some();
    match wanted {
        None if !there => Ok(None),
        None => Ok(Some((NAME.to_string(), !is_loaded(NAME)?))),
        Some(name) if !enabled => {
            Err(Error::new(Kind::Unsupported, format!("apparmor profile {name}: this host has no AppArmor")))
        }
        Some(name) if is_loaded(name)? => Ok(Some((name.to_string(), false))),
        Some(NAME) => Ok(Some((NAME.to_string(), true))),
        Some(name) => {
            let error = Error::new(Kind::NotFound, format!("apparmor profile {name}: it is not loaded"));
            Err(error.with_hint("`apparmor_parser -r FILE` loads one; apparmor=unconfined runs without"))
        }
    }
}

/// Whether the kernel has a profile of that name: `NAME (MODE)` a line.
fn is_loaded(name: &str) -> Result<bool> {
    let table = std::fs::read_to_string(LOADED).context(|| format!("look for the apparmor profile {name}"))?;
    Ok(table.lines().any(|line| line.rsplit_once(' ').is_some_and(|(known, _mode)| known == name)))
}

/// Loads tupper's profile: apparmor_parser(8), `--Kr`: not from its cache, and over one of the same name.
pub(super) fn load() -> Result<()> {
    let run = || -> std::io::Result<Option<String>> {
        let mut parser = Command::new(PARSER).arg("-Kr").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut input) = parser.stdin.take() {
            input.write_all(text().as_bytes())?;
        }
        let output = parser.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Ok((!output.status.success()).then_some(said))
    };
    let failed = |why: String| {
        let error = Error::new(Kind::Io, format!("{PARSER}: {why}"));
        error.with_hint("--security-opt apparmor=unconfined runs without a profile")
    };
    match run() {
        Ok(None) => Ok(()),
        Ok(Some(said)) => Err(failed(said)),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// What is denied; everything else is allowed. In a pattern `**` goes on across slashes (apparmor.d(5), "Globbing").
const DENIED: &[&str] = &[
    "mount",
    // Of /proc only what belongs to a process, which is a number or `self`, and the sysctls of a network are written.
    "/proc/[a-rt-z]** w",
    "/proc/s[a-df-xz]** w",
    "/proc/sys/[a-mo-z]** w",
    "/proc/sysrq-trigger rwklx",
    "/proc/kcore rwklx",
    // Of /sys only cgroups are.
    "/sys/[a-eg-z]** wklx",
    "/sys/f[a-rt-z]** wklx",
    "/sys/fs/[abd-z]** wklx",
    "/sys/firmware/** rwklx",
    "/sys/devices/virtual/powercap/** rwklx",
    "/sys/kernel/security/** rwklx",
];

/// The profile, apparmor.d(5): what the rest of the posture forbids already, said once more to another part of the kernel.
fn text() -> String {
    let denied: String = DENIED.iter().map(|rule| format!("  deny {rule},\n")).collect();
    format!(
        "profile {NAME} flags=(attach_disconnected,mediate_deleted) {{\n  network,\n  capability,\n  file,\n  umount,\n  \
         signal (receive) peer=unconfined,\n  signal (send, receive) peer={NAME},\n  \
         ptrace (trace, read, tracedby, readby) peer={NAME},\n{denied}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_one_block_of_rules() {
        let text = text();
        assert!(text.starts_with(&format!("profile {NAME} flags=")) && text.ends_with("}\n"), "{text}");
        assert!(!text.contains('@'), "no variable: nothing is included that could define it");
        assert!(text.lines().all(|line| line.ends_with([',', '{', '}'])), "{text}");
    }

    #[test]
    fn who_wants_none_gets_none() {
        let unconfined = Security { apparmor: Some("unconfined".into()), ..Security::default() };
        assert_eq!(profile(&unconfined).expect("none"), None);
        assert_eq!(profile(&Security { privileged: true, ..Security::default() }).expect("none"), None);
    }
}
