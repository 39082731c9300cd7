//! How a program that runs is told to end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// What ends a program that would go on.
#[derive(Debug)]
pub struct Shutdown(pub(crate) Source);

#[derive(Debug)]
pub(crate) enum Source {
    Signals,
    Handle(oneshot::Receiver<i32>),
}

/// Ends the program whose [`Shutdown`] it belongs to.
#[derive(Debug)]
pub struct ShutdownHandle(oneshot::Sender<i32>);

impl Shutdown {
    /// By the signals of the process, for a process that runs nothing else: every signal that would end a program which does not handle
    /// it. A command ends *the process* with 128 and the signal's number, at once, whatever it is doing. An HTTP server stops
    /// to accept, answers what has begun, and ends with 0; a second signal ends it like a command.
    #[must_use]
    pub fn on_signals() -> Self {
        Self(Source::Signals)
    }

    /// By the handle. An HTTP server ends as it does by a signal.
    #[must_use]
    pub fn by_handle() -> (ShutdownHandle, Self) {
        let (sender, receiver) = oneshot::channel();
        (ShutdownHandle(sender), Self(Source::Handle(receiver)))
    }
}

impl ShutdownHandle {
    /// Ends the program; a command then has this exit code.
    pub fn end(self, code: i32) {
        // Nobody listens when it has ended by itself.
        let _ = self.0.send(code);
    }
}

/// The first signal that asks to end. From then on any ends the process.
pub(crate) struct FirstSignal(Vec<tokio::signal::unix::Signal>);

impl FirstSignal {
    /// Begins to listen; those that waited for it are heard, too.
    pub(crate) fn listen() -> io::Result<Self> {
        let signals: io::Result<Vec<_>> =
            edge_sys::signal::ENDING.iter().map(|s| signal(SignalKind::from_raw(*s as i32))).collect();
        let first = Self(signals?);
        edge_sys::signal::unblock_all()?;
        Ok(first)
    }

    pub(crate) async fn heard(mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            if self.0.iter_mut().any(|s| s.poll_recv(cx).is_ready()) {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
        edge_sys::signal::exit_on_signals()
    }
}
