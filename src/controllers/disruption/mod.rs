//! PodDisruptionBudgets: how many pods may be evicted, for the eviction API to spend.

mod plan;

use crate::context::{Context, each, unless_gone};
use crate::owners::{controller_of, matches, selector};
use edge_api::selector::LabelSelector;
use edge_client::{
    Api, Change, Error, EventType, Informer, InformerKind, Key, Outcome, Patch, PatchParams, PostParams, Resource,
    ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

const WORKERS: usize = 2;

struct Controller {
    context: Context,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    deployments: Arc<Informer<Deployment>>,
    replica_sets: Arc<Informer<ReplicaSet>>,
    stateful_sets: Arc<Informer<StatefulSet>>,
    replication_controllers: Arc<Informer<ReplicationController>>,
    queue: Arc<WorkQueue<Key>>,
    /// Pods that are marked as about to be disrupted.
    marked: Arc<WorkQueue<Key>>,
}

/// Why the number of pods that there should be cannot be told.
#[derive(Debug, thiserror::Error)]
enum ScaleError {
    #[error("found no controllers for pod {0:?}")]
    Unknown(String),
    #[error("{0} does not implement the scale subresource")]
    NoScale(String),
    #[error(transparent)]
    Api(#[from] Error),
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        budgets: context.informers.of(),
        pods: context.informers.of(),
        deployments: context.informers.of(),
        replica_sets: context.informers.of(),
        stateful_sets: context.informers.of(),
        replication_controllers: context.informers.of(),
        queue: WorkQueue::new(),
        marked: WorkQueue::new(),
        context,
    });
    controller.budgets.synced().await;
    controller.pods.synced().await;
    controller.deployments.synced().await;
    controller.replica_sets.synced().await;
    controller.stateful_sets.synced().await;
    controller.replication_controllers.synced().await;
    let (worker, cleaner) = (controller.clone(), controller.clone());
    let work = run_workers("disruption", controller.queue.clone(), WORKERS, move |key: Key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    let clean = run_workers("stale-disruption", controller.marked.clone(), 1, move |key: Key| {
        let controller = cleaner.clone();
        async move { controller.unmark(&key).await }
    });
    let c = &controller;
    tokio::join!(
        each(&c.budgets, |change| c.queue.add(Key::of(&**change.object()))),
        each(&c.pods, |change| c.pod_changed(change)),
        each(&c.deployments, |d| c.scale_changed(d, |d| d.spec.as_ref().and_then(|s| s.replicas))),
        each(&c.replica_sets, |s| c.scale_changed(s, |s| s.spec.as_ref().and_then(|s| s.replicas))),
        each(&c.stateful_sets, |s| c.scale_changed(s, |s| s.spec.as_ref().and_then(|s| s.replicas))),
        each(&c.replication_controllers, |s| c.scale_changed(s, |s| s.spec.as_ref().and_then(|s| s.replicas))),
        work,
        clean,
    );
}

/// The pods that a budget covers.
fn covers(budget: &PodDisruptionBudget) -> LabelSelector {
    let selected = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selected.map_or_else(LabelSelector::nothing, selector)
}

impl Controller {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let old = match change {
            Change::Applied { old, .. } => old.as_deref(),
            Change::Deleted(_) => None,
        };
        for budget in self.budgets.list_namespace(&pod.namespace().unwrap_or_default()) {
            let selector = covers(&budget);
            if matches(&selector, &**pod) || old.is_some_and(|p| matches(&selector, p)) {
                self.queue.add(Key::of(&*budget));
            }
        }
        if matches!(change, Change::Applied { .. }) && plan::stale_in(pod, Timestamp::now()).is_some() {
            self.marked.add(Key::of(&**pod));
        }
    }

    fn scale_changed<K: InformerKind>(&self, change: &Change<K>, replicas: impl Fn(&K) -> Option<i32>) {
        if let Change::Applied { old: Some(old), new } = change
            && replicas(old) != replicas(new)
        {
            for budget in self.budgets.list_namespace(&new.namespace().unwrap_or_default()) {
                self.queue.add(Key::of(&*budget));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(budget) = self.budgets.get_key(key) else { return Ok(Outcome::Done) };
        let selector = covers(&budget);
        let covered: Vec<_> =
            self.pods.list_namespace(&key.namespace).into_iter().filter(|p| matches(&selector, &**p)).collect();
        let recorder = &self.context.recorder;
        if covered.is_empty() {
            recorder.event(&*budget, EventType::Normal, "NoPods", "No matching pods found");
        }
        let now = Timestamp::now();
        let scale = if plan::needs_scale(&budget) { self.scale(&budget, &covered).await } else { Ok(0) };
        let (status, next) = match scale {
            Ok(scale) => {
                let count = i32::try_from(covered.len()).unwrap_or(i32::MAX);
                let granted = plan::granted(&budget, &covered, now);
                for pod in &granted.failed {
                    let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
                    recorder.event(&**pod, EventType::Warning, "NotDeleted", message);
                }
                let status = plan::status(&budget, &covered, plan::expected(&budget, count, scale), &granted, now);
                (status, granted.recheck)
            }
            Err(ScaleError::Api(error)) => return Err(error),
            Err(error) => {
                let message = format!("Failed to calculate the number of expected pods: {error}");
                recorder.event(&*budget, EventType::Warning, "CalculateExpectedPodCountFailed", message);
                (plan::failed(&budget, &error.to_string(), now), None)
            }
        };
        if budget.status.as_ref() != Some(&status) {
            let mut updated = (*budget).clone();
            updated.status = Some(status);
            let api: Api<PodDisruptionBudget> = Api::namespaced(self.context.client.clone(), &key.namespace);
            // on condition that no eviction was granted meanwhile
            unless_gone(api.replace_status(&key.name, &PostParams::default(), &updated).await)?;
        }
        Ok(next.map_or(Outcome::Done, Outcome::After))
    }

    /// How many pods the controllers of the covered ones want together.
    async fn scale(&self, budget: &PodDisruptionBudget, covered: &[Arc<Pod>]) -> Result<i32, ScaleError> {
        let mut known: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = Vec::new();
        for pod in covered {
            let Some(owner) = controller_of(&**pod) else {
                unmanaged.push(pod.name_any());
                continue;
            };
            if !known.contains_key(&owner.uid) {
                let found = self.scale_of(&pod.namespace().unwrap_or_default(), owner).await?;
                let (uid, scale) = found.ok_or_else(|| ScaleError::Unknown(pod.name_any()))?;
                // a Deployment is meant once, however many ReplicaSets it has at the moment
                known.insert(owner.uid.clone(), if uid == owner.uid { scale } else { 0 });
                known.insert(uid, scale);
            }
        }
        if !unmanaged.is_empty() {
            let message = format!(
                "Pods selected by this PodDisruptionBudget were found to be unmanaged: {}. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                unmanaged.join(", ")
            );
            self.context.recorder.event(budget, EventType::Warning, "UnmanagedPods", message);
        }
        Ok(known.values().fold(0, |sum: i32, n| sum.saturating_add(*n)))
    }

    /// The UID of whoever decides how many pods an owner has, and the number; `None` when the owner is not there.
    async fn scale_of(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, ScaleError> {
        fn of<K: InformerKind>(
            informer: &Informer<K>,
            namespace: &str,
            owner: &OwnerReference,
            replicas: impl Fn(&K) -> Option<i32>,
        ) -> Option<(Arc<K>, i32)> {
            let object = informer.get(namespace, &owner.name).filter(|o| o.uid().as_ref() == Some(&owner.uid))?;
            let replicas = replicas(&object).unwrap_or(1);
            Some((object, replicas))
        }
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let found = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let set = of(&self.replica_sets, namespace, owner, |s| s.spec.as_ref().and_then(|s| s.replicas));
                let Some((set, replicas)) = set else { return Ok(None) };
                let deployment = crate::owners::controller_of_kind::<Deployment>(&*set)
                    .and_then(|d| of(&self.deployments, namespace, d, |d| d.spec.as_ref().and_then(|s| s.replicas)));
                Some(deployment.map_or((owner.uid.clone(), replicas), |(d, n)| (d.uid().unwrap_or_default(), n)))
            }
            ("apps", "StatefulSet") => {
                of(&self.stateful_sets, namespace, owner, |s| s.spec.as_ref().and_then(|s| s.replicas))
                    .map(|(_, n)| (owner.uid.clone(), n))
            }
            ("", "ReplicationController") => {
                of(&self.replication_controllers, namespace, owner, |s| s.spec.as_ref().and_then(|s| s.replicas))
                    .map(|(_, n)| (owner.uid.clone(), n))
            }
            _ => return self.scale_subresource(namespace, owner, group).await,
        };
        Ok(found)
    }

    /// The number that `/scale` of any other resource tells.
    async fn scale_subresource(
        &self,
        namespace: &str,
        owner: &OwnerReference,
        group: &str,
    ) -> Result<Option<(String, i32)>, ScaleError> {
        let all = crate::gc::resources(&self.context.client).await?;
        let resource = all.into_iter().find(|r| r.api.group == group && r.api.kind == owner.kind && r.namespaced);
        let Some(resource) = resource else { return Err(ScaleError::NoScale(owner.kind.clone())) };
        let url =
            format!("{}/{}/scale", edge_client::DynamicObject::url_path(&resource.api, Some(namespace)), owner.name);
        let request = http::Request::get(url).body(Vec::new()).map_err(|e| Error::Service(Box::new(e)))?;
        match self.context.client.request::<serde_json::Value>(request).await {
            Ok(scale) => {
                let replicas = scale.pointer("/spec/replicas").and_then(serde_json::Value::as_i64).unwrap_or(0);
                Ok(Some((owner.uid.clone(), i32::try_from(replicas).unwrap_or(i32::MAX))))
            }
            Err(e) if edge_client::is_not_found(&e) => Err(ScaleError::NoScale(owner.kind.clone())),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the mark off a pod that was about to be disrupted and was not.
    async fn unmark(&self, key: &Key) -> Result<Outcome, Error> {
        let pod = self.pods.get_key(key);
        let Some((pod, left)) = pod.and_then(|p| plan::stale_in(&p, Timestamp::now()).map(|left| (p, left))) else {
            return Ok(Outcome::Done);
        };
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        let condition = json!({"type": "DisruptionTarget", "status": "False", "lastTransitionTime": Timestamp::now()});
        let patch = json!({"metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()}, "status": {"conditions": [condition]}});
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        unless_gone(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(Outcome::Done)
    }
}
