//! The node agent of this machine: network, images, runtime, kubelet, services and DNS.

use super::facts::ClusterFacts;
use super::places;
use super::server::{Failure, doing};
use crate::config::{NodeConfig as NodeSettings, Part};
use edge_apiserver::{NodeDialer, Stream};
use edge_client::{Client, EventRecorder, EventType, Informers, node_reference};
use edge_image::{ImageStore, ImageStoreConfig, Limits, Platform, Registries};
use edge_kubelet::{Dependencies, Kubelet, KubeletConfig, Server};
use edge_network::{Cidr, NodeConfig, NodeNetwork};
use edge_pki::SharedIdentity;
use edge_runtime::{Runtime, RuntimeConfig, Zygote};
use edge_wasm::{CompileLimits, Compiler};
use k8s_openapi::api::core::v1::Taint;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// In-process connections to the kubelet hold so many bytes in flight.
const DUPLEX: usize = 64 << 10;
const DNS_PORT: u16 = 53;
/// Where users of CoreDNS expect its metrics.
const DNS_METRICS_PORT: u16 = 9153;

/// The way to the kubelet of the same process.
pub(crate) struct LocalDialer {
    node: String,
    server: OnceLock<Server>,
}

impl LocalDialer {
    pub(crate) fn new(node: &str) -> Arc<Self> {
        Arc::new(Self { node: node.to_owned(), server: OnceLock::new() })
    }

    /// Leads to this kubelet from now on.
    pub(crate) fn set(&self, server: Server) {
        // set once
        let _ = self.server.set(server);
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

/// A fact about the cluster cannot be read: its server is newer than this node, say.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not understood; is the server newer than this node?")]
struct UnknownFact(String);

/// Sets the node's network up.
pub(crate) fn network(
    data_dir: &Path,
    node: &NodeSettings,
    facts: &ClusterFacts,
    addresses: &[IpAddr],
) -> Result<Arc<NodeNetwork>, Failure> {
    let what = "setting the node's network up";
    let unknown = |text: &str| doing(what)(UnknownFact(text.to_owned()));
    let cidrs = |texts: &[String]| {
        texts.iter().map(|t| t.parse::<Cidr>().map_err(|_| unknown(t))).collect::<Result<Vec<_>, _>>()
    };
    let network = NodeNetwork::set_up(NodeConfig {
        run_dir: data_dir.join("run/network"),
        cluster_cidrs: cidrs(&facts.cluster_cidrs)?,
        service_cidrs: cidrs(&facts.service_cidrs)?,
        dns_addresses: facts.own_dns(),
        node_port_networks: node.node_port_networks.clone(),
        node_addresses: addresses.to_vec(),
        wireguard_key: data_dir.join("agent/wireguard.key"),
        backend: facts.network.parse().map_err(|()| unknown(&facts.network))?,
        cni: Default::default(),
    });
    network.map(Arc::new).map_err(doing(what))
}

/// What a node is made of.
pub(crate) struct NodeParts<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) node: &'a NodeSettings,
    pub(crate) facts: &'a ClusterFacts,
    pub(crate) addresses: watch::Receiver<Vec<IpAddr>>,
    pub(crate) network: Arc<NodeNetwork>,
    pub(crate) zygote: Zygote,
    /// The API, as the node.
    pub(crate) client: Client,
    /// The API, as the network part of the node: services, endpoints, nodes.
    pub(crate) informers: Informers,
}

/// The port of the kubelet's API is taken.
#[derive(Debug, thiserror::Error)]
#[error("port {port} (--kubelet-port)")]
struct PortTaken {
    port: u16,
    source: io::Error,
}

/// Takes the port of the kubelet's API, of both families where there are both.
pub(crate) fn kubelet_socket(port: u16) -> Result<TcpListener, Failure> {
    let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    let socket = match both {
        // a machine without IPv6
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        other => other,
    };
    socket.map_err(|source| doing("listening for the kubelet's API")(PortTaken { port, source }))
}

/// Serves the kubelet's API on a socket, for ever. `client_ca` is the authority of the cluster's clients, PEM.
pub(crate) fn serve_kubelet(
    kubelet: &Kubelet,
    socket: TcpListener,
    identity: &SharedIdentity,
    client_ca: &str,
    tasks: &mut JoinSet<()>,
) -> Result<(), Failure> {
    let tls = edge_pki::kubelet_server_config(identity, client_ca.as_bytes());
    let tls = Arc::new(tls.map_err(doing("preparing TLS for the kubelet's API"))?);
    let server = kubelet.server();
    tasks.spawn(async move {
        if let Err(error) = server.listen(socket, tls).await {
            tracing::error!(%error, "the kubelet's API is not served");
        }
    });
    Ok(())
}

/// Starts the agent's parts; the long-running ones go into `tasks`.
pub(crate) async fn start(parts: NodeParts<'_>, tasks: &mut JoinSet<()>) -> Result<Kubelet, Failure> {
    let NodeParts { data_dir, node, facts, addresses, network, zygote, client, informers } = parts;
    let agent_dir = data_dir.join("agent");
    let images = images(&node.registries, &agent_dir).await?;
    let runtime = Runtime::open(
        zygote,
        RuntimeConfig {
            directory: data_dir.join("run/pods"),
            cgroup_root: node.cgroup_root.to_string_lossy().into_owned(),
        },
    )
    .map_err(doing("opening the container runtime"))?;
    let proxy = edge_proxy::Node { name: node.name.clone(), dns_addresses: facts.own_dns() };
    if facts.has(Part::NetworkPolicy) {
        let policies = edge_proxy::policy::Enforcement::start(network.clone());
        tasks.spawn(policies.run(informers.clone(), proxy.clone()));
    } else {
        // what an earlier process enforced
        let open = network.pods().into_keys().map(|uid| (uid, Some(edge_network::Isolation::default())));
        let nothing = edge_network::PolicyChanges { pods: open.collect(), complete: true, ..Default::default() };
        network.change_policies(&nothing).map_err(doing("ending the enforcement of policies"))?;
    }
    if facts.has(Part::ServiceProxy) {
        tasks.spawn(edge_proxy::run(informers.clone(), network.clone(), proxy));
    } else {
        network.apply_services(Default::default()).map_err(doing("ending the services' load balancing"))?;
    }
    tasks.spawn(edge_proxy::peers::run(informers.clone(), client.clone(), network.clone(), node.name.clone()));
    tasks.spawn(edge_proxy::firewall::run(client.clone(), network.clone(), node.name.clone()));
    let dns_metrics = Arc::new(edge_dns::Metrics::default());
    let has_dns = facts.has(Part::Dns);
    if has_dns {
        let config = dns_config(node, facts, &client, dns_metrics.clone());
        let dns = edge_dns::run(informers.clone(), config);
        tasks.spawn(async {
            if let Err(error) = dns.await {
                tracing::error!(error = super::with_causes(&error), "the cluster's DNS does not work");
            }
        });
    }
    let other_metrics = Arc::new(move || if has_dns { dns_metrics.text() } else { String::new() });
    let compiler = compiler(&agent_dir).await?;
    let with = Dependencies { client, informers, runtime: Arc::new(runtime), images, compiler, network, other_metrics };
    let kubelet = Kubelet::start(kubelet_config(node, facts, addresses, agent_dir), with)
        .await
        .map_err(doing("starting the node agent"))?;
    let (server, socket) = (kubelet.server(), local_socket(data_dir));
    tasks.spawn(async move {
        if let Err(error) = server.listen_locally(&socket).await {
            tracing::error!(%error, socket = %socket.display(), "edge image will not work");
        }
    });
    Ok(kubelet)
}

/// The socket at which the agent of a data directory answers `edge image`.
pub(crate) fn local_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("run/agent.sock")
}

fn dns_config(
    node: &NodeSettings,
    facts: &ClusterFacts,
    client: &Client,
    metrics: Arc<edge_dns::Metrics>,
) -> edge_dns::DnsConfig {
    let at = |port: u16| facts.cluster_dns.iter().map(|address| SocketAddr::new(*address, port)).collect();
    let recorder = EventRecorder::new(client.clone(), "edge-dns", &node.name);
    let name = node.name.clone();
    edge_dns::DnsConfig {
        listen: at(DNS_PORT),
        domain: facts.cluster_domain.clone(),
        resolv_conf: node.resolv_conf.clone(),
        metrics,
        metrics_listen: at(DNS_METRICS_PORT),
        on_trouble: Arc::new(move |error| {
            let text = super::with_causes(error);
            tracing::error!(error = text, "the cluster's DNS does not serve yet");
            recorder.event_ref(node_reference(&name), EventType::Warning, "DNSNotServing", text);
        }),
    }
}

async fn images(registries: &Path, agent_dir: &Path) -> Result<Arc<ImageStore>, Failure> {
    let (content_dir, registries) = (agent_dir.join("content"), registries.to_owned());
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

/// The compiler of WebAssembly programs. It works in processes of its own, made of this program.
async fn compiler(agent_dir: &Path) -> Result<Compiler, Failure> {
    let cache = agent_dir.join("wasm");
    tokio::task::spawn_blocking(move || Compiler::open(&cache, Path::new("/proc/self/exe"), CompileLimits::default()))
        .await
        .map_err(doing("opening the cache of compiled programs"))?
        .map_err(doing("opening the cache of compiled programs"))
}

fn kubelet_config(
    node: &NodeSettings,
    facts: &ClusterFacts,
    addresses: watch::Receiver<Vec<IpAddr>>,
    agent_dir: PathBuf,
) -> KubeletConfig {
    let pod_logs_dir = places::for_logs(node.pod_logs_dir.clone(), &agent_dir);
    let usual = pod_logs_dir == Path::new(places::POD_LOGS);
    KubeletConfig {
        node_name: node.name.clone(),
        edge_version: env!("CARGO_PKG_VERSION").into(),
        pod_logs_dir,
        kubelet_dir: if usual { places::KUBELET.into() } else { agent_dir.clone() },
        cdi_dirs: places::CDI.iter().map(PathBuf::from).collect(),
        container_logs_dir: usual.then(|| "/var/log/containers".into()),
        agent_dir,
        node_ips: addresses,
        node_labels: node.labels.clone(),
        node_taints: node
            .taints
            .iter()
            .map(|t| Taint {
                key: t.key.clone(),
                value: Some(t.value.clone()),
                effect: t.effect.clone(),
                time_added: None,
            })
            .collect(),
        cluster_dns: facts.cluster_dns.clone(),
        cluster_domain: facts.cluster_domain.clone(),
        resolv_conf: node.resolv_conf.clone(),
        kubelet_port: node.kubelet_port,
        offline_secrets: node.offline_secrets,
        max_pods: node.max_pods,
        pod_max_pids: node.pod_max_pids,
        eviction_hard: node.eviction_hard.clone(),
        pressure_transition: node.pressure_transition,
    }
}
