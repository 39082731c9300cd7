//! Who of several servers does what only one may do: whoever holds a Lease, as Kubernetes' components agree among themselves.
//!
//! The holder renews the Lease; the others watch it, and take it when it is released, or has not changed for its time by
//! their own clocks (those of other machines may be wrong).

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::{Client, Error};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// A Lease that has not changed for so long is anybody's (kube-controller-manager's value, as the next one).
const DURATION: Duration = Duration::from_secs(15);
/// Who could not renew for so long stops: before somebody else may begin.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(5);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);
/// A watch of the Lease ends after so many seconds, and begins again.
const WATCH_SECONDS: u32 = 280;
const NAMESPACE: &str = "kube-system";

/// One of those who want to hold a Lease.
pub struct Candidate {
    api: Api<Lease>,
    name: &'static str,
    /// What nobody else calls himself.
    identity: String,
    /// Whose Leases are this one's without waiting: who has certainly ended.
    predecessor: Option<String>,
    /// The Lease as it was written last, while it is held.
    held: Mutex<Option<Lease>>,
}

impl Candidate {
    /// One for the Lease `name` in `kube-system`. `identity` must be the process's own, after a restart another one;
    /// `predecessor` is the identity of a process that is known to have ended.
    pub fn new(client: Client, name: &'static str, identity: String, predecessor: Option<String>) -> Self {
        Self { api: Api::namespaced(client, NAMESPACE), name, identity, predecessor, held: Mutex::new(None) }
    }

    /// Runs something whenever the Lease is held, and drops it when it is lost, for ever.
    pub async fn lead<F: Future<Output = ()>>(&self, run: impl Fn() -> F) {
        loop {
            self.win().await;
            tracing::info!(lease = self.name, "leading");
            tokio::select! {
                () = run() => {}
                () = self.keep() => tracing::warn!(lease = self.name, "not leading any more"),
            }
        }
    }

    /// Gives the Lease back, if it is held, so that another one can take it at once. What was run must have ended.
    ///
    /// # Errors
    /// When it could not be written; then it is free after 15 s.
    pub async fn release(&self) -> Result<(), Error> {
        let Some(mut lease) = self.held.lock().take() else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        (spec.holder_identity, spec.renew_time) = (Some(String::new()), Some(MicroTime(Timestamp::now())));
        spec.lease_duration_seconds = Some(1);
        self.api.replace(self.name, &PostParams::default(), &lease).await.map(drop)
    }

    /// Returns when the Lease is held.
    async fn win(&self) {
        // what was seen last, and since when
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(lease = self.name, %error, "cannot look at the lease");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Takes the Lease, or waits until it may be worth another attempt.
    async fn attempt(&self, seen: &mut Option<(String, Instant)>) -> Result<bool, Error> {
        let Some(lease) = self.api.get_opt(self.name).await? else {
            return self.written(self.api.create(&PostParams::default(), &self.taken(None)).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version.clone(), Instant::now())).1,
        };
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
        let seconds = spec.and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
        let end = since + seconds.map_or(DURATION, Duration::from_secs);
        let is_free = holder.is_empty() || holder == self.identity || self.predecessor.as_deref() == Some(holder);
        if is_free || end <= Instant::now() {
            return self.written(self.api.replace(self.name, &PostParams::default(), &self.taken(Some(lease))).await);
        }
        tokio::select! {
            () = tokio::time::sleep_until(end) => {}
            changed = self.changed(&version) => changed?,
        }
        Ok(false)
    }

    /// Returns when the Lease changes.
    async fn changed(&self, version: &str) -> Result<(), Error> {
        let field = format!("metadata.name={}", self.name);
        let params = WatchParams::default().fields(&field).timeout(WATCH_SECONDS);
        let mut events = self.api.watch(&params, version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            if !matches!(event, WatchEvent::Bookmark(_)) {
                break;
            }
        }
        Ok(())
    }

    /// Renews the Lease; returns when it is lost.
    async fn keep(&self) {
        let mut renewed = Instant::now();
        let mut wait = RENEWAL;
        loop {
            tokio::time::sleep(wait).await;
            let Some(lease) = self.held.lock().clone() else { return };
            let left = (renewed + DEADLINE).saturating_duration_since(Instant::now());
            let renewal = async {
                let result = self.api.replace(self.name, &PostParams::default(), &self.taken(Some(lease))).await;
                self.written(result)
            };
            match tokio::time::timeout(left, renewal).await {
                Ok(Ok(true)) => (renewed, wait) = (Instant::now(), RENEWAL),
                // somebody has changed it, perhaps only its labels
                Ok(Ok(false)) => match self.api.get(self.name).await {
                    Ok(lease) if self.is_holder(&lease) => {
                        *self.held.lock() = Some(lease);
                        wait = Duration::ZERO;
                    }
                    Ok(_) => break,
                    Err(_) => wait = RETRY,
                },
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "not renewed, trying again");
                    wait = RETRY;
                }
                Err(_) => break,
            }
            if renewed.elapsed() >= DEADLINE {
                break;
            }
        }
        *self.held.lock() = None;
    }

    fn is_holder(&self, lease: &Lease) -> bool {
        lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref()) == Some(&self.identity)
    }

    /// Notes what was written; `false` when somebody else was faster.
    fn written(&self, result: Result<Lease, Error>) -> Result<bool, Error> {
        match result {
            Ok(lease) => {
                *self.held.lock() = Some(lease);
                Ok(true)
            }
            Err(Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The Lease as it is when this one holds it.
    fn taken(&self, lease: Option<Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let mut lease = lease.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.to_owned()), ..ObjectMeta::default() },
            spec: None,
        });
        let is_new = !self.is_holder(&lease);
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        if is_new {
            let before = spec.holder_identity.replace(self.identity.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |n| n + i32::from(before.is_some())));
        }
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        lease
    }
}
