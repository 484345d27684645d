//! What a sandbox may do beyond its namespaces: capabilities, no_new_privs, what of /proc and /sys it sees, the profiles of
//! AppArmor, and `privileged`, which turns all of that off.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::rlimit::ResourceLimit;
use super::seccomp::{Document, Seccomp};
use super::spec::invalid;
use super::step::{CapabilitySet, capabilities, capability, named_capabilities};
use crate::error::Result;

/// What root keeps inside: podman's default (containers-common, containers.conf(5) `default_capabilities`).
pub(super) const DEFAULT_CAPABILITIES: CapabilitySet = capabilities(&[
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "net_bind_service",
    "setfcap",
    "setgid",
    "setpcap",
    "setuid",
    "sys_chroot",
]);

/// Every capability there may be: those that this host does not have are left out when a sandbox is planned.
pub(super) const ALL_CAPABILITIES: CapabilitySet = CapabilitySet(u64::MAX);

/// What a sandbox may do: podman-run(1), `--cap-add`, `--cap-drop`, `--security-opt`, `--privileged`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Capabilities that root has beyond the default, as the kernel names them without `cap_`; `all` for each.
    pub cap_add: Vec<String>,
    /// Capabilities that root lacks of the default; `all` for each.
    pub cap_drop: Vec<String>,
    /// Nothing executed gains privileges, by set-user-id bits or file capabilities.
    pub no_new_privileges: bool,
    /// Paths that show nothing inside, beyond the default.
    pub mask: Vec<PathBuf>,
    /// Paths of the default that are shown as they are; `ALL` for each.
    pub unmask: Vec<PathBuf>,
    /// The AppArmor profile; by default tupper's own, where the host has AppArmor.
    pub apparmor: Option<String>,
    /// Which system calls are made; where it is privileged, all unless a profile is asked for.
    pub seccomp: Seccomp,
    /// fsync(2) and its like are answered without being done: systemd-nspawn(1), `--suppress-sync=`.
    pub suppress_sync: bool,
    /// What setrlimit(2) limits.
    pub ulimits: Vec<ResourceLimit>,
    /// None of the above, every device of the host's, /sys and the cgroups writable.
    pub privileged: bool,
}

impl Default for Security {
    fn default() -> Security {
        Security {
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            no_new_privileges: true,
            mask: Vec::new(),
            unmask: Vec::new(),
            apparmor: None,
            seccomp: Seccomp::Default,
            suppress_sync: false,
            ulimits: Vec::new(),
            privileged: false,
        }
    }
}

impl Security {
    /// The system calls of a profile in Docker's words, which is kept with the sandbox.
    ///
    /// # Errors
    /// [`crate::error::Kind::Invalid`] with the line, or the word that nobody knows.
    pub fn set_seccomp_profile(&mut self, text: &[u8]) -> Result<()> {
        self.seccomp = Seccomp::Profile(Box::new(Document::parse(text)?));
        Ok(())
    }

    /// Which system calls are made.
    pub(super) fn seccomp(&self) -> &Seccomp {
        match (&self.seccomp, self.privileged) {
            (Seccomp::Default, true) => &Seccomp::Unconfined,
            (seccomp, _) => seccomp,
        }
    }

    /// A word of `--security-opt`, such as `no-new-privileges`, `mask=/proc/acpi` or `apparmor=unconfined`: whether it is
    /// one of those that are known here.
    ///
    /// # Errors
    /// A known word with a value that it does not take.
    pub fn set(&mut self, option: &str) -> Result<bool> {
        // podman takes a colon, too.
        let (word, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match word {
            "no-new-privileges" => {
                self.no_new_privileges = match value {
                    "" | "true" => true,
                    "false" => false,
                    _ => return Err(invalid(format!("no-new-privileges={value}: not true or false"))),
                }
            }
            "mask" => self.mask.extend(paths(word, value)?),
            "unmask" if value.eq_ignore_ascii_case("all") => self.unmask.push("ALL".into()),
            "unmask" => self.unmask.extend(paths(word, value)?),
            "seccomp" if value == "unconfined" => self.seccomp = Seccomp::Unconfined,
            "apparmor" if value.is_empty() => return Err(invalid("apparmor: no profile is named".to_string())),
            "apparmor" => self.apparmor = Some(value.to_string()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Checks the names of capabilities, so that a wrong one is an error before anything is made.
    ///
    /// # Errors
    /// A name that is no capability's.
    pub fn check(&self) -> Result<()> {
        self.capabilities(ALL_CAPABILITIES).map(drop)
    }

    /// What root keeps, of those that the host's own root has.
    pub(super) fn capabilities(&self, available: CapabilitySet) -> Result<CapabilitySet> {
        let (added, dropped) = (set("cap-add", &self.cap_add)?, set("cap-drop", &self.cap_drop)?);
        let base = match () {
            () if self.privileged || added == ALL_CAPABILITIES => ALL_CAPABILITIES.0,
            () if dropped == ALL_CAPABILITIES => return self.within(added, available),
            () => DEFAULT_CAPABILITIES.0 | added.0,
        };
        let named = CapabilitySet(if added == ALL_CAPABILITIES { 0 } else { added.0 & !dropped.0 });
        self.within(named, available)?;
        Ok(CapabilitySet(base & !dropped.0 & available.0))
    }

    /// The set, if the host's root has all of it: nobody can give what he does not have.
    fn within(&self, set: CapabilitySet, available: CapabilitySet) -> Result<CapabilitySet> {
        match named_capabilities(CapabilitySet(set.0 & !available.0)).next() {
            Some(name) => Err(invalid(format!("cap-add {name}: the host's root lacks it"))),
            None => Ok(set),
        }
    }

    /// Whether nothing executed gains privileges.
    pub(super) fn no_new_privileges(&self) -> bool {
        self.no_new_privileges && !self.privileged
    }

    /// Something of it may ask for what the host's root has.
    pub(super) fn asks_for_more(&self) -> bool {
        self.privileged || !self.cap_add.is_empty()
    }

    /// Whether a path that is masked or read-only by default stays so.
    pub(super) fn protects(&self, path: &Path) -> bool {
        let shown = |unmasked: &PathBuf| unmasked == Path::new("ALL") || path == unmasked || glob(unmasked, path);
        !self.privileged && !self.unmask.iter().any(shown)
    }
}

/// podman's wildcards: `/proc/*` is everything directly or indirectly below.
fn glob(pattern: &Path, path: &Path) -> bool {
    pattern.file_name().is_some_and(|name| name == "*") && pattern.parent().is_some_and(|above| path.starts_with(above))
}

fn set(flag: &str, names: &[String]) -> Result<CapabilitySet> {
    let mut found = 0;
    for name in names {
        let lower = name.to_ascii_lowercase();
        found |= match lower.strip_prefix("cap_").unwrap_or(&lower) {
            "all" => return Ok(ALL_CAPABILITIES),
            short => capability(short).ok_or_else(|| invalid(format!("{flag} {name}: not a capability")))?.0,
        };
    }
    Ok(CapabilitySet(found))
}

/// Absolute paths with colons between them.
fn paths(word: &str, value: &str) -> Result<Vec<PathBuf>> {
    value
        .split(':')
        .map(|path| match path.starts_with('/') && !path.split('/').any(|part| part == "..") {
            true => Ok(PathBuf::from(path)),
            false => Err(invalid(format!("{word}={value}: {path:?} is not an absolute path"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(add: &[&str], drop: &[&str]) -> Security {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Security { cap_add: words(add), cap_drop: words(drop), ..Security::default() }
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_in_podman() {
        let host = CapabilitySet((1 << 41) - 1);
        let without_resource = CapabilitySet(host.0 & !capabilities(&["sys_resource"]).0);
        let kept = |add: &[&str], drop: &[&str], host| security(add, drop).capabilities(host).map(|set| set.0);
        let default = DEFAULT_CAPABILITIES.0;
        let cases: [(&[&str], &[&str], u64); 7] = [
            (&[], &[], default),
            (&["CAP_NET_RAW"], &[], default | capabilities(&["net_raw"]).0),
            (&["net_admin"], &["Chown"], default & !1 | capabilities(&["net_admin"]).0),
            (&[], &["all"], 0),
            (&["kill"], &["ALL"], capabilities(&["kill"]).0),
            (&["ALL"], &[], host.0),
            (&["all"], &["sys_admin"], host.0 & !capabilities(&["sys_admin"]).0),
        ];
        for (add, drop, expected) in cases {
            assert_eq!(kept(add, drop, host).expect("known"), expected, "{add:?} {drop:?}");
        }
        assert_eq!(kept(&["ALL"], &[], without_resource).expect("known"), without_resource.0);
        let error = kept(&["sys_resource"], &[], without_resource).expect_err("nobody gives what he lacks");
        assert_eq!(error.to_string(), "cap-add sys_resource: the host's root lacks it");
        assert!(kept(&["nonsense"], &[], host).is_err() && kept(&[], &["x"], host).is_err());
        let privileged = Security { privileged: true, ..Security::default() };
        assert_eq!(privileged.capabilities(without_resource).expect("all"), without_resource);
    }

    #[test]
    fn options_are_words_with_values() {
        let mut security = Security::default();
        for option in ["no-new-privileges=false", "mask=/proc/a:/b", "unmask=/proc/acpi", "apparmor=mine"] {
            assert!(security.set(option).expect(option), "{option}");
        }
        let expected = Security {
            no_new_privileges: false,
            mask: vec!["/proc/a".into(), "/b".into()],
            unmask: vec!["/proc/acpi".into()],
            apparmor: Some("mine".into()),
            ..Security::default()
        };
        assert_eq!(security, expected);
        assert!(security.set("no-new-privileges").expect("known") && security.no_new_privileges);
        assert!(security.set("seccomp=unconfined").expect("known") && security.seccomp == Seccomp::Unconfined);
        assert!(!security.set("seccomp=/a/file").expect("whoever reads files"));
        for option in ["no-new-privileges=maybe", "mask=a", "mask=/a/../b", "unmask=", "apparmor="] {
            security.set(option).expect_err(option);
        }
    }

    #[test]
    fn what_is_protected_can_be_shown() {
        let shows = |unmask: &str| {
            let mut security = Security::default();
            security.set(&format!("unmask={unmask}")).expect("valid");
            ["/proc/acpi", "/sys/firmware"].map(|path| !security.protects(Path::new(path)))
        };
        assert_eq!(shows("ALL"), [true, true]);
        assert_eq!(shows("/proc/acpi"), [true, false]);
        assert_eq!(shows("/proc/*:/other"), [true, false]);
        assert!(!Security { privileged: true, ..Security::default() }.protects(Path::new("/proc/acpi")));
    }
}
