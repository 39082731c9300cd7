//! Whether this node takes a pod: the last look before it starts, as binding and node may have changed. Pure.

use super::record::Problem;
use crate::containers::qos;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why the pod must not run here; `None` when it may. `others` are the pods that run here already.
pub(crate) fn refusal(
    pod: &Pod,
    node: Option<&Node>,
    others: &[Arc<Pod>],
    allocatable: &BTreeMap<String, Quantity>,
) -> Option<Problem> {
    let os = pod.spec.as_ref().and_then(|s| s.os.as_ref()).map_or("linux", |os| os.name.as_str());
    if os != "linux" {
        return Some(Problem::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    if node.is_some_and(|node| !matches_node(pod, node)) {
        return Some(Problem::new(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ));
    }
    let most = qos::value(allocatable, "pods");
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if count >= most {
        return Some(short_of("pods", 1, count, most));
    }
    // a resource that the node does not know is the scheduler's business, as it is for Kubernetes' kubelet
    let extended = allocatable.keys().map(String::as_str).filter(|name| name.contains('/'));
    for name in ["cpu", "memory", "ephemeral-storage"].into_iter().chain(extended) {
        let wanted = qos::pod_request(pod, name);
        let used: i64 = others.iter().map(|other| qos::pod_request(other, name)).sum();
        let capacity = qos::milli(allocatable, name);
        if wanted > 0 && wanted.saturating_add(used) > capacity {
            // processors are told in thousandths, everything else in units
            let unit = if name == "cpu" { 1 } else { 1000 };
            return Some(short_of(name, wanted / unit, used / unit, capacity / unit));
        }
    }
    host_port_conflict(pod, others)
}

fn short_of(name: &str, wanted: i64, used: i64, capacity: i64) -> Problem {
    let message =
        format!("Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}");
    Problem::new(&format!("OutOf{name}"), message)
}

fn host_ports(pod: &Pod) -> Vec<(i32, String, String)> {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let containers = super::record::spec_containers(pod).filter(|(kind, _)| *kind != super::record::Kind::Init);
    let ports = containers.flat_map(|(_, c)| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.or_else(|| host_network.then_some(p.container_port)).filter(|p| *p > 0)?;
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((port, protocol, p.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default()))
        })
        .collect()
}

fn host_port_conflict(pod: &Pod, others: &[Arc<Pod>]) -> Option<Problem> {
    let wanted = host_ports(pod);
    let taken = others.iter().flat_map(|other| host_ports(other));
    let clash = |a: &(i32, String, String), b: &(i32, String, String)| {
        a.0 == b.0 && a.1 == b.1 && (a.2 == b.2 || a.2.is_empty() || b.2.is_empty())
    };
    let conflict = !wanted.is_empty() && taken.into_iter().any(|t| wanted.iter().any(|w| clash(w, &t)));
    conflict.then(|| {
        Problem::new(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        )
    })
}

/// Whether the node has what the pod's node selector and required node affinity ask for.
fn matches_node(pod: &Pod, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &pod.spec else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|term| matches_term(term, &labels, name)))
}

fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|e| matches_requirement(e, labels.get(&e.key).map(String::as_str)))
        && fields.iter().all(|f| f.key == "metadata.name" && matches_requirement(f, Some(name)))
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|known| known == v));
    let compared = || {
        let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
        Some(number(value)?.cmp(&number(values.first().map(String::as_str))?))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([]);
        }
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn with_request(cpu: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn allocatable() -> BTreeMap<String, Quantity> {
        let q = |text: &str| Quantity(text.to_owned());
        BTreeMap::from([("cpu".into(), q("2")), ("memory".into(), q("1Gi")), ("pods".into(), q("3"))])
    }

    fn reason(pod: &Pod, others: &[Pod]) -> Option<String> {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "size": "5"}}})).unwrap();
        let others: Vec<Arc<Pod>> = others.iter().cloned().map(Arc::new).collect();
        refusal(pod, Some(&node), &others, &allocatable()).map(|p| p.reason)
    }

    #[test]
    fn resources_must_fit() {
        assert_eq!(reason(&with_request("2"), &[]), None);
        assert_eq!(reason(&with_request("1"), &[with_request("1")]), None);
        assert_eq!(reason(&with_request("1001m"), &[with_request("1")]).as_deref(), Some("OutOfcpu"));
        assert_eq!(reason(&pod(json!({})), &vec![pod(json!({})); 3]).as_deref(), Some("OutOfpods"));
        let refused = refusal(&with_request("3"), None, &[], &allocatable()).unwrap();
        assert_eq!(refused.message, "Node didn't have enough resource: cpu, requested: 3000, used: 0, capacity: 2000");
        let mut more = allocatable();
        more.insert("example.com/gpu".into(), Quantity("1".into()));
        let gpus = |name: &str| pod(json!({"containers": [{"name": "c", "resources": {"requests": {name: "1"}}}]}));
        let reason = |pod: &Pod, other: Pod| refusal(pod, None, &[Arc::new(other)], &more).map(|p| p.reason);
        let taken = reason(&gpus("example.com/gpu"), gpus("example.com/gpu"));
        assert_eq!(taken.as_deref(), Some("OutOfexample.com/gpu"));
        assert_eq!(reason(&gpus("example.com/gpu"), with_request("1")), None);
        assert_eq!(reason(&gpus("example.com/unknown"), with_request("1")), None);
    }

    #[test]
    fn the_node_must_match() {
        assert_eq!(reason(&pod(json!({"nodeSelector": {"disk": "ssd"}})), &[]), None);
        assert_eq!(reason(&pod(json!({"nodeSelector": {"disk": "hdd"}})), &[]).as_deref(), Some("NodeAffinity"));
        let affinity = |expression: Value| {
            pod(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}}))
        };
        for (expression, fits) in [
            (json!({"key": "disk", "operator": "In", "values": ["hdd", "ssd"]}), true),
            (json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]}), false),
            (json!({"key": "gpu", "operator": "Exists"}), false),
            (json!({"key": "gpu", "operator": "DoesNotExist"}), true),
            (json!({"key": "size", "operator": "Gt", "values": ["4"]}), true),
            (json!({"key": "size", "operator": "Lt", "values": ["4"]}), false),
            (json!({"key": "disk", "operator": "Gt", "values": ["4"]}), false),
        ] {
            assert_eq!(reason(&affinity(expression.clone()), &[]).is_none(), fits, "{expression}");
        }
        assert_eq!(reason(&pod(json!({"os": {"name": "windows"}})), &[]).as_deref(), Some("PodOSNotSupported"));
    }

    #[test]
    fn host_ports_must_be_free() {
        let port = |port: i32, ip: &str| {
            pod(
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port, "hostIP": ip}]}]}),
            )
        };
        assert_eq!(reason(&port(8080, ""), &[port(8081, "")]), None);
        assert_eq!(reason(&port(8080, ""), &[port(8080, "127.0.0.1")]).as_deref(), Some("NodePorts"));
        assert_eq!(reason(&port(8080, "127.0.0.2"), &[port(8080, "127.0.0.1")]), None);
    }
}
