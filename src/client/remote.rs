//! The transport to servers on other machines: one HTTP/2 connection that is made again whenever it breaks.
//!
//! While there is none, requests wait for a while: most breaks are short, and whoever waits goes on at once when the
//! connection is there again.

use crate::servers::{Connection, Protocol, Servers, changed};
use http::{HeaderMap, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::Body;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How long a request waits for a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection that breaks earlier has come to nothing.
const SETTLED: Duration = Duration::from_secs(5);
/// First and longest wait after such a connection.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often a request is sent anew because its connection ended before it was sent.
const ATTEMPTS: usize = 3;
/// Some host is needed in requests; servers do not look at it.
const AUTHORITY: &str = "kubernetes";

type Sender = SendRequest<Body>;

/// The connection to the servers, which all clients of the process share.
#[derive(Clone)]
pub struct Uplink(Arc<Inner>);

struct Inner {
    sender: watch::Receiver<Option<Sender>>,
    _connector: AbortOnDropHandle<()>,
}

impl Uplink {
    /// Connects in the background, and again whenever the connection breaks, until the last clone and the last client are
    /// dropped. Must be called within a tokio runtime.
    pub fn new(servers: Arc<Servers>) -> Self {
        let (tx, sender) = watch::channel(None);
        let connector = AbortOnDropHandle::new(tokio::spawn(keep_connected(servers, tx)));
        Self(Arc::new(Inner { sender, _connector: connector }))
    }

    /// A client whose requests get `headers` besides their own. Must be called within a tokio runtime.
    pub fn client(&self, headers: HeaderMap) -> crate::Client {
        let uplink = self.clone();
        let service = tower::service_fn(move |mut request: Request<Body>| {
            let uplink = uplink.clone();
            request.headers_mut().extend(headers.clone());
            async move { uplink.0.send(request).await }
        });
        crate::Client::new(service, "default")
    }
}

async fn keep_connected(servers: Arc<Servers>, tx: watch::Sender<Option<Sender>>) {
    let mut identity = servers.identity();
    let mut delay = BACKOFF.0;
    loop {
        identity.mark_unchanged();
        let Connection { stream, local, server } = servers.connect_at_last(Protocol::Http2, "API").await;
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream));
        let (sender, connection) = match handshake.await {
            Ok(made) => made,
            Err(error) => {
                tracing::debug!(%server, %error, "HTTP/2 not possible");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let began = Instant::now();
        let mut connection = Box::pin(connection);
        tx.send_replace(Some(sender));
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(%server, %error, "connection to the server broke");
                }
            }
            () = servers.address_lost(local) => tracing::info!(%server, "this machine's address changed, connecting anew"),
            () = changed(&mut identity) => {
                tracing::debug!(%server, "connecting anew, with the new certificate");
                // what is under way goes on; it ends by itself when nothing is any more
                tokio::spawn(connection);
                continue;
            }
        }
        tx.send_replace(None);
        // a server that accepts connections and breaks them does not like who asks (its certificate has expired, say)
        if began.elapsed() < SETTLED {
            tokio::select! {
                () = tokio::time::sleep(delay) => delay = (delay * 2).min(BACKOFF.1),
                () = changed(&mut identity) => {}
            }
        } else {
            delay = BACKOFF.0;
        }
    }
}

impl Inner {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, crate::BoxError> {
        let mut parts = request.uri().clone().into_parts();
        parts.scheme = Some(http::uri::Scheme::HTTPS);
        parts.authority = Some(http::uri::Authority::from_static(AUTHORITY));
        *request.uri_mut() = Uri::from_parts(parts)?;
        *request.version_mut() = http::Version::HTTP_2;
        let mut attempt = 1;
        loop {
            let mut sender = self.sender().await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message().filter(|_| attempt < ATTEMPTS) {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
            attempt += 1;
        }
    }

    /// The connection at hand, or the next one.
    async fn sender(&self) -> io::Result<Sender> {
        let mut sender = self.sender.clone();
        let usable = |s: &Option<Sender>| s.as_ref().is_some_and(|s| !s.is_closed());
        let ready = tokio::time::timeout(PATIENCE, sender.wait_for(usable)).await;
        let lost = || io::Error::new(io::ErrorKind::NotConnected, "the server is not reachable");
        ready.map_err(|_| lost())?.map_err(|_| lost())?.clone().ok_or_else(lost)
    }
}
