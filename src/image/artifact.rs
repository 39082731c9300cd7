//! Artifacts of our own making: a WebAssembly module as the CNCF's "Wasm OCI Artifact" describes it.

use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use bytes::Bytes;
use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = "application/wasm";

/// A manifest and the blobs that it names. Made of the same module it is always the same, byte for byte.
#[derive(Debug, Clone)]
pub struct Artifact {
    manifest: Bytes,
    blobs: Vec<(Digest, Bytes)>,
}

impl Artifact {
    /// One of a core module.
    #[must_use]
    pub fn of_module(module: Bytes) -> Self {
        Self::new(module, json!({"architecture": "wasm", "os": "wasip1"}))
    }

    /// One of a component with these imports and exports.
    #[must_use]
    pub fn of_component(component: Bytes, imports: &[String], exports: &[String]) -> Self {
        let interfaces = json!({"exports": exports, "imports": imports, "target": null});
        Self::new(component, json!({"architecture": "wasm", "os": "wasip2", "component": interfaces}))
    }

    fn new(layer: Bytes, mut config: serde_json::Value) -> Self {
        let digest = Digest::of(&layer);
        config["layerDigests"] = json!([digest.to_string()]);
        let config = Bytes::from(config.to_string());
        let config_digest = Digest::of(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config_digest.to_string(), "size": config.len()},
            "layers": [{"mediaType": LAYER_TYPE, "digest": digest.to_string(), "size": layer.len()}],
        });
        Self { manifest: Bytes::from(manifest.to_string()), blobs: vec![(config_digest, config), (digest, layer)] }
    }

    /// The digest by which it is pulled.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub(crate) fn manifest(&self) -> (&'static str, Bytes) {
        (MANIFEST_TYPE, self.manifest.clone())
    }

    pub(crate) fn blobs(&self) -> &[(Digest, Bytes)] {
        &self.blobs
    }

    /// Writes an OCI image archive, which can be put into the directory of images of a node. Replaces what is at `path`. Blocking.
    ///
    /// # Errors
    /// That the file cannot be written.
    pub fn write_archive(&self, reference: &Reference, path: &Path) -> Result<(), Error> {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = || -> io::Result<()> {
            let file = tempfile::NamedTempFile::new_in(directory)?;
            let mut archive = tar::Builder::new(file.as_file());
            let descriptor = json!({
                "mediaType": MANIFEST_TYPE,
                "digest": self.digest().to_string(),
                "size": self.manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": reference.to_string(),
                                "io.containerd.image.name": reference.to_string()},
            });
            let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
            append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            append(&mut archive, "index.json", index.to_string().as_bytes())?;
            append(&mut archive, &blob_path(self.digest()), &self.manifest)?;
            for (digest, blob) in &self.blobs {
                append(&mut archive, &blob_path(*digest), blob)?;
            }
            archive.into_inner()?.flush()?;
            file.as_file().sync_all()?;
            // A temporary file is its owner's alone; an archive is as public as other files are.
            readable(file.as_file())?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|source| Error::Io { action: "write", path: path.to_owned(), source })
    }
}

fn readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

fn append(archive: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, path, content)
}
