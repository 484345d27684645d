//! `commit`: a new image of a container or a snapshot (podman-commit(1)).
//!
//! What a container was run with becomes the image's config, so that a container of the image runs the same. What tupper has
//! added to its environment is not the image's.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::image::Config;

use super::compose::{Environment, PATH};
use super::pause::hold_source;
use crate::error::Result;
use crate::image::{Commit, Progress};
use crate::name::Id;
use crate::network::Transport;
use crate::sandbox::{Signal, Spec};
use crate::snapshot::{self, Source};
use crate::store::{Shelf, Store, kind_word};

/// Makes an image of what `text` holds, a container, a snapshot or a subvolume: durable, under its name, when it returns. All
/// processes of a container that runs stand still for the moment in which its root is copied, unless `pause` is false.
///
/// # Errors
/// [`Kind::NotFound`](crate::error::Kind) when there is no such thing, `Invalid` for an image and for a name that no layer can
/// hold, `NoSpace`; a host that cannot freeze.
pub fn commit(store: &Store, text: &str, commit: &Commit, pause: bool, progress: Progress) -> Result<Id> {
    let hold = |source: &Source| if pause { hold_source(store, source) } else { Ok(None) };
    snapshot::commit_held(store, text, commit, progress, hold, |source, config| match source.id {
        Some(id) if source.kind == kind_word(Shelf::Containers) => Ok(as_run(&super::open(store, &id)?.spec, config)),
        _ => Ok(config),
    })
}

/// The config of an image whose containers run as this one, made from one with the config `of_image`.
fn as_run(spec: &Spec, of_image: Config) -> Config {
    let mut config = of_image.clone();
    // What was joined when the container was made cannot be told apart, unless it still begins with the image's.
    let entrypoint = of_image.entrypoint().as_deref().unwrap_or_default();
    match spec.args.strip_prefix(entrypoint) {
        Some(command) => config.set_cmd((!command.is_empty()).then(|| command.to_vec())),
        None => config.set_entrypoint(None).set_cmd(Some(spec.args.clone())),
    };
    config.set_env(non_empty(environment(spec, of_image.env().as_deref().unwrap_or_default())));
    if let Some(user) = &spec.user {
        config.set_user(Some(user.clone()));
    }
    if spec.cwd != Path::new("/") || of_image.working_dir().as_ref().is_some_and(|directory| !directory.is_empty()) {
        config.set_working_dir(Some(spec.cwd.to_string_lossy().into_owned()));
    }
    let labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
    config.set_labels((!labels.is_empty()).then_some(labels));
    let of_the_image = of_image.stop_signal().as_ref().and_then(|text| text.parse::<Signal>().ok());
    if let Some(signal) = spec.stop_signal.filter(|signal| Some(*signal) != of_the_image) {
        config.set_stop_signal(Some(signal.number().to_string()));
    }
    let mut ports = of_image.exposed_ports().clone().unwrap_or_default();
    for port in &spec.ports {
        let protocol = match port.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        };
        ports.extend((0..port.count).map(|nth| format!("{}/{protocol}", port.container.saturating_add(nth))));
    }
    ports.sort();
    ports.dedup();
    config.set_exposed_ports(non_empty(ports));
    config
}

/// A container's variables without those that tupper adds to every one.
fn environment(spec: &Spec, of_image: &[String]) -> Vec<String> {
    let own = ["container=tupper".to_string(), format!("HOSTNAME={}", spec.hostname), PATH.to_string()];
    let mut variables = spec.env.clone();
    variables.retain(|variable| {
        let key = Environment::key(variable);
        let terminal = spec.tty && key == "TERM";
        of_image.iter().any(|other| Environment::key(other) == key) || !terminal && !own.contains(variable)
    });
    variables
}

fn non_empty(list: Vec<String>) -> Option<Vec<String>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::compose::{Options, compose};
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    /// What becomes of an image's config when a container that was made with `options` is committed.
    fn committed(options: &Options, image: &Config) -> Config {
        let spec = compose(options, Some(image), &Id::from_bytes([0xab; 32]), Some("xterm")).expect("composes");
        as_run(&spec, image.clone())
    }

    #[test]
    fn a_container_that_nothing_was_asked_of_is_as_its_image() {
        let mut image = Config::default();
        image
            .set_entrypoint(Some(strings(&["init"])))
            .set_cmd(Some(strings(&["sh"])))
            .set_env(Some(strings(&["TERM=dumb", "A=1"])))
            .set_stop_signal(Some("SIGINT".to_string()))
            .set_working_dir(Some("/".to_string()));
        let options = Options { tty: true, ..Options::default() };
        assert_eq!(committed(&options, &image), image);
        let mut plain = Config::default();
        plain.set_cmd(Some(strings(&["sh"])));
        assert_eq!(committed(&options, &plain), plain);
    }

    #[test]
    fn what_was_asked_of_it_becomes_the_image_s() {
        let mut image = Config::default();
        image.set_entrypoint(Some(strings(&["init"]))).set_cmd(Some(strings(&["sh"]))).set_env(Some(strings(&["A=1"])));
        let options = Options {
            args: strings(&["ls", "-l"]),
            env: strings(&["A=2", "B=", "HOSTNAME=mine"]),
            user: Some("7:8".to_string()),
            workdir: Some("/srv".to_string()),
            stop_signal: "QUIT".parse().ok(),
            labels: [("k".to_string(), "v".to_string())].into(),
            ..Options::default()
        };
        let config = committed(&options, &image);
        assert_eq!(config.entrypoint().clone(), Some(strings(&["init"])));
        assert_eq!(config.cmd().clone(), Some(strings(&["ls", "-l"])));
        assert_eq!(config.env().clone(), Some(strings(&["HOSTNAME=mine", "A=2", "B="])));
        assert_eq!(config.user().as_deref(), Some("7:8"));
        assert_eq!(config.working_dir().as_ref().map(PathBuf::from), Some(PathBuf::from("/srv")));
        assert_eq!(config.stop_signal().as_deref(), Some("3"));
        assert_eq!(config.labels().as_ref().and_then(|labels| labels.get("k").cloned()), Some("v".to_string()));
        let other = Options { entrypoint: Some(strings(&["other"])), args: strings(&["x"]), ..Options::default() };
        let config = committed(&other, &image);
        assert_eq!((config.entrypoint().clone(), config.cmd().clone()), (None, Some(strings(&["other", "x"]))));
    }
}
