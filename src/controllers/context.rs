//! What every controller works with.

use edge_client::{Client, EventRecorder, Informers};
use std::sync::Arc;

/// A controller's own client (requests run under its own service account) and the informers that all share.
#[derive(Clone)]
pub struct Context {
    /// Requests under the controller's identity.
    pub client: Client,
    /// The shared caches.
    pub informers: Informers,
    /// Events in the controller's name.
    pub recorder: EventRecorder,
}

/// Makes a client for a user name.
type ClientFactory = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// Gives each controller its identity: `system:serviceaccount:kube-system:<name>`.
#[derive(Clone)]
pub struct Identities {
    informers: Informers,
    client: ClientFactory,
}

impl Identities {
    /// Identities whose clients are made by `client` from a user name.
    pub fn new(informers: Informers, client: impl Fn(&str) -> Client + Send + Sync + 'static) -> Self {
        Self { informers, client: Arc::new(client) }
    }

    /// The context of the controller `name`. Must be called within a tokio runtime.
    pub fn context(&self, name: &str) -> Context {
        let client = (self.client)(&format!("system:serviceaccount:kube-system:{name}"));
        let recorder = EventRecorder::new(client.clone(), name, "");
        Context { client, informers: self.informers.clone(), recorder }
    }
}
