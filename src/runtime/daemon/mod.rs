//! The daemon's side of the runtime: [`Runtime`] describes sandboxes and containers on disk, owns their cgroups, and asks their
//! monitors to do the rest.
//!
//! Comes in: calls of the kubelet, messages of the monitors. Goes out: requests to the monitors, [`ContainerEvent`]s.

mod adopt;
mod connection;
mod containers;
mod dense;
mod moves;
mod patience;
mod sandboxes;
mod streams;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use edge_sys::fsutil;

use crate::PodRuntime;
use crate::cgroup::Cgroups;
use crate::error::{Error, Result};
use crate::oci::SandboxNamespaces;
use crate::paths::{ContainerPaths, SandboxPaths};
use crate::session::{AttachSession, AttachStreams, ExecSession};
use crate::skeleton;
use crate::spec::{ContainerSpec, ExecSpec, Resources, SandboxSpec, WindowSize};
use crate::status::{AdoptedSandbox, ContainerEvent, ContainerState, ContainerStatus, ExitStatus, Usage};
use crate::zygote::Zygote;
use connection::Connection;
pub use moves::Making;
use moves::Moves;

/// Where a [`Runtime`] keeps its things.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Directory for everything about sandboxes and containers: descriptions, sockets, exit records, writable layers.
    pub directory: PathBuf,
    /// Cgroup below which all pods are, `/` for the whole machine.
    pub cgroup_root: String,
}

/// Runs pods as Linux containers. Clones are the same runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    cgroup_root: String,
    cgroups: Cgroups,
    moves: Arc<Moves>,
    zygote: Zygote,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    /// Sandbox of every container.
    sandbox_of: Mutex<HashMap<String, String>>,
    subscribers: Mutex<Vec<mpsc::UnboundedSender<ContainerEvent>>>,
    /// Directory of the host for new dense programs.
    host: Mutex<Option<PathBuf>>,
    /// When somebody began to look whether the hosts live; held meanwhile.
    hosts_looked_at: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Sandbox {
    spec: SandboxSpec,
    paths: SandboxPaths,
    /// `None` when its monitor is dead.
    connection: Mutex<Option<Arc<Connection>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
}

#[derive(Debug)]
struct Container {
    spec: ContainerSpec,
    paths: ContainerPaths,
    /// Its cgroup below the cgroup root.
    cgroup: String,
    state: watch::Sender<ContainerState>,
}

impl Runtime {
    /// Prepares the runtime; sandboxes of an earlier life are found with [`PodRuntime::adopt`].
    ///
    /// # Errors
    /// When the directory cannot be made or no cgroup file system is mounted.
    pub fn open(zygote: Zygote, config: RuntimeConfig) -> Result<Self> {
        let pods = config.directory.join("pods");
        fsutil::create_dir_all_mode(&pods, 0o700).map_err(Error::io("cannot create", &pods))?;
        let skeletons = config.directory.join("skeletons");
        skeleton::make(&skeletons).map_err(Error::io("cannot make", &skeletons))?;
        let cgroups = Cgroups::detect(&config.cgroup_root)?;
        let inner = Inner {
            directory: config.directory,
            cgroup_root: config.cgroup_root,
            moves: Moves::new(cgroups.clone()),
            cgroups,
            zygote,
            sandboxes: Mutex::default(),
            sandbox_of: Mutex::default(),
            subscribers: Mutex::default(),
            host: Mutex::default(),
            hosts_looked_at: tokio::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The cgroups below the runtime's root, for those who manage more than pods: the QoS levels, for example.
    #[must_use]
    pub fn cgroups(&self) -> &Cgroups {
        &self.inner.cgroups
    }
}

impl Inner {
    fn sandbox_paths(&self, id: &str) -> SandboxPaths {
        SandboxPaths::new(self.directory.join("pods").join(id))
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.sandboxes.lock().get(id).cloned().ok_or_else(|| Error::SandboxNotFound { id: id.to_owned() })
    }

    fn container(&self, id: &str) -> Result<(Arc<Sandbox>, Arc<Container>)> {
        let not_found = || Error::ContainerNotFound { id: id.to_owned() };
        let sandbox_id = self.sandbox_of.lock().get(id).cloned().ok_or_else(not_found)?;
        let sandbox = self.sandbox(&sandbox_id)?;
        let container = sandbox.containers.lock().get(id).cloned().ok_or_else(not_found)?;
        Ok((sandbox, container))
    }

    fn publish(&self, event: &ContainerEvent) {
        self.subscribers.lock().retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }
}

impl Sandbox {
    fn connection(&self) -> Result<Arc<Connection>> {
        self.connection.lock().clone().ok_or_else(|| Error::MonitorGone { id: self.spec.id.clone() })
    }

    fn namespaces(&self, connection: &Connection) -> SandboxNamespaces {
        SandboxNamespaces { monitor_pid: connection.monitor_pid(), pause_pid: connection.pause_pid() }
    }
}

impl Container {
    fn new(sandbox: &SandboxSpec, paths: &SandboxPaths, spec: ContainerSpec, state: ContainerState) -> Self {
        Self {
            paths: paths.container(&spec.id),
            cgroup: format!("{}/{}", sandbox.cgroup, spec.id),
            state: watch::Sender::new(state),
            spec,
        }
    }

    fn status(&self) -> ContainerStatus {
        ContainerStatus { spec: self.spec.clone(), state: self.state.borrow().clone() }
    }

    fn exit(&self) -> Option<ExitStatus> {
        match &*self.state.borrow() {
            ContainerState::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    /// Waits until it has ended.
    async fn wait(&self) -> ExitStatus {
        let mut states = self.state.subscribe();
        loop {
            if let ContainerState::Exited(exit) = &*states.borrow_and_update() {
                return exit.clone();
            }
            states.changed().await.expect("invariant: the sender is a field of self");
        }
    }
}

/// Runs blocking work (files, cgroups, mounts) off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) => match err.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the tokio runtime itself is being shut down: there is nothing to go on with.
            Err(_) => std::future::pending().await,
        },
    }
}

#[async_trait]
impl PodRuntime for Runtime {
    async fn adopt(&self) -> Result<Vec<AdoptedSandbox>> {
        self.inner.adopt().await
    }

    fn events(&self) -> mpsc::UnboundedReceiver<ContainerEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inner.subscribers.lock().push(sender);
        receiver
    }

    fn expect_sandbox(&self) -> Making {
        self.inner.moves.expect()
    }

    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<()> {
        self.inner.create_sandbox(spec).await
    }

    async fn remove_sandbox(&self, sandbox_id: &str) -> Result<()> {
        self.inner.remove_sandbox(sandbox_id).await
    }

    async fn create_container(&self, sandbox_id: &str, spec: ContainerSpec) -> Result<()> {
        self.inner.create_container(sandbox_id, spec).await
    }

    async fn start_container(&self, container_id: &str) -> Result<()> {
        self.inner.start_container(container_id).await
    }

    async fn kill_container(&self, container_id: &str, signal: i32) -> Result<()> {
        self.inner.kill_container(container_id, signal).await
    }

    async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<ExitStatus> {
        self.inner.stop_container(container_id, grace).await
    }

    async fn remove_container(&self, container_id: &str) -> Result<()> {
        self.inner.remove_container(container_id).await
    }

    async fn update_container(&self, container_id: &str, resources: Resources) -> Result<()> {
        let (_, container) = self.inner.container(container_id)?;
        if container.spec.is_dense() {
            return Err(Error::InvalidSpec(
                "the limits of a dense WebAssembly program cannot be changed while it runs".to_owned(),
            ));
        }
        let cgroups = self.inner.cgroups.clone();
        blocking(move || cgroups.update(&container.cgroup, &resources)).await
    }

    async fn update_group(&self, cgroup: &str, resources: Resources) -> Result<()> {
        let (cgroups, cgroup) = (self.inner.cgroups.clone(), cgroup.to_owned());
        blocking(move || cgroups.create(&cgroup, &resources)).await
    }

    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus> {
        Ok(self.inner.container(container_id)?.1.status())
    }

    async fn exec(&self, container_id: &str, spec: ExecSpec) -> Result<ExecSession> {
        self.inner.exec(container_id, spec).await
    }

    async fn attach(&self, container_id: &str, streams: AttachStreams) -> Result<AttachSession> {
        self.inner.attach(container_id, streams).await
    }

    async fn resize_container(&self, container_id: &str, size: WindowSize) -> Result<()> {
        self.inner.resize_container(container_id, size).await
    }

    async fn reopen_log(&self, container_id: &str) -> Result<()> {
        self.inner.reopen_log(container_id).await
    }

    fn written_files(&self, container_id: &str) -> Option<PathBuf> {
        let (_, container) = self.inner.container(container_id).ok()?;
        (!container.spec.is_dense()).then(|| container.paths.upper())
    }

    async fn container_usage(&self, container_id: &str) -> Result<Usage> {
        let (sandbox, container) = self.inner.container(container_id)?;
        let cgroups = self.inner.cgroups.clone();
        let of_programs = self.inner.dense_usage(&sandbox, &container).await;
        let usage = blocking(move || cgroups.usage(&container.cgroup)).await?;
        Ok(usage.with_program(of_programs))
    }

    async fn sandbox_usage(&self, sandbox_id: &str) -> Result<Usage> {
        let sandbox = self.inner.sandbox(sandbox_id)?;
        let (cgroups, cgroup) = (self.inner.cgroups.clone(), sandbox.spec.cgroup.clone());
        let mut usage = blocking(move || cgroups.usage(&cgroup)).await?;
        let containers: Vec<_> = sandbox.containers.lock().values().cloned().collect();
        for container in containers {
            usage = usage.with_program(self.inner.dense_usage(&sandbox, &container).await);
        }
        Ok(usage)
    }
}
