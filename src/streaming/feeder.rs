//! Carries what the client sent into an in-process pipe, without ever making the connection's reader wait for it.
//!
//! The reader must go on reading while a pipe is full, for otherwise it would not notice that the client is gone. So a
//! bounded amount is kept here; only beyond that is reading paused ([`Feeder::has_room`]).

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Bytes kept for a reader that is slow.
const LIMIT: usize = 256 * 1024;

/// Bytes on their way into `pipe`.
#[derive(Debug)]
pub(crate) struct Feeder<W> {
    /// `None` once the end has been passed on, or nobody reads any more.
    pipe: Option<W>,
    pending: VecDeque<Bytes>,
    pending_bytes: usize,
    ended: bool,
}

impl<W: AsyncWrite + Unpin> Feeder<W> {
    pub(crate) fn new(pipe: W) -> Self {
        Self { pipe: Some(pipe), pending: VecDeque::new(), pending_bytes: 0, ended: false }
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if self.pipe.is_some() && !self.ended && !bytes.is_empty() {
            self.pending_bytes += bytes.len();
            self.pending.push_back(bytes);
        }
    }

    /// Passes the end on after everything before it.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether more may be read from the connection.
    pub(crate) fn has_room(&self) -> bool {
        self.pending_bytes < LIMIT
    }

    /// Whether the end was passed on, or nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.pipe.is_none()
    }

    /// Whether there is something to do for [`Feeder::poll_feed`].
    fn is_idle(&self) -> bool {
        self.pipe.is_none() || (self.pending.is_empty() && !self.ended)
    }

    /// Moves bytes; ready when something changed, pending while there is nothing to do or the pipe is full.
    pub(crate) fn poll_feed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_idle() {
            return Poll::Pending;
        }
        let Some(pipe) = self.pipe.as_mut() else { return Poll::Pending };
        let done = if let Some(front) = self.pending.front_mut() {
            let written = ready!(Pin::new(pipe).poll_write(context, front));
            let n = written.unwrap_or(0);
            front.advance(n);
            self.pending_bytes -= n;
            if front.is_empty() {
                self.pending.pop_front();
            }
            n == 0
        } else {
            // The pipe is one of ours, and its shutdown cannot fail in a way that matters: it is dropped anyway.
            drop(ready!(Pin::new(pipe).poll_shutdown(context)));
            true
        };
        if done {
            (self.pipe, self.pending_bytes) = (None, 0);
            self.pending.clear();
        }
        Poll::Ready(())
    }

    /// [`Feeder::poll_feed`] as a future.
    pub(crate) async fn feed(&mut self) {
        poll_fn(|context| self.poll_feed(context)).await;
    }
}
