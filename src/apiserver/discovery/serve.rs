//! Paths that are no resources: discovery, version, health, metrics, OpenAPI, keys.

use super::documents::{Aggregated, aggregated, api_versions, group, group_list, resource_list};
use super::openapi;
use crate::Server;
use crate::body::Body;
use crate::encode::{self, plain};
use crate::health::{Check, report};
use crate::negotiate::{Accepted, Scope, accept};
use crate::query::Query;
use crate::request_info::RequestInfo;
use bytes::Bytes;
use edge_api::{Reason, Status};
use http::header::{ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hasher};

const TEXT: &str = "text/plain; charset=utf-8";

/// What `/` lists.
const PATHS: [&str; 23] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/cacerts",
    "/healthz",
    "/healthz/etcd",
    "/healthz/log",
    "/healthz/ping",
    "/livez",
    "/livez/etcd",
    "/livez/log",
    "/livez/ping",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/readyz/etcd",
    "/readyz/log",
    "/readyz/ping",
    "/readyz/shutdown",
    "/version",
];

/// Answers a request that names no resource.
///
/// # Errors
/// 404 for a path that is not served, 405 for anything but reading.
pub(crate) async fn serve(
    server: &Server,
    info: &RequestInfo,
    query: &Query<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Status::new(
            405,
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        ));
    }
    let headers = request.headers();
    let accepted = || accept(headers, Scope::Plain, query.optional_flag("pretty"), false);
    let path = info.path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    match segments.as_slice() {
        [] => document(&accepted()?, root(server)).await,
        ["api"] | ["apis"] => discovery(server, headers, segments[0] == "api", &accepted).await,
        ["api", version] => {
            let list = resource_list(&server.rows(), "", version).ok_or_else(Status::unknown_path)?;
            document(&accepted()?, list).await
        }
        ["apis", name] => {
            let value = group(&server.offer(), name).ok_or_else(Status::unknown_path)?;
            document(&accepted()?, value).await
        }
        ["apis", name, version] => {
            let list = resource_list(&server.rows(), name, version).ok_or_else(Status::unknown_path)?;
            document(&accepted()?, list).await
        }
        ["version"] => document(&accepted()?, version(server)).await,
        [endpoint @ ("healthz" | "livez" | "readyz")] => health(server, endpoint, None, query).await,
        [endpoint @ ("healthz" | "livez" | "readyz"), rest @ ..] => {
            health(server, endpoint, Some(&rest.join("/")), query).await
        }
        ["metrics"] => {
            let mut text = server.metrics.render(&server.options.git_version, &server.object_counts().await);
            server.hook_metrics.render(&mut text);
            server.aggregation.metrics.render(&mut text);
            if let Some(audit) = &server.audit {
                audit.render(&mut text);
            }
            text.push_str(&(server.other_metrics)());
            Ok(plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
        }
        ["openapi", "v2"] => openapi::v2(server, headers).await,
        ["openapi", "v3"] => openapi::v3_index(server, headers).await,
        ["openapi", "v3", rest @ ..] => openapi::v3(server, &rest.join("/"), headers, query).await,
        [".well-known", "openid-configuration"] => {
            Ok(plain(StatusCode::OK, "application/json", server.access.openid_configuration()))
        }
        ["openid", "v1", "jwks"] => {
            Ok(plain(StatusCode::OK, "application/jwk-set+json", server.access.authenticator.jwks().to_string()))
        }
        ["cacerts"] => Ok(plain(StatusCode::OK, TEXT, server.options.cluster_ca_pem.clone())),
        _ => Err(Status::unknown_path()),
    }
}

async fn document(accepted: &Accepted, value: Value) -> Result<Response<Body>, Status> {
    Ok(encode::respond(accepted, StatusCode::OK, value).await)
}

async fn discovery(
    server: &Server,
    headers: &HeaderMap,
    core: bool,
    accepted: &impl Fn() -> Result<Accepted, Status>,
) -> Result<Response<Body>, Status> {
    let vary = HeaderValue::from_static("Accept");
    let Some(form) = Aggregated::wanted(headers) else {
        let value = if core { api_versions(&server.address()) } else { group_list(&server.offer()) };
        let mut response = document(&accepted()?, value).await?;
        response.headers_mut().insert(VARY, vary);
        return Ok(response);
    };
    server.aggregation.metrics.discovered();
    let json = Bytes::from(aggregated(&server.offer(), core, form).to_string());
    let mut response = with_etag(headers, &form.media_type(), json).await;
    response.headers_mut().insert(VARY, vary);
    Ok(response)
}

/// Answers with `bytes`, or 304 where the client has them already.
pub(super) async fn with_etag(headers: &HeaderMap, media_type: &str, bytes: Bytes) -> Response<Body> {
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    let etag = format!("\"{:016X}\"", hasher.finish());
    let has_it = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|t| t.trim() == etag || t.trim() == "*"));
    let mut response = if has_it {
        let mut r = Response::new(Body::empty());
        *r.status_mut() = StatusCode::NOT_MODIFIED;
        r
    } else {
        let accepted = accept(headers, Scope::Plain, Some(false), false).unwrap_or_default();
        encode::whole(&accepted, StatusCode::OK, media_type, bytes).await
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(ETAG, value);
    }
    response
}

fn root(server: &Server) -> Value {
    let mut paths: Vec<String> = PATHS.iter().map(|p| (*p).to_owned()).collect();
    for r in server.rows().iter().filter(|r| !r.group.is_empty()) {
        paths.push(format!("/apis/{}", r.group));
        paths.push(format!("/apis/{}/{}", r.group, r.version));
    }
    for r in server.aggregation.remotes().iter() {
        paths.push(format!("/apis/{}", r.spec.group));
        paths.push(format!("/apis/{}/{}", r.spec.group, r.spec.version));
    }
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}

fn version(server: &Server) -> Value {
    let o = &server.options;
    let mut numbers = o.git_version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    json!({
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": minor,
        "gitVersion": o.git_version,
        "gitCommit": o.git_commit,
        "gitTreeState": "clean",
        "buildDate": o.build_date,
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// The architecture as Go (and so every Kubernetes client) names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

async fn health(
    server: &Server,
    endpoint: &str,
    one: Option<&str>,
    query: &Query<'_>,
) -> Result<Response<Body>, Status> {
    let ready = server.is_ready();
    let store = server.registry.check_store().await;
    if let Err(error) = &store {
        tracing::warn!(error, "the store is not well");
    }
    let mut checks = vec![
        Check { name: "ping", ok: true },
        Check { name: "log", ok: true },
        Check { name: "etcd", ok: store.is_ok() },
        Check { name: "poststarthook/rbac/bootstrap-roles", ok: ready },
    ];
    if endpoint == "readyz" {
        checks.push(Check { name: "shutdown", ok: !server.shutdown.is_cancelled() });
    }
    let (code, text) = report(endpoint, one, &checks, query).ok_or_else(Status::unknown_path)?;
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = plain(code, TEXT, text);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    Ok(response)
}
