//! What extenders say about the nodes that are possible for a pod, and about the pods that would have to go for it.

use crate::cluster::{Cluster, NodeId};
use crate::decide::Verdict;
use crate::extender::{Extender, ExtenderError, Filtered, Victims};
use crate::plugins::{Plugin, Refusal};
use crate::pod::{Pending, PodInfo};
use crate::preempt::Candidate;
use edge_client::{Api, Client};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use std::collections::HashMap;
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

/// Why extenders leave no answer about who is to go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreemptError {
    #[error(transparent)]
    Extender(#[from] ExtenderError),
    #[error("a victim cannot be read")]
    Victim(#[source] edge_client::Error),
    #[error("extender {extender} wants nobody to go on node {node:?}")]
    Nobody { extender: String, node: String },
    #[error("extender {extender} wants a pod (UID {uid:?}) to go that is not on node {node:?}")]
    Stranger { extender: String, node: String, uid: String },
}

/// Leaves the candidates that all extenders agree to, with the victims that they want.
///
/// # Errors
/// When an extender that is needed gives no answer, or one that cannot hold.
pub(crate) async fn candidates(
    extenders: &[Extender],
    client: &Client,
    pod: &Pending,
    cluster: &Cluster,
    mut candidates: Vec<Candidate>,
) -> Result<Vec<Candidate>, PreemptError> {
    for extender in extenders.iter().filter(|e| e.preempts() && e.is_about(pod)) {
        if candidates.is_empty() {
            break;
        }
        let offered = offer(extender, client, cluster, &candidates).await?;
        let answer = match extender.victims(pod, offered).await {
            Ok(answer) => answer,
            Err(error) if extender.is_ignorable => {
                tracing::debug!(?extender, %error, "an extender that may be ignored is");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        candidates = agreed(extender, cluster, answer)?;
    }
    Ok(candidates)
}

/// The candidates in an extender's words.
async fn offer(
    extender: &Extender,
    client: &Client,
    cluster: &Cluster,
    candidates: &[Candidate],
) -> Result<serde_json::Map<String, Value>, PreemptError> {
    let mut offered = serde_json::Map::new();
    for candidate in candidates {
        let mut pods = Vec::new();
        for victim in &candidate.victims {
            pods.push(if extender.knows_nodes() { json!({"UID": victim.uid}) } else { whole(client, victim).await? });
        }
        let name = cluster.node(candidate.node).name.to_string();
        offered.insert(name, json!({"Pods": pods, "NumPDBViolations": candidate.violations}));
    }
    Ok(offered)
}

/// A pod as the API has it, which nobody here remembers.
async fn whole(client: &Client, pod: &PodInfo) -> Result<Value, PreemptError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let found = api.get(&pod.key.name).await.map_err(PreemptError::Victim)?;
    serde_json::to_value(found).map_err(|e| PreemptError::Victim(edge_client::Error::SerdeError(e)))
}

fn agreed(
    extender: &Extender,
    cluster: &Cluster,
    answer: HashMap<String, Victims>,
) -> Result<Vec<Candidate>, PreemptError> {
    let mut agreed = Vec::new();
    for (node, victims) in answer {
        let id = cluster.id(&node);
        if victims.uids.is_empty() {
            if extender.is_ignorable {
                continue;
            }
            return Err(PreemptError::Nobody { extender: extender.url().to_owned(), node });
        }
        let find = |uid: String| {
            let found = id.and_then(|id| cluster.node(id).pods.values().find(|p| p.uid == uid)).cloned();
            found.ok_or_else(|| PreemptError::Stranger { extender: extender.url().to_owned(), node: node.clone(), uid })
        };
        let pods = victims.uids.into_iter().map(find).collect::<Result<Vec<_>, _>>()?;
        if let Some(id) = id {
            agreed.push(Candidate::new(id, pods, victims.violations));
        }
    }
    // an answer has no order: equals are to be decided in the same way each time
    agreed.sort_by_key(|c| c.node);
    Ok(agreed)
}
