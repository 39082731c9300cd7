//! Served versions that are not the stored one.

use crate::resource::Conversion;
use edge_api::Object;
use serde_json::{Value, json};

/// `events.k8s.io/v1` over the core Event: the same facts under other names.
static EVENTS: Conversion =
    Conversion { stored_api_version: "v1", to_stored: event_to_core, from_stored: event_from_core };

/// `autoscaling/v1` over `autoscaling/v2`: CPU has a field of its own there.
static AUTOSCALERS: Conversion =
    Conversion { stored_api_version: "autoscaling/v2", to_stored: autoscaler_to_v2, from_stored: autoscaler_from_v2 };

/// The conversion of a row, if its version is not the stored one.
pub(crate) fn of(group: &str, version: &str, plural: &str) -> Option<&'static Conversion> {
    match (group, version, plural) {
        ("events.k8s.io", "v1", "events") => Some(&EVENTS),
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(&AUTOSCALERS),
        _ => None,
    }
}

/// Names in `events.k8s.io/v1` and in the core group.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.fields_mut().remove(from) {
        object.fields_mut().insert(to.to_owned(), value);
    }
}

fn event_to_core(object: &mut Object) {
    for (new, core) in EVENT_FIELDS {
        rename(object, new, core);
    }
    object.fields_mut().insert("apiVersion".into(), "v1".into());
}

fn event_from_core(object: &mut Object) {
    for (new, core) in EVENT_FIELDS {
        rename(object, core, new);
    }
    object.fields_mut().insert("apiVersion".into(), "events.k8s.io/v1".into());
}

fn is_cpu(metric: &Value) -> bool {
    metric.pointer("/type").and_then(Value::as_str) == Some("Resource")
        && metric.pointer("/resource/name").and_then(Value::as_str) == Some("cpu")
}

fn autoscaler_to_v2(object: &mut Object) {
    let spec = object.section_mut("spec");
    if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
        let metrics = spec.entry("metrics").or_insert_with(|| json!([]));
        if let Some(list) = metrics.as_array_mut() {
            list.retain(|m| !is_cpu(m));
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
    }
    if let Some(status) = object.fields_mut().get_mut("status").and_then(Value::as_object_mut)
        && let Some(percent) = status.remove("currentCPUUtilizationPercentage")
    {
        let current = json!({"averageUtilization": percent});
        status.insert(
            "currentMetrics".into(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}]),
        );
    }
    object.fields_mut().insert("apiVersion".into(), "autoscaling/v2".into());
}

fn autoscaler_from_v2(object: &mut Object) {
    let take = |list: Option<&mut Value>, pointer: &str| -> Option<Value> {
        let list = list?.as_array_mut()?;
        let at = list.iter().position(|m| is_cpu(m) && m.pointer(pointer).is_some())?;
        list.remove(at).pointer(pointer).cloned()
    };
    let spec = object.section_mut("spec");
    if let Some(percent) = take(spec.get_mut("metrics"), "/resource/target/averageUtilization") {
        spec.insert("targetCPUUtilizationPercentage".into(), percent);
    }
    if spec.get("metrics").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        spec.remove("metrics");
    }
    if let Some(status) = object.fields_mut().get_mut("status").and_then(Value::as_object_mut) {
        if let Some(percent) = take(status.get_mut("currentMetrics"), "/resource/current/averageUtilization") {
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        status.remove("currentMetrics");
        status.remove("conditions");
    }
    object.fields_mut().insert("apiVersion".into(), "autoscaling/v1".into());
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn there_and_back() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "p"}, "reason": "R"});
        let mut o = Object::from_value(event.clone()).unwrap();
        event_to_core(&mut o);
        assert_eq!((o.str_at("/message"), o.str_at("/involvedObject/name"), o.api_version()), ("n", "p", "v1"));
        event_from_core(&mut o);
        assert_eq!(o.into_value(), event);
        let hpa = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let mut o = Object::from_value(hpa.clone()).unwrap();
        autoscaler_to_v2(&mut o);
        assert_eq!(o.get("spec")["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        autoscaler_from_v2(&mut o);
        assert_eq!(o.into_value(), hpa);
    }
}
