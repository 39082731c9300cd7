//! Which pod goes first when the node is short of something, and what is said to it. Pure.

use super::thresholds::{Resource, Shortage};
use crate::containers::qos;
use crate::pods::record::spec_containers;
use edge_api::Quantity;
use k8s_openapi::api::core::v1::Pod;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Pods of this priority and above are the system's.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// A pod that could go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) uid: String,
    pub(super) priority: i32,
    /// What it uses; none: nobody knows.
    pub(super) used: Option<i64>,
    pub(super) requested: i64,
    /// What its containers use.
    pub(super) containers: BTreeMap<String, i64>,
}

/// Whether the node needs a pod whatever happens: the system's, and those that are not the API's.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let is_mirror = annotation("kubernetes.io/config.mirror").is_some();
    let is_static = annotation("kubernetes.io/config.source").is_some_and(|source| source != "api");
    is_mirror || is_static || priority(pod) >= SYSTEM_CRITICAL
}

pub(super) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// What a pod requests of a resource.
pub(super) fn requested(pod: &Pod, resource: Resource) -> i64 {
    match resource {
        Resource::Memory | Resource::Storage => qos::pod_request(pod, resource.name()) / 1000,
        Resource::Inodes | Resource::Pids => 0,
    }
}

/// Brings those who go first to the front.
pub(super) fn rank(candidates: &mut [Candidate], resource: Resource) {
    // who is out of sight goes before who is not
    let unknown_first = |a: &Candidate, b: &Candidate| a.used.is_some().cmp(&b.used.is_some());
    let exceeds = |c: &Candidate| c.used.is_some_and(|used| used > c.requested);
    let over = |c: &Candidate| c.used.unwrap_or(0).saturating_sub(c.requested);
    candidates.sort_by(|a, b| {
        let exceeding_first = match resource {
            Resource::Pids => Ordering::Equal,
            _ => unknown_first(a, b).then(exceeds(b).cmp(&exceeds(a))),
        };
        let most_first = unknown_first(a, b).then(over(b).cmp(&over(a)));
        exceeding_first.then(a.priority.cmp(&b.priority)).then(most_first).then_with(|| a.uid.cmp(&b.uid))
    });
}

/// Why a pod has to go, in Kubernetes' words.
pub(super) fn message(pod: &Pod, candidate: &Candidate, shortages: &[Shortage], resource: Resource) -> String {
    let name = resource.name();
    let mut message = format!("The node was low on resource: {name}. ");
    if let Some(of) = shortages.iter().find(|s| s.signal.resource() == resource) {
        message += &format!("Threshold quantity: {}, available: {}. ", of.threshold, of.available);
    }
    if !matches!(resource, Resource::Memory | Resource::Storage) {
        return message;
    }
    let init_last = spec_containers(pod).partition::<Vec<_>, _>(|(kind, _)| *kind == crate::pods::record::Kind::Main);
    for (_, container) in init_last.0.into_iter().chain(init_last.1) {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let request = requests.and_then(|list| list.get(name)).and_then(|q| Quantity::parse(&q.0).ok());
        let request = request.unwrap_or(Quantity::ZERO);
        let Some(used) = candidate.containers.get(&container.name).map(|used| resource.quantity(*used)) else {
            continue;
        };
        if used > request {
            message += &format!(
                "Container {} was using {used}, request is {request}, has larger consumption of {name}. ",
                container.name
            );
        }
    }
    message
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::thresholds::Signal;
    use super::*;
    use serde_json::{Value, json};

    fn ranked(resource: Resource, pods: &[(&str, i32, Option<i64>, i64)]) -> Vec<String> {
        let candidate = |&(uid, priority, used, requested): &(&str, i32, Option<i64>, i64)| Candidate {
            uid: uid.to_owned(),
            priority,
            used,
            requested,
            containers: BTreeMap::new(),
        };
        let mut candidates: Vec<Candidate> = pods.iter().map(candidate).collect();
        rank(&mut candidates, resource);
        candidates.into_iter().map(|c| c.uid).collect()
    }

    #[test]
    fn who_goes_first() {
        for (what, resource, pods, order) in [
            (
                "more than requested before less, whatever the priority",
                Resource::Memory,
                vec![("modest", 0, Some(50), 100), ("greedy", 1000, Some(101), 100)],
                "greedy modest",
            ),
            (
                "the lower priority first",
                Resource::Memory,
                vec![("high", 10, Some(900), 0), ("low", -5, Some(1), 0), ("mid", 0, Some(500), 0)],
                "low mid high",
            ),
            (
                "then who uses most beyond the request",
                Resource::Storage,
                vec![("a", 0, Some(500), 450), ("b", 0, Some(300), 0), ("c", 0, Some(20), 100)],
                "b a c",
            ),
            (
                "nobody knows what it uses",
                Resource::Storage,
                vec![("known", 0, Some(500), 0), ("unknown", 1000, None, 0)],
                "unknown known",
            ),
            (
                "of processes the priority counts, then the number",
                Resource::Pids,
                vec![("few", 0, Some(3), 0), ("many", 0, Some(300), 0), ("high", 9, Some(999), 0), ("odd", 9, None, 0)],
                "many few odd high",
            ),
        ] {
            assert_eq!(ranked(resource, &pods).join(" "), order, "{what}");
        }
    }

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn who_stays() {
        let with = |metadata: Value, priority: i32| {
            is_critical(&pod(json!({"metadata": metadata, "spec": {"containers": [], "priority": priority}})))
        };
        assert!(!with(json!({}), 1_000_000_000));
        assert!(with(json!({}), 2_000_000_000) && with(json!({}), 2_000_001_000));
        assert!(with(json!({"annotations": {"kubernetes.io/config.mirror": "x"}}), 0));
        assert!(with(json!({"annotations": {"kubernetes.io/config.source": "file"}}), 0));
        assert!(!with(json!({"annotations": {"kubernetes.io/config.source": "api"}}), 0));
    }

    #[test]
    fn messages_are_kubernetes() {
        let container = |name: &str, memory: &str| json!({"name": name, "resources": {"requests": {"memory": memory}}});
        let pod = pod(json!({"spec": {"initContainers": [container("i", "1Mi")],
            "containers": [container("a", "10Mi"), container("b", "100Mi"), {"name": "c"}]}}));
        let used = [("a", 20 << 20), ("b", 20 << 20), ("c", 1001), ("i", 2 << 20)];
        let containers = used.map(|(name, used)| (name.to_owned(), used)).into();
        let candidate = Candidate { containers, ..Candidate::default() };
        let shortage = |signal, available| Shortage {
            signal,
            threshold: Quantity::from_bytes(100 << 20),
            available: Quantity::from_bytes(available),
        };
        let shortages = [shortage(Signal::Memory, 53_219_328), shortage(Signal::NodeFs, 1 << 20)];
        assert_eq!(
            message(&pod, &candidate, &shortages, Resource::Memory),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51972Ki. \
             Container a was using 20Mi, request is 10Mi, has larger consumption of memory. \
             Container c was using 1001, request is 0, has larger consumption of memory. \
             Container i was using 2Mi, request is 1Mi, has larger consumption of memory. "
        );
        let alone = Candidate::default();
        assert_eq!(
            message(&pod, &alone, &shortages, Resource::Storage),
            "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 1Mi. "
        );
        assert_eq!(message(&pod, &candidate, &[], Resource::Pids), "The node was low on resource: pids. ");
    }
}
