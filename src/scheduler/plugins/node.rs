//! Rules that look at one node alone: NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, NodePorts.

use super::{Plugin, Refusal, normalize};
use crate::cluster::NodeState;
use crate::pod::Pending;
use edge_client::placement::{node_allowed, selector_matches, term_matches, tolerates};
use k8s_openapi::api::core::v1::{Node, NodeAffinity, Taint};
use std::sync::LazyLock;

/// The taint that comes with cordoning: who tolerates it may go to a cordoned node.
static CORDONED: LazyLock<Taint> = LazyLock::new(|| Taint {
    key: "node.kubernetes.io/unschedulable".into(),
    effect: "NoSchedule".into(),
    ..Taint::default()
});

fn is_tolerated(pod: &Pending, taint: &Taint) -> bool {
    pod.spec().tolerations.as_deref().unwrap_or_default().iter().any(|t| tolerates(t, taint))
}

/// Plugin NodeUnschedulable.
///
/// # Errors
/// When the node is cordoned.
pub(crate) fn unschedulable(pod: &Pending, state: &NodeState) -> Result<(), Refusal> {
    if state.is_cordoned() && !is_tolerated(pod, &CORDONED) {
        return Err(Refusal::lasting(Plugin::NodeUnschedulable, "node(s) were unschedulable"));
    }
    Ok(())
}

/// Plugin TaintToleration.
///
/// # Errors
/// When the node has a taint that the pod does not tolerate.
pub(crate) fn taints(pod: &Pending, state: &NodeState) -> Result<(), Refusal> {
    let binding = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    match state.taints().iter().filter(binding).find(|t| !is_tolerated(pod, t)) {
        Some(t) => {
            let value = t.value.as_deref().unwrap_or_default();
            let reason = format!("node(s) had untolerated taint {{{}: {value}}}", t.key);
            Err(Refusal::lasting(Plugin::TaintToleration, reason))
        }
        None => Ok(()),
    }
}

/// Plugin NodeAffinity. `added` is what the configuration asks of all pods.
///
/// # Errors
/// When the pod's or the added affinity does not allow the node.
pub(crate) fn affinity(pod: &Pending, node: &Node, added: Option<&NodeAffinity>) -> Result<(), Refusal> {
    let required = added.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    if required.is_some_and(|s| !selector_matches(s, node)) {
        let reason = "node(s) didn't match scheduler-enforced node affinity";
        return Err(Refusal::lasting(Plugin::NodeAffinity, reason));
    }
    if !node_allowed(&pod.pod, node) {
        return Err(Refusal::lasting(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector"));
    }
    Ok(())
}

/// Plugin NodePorts.
///
/// # Errors
/// When a host port of the pod is taken.
pub(crate) fn ports(pod: &Pending, state: &NodeState) -> Result<(), Refusal> {
    if state.is_taken(&pod.info.ports) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Err(Refusal::open(Plugin::NodePorts, reason));
    }
    Ok(())
}

/// Fewer taints that ask pods to stay away are better.
pub(crate) fn taint_scores(pod: &Pending, nodes: &[&NodeState]) -> Vec<i64> {
    let unwanted = |state: &&NodeState| {
        let soft = state.taints().iter().filter(|t| t.effect == "PreferNoSchedule");
        soft.filter(|t| !is_tolerated(pod, t)).count() as i64
    };
    let mut scores: Vec<i64> = nodes.iter().map(unwanted).collect();
    normalize(&mut scores, true);
    scores
}

/// The nodes that the pod's affinity prefers are better; `None`: it prefers none.
pub(crate) fn affinity_scores(pod: &Pending, nodes: &[&NodeState], added: Option<&NodeAffinity>) -> Option<Vec<i64>> {
    let own = pod.spec().affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let preferred = |a: &'_ NodeAffinity| a.preferred_during_scheduling_ignored_during_execution.clone();
    let terms: Vec<_> = [own, added].into_iter().flatten().filter_map(preferred).flatten().collect();
    if terms.is_empty() {
        return None;
    }
    let of = |state: &&NodeState| {
        let Some(node) = state.node.as_deref() else { return 0 };
        // an empty preference is one of every node
        let wanted = |t: &k8s_openapi::api::core::v1::NodeSelectorTerm| {
            (t.match_expressions.is_none() && t.match_fields.is_none()) || term_matches(t, node)
        };
        terms.iter().filter(|t| wanted(&t.preference)).map(|t| i64::from(t.weight)).sum()
    };
    let mut scores: Vec<i64> = nodes.iter().map(of).collect();
    normalize(&mut scores, false);
    Some(scores)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::cluster::Cluster;
    use crate::testing::{cluster, pending, pending_pod};
    use serde_json::json;

    fn state(c: &Cluster) -> &NodeState {
        c.nodes().next().unwrap().1
    }

    #[test]
    fn cordons_and_taints() {
        let c = cluster(&[json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true}})]);
        let with = |tolerations| pending(json!({"tolerations": tolerations}));
        let refused = unschedulable(&with(json!([])), state(&c)).unwrap_err();
        assert_eq!(refused.reasons, ["node(s) were unschedulable"]);
        assert!(unschedulable(&with(json!([{"operator": "Exists"}])), state(&c)).is_ok());
        let taint = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]);
        let c = cluster(&[json!({"metadata": {"name": "n"}, "spec": {"taints": taint}})]);
        let refused = taints(&with(json!([])), state(&c)).unwrap_err();
        assert_eq!(refused.reasons, ["node(s) had untolerated taint {k: v}"]);
        assert!(taints(&with(json!([{"key": "k", "operator": "Exists"}])), state(&c)).is_ok());
    }

    #[test]
    fn ports_clash_by_address_and_protocol() {
        let mut c = cluster(&[json!({"metadata": {"name": "n"}})]);
        let port = |address: &str, protocol: &str| {
            let port = json!({"containerPort": 1, "hostPort": 80, "hostIP": address, "protocol": protocol});
            json!({"containers": [{"name": "c", "ports": [port]}]})
        };
        let id = c.id("n").unwrap();
        c.assume(pending_pod("first", port("127.0.0.1", "TCP")).info, id);
        for (address, protocol, free) in
            [("127.0.0.1", "TCP", false), ("127.0.0.2", "TCP", true), ("127.0.0.1", "UDP", true), ("", "TCP", false)]
        {
            let pod = pending_pod("second", port(address, protocol));
            assert_eq!(ports(&pod, state(&c)).is_ok(), free, "{address} {protocol}");
        }
    }

    #[test]
    fn preferences() {
        let c = cluster(&[
            json!({"metadata": {"name": "a", "labels": {"disk": "ssd"}}}),
            json!({"metadata": {"name": "b"}, "spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}}),
        ]);
        let nodes: Vec<&NodeState> = c.nodes().map(|(_, s, _)| s).collect();
        let pod = pending(json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}));
        assert_eq!(affinity_scores(&pod, &nodes, None), Some(vec![100, 0]));
        assert_eq!(taint_scores(&pod, &nodes), [100, 0]);
        assert_eq!(affinity_scores(&pending(json!({})), &nodes, None), None);
    }
}
