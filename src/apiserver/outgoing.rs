//! HTTPS requests of the server's own: to webhooks, at a URL or behind a Service of the cluster.
//!
//! In: where somebody is, who vouches for him, and JSON. Out: his JSON, or why there is none, in kube-apiserver's words. Connections are
//! kept for the next request to the same place, since every write may cost one. Whoever answers is bounded in time and in bytes.

use crate::Server;
use crate::body::BoxError;
use crate::proxy;
use bytes::Bytes;
use edge_registry::custom::Endpoint;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tower_service::Service;

/// Connections that are kept for one place at most.
const KEPT: usize = 8;
/// A connection that was idle for longer is not used again.
const IDLE: Duration = Duration::from_secs(90);
/// What is known of whom to trust is forgotten when nobody has needed it for so long, and somebody else is asked for.
const REMEMBERED: Duration = Duration::from_secs(600);
/// So many are known at most (kube-apiserver's number).
const MOST_CLIENTS: usize = 200;
/// So much of a body is quoted when it is not the answer that was asked for, in characters.
const QUOTED: usize = 512;

type HttpClient = Client<HttpsConnector<Dialer>, Full<Bytes>>;

/// Somebody who is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callee<'a> {
    /// Where he is.
    pub(crate) endpoint: &'a Endpoint,
    /// Certificates, PEM, of those who may vouch for him; empty: those that the machine trusts.
    pub(crate) ca_bundle: &'a [u8],
    /// How long he may take, all in all.
    pub(crate) patience: Duration,
    /// Whether he is told so, as the parameter `timeout`.
    pub(crate) knows_patience: bool,
    /// The longest answer that is read, in bytes.
    pub(crate) longest: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody can be asked.
    #[error("could not get REST client: {0}")]
    Setup(String),
    /// He could not be reached, or broke off.
    #[error("Post {url:?}: {why}")]
    Send { url: String, why: String },
    /// He took too long.
    #[error("Post {url:?}: context deadline exceeded")]
    Deadline { url: String },
    /// He answered, but not with success.
    #[error("{1}")]
    Refused(u16, String),
    /// His answer is too long.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// His answer is no JSON.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Unreadable(String),
}

impl CallError {
    /// The HTTP status that counts for the call: his, or that of somebody who is not there.
    pub(crate) fn code(&self) -> u16 {
        match self {
            Self::Refused(code, _) => *code,
            Self::Setup(_) => 500,
            _ => 503,
        }
    }
}

impl Callee<'_> {
    /// The address as it is asked for, for messages, too.
    pub(crate) fn url(&self) -> String {
        let mut url = match self.endpoint {
            Endpoint::Url(url) => url.clone(),
            Endpoint::Service { namespace, name, path, port } => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                format!("https://{name}.{namespace}.svc:{port}{slash}{path}")
            }
        };
        if self.knows_patience {
            url.push_str(&format!("?timeout={}s", self.patience.as_secs()));
        }
        url
    }
}

/// Whom the machine asks, and by which connections.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Knows the Services. It owns this, so this does not own it.
    server: Weak<Server>,
    clients: Mutex<HashMap<Trust, Known>>,
}

/// What connections may be shared by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Trust {
    ca_bundle: Vec<u8>,
    /// Names are those of Services, and not the machine's.
    is_service: bool,
}

#[derive(Debug)]
struct Known {
    client: HttpClient,
    last_use: Instant,
}

impl Outgoing {
    pub(crate) fn new(server: Weak<Server>) -> Self {
        Self { server, clients: Mutex::default() }
    }

    /// Posts JSON and reads the answer.
    ///
    /// # Errors
    /// When there is none in time, or none that could be used.
    pub(crate) async fn post(&self, callee: &Callee<'_>, body: Bytes) -> Result<Value, CallError> {
        let url = callee.url();
        let exchange = async {
            let client = self.client(callee).await?;
            let sent = |why: String| CallError::Send { url: url.clone(), why };
            let request = Request::post(url.as_str())
                .header(CONTENT_TYPE, "application/json")
                .header(ACCEPT, "application/json")
                .body(Full::new(body))
                .map_err(|e| sent(e.to_string()))?;
            let response = client.request(request).await.map_err(|e| sent(root_cause(&e)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), callee.longest).collect().await;
            let body = body.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
                Some(_) => CallError::TooLong(callee.longest),
                None => sent(root_cause(e.as_ref())),
            })?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(callee.patience, exchange)
            .await
            .map_err(|_| CallError::Deadline { url: url.clone() })??;
        if !status.is_success() {
            return Err(CallError::Refused(status.as_u16(), refusal(status, &body)));
        }
        serde_json::from_slice(&body).map_err(|e| CallError::Unreadable(e.to_string()))
    }

    async fn client(&self, callee: &Callee<'_>) -> Result<HttpClient, CallError> {
        let is_service = matches!(callee.endpoint, Endpoint::Service { .. });
        let trust = Trust { ca_bundle: callee.ca_bundle.to_vec(), is_service };
        if let Some(known) = self.clients.lock().get_mut(&trust) {
            known.last_use = Instant::now();
            return Ok(known.client.clone());
        }
        let mut config = trusting(callee.ca_bundle).await.map_err(CallError::Setup)?;
        config.alpn_protocols.clear();
        let dialer = Dialer { server: self.server.clone(), is_service };
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().wrap_connector(dialer);
        // HTTP/1.1, as kube-apiserver: who has several backends gets his requests spread over them
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(KEPT).pool_idle_timeout(IDLE).build(connector);
        let now = Instant::now();
        let mut clients = self.clients.lock();
        clients.retain(|_, known| now.duration_since(known.last_use) < REMEMBERED);
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(trust, Known { client: client.clone(), last_use: now });
        Ok(client)
    }
}

/// Whom to believe: the given authorities, or where there are none those of the machine.
async fn trusting(ca_bundle: &[u8]) -> Result<rustls::ClientConfig, String> {
    if !ca_bundle.is_empty() {
        return edge_pki::remote_client_config(ca_bundle, None).map_err(|e| e.to_string());
    }
    let read = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(read.map_err(|e| e.to_string())?.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// Opens connections: to one of a Service's ready endpoints, or to whatever a name means to the machine.
#[derive(Clone, Debug)]
struct Dialer {
    server: Weak<Server>,
    is_service: bool,
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let port = uri.port_u16().unwrap_or(443);
            let connected = if dialer.is_service {
                let address = dialer.endpoint(host, port).await?;
                TcpStream::connect(address).await.map_err(|e| format!("dial tcp {address}: connect: {e}"))
            } else {
                TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: connect: {e}"))
            };
            let socket = connected?;
            // one small message each way: waiting for more only costs
            socket.set_nodelay(true)?;
            Ok(TokioIo::new(socket))
        })
    }
}

impl Dialer {
    /// `host` is `name.namespace.svc`.
    async fn endpoint(&self, host: &str, port: u16) -> Result<std::net::SocketAddr, String> {
        let server = self.server.upgrade().ok_or("the server is stopping")?;
        let mut labels = host.split('.');
        let (name, namespace) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
        let service = server.stored_object("", "services", namespace, name);
        let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
        let slices = server.stored_objects("discovery.k8s.io", "endpointslices", namespace).await;
        let slices = slices.map_err(|e| e.message)?;
        proxy::ready_endpoint(&service, &slices, port)
            .ok_or_else(|| format!("no endpoints available for service {name:?}"))
    }
}

/// What is at the bottom of an error, where it says what happened. Certificates get Go's words, by which people look for them.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    loop {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref::<rustls::Error>() {
            let why = match why {
                // a bad signature: somebody of the same name as an authority that is known
                rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature => {
                    "certificate signed by unknown authority".to_owned()
                }
                other => format!("{other:?}"),
            };
            return format!("tls: failed to verify certificate: x509: {why}");
        }
        let below =
            error.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref()).map(|e| e as &(dyn Error + 'static));
        match below.or_else(|| error.source()) {
            Some(below) => error = below,
            None => return error.to_string(),
        }
    }
}

/// The words of Kubernetes' client for an answer that is no success.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let own = serde_json::from_slice::<Value>(body).ok().filter(|v| v["kind"] == "Status");
    if let Some(message) = own.as_ref().and_then(|v| v["message"].as_str()).filter(|m| !m.is_empty()) {
        return message.chars().take(QUOTED).collect();
    }
    let text: String =
        String::from_utf8_lossy(body.get(..QUOTED * 4).unwrap_or(body)).trim().chars().take(QUOTED).collect();
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => text,
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .to_owned()
        }
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_said_as_they_are_asked_for() {
        let service = |path: &str| Endpoint::Service {
            namespace: "ns".into(),
            name: "hook".into(),
            path: path.into(),
            port: 8443,
        };
        for (endpoint, knows_patience, url) in [
            (Endpoint::Url("https://a.b/c".into()), true, "https://a.b/c?timeout=5s"),
            (Endpoint::Url("https://a.b:1/c".into()), false, "https://a.b:1/c"),
            (service("/x/y"), true, "https://hook.ns.svc:8443/x/y?timeout=5s"),
            (service(""), false, "https://hook.ns.svc:8443/"),
        ] {
            let patience = Duration::from_secs(5);
            let callee = Callee { endpoint: &endpoint, ca_bundle: &[], patience, knows_patience, longest: 1 };
            assert_eq!(callee.url(), url);
        }
    }

    #[test]
    fn refusals_are_worded_as_by_kubernetes_client() {
        for (code, body, want) in [
            (404, "404 page not found", "the server could not find the requested resource"),
            (
                500,
                "boom \"x\"",
                "an error on the server (\"boom \\\"x\\\"\") has prevented the request from succeeding",
            ),
            (418, "", "the server responded with the status code 418 but did not return more information"),
            (400, r#"{"kind": "Status", "message": "no"}"#, "no"),
        ] {
            assert_eq!(refusal(StatusCode::from_u16(code).unwrap_or_default(), body.as_bytes()), want);
        }
        assert!(refusal(StatusCode::BAD_GATEWAY, &[b'x'; 100_000]).len() < 1000);
    }
}
