//! Processor time of programs: that a program which computes for long leaves its thread to others, and, where many pods share a
//! process, how much each of them uses and may use.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tokio::time::Sleep;

use crate::ticker::Ticker;

/// What may be used at once after a time without use, as the kernel's groups have it.
const PERIOD: Duration = Duration::from_millis(100);

/// Counts, and limits if it has a limit.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Ticks while a program computes.
    ticker: Arc<Ticker>,
    counts: bool,
    used: AtomicU64,
    limit: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    /// Thousandths of a processor.
    millis: u32,
    account: Mutex<Account>,
}

#[derive(Debug)]
struct Account {
    /// Nanoseconds that may be used now; below zero what was used too much.
    left: i64,
    at: Instant,
}

impl Meter {
    /// For a program with a process of its own, where the kernel counts.
    pub(crate) fn none(ticker: Ticker) -> Arc<Self> {
        Arc::new(Self { ticker: Arc::new(ticker), counts: false, used: AtomicU64::new(0), limit: None })
    }

    /// One that counts, and limits to so many thousandths of a processor.
    pub(crate) fn new(ticker: Arc<Ticker>, millis: Option<u32>) -> Arc<Self> {
        let limit = millis.map(|millis| Limit {
            millis: millis.max(1),
            account: Mutex::new(Account { left: 0, at: Instant::now() }),
        });
        Arc::new(Self { ticker, counts: true, used: AtomicU64::new(0), limit })
    }

    /// Nanoseconds that were used.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The same future, counted, and going on only as fast as the limit allows.
    pub(crate) fn count<F: Future>(self: &Arc<Self>, future: F) -> Counted<F> {
        Counted { future: Box::pin(future), meter: Arc::clone(self), pause: None }
    }

    fn charge(&self, nanos: u64) {
        self.used.fetch_add(nanos, Ordering::Relaxed);
        if let Some(limit) = &self.limit {
            let mut account = limit.account.lock().unwrap_or_else(PoisonError::into_inner);
            account.left = account.left.saturating_sub(i64::try_from(nanos).unwrap_or(i64::MAX));
        }
    }

    /// How long to wait until something may be used again.
    fn wait(&self) -> Option<Duration> {
        let limit = self.limit.as_ref()?;
        let mut account = limit.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.refill(limit.millis, Instant::now());
        let missing = u64::try_from(account.left.checked_neg()?).ok()?;
        Some(Duration::from_nanos(missing.saturating_mul(1000) / u64::from(limit.millis) + 1))
    }
}

impl Account {
    fn refill(&mut self, millis: u32, now: Instant) {
        let share = |time: Duration| i64::try_from(time.as_nanos() * u128::from(millis) / 1000).unwrap_or(i64::MAX);
        let got = share(now.saturating_duration_since(self.at));
        self.left = self.left.saturating_add(got).min(share(PERIOD));
        self.at = now;
    }
}

/// See [`Meter::count`].
pub(crate) struct Counted<F> {
    future: Pin<Box<F>>,
    meter: Arc<Meter>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.meter.counts {
            let _computing = this.meter.ticker.computing();
            return this.future.as_mut().poll(cx);
        }
        loop {
            if let Some(pause) = &mut this.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            match this.meter.wait() {
                Some(wait) => this.pause = Some(Box::pin(tokio::time::sleep(wait))),
                None => break,
            }
        }
        let _computing = this.meter.ticker.computing();
        let before = thread_time();
        let polled = this.future.as_mut().poll(cx);
        this.meter.charge(thread_time().saturating_sub(before));
        polled
    }
}

/// Nanoseconds that this thread has computed.
fn thread_time() -> u64 {
    // This clock cannot fail on Linux; if it did, nothing would be counted.
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_fill_with_time_up_to_a_period() {
        let start = Instant::now();
        let mut account = Account { left: 0, at: start };
        account.refill(250, start + Duration::from_millis(4));
        assert_eq!(account.left, 1_000_000);
        account.refill(250, start + Duration::from_secs(60));
        assert_eq!(account.left, 25_000_000, "no more than of one period");
        account.left = -50_000_000;
        account.refill(250, start + Duration::from_secs(60) + Duration::from_millis(100));
        assert_eq!(account.left, -25_000_000);
    }

    #[tokio::test]
    async fn what_uses_too_much_waits_until_it_may_go_on() {
        let engine = wasmtime::Engine::default();
        let meter = Meter::new(Arc::new(Ticker::start(&engine).expect("a thread")), Some(200));
        let begun = Instant::now();
        // Some 40 ms of computing, at a fifth of a processor.
        let computing = meter.count(async {
            for _ in 0..20 {
                let from = thread_time();
                while thread_time() - from < 2_000_000 {
                    std::hint::black_box(0);
                }
                tokio::task::yield_now().await;
            }
        });
        computing.await;
        assert!(meter.used() >= 40_000_000, "{}", meter.used());
        // 200 ms, less what one turn may use beyond.
        assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
    }
}
