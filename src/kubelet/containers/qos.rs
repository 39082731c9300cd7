//! Quality of service: the class of a pod, its cgroup, the resources of pod and containers, OOM scores. Pure.

use edge_api::Quantity;
use edge_runtime::Resources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;

/// The period over which CPU limits are enforced, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// Smallest CPU quota the kernel takes, in microseconds.
const LEAST_QUOTA: i64 = 1_000;
/// Bounds of cgroup v1's `cpu.shares`.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// A resource list of the API.
pub(crate) type List = BTreeMap<String, ApiQuantity>;

/// The class of a pod: `Guaranteed`, `Burstable` or `BestEffort`.
pub(crate) fn class(pod: &Pod) -> &'static str {
    if let Some(known) = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        for class in ["Guaranteed", "Burstable", "BestEffort"] {
            if class == known {
                return class;
            }
        }
    }
    let pod_level = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let all: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(resources) => vec![Some(resources)],
        None => crate::pods::record::spec_containers(pod).map(|(_, c)| c.resources.as_ref()).collect(),
    };
    let amount = |list: Option<&List>, name: &str| list.map_or(0, |l| milli(l, name));
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        for name in ["cpu", "memory"] {
            let limit = amount(resources.and_then(|r| r.limits.as_ref()), name);
            let request = amount(resources.and_then(|r| r.requests.as_ref()), name);
            any |= limit > 0 || request > 0;
            guaranteed &= limit > 0 && (request == 0 || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The pod's cgroup below the runtime's root.
pub(crate) fn cgroup(pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match class(pod) {
        "Guaranteed" => format!("kubepods/pod{uid}"),
        class => format!("kubepods/{}/pod{uid}", class.to_lowercase()),
    }
}

/// A quantity of a list in thousandths; 0 when it is absent or no quantity.
pub(crate) fn milli(list: &List, name: &str) -> i64 {
    list.get(name).and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.milli_value())
}

/// A quantity of a list in units; 0 when it is absent or no quantity.
pub(crate) fn value(list: &List, name: &str) -> i64 {
    list.get(name).and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.value())
}

/// What a pod requests of a resource (thousandths): the main containers and sidecars together, or what the init
/// containers need at their time if that is more, and the overhead.
pub(crate) fn pod_request(pod: &Pod, name: &str) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let request = |c: &Container| {
        let resources = c.resources.as_ref();
        let list = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        list.filter(|l| l.contains_key(name)).or(limits).map_or(0, |l| milli(l, name))
    };
    let own = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).filter(|l| l.contains_key(name));
    let overhead = spec.overhead.as_ref().map_or(0, |l| milli(l, name));
    if let Some(list) = own {
        return milli(list, name) + overhead;
    }
    let (mut sidecars, mut init_peak) = (0, 0);
    for c in spec.init_containers.iter().flatten() {
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars += request(c);
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars + request(c));
        }
    }
    let main: i64 = spec.containers.iter().map(request).sum();
    (main + sidecars).max(init_peak) + overhead
}

/// The limit of a pod as a whole: of it, or of all its containers that have one, as [`pod_request`] adds them up; `None` when none has.
pub(crate) fn pod_limit(pod: &Pod, name: &str) -> Option<Quantity> {
    let spec = pod.spec.as_ref()?;
    let limit = |resources: Option<&ResourceRequirements>| {
        let limit = resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(name));
        limit.and_then(|q| Quantity::parse(&q.0).ok())
    };
    let overhead = spec.overhead.as_ref().and_then(|l| l.get(name)).and_then(|q| Quantity::parse(&q.0).ok());
    let with_overhead = |limit: Quantity| overhead.map_or(limit, |overhead| limit.add(&overhead));
    if let Some(own) = limit(spec.resources.as_ref()) {
        return Some(with_overhead(own));
    }
    let (mut sidecars, mut peak) = (None::<Quantity>, None::<Quantity>);
    let sum = |a: Option<Quantity>, b: Option<Quantity>| a.map_or(b, |a| Some(b.map_or(a, |b| a.add(&b))));
    for c in spec.init_containers.iter().flatten() {
        let with_this = sum(sidecars, limit(c.resources.as_ref()));
        peak = peak.max(with_this);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars = with_this;
        }
    }
    let main = spec.containers.iter().map(|c| limit(c.resources.as_ref())).fold(sidecars, sum);
    main.max(peak).map(with_overhead)
}

/// A weight in cgroup v1's `cpu.shares` for an amount of CPU in thousandths.
pub(crate) fn shares(milli_cpu: i64) -> u64 {
    u64::try_from(milli_cpu.saturating_mul(1024) / 1000).unwrap_or(0).clamp(*SHARES.start(), *SHARES.end())
}

fn limits(cpu_milli_request: i64, limits: Option<&List>) -> Resources {
    let mut resources = Resources { cpu_shares: Some(shares(cpu_milli_request)), ..Resources::default() };
    let Some(limits) = limits else { return resources };
    let cpu = milli(limits, "cpu");
    if cpu > 0 {
        let quota = cpu.saturating_mul(CPU_PERIOD as i64) / 1000;
        resources.cpu_quota = Some(quota.max(LEAST_QUOTA));
        resources.cpu_period = Some(CPU_PERIOD);
    }
    let memory = value(limits, "memory");
    if memory > 0 {
        resources.memory_limit = Some(memory);
    }
    for (name, quantity) in limits {
        let Some(size) = name.strip_prefix("hugepages-") else { continue };
        // `2Mi` in the API is `2MB` for cgroups
        let cgroup_name = format!("{}B", size.trim_end_matches('i'));
        let bytes = Quantity::parse(&quantity.0).map_or(0, |q| q.value());
        resources.hugepages.insert(cgroup_name, u64::try_from(bytes).unwrap_or(0));
    }
    resources
}

/// Resources of a container's cgroup.
pub(crate) fn container_resources(container: &Container) -> Resources {
    let resources = container.resources.as_ref();
    let limit = resources.and_then(|r| r.limits.as_ref());
    let request = resources.and_then(|r| r.requests.as_ref()).filter(|l| l.contains_key("cpu"));
    limits(request.or(limit).map_or(0, |l| milli(l, "cpu")), limit)
}

/// Resources of the pod's cgroup: limited only if every container is.
pub(crate) fn pod_resources(pod: &Pod) -> Resources {
    let cpu = pod_request(pod, "cpu");
    let Some(spec) = &pod.spec else { return Resources::default() };
    if let Some(own) = spec.resources.as_ref().and_then(|r| r.limits.as_ref()) {
        return limits(cpu, Some(own));
    }
    let mut total = List::new();
    for (name, of) in [("cpu", milli as fn(&List, &str) -> i64), ("memory", value)] {
        let limit = |c: &Container| {
            let list = c.resources.as_ref().and_then(|r| r.limits.as_ref());
            list.map(|l| of(l, name)).filter(|v| *v > 0)
        };
        let long_running = crate::pods::record::spec_containers(pod)
            .filter(|(kind, _)| *kind != crate::pods::record::Kind::Init)
            .map(|(_, c)| limit(c))
            .sum::<Option<i64>>();
        let init = spec.init_containers.iter().flatten().map(limit).collect::<Option<Vec<_>>>();
        if let (Some(sum), Some(init)) = (long_running, init) {
            let most = init.into_iter().fold(sum, i64::max);
            let quantity = if name == "cpu" { format!("{most}m") } else { most.to_string() };
            total.insert(name.to_owned(), ApiQuantity(quantity));
        }
    }
    limits(cpu, Some(&total))
}

/// The `oom_score_adj` of a container: the less memory it requests, the sooner it is killed.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: u64) -> i32 {
    let critical = pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= 2_000_000_000);
    match class(pod) {
        _ if critical => -997,
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = request.map_or(0, |l| value(l, "memory"));
            let capacity = i64::try_from(memory_capacity).unwrap_or(i64::MAX).max(1);
            let score = 1000 - i64::try_from(i128::from(request) * 1000 / i128::from(capacity)).unwrap_or(1000);
            // never as safe as a guaranteed one, never as soon as a best-effort one
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn pod(init: Value, containers: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"uid": "u"}, "spec": {"initContainers": init, "containers": containers},
        }))
        .unwrap()
    }

    fn with(limits: Value, requests: Value) -> Value {
        json!({"name": "c", "resources": {"limits": limits, "requests": requests}})
    }

    #[test]
    fn classes_and_cgroups() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (containers, expected, cgroup_path) in [
            (json!([with(json!({}), json!({}))]), "BestEffort", "kubepods/besteffort/podu"),
            (json!([with(both.clone(), both.clone())]), "Guaranteed", "kubepods/podu"),
            (json!([with(both.clone(), json!({}))]), "Guaranteed", "kubepods/podu"),
            (json!([with(both.clone(), json!({"cpu": "500m"}))]), "Burstable", "kubepods/burstable/podu"),
            (
                json!([with(both.clone(), json!({})), with(json!({}), json!({}))]),
                "Burstable",
                "kubepods/burstable/podu",
            ),
            (json!([with(json!({}), json!({"ephemeral-storage": "1Gi"}))]), "BestEffort", "kubepods/besteffort/podu"),
        ] {
            let pod = pod(json!([]), containers.clone());
            assert_eq!(class(&pod), expected, "{containers}");
            assert_eq!(cgroup(&pod), cgroup_path);
        }
    }

    #[test]
    fn requests_count_init_containers_at_their_peak() {
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}});
        let init = with(json!({}), json!({"cpu": "900m"}));
        let main = with(json!({}), json!({"cpu": "300m"}));
        assert_eq!(pod_request(&pod(json!([sidecar, init]), json!([main])), "cpu"), 1000);
        assert_eq!(pod_request(&pod(json!([sidecar]), json!([main])), "cpu"), 400);
        assert_eq!(pod_request(&pod(json!([]), json!([with(json!({"cpu": 2}), json!({}))])), "cpu"), 2000);
    }

    #[test]
    fn the_limit_of_a_pod_is_that_of_its_containers() {
        let limited = |text: &str| with(json!({"x": text}), json!({}));
        let mut sidecar = limited("2");
        sidecar["restartPolicy"] = "Always".into();
        let shown = |pod: &Pod| pod_limit(pod, "x").map(|q| q.to_string());
        let none = || json!({"name": "c"});
        assert_eq!(shown(&pod(json!([]), json!([none()]))), None);
        assert_eq!(shown(&pod(json!([]), json!([limited("3"), limited("4"), none()]))).as_deref(), Some("7"));
        assert_eq!(shown(&pod(json!([limited("9")]), json!([limited("3")]))).as_deref(), Some("9"));
        assert_eq!(shown(&pod(json!([sidecar, limited("4")]), json!([limited("3")]))).as_deref(), Some("6"));
    }

    #[test]
    fn limits_become_quota_and_shares() {
        let c: Container = serde_json::from_value(with(
            json!({"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"}),
            json!({"cpu": "250m"}),
        ))
        .unwrap();
        let r = container_resources(&c);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.cpu_period), (Some(256), Some(50_000), Some(100_000)));
        assert_eq!(r.memory_limit, Some(64 << 20));
        assert_eq!(r.hugepages["2MB"], 4 << 20);
        let none: Container = serde_json::from_value(json!({"name": "c"})).unwrap();
        assert_eq!(container_resources(&none).cpu_shares, Some(2));
        assert_eq!(container_resources(&none).cpu_quota, None);
        let tiny: Container = serde_json::from_value(with(json!({"cpu": "1m"}), json!({}))).unwrap();
        assert_eq!(container_resources(&tiny).cpu_quota, Some(LEAST_QUOTA));
    }

    #[test]
    fn a_pod_is_limited_only_when_every_container_is() {
        let limited = with(json!({"memory": "10Mi"}), json!({}));
        let free = with(json!({}), json!({}));
        assert_eq!(pod_resources(&pod(json!([]), json!([limited, limited]))).memory_limit, Some(20 << 20));
        assert_eq!(pod_resources(&pod(json!([]), json!([limited, free]))).memory_limit, None);
    }

    #[test]
    fn oom_scores_lie_between_the_classes() {
        let score = |c: Value, capacity| {
            let pod = pod(json!([]), json!([c]));
            oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], capacity)
        };
        assert_eq!(score(with(json!({}), json!({})), 1 << 30), 1000);
        assert_eq!(score(with(json!({"cpu": 1, "memory": "1Mi"}), json!({})), 1 << 30), -997);
        assert_eq!(score(with(json!({}), json!({"memory": "512Mi"})), 1 << 30), 500);
        assert_eq!(score(with(json!({}), json!({"memory": "9Gi"})), 1 << 30), 3);
        assert_eq!(score(with(json!({}), json!({"memory": "1"})), 1 << 30), 999);
        assert_eq!(score(with(json!({}), json!({"memory": "1"})), 0), 3);
    }
}
