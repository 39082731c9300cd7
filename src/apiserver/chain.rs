//! The one way of every request, in Kubernetes' order.

use crate::body::Body;
use crate::in_flight::Slot;
use crate::negotiate::{self, Accepted, Scope, Shape};
use crate::query::Query;
use crate::request_info::RequestInfo;
use crate::{Peer, Server, agents, aggregation, discovery, encode, handler, impersonation, warnings};
use edge_api::{Reason, Status, UserInfo};
use edge_auth::node_of;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

/// Who sends a request, as far as the transport knows.
#[derive(Debug)]
pub(crate) enum Origin<'a> {
    /// A component of this process, which is believed.
    Component(Option<UserInfo>),
    /// A connection from outside.
    Connection(&'a Peer),
}

impl std::fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Component(_) => f.write_str("this process"),
            Self::Connection(peer) => peer.address.fmt(f),
        }
    }
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Answers a request, whatever happens: a panic below is a 500 of this request and of no other.
pub(crate) async fn handle(server: &Arc<Server>, origin: Origin<'_>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let audit_id = audit_id(request.headers());
    let uri = request.uri().clone();
    let query = Query::parse(uri.query().unwrap_or_default());
    let accepted = accepted_for_errors(request.headers(), &query);
    let mut warned = Vec::new();
    let (info, result) = match RequestInfo::parse(request.method(), uri.path(), &query) {
        Ok(info) => {
            let passing: BoxFuture<'_, Result<Response<Body>, Status>> =
                Box::pin(pass(server, origin, &info, &query, request));
            let passing = AssertUnwindSafe(passing);
            let (result, heard) = warnings::collect(passing.catch_unwind()).await;
            warned = heard;
            let result = result.unwrap_or_else(|_| {
                tracing::error!(?audit_id, verb = info.verb, path = info.path, "request handler panicked");
                Err(Status::new(
                    500,
                    Reason::InternalError,
                    "this request caused the server to panic; its log says more",
                ))
            });
            (info, result)
        }
        Err(e) => (RequestInfo::default(), Err(Status::bad_request(e.to_string()))),
    };
    let mut response = result.unwrap_or_else(|status| encode::failure(&accepted, &status));
    server.metrics.observe(&info, server.serves(&info), response.status().as_u16(), started.elapsed());
    encode::add_warnings(&mut response, warned.iter().map(String::as_str));
    response.headers_mut().insert(AUDIT_ID, audit_id);
    response
}

/// The chain. Each step adds what it finds out, or ends the request in place of all that follow.
async fn pass(
    server: &Arc<Server>,
    origin: Origin<'_>,
    info: &RequestInfo,
    query: &Query<'_>,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    tracing::trace!(from = %origin, verb = info.verb, path = info.path, "request");
    let user = server.access.authenticate(server.as_ref(), origin, request.headers_mut())?;
    let user = impersonation::apply(&server.access, user, request.headers_mut())?;
    tracing::trace!(user = user.username, "authenticated");
    let slot = Slot::take(&server.metrics, server.limits(), info, &user)?;
    authorize(server, &user, info).await?;
    let response = if let Some(remote) = server.aggregation.answers(info) {
        aggregation::pass(server, &user, info, &remote, request).await?
    } else if agents::serves(info) {
        agents::serve(server, &user, info, request).await?
    } else if info.is_resource {
        handler::handle(server, &user, info, query, request).await?
    } else {
        discovery::serve(server, info, query, request).await?
    };
    Ok(response.map(|body| slot.hold(body)))
}

/// Whether the request may go on. What a node may reach follows its pods, and a pod may have been bound a moment ago: a
/// node is refused only after all that happened before has been taken in.
async fn authorize(server: &Server, user: &UserInfo, info: &RequestInfo) -> Result<(), Status> {
    match server.access.authorize(user, info) {
        Err(_) if node_of(user).is_some() => {
            server.settle_rights().await;
            server.access.authorize(user, info)
        }
        other => other,
    }
}

/// The client's name for the request, or a new one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(given) = headers.get(AUDIT_ID).filter(|v| (1..=64).contains(&v.len())) {
        return given.clone();
    }
    // it needs to be unique, not secret
    let (a, b) = (RandomState::new().hash_one(0u8), RandomState::new().hash_one(1u8));
    let text = format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 50),
        b & 0xffff_ffff_ffff
    );
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("00000000-0000-4000-8000-000000000000"))
}

/// In which encoding failures are told that happen before, or whatever, the handler negotiates.
fn accepted_for_errors(headers: &HeaderMap, query: &Query<'_>) -> Accepted {
    let accepted = negotiate::accept(headers, Scope::Many, query.optional_flag("pretty"), false).unwrap_or_default();
    Accepted { shape: Shape::Object, gzip: false, ..accepted }
}
