//! Everything between the TLS socket and the registry.
//!
//! In: HTTP requests, from clients over TLS ([`ApiServer::serve`]) or from the components of the same process
//! ([`ApiServer::call`]). Out: answers as Kubernetes 1.36 gives them. A request passes each part once:
//!
//! `listener` (socket, TLS, HTTP) → `chain` (who, may he, how many) → `handler` (generic verbs over the resource table),
//! `reviews`, `discovery`, `agents` (joining, tunnels), `proxy` (the kubelets), or `aggregation` (other API servers) → `encode` (the answer's encoding and shape).
//!
//! No handler knows a resource: what differs between resources is in the registry's rows and in `admission`.

mod access;
mod admission;
mod agents;
mod aggregation;
mod audit;
mod body;
mod bootstrap;
mod chain;
mod connections;
mod decode;
mod definitions;
mod dial;
mod discovery;
mod encode;
mod handler;
mod health;
mod impersonation;
mod in_flight;
mod listener;
mod metrics;
mod negotiate;
mod options;
mod outgoing;
mod proxy;
mod query;
mod request_info;
mod reviews;
mod rights;
mod server;
mod usage;
mod warnings;

pub use aggregation::FrontProxy;
pub use audit::{
    Audit, AuditError, AuditOptions, BatchOptions, KubeconfigError, LogOptions, PolicyError, ThrottleOptions,
    Truncation, WebhookMode, WebhookOptions,
};
pub use body::{Body, BodyError, BoxError};
pub use health::Component;
pub use options::Options;
pub use proxy::{NodeDialer, Stream};
pub use server::{ApiServer, Parts};

pub(crate) use server::{Peer, Server};
