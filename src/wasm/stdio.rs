//! Standard output and error: written at once to the descriptor, with no buffer that an end of the process could lose.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use edge_sys::async_fd::AsyncFd;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Most bytes that are taken from a program at once.
const CHUNK: usize = 64 * 1024;

/// Where a program writes.
#[derive(Debug, Clone)]
pub(crate) struct Stdio {
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

impl Stdio {
    /// Those of the process, which writes while it waits for whoever reads.
    pub(crate) fn of_process() -> io::Result<Self> {
        Ok(Self { stdout: Output::blocking(io::stdout())?, stderr: Output::blocking(io::stderr())? })
    }
}

/// An output; all clones are the same.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    Blocking(Arc<File>),
    Pipe(Arc<Pipe>),
}

/// A pipe that is written to without waiting.
#[derive(Debug)]
pub(crate) struct Pipe {
    file: File,
    readiness: AsyncFd<OwnedFd>,
    /// Taken from the program and not yet written, as the pipe was full.
    rest: Mutex<Bytes>,
}

impl Output {
    /// Of a descriptor, which is duplicated; whoever writes waits.
    pub(crate) fn blocking(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self::Blocking(Arc::new(File::from(fd.as_fd().try_clone_to_owned()?))))
    }

    /// Of a pipe, which must not be anybody else's; only the program that writes waits. Must be called within a tokio runtime.
    pub(crate) fn pipe(fd: OwnedFd) -> io::Result<Self> {
        edge_sys::async_fd::set_nonblocking(&fd)?;
        let file = File::from(fd.try_clone()?);
        Ok(Self::Pipe(Arc::new(Pipe { file, readiness: edge_sys::async_fd::register(fd)?, rest: Mutex::default() })))
    }

    /// Writes a line of the engine's own, as a whole where it can.
    pub(crate) fn line(&self, text: &str) {
        // Where nobody reads there is nobody to tell.
        let _ = self.give(Bytes::from(format!("edge: {text}\n")));
    }

    /// Waits until all is written that was taken.
    pub(crate) async fn drain(&self) {
        // Where nobody reads nothing is lost.
        let _ = std::future::poll_fn(|cx| self.poll_written(cx)).await;
    }

    fn give(&self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Blocking(file) => (&**file).write_all(&bytes),
            Self::Pipe(pipe) => {
                let mut rest = pipe.rest.lock().unwrap_or_else(PoisonError::into_inner);
                *rest = if rest.is_empty() { bytes } else { [rest.as_ref(), bytes.as_ref()].concat().into() };
                pipe.write(&mut rest)
            }
        }
    }

    fn poll_written(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Pipe(pipe) = self else { return Poll::Ready(Ok(())) };
        loop {
            let mut rest = pipe.rest.lock().unwrap_or_else(PoisonError::into_inner);
            if rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let mut guard = ready!(pipe.readiness.poll_write_ready(cx))?;
            pipe.write(&mut rest)?;
            if !rest.is_empty() {
                guard.clear_ready();
            }
        }
    }
}

impl Pipe {
    /// Writes what the pipe takes now.
    fn write(&self, rest: &mut Bytes) -> io::Result<()> {
        while !rest.is_empty() {
            match (&self.file).write(rest) {
                Ok(n) => rest.advance(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    rest.clear();
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        match self {
            Self::Blocking(file) => file.is_terminal(),
            Self::Pipe(_) => false,
        }
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        self.drain().await;
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.give(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => StreamError::Closed,
            _ => StreamError::LastOperationFailed(e.into()),
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let full = match self {
            Self::Blocking(_) => false,
            Self::Pipe(pipe) => !pipe.rest.lock().unwrap_or_else(PoisonError::into_inner).is_empty(),
        };
        Ok(if full { 0 } else { CHUNK })
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(cx))?;
        let buf = buf.get(..CHUNK).unwrap_or(buf);
        Poll::Ready(self.give(Bytes::copy_from_slice(buf)).map(|()| buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(cx)
    }
}
