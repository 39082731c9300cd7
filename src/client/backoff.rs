//! How long a broken watch waits before it is opened again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// Short waits: a watch that is open again soon makes up for a break, and requests wait for a connection by themselves.
/// Each wait is between half and the whole of one that doubles, so that the watchers of a server that was away come one
/// after the other.
#[derive(Debug)]
pub struct WatchBackoff(Duration);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let whole = self.0;
        self.0 = (whole * 2).min(LONGEST);
        // it needs to differ, not to be unpredictable
        let part = u32::try_from(RandomState::new().hash_one(0u8) % 1000).unwrap_or(0);
        Some(whole / 2 + whole / 2 * part / 1000)
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0 = FIRST;
    }
}
