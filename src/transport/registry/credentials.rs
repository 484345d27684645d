//! Who we are to a registry: auth files and credential helpers.
//!
//! Sources: containers-auth.json(5), containers-registries.conf(5) (`credential-helpers`), Docker's config.json and the
//! protocol of docker-credential-helpers. A helper is a program of the user's own, named by the user's own file.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Surroundings;
use crate::error::{Context, Error, Kind, Result};

/// What helpers and Docker call Docker's registry.
const DOCKER: &str = "https://index.docker.io/v1/";
/// The helper that stands for the auth files.
const FILES: &str = "containers-auth.json";
/// Bytes of an auth file or of a helper's answer.
const LIMIT: u64 = 1 << 20;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user's name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token.
    IdentityToken(String),
}

impl Credential {
    /// Name and password.
    pub fn password(user: impl Into<String>, password: impl Into<String>) -> Credential {
        Credential::Password { user: user.into(), password: password.into() }
    }

    /// The user's name, where there is one.
    pub fn user(&self) -> Option<&str> {
        match self {
            Credential::Password { user, .. } => Some(user),
            Credential::IdentityToken(_) => None,
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what it holds.
        write!(f, "Credential({})", self.user().unwrap_or("token"))
    }
}

/// An auth file: what is not known here is kept when it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    cred_helpers: Map<String, Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    creds_store: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Where credentials are looked for and kept.
#[derive(Debug)]
pub(super) struct Keyring {
    /// Read in this order; the first is written.
    files: Vec<PathBuf>,
    /// `credential-helpers` of registries.conf.
    helpers: Vec<String>,
}

impl Keyring {
    /// The usual places, or the one file that is given.
    pub(super) fn new(around: &Surroundings, given: Option<&Path>, helpers: &[String]) -> Keyring {
        let files = match given.or(around.auth_file.as_deref()) {
            Some(file) => vec![file.to_path_buf()],
            None => {
                let runtime = match &around.runtime {
                    Some(runtime) => runtime.join("containers/auth.json"),
                    None => around.root.join(format!("run/containers/{}/auth.json", around.uid)),
                };
                let home = |path: &str| around.home.as_ref().map(|home| home.join(path));
                let config = around.config.clone().or_else(|| home(".config"));
                let docker = around.docker_config.clone().or_else(|| home(".docker"));
                let user = config.map(|config| config.join("containers/auth.json"));
                [Some(runtime), user, docker.map(|docker| docker.join("config.json"))].into_iter().flatten().collect()
            }
        };
        Keyring { files, helpers: helpers.to_vec() }
    }

    /// The credential for `HOST[:PORT]/REPOSITORY`, or for a whole registry.
    ///
    /// # Errors
    /// A file or helper that cannot be understood.
    pub(super) fn find(&self, place: &str) -> Result<Option<Credential>> {
        let host = place.split('/').next().unwrap_or(place);
        let files = [FILES.to_string()];
        for helper in if self.helpers.is_empty() { &files[..] } else { &self.helpers } {
            if helper != FILES {
                if let Some(found) = ask(helper, host)? {
                    return Ok(Some(found));
                }
                continue;
            }
            for path in &self.files {
                let Some(file) = AuthFile::read(path)? else { continue };
                if let Some(found) = file.find(place, host).context(|| format!("auth file {}", path.display()))? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// Keeps a credential for a registry: with the helper that the file names for it, else in the file.
    pub(super) fn store(&self, host: &str, user: &str, password: &str) -> Result<()> {
        self.change(|file| match file.helper(host) {
            Some(helper) => {
                let given = serde_json::json!({"ServerURL": server(host), "Username": user, "Secret": password});
                run(&helper, "store", given.to_string().as_bytes()).map(|_| false)
            }
            None => {
                let auth = STANDARD.encode(format!("{user}:{password}"));
                file.auths.insert(host.to_string(), serde_json::json!({ "auth": auth }));
                Ok(true)
            }
        })
    }

    /// Forgets the credential of a registry, or of all (`None`). Whether there was one.
    pub(super) fn erase(&self, host: Option<&str>) -> Result<bool> {
        let mut was = false;
        self.change(|file| {
            let Some(host) = host else {
                was = !file.auths.is_empty();
                file.auths.clear();
                return Ok(was);
            };
            if let Some(helper) = file.helper(host) {
                was = ask(&helper, host)?.is_some();
                if was {
                    run(&helper, "erase", server(host).as_bytes())?;
                }
            }
            let before = file.auths.len();
            file.auths.retain(|key, _| bare(key) != host);
            was |= file.auths.len() < before;
            Ok(file.auths.len() < before)
        })?;
        Ok(was)
    }

    fn change(&self, change: impl FnOnce(&mut AuthFile) -> Result<bool>) -> Result<()> {
        let path = self.files.first().ok_or_else(|| Error::new(Kind::NotFound, "no place for an auth file"))?;
        let mut file = AuthFile::read(path)?.unwrap_or_default();
        if change(&mut file)? {
            file.write(path).context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

impl AuthFile {
    fn read(path: &Path) -> Result<Option<AuthFile>> {
        let doing = || format!("read auth file {}", path.display());
        let mut text = Vec::new();
        match std::fs::File::open(path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e).context(doing),
            Ok(file) => file.take(LIMIT + 1).read_to_end(&mut text).context(doing)?,
        };
        if text.len() as u64 > LIMIT {
            return Err(Error::new(Kind::Limit, format!("more than {LIMIT} bytes"))).context(doing);
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(AuthFile::default()));
        }
        // serde_json's words may repeat what stands there.
        let bad = |e: serde_json::Error| format!("no auth file (line {}, column {})", e.line(), e.column());
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::new(Kind::Invalid, bad(e))).context(doing)
    }

    /// Written beside it and renamed, so that nobody ever reads a half, or one that others may read.
    fn write(&self, path: &Path) -> Result<()> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // A link stays one: what it names is replaced.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let mut beside = path.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
        let write = || {
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)
        };
        write().inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
        Ok(())
    }

    /// The helper that keeps a registry's credentials.
    fn helper(&self, host: &str) -> Option<String> {
        let named = self.cred_helpers.iter().find(|(key, _)| bare(key) == host);
        named
            .and_then(|(_, helper)| helper.as_str())
            .or(Some(&self.creds_store))
            .filter(|h| !h.is_empty())
            .map(str::to_string)
    }

    fn find(&self, place: &str, host: &str) -> Result<Option<Credential>> {
        if let Some(helper) = self.helper(host)
            && let Some(found) = ask(&helper, host)?
        {
            return Ok(Some(found));
        }
        // From the repository up to the registry.
        let mut key = Some(place);
        while let Some(at) = key {
            if let Some(found) = self.auths.get(at).map(decode).transpose()?.flatten() {
                return Ok(Some(found));
            }
            key = at.rsplit_once('/').map(|(above, _)| above);
        }
        // Docker's own keys are URLs.
        let same = self.auths.iter().filter(|(key, _)| bare(key) == host).map(|(_, entry)| decode(entry));
        Ok(same.collect::<Result<Vec<_>>>()?.into_iter().flatten().next())
    }
}

/// A key of an auth file as a registry's name: `https://index.docker.io/v1/` is docker.io.
fn bare(key: &str) -> &str {
    let url = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let host = match url {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key,
    };
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

fn server(host: &str) -> &str {
    if host == "docker.io" { DOCKER } else { host }
}

/// An entry: `auth` is base64 of `USER:PASSWORD`; one without says that a helper has it.
fn decode(entry: &Value) -> Result<Option<Credential>> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::IdentityToken(token.to_string())));
    }
    let Some(auth) = text("auth") else { return Ok(None) };
    let bad = || Error::new(Kind::Invalid, "an `auth` that is not base64 of USER:PASSWORD");
    let decoded = STANDARD.decode(auth.trim()).map_err(|_| bad())?;
    let decoded = String::from_utf8(decoded).map_err(|_| bad())?;
    let (user, password) = decoded.split_once(':').ok_or_else(bad)?;
    // Docker pads with zero bytes.
    Ok(Some(Credential::password(user, password.trim_end_matches('\0'))))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// What a helper has for a registry.
fn ask(helper: &str, host: &str) -> Result<Option<Credential>> {
    let Some(answer) = run(helper, "get", server(host).as_bytes())? else { return Ok(None) };
    let answer: HelperAnswer = serde_json::from_slice(&answer)
        .map_err(|_| Error::new(Kind::Invalid, format!("docker-credential-{helper}: its answer is not understood")))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::IdentityToken(answer.secret),
        user => Credential::password(user, answer.secret),
    }))
}

/// Runs a helper; `None` when it says that it has nothing.
fn run(helper: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let doing = || format!("run docker-credential-{helper} {verb}");
    if helper.contains('/') {
        return Err(Error::new(Kind::Invalid, "the name of a helper has no slash")).context(doing);
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context(doing)?;
    // One that does not read what it is told has its reasons, which its status tells.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let mut answer = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(LIMIT).read_to_end(&mut answer));
    let status = child.wait().context(doing)?;
    read.transpose().context(doing)?;
    if status.success() {
        return Ok(Some(answer));
    }
    let says = String::from_utf8_lossy(&answer).trim().to_string();
    // What docker-credential-helpers prints, and its library compares with.
    if says.contains("credentials not found in native keychain") {
        return Ok(None);
    }
    let says: String = says.chars().take(200).collect();
    Err(Error::new(Kind::Io, if says.is_empty() { status.to_string() } else { says })).context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(text: &str) -> (tempfile::TempDir, Keyring) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("deep/auth.json");
        std::fs::create_dir(dir.path().join("deep")).expect("a directory");
        std::fs::write(&file, text).expect("a file");
        let keyring = Keyring::new(&Surroundings::none(), Some(&file), &[]);
        (dir, keyring)
    }

    fn auth(user: &str) -> String {
        format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(format!("{user}:pass:word")))
    }

    #[test]
    fn the_nearest_entry_wins() {
        let text = format!(
            r#"{{"auths":{{"a.io/x/y":{},"a.io/x":{},"a.io":{},"{DOCKER}":{},"empty.io":{{}},"t.io":{{"identitytoken":"tok"}}}}}}"#,
            auth("xy"),
            auth("x"),
            auth("all"),
            auth("hub")
        );
        let (_dir, keyring) = keyring(&text);
        for (place, user) in [
            ("a.io/x/y", Some("xy")),
            ("a.io/x/z", Some("x")),
            ("a.io/xx", Some("all")),
            ("a.io", Some("all")),
            ("docker.io/library/debian", Some("hub")),
            ("empty.io/a", None),
            ("a.io:5000/x", None),
        ] {
            let expected = user.map(|user| Credential::password(user, "pass:word"));
            assert_eq!(keyring.find(place).expect(place), expected, "{place}");
        }
        assert_eq!(keyring.find("t.io/x").expect("there"), Some(Credential::IdentityToken("tok".to_string())));
    }

    #[test]
    fn what_is_stored_is_found_private_and_erased() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, keyring) = keyring(r#"{"auths":{"b.io":{"auth":"eDp5","email":"e"}},"HttpHeaders":{"X":"y"}}"#);
        keyring.store("a.io", "me", "secret").expect("stored");
        assert_eq!(keyring.find("a.io/x").expect("readable"), Some(Credential::password("me", "secret")));
        let path = dir.path().join("deep/auth.json");
        let text = std::fs::read_to_string(&path).expect("a file");
        assert!(text.contains("HttpHeaders") && text.contains("email"), "{text}");
        assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path().join("deep")).expect("a directory").count(), 1);
        assert!(keyring.erase(Some("a.io")).expect("erased"));
        assert!(!keyring.erase(Some("a.io")).expect("gone already"));
        assert_eq!(keyring.find("a.io").expect("readable"), None);
        assert!(keyring.erase(None).expect("erased"));
        assert_eq!(keyring.find("b.io").expect("readable"), None);
    }

    #[test]
    fn files_that_are_no_auth_files_are_errors_that_tell_no_secret() {
        for text in [
            "[",
            r#"{"auths":"secret"}"#,
            r#"{"auths":{"a.io":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"a.io":{"auth":"secret!"}}}"#,
        ] {
            let (_dir, keyring) = keyring(text);
            let error = keyring.find("a.io").expect_err(text).to_string();
            assert!(error.contains("auth.json") && !error.contains("secret"), "{error}");
        }
        let (_dir, keyring) = keyring("");
        assert_eq!(keyring.find("a.io").expect("empty"), None);
        let shown = format!("{:?}", Credential::password("me", "secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn files_are_looked_for_where_podman_does() {
        let around = Surroundings { home: Some("/h".into()), runtime: Some("/r".into()), ..Surroundings::none() };
        let files = |around: &Surroundings| Keyring::new(around, None, &[]).files;
        let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            files(&around),
            paths(&["/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"])
        );
        let root = Surroundings { root: "/".into(), runtime: None, home: None, ..around.clone() };
        assert_eq!(files(&root), paths(&["/run/containers/0/auth.json"]));
        let given = Surroundings { auth_file: Some("/g".into()), ..around };
        assert_eq!(files(&given), paths(&["/g"]));
    }
}
