//! Eviction by taint: a pod on a node with a `NoExecute` taint goes, at once or when it no longer tolerates the taint.

use crate::context::{Context, each};
use crate::{pod_control, pods};
use edge_client::placement::tolerates;
use edge_client::{Change, Error, EventType, Informer, Key, Outcome, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const WORKERS: usize = 8;

struct Controller {
    context: Context,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    /// Pods that tolerate their node's taints for some time: their UID, and since when.
    tolerating: Mutex<HashMap<Key, (String, Instant)>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        nodes: context.informers.of(),
        pods: context.informers.of(),
        queue: WorkQueue::new(),
        tolerating: Mutex::default(),
        context,
    });
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let worker = controller.clone();
    let work = run_workers("taint-eviction", controller.queue.clone(), WORKERS, move |key: Key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(
        each(&controller.nodes, |change| controller.node_changed(change)),
        each(&controller.pods, |change| controller.pod_changed(change)),
        work,
    );
}

fn evicting(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "NoExecute").collect()
}

/// For how long a pod may stay with these taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    For(Duration),
}

fn stay(pod: &Pod, taints: &[&Taint]) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut shortest = Stay::ForEver;
    for taint in taints {
        // of several that match, the first counts as it does for the scheduler; the shortest of all taints decides
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return Stay::For(Duration::ZERO);
        }
        for seconds in matching.filter_map(|t| t.toleration_seconds) {
            let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            shortest = match shortest {
                Stay::For(known) => Stay::For(known.min(time)),
                Stay::ForEver => Stay::For(time),
            };
        }
    }
    shortest
}

impl Controller {
    fn node_changed(&self, change: &Change<Node>) {
        let (old, new) = match change {
            Change::Applied { old, new } => (old.as_deref().map(evicting).unwrap_or_default(), evicting(new)),
            // the pods of a node that is gone are the pod garbage collector's
            Change::Deleted(_) => return,
        };
        if old == new {
            return;
        }
        let name = change.object().name_any();
        for pod in self.pods.list().iter().filter(|p| pods::node(p) == Some(name.as_str())) {
            self.queue.add(Key::of(&**pod));
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if let Change::Deleted(_) = change {
            self.tolerating.lock().remove(&Key::of(&**pod));
            return;
        }
        let node = pods::node(pod).and_then(|n| self.nodes.get("", n));
        if node.is_some_and(|n| !evicting(&n).is_empty()) {
            self.queue.add(Key::of(&**pod));
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let pod = self.pods.get_key(key).filter(|p| p.metadata.deletion_timestamp.is_none() && !pods::is_finished(p));
        let node = pod.as_ref().and_then(|p| pods::node(p)).and_then(|n| self.nodes.get("", n));
        let (Some(pod), Some(node)) = (pod, node) else {
            self.tolerating.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let uid = pod.uid().unwrap_or_default();
        let taints = evicting(&node);
        let time = match stay(&pod, &taints) {
            Stay::ForEver => {
                if self.tolerating.lock().remove(key).is_some() {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.context.recorder.event(&*pod, EventType::Normal, "TaintManagerEviction", message);
                }
                return Ok(Outcome::Done);
            }
            Stay::For(time) => time,
        };
        let since = {
            let mut tolerating = self.tolerating.lock();
            let entry = tolerating.entry(key.clone()).or_insert_with(|| (uid.clone(), Instant::now()));
            if entry.0 != uid {
                *entry = (uid, Instant::now());
            }
            entry.1
        };
        let left = time.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        pod_control::evict(&self.context, &pod, "TaintManagerEviction", ("DeletionByTaintManager", "Taint manager"))
            .await?;
        self.tolerating.lock().remove(key);
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn how_long_a_pod_stays() {
        let taint =
            |key: &str| -> Taint { serde_json::from_value(json!({"key": key, "effect": "NoExecute"})).unwrap() };
        let (a, b) = (taint("a"), taint("b"));
        let exists =
            |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        for (tolerations, want) in [
            (json!([]), Stay::For(Duration::ZERO)),
            (json!([exists("a", Value::Null)]), Stay::For(Duration::ZERO)),
            (json!([{"operator": "Exists"}]), Stay::ForEver),
            (json!([exists("a", json!(30)), exists("b", Value::Null)]), Stay::For(Duration::from_secs(30))),
            (json!([exists("a", json!(30)), exists("b", json!(10))]), Stay::For(Duration::from_secs(10))),
            (json!([exists("a", json!(-5)), exists("b", Value::Null)]), Stay::For(Duration::ZERO)),
            (json!([{"key": "a", "value": "x"}, exists("b", Value::Null)]), Stay::For(Duration::ZERO)),
        ] {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap();
            assert_eq!(stay(&pod, &[&a, &b]), want, "{tolerations}");
        }
        assert_eq!(stay(&Pod::default(), &[]), Stay::ForEver);
    }
}
