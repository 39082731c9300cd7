//! Pods: quality of service, what may change, graceful deletion.

use super::{Strategy, keep_other_fields, template};
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, Quantity};
use serde_json::{Value, json};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    prepare_create: |o| {
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(o.get("spec"))});
        if o.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|g| !g.is_empty()) {
            status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
        }
        o.fields_mut().insert("status".into(), status);
    },
    validate: |o, errors| template::pod_spec(o.get("spec"), &Path::new("spec"), errors),
    validate_update: unchanged,
    grace_period: Some(grace_period),
    ..Strategy::DEFAULT
};

/// What a deletion gives: what was asked for, else what the pod says; nothing when no node has it to end, or it has ended.
fn grace_period(pod: &Object, asked: Option<i64>) -> i64 {
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    let running =
        !pod.str_at("/spec/nodeName").is_empty() && !matches!(pod.str_at("/status/phase"), "Succeeded" | "Failed");
    let grace = asked.unwrap_or(own);
    // a negative period means "at once, but gracefully"
    if running { if grace < 0 { 1 } else { grace } } else { 0 }
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
fn qos_class(spec: &Value) -> &'static str {
    let lists = ["containers", "initContainers"].map(|f| spec.get(f).and_then(Value::as_array));
    let containers: Vec<&Value> = lists.into_iter().flatten().flatten().collect();
    let amount = |c: &Value, kind: &str, name: &str| {
        let text = c.get("resources")?.get(kind)?.get(name)?.as_str()?;
        Quantity::parse(text).ok().filter(|q| !q.is_zero())
    };
    let (mut any, mut guaranteed) = (false, !containers.is_empty());
    for c in containers {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(c, "requests", name), amount(c, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (_, true) => "Guaranteed",
        (true, false) => "Burstable",
        (false, false) => "BestEffort",
    }
}

/// Only images, deadlines, tolerations (added) and the gates of a pod that waits may change.
fn unchanged(new: &Object, live: &Object, errors: &mut ErrorList) {
    let plain = |o: &Object| {
        let mut spec = o.get("spec").clone();
        for field in ["containers", "initContainers"] {
            for c in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(map) = c.as_object_mut() {
                    map.remove("image");
                }
            }
        }
        if let Some(map) = spec.as_object_mut() {
            for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"] {
                map.remove(field);
            }
            // the scheduler's binding comes by its own way; gated pods may narrow where they go
            if live.pointer("/spec/schedulingGates").is_some() {
                map.remove("nodeSelector");
                map.remove("affinity");
            }
        }
        spec
    };
    if plain(new) != plain(live) {
        errors.forbidden(
            &Path::new("spec"),
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
}

/// What `/ephemeralcontainers` may change.
pub(crate) fn ephemeral_containers_only(new: &mut Object, live: &Object) {
    let wanted = new.pointer("/spec/ephemeralContainers").cloned();
    keep_other_fields(new, live, &[]);
    if let Some(list) = wanted {
        new.section_mut("spec").insert("ephemeralContainers".into(), list);
    }
}

/// What `/resize` may change: the resources of containers.
pub(crate) fn resources_only(new: &mut Object, live: &Object) {
    let wanted: Vec<(String, Value)> = ["containers", "initContainers"]
        .iter()
        .filter_map(|f| new.get("spec").get(f).and_then(Value::as_array))
        .flatten()
        .filter_map(|c| Some((c.get("name")?.as_str()?.to_owned(), c.get("resources")?.clone())))
        .collect();
    keep_other_fields(new, live, &[]);
    let spec = new.section_mut("spec");
    for field in ["containers", "initContainers"] {
        for c in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = c.get("name").and_then(Value::as_str).unwrap_or_default();
            if let Some((_, resources)) = wanted.iter().find(|(n, _)| n == name) {
                c["resources"] = resources.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_service() {
        let pod = |limits: Value, requests: Value| json!({"containers": [{"resources": {"limits": limits, "requests": requests}}]});
        assert_eq!(
            qos_class(&pod(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1000m", "memory": "1Gi"}))),
            "Guaranteed"
        );
        assert_eq!(qos_class(&pod(json!({"cpu": "1"}), json!({"cpu": "1"}))), "Burstable");
        assert_eq!(qos_class(&pod(json!({}), json!({}))), "BestEffort");
        assert_eq!(qos_class(&json!({"containers": [{}]})), "BestEffort");
    }
}
