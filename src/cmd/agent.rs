//! The node agent of this machine: network, images, runtime, kubelet, services and DNS.

use super::server::{Failure, doing};
use crate::config::ServerConfig;
use edge_apiserver::{NodeDialer, Stream};
use edge_client::{Client, Informers};
use edge_image::{ImageStore, ImageStoreConfig, Limits, Platform, Registries};
use edge_kubelet::{Dependencies, Kubelet, KubeletConfig, Server};
use edge_network::{NodeConfig, NodeNetwork};
use edge_runtime::{Runtime, RuntimeConfig, Zygote};
use k8s_openapi::api::core::v1::Taint;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::task::JoinSet;

/// In-process connections to the kubelet hold so many bytes in flight.
const DUPLEX: usize = 64 << 10;
/// How many pods a node takes.
const MAX_PODS: u32 = 110;
/// The port of the kubelet's own API, as nodes report it.
const KUBELET_PORT: u16 = 10250;

/// The way to the kubelet of the same process.
pub(crate) struct LocalDialer {
    node: String,
    server: OnceLock<Server>,
}

impl LocalDialer {
    pub(crate) fn new(node: &str) -> Arc<Self> {
        Arc::new(Self { node: node.to_owned(), server: OnceLock::new() })
    }
}

#[async_trait::async_trait]
impl NodeDialer for LocalDialer {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Stream>> {
        let known = self.server.get().filter(|_| node == self.node);
        let Some(server) = known.cloned() else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, format!("node {node:?} is not connected")));
        };
        let (ours, its) = tokio::io::duplex(DUPLEX);
        tokio::spawn(async move { server.serve(its).await });
        Ok(Box::new(ours))
    }
}

/// Sets the node's network up.
pub(crate) fn network(config: &ServerConfig, addresses: &[IpAddr]) -> Result<Arc<NodeNetwork>, Failure> {
    let network = NodeNetwork::set_up(NodeConfig {
        run_dir: config.data_dir.join("run/network"),
        cluster_cidrs: config.cluster_cidrs.clone(),
        service_cidrs: config.service_cidrs.clone(),
        dns_addresses: config.cluster_dns.clone(),
        node_addresses: addresses.to_vec(),
        wireguard_key: config.data_dir.join("agent/wireguard.key"),
        backend: config.backend,
    });
    network.map(Arc::new).map_err(doing("setting the node's network up"))
}

/// Starts the agent's parts; the long-running ones go into `tasks`.
pub(crate) async fn start(
    config: &ServerConfig,
    addresses: &[IpAddr],
    zygote: Zygote,
    network: Arc<NodeNetwork>,
    (client, informers): (Client, Informers),
    dialer: &LocalDialer,
    tasks: &mut JoinSet<()>,
) -> Result<Kubelet, Failure> {
    let agent_dir = config.data_dir.join("agent");
    let images = images(config, &agent_dir).await?;
    let runtime = Runtime::open(
        zygote,
        RuntimeConfig {
            directory: config.data_dir.join("run/pods"),
            cgroup_root: config.cgroup_root.to_string_lossy().into_owned(),
        },
    )
    .map_err(doing("opening the container runtime"))?;
    let node = edge_proxy::Node { name: config.node_name.clone(), dns_addresses: config.cluster_dns.clone() };
    let policies = edge_proxy::policy::Enforcement::start(network.clone());
    tasks.spawn(policies.run(informers.clone(), node.clone()));
    tasks.spawn(edge_proxy::run(informers.clone(), network.clone(), node));
    tasks.spawn(edge_proxy::peers::run(informers.clone(), client.clone(), network.clone(), config.node_name.clone()));
    let dns = edge_dns::run(
        informers.clone(),
        edge_dns::DnsConfig {
            listen: config.cluster_dns.iter().map(|address| SocketAddr::new(*address, 53)).collect(),
            domain: config.cluster_domain.clone(),
            resolv_conf: config.resolv_conf.clone(),
            metrics: Arc::default(),
        },
    );
    tasks.spawn(async {
        if let Err(error) = dns.await {
            tracing::error!(error = super::with_causes(&error), "the cluster's DNS does not work");
        }
    });
    let with = Dependencies { client, informers, runtime: Arc::new(runtime), images, network };
    let kubelet = Kubelet::start(kubelet_config(config, addresses, agent_dir), with)
        .await
        .map_err(doing("starting the node agent"))?;
    // set once, here
    let _ = dialer.server.set(kubelet.server());
    Ok(kubelet)
}

async fn images(config: &ServerConfig, agent_dir: &std::path::Path) -> Result<Arc<ImageStore>, Failure> {
    let (content_dir, registries) = (agent_dir.join("content"), config.registries.clone());
    let open = move || {
        let registries = Registries::load(&registries)?;
        ImageStore::open(ImageStoreConfig {
            content_dir,
            platform: Platform::host(),
            limits: Limits::default(),
            registries,
        })
    };
    tokio::task::spawn_blocking(open)
        .await
        .map_err(doing("opening the image store"))?
        .map(Arc::new)
        .map_err(doing("opening the image store"))
}

fn kubelet_config(config: &ServerConfig, addresses: &[IpAddr], agent_dir: PathBuf) -> KubeletConfig {
    let default_logs = config.pod_logs_dir == std::path::Path::new("/var/log/pods");
    KubeletConfig {
        node_name: config.node_name.clone(),
        edge_version: env!("CARGO_PKG_VERSION").into(),
        agent_dir,
        pod_logs_dir: config.pod_logs_dir.clone(),
        container_logs_dir: default_logs.then(|| "/var/log/containers".into()),
        node_ips: addresses.to_vec(),
        node_labels: config.node_labels.clone(),
        node_taints: config
            .node_taints
            .iter()
            .map(|t| Taint {
                key: t.key.clone(),
                value: Some(t.value.clone()),
                effect: t.effect.clone(),
                time_added: None,
            })
            .collect(),
        control_plane: true,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        kubelet_port: KUBELET_PORT,
        max_pods: MAX_PODS,
    }
}
