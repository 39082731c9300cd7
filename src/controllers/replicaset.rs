//! ReplicaSets, and ReplicationControllers of old: so many pods of a template are kept running.

use crate::context::{Context, each};
use crate::expectations::Expectations;
use crate::owners::{claim_all, controller_of, controller_of_kind, matches, selector};
use crate::status::count;
use crate::{pod_control, pods};
use edge_api::selector::LabelSelector;
use edge_client::{Change, Error, Informer, InformerKind, Key, Outcome, Resource, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How many sets are worked on at once.
const WORKERS: usize = 4;
/// The type of the condition that pods cannot be made or deleted.
const FAILURE: &str = "ReplicaFailure";
/// No more pods than this are made or deleted before looking again.
const BURST: usize = 500;

/// What the two kinds have in common.
pub(crate) trait Replicated: InformerKind + Resource<Scope = NamespaceResourceScope> {
    /// The name of the controller in log lines.
    const NAME: &'static str;
    /// Whether the status tells how many pods are terminating.
    const COUNTS_TERMINATING: bool;
    /// How many pods are wanted; `None` when the object has no spec at all.
    fn wanted(&self) -> Option<usize>;
    /// For how long a pod must be ready to count as available.
    fn min_ready(&self) -> Duration;
    fn selector(&self) -> LabelSelector;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The status as it is.
    fn status_value(&self) -> Value;
}

fn seconds(n: Option<i32>) -> Duration {
    Duration::from_secs(n.and_then(|s| u64::try_from(s).ok()).unwrap_or(0))
}

fn number(n: Option<i32>) -> usize {
    usize::try_from(n.unwrap_or(1)).unwrap_or(0)
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COUNTS_TERMINATING: bool = true;
    fn wanted(&self) -> Option<usize> {
        self.spec.as_ref().map(|s| number(s.replicas))
    }
    fn min_ready(&self) -> Duration {
        seconds(self.spec.as_ref().and_then(|s| s.min_ready_seconds))
    }
    fn selector(&self) -> LabelSelector {
        self.spec.as_ref().map_or_else(LabelSelector::nothing, |s| selector(&s.selector))
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn status_value(&self) -> Value {
        self.status.as_ref().and_then(|s| serde_json::to_value(s).ok()).unwrap_or_default()
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COUNTS_TERMINATING: bool = false;
    fn wanted(&self) -> Option<usize> {
        self.spec.as_ref().map(|s| number(s.replicas))
    }
    fn min_ready(&self) -> Duration {
        seconds(self.spec.as_ref().and_then(|s| s.min_ready_seconds))
    }
    fn selector(&self) -> LabelSelector {
        let labels = self.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
        labels.map_or_else(LabelSelector::nothing, |l| {
            LabelSelector::from_map(l.iter().map(|(k, v)| (k.as_str(), v.as_str())))
        })
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn status_value(&self) -> Value {
        self.status.as_ref().and_then(|s| serde_json::to_value(s).ok()).unwrap_or_default()
    }
}

struct Controller<K> {
    context: Context,
    sets: Arc<Informer<K>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    expectations: Expectations,
}

/// Runs the controller of one of the two kinds.
pub(crate) async fn run<K: Replicated>(context: Context) {
    let controller = Arc::new(Controller::<K> {
        sets: context.informers.of(),
        pods: context.informers.of(),
        queue: WorkQueue::new(),
        expectations: Expectations::default(),
        context,
    });
    controller.sets.synced().await;
    controller.pods.synced().await;
    let worker = controller.clone();
    let work = run_workers(K::NAME, controller.queue.clone(), WORKERS, move |key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(
        each(&controller.sets, |change| controller.set_changed(change)),
        each(&controller.pods, |change| controller.pod_changed(change)),
        work,
    );
}

impl<K: Replicated> Controller<K> {
    fn set_changed(&self, change: &Change<K>) {
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
            && let Some(former) = controller_of_kind::<K>(&**old)
            && controller_of(&**new).map(|r| &r.uid) != Some(&former.uid)
        {
            self.queue.add(Key::new(old.namespace().unwrap_or_default(), &former.name));
        }
        match controller_of_kind::<K>(&**pod) {
            Some(owner) => {
                let key = Key::new(pod.namespace().unwrap_or_default(), &owner.name);
                self.expectations.observe(&key, change);
                self.queue.add(key);
            }
            None if controller_of(&**pod).is_none() && matches!(change, Change::Applied { .. }) => self.orphan(pod),
            None => {}
        }
    }

    /// A pod that nobody manages may be adopted by whoever selects it.
    fn orphan(&self, pod: &Pod) {
        for set in self.sets.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if matches(&set.selector(), pod) {
                self.queue.add(Key::of(&*set));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get_key(key) else { return Ok(Outcome::Done) };
        let Some(wanted) = set.wanted() else { return Ok(Outcome::Done) };
        let may_act = self.expectations.satisfied(key);
        let candidates = self.pods.list_namespace(&key.namespace);
        let owned = claim_all(&self.context.client, &*set, &set.selector(), candidates, pods::is_active).await?;
        let active: Vec<&Arc<Pod>> = owned.iter().filter(|p| pods::is_active(p)).collect();
        let mut failure = None;
        if may_act && set.meta().deletion_timestamp.is_none() {
            failure = self.manage(key, &set, &active, wanted).await;
        }
        let (mut status, next) = plan_status(&*set, &owned, wanted, failure.as_ref(), Timestamp::now());
        let current = set.status_value();
        if !may_act {
            // it counts as seen with a number that has all pods of earlier orders in it, which rollouts go by
            status["observedGeneration"] = current["observedGeneration"].clone();
        }
        crate::status::write(&self.context.client, &*set, Some(&current), status).await?;
        match (failure, next) {
            (Some(error), _) => Err(error),
            (None, Some(delay)) => Ok(Outcome::After(delay)),
            (None, None) => Ok(Outcome::Done),
        }
    }

    /// Makes or deletes pods until there are as many as wanted; gives the first error.
    async fn manage(&self, key: &Key, set: &K, active: &[&Arc<Pod>], wanted: usize) -> Option<Error> {
        if active.len() < wanted {
            let missing = (wanted - active.len()).min(BURST);
            let pod = pod_control::pod_of(set.template()?, set);
            self.expectations.expect(key, missing, []);
            let (made, error) = pod_control::slow_start(missing, async |_| {
                pod_control::create(&self.context, set, &pod).await.map(|made| self.expectations.made(key, &made))
            })
            .await;
            self.expectations.not_made(key, missing - made);
            return error;
        }
        let surplus = (active.len() - wanted).min(BURST);
        if surplus == 0 {
            return None;
        }
        let crowds = self.crowds(set);
        let crowd = |p: &Pod| pods::node(p).and_then(|n| crowds.get(n)).copied().unwrap_or(0);
        let now = Timestamp::now();
        let mut ranked = active.to_vec();
        ranked.sort_by(|a, b| pods::by_usefulness(a, b, now, crowd));
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

    /// How many active pods each node has of this set and of those with the same controller: a Deployment that is being
    /// updated should not lose the only pod of a node while another node has two.
    fn crowds(&self, set: &K) -> HashMap<String, usize> {
        let namespace = set.namespace().unwrap_or_default();
        let mut related = HashSet::from([set.uid().unwrap_or_default()]);
        if let Some(owner) = controller_of(set) {
            let siblings = self.sets.list_namespace(&namespace).into_iter();
            let siblings = siblings.filter(|s| controller_of(&**s).is_some_and(|r| r.uid == owner.uid));
            related.extend(siblings.filter_map(|s| s.uid()));
        }
        let mut crowds = HashMap::new();
        for pod in self.pods.list_namespace(&namespace) {
            if let Some(node) = pods::node(&pod)
                && pods::is_active(&pod)
                && controller_of(&*pod).is_some_and(|r| related.contains(&r.uid))
            {
                *crowds.entry(node.to_owned()).or_default() += 1;
            }
        }
        crowds
    }
}

/// The status that the pods make, and when it has to be looked at again because a pod becomes available.
fn plan_status<K: Replicated>(
    set: &K,
    owned: &[Arc<Pod>],
    wanted: usize,
    failure: Option<&Error>,
    now: Timestamp,
) -> (Value, Option<Duration>) {
    let template_labels = set.template().and_then(|t| t.metadata.as_ref()?.labels.as_ref());
    let active: Vec<_> = owned.iter().filter(|p| pods::is_active(p)).collect();
    let labeled = active
        .iter()
        .filter(|p| template_labels.into_iter().flatten().all(|(k, v)| p.labels().get(k) == Some(v)))
        .count();
    let waits: Vec<Duration> = active.iter().filter_map(|p| pods::available_in(p, set.min_ready(), now)).collect();
    let available = waits.iter().filter(|w| w.is_zero()).count();
    let mut status = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": count(labeled),
        "readyReplicas": count(waits.len()),
        "availableReplicas": count(available),
        "observedGeneration": set.meta().generation,
        "conditions": conditions(&set.status_value(), active.len(), wanted, failure, now),
    });
    if K::COUNTS_TERMINATING {
        let going = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some() && !pods::is_finished(p);
        status["terminatingReplicas"] = count(owned.iter().filter(going).count());
    }
    (status, waits.into_iter().filter(|w| !w.is_zero()).min())
}

/// The only condition of a set that is decided about here: that pods cannot be made or deleted. Both kinds have the same form.
/// What others say stays.
fn conditions(known: &Value, active: usize, wanted: usize, failure: Option<&Error>, now: Timestamp) -> Value {
    let known: Vec<ReplicaSetCondition> = serde_json::from_value(known["conditions"].clone()).unwrap_or_default();
    let others = known.iter().filter(|c| c.type_ != FAILURE).cloned();
    let own = failure.map(|error| failure_condition(&known, active < wanted, error, now));
    let all: Vec<_> = others.chain(own).collect();
    if all.is_empty() { Value::Null } else { json!(all) }
}

fn failure_condition(
    known: &[ReplicaSetCondition],
    creating: bool,
    error: &Error,
    now: Timestamp,
) -> ReplicaSetCondition {
    let reason = if creating { "FailedCreate" } else { "FailedDelete" };
    // the words of one failure differ from time to time (names are made up); only another reason is news, or the set would
    // change itself, and so be worked on, for ever
    let kept =
        known.iter().find(|c| c.type_ == FAILURE && c.status == "True" && c.reason.as_deref() == Some(reason)).cloned();
    kept.unwrap_or_else(|| ReplicaSetCondition {
        type_: FAILURE.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(error.to_string()),
        last_transition_time: Some(Time(now)),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::status::differs;

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
    fn a_failure_that_goes_on_is_no_news() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let error = |name: &str| Error::Service(format!("pods {name:?} is forbidden: exceeded quota").into());
        let (status, _) = plan_status(&set(), &[], 3, Some(&error("rs-abcde")), now);
        assert_eq!(status["conditions"][0]["reason"], "FailedCreate");
        let mut known = set();
        known.status = serde_json::from_value(status).unwrap();
        let current = known.status_value();
        let (again, _) = plan_status(&known, &[], 3, Some(&error("rs-fghij")), now);
        assert!(!differs(&current, &again), "{current} {again}");
        let (over, _) = plan_status(&known, &[], 3, None, now);
        assert!(differs(&current, &over));
    }

    #[test]
    fn what_others_say_stays() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let mut known = set();
        let condition = json!({"type": "example.com/Seen", "status": "True"});
        known.status = serde_json::from_value(json!({"replicas": 0, "conditions": [condition]})).unwrap();
        let types = |status: &Value| -> Vec<String> {
            status["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap().to_owned()).collect()
        };
        let (status, _) = plan_status(&known, &[], 3, None, now);
        assert_eq!(types(&status), ["example.com/Seen"]);
        let (status, _) = plan_status(&known, &[], 3, Some(&Error::Service("no".into())), now);
        assert_eq!(types(&status), ["example.com/Seen", FAILURE]);
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let (status, _) = plan_status(&set(), &[pod(Some(20), now)], 3, None, now);
        let current = json!({"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 4});
        assert!(!differs(&current, &status));
        assert!(differs(&json!({"replicas": 2}), &status));
    }

    #[test]
    fn a_replication_controller_is_seen_the_same_way() {
        let rc: ReplicationController = serde_json::from_value(json!({
            "metadata": {"name": "rc", "generation": 1},
            "spec": {"replicas": 2, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}}}
        }))
        .unwrap();
        let now = Timestamp::from_second(1_000_000).unwrap();
        let (status, _) = plan_status(&rc, &[pod(Some(20), now)], 2, None, now);
        assert_eq!((&status["replicas"], &status["availableReplicas"]), (&json!(1), &json!(1)));
        assert!(status.get("terminatingReplicas").is_none(), "its status has no such field");
        assert!(matches(&rc.selector(), &*pod(None, now)));
        assert!(!matches(&ReplicationController::default().selector(), &*pod(None, now)));
    }
}
