//! Requests of a pod as a whole (`spec.resources`), derived from its limits and its containers' requests.

use std::collections::BTreeMap;

use edge_api::Quantity;
use serde_json::{Map, Value};

type Fields = Map<String, Value>;
type Amounts = BTreeMap<String, Quantity>;

/// Completes `spec.resources` of a pod that has limits there: a missing request for cpu or memory is what the containers
/// together request, or else the limit. Huge pages that only containers limit become limits of the pod.
pub(super) fn apply(spec: &mut Fields) {
    let resources = spec.get("resources").and_then(Value::as_object);
    let Some(resources) = resources.filter(|r| has_any(r, "limits") || has_any(r, "requests")) else { return };
    let mut limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut requests = resources.get("requests").and_then(Value::as_object).cloned().unwrap_or_default();
    for (resource, amount) in aggregate(spec, "limits") {
        if resource.starts_with("hugepages-") && !requests.contains_key(&resource) {
            limits.entry(resource).or_insert_with(|| amount.to_string().into());
        }
    }
    if !limits.is_empty() {
        for (resource, amount) in aggregate(spec, "requests") {
            if matches!(resource.as_str(), "cpu" | "memory") {
                requests.entry(resource).or_insert_with(|| amount.to_string().into());
            }
        }
        for (resource, amount) in &limits {
            if matches!(resource.as_str(), "cpu" | "memory") || resource.starts_with("hugepages-") {
                requests.entry(resource).or_insert_with(|| amount.clone());
            }
        }
    }
    if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
        for (name, amounts) in [("limits", limits), ("requests", requests)] {
            if !amounts.is_empty() {
                resources.insert(name.to_owned(), amounts.into());
            }
        }
    }
}

fn has_any(resources: &Fields, list: &str) -> bool {
    resources.get(list).and_then(Value::as_object).is_some_and(|amounts| !amounts.is_empty())
}

/// What the pod's containers need together: all containers at once, or one init container beside the sidecars started before it.
fn aggregate(spec: &Fields, list: &str) -> Amounts {
    let containers = |name: &str| spec.get(name).and_then(Value::as_array).into_iter().flatten();
    let (mut total, mut sidecars, mut peak) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in containers("containers") {
        add(&mut total, &amounts(container, list));
    }
    for container in containers("initContainers") {
        let mut needed = amounts(container, list);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut sidecars, &needed);
            add(&mut total, &needed);
            needed = sidecars.clone();
        } else {
            add(&mut needed, &sidecars);
        }
        raise(&mut peak, needed);
    }
    raise(&mut total, peak);
    total
}

fn amounts(container: &Value, list: &str) -> Amounts {
    let amounts = container.get("resources").and_then(|r| r.get(list)).and_then(Value::as_object);
    let parse = |(name, amount): (&String, &Value)| Some((name.clone(), Quantity::parse(amount.as_str()?).ok()?));
    amounts.into_iter().flatten().filter_map(parse).collect()
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.get(name).map_or(*amount, |t| t.add(amount));
        total.insert(name.clone(), sum);
    }
}

fn raise(total: &mut Amounts, floor: Amounts) {
    for (name, amount) in floor {
        let entry = total.entry(name).or_insert(amount);
        if *entry < amount {
            *entry = amount;
        }
    }
}
