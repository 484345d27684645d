//! Which image of several: operating system, architecture, variant.
//!
//! Sources: image-spec image-index.md, "platform"; the order of ARM's variants is containers/image's
//! `internal/pkg/platform`.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageConfiguration};

use crate::error::{Error, Kind, Result};

/// `OS/ARCHITECTURE[/VARIANT]`, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
    pub(super) variant: Option<String>,
}

impl Platform {
    /// That of this program.
    pub fn host() -> Platform {
        let architecture = match (std::env::consts::ARCH, cfg!(target_endian = "little")) {
            ("x86_64", _) => "amd64",
            ("x86", _) => "386",
            ("aarch64", _) => "arm64",
            ("powerpc64", true) => "ppc64le",
            ("powerpc64", false) => "ppc64",
            ("loongarch64", _) => "loong64",
            (other, _) => other,
        };
        Platform { os: std::env::consts::OS.to_string(), architecture: architecture.to_string(), variant: None }
    }

    /// Whether an image with this config is one for it.
    pub fn fits(&self, config: &ImageConfiguration) -> bool {
        let variant = config.variant().as_deref();
        self.rank(&config.os().to_string(), &config.architecture().to_string(), variant).is_some()
    }

    /// How good what a descriptor points to is; less is better, `None` is not at all, or it does not say.
    pub(super) fn matches(&self, descriptor: &Descriptor) -> Option<usize> {
        let other = descriptor.platform().as_ref()?;
        self.rank(&other.os().to_string(), &other.architecture().to_string(), other.variant().as_deref())
    }

    /// How good an image for this other platform is; less is better, `None` is not at all.
    pub(super) fn rank(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<usize> {
        let variant = variant.filter(|variant| !variant.is_empty());
        if self.os != os || self.architecture != architecture {
            return None;
        }
        if self.variant.is_some() && self.variant.as_deref() == variant {
            return Some(0);
        }
        // What runs here, the best first; `None` is an image that does not say.
        let runs: &[Option<&str>] = match (architecture, self.variant.as_deref()) {
            ("arm", None | Some("v7")) => &[Some("v7"), Some("v6"), Some("v5"), None],
            ("arm", Some("v8")) => &[Some("v8"), Some("v7"), Some("v6"), Some("v5"), None],
            ("arm", Some("v6")) => &[Some("v6"), Some("v5"), None],
            ("arm", Some("v5")) => &[Some("v5"), None],
            ("arm64", None | Some("v8")) => &[Some("v8"), None],
            ("amd64", None | Some("v1")) => &[None, Some("v1")],
            ("amd64", Some(_)) => &[],
            (_, None) => &[None],
            _ => &[],
        };
        runs.iter().position(|runs| *runs == variant).map(|at| at + 1)
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let bad = || Error::new(Kind::Invalid, format!("platform {text:?}: not OS/ARCHITECTURE[/VARIANT]"));
        let mut parts = text.split('/');
        let mut part = || parts.next().filter(|part| !part.is_empty() && part.len() <= 64).map(str::to_ascii_lowercase);
        let (os, architecture, variant) = (part().ok_or_else(bad)?, part().ok_or_else(bad)?, part());
        if text.split('/').count() != 2 + usize::from(variant.is_some()) {
            return Err(bad());
        }
        // What uname(1) and Debian call them.
        let (architecture, variant) = match (architecture.as_str(), variant) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i686", variant) => ("386", variant),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", None) => ("arm", Some("v7".to_string())),
            ("armel", None) => ("arm", Some("v5".to_string())),
            (same, variant) => (same, variant),
        };
        Ok(Platform { os, architecture: architecture.to_string(), variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_variant_is_the_nearest_that_runs() {
        let best = |wanted: &str, variants: &[Option<&'static str>]| {
            let wanted: Platform = wanted.parse().expect(wanted);
            let ranked = variants
                .iter()
                .filter_map(|variant| Some((wanted.rank("linux", &wanted.architecture, *variant)?, *variant)));
            ranked.min_by_key(|(rank, _)| *rank).map(|(_, variant)| variant)
        };
        assert_eq!(best("linux/arm64", &[None, Some("v8")]), Some(Some("v8")));
        assert_eq!(best("linux/arm64", &[Some("v9"), None]), Some(None));
        assert_eq!(best("linux/arm/v6", &[Some("v5"), Some("v7"), Some("v6")]), Some(Some("v6")));
        assert_eq!(best("linux/arm/v6", &[Some("v7")]), None);
        assert_eq!(best("linux/arm", &[Some("v6"), Some("v7")]), Some(Some("v7")));
        assert_eq!(best("linux/amd64", &[Some("v3"), None]), Some(None));
        assert_eq!(best("linux/amd64", &[Some("v3")]), None);
        assert_eq!(best("linux/amd64/v3", &[None, Some("v3")]), Some(Some("v3")));
        assert_eq!(best("linux/amd64", &[Some("")]), Some(Some("")));
    }

    #[test]
    fn platforms_are_spelled_in_several_ways() {
        for (text, same) in
            [("linux/x86_64", "linux/amd64"), ("Linux/ARM64/v8", "linux/arm64/v8"), ("linux/armhf", "linux/arm/v7")]
        {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), same);
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/arm/"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
