//! HorizontalPodAutoscalers: bounds, metrics and behaviours that mean something.

use super::Strategy;
use edge_api::field::{ErrorList, Path};
use edge_api::{Quantity, names};
use serde_json::Value;

/// Longest stabilization window, in seconds.
const LONGEST_WINDOW: i64 = 3600;
/// Longest period of a policy, in seconds.
const LONGEST_PERIOD: i64 = 1800;
/// The types of metrics with the fields that belong to them.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
/// What the containers of every node have.
const RESOURCES: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];

pub(crate) static AUTOSCALER: Strategy =
    Strategy { generation: true, validate: |o, errors| spec(o.get("spec"), errors), ..Strategy::DEFAULT };

fn number(value: &Value, field: &str) -> Option<i64> {
    value.get(field).and_then(Value::as_i64)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn is_given(value: &Value, field: &str) -> bool {
    value.get(field).is_some_and(|v| !v.is_null())
}

fn spec(spec: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    // fewer than one is behind a feature gate that Kubernetes has had switched off ever since
    let (least, most) = (number(spec, "minReplicas").unwrap_or(1), number(spec, "maxReplicas").unwrap_or(0));
    if least < 1 {
        errors.invalid(&path.child("minReplicas"), &least.into(), "must be greater than or equal to 1");
    }
    if most < 1 {
        errors.invalid(&path.child("maxReplicas"), &most.into(), "must be greater than 0");
    }
    if most < least {
        errors.invalid(&path.child("maxReplicas"), &most.into(), "must be greater than or equal to `minReplicas`");
    }
    reference(&spec["scaleTargetRef"], &path.child("scaleTargetRef"), errors);
    for (i, metric) in spec["metrics"].as_array().into_iter().flatten().enumerate() {
        source(metric, &path.child("metrics").index(i), errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = spec["behavior"].get(direction).filter(|r| !r.is_null()) {
            scaling(rules, &path.child("behavior").child(direction), errors);
        }
    }
}

/// Of an object in the same namespace.
fn reference(object: &Value, path: &Path, errors: &mut ErrorList) {
    for field in ["kind", "name"] {
        segment(text(object, field), "", &path.child(field), errors);
    }
    let version = text(object, "apiVersion");
    if version.matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {version}");
        errors.invalid(&path.child("apiVersion"), &version.into(), &detail);
    }
}

/// What becomes a part of a path.
fn segment(value: &str, missing: &str, path: &Path, errors: &mut ErrorList) {
    if value.is_empty() {
        errors.required(path, missing);
    } else if matches!(value, "." | "..") {
        errors.invalid(path, &value.into(), &format!("may not be '{value}'"));
    } else if let Some(c) = value.chars().find(|c| matches!(c, '/' | '%')) {
        errors.invalid(path, &value.into(), &format!("may not contain '{c}'"));
    }
}

fn source(metric: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(metric, "type");
    let Some((_, own)) = SOURCES.iter().find(|(name, _)| *name == kind) else {
        let names: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
        if kind.is_empty() {
            errors.required(&path.child("type"), "must specify a metric source type");
        }
        errors.not_supported(&path.child("type"), &kind.into(), &names);
        return;
    };
    for (_, field) in SOURCES.iter().filter(|(_, field)| field != own && is_given(metric, field)) {
        errors.forbidden(&path.child(field), "must populate the given metric source only");
    }
    let own_path = path.child(own);
    if !is_given(metric, own) {
        errors.required(&own_path, "must populate information for the given metric source");
        return;
    }
    let (source, target) = (&metric[*own], &metric[*own]["target"]);
    match *own {
        "resource" | "containerResource" => resource(source, *own == "containerResource", &own_path, errors),
        _ => {
            let name = text(&source["metric"], "name");
            segment(name, "must specify a metric name", &own_path.child("metric").child("name"), errors);
        }
    }
    if *own == "object" {
        reference(&source["describedObject"], &own_path.child("describedObject"), errors);
    }
    aim(target, &own_path.child("target"), errors);
    targets(own, target, &own_path.child("target"), errors);
}

fn resource(source: &Value, of_container: bool, path: &Path, errors: &mut ErrorList) {
    let name = text(source, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "must specify a resource name");
    } else if !name.contains('/') && !RESOURCES.contains(&name) && !name.starts_with("hugepages-") {
        errors.invalid(&path.child("name"), &name.into(), "must be a standard resource for containers");
    }
    let container = text(source, "container");
    if of_container && container.is_empty() {
        errors.required(&path.child("container"), "must specify a container");
    } else if of_container && let Err(detail) = names::dns1123_label(container) {
        errors.invalid(&path.child("container"), &container.into(), &detail.to_string());
    }
}

/// The numbers of a target, each for itself.
fn aim(target: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(target, "type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.invalid(&path.child("type"), &kind.into(), detail);
    }
    for field in ["value", "averageValue"] {
        let quantity = target.get(field).and_then(Value::as_str).map(Quantity::parse);
        if let Some(Ok(q)) = quantity
            && (q.is_zero() || q.is_negative())
        {
            errors.invalid(&path.child(field), &target[field], "must be positive");
        }
    }
    if let Some(percent) = number(target, "averageUtilization").filter(|n| *n < 1) {
        errors.invalid(&path.child("averageUtilization"), &percent.into(), "must be greater than 0");
    }
}

/// Which numbers a kind of metric needs.
fn targets(source: &str, target: &Value, path: &Path, errors: &mut ErrorList) {
    let [value, average, percent] =
        ["value", "averageValue", "averageUtilization"].map(|field| is_given(target, field));
    match source {
        "resource" | "containerResource" => {
            if !average && !percent {
                let detail = "must set either a target raw value or a target utilization";
                errors.required(&path.child("averageUtilization"), detail);
            }
            if average && percent {
                let detail = "may not set both a target raw value and a target utilization";
                errors.forbidden(&path.child("averageValue"), detail);
            }
        }
        "pods" if !average => {
            errors.required(&path.child("averageValue"), "must specify a positive target averageValue");
        }
        "object" if !value && !average => {
            errors.required(&path.child("averageValue"), "must set either a target value or averageValue");
        }
        "external" if !value && !average => {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.required(&path.child("averageValue"), detail);
        }
        "external" if value && average => {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(&path.child("value"), detail);
        }
        _ => {}
    }
}

/// The rules of one direction.
fn scaling(rules: &Value, path: &Path, errors: &mut ErrorList) {
    if let Some(window) = number(rules, "stabilizationWindowSeconds") {
        let at = path.child("stabilizationWindowSeconds");
        if window < 0 {
            errors.invalid(&at, &window.into(), "must be greater than or equal to zero");
        } else if window > LONGEST_WINDOW {
            errors.invalid(&at, &window.into(), &format!("must be less than or equal to {LONGEST_WINDOW}"));
        }
    }
    let select = text(rules, "selectPolicy");
    if is_given(rules, "selectPolicy") && !["Disabled", "Max", "Min"].contains(&select) {
        errors.not_supported(&path.child("selectPolicy"), &select.into(), &["Disabled", "Max", "Min"]);
    }
    let tolerance = rules.get("tolerance").and_then(Value::as_str).map(Quantity::parse);
    if let Some(Ok(q)) = tolerance
        && q.is_negative()
    {
        errors.invalid(&path.child("tolerance"), &rules["tolerance"], "must be greater than or equal to 0");
    }
    let (at, policies) = (path.child("policies"), rules["policies"].as_array().map(Vec::as_slice).unwrap_or_default());
    if policies.is_empty() {
        errors.required(&at, "must specify at least one Policy");
    }
    for (i, one) in policies.iter().enumerate() {
        policy(one, &at.index(i), errors);
    }
}

fn policy(policy: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(policy, "type");
    if !["Percent", "Pods"].contains(&kind) {
        errors.not_supported(&path.child("type"), &kind.into(), &["Percent", "Pods"]);
    }
    for field in ["value", "periodSeconds"] {
        let n = number(policy, field).unwrap_or(0);
        if n <= 0 {
            errors.invalid(&path.child(field), &n.into(), "must be greater than zero");
        }
    }
    if let Some(n) = number(policy, "periodSeconds").filter(|n| *n > LONGEST_PERIOD) {
        let detail = format!("must be less than or equal to {LONGEST_PERIOD}");
        errors.invalid(&path.child("periodSeconds"), &n.into(), &detail);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_api::Object;
    use serde_json::json;

    fn judge(spec: Value) -> Vec<String> {
        let object = Object::from_value(json!({"spec": spec})).unwrap();
        let mut errors = ErrorList::new();
        (AUTOSCALER.validate)(&object, &mut errors);
        let kind = edge_api::GroupKind { group: "autoscaling".into(), kind: "HorizontalPodAutoscaler".into() };
        let status = edge_api::Status::invalid(&kind, "a", &errors);
        status.details.unwrap().causes.into_iter().map(|c| c.field).collect()
    }

    /// A whole autoscaler with one part of it replaced.
    fn with(part: &str, value: Value) -> Value {
        let rules = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "tolerance": "0",
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]});
        let mut spec = json!({
            "minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
            "behavior": {"scaleUp": rules, "scaleDown": rules},
        });
        if let Some(place) = spec.pointer_mut(part) {
            *place = value;
        }
        spec
    }

    fn metric(kind: &str, field: &str, source: Value, target: Value) -> Value {
        let mut metric = json!({"type": kind, field: source});
        metric[field]["target"] = target;
        with("/metrics/0", metric)
    }

    #[test]
    fn what_means_nothing_is_refused() {
        assert_eq!(
            judge(with("", json!(null))),
            ["spec.maxReplicas", "spec.maxReplicas", "spec.scaleTargetRef.kind", "spec.scaleTargetRef.name"]
        );
        let cases = [
            (with("/minReplicas", json!(1)), vec![]),
            (with("/minReplicas", json!(0)), vec!["spec.minReplicas"]),
            (with("/minReplicas", json!(4)), vec!["spec.maxReplicas"]),
            (with("/scaleTargetRef/name", json!("a/b")), vec!["spec.scaleTargetRef.name"]),
            (with("/scaleTargetRef/kind", json!("")), vec!["spec.scaleTargetRef.kind"]),
            (with("/scaleTargetRef/apiVersion", json!("a/b/c")), vec!["spec.scaleTargetRef.apiVersion"]),
            (with("/metrics/0/type", json!("Load")), vec!["spec.metrics[0].type"]),
            (with("/metrics/0/type", json!("Pods")), vec!["spec.metrics[0].resource", "spec.metrics[0].pods"]),
            (with("/metrics/0/resource/name", json!("load")), vec!["spec.metrics[0].resource.name"]),
            (with("/metrics/0/resource/target/type", json!("Much")), vec!["spec.metrics[0].resource.target.type"]),
            (
                with("/metrics/0/resource/target/averageUtilization", json!(0)),
                vec!["spec.metrics[0].resource.target.averageUtilization"],
            ),
            (
                with("/behavior/scaleUp/stabilizationWindowSeconds", json!(3601)),
                vec!["spec.behavior.scaleUp.stabilizationWindowSeconds"],
            ),
            (with("/behavior/scaleUp/selectPolicy", json!("Most")), vec!["spec.behavior.scaleUp.selectPolicy"]),
            (with("/behavior/scaleUp/tolerance", json!("-1")), vec!["spec.behavior.scaleUp.tolerance"]),
            (with("/behavior/scaleDown/policies", json!([])), vec!["spec.behavior.scaleDown.policies"]),
            (
                with("/behavior/scaleDown/policies/0", json!({"type": "All", "value": 0, "periodSeconds": 1801})),
                vec![
                    "spec.behavior.scaleDown.policies[0].type",
                    "spec.behavior.scaleDown.policies[0].value",
                    "spec.behavior.scaleDown.policies[0].periodSeconds",
                ],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(judge(spec.clone()), want, "{spec}");
        }
    }

    #[test]
    fn each_metric_needs_its_target() {
        let (percent, value, average) = (
            json!({"type": "Utilization", "averageUtilization": 50}),
            json!({"type": "Value", "value": "10"}),
            json!({"type": "AverageValue", "averageValue": "10"}),
        );
        let (cpu, named) = (json!({"name": "cpu", "container": "c"}), json!({"metric": {"name": "m"}}));
        let object = json!({"metric": {"name": "m"}, "describedObject": {"kind": "Service", "name": "s"}});
        let both = json!({"type": "Value", "value": "10", "averageValue": "10", "averageUtilization": 3});
        for (kind, field, source, good, bad) in [
            ("Resource", "resource", &cpu, vec![&percent, &average], vec![&value, &both]),
            ("ContainerResource", "containerResource", &cpu, vec![&percent, &average], vec![&value, &both]),
            ("Pods", "pods", &named, vec![&average], vec![&value, &percent]),
            ("Object", "object", &object, vec![&average, &value], vec![&percent]),
            ("External", "external", &named, vec![&average, &value], vec![&percent, &both]),
        ] {
            for target in good {
                let errors = judge(metric(kind, field, source.clone(), target.clone()));
                assert!(errors.is_empty(), "{kind} {target}: {errors:?}");
            }
            for target in bad {
                let errors = judge(metric(kind, field, source.clone(), target.clone()));
                assert!(
                    errors.iter().all(|e| e.contains(".target.")) && !errors.is_empty(),
                    "{kind} {target}: {errors:?}"
                );
            }
            let zero = json!({"type": "AverageValue", "averageValue": "0"});
            assert_eq!(judge(metric(kind, field, source.clone(), zero)).len(), 1, "{kind}");
        }
        let nameless = judge(metric("Pods", "pods", json!({"metric": {}}), average.clone()));
        assert_eq!(nameless, ["spec.metrics[0].pods.metric.name"]);
        let container =
            judge(metric("ContainerResource", "containerResource", json!({"name": "cpu", "container": "A"}), average));
        assert_eq!(container, ["spec.metrics[0].containerResource.container"]);
    }
}
