//! What controllers want to know of a pod.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// The condition of a type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// The condition that tells a pod was ended by the cluster and not by itself.
pub(crate) fn disruption_target(reason: &str, message: &str, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    }
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

/// How long ago something was, as the power of two of its nanoseconds: younger and older are only told apart roughly, so
/// that what is given up is spread over what is about equally old.
fn age(since: Option<Timestamp>, now: Timestamp) -> Option<u32> {
    let elapsed = now.duration_since(since?).as_nanos();
    Some(u128::try_from(elapsed).ok().and_then(u128::checked_ilog2).unwrap_or(0))
}

/// The order in which a set gives pods up when it has too many: the least useful first. `crowd` tells how many of the
/// related pods are on a pod's node.
pub(crate) fn by_usefulness(a: &Pod, b: &Pod, now: Timestamp, crowd: impl Fn(&Pod) -> usize) -> std::cmp::Ordering {
    let progress = |p: &Pod| match phase(p) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = |p: &Pod| {
        let annotations = p.metadata.annotations.as_ref();
        let text = annotations.and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"));
        text.and_then(|v| v.parse::<i32>().ok()).unwrap_or(0)
    };
    let ready_for = |p: &Pod| {
        let ready = condition(p, "Ready").filter(|c| c.status == "True");
        age(ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0), now)
    };
    let age = |p: &Pod| age(p.metadata.creation_timestamp.as_ref().map(|t| t.0), now);
    (node(a).is_some().cmp(&node(b).is_some()))
        .then_with(|| progress(a).cmp(&progress(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| ready_for(a).cmp(&ready_for(b)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age(a).cmp(&age(b)))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// The node of a pod, once it has one.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// How often the container of the pod that was restarted most often was.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|c| c.restart_count).max().unwrap_or(0)
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
        let now = Timestamp::from_second(1_000_000).unwrap();
        pods.sort_by(|a, b| by_usefulness(a, b, now, |_| 1));
        assert_eq!(pods.to_vec(), want);
    }

    #[test]
    fn doubled_up_pods_go_before_lone_ones_and_cheap_ones_before_all() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let (young, old) = (pod("lone", "Running", Some(5)), pod("crowded", "Running", Some(500)));
        let crowd = |p: &Pod| if node(p) == Some("crowded") { 2 } else { 1 };
        assert!(by_usefulness(&old, &young, now, crowd).is_lt());
        assert!(by_usefulness(&young, &old, now, |_| 1).is_lt());
        let mut dear = old.clone();
        dear.metadata.annotations =
            Some([("controller.kubernetes.io/pod-deletion-cost".to_owned(), "7".to_owned())].into());
        assert!(by_usefulness(&young, &dear, now, crowd).is_lt());
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
