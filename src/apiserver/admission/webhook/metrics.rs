//! Calls of webhooks in numbers, under kube-apiserver's names.

use crate::metrics::head;
use edge_registry::Operation;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Codes beyond are counted as this one.
const MOST_CODE: u16 = 600;

/// How a call ended; the numbers are HTTP status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Allowed,
    /// The webhook said no.
    Rejected(u16),
    /// It could not be asked, and the write is refused for that.
    CallFailed(u16),
    /// It could not be asked, and the write goes on.
    FailedOpen(u16),
    /// It was not asked, and the write is refused.
    ServerError(u16),
}

impl Outcome {
    fn code(self) -> u16 {
        match self {
            Self::Allowed => 200,
            Self::Rejected(c) | Self::CallFailed(c) | Self::FailedOpen(c) | Self::ServerError(c) => c.min(MOST_CODE),
        }
    }

    /// The type of error that a refusal is counted under.
    fn error(self) -> Option<&'static str> {
        match self {
            Self::Allowed | Self::FailedOpen(_) => None,
            Self::Rejected(_) => Some("no_error"),
            Self::CallFailed(_) => Some("calling_webhook_error"),
            Self::ServerError(_) => Some("apiserver_internal_error"),
        }
    }
}

#[derive(Debug, Default)]
struct Latency {
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: BTreeMap<String, u64>,
    rejections: BTreeMap<String, u64>,
    failed_open: BTreeMap<String, u64>,
    latencies: BTreeMap<String, Latency>,
}

/// All counters. The label sets are bounded by the webhooks that administrators have named.
#[derive(Debug, Default)]
pub(crate) struct HookMetrics(Mutex<Counters>);

impl HookMetrics {
    /// Counts a call.
    pub(super) fn observe(
        &self,
        name: &str,
        is_mutating: bool,
        operation: Operation,
        outcome: Outcome,
        took: Duration,
    ) {
        let operation = crate::admission::operation_name(operation);
        let kind = if is_mutating { "admit" } else { "validating" };
        let (code, rejected) = (outcome.code(), outcome.error().is_some());
        let name_and_type = format!("name={name:?},type=\"{kind}\"");
        let base = format!("{name_and_type},operation=\"{operation}\"");
        let mut counters = self.0.lock();
        *counters.requests.entry(format!("{base},code=\"{code}\",rejected=\"{rejected}\"")).or_default() += 1;
        if let Some(error) = outcome.error() {
            let labels = format!("{base},error_type=\"{error}\",rejection_code=\"{code}\"");
            *counters.rejections.entry(labels).or_default() += 1;
        }
        if matches!(outcome, Outcome::FailedOpen(_)) {
            *counters.failed_open.entry(name_and_type).or_default() += 1;
        }
        let latency = counters.latencies.entry(format!("{base},rejected=\"{rejected}\"")).or_default();
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|b| seconds <= *b).and_then(|i| latency.buckets.get_mut(i)) {
            *bucket += 1;
        }
        latency.sum += seconds;
        latency.count += 1;
    }

    /// Writes everything; nothing where no webhook was ever asked.
    pub(crate) fn render(&self, out: &mut String) {
        let counters = self.0.lock();
        for (name, help, counted) in [
            ("request_total", "Calls of admission webhooks.", &counters.requests),
            (
                "rejection_count",
                "Writes refused by admission webhooks, or for want of their answer.",
                &counters.rejections,
            ),
            (
                "fail_open_count",
                "Calls of admission webhooks that failed, and kept nothing from going on.",
                &counters.failed_open,
            ),
        ] {
            if counted.is_empty() {
                continue;
            }
            head(out, &format!("apiserver_admission_webhook_{name}"), "counter", help);
            for (labels, n) in counted {
                let _ = writeln!(out, "apiserver_admission_webhook_{name}{{{labels}}} {n}");
            }
        }
        const DURATION: &str = "apiserver_admission_webhook_admission_duration_seconds";
        if !counters.latencies.is_empty() {
            head(out, DURATION, "histogram", "How long admission webhooks took, in seconds.");
        }
        for (labels, latency) in &counters.latencies {
            let mut so_far = 0;
            for (bound, n) in BUCKETS.iter().zip(latency.buckets) {
                so_far += n;
                let _ = writeln!(out, "{DURATION}_bucket{{{labels},le=\"{bound}\"}} {so_far}");
            }
            let n = latency.count;
            let _ = writeln!(out, "{DURATION}_bucket{{{labels},le=\"+Inf\"}} {n}");
            let _ = writeln!(out, "{DURATION}_sum{{{labels}}} {}\n{DURATION}_count{{{labels}}} {n}", latency.sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_as_in_kubernetes() {
        let metrics = HookMetrics::default();
        let mut text = String::new();
        metrics.render(&mut text);
        assert_eq!(text, "");
        let count = |outcome| metrics.observe("a.b.c", true, Operation::Create, outcome, Duration::from_millis(7));
        for outcome in [
            Outcome::Allowed,
            Outcome::Allowed,
            Outcome::Rejected(403),
            Outcome::CallFailed(503),
            Outcome::FailedOpen(503),
            Outcome::ServerError(400),
        ] {
            count(outcome);
        }
        metrics.render(&mut text);
        let own = "name=\"a.b.c\",type=\"admit\"";
        for line in [
            format!("request_total{{{own},operation=\"CREATE\",code=\"200\",rejected=\"false\"}} 2"),
            format!("request_total{{{own},operation=\"CREATE\",code=\"503\",rejected=\"true\"}} 1"),
            format!("request_total{{{own},operation=\"CREATE\",code=\"503\",rejected=\"false\"}} 1"),
            format!("rejection_count{{{own},operation=\"CREATE\",error_type=\"no_error\",rejection_code=\"403\"}} 1"),
            format!(
                "rejection_count{{{own},operation=\"CREATE\",error_type=\"calling_webhook_error\",rejection_code=\"503\"}} 1"
            ),
            format!(
                "rejection_count{{{own},operation=\"CREATE\",error_type=\"apiserver_internal_error\",rejection_code=\"400\"}} 1"
            ),
            format!("fail_open_count{{{own}}} 1"),
            format!(
                "admission_duration_seconds_bucket{{{own},operation=\"CREATE\",rejected=\"false\",le=\"0.005\"}} 0"
            ),
            format!(
                "admission_duration_seconds_bucket{{{own},operation=\"CREATE\",rejected=\"false\",le=\"0.025\"}} 3"
            ),
            format!("admission_duration_seconds_count{{{own},operation=\"CREATE\",rejected=\"true\"}} 3"),
        ] {
            assert!(text.contains(&format!("apiserver_admission_webhook_{line}\n")), "{line}\n{text}");
        }
    }
}
