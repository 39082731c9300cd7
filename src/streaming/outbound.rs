//! What a session wants sent, whatever the transport; a bounded queue of it feeds the connection's writer.

use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

/// Messages that may wait for the network, each at most [`CHUNK`] bytes.
const QUEUE: usize = 4;
/// Bytes sent in one data frame.
const CHUNK: usize = 32 * 1024;

/// How long a client may take to close the connection after it has got everything. Closing first could make TCP throw
/// away what the client has not read yet.
pub(crate) const LINGER: Duration = Duration::from_secs(10);

/// One thing to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outbound {
    /// Data of a stream or channel; `fin` half-closes it.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// Takes a stream that the client opened.
    Accept { stream: u32 },
    /// Declines a stream that the client opened.
    Refuse { stream: u32 },
    /// Ends a stream at once.
    Reset { stream: u32 },
    /// Answers a ping.
    Pong { id: u32 },
    /// Ends the connection after everything before it.
    Close,
}

pub(crate) type OutboundSender = mpsc::Sender<Outbound>;

pub(crate) fn queue() -> (OutboundSender, mpsc::Receiver<Outbound>) {
    mpsc::channel(QUEUE)
}

/// Sends what comes out of `from` as data of `stream`, until its end, which is sent too. Returns early when the
/// connection is gone.
pub(crate) async fn pump(mut from: impl AsyncRead + Unpin, stream: u32, to: OutboundSender) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        // In-process pipes do not fail; their other end being dropped is their end.
        let ended = !matches!((&mut from).take(CHUNK as u64).read_buf(&mut buffer).await, Ok(1..));
        let bytes = buffer.split().freeze();
        if to.send(Outbound::Data { stream, bytes, fin: ended }).await.is_err() || ended {
            return;
        }
    }
}
