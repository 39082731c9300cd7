//! The garbage collector: what is owned goes with its owners.
//!
//! It watches the metadata of all deletable resources, custom ones from the moment they are defined and those of other API servers while
//! these answer, and keeps the graph of owners. Background deletion: when the last
//! owner is gone its dependents are deleted. Foreground: an owner that is being deleted with the finalizer
//! `foregroundDeletion` waits for those dependents that block it. Orphan: dependents are released first.

mod aggregated;
mod bare;
mod custom;
mod graph;

use crate::context::{Context, message};
use bare::Bare;
use edge_client::{
    Api, ApiResource, Client, DeleteParams, DynamicObject, Error, Outcome, Patch, PatchParams, Preconditions,
    PropagationPolicy, WorkQueue, run_workers,
};
use futures::StreamExt;
use graph::{Action, Change, Graph, Node, Uid};
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;

const WORKERS: usize = 4;
/// Resources whose objects own nothing and are owned by nothing: not worth a watch.
const NOT_WATCHED: [&str; 1] = ["events"];

/// A resource as discovery tells of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) deletable: bool,
    watchable: bool,
}

/// What discovery tells.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    /// All resources that can be listed, one version each.
    pub(crate) resources: Vec<Resource>,
    /// Group versions of which nothing can be told at this moment, and why: other API servers' that do not answer.
    pub(crate) failed: Vec<(String, String)>,
}

/// All resources that can be listed, one version each; those that cannot be told of at this moment are missing.
pub(crate) async fn resources(client: &Client) -> Result<Vec<Resource>, Error> {
    discover(client).await.map(|all| all.resources)
}

/// Asks discovery for everything.
pub(crate) async fn discover(client: &Client) -> Result<Discovered, Error> {
    let mut discovered = Vec::new();
    let mut failed = Vec::new();
    let core = client.list_core_api_resources("v1").await?;
    discovered.push((String::new(), "v1".to_owned(), core));
    for group in client.list_api_groups().await?.groups {
        // the preferred one comes first
        for version in &group.versions {
            match client.list_api_group_resources(&version.group_version).await {
                Ok(list) => discovered.push((group.name.clone(), version.version.clone(), list)),
                // custom resources come and go
                Err(e) if edge_client::is_not_found(&e) => {}
                Err(e) => failed.push((version.group_version.clone(), message(&e))),
            }
        }
    }
    let mut out: Vec<Resource> = Vec::new();
    for (group, version, list) in discovered {
        for r in list.resources {
            if r.name.contains('/') || !r.verbs.iter().any(|v| v == "list") {
                continue;
            }
            // in another version already
            if out.iter().any(|known| known.api.group == group && known.api.plural == r.name) {
                continue;
            }
            // Events are served by two groups out of one store
            if r.kind == "Event" && !group.is_empty() {
                continue;
            }
            let has = |verb: &str| r.verbs.iter().any(|v| v == verb);
            out.push(Resource {
                namespaced: r.namespaced,
                deletable: has("delete"),
                watchable: has("watch"),
                api: ApiResource {
                    api_version: if group.is_empty() { version.clone() } else { format!("{group}/{version}") },
                    group: group.clone(),
                    version: version.clone(),
                    kind: r.kind,
                    plural: r.name,
                },
            });
        }
    }
    Ok(Discovered { resources: out, failed })
}

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    queue: Arc<WorkQueue<Uid>>,
    gone: Vec<Arc<WorkQueue<String>>>,
}

/// Runs the collector. The queues `gone` get the namespace of every object that goes: the namespace's own deletion may wait
/// for that, and its quotas have more room then.
pub(crate) async fn run(context: Context, gone: Vec<Arc<WorkQueue<String>>>) {
    // custom resources come by their definitions, whatever happens to those meanwhile
    let mut custom = custom::groups_and_plurals(&context.client).await;
    let (listed, others) = loop {
        let others = aggregated::versions(&context.client).await;
        match discover(&context.client).await {
            // other servers' resources come by themselves
            Ok(all) if all.failed.iter().all(|(version, _)| others.contains(version)) => break (all.resources, others),
            Ok(all) => tracing::debug!(failed = ?all.failed, "discovery failed, trying again"),
            Err(error) => tracing::debug!(%error, "discovery failed, trying again"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    };
    let collector =
        Arc::new(Collector { client: context.client.clone(), graph: Mutex::default(), queue: WorkQueue::new(), gone });
    custom.extend(custom::groups_and_plurals(&context.client).await);
    let is_built_in = |r: &Resource| {
        !custom.contains(&(r.api.group.clone(), r.api.plural.clone())) && !others.contains(&r.api.api_version)
    };
    let watches = listed
        .into_iter()
        .filter(|r| r.deletable && r.watchable && !NOT_WATCHED.contains(&r.api.plural.as_str()) && is_built_in(r))
        .map(|r| watch(collector.clone(), r));
    let worker = collector.clone();
    let work = run_workers("garbage-collector", collector.queue.clone(), WORKERS, move |uid: Uid| {
        let collector = worker.clone();
        async move { collector.reconcile(&uid).await }
    });
    let custom = custom::follow(collector.clone());
    let aggregated = aggregated::follow(collector.clone());
    tokio::join!(futures::future::join_all(watches), custom, aggregated, work);
}

/// Feeds the graph with the metadata of one resource.
async fn watch(collector: Arc<Collector>, resource: Resource) {
    let resource = Arc::new(resource);
    collector.graph.lock().know(&resource.api.api_version, &resource);
    let api: Api<Bare> = Api::all_with(collector.client.clone(), &resource.api);
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut listed = std::collections::HashSet::new();
    while let Some(event) = stream.next().await {
        let dirty = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                Vec::new()
            }
            Ok(watcher::Event::InitApply(object)) => {
                let node = Node::new(&resource, &object.metadata);
                listed.insert(node.uid.clone());
                collector.graph.lock().apply(Change::Seen(node))
            }
            Ok(watcher::Event::InitDone) => collector.graph.lock().retain(&resource.api, &listed),
            Ok(watcher::Event::Apply(object)) => {
                collector.graph.lock().apply(Change::Seen(Node::new(&resource, &object.metadata)))
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some(namespace) = &object.metadata.namespace {
                    collector.gone.iter().for_each(|queue| queue.add(namespace.clone()));
                }
                let uid = object.metadata.uid.clone().unwrap_or_default();
                collector.graph.lock().apply(Change::Gone(uid))
            }
            Err(error) => {
                tracing::debug!(resource = %resource.api.plural, %error, "watch broke, starting again");
                Vec::new()
            }
        };
        for uid in dirty {
            collector.queue.add(uid);
        }
    }
}

impl Collector {
    async fn reconcile(&self, uid: &Uid) -> Result<Outcome, Error> {
        let Some(node) = self.graph.lock().get(uid) else { return Ok(Outcome::Done) };
        // owners that no watch has shown are asked for, once
        let unknown = self.graph.lock().unknown_owners(uid);
        for owner in unknown {
            if !self.exists(&node, &owner).await? {
                self.graph.lock().note_absent(&owner.uid);
            }
        }
        let actions = self.graph.lock().plan(uid);
        for action in actions {
            self.act(action).await?;
        }
        Ok(Outcome::Done)
    }

    /// Whether an owner that is not in the graph exists with that UID.
    async fn exists(&self, node: &Node, owner: &graph::Owner) -> Result<bool, Error> {
        let Some(resource) = self.graph.lock().resource_of(&owner.api_version, &owner.kind) else { return Ok(true) };
        let api = api_for(&self.client, &resource, &node.namespace);
        match api.get_metadata(&owner.name).await {
            Ok(found) => Ok(found.metadata.uid.as_deref() == Some(&owner.uid)),
            Err(e) if edge_client::is_not_found(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn act(&self, action: Action) -> Result<(), Error> {
        let (node, result) = match action {
            Action::Delete { node, policy } => {
                let result = self.delete(&node, policy).await;
                (node, result)
            }
            Action::SetOwners { node, owners } => {
                let patch = json!({"metadata": {"uid": node.uid, "resourceVersion": node.resource_version, "ownerReferences": owners}});
                (node.clone(), self.patch(&node, patch).await)
            }
            Action::RemoveFinalizer { node, finalizer } => {
                let rest: Vec<&String> = node.finalizers.iter().filter(|f| **f != finalizer).collect();
                let patch = json!({"metadata": {"uid": node.uid, "resourceVersion": node.resource_version, "finalizers": rest}});
                (node.clone(), self.patch(&node, patch).await)
            }
        };
        match result {
            Err(e) if edge_client::is_not_found(&e) => {
                // it went before the watch told; the watch will
                tracing::trace!(name = node.name, "already gone");
                Ok(())
            }
            other => other,
        }
    }

    /// Deletes an object as it was when that was decided: with an owner that it has got since, it stays.
    async fn delete(&self, node: &Node, policy: PropagationPolicy) -> Result<(), Error> {
        let api = api_for(&self.client, &node.resource, &node.namespace);
        let delete = async |resource_version| {
            let preconditions = Some(Preconditions { uid: Some(node.uid.clone()), resource_version });
            let propagation_policy = Some(policy.clone());
            let params = DeleteParams { propagation_policy, preconditions, ..DeleteParams::default() };
            api.delete(&node.name, &params).await.map(drop)
        };
        match delete(Some(node.resource_version.clone())).await {
            Err(conflict) if edge_client::is_conflict(&conflict) => {
                let live = Node::new(&node.resource, &api.get_metadata(&node.name).await?.metadata);
                if live.uid != node.uid {
                    Ok(())
                } else if live.has_owners_of(node) {
                    delete(None).await
                } else {
                    Err(conflict)
                }
            }
            other => other,
        }
    }

    async fn patch(&self, node: &Node, patch: serde_json::Value) -> Result<(), Error> {
        let api = api_for(&self.client, &node.resource, &node.namespace);
        api.patch(&node.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}

fn api_for(client: &Client, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
    if resource.namespaced {
        Api::namespaced_with(client.clone(), namespace, &resource.api)
    } else {
        Api::all_with(client.clone(), &resource.api)
    }
}

/// How dependents of a vanished owner are deleted: as they would be by default.
pub(crate) const BACKGROUND: PropagationPolicy = PropagationPolicy::Background;
