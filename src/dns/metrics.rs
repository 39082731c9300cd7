//! Counters of the server, in Prometheus' text format, under the names that CoreDNS gives them.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// What a server has done since it started.
#[derive(Debug, Default)]
pub struct Metrics {
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
    pub(crate) fn answered(&self, code: ResponseCode) {
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
        text
    }
}
