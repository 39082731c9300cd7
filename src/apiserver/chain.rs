//! The one way of every request, in Kubernetes' order.

use crate::audit::{self, Record, Seen, Stage};
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
    let mut record = None;
    let (info, result) = match RequestInfo::parse(request.method(), uri.path(), &query) {
        Ok(info) => {
            let seen = server.audit.as_ref().map(|_| {
                let remote = if let Origin::Connection(peer) = &origin { Some(peer.address.ip()) } else { None };
                Seen::new(audit_id.to_str().unwrap_or_default(), &uri, request.headers(), remote)
            });
            let is_audited = seen.is_some();
            let passing: BoxFuture<'_, Result<Response<Body>, Status>> =
                Box::pin(pass(server, origin, &info, &query, request, seen));
            let passing = warnings::collect(AssertUnwindSafe(passing).catch_unwind());
            let (result, heard) = if is_audited {
                let (output, told) = audit::scope(passing).await;
                record = told;
                output
            } else {
                passing.await
            };
            warned = heard;
            let result = match result {
                Ok(result) => result,
                Err(panic) => {
                    tracing::error!(?audit_id, verb = info.verb, path = info.path, "request handler panicked");
                    if let Some(record) = record.take() {
                        panicked(&record, &said(panic.as_ref())).await;
                    }
                    Err(Status::new(
                        500,
                        Reason::InternalError,
                        "this request caused the server to panic; its log says more",
                    ))
                }
            };
            (info, result)
        }
        Err(e) => (RequestInfo::default(), Err(Status::bad_request(e.to_string()))),
    };
    let mut response = result.unwrap_or_else(|status| {
        if let Some(record) = &record {
            record.failed(&status);
        }
        encode::failure(&accepted, &status)
    });
    server.metrics.observe(&info, server.serves(&info), response.status().as_u16(), started.elapsed());
    encode::add_warnings(&mut response, warned.iter().map(String::as_str));
    response.headers_mut().insert(AUDIT_ID, audit_id);
    match record {
        Some(record) => Box::pin(answered(record, &info, response)).await,
        None => response,
    }
}

/// Tells of an answer that begins; its end is told when nobody holds the record any more. What is whole is sent when its end is told.
async fn answered(record: Arc<Record>, info: &RequestInfo, response: Response<Body>) -> Response<Body> {
    record.code(response.status().as_u16());
    if info.is_long_running() {
        // too late to refuse anything
        let _ = record.tell(Stage::ResponseStarted).wait().await;
    }
    if !response.body().is_full() {
        return response.map(|body| body.holding(record));
    }
    // somebody else holds it while a connection goes on that the request became
    if let Some(record) = Arc::into_inner(record) {
        record.finish().await;
    }
    response
}

/// What a panic says.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("unknown").to_owned()
}

/// Tells of a panic, and of nothing more.
async fn panicked(record: &Record, text: &str) {
    record.failed(&Status::new(500, Reason::InternalError, format!("APIServer panic'd: {text}")));
    record.close();
    // the request is over in any case
    let _ = record.tell(Stage::Panic).wait().await;
}

/// The chain. Each step adds what it finds out, or ends the request in place of all that follow.
async fn pass(
    server: &Arc<Server>,
    origin: Origin<'_>,
    info: &RequestInfo,
    query: &Query<'_>,
    mut request: Request<Body>,
    seen: Option<Seen>,
) -> Result<Response<Body>, Status> {
    tracing::trace!(from = %origin, verb = info.verb, path = info.path, "request");
    let attempted = if request.headers().contains_key(http::header::AUTHORIZATION) { "bearer" } else { "x509" };
    let audited = server.audit.as_ref().zip(seen);
    let user = match server.access.authenticate(server.as_ref(), origin, request.headers_mut()) {
        Ok(user) => user,
        Err(status) => {
            if let Some((audit, seen)) = audited {
                audit::refused(audit, seen, info, attempted).await;
            }
            return Err(status);
        }
    };
    let record = match audited {
        Some((audit, seen)) => {
            let record = audit::begin(audit, seen, Some(&user), info);
            if let Some(record) = &record {
                audit::received(record, audit, request.uri()).await?;
            }
            record
        }
        None => None,
    };
    let asked = record.as_ref().map(|_| user.clone());
    let user = impersonation::apply(&server.access, user, request.headers_mut())?;
    if let Some(record) = record.filter(|_| asked.as_ref() != Some(&user)) {
        record.impersonated(&user);
    }
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
    let decision = match server.access.authorize(user, info) {
        Err(_) if node_of(user).is_some() => {
            server.settle_rights().await;
            server.access.authorize(user, info)
        }
        other => other,
    };
    audit::annotate("authorization.k8s.io/decision", if decision.is_ok() { "allow" } else { "forbid" });
    audit::annotate("authorization.k8s.io/reason", decision.as_deref().unwrap_or_default());
    decision.map(|_| ())
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
