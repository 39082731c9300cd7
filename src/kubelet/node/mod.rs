//! The node's own object and its lease.
//!
//! Comes in: the configuration, the facts of the machine, what it is short of. Goes out: the Node (registered, its
//! status kept true), the Lease that says the node is alive. Nothing is written while nothing changes, but the lease
//! (volatile in the API's store) and a heartbeat every five minutes.

mod events;
pub(crate) mod machine;

use crate::KUBELET_VERSION;
use crate::context::Context;
use crate::eviction::Pressure;
use crate::status::merge_diff;
use edge_client::{Api, Change, Patch, PatchParams, PostParams, is_conflict, is_not_found};
use edge_network::Readiness;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler,
    NodeSpec, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

/// How long a lease is valid, in seconds.
const LEASE_SECONDS: i32 = 40;
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(10);
/// How often the node's status is written although nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// First and longest time after which a failed write is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// At most that many images are listed in the node's status.
const MAX_IMAGES: usize = 50;
/// Namespace of the leases of nodes.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Registers the node, then keeps its status and its lease, for ever.
pub(crate) async fn run(cx: Arc<Context>, ready: watch::Sender<bool>) {
    let mut delay = RETRY.0;
    let node = loop {
        match register(&cx).await {
            Ok(node) => break node,
            Err(error) => {
                tracing::debug!(%error, "node not registered yet");
                sleep(delay).await;
                delay = (delay * 2).min(RETRY.1);
            }
        }
    };
    tracing::info!(node = cx.config.node_name, "node registered");
    events::started(&cx, &node);
    let drivers = cx.csi.node_is_new(&cx, &node);
    tokio::join!(drivers, keep_status(&cx, ready, Written::of(&node)), keep_lease(&cx));
}

fn nodes(cx: &Context) -> Api<Node> {
    Api::all(cx.client.clone())
}

/// The labels the node always has.
fn own_labels(cx: &Context) -> BTreeMap<String, String> {
    let architecture = machine::architecture();
    BTreeMap::from(
        [
            ("kubernetes.io/hostname", cx.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", architecture),
            ("node.kubernetes.io/instance-type", "edge"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned())),
    )
}

/// Makes the node's object, or brings the labels of the one that is there up to date.
async fn register(cx: &Context) -> Result<Node, edge_client::Error> {
    let name = &cx.config.node_name;
    let mut labels = cx.config.node_labels.clone();
    labels.extend(own_labels(cx));
    let node = Node {
        metadata: ObjectMeta { name: Some(name.clone()), labels: Some(labels), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            taints: Some(cx.config.node_taints.clone()).filter(|t| !t.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status(cx, &NodeStatus::default(), *cx.shortages.pressure().borrow())),
    };
    match nodes(cx).create(&PostParams::default(), &node).await {
        Ok(node) => {
            events::conditions(cx, &NodeStatus::default(), node.status.as_ref().unwrap_or(&NodeStatus::default()));
            Ok(node)
        }
        Err(error) if is_conflict(&error) => {
            let known = nodes(cx).get(name).await?;
            let has = known.metadata.labels.clone().unwrap_or_default();
            if own_labels(cx).iter().all(|(k, v)| has.get(k) == Some(v)) {
                return Ok(known);
            }
            let patch = json!({"metadata": {"labels": own_labels(cx)}});
            nodes(cx).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
        }
        Err(error) => Err(error),
    }
}

/// The condition `Ready` as pods' network makes it.
fn readiness(network: &Readiness) -> (&'static str, (&'static str, String)) {
    match network {
        Readiness::Ready => ("True", ("KubeletReady", "kubelet is posting ready status".to_owned())),
        // the words of the kubelet, which tools look for
        Readiness::NotReady(why) => (
            "False",
            (
                "KubeletNotReady",
                format!(
                    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
                ),
            ),
        ),
    }
}

fn conditions(before: &NodeStatus, pressure: Pressure, network: &Readiness, now: Timestamp) -> Vec<NodeCondition> {
    let word = |yes: bool| if yes { "True" } else { "False" };
    let pick =
        |short: bool, no: (&'static str, &'static str), yes: (&'static str, &'static str)| if short { yes } else { no };
    let memory = pick(
        pressure.memory,
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    );
    let disk = pick(
        pressure.disk,
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    );
    let pids = pick(
        pressure.pids,
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    );
    let (ready, why) = readiness(network);
    let owned = |(reason, message): (&'static str, &str)| (reason, message.to_owned());
    [
        ("MemoryPressure", word(pressure.memory), owned(memory)),
        ("DiskPressure", word(pressure.disk), owned(disk)),
        ("PIDPressure", word(pressure.pids), owned(pids)),
        ("Ready", ready, why),
    ]
    .into_iter()
    .map(|(type_, status, (reason, message))| {
        let known = before.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: known.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        }
    })
    .collect()
}

fn status(cx: &Context, before: &NodeStatus, pressure: Pressure) -> NodeStatus {
    let config = &cx.config;
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let mut addresses: Vec<NodeAddress> = config.ips().iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.node_name.clone()));
    let now = crate::status::compute::whole_seconds(Timestamp::now());
    let extended = extended_resources(before);
    let plugins = cx.device_plugins.on_node();
    let with_extended = |mut own: BTreeMap<String, Quantity>, of_plugins| {
        own.extend(extended.clone());
        own.extend(of_plugins);
        own
    };
    NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(with_extended(cx.machine.allocatable(config.max_pods), plugins.allocatable)),
        capacity: Some(with_extended(cx.machine.capacity(config.max_pods), plugins.capacity)),
        conditions: Some(conditions(before, pressure, &cx.network.readiness(), now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.kubelet_port) }),
        }),
        images: Some(images(cx)),
        node_info: Some(cx.machine.info(&config.edge_version, KUBELET_VERSION)),
        runtime_handlers: Some(runtime_handlers()),
        volumes_in_use: Some(cx.csi.in_use().borrow().clone()),
        ..NodeStatus::default()
    }
}

/// What others say that the node has: resources with names of their own, all of which pods may have.
pub(crate) fn extended_resources(status: &NodeStatus) -> BTreeMap<String, Quantity> {
    let is_extended = |name: &str| name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"));
    let all = status.capacity.iter().flatten();
    all.filter(|(name, _)| is_extended(name)).map(|(name, q)| (name.clone(), q.clone())).collect()
}

fn runtime_handlers() -> Vec<NodeRuntimeHandler> {
    let of = |name: &&str| NodeRuntimeHandler { name: Some((*name).to_owned()), ..NodeRuntimeHandler::default() };
    crate::pods::runtime_class::HANDLERS.iter().map(of).collect()
}

/// The largest images of the node.
fn images(cx: &Context) -> Vec<ContainerImage> {
    let mut images = cx.images.list();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images.truncate(MAX_IMAGES);
    let entry = |image: Arc<edge_image::Image>| ContainerImage {
        // the API keeps no empty lists: what it has is compared with this
        names: Some(image.repo_digests.iter().chain(&image.repo_tags).cloned().collect())
            .filter(|n: &Vec<_>| !n.is_empty()),
        size_bytes: i64::try_from(image.size).ok(),
    };
    images.into_iter().map(entry).collect()
}

/// The change to be written; `None` when nothing but the time of the heartbeat would change.
fn status_change(before: &NodeStatus, after: &NodeStatus) -> Option<Value> {
    let plain = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|c| c.last_heartbeat_time = None);
        // plain data always serializes
        serde_json::to_value(status).unwrap_or_default()
    };
    let before = plain(before);
    let mut change = merge_diff(&before, &plain(after))?;
    if let Value::Object(change) = &mut change {
        // what others have put into the status is left alone; an empty list is none
        let is_none = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        change.retain(|key, value| !(value.is_null() || is_none(value) && is_none(&before[key.as_str()])));
        if change.is_empty() {
            return None;
        }
        change.insert("conditions".to_owned(), serde_json::to_value(&after.conditions).unwrap_or_default());
    }
    Some(change)
}

/// The newest status that the API is known to have.
#[derive(Default)]
struct Written {
    status: Option<NodeStatus>,
    version: u64,
}

impl Written {
    fn of(node: &Node) -> Self {
        Self { status: node.status.clone(), version: version(node) }
    }

    /// Takes what has been read, unless it is older: what this node wrote itself is known before the watch tells.
    fn learn(&mut self, node: &Node) {
        if version(node) >= self.version {
            *self = Self::of(node);
        }
    }
}

/// A resource version, which Kubernetes lets clients compare as a number.
fn version(node: &Node) -> u64 {
    node.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Writes the node's status when it changes: when its object was changed by others, its address changed, a device plugin told something, an
/// image came or went, something ran short ([`crate::eviction`]). What could not be written is tried again with the next look.
async fn keep_status(cx: &Context, ready: watch::Sender<bool>, mut written: Written) {
    let mut changes = cx.node.subscribe();
    let network_changed = Arc::new(Notify::new());
    let told = network_changed.clone();
    cx.network.on_readiness(move || told.notify_one());
    let mut heartbeat = Instant::now() + HEARTBEAT;
    let mut look = interval(RENEW);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut addresses = cx.config.node_ips.clone();
    let mut devices = cx.device_plugins.changes();
    let mut volumes = cx.csi.in_use();
    let mut pressure = cx.shortages.pressure();
    loop {
        tokio::select! {
            _ = look.tick() => {}
            Ok(()) = devices.changed() => {}
            Ok(()) = volumes.changed() => {}
            Ok(()) = pressure.changed() => {}
            Ok(()) = addresses.changed() => {}
            change = changes.recv() => match change {
                Some(Change::Applied { new, .. }) => written.learn(&new),
                Some(Change::Deleted(_)) => {
                    tracing::warn!("the node's object was deleted, registering again");
                    let node = register(cx).await;
                    if let Ok(node) = &node {
                        cx.csi.node_is_new(cx, node).await;
                    }
                    written = node.map(|node| Written::of(&node)).unwrap_or_default();
                }
                None => return,
            },
            () = network_changed.notified() => {}
            () = sleep_until(heartbeat) => {}
        }
        let Some(before) = &written.status else { continue };
        cx.csi.reported(before);
        let after = status(cx, before, *pressure.borrow_and_update());
        let beat = Instant::now() >= heartbeat;
        let change = match status_change(before, &after) {
            Some(change) => change,
            None if beat => json!({"conditions": after.conditions}),
            None => {
                mark_ready(&ready, before);
                cx.device_plugins.told(before).await;
                continue;
            }
        };
        let patch = Patch::Merge(json!({"status": change}));
        match nodes(cx).patch_status(&cx.config.node_name, &PatchParams::default(), &patch).await {
            Ok(node) => {
                heartbeat = Instant::now() + HEARTBEAT;
                events::conditions(cx, before, &after);
                written.learn(&node);
                if let Some(written) = &written.status {
                    cx.csi.reported(written);
                    mark_ready(&ready, written);
                }
            }
            // tried again with the next look
            Err(error) => tracing::debug!(%error, "node status not written"),
        }
    }
}

fn mark_ready(ready: &watch::Sender<bool>, status: &NodeStatus) {
    let is_ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    ready.send_if_modified(|known| std::mem::replace(known, is_ready) != is_ready);
}

/// Renews the node's lease.
async fn keep_lease(cx: &Context) {
    let api: Api<Lease> = Api::namespaced(cx.client.clone(), LEASE_NAMESPACE);
    let mut tick = interval(RENEW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut delay = RETRY.0;
        while let Err(error) = renew(cx, &api).await {
            tracing::debug!(%error, "lease not renewed");
            sleep(delay).await;
            delay = (delay * 2).min(RETRY.1);
        }
    }
}

async fn renew(cx: &Context, api: &Api<Lease>) -> Result<(), edge_client::Error> {
    let name = &cx.config.node_name;
    let now = MicroTime(Timestamp::now());
    let patch = Patch::Merge(json!({"spec": {"renewTime": now}}));
    match api.patch(name, &PatchParams::default(), &patch).await {
        Err(error) if is_not_found(&error) => {}
        other => return other.map(drop),
    }
    // of the node that there is now: it goes with its node, which somebody may have deleted
    let node = nodes(cx).get_metadata(name).await?;
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid: node.metadata.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn status_at(second: i64, before: &NodeStatus, pressure: Pressure) -> NodeStatus {
        let conditions = conditions(before, pressure, &Readiness::Ready, Timestamp::from_second(second).unwrap());
        NodeStatus { conditions: Some(conditions), ..NodeStatus::default() }
    }

    #[test]
    fn only_changes_are_written_and_transitions_keep_their_time() {
        let first = status_at(100, &NodeStatus::default(), Pressure::default());
        let second = status_at(200, &first, Pressure::default());
        assert_eq!(status_change(&first, &second), None, "a heartbeat alone is no change");
        let pressed = status_at(300, &second, Pressure { disk: true, ..Pressure::default() });
        let change = status_change(&second, &pressed).unwrap();
        assert_eq!(change["conditions"][1]["status"], "True");
        assert_eq!(change["conditions"][1]["lastTransitionTime"], "1970-01-01T00:05:00Z");
        assert_eq!(change["conditions"][3]["lastTransitionTime"], "1970-01-01T00:01:40Z");
        let mut foreign = second.clone();
        foreign.phase = Some("theirs".into());
        assert_eq!(status_change(&foreign, &second), None, "what others wrote is left alone");
        let without = NodeStatus { images: Some(Vec::new()), ..second.clone() };
        assert_eq!(status_change(&second, &without), None, "the API keeps no empty lists");
        let with = NodeStatus { images: Some(vec![ContainerImage::default()]), ..second.clone() };
        assert_eq!(status_change(&with, &without).unwrap()["images"], json!([]), "the last image is gone");
    }
}
