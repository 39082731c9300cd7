//! How many pods a second the scheduler gives a node.

use super::hollow::{Fleet, NodeShape, Options, Wire};
use super::{Asked, populated, row, server};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Creations that are under way at once.
const CREATING: usize = 48;
const PODS: &str = "/api/v1/namespaces/default/pods";

fn options(nodes: usize, unschedulable: bool) -> Options {
    // kubelets that report are the machine's work, not the scheduler's; a thousand leases are enough of theirs
    let shape = NodeShape { zones: 10, unschedulable, ..NodeShape::default() };
    let renewal = Duration::from_secs(if nodes > 2000 { 30 } else { 10 });
    Options { shape, renewal, lease_seconds: 120, reports: false, ..Options::default() }
}

/// A pod that asks for what most do.
fn plain(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "labels": {"app": format!("app-{}", number % 50)}},
        "spec": {"containers": [{"name": "c", "image": "registry.k8s.io/pause:3.9",
            "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}}}]}})
}

/// One of a hundred that may not be on the same node, and are spread over the zones and the nodes.
fn picky(number: usize) -> Value {
    let mut pod = plain(number);
    let labels = json!({"app": format!("app-{}", number / 100)});
    let selector = json!({"matchLabels": labels});
    pod["metadata"]["labels"] = labels;
    pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}]}});
    pod["spec"]["topologySpreadConstraints"] = json!([
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": selector},
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector}]);
    pod
}

async fn create(wire: &Wire, count: usize, pod: impl Fn(usize) -> Value) {
    let all = futures::stream::iter(0..count).map(|number| {
        let pod = pod(number);
        async move { wire.create(PODS, &pod).await }
    });
    all.buffer_unordered(CREATING).for_each(|made| async { drop(made.unwrap()) }).await;
}

/// From the first request to the last pod's node, with pods that come as fast as the API takes them.
fn as_they_come(runtime: &Runtime, nodes: usize, pods: usize, what: &str, goal: &str, pod: fn(usize) -> Value) {
    let cluster = server();
    runtime.block_on(async {
        let (wire, fleet) = populated(&cluster, options(nodes, false), nodes).await;
        settle(&wire, nodes).await;
        let begun = Instant::now();
        let made = async {
            create(&wire, pods, pod).await;
            begun.elapsed()
        };
        let bound = async {
            fleet.until(|counts| counts.bound >= pods).await;
            begun.elapsed()
        };
        let (made, bound) = tokio::join!(made, bound);
        #[expect(clippy::cast_precision_loss, reason = "a number of pods")]
        let rate = |time: Duration| format!("{:.0} /s", pods as f64 / time.as_secs_f64());
        row(&format!("{what}: {pods} pods on {nodes} nodes, as they come"), rate(bound), goal);
        row("  of which creating them", rate(made), "");
    });
}

/// Waits until the taints of all nodes are as they should be.
async fn settle(wire: &Wire, nodes: usize) {
    loop {
        let list: Value = wire.get("/api/v1/nodes").await.unwrap();
        let items = list["items"].as_array().unwrap();
        if items.len() == nodes
            && items.iter().all(|n| n["spec"]["taints"].is_null() && n["spec"]["podCIDR"].is_string())
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub(super) fn rate(runtime: &Runtime, asked: &Asked) {
    let (nodes, pods) = (asked.number("nodes", 1000), asked.number("pods", 10_000));
    as_they_come(runtime, nodes, pods, "scheduling", "2000 /s", plain);
}

pub(super) fn affinity(runtime: &Runtime, asked: &Asked) {
    let (nodes, pods) = (asked.number("nodes", 1000), asked.number("pods", 3000));
    as_they_come(runtime, nodes, pods, "anti-affinity and spread", "300 /s", picky);
}

/// Pods that all wait already, on cordoned nodes, which are then let go.
pub(super) fn waiting(runtime: &Runtime, asked: &Asked) {
    let (nodes, pods) = (asked.number("nodes", 1000), asked.number("pods", 10_000));
    let cluster = server();
    runtime.block_on(async {
        let (wire, fleet) = populated(&cluster, options(nodes, true), nodes).await;
        create(&wire, pods, plain).await;
        refused(&wire, pods).await;
        let begun = Instant::now();
        let uncordon = uncordon(&wire, &fleet);
        let first = async {
            fleet.until(|counts| counts.bound > 0).await;
            begun.elapsed()
        };
        let last = async {
            fleet.until(|counts| counts.bound >= pods).await;
            begun.elapsed()
        };
        let (uncordoned, first, last) = tokio::join!(uncordon, first, last);
        #[expect(clippy::cast_precision_loss, reason = "a number of pods")]
        let rate = format!("{:.0} /s", pods as f64 / (last - first).as_secs_f64());
        row(&format!("scheduling: {pods} pods that wait, on {nodes} nodes"), rate, "2000 /s");
        row("  from the first node's letting go to the last pod", super::seconds(last), "");
        row("  of which until all nodes were let go", super::seconds(uncordoned), "");
    });
}

/// Waits until the last pods have been told that they fit nowhere.
async fn refused(wire: &Wire, pods: usize) {
    let is_refused = |pod: &Value| pod["status"]["conditions"][0]["reason"] == "Unschedulable";
    loop {
        let list: Value = wire.get(PODS).await.unwrap();
        let items = list["items"].as_array().unwrap();
        if items.len() == pods && items.iter().all(is_refused) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn uncordon(wire: &Wire, fleet: &Fleet) -> Duration {
    let begun = Instant::now();
    let all = futures::stream::iter(fleet.nodes()).map(|name| async move {
        let patch = json!({"spec": {"unschedulable": null}});
        wire.patch(&format!("/api/v1/nodes/{name}"), &patch).await.unwrap();
    });
    all.buffer_unordered(CREATING).collect::<()>().await;
    begun.elapsed()
}
