//! The life of a container, as the daemon drives it.

use std::sync::Arc;
use std::time::Duration;

use edge_sys::fsutil;

use super::sandboxes::write_json;
use super::{Container, Inner, Sandbox, blocking};
use crate::error::{Error, Result, chain};
use crate::oci::{self, SandboxNamespaces};
use crate::protocol::RequestBody;
use crate::spec::{ContainerSpec, WindowSize, validate_id};
use crate::status::{ContainerState, ExitStatus};

impl Inner {
    pub(super) async fn create_container(self: &Arc<Self>, sandbox_id: &str, spec: ContainerSpec) -> Result<()> {
        validate_id(&spec.id)?;
        let id = spec.id.clone();
        let sandbox = self.sandbox(sandbox_id)?;
        let connection = sandbox.connection()?;
        let _making = self.moves.expect();
        let container = Arc::new(Container::new(&sandbox.spec, &sandbox.paths, spec, ContainerState::Created));
        {
            let mut sandbox_of = self.sandbox_of.lock();
            if sandbox_of.contains_key(&id) {
                return Err(Error::AlreadyExists { id });
            }
            sandbox_of.insert(id.clone(), sandbox_id.to_owned());
        }
        sandbox.containers.lock().insert(id.clone(), Arc::clone(&container));

        let namespaces = sandbox.namespaces(&connection);
        let (inner, home, new) = (Arc::clone(self), Arc::clone(&sandbox), Arc::clone(&container));
        let mut result = blocking(move || inner.prepare_container(&home, &namespaces, &new)).await;
        if result.is_ok() {
            let request = RequestBody::Create { container: id.clone(), cgroup: container.cgroup.clone() };
            result = match container.spec.is_dense() {
                true => self.ask_with_host(&connection, &id, request).await,
                false => connection.request(&id, request).await.map(drop),
            };
        }
        if result.is_err() {
            self.discard_container(&sandbox, container).await.unwrap_or_else(|err| {
                tracing::warn!(container = %id, error = %chain(&err), "cannot clean up after a failed container");
            });
        }
        result
    }

    /// Writes down what is asked for and makes the cgroup. Blocks.
    fn prepare_container(
        &self,
        sandbox: &Sandbox,
        namespaces: &SandboxNamespaces,
        container: &Container,
    ) -> Result<()> {
        let paths = &container.paths;
        if container.spec.is_dense() {
            return self.prepare_dense_container(container);
        }
        let full_cgroup = self.cgroups.full_path(&container.cgroup)?;
        let specification = oci::build(&sandbox.spec, namespaces, &container.spec, paths, &full_cgroup)?;
        let directory = paths.directory();
        fsutil::create_dir_all_mode(directory, 0o700).map_err(Error::io("cannot create", directory))?;
        write_json(&paths.spec(), &container.spec)?;
        write_json(&paths.config(), &specification)?;
        self.cgroups.create(&container.cgroup, &container.spec.resources)?;
        self.cgroups.restrict_devices(&container.cgroup, oci::device_rules(&specification))?;
        self.cgroups.kill_together_when_out_of_memory(&container.cgroup)
    }

    pub(super) async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let (sandbox, container) = self.container(id)?;
        let connection = sandbox.connection()?;
        let started = connection.request(id, RequestBody::Start { container: id.to_owned() });
        match container.spec.is_dense() {
            true => self.with_host(started).await.map(drop),
            false => started.await.map(drop),
        }
    }

    pub(super) async fn kill_container(&self, id: &str, signal: i32) -> Result<()> {
        let (sandbox, container) = self.container(id)?;
        if container.exit().is_some() {
            return Ok(());
        }
        sandbox.connection()?.request(id, RequestBody::Kill { container: id.to_owned(), signal }).await.map(drop)
    }

    pub(super) async fn stop_container(self: &Arc<Self>, id: &str, grace: Duration) -> Result<ExitStatus> {
        let (sandbox, container) = self.container(id)?;
        if let Some(exit) = container.exit() {
            return Ok(exit);
        }
        let running = matches!(*container.state.borrow(), ContainerState::Running { .. });
        if running && !grace.is_zero() {
            self.kill_container(id, container.spec.stop_signal).await?;
            if let Ok(exit) = tokio::time::timeout(grace, container.wait()).await {
                return Ok(exit);
            }
        }
        self.kill_all(&sandbox, &container).await
    }

    /// Kills everything in a container and waits for its end.
    async fn kill_all(self: &Arc<Self>, sandbox: &Sandbox, container: &Container) -> Result<ExitStatus> {
        let request = RequestBody::KillAll { container: container.spec.id.clone() };
        match sandbox.connection()?.request(&container.spec.id, request).await {
            Ok(_) if container.spec.is_dense() => Ok(self.until_killed(sandbox, container).await),
            // When the monitor is gone somebody else is killing and reporting already.
            Ok(_) | Err(Error::MonitorGone { .. }) => Ok(container.wait().await),
            Err(err) => Err(err),
        }
    }

    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let (sandbox, container) = match self.container(id) {
            Ok(found) => found,
            Err(Error::ContainerNotFound { .. }) => return Ok(()),
            Err(err) => return Err(err),
        };
        if container.exit().is_none() {
            match self.kill_all(&sandbox, &container).await {
                // The monitor never knew it (its creation was interrupted): only its remains are to be removed.
                Ok(_) | Err(Error::ContainerNotFound { .. }) => {}
                Err(Error::MonitorGone { .. }) => {
                    container.wait().await;
                }
                Err(err) => return Err(err),
            }
        }
        if let Ok(connection) = sandbox.connection() {
            match connection.request(id, RequestBody::Forget { container: id.to_owned() }).await {
                Ok(_) | Err(Error::ContainerNotFound { .. } | Error::MonitorGone { .. }) => {}
                Err(err) => return Err(err),
            }
        }
        self.discard_container(&sandbox, container).await
    }

    /// Removes everything of a container the monitor does not know (any more).
    async fn discard_container(self: &Arc<Self>, sandbox: &Sandbox, container: Arc<Container>) -> Result<()> {
        let (inner, gone) = (Arc::clone(self), Arc::clone(&container));
        blocking(move || {
            inner.cgroups.remove(&gone.cgroup)?;
            let directory = gone.paths.directory();
            fsutil::remove_dir_all_if_exists(directory).map_err(Error::io("cannot remove", directory))
        })
        .await?;
        sandbox.containers.lock().remove(&container.spec.id);
        self.sandbox_of.lock().remove(&container.spec.id);
        Ok(())
    }

    pub(super) async fn resize_container(&self, id: &str, size: WindowSize) -> Result<()> {
        let (sandbox, _) = self.container(id)?;
        sandbox.connection()?.request(id, RequestBody::Resize { container: id.to_owned(), size }).await.map(drop)
    }

    pub(super) async fn reopen_log(&self, id: &str) -> Result<()> {
        let (sandbox, _) = self.container(id)?;
        sandbox.connection()?.request(id, RequestBody::ReopenLog { container: id.to_owned() }).await.map(drop)
    }
}
