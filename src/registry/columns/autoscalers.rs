//! What autoscalers go by, in a cell.

use edge_api::Object;
use serde_json::Value;

const UNKNOWN: &str = "<unknown>";
/// More than so many metrics are only counted.
const SHOWN: usize = 2;

/// Each metric's value, and its target.
pub(super) fn targets(o: &Object) -> Value {
    let list = |pointer: &str| o.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let (wanted, current) = (list("/spec/metrics"), list("/status/currentMetrics"));
    let all: Vec<String> =
        wanted.iter().enumerate().map(|(i, m)| target(m, current.get(i).unwrap_or(&Value::Null))).collect();
    if all.is_empty() {
        return "<none>".into();
    }
    let text = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN { format!("{text} + {} more...", all.len() - SHOWN).into() } else { text.into() }
}

fn target(metric: &Value, current: &Value) -> String {
    let field = match metric["type"].as_str().unwrap_or_default() {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let (source, current) = (&metric[field], &current[field]["current"]);
    let pair = |name: &str, unit: &str| {
        let of = |values: &Value, missing: &str| match &values[name] {
            Value::String(text) => format!("{text}{unit}"),
            Value::Number(n) => format!("{n}{unit}"),
            _ => missing.to_owned(),
        };
        format!("{}/{}", of(current, UNKNOWN), of(&source["target"], "<auto>"))
    };
    let has_average = source["target"]["averageValue"].is_string();
    match field {
        "external" | "object" if has_average => format!("{} (avg)", pair("averageValue", "")),
        "external" | "object" => pair("value", ""),
        "pods" => pair("averageValue", ""),
        _ => {
            let name = source["name"].as_str().unwrap_or_default();
            let pair = if has_average { pair("averageValue", "") } else { pair("averageUtilization", "%") };
            format!("{name}: {pair}")
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn shown(metrics: Value, current: Value) -> Value {
        targets(
            &Object::from_value(json!({"spec": {"metrics": metrics}, "status": {"currentMetrics": current}})).unwrap(),
        )
    }

    #[test]
    fn values_and_targets() {
        let metric =
            |kind: &str, field: &str, target: Value| json!([{"type": kind, field: {"name": "cpu", "target": target}}]);
        let current = |field: &str, current: Value| json!([{field: {"current": current}}]);
        let (percent, average, value) =
            (json!({"averageUtilization": 50}), json!({"averageValue": "10"}), json!({"value": "3"}));
        for (kind, field, target, now, want) in [
            ("Resource", "resource", &percent, json!({"averageUtilization": 7, "averageValue": "7m"}), "cpu: 7%/50%"),
            ("Resource", "resource", &average, json!({"averageValue": "7m"}), "cpu: 7m/10"),
            ("Resource", "resource", &percent, json!({}), "cpu: <unknown>/50%"),
            ("ContainerResource", "containerResource", &percent, json!({"averageUtilization": 7}), "cpu: 7%/50%"),
            ("Pods", "pods", &average, json!({"averageValue": "7"}), "7/10"),
            ("Object", "object", &value, json!({"value": "2"}), "2/3"),
            ("Object", "object", &average, json!({"averageValue": "2"}), "2/10 (avg)"),
            ("External", "external", &value, json!({"value": "2"}), "2/3"),
            ("External", "external", &average, json!({}), "<unknown>/10 (avg)"),
        ] {
            assert_eq!(shown(metric(kind, field, target.clone()), current(field, now)), want, "{kind}");
        }
        assert_eq!(shown(json!([]), json!([])), "<none>");
        let one = metric("Pods", "pods", average)[0].clone();
        let many = json!([one, one, one, one]);
        assert_eq!(shown(many, Value::Null), "<unknown>/10, <unknown>/10 + 2 more...");
    }
}
