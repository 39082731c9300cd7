//! The agent's end of the tunnel: a connection that the agent opens, and over which the server opens streams to the
//! agent's kubelet. So an agent needs no open port, and may be behind address translation.
//!
//! On the wire: an HTTP/1.1 upgrade to `edge-tunnel`, then HTTP/2 with the roles turned round; each `CONNECT` of the server
//! is a stream of bytes, with HTTP/2's flow control.

use crate::servers::{Connection, Protocol, Servers};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Where the server accepts tunnels.
pub const TUNNEL_PATH: &str = "/v1-edge/tunnel";
/// The protocol's name.
pub const TUNNEL_PROTOCOL: &str = "edge-tunnel";
/// In this header of its answer a server says at which address it is one of the cluster's servers.
pub const TUNNEL_SERVER: &str = "edge-server";
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// First and longest wait after a tunnel that ended at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// A stream that the server has opened.
pub type TunnelStream = TokioIo<Upgraded>;

/// Does with a stream what it is there for.
pub trait ServeStream: Fn(TunnelStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static {}
impl<F> ServeStream for F where F: Fn(TunnelStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static {}

/// Keeps a tunnel to one of the servers open, for ever; what the server opens is given to `serve`. `home` is told which
/// of the cluster's servers it is.
pub async fn keep_tunnel(servers: Arc<Servers>, home: watch::Sender<Option<SocketAddr>>, serve: impl ServeStream) {
    let mut rounds = Rounds::default();
    loop {
        let connection = servers.connect_at_last(Protocol::Http1, "tunnel").await;
        let opened = |at| {
            home.send_replace(at);
        };
        rounds.pass(&servers, connection, &serve, opened).await;
    }
}

/// Tunnels that follow each other, with a wait after those that come to nothing.
pub(crate) struct Rounds {
    delay: Duration,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { delay: BACKOFF.0 }
    }
}

impl Rounds {
    /// A tunnel from its connection to its end, and the wait before the next one. `opened` is told which of the cluster's
    /// servers it leads to, when that says so.
    pub(crate) async fn pass(
        &mut self,
        servers: &Servers,
        connection: Connection,
        serve: &impl ServeStream,
        opened: impl FnOnce(Option<SocketAddr>),
    ) {
        let (server, began) = (connection.server.clone(), Instant::now());
        match run(servers, connection, serve.clone(), opened).await {
            Ok(()) => tracing::debug!(%server, "tunnel closed"),
            Err(error) => tracing::warn!(%server, %error, "tunnel broke"),
        }
        if began.elapsed() > BACKOFF.1 {
            self.delay = BACKOFF.0;
        } else {
            sleep(self.delay).await;
            self.delay = (self.delay * 2).min(BACKOFF.1);
        }
    }
}

async fn run(
    servers: &Servers,
    connection: Connection,
    serve: impl ServeStream,
    opened: impl FnOnce(Option<SocketAddr>),
) -> io::Result<()> {
    let Connection { stream, local, server } = connection;
    let (upgraded, at) =
        timeout(PATIENCE, open(stream)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    tracing::info!(%server, "tunnel open");
    opened(at);
    let service = service_fn(move |request: Request<Incoming>| {
        let serve = serve.clone();
        async move { Ok::<_, Infallible>(answer(request, serve)) }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::select! {
        result = builder.serve_connection(TokioIo::new(upgraded), service) => result.map_err(io::Error::other),
        () = servers.address_lost(local) => Ok(()),
    }
}

async fn open<S>(stream: S) -> io::Result<(TunnelStream, Option<SocketAddr>)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let handshake = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
    // it ends when the connection is handed over
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(TUNNEL_PATH)
        .header(HOST, "kubernetes")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, TUNNEL_PROTOCOL)
        .body(Empty::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let expected = Some(&HeaderValue::from_static(TUNNEL_PROTOCOL));
    if response.status() != StatusCode::SWITCHING_PROTOCOLS || response.headers().get(UPGRADE) != expected {
        return Err(io::Error::other(format!("the server refuses the tunnel: {}", response.status())));
    }
    let at = response.headers().get(TUNNEL_SERVER).and_then(|value| value.to_str().ok()?.parse().ok());
    let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
    Ok((TokioIo::new(upgraded), at))
}

fn answer(mut request: Request<Incoming>, serve: impl ServeStream) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    if request.method() != Method::CONNECT {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return response;
    }
    tokio::spawn(async move {
        match hyper::upgrade::on(&mut request).await {
            Ok(stream) => serve(TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(%error, "stream of the tunnel not opened"),
        }
    });
    response
}
