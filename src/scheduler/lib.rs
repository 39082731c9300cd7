//! The scheduler: gives each pod a node.
//!
//! In: pods without a node, nodes, and what is on them (informers). Out: bindings, and Events that say why a pod waits. One
//! pod is decided at a time over an assumed state that includes bindings under way; a pod that fits nowhere waits for a
//! change that can help it, never for a timer.

mod affinity;
mod filters;
mod nodes;
mod queue;
mod requests;
mod scores;
mod volumes;

use edge_client::{
    Api, Change, Client, DeleteParams, EventRecorder, EventType, Informer, Informers, Key, Patch, PatchParams,
    Preconditions, ResourceExt,
};
use filters::Refusal;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nodes::{Cluster, NodeState};
use queue::Queue;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name by which pods ask for this scheduler.
const NAME: &str = "default-scheduler";

struct Scheduler {
    client: Client,
    recorder: EventRecorder,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    namespaces: Arc<Informer<Namespace>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    queue: Queue,
    cluster: Cluster,
    reserved: volumes::Reserved,
    /// Pods whose binding has ended, and whether it failed.
    ended: tokio::sync::mpsc::UnboundedSender<(Key, bool)>,
}

/// Schedules for ever; dropping the future ends it. Requests run under the identity of `client`.
pub async fn run(informers: Informers, client: Client) {
    let (ended, mut endings) = tokio::sync::mpsc::unbounded_channel();
    let mut scheduler = Scheduler {
        recorder: EventRecorder::new(client.clone(), NAME, ""),
        client,
        pods: informers.of(),
        nodes: informers.of(),
        namespaces: informers.of(),
        claims: informers.of(),
        volumes: informers.of(),
        classes: informers.of(),
        queue: Queue::default(),
        cluster: Cluster::default(),
        reserved: volumes::Reserved::default(),
        ended,
    };
    let (mut pods, mut nodes) = (scheduler.pods.subscribe(), scheduler.nodes.subscribe());
    let (mut claims, mut volumes) = (scheduler.claims.subscribe(), scheduler.volumes.subscribe());
    let mut classes = scheduler.classes.subscribe();
    scheduler.nodes.synced().await;
    scheduler.pods.synced().await;
    scheduler.namespaces.synced().await;
    scheduler.claims.synced().await;
    scheduler.volumes.synced().await;
    scheduler.classes.synced().await;
    loop {
        // everything that is known already counts before the next decision
        while let Ok(change) = nodes.try_recv() {
            scheduler.node_changed(&change);
        }
        while let Ok(change) = pods.try_recv() {
            scheduler.pod_changed(&change);
        }
        if let Some(key) = scheduler.queue.pop() {
            scheduler.schedule(&key).await;
            continue;
        }
        tokio::select! {
            Some(change) = pods.recv() => scheduler.pod_changed(&change),
            Some(change) = nodes.recv() => scheduler.node_changed(&change),
            Some(_) = claims.recv() => scheduler.queue.retry_all(),
            Some(_) = volumes.recv() => scheduler.queue.retry_all(),
            Some(_) = classes.recv() => scheduler.queue.retry_all(),
            Some((key, failed)) = endings.recv() => {
                scheduler.reserved.retain(|_, pod| *pod != key);
                if failed {
                    scheduler.cluster.forget(&key);
                    scheduler.queue.retry(&key);
                }
            }
            else => return,
        }
    }
}

fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether the pod is this scheduler's business now.
fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    node_name(pod).is_empty()
        && pod.metadata.deletion_timestamp.is_none()
        && !is_finished(pod)
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

impl Scheduler {
    fn node_changed(&mut self, change: &Change<Node>) {
        match change {
            Change::Applied { old, new } => {
                self.cluster.set_node(new);
                // the heartbeat of a node helps nobody
                let helps = old.as_ref().is_none_or(|o| nodes::scheduling_differs(o, new));
                if helps {
                    self.queue.retry_all();
                }
            }
            Change::Deleted(node) => self.cluster.remove_node(&node.name_any()),
        }
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        let pod = change.object();
        let key = Key::of(&**pod);
        let gone = matches!(change, Change::Deleted(_)) || is_finished(pod);
        if gone {
            self.queue.remove(&key);
            if self.cluster.remove_pod(&key) {
                // room was made
                self.queue.retry_all();
            }
            return;
        }
        if !node_name(pod).is_empty() {
            self.queue.remove(&key);
            let news = self.cluster.set_pod(key, pod.clone());
            // a pod that others want to be near may let them go ahead
            if news {
                self.queue.retry_all();
            }
        } else if is_pending(pod) {
            let old = if let Change::Applied { old, .. } = change { old.as_ref() } else { None };
            // what the scheduler itself writes into the status is no reason to try again
            if old.is_none_or(|o| o.spec != pod.spec || o.metadata.labels != pod.metadata.labels) {
                self.queue.add(key, priority(pod));
            }
        } else {
            self.queue.remove(&key);
        }
    }

    async fn schedule(&mut self, key: &Key) {
        let Some(pod) = self.pods.get_key(key).filter(|p| is_pending(p)) else { return };
        if self.cluster.knows(key) {
            return;
        }
        let context = filters::Context {
            cluster: &self.cluster,
            namespaces: &self.namespaces,
            claims: &self.claims,
            volumes: &self.volumes,
            classes: &self.classes,
            reserved: &self.reserved,
            requests: requests::of(&pod),
            pod: &pod,
        };
        let mut refusals: BTreeMap<String, Refusal> = BTreeMap::new();
        let mut feasible: Vec<&NodeState> = Vec::new();
        let mut choices: BTreeMap<&str, Vec<volumes::Choice>> = BTreeMap::new();
        match filters::precheck(&context) {
            Err(refusal) => {
                refusals.insert(String::new(), refusal);
            }
            Ok(prepared) => {
                for node in self.cluster.nodes() {
                    match filters::check(&context, &prepared, node) {
                        Ok(chosen) => {
                            feasible.push(node);
                            if !chosen.is_empty() {
                                choices.insert(&node.name, chosen);
                            }
                        }
                        Err(refusal) => drop(refusals.insert(node.name.clone(), refusal)),
                    }
                }
            }
        }
        match scores::best(&context, &feasible).map(|n| n.name.clone()) {
            Some(node) => {
                let chosen = choices.remove(node.as_str()).unwrap_or_default();
                self.bind(key, &pod, node, chosen);
            }
            None => self.refuse(key, &pod, &refusals).await,
        }
    }

    /// Takes the pod to be on the node from now on, and tells the API meanwhile.
    fn bind(&mut self, key: &Key, pod: &Arc<Pod>, node: String, choices: Vec<volumes::Choice>) {
        self.cluster.assume(key.clone(), pod.clone(), &node);
        self.reserved.extend(choices.iter().filter_map(|choice| Some((choice.volume()?, key.clone()))));
        let (client, recorder, ended) = (self.client.clone(), self.recorder.clone(), self.ended.clone());
        let (key, pod, claims) = (key.clone(), pod.clone(), self.claims.clone());
        tokio::spawn(async move {
            let bound = async {
                volumes::bind(&client, &claims, &choices, &node).await?;
                post_binding(&client, &key, &pod, &node).await.map_err(volumes::BindError::from)
            };
            let failed = match bound.await {
                Ok(()) => {
                    let message = format!("Successfully assigned {key} to {node}");
                    recorder.event(&*pod, EventType::Normal, "Scheduled", message);
                    false
                }
                Err(error) => {
                    tracing::debug!(pod = %key, node, %error, "binding failed");
                    true
                }
            };
            // the receiver lives as long as the scheduler
            let _ = ended.send((key, failed));
        });
    }

    /// The pod fits nowhere: says why, and makes room when its priority allows that.
    async fn refuse(&mut self, key: &Key, pod: &Arc<Pod>, refusals: &BTreeMap<String, Refusal>) {
        self.queue.park(key.clone(), priority(pod));
        let mut message = summary(self.cluster.len(), refusals);
        match self.victims(pod, refusals) {
            Some((node, victims)) => {
                for victim in &victims {
                    self.evict(pod, victim).await;
                }
                tracing::info!(pod = %key, node, victims = victims.len(), "preempting");
            }
            None => message.push_str(&preemption_text(self.cluster.len())),
        }
        self.recorder.event(&**pod, EventType::Warning, "FailedScheduling", message.clone());
        if let Err(error) = self.set_condition(key, pod, &message).await {
            tracing::debug!(pod = %key, %error, "PodScheduled condition not written");
        }
    }

    /// The cheapest way to make room by deleting pods of lower priority on one node.
    fn victims(&self, pod: &Arc<Pod>, refusals: &BTreeMap<String, Refusal>) -> Option<(String, Vec<Arc<Pod>>)> {
        let never = pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never");
        if never {
            return None;
        }
        let need = requests::of(pod);
        let mut best: Option<(i32, usize, String, Vec<Arc<Pod>>)> = None;
        for node in self.cluster.nodes().filter(|n| refusals.get(&n.name).is_some_and(Refusal::is_about_room)) {
            let Some(victims) = node.room_by_eviction(&need, priority(pod)) else { continue };
            let highest = victims.iter().map(|v| priority(v)).max().unwrap_or(i32::MIN);
            let cost = (highest, victims.len());
            if best.as_ref().is_none_or(|b| cost < (b.0, b.1)) {
                best = Some((cost.0, cost.1, node.name.clone(), victims));
            }
        }
        best.map(|(_, _, node, victims)| (node, victims))
    }

    async fn evict(&self, pod: &Pod, victim: &Pod) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.namespace().unwrap_or_default());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: victim.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&victim.name_any(), &params).await {
            Ok(_) => {
                let message =
                    format!("Preempted by pod {} on node {}", pod.uid().unwrap_or_default(), node_name(victim));
                self.recorder.event(victim, EventType::Normal, "Preempted", message);
            }
            Err(error) if edge_client::is_not_found(&error) => {}
            Err(error) => tracing::warn!(victim = victim.name_any(), %error, "cannot preempt"),
        }
    }

    async fn set_condition(&self, key: &Key, pod: &Pod, message: &str) -> Result<(), edge_client::Error> {
        let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let known = conditions.iter().position(|c| c.type_ == "PodScheduled");
        let mut condition = known.map(|i| conditions.remove(i)).unwrap_or_default();
        if condition.status == "False" && condition.message.as_deref() == Some(message) {
            return Ok(());
        }
        if condition.status != "False" {
            condition.last_transition_time = Some(Time(Timestamp::now()));
        }
        condition.type_ = "PodScheduled".into();
        condition.status = "False".into();
        condition.reason = Some("Unschedulable".into());
        condition.message = Some(message.to_owned());
        conditions.push(condition);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": conditions}});
        api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}

async fn post_binding(client: &Client, key: &Key, pod: &Pod, node: &str) -> Result<(), edge_client::Error> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let body = serde_json::to_vec(&binding).map_err(edge_client::Error::SerdeError)?;
    let request = http::Request::post(format!("/api/v1/namespaces/{}/pods/{}/binding", key.namespace, key.name))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| edge_client::Error::Service(Box::new(e)))?;
    client.request::<serde_json::Value>(request).await.map(drop)
}

/// `0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.`
fn summary(nodes: usize, refusals: &BTreeMap<String, Refusal>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    if let Some(refusal) = refusals.get("") {
        return format!("0/{nodes} nodes are available: {}.", refusal.reasons.join(", "));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in refusals.values().flat_map(|r| &r.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

fn preemption_text(nodes: usize) -> String {
    if nodes == 0 {
        return String::new();
    }
    format!(" preemption: 0/{nodes} nodes are available: {nodes} No preemption victims found for incoming pod.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_counts_reasons() {
        let refusal = |r: &[&str]| Refusal::new(r.iter().map(|s| (*s).to_owned()));
        let refusals = BTreeMap::from([
            ("a".to_owned(), refusal(&["Insufficient cpu", "Insufficient memory"])),
            ("b".to_owned(), refusal(&["Insufficient cpu"])),
            ("c".to_owned(), refusal(&["node(s) were unschedulable"])),
        ]);
        assert_eq!(
            summary(3, &refusals),
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, 2 Insufficient cpu."
        );
        assert_eq!(summary(0, &BTreeMap::new()), "no nodes available to schedule pods");
    }
}
