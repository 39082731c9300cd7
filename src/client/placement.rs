//! Which nodes a pod may be on: node selectors, node affinity, taints. Scheduler and controllers must agree about it.

use crate::ResourceExt;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

fn requirement_matches(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let listed = |v: &str| values.iter().any(|x| x == v);
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = |f: fn(i64, i64) -> bool| matches!((value.and_then(number), values.first().and_then(|v| number(v))), (Some(a), Some(b)) if f(a, b));
    match r.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => value.is_none_or(|v| !listed(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|a, b| a > b),
        "Lt" => compared(|a, b| a < b),
        _ => false,
    }
}

/// Whether a node satisfies all requirements of a term; an empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_matches(r, node.labels().get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| {
            let value = (r.key == "metadata.name").then(|| node.metadata.name.as_deref().unwrap_or_default());
            requirement_matches(r, value)
        })
}

/// Whether a node satisfies any of the terms.
pub fn selector_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|t| term_matches(t, node))
}

/// Whether the pod's own node selector and required node affinity allow the node.
pub fn node_allowed(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = spec.node_selector.iter().flatten().all(|(k, v)| node.labels().get(k) == Some(v));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    labels && required.is_none_or(|s| selector_matches(s, node))
}

/// Whether a toleration is one for the taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().filter(|e| !e.is_empty()).is_none_or(|e| e == taint.effect);
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value = exists || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    effect && value && (key == taint.key || (key.is_empty() && exists))
}

/// The taints of a node with one of the effects that the pod does not tolerate.
pub fn untolerated<'a>(pod: &Pod, node: &'a Node, effects: &[&str]) -> Vec<&'a Taint> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints
        .iter()
        .filter(|t| effects.contains(&t.effect.as_str()) && !tolerations.iter().any(|o| tolerates(o, t)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn node() -> Node {
        serde_json::from_value(json!({"metadata": {"name": "a", "labels": {"zone": "z1", "cpus": "8"}},
            "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}))
        .unwrap()
    }

    #[test]
    fn node_selector_operators() {
        let matches = |r: serde_json::Value| {
            let term: NodeSelectorTerm = serde_json::from_value(json!({"matchExpressions": [r]})).unwrap();
            term_matches(&term, &node())
        };
        assert!(matches(json!({"key": "zone", "operator": "In", "values": ["z1"]})));
        assert!(!matches(json!({"key": "zone", "operator": "NotIn", "values": ["z1"]})));
        assert!(matches(json!({"key": "cpus", "operator": "Gt", "values": ["4"]})));
        assert!(!matches(json!({"key": "cpus", "operator": "Lt", "values": ["4"]})));
        assert!(matches(json!({"key": "gpu", "operator": "DoesNotExist"})));
        assert!(!term_matches(&NodeSelectorTerm::default(), &node()));
        let by_name: NodeSelectorTerm = serde_json::from_value(
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}),
        )
        .unwrap();
        assert!(term_matches(&by_name, &node()));
    }

    #[test]
    fn tolerations() {
        let left = |t: serde_json::Value| {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "tolerations": t}})).unwrap();
            untolerated(&pod, &node(), &["NoSchedule", "NoExecute"]).len()
        };
        assert_eq!(left(json!([])), 1);
        assert_eq!(left(json!([{"operator": "Exists"}])), 0);
        assert_eq!(left(json!([{"key": "k", "operator": "Exists"}])), 0);
        assert_eq!(left(json!([{"key": "k", "value": "v", "effect": "NoSchedule"}])), 0);
        assert_eq!(left(json!([{"key": "k", "value": "w"}])), 1);
        assert_eq!(left(json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}])), 1);
    }
}
