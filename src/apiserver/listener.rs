//! The TLS listener: sockets in, requests out to the chain.
//!
//! HTTP/1.1 and HTTP/2 on the same port. A client that breaks the protocol, never finishes its handshake or goes away
//! costs its own connection and nothing else, and connections that say nothing end (see `connections`).

use crate::body::Body;
use crate::chain::{self, Origin};
use crate::connections::{Connection, Connections};
use crate::{Peer, Server};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/1.1 headers that take longer end the connection (kube-apiserver's value).
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// A connection without a request for so long is closed (kube-apiserver's value).
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The head of an HTTP/2 request may have so many bytes: long selectors and tokens fit.
const MAX_HEADERS: u32 = 64 << 10;
/// HTTP/2 streams one connection may have open; informers of one process share a connection.
const MAX_STREAMS: u32 = 1000;
/// How long an idle client has for the end of its connection.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long requests may take to finish once the server stops; watches end at once.
const DRAIN: Duration = Duration::from_secs(5);
/// After so many seconds of silence the kernel asks whether the peer is still there, then this often, so many times.
const KEEPALIVE: (u32, u32, u32) = (30, 10, 3);
/// A peer that does not acknowledge what was sent for so long is gone, in milliseconds.
const UNACKNOWLEDGED: u32 = 30_000;

/// Serves one listening socket until the server's shutdown token is cancelled, then lets open requests finish.
///
/// # Errors
/// Only when the listener cannot be registered with the runtime; whatever clients do is logged.
pub(crate) async fn serve(
    server: Arc<Server>,
    listener: std::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let acceptor = TlsAcceptor::from(tls);
    let connections = Connections::new(server.options.max_connections);
    let stop = server.shutdown.clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let Some(place) = connections.open() else {
                    tracing::warn!(%peer, "connection refused: there are too many, and all are busy");
                    continue;
                };
                let (server, acceptor) = (server.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(server, acceptor, place, socket, peer).await {
                        tracing::debug!(%peer, error = error.as_ref(), "connection ended");
                    }
                });
            }
            // out of descriptors or memory: the sockets that wait are accepted once others have closed
            Err(error) if !is_per_connection(&error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_) => {}
        }
    }
    drop(listener);
    // whoever does not finish in time is cut off when the process ends
    let _ = tokio::time::timeout(DRAIN, connections.closed()).await;
    Ok(())
}

fn is_per_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    place: Arc<Connection>,
    socket: TcpStream,
    address: SocketAddr,
) -> Result<(), crate::body::BoxError> {
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    let stop = server.shutdown.clone();
    let tls = tokio::select! {
        tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)) => tls??,
        () = place.evicted() => return Ok(()),
        () = stop.cancelled() => return Ok(()),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    // a socket of both families shows IPv4 as part of IPv6
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let certificate_user =
        certificate.and_then(|c| Some((edge_pki::user_of_certificate(c)?, edge_pki::certificate_end(c)?)));
    let peer = Arc::new(Peer { address, certificate_user });
    let requests = place.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let (server, peer, busy) = (server.clone(), peer.clone(), requests.request());
        async move {
            let response = chain::handle(&server, Origin::Connection(&peer), request.map(Body::stream)).await;
            Ok::<_, Infallible>(response.map(|body| body.holding(busy)))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEADERS);
    let mut connection = Box::pin(builder.serve_connection_with_upgrades(TokioIo::new(tls), service).into_owned());
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = place.evicted() => return Ok(()),
        () = stop.cancelled() => {}
        () = place.idle_for(IDLE_TIMEOUT) => {}
    }
    // what is being answered still is; who then does not go by himself is not waited for
    connection.as_mut().graceful_shutdown();
    let answered = async {
        tokio::time::sleep(GOODBYE).await;
        place.idle_for(Duration::ZERO).await;
    };
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.evicted() => Ok(()),
        () = answered => Ok(()),
    }
}

/// Peers that vanished without a word (power cut, changed address) are found by the kernel, not by a timer of ours.
fn keep_alive(socket: &TcpStream) -> nix::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED)
}
