//! Waiting for a time of day, whatever happens to the clock meanwhile.

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// As far away as a timer can be, for good.
const NEVER: Duration = Duration::from_secs(1 << 32);

/// Waits until the wall clock shows `time`, or somebody sets the clock: then what was due is to be looked at anew.
/// Must be called within a tokio runtime.
///
/// # Errors
/// When the kernel gives no timer.
pub async fn sleep_until(time: SystemTime) -> io::Result<()> {
    let left = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    wait(left).await
}

/// Waits until somebody sets the clock. Must be called within a tokio runtime.
///
/// # Errors
/// When the kernel gives no timer.
pub async fn was_set() -> io::Result<()> {
    wait(NEVER).await
}

async fn wait(at: Duration) -> io::Result<()> {
    let at = TimeSpec::from_duration(at.max(Duration::from_nanos(1)));
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    match timer.set(Expiration::OneShot(at), flags) {
        // the clock was set before a wait of earlier; the timer is armed nevertheless
        Ok(()) | Err(Errno::ECANCELED) => {}
        Err(error) => return Err(error.into()),
    }
    let timer = crate::async_fd::register(timer.as_fd().try_clone_to_owned()?)?;
    // readable when it is due, and when the clock was set
    timer.readable().await.map(drop)
}
