//! What the tests of the sessions share: upgraded connections in memory, and clients of both transports.
#![expect(clippy::unwrap_used, reason = "tests")]

use crate::outbound::Outbound;
use crate::spdy::{Encoder, Event, EventReader, Headers};
use crate::{Error, UpgradeError};
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

/// Headers that ask for SPDY.
pub(crate) const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
/// Headers that ask for a WebSocket.
pub(crate) const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// Bytes that the "network" holds.
const WIRE: usize = 16 * 1024;
/// More than any stream of either transport holds in all its buffers, less than anybody would call unbounded.
pub(crate) const BOUND: usize = 1 << 20;

/// Nothing in a test takes so long. With the clock paused it passes at once when nobody makes progress any more.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), future).await;
    waited.unwrap_or_else(|_| panic!("nothing happens any more: {what}"))
}

/// Lets everything go on until all tasks wait for each other (the clock must be paused).
pub(crate) async fn standstill() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

/// Sends a request to a server whose only service is `accept`. Gives the client's end of the connection, the head of the
/// answer, and where the sessions come out.
pub(crate) async fn upgrade<T, S>(
    uri: &str,
    headers: &str,
    accept: impl Fn(&mut Request<Incoming>) -> Result<(Response<()>, S), UpgradeError> + Send + 'static,
) -> (DuplexStream, String, mpsc::Receiver<Result<T, Error>>)
where
    T: Send + 'static,
    S: Future<Output = Result<T, Error>> + Send + 'static,
{
    let (mut near, far) = tokio::io::duplex(WIRE);
    let (sender, sessions) = mpsc::channel(1);
    let service = service_fn(move |mut request| {
        let answer = match accept(&mut request) {
            Ok((answer, session)) => {
                let sender = sender.clone();
                tokio::spawn(async move { sender.send(session.await).await });
                answer.map(|()| String::new())
            }
            Err(error) => {
                let mut answer = Response::new(error.to_string());
                *answer.status_mut() = error.status_code();
                answer
            }
        };
        async move { Ok::<_, Infallible>(answer) }
    });
    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades());
    near.write_all(format!("POST {uri} HTTP/1.1\r\nHost: test\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await.unwrap());
    }
    (near, String::from_utf8(head).unwrap(), sessions)
}

/// A SPDY client.
pub(crate) struct SpdyClient<S> {
    encoder: Encoder,
    from: EventReader<ReadHalf<S>>,
    to: WriteHalf<S>,
}

impl<S: AsyncRead + AsyncWrite> SpdyClient<S> {
    pub(crate) fn new(io: S) -> Self {
        let (from, to) = tokio::io::split(io);
        Self { encoder: Encoder::new(), from: EventReader::new(from), to }
    }

    /// The halves of the connection, to speak and hear anything.
    pub(crate) fn into_parts(self) -> (ReadHalf<S>, WriteHalf<S>) {
        (self.from.into_inner(), self.to)
    }

    /// Opens a stream, without waiting for the answer.
    pub(crate) async fn request(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut out = BytesMut::new();
        self.encoder.open(id, &Headers::of(headers), &mut out);
        self.raw(&out).await;
    }

    /// Opens a stream; the server must take it.
    pub(crate) async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        self.request(id, headers).await;
        assert_eq!(self.next().await, Some(Event::Reply { id }));
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, frame: Outbound) {
        let mut out = BytesMut::new();
        self.encoder.encode(&frame, &mut out);
        self.raw(&out).await;
    }

    /// Sends data, and the end with it if `fin`.
    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.send(Outbound::Data { stream, bytes: Bytes::copy_from_slice(bytes), fin }).await;
    }

    /// Sends any bytes. A server that is gone is not the client's fault.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.to.write_all(bytes).await;
        let _ = self.to.flush().await;
    }

    /// What the server says next; `None` is the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        soon("an event", self.from.next()).await.unwrap()
    }

    /// Reads one stream until its end; what comes on others is put aside in `others`.
    pub(crate) async fn read_to_end(&mut self, stream: u32, others: &mut Vec<Event>) -> Vec<u8> {
        let mut content = Vec::new();
        loop {
            match self.next().await {
                Some(Event::Data { id, bytes, fin }) if id == stream => {
                    content.extend_from_slice(&bytes);
                    if fin {
                        return content;
                    }
                }
                Some(event) => others.push(event),
                None => panic!("the connection ended before stream {stream} did"),
            }
        }
    }
}

/// Bytes with no pattern, the same each time.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    std::iter::repeat_with(|| random.next() as u8).take(length).collect()
}

/// A generator of numbers that only tests would call random (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(0x2545_F491_4F6C_DD1D ^ seed)
    }

    pub(crate) fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap()
    }

    /// Damages a valid byte stream: changed, missing, inserted and repeated bytes, an early end.
    pub(crate) fn damage(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.next() % 4 {
            let at = self.next() % bytes.len();
            let end = at + (self.next() % 20).min(bytes.len() - at);
            match self.next() % 5 {
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << (self.next() % 8),
                2 if end - at < bytes.len() => drop(bytes.drain(at..end)),
                3 => drop(bytes.splice(at..at, good[..self.next() % 20].to_vec())),
                _ => {
                    let repeated = bytes[at..end].to_vec();
                    bytes.splice(at..at, repeated);
                }
            }
        }
        if self.next().is_multiple_of(3) {
            bytes.truncate(self.next() % (bytes.len() + 1));
        }
        bytes
    }
}

/// Sends bytes in pieces of all sizes and then no more, and meanwhile reads whatever comes, until the server closes.
pub(crate) async fn play(io: DuplexStream, bytes: Vec<u8>, mut random: Random) {
    let (mut from, mut to) = tokio::io::split(io);
    let sending = async {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(rest.len().min(1 + random.next() % 64));
            rest = others;
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let reading = async { tokio::io::copy(&mut from, &mut tokio::io::sink()).await };
    let _ = tokio::join!(sending, reading);
}

/// A WebSocket frame as clients send it.
pub(crate) fn client_frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    let mut frame = vec![first_byte];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
