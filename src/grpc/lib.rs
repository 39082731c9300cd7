//! gRPC over HTTP/2: single calls, and answers that come one after the other. Messages are written and read in [`wire`]; there are so few
//! that a library for them would be larger than they are. [`Channel`] is for those on the same machine; the way to etcd, which has several
//! members and TLS, is `storage`'s, by [`take_frame`] and [`verify`]. Who is asked is a [`server`].

mod hpack;
mod lenient;
pub mod server;
pub mod wire;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::fmt::Write as _;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wire::Message;

/// Most bytes of one message, as in Go's gRPC.
const MAX_MESSAGE: usize = 4 << 20;
/// Most characters of what a server says about an error.
const MAX_WORDS: usize = 4096;
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// gRPC's code of what went wrong in a way that has no other code, as Go's servers give it.
pub const UNKNOWN: usize = 2;
/// gRPC's code of what took too long.
pub const DEADLINE_EXCEEDED: usize = 4;
/// gRPC's code of a call that is one too many.
pub const RESOURCE_EXHAUSTED: usize = 8;
/// gRPC's code of a call that the server does not know.
pub const UNIMPLEMENTED: usize = 12;
const INTERNAL: usize = 13;
const UNAVAILABLE: usize = 14;

/// How a call failed: gRPC's code and the server's words, or what stood in the way of the call in the same form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {} desc = {words}", CODES.get(*code).unwrap_or(&"Unknown"))]
pub struct CallError {
    /// gRPC's code.
    pub code: usize,
    /// What the server says of it.
    pub words: String,
}

impl CallError {
    /// A failure with a code of gRPC.
    pub fn new(code: usize, words: impl Into<String>) -> Self {
        Self { code, words: words.into() }
    }

    fn unavailable(words: impl ToString) -> Self {
        Self { code: UNAVAILABLE, words: words.to_string() }
    }

    fn internal(words: impl ToString) -> Self {
        Self { code: INTERNAL, words: words.to_string() }
    }
}

impl From<wire::Malformed> for CallError {
    fn from(error: wire::Malformed) -> Self {
        Self::internal(error)
    }
}

/// A connection to a server; it ends with this.
pub struct Channel {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
    agent: &'static str,
    ended: CancellationToken,
    _connection: AbortOnDropHandle<()>,
}

impl Channel {
    /// Speaks HTTP/2 over a stream, as who `agent` says.
    ///
    /// # Errors
    /// When the other end does not.
    pub async fn over<S>(stream: S, authority: &str, agent: &'static str) -> Result<Self, CallError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(CallError::unavailable)?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let connection = tokio::spawn(async move {
            let _guard = guard;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "gRPC connection ended");
            }
        });
        let (authority, connection) = (authority.to_owned(), AbortOnDropHandle::new(connection));
        Ok(Self { sender, authority, agent, ended, _connection: connection })
    }

    /// Connects to a socket of this machine.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn unix(path: &Path) -> Result<Self, CallError> {
        let stream = UnixStream::connect(path).await.map_err(|error| {
            CallError::unavailable(format!("connection error: desc = \"dial unix {}: {error}\"", path.display()))
        })?;
        Self::over(stream, "localhost", "kubelet/1.36").await
    }

    /// Waits for the end of the connection.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// One call with one answer.
    ///
    /// # Errors
    /// What the server says is wrong, or that it cannot be understood.
    pub async fn call(&self, method: &str, message: Message) -> Result<Bytes, CallError> {
        let mut answers = self.begin(method, message).await?;
        let answer = answers.next().await?;
        let answer = answer.ok_or_else(|| CallError::internal("the server has not answered"))?;
        // the call has succeeded only if the trailers say so
        while answers.next().await?.is_some() {}
        Ok(answer)
    }

    /// One call with any number of answers.
    ///
    /// # Errors
    /// What the server says is wrong, or that it cannot be understood.
    pub async fn begin(&self, method: &str, message: Message) -> Result<Answers, CallError> {
        let request = Request::post(format!("http://{}{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", self.agent)
            .body(Full::new(message.into_frame()))
            .map_err(CallError::internal)?;
        let answer = self.sender.clone().send_request(request);
        let answer = tokio::select! {
            biased;
            answer = answer => answer.map_err(CallError::unavailable)?,
            () = self.ended() => return Err(CallError::unavailable("the connection ended")),
        };
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            return Err(CallError::internal(format!(
                "unexpected HTTP status code received from server: {}",
                head.status
            )));
        }
        // a call that fails at once may have its status in the head
        verify(&head.headers)?;
        Ok(Answers { body, pending: BytesMut::new() })
    }
}

/// The answers to one call.
pub struct Answers {
    body: Incoming,
    pending: BytesMut,
}

impl Answers {
    /// The next answer; nothing: the call has ended well.
    ///
    /// # Errors
    /// What the server says is wrong, or that it cannot be understood.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = take_frame(&mut self.pending, MAX_MESSAGE)? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                let whole = self.pending.is_empty();
                return if whole { Ok(None) } else { Err(CallError::internal("the answer breaks off")) };
            };
            let frame = frame.map_err(CallError::unavailable)?;
            match frame.into_data() {
                Ok(data) => self.pending.extend_from_slice(&data),
                Err(frame) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        verify(trailers)?;
                    }
                }
            }
        }
    }
}

/// Takes a whole message out of what has come.
///
/// # Errors
/// When it is compressed, or has more than `most` bytes.
pub fn take_frame(pending: &mut BytesMut, most: usize) -> Result<Option<Bytes>, CallError> {
    let [compressed, a, b, c, d, rest @ ..] = &pending[..] else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    if *compressed != 0 || length > most {
        return Err(CallError::internal(format!("a message of {length} bytes, or a compressed one, is not taken")));
    }
    if rest.len() < length {
        pending.reserve(length + 5 - pending.len());
        return Ok(None);
    }
    pending.advance(5);
    Ok(Some(pending.split_to(length).freeze()))
}

/// What the head of an answer, or what follows it, says of how the call went; nothing is good news.
///
/// # Errors
/// What the server says is wrong.
pub fn verify(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "" | "0" => Ok(()),
        code => Err(CallError { code: code.parse().unwrap_or(UNKNOWN), words: unescape(text("grpc-message")) }),
    }
}

/// Words in which `%` and two hexadecimal digits stand for a byte.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let digits = others.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = others.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&out).chars().take(MAX_WORDS).collect()
}

/// The same words with `%` and two digits for what may not be in a header.
fn escape(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for byte in words.chars().take(MAX_WORDS).collect::<String>().bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                // writing to a string cannot fail
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_out_of_frames() {
        let mut pending = BytesMut::from(&[0, 0, 0, 0, 2, 7, 8, 0, 0, 0][..]);
        assert_eq!(take_frame(&mut pending, 8), Ok(Some(Bytes::from_static(&[7, 8]))));
        assert_eq!(take_frame(&mut pending, 8), Ok(None));
        pending.extend_from_slice(&[0, 0]);
        assert_eq!(take_frame(&mut pending, 8), Ok(Some(Bytes::new())));
        for bad in [[1, 0, 0, 0, 0], [0, 0xff, 0xff, 0xff, 0xff]] {
            assert!(take_frame(&mut BytesMut::from(&bad[..]), MAX_MESSAGE).is_err());
        }
    }

    #[test]
    fn words_of_servers() {
        for (text, want) in
            [("a%20b", "a b"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("%C3%A4", "ä"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(unescape(text), want);
        }
        for words in ["plain", "a b", "100%", "ä\n\u{0}", ""] {
            assert_eq!(unescape(&escape(words)), words);
            assert!(escape(words).bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
        let error = CallError { code: 12, words: "no".into() };
        assert_eq!(error.to_string(), "rpc error: code = Unimplemented desc = no");
        assert_eq!(CallError { code: 99, words: "no".into() }.to_string(), "rpc error: code = Unknown desc = no");
    }
}
