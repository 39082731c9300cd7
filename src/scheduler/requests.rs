//! What pods ask for.

use edge_api::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use std::collections::BTreeMap;

/// Amounts by resource name: CPU in thousandths of a core, everything else in units or bytes.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// What a container asks for when it asks for nothing, for spreading load: a tenth of a core and 200 MiB.
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// The amounts that a list of quantities names. Quantities that do not parse count as nothing: validation refuses such.
pub(crate) fn amounts<'a>(list: impl IntoIterator<Item = (&'a String, &'a Wire)>) -> Amounts {
    list.into_iter()
        .filter_map(|(name, quantity)| {
            let q = Quantity::parse(&quantity.0).ok()?;
            Some((name.clone(), if name == "cpu" { q.milli_value() } else { q.value() }))
        })
        .collect()
}

fn requested(resources: Option<&ResourceRequirements>) -> Amounts {
    resources.and_then(|r| r.requests.as_ref()).map(amounts).unwrap_or_default()
}

pub(crate) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, n) in more {
        let slot = to.entry(name.clone()).or_default();
        *slot = slot.saturating_add(*n);
    }
}

pub(crate) fn subtract(from: &mut Amounts, less: &Amounts) {
    for (name, n) in less {
        let slot = from.entry(name.clone()).or_default();
        *slot = slot.saturating_sub(*n);
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, n) in other {
        let slot = to.entry(name.clone()).or_default();
        *slot = (*slot).max(*n);
    }
}

fn is_sidecar(c: &Container) -> bool {
    c.restart_policy.as_deref() == Some("Always")
}

/// What a pod asks for: the larger of all its containers together and of its start (each init container together with the
/// sidecars that run by then), or what the pod as a whole says; and its overhead.
pub(crate) fn of(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let mut running = Amounts::new();
    for c in &spec.containers {
        add(&mut running, &requested(c.resources.as_ref()));
    }
    let (mut sidecars, mut start) = (Amounts::new(), Amounts::new());
    for c in spec.init_containers.iter().flatten() {
        let mine = requested(c.resources.as_ref());
        if is_sidecar(c) {
            add(&mut sidecars, &mine);
            raise(&mut start, &sidecars);
        } else {
            let mut now = sidecars.clone();
            add(&mut now, &mine);
            raise(&mut start, &now);
        }
    }
    add(&mut running, &sidecars);
    raise(&mut running, &start);
    for (name, n) in requested(spec.resources.as_ref()) {
        running.insert(name, n);
    }
    if let Some(overhead) = &spec.overhead {
        add(&mut running, &amounts(overhead));
    }
    running
}

/// CPU and memory as they count for spreading load: containers that ask for nothing count as small ones.
pub(crate) fn for_scoring(pod: &Pod) -> (i64, i64) {
    let asked = of(pod);
    let containers = pod.spec.as_ref().map_or(0, |s| s.containers.len() as i64);
    let or = |name: &str, default: i64| asked.get(name).copied().filter(|n| *n > 0).unwrap_or(default * containers);
    (or("cpu", DEFAULT_CPU), or("memory", DEFAULT_MEMORY))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_sidecars_and_overhead() {
        let c = |name: &str, cpu: &str, always: bool| {
            let mut v = json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
            if always {
                v["restartPolicy"] = "Always".into();
            }
            v
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "overhead": {"cpu": "10m"},
            "initContainers": [c("early", "900m", false), c("side", "100m", true), c("late", "700m", false)],
            "containers": [c("a", "200m", false), c("b", "300m", false)]}}))
        .unwrap();
        // start: early 900, late with sidecar 800; running: 200 + 300 + 100
        assert_eq!(of(&pod)["cpu"], 910);
        assert_eq!(of(&pod)["memory"], 3 << 20);
        let empty: Pod =
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}})).unwrap();
        assert!(of(&empty).is_empty());
        assert_eq!(for_scoring(&empty), (100, 200 << 20));
    }
}
