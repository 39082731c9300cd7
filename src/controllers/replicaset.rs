//! ReplicaSets keep so many pods of a template running.

use crate::context::Context;
use crate::expectations::Expectations;
use crate::owners::{Claim, adoption, claim, controller_of, controller_of_kind, matches, release, selector};
use crate::{pod_control, pods};
use edge_client::{
    Api, Change, Error, Informer, Key, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How many ReplicaSets are worked on at once.
const WORKERS: usize = 4;
/// No more pods than this are made or deleted before looking again.
const BURST: usize = 500;

struct Controller {
    context: Context,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    expectations: Expectations,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        sets: context.informers.of(),
        pods: context.informers.of(),
        queue: WorkQueue::new(),
        expectations: Expectations::default(),
        context,
    });
    let (mut sets, mut pods) = (controller.sets.subscribe(), controller.pods.subscribe());
    controller.sets.synced().await;
    controller.pods.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = sets.recv() => controller.set_changed(&change),
                Some(change) = pods.recv() => controller.pod_changed(&change),
                else => return,
            }
        }
    };
    let worker = controller.clone();
    let work = run_workers("replicaset", controller.queue.clone(), WORKERS, move |key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(watch, work);
}

impl Controller {
    fn set_changed(&self, change: &Change<ReplicaSet>) {
        let key = Key::of(&**change.object());
        if matches!(change, Change::Deleted(_)) {
            self.expectations.forget(&key);
        }
        self.queue.add(key);
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        // a released pod is its former owner's business too
        if let Change::Applied { old: Some(old), new } = change
            && let Some(former) = controller_of_kind::<ReplicaSet>(&**old)
            && controller_of(&**new).map(|r| &r.uid) != Some(&former.uid)
        {
            self.queue.add(Key::new(old.namespace().unwrap_or_default(), &former.name));
        }
        match controller_of_kind::<ReplicaSet>(&**pod) {
            Some(owner) => {
                let key = Key::new(pod.namespace().unwrap_or_default(), &owner.name);
                match change {
                    Change::Applied { old: None, .. } => self.expectations.created(&key),
                    Change::Deleted(_) => self.expectations.deleted(&key, &pod.uid().unwrap_or_default()),
                    Change::Applied { .. } => {}
                }
                if pod.metadata.deletion_timestamp.is_some() {
                    self.expectations.deleted(&key, &pod.uid().unwrap_or_default());
                }
                self.queue.add(key);
            }
            None if controller_of(&**pod).is_none() && matches!(change, Change::Applied { .. }) => self.orphan(pod),
            None => {}
        }
    }

    /// A pod that nobody manages may be adopted by whoever selects it.
    fn orphan(&self, pod: &Pod) {
        for set in self.sets.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            let spec = set.spec.as_ref();
            if spec.is_some_and(|s| matches(&selector(&s.selector), pod)) {
                self.queue.add(Key::of(&*set));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get_key(key) else { return Ok(Outcome::Done) };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        let may_act = self.expectations.satisfied(key);
        let owned = self.claim_pods(&set).await?;
        let active: Vec<&Arc<Pod>> = owned.iter().filter(|p| pods::is_active(p)).collect();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        let mut failure = None;
        if may_act && set.metadata.deletion_timestamp.is_none() {
            failure = self.manage(key, &set, &active, wanted).await;
        }
        let (status, next) = plan_status(&set, &owned, wanted, failure.as_ref(), Timestamp::now());
        self.write_status(&set, status).await?;
        match (failure, next) {
            (Some(error), _) => Err(error),
            (None, Some(delay)) => Ok(Outcome::After(delay)),
            (None, None) => Ok(Outcome::Done),
        }
    }

    /// The pods of a set, after adopting and releasing.
    async fn claim_pods(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, Error> {
        let Some(spec) = &set.spec else { return Ok(Vec::new()) };
        let selector = selector(&spec.selector);
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut owned = Vec::new();
        for pod in self.pods.list_namespace(&namespace) {
            let patch = match claim(set, &selector, &*pod) {
                Claim::Owned => {
                    owned.push(pod);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt if !pods::is_active(&pod) => continue,
                Claim::Adopt => adoption(set, &*pod),
                Claim::Release => release(set, &*pod),
            };
            match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {}
                // it changed or went meanwhile: its own change brings us back
                Err(e) if edge_client::is_not_found(&e) || edge_client::is_conflict(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(owned)
    }

    /// Makes or deletes pods until there are as many as wanted; gives the first error.
    async fn manage(&self, key: &Key, set: &ReplicaSet, active: &[&Arc<Pod>], wanted: usize) -> Option<Error> {
        if active.len() < wanted {
            let missing = (wanted - active.len()).min(BURST);
            let template = set.spec.as_ref().and_then(|s| s.template.as_ref())?;
            let pod = pod_control::pod_of(template, set);
            self.expectations.expect(key, missing, []);
            let (made, error) = pod_control::slow_start(missing, async |_| {
                pod_control::create(&self.context, set, &pod).await.map(drop)
            })
            .await;
            for _ in made..missing {
                self.expectations.created(key);
            }
            return error;
        }
        let surplus = (active.len() - wanted).min(BURST);
        if surplus == 0 {
            return None;
        }
        let mut ranked = active.to_vec();
        ranked.sort_by(|a, b| pods::by_usefulness(a, b));
        ranked.truncate(surplus);
        self.expectations.expect(key, 0, ranked.iter().filter_map(|p| p.uid()));
        let deletions = ranked.iter().map(|pod| async {
            let result = pod_control::delete(&self.context, set, pod).await;
            if result.is_err() {
                self.expectations.deleted(key, &pod.uid().unwrap_or_default());
            }
            result
        });
        futures::future::join_all(deletions).await.into_iter().find_map(Result::err)
    }

    async fn write_status(&self, set: &ReplicaSet, status: Value) -> Result<(), Error> {
        let current = set.status.as_ref().and_then(|s| serde_json::to_value(s).ok()).unwrap_or_default();
        if !differs(&current, &status) {
            return Ok(());
        }
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &set.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"status": status}));
        match api.patch_status(&set.name_any(), &PatchParams::default(), &patch).await {
            Err(e) if !edge_client::is_not_found(&e) => Err(e),
            _ => Ok(()),
        }
    }
}

/// Whether a merge patch would change anything; `null` stands for an absent (zero) field.
pub(crate) fn differs(current: &Value, patch: &Value) -> bool {
    match (current, patch) {
        (Value::Object(c), Value::Object(p)) => p.iter().any(|(k, v)| differs(c.get(k).unwrap_or(&Value::Null), v)),
        (c, p) if p.is_null() => !(c.is_null() || *c == json!(0)),
        (c, p) => c != p,
    }
}

/// A count for a merge patch of a status: zero removes the field, as Kubernetes omits it.
pub(crate) fn count(n: usize) -> Value {
    if n == 0 { Value::Null } else { n.into() }
}

/// The status that the pods make, and when it has to be looked at again because a pod becomes available.
fn plan_status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    wanted: usize,
    failure: Option<&Error>,
    now: Timestamp,
) -> (Value, Option<Duration>) {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    let min_ready = Duration::from_secs(min_ready);
    let template_labels = spec.and_then(|s| s.template.as_ref()).and_then(|t| t.metadata.as_ref()?.labels.as_ref());
    let active: Vec<_> = owned.iter().filter(|p| pods::is_active(p)).collect();
    let labeled = active
        .iter()
        .filter(|p| template_labels.into_iter().flatten().all(|(k, v)| p.labels().get(k) == Some(v)))
        .count();
    let waits: Vec<Duration> = active.iter().filter_map(|p| pods::available_in(p, min_ready, now)).collect();
    let available = waits.iter().filter(|w| w.is_zero()).count();
    let terminating = owned.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::is_finished(p)).count();
    let status = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": count(labeled),
        "readyReplicas": count(waits.len()),
        "availableReplicas": count(available),
        "terminatingReplicas": count(terminating),
        "observedGeneration": set.metadata.generation,
        "conditions": conditions(set, active.len(), wanted, failure, now),
    });
    (status, waits.into_iter().filter(|w| !w.is_zero()).min())
}

/// The only condition of a ReplicaSet: that pods cannot be made or deleted.
fn conditions(set: &ReplicaSet, active: usize, wanted: usize, failure: Option<&Error>, now: Timestamp) -> Value {
    let known = set.status.as_ref().and_then(|s| s.conditions.as_ref());
    let kept = known.into_iter().flatten().find(|c| c.type_ == "ReplicaFailure");
    let Some(error) = failure else { return Value::Null };
    let reason = if active < wanted { "FailedCreate" } else { "FailedDelete" };
    let condition = ReplicaSetCondition {
        type_: "ReplicaFailure".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(error.to_string()),
        last_transition_time: kept.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
    };
    json!([condition])
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn set() -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "rs", "generation": 4},
            "spec": {"replicas": 3, "minReadySeconds": 10, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}
        }))
        .unwrap()
    }

    fn pod(ready_for: Option<i64>, now: Timestamp) -> Arc<Pod> {
        let since = Timestamp::from_second(now.as_second() - ready_for.unwrap_or(0)).unwrap();
        let status = if ready_for.is_some() { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn status_counts_and_the_next_look() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let pods = [pod(None, now), pod(Some(4), now), pod(Some(20), now)];
        let (status, next) = plan_status(&set(), &pods, 3, None, now);
        assert_eq!(status["replicas"], 3);
        assert_eq!(status["readyReplicas"], 2);
        assert_eq!(status["availableReplicas"], 1);
        assert_eq!(status["observedGeneration"], 4);
        assert_eq!(next, Some(Duration::from_secs(6)));
        let (status, next) = plan_status(&set(), &[], 3, None, now);
        assert_eq!((&status["replicas"], &status["readyReplicas"]), (&json!(0), &Value::Null));
        assert_eq!(next, None);
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let (status, _) = plan_status(&set(), &[pod(Some(20), now)], 3, None, now);
        let current = json!({"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 4});
        assert!(!differs(&current, &status));
        assert!(differs(&json!({"replicas": 2}), &status));
    }
}
