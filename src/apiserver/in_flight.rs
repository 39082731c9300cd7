//! How many requests are answered at once.
//!
//! Two pools, as kube-apiserver has them, so that many reads cannot starve the writes that would end them. Requests that
//! may go on for ever are only counted.

use crate::body::Body;
use crate::metrics::Metrics;
use crate::request_info::RequestInfo;
use edge_api::{Status, UserInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// The two limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) read_only: usize,
    pub(crate) mutating: usize,
}

/// A place among the requests in flight; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Slot {
    metrics: Arc<Metrics>,
    pool: Pool,
}

#[derive(Clone, Copy, Debug)]
enum Pool {
    ReadOnly,
    Mutating,
    LongRunning,
}

fn counter(metrics: &Metrics, pool: Pool) -> &AtomicI64 {
    match pool {
        Pool::ReadOnly => &metrics.in_flight_read_only,
        Pool::Mutating => &metrics.in_flight_mutating,
        Pool::LongRunning => &metrics.long_running,
    }
}

impl Slot {
    /// Takes a place.
    ///
    /// # Errors
    /// 429 when all are taken; administrators (`system:masters`) always get one, so that they can still repair things.
    pub(crate) fn take(
        metrics: &Arc<Metrics>,
        limits: Limits,
        info: &RequestInfo,
        user: &UserInfo,
    ) -> Result<Self, Status> {
        let (pool, limit) = if info.is_long_running() {
            (Pool::LongRunning, usize::MAX)
        } else if info.is_read_only() {
            (Pool::ReadOnly, limits.read_only)
        } else {
            (Pool::Mutating, limits.mutating)
        };
        let slot = Self { metrics: metrics.clone(), pool };
        let before = counter(metrics, pool).fetch_add(1, Ordering::Relaxed);
        if usize::try_from(before).unwrap_or(0) >= limit && !user.in_group(UserInfo::MASTERS) {
            return Err(Status::too_many_requests("Too many requests, please try again later.", 1));
        }
        Ok(slot)
    }

    /// Keeps the place until the body of a long-running answer ends.
    pub(crate) fn hold(self, body: Body) -> Body {
        if matches!(self.pool, Pool::LongRunning) && !body.is_full() { body.holding(self) } else { body }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        counter(&self.metrics, self.pool).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_pools_are_separate_and_free_themselves() {
        let metrics = Arc::new(Metrics::new());
        let limits = Limits { read_only: 2, mutating: 1 };
        let user = UserInfo::new("jane", [""]);
        let take = |verb: &str, user: &UserInfo| {
            Slot::take(&metrics, limits, &RequestInfo { verb: verb.into(), ..RequestInfo::default() }, user)
        };
        let (a, _b) = (take("get", &user).unwrap(), take("list", &user).unwrap());
        let refused = take("get", &user).unwrap_err();
        assert_eq!((refused.code, refused.details.unwrap().retry_after_seconds), (429, 1));
        let _write = take("create", &user).unwrap();
        assert!(take("delete", &user).is_err());
        let _admin = take("delete", &UserInfo::new("root", [UserInfo::MASTERS])).unwrap();
        let watches: Vec<_> = (0..100).map(|_| take("watch", &user).unwrap()).collect();
        assert_eq!(metrics.long_running.load(Ordering::Relaxed), 100);
        drop((a, watches));
        assert_eq!(metrics.long_running.load(Ordering::Relaxed), 0);
        take("get", &user).unwrap();
    }
}
