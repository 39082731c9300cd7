//! Carries what the client sent into an in-process pipe, without ever making the connection's reader wait for it.
//!
//! The reader must go on reading while a pipe is full, for otherwise it would not notice that the client is gone. So a
//! bounded amount is kept here; only beyond that is reading paused ([`Feeder::has_room`]).

use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Bytes kept for a reader that is slow.
pub(crate) const LIMIT: usize = 256 * 1024;

/// Bytes on their way into `pipe`.
#[derive(Debug)]
pub(crate) struct Feeder<W> {
    /// `None` once the end has been passed on, or nobody reads any more.
    pipe: Option<W>,
    /// Copies, so that one byte never keeps the whole buffer alive that it was read into.
    pending: BytesMut,
    ended: bool,
}

impl<W: AsyncWrite + Unpin> Feeder<W> {
    pub(crate) fn new(pipe: W) -> Self {
        Self { pipe: Some(pipe), pending: BytesMut::new(), ended: false }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.pipe.is_some() && !self.ended {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// Passes the end on after everything before it.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether more may be read from the connection.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.len() < LIMIT
    }

    /// Whether the end was passed on, or nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.pipe.is_none()
    }

    /// Bytes that wait for the reader.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Moves bytes; ready when something changed, pending while there is nothing to do or the pipe is full.
    pub(crate) fn poll_feed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(pipe) = self.pipe.as_mut().filter(|_| self.ended || !self.pending.is_empty()) else {
            return Poll::Pending;
        };
        let done = if self.pending.is_empty() {
            // The pipe is one of ours, and its shutdown cannot fail in a way that matters: it is dropped anyway.
            drop(ready!(Pin::new(pipe).poll_shutdown(context)));
            true
        } else {
            let n = ready!(Pin::new(pipe).poll_write(context, &self.pending)).unwrap_or(0);
            self.pending.advance(n);
            n == 0
        };
        if done {
            self.pipe = None;
        }
        if done || self.pending.is_empty() {
            // An idle stream keeps no memory.
            self.pending = BytesMut::new();
        }
        Poll::Ready(())
    }

    /// [`Feeder::poll_feed`] as a future.
    pub(crate) async fn feed(&mut self) {
        poll_fn(|context| self.poll_feed(context)).await;
    }
}
