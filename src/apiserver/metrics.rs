//! The server's own metrics, in Prometheus' text format, under the names kube-apiserver gives them.
//!
//! One map of series behind one short lock: a request costs one look-up. The label sets are bounded, because only known
//! resources and verbs become labels.

use crate::request_info::RequestInfo;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0];

/// All counters of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Mutex<HashMap<String, Series>>,
    /// Requests being answered that change nothing.
    pub(crate) in_flight_read_only: AtomicI64,
    /// Requests being answered that change something.
    pub(crate) in_flight_mutating: AtomicI64,
    /// Watches, logs, execs and proxied connections that are open.
    pub(crate) long_running: AtomicI64,
    started: SystemTime,
}

#[derive(Debug, Default)]
struct Series {
    by_code: Vec<(u16, u64)>,
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

/// The size of one kind's collection in the store.
#[derive(Clone, Debug)]
pub(crate) struct ObjectCount {
    /// `pods`, or `deployments.apps`.
    pub(crate) resource: String,
    /// How many objects.
    pub(crate) count: usize,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Mutex::default(),
            in_flight_read_only: AtomicI64::new(0),
            in_flight_mutating: AtomicI64::new(0),
            long_running: AtomicI64::new(0),
            started: SystemTime::now(),
        }
    }

    /// Counts a request that was answered; `known` says that its resource exists.
    pub(crate) fn observe(&self, info: &RequestInfo, known: bool, code: u16, took: Duration) {
        let mut labels = String::with_capacity(128);
        write_labels(&mut labels, info, known);
        let mut map = self.requests.lock();
        let series = map.entry(labels).or_default();
        match series.by_code.iter_mut().find(|(c, _)| *c == code) {
            Some((_, n)) => *n += 1,
            None => series.by_code.push((code, 1)),
        }
        // how long a watch lasts says nothing about latency
        if !info.is_long_running() {
            let seconds = took.as_secs_f64();
            if let Some(i) = BUCKETS.iter().position(|b| seconds <= *b) {
                series.buckets[i] += 1;
            }
            series.sum += seconds;
            series.count += 1;
        }
    }

    /// Writes everything.
    pub(crate) fn render(&self, version: &str, objects: &[ObjectCount]) -> String {
        let mut out = String::with_capacity(16 * 1024);
        self.render_requests(&mut out);
        head(&mut out, "apiserver_current_inflight_requests", "gauge", "Requests being answered now.");
        for (kind, n) in [("mutating", &self.in_flight_mutating), ("readOnly", &self.in_flight_read_only)] {
            let n = n.load(Ordering::Relaxed);
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {n}");
        }
        head(&mut out, "apiserver_longrunning_requests", "gauge", "Open watches, logs, execs and proxied connections.");
        let _ = writeln!(out, "apiserver_longrunning_requests {}", self.long_running.load(Ordering::Relaxed));
        head(&mut out, "apiserver_storage_objects", "gauge", "Stored objects of each resource.");
        for o in objects {
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{}\"}} {}", o.resource, o.count);
        }
        head(&mut out, "kubernetes_build_info", "gauge", "The version of the server.");
        let _ = writeln!(out, "kubernetes_build_info{{git_version=\"{version}\"}} 1");
        head(&mut out, "process_start_time_seconds", "gauge", "When the server was started, in seconds since 1970.");
        let started = self.started.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let _ = writeln!(out, "process_start_time_seconds {started}");
        out
    }

    fn render_requests(&self, out: &mut String) {
        let map = self.requests.lock();
        let mut sorted: Vec<(&String, &Series)> = map.iter().collect();
        sorted.sort_by_key(|(labels, _)| *labels);
        head(out, "apiserver_request_total", "counter", "Answered requests.");
        for (labels, series) in &sorted {
            for (code, n) in &series.by_code {
                let _ = writeln!(out, "apiserver_request_total{{{labels},code=\"{code}\"}} {n}");
            }
        }
        head(out, "apiserver_request_duration_seconds", "histogram", "How long answers took, in seconds.");
        for (labels, series) in sorted.iter().filter(|(_, s)| s.count > 0) {
            let mut so_far = 0;
            for (bound, n) in BUCKETS.iter().zip(series.buckets) {
                so_far += n;
                let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {so_far}");
            }
            let n = series.count;
            let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {n}");
            let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{{labels}}} {}", series.sum);
            let _ = writeln!(out, "apiserver_request_duration_seconds_count{{{labels}}} {n}");
        }
    }
}

pub(crate) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The labels of a request. Whatever a client can make up is left out.
fn write_labels(out: &mut String, info: &RequestInfo, known: bool) {
    let verb = match info.verb.as_str() {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "OTHER",
    };
    let (group, version, resource, subresource) = if known {
        (info.group.as_str(), info.version.as_str(), info.resource.as_str(), info.subresource.as_str())
    } else {
        ("", "", "", "")
    };
    let scope = match (known, info.name.is_empty(), info.namespace.is_empty()) {
        (false, ..) => "",
        (true, false, _) => "resource",
        (true, true, false) => "namespace",
        (true, true, true) => "cluster",
    };
    let _ = write!(
        out,
        "component=\"apiserver\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",\
         subresource=\"{subresource}\",verb=\"{verb}\",version=\"{version}\""
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_code_and_never_by_invented_names() {
        let m = Metrics::new();
        let info =
            RequestInfo { verb: "list".into(), resource: "pods".into(), version: "v1".into(), ..Default::default() };
        m.observe(&info, true, 200, Duration::from_millis(3));
        m.observe(&info, true, 200, Duration::from_secs(60));
        m.observe(&info, true, 403, Duration::from_millis(3));
        let evil = RequestInfo { verb: "x\"y".into(), resource: "evil\"} 1\n".into(), ..Default::default() };
        m.observe(&evil, false, 404, Duration::from_millis(1));
        let text = m.render("v1.36.0", &[ObjectCount { resource: "pods".into(), count: 2 }]);
        let pods = "component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        assert!(text.contains(&format!("apiserver_request_total{{{pods},code=\"200\"}} 2\n")), "{text}");
        assert!(text.contains(&format!("apiserver_request_total{{{pods},code=\"403\"}} 1\n")));
        assert!(text.contains(&format!("_bucket{{{pods},le=\"0.005\"}} 2\n")));
        assert!(text.contains(&format!("_bucket{{{pods},le=\"10\"}} 2\n")), "60 s is beyond the last bound");
        assert!(text.contains(&format!("_count{{{pods}}} 3\n")));
        assert!(text.contains("apiserver_storage_objects{resource=\"pods\"} 2\n"));
        assert!(!text.contains("evil"));
    }
}
