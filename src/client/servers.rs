//! The servers of a cluster as an agent reaches them: several addresses, one TLS configuration, fail-over.

use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a server may take to accept a connection, and to shake hands.
const PATIENCE: Duration = Duration::from_secs(5);
/// First and longest wait before all servers are tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The longest wait for a server that is one of several, and that nothing but a tunnel needs.
const LISTED: Duration = Duration::from_secs(5);
/// A peer that does not acknowledge what was sent for so long is gone, in milliseconds.
const UNACKNOWLEDGED: u32 = 20_000;
/// After so many seconds of silence the kernel asks whether the peer is still there, then this often, so many times.
/// It also keeps the entries of address translators on the way alive.
const KEEPALIVE: (u32, u32, u32) = (15, 5, 3);

/// By this name every server of a cluster is verified, whatever address it is reached at: its certificate always holds
/// it, and no certificate of a node ever does. So address translation and changed addresses do no harm.
const VERIFIED_NAME: &str = "kubernetes";

/// A server's host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    host: String,
    port: u16,
}

/// The text is no URL of a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the URL of a server, such as https://192.0.2.1:6443")]
pub struct ServerUrlError(String);

impl Server {
    /// Reads `https://host[:port]`; the port is 6443 unless given.
    ///
    /// # Errors
    /// [`ServerUrlError`]
    pub fn parse(url: &str) -> Result<Self, ServerUrlError> {
        let wrong = || ServerUrlError(url.to_owned());
        let uri: http::Uri = url.trim().parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(wrong)?;
        let rest = uri.authority().map_or("", |a| a.as_str().strip_prefix(host).unwrap_or("?"));
        let port_is_right = rest.is_empty() || uri.port_u16().is_some();
        if !port_is_right
            || uri.scheme_str() != Some("https")
            || !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
        {
            return Err(wrong());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(6443) })
    }
}

impl From<SocketAddr> for Server {
    fn from(at: SocketAddr) -> Self {
        Self { host: at.ip().to_string(), port: at.port() }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

/// Which protocol a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1: for exchanges of one request, and for upgrades.
    Http1,
    /// HTTP/2: for many requests at once.
    Http2,
}

/// No server can be reached.
#[derive(Debug, thiserror::Error)]
#[error("no server can be reached: {}", .0.iter().map(|(s, e)| format!("{s}: {e}")).collect::<Vec<_>>().join("; "))]
pub struct Unreachable(Vec<(Server, io::Error)>);

/// A connection to one of the servers.
pub struct Connection {
    /// The stream inside of TLS.
    pub stream: TlsStream<TcpStream>,
    /// This machine's address on it.
    pub local: Option<IpAddr>,
    /// Which server it is.
    pub server: Server,
}

/// The servers of a cluster.
pub struct Servers {
    list: Vec<Server>,
    tls: [TlsConnector; 2],
    /// The longest wait before all are tried again.
    longest: Duration,
    /// The place in the list of the server that answered last.
    preferred: Mutex<usize>,
    /// Changes with every event of this machine's network.
    network: watch::Receiver<u64>,
    /// Changes when the identity that connections show is replaced.
    identity: watch::Sender<u64>,
}

impl Servers {
    /// `list` must not be empty. `network` is to change whenever links, addresses or routes of this machine do.
    pub fn new(list: Vec<Server>, tls: &ClientConfig, network: watch::Receiver<u64>) -> Arc<Self> {
        Self::waiting(list, tls, network, BACKOFF.1)
    }

    /// One of a cluster's servers, by the address that it advertises. `network` as in [`Servers::new`].
    pub fn listed(at: SocketAddr, tls: &ClientConfig, network: watch::Receiver<u64>) -> Arc<Self> {
        Self::waiting(vec![at.into()], tls, network, LISTED)
    }

    fn waiting(list: Vec<Server>, tls: &ClientConfig, network: watch::Receiver<u64>, longest: Duration) -> Arc<Self> {
        let speaking = |protocol: &[u8]| {
            let mut config = tls.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        let tls = [speaking(b"http/1.1"), speaking(b"h2")];
        Arc::new(Self { list, tls, longest, preferred: Mutex::new(0), network, identity: watch::Sender::new(0) })
    }

    /// Tells that the identity that connections show has been replaced: a server refuses requests on a connection that
    /// shows one that has expired meanwhile.
    pub fn identity_replaced(&self) {
        self.identity.send_modify(|n| *n += 1);
    }

    /// Follows [`Servers::identity_replaced`].
    pub(crate) fn identity(&self) -> watch::Receiver<u64> {
        self.identity.subscribe()
    }

    /// A connection to the first server that answers, beginning with the one that did last.
    ///
    /// # Errors
    /// What every one of them failed with.
    pub async fn connect(&self, protocol: Protocol) -> Result<Connection, Unreachable> {
        let first = *self.preferred.lock();
        let mut failures = Vec::new();
        for at in (0..self.list.len()).map(|i| (first + i) % self.list.len()) {
            let server = &self.list[at];
            match self.connect_to(server, protocol).await {
                Ok(connection) => {
                    *self.preferred.lock() = at;
                    return Ok(connection);
                }
                Err(error) => failures.push((server.clone(), error)),
            }
        }
        Err(Unreachable(failures))
    }

    /// Tries until a server answers: again after a while that grows, and at once when the network changes.
    pub async fn connect_at_last(&self, protocol: Protocol, purpose: &'static str) -> Connection {
        let mut delay = BACKOFF.0;
        let mut told = false;
        let mut network = self.network.clone();
        loop {
            network.mark_unchanged();
            match self.connect(protocol).await {
                Ok(connection) => {
                    if told {
                        tracing::info!(server = %connection.server, purpose, "connected to the server again");
                    }
                    return connection;
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(%error, purpose, "trying until it answers");
                }
                Err(error) => tracing::debug!(%error, purpose, "server not reachable"),
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => delay = (delay * 2).min(self.longest),
                () = changed(&mut network) => delay = BACKOFF.0,
            }
        }
    }

    /// Waits until a connection that came from a local address cannot work any more, as the address is gone.
    pub async fn address_lost(&self, local: Option<IpAddr>) {
        let mut network = self.network.clone();
        network.mark_unchanged();
        loop {
            if local.is_some_and(|ip| !is_local(ip)) {
                return;
            }
            changed(&mut network).await;
        }
    }

    async fn connect_to(&self, server: &Server, protocol: Protocol) -> io::Result<Connection> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        let socket =
            timeout(PATIENCE, TcpStream::connect((server.host.as_str(), server.port))).await.map_err(late)??;
        prepare(&socket)?;
        let local = socket.local_addr().ok().map(|a: SocketAddr| a.ip());
        let name = ServerName::try_from(VERIFIED_NAME).map_err(io::Error::other)?;
        let tls = &self.tls[usize::from(protocol == Protocol::Http2)];
        let stream = timeout(PATIENCE, tls.connect(name, socket)).await.map_err(late)??;
        Ok(Connection { stream, local, server: server.clone() })
    }
}

/// The next change; never, when nobody tells of any.
pub(crate) async fn changed(number: &mut watch::Receiver<u64>) {
    if number.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether this machine has the address: only then can a socket be bound to it.
fn is_local(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    socket.set_nodelay(true)?;
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    Ok(setsockopt(socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers() {
        let text = |url: &str| Server::parse(url).map(|s| s.to_string());
        assert_eq!(text("https://192.0.2.1:6443").as_deref(), Ok("https://192.0.2.1:6443"));
        assert_eq!(text("https://[fd00::1]:7000/").as_deref(), Ok("https://[fd00::1]:7000"));
        assert_eq!(text("https://edge.example").as_deref(), Ok("https://edge.example:6443"));
        for bad in ["", "192.0.2.1:6443", "http://192.0.2.1", "https://", "https://a/b", "https://a:b", "https://a?x"] {
            assert!(text(bad).is_err(), "{bad}");
        }
    }
}
