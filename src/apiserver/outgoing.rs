//! HTTPS requests of the server's own: to webhooks, at a URL or behind a Service of the cluster, and to whom audit events are sent.
//!
//! In: where somebody is, who vouches for him, and JSON. Out: his JSON, or why there is none, in kube-apiserver's words. Connections are
//! kept for the next request to the same place, since every write may cost one. Whoever answers is bounded in time and in bytes.

use crate::Server;
use crate::dial::{self, Dialer, KeptClient, Schemes, root_cause};
use bytes::Bytes;
use edge_pki::Trust;
use edge_registry::custom::Endpoint;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Weak;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What is known of whom to trust is forgotten when nobody has needed it for so long, and somebody else is asked for.
const REMEMBERED: Duration = Duration::from_secs(600);
/// So many are known at most (kube-apiserver's number).
const MOST_CLIENTS: usize = 200;
/// So much of a body is quoted when it is not the answer that was asked for, in characters.
const QUOTED: usize = 512;

/// Somebody's connections.
pub(crate) type HttpClient = KeptClient<Full<Bytes>>;

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
    clients: Mutex<HashMap<Kind, Known>>,
}

/// What connections may be shared by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
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
            exchange(&client, &url, HeaderMap::new(), body, callee.longest).await
        };
        let answer = tokio::time::timeout(callee.patience, exchange)
            .await
            .map_err(|_| CallError::Deadline { url: url.clone() })??;
        let body = success(&answer)?;
        serde_json::from_slice(body).map_err(|e| CallError::Unreadable(e.to_string()))
    }

    async fn client(&self, callee: &Callee<'_>) -> Result<HttpClient, CallError> {
        let is_service = matches!(callee.endpoint, Endpoint::Service { .. });
        let kind = Kind { ca_bundle: callee.ca_bundle.to_vec(), is_service };
        if let Some(known) = self.clients.lock().get_mut(&kind) {
            known.last_use = Instant::now();
            return Ok(known.client.clone());
        }
        let config = trusting(callee.ca_bundle).await.map_err(CallError::Setup)?;
        let dialer = if is_service { Dialer::of_services(self.server.clone()) } else { Dialer::of_names() };
        // what was asked may be answered while the server stops
        let client = dial::client(dialer, (config, Schemes::Https), None, dial::KEPT, CancellationToken::new());
        let now = Instant::now();
        let mut clients = self.clients.lock();
        clients.retain(|_, known| now.duration_since(known.last_use) < REMEMBERED);
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(kind, Known { client: client.clone(), last_use: now });
        Ok(client)
    }
}

/// A client of one server at a URL, which may be without TLS. `name`: by which the server's certificate knows it, if not by that of its address.
pub(crate) fn client_of(config: rustls::ClientConfig, name: Option<ServerName<'static>>) -> HttpClient {
    // what is sent while the server stops may still arrive
    dial::client(Dialer::of_names(), (config, Schemes::Any), name, dial::KEPT, CancellationToken::new())
}

/// Posts JSON and reads the answer, whatever it says.
///
/// # Errors
/// When there is none.
pub(crate) async fn exchange(
    client: &HttpClient,
    url: &str,
    headers: HeaderMap,
    body: Bytes,
    longest: usize,
) -> Result<Response<Bytes>, CallError> {
    let sent = |why: String| CallError::Send { url: url.to_owned(), why };
    let mut request = Request::post(url)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(Full::new(body))
        .map_err(|e| sent(e.to_string()))?;
    request.headers_mut().extend(headers);
    let (parts, body) = client.request(request).await.map_err(|e| sent(root_cause(&e)))?.into_parts();
    let body = Limited::new(body, longest).collect().await;
    let body = body.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
        Some(_) => CallError::TooLong(longest),
        None => sent(root_cause(e.as_ref())),
    })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// The body of an answer that is a success.
///
/// # Errors
/// [`CallError::Refused`], when it is none.
pub(crate) fn success(answer: &Response<Bytes>) -> Result<&Bytes, CallError> {
    let (status, body) = (answer.status(), answer.body());
    if status.is_success() { Ok(body) } else { Err(CallError::Refused(status.as_u16(), refusal(status, body))) }
}

/// Whom to believe: the authorities in the given PEM, or where there are none those of the machine. Reads files.
///
/// # Errors
/// When there is something else in it.
pub(crate) fn trust(ca_bundle: &[u8]) -> Result<Trust, String> {
    if !ca_bundle.is_empty() {
        return Trust::in_pem(ca_bundle).map_err(|e| e.to_string());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(Trust::Roots(roots))
}

async fn trusting(ca_bundle: &[u8]) -> Result<rustls::ClientConfig, String> {
    let ca_bundle = ca_bundle.to_vec();
    let trust = tokio::task::spawn_blocking(move || trust(&ca_bundle)).await.map_err(|e| e.to_string())??;
    edge_pki::outgoing_config(trust, None).map_err(|e| e.to_string())
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
