//! Images as archives and layouts, made byte by byte, to be spoilt at will.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The files of an archive or a layout, in their order.
#[derive(Clone, Default)]
pub struct Files(pub Vec<(String, Vec<u8>)>);

/// The sha256 of bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image's config over layers, by their uncompressed bytes.
pub fn config(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "created": "2020-02-02T02:02:02Z", "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|_| json!({ "created": "2020-02-02T02:02:02Z", "created_by": "test" }))
            .collect::<Vec<_>>(),
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}

/// The chain ids of layers, lowest first (image-spec config.md, "Layer ChainID").
pub fn chains(layers: &[&[u8]]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::new();
    for layer in layers {
        let diff_id = hex(layer);
        chains.push(match chains.last() {
            None => diff_id,
            Some(below) => hex(format!("sha256:{below} sha256:{diff_id}").as_bytes()),
        });
    }
    chains
}

impl Files {
    /// What `docker save` wrote of old: layers in directories, `manifest.json`.
    pub fn docker(images: &[(&[&str], &[&[u8]])]) -> Files {
        let images: Vec<_> = images.iter().map(|(tags, layers)| (bytes(&config(layers)), *tags, *layers)).collect();
        Files::docker_images(&images)
    }

    /// An archive of one image with this config.
    pub fn docker_of(config: Vec<u8>, tags: &[&str], layers: &[&[u8]]) -> Files {
        Files::docker_images(&[(config, tags, layers)])
    }

    #[expect(clippy::type_complexity, reason = "what an image is, spelt out")]
    fn docker_images(images: &[(Vec<u8>, &[&str], &[&[u8]])]) -> Files {
        let mut files = Files::default();
        let mut list = Vec::new();
        for (config, tags, layers) in images {
            let name = format!("{}.json", hex(config));
            let paths: Vec<String> = chains(layers).iter().map(|chain| format!("{chain}/layer.tar")).collect();
            for (path, layer) in paths.iter().zip(*layers) {
                files.set(path, layer.to_vec());
            }
            files.set(&name, config.clone());
            list.push(json!({ "Config": name, "RepoTags": tags, "Layers": paths }));
        }
        files.set("manifest.json", bytes(&Value::Array(list)));
        files
    }

    /// An OCI layout of one image; `travel` makes of a layer what lies there.
    pub fn layout(name: Option<&str>, layers: &[&[u8]], travel: impl Fn(&[u8]) -> Vec<u8>) -> Files {
        let mut files = Files::default();
        let config = files.blob("application/vnd.oci.image.config.v1+json", bytes(&config(layers)));
        let layers: Vec<Value> =
            layers.iter().map(|layer| files.blob("application/vnd.oci.image.layer.v1.tar", travel(layer))).collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut manifest = files.blob("application/vnd.oci.image.manifest.v1+json", bytes(&manifest));
        if let Some(name) = name {
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        files.index(&[manifest]);
        files
    }

    /// Adds a blob; its descriptor.
    pub fn blob(&mut self, kind: &str, content: Vec<u8>) -> Value {
        let (digest, size) = (hex(&content), content.len());
        self.set(&format!("blobs/sha256/{digest}"), content);
        json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size })
    }

    /// Sets the layout's index.
    pub fn index(&mut self, manifests: &[Value]) {
        self.set("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        self.set("index.json", bytes(&json!({ "schemaVersion": 2, "manifests": manifests })));
    }

    /// Adds a file, or replaces it.
    pub fn set(&mut self, name: &str, content: Vec<u8>) {
        match self.0.iter_mut().find(|(there, _)| there == name) {
            Some((_, old)) => *old = content,
            None => self.0.push((name.to_string(), content)),
        }
    }

    pub fn get(&self, name: &str) -> &[u8] {
        &self.0.iter().find(|(there, _)| there == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    /// A document, changed.
    pub fn change(mut self, name: &str, change: impl FnOnce(&mut Value)) -> Files {
        let mut value = serde_json::from_slice(self.get(name)).expect("JSON");
        change(&mut value);
        self.set(name, bytes(&value));
        self
    }

    /// An uncompressed tar of them.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &content[..]).expect("to memory");
        }
        tar.into_inner().expect("to memory")
    }

    /// That tar as a file in a directory.
    pub fn save(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, self.tar()).expect("a file");
        path
    }

    /// They as files below a directory.
    pub fn write(&self, dir: &Path) {
        for (name, content) in &self.0 {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("below it")).expect("directories");
            fs::write(path, content).expect("a file");
        }
    }
}
