//! For how long kubelets may go on using what they have read: the more nodes there are, the longer. Kubelets of edge are told of
//! changes and need no such time; others, and people, look for the annotation.

use crate::context::{Context, each, unless_gone};
use edge_client::{Api, Change, Error, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// For so many nodes at least and at most, so many seconds. Steps overlap, so that one node more or less does not change all others.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

pub(crate) async fn run(context: Context) {
    let nodes = context.informers.of::<Node>();
    let api: Api<Node> = Api::all(context.client.clone());
    nodes.synced().await;
    let (queue, step) = (WorkQueue::<String>::new(), Mutex::new(0));
    let watch = each(&nodes, |change| {
        // the number of nodes changes with these alone
        if matches!(change, Change::Applied { old: None, .. } | Change::Deleted(_)) {
            let mut step = step.lock();
            let next = next_step(*step, nodes.list().len());
            if std::mem::replace(&mut *step, next) != next {
                nodes.list().iter().for_each(|node| queue.add(node.name_any()));
            }
        }
        queue.add(change.object().name_any());
    });
    let work = run_workers("node-ttl", queue.clone(), 2, |name: String| {
        let (api, node, seconds) = (api.clone(), nodes.get("", &name), STEPS[*step.lock()].2.to_string());
        async move {
            if node.is_some_and(|node| node.annotations().get(ANNOTATION) != Some(&seconds)) {
                let patch = Patch::Merge(json!({"metadata": {"annotations": {ANNOTATION: seconds}}}));
                unless_gone(api.patch(&name, &PatchParams::default(), &patch).await)?;
            }
            Ok::<_, Error>(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

/// The step for so many nodes, when another one held before.
fn next_step(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        for (step, nodes, want) in [
            (0, 0, 0),
            (0, 100, 0),
            (0, 101, 1),
            (1, 90, 1),
            (1, 89, 0),
            (0, 5000, 4),
            (4, 1800, 4),
            (4, 1799, 3),
            (4, 1, 0),
            (2, 450, 2),
            (2, 1001, 3),
        ] {
            assert_eq!(next_step(step, nodes), want, "{step} {nodes}");
        }
    }
}
