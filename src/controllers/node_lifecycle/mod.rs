//! Nodes whose kubelet is not heard of: their conditions become unknown, taints keep new pods away and evict the others,
//! and their pods count as not ready.
//!
//! A kubelet is heard of when it renews its lease or posts its status. When that was is taken from the own clock, so that
//! clocks that differ do no harm.

mod health;
mod zones;

use crate::context::{Context, each, unless_gone};
use crate::pods;
use edge_client::{
    Api, Change, Error, EventType, Informer, Key, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers,
};
use health::Eviction;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use zones::{Turn, Zones};

/// A kubelet that was not heard of for so long is unreachable (Kubernetes' default since 1.32).
const GRACE: Duration = Duration::from_secs(50);
/// For how long kubelets take their leases if nobody has told them otherwise, in seconds.
const USUAL_LEASE: u32 = 40;
/// A node that has never posted a status has so long to do it (Kubernetes' default).
const STARTUP_GRACE: Duration = Duration::from_secs(60);
const LEASES: &str = "kube-node-lease";
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
const WORKERS: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// Whether a node is heard of, and its taints.
    Node(String),
    /// The nodes of a zone that wait for being given up.
    Zone(String),
    /// The pods of a node that is not ready.
    Pods(String),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Node(name) => write!(f, "node {name}"),
            Work::Zone(name) => write!(f, "zone {name:?}"),
            Work::Pods(name) => write!(f, "pods of {name}"),
        }
    }
}

struct Controller {
    context: Context,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    leases: Arc<Informer<Lease>>,
    queue: Arc<WorkQueue<Work>>,
    /// When each node was last heard of.
    heard: Mutex<HashMap<String, Instant>>,
    zones: Mutex<Zones>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        nodes: context.informers.of(),
        pods: context.informers.of(),
        leases: context.informers.of(),
        queue: WorkQueue::new(),
        heard: Mutex::default(),
        zones: Mutex::default(),
        context,
    });
    controller.nodes.synced().await;
    controller.pods.synced().await;
    controller.leases.synced().await;
    let worker = controller.clone();
    let work = run_workers("node-lifecycle", controller.queue.clone(), WORKERS, move |work: Work| {
        let controller = worker.clone();
        async move { controller.reconcile(&work).await }
    });
    tokio::join!(
        each(&controller.nodes, |change| controller.node_changed(change)),
        each(&controller.leases, |change| controller.lease_changed(change)),
        each(&controller.pods, |change| controller.pod_changed(change)),
        work,
    );
}

/// The zone of a node: its region and zone labels.
fn zone(node: &Node) -> String {
    let label = |name: &str| node.labels().get(name).cloned().unwrap_or_default();
    format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// How long a kubelet with this lease may be silent: a quarter longer than it takes it for, and not longer than with a
/// usual one.
fn grace(lease: Option<&Lease>) -> Duration {
    let seconds = lease.and_then(|l| l.spec.as_ref()?.lease_duration_seconds).and_then(|s| u32::try_from(s).ok());
    let seconds = seconds.filter(|s| (1..USUAL_LEASE).contains(s));
    seconds.map_or(GRACE, |s| GRACE * s / USUAL_LEASE)
}

/// When a kubelet last posted its status, by its own clock.
fn heartbeat(node: &Node) -> Option<Timestamp> {
    health::condition(node, "Ready").and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0)
}

impl Controller {
    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let name = node.name_any();
        let (old, new) = match change {
            Change::Deleted(node) => {
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                self.context.recorder.event(&**node, EventType::Normal, "RemovingNode", message);
                self.heard.lock().remove(&name);
                self.zones.lock().dequeue(&name);
                self.count();
                return;
            }
            Change::Applied { old, new } => (old, new),
        };
        if old.is_none() {
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.context.recorder.event(&**new, EventType::Normal, "RegisteredNode", message);
        }
        if old.as_ref().is_none_or(|o| heartbeat(o) != heartbeat(new)) {
            self.heard.lock().insert(name.clone(), Instant::now());
        }
        let place = |n: &Node| (health::readiness(n).to_owned(), zone(n), n.labels().contains_key(EXCLUDED));
        if old.as_ref().is_none_or(|o| place(o) != place(new)) {
            self.count();
        }
        let failing = health::condition(new, "Ready").is_some_and(|c| c.status != "True");
        if failing && old.as_ref().is_none_or(|o| health::readiness(o) == "True") {
            if old.is_some() {
                let message = format!("Node {name} status is now: NodeNotReady");
                self.context.recorder.event(&**new, EventType::Normal, "NodeNotReady", message);
            }
            self.queue.add(Work::Pods(name.clone()));
        }
        self.queue.add(Work::Node(name));
    }

    fn lease_changed(&self, change: &Change<Lease>) {
        let Change::Applied { old, new } = change else { return };
        if new.metadata.namespace.as_deref() != Some(LEASES) {
            return;
        }
        let renewed = |l: &Lease| l.spec.as_ref().and_then(|s| s.renew_time.clone());
        if old.as_ref().is_none_or(|o| renewed(o) != renewed(new)) {
            // the timer of the node, when it fires, finds this later time
            self.heard.lock().insert(new.name_any(), Instant::now());
        }
    }

    /// A pod that comes to a node that is not ready is not ready.
    fn pod_changed(&self, change: &Change<Pod>) {
        let Change::Applied { old, new } = change else { return };
        let Some(name) = pods::node(new) else { return };
        if old.as_ref().is_some_and(|o| pods::node(o) == Some(name)) || !pods::is_ready(new) {
            return;
        }
        let node = self.nodes.get("", name);
        if node.is_some_and(|n| health::condition(&n, "Ready").is_some_and(|c| c.status != "True")) {
            self.queue.add(Work::Pods(name.to_owned()));
        }
    }

    /// Counts the nodes of all zones anew, and does what that asks for.
    fn count(&self) {
        let nodes = self.nodes.list();
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for node in nodes.iter().filter(|n| !n.labels().contains_key(EXCLUDED)) {
            let (ready, failing) = counts.entry(zone(node)).or_default();
            *(if health::readiness(node) == "True" { ready } else { failing }) += 1;
        }
        let (turn, waiting) = {
            let mut zones = self.zones.lock();
            (zones.update(&counts), zones.waiting())
        };
        match turn {
            Turn::Nothing => {}
            Turn::OutageBegins => tracing::warn!("no node is ready; no pod is evicted until one is"),
            Turn::OutageEnds => {
                let now = Instant::now();
                self.heard.lock().values_mut().for_each(|at| *at = now);
            }
        }
        if turn != Turn::Nothing {
            nodes.iter().for_each(|n| self.queue.add(Work::Node(n.name_any())));
        }
        waiting.into_iter().for_each(|zone| self.queue.add(Work::Zone(zone)));
    }

    async fn reconcile(&self, work: &Work) -> Result<Outcome, Error> {
        match work {
            Work::Node(name) => self.check(name).await,
            Work::Zone(name) => self.give_up_next(name).await,
            Work::Pods(name) => self.mark_pods(name).await.map(|()| Outcome::Done),
        }
    }

    async fn check(&self, name: &str) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get("", name) else { return Ok(Outcome::Done) };
        let heard = *self.heard.lock().entry(name.to_owned()).or_insert_with(Instant::now);
        let lease = self.leases.get(LEASES, name);
        let grace = if health::condition(&node, "Ready").is_some() { grace(lease.as_deref()) } else { STARTUP_GRACE };
        let left = grace.saturating_sub(heard.elapsed());
        if left.is_zero() {
            let conditions = health::unknown(&node, Timestamp::now());
            if !conditions.is_empty() {
                let api: Api<Node> = Api::all(self.context.client.clone());
                let patch =
                    Patch::Strategic(json!({"metadata": {"uid": node.uid()}, "status": {"conditions": conditions}}));
                unless_gone(api.patch_status(name, &PatchParams::default(), &patch).await)?;
                // the change of the node brings us back
                return Ok(Outcome::Done);
            }
        }
        self.check_taints(&node).await?;
        // a node that is known to be lost is heard of by its own change, when it comes back
        Ok(if left.is_zero() { Outcome::Done } else { Outcome::After(left) })
    }

    async fn check_taints(&self, node: &Node) -> Result<(), Error> {
        let name = node.name_any();
        let evicting = match health::eviction(node) {
            Eviction::Settled => health::evicting_taint(node),
            Eviction::Set(taint) => taint,
            Eviction::Wait => {
                let zone = zone(node);
                self.zones.lock().enqueue(&zone, &name);
                self.queue.add(Work::Zone(zone));
                None
            }
        };
        let outage = self.zones.lock().is_outage();
        if evicting.is_none() && health::eviction(node) != Eviction::Wait {
            self.zones.lock().dequeue(&name);
        }
        self.set_taints(node, evicting.filter(|_| !outage)).await
    }

    async fn set_taints(&self, node: &Node, evicting: Option<&str>) -> Result<(), Error> {
        let Some(taints) = health::taints(node, evicting, Timestamp::now()) else { return Ok(()) };
        let api: Api<Node> = Api::all(self.context.client.clone());
        let patch = json!({"metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
            "spec": {"taints": taints}});
        unless_gone(api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(())
    }

    /// Taints the node of a zone whose turn it is, so that its pods are evicted.
    async fn give_up_next(&self, zone: &str) -> Result<Outcome, Error> {
        let next = self.zones.lock().next(zone, Instant::now());
        let name = match next {
            Ok(name) => name,
            Err(Some(wait)) => return Ok(Outcome::After(wait)),
            Err(None) => return Ok(Outcome::Done),
        };
        if let Some(node) = self.nodes.get("", &name)
            && let Err(error) = self.set_taints(&node, health::wanted_eviction(&node)).await
        {
            self.zones.lock().give_back(zone, &name);
            return Err(error);
        }
        self.queue.add(Work::Zone(zone.to_owned()));
        Ok(Outcome::Done)
    }

    /// Services should not send anything to the pods of a node that is not ready.
    async fn mark_pods(&self, name: &str) -> Result<(), Error> {
        let node = self.nodes.get("", name);
        if node.is_none_or(|n| health::readiness(&n) == "True") {
            return Ok(());
        }
        let on_node = self.pods.list().into_iter().filter(|p| pods::node(p) == Some(name) && pods::is_ready(p));
        for pod in on_node {
            let key = Key::of(&*pod);
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": Timestamp::now()});
            let patch =
                Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}}));
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
            if unless_gone(api.patch_status(&key.name, &PatchParams::default(), &patch).await)?.is_some() {
                self.context.recorder.event(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_a_short_lease_is_missed_soon() {
        let lease = |seconds: i32| -> Lease {
            serde_json::from_value(json!({"spec": {"leaseDurationSeconds": seconds}})).unwrap_or_default()
        };
        for (lease, want) in [(None, 50), (Some(lease(40)), 50), (Some(lease(3600)), 50), (Some(lease(-1)), 50)] {
            assert_eq!(grace(lease.as_ref()).as_secs(), want);
        }
        assert_eq!(grace(Some(&lease(4))).as_secs(), 5);
        assert_eq!(grace(Some(&Lease::default())), GRACE);
    }
}
