//! DaemonSets: one pod on every node that fits.

mod plan;

use crate::context::{Context, each};
use crate::expectations::Expectations;
use crate::history::{History, POD_LABEL, hash_of};
use crate::owners::{claim_all, controller_of, controller_of_kind, matches, selector};
use crate::pod_control;
use crate::status::count;
use edge_client::{Change, Error, EventType, Informer, Key, Outcome, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use plan::{Plan, View};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const WORKERS: usize = 4;
/// No more pods than this are made or deleted before looking again.
const BURST: usize = 250;
/// How long a node that fails pods is left alone after the first failure, and at most (Kubernetes' values).
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

struct Controller {
    context: Context,
    sets: Arc<Informer<DaemonSet>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    revisions: Arc<Informer<ControllerRevision>>,
    queue: Arc<WorkQueue<Key>>,
    expectations: Expectations,
    pauses: Mutex<HashMap<(String, String), Pause>>,
}

/// How a set fares on a node that fails its pods.
#[derive(Clone, Copy, Debug)]
struct Pause {
    since: Instant,
    length: Duration,
}

impl Pause {
    /// Whether the next failed pod may be deleted now, and what the pause then becomes; else how long it still takes.
    fn next(known: Option<Self>, now: Instant) -> Result<Self, Duration> {
        let Some(known) = known else { return Ok(Self { since: now, length: FIRST_PAUSE }) };
        let elapsed = now.duration_since(known.since);
        if elapsed < known.length {
            return Err(known.length - elapsed);
        }
        // a node that was well for long starts anew
        let length = if elapsed > 2 * LONGEST_PAUSE { FIRST_PAUSE } else { (2 * known.length).min(LONGEST_PAUSE) };
        Ok(Self { since: now, length })
    }
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        sets: context.informers.of(),
        pods: context.informers.of(),
        nodes: context.informers.of(),
        revisions: context.informers.of(),
        queue: WorkQueue::new(),
        expectations: Expectations::default(),
        pauses: Mutex::default(),
        context,
    });
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.revisions.synced().await;
    let worker = controller.clone();
    let work = run_workers("daemonset", controller.queue.clone(), WORKERS, move |key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(
        each(&controller.sets, |change| controller.set_changed(change)),
        each(&controller.pods, |change| controller.pod_changed(change)),
        each(&controller.nodes, |change| controller.node_changed(change)),
        work,
    );
}

impl Controller {
    fn set_changed(&self, change: &Change<DaemonSet>) {
        let set = change.object();
        let key = Key::of(&**set);
        if matches!(change, Change::Deleted(_)) {
            self.expectations.forget(&key);
            let uid = set.uid().unwrap_or_default();
            self.pauses.lock().retain(|(of, _), _| *of != uid);
        }
        self.queue.add(key);
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        if let Change::Applied { old: Some(old), new } = change
            && let Some(former) = controller_of_kind::<DaemonSet>(&**old)
            && controller_of(&**new).map(|r| &r.uid) != Some(&former.uid)
        {
            self.queue.add(Key::new(&namespace, &former.name));
        }
        if let Some(owner) = controller_of_kind::<DaemonSet>(&**pod) {
            let key = Key::new(namespace, &owner.name);
            self.expectations.observe(&key, change);
            self.queue.add(key);
        } else if controller_of(&**pod).is_none() && matches!(change, Change::Applied { .. }) {
            for set in self.sets.list_namespace(&namespace) {
                if set.spec.as_ref().is_some_and(|s| matches(&selector(&s.selector), &**pod)) {
                    self.queue.add(Key::of(&*set));
                }
            }
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        if let Change::Applied { old: Some(old), new } = change {
            let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
            if old.metadata.labels == new.metadata.labels && taints(old) == taints(new) {
                return;
            }
        }
        for set in self.sets.list() {
            self.queue.add(Key::of(&*set));
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.sets.get_key(key) else { return Ok(Outcome::Done) };
        let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let selector = selector(&spec.selector);
        if selector.is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.context.recorder.event(&*set, EventType::Warning, "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let history = History::of(&self.context, &self.revisions, &*set, &selector).await?;
        let (current, collisions) = history.current(&spec.template, collisions).await?;
        let hash = hash_of(&current);
        let Some(template) = plan::pod(&set, hash) else { return Ok(Outcome::Done) };
        let nodes = self.nodes.list();
        let now = Timestamp::now();
        let view = View { set: &set, hash, nodes: &nodes, pod: &template, now };

        let may_act = self.expectations.satisfied(key);
        let candidates = self.pods.list_namespace(&key.namespace);
        let mut owned = claim_all(&self.context.client, &*set, &selector, candidates, |_| true).await?;
        owned.sort_by_key(|p| p.name_any());
        let by_node = plan::by_node(&owned);
        let (mut result, mut pause) = (Ok(()), None);
        if may_act {
            let mut steps = plan::manage(&view, &by_node);
            pause = self.pace(&set, &mut steps);
            if steps.create.is_empty() && steps.delete.is_empty() && !view.is_on_delete() {
                steps = plan::update(&view, &by_node);
            }
            result = self.carry_out(key, &set, &template, &steps).await;
        }
        let (counts, next) = plan::counts(&view, &by_node);
        let status = json!({
            "observedGeneration": set.metadata.generation,
            "desiredNumberScheduled": counts.desired,
            "currentNumberScheduled": counts.current,
            "numberMisscheduled": counts.misplaced,
            "numberReady": counts.ready,
            "updatedNumberScheduled": count(counts.updated),
            "numberAvailable": count(counts.available),
            "numberUnavailable": count(counts.desired - counts.available),
            "collisionCount": if collisions > 0 { json!(collisions) } else { json!(null) },
        });
        crate::status::write(&self.context.client, &*set, set.status.as_ref(), status).await?;
        result?;
        let live =
            |r: &ControllerRevision| owned.iter().any(|p| p.labels().get(POD_LABEL).is_some_and(|h| h == hash_of(r)));
        let is_current = |r: &ControllerRevision| r.metadata.name == current.metadata.name;
        history.truncate(spec.revision_history_limit, is_current, live).await?;
        Ok([pause, next].into_iter().flatten().min().map_or(Outcome::Done, Outcome::After))
    }

    /// Moves the ended pods that may go now to those to be deleted; says when the others may.
    fn pace(&self, set: &DaemonSet, steps: &mut Plan) -> Option<Duration> {
        let uid = set.uid().unwrap_or_default();
        let mut soonest: Option<Duration> = None;
        for (node, pod, failed) in std::mem::take(&mut steps.ended) {
            let name = pod.name_any();
            if !failed {
                let message =
                    format!("Found succeeded daemon pod {} on node {node}, will try to delete it", Key::of(&*pod));
                self.context.recorder.event(set, EventType::Normal, "SucceededDaemonPod", message);
                steps.delete.push(pod);
                continue;
            }
            let mut pauses = self.pauses.lock();
            let id = (uid.clone(), node);
            match Pause::next(pauses.get(&id).copied(), Instant::now()) {
                Ok(pause) => {
                    let message = format!("Found failed daemon pod {name} on node {}, will try to kill it", id.1);
                    pauses.insert(id, pause);
                    self.context.recorder.event(set, EventType::Warning, "FailedDaemonPod", message);
                    steps.delete.push(pod);
                }
                Err(wait) => soonest = Some(soonest.map_or(wait, |s| s.min(wait))),
            }
        }
        soonest
    }

    async fn carry_out(&self, key: &Key, set: &DaemonSet, template: &Pod, steps: &Plan) -> Result<(), Error> {
        let create = steps.create.get(..steps.create.len().min(BURST)).unwrap_or_default();
        let delete = steps.delete.get(..steps.delete.len().min(BURST)).unwrap_or_default();
        if create.is_empty() && delete.is_empty() {
            return Ok(());
        }
        self.expectations.expect(key, create.len(), delete.iter().filter_map(|p| p.uid()));
        let (made, failed) = pod_control::slow_start(create.len(), async |i| match create.get(i) {
            Some(node) => {
                let pod = plan::bound(template, node);
                pod_control::create(&self.context, set, &pod).await.map(|made| self.expectations.made(key, &made))
            }
            None => Ok(()),
        })
        .await;
        self.expectations.not_made(key, create.len() - made);
        let deletions = delete.iter().map(|pod| async {
            let result = pod_control::delete(&self.context, set, pod).await;
            if result.is_err() {
                self.expectations.deleted(key, &pod.uid().unwrap_or_default());
            }
            result
        });
        let deleted = futures::future::join_all(deletions).await;
        failed.into_iter().chain(deleted.into_iter().filter_map(Result::err)).next().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_nodes_are_left_alone_for_longer_and_longer() {
        let start = Instant::now();
        let Ok(first) = Pause::next(None, start) else { panic!("the first goes at once") };
        assert_eq!(
            Pause::next(Some(first), start + Duration::from_millis(400)).map(drop),
            Err(Duration::from_millis(600))
        );
        let Ok(second) = Pause::next(Some(first), start + Duration::from_secs(1)) else { panic!("its time has come") };
        assert_eq!(second.length, Duration::from_secs(2));
        let long = Pause { since: start, length: LONGEST_PAUSE };
        assert_eq!(Pause::next(Some(long), start + LONGEST_PAUSE).map(|p| p.length), Ok(LONGEST_PAUSE));
        assert_eq!(Pause::next(Some(long), start + 3 * LONGEST_PAUSE).map(|p| p.length), Ok(FIRST_PAUSE));
    }
}
