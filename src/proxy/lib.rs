//! Room `proxy`: what kube-proxy and a network policy engine are elsewhere.
//!
//! Comes in: the informers of Services and EndpointSlices, of this node, of NetworkPolicies, Pods and Namespaces. Goes out:
//! the node's service routes and what its pods may exchange, handed to the room `network` as soon as something has
//! changed; answers to load balancers' health checks. Nobody else hands these on.
//!
//! [`compile`] is pure and looks at one service; [`Model`] keeps the compiled services; [`run`] is the effect. The same for
//! policies: [`policy::Model`] and [`policy::run`].

#[cfg(test)]
mod churn_tests;
mod compile;
pub mod firewall;
mod health;
pub mod memory;
mod model;
mod occupied;
pub mod peers;
pub mod policy;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edge_client::{Change, Informers, ResourceExt};
use edge_network::{Error, NodeNetwork};
use k8s_openapi::api::core::v1::{Node as ApiNode, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc::UnboundedReceiver;

pub use compile::{Compiled, HealthCheck, compile};
use health::HealthServer;
pub use model::Model;
use occupied::Occupied;

/// How long to wait before rules that the kernel refused are tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Label of a node with the zone it is in.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Who this proxy works for.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name of the node: which endpoints are local.
    pub name: String,
    /// The addresses of the cluster's DNS, which a server on this node answers itself: no service takes them over.
    pub dns_addresses: Vec<IpAddr>,
}

/// Keeps the kernel's load balancing in step with the cluster's services. Does not end; drop the future to stop. The rules
/// stay in the kernel then.
pub async fn run(informers: Informers, network: Arc<NodeNetwork>, node: Node) {
    let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
    let nodes = informers.select::<ApiNode>(&format!("metadata.name={}", node.name));
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    let mut node_changes = nodes.subscribe();
    // An incomplete picture would take endpoints away from rules that an earlier process left.
    tokio::join!(memory::enough(&services, &network), memory::enough(&slices, &network));
    let mut model = Model::new(node);
    let mut health = HealthServer::default();
    let mut occupied = Occupied::default();
    let mut retry = Retry::default();
    // The first table is complete: rules of an earlier process may be for services that are gone.
    let mut first = true;
    loop {
        drain(&mut service_changes, |change| model.service_changed(change));
        drain(&mut slice_changes, |change| model.slice_changed(change));
        drain(&mut node_changes, |change| model.set_zone(zone_of(change)));
        let changes = model.refresh();
        if !changes.is_empty() || first || retry.is_due() {
            let on_the_node = model.on_the_node(changes.keys());
            let network = network.clone();
            let result = if std::mem::take(&mut first) {
                let table = model.table();
                blocking(move || network.apply_services(table)).await
            } else {
                blocking(move || network.change_services(changes)).await
            };
            retry.note(result, "service rules refused");
            health.set(model.health_checks()).await;
            occupied.warn(on_the_node);
        }
        tokio::select! {
            Some(change) = service_changes.recv() => model.service_changed(&change),
            Some(change) = slice_changes.recv() => model.slice_changed(&change),
            Some(change) = node_changes.recv() => model.set_zone(zone_of(&change)),
            () = retry.wait() => {}
        }
    }
}

fn zone_of(change: &Change<ApiNode>) -> Option<String> {
    match change {
        Change::Applied { new, .. } => new.labels().get(ZONE).filter(|zone| !zone.is_empty()).cloned(),
        Change::Deleted(_) => None,
    }
}

/// When what the kernel refused is tried again. The room `network` remembers what is wanted: any change tries it again.
#[derive(Debug, Default)]
struct Retry {
    delay: Option<Duration>,
    due: Option<tokio::time::Instant>,
}

impl Retry {
    fn note(&mut self, result: Result<(), Error>, what: &'static str) {
        self.delay = match result {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "{what}");
                Some(self.delay.map_or(RETRY.0, |delay| (delay * 2).min(RETRY.1)))
            }
        };
        self.due = self.delay.map(|delay| tokio::time::Instant::now() + delay);
    }

    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= tokio::time::Instant::now())
    }

    async fn wait(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

/// Takes everything that waits, so that a burst of changes is one step for the kernel.
fn drain<K>(changes: &mut UnboundedReceiver<Change<K>>, mut take: impl FnMut(&Change<K>)) {
    while let Ok(change) = changes.try_recv() {
        take(&change);
    }
}

async fn blocking(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
