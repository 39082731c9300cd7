//! port-forward: from an upgrade request to a stream of connections.
//!
//! Over SPDY (plain, or tunnelled through a WebSocket) the client opens a pair of streams, data and error, for each TCP
//! connection it accepts. Over the older WebSocket protocol there is exactly one connection per port of the query.
//! One task serves the client; it ends with the client's connection.

use crate::feeder::{self, Feeder};
use crate::negotiate::{self, Transport};
use crate::outbound::{self, LINGER, Outbound, OutboundSender, pump};
use crate::session::STREAM_BUFFER;
use crate::spdy::{Event, EventReader, Headers, StreamId, write_frames};
use crate::websocket::{self, ChannelMessage, Framing, Tunnel};
use crate::{ByteStream, Error, UpgradeError};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{AbortHandle, abortable};
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a client may take to open the second stream of a pair, as upstream.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at the same time through one request.
const MAX_CONNECTIONS: usize = 1024;
/// Bytes kept for slow readers, all connections together.
const MAX_PENDING: usize = 4 * feeder::LIMIT;
/// Connections that may wait to be taken by [`PortForwardSession::next`].
const ACCEPT_QUEUE: usize = 16;

const SPDY_PROTOCOLS: &[&str] = &["portforward.k8s.io"];
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET_PROTOCOLS: &[&str] = &[TUNNEL_PROTOCOL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// Two channels for each port, numbered in one byte below 255.
const MAX_PORTS: usize = 127;

/// Accepts a port-forward request: returns the `101` response to send and a future that yields the
/// [`PortForwardSession`]. Spawn the future; dropping it closes the connection. It must run inside a tokio runtime.
///
/// # Errors
/// [`UpgradeError`] when the request is no such upgrade; answer it with [`UpgradeError::status_code`] and its text.
pub fn port_forward<B>(
    request: &mut Request<B>,
) -> Result<(Response<()>, impl Future<Output = Result<PortForwardSession, Error>> + Send + use<B>), UpgradeError> {
    let transport = negotiate::transport(request.headers())?;
    let known = if transport == Transport::Spdy { SPDY_PROTOCOLS } else { WEBSOCKET_PROTOCOLS };
    let protocol = negotiate::protocol(request.headers(), &transport, known)?;
    let ports = match (&transport, protocol) {
        (Transport::Spdy, _) | (_, Some(TUNNEL_PROTOCOL)) => Vec::new(),
        _ => query_ports(request.uri().query().unwrap_or_default())?,
    };
    let response = negotiate::accept(&transport, protocol);
    let upgrade = hyper::upgrade::on(request);
    let session = async move {
        let io = TokioIo::new(upgrade.await.map_err(Error::Upgrade)?);
        let (accepted, connections) = mpsc::channel(ACCEPT_QUEUE);
        drop(match (transport, protocol) {
            (Transport::Spdy, _) => tokio::spawn(log_errors(serve_spdy(io, accepted))),
            (_, Some(TUNNEL_PROTOCOL)) => {
                let tunnel = Tunnel::new(websocket::server(io).await);
                tokio::spawn(log_errors(serve_spdy(tunnel, accepted)))
            }
            (_, protocol) => {
                let base64 = protocol.is_some_and(|protocol| protocol.contains("base64"));
                let framing = if base64 { Framing::Base64 } else { Framing::Binary };
                tokio::spawn(log_errors(serve_websocket(io, framing, ports, accepted)))
            }
        });
        Ok(PortForwardSession { connections })
    };
    Ok((response, session))
}

/// The connections that a client opens through one port-forward request.
#[derive(Debug)]
pub struct PortForwardSession {
    connections: mpsc::Receiver<PortConnection>,
}

impl PortForwardSession {
    /// The next connection the client opens; `None` when the client is gone. Serve each in its own task. Dropping the
    /// session closes the client's connection with all that came through it.
    pub async fn next(&mut self) -> Option<PortConnection> {
        self.connections.recv().await
    }
}

/// One forwarded TCP connection.
#[derive(Debug)]
pub struct PortConnection {
    /// The port inside the pod.
    pub port: u16,
    /// Bytes both ways, with half-close. Dropping it ends the connection.
    pub stream: ByteStream,
    /// Where to say that the connection failed; dropping it says that all went well. kubectl waits for the one or the
    /// other before it considers a connection finished. Keep it as long as the stream is in use: with it and the sending
    /// half ended, the connection is over.
    pub error: ErrorChannel,
    /// Cancelled when the connection is over, in particular when the client gave it up or is gone: then nobody reads any
    /// more what the pod says.
    pub closed: CancellationToken,
}

/// Tells the client why a forwarded connection failed; at most one message.
#[derive(Debug)]
pub struct ErrorChannel {
    message: oneshot::Sender<String>,
}

impl ErrorChannel {
    /// Ends the connection and sends `message`, which kubectl prints; ignored when the client is gone.
    pub fn send(self, message: impl Into<String>) {
        // The receiver is dropped with the connection; then there is nobody to tell.
        let _ = self.message.send(message.into());
    }
}

/// `ports=80&ports=443,8080`.
fn query_ports(query: &str) -> Result<Vec<u16>, UpgradeError> {
    let bad = |reason: String| UpgradeError::BadRequest(reason);
    let mut ports = Vec::new();
    let values =
        query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(name, _)| matches!(*name, "ports" | "port"));
    for port in values.flat_map(|(_, value)| value.split(',').flat_map(|value| value.split("%2C"))) {
        match port.parse() {
            Ok(0) => return Err(bad(format!("port {port:?} must be > 0"))),
            Ok(port) => ports.push(port),
            Err(_) => return Err(bad(format!("unable to parse {port:?} as a port"))),
        }
    }
    match ports.len() {
        0 => Err(bad("query parameter \"port\" is required".to_owned())),
        1..=MAX_PORTS => Ok(ports),
        _ => Err(bad(format!("more than {MAX_PORTS} ports"))),
    }
}

async fn log_errors(serving: impl Future<Output = Result<(), Error>>) {
    match serving.await {
        Ok(()) | Err(Error::Disconnected) => {}
        Err(error) => tracing::debug!(%error, "port-forward connection ended"),
    }
}

/// The connections of one client, whatever the transport.
struct Forwarder {
    accepted: mpsc::Sender<PortConnection>,
    to: OutboundSender,
    /// By data stream.
    connections: HashMap<u32, Connection>,
    /// Sending halves; each ends with the number of its data stream. Dropped, and so ended, with the client.
    sending: JoinSet<u32>,
}

struct Connection {
    feeder: Feeder<WriteHalf<ByteStream>>,
    sending: AbortHandle,
    _closed: DropGuard,
}

impl Forwarder {
    fn new(accepted: mpsc::Sender<PortConnection>, to: OutboundSender) -> Self {
        Self { accepted, to, connections: HashMap::new(), sending: JoinSet::new() }
    }

    /// Starts a connection whose data and errors go over these streams.
    async fn open(&mut self, port: u16, data: u32, error: u32) -> Result<(), Error> {
        let (stream, ours) = tokio::io::duplex(STREAM_BUFFER);
        let (from, into) = tokio::io::split(ours);
        let (message, failure) = oneshot::channel();
        let to = self.to.clone();
        // A connection that the client resets sends nothing more, but its end is still reported.
        let (pumping, sending) = abortable(pump(from, data, to.clone()));
        let failing = sending.clone();
        self.sending.spawn(async move {
            let report = async {
                let failed = failure.await.ok();
                let bytes = Bytes::from(failed.clone().unwrap_or_default());
                // Failures to send mean that the client is gone, which its reader notices.
                let _ = to.send(Outbound::Data { stream: error, bytes, fin: true }).await;
                if failed.is_some() {
                    failing.abort();
                    let _ = to.send(Outbound::Reset { stream: data }).await;
                }
            };
            // Ended or aborted, there is nothing more to send.
            let _ = tokio::join!(pumping, report);
            data
        });
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        self.connections.insert(data, Connection { feeder: Feeder::new(into), sending, _closed: guard });
        let connection = PortConnection { port, stream, error: ErrorChannel { message }, closed };
        self.accepted.send(connection).await.map_err(|_| Error::Disconnected)
    }

    fn data(&mut self, stream: u32, bytes: Bytes, fin: bool) {
        if let Some(connection) = self.connections.get_mut(&stream) {
            connection.feeder.push(&bytes);
            if fin {
                connection.feeder.end();
            }
        }
    }

    /// The client ended a connection at once.
    fn reset(&mut self, stream: u32) {
        if let Some(connection) = self.connections.remove(&stream) {
            connection.sending.abort();
        }
    }

    fn has_room(&self) -> bool {
        let mut pending = 0;
        self.connections.values().all(|connection| {
            pending += connection.feeder.pending();
            connection.feeder.has_room() && pending < MAX_PENDING
        })
    }

    /// Moves bytes to the pods' side, or forgets a connection that has ended. Never ready while there is nothing to do.
    async fn progress(&mut self) {
        let ended = poll_fn(|context| {
            if let Poll::Ready(Some(ended)) = self.sending.poll_join_next(context) {
                return Poll::Ready(ended.ok());
            }
            let mut moved = false;
            for connection in self.connections.values_mut() {
                moved |= connection.feeder.poll_feed(context).is_ready();
            }
            if moved { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        // What the client still says is of no interest to anybody then.
        if let Some(stream) = ended {
            self.connections.remove(&stream);
        }
    }

    /// Waits until nobody takes connections any more.
    async fn abandoned(accepted: mpsc::Sender<PortConnection>) {
        accepted.closed().await;
    }
}

/// A pair of streams of which one is still missing.
struct HalfPair {
    request: String,
    port: u16,
    data: Option<StreamId>,
    error: Option<StreamId>,
    until: Instant,
}

/// What the headers of a port-forward stream say.
struct StreamHeaders {
    request: String,
    port: u16,
    is_data: bool,
}

impl StreamHeaders {
    fn parse(id: StreamId, headers: &Headers) -> Option<Self> {
        let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
        let is_data = match headers.get("streamtype")? {
            "data" => true,
            "error" => false,
            _ => return None,
        };
        // Very old clients number no requests, but open the error stream right before the data stream.
        let guess = || if is_data { id.wrapping_sub(2) } else { id }.to_string();
        let request = headers.get("requestid").map_or_else(guess, str::to_owned);
        Some(Self { request, port, is_data })
    }
}

async fn serve_spdy(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    accepted: mpsc::Sender<PortConnection>,
) -> Result<(), Error> {
    let (from, to) = tokio::io::split(io);
    let (sender, queue) = outbound::queue();
    let abandoned = Forwarder::abandoned(accepted.clone());
    let reading = read_spdy(EventReader::new(from), Forwarder::new(accepted, sender));
    tokio::select! {
        read = reading => read,
        written = write_frames(to, queue) => written,
        () = abandoned => Ok(()),
    }
}

async fn read_spdy<R: AsyncRead + Unpin>(mut events: EventReader<R>, mut forwarder: Forwarder) -> Result<(), Error> {
    let mut halves: Vec<HalfPair> = Vec::new();
    loop {
        let room = forwarder.has_room();
        // They all wait equally long, so the first one is the oldest.
        let oldest = halves.first().map(|half| half.until);
        let event = tokio::select! {
            event = events.next(), if room => event?,
            () = forwarder.progress() => continue,
            () = tokio::time::sleep_until(oldest.unwrap_or_else(Instant::now)), if oldest.is_some() => {
                let half = halves.remove(0);
                for stream in [half.data, half.error].into_iter().flatten() {
                    forwarder.send(Outbound::Reset { stream }).await?;
                }
                continue;
            }
        };
        let Some(event) = event else { return Ok(()) };
        match event {
            Event::Open { id, headers, fin } => {
                let parsed = StreamHeaders::parse(id, &headers).filter(|headers| {
                    let full = forwarder.connections.len() + halves.len() >= MAX_CONNECTIONS;
                    let is_second = halves.iter().any(|half| half.request == headers.request);
                    (!full || is_second) && !forwarder.connections.contains_key(&id)
                });
                let Some(headers) = parsed else {
                    forwarder.send(Outbound::Refuse { stream: id }).await?;
                    continue;
                };
                forwarder.send(Outbound::Accept { stream: id }).await?;
                if let Some((port, data, error)) = pair(&mut halves, id, headers) {
                    forwarder.open(port, data, error).await?;
                }
                if fin {
                    forwarder.data(id, Bytes::new(), true);
                }
            }
            Event::Data { id, bytes, fin } => forwarder.data(id, bytes, fin),
            Event::Reset { id } => forwarder.reset(id),
            Event::Ping { id } => forwarder.send(Outbound::Pong { id }).await?,
            Event::GoAway | Event::Reply { .. } | Event::Ignored => {}
        }
    }
}

/// Puts a stream to its pair; returns port, data and error stream when that is complete.
fn pair(halves: &mut Vec<HalfPair>, id: StreamId, headers: StreamHeaders) -> Option<(u16, StreamId, StreamId)> {
    let at = halves.iter().position(|half| half.request == headers.request).unwrap_or_else(|| {
        let until = Instant::now() + PAIR_TIMEOUT;
        halves.push(HalfPair { request: headers.request, port: headers.port, data: None, error: None, until });
        halves.len() - 1
    });
    let half = &mut halves[at];
    *(if headers.is_data { &mut half.data } else { &mut half.error }) = Some(id);
    let (data, error) = half.data.zip(half.error)?;
    Some((halves.remove(at).port, data, error))
}

impl Forwarder {
    async fn send(&self, frame: Outbound) -> Result<(), Error> {
        self.to.send(frame).await.map_err(|_| Error::Disconnected)
    }
}

async fn serve_websocket(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    framing: Framing,
    ports: Vec<u16>,
    accepted: mpsc::Sender<PortConnection>,
) -> Result<(), Error> {
    let (to, mut from) = websocket::server(io).await.split();
    let (sender, queue) = outbound::queue();
    let abandoned = Forwarder::abandoned(accepted.clone());
    let reading = async {
        let mut forwarder = Forwarder::new(accepted, sender);
        for (port, data) in ports.into_iter().zip((0..).step_by(2)) {
            // Both channels begin with the port, so that the client knows which is which.
            for stream in [data, data + 1] {
                let bytes = Bytes::copy_from_slice(&port.to_le_bytes());
                forwarder.send(Outbound::Data { stream, bytes, fin: false }).await?;
            }
            forwarder.open(port, data, data + 1).await?;
        }
        let mut over = false;
        loop {
            // Channels cannot be closed one by one, so the client learns of the end when all have come to it.
            if forwarder.connections.is_empty() && !over {
                over = true;
                forwarder.send(Outbound::Close).await?;
            }
            let room = forwarder.has_room();
            let message = tokio::select! {
                message = websocket::next_message(&mut from, framing), if room => message?,
                () = forwarder.progress() => continue,
            };
            match message {
                None => return Ok(()),
                Some(ChannelMessage::Data { channel, bytes }) => forwarder.data(channel.into(), bytes, false),
                Some(ChannelMessage::End { channel }) => forwarder.data(channel.into(), Bytes::new(), true),
            }
        }
    };
    tokio::pin!(reading);
    tokio::select! {
        read = &mut reading => read,
        written = websocket::write_messages(to, queue, framing) => {
            written?;
            // A client that takes its time is no failure.
            timeout(LINGER, reading).await.unwrap_or(Ok(()))
        }
        () = abandoned => Ok(()),
    }
}

#[cfg(test)]
mod tests;
