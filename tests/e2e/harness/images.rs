//! Images made by the tests themselves: Debian's static busybox, and a small static HTTP server compiled on the spot.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub(crate) const BUSYBOX_IMAGE: &str = "docker.io/library/busybox:test";
pub(crate) const ECHO_IMAGE: &str = "docker.io/library/echo:v1";

/// An OCI archive of busybox with all its applets, tagged [`BUSYBOX_IMAGE`].
pub(crate) fn busybox_archive() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        once("busybox.tar", &[Path::new("/bin/busybox")], |to| {
            archive_of(&busybox_layer(), &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}), &[BUSYBOX_IMAGE], to)
        })
    })
}

/// An OCI archive of the echo server on port 8080, tagged [`ECHO_IMAGE`] and `echo:v2` (which answers `v2`).
pub(crate) fn echo_archive() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        once("echo.tar", &[&echo_source()], |to| {
            let config = |version: &str| {
                json!({"Entrypoint": ["/echo"], "Env": [format!("ECHO_VERSION={version}"), "PATH=/bin"],
                       "ExposedPorts": {"8080/tcp": {}}})
            };
            let layer = echo_layer();
            archive_with(
                &[
                    (&layer, &config("v1"), &["docker.io/library/echo:v1"][..]),
                    (&layer, &config("v2"), &["docker.io/library/echo:v2"][..]),
                ],
                to,
            );
        })
    })
}

/// Makes a file once per checkout and after each change of its sources, whichever of the concurrent tests comes first.
pub(super) fn once(name: &str, sources: &[&Path], make: impl FnOnce(&Path)) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    let modified = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    let made = modified(&path);
    if made.is_none() || sources.iter().any(|source| modified(source) >= made) {
        let part = dir.join(format!("{name}.{}", std::process::id()));
        make(&part);
        fs::rename(&part, &path).unwrap();
    }
    path
}

fn echo_source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/echo.rs")
}

fn busybox_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for d in ["bin/", "etc/", "tmp/", "root/", "var/", "home/"] {
        directory(&mut tar, d);
    }
    file(&mut tar, "bin/busybox", 0o755, &fs::read("/bin/busybox").expect("scripts/setup installs busybox-static"));
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| *a != "busybox") {
        let mut h = tar::Header::new_ustar();
        h.set_entry_type(tar::EntryType::Symlink);
        h.set_mode(0o777);
        h.set_size(0);
        tar.append_link(&mut h, format!("bin/{applet}"), "busybox").unwrap();
    }
    file(&mut tar, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home:/bin/sh\n");
    file(&mut tar, "etc/group", 0o644, b"root:x:0:\napp:x:1000:\n");
    tar.into_inner().unwrap()
}

fn echo_layer() -> Vec<u8> {
    // rustc's intermediate files lie beside its output: a directory of its own for each of the concurrent tests
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = dir.path().join("echo");
    let source = echo_source();
    let status = Command::new("rustc")
        .args(["--edition=2024", "-Copt-level=2", "-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-o"])
        .args([&out, &source])
        .status()
        .unwrap();
    assert!(status.success(), "compiling tests/images/echo.rs failed");
    let mut tar = tar::Builder::new(Vec::new());
    file(&mut tar, "echo", 0o755, &fs::read(&out).unwrap());
    directory(&mut tar, "bin/");
    // probes and hooks of the tests run commands in this image too
    file(&mut tar, "bin/busybox", 0o755, &fs::read("/bin/busybox").unwrap());
    for applet in ["sh", "cat", "sleep", "wget", "tar", "ls"] {
        let mut h = tar::Header::new_ustar();
        h.set_entry_type(tar::EntryType::Symlink);
        h.set_mode(0o777);
        h.set_size(0);
        tar.append_link(&mut h, format!("bin/{applet}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}

fn directory(tar: &mut tar::Builder<Vec<u8>>, path: &str) {
    let mut h = tar::Header::new_ustar();
    h.set_entry_type(tar::EntryType::Directory);
    h.set_mode(if path == "tmp/" { 0o1777 } else { 0o755 });
    h.set_size(0);
    tar.append_data(&mut h, path, std::io::empty()).unwrap();
}

fn file(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, data: &[u8]) {
    let mut h = tar::Header::new_ustar();
    h.set_mode(mode);
    h.set_size(data.len() as u64);
    tar.append_data(&mut h, path, data).unwrap();
}

/// A layer of files, each with path, mode and content.
pub(crate) fn layer(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        file(&mut tar, path, *mode, content);
    }
    tar.into_inner().unwrap()
}

/// The machine's architecture in OCI's words.
pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Writes an OCI layout archive of one image with one layer.
pub(crate) fn archive_of(layer: &[u8], config: &serde_json::Value, tags: &[&str], to: &Path) {
    archive_with(&[(layer, config, tags)], to);
}

fn archive_with(images: &[(&[u8], &serde_json::Value, &[&str])], to: &Path) {
    let mut archive = OciArchive::default();
    for (layer, config, tags) in images {
        archive.image(layer, config, ("linux", architecture()), tags);
    }
    archive.write(to);
}

/// An OCI layout archive in the making.
#[derive(Default)]
pub(crate) struct OciArchive {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: Vec<serde_json::Value>,
}

impl OciArchive {
    fn blob(&mut self, data: &[u8]) -> String {
        let digest = hex::encode(Sha256::digest(data));
        self.blobs.insert(digest.clone(), data.to_vec());
        format!("sha256:{digest}")
    }

    /// Adds an image of one layer; gives the descriptor of its manifest.
    pub(crate) fn image(
        &mut self,
        layer: &[u8],
        config: &serde_json::Value,
        (os, architecture): (&str, &str),
        tags: &[&str],
    ) -> serde_json::Value {
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(layer)));
        let config = json!({
            "architecture": architecture, "os": os,
            "config": config, "rootfs": {"type": "layers", "diff_ids": [diff_id]}
        });
        let layers = [("application/vnd.oci.image.layer.v1.tar", layer.to_vec())];
        let mut descriptor = self.manifest(("application/vnd.oci.image.config.v1+json", config), &layers, tags);
        descriptor["platform"] = json!({"architecture": architecture, "os": os});
        descriptor
    }

    /// Adds a manifest of media types and contents; gives its descriptor.
    pub(crate) fn manifest(
        &mut self,
        (config_type, config): (&str, serde_json::Value),
        layers: &[(&str, Vec<u8>)],
        tags: &[&str],
    ) -> serde_json::Value {
        let config = config.to_string();
        let config = json!({"mediaType": config_type, "digest": self.blob(config.as_bytes()), "size": config.len()});
        let layers: Vec<_> = layers
            .iter()
            .map(|(media, data)| json!({"mediaType": media, "digest": self.blob(data), "size": data.len()}))
            .collect();
        let media = "application/vnd.oci.image.manifest.v1+json";
        self.document(media, &json!({"schemaVersion": 2, "mediaType": media, "config": config, "layers": layers}), tags)
    }

    /// Adds an index of images that were added without tags.
    #[allow(dead_code, reason = "for tests of images for several platforms")]
    pub(crate) fn index(&mut self, descriptors: &[serde_json::Value], tags: &[&str]) {
        let media = "application/vnd.oci.image.index.v1+json";
        self.document(media, &json!({"schemaVersion": 2, "mediaType": media, "manifests": descriptors}), tags);
    }

    fn document(&mut self, media: &str, document: &serde_json::Value, tags: &[&str]) -> serde_json::Value {
        let document = document.to_string();
        let descriptor = json!({"mediaType": media, "digest": self.blob(document.as_bytes()), "size": document.len()});
        for tag in tags {
            let mut named = descriptor.clone();
            named["annotations"] = json!({"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag});
            self.manifests.push(named);
        }
        descriptor
    }

    /// Writes the archive.
    pub(crate) fn write(self, to: &Path) {
        let mut tar = tar::Builder::new(Vec::new());
        for (digest, data) in &self.blobs {
            file(&mut tar, &format!("blobs/sha256/{digest}"), 0o644, data);
        }
        let index = json!({"schemaVersion": 2, "manifests": self.manifests}).to_string();
        file(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        file(&mut tar, "index.json", 0o644, index.as_bytes());
        fs::write(to, tar.into_inner().unwrap()).unwrap();
    }
}
