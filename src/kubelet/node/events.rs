//! What a node tells about itself, as `kubectl describe node` shows it.

use crate::context::Context;
use edge_client::{EventType, node_reference};
use k8s_openapi::api::core::v1::{Node, NodeStatus};

/// Tells that the kubelet has started, and that the machine has, if it has since `node` was last written.
pub(super) fn started(cx: &Context, node: &Node) {
    tell(cx, EventType::Normal, "Starting", "Starting kubelet.".to_owned());
    let boot_id = |status: &NodeStatus| status.node_info.as_ref().map(|info| info.boot_id.clone());
    let now = cx.machine.info(&cx.config.edge_version, super::KUBELET_VERSION).boot_id;
    let before = node.status.as_ref().and_then(boot_id).filter(|id| !id.is_empty());
    if before.is_some_and(|before| before != now) {
        let message = format!("Node {} has been rebooted, boot id: {now}", cx.config.node_name);
        tell(cx, EventType::Warning, "Rebooted", message);
    }
}

/// Tells which conditions are not what they were.
pub(super) fn conditions(cx: &Context, before: &NodeStatus, after: &NodeStatus) {
    for reason in transitions(before, after) {
        let message = format!("Node {} status is now: {reason}", cx.config.node_name);
        tell(cx, EventType::Normal, reason, message);
    }
}

fn tell(cx: &Context, kind: EventType, reason: &str, message: String) {
    cx.recorder.event_ref(node_reference(&cx.config.node_name), kind, reason, message);
}

/// The kubelet's names for the changes of its conditions.
fn transitions(before: &NodeStatus, after: &NodeStatus) -> Vec<&'static str> {
    let mut told = Vec::new();
    for condition in after.conditions.iter().flatten() {
        let known = before.conditions.iter().flatten().find(|c| c.type_ == condition.type_);
        if known.is_some_and(|c| c.status == condition.status) {
            continue;
        }
        let (yes, no) = match condition.type_.as_str() {
            "MemoryPressure" => ("NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            "DiskPressure" => ("NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            "PIDPressure" => ("NodeHasInsufficientPID", "NodeHasSufficientPID"),
            "Ready" => ("NodeReady", "NodeNotReady"),
            _ => continue,
        };
        told.push(if condition.status == "True" { yes } else { no });
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeCondition;

    fn status(conditions: &[(&str, &str)]) -> NodeStatus {
        let condition = |(type_, status): &(&str, &str)| NodeCondition {
            type_: (*type_).to_owned(),
            status: (*status).to_owned(),
            ..NodeCondition::default()
        };
        NodeStatus { conditions: Some(conditions.iter().map(condition).collect()), ..NodeStatus::default() }
    }

    #[test]
    fn only_what_changed_is_told() {
        let lost = status(&[("Ready", "Unknown"), ("DiskPressure", "False"), ("Theirs", "True")]);
        let back = status(&[("Ready", "True"), ("DiskPressure", "True"), ("Theirs", "False")]);
        assert_eq!(transitions(&lost, &back), ["NodeReady", "NodeHasDiskPressure"]);
        assert_eq!(transitions(&back, &back), [""; 0]);
        assert_eq!(transitions(&NodeStatus::default(), &status(&[("Ready", "False")])), ["NodeNotReady"]);
    }
}
