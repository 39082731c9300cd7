//! The kubelet's API over TLS, for metrics collectors and whoever else goes to the node itself. (The API server comes
//! through the tunnel, or is in the same process.)

use super::Server;
use super::access::CertificateUser;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Connections at once; more are refused.
const MAX_CONNECTIONS: usize = 128;
/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After so many seconds of silence the kernel asks whether the peer is still there, then this often, so many times.
const KEEPALIVE: (u32, u32, u32) = (30, 10, 3);

/// Accepts connections until the agent ends.
///
/// # Errors
/// When the socket cannot be used at all.
pub(super) async fn run(server: Server, socket: TcpListener, tls: Arc<rustls::ServerConfig>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = server.cx.stop.clone();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // out of descriptors or memory, mostly: others will close
                tracing::debug!(%error, "connection to the kubelet not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "connection to the kubelet refused: there are too many");
            continue;
        };
        let (server, acceptor) = (server.clone(), acceptor.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(server, acceptor, socket).await {
                tracing::debug!(%peer, %error, "connection to the kubelet ended");
            }
            drop(place);
        });
    }
    Ok(())
}

async fn connection(server: Server, acceptor: TlsAcceptor, socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    let tls = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await??;
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let user = certificate.and_then(|c| CertificateUser::of(c));
    server.serve_guarded(tls, user).await;
    Ok(())
}

fn keep_alive(socket: &TcpStream) -> nix::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)
}
