//! Room `kubelet`: the node agent. It makes the pods that are bound to this node run, and tells the API how they do.
//!
//! Comes in: pods, configMaps, secrets, services, the node's own object (all through `client`), exits and streams of
//! containers (`runtime`), images (`image`), pod networks (`network`). Goes out: status of pods and of the node, events,
//! and the kubelet's HTTP API ([`Kubelet::serve`]).
//!
//! Per pod there is one worker task ([`pods`]). What it does next is decided by a pure function over a plain record of
//! what is known; the effects run as tasks of their own and report back as events, so that a slow pull or a hanging hook
//! never keeps the worker from noticing that its pod was deleted. Nothing is polled.

mod backoff;
mod config;
mod containers;
mod context;
mod csi;
mod device_plugins;
mod devices;
mod env;
mod eviction;
mod images;
mod logs;
mod node;
mod objects;
mod plugins;
mod pod_resources;
mod pods;
mod probes;
mod records;
mod serve;
mod status;
mod storage;
mod volumes;

pub use config::{KUBELET_VERSION, KubeletConfig};
pub use csi::mounted_by_drivers;
pub use eviction::{ThresholdError, Thresholds};
pub use serve::images::{ImageInfo, ImageProgress, ImageType, ImagesRemoved};

use context::Context;
use edge_client::{Client, Informers};
use edge_image::ImageStore;
use edge_network::NodeNetwork;
use edge_runtime::PodRuntime;
use edge_wasm::Compiler;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long clients of open streams may take at most to hear that the agent ends.
const FAREWELLS: std::time::Duration = std::time::Duration::from_secs(2);

/// Why the node agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory of the agent cannot be made or read.
    #[error("kubelet: {what} {path}")]
    Io {
        /// What was attempted, such as "cannot create".
        what: &'static str,
        /// The file or directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What runs on this node could not be found out.
    #[error("kubelet: cannot adopt the running sandboxes")]
    Adopt(#[source] edge_runtime::Error),
    /// The configuration holds something impossible.
    #[error("kubelet: {0}")]
    Config(&'static str),
}

/// The engines and doors the node agent works with.
#[derive(Clone)]
pub struct Dependencies {
    /// The API, as the identity of the node (`system:node:<name>`).
    pub client: Client,
    /// Informers that all parts of the process share; their identity may read services. What is the node's own is
    /// watched through `client`.
    pub informers: Informers,
    /// Runs sandboxes and containers. [`PodRuntime::adopt`] must not have been called yet.
    pub runtime: Arc<dyn PodRuntime>,
    /// Images on this node.
    pub images: Arc<ImageStore>,
    /// Makes machine code of the WebAssembly programs in images.
    pub compiler: Compiler,
    /// Networks of pods.
    pub network: Arc<NodeNetwork>,
    /// Metrics of other parts of the node, in Prometheus' text format, for whoever asks the kubelet.
    pub other_metrics: OtherMetrics,
}

/// Gives metrics in Prometheus' text format.
pub type OtherMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The running node agent. Dropping it ends its tasks; the containers go on.
pub struct Kubelet {
    context: Arc<Context>,
    manager: Arc<pods::Manager>,
    stop: DropGuard,
    tasks: JoinSet<()>,
    ready: watch::Receiver<bool>,
}

impl Kubelet {
    /// Starts the node agent: adopts what runs, registers the node, begins to follow the pods of this node. Returns when
    /// what already ran has been adopted; the API need not answer for that.
    ///
    /// # Errors
    /// When the state directory is unusable or the runtime cannot say what runs. An unreachable API is not an error.
    pub async fn start(config: KubeletConfig, with: Dependencies) -> Result<Self, Error> {
        if config.node_ips.borrow().is_empty() {
            return Err(Error::Config("the node has no address"));
        }
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let context = Context::new(config, with, &mut tasks, stop.clone())?;
        let manager = pods::Manager::start(context.clone(), &mut tasks, stop.clone()).await?;
        let (ready_tx, ready) = watch::channel(false);
        tasks.spawn(node::run(context.clone(), ready_tx));
        tasks.spawn(images::follow_imports(context.clone(), manager.clone()));
        tasks.spawn(images::collect_garbage(context.clone()));
        tasks.spawn(eviction::run(context.clone(), manager.clone()));
        tasks.spawn(devices::Devices::run(context.clone()));
        tasks.spawn(device_plugins::DevicePlugins::run(context.clone()));
        tasks.spawn(pod_resources::serve(context.clone(), manager.clone()));
        tasks.spawn(plugins::run(
            context.clone(),
            vec![context.devices.handler(), context.csi.handler(), context.device_plugins.clone()],
        ));
        Ok(Self { context, manager, stop: stop.drop_guard(), tasks, ready })
    }

    /// Becomes true once the API has acknowledged the node's condition `Ready`.
    #[must_use]
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// Serves the kubelet's HTTP API (HTTP/1.1 with upgrades) on one connection, until it ends. Who is at the other end
    /// must have been authenticated and authorized already.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.server().serve(stream).await;
    }

    /// A handle that serves connections and can be moved elsewhere (see [`Kubelet::serve`]).
    #[must_use]
    pub fn server(&self) -> Server {
        Server { inner: serve::Server::new(self.context.clone(), self.manager.clone()) }
    }

    /// Stops following the API and ends all tasks of the agent. Containers, networks and volumes stay as they are, to be
    /// adopted by the next start.
    pub async fn stop(mut self) {
        drop(self.stop);
        self.context.streams.close();
        // whoever does not take leave in time is cut off with the rest
        let farewells = tokio::time::timeout(FAREWELLS, self.context.streams.wait());
        let _ = tokio::join!(farewells, self.manager.stopped());
        self.tasks.shutdown().await;
    }
}

/// Serves the kubelet's HTTP API; cheap to clone.
#[derive(Clone)]
pub struct Server {
    inner: serve::Server,
}

impl Server {
    /// Serves one connection until it ends (see [`Kubelet::serve`]).
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.inner.clone().serve(stream).await;
    }

    /// Serves the images of this node (`edge image`) on a socket at `path` that only root can open, until the agent ends.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn listen_locally(&self, path: &std::path::Path) -> std::io::Result<()> {
        self.inner.clone().listen_locally(path).await
    }

    /// Serves the kubelet's API to whoever comes to a socket, until the agent ends. Who comes is asked for a client
    /// certificate that `tls` accepts, or a token that the API server knows, and every request for the right to it.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub async fn listen(&self, socket: std::net::TcpListener, tls: Arc<rustls::ServerConfig>) -> std::io::Result<()> {
        self.inner.clone().listen(socket, tls).await
    }
}
