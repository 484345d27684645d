//! An image that a registry could have, the registry that has it, and a client that has little patience.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tupper::error::{Error, Result};
use tupper::layer::Limits;
use tupper::transport::registry::{Client, Found, Options, Settings, Surroundings};
use tupper::transport::{Blobs, Offer, Platform};

use crate::support::http::{Asked, Reply, Server};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A config, two layers and their manifest; what the layers hold is not looked at.
#[derive(Clone)]
pub struct Image {
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
}

impl Image {
    pub fn new() -> Image {
        Image::with(|_| {})
    }

    /// The same with a manifest that was changed.
    pub fn with(change: impl FnOnce(&mut Value)) -> Image {
        let noise = |length: &u32| (0..*length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        Image::of([300_000u32, 70_000].iter().map(noise).collect(), change)
    }

    /// One of these layers, which travel as they are.
    pub fn of(layers: Vec<Vec<u8>>, change: impl FnOnce(&mut Value)) -> Image {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let descriptor =
            |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        });
        change(&mut manifest);
        Image { config, layers, manifest: manifest.to_string().into_bytes() }
    }

    /// What an honest registry with this image as `a/image:1` answers.
    pub fn answer(&self, asked: &Asked) -> Reply {
        if asked.path == "/v2/" {
            return Reply::new(200, "{}");
        }
        if asked.path == "/v2/a/image/manifests/1" || asked.path == manifest_path(&self.manifest) {
            return Reply::new(200, self.manifest.as_slice()).with("Content-Type", MANIFEST);
        }
        let mut blobs = self.layers.iter().chain([&self.config]);
        match blobs.find(|blob| asked.path == blob_path(blob)) {
            Some(blob) => Reply::range_of(asked, blob),
            None => Reply::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such\nthing"}]}"#),
        }
    }
}

pub fn manifest_path(bytes: &[u8]) -> String {
    format!("/v2/a/image/manifests/{}", digest(bytes))
}

pub fn blob_path(bytes: &[u8]) -> String {
    format!("/v2/a/image/blobs/{}", digest(bytes))
}

/// An honest registry, but for what `lie` answers.
pub fn registry(image: &Image, lie: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let image = image.clone();
    Server::start(move |asked| lie(asked).unwrap_or_else(|| image.answer(asked)))
}

pub fn options() -> Options {
    let ms = Duration::from_millis;
    Options {
        tls_verify: Some(false),
        settings: Settings { retries: 2, pause: ms(5), longest_pause: ms(2000), silence: ms(400), document: ms(1500) },
        ..Options::default()
    }
}

pub fn client(options: Options) -> Client {
    Client::new(options, Surroundings::none()).expect("a client")
}

/// What a pull brings: the offer, and the layers to their last byte.
pub type Pulled = (Offer, Vec<Vec<u8>>);

pub fn find(client: &Client, reference: &str) -> Result<Found> {
    client.find(&reference.parse()?, &"linux/amd64".parse::<Platform>()?)
}

pub fn pull_with(client: &Client, server: &Server) -> Result<Pulled> {
    let found = find(client, &format!("{}/a/image:1", server.host()))?;
    let offer = found.offer(&Limits::default())?;
    let layers = offer.layers.iter().map(|layer| read(&mut *found.open(layer)?)).collect::<Result<_>>()?;
    Ok((offer, layers))
}

pub fn pull(server: &Server) -> Result<Pulled> {
    pull_with(&client(options()), server)
}

/// All that a reader gives; after an error it has to give nothing more.
pub fn read(reader: &mut dyn Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = reader.read_to_end(&mut bytes).map_err(Error::from);
    if result.is_err() {
        assert!(!matches!(reader.read(&mut [0; 10]), Ok(1..)), "bytes after an error");
    }
    result.map(|_| bytes)
}

/// The image came as it is.
#[track_caller]
pub fn assert_is(pulled: Result<Pulled>, image: &Image) {
    let (offer, layers) = pulled.expect("pulled");
    assert!(offer.config == image.config && layers == image.layers, "something else came");
}
