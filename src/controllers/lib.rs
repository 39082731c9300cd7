//! Controllers: each brings what is nearer to what is wanted, and sees the cluster only through the client.
//!
//! A controller has three parts: informer changes become keys of a work queue; a key is planned by a pure function over
//! cached state; one effect function carries the plan out. Nothing is polled and nothing is resynchronized by a timer.

mod certificates;
mod clusterrole_aggregation;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpointslice;
mod endpointslice_mirroring;
mod expectations;
mod finalizers;
mod gc;
mod history;
mod job;
mod joining;
mod manifests;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod owners;
mod pod_control;
mod pod_gc;
mod pods;
mod protection;
mod quota;
mod replicaset;
mod root_ca;
mod serviceaccount;
mod servicelb;
mod statefulset;
mod status;
mod taint_eviction;
mod ttl_after_finished;

pub use certificates::{CertificateFacts, CertificateSigner};
pub use context::{Context, Identities};
pub use manifests::{ManifestsOptions, run as run_manifests};

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use std::sync::Arc;
use tokio::task::JoinSet;

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The certificate authority of the API server, PEM, which every namespace gets as `kube-root-ca.crt`.
    pub root_ca: String,
    /// The networks of all pods in CIDR notation, one of a family, the primary one first.
    pub cluster_cidrs: Vec<String>,
    /// The networks of all services in CIDR notation.
    pub service_cidrs: Vec<String>,
    /// Signs certificates.
    pub signer: Arc<dyn CertificateSigner>,
    /// The name of this server's own node, if it is one.
    pub server_node: Option<String>,
}

/// Runs all controllers, for ever; dropping the future ends them.
pub async fn run(identities: Identities, options: Options) {
    let of = |name: &str| identities.context(name);
    let (namespaces, quotas) = (edge_client::WorkQueue::new(), edge_client::WorkQueue::new());
    // each is a task of its own: what one is woken for does not concern the others
    let mut tasks = JoinSet::new();
    tasks.spawn(replicaset::run::<ReplicaSet>(of("replicaset-controller")));
    tasks.spawn(replicaset::run::<ReplicationController>(of("replication-controller")));
    tasks.spawn(deployment::run(of("deployment-controller")));
    tasks.spawn(statefulset::run(of("statefulset-controller")));
    tasks.spawn(daemonset::run(of("daemon-set-controller")));
    tasks.spawn(job::run(of("job-controller")));
    tasks.spawn(cronjob::run(of("cronjob-controller")));
    tasks.spawn(ttl_after_finished::run(of("ttl-after-finished-controller")));
    tasks.spawn(disruption::run(of("disruption-controller")));
    tasks.spawn(endpointslice::run(of("endpointslice-controller")));
    tasks.spawn(endpointslice_mirroring::run(of("endpointslicemirroring-controller")));
    tasks.spawn(servicelb::run(of("service-controller")));
    tasks.spawn(serviceaccount::run(of("service-account-controller")));
    tasks.spawn(root_ca::run(of("root-ca-cert-publisher"), options.root_ca));
    tasks.spawn(namespace::run(of("namespace-controller"), namespaces.clone()));
    tasks.spawn(gc::run(of("generic-garbage-collector"), vec![namespaces, quotas.clone()]));
    tasks.spawn(quota::run(of("resourcequota-controller"), quotas));
    tasks.spawn(certificates::run(of("certificate-controller"), options.signer));
    tasks.spawn(joining::clean_tokens(of("token-cleaner")));
    tasks.spawn(joining::free_names(of("token-cleaner")));
    if let Some(node) = options.server_node {
        tasks.spawn(joining::label_server(of("node-controller"), node));
    }
    tasks.spawn(clusterrole_aggregation::run(of("clusterrole-aggregation-controller")));
    tasks.spawn(protection::run_claims(of("pvc-protection-controller")));
    tasks.spawn(protection::run_volumes(of("pv-protection-controller")));
    tasks.spawn(pod_gc::run(of("pod-garbage-collector")));
    tasks.spawn(node_ipam::run(of("node-controller"), options.cluster_cidrs, options.service_cidrs));
    tasks.spawn(node_lifecycle::run(of("node-controller")));
    tasks.spawn(taint_eviction::run(of("node-controller")));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended");
        }
    }
}
