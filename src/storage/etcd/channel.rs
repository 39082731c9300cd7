//! Calls to etcd: gRPC over one HTTP/2 connection to one of its members, and to the next one when that fails.
//!
//! What was not sent is sent to another member. What was sent and not answered is asked again when it only reads; of a
//! write the caller is told that nobody knows.

use super::endpoints::{Endpoint, EtcdOptions, parse, tls};
use super::error::EtcdError;
use bytes::{Bytes, BytesMut};
use edge_grpc::wire::Message;
use edge_grpc::{CallError, take_frame};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// How long one member may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one member may take to answer a read, before another one is asked.
const ATTEMPT: Duration = Duration::from_secs(4);
/// How long a call may take in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between rounds in which no member answered.
const PAUSE: Duration = Duration::from_millis(100);
/// A member that is silent for so long is asked whether it is there, and has so long to say so. etcd allows no more
/// than one such question in 5 s.
const ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Bytes of one answer, and of all of a connection, that may be under way: a watch that is not read must not hold up calls.
const WINDOWS: (u32, u32) = (1 << 20, 16 << 20);
/// Most bytes of one answer, which is as long as what was asked for.
const MAX_MESSAGE: usize = 1 << 30;

/// What a call may do when it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It changes nothing, and may be repeated at will.
    Read,
    /// It must not happen twice.
    Write,
}

/// The body of a request: one message. `ends`: nothing follows it; else the request stays open.
#[derive(Debug)]
pub(super) struct Outgoing {
    frame: Option<Bytes>,
    ends: bool,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.frame.take() {
            Some(frame) => Poll::Ready(Some(Ok(Frame::data(frame)))),
            None if self.ends => Poll::Ready(None),
            // nothing wakes it: the request ends with the answer, or when that is dropped
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ends && self.frame.is_none()
    }
}

type Sender = SendRequest<Outgoing>;

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// etcd has not seen it.
    Unsent(String),
    /// The connection broke, or no answer came.
    Broken(String),
    /// etcd answered with a code.
    Code(usize, String),
}

/// The way to etcd.
pub(super) struct Channel {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<ClientConfig>>,
    current: Mutex<Current>,
}

/// The member in use.
#[derive(Default)]
struct Current {
    index: usize,
    /// Counts the connections.
    number: u64,
    sender: Option<Sender>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("endpoints", &self.names()).finish_non_exhaustive()
    }
}

impl Channel {
    /// Reads what is needed to connect, and does not connect yet.
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, EtcdError> {
        let endpoints = parse(&options.endpoints)?;
        let wants_tls = endpoints.iter().any(|e| e.tls_name.is_some());
        let tls = wants_tls.then(|| tls(options)).transpose()?;
        Ok(Self { endpoints, tls, current: Mutex::default() })
    }

    /// The members' addresses.
    pub(super) fn names(&self) -> String {
        self.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The address of the member in use.
    pub(super) async fn member(&self) -> String {
        let index = self.current.lock().await.index;
        self.endpoints.get(index).map(ToString::to_string).unwrap_or_default()
    }

    /// A call with one answer.
    pub(super) async fn call(&self, kind: Kind, path: &'static str, message: Message) -> Result<Bytes, EtcdError> {
        let frame = message.into_frame();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (number, sender) = match self.connected(deadline).await {
                Ok(connected) => connected,
                Err(detail) => return Err(EtcdError::Unreachable { endpoints: self.names(), detail }),
            };
            let patience = if kind == Kind::Read { left.min(ATTEMPT) } else { left };
            let answer = timeout(patience, once(sender, path, frame.clone())).await;
            let failed = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failed)) => failed,
                Err(_) => Failed::Broken("no answer in time".to_owned()),
            };
            let again = Instant::now() < deadline;
            match failed {
                // it was refused before anything was done
                Failed::Code(14, text) if again && (kind == Kind::Read || text.ends_with("no leader")) => {
                    self.leave(number).await;
                    tokio::time::sleep(PAUSE).await;
                }
                Failed::Code(code, text) => return Err(self.said(kind, code, text).await),
                Failed::Unsent(_) if again => self.leave(number).await,
                Failed::Broken(_) if again && kind == Kind::Read => self.leave(number).await,
                Failed::Broken(detail) if kind == Kind::Write => {
                    self.leave(number).await;
                    return Err(EtcdError::Unknown { detail });
                }
                Failed::Unsent(detail) | Failed::Broken(detail) => {
                    self.leave(number).await;
                    return Err(EtcdError::Unreachable { endpoints: self.names(), detail });
                }
            }
        }
    }

    /// A call with many answers, on the member in use; tries each once.
    ///
    /// # Errors
    /// What happened; the call can be made again.
    pub(super) async fn stream(&self, path: &'static str, message: Message, ends: bool) -> Result<Answers, EtcdError> {
        let deadline = Instant::now() + CONNECT;
        let unreachable = |detail| EtcdError::Unreachable { endpoints: self.names(), detail };
        let (number, mut sender) = self.connected(deadline).await.map_err(unreachable)?;
        let body = Outgoing { frame: Some(message.into_frame()), ends };
        let sent = timeout(ATTEMPT, sender.send_request(request(path, body))).await;
        let opened = match sent {
            Ok(Ok(response)) => opened(response),
            Ok(Err(error)) => Err(Failed::Broken(text(&error))),
            Err(_) => Err(Failed::Broken("no answer in time".to_owned())),
        };
        match opened {
            Ok(answers) => Ok(answers),
            Err(Failed::Code(code, said)) => {
                self.leave(number).await;
                Err(self.said(Kind::Read, code, said).await)
            }
            Err(Failed::Unsent(detail) | Failed::Broken(detail)) => {
                self.leave(number).await;
                Err(unreachable(detail))
            }
        }
    }

    /// What a code of etcd's means.
    async fn said(&self, kind: Kind, code: usize, text: String) -> EtcdError {
        match code {
            8 if text.contains("space exceeded") => EtcdError::Full,
            3 | 8 if text.contains("too large") || text.contains("larger than max") => EtcdError::TooLarge,
            // unavailable, deadline exceeded, canceled, unknown: "timed out", "leader changed"
            1 | 2 | 4 | 14 if kind == Kind::Write => EtcdError::Unknown { detail: text },
            14 => EtcdError::Unreachable { endpoints: self.names(), detail: text },
            12 => EtcdError::NotEtcd { endpoint: self.member().await, detail: text },
            _ => EtcdError::Refused(text),
        }
    }

    /// Gives a member up, if it is still the one in use: the next call goes to the next one.
    pub(super) async fn leave(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.number == number && current.sender.take().is_some() {
            current.index = (current.index + 1) % self.endpoints.len();
        }
    }

    /// The connection at hand, or a new one to the first member that accepts one.
    async fn connected(&self, deadline: Instant) -> Result<(u64, Sender), String> {
        let mut current = self.current.lock().await;
        if let Some(sender) = current.sender.as_ref().filter(|s| !s.is_closed()) {
            return Ok((current.number, sender.clone()));
        }
        if current.sender.take().is_some() {
            current.index = (current.index + 1) % self.endpoints.len();
        }
        loop {
            let mut problem = String::new();
            for _ in 0..self.endpoints.len() {
                let endpoint = &self.endpoints[current.index];
                let connected = match timeout(CONNECT, self.connect(endpoint)).await {
                    Ok(connected) => connected,
                    Err(_) => Err("no answer in time".to_owned()),
                };
                match connected {
                    Ok(sender) => {
                        current.number += 1;
                        current.sender = Some(sender.clone());
                        return Ok((current.number, sender));
                    }
                    Err(detail) => problem = detail,
                }
                current.index = (current.index + 1) % self.endpoints.len();
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(problem);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Sender, String> {
        let words = |e: std::io::Error| e.to_string();
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(words)?;
        tcp.set_nodelay(true).map_err(words)?;
        match endpoint.tls_name.clone().zip(self.tls.clone()) {
            Some((name, config)) => {
                handshake(TlsConnector::from(config).connect(name, tcp).await.map_err(words)?).await
            }
            None => handshake(tcp).await,
        }
    }
}

async fn handshake<S>(stream: S) -> Result<Sender, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .keep_alive_interval(ALIVE.0)
        .keep_alive_timeout(ALIVE.1)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| text(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to etcd broke");
        }
    });
    Ok(sender)
}

/// An error with its causes.
fn text(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn request(path: &'static str, body: Outgoing) -> Request<Outgoing> {
    let mut request = Request::new(body);
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(http::uri::Authority::from_static("etcd"));
    uri.path_and_query = Some(http::uri::PathAndQuery::from_static(path));
    if let Ok(uri) = http::Uri::from_parts(uri) {
        *request.uri_mut() = uri;
    }
    let headers = request.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    // a member that has lost the others must not keep watches waiting
    headers.insert("hasleader", http::HeaderValue::from_static("true"));
    request
}

/// One attempt of a call with one answer.
async fn once(mut sender: Sender, path: &'static str, frame: Bytes) -> Result<Bytes, Failed> {
    let body = Outgoing { frame: Some(frame), ends: true };
    let response = match sender.try_send_request(request(path, body)).await {
        Ok(response) => response,
        Err(mut error) => {
            let unsent = error.take_message().is_some();
            let detail = text(&error.into_error());
            return Err(if unsent { Failed::Unsent(detail) } else { Failed::Broken(detail) });
        }
    };
    let mut answers = opened(response)?;
    let answer = answers.next().await?.ok_or_else(|| Failed::Broken("the answer is empty".to_owned()))?;
    // the code comes after the answer
    match answers.next().await? {
        None => Ok(answer),
        Some(_) => Err(Failed::Broken("there is more than one answer".to_owned())),
    }
}

fn opened(response: Response<Incoming>) -> Result<Answers, Failed> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(Failed::Code(12, format!("it answers with the HTTP status {}", head.status)));
    }
    // a call that fails at once has its code in the head
    edge_grpc::verify(&head.headers).map_err(coded)?;
    Ok(Answers { body, buffer: BytesMut::new() })
}

/// The answers to a call, one after the other.
#[derive(Debug)]
pub(super) struct Answers {
    body: Incoming,
    buffer: BytesMut,
}

impl Answers {
    /// The next one; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            if let Some(message) = take_frame(&mut self.buffer, MAX_MESSAGE).map_err(broken)? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return Err(Failed::Broken("the answer breaks off".to_owned()));
            };
            let frame = frame.map_err(|e| Failed::Broken(text(&e)))?;
            match frame.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.trailers_ref();
                    return trailers.map_or(Ok(()), edge_grpc::verify).map_err(coded).map(|()| None);
                }
            }
        }
    }
}

fn broken(error: CallError) -> Failed {
    Failed::Broken(error.words)
}

fn coded(error: CallError) -> Failed {
    Failed::Code(error.code, error.words)
}
