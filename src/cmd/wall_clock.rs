//! Waiting for a time of day, whatever happens to the clock meanwhile.

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// Waits until the wall clock shows `time`, or somebody sets the clock: then what was due is to be looked at anew.
///
/// # Errors
/// When the kernel gives no timer.
pub(crate) async fn sleep_until(time: SystemTime) -> io::Result<()> {
    let left = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = TimeSpec::from_duration(left.max(std::time::Duration::from_nanos(1)));
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    timer.set(Expiration::OneShot(at), flags)?;
    let timer = edge_sys::async_fd::register(timer.as_fd().try_clone_to_owned()?)?;
    // readable when it is due, and when the clock was set
    timer.readable().await.map(drop)
}
