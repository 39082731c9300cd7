//! Controllers: each brings what is nearer to what is wanted, and sees the cluster only through the client.
//!
//! A controller has three parts: informer changes become keys of a work queue; a key is planned by a pure function over
//! cached state; one effect function carries the plan out. Nothing is polled and nothing is resynchronized by a timer.

mod context;
mod deployment;
mod endpointslice;
mod expectations;
mod gc;
mod manifests;
mod namespace;
mod owners;
mod pod_control;
mod pods;
mod replicaset;
mod root_ca;
mod serviceaccount;

pub use context::{Context, Identities};
pub use manifests::{ManifestsOptions, run as run_manifests};

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The certificate authority of the API server, PEM, which every namespace gets as `kube-root-ca.crt`.
    pub root_ca: String,
}

/// Runs all controllers, for ever; dropping the future ends them.
pub async fn run(identities: Identities, options: Options) {
    let of = |name: &str| identities.context(name);
    let namespaces = edge_client::WorkQueue::new();
    tokio::join!(
        replicaset::run(of("replicaset-controller")),
        deployment::run(of("deployment-controller")),
        endpointslice::run(of("endpointslice-controller")),
        serviceaccount::run(of("service-account-controller")),
        root_ca::run(of("root-ca-cert-publisher"), options.root_ca),
        namespace::run(of("namespace-controller"), namespaces.clone()),
        gc::run(of("generic-garbage-collector"), namespaces),
    );
}
