//! Limits of a process: setrlimit(2).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::spec::invalid;
use crate::error::Result;
use crate::kernel::process;

/// A limit of a process: setrlimit(2). `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceLimit {
    /// As ulimit and prlimit(1) have it: `nofile`.
    pub name: String,
    /// What holds.
    pub soft: Option<u64>,
    /// What the process may raise it to.
    pub hard: Option<u64>,
}

impl ResourceLimit {
    /// A limit with this name.
    ///
    /// # Errors
    /// A name that is no limit's, and a soft limit above the hard one.
    pub fn new(name: &str, soft: Option<u64>, hard: Option<u64>) -> Result<ResourceLimit> {
        if process::resource_number(name).is_none() {
            return Err(invalid(format!("ulimit {name:?}: there is no such limit")));
        }
        if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
            return Err(invalid(format!("ulimit {name}: the soft limit is above the hard one")));
        }
        Ok(ResourceLimit { name: name.to_string(), soft, hard })
    }

    pub(super) fn number(&self) -> u32 {
        // `new` has looked; in a record that somebody wrote by hand it is the kernel's EINVAL.
        process::resource_number(&self.name).unwrap_or(u32::MAX)
    }

    /// prlimit(1), from the host's shell.
    pub(super) fn command(&self) -> String {
        format!("prlimit --pid $BOX --{}={}:{}", self.name, word(self.soft), word(self.hard))
    }
}

impl fmt::Display for ResourceLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, at most {}", self.name, word(self.soft), word(self.hard))
    }
}

fn word(value: Option<u64>) -> String {
    value.map_or("unlimited".to_string(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_names_of_the_kernels() {
        let limit = ResourceLimit::new("nofile", Some(1), None).expect("a limit");
        assert_eq!(limit.command(), "prlimit --pid $BOX --nofile=1:unlimited");
        ResourceLimit::new("core", None, None).expect("no limit");
        for (name, soft, hard) in [("files", None, None), ("nofile", Some(2), Some(1)), ("nofile", None, Some(1))] {
            ResourceLimit::new(name, soft, hard).expect_err(name);
        }
    }
}
