//! WebSocket with Kubernetes' channels: the first byte of a message is the channel, the rest its data; in the base64
//! variants the first character is the channel's digit and the rest is encoded. Also bytes tunnelled through a WebSocket.

use crate::Error;
use crate::outbound::Outbound;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// Largest message a client may send; clients of Kubernetes send 32 KiB at a time.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// How much is read and written at a time.
const BUFFER: usize = 32 * 1024;
/// Most bytes that wait for a client which does not read; it is our messages of at most [`BUFFER`] bytes and what answers
/// the client's pings. More is an error.
const MAX_UNSENT: usize = 256 * 1024;
/// Instead of a channel: the client half-closes the channel named by the next byte (v5).
const CLOSE_CHANNEL: u8 = 255;

/// How channel messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Binary,
    Base64,
}

/// What a client sent on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChannelMessage {
    Data {
        channel: u8,
        bytes: Bytes,
    },
    /// The client sends no more on the channel.
    End {
        channel: u8,
    },
}

/// What a WebSocket yields.
pub(crate) type Incoming = Result<Message, WsError>;

/// Takes over a connection whose handshake has been done.
pub(crate) async fn server<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_write_buffer_size(MAX_UNSENT);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// The next channel message; `None` when the client closed the connection. Pings are answered on the way.
pub(crate) async fn next_message(
    socket: &mut (impl Stream<Item = Incoming> + Unpin),
    framing: Framing,
) -> Result<Option<ChannelMessage>, Error> {
    loop {
        let Some(message) = socket.next().await else { return Ok(None) };
        // The subprotocol decides how a message is read, not its type: the Python client sends text on binary channels.
        let bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => text.into(),
            Ok(Message::Close(_)) => {
                // Once more, for that sends the answer, if the client takes it.
                let _ = socket.next().now_or_never();
                return Ok(None);
            }
            Ok(_) => continue,
            Err(error) if is_end(&error) => return Ok(None),
            Err(error) => return Err(websocket_error(error)),
        };
        let parsed = match framing {
            Framing::Binary => parse_binary(bytes)?,
            Framing::Base64 => parse_base64(&bytes)?,
        };
        if parsed.is_some() {
            return Ok(parsed);
        }
    }
}

fn parse_binary(mut bytes: Bytes) -> Result<Option<ChannelMessage>, Error> {
    // An empty message is no message, as upstream has it.
    let Some(&channel) = bytes.first() else { return Ok(None) };
    bytes = bytes.slice(1..);
    if channel != CLOSE_CHANNEL {
        return Ok(Some(ChannelMessage::Data { channel, bytes }));
    }
    match *bytes {
        [channel] => Ok(Some(ChannelMessage::End { channel })),
        _ => Err(Error::Protocol("close signal without a channel".to_owned())),
    }
}

fn parse_base64(text: &[u8]) -> Result<Option<ChannelMessage>, Error> {
    let Some((digit, text)) = text.split_first() else { return Ok(None) };
    let channel = digit.checked_sub(b'0').ok_or_else(|| Error::Protocol("channel is no digit".to_owned()))?;
    let bytes = STANDARD.decode(text).map_err(|error| Error::Protocol(format!("base64: {error}")))?;
    Ok(Some(ChannelMessage::Data { channel, bytes: bytes.into() }))
}

/// Writes everything from `messages` and then closes the connection normally.
pub(crate) async fn write_messages(
    mut socket: impl Sink<Message, Error = WsError> + Unpin,
    mut messages: mpsc::Receiver<Outbound>,
    framing: Framing,
) -> Result<(), Error> {
    loop {
        match messages.recv().await {
            Some(Outbound::Data { stream, bytes, fin }) => {
                // Channels cannot be closed from this side; an end without data is nothing to send.
                if !(bytes.is_empty() && fin) {
                    socket.send(message(stream, &bytes, framing)).await.map_err(websocket_error)?;
                }
            }
            Some(Outbound::Close) | None => {
                let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                return socket.send(Message::Close(Some(normal))).await.map_err(websocket_error);
            }
            // Streams are SPDY's, and pings are answered by the protocol's implementation.
            Some(
                Outbound::Accept { .. } | Outbound::Refuse { .. } | Outbound::Reset { .. } | Outbound::Pong { .. },
            ) => {}
        }
    }
}

fn message(channel: u32, bytes: &[u8], framing: Framing) -> Message {
    let channel = u8::try_from(channel).expect("invariant: channels are numbered from 0, two for each port at most");
    match framing {
        Framing::Binary => {
            let mut message = BytesMut::with_capacity(1 + bytes.len());
            message.put_u8(channel);
            message.extend_from_slice(bytes);
            Message::Binary(message.freeze())
        }
        // After 9 come the characters that follow it in ASCII, as upstream has it.
        Framing::Base64 => {
            let digit = char::from(b'0'.saturating_add(channel));
            Message::Text(format!("{digit}{}", STANDARD.encode(bytes)).into())
        }
    }
}

/// Whether the client is gone, with or without a word.
fn is_end(error: &WsError) -> bool {
    use tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    matches!(
        error,
        WsError::ConnectionClosed | WsError::AlreadyClosed | WsError::Protocol(ResetWithoutClosingHandshake)
    )
}

fn websocket_error(error: WsError) -> Error {
    match error {
        WsError::Io(error) => Error::Io(error),
        WsError::ConnectionClosed | WsError::AlreadyClosed => Error::Disconnected,
        error => Error::Protocol(error.to_string()),
    }
}

/// A byte stream made of a WebSocket's binary messages (kubectl tunnels SPDY so).
pub(crate) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    /// What is left of the message being read.
    unread: Bytes,
}

impl<S> Tunnel<S> {
    pub(crate) fn new(socket: WebSocketStream<S>) -> Self {
        Self { socket, unread: Bytes::new() }
    }
}

fn io_error(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        WsError::ConnectionClosed | WsError::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(this.socket.poll_next_unpin(context)) {
                Some(Ok(Message::Binary(bytes))) => this.unread = bytes,
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Err(error)) if is_end(&error) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    let text = "text message in a tunnel of bytes";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let n = buffer.remaining().min(this.unread.len());
        buffer.put_slice(&this.unread.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let socket = &mut self.get_mut().socket;
        ready!(socket.poll_ready_unpin(context)).map_err(io_error)?;
        let bytes = &bytes[..bytes.len().min(BUFFER)];
        socket.start_send_unpin(Message::Binary(Bytes::copy_from_slice(bytes))).map_err(io_error)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().socket.poll_flush_unpin(context).map_err(io_error)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.get_mut().socket.poll_close_unpin(context)) {
            Err(WsError::ConnectionClosed | WsError::AlreadyClosed) | Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(io_error(error))),
        }
    }
}
