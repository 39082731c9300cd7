//! Descriptors in tokio's event loop.

use std::io;
use std::os::fd::OwnedFd;

pub use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the event loop of the current tokio runtime.
///
/// # Errors
/// When it cannot be polled (a regular file).
///
/// # Panics
/// Outside of a tokio runtime.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open for as long as it lives, is always the same descriptor, and is owned by the result.
    unsafe { AsyncFd::register(fd) }.map_err(|err| err.into_parts().1)
}
