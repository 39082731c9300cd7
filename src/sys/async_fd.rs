//! Descriptors in tokio's event loop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use tokio::io::Interest;
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

/// The same for a descriptor of which only exceptional conditions are waited for (`EPOLLPRI`).
///
/// # Errors
/// When it cannot be polled.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn register_for_exceptions(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as above
    unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) }.map_err(|err| err.into_parts().1)
}

/// Makes reads and writes of a descriptor fail instead of waiting. It holds for all who share the opened file.
///
/// # Errors
/// The error of `fcntl(2)`.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
