//! What a fuzzer asks of this room: what an image's config says is an error, or what a container can be.

use super::compose::{Options, compose};
use super::health;
use crate::name::{Id, NetworkName};
use crate::network::{Join, Mode};

/// An image's config, and what a container made of it is.
pub fn config(bytes: &[u8]) {
    let Some((image, check)) = crate::image::fuzz::image_config(bytes) else { return };
    let network = Mode::Joined(Join::new(NetworkName::bridge()));
    let options = Options { publish_all: true, network, ..Options::default() };
    let _ = health::decide(&options.health, check.as_ref());
    let Ok(spec) = compose(&options, image.config().as_ref(), &Id::from_bytes([7; 32]), None) else { return };
    assert!(spec.cwd.is_absolute() && !spec.args.is_empty());
    for port in &spec.ports {
        assert!(port.count > 0 && port.container.checked_add(port.count - 1).is_some(), "{port:?}");
    }
    let again = serde_json::to_vec(&spec).and_then(|json| serde_json::from_slice::<crate::sandbox::Spec>(&json));
    assert!(again.is_ok_and(|again| again == spec), "it is another container when it is read: {spec:?}");
}
