//! The sockets: UDP and TCP on each address.
//!
//! What memory can answer is answered at once, in the order of arrival; what others must be asked for waits in a task of its
//! own, so a slow name server delays nobody else, not even later queries on the same connection (RFC 7766).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hickory_proto::op::{Message, Query, ResponseCode};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::{self, NoQuery, Outcome};
use crate::metrics::{Metrics, count};
use crate::upstream::LOOP_CODE;
use crate::{Error, Records, Upstream};

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 128;
/// Datagrams that wait for other name servers at the same time.
const MAX_WAITING: usize = 1024;
/// Queries of one connection that wait for other name servers at the same time.
const MAX_PIPELINED: usize = 64;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// How long to wait after the kernel has refused a connection, for instance for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A DNS server that is bound to its addresses.
pub struct Server {
    sockets: Vec<(Arc<UdpSocket>, TcpListener)>,
    resolver: Arc<Resolver>,
}

/// Answers queries, however they come.
struct Resolver {
    records: Arc<RwLock<Records>>,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    rotation: AtomicUsize,
}

impl Server {
    /// Listens on `addresses`, UDP and TCP. With port 0 both get the same free port.
    ///
    /// # Errors
    /// When an address is taken or not one of this machine.
    pub async fn bind(
        addresses: &[SocketAddr],
        records: Arc<RwLock<Records>>,
        upstream: Upstream,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let mut sockets = Vec::new();
        for address in addresses.iter().copied() {
            let failed = |source| Error::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let datagrams = UdpSocket::bind(listener.local_addr().map_err(failed)?).await.map_err(failed)?;
            sockets.push((Arc::new(datagrams), listener));
        }
        let resolver = Resolver { records, upstream, metrics, rotation: AtomicUsize::new(0) };
        Ok(Self { sockets, resolver: Arc::new(resolver) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(|(_, listener)| listener.local_addr()).collect()
    }

    /// Serves. Does not end; drop the future to stop.
    pub async fn run(self) {
        let resolver = &self.resolver;
        let each = self.sockets.into_iter().map(|(datagrams, listener)| async move {
            tokio::join!(serve_datagrams(datagrams, resolver.clone()), serve_streams(listener, resolver.clone()));
        });
        join_all(each).await;
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
        count(&resolver.metrics.udp);
        let since = Instant::now();
        let (outcome, limit) = resolver.consider(&buffer[..length]);
        match outcome {
            Outcome::Ignore => {}
            Outcome::Answer(message) => send(&socket, client, &resolver.counted(message, since), limit).await,
            Outcome::Ask(message, _) if waiting.len() >= MAX_WAITING => {
                let message = answer::complete(message, Err(ResponseCode::ServFail));
                send(&socket, client, &resolver.counted(message, since), limit).await;
            }
            Outcome::Ask(message, query) => {
                let (socket, resolver) = (socket.clone(), resolver.clone());
                waiting.spawn(async move {
                    let message = resolver.ask(message, query, since).await;
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

/// Query after query until the client closes or is silent. Answers come as they are ready.
async fn serve_stream(stream: TcpStream, resolver: &Arc<Resolver>) -> io::Result<()> {
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    let mut waiting: JoinSet<io::Result<()>> = JoinSet::new();
    loop {
        while let Some(ended) = waiting.try_join_next() {
            ended??;
        }
        if waiting.len() >= MAX_PIPELINED
            && let Some(ended) = waiting.join_next().await
        {
            ended??;
        }
        let query = timeout(IDLE, async {
            let mut query = vec![0; usize::from(reader.read_u16().await?)];
            reader.read_exact(&mut query).await?;
            Ok::<_, io::Error>(query)
        });
        let query = match query.await? {
            Ok(query) => query,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        count(&resolver.metrics.tcp);
        let since = Instant::now();
        match resolver.consider(&query).0 {
            Outcome::Ignore => return Ok(()),
            Outcome::Answer(message) => write(&writer, &resolver.counted(message, since)).await?,
            Outcome::Ask(message, query) => {
                let (writer, resolver) = (writer.clone(), resolver.clone());
                waiting.spawn(async move { write(&writer, &resolver.ask(message, query, since).await).await });
            }
        }
    }
    // A client that asks no more still wants its answers.
    while let Some(ended) = waiting.join_next().await {
        ended??;
    }
    Ok(())
}

async fn write(writer: &Mutex<OwnedWriteHalf>, message: &Message) -> io::Result<()> {
    let Some(bytes) = answer::encode(message, usize::from(u16::MAX)) else { return Ok(()) };
    let framed = [&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat();
    timeout(IDLE, async { writer.lock().await.write_all(&framed).await }).await?
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
        let limit = answer::datagram_limit(&query);
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        match answer::answer(&self.records.read(), &query, rotation) {
            Outcome::Ask(message, question) if self.upstream.came_back(&question) => {
                (Outcome::Answer(answer::complete(message, Err(LOOP_CODE))), limit)
            }
            outcome => (outcome, limit),
        }
    }

    async fn ask(&self, message: Message, query: Query, since: Instant) -> Message {
        let reply = self.upstream.resolve(query).await;
        self.counted(answer::complete(message, reply), since)
    }

    fn counted(&self, message: Message, since: Instant) -> Message {
        self.metrics.answered(message.metadata.response_code, since);
        message
    }
}
