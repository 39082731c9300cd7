//! Terminals: window size and the controlling terminal.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets the window size of a terminal (either end of a pty). The foreground process group gets SIGWINCH when it changes.
///
/// # Errors
/// When `terminal` is no terminal.
pub fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize from the pointer, which lives for the whole call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `terminal` the controlling terminal of the calling process, which must be a session leader without one.
///
/// # Errors
/// When it is no session leader, or `terminal` is no terminal.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument and touches no memory.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
