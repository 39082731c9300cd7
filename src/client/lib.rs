//! The only door to the cluster for controllers, scheduler, proxy, DNS and the node agent.
//!
//! [`Client`] and [`Api`] are those of the `kube` crate; this room adds the transport that calls the API server of the
//! same process ([`local`]), the one to servers on other machines ([`Uplink`]) with the tunnels back, one shared cache per resource ([`Informers`]), work queues, an event recorder and a supervisor.

mod backoff;
pub mod claims;
mod counters;
mod election;
mod informer;
mod kubeconfig;
mod local;
pub mod placement;
mod recorder;
mod remote;
mod servers;
mod slim;
mod snapshot;
mod supervisor;
mod tunnel;
mod tunnels;
mod workqueue;

pub use backoff::WatchBackoff;
pub use counters::reconcile_metrics;
pub use election::Candidate;
pub use informer::{Change, Informer, InformerKind, Informers, Key};
pub use kube::api::{
    Api, ApiResource, AttachParams, AttachedProcess, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch,
    PatchParams, PostParams, Preconditions, PropagationPolicy, TerminalSize,
};
pub use kube::core::Status;
pub use kube::{Client, Error, Resource, ResourceExt};
pub use kubeconfig::{KubeconfigCluster, KubeconfigError, from_kubeconfig};
pub use local::{LocalRequest, LocalResponse, local};
pub use recorder::{EventRecorder, EventType, node_reference, object_reference};
pub use remote::Uplink;
pub use servers::{Connection, Protocol, Server, ServerUrlError, Servers, Unreachable};
pub use snapshot::Keep;
pub use supervisor::Supervisor;
pub use tunnel::{ServeStream, TUNNEL_PATH, TUNNEL_PROTOCOL, TUNNEL_SERVER, TunnelStream, keep_tunnel};
pub use tunnels::keep_tunnels;
pub use workqueue::{Outcome, WorkQueue, run_workers};

/// Any error, as transports have them.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whether an error is the API's 404.
pub fn is_not_found(error: &Error) -> bool {
    status_code(error) == Some(404)
}

/// Whether an error is the API's 409 (a stale resourceVersion, or an object that exists already).
pub fn is_conflict(error: &Error) -> bool {
    status_code(error) == Some(409)
}

/// Whether an error says that an object of the name exists already.
pub fn is_already_exists(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// The HTTP status code of an API error; `None` for errors of the transport.
pub fn status_code(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}
