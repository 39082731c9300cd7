//! Deployments: ReplicaSets that follow a template, update it step by step, and remember how it was.

mod plan;
mod revisions;
mod status;
mod told;

use crate::context::Context;
use crate::owners::{claim_all, controller_of, controller_of_kind, controller_reference, matches, selector};
use crate::pods;
use crate::written::Written;
use edge_client::{
    Api, Change, DeleteParams, Error, EventType, Informer, Key, Outcome, Patch, PatchParams, PostParams, ResourceExt,
    WorkQueue, run_workers,
};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use plan::Scale;
use revisions::REVISION;
use serde_json::json;
use std::sync::Arc;
use told::Told;

const WORKERS: usize = 4;

struct Controller {
    context: Context,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    written: Written<ReplicaSet>,
    told: Told,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        deployments: context.informers.of(),
        sets: context.informers.of(),
        pods: context.informers.of(),
        queue: WorkQueue::new(),
        written: Written::default(),
        told: Told::default(),
        context,
    });
    let (mut deployments, mut sets) = (controller.deployments.subscribe(), controller.sets.subscribe());
    let mut pods = controller.pods.subscribe();
    controller.deployments.synced().await;
    controller.sets.synced().await;
    controller.pods.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = deployments.recv() => controller.queue.add(Key::of(&**change.object())),
                Some(change) = sets.recv() => controller.set_changed(&change),
                Some(change) = pods.recv() => controller.pod_changed(&change),
                else => return,
            }
        }
    };
    let worker = controller.clone();
    let work = run_workers("deployment", controller.queue.clone(), WORKERS, move |key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(watch, work);
}

impl Controller {
    fn set_changed(&self, change: &Change<ReplicaSet>) {
        let set = change.object();
        self.written.seen(change);
        if matches!(change, Change::Deleted(_)) {
            self.told.gone(set);
        }
        let namespace = set.namespace().unwrap_or_default();
        if let Change::Applied { old: Some(old), new } = change
            && let Some(former) = controller_of_kind::<Deployment>(&**old)
            && controller_of(&**new).map(|r| &r.uid) != Some(&former.uid)
        {
            self.queue.add(Key::new(&namespace, &former.name));
        }
        if let Some(owner) = controller_of_kind::<Deployment>(&**set) {
            self.queue.add(Key::new(namespace, &owner.name));
        } else if controller_of(&**set).is_none() && matches!(change, Change::Applied { .. }) {
            for d in self.deployments.list_namespace(&namespace) {
                if d.spec.as_ref().is_some_and(|s| matches(&selector(&s.selector), &**set)) {
                    self.queue.add(Key::of(&*d));
                }
            }
        }
    }

    /// Notes a ReplicaSet as this controller has written it.
    fn note(&self, set: &Arc<ReplicaSet>) {
        self.written.note(set, || self.sets.get_key(&Key::of(&**set)));
    }

    /// Recreate waits for the last pod of the old ReplicaSets.
    fn pod_changed(&self, change: &Change<Pod>) {
        let Change::Deleted(pod) = change else { return };
        let Some(owner) = controller_of_kind::<ReplicaSet>(&**pod) else { return };
        let namespace = pod.namespace().unwrap_or_default();
        let Some(set) = self.sets.get(&namespace, &owner.name) else { return };
        if let Some(d) = controller_of_kind::<Deployment>(&*set) {
            self.queue.add(Key::new(namespace, &d.name));
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(deployment) = self.deployments.get_key(key) else { return Ok(Outcome::Done) };
        if deployment.spec.is_none() {
            return Ok(Outcome::Done);
        }
        let sets = self.claim_sets(&deployment).await?;
        let now = Timestamp::now();
        if deployment.metadata.deletion_timestamp.is_some() {
            self.write_status(&deployment, &sets, None, now).await?;
            return Ok(Outcome::Done);
        }
        let paused = plan::is_paused(&deployment);
        let mut new = revisions::newest(&deployment, &sets);
        if let Some(set) = &new {
            new = Some(self.sync_revision(&deployment, &sets, set).await?);
        } else if !paused && self.may_create(&deployment, &sets) {
            match self.create_set(&deployment, &sets).await? {
                Some(made) => new = Some(made),
                None => return Ok(Outcome::Done),
            }
        }
        let scaling = paused || plan::is_scaling(&deployment, &sets);
        let old_pods = self.old_pods(&sets, new.as_deref());
        let is_new = |set: &Arc<ReplicaSet>| new.as_ref().filter(|new| new.uid() == set.uid());
        let current: Vec<_> = sets.iter().map(|set| is_new(set).unwrap_or(set).clone()).collect();
        let judged = self.told.cautious(&current);
        let newest = judged.iter().find(|set| is_new(set).is_some()).or(new.as_ref());
        let steps = plan::steps(&deployment, newest.map(|set| &**set), &judged, scaling, old_pods);
        let scaled = self.scale_all(&deployment, &steps).await?;
        if plan::is_complete(&deployment, new.as_deref(), &sets) || paused {
            self.clean_up(&deployment, new.as_deref(), &sets).await?;
        }
        // a step just taken shows in the ReplicaSets' next change, which brings us back
        let next = if scaled && new.is_none() {
            None
        } else {
            self.write_status(&deployment, &sets, new.as_deref(), now).await?
        };
        Ok(next.map_or(Outcome::Done, Outcome::After))
    }

    /// Recreate makes the new ReplicaSet only when the pods of the old ones are gone.
    fn may_create(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
        !plan::is_recreate(deployment) || (plan::are_gone(&self.told.cautious(sets)) && self.old_pods(sets, None) == 0)
    }

    /// How many pods of the ReplicaSets other than `new` have not ended.
    fn old_pods(&self, sets: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>) -> usize {
        let uids: Vec<String> =
            sets.iter().filter(|s| new.is_none_or(|n| n.uid() != s.uid())).filter_map(|s| s.uid()).collect();
        let Some(namespace) = sets.first().and_then(|s| s.namespace()) else { return 0 };
        self.pods
            .list_namespace(&namespace)
            .iter()
            .filter(|p| !pods::is_finished(p) && controller_of(&***p).is_some_and(|r| uids.contains(&r.uid)))
            .count()
    }

    async fn claim_sets(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let Some(spec) = &deployment.spec else { return Ok(Vec::new()) };
        let candidates = self.sets.list_namespace(&deployment.namespace().unwrap_or_default());
        let candidates = candidates.into_iter().map(|set| self.written.newest(set)).collect();
        let selector = selector(&spec.selector);
        let mut owned = claim_all(&self.context.client, deployment, &selector, candidates, |_| true).await?;
        owned.sort_by_key(|s| (s.metadata.creation_timestamp.clone().map(|t| t.0), s.name_any()));
        Ok(owned)
    }

    /// Creates the ReplicaSet of the present template. `None`: its name was taken by another, the next try has another.
    async fn create_set(&self, d: &Deployment, sets: &[Arc<ReplicaSet>]) -> Result<Option<Arc<ReplicaSet>>, Error> {
        let Some(spec) = &d.spec else { return Ok(None) };
        let collisions = d.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let hash = revisions::template_hash(&spec.template, collisions);
        let revision = revisions::highest(sets) + 1;
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", d.name_any())),
                namespace: d.namespace(),
                owner_references: Some(vec![controller_reference(d)]),
                annotations: Some(revisions::annotations_of(d, revision)),
                ..ObjectMeta::default()
            },
            spec: Some(revisions::set_spec(spec, &hash)),
            status: None,
        };
        let labels = set.spec.as_ref().and_then(|s| s.template.as_ref()?.metadata.as_ref()?.labels.clone());
        set.metadata.labels = labels;
        let wanted = plan::initial_replicas(d, &self.told.cautious(sets));
        if let Some(s) = &mut set.spec {
            s.replicas = Some(wanted);
        }
        plan::annotate_replicas(d, set.metadata.annotations.get_or_insert_default());
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &d.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), &set).await {
            Ok(made) => {
                self.set_revision(d, revision).await?;
                if wanted > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {wanted}", made.name_any());
                    self.context.recorder.event(d, EventType::Normal, "ScalingReplicaSet", message);
                }
                Ok(Some(Arc::new(made)))
            }
            Err(error) if edge_client::is_conflict(&error) => {
                self.name_taken(d, &api, &set, error).await?;
                Ok(None)
            }
            Err(error) => {
                let message = format!("Failed to create new replica set {:?}: {error}", set.name_any());
                self.context.recorder.event(d, EventType::Warning, "ReplicaSetCreateError", message);
                Err(error)
            }
        }
    }

    /// The name exists: either it is ours and the cache has not seen it yet, or the hash collides.
    async fn name_taken(
        &self,
        d: &Deployment,
        api: &Api<ReplicaSet>,
        set: &ReplicaSet,
        error: Error,
    ) -> Result<(), Error> {
        let known = api.get(&set.name_any()).await?;
        let ours = controller_of(&known).map(|r| &r.uid) == d.metadata.uid.as_ref();
        if ours && revisions::same_template(&known, d) {
            return Err(error);
        }
        let collisions = d.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let patch = json!({"status": {"collisionCount": collisions + 1}});
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), &d.namespace().unwrap_or_default());
        api.patch_status(&d.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// Gives the ReplicaSet of the present template the highest revision, and the deployment's annotations.
    async fn sync_revision(
        &self,
        d: &Deployment,
        sets: &[Arc<ReplicaSet>],
        new: &Arc<ReplicaSet>,
    ) -> Result<Arc<ReplicaSet>, Error> {
        let others: Vec<_> = sets.iter().filter(|s| s.uid() != new.uid()).cloned().collect();
        let wanted = (revisions::highest(&others) + 1).max(revisions::revision(&**new));
        let mut set = new.clone();
        if let Some(annotations) = revisions::changed_annotations(d, new, wanted) {
            let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &d.namespace().unwrap_or_default());
            let patch = json!({"metadata": {"annotations": annotations}});
            set = Arc::new(api.patch(&new.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?);
            self.note(&set);
        }
        if revisions::revision(d) != wanted {
            self.set_revision(d, wanted).await?;
        }
        Ok(set)
    }

    async fn set_revision(&self, d: &Deployment, revision: i64) -> Result<(), Error> {
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), &d.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        api.patch(&d.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// Carries the steps out; says whether there were any.
    async fn scale_all(&self, d: &Deployment, steps: &[Scale]) -> Result<bool, Error> {
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &d.namespace().unwrap_or_default());
        let mut scaled = false;
        for step in steps {
            let mut annotations = std::collections::BTreeMap::new();
            plan::annotate_replicas(d, &mut annotations);
            let patch = json!({"metadata": {"annotations": annotations, "resourceVersion": step.resource_version},
                               "spec": {"replicas": step.to}});
            let made = api.patch(&step.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            self.told.note(&made, step.from, step.to);
            self.note(&Arc::new(made));
            if step.from != step.to {
                scaled = true;
                let way = if step.to > step.from { "up" } else { "down" };
                let message = format!("Scaled {way} replica set {} from {} to {}", step.name, step.from, step.to);
                self.context.recorder.event(d, EventType::Normal, "ScalingReplicaSet", message);
            }
        }
        Ok(scaled)
    }

    /// Removes the oldest ReplicaSets beyond the history limit.
    async fn clean_up(&self, d: &Deployment, new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>]) -> Result<(), Error> {
        let limit = d.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        let Ok(limit) = usize::try_from(limit) else { return Ok(()) };
        let mut old: Vec<_> = sets
            .iter()
            .filter(|s| new.is_none_or(|n| n.uid() != s.uid()) && s.metadata.deletion_timestamp.is_none())
            .collect();
        old.sort_by_key(|s| revisions::revision(&***s));
        let surplus = old.len().saturating_sub(limit);
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &d.namespace().unwrap_or_default());
        for set in old.into_iter().take(surplus) {
            let idle = set.status.as_ref().is_none_or(|s| s.replicas == 0) && plan::spec_replicas(set) == 0;
            if idle && set.metadata.generation <= set.status.as_ref().and_then(|s| s.observed_generation) {
                match api.delete(&set.name_any(), &DeleteParams::default()).await {
                    Err(e) if !edge_client::is_not_found(&e) => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Writes the status when it changed; gives the time until the progress deadline has to be checked.
    async fn write_status(
        &self,
        d: &Deployment,
        sets: &[Arc<ReplicaSet>],
        new: Option<&ReplicaSet>,
        now: Timestamp,
    ) -> Result<Option<std::time::Duration>, Error> {
        let (status, next) = status::plan(d, new, sets, now);
        crate::status::write(&self.context.client, d, d.status.as_ref(), status).await?;
        Ok(next)
    }
}
