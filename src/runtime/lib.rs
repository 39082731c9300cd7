//! Room `runtime`: turns descriptions of pods into running processes.
//!
//! Comes in: [`SandboxSpec`], [`ContainerSpec`], [`ExecSpec`] (plain data), the file of a network namespace made by the room
//! `network`, image layers unpacked by the room `image`. Goes out: processes in namespaces and cgroups, logs in CRI format,
//! [`ContainerEvent`]s, exit records on disk.
//!
//! Three kinds of processes work together:
//! * the **daemon** (edge itself, many threads): [`Runtime`] describes containers, owns cgroups, talks to the monitors;
//! * the **zygote** ([`Zygote`]): forked before the daemon has threads, forks a monitor when asked, ends with the daemon;
//! * one **monitor** per sandbox (one thread, no tokio): owns the stdio of the containers, writes their logs, reaps them and
//!   records their exits. It survives the daemon, which finds it again with [`PodRuntime::adopt`].
//!
//! In `main()`, before anything else: `let zygote = Zygote::start()?`; later, inside tokio: `Runtime::open(zygote, RuntimeConfig {..})`.
//!
//! Dense WebAssembly programs run all in one more process, the **host** ([`DENSE_HOST`]), each watched over by its pod's monitor.
//!
//! libcontainer runs only in short-lived children of a monitor, because its `clone3` is not safe with threads.

mod capabilities;
pub mod cgroup;
mod daemon;
mod dense;
pub mod error;
mod fdio;
mod monitor;
mod oci;
mod paths;
mod protocol;
mod seccomp;
pub mod session;
mod skeleton;
pub mod spec;
pub mod status;
mod teardown;
pub mod users;
mod zygote;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use daemon::{Making, Runtime, RuntimeConfig};
pub use dense::{DENSE_HOST, dense_host};
pub use error::{Error, Result};
pub use session::{AttachSession, AttachStreams, ExecSession, Terminal};
pub use spec::{ContainerSpec, ExecSpec, Isolation, Resources, SandboxSpec, WasmSpec, WindowSize};
pub use status::{AdoptedSandbox, ContainerEvent, ContainerState, ContainerStatus, ExitStatus, Usage};
pub use teardown::tear_down;
pub use zygote::Zygote;

/// Runs pods. [`Runtime`] does it with Linux containers; another engine can stand behind the same interface.
///
/// Every operation may be called at any time from any task; operations on one container happen in the order of the calls.
#[async_trait]
pub trait PodRuntime: Send + Sync + 'static {
    /// Finds the sandboxes that exist: reconnects to living monitors, cleans up after dead ones (kills what is left of their
    /// containers and records those as exited with [`status::UNKNOWN_EXIT_CODE`]), learns exits that were recorded while nobody was
    /// connected. Call it once, before anything else.
    async fn adopt(&self) -> Result<Vec<AdoptedSandbox>>;

    /// Events from now on, in order and without loss.
    fn events(&self) -> mpsc::UnboundedReceiver<ContainerEvent>;

    /// A sandbox is going to be created, once its network is there. Holding what this returns until then spares its first container a wait
    /// in the kernel.
    fn expect_sandbox(&self) -> Making;

    /// Creates a sandbox: its cgroup, its monitor, its namespaces, its sysctls.
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<()>;

    /// Kills everything in a sandbox and removes it with all its containers and their state (not their logs). A sandbox that
    /// does not exist is fine. The network namespace is the caller's to remove, afterwards.
    async fn remove_sandbox(&self, sandbox_id: &str) -> Result<()>;

    /// Creates a container: everything is ready but its command does not run yet. [`Error::Start`] has the reason when the
    /// command can never run (no such executable, for example).
    async fn create_container(&self, sandbox_id: &str, spec: ContainerSpec) -> Result<()>;

    /// Lets the command of a created container run.
    async fn start_container(&self, container_id: &str) -> Result<()>;

    /// Sends a signal to the first process of a container; one that has ended is fine.
    async fn kill_container(&self, container_id: &str, signal: i32) -> Result<()>;

    /// Asks a container to end with its stop signal, kills all of it after `grace`, returns when it has ended.
    async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<ExitStatus>;

    /// Removes a container and its state (not its logs), killing it first when it still runs. One that does not exist is fine.
    async fn remove_container(&self, container_id: &str) -> Result<()>;

    /// Changes the limits of a container in place.
    async fn update_container(&self, container_id: &str, resources: Resources) -> Result<()>;

    /// Makes a cgroup that holds those of pods (such as `kubepods/burstable`) and sets what is given; what is `None` stays
    /// as it is.
    async fn update_group(&self, cgroup: &str, resources: Resources) -> Result<()>;

    /// State of a container.
    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus>;

    /// Runs a command inside a running container.
    async fn exec(&self, container_id: &str, spec: ExecSpec) -> Result<ExecSession>;

    /// Connects to the streams of a running container.
    async fn attach(&self, container_id: &str, streams: AttachStreams) -> Result<AttachSession>;

    /// Sets the size of a container's terminal.
    async fn resize_container(&self, container_id: &str, size: WindowSize) -> Result<()>;

    /// Closes and opens again the log file of a container, after somebody else has renamed it.
    async fn reopen_log(&self, container_id: &str) -> Result<()>;

    /// The directory with what a container has written into its file system; `None` where it has none, or there is no such container.
    fn written_files(&self, container_id: &str) -> Option<PathBuf>;

    /// Usage of a container.
    async fn container_usage(&self, container_id: &str) -> Result<Usage>;

    /// Usage of a whole sandbox.
    async fn sandbox_usage(&self, sandbox_id: &str) -> Result<Usage>;
}
