//! Back-off of restarts and of image pulls, as the kubelet does it: ten seconds, doubling up to five minutes, forgotten
//! after ten quiet minutes.

use std::time::Duration;
use tokio::time::Instant;

/// First delay.
pub(crate) const FIRST: Duration = Duration::from_secs(10);
/// Longest delay.
pub(crate) const LONGEST: Duration = Duration::from_secs(300);

/// The back-off of one thing that may fail again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    entry: Option<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    delay: Duration,
    updated: Instant,
}

impl Backoff {
    /// A back-off that was at `delay` when the process that knew it ended.
    pub(crate) fn restored(delay: Duration, now: Instant) -> Self {
        let entry = (!delay.is_zero()).then(|| Entry { delay: delay.clamp(FIRST, LONGEST), updated: now });
        Self { entry }
    }

    /// The present delay; zero when nothing has failed lately.
    pub(crate) fn delay(&self) -> Duration {
        self.entry.map_or(Duration::ZERO, |e| e.delay)
    }

    /// When the thing that failed at `failed` may be tried again; at once when it failed for the first time in a while.
    pub(crate) fn ready_at(&self, failed: Instant) -> Instant {
        match self.entry {
            Some(e) if !e.expired(failed) => failed + e.delay,
            _ => failed,
        }
    }

    /// Counts a new try, after a failure at `failed`: the next delay is longer.
    pub(crate) fn next(&mut self, failed: Instant, now: Instant) {
        let delay = match self.entry {
            Some(e) if !e.expired(failed) => (e.delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.entry = Some(Entry { delay, updated: now });
    }
}

impl Entry {
    fn expired(&self, at: Instant) -> bool {
        at.saturating_duration_since(self.updated) > LONGEST * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_up_to_five_minutes_and_is_forgotten_after_ten() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        assert_eq!(backoff.ready_at(now), now, "the first restart is immediate");
        let mut delays = Vec::new();
        for _ in 0..8 {
            now = backoff.ready_at(now);
            backoff.next(now, now);
            delays.push(backoff.delay().as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        let quiet = now + Duration::from_secs(601);
        assert_eq!(backoff.ready_at(quiet), quiet);
        backoff.next(quiet, quiet);
        assert_eq!(backoff.delay(), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn survives_a_restart_of_the_agent() {
        let now = Instant::now();
        assert_eq!(Backoff::restored(Duration::from_secs(40), now).ready_at(now), now + Duration::from_secs(40));
        assert_eq!(Backoff::restored(Duration::ZERO, now).ready_at(now), now);
        assert_eq!(Backoff::restored(Duration::from_secs(9999), now).delay(), LONGEST);
    }
}
