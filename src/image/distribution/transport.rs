//! HTTP for one pull: connections per host with that host's TLS, through a proxy if the environment names one
//! (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), and a limit on how long nothing may happen.

use super::config::{HostConfig, Registries};
use super::{RegistryError, tls};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tower::Service;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may send nothing; there is no limit on the whole transfer.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

type HttpClient = Client<HttpsConnector<ProxyConnector>, Full<Bytes>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The HTTP clients of one pull. Made anew for each pull, so that an idle node keeps neither connections nor root
/// certificates in memory, and changed certificate files are seen.
pub(crate) struct Transport {
    registries: Registries,
    proxies: Arc<Matcher>,
    clients: Mutex<HashMap<String, HttpClient>>,
}

impl Transport {
    pub(crate) fn new(registries: &Registries) -> Self {
        let (registries, clients) = (registries.clone(), Mutex::default());
        Self { registries, proxies: Arc::new(Matcher::from_env()), clients }
    }

    pub(crate) fn host_config(&self, host: &str) -> HostConfig {
        self.registries.host(host)
    }

    /// Sends a request and waits for the response's head.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RegistryError> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let client = self.client(&host).await?;
        match tokio::time::timeout(STALL_TIMEOUT, client.request(request)).await {
            Ok(sent) => sent.map_err(|error| RegistryError::from_client(&host, error)),
            Err(_) => Err(RegistryError::Stalled { host, after: STALL_TIMEOUT }),
        }
    }

    async fn client(&self, host: &str) -> Result<HttpClient, RegistryError> {
        if let Some(client) = self.clients.lock().get(host) {
            return Ok(client.clone());
        }
        let tls = self.registries.host(host).tls;
        let config = tokio::task::spawn_blocking(move || tls::client_config(&tls)).await;
        let config = config.unwrap_or_else(|panic| Err(panic.to_string()));
        let config = config.map_err(|reason| RegistryError::Config { host: host.to_owned(), reason })?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = ProxyConnector { http, proxies: Arc::clone(&self.proxies) };
        let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new()).build(https.wrap_connector(connector));
        self.clients.lock().insert(host.to_owned(), client.clone());
        Ok(client)
    }
}

/// The next piece of a body, `None` at its end.
pub(super) async fn next_chunk(host: &str, body: &mut Incoming) -> Result<Option<Bytes>, RegistryError> {
    loop {
        let frame = tokio::time::timeout(STALL_TIMEOUT, body.frame()).await;
        let frame = frame.map_err(|_| RegistryError::Stalled { host: host.to_owned(), after: STALL_TIMEOUT })?;
        let Some(frame) = frame else { return Ok(None) };
        let broken = |error| RegistryError::Broken { host: host.to_owned(), source: Box::new(error) };
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            return Ok(Some(data));
        }
    }
}

/// A whole body of at most `limit` bytes.
pub(super) async fn read_body(host: &str, mut body: Incoming, limit: u64) -> Result<Bytes, RegistryError> {
    let mut bytes = bytes::BytesMut::new();
    while let Some(chunk) = next_chunk(host, &mut body).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            let reason = format!("sent more than {limit} bytes");
            return Err(RegistryError::Protocol { host: host.to_owned(), reason });
        }
    }
    Ok(bytes.freeze())
}

/// Connects directly, or through the proxy that the environment names for the destination.
#[derive(Clone)]
struct ProxyConnector {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Service<Uri> for ProxyConnector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        match self.proxies.intercept(&destination) {
            None => {
                let connecting = self.http.call(destination);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.http.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let connecting = tunnel.call(destination);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
        }
    }
}
