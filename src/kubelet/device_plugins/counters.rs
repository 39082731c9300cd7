//! What is counted of device plugins, for metrics: how often each has registered, how long allocations take.

use crate::serve::metrics::head;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Upper ends of the classes of duration, in seconds (Go's Prometheus client's, as in Kubernetes).
const CLASSES: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug, Default)]
struct Durations {
    classes: [u64; CLASSES.len()],
    count: u64,
    sum: f64,
}

/// Counts by resource; only of those that have registered.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    registrations: Mutex<BTreeMap<String, u64>>,
    allocations: Mutex<BTreeMap<String, Durations>>,
}

impl Counters {
    pub(super) fn registered(&self, resource: &str) {
        *self.registrations.lock().entry(resource.to_owned()).or_default() += 1;
    }

    pub(super) fn allocated(&self, resource: &str, took: Duration) {
        let mut all = self.allocations.lock();
        let of = all.entry(resource.to_owned()).or_default();
        let took = took.as_secs_f64();
        for (class, _) in of.classes.iter_mut().zip(CLASSES).filter(|(_, end)| took <= *end) {
            *class += 1;
        }
        of.count += 1;
        of.sum += took;
    }

    /// The counts in Prometheus' text format.
    pub(crate) fn write(&self, out: &mut String) {
        // writing to a string cannot fail
        let name = "kubelet_device_plugin_registration_total";
        head(out, name, "counter", "Cumulative number of device plugin registrations.");
        for (resource, count) in &*self.registrations.lock() {
            let _ = writeln!(out, "{name}{{resource_name=\"{resource}\"}} {count}");
        }
        let name = "kubelet_device_plugin_alloc_duration_seconds";
        head(out, name, "histogram", "Duration in seconds to serve a device plugin Allocation request.");
        for (resource, of) in &*self.allocations.lock() {
            let label = format!("resource_name=\"{resource}\"");
            for (count, end) in of.classes.iter().zip(CLASSES) {
                let _ = writeln!(out, "{name}_bucket{{{label},le=\"{end}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{label},le=\"+Inf\"}} {}", of.count);
            let _ = writeln!(out, "{name}_sum{{{label}}} {}\n{name}_count{{{label}}} {}", of.sum, of.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told() {
        let counters = Counters::default();
        counters.registered("x.io/d");
        counters.registered("x.io/d");
        counters.allocated("x.io/d", Duration::from_millis(7));
        let mut out = String::new();
        counters.write(&mut out);
        for line in [
            "kubelet_device_plugin_registration_total{resource_name=\"x.io/d\"} 2",
            "kubelet_device_plugin_alloc_duration_seconds_bucket{resource_name=\"x.io/d\",le=\"0.005\"} 0",
            "kubelet_device_plugin_alloc_duration_seconds_bucket{resource_name=\"x.io/d\",le=\"0.01\"} 1",
            "kubelet_device_plugin_alloc_duration_seconds_bucket{resource_name=\"x.io/d\",le=\"+Inf\"} 1",
            "kubelet_device_plugin_alloc_duration_seconds_count{resource_name=\"x.io/d\"} 1",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }
}
