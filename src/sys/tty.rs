//! Terminals: window size and the controlling terminal.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};

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

/// Columns and rows of a terminal; `None` when it is none.
pub fn window_size(terminal: &impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which lives for the whole call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.ws_col, size.ws_row))
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

/// Opens the other side of a terminal, given its master side, without going through any path.
///
/// # Errors
/// When `master` is no master side, or its terminal is still locked.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes an integer argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this new descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a new pseudo terminal of the devpts mounted at `/dev/pts` of the calling process' root: master and slave side.
///
/// The root may be that of a hostile container: what is found there is checked to be a real devpts, and no link is followed.
///
/// # Errors
/// When there is no devpts.
pub fn open_pair_in_devpts() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open("/dev/pts/ptmx")?;
    if fstatfs(&master)?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "/dev/pts/ptmx is not on a devpts"));
    }
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int from the pointer, which lives for the whole call.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let slave = open_peer(master.as_fd())?;
    Ok((OwnedFd::from(master), slave))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn a_pair_is_connected_and_has_a_size() {
        let (master, slave) = open_pair_in_devpts().unwrap();
        set_window_size(master.as_fd(), 91, 17).unwrap();
        File::from(slave).write_all(b"x").unwrap();
        let mut byte = [0];
        nix::unistd::read(&master, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let null = File::open("/dev/null").unwrap();
        assert!(set_window_size(null.as_fd(), 1, 1).is_err());
        assert!(open_peer(null.as_fd()).is_err());
    }
}
