//! The kubelet's HTTP API, as the API server and metrics collectors use it.
//!
//! Comes in: connections of peers that have been authorized (of the API server), and over TLS those of others, whose requests
//! are ([`access`]). Goes out: logs, streams of commands and ports, the pods of
//! this node, metrics.

mod access;
pub(crate) mod images;
mod listener;
mod logs;
pub(crate) mod metrics;
mod storage;
mod streams;

use crate::context::Context;
use crate::pods::Manager;
use crate::pods::shared::PodShared;
use access::{Access, CertificateUser};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// The body of every answer.
type Body = UnsyncBoxBody<Bytes, io::Error>;
/// An answer, or the one that tells why there is none.
type Answer = Result<Response<Body>, Refusal>;

/// A connection on which no request comes for so long ends. Metrics collectors ask once a minute or more often.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);

/// Why a request is refused: status and text.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn not_found(text: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, text.into())
    }

    fn bad_request(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }

    fn internal(text: impl Into<String>) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, text.into())
    }
}

/// Serves connections.
#[derive(Clone)]
pub(crate) struct Server {
    cx: Arc<Context>,
    manager: Arc<Manager>,
    access: Arc<Access>,
}

impl Server {
    pub(crate) fn new(cx: Arc<Context>, manager: Arc<Manager>) -> Self {
        let access = Arc::new(Access::new(cx.client.clone(), &cx.config.node_name));
        Self { cx, manager, access }
    }

    /// Serves one connection, whose peer may do everything, until it ends or the agent does.
    pub(crate) async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stop = self.cx.stop.clone();
        let service = move |request| {
            let server = self.clone();
            async move { server.answer(request).await }
        };
        connection(stop, stream, service).await;
    }

    /// The same for a peer of whom only his certificate is known: every request is looked at.
    async fn serve_guarded<S>(self, stream: S, certificate: Option<CertificateUser>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stop, certificate) = (self.cx.stop.clone(), Arc::new(certificate));
        let service = move |request: Request<Incoming>| {
            let (server, certificate) = (self.clone(), certificate.clone());
            async move {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let access = server.access.clone();
                match access.check(certificate.as_ref().as_ref(), &method, &path, request.headers()).await {
                    Ok(()) => server.answer(request).await,
                    Err(refusal) => refuse(&path, refusal),
                }
            }
        };
        connection(stop, stream, service).await;
    }

    /// Serves the API over TLS, until the agent ends.
    pub(crate) async fn listen(self, socket: std::net::TcpListener, tls: Arc<rustls::ServerConfig>) -> io::Result<()> {
        listener::run(self, socket, tls).await
    }

    /// Serves [`images`] on a socket of the machine, until the agent ends.
    pub(crate) async fn listen_locally(self, path: &std::path::Path) -> io::Result<()> {
        images::listen(self, path).await
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        self.route(request).await.unwrap_or_else(|refusal| refuse(&path, refusal))
    }

    async fn route(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let is_get = request.method() == Method::GET;
        match parts.as_slice() {
            ["healthz", ..] if is_get => Ok(text_answer("ok".to_owned())),
            ["pods" | "runningpods"] if is_get => Ok(json_answer(self.pods())),
            ["containerLogs", namespace, pod, container] if is_get => {
                logs::answer(&*self.pod(namespace, pod, None)?, container, &request)
            }
            ["exec", namespace, pod, container] => streams::exec(self.pod(namespace, pod, None)?, container, request),
            ["exec", namespace, pod, uid, container] => {
                streams::exec(self.pod(namespace, pod, Some(uid))?, container, request)
            }
            ["attach", namespace, pod, container] => {
                streams::attach(self.pod(namespace, pod, None)?, container, request)
            }
            ["attach", namespace, pod, uid, container] => {
                streams::attach(self.pod(namespace, pod, Some(uid))?, container, request)
            }
            ["portForward", namespace, pod] => streams::port_forward(self.pod(namespace, pod, None)?, request),
            ["portForward", namespace, pod, uid] => {
                streams::port_forward(self.pod(namespace, pod, Some(uid))?, request)
            }
            ["stats", "summary"] if is_get => {
                let only_usage = flag(&query(&request), "only_cpu_and_memory");
                Ok(json_answer(metrics::summary(&self.cx, &self.manager, only_usage).await))
            }
            ["metrics"] if is_get => {
                let own = metrics::own(&self.cx, &self.manager).await;
                Ok(text_answer(own + &(self.cx.other_metrics)()))
            }
            ["metrics", "resource"] if is_get => Ok(text_answer(metrics::resource(&self.cx, &self.manager).await)),
            ["v1-edge", "storage"] if request.method() == Method::DELETE => storage::remove(&request).await,
            _ => Err(Refusal::not_found("404 page not found")),
        }
    }

    fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<PodShared>, Refusal> {
        let found = self.manager.find(namespace, name).filter(|pod| uid.is_none_or(|uid| pod.uid == uid));
        found.ok_or_else(|| Refusal::not_found(format!("pod \"{name}_{namespace}\" does not exist")))
    }

    fn pods(&self) -> serde_json::Value {
        let pods: Vec<_> = self.manager.list().iter().map(|pod| pod.pod()).collect();
        serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
    }
}

async fn connection<S, F>(stop: CancellationToken, stream: S, answer: impl Fn(Request<Incoming>) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    if let Some(Err(error)) = stop.run_until_cancelled(connection.with_upgrades()).await {
        tracing::debug!(%error, "connection to the kubelet broke");
    }
}

fn refuse(path: &str, Refusal(status, text): Refusal) -> Response<Body> {
    tracing::debug!(path, %status, text, "request refused");
    let mut answer = text_answer(text);
    *answer.status_mut() = status;
    answer
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn typed(content_type: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

fn text_answer(text: String) -> Response<Body> {
    typed("text/plain; charset=utf-8", full(text))
}

fn json_answer(value: serde_json::Value) -> Response<Body> {
    typed("application/json", full(value.to_string()))
}

/// The parameters of a request, in order.
fn query(request: &Request<Incoming>) -> Vec<(String, String)> {
    form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect()
}

/// A parameter that says yes.
fn flag(query: &[(String, String)], name: &str) -> bool {
    query.iter().any(|(n, v)| n == name && matches!(v.as_str(), "1" | "true"))
}
