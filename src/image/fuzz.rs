//! What a fuzzer asks of this room: a config that an image is made with can be read ever after.

use oci_spec::image::{Config, ImageConfiguration};

use super::Change;
use super::config;
use crate::layer::Limits;
use crate::transport::{Blob, Offer};

/// An image's config, if it is one, with what docker adds to it.
pub fn image_config(bytes: &[u8]) -> Option<(ImageConfiguration, Option<serde_json::Value>)> {
    let layers = |count| vec![Blob { digest: None, size: None, media_type: None, location: String::new() }; count];
    let wanted = serde_json::from_slice::<ImageConfiguration>(bytes).map(|image| image.rootfs().diff_ids().len());
    let offer = Offer {
        names: Vec::new(),
        manifest: None,
        config: bytes.to_vec(),
        layers: layers(wanted.unwrap_or(1).min(600)),
        place: None,
    };
    super::add::plan(&offer, &Limits::default()).ok()?;
    match super::read_config(bytes) {
        Ok(read) => Some(read),
        Err(error) => panic!("an image is made of it, and nobody can read it: {error}"),
    }
}

/// Instructions of `--change`, a line each.
pub fn change(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let changes: Vec<Change> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let config = changes.iter().fold(Config::default(), config::apply);
    let again = serde_json::to_vec(&config).and_then(|json| serde_json::from_slice::<Config>(&json));
    assert!(
        again.is_ok_and(|again| sorted(again) == sorted(config.clone())),
        "{changes:?} are others when they are read"
    );
    let variables = config.env().as_deref().unwrap_or_default();
    assert!(variables.iter().all(|variable| variable.split_once('=').is_some_and(|(key, _)| !key.is_empty())));
}

/// Ports and volumes are sets there.
fn sorted(mut config: Config) -> Config {
    let set = |list: &Option<Vec<String>>| {
        list.as_ref().map(|list| list.iter().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect())
    };
    let (ports, volumes) = (set(config.exposed_ports()), set(config.volumes()));
    config.set_exposed_ports(ports).set_volumes(volumes);
    config
}
