//! Where images come from: archives, and Debian's docker-registry over plain HTTP, TLS and basic authentication.

use crate::harness::images::{archive_of, busybox_archive};
use crate::harness::{Cluster, eventually};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Debian's docker-registry on the outside of a cluster; ends with its owner.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
}

impl Registry {
    pub(crate) fn start(cluster: &Cluster, port: u16, extra: &str) -> Self {
        let ip = Ipv4Addr::from_bits(cluster.ip.to_bits() - 1);
        let dir = cluster.dir.join(format!("registry-{port}"));
        fs::create_dir_all(&dir).unwrap();
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {ip}:{port}\n{extra}\n",
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("scripts/setup installs docker-registry");
        let registry = Self { child, address: format!("{ip}:{port}") };
        eventually("the registry listens", || {
            TcpStream::connect(&registry.address).map_err(|e| e.to_string()).map(drop)
        });
        registry
    }

    /// Pushes an OCI archive's first image over plain HTTP; gives the manifest's digest.
    pub(crate) fn push(&self, archive: &Path, name: &str, tag: &str) -> String {
        let mut blobs = std::collections::HashMap::new();
        let mut index = String::new();
        let mut tar = tar::Archive::new(fs::File::open(archive).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            if path == "index.json" {
                index = String::from_utf8(data).unwrap();
            } else if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                blobs.insert(format!("sha256:{digest}"), data);
            }
        }
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        for (d, data) in &blobs {
            if *d == digest {
                continue;
            }
            let (_, head) = self.request("POST", &format!("/v2/{name}/blobs/uploads/"), "", &[]);
            let location = head.lines().find_map(|l| l.strip_prefix("Location: ")).unwrap().trim().to_owned();
            let path = location.split_once("/v2/").unwrap().1;
            let query = if path.contains('?') { "&" } else { "?" };
            let (code, head) =
                self.request("PUT", &format!("/v2/{path}{query}digest={d}"), "application/octet-stream", data);
            assert_eq!(code, 201, "{head}");
        }
        let media = "application/vnd.oci.image.manifest.v1+json";
        let (code, head) = self.request("PUT", &format!("/v2/{name}/manifests/{tag}"), media, &blobs[&digest]);
        assert_eq!(code, 201, "{head}");
        digest
    }

    fn request(&self, method: &str, path: &str, media: &str, body: &[u8]) -> (u16, String) {
        let mut s = TcpStream::connect(&self.address).unwrap();
        write!(
            s,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        )
        .unwrap();
        s.write_all(body).unwrap();
        let mut answer = String::new();
        s.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pod(name: &str, image: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: main, image: '{image}', imagePullPolicy: {policy}, command: [sleep, '100000']}}]\n"
    )
}

fn waiting(cluster: &Cluster, name: &str, reasons: &[&str], says: &str) {
    eventually(&format!("{name} waits for {reasons:?}"), || {
        let pod = cluster.get(&["pod", name]);
        let w = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let events = cluster.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={name}")]);
        let reason = w["reason"].as_str().unwrap_or_default();
        if reasons.contains(&reason)
            && (events.contains(says) || w["message"].as_str().unwrap_or_default().contains(says))
        {
            Ok(())
        } else {
            Err(format!("{w} {events}"))
        }
    });
}

#[test]
fn plain_http_by_tag_and_digest_and_the_pull_policies() {
    let mut cluster = Cluster::prepare(&[]);
    let registry = Registry::start(&cluster, 5000, "");
    let at = registry.address.clone();
    let digest = registry.push(busybox_archive(), "tools/box", "v1");
    fs::write(cluster.dir.join("registries.yaml"), format!("mirrors:\n  \"{at}\": {{endpoint: [\"http://{at}\"]}}\n"))
        .unwrap();
    cluster.launch();
    cluster.apply(&pod("tag", &format!("{at}/tools/box:v1"), "IfNotPresent"));
    cluster.wait_for("pod/tag", "condition=Ready");
    cluster.apply(&pod("digest", &format!("{at}/tools/box@{digest}"), "Always"));
    cluster.wait_for("pod/digest", "condition=Ready");
    let id = cluster.kubectl(&["get", "pod", "digest", "-o", "jsonpath={.status.containerStatuses[0].imageID}"]);
    assert!(id.contains(&digest), "{id}");

    cluster.apply(&pod("never", &format!("{at}/tools/box:v2"), "Never"));
    waiting(&cluster, "never", &["ErrImageNeverPull"], "");
    cluster.apply(&pod("absent", &format!("{at}/tools/box:v2"), "IfNotPresent"));
    waiting(&cluster, "absent", &["ErrImagePull", "ImagePullBackOff"], "not found");
    cluster.apply(&pod("broken", "UPPER:CASE:x", "IfNotPresent"));
    waiting(&cluster, "broken", &["InvalidImageName"], "");

    // once it is there, and without the registry, IfNotPresent runs it and Always does not
    drop(registry);
    cluster.apply(&pod("present", &format!("{at}/tools/box:v1"), "IfNotPresent"));
    cluster.wait_for("pod/present", "condition=Ready");
    cluster.apply(&pod("always", &format!("{at}/tools/box:v1"), "Always"));
    waiting(&cluster, "always", &["ErrImagePull", "ImagePullBackOff"], "refused");
}

#[test]
fn https_with_basic_authentication() {
    let mut cluster = Cluster::prepare(&[]);
    let ip = Ipv4Addr::from_bits(cluster.ip.to_bits() - 1);
    let plain = Registry::start(&cluster, 5000, "");
    plain.push(busybox_archive(), "secret/box", "v1");
    // a second registry over the same storage asks for a name and a password, over TLS
    let key = rcgen::generate_simple_self_signed([ip.to_string()]).unwrap();
    let (cert_file, key_file) = (cluster.dir.join("reg.crt"), cluster.dir.join("reg.key"));
    fs::write(&cert_file, key.cert.pem()).unwrap();
    fs::write(&key_file, key.signing_key.serialize_pem()).unwrap();
    let users = cluster.dir.join("htpasswd");
    let made =
        Command::new("htpasswd").args(["-Bbc"]).arg(&users).args(["anna", "geheim"]).stderr(Stdio::null()).status();
    assert!(made.expect("scripts/setup installs apache2-utils").success());
    fs::create_dir_all(cluster.dir.join("registry-5001")).unwrap();
    std::os::unix::fs::symlink(cluster.dir.join("registry-5000/docker"), cluster.dir.join("registry-5001/docker"))
        .unwrap();
    let tls = Registry::start(
        &cluster,
        5001,
        &format!(
            "  tls: {{certificate: {}, key: {}}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}",
            cert_file.display(),
            key_file.display(),
            users.display()
        ),
    );
    let at = tls.address.clone();
    fs::write(
        cluster.dir.join("registries.yaml"),
        format!("configs:\n  \"{at}\": {{tls: {{ca_file: {}}}}}\n", cert_file.display()),
    )
    .unwrap();
    cluster.launch();
    cluster.apply(&pod("denied", &format!("{at}/secret/box:v1"), "IfNotPresent"));
    waiting(&cluster, "denied", &["ErrImagePull", "ImagePullBackOff"], "uthoriz");
    cluster.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "login",
        &format!("--docker-server={at}"),
        "--docker-username=anna",
        "--docker-password=geheim",
    ]);
    let with_secret =
        pod("allowed", &format!("{at}/secret/box:v1"), "IfNotPresent") + "  imagePullSecrets: [{name: login}]\n";
    cluster.apply(&with_secret);
    cluster.wait_for("pod/allowed", "condition=Ready");
}

#[test]
fn archives_are_imported_while_running_and_bad_ones_do_no_harm() {
    let cluster = Cluster::start();
    cluster.apply(&pod("early", "late:v1", "Never"));
    waiting(&cluster, "early", &["ErrImageNeverPull"], "");

    // gzip and zstd, by content and not by name
    let layer = fs::read(busybox_archive()).unwrap();
    let gz = cluster.dir.join("late.tar.gz");
    let rename = |tag: &str, to: &Path| {
        archive_of(&busybox_rootfs(&layer), &serde_json::json!({"Env": ["PATH=/bin"]}), &[tag], to);
    };
    let tar = cluster.dir.join("late.tar");
    rename("docker.io/library/late:v1", &tar);
    let zipped = Command::new("gzip").arg("-c").arg(&tar).output().unwrap();
    fs::write(&gz, zipped.stdout).unwrap();
    cluster.drop_image("late.tar.gz", &gz);
    cluster.wait_for("pod/early", "condition=Ready");

    rename("docker.io/library/packed:v1", &tar);
    let packed = Command::new("zstd").args(["-q", "-c"]).arg(&tar).output().unwrap();
    fs::write(&tar, packed.stdout).unwrap();
    cluster.drop_image("packed.tar.zst", &tar);
    cluster.apply(&pod("packed", "packed:v1", "IfNotPresent"));

    // truncated, corrupt, and escaping archives
    fs::write(cluster.dir.join("cut.tar"), &layer[..layer.len() / 2]).unwrap();
    cluster.drop_image("cut-image.tar", &cluster.dir.join("cut.tar"));
    fs::write(cluster.dir.join("noise.tar"), Sha256::digest(b"noise").repeat(1000)).unwrap();
    cluster.drop_image("noise-image.tar", &cluster.dir.join("noise.tar"));
    eventually("both are reported by name", || {
        let log = cluster.log();
        if log.contains("cut-image.tar") && log.contains("noise-image.tar") { Ok(()) } else { Err(String::new()) }
    });
    cluster.wait_for("pod/packed", "condition=Ready");
}

/// The layer inside an OCI archive with one image.
fn busybox_rootfs(archive: &[u8]) -> Vec<u8> {
    let mut largest = Vec::new();
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().unwrap() {
        let mut data = Vec::new();
        entry.unwrap().read_to_end(&mut data).unwrap();
        if data.len() > largest.len() {
            largest = data;
        }
    }
    largest
}
