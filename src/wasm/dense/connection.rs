//! One connection, as the host sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use edge_sys::async_fd::{AsyncFd, register};
use edge_sys::socket;

use super::protocol::{Event, MAX_MESSAGE, Request};

pub(super) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        register(socket).map(Self)
    }

    /// The next request with its descriptors; `None` at the end.
    pub(super) async fn next(&self) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await?;
            match socket::receive(self.0.as_fd(), MAX_MESSAGE) {
                Ok(message) if message.bytes.is_empty() => return Ok(None),
                Ok(message) => return Ok(Some((serde_json::from_slice(&message.bytes)?, message.fds))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) => return Err(e),
            }
        }
    }

    pub(super) async fn tell(&self, event: &Event) -> io::Result<()> {
        let message = serde_json::to_vec(event)?;
        loop {
            let mut ready = self.0.writable().await?;
            match socket::send(self.0.as_fd(), &message, &[]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                sent => return sent,
            }
        }
    }
}
