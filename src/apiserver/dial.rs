//! Connections that the server itself opens, and keeps for the next request to the same place.
//!
//! HTTP/1.1, mostly over TLS, as kube-apiserver's: who has several backends gets his requests spread over them, and connections can be
//! upgraded. One that is upgraded, or over which an answer still comes, is nobody else's. A request that meets a kept
//! connection which the other side has closed goes over another one, but only when nothing of it was sent.

use crate::Server;
use crate::body::BoxError;
use crate::proxy;
use bytes::Bytes;
use http::Uri;
use http::uri::Scheme;
use http_body::Body as HttpBody;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Connections that are kept for one place at most.
pub(crate) const KEPT: usize = 8;
/// One that was idle for longer is closed: before servers made with Kubernetes' libraries do it, which is after 90 s.
const IDLE: Duration = Duration::from_secs(60);
/// How long a connection may take to be there, its handshake included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends requests over kept connections; it is cheap to clone, and its idle connections end with its last clone.
pub(crate) type KeptClient<B> = Client<Patient<HttpsConnector<Dialer>>, B>;

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schemes {
    /// Only what is safe on its way.
    Https,
    /// What is not, too.
    Any,
}

/// A client that keeps up to `most` idle connections for each place. Servers have to be called `name`, or as the addresses of requests
/// say. All its connections end with `stop`.
pub(crate) fn client<B>(
    dialer: Dialer,
    (mut config, schemes): (rustls::ClientConfig, Schemes),
    name: Option<ServerName<'static>>,
    most: usize,
    stop: CancellationToken,
) -> KeptClient<B>
where
    B: HttpBody<Data = Bytes> + Send,
{
    // what the builder wants, which means HTTP/1.1
    config.alpn_protocols.clear();
    let builder = HttpsConnectorBuilder::new().with_tls_config(config);
    let mut connector = match schemes {
        Schemes::Https => builder.https_only(),
        Schemes::Any => builder.https_or_http(),
    };
    if let Some(name) = name {
        connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Client::builder(UntilStop(stop))
        .pool_max_idle_per_host(most)
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(Patient(connector.enable_http1().wrap_connector(dialer)))
}

/// Runs connections until a server stops.
#[derive(Clone, Debug)]
struct UntilStop(CancellationToken);

impl<F> hyper::rt::Executor<F> for UntilStop
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, connection: F) {
        let stop = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = connection => {}
            }
        });
    }
}

/// Gives up on connections that are not there in time.
#[derive(Clone, Debug)]
pub(crate) struct Patient<C>(C);

impl<C> Service<Uri> for Patient<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(PATIENCE, self.0.call(uri));
        Box::pin(async { connecting.await.unwrap_or_else(|_| Err("connection timed out".into())) })
    }
}

/// Opens sockets: to one of a Service's ready endpoints, or to whatever a name or an address means to the machine.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    /// Knows the Services, if it is those.
    services: Option<Weak<Server>>,
}

impl Dialer {
    /// Hosts are Services, `name.namespace.svc`. The server owns whoever uses this, so this does not own it.
    pub(crate) fn of_services(server: Weak<Server>) -> Self {
        Self { services: Some(server) }
    }

    /// Hosts are what they are to the machine.
    pub(crate) fn of_names() -> Self {
        Self { services: None }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let services = self.services.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let is_plain = uri.scheme() == Some(&Scheme::HTTP);
            let port = uri.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
            let connected = if let Some(server) = services {
                let address = endpoint(&server, host, port).await?;
                TcpStream::connect(address).await.map_err(|e| format!("dial tcp {address}: connect: {e}"))
            } else {
                TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: connect: {e}"))
            };
            let socket = connected?;
            // both sides write whole messages: waiting for more only costs
            socket.set_nodelay(true)?;
            Ok(TokioIo::new(socket))
        })
    }
}

/// One endpoint of a Service; `host` is `name.namespace.svc`.
async fn endpoint(server: &Weak<Server>, host: &str, port: u16) -> Result<SocketAddr, String> {
    let server = server.upgrade().ok_or("the server is stopping")?;
    let mut labels = host.split('.');
    let (name, namespace) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
    let service = server.stored_object("", "services", namespace, name);
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
    let slices = server.stored_objects("discovery.k8s.io", "endpointslices", namespace, "").await;
    let slices = slices.map_err(|e| e.message)?;
    proxy::ready_endpoint(&service, &slices, port).ok_or_else(|| format!("no endpoints available for service {name:?}"))
}

/// What is at the bottom of an error, where it says what happened. Certificates get Go's words, by which people look for them.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
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
