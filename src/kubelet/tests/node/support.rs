//! A node in a temporary place, with an image made of busybox, and an API that never answers.

use bytes::Bytes;
use edge_client::Informers;
use edge_image::{ImageStore, ImageStoreConfig, Limits, Platform, Registries};
use edge_kubelet::{Dependencies, Kubelet, KubeletConfig};
use edge_network::{Backend, Cidr, NodeConfig, NodeNetwork};
use edge_runtime::cgroup::Cgroups;
use edge_runtime::{PodRuntime, Runtime, RuntimeConfig, Zygote};
use edge_wasm::{CompileLimits, Compiler};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const UID: &str = "0c2e8dd3-52c1-4c3b-9d4e-0c7ffb1b6a5d";
const APPLETS: &str = "cat echo hostname id sh sleep";

/// The node.
pub(crate) struct Node {
    directory: tempfile::TempDir,
    cgroup_root: String,
    zygote: Zygote,
}

fn cidr(address: [u8; 4], prefix: u8) -> Cidr {
    Cidr::new(IpAddr::from(address), prefix).unwrap()
}

impl Node {
    pub(crate) fn new(zygote: Zygote) -> Self {
        let directory = tempfile::Builder::new().prefix("edge-kubelet-test-").tempdir_in("/var/tmp").unwrap();
        let node = Self { directory, cgroup_root: format!("/edge-kubelet-test-{}", std::process::id()), zygote };
        fs::create_dir_all(node.path("agent/images")).unwrap();
        fs::write(node.path("agent/images/busybox.tar"), archive()).unwrap();
        fs::write(node.path("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a pod where the agent keeps those it knows.
    pub(crate) fn save_pod(&self, spec: Value) {
        let dir = self.path("agent/pods").join(UID);
        fs::create_dir_all(&dir).unwrap();
        let metadata = json!({"name": "p", "namespace": "ns", "uid": UID, "labels": {"app": "test"}});
        fs::write(dir.join("pod.json"), json!({"metadata": metadata, "spec": spec}).to_string()).unwrap();
    }

    /// Starts the agent, with engines of its own, as a new process would.
    pub(crate) async fn start(&self) -> Kubelet {
        let network = NodeConfig {
            run_dir: self.path("run/network"),
            cluster_cidrs: vec![cidr([10, 199, 0, 0], 16)],
            service_cidrs: vec![cidr([10, 198, 0, 0], 16)],
            dns_addresses: vec![IpAddr::from([10, 198, 0, 10])],
            node_port_networks: Vec::new(),
            node_addresses: Vec::new(),
            wireguard_key: self.path("wireguard.key"),
            backend: Backend::Auto,
            cni: Default::default(),
        };
        let network = NodeNetwork::set_up(network).unwrap();
        network.assign(&[cidr([10, 199, 0, 0], 24)], &[]).unwrap();
        let images = ImageStoreConfig {
            content_dir: self.path("agent/content"),
            platform: Platform::host(),
            limits: Limits::default(),
            registries: Registries::default(),
        };
        let client = edge_client::local(|_| {
            let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
            let mut answer = Response::new(body);
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            Box::pin(std::future::ready(answer))
        });
        let with = Dependencies {
            informers: Informers::new(client.clone()),
            client,
            runtime: Arc::new(self.runtime()),
            images: Arc::new(ImageStore::open(images).unwrap()),
            compiler: Compiler::open(&self.path("agent/wasm"), "/proc/self/exe".as_ref(), CompileLimits::default())
                .unwrap(),
            network: Arc::new(network),
            other_metrics: Arc::new(String::new),
        };
        let config = KubeletConfig {
            node_name: "n".into(),
            edge_version: "0".into(),
            agent_dir: self.path("agent"),
            pod_logs_dir: self.path("logs"),
            container_logs_dir: Some(self.path("links")),
            kubelet_dir: self.path("kubelet"),
            cdi_dirs: vec![self.path("cdi")],
            node_ips: tokio::sync::watch::channel(vec![IpAddr::from([192, 0, 2, 1])]).1,
            node_labels: Default::default(),
            node_taints: Vec::new(),
            cluster_dns: vec![IpAddr::from([10, 198, 0, 10])],
            cluster_domain: "cluster.local".into(),
            resolv_conf: self.path("resolv.conf"),
            offline_secrets: true,
            kubelet_port: 10250,
            max_pods: 110,
            pod_max_pids: None,
            // this machine may be short of anything
            eviction_hard: "".parse().unwrap(),
            pressure_transition: Duration::from_secs(300),
        };
        Kubelet::start(config, with).await.unwrap()
    }

    fn runtime(&self) -> Runtime {
        let config = RuntimeConfig { directory: self.path("run/runtime"), cgroup_root: self.cgroup_root.clone() };
        Runtime::open(self.zygote.clone(), config).unwrap()
    }

    async fn request(&self, kubelet: &Kubelet, path: &str) -> Response<hyper::body::Incoming> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let server = kubelet.server();
        tokio::spawn(async move { server.serve(theirs).await });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(Request::get(path).body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    }

    /// Asks the kubelet.
    pub(crate) async fn get(&self, kubelet: &Kubelet, path: &str) -> (u16, String) {
        let answer = self.request(kubelet, path).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// Reads a log until it holds a text. A log that is not there yet is asked for again.
    pub(crate) async fn wait_log(&self, kubelet: &Kubelet, container: &str, query: &str, wanted: &str) -> String {
        loop {
            let mut answer = self.request(kubelet, &format!("/containerLogs/ns/p/{container}?{query}")).await;
            let mut text = String::new();
            while answer.status() == StatusCode::OK && !text.contains(wanted) {
                let Some(frame) = answer.frame().await else { break };
                text.push_str(&String::from_utf8_lossy(frame.unwrap().data_ref().unwrap()));
            }
            if text.contains(wanted) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the kubelet tells about the use of a running container.
    pub(crate) async fn container(&self, kubelet: &Kubelet, name: &str) -> Value {
        let (status, summary) = self.get(kubelet, "/stats/summary").await;
        assert_eq!(status, 200);
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let containers = summary["pods"][0]["containers"].as_array().unwrap_or_else(|| panic!("{summary}"));
        containers.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{summary}")).clone()
    }

    /// Kills the first process of the container `main`.
    pub(crate) fn kill_main(&self) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if cgroup.contains(&self.cgroup_root) && command.starts_with("sh\0-c\0cat /data") {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
                return;
            }
        }
        panic!("no process of the container found");
    }

    /// Ends everything, whatever the test has left.
    pub(crate) async fn clean_up(&self) {
        let runtime = self.runtime();
        for found in runtime.adopt().await.unwrap_or_default() {
            if let Err(error) = runtime.remove_sandbox(&found.spec.id).await {
                eprintln!("cannot remove sandbox: {error}");
            }
        }
        if let Err(error) = Cgroups::detect(&self.cgroup_root).and_then(|cgroups| cgroups.remove("")) {
            eprintln!("cannot remove cgroup {}: {error}", self.cgroup_root);
        }
        unmount_below(self.directory.path());
    }
}

fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = table.lines().filter_map(|l| l.split(' ').nth(4)).filter(|t| Path::new(t).starts_with(dir));
    for target in targets.collect::<Vec<_>>().into_iter().rev() {
        if let Err(error) = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {target}: {error}");
        }
    }
}

/// An image as `docker save` writes it.
fn archive() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    add(&mut layer, "bin/busybox", &fs::read("/bin/busybox").unwrap(), 0o755);
    for applet in APPLETS.split_whitespace() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let digest = hex::encode(Sha256::digest(&layer));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    })
    .to_string();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": ["test/busybox:1"], "Layers": ["layer.tar"]}]).to_string();
    let mut image = tar::Builder::new(Vec::new());
    add(&mut image, "layer.tar", &layer, 0o644);
    add(&mut image, "config.json", config.as_bytes(), 0o644);
    add(&mut image, "manifest.json", manifest.as_bytes(), 0o644);
    image.into_inner().unwrap()
}

fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, name, content).unwrap();
}
