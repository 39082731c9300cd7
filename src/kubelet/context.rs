//! What every part of the node agent works with.

use crate::config::KubeletConfig;
use crate::csi::Csi;
use crate::device_plugins::DevicePlugins;
use crate::devices::Devices;
use crate::env::fields::Facts;
use crate::eviction::Shortages;
use crate::node::machine::Machine;
use crate::objects::Objects;
use crate::pod_resources::Requests;
use crate::status::StatusWriter;
use crate::{Dependencies, Error, OtherMetrics};
use edge_client::{Client, EventRecorder, Informer, Informers};
use edge_image::ImageStore;
use edge_network::NodeNetwork;
use edge_runtime::PodRuntime;
use edge_wasm::Compiler;
use k8s_openapi::api::core::v1::{Node, Service};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long after the agent's start the API is waited for before pods are started with what was known before.
const API_PATIENCE: Duration = Duration::from_secs(10);

/// Shared by all tasks of the node agent.
pub(crate) struct Context {
    pub(crate) config: KubeletConfig,
    pub(crate) client: Client,
    /// Watch as the node: what is bound to it.
    pub(crate) informers: Informers,
    pub(crate) runtime: Arc<dyn PodRuntime>,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) compiler: Compiler,
    /// Changes when an archive has brought images; true once those that lay in the drop folder at the start are read.
    pub(crate) imports: watch::Sender<bool>,
    pub(crate) network: Arc<NodeNetwork>,
    pub(crate) other_metrics: OtherMetrics,
    pub(crate) recorder: EventRecorder,
    pub(crate) status: Arc<StatusWriter>,
    pub(crate) objects: Objects,
    /// Devices that pods claim.
    pub(crate) devices: Devices,
    /// Devices that pods are given by plugins.
    pub(crate) device_plugins: Arc<DevicePlugins>,
    /// How often the PodResources API was asked what.
    pub(crate) pod_resources: Requests,
    /// Volumes of drivers.
    pub(crate) csi: Csi,
    pub(crate) machine: Machine,
    /// What the node is short of.
    pub(crate) shortages: Shortages,
    /// Whoever counts files holds this.
    pub(crate) counting: Semaphore,
    /// Changes when somebody sets the machine's clock.
    pub(crate) clock: watch::Receiver<u64>,
    /// Cancelled when the agent is to end.
    pub(crate) stop: CancellationToken,
    /// Streams between clients and containers that are open.
    pub(crate) streams: TaskTracker,
    services: Arc<Informer<Service>>,
    started: Instant,
    /// The node's own object.
    pub(crate) node: Arc<Informer<Node>>,
}

impl Context {
    pub(crate) fn new(
        config: KubeletConfig,
        with: Dependencies,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let pods = config.agent_dir.join("pods");
        // what pods are given may be secret
        edge_sys::fsutil::create_dir_all_mode(&pods, 0o700).map_err(|source| Error::Io {
            what: "cannot create",
            path: pods,
            source,
        })?;
        let own = Informers::new(with.client.clone());
        let status = StatusWriter::new(with.client.clone());
        tasks.spawn(status.clone().run());
        Ok(Arc::new(Self {
            recorder: EventRecorder::new(with.client.clone(), "kubelet", &config.node_name),
            objects: Objects::new(with.client.clone()),
            devices: Devices::open(&config.agent_dir),
            device_plugins: DevicePlugins::open(&config.agent_dir),
            pod_resources: Requests::default(),
            csi: Csi::open(&config.agent_dir),
            clock: follow_clock(tasks),
            imports: watch::Sender::new(false),
            stop,
            streams: TaskTracker::new(),
            services: with.informers.of::<Service>(),
            started: Instant::now(),
            node: own.select::<Node>(&format!("metadata.name={}", config.node_name)),
            machine: Machine::read(&config.agent_dir, &config.eviction_hard),
            shortages: Shortages::new(
                config.eviction_hard.clone(),
                config.pressure_transition,
                &config.agent_dir,
                &with.images,
            ),
            counting: Semaphore::new(1),
            status,
            client: with.client,
            informers: own,
            runtime: with.runtime,
            images: with.images,
            compiler: with.compiler,
            network: with.network,
            other_metrics: with.other_metrics,
            config,
        }))
    }

    /// The services whose variables a container of a namespace gets: those of the namespace if it wants `links`, and
    /// always the API's own. `None` where no server answers after a start.
    pub(crate) async fn services_for(&self, namespace: &str, links: bool) -> Option<Vec<Arc<Service>>> {
        timeout_at(self.started + API_PATIENCE, self.services.synced()).await.ok()?;
        let mut services = if links { self.services.list_namespace(namespace) } else { Vec::new() };
        services.extend(self.services.get("default", "kubernetes").filter(|_| !links || namespace != "default"));
        Some(services)
    }

    /// Waits until a server has answered for the first time since the agent's start.
    pub(crate) async fn answered(&self) {
        self.node.synced().await;
    }

    /// What is asked of the API; `None` once it is clear that no server answers after the agent's start. A server that has
    /// answered before is waited for: what it says is newer than what is known here.
    pub(crate) async fn unless_alone<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        let alone = async {
            sleep_until(self.started + API_PATIENCE).await;
            if self.node.has_synced() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            answer = request => Some(answer),
            () = alone => None,
        }
    }

    /// What the downward API tells about the node and a pod's addresses.
    pub(crate) fn facts(&self, pod_ips: &[IpAddr]) -> Facts {
        Facts {
            pod_ips: pod_ips.to_vec(),
            host_ips: self.config.ips(),
            allocatable: self.machine.allocatable(self.config.max_pods),
        }
    }
}

/// A number that grows whenever somebody sets the machine's clock.
fn follow_clock(tasks: &mut JoinSet<()>) -> watch::Receiver<u64> {
    let (tx, rx) = watch::channel(0);
    tasks.spawn(async move {
        loop {
            if let Err(error) = edge_sys::clock::was_set().await {
                tracing::warn!(%error, "changes of the clock are not noticed");
                return tx.closed().await;
            }
            tx.send_modify(|n| *n += 1);
        }
    });
    rx
}
