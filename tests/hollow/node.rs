//! The nodes themselves: how they register, and how they keep being heard of.

use super::Shared;
use super::pod::{SeenNode, is_unready};
use futures::StreamExt;
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::WatchEvent;
use serde_json::{Value, json};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Requests of registering that are under way at once.
const REGISTERING: usize = 16;
/// How finely the renewals of all nodes are spread over time.
const TICK: Duration = Duration::from_millis(100);
/// Before the next attempt when the server does not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// How hollow nodes look.
#[derive(Clone, Debug)]
pub(crate) struct NodeShape {
    /// What their names begin with; a number follows.
    pub(crate) prefix: &'static str,
    /// Over how many zones they are spread.
    pub(crate) zones: usize,
    /// What they have: processors, memory, pods.
    pub(crate) cpu: &'static str,
    pub(crate) memory: &'static str,
    pub(crate) pods: &'static str,
    /// Whether they are cordoned when they come.
    pub(crate) unschedulable: bool,
}

impl Default for NodeShape {
    fn default() -> Self {
        Self { prefix: "hollow", zones: 3, cpu: "32", memory: "256Gi", pods: "110", unschedulable: false }
    }
}

fn conditions() -> Value {
    let now = Timestamp::now().round(Unit::Second).unwrap_or_default().to_string();
    let one = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "as a hollow node says",
            "lastHeartbeatTime": now, "lastTransitionTime": now})
    };
    json!([
        one("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        one("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        one("PIDPressure", "False", "KubeletHasSufficientPID"),
        one("Ready", "True", "KubeletReady")
    ])
}

fn node(shape: &NodeShape, number: usize) -> Value {
    let name = format!("{}-{number}", shape.prefix);
    let room = json!({"cpu": shape.cpu, "memory": shape.memory, "pods": shape.pods, "ephemeral-storage": "100Gi"});
    let address = format!("192.168.{}.{}", number >> 8 & 255, number & 255);
    let mut node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"hollow": "yes", "kubernetes.io/hostname": name,
            "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": format!("zone-{}", number % shape.zones.max(1))}},
        "status": {"capacity": room, "allocatable": room, "conditions": conditions(),
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "0", "osImage": "hollow",
                "containerRuntimeVersion": "hollow://0", "kubeletVersion": "v1.36.0", "kubeProxyVersion": "",
                "machineID": "", "systemUUID": "", "bootID": ""}}});
    if shape.unschedulable {
        node["spec"] = json!({"unschedulable": true});
    }
    node
}

/// Registers nodes and takes their leases; returns when the server knows them all.
pub(super) async fn register(shared: &Arc<Shared>, numbers: Range<usize>) {
    let shape = &shared.options.shape;
    let one = |number: usize| async move {
        let node = node(shape, number);
        let name = format!("{}-{number}", shape.prefix);
        persist(|| shared.wire.create("/api/v1/nodes", &node)).await;
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": shared.lease_seconds.load(Ordering::Relaxed), "renewTime": micros()}});
        persist(|| shared.wire.create(LEASES, &lease)).await;
        name
    };
    let mut names = futures::stream::iter(numbers).map(one).buffer_unordered(REGISTERING);
    while let Some(name) = names.next().await {
        shared.state.lock().nodes.push(name);
    }
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

fn micros() -> String {
    Timestamp::now().round(Unit::Microsecond).unwrap_or_default().to_string()
}

/// Repeats a creation until it is done (or was done already).
async fn persist<F: Future<Output = Result<bytes::Bytes, super::Refused>>>(create: impl Fn() -> F) {
    loop {
        match create().await {
            Ok(_) => return,
            Err(refused) if refused.code() == 409 => return,
            Err(refused) => tracing::debug!(%refused, "not registered, trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Renews the leases of all nodes that are not lost, evenly spread over the time of a renewal.
pub(super) async fn keep_leases(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut next, mut owed) = (0, 0.0);
    loop {
        ticks.tick().await;
        let due: Vec<String> = {
            let state = shared.state.lock();
            let all = state.nodes.len();
            #[expect(clippy::cast_precision_loss, reason = "a number of nodes")]
            let share = all as f64 * TICK.as_secs_f64() / shared.options.renewal.as_secs_f64();
            owed = (owed + share).min(all as f64);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small, and not negative")]
            let count = owed as usize;
            owed -= count as f64;
            let first = next;
            next = if all == 0 { 0 } else { (first + count) % all };
            let names = (0..count).map(|i| &state.nodes[(first + i) % all]);
            names.filter(|name| !state.lost.contains(*name)).cloned().collect()
        };
        let renewals = futures::stream::iter(due).map(|name| renew(&shared, name)).buffer_unordered(4);
        renewals.collect::<()>().await;
    }
}

async fn renew(shared: &Shared, name: String) {
    let patch = json!({"spec": {"renewTime": micros(), "leaseDurationSeconds": shared.lease_seconds.load(Ordering::Relaxed),
        "holderIdentity": name}});
    // what fails now is done in the next round
    if let Err(refused) = shared.wire.patch(&format!("{LEASES}/{name}"), &patch).await {
        if refused.code() != 404 {
            return;
        }
        // leases do not survive a crash of the server
        let mut lease = patch;
        lease["apiVersion"] = "coordination.k8s.io/v1".into();
        lease["kind"] = "Lease".into();
        lease["metadata"] = json!({"name": name});
        let _ = shared.wire.create(LEASES, &lease).await;
    }
}

/// Lets nodes that somebody takes for lost, and that are not, say so, as kubelets do with their next status. For ever.
pub(super) async fn keep_ready(shared: Arc<Shared>) {
    loop {
        // a watch without a version begins with what is there
        let request = http::Request::get("/api/v1/nodes?watch=1&timeoutSeconds=280").body(Vec::new());
        if let Ok(request) = request
            && let Ok(events) = shared.wire.client().request_events::<SeenNode>(request).await
        {
            let mut events = std::pin::pin!(events);
            while let Some(Ok(event)) = events.next().await {
                let (WatchEvent::Added(node) | WatchEvent::Modified(node)) = event else { continue };
                let name = &node.metadata.name;
                let is_ours = name.starts_with(shared.options.shape.prefix);
                let is_lost = shared.state.lock().lost.contains(name);
                if is_ours && !is_lost && is_unready(&node.status.conditions) {
                    come_back(&shared, name).await;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A node that was lost says that it is ready.
pub(super) async fn come_back(shared: &Shared, name: &str) {
    let patch = json!({"status": {"conditions": conditions()}});
    loop {
        match shared.wire.strategic(&format!("/api/v1/nodes/{name}/status"), &patch).await {
            Ok(_) => return renew(shared, name.to_owned()).await,
            // it was taken out of the cluster
            Err(refused) if refused.code() == 404 => return,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
