//! WebSocket with Kubernetes' channels: the first byte of a message is the channel, the rest its data; in the base64
//! variants the first character is the channel's digit and the rest is encoded. Also bytes tunnelled through a WebSocket.

use crate::Error;
use crate::outbound::Outbound;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
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
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// The next channel message; `None` when the client closed the connection. Pings are answered on the way.
pub(crate) async fn next_message(
    socket: &mut (impl Stream<Item = Incoming> + Unpin),
    framing: Framing,
) -> Result<Option<ChannelMessage>, Error> {
    loop {
        let Some(message) = socket.next().await else { return Ok(None) };
        let parsed = match (message, framing) {
            (Ok(Message::Binary(bytes)), Framing::Binary) => parse_binary(bytes)?,
            (Ok(Message::Text(text)), Framing::Base64) => parse_base64(text.as_str())?,
            (Ok(Message::Binary(_) | Message::Text(_)), _) => {
                return Err(Error::Protocol("message type does not fit the subprotocol".to_owned()));
            }
            (Ok(Message::Close(_)) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed), _) => return Ok(None),
            (Ok(_), _) => None,
            (Err(error), _) => return Err(websocket_error(error)),
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

fn parse_base64(text: &str) -> Result<Option<ChannelMessage>, Error> {
    let Some(first) = text.chars().next() else { return Ok(None) };
    let channel = first.to_digit(10).and_then(|digit| u8::try_from(digit).ok());
    let channel = channel.ok_or_else(|| Error::Protocol("channel is no digit".to_owned()))?;
    let bytes = STANDARD.decode(&text[1..]).map_err(|error| Error::Protocol(format!("base64: {error}")))?;
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
        Framing::Base64 => Message::Text(format!("{channel}{}", STANDARD.encode(bytes)).into()),
    }
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
                None | Some(Ok(Message::Close(_)) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => {
                    return Poll::Ready(Ok(()));
                }
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
