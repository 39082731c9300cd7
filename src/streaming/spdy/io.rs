//! SPDY on a byte stream: a reader of events and a writer fed by a queue.

use super::frame::{Decoder, Encoder, Event};
use crate::Error;
use crate::outbound::Outbound;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const READ_BUFFER: usize = 32 * 1024;

/// Reads events from a connection.
pub(crate) struct EventReader<R> {
    io: R,
    decoder: Decoder,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> EventReader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, decoder: Decoder::new(), buffer: BytesMut::new() }
    }

    #[cfg(test)]
    pub(crate) fn into_inner(self) -> R {
        self.io
    }

    /// The next event, `None` when the peer closed the connection. May be cancelled without losing anything.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.decoder.decode(&mut self.buffer).map_err(Error::Protocol)? {
                Some(Event::Ignored) => {}
                Some(event) => return Ok(Some(event)),
                None => {
                    self.buffer.reserve(READ_BUFFER);
                    if self.io.read_buf(&mut self.buffer).await? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }
}

/// Writes everything from `frames`, and at [`Outbound::Close`] or the end of the queue shuts the connection's sending
/// half down.
pub(crate) async fn write_frames(
    mut io: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Outbound>,
) -> Result<(), Error> {
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    let mut open = true;
    while open {
        let Some(frame) = frames.recv().await else { break };
        open = frame != Outbound::Close;
        encoder.encode(&frame, &mut out);
        // What is waiting already goes out in one write; the queue is short, so this stays small.
        while open && let Ok(frame) = frames.try_recv() {
            open = frame != Outbound::Close;
            encoder.encode(&frame, &mut out);
        }
        io.write_all_buf(&mut out).await?;
        io.flush().await?;
    }
    Ok(io.shutdown().await?)
}
