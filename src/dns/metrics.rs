//! Counters of the server, in Prometheus' text format, under the names that CoreDNS gives them.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

/// The response codes that are counted each for itself; all others are one.
const CODES: [(ResponseCode, &str); 6] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::NotImp, "NOTIMP"),
];

/// Upper bounds of the histogram of durations, in seconds: CoreDNS' own, each twice the one before.
const SHORTEST: f64 = 0.000_25;
const BUCKETS: usize = 16;

/// How long answers took.
#[derive(Debug, Default)]
struct Durations {
    /// Answers by bucket, not cumulative; the last one is for all that took longer.
    buckets: [AtomicU64; BUCKETS + 1],
    nanoseconds: AtomicU64,
}

impl Durations {
    fn bound(bucket: usize) -> f64 {
        SHORTEST * f64::from(1_u32 << bucket)
    }

    fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = (0..BUCKETS).find(|bucket| seconds <= Self::bound(*bucket)).unwrap_or(BUCKETS);
        count(&self.buckets[bucket]);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn text(&self, name: &str, help: &str) -> String {
        let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
        let mut all = 0;
        for (bucket, counter) in self.buckets.iter().enumerate() {
            all += counter.load(Ordering::Relaxed);
            let bound = if bucket < BUCKETS { Self::bound(bucket).to_string() } else { "+Inf".to_owned() };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {all}");
        }
        let sum = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {all}");
        text
    }
}

/// What a server has done since it started.
#[derive(Debug, Default)]
pub struct Metrics {
    durations: Durations,
    pub(crate) udp: AtomicU64,
    pub(crate) tcp: AtomicU64,
    responses: [AtomicU64; CODES.len() + 1],
    pub(crate) hits: AtomicU64,
    pub(crate) denials: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    /// Counts an answer and how long it took since the query came.
    pub(crate) fn answered(&self, code: ResponseCode, since: Instant) {
        self.durations.add(since.elapsed());
        let place = CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len());
        count(&self.responses[place]);
    }

    /// All counters as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut family = |name: &str, help: &str, series: &[(String, &AtomicU64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, counter) in series {
                let _ = writeln!(text, "{name}{labels} {}", counter.load(Ordering::Relaxed));
            }
        };
        let label = |key: &str, value: &str| format!("{{{key}=\"{value}\"}}");
        family(
            "coredns_dns_requests_total",
            "Queries by transport.",
            &[(label("proto", "udp"), &self.udp), (label("proto", "tcp"), &self.tcp)],
        );
        let codes = CODES.iter().map(|(_, name)| *name).chain(["other"]);
        let responses: Vec<_> = codes.zip(&self.responses).map(|(name, n)| (label("rcode", name), n)).collect();
        family("coredns_dns_responses_total", "Answers by response code.", &responses);
        family(
            "coredns_cache_hits_total",
            "Answers of other name servers that were remembered.",
            &[(label("type", "success"), &self.hits), (label("type", "denial"), &self.denials)],
        );
        family(
            "coredns_cache_misses_total",
            "Questions for other name servers whose answer was not known.",
            &[(String::new(), &self.misses)],
        );
        family(
            "coredns_cache_served_stale_total",
            "Old answers that were given because no name server had a newer one.",
            &[(String::new(), &self.stale)],
        );
        family("coredns_forward_requests_total", "Queries to other name servers.", &[(String::new(), &self.forwarded)]);
        family(
            "coredns_forward_failures_total",
            "Queries to other name servers without an answer.",
            &[(String::new(), &self.failed)],
        );
        text += &self.durations.text("coredns_dns_request_duration_seconds", "How long answers took.");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let durations = Durations::default();
        for micros in [1, 250, 251, 5_000_000, 60_000_000] {
            durations.add(Duration::from_micros(micros));
        }
        let text = durations.text("d", "h");
        for line in [
            "d_bucket{le=\"0.00025\"} 2",
            "d_bucket{le=\"0.0005\"} 3",
            "d_bucket{le=\"4.096\"} 3",
            "d_bucket{le=\"8.192\"} 4",
            "d_bucket{le=\"+Inf\"} 5",
            "d_count 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
