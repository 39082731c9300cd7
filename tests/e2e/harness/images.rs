//! Images made by the tests themselves: Debian's static busybox, and a small static HTTP server compiled on the spot.

use serde_json::json;
use sha2::{Digest, Sha256};
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
        once("busybox.tar", |to| {
            archive_of(&busybox_layer(), &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}), &[BUSYBOX_IMAGE], to)
        })
    })
}

/// An OCI archive of the echo server on port 8080, tagged [`ECHO_IMAGE`] and `echo:v2` (which answers `v2`).
pub(crate) fn echo_archive() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        once("echo.tar", |to| {
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

/// Makes a file once per checkout, whichever of the concurrent tests comes first.
fn once(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/echo.rs");
    let fresh = |p: &Path| {
        let made = fs::metadata(p).and_then(|m| m.modified()).ok();
        let written = fs::metadata(&source).and_then(|m| m.modified()).ok();
        made.is_some() && made > written
    };
    if !fresh(&path) {
        let part = dir.join(format!("{name}.{}", std::process::id()));
        make(&part);
        fs::rename(&part, &path).unwrap();
    }
    path
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
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/echo.rs");
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

/// Writes an OCI layout archive of one image with one layer.
pub(crate) fn archive_of(layer: &[u8], config: &serde_json::Value, tags: &[&str], to: &Path) {
    archive_with(&[(layer, config, tags)], to);
}

fn archive_with(images: &[(&[u8], &serde_json::Value, &[&str])], to: &Path) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut manifests = Vec::new();
    let mut written = std::collections::HashSet::new();
    let mut blob = |tar: &mut tar::Builder<Vec<u8>>, data: &[u8]| {
        let digest = hex::encode(Sha256::digest(data));
        if written.insert(digest.clone()) {
            file(tar, &format!("blobs/sha256/{digest}"), 0o644, data);
        }
        format!("sha256:{digest}")
    };
    for (layer, config, tags) in images {
        let layer_digest = blob(&mut tar, layer);
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": config, "rootfs": {"type": "layers", "diff_ids": [layer_digest]}
        })
        .to_string();
        let config_digest = blob(&mut tar, config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}]
        })
        .to_string();
        let digest = blob(&mut tar, manifest.as_bytes());
        for tag in *tags {
            manifests.push(json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
                "annotations": {"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag}
            }));
        }
    }
    file(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    file(&mut tar, "index.json", 0o644, json!({"schemaVersion": 2, "manifests": manifests}).to_string().as_bytes());
    fs::write(to, tar.into_inner().unwrap()).unwrap();
}
