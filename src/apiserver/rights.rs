//! Keeps in step with what is stored what every request depends on: roles and bindings, what nodes' rights follow from,
//! admission policies and webhooks.
//!
//! One task follows all these resources. Whoever has just written one of them can wait until the index shows it
//! ([`Rights::settle`]): a binding that was created holds for the next request.

use crate::Server;
use crate::admission::{policy, webhook};
use edge_api::Status;
use edge_auth::NodeAuthorizer;
use edge_registry::{EventKind, ListOptions, Registry, ResourceInfo, Stored, Target, WatchEvent, WatchOptions};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const RBAC: &str = "rbac.authorization.k8s.io";
/// Group and plural.
const RESOURCES: [(&str, &str); 13] = [
    (RBAC, "roles"),
    (RBAC, "clusterroles"),
    (RBAC, "rolebindings"),
    (RBAC, "clusterrolebindings"),
    NodeAuthorizer::FOLLOWS[0],
    NodeAuthorizer::FOLLOWS[1],
    NodeAuthorizer::FOLLOWS[2],
    (policy::GROUP, policy::RESOURCES[0]),
    (policy::GROUP, policy::RESOURCES[1]),
    (policy::GROUP, policy::RESOURCES[2]),
    (policy::GROUP, policy::RESOURCES[3]),
    (policy::GROUP, webhook::RESOURCES[0]),
    (policy::GROUP, webhook::RESOURCES[1]),
];
/// Before a resource that cannot be read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The end of the task that requests talk to.
#[derive(Debug)]
pub(crate) struct Rights(mpsc::Sender<oneshot::Sender<()>>);

impl Rights {
    /// Fills the index of `server` and follows the changes until the server stops.
    ///
    /// # Errors
    /// When roles or bindings cannot be read.
    pub(crate) async fn start(server: &Arc<Server>) -> Result<Self, Status> {
        let (asks, asked) = mpsc::channel(16);
        let mut follower =
            Follower { server: server.clone(), known: Default::default(), events: SelectAll::new(), asked };
        for kind in 0..RESOURCES.len() {
            follower.read(kind).await?;
        }
        tokio::spawn(follower.run());
        Ok(Self(asks))
    }

    /// Returns when every change that was visible before the call is in the index.
    pub(crate) async fn settle(&self) {
        let (done, settled) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            let _ = settled.await;
        }
    }
}

/// An event of one of the [`RESOURCES`]; `None`: its watch has ended.
type Tagged = (usize, Option<WatchEvent>);

struct Follower {
    server: Arc<Server>,
    /// Namespaces and names in the index, to find out after a gap what has gone.
    known: [HashSet<(String, String)>; RESOURCES.len()],
    events: SelectAll<BoxStream<'static, Tagged>>,
    asked: mpsc::Receiver<oneshot::Sender<()>>,
}

impl Follower {
    async fn run(mut self) {
        let stop = self.server.shutdown.clone();
        loop {
            // events come first: whoever asks is answered only when none is left
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((kind, event)) = self.events.next() => match event {
                    Some(event) => self.take(kind, &event),
                    None => self.read_again(kind).await,
                },
                asked = self.asked.recv() => match asked {
                    Some(done) => drop(done.send(())),
                    None => return,
                },
            }
        }
    }

    async fn read_again(&mut self, kind: usize) {
        while let Err(error) = self.read(kind).await {
            tracing::error!(%error, resource = RESOURCES[kind].1, "cannot follow what rights depend on");
            tokio::select! {
                () = self.server.shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Takes in all objects of a resource, forgets those that are gone, and follows it from there.
    async fn read(&mut self, kind: usize) -> Result<(), Status> {
        let registry: &Registry = &self.server.registry;
        let Some(row) = registry.catalog().preferred(RESOURCES[kind].0, RESOURCES[kind].1) else { return Ok(()) };
        let target = Target { info: &row, namespace: "", name: "", subresource: "" };
        let list = registry.list(&target, &ListOptions::default()).await?;
        let mut gone = std::mem::take(&mut self.known[kind]);
        for stored in &list.items {
            gone.remove(&id(stored));
            self.known[kind].insert(id(stored));
            upsert(&self.server, kind, stored);
        }
        for (namespace, name) in gone {
            remove(&self.server, &row, &namespace, &name);
        }
        let options = WatchOptions { resource_version: list.resource_version.to_string(), ..WatchOptions::default() };
        let watch = registry.watch(&target, &options).await?;
        let end = stream::once(async move { (kind, None) });
        self.events.push(watch.map(move |e| (kind, Some(e))).chain(end).boxed());
        Ok(())
    }

    fn take(&mut self, kind: usize, event: &WatchEvent) {
        match event.kind {
            EventKind::Added | EventKind::Modified => {
                self.known[kind].insert(id(&event.object));
                upsert(&self.server, kind, &event.object);
            }
            EventKind::Deleted => {
                let id = id(&event.object);
                let (group, resource) = RESOURCES[kind];
                if let Some(row) = self.server.registry.catalog().preferred(group, resource) {
                    remove(&self.server, &row, &id.0, &id.1);
                }
                self.known[kind].remove(&id);
            }
            EventKind::Bookmark => {}
        }
    }
}

fn id(stored: &Stored) -> (String, String) {
    (stored.namespace().to_owned(), stored.name().to_owned())
}

/// Pods that wait for a node are a matter of no node: they need not be read.
fn is_of_no_node(kind: usize, stored: &Stored) -> bool {
    RESOURCES[kind] == ("", "pods") && !stored.may_have("\"nodeName\":")
}

fn upsert(server: &Server, kind: usize, stored: &Stored) {
    if is_of_no_node(kind, stored) {
        return;
    }
    match serde_json::from_slice::<serde_json::Value>(stored.bytes()) {
        Ok(value) if value["apiVersion"].as_str().is_some_and(|v| v.starts_with(RBAC)) => {
            server.access.rbac.upsert(&value);
        }
        Ok(value) if value["apiVersion"].as_str().is_some_and(|v| v.starts_with(policy::GROUP)) => {
            if webhook::is_configuration(value["kind"].as_str().unwrap_or_default()) {
                server.webhooks.upsert(&value);
            } else {
                server.policies.upsert(&value);
            }
        }
        Ok(value) => server.access.nodes.upsert(&value),
        Err(error) => {
            tracing::error!(%error, name = stored.name(), "stored object that rights depend on cannot be read")
        }
    }
}

fn remove(server: &Server, row: &ResourceInfo, namespace: &str, name: &str) {
    if row.group == RBAC {
        server.access.rbac.remove(&row.kind, namespace, name);
    } else if row.group == policy::GROUP {
        if webhook::is_configuration(&row.kind) {
            server.webhooks.remove(&row.kind, name);
        } else {
            server.policies.remove(&row.kind, name);
        }
    } else {
        server.access.nodes.remove(&row.kind, namespace, name);
    }
}
