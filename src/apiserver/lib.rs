//! Everything between the TLS socket and the registry.
//!
//! In: HTTP requests, from clients over TLS ([`ApiServer::serve`]) or from the components of the same process
//! ([`ApiServer::call`]). Out: answers as Kubernetes 1.36 gives them. A request passes each part once:
//!
//! `server` (socket, TLS, HTTP) → `chain` (who, may he, how many) → `handler` (generic verbs over the resource table),
//! `reviews`, `discovery`, or `proxy` (the kubelets) → `encode` (the answer's encoding and shape).
//!
//! No handler knows a resource: what differs between resources is in the registry's rows and in `admission`.

mod admission;
mod body;
mod health;
mod metrics;
mod negotiate;
mod options;
mod proxy;
mod query;
mod request_info;

pub use body::{Body, BodyError, BoxError};
pub use options::Options;
pub use proxy::{NodeDialer, Stream};
