//! Controllers: each brings what is nearer to what is wanted, and sees the cluster only through the client.
//!
//! A controller has three parts: informer changes become keys of a work queue; a key is planned by a pure function over
//! cached state; one effect function carries the plan out. Nothing is polled and nothing is resynchronized by a timer.

mod account_tokens;
mod attach_detach;
mod attributes_classes;
mod bootstrap_signer;
mod certificates;
mod clusterrole_aggregation;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taints;
mod disruption;
mod endpointslice;
mod endpointslice_mirroring;
mod expectations;
mod finalizers;
mod gc;
mod history;
mod horizontal;
mod job;
mod joining;
mod manifests;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod node_ttl;
mod owners;
mod pod_control;
mod pod_gc;
mod pods;
mod policy_types;
mod protection;
mod quota;
mod replicaset;
mod resource_claims;
mod root_ca;
mod service_cidrs;
mod serviceaccount;
mod servicelb;
mod statefulset;
mod status;
mod taint_eviction;
mod ttl_after_finished;
mod volumes;
mod written;

pub use account_tokens::TokenSigner;
pub use certificates::{CertificateFacts, CertificateSigner};
pub use context::{Context, Identities};
pub use horizontal::Autoscaling;
pub use manifests::{ManifestsOptions, run as run_manifests};
pub use node_ipam::NodeMasks;

use edge_client::Supervisor;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinSet;

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The certificate authority of the API server, PEM, which every namespace gets as `kube-root-ca.crt`.
    pub root_ca: String,
    /// The networks of all pods in CIDR notation, one of a family, the primary one first.
    pub cluster_cidrs: Vec<String>,
    /// How large the part of a node is.
    pub node_masks: NodeMasks,
    /// The networks of all services in CIDR notation.
    pub service_cidrs: Vec<String>,
    /// Signs certificates.
    pub signer: Arc<dyn CertificateSigner>,
    /// Makes the tokens that live in Secrets.
    pub tokens: Arc<dyn TokenSigner>,
    /// Whether services of type LoadBalancer get addresses of the cluster's nodes.
    pub load_balancers: bool,
    /// What autoscalers go by.
    pub autoscaling: Autoscaling,
    /// Where nodes have the directories of volumes that are made for claims; nothing: none are made.
    pub local_path: Option<PathBuf>,
}

/// Runs all controllers, for ever; dropping the future ends them.
pub async fn run(identities: Identities, options: Options, supervisor: Supervisor) {
    let (namespaces, quotas) = (edge_client::WorkQueue::new(), edge_client::WorkQueue::new());
    // each is a task of its own: what one is woken for does not concern the others
    let mut all = Started { tasks: JoinSet::new(), identities, supervisor };
    all.start("replicaset-controller", replicaset::run::<ReplicaSet>);
    all.start("replication-controller", replicaset::run::<ReplicationController>);
    all.start("deployment-controller", deployment::run);
    all.start("statefulset-controller", statefulset::run);
    all.start("daemon-set-controller", daemonset::run);
    all.start("job-controller", job::run);
    all.start("cronjob-controller", cronjob::run);
    all.start("ttl-after-finished-controller", ttl_after_finished::run);
    let autoscaling = options.autoscaling;
    all.start("horizontal-pod-autoscaler", move |context| horizontal::run(context, autoscaling));
    all.start("disruption-controller", disruption::run);
    all.start("endpointslice-controller", endpointslice::run);
    all.start("endpointslicemirroring-controller", endpointslice_mirroring::run);
    if options.load_balancers {
        all.start("service-controller", servicelb::run);
    }
    all.start("service-cidrs-controller", service_cidrs::run);
    all.start("service-account-controller", serviceaccount::run);
    let (root_ca, tokens) = (options.root_ca, options.tokens);
    let ca = root_ca.clone();
    all.start("tokens-controller", move |context| account_tokens::run(context, ca.clone(), tokens.clone()));
    all.start("root-ca-cert-publisher", move |context| root_ca::run(context, root_ca.clone()));
    let deleted = vec![namespaces.clone(), quotas.clone()];
    all.start("namespace-controller", move |context| namespace::run(context, namespaces.clone()));
    all.start("generic-garbage-collector", move |context| gc::run(context, deleted.clone()));
    all.start("resourcequota-controller", move |context| quota::run(context, quotas.clone()));
    let signer = options.signer;
    all.start("certificate-controller", move |context| certificates::run(context, signer.clone()));
    all.start("token-cleaner", |context| async {
        tokio::join!(joining::clean_tokens(context.clone()), joining::free_names(context));
    });
    all.start("bootstrap-signer", bootstrap_signer::run);
    all.start("ttl-controller", node_ttl::run);
    all.start("clusterrole-aggregation-controller", clusterrole_aggregation::run);
    all.start("pvc-protection-controller", protection::run_claims);
    all.start("pv-protection-controller", protection::run_volumes);
    all.start("volumeattributesclass-protection-controller", attributes_classes::run);
    let local_path = options.local_path;
    all.start("persistent-volume-binder", move |context| volumes::run(context, local_path.clone()));
    all.start("ephemeral-volume-controller", volumes::run_ephemeral);
    all.start("expand-controller", volumes::run_expand);
    all.start("attachdetach-controller", attach_detach::run);
    all.start("resource-claim-controller", resource_claims::run);
    all.start("device-taint-eviction-controller", device_taints::run);
    all.start("validatingadmissionpolicy-status-controller", policy_types::run);
    all.start("pod-garbage-collector", pod_gc::run);
    let (clusters, services, masks) = (options.cluster_cidrs, options.service_cidrs, options.node_masks);
    all.start("node-controller", move |context| node_ipam::run(context, clusters.clone(), services.clone(), masks));
    all.start("node-controller", node_lifecycle::run);
    all.start("node-controller", taint_eviction::run);
    while all.tasks.join_next().await.is_some() {}
}

/// Keeps the label of a server on this server's own node, for ever; to be run by each server.
pub async fn run_server_label(identities: Identities, node: String, supervisor: Supervisor) {
    let run = || joining::label_server(identities.context("node-controller"), node.clone());
    supervisor.keep("node-controller", run).await;
}

/// The controllers that run.
struct Started {
    tasks: JoinSet<()>,
    identities: Identities,
    supervisor: Supervisor,
}

impl Started {
    /// Starts a controller under the identity `name`, and again whenever it panics.
    fn start<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        run: impl Fn(Context) -> F + Send + Sync + 'static,
    ) {
        let (identities, supervisor) = (self.identities.clone(), self.supervisor.clone());
        self.tasks.spawn(async move { supervisor.keep(name, || run(identities.context(name))).await });
    }
}
