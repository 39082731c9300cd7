//! `autoscaling/v1` over `autoscaling/v2`: processor time has fields of its own there; what else an autoscaler has is in annotations, as
//! in Kubernetes, so that who writes the old version loses nothing of the new one.

use edge_api::Object;
use edge_api::object::object_entry;
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

type Fields = Map<String, Value>;

pub(super) fn to_v2(object: &mut Object) {
    let [metrics, behavior, current, conditions] =
        [METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS].map(|name| take_annotation(object, name));
    let spec = object.section_mut("spec");
    let percent = spec.remove("targetCPUUtilizationPercentage");
    let cpu =
        percent.map(|percent| cpu_metric("target", json!({"type": "Utilization", "averageUtilization": percent})));
    let all: Vec<Value> = cpu.into_iter().chain(list(metrics).iter().map(|m| new_metric(m, "target"))).collect();
    if !all.is_empty() {
        spec.insert("metrics".into(), all.into());
    }
    if let Some(behavior) = behavior {
        spec.insert("behavior".into(), renamed(behavior, lower_first));
    }
    let percent = object
        .fields_mut()
        .get_mut("status")
        .and_then(|s| s.as_object_mut()?.remove("currentCPUUtilizationPercentage"));
    let mut current: Vec<Value> = list(current).iter().map(|m| new_metric(m, "current")).collect();
    if let Some(percent) = percent
        && !current.iter().any(|m| utilization(m, "current").is_some())
    {
        current.insert(0, cpu_metric("current", json!({"averageUtilization": percent})));
    }
    if !current.is_empty() {
        object.section_mut("status").insert("currentMetrics".into(), current.into());
    }
    if let Some(conditions) = conditions {
        object.section_mut("status").insert("conditions".into(), conditions);
    }
    object.fields_mut().insert("apiVersion".into(), "autoscaling/v2".into());
}

pub(super) fn from_v2(object: &mut Object) {
    let spec = object.section_mut("spec");
    let mut metrics = list(spec.remove("metrics"));
    if let Some(at) = metrics.iter().position(|m| utilization(m, "target").is_some())
        && let Some(percent) = utilization(&metrics.remove(at), "target")
    {
        spec.insert("targetCPUUtilizationPercentage".into(), percent);
    }
    let behavior = spec.remove("behavior").filter(|b| !b.is_null()).map(|b| renamed(b, upper_first));
    let (mut current, mut conditions) = (Vec::new(), Vec::new());
    if let Some(status) = object.fields_mut().get_mut("status").and_then(Value::as_object_mut) {
        current = list(status.remove("currentMetrics"));
        conditions = list(status.remove("conditions"));
        if let Some(percent) = current.iter().find_map(|m| utilization(m, "current")) {
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
    }
    annotate(object, METRICS, metrics.iter().map(|m| old_metric(m, "target")).collect());
    annotate(object, CURRENT_METRICS, current.iter().map(|m| old_metric(m, "current")).collect());
    annotate(object, CONDITIONS, conditions);
    if let Some(behavior) = behavior {
        object_entry(object.metadata_mut(), "annotations").insert(BEHAVIOR.into(), behavior.to_string().into());
    }
    object.fields_mut().insert("apiVersion".into(), "autoscaling/v1".into());
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn annotate(object: &mut Object, name: &str, values: Vec<Value>) {
    if !values.is_empty() {
        let text = Value::Array(values).to_string();
        object_entry(object.metadata_mut(), "annotations").insert(name.into(), text.into());
    }
}

/// Takes an annotation that holds JSON out; one that does not is somebody else's.
fn take_annotation(object: &mut Object, name: &str) -> Option<Value> {
    let value = serde_json::from_str(object.annotation(name)?).ok()?;
    let annotations = object.metadata_mut().get_mut("annotations")?.as_object_mut()?;
    annotations.remove(name);
    if annotations.is_empty() {
        object.metadata_mut().remove("annotations");
    }
    Some(value)
}

/// The percentage of what is requested of processors, which the old version has a field for.
fn utilization(metric: &Value, part: &str) -> Option<Value> {
    let text = |pointer: &str| metric.pointer(pointer).and_then(Value::as_str);
    let is_cpu = text("/type") == Some("Resource") && text("/resource/name") == Some("cpu");
    metric.pointer(&format!("/resource/{part}/averageUtilization")).filter(|p| is_cpu && !p.is_null()).cloned()
}

fn cpu_metric(part: &str, value: Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", part: value}})
}

/// The field of a metric that its type says.
fn source_field(kind: &str) -> &'static str {
    match kind {
        "Object" => "object",
        "Pods" => "pods",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => "resource",
    }
}

/// The names of the values in the old version, beside those in the new one; `part` is `target` or `current`.
fn values(kind: &str, part: &str) -> [(String, &'static str); 3] {
    let average = if kind == "Object" { "averageValue".to_owned() } else { format!("{part}AverageValue") };
    [
        (format!("{part}AverageUtilization"), "averageUtilization"),
        (average, "averageValue"),
        (format!("{part}Value"), "value"),
    ]
}

fn selector_field(kind: &str) -> &'static str {
    if kind == "External" { "metricSelector" } else { "selector" }
}

/// Moves a field, if it is there.
fn carry(from: &Value, name: &str, to: &mut Fields, new_name: &str) {
    if let Some(value) = from.get(name).filter(|v| !v.is_null()) {
        to.insert(new_name.to_owned(), value.clone());
    }
}

/// A metric (`target`), or what it is at the moment (`current`), as the old version has it.
fn old_metric(metric: &Value, part: &str) -> Value {
    let kind = metric["type"].as_str().unwrap_or_default();
    let source = &metric[source_field(kind)];
    let mut old = Fields::new();
    for field in ["name", "container"] {
        carry(source, field, &mut old, field);
    }
    carry(source, "describedObject", &mut old, "target");
    carry(&source["metric"], "name", &mut old, "metricName");
    carry(&source["metric"], "selector", &mut old, selector_field(kind));
    for (old_name, name) in values(kind, part) {
        carry(&source[part], name, &mut old, &old_name);
    }
    if kind == "Object" {
        // it has no absent value there
        old.entry(format!("{part}Value")).or_insert_with(|| "0".into());
    }
    json!({"type": kind, source_field(kind): old})
}

/// The reverse of [`old_metric`].
fn new_metric(metric: &Value, part: &str) -> Value {
    let kind = metric["type"].as_str().unwrap_or_default();
    let old = &metric[source_field(kind)];
    let (mut source, mut name, mut value) = (Fields::new(), Fields::new(), Fields::new());
    for field in ["name", "container"] {
        carry(old, field, &mut source, field);
    }
    carry(old, "target", &mut source, "describedObject");
    carry(old, "metricName", &mut name, "name");
    carry(old, selector_field(kind), &mut name, "selector");
    for (old_name, name) in values(kind, part) {
        carry(old, &old_name, &mut value, name);
    }
    if kind == "Object" && value.contains_key("averageValue") {
        value.remove("value");
    }
    if part == "target" {
        let meant = [("averageUtilization", "Utilization"), ("averageValue", "AverageValue"), ("value", "Value")];
        let meant = meant.into_iter().find(|(field, _)| value.contains_key(*field)).map_or("Value", |(_, kind)| kind);
        value.insert("type".into(), meant.into());
    }
    if !name.is_empty() {
        source.insert("metric".into(), name.into());
    }
    source.insert(part.to_owned(), value.into());
    json!({"type": kind, source_field(kind): source})
}

/// A tree with other names of its fields: the behaviour is kept in a form of its own in the old version.
fn renamed(value: Value, rename: fn(&str) -> String) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().map(|(k, v)| (rename(&k), renamed(v, rename))).collect(),
        Value::Array(list) => list.into_iter().map(|v| renamed(v, rename)).collect(),
        other => other,
    }
}

fn upper_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn converted(value: &Value, convert: fn(&mut Object)) -> Value {
        let mut object = Object::from_value(value.clone()).unwrap();
        convert(&mut object);
        object.into_value()
    }

    #[test]
    fn a_plain_one_has_no_annotations() {
        let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}, "status": {"currentCPUUtilizationPercentage": 70}});
        let new = converted(&old, to_v2);
        assert_eq!(
            new["spec"]["metrics"][0]["resource"]["target"],
            json!({"type": "Utilization", "averageUtilization": 80})
        );
        assert_eq!(new["status"]["currentMetrics"][0]["resource"]["current"], json!({"averageUtilization": 70}));
        let back = converted(&new, from_v2);
        assert_eq!((&back["spec"], &back["apiVersion"]), (&old["spec"], &old["apiVersion"]));
        assert_eq!(back["status"], old["status"]);
        assert!(back["metadata"]["annotations"].get(METRICS).is_none());
    }

    #[test]
    fn nothing_is_lost_on_the_way() {
        let target = |kind: &str, field: &str, value: Value| json!({"type": kind, field: value});
        let average = || target("AverageValue", "averageValue", "10".into());
        let metric = json!({"name": "m", "selector": {"matchLabels": {"a": "b"}}});
        let object = json!({"kind": "Service", "name": "s"});
        let new = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a", "annotations": {"mine": "x"}},
            "spec": {
                "maxReplicas": 3,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": target("Utilization", "averageUtilization", 50.into())}},
                    {"type": "Resource", "resource": {"name": "memory", "target": average()}},
                    {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": target("Utilization", "averageUtilization", 5.into())}},
                    {"type": "Pods", "pods": {"metric": metric, "target": average()}},
                    {"type": "Object", "object": {"metric": metric, "describedObject": object, "target": average()}},
                    {"type": "Object", "object": {"metric": metric, "describedObject": object, "target": target("Value", "value", "2k".into())}},
                    {"type": "External", "external": {"metric": metric, "target": target("Value", "value", "3".into())}},
                    {"type": "External", "external": {"metric": metric, "target": average()}},
                ],
                "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}},
            },
            "status": {
                "desiredReplicas": 1,
                "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 30, "averageValue": "30m"}}},
                    {"type": "Pods", "pods": {"metric": metric, "current": {"averageValue": "7"}}},
                    {"type": "External", "external": {"metric": metric, "current": {"value": "7"}}},
                ],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        });
        let old = converted(&new, from_v2);
        assert_eq!(old["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(old["status"], json!({"desiredReplicas": 1, "currentCPUUtilizationPercentage": 30}));
        let annotation =
            |name: &str| serde_json::from_str::<Value>(old["metadata"]["annotations"][name].as_str().unwrap()).unwrap();
        let metrics = annotation(METRICS);
        assert_eq!(metrics[0], json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "10"}}));
        let labels = json!({"matchLabels": {"a": "b"}});
        assert_eq!(
            metrics[3]["object"],
            json!({"target": object, "metricName": "m", "selector": labels, "targetValue": "0", "averageValue": "10"})
        );
        assert_eq!(metrics[5]["external"], json!({"metricName": "m", "metricSelector": labels, "targetValue": "3"}));
        assert_eq!(annotation(BEHAVIOR)["ScaleUp"]["Policies"][0]["PeriodSeconds"], 15);
        assert_eq!(annotation(CURRENT_METRICS)[1]["pods"]["currentAverageValue"], "7");
        assert_eq!(converted(&old, to_v2), new);
    }

    #[test]
    fn what_is_no_json_stays() {
        let old = json!({"apiVersion": "autoscaling/v1", "metadata": {"annotations": {METRICS: "{"}}, "spec": {"maxReplicas": 1}});
        let new = converted(&old, to_v2);
        assert_eq!(new["metadata"]["annotations"][METRICS], "{");
        assert_eq!(new["spec"], json!({"maxReplicas": 1}));
    }
}
