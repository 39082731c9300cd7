//! How often each controller of this process has worked, and how that ended: a loop that feeds itself shows here.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static ALL: Mutex<BTreeMap<&'static str, Arc<Counters>>> = Mutex::new(BTreeMap::new());

/// The reconciliations of one controller since the process began, by how they ended.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) succeeded: AtomicU64,
    /// Those that asked to be called again when something is due.
    pub(crate) postponed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) panicked: AtomicU64,
}

impl Counters {
    /// Those of a controller; one that is started again goes on counting.
    pub(crate) fn of(controller: &'static str) -> Arc<Self> {
        ALL.lock().entry(controller).or_default().clone()
    }
}

/// The counters of all controllers in Prometheus' text format, under the names that controller-runtime gives them.
pub fn reconcile_metrics() -> String {
    let all = ALL.lock();
    let mut out = String::with_capacity(all.len() * 256);
    head(&mut out, "controller_runtime_reconcile_total", "Reconciliations of each controller, by how they ended.");
    for (name, counters) in &*all {
        for (result, count) in
            [("success", &counters.succeeded), ("requeue_after", &counters.postponed), ("error", &counters.failed)]
        {
            let n = count.load(Ordering::Relaxed);
            let _ =
                writeln!(out, "controller_runtime_reconcile_total{{controller=\"{name}\",result=\"{result}\"}} {n}");
        }
    }
    head(&mut out, "controller_runtime_reconcile_panics_total", "Reconciliations of each controller that panicked.");
    for (name, counters) in &*all {
        let n = counters.panicked.load(Ordering::Relaxed);
        let _ = writeln!(out, "controller_runtime_reconcile_panics_total{{controller=\"{name}\"}} {n}");
    }
    out
}

fn head(out: &mut String, name: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_has_its_lines() {
        Counters::of("the-test's").failed.fetch_add(2, Ordering::Relaxed);
        Counters::of("the-test's").postponed.fetch_add(1, Ordering::Relaxed);
        let text = reconcile_metrics();
        let line = |result: &str, n: u64| {
            format!("controller_runtime_reconcile_total{{controller=\"the-test's\",result=\"{result}\"}} {n}\n")
        };
        for (result, n) in [("success", 0), ("requeue_after", 1), ("error", 2)] {
            assert!(text.contains(&line(result, n)), "{text}");
        }
        assert!(text.contains("controller_runtime_reconcile_panics_total{controller=\"the-test's\"} 0\n"), "{text}");
    }
}
