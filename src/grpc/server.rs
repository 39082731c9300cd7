//! The other end: who is asked, on a socket of this machine.
//!
//! In: connections, calls with one message each. Out: one answer, or any number of them. Whoever asks may be hostile or sick: connections,
//! calls at a time and sizes are limited, a question has to be there within [`PATIENCE`], and a connection on which nothing begins or ends for
//! [`IDLE`] is closed, unless an answer of many parts is under way. A caller that goes takes the work on its call with it.

use crate::lenient::Lenient;
use crate::wire::Message;
use crate::{
    CallError, DEADLINE_EXCEEDED, INTERNAL, MAX_MESSAGE, RESOURCE_EXHAUSTED, UNIMPLEMENTED, escape, take_frame,
};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at once; more are closed at once.
pub const MOST_CONNECTIONS: usize = 64;
/// Calls at once on one connection.
const MOST_CALLS: u32 = 32;
/// Most bytes of the headers of a call.
const MAX_HEADERS: u32 = 16 << 10;
/// How long a client may take to begin, and to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection is kept for nothing.
const IDLE: Duration = Duration::from_secs(300);
/// How long a client may take to hear that its connection ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long nobody is let in when the machine is out of file descriptors or memory.
const BREATH: Duration = Duration::from_millis(100);

/// What somebody wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `/package.Service/Method`.
    pub method: String,
    /// The question.
    pub message: Bytes,
}

/// What is answered to a call.
pub enum Reply {
    /// One message.
    One(Message),
    /// Messages as they come; the call ends with them.
    Many(BoxStream<'static, Message>),
}

impl From<Message> for Reply {
    fn from(message: Message) -> Self {
        Self::One(message)
    }
}

/// That a method is not known here.
pub fn unknown(method: &str) -> CallError {
    let (service, name) = method.trim_start_matches('/').split_once('/').unwrap_or((method, ""));
    CallError::new(UNIMPLEMENTED, format!("unknown method {name} for service {service}"))
}

/// Whether somebody listens at a socket.
pub async fn is_served(path: &Path) -> bool {
    match UnixStream::connect(path).await {
        Ok(_) => true,
        // so many wait for it that there is no place in the queue
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// A socket at `path`, in the place of one that somebody has left there.
///
/// # Errors
/// When it cannot be made, somebody listens there, or something else is there.
pub async fn listen(path: &Path) -> io::Result<UnixListener> {
    if is_served(path).await {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// Answers whoever comes, for ever. Dropping it hangs up on all.
pub async fn serve<H, F>(listener: UnixListener, handler: H)
where
    H: Fn(Call) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Reply, CallError>> + Send + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            // the client sees that it was not let in
            Ok(_) if connections.len() >= MOST_CONNECTIONS => tracing::warn!("too many gRPC connections"),
            Ok((stream, _)) => {
                connections.spawn(connection(stream, handler.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "gRPC connection not accepted");
                sleep(BREATH).await;
            }
        }
    }
}

/// What goes on on a connection: calls, and how many of them have answers of many parts. Every change is seen.
type Going = watch::Sender<(usize, usize)>;

/// A call as long as it is worked on or answered.
struct Ongoing(Arc<Going>, usize);

impl Ongoing {
    fn begin(going: &Arc<Going>) -> Self {
        going.send_modify(|(calls, _)| *calls += 1);
        Self(going.clone(), 0)
    }

    fn has_many_parts(&mut self) {
        self.1 = 1;
        self.0.send_modify(|(_, many)| *many += 1);
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.0.send_modify(|(calls, many)| (*calls, *many) = (*calls - 1, *many - self.1));
    }
}

/// Answers on one connection until it ends.
pub async fn connection<S, H, F>(stream: S, handler: Arc<H>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Call) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Reply, CallError>> + Send + 'static,
{
    let going = Arc::new(watch::Sender::new((0, 0)));
    let mut seen = going.subscribe();
    let service = service_fn(move |request| {
        let (handler, ongoing) = (handler.clone(), Ongoing::begin(&going));
        async move { Ok::<_, Infallible>(answer(request, handler, ongoing).await) }
    });
    let mut http2 = Builder::new(TokioExecutor::new());
    http2.max_concurrent_streams(MOST_CALLS).max_header_list_size(MAX_HEADERS);
    let mut connection = pin!(http2.serve_connection(TokioIo::new(Lenient::new(stream)), service));
    let idle = async move {
        let mut most = PATIENCE;
        loop {
            let (_, many) = *seen.borrow_and_update();
            if many > 0 {
                // an error means that the connection is gone, which is seen elsewhere
                let _ = seen.changed().await;
            } else if timeout(most, seen.changed()).await.is_err() {
                return;
            }
            most = IDLE;
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = idle => {
            connection.as_mut().graceful_shutdown();
            timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "gRPC connection ended");
    }
}

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

async fn answer<H, F>(request: Request<Incoming>, handler: Arc<H>, mut ongoing: Ongoing) -> Response<Body>
where
    H: Fn(Call) -> F,
    F: Future<Output = Result<Reply, CallError>>,
{
    let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if request.method() != Method::POST || !kind.starts_with(b"application/grpc") {
        let mut response = respond(stream::empty().boxed());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let method = request.uri().path().to_owned();
    let asked = timeout(PATIENCE, question(request.into_body())).await;
    let asked = asked.unwrap_or_else(|_| Err(CallError::new(DEADLINE_EXCEEDED, "the question does not come")));
    let reply = match asked {
        Ok(message) => handler(Call { method, message }).await,
        Err(error) => Err(error),
    };
    let messages = match reply {
        Err(error) => {
            let mut response = respond(stream::empty().boxed());
            response.headers_mut().extend(status(Err(&error)));
            return response;
        }
        Ok(Reply::One(message)) => stream::once(std::future::ready(message)).boxed(),
        Ok(Reply::Many(messages)) => {
            ongoing.has_many_parts();
            messages
        }
    };
    let frames = messages.map(|message| Frame::data(message.into_frame()));
    let end = stream::once(async { Frame::trailers(status(Ok(()))) });
    respond(
        frames
            .chain(end)
            .map(move |frame| {
                let _as_long_as_the_answer = &ongoing;
                Ok(frame)
            })
            .boxed(),
    )
}

/// The one message of a question.
async fn question(mut body: Incoming) -> Result<Bytes, CallError> {
    let mut pending = BytesMut::new();
    let mut message = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CallError::new(INTERNAL, error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        pending.extend_from_slice(&data);
        if message.is_none() {
            let taken = take_frame(&mut pending, MAX_MESSAGE);
            message = taken.map_err(|error| CallError { code: RESOURCE_EXHAUSTED, ..error })?;
        }
        if message.is_some() && !pending.is_empty() {
            return Err(CallError::new(INTERNAL, "more than one message in the question"));
        }
    }
    message.ok_or_else(|| CallError::new(INTERNAL, "there is no message in the question"))
}

fn respond(frames: BoxStream<'static, Result<Frame<Bytes>, Infallible>>) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(frames));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// How a call ended, as it is told.
fn status(result: Result<(), &CallError>) -> HeaderMap {
    let mut told = HeaderMap::new();
    let code = result.err().map_or(0, |error| error.code);
    told.insert("grpc-status", HeaderValue::from(code));
    let words = result.err().map(|error| escape(&error.words)).unwrap_or_default();
    if let Ok(words) = HeaderValue::try_from(words)
        && !words.is_empty()
    {
        told.insert("grpc-message", words);
    }
    told
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::wire::Fields;
    use crate::{Channel, hpack};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    const KEY: u32 = 1;

    fn said(message: Bytes) -> String {
        Fields::of(message).next().unwrap().map(|(_, value)| value.text().unwrap()).unwrap_or_default()
    }

    /// A server that repeats what it is told, and tells when the work on a call was given up.
    async fn echo(dir: &Path) -> (JoinHandle<()>, Arc<Notify>) {
        let given_up = Arc::new(Notify::new());
        let tell = given_up.clone();
        let server = serve(listen(&dir.join("s")).await.unwrap(), move |call: Call| {
            let tell = tell.clone();
            async move {
                match call.method.as_str() {
                    "/test.Echo/Say" => Ok(Message::default().text(KEY, &said(call.message)).into()),
                    "/test.Echo/Repeat" => {
                        let text = said(call.message);
                        let many = stream::iter(0..3).map(move |n| Message::default().text(KEY, &format!("{text}{n}")));
                        Ok(Reply::Many(many.boxed()))
                    }
                    "/test.Echo/Fail" => Err(CallError::new(9, "ä: 100% wrong\n")),
                    "/test.Echo/Hang" => {
                        struct Tell(Arc<Notify>);
                        impl Drop for Tell {
                            fn drop(&mut self) {
                                self.0.notify_one();
                            }
                        }
                        let _tell = Tell(tell);
                        std::future::pending().await
                    }
                    other => Err(unknown(other)),
                }
            }
        });
        (tokio::spawn(server), given_up)
    }

    async fn channel(dir: &Path) -> Channel {
        Channel::unix(&dir.join("s")).await.unwrap()
    }

    fn text(text: &str) -> Message {
        Message::default().text(KEY, text)
    }

    /// One call by a client that calls the server by some name; hyper's own cannot, so its bytes are written here.
    async fn by_name(mut stream: UnixStream, name: &str) -> String {
        let header = |name: &'static str, value: &str| (Bytes::from(name), Bytes::copy_from_slice(value.as_bytes()));
        let block = hpack::encode(&[
            header(":method", "POST"),
            header(":scheme", "http"),
            header(":path", "/test.Echo/Say"),
            header(":authority", name),
            header("content-type", "application/grpc"),
            header("te", "trailers"),
        ]);
        let frame = |kind: u8, flags: u8, id: u8, payload: &[u8]| {
            [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags, 0, 0, 0, id], payload].concat()
        };
        let question = text("hello").into_frame();
        let all = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(1, 4, 1, &block),
            frame(0, 1, 1, &question),
        ];
        stream.write_all(&all.concat()).await.unwrap();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            match head[3] {
                0 => return said(Bytes::from(payload).slice(5..)),
                3 | 7 => panic!("{head:?} {payload:?}"),
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn calls_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (server, given_up) = echo(dir.path()).await;
        let client = channel(dir.path()).await;
        let answer = client.call("/test.Echo/Say", text("hello")).await.unwrap();
        assert_eq!(said(answer), "hello");
        assert_eq!(said(client.call("/test.Echo/Say", Message::default()).await.unwrap()), "");
        let mut answers = client.begin("/test.Echo/Repeat", text("n")).await.unwrap();
        let mut all = Vec::new();
        while let Some(answer) = answers.next().await.unwrap() {
            all.push(said(answer));
        }
        assert_eq!(all, ["n0", "n1", "n2"]);
        let error = client.call("/test.Echo/Fail", text("x")).await.unwrap_err();
        assert_eq!(error, CallError::new(9, "ä: 100% wrong\n"));
        let error = client.call("/test.Echo/Sing", text("x")).await.unwrap_err();
        assert_eq!(error, CallError::new(UNIMPLEMENTED, "unknown method Sing for service test.Echo"));
        // as Go's clients may call it
        for name in ["/run/s", "%2Frun%2Fs"] {
            let stream = UnixStream::connect(dir.path().join("s")).await.unwrap();
            assert_eq!(by_name(stream, name).await, "hello");
        }
        // who hangs up is not worked for any more
        let hangs = client.call("/test.Echo/Hang", text("x"));
        assert!(timeout(Duration::from_millis(50), hangs).await.is_err());
        given_up.notified().await;
        // and a server that goes takes its connections with it
        server.abort();
        client.ended().await;
    }

    #[tokio::test]
    async fn sizes_and_numbers_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let _server = echo(dir.path()).await;
        let client = channel(dir.path()).await;
        let error = client.call("/test.Echo/Say", text(&"x".repeat(MAX_MESSAGE))).await.unwrap_err();
        assert_eq!(error.code, RESOURCE_EXHAUSTED, "{error}");
        let mut others = Vec::new();
        for _ in 1..MOST_CONNECTIONS {
            others.push(UnixStream::connect(dir.path().join("s")).await.unwrap());
        }
        // all have been let in, as the first one is still served
        assert!(client.call("/test.Echo/Say", text("x")).await.is_ok());
        let more = Channel::unix(&dir.path().join("s")).await;
        let refused = match more {
            Ok(channel) => channel.call("/test.Echo/Say", text("x")).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
        others.clear();
        loop {
            let again = channel(dir.path()).await;
            if again.call("/test.Echo/Say", text("x")).await.is_ok() {
                break;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_nothing_is_hung_up_on() {
        let dir = tempfile::tempdir().unwrap();
        let _server = echo(dir.path()).await;
        // says nothing at all
        let mut mute = UnixStream::connect(dir.path().join("s")).await.unwrap();
        mute.read_to_end(&mut Vec::new()).await.unwrap();
        // has nothing more to say
        let client = channel(dir.path()).await;
        client.call("/test.Echo/Say", text("x")).await.unwrap();
        client.ended().await;
    }

    #[tokio::test]
    async fn a_socket_takes_the_place_of_one_that_was_left_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen(&path).await.unwrap();
        assert_eq!(listen(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists());
        drop(listen(&path).await.unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(listen(&path).await.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
