//! Work queues: per-key, deduplicating, rate limited, event-driven.
//!
//! A key that is added while it is being worked on is handed out again afterwards, never twice at once.

use crate::counters::Counters;
use futures::FutureExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay after a failure.
const FIRST_DELAY: Duration = Duration::from_millis(5);
/// Longest delay after repeated failures.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

struct Inner<T> {
    ready: VecDeque<T>,
    /// Waiting in `ready`, or to be queued again when its present work ends.
    dirty: HashSet<T>,
    working: HashSet<T>,
    later: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    sequence: u64,
}

/// A queue of keys for one controller.
pub struct WorkQueue<T> {
    inner: Mutex<Inner<T>>,
    changed: Notify,
}

impl<T: Clone + Eq + Hash> Default for WorkQueue<T> {
    fn default() -> Self {
        let inner = Inner {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            sequence: 0,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }
}

impl<T: Clone + Eq + Hash> Inner<T> {
    fn push(&mut self, key: T) {
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Moves what is due to the ready keys and says when the next one is.
    fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.push(key);
        }
        None
    }
}

impl<T: Clone + Eq + Hash> WorkQueue<T> {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a key, unless it waits already.
    pub fn add(&self, key: T) {
        self.inner.lock().push(key);
        self.changed.notify_one();
    }

    /// Adds a key after a delay; of several delays of the same key the shortest counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut inner = self.inner.lock();
        inner.sequence += 1;
        let at = (Instant::now() + delay, inner.sequence);
        match inner.due.get(&key).copied() {
            Some(known) if known <= at => return,
            Some(known) => {
                inner.later.remove(&known);
            }
            None => {}
        }
        inner.due.insert(key.clone(), at);
        inner.later.insert(at, key);
        drop(inner);
        self.changed.notify_one();
    }

    /// Adds a key after a delay that doubles with each failure since the last [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let failures = {
            let mut inner = self.inner.lock();
            let n = inner.failures.entry(key.clone()).or_default();
            *n += 1;
            *n
        };
        let delay = FIRST_DELAY.saturating_mul(1 << (failures - 1).min(20));
        self.add_after(key, delay.min(LONGEST_DELAY));
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &T) {
        self.inner.lock().failures.remove(key);
    }

    /// Waits for the next key. It must be given back with [`WorkQueue::done`].
    pub async fn next(&self) -> T {
        loop {
            let due = {
                let mut inner = self.inner.lock();
                let due = inner.promote(Instant::now());
                if let Some(key) = inner.ready.pop_front() {
                    inner.dirty.remove(&key);
                    inner.working.insert(key.clone());
                    if !inner.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                due
            };
            match due {
                None => self.changed.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// Ends the work on a key; if it was added meanwhile it is handed out again.
    pub fn done(&self, key: &T) {
        let mut inner = self.inner.lock();
        inner.working.remove(key);
        if inner.dirty.contains(key) {
            inner.ready.push_back(key.clone());
            drop(inner);
            self.changed.notify_one();
        }
    }
}

/// What a reconciliation wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Done,
    /// To be called again after this time, because something will then be due.
    After(Duration),
}

/// Works a queue off with `workers` concurrent reconciliations, for ever. A failure is logged and tried again with
/// back-off. How often that was is counted under the name ([`crate::reconcile_metrics`]).
pub async fn run_workers<T, E, F, Fut>(name: &'static str, queue: Arc<WorkQueue<T>>, workers: usize, reconcile: F)
where
    T: Clone + Eq + Hash + Display,
    E: Display,
    F: Fn(T) -> Fut + Clone,
    Fut: Future<Output = Result<Outcome, E>>,
{
    let counters = Counters::of(name);
    let worker = || {
        let (queue, reconcile, counters) = (queue.clone(), reconcile.clone(), counters.clone());
        async move {
            loop {
                let key = queue.next().await;
                // a bug in one reconciliation must not end the worker, nor lose the key
                match AssertUnwindSafe(reconcile(key.clone())).catch_unwind().await {
                    Ok(Ok(outcome)) => {
                        queue.forget(&key);
                        if let Outcome::After(delay) = outcome {
                            counters.postponed.fetch_add(1, Ordering::Relaxed);
                            queue.add_after(key.clone(), delay);
                        } else {
                            counters.succeeded.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok(Err(error)) => {
                        counters.failed.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(controller = name, %key, %error, "reconcile failed, trying again");
                        queue.add_rate_limited(key.clone());
                    }
                    Err(_) => {
                        counters.panicked.fetch_add(1, Ordering::Relaxed);
                        tracing::error!(controller = name, %key, "reconcile panicked, trying again");
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        }
    };
    futures::future::join_all((0..workers).map(|_| worker())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_worked_on_twice_at_once() {
        let q = WorkQueue::new();
        q.add(1);
        q.add(1);
        assert_eq!(q.next().await, 1);
        q.add(1);
        tokio::select! {
            biased;
            _ = q.next() => panic!("handed out while being worked on"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        q.done(&1);
        assert_eq!(q.next().await, 1);
        q.done(&1);
        assert!(q.inner.lock().ready.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_kept_and_the_shortest_counts() {
        let q = WorkQueue::new();
        let start = Instant::now();
        q.add_after("a", Duration::from_secs(10));
        q.add_after("a", Duration::from_secs(5));
        q.add_after("a", Duration::from_secs(20));
        q.add_after("b", Duration::from_secs(1));
        assert_eq!(q.next().await, "b");
        assert_eq!(start.elapsed().as_secs(), 1);
        assert_eq!(q.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!(q.inner.lock().later.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_until_forgotten() {
        let q = WorkQueue::new();
        let mut waits = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            q.add_rate_limited(1);
            q.next().await;
            q.done(&1);
            waits.push(start.elapsed().as_millis());
        }
        assert!(waits.windows(2).all(|w| w[0] < w[1]), "{waits:?}");
        q.forget(&1);
        let start = Instant::now();
        q.add_rate_limited(1);
        q.next().await;
        assert!(start.elapsed().as_millis() <= waits[0]);
    }
}
