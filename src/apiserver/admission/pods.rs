//! Small pod plugins: `DefaultTolerationSeconds` and `RuntimeClass`.

use super::{AttributesExt, Cluster, array_mut};
use edge_api::{Object, Status};
use edge_registry::Attributes;
use serde_json::{Value, json};

/// How long a pod stays bound to a node that is not ready or not reachable.
const TOLERATION_SECONDS: u32 = 300;

pub(super) fn default_toleration_seconds(pod: &mut Object) {
    let Some(tolerations) = array_mut(pod.section_mut("spec"), "tolerations") else { return };
    let text = |t: &Value, field: &str| t.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = tolerations.iter().any(|t| {
            matches!(text(t, "key").as_str(), k if k == key || k.is_empty())
                && matches!(text(t, "effect").as_str(), "NoExecute" | "")
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

pub(super) fn runtime_class(cluster: &dyn Cluster, a: &Attributes<'_>, pod: &mut Object) -> Result<(), Status> {
    let name = pod.str_at("/spec/runtimeClassName").to_owned();
    let overhead = pod.pointer("/spec/overhead").filter(|o| !o.is_null()).cloned();
    if name.is_empty() {
        return match overhead {
            Some(_) => Err(a.forbidden(
                Some(pod),
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            None => Ok(()),
        };
    }
    let Some(class) = cluster.get("node.k8s.io", "runtimeclasses", "", &name) else {
        return Err(a.forbidden(Some(pod), &format!("pod rejected: RuntimeClass \"{name}\" not found")));
    };
    let fixed = class.pointer("/overhead/podFixed").filter(|o| !o.is_null()).cloned();
    if overhead.is_some() && overhead != fixed {
        let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
        return Err(a.forbidden(Some(pod), why));
    }
    let selector = class.pointer("/scheduling/nodeSelector").and_then(Value::as_object).cloned().unwrap_or_default();
    let own = pod.pointer("/spec/nodeSelector").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some((key, _)) = own.iter().find(|(k, v)| selector.get(*k).is_some_and(|other| other != *v)) {
        let why = format!(
            "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
            selector[key].as_str().unwrap_or_default(),
            own[key].as_str().unwrap_or_default()
        );
        return Err(a.forbidden(Some(pod), &why));
    }
    let tolerations = class.pointer("/scheduling/tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let spec = pod.section_mut("spec");
    if let Some(fixed) = fixed {
        spec.insert("overhead".into(), fixed);
    }
    if !selector.is_empty() {
        let mut merged = own;
        merged.extend(selector);
        spec.insert("nodeSelector".into(), merged.into());
    }
    if !tolerations.is_empty()
        && let Some(list) = array_mut(spec, "tolerations")
    {
        for t in tolerations {
            if !list.contains(&t) {
                list.push(t);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use edge_registry::Operation;

    fn pod(spec: Value) -> Object {
        Object::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn adds_the_two_tolerations_where_they_are_missing() {
        let tolerations = |spec| {
            let mut p = pod(spec);
            default_toleration_seconds(&mut p);
            p.pointer("/spec/tolerations").unwrap().as_array().unwrap().len()
        };
        assert_eq!(tolerations(json!({})), 2);
        assert_eq!(tolerations(json!({"tolerations": [{"operator": "Exists"}]})), 1);
        assert_eq!(tolerations(json!({"tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]})), 3);
        let own = json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]});
        assert_eq!(tolerations(own), 2);
    }

    #[test]
    fn runtime_class_brings_overhead_and_scheduling() {
        let cluster = Fake::default().with(
            "node.k8s.io/runtimeclasses//wasm",
            json!({"overhead": {"podFixed": {"memory": "1Mi"}}, "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "t"}]}}),
        );
        let run = |spec| {
            let mut p = pod(spec);
            attributes(Operation::Create, POD, "ns", "p", |a| runtime_class(&cluster, a, &mut p))
                .map(|()| p.into_value())
        };
        let p = run(json!({"runtimeClassName": "wasm", "nodeSelector": {"c": "d"}})).unwrap();
        assert_eq!(p["spec"]["overhead"], json!({"memory": "1Mi"}));
        assert_eq!(p["spec"]["nodeSelector"], json!({"a": "b", "c": "d"}));
        assert_eq!(p["spec"]["tolerations"], json!([{"key": "t"}]));
        let e = run(json!({"runtimeClassName": "x"})).unwrap_err();
        assert_eq!(e.message, "pods \"p\" is forbidden: pod rejected: RuntimeClass \"x\" not found");
        assert!(run(json!({"overhead": {"cpu": "1"}})).is_err());
        assert!(run(json!({"runtimeClassName": "wasm", "nodeSelector": {"a": "z"}})).is_err());
    }
}
