//! What a container may do: `--cap-add`, `--cap-drop`, `--security-opt` and `--privileged`, with podman's words.

use anyhow::{Result, bail};
use clap::Args;
use tupper::sandbox::Security;

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
    /// apparmor=PROFILE|unconfined
    #[arg(long, value_name = "WORD[=VALUE]")]
    security_opt: Vec<String>,
    /// Let it do to the host what root may: all capabilities and devices, nothing hidden, no user namespace
    #[arg(long)]
    pub(super) privileged: bool,
}

impl SecurityFlags {
    pub(super) fn security(self) -> Result<Security> {
        let mut security = Security {
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            privileged: self.privileged,
            ..Security::default()
        };
        for option in &self.security_opt {
            if !security.set(option)? {
                bail!("security-opt {option}: not no-new-privileges, mask, unmask or apparmor");
            }
        }
        security.check()?;
        Ok(security)
    }
}
