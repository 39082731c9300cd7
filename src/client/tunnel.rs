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
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Where the server accepts tunnels.
pub const TUNNEL_PATH: &str = "/v1-edge/tunnel";
/// The protocol's name.
pub const TUNNEL_PROTOCOL: &str = "edge-tunnel";
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// First and longest wait after a tunnel that ended at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// A stream that the server has opened.
pub type TunnelStream = TokioIo<Upgraded>;

/// Keeps a tunnel to one of the servers open, for ever; what the server opens is given to `serve`.
pub async fn keep_tunnel<F>(servers: Arc<Servers>, serve: F)
where
    F: Fn(TunnelStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static,
{
    let mut delay = BACKOFF.0;
    loop {
        let connection = servers.connect_at_last(Protocol::Http1, "tunnel").await;
        let (server, began) = (connection.server.clone(), Instant::now());
        match run(&servers, connection, serve.clone()).await {
            Ok(()) => tracing::debug!(%server, "tunnel closed"),
            Err(error) => tracing::warn!(%server, %error, "tunnel broke"),
        }
        if began.elapsed() > BACKOFF.1 {
            delay = BACKOFF.0;
        } else {
            sleep(delay).await;
            delay = (delay * 2).min(BACKOFF.1);
        }
    }
}

async fn run<F>(servers: &Servers, connection: Connection, serve: F) -> io::Result<()>
where
    F: Fn(TunnelStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static,
{
    let Connection { stream, local, server } = connection;
    let upgraded = timeout(PATIENCE, open(stream)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    tracing::info!(%server, "tunnel open");
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

async fn open<S>(stream: S) -> io::Result<TunnelStream>
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
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(io::Error::other)
}

fn answer<F>(mut request: Request<Incoming>, serve: F) -> Response<Empty<Bytes>>
where
    F: Fn(TunnelStream) -> BoxFuture<'static, ()> + Send + 'static,
{
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
