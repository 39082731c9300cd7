//! What objects use of a ResourceQuota: the amounts of one object, whether a quota's scopes include it, and what a pod has to
//! say so that it can be counted. Admission and the quota controller must agree about it.
//!
//! In: objects of the versions in which they are stored. Out: amounts by the names that `spec.hard` has.

use crate::selector::{Op, Requirement};
use crate::{Object, Quantity};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Core resources whose plain name counts them, too.
const PLAIN: [&str; 7] =
    ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// Amounts of pods that have a short name, which stands for the request.
const SHORT: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
const CLASS: &str = ".storageclass.storage.k8s.io/";
/// After the name of a class of devices: how many of them claims may ask for.
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// Devices that one claim gets at most, and so what one that asks for all counts as.
const ALL_DEVICES: i64 = 32;

/// The amounts in a map of quantities; what is no quantity is left out.
pub fn amounts(value: Option<&Value>) -> Amounts {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.clone(), Quantity::parse(v.as_str()?).ok()?))).collect()
}

/// `a=1,b=2`
pub fn in_words(amounts: &Amounts) -> String {
    amounts.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// Adds amounts to others.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let slot = to.entry(name.clone()).or_insert(Quantity::ZERO);
        *slot = if slot.is_zero() { *amount } else { slot.add(amount) };
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let slot = to.entry(name.clone()).or_insert(*amount);
        *slot = (*slot).max(*amount);
    }
}

/// The name under which any resource is counted: `count/deployments.apps`, `count/pods`.
pub fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") }
}

/// The group and the resource that a name counts, if it is one of those that only count.
pub fn counted_resource(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group, resource));
    }
    PLAIN.contains(&name).then_some(("", name))
}

/// Whether objects of a resource can use what a name of `spec.hard` stands for.
pub fn concerns(group: &str, resource: &str, name: &str) -> bool {
    if let Some(counted) = counted_resource(name) {
        return counted == (group, resource);
    }
    match (group, resource) {
        ("", "pods") => {
            let plain = !name.contains('/') && !name.starts_with("services.") && name != "requests.storage";
            SHORT.contains(&name)
                || name.starts_with("limits.")
                || name.starts_with("hugepages-")
                || (name.starts_with("requests.") && (plain || !name.contains(CLASS)) && name != "requests.storage")
        }
        ("", "services") => name.starts_with("services."),
        ("", "persistentvolumeclaims") => name == "requests.storage" || name.contains(CLASS),
        ("resource.k8s.io", "resourceclaims") => name.ends_with(DEVICES),
        _ => false,
    }
}

/// What an object uses.
pub fn usage(group: &str, resource: &str, object: &Object, now: Timestamp) -> Amounts {
    let one = Quantity::from_units(1);
    let mut used = Amounts::from([(count_name(group, resource), one)]);
    match (group, resource) {
        ("", "pods") if is_in_use(object, now) => {
            used.insert("pods".into(), one);
            used.extend(compute(&of_pod(object, "requests"), &of_pod(object, "limits")));
        }
        ("", "pods") => {}
        ("", "services") => {
            used.insert("services".into(), one);
            let kind = object.str_at("/spec/type");
            let ports = object.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let all = object.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
            let assigned = |p: &&Value| p.get("nodePort").and_then(Value::as_i64).is_some_and(|n| n != 0);
            let number = match kind {
                "NodePort" => ports.len(),
                "LoadBalancer" if all => ports.len(),
                "LoadBalancer" => ports.iter().filter(assigned).count(),
                _ => 0,
            };
            let units = |n: usize| Quantity::from_units(i64::try_from(n).unwrap_or(i64::MAX));
            used.insert("services.nodeports".into(), units(number));
            used.insert("services.loadbalancers".into(), units(usize::from(kind == "LoadBalancer")));
        }
        ("", "persistentvolumeclaims") => {
            used.insert(resource.into(), one);
            let storage = amounts(object.pointer("/spec/resources/requests")).remove("storage");
            let class = object
                .annotation("volume.beta.kubernetes.io/storage-class")
                .unwrap_or_else(|| object.str_at("/spec/storageClassName"));
            if !class.is_empty() {
                used.insert(format!("{class}{CLASS}persistentvolumeclaims"), one);
            }
            if let Some(storage) = storage {
                used.insert("requests.storage".into(), storage);
                if !class.is_empty() {
                    used.insert(format!("{class}{CLASS}requests.storage"), storage);
                }
            }
        }
        ("resource.k8s.io", "resourceclaims") => add(&mut used, &devices(object)),
        ("", plain) if PLAIN.contains(&plain) => {
            used.insert(plain.into(), one);
        }
        _ => {}
    }
    used
}

/// How many devices of which classes a claim asks for; of alternatives the most.
fn devices(claim: &Object) -> Amounts {
    let list = |of: &Value, field: &str| of.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let one = |request: &Value| {
        let text = |field: &str| request.get(field).and_then(Value::as_str).unwrap_or_default();
        let count = match text("allocationMode") {
            "All" => ALL_DEVICES,
            _ => request.get("count").and_then(Value::as_i64).unwrap_or(1),
        };
        (format!("{}{DEVICES}", text("deviceClassName")), Quantity::from_units(count))
    };
    let mut used = Amounts::new();
    for request in list(claim.pointer("/spec/devices").unwrap_or(&Value::Null), "requests") {
        let mut most = Amounts::new();
        for alternative in request.get("exactly").into_iter().chain(&list(&request, "firstAvailable")) {
            raise(&mut most, &Amounts::from([one(alternative)]));
        }
        add(&mut used, &most);
    }
    used
}

/// Whether a pod still uses anything: it has not ended, nor outlived its deletion.
fn is_in_use(pod: &Object, now: Timestamp) -> bool {
    if matches!(pod.str_at("/status/phase"), "Succeeded" | "Failed") {
        return false;
    }
    let grace = pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let deleted: Option<Timestamp> = pod.str_at("/metadata/deletionTimestamp").parse().ok();
    match (deleted, grace) {
        (Some(at), Some(grace)) => at.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| end >= now),
        _ => true,
    }
}

/// The names under which requests and limits count.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut out = Amounts::new();
    for (name, amount) in requests {
        if SHORT.contains(&name.as_str()) || name.starts_with("hugepages-") {
            out.insert(name.clone(), *amount);
        }
        out.insert(format!("requests.{name}"), *amount);
    }
    for (name, amount) in limits {
        if SHORT.contains(&name.as_str()) {
            out.insert(format!("limits.{name}"), *amount);
        }
    }
    out
}

fn containers<'p>(pod: &'p Object, list: &str) -> impl Iterator<Item = &'p Value> {
    pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).into_iter().flatten()
}

/// What a pod asks for: the larger of all its containers together and of its start (each init container together with the
/// sidecars that run by then), or what the pod as a whole says; and its overhead.
pub fn of_pod(pod: &Object, field: &str) -> Amounts {
    let of = |c: &Value| amounts(c.get("resources").and_then(|r| r.get(field)));
    let mut running = Amounts::new();
    for c in containers(pod, "containers") {
        add(&mut running, &of(c));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for c in containers(pod, "initContainers") {
        let mut by_then = sidecars.clone();
        add(&mut by_then, &of(c));
        if c.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            sidecars.clone_from(&by_then);
            add(&mut running, &of(c));
        }
        raise(&mut starting, &by_then);
    }
    raise(&mut running, &starting);
    running.extend(amounts(pod.pointer(&format!("/spec/resources/{field}"))));
    let mut overhead = amounts(pod.pointer("/spec/overhead"));
    if field == "limits" {
        // what is not limited is not limited by its overhead either
        overhead.retain(|name, _| running.get(name).is_some_and(|a| !a.is_zero()));
    }
    add(&mut running, &overhead);
    running
}

/// What the containers of a pod do not say although a quota counts it, in words; `None` when they say everything.
pub fn unsaid<'a>(pod: &Object, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    const REQUIRED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    let names: BTreeSet<&str> = names.into_iter().filter(|n| REQUIRED.contains(n)).collect();
    let whole = |field: &str| amounts(pod.pointer(&format!("/spec/resources/{field}")));
    let of_pod = compute(&whole("requests"), &whole("limits"));
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for c in containers(pod, "containers").chain(containers(pod, "initContainers")) {
        let of = |field: &str| amounts(c.get("resources").and_then(|r| r.get(field)));
        let said = compute(&of("requests"), &of("limits"));
        let container = c.get("name").and_then(Value::as_str).unwrap_or_default();
        for name in names.iter().filter(|n| !said.contains_key(**n) && !of_pod.contains_key(**n)) {
            missing.entry(name).or_default().insert(container);
        }
    }
    let words = missing
        .iter()
        .map(|(name, containers)| format!("{name} for: {}", containers.iter().copied().collect::<Vec<_>>().join(",")));
    (!missing.is_empty()).then(|| format!("must specify {}", words.collect::<Vec<_>>().join("; ")))
}

/// Whether a quota's scopes include an object. A quota without scopes includes everything, one with scopes only pods.
pub fn includes(quota: &Object, group: &str, resource: &str, object: &Object) -> bool {
    let scopes = quota.pointer("/spec/scopes").and_then(Value::as_array).into_iter().flatten();
    let plain = scopes.filter_map(Value::as_str).map(|s| (s, "Exists", Vec::new()));
    let selectors =
        quota.pointer("/spec/scopeSelector/matchExpressions").and_then(Value::as_array).into_iter().flatten();
    let text = |v: &'_ Value, field: &str| v.get(field).and_then(Value::as_str).map(str::to_owned).unwrap_or_default();
    let selected: Vec<(String, String, Vec<String>)> = selectors
        .map(|s| {
            let values = s.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            (text(s, "scopeName"), text(s, "operator"), values)
        })
        .collect();
    let selected = selected.iter().map(|(s, o, v)| (s.as_str(), o.as_str(), v.clone()));
    plain.chain(selected).all(|(scope, operator, values)| {
        (group, resource) == ("", "pods") && is_in_scope(object, scope, operator, values)
    })
}

fn is_in_scope(pod: &Object, scope: &str, operator: &str, values: Vec<String>) -> bool {
    let terminating = pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|s| s >= 0);
    let best_effort = pod.str_at("/status/qosClass") == "BestEffort";
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        "PriorityClass" => {
            let class = Some(pod.str_at("/spec/priorityClassName")).filter(|c| !c.is_empty());
            let op = match operator {
                "In" => Op::In(values),
                "NotIn" => Op::NotIn(values),
                "DoesNotExist" => Op::DoesNotExist,
                _ => Op::Exists,
            };
            Requirement { key: scope.to_owned(), op }.holds(class)
        }
        _ => false,
    }
}

/// Whether a pod's affinity is about pods of other namespaces.
fn crosses_namespaces(pod: &Object) -> bool {
    let crosses = |term: &Value| {
        term.get("namespaces").and_then(Value::as_array).is_some_and(|n| !n.is_empty())
            || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let list = |field: &str| pod.pointer(&format!("/spec/affinity/{kind}/{field}")).and_then(Value::as_array);
        let required = list("requiredDuringSchedulingIgnoredDuringExecution").into_iter().flatten();
        let preferred = list("preferredDuringSchedulingIgnoredDuringExecution").into_iter().flatten();
        required.chain(preferred.filter_map(|p| p.get("podAffinityTerm"))).any(crosses)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn object(v: Value) -> Object {
        Object::from_value(v).unwrap()
    }

    fn used(resource: &str, v: Value) -> String {
        let group = if resource == "deployments" { "apps" } else { "" };
        in_words(&usage(group, resource, &object(v), "2026-01-01T00:00:00Z".parse().unwrap()))
    }

    fn resources(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn what_objects_use() {
        let c = resources(json!({"cpu": "100m", "memory": "1Gi", "example.com/gpu": "1"}), json!({"cpu": "1"}));
        let pod = |extra: Value| {
            let mut spec = json!({"containers": [c, c]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"spec": spec})
        };
        assert_eq!(
            used("pods", pod(json!({}))),
            "count/pods=1,cpu=200m,limits.cpu=2,memory=2Gi,pods=1,requests.cpu=200m,requests.example.com/gpu=2,requests.memory=2Gi"
        );
        let big = resources(json!({"cpu": "500m"}), Value::Null);
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}});
        let with_init = usage(
            "",
            "pods",
            &object(pod(json!({"initContainers": [sidecar, big], "overhead": {"cpu": "10m"}}))),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(
            with_init["requests.cpu"].to_string(),
            "560m",
            "the start takes most: a sidecar, the big one, overhead"
        );
        assert_eq!(with_init["limits.cpu"].to_string(), "2010m");
        let mut ended = pod(json!({}));
        ended["status"] = json!({"phase": "Failed"});
        assert_eq!(used("pods", ended), "count/pods=1");
        let mut late = pod(json!({}));
        late["metadata"] = json!({"deletionTimestamp": "2025-12-31T23:00:00Z", "deletionGracePeriodSeconds": 30});
        assert_eq!(used("pods", late), "count/pods=1");
        let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
        for (spec, want) in [
            (json!({"type": "ClusterIP", "ports": ports}), "services.loadbalancers=0,services.nodeports=0"),
            (json!({"type": "NodePort", "ports": ports}), "services.loadbalancers=0,services.nodeports=2"),
            (json!({"type": "LoadBalancer", "ports": ports}), "services.loadbalancers=1,services.nodeports=2"),
            (
                json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports}),
                "services.loadbalancers=1,services.nodeports=1",
            ),
        ] {
            assert_eq!(used("services", json!({"spec": spec})), format!("count/services=1,services=1,{want}"));
        }
        assert_eq!(
            used(
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "3Gi"}}}})
            ),
            "count/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/requests.storage=3Gi,persistentvolumeclaims=1,requests.storage=3Gi"
        );
        assert_eq!(used("secrets", json!({})), "count/secrets=1,secrets=1");
        assert_eq!(used("deployments", json!({})), "count/deployments.apps=1");
    }

    #[test]
    fn devices_of_claims() {
        let exactly = |more: Value| {
            let mut one = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2});
            one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"name": "r", "exactly": one})
        };
        let either = json!({"name": "e", "firstAvailable": [
            {"deviceClassName": "gpu", "count": 3}, {"deviceClassName": "gpu"}, {"deviceClassName": "nic"}]});
        for (requests, want) in [
            (json!([exactly(json!({}))]), "gpu.deviceclass.resource.k8s.io/devices=2"),
            (json!([exactly(json!({"allocationMode": "All"}))]), "gpu.deviceclass.resource.k8s.io/devices=32"),
            (
                json!([exactly(json!({})), either]),
                "gpu.deviceclass.resource.k8s.io/devices=5,nic.deviceclass.resource.k8s.io/devices=1",
            ),
        ] {
            let claim = object(json!({"spec": {"devices": {"requests": requests}}}));
            assert_eq!(in_words(&devices(&claim)), want);
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            assert_eq!(usage("resource.k8s.io", "resourceclaims", &claim, now).len(), devices(&claim).len() + 1);
        }
        assert!(concerns("resource.k8s.io", "resourceclaims", "gpu.deviceclass.resource.k8s.io/devices"));
    }

    #[test]
    fn which_names_concern_whom() {
        for (resource, name, want) in [
            ("pods", "pods", true),
            ("pods", "count/pods", true),
            ("pods", "cpu", true),
            ("pods", "limits.memory", true),
            ("pods", "requests.example.com/gpu", true),
            ("pods", "requests.storage", false),
            ("pods", "services", false),
            ("pods", "fast.storageclass.storage.k8s.io/requests.storage", false),
            ("services", "services.nodeports", true),
            ("services", "pods", false),
            ("persistentvolumeclaims", "requests.storage", true),
            ("persistentvolumeclaims", "fast.storageclass.storage.k8s.io/requests.storage", true),
            ("secrets", "secrets", true),
            ("secrets", "count/secrets", true),
            ("secrets", "configmaps", false),
        ] {
            assert_eq!(concerns("", resource, name), want, "{resource} {name}");
        }
        assert!(
            concerns("apps", "deployments", "count/deployments.apps")
                && !concerns("", "deployments", "count/deployments.apps")
        );
    }

    #[test]
    fn scopes() {
        let quota = |scopes: Value, selectors: Value| {
            object(json!({"spec": {"scopes": scopes, "scopeSelector": {"matchExpressions": selectors}}}))
        };
        let class = |operator: &str, values: &[&str]| json!([{"scopeName": "PriorityClass", "operator": operator, "values": values}]);
        let best = json!({"status": {"qosClass": "BestEffort"}, "spec": {"priorityClassName": "high"}});
        let deadline = json!({"status": {"qosClass": "Burstable"}, "spec": {"activeDeadlineSeconds": 5}});
        let none = || json!([]);
        for (scopes, selectors, pod, want) in [
            (none(), none(), &best, true),
            (json!(["BestEffort"]), none(), &best, true),
            (json!(["BestEffort", "Terminating"]), none(), &best, false),
            (json!(["NotBestEffort", "Terminating"]), none(), &deadline, true),
            (json!(["NotTerminating"]), none(), &deadline, false),
            (json!(["PriorityClass"]), none(), &best, true),
            (json!(["PriorityClass"]), none(), &deadline, false),
            (none(), class("In", &["high"]), &best, true),
            (none(), class("In", &["low"]), &best, false),
            (none(), class("NotIn", &["high"]), &deadline, true),
            (none(), class("DoesNotExist", &[]), &deadline, true),
            (json!(["CrossNamespacePodAffinity"]), none(), &best, false),
        ] {
            assert_eq!(
                includes(&quota(scopes.clone(), selectors.clone()), "", "pods", &object(pod.clone())),
                want,
                "{scopes} {selectors} {pod}"
            );
        }
        assert!(!includes(&quota(json!(["BestEffort"]), json!([])), "", "services", &object(json!({}))));
        let crossing = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "k", "namespaces": ["x"]}]}}}});
        assert!(includes(&quota(json!(["CrossNamespacePodAffinity"]), json!([])), "", "pods", &object(crossing)));
    }

    #[test]
    fn what_must_be_said() {
        let pod = object(json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}]}}));
        assert_eq!(unsaid(&pod, ["pods", "requests.cpu"]).as_deref(), Some("must specify requests.cpu for: b"));
        assert_eq!(
            unsaid(&pod, ["limits.memory", "cpu"]).as_deref(),
            Some("must specify cpu for: b; limits.memory for: a,b")
        );
        assert_eq!(unsaid(&pod, ["pods", "requests.ephemeral-storage"]), None);
        let whole = object(json!({"spec": {"resources": {"requests": {"cpu": "1"}}, "containers": [{"name": "b"}]}}));
        assert_eq!(unsaid(&whole, ["requests.cpu"]), None);
    }
}
