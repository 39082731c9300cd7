//! Process file descriptors: a process that cannot be confused with a later one of the same pid.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A handle to one process.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Opens a handle to the process `pid`.
    ///
    /// # Errors
    /// "No such process" (ESRCH) when it is gone.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this new descriptor; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as i32) } })
    }

    /// Sends the signal of that number; a process that is already gone is fine.
    ///
    /// # Errors
    /// When we may not, or the number is no signal.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: the info pointer may be null; the other arguments are integers.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let err = io::Error::last_os_error();
        if err.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(err) }
    }

    /// Blocks until the process has ended (it may still be a zombie); `false` when it has not within `timeout_ms`.
    ///
    /// # Errors
    /// The error of `poll(2)`.
    pub fn wait(&self, timeout_ms: u16) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::from(timeout_ms)) {
                Ok(ready) => return Ok(ready > 0),
                Err(nix::errno::Errno::EINTR) => {}
                Err(err) => return Err(err.into()),
            }
        }
    }
}

impl From<OwnedFd> for PidFd {
    /// Takes over a descriptor that another process has opened and sent.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<PidFd> for OwnedFd {
    fn from(process: PidFd) -> Self {
        process.fd
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn signals_and_waits_for_a_process() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let handle = PidFd::open(child.id() as i32).unwrap();
        assert!(!handle.wait(1).unwrap());
        handle.send_signal(libc::SIGKILL).unwrap();
        assert!(handle.wait(10_000).unwrap());
        child.wait().unwrap();
        handle.send_signal(libc::SIGKILL).unwrap();
        assert_eq!(PidFd::open(child.id() as i32).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
