//! registries.conf: where a name leads to.
//!
//! Sources: containers-registries.conf(5), containers-registries.conf.d(5), containers/image
//! `pkg/sysregistriesv2`. Read are, in this order, the later one winning: the main file (that of
//! `CONTAINERS_REGISTRIES_CONF`, else the user's, else the system's), then the files `*.conf` of the system's and the
//! user's registries.conf.d (of the user's alone when the main file is the user's). Where there is none of all these,
//! short names are looked for at docker.io. The deprecated version 1 of the format is refused.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Reference, Surroundings};
use crate::error::{Context, Error, Kind, Result};

const MAIN: &str = "/etc/containers/registries.conf";
const DROP_INS: &str = "/etc/containers/registries.conf.d";
/// What podman's users answered when they were asked which registry a short name is at.
const RECORDED: &str = "/var/cache/containers/short-name-aliases.conf";

/// All that the files say.
#[derive(Debug, Default)]
pub(super) struct Registries {
    search: Option<Vec<String>>,
    aliases: BTreeMap<String, String>,
    registries: BTreeMap<String, Registry>,
    enforcing: bool,
    /// Where credentials are, best first: helpers, or `containers-auth.json` for the files.
    pub(super) credential_helpers: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    credential_helpers: Option<Vec<String>>,
    registry: Vec<Registry>,
    aliases: BTreeMap<String, String>,
    registries: Option<toml::Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

/// A place to ask for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) reference: Reference,
    /// Certificates are not looked at, and plain HTTP will do.
    pub(super) insecure: bool,
}

impl Registries {
    /// Reads the files.
    ///
    /// # Errors
    /// That of a file which exists and cannot be read or understood.
    pub(super) fn read(around: &Surroundings) -> Result<Registries> {
        let user = around.home.as_ref().map(|home| home.join(".config/containers"));
        let user_main = user.as_ref().map(|dir| dir.join("registries.conf")).filter(|path| path.exists());
        let user_drop_ins = user.map(|dir| dir.join("registries.conf.d"));
        let mut files = Vec::new();
        match (&around.registries_conf, user_main) {
            (None, Some(main)) => files.push(main),
            (given, _) => {
                files.push(given.clone().unwrap_or_else(|| around.root.join(&MAIN[1..])));
                files.extend(drop_ins(&around.root.join(&DROP_INS[1..]))?);
            }
        }
        files.extend(user_drop_ins.map(|dir| drop_ins(&dir)).transpose()?.into_iter().flatten());
        let mut registries = Registries::default();
        let mut any = false;
        for (nth, file) in files.iter().enumerate() {
            let must_exist = nth == 0 && around.registries_conf.is_some();
            if let Some(text) = read(file, must_exist)? {
                any = true;
                registries.add(&text).context(|| format!("read {}", file.display()))?;
            }
        }
        if let Some(text) = read(&around.root.join(&RECORDED[1..]), false)? {
            registries.add(&text).context(|| format!("read {RECORDED}"))?;
        }
        if !any {
            registries.search = Some(vec!["docker.io".to_string()]);
        }
        Ok(registries)
    }

    pub(super) fn add(&mut self, text: &str) -> Result<()> {
        let bad = |why: &str| Error::new(Kind::Invalid, why);
        let file: File = toml::from_str(text).map_err(|e| bad(e.message()))?;
        if file.registries.is_some() {
            return Err(bad("the deprecated version 1 of the format (registries.search, .insecure, .block)"));
        }
        if let Some(search) = file.unqualified_search_registries {
            self.search = Some(search);
        }
        if let Some(mode) = file.short_name_mode.filter(|mode| !mode.is_empty()) {
            self.enforcing = match mode.as_str() {
                "enforcing" => true,
                "permissive" | "disabled" => false,
                other => return Err(bad(&format!("short-name-mode {other:?}: unknown"))),
            };
        }
        if let Some(helpers) = file.credential_helpers {
            self.credential_helpers = helpers;
        }
        self.aliases.extend(file.aliases);
        for mut registry in file.registry {
            if registry.prefix.is_empty() {
                registry.prefix = registry.location.clone();
            }
            if registry.prefix.is_empty() {
                return Err(bad("a [[registry]] without prefix and location"));
            }
            if registry.location.is_empty() && !registry.prefix.starts_with("*.") {
                registry.location = registry.prefix.clone();
            }
            let per_mirror = registry.mirror.iter().any(|mirror| !mirror.pull_from_mirror.is_empty());
            if per_mirror && registry.mirror_by_digest_only {
                return Err(bad("mirror-by-digest-only beside pull-from-mirror"));
            }
            self.registries.insert(registry.prefix.clone(), registry);
        }
        Ok(())
    }

    /// The images that a reference can mean, the likeliest first.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a short name that leads nowhere, [`Kind::Invalid`] for one that leads to several places
    /// where registries.conf does not allow that.
    pub(super) fn resolve(&self, reference: &Reference) -> Result<Vec<Reference>> {
        if !reference.short {
            return Ok(vec![reference.clone()]);
        }
        let short = reference.name.repository();
        if let Some(alias) = self.aliases.get(short).filter(|alias| !alias.is_empty()) {
            return Ok(vec![reference.at(alias).context(|| format!("alias of {short}"))?]);
        }
        let search = self.search.as_deref().unwrap_or_default();
        if search.is_empty() {
            let error = Error::new(
                Kind::NotFound,
                format!("{short}: a short name, and registries.conf says of none where it is"),
            );
            return Err(error.with_hint(format!("write it in full, such as docker.io/library/{short}")));
        }
        if self.enforcing && search.len() > 1 {
            let error =
                Error::new(Kind::Invalid, format!("{short}: a short name that could be at {}", search.join(", ")));
            return Err(error.with_hint(format!("write it in full, such as {}/{short}", search[0])));
        }
        search.iter().map(|registry| reference.at(&format!("{registry}/{short}"))).collect()
    }

    /// The places to ask for an image: mirrors, then its own.
    ///
    /// # Errors
    /// [`Kind::Permission`] when it is blocked.
    pub(super) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>> {
        let place = reference.place();
        let whole = format!("{place}{}{}", if reference.digest.is_some() { '@' } else { ':' }, reference.version());
        let matches = self.registries.values().filter_map(|r| Some((prefix_length(&whole, &r.prefix)?, r)));
        let Some((length, registry)) = matches.max_by_key(|(_, registry)| registry.prefix.len()) else {
            return Ok(vec![Endpoint { reference: reference.clone(), insecure: false }]);
        };
        if registry.blocked {
            let why = format!("{reference}: blocked by registries.conf (prefix {})", registry.prefix);
            return Err(Error::new(Kind::Permission, why));
        }
        let moved = |location: &str, insecure: bool| -> Result<Endpoint> {
            let rest = place.get(length..).unwrap_or_default();
            let reference =
                if location.is_empty() { reference.clone() } else { reference.at(&format!("{location}{rest}"))? };
            Ok(Endpoint { reference, insecure })
        };
        let by_digest = reference.digest.is_some();
        let mirrors = registry.mirror.iter().filter(|mirror| match mirror.pull_from_mirror.as_str() {
            "digest-only" => by_digest,
            "tag-only" => !by_digest,
            _ => by_digest || !registry.mirror_by_digest_only,
        });
        let mirrors = mirrors.map(|mirror| moved(&mirror.location, mirror.insecure));
        mirrors.chain([moved(&registry.location, registry.insecure)]).collect()
    }

    /// Whether a registry as a whole (for login) is insecure.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        let matches = self.registries.values().filter(|r| prefix_length(&format!("{host}/"), &r.prefix).is_some());
        matches.max_by_key(|registry| registry.prefix.len()).is_some_and(|registry| registry.insecure)
    }
}

/// How much of an image's name a prefix matches, if it does: whole components.
fn prefix_length(name: &str, prefix: &str) -> Option<usize> {
    let host = name.find('/').unwrap_or(name.len());
    if let Some(domain) = prefix.strip_prefix('*') {
        let bare = name[..host].split(':').next().unwrap_or_default();
        return (domain.starts_with('.') && bare.len() > domain.len() && bare.ends_with(domain)).then_some(bare.len());
    }
    let rest = name.strip_prefix(prefix)?;
    let ends = match rest.bytes().next() {
        None | Some(b'/' | b'@') => true,
        // After a host a colon begins its port: another registry.
        Some(b':') => prefix.len() > host,
        _ => false,
    };
    ends.then_some(prefix.len())
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = match std::fs::read_dir(directory) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        listed => listed.and_then(Iterator::collect::<std::io::Result<Vec<_>>>),
    };
    let listed = listed.context(|| format!("read {}", directory.display()))?;
    let mut files: Vec<PathBuf> = listed
        .iter()
        .map(std::fs::DirEntry::path)
        .filter(|path| path.extension().is_some_and(|e| e == "conf"))
        .collect();
    files.sort();
    Ok(files)
}

fn read(file: &Path, must_exist: bool) -> Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound && !must_exist => Ok(None),
        Err(e) => Err(e).context(|| format!("read {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(text: &str) -> Registries {
        let mut registries = Registries::default();
        registries.add(text).expect(text);
        registries
    }

    fn endpoints(registries: &Registries, text: &str) -> Vec<(String, bool)> {
        let reference = text.parse().expect(text);
        let found = registries.endpoints(&reference).expect(text);
        found.into_iter().map(|endpoint| (endpoint.reference.to_string(), endpoint.insecure)).collect()
    }

    #[test]
    fn the_example_of_the_manual_page() {
        let registries = registries(
            "[[registry]]\nprefix = 'example.com/foo'\nlocation = 'internal.net/bar'\n\
             [[registry.mirror]]\nlocation = 'mirror-0.local/mirror-for-foo'\n\
             [[registry.mirror]]\nlocation = 'mirror-1.local/mirrors/foo'\ninsecure = true\n\
             [[registry]]\nlocation = 'registry.com'\n[[registry.mirror]]\nlocation = 'mirror.registry.com'\n",
        );
        assert_eq!(
            endpoints(&registries, "example.com/foo/image:1"),
            [
                ("mirror-0.local/mirror-for-foo/image:1".to_string(), false),
                ("mirror-1.local/mirrors/foo/image:1".to_string(), true),
                ("internal.net/bar/image:1".to_string(), false),
            ]
        );
        assert_eq!(endpoints(&registries, "example.com/food:1"), [("example.com/food:1".to_string(), false)]);
        assert_eq!(endpoints(&registries, "registry.com/a")[0].0, "mirror.registry.com/a:latest");
        assert_eq!(endpoints(&registries, "registry.com:5000/a").len(), 1);
    }

    #[test]
    fn the_longest_prefix_and_wildcards() {
        let registries = registries(
            "[[registry]]\nprefix = '*.example.com'\ninsecure = true\n\
             [[registry]]\nlocation = '127.0.0.1:5000'\ninsecure = true\n\
             [[registry]]\nprefix = '127.0.0.1:5000/safe/image:1'\nlocation = '127.0.0.1:5000/safe/image'\n\
             [[registry]]\nprefix = 'bad.org'\nblocked = true\nlocation = 'bad.org'\n",
        );
        assert_eq!(endpoints(&registries, "a.b.example.com/x"), [("a.b.example.com/x:latest".to_string(), true)]);
        assert!(!endpoints(&registries, "example.com/x")[0].1);
        assert!(!endpoints(&registries, "aexample.com/x")[0].1);
        assert!(endpoints(&registries, "127.0.0.1:5000/x")[0].1);
        assert!(endpoints(&registries, "127.0.0.1:5000/safe/image:2")[0].1);
        assert_eq!(
            endpoints(&registries, "127.0.0.1:5000/safe/image:1"),
            [("127.0.0.1:5000/safe/image:1".to_string(), false)]
        );
        assert!(registries.is_insecure("127.0.0.1:5000") && !registries.is_insecure("127.0.0.1:5001"));
        let blocked = registries.endpoints(&"bad.org/x".parse().expect("a name")).expect_err("blocked");
        assert_eq!(blocked.kind(), Kind::Permission);
    }

    #[test]
    fn mirrors_by_digest_and_by_tag() {
        let registries = registries(
            "[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\nlocation = 'd.io'\npull-from-mirror = 'digest-only'\n\
             [[registry.mirror]]\nlocation = 't.io'\npull-from-mirror = 'tag-only'\n\
             [[registry]]\nlocation = 'b.io'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'm.io'\n",
        );
        let first = |text: &str| endpoints(&registries, text).remove(0).0;
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(first("a.io/x:1"), "t.io/x:1");
        assert_eq!(first(&format!("a.io/x@{digest}")), format!("d.io/x@{digest}"));
        assert_eq!(first("b.io/x:1"), "b.io/x:1");
        assert_eq!(first(&format!("b.io/x@{digest}")), format!("m.io/x@{digest}"));
    }

    #[test]
    fn short_names() {
        let resolve = |registries: &Registries, text: &str| {
            let found = registries.resolve(&text.parse().expect(text))?;
            Ok::<Vec<String>, Error>(found.iter().map(ToString::to_string).collect())
        };
        let known = registries(
            "unqualified-search-registries = ['docker.io', 'quay.io']\n[aliases]\ndebian = 'docker.io/library/debian'\n",
        );
        assert_eq!(resolve(&known, "debian:12").expect("an alias"), ["docker.io/library/debian:12"]);
        assert_eq!(resolve(&known, "my/app").expect("two"), ["docker.io/my/app:latest", "quay.io/my/app:latest"]);
        assert_eq!(resolve(&known, "app").expect("two")[0], "docker.io/library/app:latest");
        assert_eq!(resolve(&known, "quay.io/app").expect("whole"), ["quay.io/app:latest"]);
        assert_eq!(resolve(&Registries::default(), "app").expect_err("nowhere").kind(), Kind::NotFound);
        let strict = registries("unqualified-search-registries = ['a.io', 'b.io']\nshort-name-mode = 'enforcing'\n");
        assert!(resolve(&strict, "app").expect_err("two").to_string().contains("a.io, b.io"));
        // A later file takes an alias back.
        let mut known = known;
        known.add("[aliases]\ndebian = ''\n").expect("a file");
        assert_eq!(resolve(&known, "debian").expect("two").len(), 2);
    }

    #[test]
    fn files_that_cannot_be_meant_are_refused() {
        for text in [
            "[[registry]]\ninsecure = true",
            "[registries.search]\nregistries = ['a']",
            "short-name-mode = 'x'",
            "[[registry]]\nlocation = 'a'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'all'",
            "unqualified-search-registries = 'a'",
            "[",
        ] {
            assert!(Registries::default().add(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_users_main_file_takes_the_systems_place() {
        let root = tempfile::tempdir().expect("a directory");
        let put = |path: &str, search: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            std::fs::write(path, format!("unqualified-search-registries = ['{search}']\n")).expect("a file");
        };
        let around =
            Surroundings { root: root.path().into(), home: Some(root.path().join("home")), ..Surroundings::none() };
        let search = |around: &Surroundings| Registries::read(around).expect("readable").search.unwrap_or_default();
        assert_eq!(search(&around), ["docker.io"]);
        put("etc/containers/registries.conf", "main.io");
        assert_eq!(search(&around), ["main.io"]);
        put("etc/containers/registries.conf.d/1.conf", "drop.io");
        assert_eq!(search(&around), ["drop.io"]);
        put("home/.config/containers/registries.conf", "user.io");
        assert_eq!(search(&around), ["user.io"]);
        put("given.conf", "given.io");
        let given = Surroundings { registries_conf: Some(root.path().join("given.conf")), ..around };
        assert_eq!(search(&given), ["drop.io"]);
        let missing = Surroundings { registries_conf: Some(root.path().join("missing")), ..given };
        assert_eq!(Registries::read(&missing).expect_err("missing").kind(), Kind::NotFound);
    }
}
