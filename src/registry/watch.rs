//! The receiving end of a watch.

use crate::stored::WatchEvent;
use futures::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Events of a watch, in order. Ends when the reader is too slow or the registry closes; the client then watches again.
#[derive(Debug)]
pub struct WatchStream {
    initial: VecDeque<WatchEvent>,
    live: mpsc::Receiver<WatchEvent>,
}

impl WatchStream {
    pub(crate) fn new(initial: VecDeque<WatchEvent>, live: mpsc::Receiver<WatchEvent>) -> Self {
        Self { initial, live }
    }
}

impl Stream for WatchStream {
    type Item = WatchEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        if let Some(event) = self.initial.pop_front() {
            return Poll::Ready(Some(event));
        }
        self.live.poll_recv(cx)
    }
}
