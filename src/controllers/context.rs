//! What every controller works with.

use edge_client::{Change, Client, Error, EventRecorder, Informer, InformerKind, Informers};
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

/// What people are told of an error.
pub(crate) fn message(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
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

/// Hands everything that is in an informer's cache, and then every change, to a function, for ever.
pub(crate) async fn each<K: InformerKind>(informer: &Informer<K>, act: impl Fn(&Change<K>)) {
    let mut changes = informer.subscribe();
    while let Some(change) = changes.recv().await {
        act(&change);
    }
}

/// The result of a request about an object that may be gone: then there is nothing left to do.
pub(crate) fn unless_gone<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(e) if edge_client::is_not_found(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The same where the object may also have changed meanwhile: its own change will bring the controller back.
pub(crate) fn unless_changed<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match unless_gone(result) {
        Err(e) if edge_client::is_conflict(&e) => Ok(None),
        other => other,
    }
}
