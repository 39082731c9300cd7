//! Creating and removing sandboxes, and what happens when a monitor dies.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;

use edge_sys::fsutil;

use super::connection::{Connection, SharedConnection};
use super::{Container, Inner, Sandbox, blocking};
use crate::error::{Error, Result, chain};
use crate::paths::SandboxPaths;
use crate::protocol::{Message, MonitorConfig, ReplyBody, RequestBody};
use crate::spec::{SandboxSpec, validate_id};
use crate::status::{ContainerEvent, ContainerState, ExitStatus, UNKNOWN_EXIT_CODE};

/// Options of the pod's `/dev/shm`.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// How long a monitor may take to end after it was told to, in milliseconds.
const SHUTDOWN_TIMEOUT_MS: u16 = 5_000;

impl Inner {
    pub(super) async fn create_sandbox(self: &Arc<Self>, spec: SandboxSpec) -> Result<()> {
        validate_id(&spec.id)?;
        let paths = self.sandbox_paths(&spec.id);
        if self.sandboxes.lock().contains_key(&spec.id) {
            return Err(Error::AlreadyExists { id: spec.id });
        }
        let (inner, wanted, place) = (Arc::clone(self), spec.clone(), paths.clone());
        blocking(move || inner.prepare_sandbox(&wanted, &place)).await?;
        match Connection::open(&spec.id, paths.directory()).await {
            Ok(connection) => {
                self.insert_sandbox(spec, paths, Some(Arc::new(connection)), HashMap::new());
                Ok(())
            }
            Err(source) => {
                let id = spec.id.clone();
                let inner = Arc::clone(self);
                blocking(move || inner.discard_sandbox(&spec, &paths)).await?;
                Err(Error::Protocol { id, source })
            }
        }
    }

    /// Everything up to a listening monitor. Blocks. Leaves nothing behind when it fails.
    fn prepare_sandbox(&self, spec: &SandboxSpec, paths: &SandboxPaths) -> Result<()> {
        if paths.directory().exists() {
            return Err(Error::AlreadyExists { id: spec.id.clone() });
        }
        let result = self.try_prepare_sandbox(spec, paths);
        if result.is_err()
            && let Err(err) = self.discard_sandbox(spec, paths)
        {
            tracing::warn!(sandbox = %spec.id, error = %chain(&err), "cannot clean up after a failed sandbox");
        }
        result
    }

    fn try_prepare_sandbox(&self, spec: &SandboxSpec, paths: &SandboxPaths) -> Result<()> {
        let containers = paths.containers();
        fsutil::create_dir_all_mode(paths.directory(), 0o700).map_err(Error::io("cannot create", paths.directory()))?;
        fsutil::create_dir_all_mode(&containers, 0o700).map_err(Error::io("cannot create", &containers))?;
        write_json(&paths.spec(), spec)?;
        self.cgroups.create(&spec.cgroup, &spec.resources)?;
        if !spec.host_ipc {
            mount_shm(&paths.shm())?;
        }
        let config = MonitorConfig { directory: paths.directory().to_owned(), cgroup_root: self.cgroup_root.clone() };
        self.zygote.spawn_monitor(&config).map_err(|source| Error::Zygote { id: spec.id.clone(), source })
    }

    /// Makes a sandbox known and begins to listen to its monitor.
    pub(super) fn insert_sandbox(
        self: &Arc<Self>,
        spec: SandboxSpec,
        paths: SandboxPaths,
        connection: Option<SharedConnection>,
        containers: HashMap<String, Arc<Container>>,
    ) {
        let id = spec.id.clone();
        self.sandbox_of.lock().extend(containers.keys().map(|container| (container.clone(), id.clone())));
        let sandbox = Arc::new(Sandbox {
            spec,
            paths,
            connection: Mutex::new(connection.clone()),
            containers: Mutex::new(containers),
        });
        self.sandboxes.lock().insert(id, Arc::clone(&sandbox));
        if let Some(connection) = connection {
            tokio::spawn(Arc::clone(self).listen(sandbox, connection));
        }
    }

    /// Life of the task that reads what a monitor says. It ends with the monitor.
    async fn listen(self: Arc<Self>, sandbox: Arc<Sandbox>, mut connection: SharedConnection) {
        loop {
            match connection.next_event().await {
                Ok(Some(message)) => {
                    self.heard(&sandbox, message);
                    continue;
                }
                Ok(None) => {}
                Err(err) => {
                    tracing::warn!(sandbox = %sandbox.spec.id, error = %err, "lost the connection to a monitor")
                }
            }
            // Taken away before by whoever shuts the monitor down on purpose.
            if sandbox.connection.lock().is_none() {
                return;
            }
            match self.reconnect(&sandbox, &connection).await {
                Some(new) => connection = new,
                None => break,
            }
        }
        if sandbox.connection.lock().take().is_some() {
            // Should it live but not be reachable, it is of no use to anybody.
            let _ = connection.monitor().send_signal(nix::libc::SIGKILL);
            self.monitor_died(&sandbox).await;
        }
    }

    /// A monitor that lives has dropped us because we were slow: connect again, and catch up.
    async fn reconnect(self: &Arc<Self>, sandbox: &Arc<Sandbox>, old: &Connection) -> Option<SharedConnection> {
        if old.monitor().wait(0).unwrap_or(true) {
            return None;
        }
        let new = match Connection::open(&sandbox.spec.id, sandbox.paths.directory()).await {
            Ok(new) => Arc::new(new),
            Err(err) => {
                tracing::error!(sandbox = %sandbox.spec.id, error = %err, "cannot connect to a monitor again");
                return None;
            }
        };
        *sandbox.connection.lock() = Some(Arc::clone(&new));
        // In a task of its own, because the answer arrives only while somebody reads.
        let (inner, sandbox, asked) = (Arc::clone(self), Arc::clone(sandbox), Arc::clone(&new));
        tokio::spawn(async move {
            if let Ok(ReplyBody::Containers(listed)) = asked.request("", RequestBody::List).await {
                for item in listed {
                    match item.state {
                        ContainerState::Exited(exit) => inner.container_exited(&sandbox, &item.id, exit),
                        ContainerState::Running { pid, started_at } => {
                            inner.container_started(&sandbox, &item.id, pid, started_at);
                        }
                        ContainerState::Created => {}
                    }
                }
            }
        });
        Some(new)
    }

    fn heard(&self, sandbox: &Sandbox, message: Message) {
        match message {
            Message::Started { container, pid, started_at } => {
                self.container_started(sandbox, &container, pid, started_at)
            }
            Message::Exited { container, exit } => self.container_exited(sandbox, &container, exit),
            // Answered in the connection; a second greeting means nothing.
            Message::Hello { .. } | Message::Reply { .. } | Message::ExecExited { .. } => {}
        }
    }

    /// Marks a container as running and tells everybody, once.
    fn container_started(&self, sandbox: &Sandbox, container_id: &str, pid: i32, started_at: Timestamp) {
        let Some(container) = sandbox.containers.lock().get(container_id).cloned() else { return };
        let news = container.state.send_if_modified(|state| {
            let news = matches!(state, ContainerState::Created);
            if news {
                *state = ContainerState::Running { pid, started_at };
            }
            news
        });
        if news {
            let (sandbox_id, container_id) = (sandbox.spec.id.clone(), container_id.to_owned());
            self.publish(&ContainerEvent::Started { sandbox_id, container_id });
        }
    }

    /// Marks a container as ended and tells everybody, once.
    fn container_exited(&self, sandbox: &Sandbox, container_id: &str, exit: ExitStatus) {
        let Some(container) = sandbox.containers.lock().get(container_id).cloned() else { return };
        let news = container.state.send_if_modified(|state| {
            let news = !matches!(state, ContainerState::Exited(_));
            if news {
                *state = ContainerState::Exited(exit.clone());
            }
            news
        });
        if news {
            let (sandbox_id, container_id) = (sandbox.spec.id.clone(), container_id.to_owned());
            self.publish(&ContainerEvent::Exited { sandbox_id, container_id, exit });
        }
    }

    /// Nobody reaps, logs or controls the containers any more: end them, and say so.
    async fn monitor_died(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        tracing::error!(sandbox = %sandbox.spec.id, "the monitor died, killing its containers");
        let containers: Vec<_> = sandbox.containers.lock().values().cloned().collect();
        let (inner, dead) = (Arc::clone(self), Arc::clone(sandbox));
        let exits = blocking(move || {
            if let Err(err) = inner.cgroups.remove(&dead.spec.cgroup) {
                tracing::error!(sandbox = %dead.spec.id, error = %chain(&err), "cannot kill the containers of a dead monitor");
            }
            containers.iter().map(|container| (container.spec.id.clone(), final_exit(container))).collect::<Vec<_>>()
        });
        for (id, exit) in exits.await {
            self.container_exited(sandbox, &id, exit);
        }
        self.publish(&ContainerEvent::SandboxLost { sandbox_id: sandbox.spec.id.clone() });
    }

    pub(super) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let containers: Vec<String> = sandbox.containers.lock().keys().cloned().collect();
        for container in containers {
            self.remove_container(&container).await?;
        }
        let connection = sandbox.connection.lock().take();
        if let Some(connection) = connection {
            // An error means that it is gone already, which is the goal.
            let _ = connection.request("", RequestBody::Shutdown).await;
            blocking(move || end_monitor(&connection)).await;
        }
        let (inner, gone) = (Arc::clone(self), Arc::clone(&sandbox));
        blocking(move || inner.discard_sandbox(&gone.spec, &gone.paths)).await?;
        self.sandboxes.lock().remove(id);
        Ok(())
    }

    /// Removes everything of a sandbox whose monitor is dead. Blocks.
    pub(super) fn discard_sandbox(&self, spec: &SandboxSpec, paths: &SandboxPaths) -> Result<()> {
        self.cgroups.remove(&spec.cgroup)?;
        remove_sandbox_files(paths)
    }
}

/// Unmounts and removes the directory of a sandbox. Blocks.
pub(super) fn remove_sandbox_files(paths: &SandboxPaths) -> Result<()> {
    let shm = paths.shm();
    match umount2(&shm, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(err) => return Err(Error::io("cannot unmount", shm)(err.into())),
    }
    fsutil::remove_dir_all_if_exists(paths.directory()).map_err(Error::io("cannot remove", paths.directory()))
}

fn mount_shm(path: &Path) -> Result<()> {
    fsutil::create_dir_all_mode(path, 0o755).map_err(Error::io("cannot create", path))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(SHM_OPTIONS))
        .map_err(|err| Error::io("cannot mount", path)(err.into()))
}

/// Waits until a monitor that was told to end has ended, and ends it if it does not.
fn end_monitor(connection: &Connection) {
    let monitor = connection.monitor();
    if !matches!(monitor.wait(SHUTDOWN_TIMEOUT_MS), Ok(true)) {
        tracing::warn!(pid = connection.monitor_pid(), "a monitor does not end, killing it");
        // Errors mean that it is gone.
        let _ = monitor.send_signal(nix::libc::SIGKILL);
        let _ = monitor.wait(SHUTDOWN_TIMEOUT_MS);
    }
}

/// How a container ended whose monitor is dead: as recorded, or unknown, which is then recorded. Blocks.
pub(super) fn final_exit(container: &Container) -> ExitStatus {
    let path = container.paths.exit();
    if let Some(exit) = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return exit;
    }
    let started_at = match &*container.state.borrow() {
        ContainerState::Running { started_at, .. } => Some(*started_at),
        _ => None,
    };
    let exit = ExitStatus {
        code: UNKNOWN_EXIT_CODE,
        signal: None,
        oom_killed: false,
        started_at,
        finished_at: Timestamp::now(),
        message: "the container's end was not observed: its monitor had died".to_owned(),
    };
    let recorded = serde_json::to_vec(&exit)
        .map_err(std::io::Error::from)
        .and_then(|bytes| fsutil::write_atomic(&path, &bytes, 0o600));
    if let Err(err) = recorded {
        tracing::warn!(container = %container.spec.id, error = %err, "cannot record the end of a container");
    }
    exit
}

/// Writes a description. Not durably: after a power cut nothing is left that it could describe.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    serde_json::to_vec(value)
        .map_err(std::io::Error::from)
        .and_then(|bytes| fsutil::write_atomic_volatile(path, &bytes, 0o600))
        .map_err(Error::io("cannot write", path))
}
