//! What a node's network goes on by while its server is away: services and their endpoints, policies and those they are about,
//! other nodes. The cluster's DNS answers from the same objects.

use std::collections::BTreeMap;
use std::path::Path;

use edge_client::{Informer, InformerKind, Informers, Resource};
use edge_network::NodeNetwork;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Namespace, Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::peers::PREFIX;

/// The annotation with which `kubectl apply` remembers the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Lets the informers that proxy, policies, peers and DNS use begin with what they knew when edge ran last, kept in `dir`.
/// `name_servers` is the name of the ConfigMap with the DNS's forwarders. Call it before these are started.
pub fn remember(informers: &Informers, dir: &Path, node: &str, name_servers: &str) {
    informers.remember::<Service>(dir, "", metadata);
    informers.remember::<EndpointSlice>(dir, "", metadata);
    informers.remember::<NetworkPolicy>(dir, "", metadata);
    informers.remember::<Namespace>(dir, "", metadata);
    informers.remember::<Pod>(dir, "", pod);
    informers.remember::<Node>(dir, "", keep_node);
    informers.remember::<Node>(dir, &format!("metadata.name={node}"), keep_node);
    informers.remember::<ConfigMap>(dir, &format!("metadata.name={name_servers}"), metadata);
}

/// Waits until enough is known to write rules. Those of the same boot that are in the kernel are at least as new as what the
/// disk remembers, so the server is waited for then.
pub(crate) async fn enough<K: InformerKind>(informer: &Informer<K>, network: &NodeNetwork) {
    if network.has_adopted_rules() { informer.synced().await } else { informer.known().await }
}

/// Everything but what only people and the API server read.
fn metadata<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
    meta.owner_references = None;
    meta.generation = None;
    meta.creation_timestamp = None;
}

/// What policies look at.
fn pod(pod: &mut Pod) {
    metadata(pod);
    pod.metadata.annotations = None;
    let ports = |container: Container| Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Container::default()
    };
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        host_network: spec.host_network,
        containers: spec.containers.into_iter().map(ports).collect(),
        init_containers: spec.init_containers.map(|all| all.into_iter().map(ports).collect()),
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        ..PodStatus::default()
    });
}

/// Where a node is, and how its pods are reached.
fn keep_node(node: &mut Node) {
    metadata(node);
    let annotations = node.metadata.annotations.take().unwrap_or_default();
    let ours: BTreeMap<String, String> = annotations.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    node.metadata.annotations = Some(ours);
    node.spec = node.spec.take().map(|spec| NodeSpec {
        pod_cidr: spec.pod_cidr,
        pod_cidrs: spec.pod_cidrs,
        ..NodeSpec::default()
    });
    node.status = node.status.take().map(|status| NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
}
