//! Pods that nobody else removes: those of nodes that are gone, those that were deleted before they had a node, those that
//! are being deleted on a node declared out of service, and the oldest of too many finished ones.

use crate::context::{Context, each, unless_gone};
use crate::pods;
use edge_client::{
    Api, Change, DeleteParams, Error, Informer, Key, Outcome, Patch, PatchParams, Preconditions, ResourceExt,
    WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// So many finished pods may stay (Kubernetes' default).
const THRESHOLD: usize = 12_500;
/// A node must be gone for so long before its pods go (Kubernetes' value): it may only have been made anew.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// One pod that is being deleted.
    Pod(Key),
    /// The pods of a node that is not there.
    Node(String),
    /// The finished pods.
    Finished,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Pod(key) => write!(f, "pod {key}"),
            Work::Node(name) => write!(f, "node {name}"),
            Work::Finished => f.write_str("finished pods"),
        }
    }
}

/// In which order finished pods go: evicted ones first, then the oldest.
type Rank = (bool, Option<Timestamp>, Key);

struct Collector {
    context: Context,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    queue: Arc<WorkQueue<Work>>,
    finished: Mutex<Finished>,
    missing_since: Mutex<HashMap<String, Instant>>,
}

/// The finished pods, in the order in which they would go.
#[derive(Default)]
struct Finished {
    by_rank: BTreeSet<Rank>,
    ranks: HashMap<Key, Rank>,
}

impl Finished {
    fn set(&mut self, key: &Key, rank: Option<Rank>) {
        if let Some(old) = self.ranks.remove(key) {
            self.by_rank.remove(&old);
        }
        if let Some(rank) = rank {
            self.by_rank.insert(rank.clone());
            self.ranks.insert(key.clone(), rank);
        }
    }

    /// Those that are too many.
    fn surplus(&self, threshold: usize) -> Vec<Key> {
        let surplus = self.by_rank.len().saturating_sub(threshold);
        self.by_rank.iter().take(surplus).map(|(_, _, key)| key.clone()).collect()
    }
}

fn rank(pod: &Pod) -> Option<Rank> {
    let evicted = pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    pods::is_finished(pod).then(|| (!evicted, created, Key::of(pod)))
}

pub(crate) async fn run(context: Context) {
    let collector = Arc::new(Collector {
        pods: context.informers.of(),
        nodes: context.informers.of(),
        queue: WorkQueue::new(),
        finished: Mutex::default(),
        missing_since: Mutex::default(),
        context,
    });
    collector.nodes.synced().await;
    collector.pods.synced().await;
    let worker = collector.clone();
    let work = run_workers("pod-garbage-collector", collector.queue.clone(), 1, move |work: Work| {
        let collector = worker.clone();
        async move { collector.reconcile(&work).await }
    });
    tokio::join!(
        each(&collector.nodes, |change| collector.node_changed(change)),
        each(&collector.pods, |change| collector.pod_changed(change)),
        work,
    );
}

impl Collector {
    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let name = node.name_any();
        match change {
            Change::Deleted(_) => self.node_missing(&name),
            Change::Applied { .. } => {
                self.missing_since.lock().remove(&name);
                if is_out_of_service(node) {
                    for pod in self.pods.list().iter().filter(|p| is_doomed(p, Some(node))) {
                        self.queue.add(Work::Pod(Key::of(&**pod)));
                    }
                }
            }
        }
    }

    fn node_missing(&self, name: &str) {
        self.missing_since.lock().entry(name.to_owned()).or_insert_with(Instant::now);
        self.queue.add_after(Work::Node(name.to_owned()), QUARANTINE);
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let key = Key::of(&**pod);
        if let Change::Deleted(_) = change {
            self.finished.lock().set(&key, None);
            return;
        }
        {
            let mut finished = self.finished.lock();
            finished.set(&key, rank(pod));
            if finished.by_rank.len() > THRESHOLD {
                self.queue.add(Work::Finished);
            }
        }
        match pods::node(pod) {
            Some(name) => match self.nodes.get("", name) {
                None => self.node_missing(name),
                Some(node) if is_doomed(pod, Some(&node)) => self.queue.add(Work::Pod(key)),
                Some(_) => {}
            },
            None if is_doomed(pod, None) => self.queue.add(Work::Pod(key)),
            None => {}
        }
    }

    async fn reconcile(&self, work: &Work) -> Result<Outcome, Error> {
        match work {
            Work::Finished => {
                let surplus = self.finished.lock().surplus(THRESHOLD);
                for pod in surplus.iter().filter_map(|k| self.pods.get_key(k)) {
                    self.remove(&pod, None).await?;
                }
                Ok(Outcome::Done)
            }
            Work::Pod(key) => {
                let Some(pod) = self.pods.get_key(key) else { return Ok(Outcome::Done) };
                let node = pods::node(&pod).and_then(|n| self.nodes.get("", n));
                if is_doomed(&pod, node.as_deref()) {
                    self.remove(&pod, None).await?;
                }
                Ok(Outcome::Done)
            }
            Work::Node(name) => self.collect_node(name).await,
        }
    }

    async fn collect_node(&self, name: &str) -> Result<Outcome, Error> {
        let Some(since) = self.missing_since.lock().get(name).copied() else { return Ok(Outcome::Done) };
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        // the cache may be behind, and what goes now does not come back
        let api: Api<Node> = Api::all(self.context.client.clone());
        if unless_gone(api.get(name).await)?.is_some() {
            self.missing_since.lock().remove(name);
            return Ok(Outcome::Done);
        }
        let orphans: Vec<Arc<Pod>> = self.pods.list().into_iter().filter(|p| pods::node(p) == Some(name)).collect();
        for pod in orphans {
            self.remove(&pod, Some("PodGC: node no longer exists")).await?;
        }
        self.missing_since.lock().remove(name);
        Ok(Outcome::Done)
    }

    /// Removes a pod at once. One that did not end by itself has failed, and says so to whoever counts its result.
    async fn remove(&self, pod: &Pod, disrupted: Option<&str>) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        let name = pod.name_any();
        if !pods::is_finished(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = disrupted {
                status["conditions"] = json!([pods::disruption_target("DeletionByPodGC", message, Timestamp::now())]);
            }
            let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": status}));
            if unless_gone(api.patch_status(&name, &PatchParams::default(), &patch).await)?.is_none() {
                return Ok(());
            }
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        crate::context::unless_changed(api.delete(&name, &params).await)?;
        Ok(())
    }
}

/// Whether a pod that is being deleted has no node that would end it.
fn is_doomed(pod: &Pod, node: Option<&Node>) -> bool {
    if pod.metadata.deletion_timestamp.is_none() {
        return false;
    }
    match (pods::node(pod), node) {
        (None, _) => true,
        (Some(name), Some(node)) => node.metadata.name.as_deref() == Some(name) && is_out_of_service(node),
        (Some(_), None) => false,
    }
}

/// Whether an administrator has declared a node, that is not ready either, to be down.
fn is_out_of_service(node: &Node) -> bool {
    let ready = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let tainted = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE);
    !ready && tainted
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::Value;

    fn pod(name: &str, phase: &str, reason: &str, second: i64) -> Pod {
        let created = Timestamp::from_second(second).unwrap();
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "creationTimestamp": created},
            "status": {"phase": phase, "reason": reason}}))
        .unwrap()
    }

    #[test]
    fn evicted_and_then_the_oldest_finished_pods_go() {
        let mut finished = Finished::default();
        for p in [
            pod("old", "Succeeded", "", 1),
            pod("young", "Failed", "", 3),
            pod("evicted", "Failed", "Evicted", 4),
            pod("running", "Running", "", 0),
            pod("middle", "Failed", "", 2),
        ] {
            finished.set(&Key::of(&p), rank(&p));
        }
        let surplus = |f: &Finished, n| f.surplus(n).into_iter().map(|k| k.name).collect::<Vec<_>>();
        assert_eq!(surplus(&finished, 1), ["evicted", "old", "middle"]);
        assert!(surplus(&finished, 4).is_empty());
        finished.set(&Key::new("ns", "evicted"), None);
        assert_eq!(surplus(&finished, 2), ["old"]);
    }

    #[test]
    fn who_is_removed_by_force() {
        let node = |ready: &str, taint: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n"},
                "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let pod = |node: Value, deleted: bool| -> Pod {
            let at = if deleted { json!("2026-01-01T00:00:00Z") } else { Value::Null };
            serde_json::from_value(json!({"metadata": {"name": "p", "deletionTimestamp": at},
                "spec": {"nodeName": node, "containers": []}}))
            .unwrap()
        };
        let n = |name: &str| json!(name);
        for (p, on, want) in [
            (pod(Value::Null, true), None, true),
            (pod(Value::Null, false), None, false),
            (pod(n("n"), true), None, false),
            (pod(n("n"), true), Some(node("Unknown", OUT_OF_SERVICE)), true),
            (pod(n("n"), false), Some(node("Unknown", OUT_OF_SERVICE)), false),
            (pod(n("n"), true), Some(node("True", OUT_OF_SERVICE)), false),
            (pod(n("n"), true), Some(node("Unknown", "other")), false),
        ] {
            assert_eq!(is_doomed(&p, on.as_ref()), want, "{p:?} {on:?}");
        }
    }
}
