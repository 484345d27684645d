//! What a container may do: `--cap-add`, `--cap-drop`, `--security-opt` and `--privileged`, with podman's words.

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use tupper::sandbox::{ResourceLimit, Security};

/// The flags of run, create and shell.
#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
pub(super) struct SecurityFlags {
    /// Give root a capability beyond the default, such as NET_ADMIN; ALL for each
    #[arg(long, value_name = "CAP", value_delimiter = ',')]
    cap_add: Vec<String>,
    /// Take a capability of the default from root; ALL for each
    #[arg(long, value_name = "CAP", value_delimiter = ',')]
    cap_drop: Vec<String>,
    /// no-new-privileges=false: set-user-id programs work; mask=PATH and unmask=PATH|ALL: what of /proc and /sys is hidden;
    /// apparmor=PROFILE|unconfined; seccomp=unconfined, or seccomp=FILE with a profile in Docker's JSON
    #[arg(long, value_name = "WORD[=VALUE]")]
    security_opt: Vec<String>,
    /// Let it do to the host what root may: all capabilities and devices, nothing hidden, no user namespace
    #[arg(long)]
    pub(super) privileged: bool,
    /// Answer fsync and its like without doing them: faster, and what it wrote outlives no power cut before it is kept. The default
    /// of shell, unless it has a volume that can be written
    #[arg(long, value_name = "yes|no", num_args = 0..=1, require_equals = true, default_missing_value = "yes", value_parser = yes_or_no)]
    pub(super) suppress_sync: Option<bool>,
    /// A limit of setrlimit(2), such as nofile=1024:4096; -1 for none
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    ulimit: Vec<ResourceLimit>,
}

impl SecurityFlags {
    pub(super) fn security(self) -> Result<Security> {
        let mut security = Security {
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            privileged: self.privileged,
            suppress_sync: self.suppress_sync.unwrap_or_default(),
            ulimits: self.ulimit,
            ..Security::default()
        };
        for option in &self.security_opt {
            let set = match option.strip_prefix("seccomp=").or(option.strip_prefix("seccomp:")) {
                Some(file) if !file.is_empty() && file != "unconfined" => {
                    let doing = || format!("security-opt {option}");
                    let profile = std::fs::read(file).with_context(doing)?;
                    security.set_seccomp_profile(&profile).with_context(doing)?;
                    true
                }
                _ => security.set(option)?,
            };
            if !set {
                bail!("security-opt {option}: not no-new-privileges, mask, unmask, apparmor or seccomp");
            }
        }
        security.check()?;
        Ok(security)
    }
}

fn yes_or_no(text: &str) -> Result<bool> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(anyhow!("not yes or no")),
    }
}

fn ulimit(text: &str) -> Result<ResourceLimit> {
    let (name, values) = text.split_once('=').ok_or_else(|| anyhow!("not NAME=SOFT[:HARD]"))?;
    let value = |text: &str| match text {
        "-1" | "unlimited" => Ok(None),
        text => text.parse().map(Some).map_err(|_| anyhow!("{text:?}: not a number")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    Ok(ResourceLimit::new(name, value(soft)?, value(hard)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_are_podman_s() {
        let limit = |soft, hard| ResourceLimit { name: "nofile".into(), soft, hard };
        assert_eq!(ulimit("nofile=1:2").expect("two"), limit(Some(1), Some(2)));
        assert_eq!(ulimit("nofile=7").expect("one"), limit(Some(7), Some(7)));
        assert_eq!(ulimit("nofile=7:-1").expect("none"), limit(Some(7), None));
        for wrong in ["nofile", "nofile=x", "files=1", "nofile=2:1"] {
            ulimit(wrong).expect_err(wrong);
        }
    }
}
