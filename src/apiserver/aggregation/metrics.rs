//! What the aggregation layer counts, under the names kube-apiserver gives it.

use super::openapi_v2::Part;
use crate::metrics::head;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// So many different things are counted under one name at most: APIServices may come and go for ever.
const MOST_SERIES: usize = 1000;
/// So much of a reason is shown, in characters: whoever may write APIServices makes it up.
const LONGEST_REASON: usize = 64;

/// All counters of the aggregation layer.
#[derive(Default)]
pub(crate) struct AggregationMetrics {
    /// Whether each APIService is available.
    available: Mutex<BTreeMap<String, bool>>,
    /// How often APIServices ceased to be, by name and reason.
    ceased: Mutex<BTreeMap<(String, String), u64>>,
    /// How often the aggregated discovery document was made.
    discovered: AtomicU64,
    openapi: Mutex<OpenApi>,
}

#[derive(Default)]
struct OpenApi {
    /// What the last document was made of: names of APIServices, and since when their parts are what they are.
    parts: BTreeMap<String, Instant>,
    /// How often another one was made, by APIService and reason.
    count: BTreeMap<(String, &'static str), u64>,
    /// How long that took the last time, by reason.
    took: BTreeMap<&'static str, Duration>,
}

fn count<R: Ord>(counters: &mut BTreeMap<(String, R), u64>, name: &str, reason: R) {
    let key = (name.to_owned(), reason);
    if counters.len() < MOST_SERIES || counters.contains_key(&key) {
        *counters.entry(key).or_default() += 1;
    }
}

impl AggregationMetrics {
    /// An APIService is what it is now; `reason` says why it is not available.
    pub(super) fn observe(&self, name: &str, is_available: bool, reason: &str) {
        let before = self.available.lock().insert(name.to_owned(), is_available);
        if before == Some(true) && !is_available {
            let reason = if reason.is_empty() { "UnknownReason" } else { reason };
            count(&mut self.ceased.lock(), name, reason.chars().take(LONGEST_REASON).collect());
        }
    }

    /// An APIService is gone.
    pub(super) fn forget(&self, name: &str) {
        self.available.lock().remove(name);
    }

    /// There are no other APIServices than these.
    pub(super) fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.available.lock().retain(|name, _| exists(name));
    }

    /// The aggregated discovery document was made.
    pub(crate) fn discovered(&self) {
        self.discovered.fetch_add(1, Ordering::Relaxed);
    }

    /// The OpenAPI v2 document was made of these parts.
    pub(crate) fn merged(&self, parts: &[Part], took: Duration) {
        let mut openapi = self.openapi.lock();
        let now: BTreeMap<String, Instant> = parts.iter().map(|part| (part.name.clone(), part.since)).collect();
        if now == openapi.parts {
            return;
        }
        let before = std::mem::replace(&mut openapi.parts, now.clone());
        let gone = before.keys().filter(|name| !now.contains_key(*name)).map(|name| (name, "delete"));
        let new = now.iter().filter_map(|(name, since)| match before.get(name) {
            None => Some((name, "add")),
            Some(old) if old != since => Some((name, "update")),
            Some(_) => None,
        });
        for (name, reason) in gone.chain(new) {
            count(&mut openapi.count, name, reason);
            openapi.took.insert(reason, took);
        }
    }

    /// Writes everything.
    pub(crate) fn render(&self, out: &mut String) {
        head(
            out,
            "aggregator_discovery_aggregation_count_total",
            "counter",
            "How often the aggregated discovery document was made.",
        );
        let _ =
            writeln!(out, "aggregator_discovery_aggregation_count_total {}", self.discovered.load(Ordering::Relaxed));
        let openapi = self.openapi.lock();
        let name = "aggregator_openapi_v2_regeneration_count";
        head(out, name, "counter", "OpenAPI v2 documents that another APIService's part made different.");
        for ((service, reason), n) in &openapi.count {
            let _ = writeln!(out, "{name}{{apiservice=\"{}\",reason=\"{reason}\"}} {n}", escaped(service));
        }
        let name = "aggregator_openapi_v2_regeneration_duration";
        head(out, name, "gauge", "How long the last of them took to make, in seconds.");
        for (reason, took) in &openapi.took {
            let _ = writeln!(out, "{name}{{reason=\"{reason}\"}} {}", took.as_secs_f64());
        }
        drop(openapi);
        let name = "aggregator_unavailable_apiservice";
        head(out, name, "gauge", "Whether an APIService is unavailable.");
        for (service, is_available) in self.available.lock().iter() {
            let _ = writeln!(out, "{name}{{name=\"{}\"}} {}", escaped(service), u8::from(!is_available));
        }
        let name = "aggregator_unavailable_apiservice_total";
        head(out, name, "counter", "How often APIServices became unavailable.");
        for ((service, reason), n) in self.ceased.lock().iter() {
            let _ = writeln!(out, "{name}{{name=\"{}\",reason=\"{}\"}} {n}", escaped(service), escaped(reason));
        }
    }
}

/// A label's value in Prometheus' text format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_schema::openapi::Foreign;
    use std::sync::Arc;

    fn text(metrics: &AggregationMetrics) -> String {
        let mut out = String::new();
        metrics.render(&mut out);
        out
    }

    fn has(metrics: &AggregationMetrics, line: &str) -> bool {
        text(metrics).lines().any(|l| l == line)
    }

    #[test]
    fn what_is_not_available_is_counted_when_it_ceases_to_be() {
        let m = AggregationMetrics::default();
        m.observe("v1.a", false, "New");
        m.observe("v1.b", true, "");
        assert!(has(&m, "aggregator_unavailable_apiservice{name=\"v1.a\"} 1"), "{}", text(&m));
        assert!(has(&m, "aggregator_unavailable_apiservice{name=\"v1.b\"} 0"));
        assert!(!text(&m).contains("New"), "it was not available before");
        for _ in 0..2 {
            m.observe("v1.a", true, "");
            m.observe("v1.a", false, "x\"\n}");
            m.observe("v1.a", false, "x\"\n}");
        }
        m.observe("v1.b", false, "");
        assert!(has(&m, r#"aggregator_unavailable_apiservice_total{name="v1.a",reason="x\"\n}"} 2"#), "{}", text(&m));
        assert!(has(&m, "aggregator_unavailable_apiservice_total{name=\"v1.b\",reason=\"UnknownReason\"} 1"));
        m.forget("v1.a");
        m.retain(|name| name != "v1.b");
        assert!(!text(&m).contains("aggregator_unavailable_apiservice{"));
        for n in 0..2 * MOST_SERIES {
            m.observe(&n.to_string(), true, "");
            m.observe(&n.to_string(), false, "r");
            m.forget(&n.to_string());
        }
        assert!(text(&m).lines().count() < MOST_SERIES + 20);
    }

    #[test]
    fn documents_are_counted_when_a_part_makes_them_others() {
        let m = AggregationMetrics::default();
        let part = |name: &str, since| Part { name: name.to_owned(), content: Arc::new(Foreign::default()), since };
        let (old, new) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let took = Duration::from_millis(250);
        m.merged(&[], took);
        assert!(!text(&m).contains("reason"));
        m.merged(&[part("v1.a", old), part("v1.b", old)], took);
        m.merged(&[part("v1.a", old), part("v1.b", old)], Duration::from_secs(9));
        m.merged(&[part("v1.a", new)], Duration::from_secs(2));
        for line in [
            "count{apiservice=\"v1.a\",reason=\"add\"} 1",
            "count{apiservice=\"v1.a\",reason=\"update\"} 1",
            "count{apiservice=\"v1.b\",reason=\"delete\"} 1",
            "duration{reason=\"add\"} 0.25",
            "duration{reason=\"update\"} 2",
        ] {
            assert!(has(&m, &format!("aggregator_openapi_v2_regeneration_{line}")), "{line}: {}", text(&m));
        }
    }
}
