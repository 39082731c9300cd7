//! Standard output and error: written at once to the descriptor, with no buffer that an end of the process could lose.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Most bytes that are taken from a program at once.
const CHUNK: usize = 64 * 1024;

/// An output of the process.
#[derive(Debug, Clone)]
pub(crate) struct Output(Arc<File>);

impl Output {
    /// Of a descriptor, which is duplicated.
    pub(crate) fn new(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self(Arc::new(File::from(fd.as_fd().try_clone_to_owned()?))))
    }

    /// Writes a line of the engine's own, as a whole.
    pub(crate) fn line(&self, text: &str) {
        // Where nobody reads there is nobody to tell.
        let _ = (&*self.0).write_all(format!("edge: {text}\n").as_bytes());
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.0.is_terminal()
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
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        (&*self.0).write_all(&bytes).map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => StreamError::Closed,
            _ => StreamError::LastOperationFailed(e.into()),
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready((&*self.0).write(buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
