//! How fast the controllers are.

use super::hollow::{Options, Wire};
use super::{Asked, populated, row, seconds, server};
use futures::StreamExt;
use kube::api::{DynamicObject, WatchEvent};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn web(replicas: usize) -> Value {
    let labels = json!({"app": "web"});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.9",
                "resources": {"requests": {"cpu": "10m", "memory": "20Mi"}}}],
                "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 0}]}}}})
}

/// Follows the objects of a path (with a query) from now on until one is as asked for.
async fn until(wire: &Wire, path: &str, is_reached: impl Fn(&WatchEvent<DynamicObject>) -> bool) {
    let request = http::Request::get(format!("{path}watch=1&timeoutSeconds=280&resourceVersion=0")).body(Vec::new());
    let events = wire.client().request_events::<DynamicObject>(request.unwrap()).await.unwrap();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        if is_reached(&event.unwrap()) {
            return;
        }
    }
    panic!("the watch of {path} has ended");
}

fn number(event: &WatchEvent<DynamicObject>, field: &str) -> u64 {
    match event {
        WatchEvent::Added(o) | WatchEvent::Modified(o) => o.data["status"][field].as_u64().unwrap_or(0),
        _ => 0,
    }
}

async fn available(wire: &Wire, replicas: usize) {
    let path = format!("{DEPLOYMENTS}?fieldSelector=metadata.name%3Dweb&");
    until(wire, &path, |event| number(event, "availableReplicas") >= replicas as u64).await;
}

pub(super) fn deployment(runtime: &Runtime, asked: &Asked) {
    let (nodes, replicas) = (asked.number("nodes", 100), asked.number("replicas", 1000));
    let cluster = server();
    runtime.block_on(async {
        let (wire, fleet) = populated(&cluster, Options::default(), nodes).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let begun = Instant::now();
        let (_, bound, running, available) = tokio::join!(
            async { wire.create(DEPLOYMENTS, &web(replicas)).await.unwrap() },
            async {
                fleet.until(|c| c.bound >= replicas).await;
                begun.elapsed()
            },
            async {
                fleet.until(|c| c.running >= replicas).await;
                begun.elapsed()
            },
            async {
                available(&wire, replicas).await;
                begun.elapsed()
            },
        );
        row(&format!("Deployment of {replicas} on {nodes} nodes, all available"), seconds(available), "3 s");
        row("  of which until the last pod had a node", seconds(bound), "");
        row("  of which until the last pod ran", seconds(running), "");
        let begun = Instant::now();
        wire.patch(&format!("{DEPLOYMENTS}/web"), &json!({"spec": {"replicas": 0}})).await.unwrap();
        fleet.until(|c| c.bound == 0).await;
        row("  scaled to 0, until the last pod is gone (grace 1 s)", seconds(begun.elapsed()), "");
    });
}

pub(super) fn namespace(runtime: &Runtime, asked: &Asked) {
    let count = asked.number("configmaps", 300);
    let cluster = server();
    runtime.block_on(async {
        let (wire, _fleet) = populated(&cluster, Options::default(), 1).await;
        let mut times = Vec::new();
        for round in 0..5 {
            let name = format!("full-{round}");
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            wire.create("/api/v1/namespaces", &object).await.unwrap();
            let (path, wire) = (format!("/api/v1/namespaces/{name}/configmaps"), &wire);
            let all = futures::stream::iter(0..count).map(|i| {
                let map = json!({"metadata": {"name": format!("m-{i}")}, "data": {"key": "value ".repeat(20)}});
                let path = path.clone();
                async move { wire.create(&path, &map).await.unwrap() }
            });
            all.buffer_unordered(16).for_each(|_| async {}).await;
            let selected = format!("/api/v1/namespaces?fieldSelector=metadata.name%3D{name}&");
            let gone = until(wire, &selected, |event| matches!(event, WatchEvent::Deleted(_)));
            let begun = Instant::now();
            let delete = async { wire.delete(&format!("/api/v1/namespaces/{name}"), &json!({})).await.unwrap() };
            tokio::join!(gone, delete);
            times.push(begun.elapsed());
        }
        times.sort();
        row(&format!("namespace of {count} ConfigMaps deleted, median of 5"), seconds(times[2]), "0.3 s (6 s)");
    });
}

pub(super) fn loss(runtime: &Runtime, asked: &Asked) {
    let (nodes, replicas) = (asked.number("nodes", 10), asked.number("replicas", 300));
    let cluster = server();
    runtime.block_on(async {
        let (wire, fleet) =
            populated(&cluster, Options { renewal: Duration::from_secs(5), ..Options::default() }, nodes).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        wire.create(DEPLOYMENTS, &web(replicas)).await.unwrap();
        available(&wire, replicas).await;
        let begun = Instant::now();
        fleet.lose("hollow-0");
        let is_tainted = |event: &WatchEvent<DynamicObject>| {
            let (WatchEvent::Added(node) | WatchEvent::Modified(node)) = event else { return false };
            let taints = node.data["spec"]["taints"].as_array();
            taints.is_some_and(|all| all.iter().any(|t| t["effect"] == "NoExecute"))
        };
        until(&wire, "/api/v1/nodes?fieldSelector=metadata.name%3Dhollow-0&", is_tainted).await;
        let (tainted, noticed) = (Instant::now(), begun.elapsed());
        replaced(&wire, replicas).await;
        row("a node is lost, until that is noticed", seconds(noticed), "50 s");
        row(
            &format!("  then, until its pods (of {replicas} on {nodes}) are replaced"),
            seconds(tainted.elapsed()),
            "1 s",
        );
    });
}

/// Waits until so many pods are ready that are not on the lost node.
async fn replaced(wire: &Wire, replicas: usize) {
    let mut ready = std::collections::HashSet::new();
    let mut elsewhere = |event: &WatchEvent<DynamicObject>| {
        let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { return 0 };
        let conditions = pod.data["status"]["conditions"].as_array();
        let is_ready = conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
        if is_ready && pod.data["spec"]["nodeName"] != "hollow-0" {
            ready.insert(pod.metadata.uid.clone());
        }
        ready.len()
    };
    let request = http::Request::get("/api/v1/pods?watch=1&timeoutSeconds=280&resourceVersion=0").body(Vec::new());
    let events = wire.client().request_events::<DynamicObject>(request.unwrap()).await.unwrap();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        if elsewhere(&event.unwrap()) >= replicas {
            return;
        }
    }
    panic!("the watch of pods has ended");
}
