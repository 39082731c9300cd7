//! The sockets: UDP and TCP on one address.
//!
//! What memory can answer is answered at once, in the order of arrival; what others must be asked for waits in a task of its
//! own, so a slow name server delays nobody else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::{self, NoQuery, Outcome};
use crate::{Error, Records, Upstream};

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 128;
/// Datagrams that wait for other name servers at the same time.
const MAX_WAITING: usize = 1024;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// How long to wait after the kernel has refused a connection, for instance for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A DNS server that is bound to its address.
pub struct Server {
    datagrams: Arc<UdpSocket>,
    listener: TcpListener,
    resolver: Arc<Resolver>,
}

/// Answers queries, however they come.
struct Resolver {
    records: Arc<RwLock<Records>>,
    upstream: Upstream,
    rotation: AtomicUsize,
}

impl Server {
    /// Listens on `address`, UDP and TCP. With port 0 both get the same free port.
    ///
    /// # Errors
    /// When the address is taken or not one of this machine.
    pub async fn bind(address: SocketAddr, records: Arc<RwLock<Records>>, upstream: Upstream) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let datagrams = UdpSocket::bind(listener.local_addr().map_err(failed)?).await.map_err(failed)?;
        let resolver = Resolver { records, upstream, rotation: AtomicUsize::new(0) };
        Ok(Self { datagrams: Arc::new(datagrams), listener, resolver: Arc::new(resolver) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves. Does not end; drop the future to stop.
    pub async fn run(self) {
        tokio::join!(
            serve_datagrams(self.datagrams, self.resolver.clone()),
            serve_streams(self.listener, self.resolver)
        );
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut waiting = JoinSet::new();
    loop {
        // What has ended must not pile up.
        while waiting.try_join_next().is_some() {}
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "datagram not received");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let (outcome, limit) = resolver.consider(&buffer[..length]);
        match outcome {
            Outcome::Ignore => {}
            Outcome::Answer(message) => send(&socket, client, &message, limit).await,
            Outcome::Ask(message, _) if waiting.len() >= MAX_WAITING => {
                let message = answer::complete(message, Err(ResponseCode::ServFail));
                send(&socket, client, &message, limit).await;
            }
            Outcome::Ask(message, query) => {
                let (socket, resolver) = (socket.clone(), resolver.clone());
                waiting.spawn(async move {
                    let message = resolver.ask(message, query).await;
                    send(&socket, client, &message, limit).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, client: SocketAddr, message: &Message, limit: usize) {
    let Some(bytes) = answer::encode(message, limit) else { return };
    if let Err(error) = socket.send_to(&bytes, client).await {
        tracing::debug!(%client, %error, "answer not sent");
    }
}

async fn serve_streams(listener: TcpListener, resolver: Arc<Resolver>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Further clients wait in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let resolver = resolver.clone();
                connections.spawn(async move {
                    if let Err(error) = serve_stream(stream, &resolver).await {
                        tracing::debug!(%client, %error, "connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Query after query until the client closes or is silent.
async fn serve_stream(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, async {
            let mut query = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut query).await?;
            Ok::<_, io::Error>(query)
        });
        let query = match query.await? {
            Ok(query) => query,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let message = match resolver.consider(&query).0 {
            Outcome::Ignore => return Ok(()),
            Outcome::Answer(message) => message,
            Outcome::Ask(message, query) => resolver.ask(message, query).await,
        };
        let Some(bytes) = answer::encode(&message, usize::from(u16::MAX)) else { return Ok(()) };
        let framed = [&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

impl Resolver {
    /// What to do about a query, and how long a datagram with its answer may be.
    fn consider(&self, bytes: &[u8]) -> (Outcome, usize) {
        let query = match answer::parse(bytes) {
            Ok(query) => query,
            Err(NoQuery::Garbage) => return (Outcome::Ignore, 0),
            Err(NoQuery::Malformed { id }) => {
                return (Outcome::Answer(answer::format_error(id)), usize::from(answer::MAX_DATAGRAM));
            }
        };
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        (answer::answer(&self.records.read(), &query, rotation), answer::datagram_limit(&query))
    }

    async fn ask(&self, message: Message, query: Query) -> Message {
        let reply = self.upstream.resolve(query).await;
        answer::complete(message, reply)
    }
}
