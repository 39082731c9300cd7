//! The status of a Deployment: counts, and the conditions Available and Progressing.

use super::plan;
use crate::status::count;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The status as a merge patch, and the time until the progress deadline has to be checked.
pub(super) fn plan(
    d: &Deployment,
    new: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> (Value, Option<Duration>) {
    // a ReplicaSet just made or changed is newer in our hands than in the cache
    let all: Vec<&ReplicaSet> =
        sets.iter().map(|s| &**s).filter(|s| new.is_none_or(|n| n.uid() != s.uid())).chain(new).collect();
    let sum = |f: fn(&ReplicaSet) -> i32| all.iter().map(|s| f(s)).sum::<i32>();
    let replicas = sum(|s| s.status.as_ref().map_or(0, |st| st.replicas));
    let ready = sum(|s| s.status.as_ref().and_then(|st| st.ready_replicas).unwrap_or(0));
    let terminating = sum(|s| s.status.as_ref().and_then(|st| st.terminating_replicas).unwrap_or(0));
    let available = sum(plan::available);
    let unavailable = (sum(plan::spec_replicas) - available).max(0);
    let updated = new.and_then(|n| n.status.as_ref()).map_or(0, |s| s.replicas);
    let number = |n: i32| count(usize::try_from(n).unwrap_or(0));
    let numbers = Numbers { replicas, updated, available };
    let (conditions, next) = conditions(d, new, sets, &numbers, now);
    let status = json!({
        "observedGeneration": d.metadata.generation,
        "replicas": number(replicas),
        "updatedReplicas": number(updated),
        "readyReplicas": number(ready),
        "availableReplicas": number(available),
        "unavailableReplicas": number(unavailable),
        "terminatingReplicas": number(terminating),
        "conditions": conditions,
    });
    (status, next)
}

/// The conditions that this controller decides about.
const OWN_CONDITIONS: [&str; 3] = ["Available", "Progressing", "ReplicaFailure"];

struct Numbers {
    replicas: i32,
    updated: i32,
    available: i32,
}

fn conditions(
    d: &Deployment,
    new: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    numbers: &Numbers,
    now: Timestamp,
) -> (Vec<DeploymentCondition>, Option<Duration>) {
    let known: Vec<DeploymentCondition> = d.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let find = |kind: &str| known.iter().find(|c| c.type_ == kind);
    let mut out = Vec::new();
    let enough = numbers.available >= plan::wanted(d) - plan::fences(d).1;
    let available = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.".to_owned())
    };
    out.push(merged(find("Available"), "Available", available, false, now));
    let (progressing, next) = progress(d, new, sets, numbers, find("Progressing"), now);
    out.extend(progressing);
    // the trouble of a ReplicaSet is the trouble of its deployment
    let failure = new
        .into_iter()
        .chain(sets.iter().map(|s| &**s))
        .filter_map(|s| s.status.as_ref()?.conditions.as_ref())
        .flatten()
        .find(|c| c.type_ == "ReplicaFailure");
    if let Some(c) = failure {
        let what = ("True", c.reason.as_deref().unwrap_or_default(), c.message.clone().unwrap_or_default());
        out.push(merged(find("ReplicaFailure"), "ReplicaFailure", what, false, now));
    }
    // what others say stays
    let others = |c: &&DeploymentCondition| !OWN_CONDITIONS.contains(&c.type_.as_str());
    out.extend(known.iter().filter(others).cloned());
    (out, next)
}

/// The Progressing condition; its update time is when progress was last seen, from which the deadline counts.
fn progress(
    d: &Deployment,
    new: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    numbers: &Numbers,
    known: Option<&DeploymentCondition>,
    now: Timestamp,
) -> (Option<DeploymentCondition>, Option<Duration>) {
    let deadline = d.spec.as_ref().and_then(|s| s.progress_deadline_seconds).filter(|s| *s != i32::MAX);
    let Some(deadline) = deadline.and_then(|s| u64::try_from(s).ok()) else { return (None, None) };
    let condition = |what: (&str, &str, String), touch: bool| Some(merged(known, "Progressing", what, touch, now));
    let name = new.map(ResourceExt::name_any).unwrap_or_default();
    let reason = known.and_then(|c| c.reason.as_deref()).unwrap_or_default();
    if plan::is_complete(d, new, sets) {
        let text = format!("ReplicaSet {name:?} has successfully progressed.");
        return (condition(("True", "NewReplicaSetAvailable", text), false), None);
    }
    if plan::is_paused(d) {
        let text = "Deployment is paused".to_owned();
        return (condition(("Unknown", "DeploymentPaused", text), false), None);
    }
    let before = d.status.as_ref();
    let was = |f: fn(&k8s_openapi::api::apps::v1::DeploymentStatus) -> Option<i32>| before.and_then(f).unwrap_or(0);
    let old_before = was(|s| s.replicas) - was(|s| s.updated_replicas);
    let moved = numbers.updated > was(|s| s.updated_replicas)
        || numbers.replicas - numbers.updated < old_before
        || numbers.available > was(|s| s.available_replicas);
    let starts = known.is_none() || reason == "DeploymentPaused" || reason == "NewReplicaSetAvailable";
    if starts || moved {
        let text = match known {
            None => ("True", "NewReplicaSetCreated", format!("Created new replica set {name:?}")),
            Some(_) => ("True", "ReplicaSetUpdated", format!("ReplicaSet {name:?} is progressing.")),
        };
        return (condition(text, true), Some(Duration::from_secs(deadline + 1)));
    }
    let since = known.and_then(|c| c.last_update_time.as_ref()).map_or(now, |t| t.0);
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let deadline = Duration::from_secs(deadline);
    if reason == "ProgressDeadlineExceeded" || waited >= deadline {
        let text = format!("ReplicaSet {name:?} has timed out progressing.");
        return (condition(("False", "ProgressDeadlineExceeded", text), false), None);
    }
    (known.cloned(), Some(deadline - waited + Duration::from_secs(1)))
}

/// A condition that keeps its times as long as it says the same (unless `touch`), and its transition time as long as
/// its status is the same.
fn merged(
    known: Option<&DeploymentCondition>,
    kind: &str,
    (status, reason, message): (&str, &str, String),
    touch: bool,
    now: Timestamp,
) -> DeploymentCondition {
    if let Some(k) = known
        && !touch
        && k.status == status
        && k.reason.as_deref() == Some(reason)
    {
        return k.clone();
    }
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: known
            .filter(|k| k.status == status)
            .and_then(|k| k.last_transition_time.clone())
            .or(Some(Time(now))),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d", "generation": 2}, "spec": {"replicas": 2,
            "selector": {}, "template": {}, "progressDeadlineSeconds": 600}, "status": status}))
        .unwrap()
    }

    fn set(replicas: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "d-1", "uid": "1"},
                "spec": {"replicas": 2, "selector": {}},
                "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    fn reason(status: &Value, kind: &str) -> String {
        let list = status["conditions"].as_array().unwrap();
        list.iter().find(|c| c["type"] == kind).map(|c| c["reason"].as_str().unwrap().to_owned()).unwrap_or_default()
    }

    #[test]
    fn from_created_to_available() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let new = set(0, 0);
        let (status, next) = plan(&deployment(json!({})), Some(&new), std::slice::from_ref(&new), now);
        assert_eq!(reason(&status, "Progressing"), "NewReplicaSetCreated");
        assert_eq!(reason(&status, "Available"), "MinimumReplicasUnavailable");
        assert_eq!(next, Some(Duration::from_secs(601)));
        let new = set(2, 2);
        let (status, next) = plan(&deployment(status), Some(&new), std::slice::from_ref(&new), now);
        assert_eq!(reason(&status, "Progressing"), "NewReplicaSetAvailable");
        assert_eq!(reason(&status, "Available"), "MinimumReplicasAvailable");
        assert_eq!((&status["updatedReplicas"], &status["unavailableReplicas"]), (&json!(2), &Value::Null));
        assert_eq!(next, None);
    }

    #[test]
    fn what_others_say_stays() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let new = set(2, 2);
        let seen = json!({"conditions": [{"type": "example.com/Seen", "status": "True", "reason": "Test"}]});
        let (first, _) = plan(&deployment(seen), Some(&new), std::slice::from_ref(&new), now);
        assert_eq!(reason(&first, "example.com/Seen"), "Test");
        assert_eq!(first["conditions"].as_array().unwrap().len(), 3);
        let (second, _) = plan(&deployment(first.clone()), Some(&new), std::slice::from_ref(&new), now);
        assert_eq!(first["conditions"], second["conditions"]);
    }

    #[test]
    fn the_deadline_counts_from_the_last_progress() {
        let start = Timestamp::from_second(1_000_000).unwrap();
        let new = set(2, 1);
        let one = std::slice::from_ref(&new);
        let (status, _) = plan(&deployment(json!({})), Some(&new), one, start);
        let later = Timestamp::from_second(1_000_100).unwrap();
        let (status, next) = plan(&deployment(status), Some(&new), one, later);
        assert_eq!(reason(&status, "Progressing"), "NewReplicaSetCreated");
        assert_eq!(next, Some(Duration::from_secs(501)));
        let late = Timestamp::from_second(1_000_700).unwrap();
        let (status, next) = plan(&deployment(status), Some(&new), one, late);
        assert_eq!(reason(&status, "Progressing"), "ProgressDeadlineExceeded");
        assert_eq!(next, None);
    }
}
