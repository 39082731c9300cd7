//! What a node's conditions say, and the taints that follow from them.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
/// The conditions that a kubelet that is not heard of no longer vouches for.
const KUBELETS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The status of a condition; `None` when the node has no such condition.
pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// `True`, `False` or `Unknown`: whether the node is ready.
pub(super) fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The conditions of a node whose kubelet is not heard of, as far as they change.
pub(super) fn unknown(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let changed = KUBELETS.iter().filter_map(|kind| match condition(node, kind) {
        Some(known) if known.status == "Unknown" => None,
        Some(known) => Some(NodeCondition {
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: Some(Time(now)),
            ..known.clone()
        }),
        None => Some(NodeCondition {
            type_: (*kind).into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusNeverUpdated".into()),
            message: Some("Kubelet never posted node status.".into()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            last_transition_time: Some(Time(now)),
        }),
    });
    changed.collect()
}

/// The taints that keep the scheduler away from a node, with whether they apply.
fn scheduling_taints(node: &Node) -> [(&'static str, bool); 7] {
    let is = |kind: &str, status: &str| condition(node, kind).is_some_and(|c| c.status == status);
    [
        (NOT_READY, is("Ready", "False")),
        (UNREACHABLE, is("Ready", "Unknown")),
        ("node.kubernetes.io/memory-pressure", is("MemoryPressure", "True")),
        ("node.kubernetes.io/disk-pressure", is("DiskPressure", "True")),
        ("node.kubernetes.io/pid-pressure", is("PIDPressure", "True")),
        ("node.kubernetes.io/network-unavailable", is("NetworkUnavailable", "True")),
        ("node.kubernetes.io/unschedulable", node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true)),
    ]
}

/// Which of the two evicting taints a node has.
pub(super) fn evicting_taint(node: &Node) -> Option<&'static str> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref())?;
    let has = |key: &str| taints.iter().any(|t| t.key == key && t.effect == NO_EXECUTE);
    [NOT_READY, UNREACHABLE].into_iter().find(|k| has(k))
}

/// What a node's readiness makes of the taint that evicts its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// The node has the taint that it should have (or none).
    Settled,
    /// It is ready again, or has the other one's taint: set at once.
    Set(Option<&'static str>),
    /// It is to get this taint when its zone's turn comes.
    Wait,
}

/// Decides about the evicting taint.
pub(super) fn eviction(node: &Node) -> Eviction {
    let wanted = wanted_eviction(node);
    match (evicting_taint(node), wanted) {
        (has, wanted) if has == wanted => Eviction::Settled,
        (None, Some(_)) => Eviction::Wait,
        (Some(_), wanted) => Eviction::Set(wanted),
        (None, None) => Eviction::Settled,
    }
}

/// The evicting taint that a node's readiness asks for. Nothing is known of a node that never told.
pub(super) fn wanted_eviction(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready").map(|c| c.status.as_str()) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

/// The taints that a node should have: those of its conditions as they are, the evicting one as given, and whatever
/// others it has. `None` when it has them.
pub(super) fn taints(node: &Node, evicting: Option<&str>, now: Timestamp) -> Option<Vec<Taint>> {
    let known = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let of_conditions = scheduling_taints(node);
    let mut wanted: Vec<(&str, &str)> =
        of_conditions.iter().filter(|(_, applies)| *applies).map(|(key, _)| (*key, NO_SCHEDULE)).collect();
    wanted.extend(evicting.map(|key| (key, NO_EXECUTE)));
    let ours = |t: &Taint| match t.effect.as_str() {
        NO_SCHEDULE => of_conditions.iter().any(|(key, _)| *key == t.key),
        NO_EXECUTE => t.key == NOT_READY || t.key == UNREACHABLE,
        _ => false,
    };
    let is = |t: &Taint, (key, effect): &(&str, &str)| t.key == *key && t.effect == *effect;
    let mut out: Vec<Taint> = known.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, w))).cloned().collect();
    for w in &wanted {
        if !out.iter().any(|t| is(t, w)) {
            let (key, effect) = *w;
            out.push(Taint { key: key.into(), effect: effect.into(), time_added: Some(Time(now)), value: None });
        }
    }
    (out != known).then_some(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn node(conditions: &[(&str, &str)], taints: Value) -> Node {
        let conditions: Vec<Value> =
            conditions.iter().map(|(kind, status)| json!({"type": kind, "status": status, "reason": "r"})).collect();
        serde_json::from_value(json!({"spec": {"taints": taints}, "status": {"conditions": conditions}})).unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints.iter().map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect)).collect()
    }

    #[test]
    fn what_is_not_heard_of_is_unknown() {
        let now = Timestamp::UNIX_EPOCH;
        let changed =
            unknown(&node(&[("Ready", "True"), ("DiskPressure", "Unknown"), ("Other", "True")], json!([])), now);
        let told: Vec<_> = changed.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref())).collect();
        assert_eq!(
            told,
            [
                ("Ready", "Unknown", Some("NodeStatusUnknown")),
                ("MemoryPressure", "Unknown", Some("NodeStatusNeverUpdated")),
                ("PIDPressure", "Unknown", Some("NodeStatusNeverUpdated")),
            ]
        );
        let all = KUBELETS.map(|k| (k, "Unknown"));
        assert!(unknown(&node(&all, json!([])), now).is_empty());
    }

    #[test]
    fn conditions_become_taints() {
        let now = Timestamp::UNIX_EPOCH;
        let mine = json!([{"key": "mine", "effect": "NoSchedule"}]);
        let ready = node(&[("Ready", "True")], mine.clone());
        assert_eq!(taints(&ready, None, now), None);
        let lost = node(&[("Ready", "Unknown"), ("DiskPressure", "True")], mine);
        let got = taints(&lost, Some(UNREACHABLE), now).unwrap();
        assert_eq!(
            keys(&got),
            ["mine:NoSchedule", "unreachable:NoSchedule", "disk-pressure:NoSchedule", "unreachable:NoExecute"]
        );
        let mut back = lost.clone();
        back.spec.as_mut().unwrap().taints = Some(got);
        assert_eq!(taints(&back, Some(UNREACHABLE), now), None, "settled");
        back.status = ready.status;
        assert_eq!(keys(&taints(&back, None, now).unwrap()), ["mine:NoSchedule"]);
    }

    #[test]
    fn when_the_evicting_taint_changes() {
        let taint = |key: &str| json!([{"key": key, "effect": "NoExecute"}]);
        for (ready, has, want) in [
            ("True", json!([]), Eviction::Settled),
            ("True", taint(UNREACHABLE), Eviction::Set(None)),
            ("False", json!([]), Eviction::Wait),
            ("Unknown", json!([]), Eviction::Wait),
            ("False", taint(NOT_READY), Eviction::Settled),
            ("False", taint(UNREACHABLE), Eviction::Set(Some(NOT_READY))),
            ("Unknown", taint(NOT_READY), Eviction::Set(Some(UNREACHABLE))),
        ] {
            assert_eq!(eviction(&node(&[("Ready", ready)], has.clone())), want, "{ready} {has}");
        }
        assert_eq!(eviction(&node(&[], json!([]))), Eviction::Settled, "nothing is known of it");
    }
}
