//! Leases of keys that expire, shared by many keys: a lease each would be a heavy load for etcd.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// So many keys share a lease at most: they all go in one transaction (kube-apiserver's number).
const KEYS: u32 = 1000;
/// Keys may live longer than they were to by this part, and not by more than the time (kube-apiserver's numbers).
const LONGER: (u32, Duration) = (20, Duration::from_secs(60));

/// A lease that has been granted.
#[derive(Clone, Copy, Debug)]
struct Lease {
    id: u64,
    end: Instant,
    keys: u32,
}

/// The leases in use, by the time to live of their keys.
#[derive(Debug, Default)]
pub(super) struct Leases(HashMap<Duration, Lease>);

impl Leases {
    /// A lease that holds for at least `ttl` from now on and takes another key.
    pub(super) fn take(&mut self, ttl: Duration, now: Instant) -> Option<u64> {
        let lease = self.0.get_mut(&ttl)?;
        if lease.keys >= KEYS || lease.end < now + ttl {
            return None;
        }
        lease.keys += 1;
        Some(lease.id)
    }

    /// How many seconds a new lease should have, so that it can be shared for a while.
    pub(super) fn seconds(ttl: Duration) -> u64 {
        let longer = (ttl / LONGER.0).min(LONGER.1);
        (ttl + longer).as_millis().div_ceil(1000).max(1) as u64
    }

    /// Takes in a new lease, which has its first key.
    pub(super) fn put(&mut self, ttl: Duration, id: u64, seconds: u64, asked: Instant) {
        // what was granted began later than it was asked for, so this is on the safe side
        self.0.retain(|_, lease| lease.end > asked);
        self.0.insert(ttl, Lease { id, end: asked + Duration::from_secs(seconds), keys: 1 });
    }

    /// Forgets a lease that etcd does not know any more.
    pub(super) fn forget(&mut self, id: u64) {
        self.0.retain(|_, lease| lease.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_shared_while_they_hold_long_enough() {
        let (hour, now) = (Duration::from_secs(3600), Instant::now());
        let mut leases = Leases::default();
        assert_eq!(leases.take(hour, now), None);
        assert_eq!(Leases::seconds(hour), 3660);
        leases.put(hour, 7, 3660, now);
        assert_eq!(leases.take(hour, now + Duration::from_secs(60)), Some(7));
        assert_eq!(leases.take(hour, now + Duration::from_secs(61)), None);
        assert_eq!(leases.take(Duration::from_secs(5), now), None);
        for _ in 0..KEYS - 2 {
            assert_eq!(leases.take(hour, now), Some(7));
        }
        assert_eq!(leases.take(hour, now), None);
        leases.forget(7);
        assert_eq!((leases.0.len(), Leases::seconds(Duration::from_millis(30))), (0, 1));
    }
}
