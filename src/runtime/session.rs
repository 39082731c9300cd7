//! The streams of a command that somebody is connected to: exec and attach.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use edge_sys::pidfd::PidFd;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::spec::WindowSize;
use crate::status::ExitStatus;

/// What a command prints.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// What a command reads. Shutting it down (or dropping it) is the end of file; on a terminal dropping it changes nothing.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// A running exec. Dropping it does not end the command, but closes its streams.
pub struct ExecSession {
    /// Its stdin, when asked for.
    pub stdin: Option<Input>,
    /// Its stdout (and the whole output of a terminal), when asked for.
    pub stdout: Option<Output>,
    /// Its stderr, when asked for; never with a terminal.
    pub stderr: Option<Output>,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) pid: i32,
    pub(crate) process: PidFd,
    pub(crate) exit: oneshot::Receiver<ExitStatus>,
    pub(crate) sandbox_id: String,
}

impl std::fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecSession")
            .field("pid", &self.pid)
            .field("sandbox_id", &self.sandbox_id)
            .finish_non_exhaustive()
    }
}

impl ExecSession {
    /// Waits for the end of the command. The output may still hold unread bytes then.
    ///
    /// # Errors
    /// [`Error::MonitorGone`] when nobody can tell any more. Call it once; a second call gives the same error.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        (&mut self.exit).await.map_err(|_| Error::MonitorGone { id: self.sandbox_id.clone() })
    }

    /// Sets the size of the command's terminal; without a terminal nothing happens.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        self.terminal().map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// A handle to the command's terminal, to resize it while the streams are in use elsewhere.
    #[must_use]
    pub fn terminal(&self) -> Option<Terminal> {
        self.terminal.clone()
    }

    /// Sends a signal to the command; one that has ended is fine.
    ///
    /// # Errors
    /// For a number that is no signal.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.process.send_signal(signal).map_err(Error::io("cannot signal", format!("process {}", self.pid)))
    }

    /// Pid of the command as the host sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

/// The streams of a container that is already running.
pub struct AttachSession {
    /// The container's stdin, when asked for and the container has one.
    pub stdin: Option<Input>,
    /// The container's stdout from now on (and the whole output of a terminal); ends with the container.
    pub stdout: Option<Output>,
    /// The container's stderr from now on.
    pub stderr: Option<Output>,
}

impl std::fmt::Debug for AttachSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachSession").finish_non_exhaustive()
    }
}

/// Which streams to attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachStreams {
    /// Connect to stdin.
    pub stdin: bool,
    /// Deliver stdout.
    pub stdout: bool,
    /// Deliver stderr.
    pub stderr: bool,
}

/// The master side of a pseudo terminal as an asynchronous stream. Clones share the terminal.
#[derive(Debug, Clone)]
pub struct Terminal {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Terminal {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        crate::fdio::set_nonblocking(&fd)?;
        Ok(Self { fd: Arc::new(edge_sys::async_fd::register(fd)?) })
    }

    /// Sets the size; the program in it gets SIGWINCH when it changes.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        edge_sys::tty::set_window_size(self.fd.as_fd(), size.columns, size.rows)
            .map_err(Error::io("cannot resize", "terminal"))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|fd| nix::unistd::read(fd, unfilled).map_err(io::Error::from)) {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // A terminal nobody holds open any more gives EIO instead of the end of file.
                Ok(Err(err)) if err.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(err)) => return Poll::Ready(Err(err)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| nix::unistd::write(fd, buf).map_err(io::Error::from)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsRawFd for Terminal {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}
