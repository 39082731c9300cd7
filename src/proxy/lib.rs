//! Room `proxy`: what kube-proxy is elsewhere.
//!
//! Comes in: the informers of Services and EndpointSlices. Goes out: the node's [`ServiceTable`], handed to the room
//! `network` as soon as something has changed. Nobody else hands it service tables.
//!
//! [`compile`] is pure and looks at one service; [`Model`] keeps the compiled services; [`run`] is the one effect.

mod compile;
mod model;
pub mod peers;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edge_client::{Change, Informers};
use edge_network::{NodeNetwork, ServiceTable};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc::UnboundedReceiver;

pub use compile::compile;
pub use model::Model;

/// How long to wait before rules that the kernel refused are tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Who this proxy works for.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name of the node: which endpoints are local.
    pub name: String,
    /// The address of the cluster's DNS, which a server on this node answers itself: no service takes it over.
    pub dns_address: Option<IpAddr>,
}

/// Keeps the kernel's load balancing in step with the cluster's services. Does not end; drop the future to stop. The rules
/// stay in the kernel then.
pub async fn run(informers: Informers, network: Arc<NodeNetwork>, node: Node) {
    let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    // An incomplete picture would take endpoints away from rules that an earlier process left.
    tokio::join!(services.synced(), slices.synced());
    let mut model = Model::new(node);
    let mut retry = None;
    // The first table is always handed on: rules of an earlier process may be for services that are gone.
    let mut first = true;
    loop {
        drain(&mut service_changes, |change| model.service_changed(change));
        drain(&mut slice_changes, |change| model.slice_changed(change));
        if model.refresh() || std::mem::take(&mut first) || retry.is_some() {
            retry = match apply(network.clone(), model.table()).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "service rules refused");
                    Some(retry.map_or(RETRY.0, |delay: Duration| (delay * 2).min(RETRY.1)))
                }
            };
        }
        let retry_is_due = async {
            match retry {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(change) = service_changes.recv() => model.service_changed(&change),
            Some(change) = slice_changes.recv() => model.slice_changed(&change),
            () = retry_is_due => {}
        }
    }
}

/// Takes everything that waits, so that a burst of changes is one step for the kernel.
fn drain<K>(changes: &mut UnboundedReceiver<Change<K>>, mut take: impl FnMut(&Change<K>)) {
    while let Ok(change) = changes.try_recv() {
        take(&change);
    }
}

async fn apply(network: Arc<NodeNetwork>, table: ServiceTable) -> Result<(), edge_network::Error> {
    match tokio::task::spawn_blocking(move || network.apply_services(table)).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
