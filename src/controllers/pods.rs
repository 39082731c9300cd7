//! What controllers want to know of a pod.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// The condition of a type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether the pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// The phase; empty before anybody set it.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a replica: neither ended nor going.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// When the pod will have been ready for `min_ready`: `Some(0)` for now, `None` when it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    let Some(since) = ready.last_transition_time.as_ref().filter(|_| !min_ready.is_zero()) else {
        return Some(Duration::ZERO);
    };
    let elapsed = now.duration_since(since.0);
    let elapsed = Duration::try_from(elapsed).unwrap_or_default();
    Some(min_ready.saturating_sub(elapsed))
}

/// The order in which a set gives pods up when it has too many: the least useful first.
pub(crate) fn by_usefulness(a: &Pod, b: &Pod) -> std::cmp::Ordering {
    let scheduled = |p: &Pod| p.spec.as_ref().is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()));
    let progress = |p: &Pod| match phase(p) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = |p: &Pod| {
        p.metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"))
            .and_then(|v| v.parse::<i32>().ok())
            .unwrap_or(0)
    };
    let restarts = |p: &Pod| {
        let statuses = p.status.as_ref().and_then(|s| s.container_statuses.as_ref());
        statuses.into_iter().flatten().map(|c| c.restart_count).max().unwrap_or(0)
    };
    let ready_since = |p: &Pod| condition(p, "Ready").and_then(|c| c.last_transition_time.clone()).map(|t| t.0);
    let created = |p: &Pod| p.metadata.creation_timestamp.clone().map(|t| t.0);
    scheduled(a)
        .cmp(&scheduled(b))
        .then_with(|| progress(a).cmp(&progress(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| ready_since(b).cmp(&ready_since(a)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| created(b).cmp(&created(a)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn pod(node: &str, phase: &str, ready_for: Option<i64>) -> Pod {
        let since = Timestamp::from_second(1_000_000 - ready_for.unwrap_or(0)).unwrap();
        serde_json::from_value(json!({
            "metadata": {"name": format!("{node}-{phase}")}, "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "lastTransitionTime": since,
                "status": if ready_for.is_some() { "True" } else { "False" }}]}
        }))
        .unwrap()
    }

    #[test]
    fn least_useful_first() {
        let mut pods = [
            pod("n", "Running", Some(50)),
            pod("n", "Running", Some(5)),
            pod("n", "Running", None),
            pod("n", "Pending", None),
            pod("", "Pending", None),
        ];
        let want: Vec<Pod> = pods.iter().rev().cloned().collect();
        pods.sort_by(by_usefulness);
        assert_eq!(pods.to_vec(), want);
    }

    #[test]
    fn availability() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let p = pod("n", "Running", Some(5));
        assert_eq!(available_in(&p, Duration::ZERO, now), Some(Duration::ZERO));
        assert_eq!(available_in(&p, Duration::from_secs(8), now), Some(Duration::from_secs(3)));
        assert_eq!(available_in(&p, Duration::from_secs(5), now), Some(Duration::ZERO));
        assert_eq!(available_in(&pod("n", "Running", None), Duration::ZERO, now), None);
    }
}
