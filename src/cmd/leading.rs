//! Which of several servers runs the controllers and the scheduler. A server with a store of its own has nobody to agree with.

use super::identities::{client, user};
use super::instance::Instance;
use super::server::{Failure, doing};
use crate::config::ServerConfig;
use edge_apiserver::ApiServer;
use edge_client::Candidate;
use std::sync::Arc;
use std::time::Duration;

/// How long the end of the process waits for the others to be told; they find out after 15 s anyway.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of randomness that tell a process from those before it on the same machine.
const OWN_BYTES: usize = 8;

/// This server's candidates; none where there is one server.
pub(crate) struct Candidates {
    pub(crate) controllers: Option<Arc<Candidate>>,
    pub(crate) scheduler: Option<Arc<Candidate>>,
}

impl Candidates {
    pub(crate) fn new(config: &ServerConfig, instance: &Instance, api: &ApiServer) -> Result<Self, Failure> {
        if config.etcd.is_none() {
            return Ok(Self { controllers: None, scheduler: None });
        }
        let own = edge_pki::random_secret(OWN_BYTES).map_err(doing("making an identity"))?;
        let identity = format!("{}_{own}", config.node.name);
        let predecessor = instance.succeed(&identity);
        let candidate = |lease, name| {
            Arc::new(Candidate::new(client(api, user(name)), lease, identity.clone(), predecessor.clone()))
        };
        Ok(Self {
            controllers: Some(candidate("kube-controller-manager", "system:kube-controller-manager")),
            scheduler: Some(candidate("kube-scheduler", "system:kube-scheduler")),
        })
    }

    /// Lets another server go on at once. What ran under the leases has ended.
    pub(crate) async fn release(&self, api: &ApiServer) {
        let all = async {
            for candidate in [&self.controllers, &self.scheduler].into_iter().flatten() {
                if let Err(error) = candidate.release().await {
                    tracing::warn!(%error, "a lease was not released");
                }
            }
            if let Err(error) = api.withdraw().await {
                tracing::warn!(error = error.message, "the other servers are not told");
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("the other servers are not told in time");
        }
    }
}

/// Runs something while its lease is held; where there is none, always.
pub(crate) async fn lead<F: Future<Output = ()>>(candidate: Option<Arc<Candidate>>, run: impl Fn() -> F) {
    match candidate {
        Some(candidate) => candidate.lead(run).await,
        None => run().await,
    }
}
