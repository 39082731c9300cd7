//! exec and attach: from an upgrade request to a [`Session`].
//!
//! One task serves a connection. It reads the client's frames, feeds stdin and terminal sizes to the session, and at the
//! same time sends the session's output, then its status, then the end. The task ends with the connection.

use crate::feeder::Feeder;
use crate::negotiate::{self, Transport};
use crate::outbound::{self, LINGER, Outbound, OutboundSender, pump};
use crate::resize::ResizeSender;
use crate::session::{STREAM_BUFFER, StatusFormat};
use crate::spdy::{Event, EventReader, Headers, StreamId, write_frames};
use crate::websocket::{self, ChannelMessage, Framing};
use crate::{ByteStream, Completion, Error, ExitStatus, RemoteCommandOptions, Session, UpgradeError};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a client may take to open the streams it announced, as upstream.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);

const SPDY_PROTOCOLS: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const WEBSOCKET_PROTOCOLS: &[&str] =
    &["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];

/// WebSocket channels.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
}

/// Accepts an exec or attach request: returns the `101` response to send (its body stays empty) and a future that
/// yields the [`Session`] as soon as the client has opened the streams it announced.
///
/// The future must be spawned, since it makes progress only after the response has been sent. Dropping it closes the
/// connection. It must run inside a tokio runtime.
///
/// # Errors
/// [`UpgradeError`] when the request is no such upgrade; answer it with [`UpgradeError::status_code`] and its text.
pub fn remote_command<B>(
    request: &mut Request<B>,
    options: RemoteCommandOptions,
) -> Result<(Response<()>, impl Future<Output = Result<Session, Error>> + Send + use<B>), UpgradeError> {
    if !options.is_valid() {
        let reason = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(UpgradeError::BadRequest(reason.to_owned()));
    }
    let transport = negotiate::transport(request.headers())?;
    let known = if transport == Transport::Spdy { SPDY_PROTOCOLS } else { WEBSOCKET_PROTOCOLS };
    let protocol = negotiate::protocol(request.headers(), &transport, known)?;
    let response = negotiate::accept(&transport, protocol);
    let upgrade = hyper::upgrade::on(request);
    let session = async move {
        let io = TokioIo::new(upgrade.await.map_err(Error::Upgrade)?);
        let (sender, session) = oneshot::channel();
        let protocol = protocol.unwrap_or("channel.k8s.io");
        match transport {
            Transport::Spdy => drop(tokio::spawn(serve_spdy(io, options, protocol, sender))),
            Transport::WebSocket { .. } => drop(tokio::spawn(serve_websocket(io, options, protocol, sender))),
        }
        session.await.map_err(|_| Error::Disconnected)?
    };
    Ok((response, session))
}

/// Our ends of a session's streams.
struct Ends {
    stdin: Option<Feeder<ByteStream>>,
    stdout: Option<ByteStream>,
    stderr: Option<ByteStream>,
    resize: Option<ResizeSender>,
    status: oneshot::Receiver<ExitStatus>,
    done: oneshot::Sender<Result<(), Error>>,
    /// Tells the session that the connection ended, however this task does.
    _closed: DropGuard,
}

/// Makes a session and our ends of it.
fn session(options: RemoteCommandOptions, resizable: bool) -> (Session, Ends) {
    let pipe = |wanted: bool| wanted.then(|| tokio::io::duplex(STREAM_BUFFER)).unzip();
    let (stdin, our_stdin) = pipe(options.stdin);
    let (stdout, our_stdout) = pipe(options.stdout);
    let (stderr, our_stderr) = pipe(options.wants_stderr());
    let (our_resize, resize) = (options.tty && resizable).then(ResizeSender::new).unzip();
    let ((status, our_status), (our_done, done)) = (oneshot::channel(), oneshot::channel());
    let closed = CancellationToken::new();
    let ends = Ends {
        stdin: our_stdin.map(Feeder::new),
        stdout: our_stdout,
        stderr: our_stderr,
        resize: our_resize,
        status: our_status,
        done: our_done,
        _closed: closed.clone().drop_guard(),
    };
    (Session { stdin, stdout, stderr, resize, closed, completion: Completion { status, done } }, ends)
}

/// An output of the command and the stream it goes to, when it is wanted.
type Output = Option<(ByteStream, u32)>;

/// Sends the output until its end, then the status, then the end of the connection.
async fn conduct(
    (stdout, stderr): (Output, Output),
    (status, format): (oneshot::Receiver<ExitStatus>, StatusFormat),
    error: u32,
    to: OutboundSender,
) {
    let output = |stream: Option<(ByteStream, u32)>| {
        let to = to.clone();
        async move {
            if let Some((from, id)) = stream {
                pump(from, id, to).await;
            }
        }
    };
    tokio::join!(output(stdout), output(stderr));
    // Saying nothing would mean success.
    let status = status.await.unwrap_or_else(|_| ExitStatus::Failed("the command was abandoned".to_owned()));
    let bytes = Bytes::from(status.to_bytes(format));
    // A failure means that the connection is gone, which the writer reports.
    let _ = to.send(Outbound::Data { stream: error, bytes, fin: true }).await;
    let _ = to.send(Outbound::Close).await;
}

/// Runs both directions until everything is sent or the client is gone, and tells the session how it went.
async fn run(
    reading: impl Future<Output = Result<(), Error>>,
    sending: impl Future<Output = Result<(), Error>>,
    done: oneshot::Sender<Result<(), Error>>,
) {
    tokio::pin!(reading);
    let (outcome, linger) = tokio::select! {
        sent = sending => (sent, true),
        read = &mut reading => (read.and(Err(Error::Disconnected)), false),
    };
    let linger = linger && outcome.is_ok();
    // Nobody may be waiting: finishing is the session's own affair.
    let _ = done.send(outcome);
    if linger {
        let _ = timeout(LINGER, reading).await;
    }
}

/// Feeds stdin if there is one; never ready otherwise.
async fn feed(stdin: Option<&mut Feeder<ByteStream>>) {
    match stdin {
        Some(stdin) => stdin.feed().await,
        None => std::future::pending().await,
    }
}

/// Passes on what the client sent before it closed the connection, and the end, if that is taken soon: scripts type a
/// command and hang up.
async fn drain(stdin: Option<Feeder<ByteStream>>) {
    if let Some(mut stdin) = stdin {
        stdin.end();
        let passing_on = async {
            while !stdin.is_closed() {
                stdin.feed().await;
            }
        };
        let _ = timeout(LINGER, passing_on).await;
    }
}

/// The streams that a SPDY client has opened so far.
#[derive(Default)]
struct SpdyStreams {
    error: Option<StreamId>,
    stdin: Option<StreamId>,
    stdout: Option<StreamId>,
    stderr: Option<StreamId>,
    resize: Option<StreamId>,
}

impl SpdyStreams {
    /// Notes a stream; false when it is of no known type, or the second of its type.
    fn open(&mut self, id: StreamId, headers: &Headers) -> bool {
        let slot = match headers.get("streamtype") {
            Some("error") => &mut self.error,
            Some("stdin") => &mut self.stdin,
            Some("stdout") => &mut self.stdout,
            Some("stderr") => &mut self.stderr,
            Some("resize") => &mut self.resize,
            _ => return false,
        };
        slot.is_none() && slot.replace(id).is_none()
    }

    /// Whether everything that was announced is there.
    fn is_complete(&self, options: RemoteCommandOptions, resizable: bool) -> bool {
        let missing = |wanted: bool, stream: Option<StreamId>| wanted && stream.is_none();
        // With a terminal no stderr is waited for, though some clients open one.
        !(missing(true, self.error)
            || missing(options.stdin, self.stdin)
            || missing(options.stdout, self.stdout)
            || missing(options.wants_stderr(), self.stderr)
            || missing(options.tty && resizable, self.resize))
    }
}

/// Reads a SPDY connection on behalf of a session.
struct SpdyReader<R> {
    events: EventReader<R>,
    streams: SpdyStreams,
    stdin: Option<Feeder<ByteStream>>,
    resize: Option<ResizeSender>,
    to: OutboundSender,
    setting_up: bool,
}

impl<R: AsyncRead + Unpin> SpdyReader<R> {
    /// Handles one event; false when the client closed the connection.
    async fn step(&mut self) -> Result<bool, Error> {
        let room = self.stdin.as_ref().is_none_or(Feeder::has_room);
        let event = tokio::select! {
            event = self.events.next(), if room => event?,
            () = feed(self.stdin.as_mut()) => return Ok(true),
        };
        let Some(event) = event else { return Ok(false) };
        match event {
            Event::Open { id, headers, fin } => {
                let taken = self.setting_up && self.streams.open(id, &headers);
                self.send(if taken { Outbound::Accept { stream: id } } else { Outbound::Refuse { stream: id } })
                    .await?;
                if fin {
                    self.data(id, Bytes::new(), true);
                }
            }
            Event::Data { id, bytes, fin } => self.data(id, bytes, fin),
            Event::Reset { id } => self.data(id, Bytes::new(), true),
            Event::Ping { id } => self.send(Outbound::Pong { id }).await?,
            Event::GoAway | Event::Reply { .. } | Event::Ignored => {}
        }
        Ok(true)
    }

    fn data(&mut self, id: StreamId, bytes: Bytes, fin: bool) {
        if self.streams.stdin == Some(id) {
            if let Some(stdin) = &mut self.stdin {
                stdin.push(&bytes);
                if fin {
                    stdin.end();
                }
            }
        } else if self.streams.resize == Some(id)
            && let Some(resize) = &mut self.resize
        {
            resize.feed(&bytes);
        }
    }

    // Exclusive, since a shared borrow across the wait would ask the connection to be `Sync`.
    async fn send(&mut self, frame: Outbound) -> Result<(), Error> {
        self.to.send(frame).await.map_err(|_| Error::Disconnected)
    }

    async fn until_closed(mut self) -> Result<(), Error> {
        while self.step().await? {}
        drain(self.stdin).await;
        Ok(())
    }
}

async fn serve_spdy(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    options: RemoteCommandOptions,
    protocol: &'static str,
    ready: oneshot::Sender<Result<Session, Error>>,
) {
    let (from, to) = tokio::io::split(io);
    let (sender, queue) = outbound::queue();
    let resizable = matches!(protocol, "v3.channel.k8s.io" | "v4.channel.k8s.io");
    let (session, mut ends) = session(options, resizable);
    let mut reader = SpdyReader {
        events: EventReader::new(from),
        streams: SpdyStreams::default(),
        stdin: ends.stdin.take(),
        resize: ends.resize.take(),
        to: sender.clone(),
        setting_up: true,
    };
    let writing = write_frames(to, queue);
    tokio::pin!(writing);
    let opened = {
        let opening = timeout(STREAMS_TIMEOUT, async {
            while !reader.streams.is_complete(options, resizable) {
                if !reader.step().await? {
                    return Err(Error::Disconnected);
                }
            }
            Ok(())
        });
        tokio::select! {
            opened = opening => opened.unwrap_or(Err(Error::StreamsTimeout(STREAMS_TIMEOUT))),
            written = &mut writing => written.and(Err(Error::Disconnected)),
        }
    };
    reader.setting_up = false;
    // Both sends fail only when nobody waits for the session any more; then there is nothing to serve.
    if let Err(error) = opened {
        let _ = ready.send(Err(error));
        return;
    }
    if ready.send(Ok(session)).is_err() {
        return;
    }
    let streams = &reader.streams;
    let outputs = (ends.stdout.zip(streams.stdout), ends.stderr.zip(streams.stderr));
    let format = if protocol == "v4.channel.k8s.io" { StatusFormat::Json } else { StatusFormat::Text };
    let error = streams.error.unwrap_or_default();
    let conducting = conduct(outputs, (ends.status, format), error, sender);
    let sending = async { tokio::join!(conducting, writing).1 };
    run(reader.until_closed(), sending, ends.done).await;
}

async fn serve_websocket(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    options: RemoteCommandOptions,
    protocol: &'static str,
    ready: oneshot::Sender<Result<Session, Error>>,
) {
    let framing = if protocol.contains("base64") { Framing::Base64 } else { Framing::Binary };
    let format = if protocol.starts_with('v') { StatusFormat::Json } else { StatusFormat::Text };
    let (to, from) = websocket::server(io).await.split();
    let (sender, queue) = outbound::queue();
    let (session, ends) = session(options, true);
    if ready.send(Ok(session)).is_err() {
        return;
    }
    let stdout = ends.stdout.map(|stream| (stream, u32::from(channel::STDOUT)));
    let stderr = ends.stderr.map(|stream| (stream, u32::from(channel::STDERR)));
    // An empty message on the first channel that we write tells the client that the connection is up.
    let first = [stdout.as_ref(), stderr.as_ref()].into_iter().flatten().map(|(_, id)| *id).next();
    let hello = Outbound::Data { stream: first.unwrap_or(channel::ERROR.into()), bytes: Bytes::new(), fin: false };
    let conducting = async {
        if sender.send(hello).await.is_ok() {
            conduct((stdout, stderr), (ends.status, format), channel::ERROR.into(), sender).await;
        }
    };
    let sending = async { tokio::join!(conducting, websocket::write_messages(to, queue, framing)).1 };
    run(read_channels(from, framing, ends.stdin, ends.resize), sending, ends.done).await;
}

/// Reads a WebSocket's channels until the client closes the connection.
async fn read_channels(
    mut from: impl futures::Stream<Item = websocket::Incoming> + Unpin,
    framing: Framing,
    mut stdin: Option<Feeder<ByteStream>>,
    mut resize: Option<ResizeSender>,
) -> Result<(), Error> {
    loop {
        let room = stdin.as_ref().is_none_or(Feeder::has_room);
        let message = tokio::select! {
            message = websocket::next_message(&mut from, framing), if room => message?,
            () = feed(stdin.as_mut()) => continue,
        };
        match message {
            None => {
                drain(stdin).await;
                return Ok(());
            }
            Some(ChannelMessage::Data { channel: channel::STDIN, bytes }) => {
                if let Some(stdin) = &mut stdin {
                    stdin.push(&bytes);
                }
            }
            Some(ChannelMessage::End { channel: channel::STDIN }) => {
                if let Some(stdin) = &mut stdin {
                    stdin.end();
                }
            }
            Some(ChannelMessage::Data { channel: channel::RESIZE, bytes }) => {
                if let Some(resize) = &mut resize {
                    resize.feed(&bytes);
                }
            }
            // What a client sends on our own channels is of no interest, and other channels do not exist.
            Some(ChannelMessage::Data { .. } | ChannelMessage::End { .. }) => {}
        }
    }
}

#[cfg(test)]
mod tests;
