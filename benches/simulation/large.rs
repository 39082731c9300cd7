//! What a server needs for a large cluster.

use super::common::{processes, pss_kib};
use super::harness::Cluster;
use super::hollow::{NodeShape, Options, Wire};
use super::{Asked, populated, row, seconds, server};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

fn memory(cluster: &Cluster) -> String {
    let all: u64 = processes(cluster).iter().map(|process| pss_kib(process)).sum();
    #[expect(clippy::cast_precision_loss, reason = "some MiB")]
    let mib = all as f64 / 1024.0;
    format!("{mib:.0} MiB")
}

/// A pod of the usual size, on a node already: what the scheduler does is measured elsewhere.
fn pod(number: usize, nodes: usize) -> Value {
    let app = format!("app-{}", number % 500);
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{app}-{number}"), "labels": {"app": app, "pod-template-hash": "5d4f8c7b9"}},
        "spec": {"nodeName": format!("hollow-{}", number % nodes), "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": format!("registry.example.org/team/{app}:1.0"),
                "ports": [{"containerPort": 8080, "name": "http"}],
                "env": [{"name": "MODE", "value": "production"}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}}}]}})
}

async fn create(wire: &Wire, nodes: usize, pods: usize) {
    let all = futures::stream::iter(0..pods).map(|number| {
        let pod = pod(number, nodes);
        async move { wire.create("/api/v1/namespaces/default/pods", &pod).await }
    });
    all.buffer_unordered(32).for_each(|made| async { drop(made.unwrap()) }).await;
}

pub(super) fn large(runtime: &Runtime, asked: &Asked) {
    let (nodes, pods) = (asked.number("nodes", 5000), asked.number("pods", 50_000));
    let cluster = server();
    runtime.block_on(async {
        row("a server with nothing in it (PSS)", memory(&cluster), "");
        let shape = NodeShape { zones: 10, ..NodeShape::default() };
        let options = Options { shape, renewal: Duration::from_secs(30), lease_seconds: 120, ..Options::default() };
        let begun = Instant::now();
        let (wire, fleet) = populated(&cluster, options, nodes).await;
        row(&format!("{nodes} nodes registered"), seconds(begun.elapsed()), "");
        row("  the server's memory", memory(&cluster), "");
        let begun = Instant::now();
        tokio::join!(create(&wire, nodes, pods), fleet.until(|counts| counts.running >= pods));
        row(&format!("{pods} pods created and Running"), seconds(begun.elapsed()), "");
        row("  the server's memory at once", memory(&cluster), "1536 MiB");
        tokio::time::sleep(Duration::from_secs(30)).await;
        row("  the server's memory after 30 s", memory(&cluster), "1536 MiB");
        let begun = Instant::now();
        let path = "/api/v1/pods?labelSelector=app%3Dapp-7";
        let list: Value = wire.get(path).await.unwrap();
        row("  a list by a label", format!("{:.0} ms", begun.elapsed().as_secs_f64() * 1e3), "");
        assert!(!list["items"].as_array().unwrap().is_empty(), "{path}");
    });
}
