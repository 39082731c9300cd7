//! One batch is sent, again and again, as Kubernetes does it: any failure may pass, so none ends it but too many of them.

use super::batch::Batch;
use super::kubeconfig::{KubeconfigError, Receiver, Settings};
use crate::outgoing::{CallError, exchange, success};
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a batch is sent at most.
const ATTEMPTS: u32 = 5;
/// How much longer each pause is than the one before, and by how much of itself at most it is longer still.
const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.2;
/// How long one attempt may take, which the receiver is told.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often, within an attempt, the receiver may ask for a moment.
const MOMENTS: u32 = 10;
/// The longest answer that is read; what it says beyond its code is for the log only.
const LONGEST: usize = 1 << 20;
/// The kubeconfig and its files are read again when that is so long ago: tokens and certificates are replaced by others.
const FRESH: Duration = Duration::from_secs(60);

/// Knows the receiver.
pub(super) struct Sender {
    config_file: PathBuf,
    initial_backoff: Duration,
    known: Mutex<Known>,
    /// Events that did not arrive.
    failed: AtomicU64,
    /// An attempt failed, and none succeeded since.
    is_troubled: AtomicBool,
    /// Events were lost, and none arrived since.
    is_losing: AtomicBool,
}

struct Known {
    settings: Settings,
    receiver: Arc<Receiver>,
    read: Instant,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("config_file", &self.config_file).finish_non_exhaustive()
    }
}

impl Sender {
    pub(super) fn open(config_file: PathBuf, initial_backoff: Duration) -> Result<Self, KubeconfigError> {
        let settings = Settings::read(&config_file)?;
        let receiver = Arc::new(settings.receiver(&config_file)?);
        let known = Mutex::new(Known { settings, receiver, read: Instant::now() });
        let (failed, is_troubled, is_losing) = Default::default();
        Ok(Self { config_file, initial_backoff, known, failed, is_troubled, is_losing })
    }

    /// Sends a batch until it has arrived or there were too many failures; whether it has arrived.
    pub(super) async fn deliver(self: Arc<Self>, batch: Batch) -> bool {
        let events = batch.events;
        let (body, _room) = batch.into_body();
        let mut pause = self.initial_backoff;
        let mut attempt = 1;
        loop {
            let receiver = self.receiver().await;
            let error = match tokio::time::timeout(PATIENCE, send(&receiver, &body)).await {
                Ok(Ok(())) => {
                    self.is_losing.store(false, Ordering::Relaxed);
                    if self.is_troubled.swap(false, Ordering::Relaxed) {
                        tracing::info!("the audit webhook takes events again");
                    }
                    return true;
                }
                Ok(Err(error)) => error,
                Err(_) => CallError::Deadline { url: receiver.url.clone() },
            };
            if attempt == ATTEMPTS {
                self.lose(events, &error);
                return false;
            }
            // once, not for each attempt
            if !self.is_troubled.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "audit events could not be sent; they will be sent again");
            }
            tokio::time::sleep(times(pause, 1.0 + JITTER * random())).await;
            pause = times(pause, FACTOR);
            attempt += 1;
        }
    }

    /// Events have not arrived, and never will.
    pub(super) fn lose(&self, events: u64, error: &dyn Display) {
        self.failed.fetch_add(events, Ordering::Relaxed);
        if !self.is_losing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, events, "audit events are lost: the webhook does not take them");
        }
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The receiver, as the files say it that were read a short time ago.
    async fn receiver(self: &Arc<Self>) -> Arc<Receiver> {
        let is_old = {
            let mut known = self.known.lock();
            let is_old = known.read.elapsed() >= FRESH;
            if is_old {
                // nobody else has to
                known.read = Instant::now();
            }
            is_old
        };
        if is_old {
            let sender = self.clone();
            let read = move || match sender.refresh() {
                Ok(()) => {}
                // what was good before may still be
                Err(error) => tracing::warn!(%error, "the audit webhook's configuration is no good any more"),
            };
            let _ = tokio::task::spawn_blocking(read).await;
        }
        self.known.lock().receiver.clone()
    }

    fn refresh(&self) -> Result<(), KubeconfigError> {
        let settings = Settings::read(&self.config_file)?;
        // the same: its open connections are kept
        if settings != self.known.lock().settings {
            let receiver = Arc::new(settings.receiver(&self.config_file)?);
            let mut known = self.known.lock();
            (known.settings, known.receiver) = (settings, receiver);
        }
        Ok(())
    }
}

/// One attempt, within which the receiver may ask for a moment.
async fn send(receiver: &Receiver, body: &Bytes) -> Result<(), CallError> {
    let url = format!("{}?timeout={}s", receiver.url, PATIENCE.as_secs());
    let mut moments = 0;
    loop {
        let answer = exchange(&receiver.client, &url, receiver.headers.clone(), body.clone(), LONGEST).await?;
        match retry_after(&answer) {
            Some(moment) if moments < MOMENTS => tokio::time::sleep(moment).await,
            _ => return success(&answer).map(|_| ()),
        }
        moments += 1;
    }
}

/// How long the receiver wants to be left alone, before it is asked for the same.
fn retry_after(answer: &Response<Bytes>) -> Option<Duration> {
    let status = answer.status();
    let may_pass = status == StatusCode::TOO_MANY_REQUESTS || status.as_u16() >= 500;
    let seconds = answer.headers().get(RETRY_AFTER).filter(|_| may_pass)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// What is too long for a time is the longest.
fn times(pause: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(pause.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// Something from 0 to 1, which need not be secret.
fn random() -> f64 {
    f64::from(u32::try_from(RandomState::new().hash_one(0u8) >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_failures_that_may_pass_are_waited_for() {
        for (code, header, want) in [
            (429, Some("3"), Some(3)),
            (500, Some("0"), Some(0)),
            (503, Some("7"), Some(7)),
            (503, None, None),
            (503, Some("soon"), None),
            (503, Some("-1"), None),
            (400, Some("3"), None),
            (200, Some("3"), None),
        ] {
            let mut answer = Response::builder().status(code);
            if let Some(header) = header {
                answer = answer.header(RETRY_AFTER, header);
            }
            let answer = answer.body(Bytes::new()).unwrap();
            assert_eq!(retry_after(&answer).map(|t| t.as_secs()), want, "{code} {header:?}");
        }
        for _ in 0..100 {
            assert!((0.0..=1.0).contains(&random()));
        }
    }

    #[test]
    fn what_the_kubeconfig_says_may_change() {
        let dir = tempfile::tempdir().unwrap();
        let (file, token) = (dir.path().join("kubeconfig"), dir.path().join("token"));
        let text = "{current-context: c, contexts: [{name: c, context: {cluster: a, user: u}}],
            clusters: [{name: a, cluster: {server: 'http://a'}}], users: [{name: u, user: {tokenFile: token}}]}";
        std::fs::write(&file, text).unwrap();
        std::fs::write(&token, "one").unwrap();
        let sender = Sender::open(file, Duration::ZERO).unwrap();
        let receiver = || sender.known.lock().receiver.clone();
        let first = receiver();
        sender.refresh().unwrap();
        assert!(Arc::ptr_eq(&first, &receiver()), "nothing has changed");
        std::fs::write(&token, "two").unwrap();
        sender.refresh().unwrap();
        assert_eq!(
            (&first.headers["authorization"], &receiver().headers["authorization"]),
            (&"Bearer one".parse().unwrap(), &"Bearer two".parse().unwrap())
        );
        // what is no good changes nothing
        std::fs::write(&token, "").unwrap();
        assert!(sender.refresh().is_err());
        assert_eq!(receiver().headers["authorization"], "Bearer two");
    }
}
