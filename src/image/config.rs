//! The OCI image config (image-spec config.md): made for an import, changed by `--change`.

use std::collections::HashMap;
use std::str::FromStr;

use jiff::Timestamp;
use oci_spec::image::{Arch, Config, History, ImageConfiguration, Os, RootFs};

use crate::error::{Error, Kind, Result};
use crate::name::Digest;

/// One Dockerfile instruction that alters an image's config (podman-import(1), `--change`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `CMD ["a", "b"]` or `CMD a b`.
    Cmd(Vec<String>),
    /// `ENTRYPOINT`, in the same two forms.
    Entrypoint(Vec<String>),
    /// `ENV K=V` or `ENV K V`.
    Env(String, String),
    /// `EXPOSE PORT[/PROTOCOL]`.
    Expose(String),
    /// `LABEL K=V`.
    Label(String, String),
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
        let pair = || match rest.split_once(['=', ' ']) {
            Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.trim().trim_matches('"').to_string())),
            _ => Err(bad("not KEY=VALUE")),
        };
        Ok(match instruction.to_ascii_uppercase().as_str() {
            "CMD" => Change::Cmd(command(rest).ok_or_else(|| bad("not a JSON list of strings"))?),
            "ENTRYPOINT" => Change::Entrypoint(command(rest).ok_or_else(|| bad("not a JSON list of strings"))?),
            "ENV" => pair().map(|(key, value)| Change::Env(key, value))?,
            "EXPOSE" => Change::Expose(if rest.contains('/') { value() } else { format!("{}/tcp", value()) }),
            "LABEL" => pair().map(|(key, value)| Change::Label(key, value))?,
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

fn apply(mut config: Config, change: &Change) -> Config {
    fn with<T>(list: &Option<Vec<T>>, more: impl IntoIterator<Item = T>) -> Option<Vec<T>>
    where
        T: Clone,
    {
        Some(list.iter().flatten().cloned().chain(more).collect())
    }
    match change.clone() {
        Change::Cmd(command) => config.set_cmd(Some(command)),
        Change::Entrypoint(command) => config.set_entrypoint(Some(command)),
        Change::Env(key, value) => {
            let prefix = format!("{key}=");
            let others: Vec<String> =
                config.env().iter().flatten().filter(|variable| !variable.starts_with(&prefix)).cloned().collect();
            config.set_env(with(&Some(others), [format!("{key}={value}")]))
        }
        Change::Expose(port) => config.set_exposed_ports(with(config.exposed_ports(), [port])),
        Change::Label(key, value) => {
            let mut labels: HashMap<String, String> = config.labels().clone().unwrap_or_default();
            labels.insert(key, value);
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
            ("ENV A=b c", Change::Env("A".into(), "b c".into())),
            (r#"ENV A="b""#, Change::Env("A".into(), "b".into())),
            ("EXPOSE 80", Change::Expose("80/tcp".into())),
            ("EXPOSE 53/udp", Change::Expose("53/udp".into())),
            ("USER 1:2", Change::User("1:2".into())),
            (r#"VOLUME ["/a", "/b"]"#, Change::Volume(strings(&["/a", "/b"]))),
            ("WORKDIR /srv", Change::Workdir("/srv".into())),
        ] {
            assert_eq!(text.parse::<Change>().expect(text), change);
        }
        for text in ["", "CMD", "CMD ", "CMD [1]", "CMD [", "FROM debian", "ENV A", "LABEL =x"] {
            assert!(text.parse::<Change>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_later_change_of_a_variable_wins() {
        let changes = ["ENV A=1", "ENV B=2", "ENV A=3"].map(|text| text.parse().expect(text));
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
