//! What the user of the room holds: the streams of one exec or attach, and the way to end it.

use crate::Error;
use serde_json::json;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// A bounded in-process pipe. Reading yields what the client sent, end of file when the client closed its half;
/// writing waits while the client is slow, `shutdown` (or dropping) tells the client that no more comes.
pub type ByteStream = DuplexStream;

/// How many bytes one stream buffers before it makes its writer wait.
pub(crate) const STREAM_BUFFER: usize = 64 * 1024;

/// Which streams the request asks for, as its query said (`stdin=true&tty=true…`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteCommandOptions {
    /// The client sends standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error; ignored when `tty` is set, since a terminal has one output.
    pub stderr: bool,
    /// The command runs on a terminal, and the client sends its size.
    pub tty: bool,
}

impl RemoteCommandOptions {
    /// Whether a separate standard error stream exists.
    pub(crate) fn wants_stderr(self) -> bool {
        self.stderr && !self.tty
    }

    /// Whether at least one stream is asked for; a request without any is a bad request.
    pub(crate) fn is_valid(self) -> bool {
        self.stdin || self.stdout || self.stderr
    }
}

/// Size of the client's terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Number of columns.
    pub columns: u16,
    /// Number of rows.
    pub rows: u16,
}

/// How the command ended, to be told to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Exit code 0, or an attach that ended by itself.
    Success,
    /// The command ran and returned this non-zero code.
    Exited(i32),
    /// The command could not be run, or was lost; the text is shown to the user.
    Failed(String),
}

/// How an [`ExitStatus`] is written on the error stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusFormat {
    /// A `Status` object in any case; protocol v4 and later.
    Json,
    /// Text, and nothing when all went well.
    Text,
}

impl ExitStatus {
    pub(crate) fn to_bytes(&self, format: StatusFormat) -> Vec<u8> {
        let message = match self {
            Self::Success => String::new(),
            Self::Exited(code) => format!("command terminated with non-zero exit code: exit status {code}"),
            Self::Failed(reason) => format!("error executing command in container: {reason}"),
        };
        if format == StatusFormat::Text {
            return message.into_bytes();
        }
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(_) => json!({
                "metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError", "details": {"causes": [{"message": message}]}, "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }
}

/// The streams of one exec or attach. Take the parts, move the bytes, then end it with [`Completion::finish`].
///
/// Dropping the [`Completion`] without finishing tells the client of a failure, for clients take silence for success.
#[derive(Debug)]
pub struct Session {
    /// What the client types; `None` when it did not ask for standard input. End of file is a half-close: output goes on.
    pub stdin: Option<ByteStream>,
    /// Where the command's output goes.
    pub stdout: Option<ByteStream>,
    /// Where the command's error output goes; `None` with a terminal.
    pub stderr: Option<ByteStream>,
    /// Terminal sizes as they change; `None` without a terminal. Ends when the client is gone.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    /// Cancelled when the connection ended, for whatever reason: nobody is there any more to read the output.
    pub closed: CancellationToken,
    /// The way to end the session.
    pub completion: Completion,
}

/// Ends a [`Session`] with a status.
#[derive(Debug)]
pub struct Completion {
    pub(crate) status: oneshot::Sender<ExitStatus>,
    pub(crate) done: oneshot::Receiver<Result<(), Error>>,
}

impl Completion {
    /// Sends what is still buffered in stdout and stderr, then the status, then closes the connection in the order the
    /// clients expect; returns when that is done.
    ///
    /// Drop (or shut down) the stdout and stderr streams first: the status goes out only after both have ended, so
    /// that no output is lost (`kubectl cp` relies on it).
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the client went away before it had everything.
    pub async fn finish(self, status: ExitStatus) -> Result<(), Error> {
        self.status.send(status).map_err(|_| Error::Disconnected)?;
        self.done.await.map_err(|_| Error::Disconnected)?
    }
}
