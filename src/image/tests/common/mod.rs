//! Images made by the tests: layers, configurations, manifests, and archives of them.
#![expect(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses its part")]

use edge_image::{Digest, ImageStore, ImageStoreConfig, Limits, Platform, Registries};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) config: Vec<u8>,
    /// Compressed, as they are stored and transferred.
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) platform: Platform,
    /// Media types of the configuration and of each layer, for an artifact that is no image.
    pub(crate) artifact: Option<(&'static str, Vec<&'static str>)>,
}

impl TestImage {
    pub(crate) fn new(platform: &Platform, layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "architecture": platform.architecture, "os": platform.os,
            "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/app"], "Cmd": ["serve"], "WorkingDir": "/srv",
                "User": "1000", "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let blobs = layers.iter().map(|layer| gzip(layer)).collect();
        Self { config: serde_json::to_vec(&config).unwrap(), blobs, platform: platform.clone(), artifact: None }
    }

    /// An artifact of layers with their media types.
    pub(crate) fn artifact(config_type: &'static str, layers: &[(&'static str, &[u8])]) -> Self {
        Self {
            config: br#"{"architecture":"wasm","os":"wasip1"}"#.to_vec(),
            blobs: layers.iter().map(|(_, data)| data.to_vec()).collect(),
            platform: Platform { os: "wasip1".into(), architecture: "wasm".into(), variant: None },
            artifact: Some((config_type, layers.iter().map(|(media, _)| *media).collect())),
        }
    }

    /// Changes what the image runs.
    pub(crate) fn running(mut self, entrypoint: &[&str]) -> Self {
        let mut config: Value = serde_json::from_slice(&self.config).unwrap();
        config["config"]["Entrypoint"] = json!(entrypoint);
        self.config = serde_json::to_vec(&config).unwrap();
        self
    }

    /// An image for this machine with one file per layer.
    pub(crate) fn simple(content: &str) -> Self {
        let base = tar_of(&[("bin/app", b"base"), ("etc/base", b"1")]);
        Self::new(&Platform::host(), &[base, tar_of(&[("etc/content", content.as_bytes())])])
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        let descriptor = |media: &str, bytes: &[u8]| json!({"mediaType": media, "size": bytes.len(), "digest": Digest::of(bytes).to_string()});
        let of_image = || {
            let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
            ("application/vnd.oci.image.config.v1+json", vec![layer; self.blobs.len()])
        };
        let (config, media) = self.artifact.clone().unwrap_or_else(of_image);
        let layers: Vec<Value> = self.blobs.iter().zip(media).map(|(blob, media)| descriptor(media, blob)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(config, &self.config), "layers": layers});
        serde_json::to_vec(&manifest).unwrap()
    }
}

/// An OCI index of the images' manifests.
pub(crate) fn index_of(images: &[&TestImage]) -> Vec<u8> {
    let manifests: Vec<Value> = images.iter().map(|image| manifest_descriptor(image, None)).collect();
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
    serde_json::to_vec(&index).unwrap()
}

fn manifest_descriptor(image: &TestImage, name: Option<&str>) -> Value {
    let manifest = image.manifest();
    let mut value = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": manifest.len(),
        "digest": Digest::of(&manifest).to_string(), "platform": image.platform});
    if let Some(name) = name {
        value["annotations"] = json!({"io.containerd.image.name": name});
    }
    value
}

fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

fn archive_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut seen = std::collections::HashSet::new();
    let files: Vec<_> = files.iter().filter(|(name, _)| seen.insert(name)).collect();
    tar_of(&files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect::<Vec<_>>())
}

/// An OCI layout; every name has one image, or an index of several.
pub(crate) fn oci_archive(named: &[(&str, &[&TestImage])]) -> Vec<u8> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut top = Vec::new();
    for (name, images) in named {
        for image in *images {
            for blob in image.blobs.iter().chain([&image.config, &image.manifest()]) {
                files.push((blob_path(blob), blob.clone()));
            }
        }
        if let [image] = images {
            top.push(manifest_descriptor(image, Some(name)));
        } else {
            let index = index_of(images);
            top.push(json!({"mediaType": "application/vnd.oci.image.index.v1+json", "size": index.len(),
                "digest": Digest::of(&index).to_string(), "annotations": {"io.containerd.image.name": name}}));
            files.push((blob_path(&index), index));
        }
    }
    files.push(("index.json".to_owned(), serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": top})).unwrap()));
    archive_of(&files)
}

/// What `docker save` writes: uncompressed layers, in directories of their own, before the manifest.
pub(crate) fn docker_archive(images: &[(&[&str], &TestImage)]) -> Vec<u8> {
    let (mut files, mut manifest) = (Vec::new(), Vec::new());
    for (tags, image) in images {
        let mut layers = Vec::new();
        for blob in &image.blobs {
            let mut layer = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(blob.as_slice()), &mut layer).unwrap();
            let name = format!("{}/layer.tar", &Digest::of(&layer).hex()[..40]);
            layers.push(name.clone());
            files.push((name, layer));
        }
        let config = format!("{}.json", image.id().hex());
        files.push((config.clone(), image.config.clone()));
        manifest.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    }
    files.push(("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap()));
    archive_of(&files)
}

/// A store in a directory of its own.
pub(crate) struct TestStore {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("content"));
        Self { dir, store }
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn content(&self) -> PathBuf {
        self.dir.path().join("content")
    }

    /// Everything in the store's directory but the directories that are always there.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        ["images", "layers", "blobs/sha256", "ingest"]
            .iter()
            .flat_map(|sub| std::fs::read_dir(self.content().join(sub)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

pub(crate) fn config(content: &Path) -> ImageStoreConfig {
    ImageStoreConfig {
        content_dir: content.to_owned(),
        platform: Platform::host(),
        limits: Limits::default(),
        registries: Registries::default(),
    }
}

pub(crate) fn open(content: &Path) -> ImageStore {
    ImageStore::open(config(content)).unwrap()
}
