//! Signal state of a process: what must be undone before a payload is executed, and signals as a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Gives the calling process the signal state a fresh program expects: nothing blocked, every signal at its default.
/// Both survive `execve(2)` otherwise; Rust ignores SIGPIPE, and users of a signalfd block what they read from it.
///
/// # Errors
/// When the mask cannot be changed.
pub fn reset_to_defaults() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // glibc's wrapper refuses its two internal realtime signals; posix_spawn leaves exactly those ignored.
        set_default(signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

fn set_default(signal: i32) {
    /// The kernel's `struct sigaction` with everything zero: SIG_DFL, no flags, empty mask. Large enough for every architecture.
    const DEFAULT: [u64; 8] = [0; 8];
    /// Size in bytes of the kernel's signal set.
    const SIGSET_BYTES: usize = 8;
    // SAFETY: rt_sigaction(2) reads one kernel sigaction (at most 32 bytes on our architectures) from `DEFAULT`, which is
    // larger, and writes nothing. SIGKILL and SIGSTOP give EINVAL, which is what we want.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            DEFAULT.as_ptr(),
            std::ptr::null_mut::<libc::c_void>(),
            SIGSET_BYTES,
        );
    }
}

/// Signals as a readable descriptor: those given are blocked and can be read from it.
#[derive(Debug)]
pub struct SignalQueue {
    fd: SignalFd,
}

impl SignalQueue {
    /// Blocks `signals` for the calling thread and opens a non-blocking descriptor for them.
    ///
    /// # Errors
    /// The error of the system calls.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let mask: SigSet = signals.iter().copied().collect();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd })
    }

    /// Takes every waiting signal out of the queue and returns their numbers.
    ///
    /// # Errors
    /// The error of `read(2)`.
    pub fn drain(&self) -> io::Result<Vec<i32>> {
        let mut signals = Vec::new();
        while let Some(info) = self.fd.read_signal()? {
            signals.push(info.ssi_signo as i32);
        }
        Ok(signals)
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Ignores a signal. Ignoring SIGCHLD makes the kernel reap the children of this process by itself.
///
/// # Errors
/// For SIGKILL and SIGSTOP.
pub fn ignore(signal: Signal) -> io::Result<()> {
    // SAFETY: SIG_IGN installs no handler, so no code runs in signal context.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }?;
    Ok(())
}

/// Makes every signal whose default action ends a process end this one at once, with 128 and the signal's number as its status, and lets
/// none of them wait. Unlike the default action this holds for the first process of a PID namespace, too, and whatever the process
/// is doing. Left alone are SIGPIPE (ignored: a write fails), and those that faults raise.
///
/// # Errors
/// When the signals cannot be set.
pub fn exit_on_signals() -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, sigaction};

    extern "C" fn exit(signal: libc::c_int) {
        crate::process::exit_now(128 + signal);
    }

    ignore(Signal::SIGPIPE)?;
    let action = SigAction::new(SigHandler::Handler(exit), SaFlags::SA_RESTART, SigSet::empty());
    for signal in ENDING {
        // SAFETY: the handler calls nothing but _exit(2), which may be called in a signal handler.
        unsafe { sigaction(*signal, &action) }?;
    }
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: as above; signal(2) takes a number that nix has no name for, and a function that lives as long as the process.
        if unsafe { libc::signal(signal, exit as *const () as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    unblock_all()
}

/// Lets every signal through to the calling thread, and to the threads that it starts.
///
/// # Errors
/// When the mask cannot be changed.
pub fn unblock_all() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// The signals whose default action ends a process, without SIGKILL, SIGPIPE, the real-time ones, and those that faults raise.
pub const ENDING: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];
