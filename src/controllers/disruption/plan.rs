//! How many pods of a budget may be disrupted: pure functions.

use crate::pods;
use edge_client::ResourceExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// So long after its eviction a pod may take to be seen as going (Kubernetes' value).
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(2 * 60);
/// So long a pod may be marked as about to be disrupted without being deleted (Kubernetes' value).
const STALE_AFTER: SignedDuration = SignedDuration::from_secs(2 * 60);

/// How many pods there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) pods: i32,
    pub(super) healthy: i32,
}

fn of(value: &IntOrString, total: i32) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()).unwrap_or(0);
            let scaled = i64::from(total).saturating_mul(percent).saturating_add(99) / 100;
            i32::try_from(scaled).unwrap_or(i32::MAX)
        }
    }
}

/// Whether the budget needs to know how many pods their controllers want.
pub(super) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|s| s.max_unavailable.is_some() || matches!(s.min_available, Some(IntOrString::String(_))))
}

/// What a budget expects, of so many pods and so many that their controllers want.
pub(super) fn expected(budget: &PodDisruptionBudget, pods: i32, scale: i32) -> Expected {
    let Some(spec) = &budget.spec else { return Expected { pods: 0, healthy: 0 } };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => Expected { pods: scale, healthy: scale.saturating_sub(of(max, scale)).max(0) },
        (None, Some(min @ IntOrString::Int(_))) => Expected { pods, healthy: of(min, pods) },
        (None, Some(min)) => Expected { pods: scale, healthy: of(min, scale) },
        (None, None) => Expected { pods: 0, healthy: 0 },
    }
}

/// Evictions that were granted and whose pods are not yet seen as going; when the first of them counts as failed; and the
/// pods that were to go and did not.
pub(super) struct Granted {
    pub(super) pods: std::collections::BTreeMap<String, Time>,
    pub(super) recheck: Option<Duration>,
    pub(super) failed: Vec<Arc<Pod>>,
}

pub(super) fn granted(budget: &PodDisruptionBudget, covered: &[Arc<Pod>], now: Timestamp) -> Granted {
    let mut out = Granted { pods: std::collections::BTreeMap::new(), recheck: None, failed: Vec::new() };
    let noted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
    for pod in covered.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let Some(at) = noted.and_then(|n| n.get(&pod.name_any())) else { continue };
        let left = at.0.checked_add(DELETION_TIMEOUT).map_or(SignedDuration::ZERO, |end| end.duration_since(now));
        match Duration::try_from(left).ok().filter(|l| !l.is_zero()) {
            None => out.failed.push(pod.clone()),
            Some(left) => {
                // a clock that was set back makes nobody wait longer
                let left = left.min(DELETION_TIMEOUT.unsigned_abs());
                out.recheck = Some(out.recheck.map_or(left, |r| r.min(left)));
                out.pods.insert(pod.name_any(), at.clone());
            }
        }
    }
    out
}

/// The status of a budget.
pub(super) fn status(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    expected: Expected,
    granted: &Granted,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let healthy = covered
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none() && !granted.pods.contains_key(&p.name_any()))
        .filter(|p| pods::is_ready(p))
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    // a budget without pods must not let the first ones go before they are counted
    let allowed = if expected.pods <= 0 { 0 } else { healthy.saturating_sub(expected.healthy).max(0) };
    let (is, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(budget, is, reason, "", now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(expected.healthy),
        disrupted_pods: Some(granted.pods.clone()).filter(|p| !p.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected.pods),
        observed_generation: budget.metadata.generation,
    }
}

/// The status of a budget of which the number of pods cannot be told: nothing may be disrupted.
pub(super) fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    status.observed_generation = budget.metadata.generation;
    status.conditions = Some(conditions(budget, "False", "SyncFailed", why, now));
    status
}

fn conditions(budget: &PodDisruptionBudget, is: &str, reason: &str, message: &str, now: Timestamp) -> Vec<Condition> {
    const KIND: &str = "DisruptionAllowed";
    let mut all = budget.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let known = all.iter().find(|c| c.type_ == KIND && c.status == is).map(|c| c.last_transition_time.clone());
    let new = Condition {
        type_: KIND.into(),
        status: is.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: known.unwrap_or(Time(now)),
        observed_generation: budget.metadata.generation,
    };
    match all.iter_mut().find(|c| c.type_ == KIND) {
        Some(slot) => *slot = new,
        None => all.push(new),
    }
    all
}

/// How long a pod may still be marked as about to be disrupted; `None` for one that is not, or is going.
pub(super) fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let mark = pods::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    if pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod) {
        return None;
    }
    let since = mark.last_transition_time.as_ref().map_or(now, |t| t.0);
    let left = STALE_AFTER.saturating_sub(now.duration_since(since));
    Some(Duration::try_from(left).unwrap_or_default().min(STALE_AFTER.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn budget(spec: Value, disrupted: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "generation": 2}, "spec": spec,
            "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 5, "expectedPods": 0, "disruptedPods": disrupted}}))
        .unwrap()
    }

    fn pod(name: &str, ready: bool, going: bool) -> Arc<Pod> {
        let deletion = if going { json!(at(1)) } else { Value::Null };
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "deletionTimestamp": deletion},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn what_a_budget_expects() {
        for (spec, pods, scale, want, needs) in [
            (json!({"minAvailable": 2}), 3, 0, (3, 2), false),
            (json!({"minAvailable": "50%"}), 3, 5, (5, 3), true),
            (json!({"maxUnavailable": 1}), 3, 5, (5, 4), true),
            (json!({"maxUnavailable": "30%"}), 3, 5, (5, 3), true),
            (json!({"maxUnavailable": 9}), 3, 5, (5, 0), true),
            (json!({"maxUnavailable": "0%"}), 3, 5, (5, 5), true),
            (json!({}), 3, 5, (0, 0), false),
        ] {
            let b = budget(spec.clone(), Value::Null);
            let got = expected(&b, pods, scale);
            assert_eq!((got.pods, got.healthy), want, "{spec}");
            assert_eq!(needs_scale(&b), needs, "{spec}");
        }
    }

    #[test]
    fn how_many_may_go() {
        let now = at(1000);
        let noted = json!({"a": at(990), "old": at(100), "going": at(990)});
        let b = budget(json!({"minAvailable": 2}), noted);
        let pods = [
            pod("a", true, false),
            pod("b", true, false),
            pod("c", true, false),
            pod("d", true, false),
            pod("e", false, false),
            pod("going", true, true),
            pod("old", false, false),
        ];
        let granted = granted(&b, &pods, now);
        assert_eq!(granted.pods.keys().collect::<Vec<_>>(), ["a"], "what is going or did not go needs no note");
        assert_eq!(granted.failed.iter().map(|p| p.name_any()).collect::<Vec<_>>(), ["old"]);
        assert_eq!(granted.recheck.map(|r| r.as_secs()), Some(110));
        let s = status(&b, &pods, expected(&b, 7, 7), &granted, now);
        assert_eq!(
            (s.current_healthy, s.desired_healthy, s.disruptions_allowed, s.expected_pods),
            (Some(3), Some(2), Some(1), Some(7))
        );
        let condition = &s.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str(), condition.observed_generation),
            ("True", "SufficientPods", Some(2))
        );
        let none = status(&b, &[], expected(&b, 0, 0), &granted, now);
        assert_eq!(
            (none.disruptions_allowed, none.conditions.unwrap()[0].reason.as_str()),
            (Some(0), "InsufficientPods")
        );
        let failed = failed(&b, "why", now);
        assert_eq!(
            (failed.disruptions_allowed, failed.conditions.unwrap()[0].reason.as_str()),
            (Some(0), "SyncFailed")
        );
    }

    #[test]
    fn marks_that_lead_to_nothing() {
        let marked = |since: i64, going: bool| -> Pod {
            let deletion = if going { json!(at(1)) } else { Value::Null };
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": deletion}, "status": {"conditions":
                [{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": at(since)}]}}))
            .unwrap()
        };
        for (since, going, want) in [
            (1000, false, Some(120)),
            (900, false, Some(20)),
            (100, false, Some(0)),
            (5000, false, Some(120)),
            (900, true, None),
        ] {
            assert_eq!(stale_in(&marked(since, going), at(1000)).map(|d| d.as_secs()), want, "{since}");
        }
        assert_eq!(stale_in(&Pod::default(), at(0)), None);
    }
}
