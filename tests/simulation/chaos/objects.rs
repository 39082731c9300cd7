//! What the chaos happens to.

use serde_json::{Value, json};

/// Where it does.
pub(super) const NAMESPACE: &str = "chaos";

/// A Deployment of the test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rolling {
    pub(super) name: &'static str,
    /// More pods than wanted, and fewer available ones, while it rolls.
    pub(super) surge: usize,
    pub(super) unavailable: usize,
    pub(super) recreate: bool,
}

/// The Deployments whose templates change.
pub(super) const ROLLING: [Rolling; 4] = [
    Rolling { name: "both", surge: 1, unavailable: 1, recreate: false },
    Rolling { name: "surge", surge: 3, unavailable: 0, recreate: false },
    Rolling { name: "room", surge: 0, unavailable: 2, recreate: false },
    Rolling { name: "anew", surge: 0, unavailable: 0, recreate: true },
];
/// One with a budget, whose pods are evicted.
pub(super) const GUARDED: Rolling = Rolling { name: "guarded", surge: 1, unavailable: 2, recreate: false };
/// How many pods the guarded one has; its budget lets two of them go.
pub(super) const GUARDED_REPLICAS: usize = 6;

pub(super) fn image(number: usize) -> String {
    format!("registry.example.org/app:{number}")
}

/// The template of a pod that starts after a moment, and stops after another.
fn template(app: &str, image_number: usize) -> Value {
    // a lost node's pods go as soon as the node is known to be lost
    let at_once = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0});
    json!({"metadata": {"labels": {"app": app},
            "annotations": {"hollow/starts-in": "60", "hollow/stops-in": "40"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": image(image_number)}],
            "tolerations": [at_once("node.kubernetes.io/unreachable"), at_once("node.kubernetes.io/not-ready")]}})
}

pub(super) fn deployment(of: &Rolling, replicas: usize, image: usize) -> Value {
    let strategy = if of.recreate {
        json!({"type": "Recreate"})
    } else {
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": of.surge, "maxUnavailable": of.unavailable}})
    };
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": of.name},
        "spec": {"replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"app": of.name}},
            "template": template(of.name, image)}})
}

pub(super) fn stateful_set(name: &str, parallel: bool, replicas: usize, image: usize) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {"replicas": replicas, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "podManagementPolicy": if parallel { "Parallel" } else { "OrderedReady" }, "template": template(name, image)}})
}

pub(super) fn daemon_set(name: &str, image: usize) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template(name, image),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 5}}}})
}

/// A Job of pods that take a moment. None fails by itself: after failures a Job waits for ten seconds and more.
pub(super) fn job(name: &str, indexed: bool, completions: usize, parallelism: usize) -> Value {
    let mut template = template(name, 0);
    template["metadata"]["annotations"]["hollow/runs-for"] = "150".into();
    template["spec"]["restartPolicy"] = "Never".into();
    let mode = if indexed { "Indexed" } else { "NonIndexed" };
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"completionMode": mode, "completions": completions, "parallelism": parallelism, "backoffLimit": 1000,
            "template": template}})
}

pub(super) fn budget() -> Value {
    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": GUARDED.name},
        "spec": {"minAvailable": GUARDED_REPLICAS - GUARDED.unavailable, "selector": {"matchLabels": {"app": GUARDED.name}}}})
}

/// The collection of a kind in the namespace.
pub(super) fn path(kind: &str) -> String {
    let group = match kind {
        "jobs" => "apis/batch/v1",
        "poddisruptionbudgets" => "apis/policy/v1",
        "pods" => "api/v1",
        _ => "apis/apps/v1",
    };
    format!("/{group}/namespaces/{NAMESPACE}/{kind}")
}
