//! How a program that runs is told to end.

use tokio::sync::oneshot;

/// What ends a program that would go on.
#[derive(Debug)]
pub struct Shutdown(pub(crate) Source);

#[derive(Debug)]
pub(crate) enum Source {
    Signals,
    Channel(oneshot::Receiver<i32>),
}

/// Ends the program whose [`Shutdown`] it belongs to.
#[derive(Debug)]
pub struct ShutdownHandle(oneshot::Sender<i32>);

impl Shutdown {
    /// By the signals of the process, for a process that runs nothing else: every signal that would end a program which does not handle
    /// it. A command ends *the process* with 128 and the signal's number, at once, whatever it is doing. An HTTP server stops
    /// to accept, answers what has begun, and ends with 0.
    #[must_use]
    pub fn on_signals() -> Self {
        Self(Source::Signals)
    }

    /// By the handle.
    #[must_use]
    pub fn by_handle() -> (ShutdownHandle, Self) {
        let (sender, receiver) = oneshot::channel();
        (ShutdownHandle(sender), Self(Source::Channel(receiver)))
    }
}

impl ShutdownHandle {
    /// Ends the program; a command then has this exit code.
    pub fn end(self, code: i32) {
        // Nobody listens when it has ended by itself.
        let _ = self.0.send(code);
    }
}
