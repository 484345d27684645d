//! The OCI image config (image-spec config.md): made for an import, changed by `--change`.

use std::collections::HashMap;
use std::str::FromStr;

use jiff::Timestamp;
use oci_spec::image::{Arch, Config, History, ImageConfiguration, Os, RootFs};
use serde_json::{Map, Value, json};

use super::commit::Commit;
use crate::error::{Error, Kind, Result};
use crate::name::Digest;

/// One Dockerfile instruction that alters an image's config (podman-import(1), `--change`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `CMD ["a", "b"]` or `CMD a b`.
    Cmd(Vec<String>),
    /// `ENTRYPOINT`, in the same two forms.
    Entrypoint(Vec<String>),
    /// `ENV K=V …` or `ENV K V`.
    Env(Vec<(String, String)>),
    /// `EXPOSE PORT[/PROTOCOL]…`.
    Expose(Vec<String>),
    /// `LABEL`, in the same two forms.
    Label(Vec<(String, String)>),
    /// `STOPSIGNAL SIGNAL`.
    StopSignal(String),
    /// `USER NAME|UID[:GROUP|GID]`.
    User(String),
    /// `VOLUME PATH`, or a JSON list of paths.
    Volume(Vec<String>),
    /// `WORKDIR PATH`.
    Workdir(String),
}

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Change> {
        let bad = |why: &str| Error::new(Kind::Invalid, format!("change {text:?}: {why}"));
        // podman takes both `CMD ["sh"]` and `CMD=["sh"]`.
        let (instruction, rest) =
            text.trim().split_once([' ', '\t', '=']).ok_or_else(|| bad("not INSTRUCTION VALUE, as in a Dockerfile"))?;
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(bad("the value is empty"));
        }
        let value = || rest.trim_matches('"').to_string();
        Ok(match instruction.to_ascii_uppercase().as_str() {
            "CMD" => Change::Cmd(command(rest).ok_or_else(|| bad("not a JSON list of strings"))?),
            "ENTRYPOINT" => Change::Entrypoint(command(rest).ok_or_else(|| bad("not a JSON list of strings"))?),
            "ENV" => Change::Env(pairs(rest).map_err(bad)?),
            "EXPOSE" => {
                let port = |port: &str| if port.contains('/') { port.to_string() } else { format!("{port}/tcp") };
                Change::Expose(value().split_whitespace().map(port).collect())
            }
            "LABEL" => Change::Label(pairs(rest).map_err(bad)?),
            "STOPSIGNAL" => Change::StopSignal(value()),
            "USER" => Change::User(value()),
            "VOLUME" if rest.starts_with('[') => {
                Change::Volume(command(rest).ok_or_else(|| bad("not a JSON list of strings"))?)
            }
            "VOLUME" => Change::Volume(vec![value()]),
            "WORKDIR" => Change::Workdir(value()),
            _ => {
                return Err(bad(
                    "the instruction is not CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR",
                ));
            }
        })
    }
}

/// The exec form (a JSON list), or the shell form.
fn command(text: &str) -> Option<Vec<String>> {
    match text.starts_with('[') {
        true => serde_json::from_str(text).ok(),
        false => Some(vec!["/bin/sh".into(), "-c".into(), text.into()]),
    }
}

/// Keys and values (Dockerfile reference, ENV): words `K=V`, or in the old form one key and, behind the first blank, its
/// value. Variables are not expanded: there is no build here that could have set them.
fn pairs(text: &str) -> std::result::Result<Vec<(String, String)>, &'static str> {
    let words = words(text);
    let raw = if words.first().is_some_and(|word| word.contains('=')) {
        words.iter().map(|word| word.split_once('=')).collect::<Option<Vec<_>>>()
    } else {
        text.split_once([' ', '\t']).map(|(key, value)| vec![(key, value.trim_start())])
    };
    let mut pairs = Vec::new();
    for (key, value) in raw.ok_or("not KEY=VALUE")? {
        let (key, value) = (unquoted(key)?, unquoted(value)?);
        if key.is_empty() {
            return Err("a key is empty");
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// How the characters of a Dockerfile's line are meant.
#[derive(Default)]
struct Quoting {
    quote: Option<char>,
    escaped: bool,
}

impl Quoting {
    /// Whether the next character stands for itself, rather than being a quote or a backslash that quotes.
    fn is_literal(&mut self, c: char) -> bool {
        match (self.quote, c) {
            _ if self.escaped => self.escaped = false,
            (None | Some('"'), '\\') => {
                self.escaped = true;
                return false;
            }
            (None, '"' | '\'') => {
                self.quote = Some(c);
                return false;
            }
            (Some(quote), _) if quote == c => {
                self.quote = None;
                return false;
            }
            _ => {}
        }
        true
    }
}

/// Words between blanks that are not quoted. Their quotes and backslashes stay.
fn words(text: &str) -> Vec<&str> {
    let mut quoting = Quoting::default();
    text.split(|c| {
        let bare = quoting.quote.is_none() && !quoting.escaped;
        quoting.is_literal(c) && bare && c.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
    .collect()
}

/// The text without the quotes and backslashes that are no part of what is meant.
fn unquoted(text: &str) -> std::result::Result<String, &'static str> {
    let mut quoting = Quoting::default();
    let mut out = String::new();
    for c in text.chars() {
        // Between double quotes a backslash before anything else is one (sh(1), "Double Quotes").
        if quoting.escaped && quoting.quote.is_some() && !matches!(c, '"' | '$' | '\\') {
            out.push('\\');
        }
        if quoting.is_literal(c) {
            out.push(c);
        }
    }
    if quoting.quote.is_some() { Err("a quote is not closed") } else { Ok(out) }
}

/// The config of an image with one layer, just imported.
pub(super) fn for_import(diff_id: Digest, changes: &[Change], message: Option<&str>) -> ImageConfiguration {
    let created = Timestamp::now().to_string();
    let mut history = History::default();
    history
        .set_created(Some(created.clone()))
        .set_created_by(Some("tupper image import".to_string()))
        .set_comment(message.map(str::to_string));
    let mut rootfs = RootFs::default();
    rootfs.set_diff_ids(vec![diff_id.to_string()]);
    let mut image = ImageConfiguration::default();
    image
        .set_created(Some(created))
        .set_architecture(Arch::default())
        .set_os(Os::default())
        .set_config(Some(changes.iter().fold(Config::default(), apply)))
        .set_rootfs(rootfs)
        .set_history(Some(vec![history]));
    image
}

/// What of a config [`Config`] knows.
const KNOWN: [&str; 9] =
    ["User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal"];

/// The config of an image that has one layer more than its base, or of one without a base. What of the base's is unknown
/// here (`Healthcheck`, `OnBuild`, …) stays.
pub(super) fn for_commit(
    base: Option<Value>,
    diff_id: Digest,
    run: impl FnOnce(Config) -> Result<Config>,
    commit: &Commit,
) -> Result<Value> {
    let broken = |e: serde_json::Error| Error::new(Kind::Store, format!("the base's config: {e}"));
    let mut image: Map<String, Value> = match base {
        Some(base) => serde_json::from_value(base).map_err(broken)?,
        None => Map::from_iter([
            ("architecture".to_string(), json!(Arch::default())),
            ("os".to_string(), json!(Os::default())),
            ("rootfs".to_string(), json!({ "type": "layers" })),
        ]),
    };
    let mut config: Map<String, Value> = match image.remove("config") {
        None | Some(Value::Null) => Map::new(),
        Some(config) => serde_json::from_value(config).map_err(broken)?,
    };
    let typed: Config = serde_json::from_value(config.clone().into()).map_err(broken)?;
    let typed = commit.changes.iter().fold(run(typed)?, apply);
    config.retain(|key, _| !KNOWN.contains(&key.as_str()));
    // Through a value, in which keys are sorted: the same config is the same bytes.
    if let Value::Object(known) = serde_json::to_value(typed).map_err(broken)? {
        config.extend(known);
    }
    let created = commit.created.unwrap_or_else(Timestamp::now).to_string();
    let mut step =
        Map::from_iter([("created".to_string(), json!(created)), ("created_by".to_string(), json!("tupper commit"))]);
    step.extend(commit.author.as_ref().map(|author| ("author".to_string(), json!(author))));
    step.extend(commit.message.as_ref().map(|message| ("comment".to_string(), json!(message))));
    image.extend(commit.author.as_ref().map(|author| ("author".to_string(), json!(author))));
    image.insert("created".to_string(), json!(created));
    image.insert("config".to_string(), config.into());
    if commit.squash {
        // What came before has no layer of its own any more.
        image.remove("history");
        image.insert("rootfs".to_string(), json!({ "type": "layers" }));
    }
    push(&mut image, "history", step.into());
    match image.get_mut("rootfs").and_then(Value::as_object_mut) {
        Some(rootfs) => push(rootfs, "diff_ids", json!(diff_id.to_string())),
        None => return Err(Error::new(Kind::Store, "the base's config has no rootfs")),
    }
    Ok(image.into())
}

/// Adds to a list, which may not be there.
fn push(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get_mut(key) {
        Some(Value::Array(list)) => list.push(value),
        _ => drop(object.insert(key.to_string(), json!([value]))),
    }
}

pub(super) fn apply(mut config: Config, change: &Change) -> Config {
    fn with<T>(list: &Option<Vec<T>>, more: impl IntoIterator<Item = T>) -> Option<Vec<T>>
    where
        T: Clone,
    {
        Some(list.iter().flatten().cloned().chain(more).collect())
    }
    match change.clone() {
        Change::Cmd(command) => config.set_cmd(Some(command)),
        Change::Entrypoint(command) => config.set_entrypoint(Some(command)),
        Change::Env(pairs) => {
            let mut variables = config.env().clone().unwrap_or_default();
            for (key, value) in pairs {
                let prefix = format!("{key}=");
                variables.retain(|variable| !variable.starts_with(&prefix));
                variables.push(prefix + &value);
            }
            config.set_env(Some(variables))
        }
        Change::Expose(ports) => config.set_exposed_ports(with(config.exposed_ports(), ports)),
        Change::Label(pairs) => {
            let mut labels: HashMap<String, String> = config.labels().clone().unwrap_or_default();
            labels.extend(pairs);
            config.set_labels(Some(labels))
        }
        Change::StopSignal(signal) => config.set_stop_signal(Some(signal)),
        Change::User(user) => config.set_user(Some(user)),
        Change::Volume(paths) => config.set_volumes(with(config.volumes(), paths)),
        Change::Workdir(path) => config.set_working_dir(Some(path)),
    };
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_dockerfile_instructions() {
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (text, change) in [
            (r#"CMD ["sh", "-l"]"#, Change::Cmd(strings(&["sh", "-l"]))),
            (r#"CMD=["sh"]"#, Change::Cmd(strings(&["sh"]))),
            ("cmd echo hi", Change::Cmd(strings(&["/bin/sh", "-c", "echo hi"]))),
            ("ENTRYPOINT /init", Change::Entrypoint(strings(&["/bin/sh", "-c", "/init"]))),
            ("EXPOSE 80", Change::Expose(strings(&["80/tcp"]))),
            ("EXPOSE 53/udp 80", Change::Expose(strings(&["53/udp", "80/tcp"]))),
            ("USER 1:2", Change::User("1:2".into())),
            (r#"VOLUME ["/a", "/b"]"#, Change::Volume(strings(&["/a", "/b"]))),
            ("WORKDIR /srv", Change::Workdir("/srv".into())),
        ] {
            assert_eq!(text.parse::<Change>().expect(text), change);
        }
        let bad_env = ["ENV A", "ENV A=b c", "ENV A='b", "ENV \"\"=x", "ENV \\ x"];
        for text in ["", "CMD", "CMD ", "CMD [1]", "CMD [", "FROM debian", "LABEL =x"].into_iter().chain(bad_env) {
            assert!(text.parse::<Change>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn variables_and_labels_are_words_or_one_key_and_the_rest() {
        for (text, expected) in [
            ("A=b", &[("A", "b")][..]),
            ("A=", &[("A", "")]),
            ("A=1 B=2\t C=x=y", &[("A", "1"), ("B", "2"), ("C", "x=y")]),
            (r#"A="b c" B='d "e' C=f\ g"#, &[("A", "b c"), ("B", "d \"e"), ("C", "f g")]),
            (r#"A="b\"c\n\\" B='d\' C=a\"b"#, &[("A", r#"b"c\n\"#), ("B", "d\\"), ("C", "a\"b")]),
            (r#""a key"="a value""#, &[("a key", "a value")]),
            ("A b c=d", &[("A", "b c=d")]),
            (r#"A  "b  c" d"#, &[("A", "b  c d")]),
        ] {
            let owned: Vec<_> = expected.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            assert_eq!(format!("ENV {text}").parse::<Change>().expect(text), Change::Env(owned.clone()), "{text}");
            assert_eq!(format!("LABEL {text}").parse::<Change>().expect(text), Change::Label(owned), "{text}");
        }
    }

    #[test]
    fn a_later_change_of_a_variable_wins() {
        let changes = ["ENV A=1 A=2", "ENV B=2", "ENV A=3"].map(|text| text.parse().expect(text));
        let config = changes.iter().fold(Config::default(), apply);
        assert_eq!(config.env().clone(), Some(vec!["B=2".to_string(), "A=3".to_string()]));
    }

    #[test]
    fn the_config_of_an_import_is_an_oci_config() {
        let digest = Digest::from_bytes([7; 32]);
        let image = for_import(digest, &[Change::Cmd(vec!["sh".into()])], Some("why"));
        let json = serde_json::to_string(&image).expect("serializes");
        let back: ImageConfiguration = serde_json::from_str(&json).expect("parses");
        assert_eq!(back.rootfs().diff_ids(), &[digest.to_string()]);
        assert_eq!(back.history().as_ref().and_then(|h| h[0].comment().clone()), Some("why".to_string()));
    }
}
