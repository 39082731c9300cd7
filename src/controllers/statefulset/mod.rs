//! StatefulSets: numbered pods with claims of their own, made, removed and updated in order.

mod identity;
mod plan;

use crate::context::{Context, each, unless_changed, unless_gone};
use crate::history::{History, template_of};
use crate::owners::{claim_all, controller_of, controller_of_kind, matches, selector};
use crate::status::count;
use crate::{pod_control, pods};
use edge_client::{
    Api, Change, Error, EventType, Informer, Key, Outcome, Patch, PatchParams, PostParams, ResourceExt, WorkQueue,
    run_workers,
};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use plan::{Plan, Step, View};
use serde_json::{Value, json};
use std::sync::Arc;

const WORKERS: usize = 4;

struct Controller {
    context: Context,
    sets: Arc<Informer<StatefulSet>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    revisions: Arc<Informer<ControllerRevision>>,
    queue: Arc<WorkQueue<Key>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        sets: context.informers.of(),
        pods: context.informers.of(),
        claims: context.informers.of(),
        revisions: context.informers.of(),
        queue: WorkQueue::new(),
        context,
    });
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.claims.synced().await;
    controller.revisions.synced().await;
    let worker = controller.clone();
    let work = run_workers("statefulset", controller.queue.clone(), WORKERS, move |key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(
        each(&controller.sets, |change| controller.queue.add(Key::of(&**change.object()))),
        each(&controller.pods, |change| controller.pod_changed(change)),
        each(&controller.claims, |change| controller.claim_changed(change)),
        work,
    );
}

/// The two templates between which an update goes, with the names of their revisions.
struct Versions<'a> {
    current: (&'a str, &'a PodTemplateSpec),
    updated: (&'a str, &'a PodTemplateSpec),
}

impl Controller {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        if let Change::Applied { old: Some(old), new } = change
            && let Some(former) = controller_of_kind::<StatefulSet>(&**old)
            && controller_of(&**new).map(|r| &r.uid) != Some(&former.uid)
        {
            self.queue.add(Key::new(&namespace, &former.name));
        }
        if let Some(owner) = controller_of_kind::<StatefulSet>(&**pod) {
            self.queue.add(Key::new(namespace, &owner.name));
        } else if controller_of(&**pod).is_none() && matches!(change, Change::Applied { .. }) {
            for set in self.sets.list_namespace(&namespace) {
                if set.spec.as_ref().is_some_and(|s| matches(&selector(&s.selector), &**pod)) {
                    self.queue.add(Key::of(&*set));
                }
            }
        }
    }

    /// A pod may wait for the claim of an earlier one to go.
    fn claim_changed(&self, change: &Change<PersistentVolumeClaim>) {
        let Change::Deleted(claim) = change else { return };
        let name = claim.name_any();
        for set in self.sets.list_namespace(&claim.namespace().unwrap_or_default()) {
            let start = identity::start(&set);
            let end = start.saturating_add(identity::replicas(&set));
            let infix = format!("-{}-", set.name_any());
            if name.contains(&infix) && (start..end).any(|n| identity::claim_names(&set, n).contains(&name)) {
                self.queue.add(Key::of(&*set));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get_key(key) else { return Ok(Outcome::Done) };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        let selector = selector(&spec.selector);
        let history = History::of(&self.context, &self.revisions, &*set, &selector).await?;
        let candidates = self.pods.list_namespace(&key.namespace);
        let is_member = |p: &Pod| identity::ordinal(&set, p).is_some();
        let mut members = claim_all(&self.context.client, &*set, &selector, candidates, is_member).await?;
        members.retain(|p| is_member(p));

        let known = set.status.as_ref();
        let collisions = known.and_then(|s| s.collision_count).unwrap_or(0);
        let (updated, collisions) = history.current(&spec.template, collisions).await?;
        let current = known
            .and_then(|s| s.current_revision.as_ref())
            .and_then(|name| history.revisions.iter().find(|r| r.name_any() == *name))
            .unwrap_or(&updated);
        let current_template = template_of(current).unwrap_or_else(|| spec.template.clone());
        let (current_name, updated_name) = (current.name_any(), updated.name_any());
        let versions =
            Versions { current: (&current_name, &current_template), updated: (&updated_name, &spec.template) };
        let (plan, mut status) = {
            let view = View {
                set: &set,
                current: &current_name,
                updated: &updated_name,
                stale_claim: &|n| self.known_claims(&set, n).iter().any(|c| identity::is_stale(&set, n, c)),
                misowned_claims: &|n, pod| {
                    self.known_claims(&set, n).iter().any(|c| identity::owners(&set, pod, n, c).is_some())
                },
                now: Timestamp::now(),
            };
            let plan = plan::plan(&view, &members);
            let status = status_of(&view, &members, plan.outgoing);
            (plan, status)
        };
        let result = self.carry_out(&set, &versions, &plan).await;
        status["collisionCount"] = collisions.into();
        crate::status::write(&self.context.client, &*set, known, status).await?;
        result?;
        let in_use = |r: &ControllerRevision| {
            let name = r.name_any();
            name == current_name || name == updated_name || members.iter().any(|p| plan::revision(p) == name)
        };
        history.truncate(spec.revision_history_limit, in_use, |_| false).await?;
        Ok(plan.next.map_or(Outcome::Done, Outcome::After))
    }

    fn known_claims(&self, set: &StatefulSet, ordinal: i32) -> Vec<Arc<PersistentVolumeClaim>> {
        let namespace = set.namespace().unwrap_or_default();
        identity::claim_names(set, ordinal).iter().filter_map(|name| self.claims.get(&namespace, name)).collect()
    }

    async fn carry_out(&self, set: &StatefulSet, versions: &Versions<'_>, plan: &Plan) -> Result<(), Error> {
        for group in &plan.groups {
            let work = async |i: usize| match group.get(i) {
                Some(step) => self.act(set, versions, step).await,
                None => Ok(()),
            };
            if let (_, Some(error)) = pod_control::slow_start(group.len(), work).await {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn act(&self, set: &StatefulSet, versions: &Versions<'_>, step: &Step) -> Result<(), Error> {
        match step {
            Step::Create { ordinal, updated } => {
                let (revision, template) = if *updated { versions.updated } else { versions.current };
                self.create(set, &identity::pod(set, template, revision, *ordinal), *ordinal).await
            }
            Step::EnsureClaims { ordinal } => self.ensure_claims(set, *ordinal).await,
            Step::Repair { ordinal, pod } => {
                self.ensure_claims(set, *ordinal).await?;
                if !identity::is_labelled(set, *ordinal, pod) {
                    let patch = json!({"metadata": {"uid": pod.uid(), "labels": identity::labels(set, *ordinal)}});
                    let api: Api<Pod> = self.api(set);
                    unless_changed(api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?;
                }
                self.own_claims(set, *ordinal, pod).await
            }
            Step::OwnClaims { ordinal, pod } => self.own_claims(set, *ordinal, pod).await,
            Step::Delete(pod) => {
                let result = pod_control::remove(&self.context.client, pod).await;
                self.tell(set, "delete", &pod.name_any(), &result);
                result
            }
        }
        .inspect_err(
            |error| tracing::debug!(set = %Key::of(set), pod = plan::subject(set, step), %error, "step failed"),
        )
    }

    fn api<K>(&self, set: &StatefulSet) -> Api<K>
    where
        K: edge_client::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.context.client.clone(), &set.namespace().unwrap_or_default())
    }

    async fn create(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result<(), Error> {
        self.ensure_claims(set, ordinal).await?;
        let api: Api<Pod> = self.api(set);
        let name = pod.name_any();
        let result = api.create(&PostParams::default(), pod).await;
        if let Err(error) = &result
            && edge_client::is_conflict(error)
        {
            // an earlier round made it, and the cache has not seen it yet
            let live = unless_gone(api.get(&name).await)?;
            if live.is_some_and(|p| controller_of(&p).map(|r| &r.uid) == set.metadata.uid.as_ref()) {
                return Ok(());
            }
        }
        self.tell(set, "create", &name, &result);
        let made = result?;
        self.own_claims(set, ordinal, &made).await
    }

    async fn ensure_claims(&self, set: &StatefulSet, ordinal: i32) -> Result<(), Error> {
        let api: Api<PersistentVolumeClaim> = self.api(set);
        let namespace = set.namespace().unwrap_or_default();
        for claim in identity::claims(set, ordinal) {
            let name = claim.name_any();
            if self.claims.get(&namespace, &name).is_some() {
                continue;
            }
            let result = match api.create(&PostParams::default(), &claim).await {
                Err(e) if edge_client::is_conflict(&e) => continue,
                other => other,
            };
            let pod = identity::pod_name(set, ordinal);
            let set_name = set.name_any();
            let (kind, reason, message) = match &result {
                Ok(_) => {
                    let message = format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                    (EventType::Normal, "SuccessfulCreate", message)
                }
                Err(e) => {
                    let message =
                        format!("create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {e}");
                    (EventType::Warning, "FailedCreate", message)
                }
            };
            self.context.recorder.event(set, kind, reason, message);
            result?;
        }
        Ok(())
    }

    /// Gives the claims of a pod the owners that the retention policy asks for.
    async fn own_claims(&self, set: &StatefulSet, ordinal: i32, pod: &Pod) -> Result<(), Error> {
        let api: Api<PersistentVolumeClaim> = self.api(set);
        for claim in self.known_claims(set, ordinal) {
            if let Some(owners) = identity::owners(set, pod, ordinal, &claim) {
                let patch = json!({"metadata": {"uid": claim.uid(), "resourceVersion": claim.resource_version(),
                    "ownerReferences": owners}});
                unless_changed(api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?;
            }
        }
        Ok(())
    }

    fn tell<T>(&self, set: &StatefulSet, verb: &str, pod: &str, result: &Result<T, Error>) {
        let name = set.name_any();
        let reason = |how: &str| if verb == "create" { format!("{how}Create") } else { format!("{how}Delete") };
        let (kind, reason, message) = match result {
            Ok(_) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {name} successful");
                (EventType::Normal, reason("Successful"), message)
            }
            Err(error) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {name} failed error: {error}");
                (EventType::Warning, reason("Failed"), message)
            }
        };
        self.context.recorder.event(set, kind, &reason, message);
    }
}

/// The status that the pods make.
fn status_of(view: &View<'_>, members: &[Arc<Pod>], outgoing: usize) -> Value {
    let set = view.set;
    let seconds = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let min_ready = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let ready: Vec<_> = members.iter().filter(|p| pods::phase(p) == "Running" && pods::is_ready(p)).collect();
    let is_available = |p: &&&Arc<Pod>| pods::available_in(p, min_ready, view.now).is_some_and(|w| w.is_zero());
    let of = |name: &str| {
        members.iter().filter(|p| p.metadata.deletion_timestamp.is_none() && plan::revision(p) == name).count()
    };
    let (updated, total) = (of(view.updated), members.len());
    let mut current = (view.current, of(view.current).saturating_sub(outgoing));
    let wanted = usize::try_from(identity::replicas(set)).unwrap_or(0);
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()).and_then(|s| s.type_.as_deref());
    if strategy != Some("OnDelete") && updated == wanted && ready.len() == wanted && total == wanted {
        current = (view.updated, updated);
    }
    json!({
        "observedGeneration": set.metadata.generation,
        "replicas": total,
        "readyReplicas": count(ready.len()),
        "availableReplicas": ready.iter().filter(is_available).count(),
        "currentReplicas": count(current.1),
        "updatedReplicas": count(updated),
        "currentRevision": current.0,
        "updateRevision": view.updated,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_update_is_complete_when_all_are_new_and_ready() {
        let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "db", "generation": 3},
            "spec": {"replicas": 2, "serviceName": "", "selector": {}, "template": {}}}))
        .unwrap();
        let pod = |n: i32, revision: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": format!("db-{n}"), "labels": {"controller-revision-hash": revision}},
                    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
                )
                .unwrap(),
            )
        };
        let view = View {
            set: &set,
            current: "old",
            updated: "new",
            stale_claim: &|_| false,
            misowned_claims: &|_, _| false,
            now: Timestamp::UNIX_EPOCH,
        };
        let half = status_of(&view, &[pod(0, "old"), pod(1, "new")], 0);
        assert_eq!((&half["currentRevision"], &half["updateRevision"]), (&json!("old"), &json!("new")));
        assert_eq!((&half["currentReplicas"], &half["updatedReplicas"]), (&json!(1), &json!(1)));
        let done = status_of(&view, &[pod(0, "new"), pod(1, "new")], 0);
        assert_eq!((&done["currentRevision"], &done["currentReplicas"]), (&json!("new"), &json!(2)));
        assert_eq!((&done["readyReplicas"], &done["availableReplicas"]), (&json!(2), &json!(2)));
    }
}
