//! What extenders say about the nodes that are possible for a pod.

use crate::cluster::{Cluster, NodeId};
use crate::decide::Verdict;
use crate::extender::{Extender, ExtenderError, Filtered};
use crate::plugins::{Plugin, Refusal};
use crate::pod::Pending;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;

fn objects(cluster: &Cluster, nodes: &[NodeId]) -> Vec<Arc<Node>> {
    nodes.iter().filter_map(|id| cluster.node(*id).node.clone()).collect()
}

/// Leaves the nodes that all extenders let the pod on; why the others are not among them.
///
/// # Errors
/// When an extender that is needed gives no answer.
pub(crate) async fn possible(
    extenders: &[Extender],
    pod: &Pending,
    cluster: &Cluster,
    nodes: &mut Vec<NodeId>,
) -> Result<Verdict, ExtenderError> {
    let mut verdict = Verdict::default();
    for extender in extenders.iter().filter(|e| e.is_about(pod)) {
        if nodes.is_empty() {
            break;
        }
        match extender.filter(pod, &objects(cluster, nodes)).await {
            Ok(Some(filtered)) => nodes.retain(|id| match refusal(&filtered, &cluster.node(*id).name) {
                Some(refusal) => {
                    verdict.refusals.push((*id, refusal));
                    false
                }
                None => true,
            }),
            Ok(None) => {}
            Err(error) if extender.is_ignorable => {
                tracing::debug!(?extender, %error, "an extender that may be ignored is");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(verdict)
}

fn refusal(filtered: &Filtered, name: &str) -> Option<Refusal> {
    if let Some(reason) = filtered.failed_for_good.get(name) {
        return Some(Refusal::lasting(Plugin::Extender, reason.clone()));
    }
    if let Some(reason) = filtered.failed.get(name) {
        return Some(Refusal::open(Plugin::Extender, reason.clone()));
    }
    (!filtered.names.contains(name)).then(|| Refusal::open(Plugin::Extender, "node(s) were refused by an extender"))
}

/// Adds what extenders think of nodes to their scores. One that gives no answer has no say.
pub(crate) async fn score(
    extenders: &[Extender],
    pod: &Pending,
    cluster: &Cluster,
    nodes: &[NodeId],
    totals: &mut [i64],
) {
    for extender in extenders.iter().filter(|e| e.is_about(pod)) {
        match extender.scores(pod, &objects(cluster, nodes)).await {
            Ok(scores) => {
                for (total, id) in totals.iter_mut().zip(nodes) {
                    *total += scores.get(&*cluster.node(*id).name).copied().unwrap_or(0);
                }
            }
            Err(error) => tracing::debug!(?extender, %error, "an extender has no say"),
        }
    }
}
