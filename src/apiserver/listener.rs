//! The TLS listener: sockets in, requests out to the chain.
//!
//! HTTP/1.1 and HTTP/2 on the same port. A client that breaks the protocol, never finishes its handshake or goes away
//! costs its own connection and nothing else.

use crate::body::Body;
use crate::chain::{self, Origin};
use crate::{Peer, Server};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
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
/// HTTP/2 streams one connection may have open; informers of one process share a connection.
const MAX_STREAMS: u32 = 1000;
/// How long requests may take to finish once the server stops; watches end at once.
const DRAIN: Duration = Duration::from_secs(5);
/// After how long of silence the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;

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
    let graceful = Arc::new(GracefulShutdown::new());
    let stop = server.shutdown.clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let (server, acceptor, graceful) = (server.clone(), acceptor.clone(), graceful.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(server, acceptor, &graceful, socket, peer).await {
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
    // connections hold clones of the Arc while they shake hands; those are not waited for
    if let Some(graceful) = Arc::into_inner(graceful) {
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }
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
    graceful: &GracefulShutdown,
    socket: TcpStream,
    address: SocketAddr,
) -> Result<(), crate::body::BoxError> {
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await??;
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = Arc::new(Peer { address, certificate_user: certificate.and_then(|c| edge_pki::user_of_certificate(c)) });
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let (server, peer) = (server.clone(), peer.clone());
        async move {
            Ok::<_, Infallible>(chain::handle(&server, Origin::Connection(&peer), request.map(Body::stream)).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    graceful.watch(connection.into_owned()).await
}

/// Peers that vanished without a word (power cut, changed address) are found by the kernel, not by a timer of ours.
fn keep_alive(socket: &TcpStream) -> nix::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)
}
