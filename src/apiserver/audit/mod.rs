//! The audit log: who asked for what, and what came of it, as Kubernetes' API server tells it, to a file, to a webhook or to both.
//!
//! Without a policy none of it exists, and a request pays for one look at an `Option`. With one, the chain begins a [`Record`] as soon as it is known
//! who asks; what is on the way of the request (decoding, admission, encoding) adds what it knows through functions of this module, which do nothing
//! outside of a request that is told of. The last holder of a record that lets it go tells its end: the chain, the body that is still being
//! sent, or the connection that a request became.

mod event;
mod log;
mod policy;
mod record;
mod webhook;

pub use log::LogOptions;
pub use policy::PolicyError;
pub use webhook::{BatchOptions, KubeconfigError, ThrottleOptions, WebhookMode, WebhookOptions};

use crate::encode::Payload;
use crate::request_info::RequestInfo;
use bytes::Bytes;
use edge_api::{Object, Reason, Status, UserInfo};
use event::Event;
use http::HeaderMap;
use log::Log;
pub(crate) use policy::Stage;
use policy::{Level, Policy};
pub(crate) use record::Record;
use serde_json::Value;
use std::cell::RefCell;
use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
pub(crate) use webhook::Stored;
use webhook::Webhook;

/// Why there can be no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The log cannot be opened.
    #[error("audit log {path}: {error}")]
    Log {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It cannot be said whom to tell.
    #[error("audit webhook: {0}")]
    Webhook(#[from] KubeconfigError),
}

/// Where events go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuditOptions {
    /// To a file.
    pub log: Option<LogOptions>,
    /// To somebody elsewhere.
    pub webhook: Option<WebhookOptions>,
}

/// How large events may be, in bytes of their JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Of events that are sent together.
    pub max_batch: usize,
    /// Of one. A larger one loses what was submitted and answered, and if it is still larger is lost.
    pub max_event: usize,
}

/// The audit log of a server.
#[derive(Debug)]
pub struct Audit {
    policy: Policy,
    log: Option<Log>,
    webhook: Option<Webhook>,
    events: AtomicU64,
    /// Events that were too large.
    too_large: AtomicU64,
    /// Requests that were refused because of an event.
    rejected: AtomicU64,
    /// Requests of each level.
    levels: [AtomicU64; 4],
}

const LEVELS: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

impl Audit {
    /// Reads a policy (YAML), opens the log and gets ready for the webhook. With a webhook it must be called within the runtime that sends.
    ///
    /// # Errors
    /// When one of them is no good.
    pub fn open(policy: &str, options: AuditOptions) -> Result<Self, AuditError> {
        let policy = Policy::parse(policy)?;
        let open = |options: LogOptions| {
            let path = options.path.display().to_string();
            Log::open(options).map_err(|error| AuditError::Log { path, error })
        };
        let log = options.log.map(open).transpose()?;
        let webhook = options.webhook.map(Webhook::open).transpose()?;
        let (events, too_large, rejected, levels) = Default::default();
        Ok(Self { policy, log, webhook, events, too_large, rejected, levels })
    }

    /// Waits until what was told is written and sent, or the time is up.
    pub async fn flush(&self, patience: Duration) {
        let written = async {
            if let Some(log) = &self.log {
                // a thread that is gone tells nobody
                let _ = log.flush().await;
            }
        };
        let sent = async {
            if let Some(webhook) = &self.webhook {
                webhook.flush().await;
            }
        };
        if tokio::time::timeout(patience, async { tokio::join!(written, sent) }).await.is_err() {
            tracing::warn!("not all audit events could be told in time");
        }
    }

    /// Hands an event to all that are told.
    fn store(&self, event: &mut Event) -> Stored {
        self.events.fetch_add(1, Ordering::Relaxed);
        let Some(json) = event.json() else { return Stored::Settled(true) };
        if let Some(log) = &self.log
            && let Some(json) = self.fitting(event, &json, log.truncation.as_ref())
        {
            log.write(event::line(&json));
        }
        let Some(webhook) = &self.webhook else { return Stored::Settled(true) };
        let json = self.fitting(event, &json, webhook.truncation.as_ref());
        // as in Kubernetes nothing waits for one that is too large
        json.map_or(Stored::Settled(true), |json| webhook.hand_over(&json))
    }

    /// As much of an event as may be told; `None`, and counted, when that is nothing.
    fn fitting(&self, event: &mut Event, json: &Bytes, limit: Option<&Truncation>) -> Option<Bytes> {
        let fits = |json: &Bytes| limit.is_none_or(|limit| event::line_len(json) <= limit.max_event);
        if fits(json) {
            return Some(json.clone());
        }
        let shorter = event.json_without_objects().filter(fits);
        if shorter.is_none() {
            self.too_large.fetch_add(1, Ordering::Relaxed);
            tracing::error!(audit_id = event.audit_id, stage = event.stage, "an audit event is too large, and lost");
        }
        shorter
    }

    /// Writes the metrics.
    pub(crate) fn render(&self, out: &mut String) {
        use crate::metrics::head;
        head(out, "apiserver_audit_event_total", "counter", "Audit events made.");
        let _ = writeln!(out, "apiserver_audit_event_total {}", self.events.load(Ordering::Relaxed));
        head(out, "apiserver_audit_error_total", "counter", "Audit events that were lost.");
        for (plugin, lost) in self.lost() {
            let _ = writeln!(out, "apiserver_audit_error_total{{plugin=\"{plugin}\"}} {lost}");
        }
        head(out, "apiserver_audit_level_total", "counter", "Requests by what the audit policy says of them.");
        for (level, count) in LEVELS.iter().zip(&self.levels) {
            let (level, count) = (level.name(), count.load(Ordering::Relaxed));
            let _ = writeln!(out, "apiserver_audit_level_total{{level=\"{level}\"}} {count}");
        }
        head(out, "apiserver_audit_requests_rejected_total", "counter", "Requests refused because of the audit log.");
        let _ = writeln!(out, "apiserver_audit_requests_rejected_total {}", self.rejected.load(Ordering::Relaxed));
    }

    /// Events that were lost, by the names of the parts of Kubernetes that would have lost them.
    fn lost(&self) -> Vec<(&'static str, u64)> {
        let mut lost = Vec::new();
        lost.extend(self.log.as_ref().map(|log| ("log", log.failed())));
        if let Some((unsent, failed)) = self.webhook.as_ref().map(Webhook::lost) {
            lost.extend(unsent.map(|unsent| ("buffered", unsent)));
            lost.push(("webhook", failed));
        }
        let limits = [self.log.as_ref().map(|l| &l.truncation), self.webhook.as_ref().map(|w| &w.truncation)];
        if limits.into_iter().flatten().any(Option::is_some) {
            lost.push(("truncate", self.too_large.load(Ordering::Relaxed)));
        }
        lost
    }
}

/// What a request says of itself, before it is known whose it is.
pub(crate) struct Seen {
    id: String,
    uri: String,
    agent: String,
    sources: Vec<String>,
    received: jiff::Timestamp,
}

/// What is kept of a user agent, in bytes.
const LONGEST_AGENT: usize = 1024;

impl Seen {
    /// `remote`: where the connection comes from; nowhere, when it is this process.
    pub(crate) fn new(id: &str, uri: &http::Uri, headers: &HeaderMap, remote: Option<std::net::IpAddr>) -> Self {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let mut agent = text("user-agent").to_owned();
        if agent.len() > LONGEST_AGENT {
            // header values are ASCII here
            agent.truncate(LONGEST_AGENT);
            agent.push_str("...TRUNCATED");
        }
        let remote = remote.map_or(std::net::Ipv4Addr::LOCALHOST.into(), |ip| ip.to_canonical());
        let mut sources: Vec<std::net::IpAddr> =
            text("x-forwarded-for").split(',').filter_map(|ip| ip.trim().parse().ok()).collect();
        let real = text("x-real-ip").trim().parse().ok();
        for further in
            real.into_iter().filter(|ip| !sources.contains(ip)).collect::<Vec<_>>().into_iter().chain([remote])
        {
            if sources.last() != Some(&further) {
                sources.push(further);
            }
        }
        Self {
            id: id.to_owned(),
            uri: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            agent,
            sources: sources.iter().map(ToString::to_string).collect(),
            received: jiff::Timestamp::now(),
        }
    }
}

tokio::task_local! {
    static CURRENT: RefCell<Option<Arc<Record>>>;
}

/// Runs the work of one request, which may begin a record; what it came to, and the record.
pub(crate) async fn scope<F: Future>(work: F) -> (F::Output, Option<Arc<Record>>) {
    CURRENT
        .scope(RefCell::default(), async {
            let output = work.await;
            let record = CURRENT.with(RefCell::take);
            (output, record)
        })
        .await
}

/// The record of the request that is being answered.
pub(crate) fn current() -> Option<Arc<Record>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// Begins the record of this request, when the policy wants one. `user`: nobody, when it is not known who asks.
pub(crate) fn begin(
    audit: &Arc<Audit>,
    seen: Seen,
    user: Option<&UserInfo>,
    info: &RequestInfo,
) -> Option<Arc<Record>> {
    let verdict = audit.policy.judge(user, info).clone();
    if let Some(count) = LEVELS.iter().position(|l| *l == verdict.level).and_then(|i| audit.levels.get(i)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    if verdict.level == Level::None {
        return None;
    }
    let record = Arc::new(Record::new(audit.clone(), verdict, seen, user, info));
    let _ = CURRENT.try_with(|current| *current.borrow_mut() = Some(record.clone()));
    Some(record)
}

/// Notes something about the request; what is noted first stays.
pub(crate) fn annotate(key: &str, value: &str) {
    if let Some(record) = current() {
        record.annotate(key, value, false);
    }
}

/// The same; several values are put one after the other.
pub(crate) fn annotate_also(key: &str, value: &str) {
    if let Some(record) = current() {
        record.annotate(key, value, true);
    }
}

/// Notes the object that was submitted.
pub(crate) fn submitted(object: &Object) {
    if let Some(record) = current() {
        record.submitted(object);
    }
}

/// Notes a document that was submitted and is no object: a patch.
pub(crate) fn submitted_document(document: &Value) {
    if let Some(record) = current() {
        record.submitted_document(document.clone());
    }
}

/// Notes what is answered.
pub(crate) fn answered(payload: &Payload) {
    if let Some(record) = current() {
        record.answered(payload);
    }
}

/// Tells that a request was received.
///
/// # Errors
/// When that has to be told, and cannot be: the request is refused, and nothing more is told of it.
pub(crate) async fn received(record: &Record, audit: &Audit, uri: &http::Uri) -> Result<(), Status> {
    if record.tell(Stage::RequestReceived).wait().await {
        return Ok(());
    }
    audit.rejected.fetch_add(1, Ordering::Relaxed);
    end(record);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let message = format!("Internal Server Error: {path:?}: failed to store audit event");
    Err(Status::new(500, Reason::InternalError, message))
}

/// Tells of a request whose credentials do not hold.
pub(crate) async fn refused(audit: &Arc<Audit>, seen: Seen, info: &RequestInfo, attempted: &str) {
    if let Some(record) = begin(audit, seen, None, info) {
        let status =
            Status { message: format!("Authentication failed, attempted: {attempted}"), ..Status::unauthorized() };
        record.failed(&status);
        // it is refused already
        let _ = record.tell(Stage::ResponseStarted).wait().await;
        end(&record);
    }
}

/// Nothing more is told, and what comes adds nothing.
fn end(record: &Record) {
    record.close();
    let _ = CURRENT.try_with(RefCell::take);
}
