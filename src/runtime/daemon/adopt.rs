//! Finding the sandboxes of an earlier life of edge.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::connection::Connection;
use super::sandboxes::{final_exit, remove_sandbox_files};
use super::{Container, Inner, blocking};
use crate::error::{Error, Result, chain};
use crate::paths::SandboxPaths;
use crate::protocol::{ListedContainer, ReplyBody, RequestBody};
use crate::spec::{ContainerSpec, SandboxSpec};
use crate::status::{AdoptedSandbox, ContainerState};

impl Inner {
    pub(super) async fn adopt(self: &Arc<Self>) -> Result<Vec<AdoptedSandbox>> {
        self.adopt_hosts().await?;
        let pods = self.directory.join("pods");
        let found = blocking(move || find(&pods)).await?;
        let mut adopted = Vec::new();
        for (paths, spec) in found {
            match spec {
                Some(spec) => adopted.push(self.adopt_sandbox(spec, paths).await?),
                // Interrupted before anything was started in it, or after everything was removed.
                None => blocking(move || remove_sandbox_files(&paths)).await?,
            }
        }
        Ok(adopted)
    }

    async fn adopt_sandbox(self: &Arc<Self>, spec: SandboxSpec, paths: SandboxPaths) -> Result<AdoptedSandbox> {
        let place = paths.clone();
        let specs = blocking(move || read_container_specs(&place.containers())).await?;
        let containers: HashMap<String, Arc<Container>> = specs
            .into_iter()
            .map(|container| {
                (container.id.clone(), Arc::new(Container::new(&spec, &paths, container, ContainerState::Created)))
            })
            .collect();
        let connection = match Connection::open(&spec.id, paths.directory()).await {
            Ok(connection) => Some(Arc::new(connection)),
            Err(err) => {
                tracing::warn!(sandbox = %spec.id, error = %err, "the monitor of a sandbox is dead");
                None
            }
        };
        // First known, then asked: an exit in between is heard and not lost.
        self.insert_sandbox(spec.clone(), paths, connection.clone(), containers.clone());
        let ready = connection.is_some();
        let listed = match connection {
            Some(connection) => match connection.request("", RequestBody::List).await? {
                ReplyBody::Containers(listed) => listed,
                _ => return Err(Error::Monitor("unexpected answer to list".to_owned())),
            },
            None => {
                let (inner, cgroup) = (Arc::clone(self), spec.cgroup.clone());
                blocking(move || inner.cgroups.remove(&cgroup)).await?;
                Vec::new()
            }
        };
        settle(&containers, listed).await;
        let containers = containers.values().map(|container| container.status()).collect();
        Ok(AdoptedSandbox { spec, ready, containers })
    }
}

/// Gives every container the state its monitor tells, or the one on disk when the monitor does not know it.
async fn settle(containers: &HashMap<String, Arc<Container>>, listed: Vec<ListedContainer>) {
    let states: HashMap<String, ContainerState> = listed.into_iter().map(|item| (item.id, item.state)).collect();
    for (id, container) in containers {
        let state = match states.get(id) {
            Some(state) => state.clone(),
            None => {
                let unknown = Arc::clone(container);
                ContainerState::Exited(blocking(move || final_exit(&unknown)).await)
            }
        };
        container.state.send_if_modified(|known| {
            // An exit heard meanwhile is newer than the list.
            let newer = !matches!(known, ContainerState::Exited(_));
            if newer {
                *known = state;
            }
            newer
        });
    }
}

/// The sandboxes on disk; without a description when that cannot be read. Blocks.
fn find(pods: &Path) -> Result<Vec<(SandboxPaths, Option<SandboxSpec>)>> {
    let entries = fs::read_dir(pods).map_err(Error::io("cannot read", pods))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("cannot read", pods))?;
        let paths = SandboxPaths::new(entry.path());
        let spec = read_json(&paths.spec()).inspect_err(|err| {
            tracing::warn!(path = %paths.spec().display(), error = %chain(err), "cannot read the description of a sandbox");
        });
        found.push((paths, spec.ok()));
    }
    Ok(found)
}

/// The containers of a sandbox on disk; one without a readable description was never created. Blocks.
fn read_container_specs(directory: &Path) -> Result<Vec<ContainerSpec>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(Error::io("cannot read", directory)(err)),
    };
    Ok(entries.flatten().filter_map(|entry| read_json(&entry.path().join("spec.json")).ok()).collect())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
