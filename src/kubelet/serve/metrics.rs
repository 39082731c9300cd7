//! `/stats/summary`, `/metrics`, `/metrics/resource`: what the pods of this node use.

use crate::context::Context;
use crate::pods::Manager;
use crate::pods::record::State;
use crate::pods::shared::PodShared;
use edge_runtime::Usage;
use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::sync::Arc;

/// What a pod and its containers use.
struct PodUsage {
    pod: Arc<PodShared>,
    usage: Option<Usage>,
    containers: Vec<(String, Timestamp, Usage)>,
}

async fn usage(cx: &Context, manager: &Manager) -> Vec<PodUsage> {
    join_all(manager.list().into_iter().map(|pod| async move {
        let record = pod.record();
        let running = record.containers.iter().filter_map(|c| match &c.state {
            State::Running(r) => Some((c.name.clone(), r.started_at, r.id.clone())),
            _ => None,
        });
        let containers = join_all(running.map(|(name, started, id)| async move {
            Some((name, started, cx.runtime.container_usage(&id).await.ok()?))
        }));
        let (usage, containers) = tokio::join!(cx.runtime.sandbox_usage(&pod.uid), containers);
        PodUsage { usage: usage.ok(), containers: containers.into_iter().flatten().collect(), pod }
    }))
    .await
}

/// Processor time (nanoseconds) and working set (bytes) of the whole machine.
fn node_usage() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, then idle and waiting which do not count, then interrupts and what was stolen
    let busy: u64 = ticks.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).take(6).map(|(_, n)| n).sum();
    let per_second = 100;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    (busy.saturating_mul(1_000_000_000 / per_second), kib("MemTotal").saturating_sub(kib("MemAvailable")) * 1024)
}

fn stats(usage: &Usage, now: Timestamp) -> (Value, Value) {
    (
        json!({"time": now, "usageCoreNanoSeconds": usage.cpu_nanos}),
        json!({
            "time": now, "usageBytes": usage.memory_usage, "workingSetBytes": usage.memory_working_set,
            "rssBytes": usage.memory_rss, "pageFaults": usage.page_faults, "majorPageFaults": usage.major_page_faults,
        }),
    )
}

/// The `Summary` of the kubelet's stats API; `only_usage` leaves out what the disks are asked for.
pub(super) async fn summary(cx: &Context, manager: &Manager, only_usage: bool) -> Value {
    let usage = usage(cx, manager).await;
    let (cpu, memory) = node_usage();
    // rates are made of these times: they are those of the counters, not of the question
    let now = Timestamp::now();
    let pods: Vec<Value> = usage
        .into_iter()
        .map(|entry| {
            let containers: Vec<Value> = entry
                .containers
                .iter()
                .map(|(name, started, usage)| {
                    let (cpu, memory) = stats(usage, now);
                    json!({"name": name, "startTime": started, "cpu": cpu, "memory": memory})
                })
                .collect();
            let pod = &entry.pod;
            let mut value = json!({
                "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "startTime": pod.record().start_time, "containers": containers,
            });
            if let Some(usage) = &entry.usage {
                let (cpu, memory) = stats(usage, now);
                value["cpu"] = cpu;
                value["memory"] = memory;
                value["process_stats"] = json!({"process_count": usage.pids});
            }
            value
        })
        .collect();
    let mut node = json!({
        "nodeName": cx.config.node_name,
        "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
        "memory": {"time": now, "workingSetBytes": memory, "availableBytes": cx.machine.memory.saturating_sub(memory)},
    });
    if !only_usage {
        let (fs, image_fs) = disks(cx, now);
        node["fs"] = fs;
        node["runtime"] = json!({"imageFs": image_fs});
    }
    json!({"node": node, "pods": pods})
}

/// The node's file system, and what images take of it.
fn disks(cx: &Context, now: Timestamp) -> (Value, Value) {
    let disk = cx.images.usage().unwrap_or_default();
    let fs = json!({
        "time": now, "availableBytes": disk.available_bytes, "capacityBytes": disk.capacity_bytes,
        "usedBytes": disk.capacity_bytes.saturating_sub(disk.available_bytes),
        "inodesFree": disk.available_inodes, "inodes": disk.capacity_inodes,
    });
    let image_fs = json!({"time": now, "availableBytes": disk.available_bytes, "capacityBytes": disk.capacity_bytes,
        "usedBytes": disk.used_bytes + cx.compiler.disk_usage().unwrap_or(0), "inodesUsed": disk.used_inodes});
    (fs, image_fs)
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // writing to a string cannot fail
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// The resource metrics that the metrics server reads.
pub(super) async fn resource(cx: &Context, manager: &Manager) -> String {
    let pods = usage(cx, manager).await;
    let (cpu, memory) = node_usage();
    let mut out = String::new();
    head(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    // writing to a string cannot fail
    let _ = writeln!(out, "node_cpu_usage_seconds_total {}", seconds(cpu));
    head(&mut out, "node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    let _ = writeln!(out, "node_memory_working_set_bytes {memory}");
    let labels = |p: &PodUsage| format!("namespace=\"{}\",pod=\"{}\"", p.pod.namespace, p.pod.name);
    type Value = fn(&Usage) -> f64;
    let kinds: [(&str, &str, &str, Value); 2] = [
        ("cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in core-seconds", |u| {
            seconds(u.cpu_nanos)
        }),
        ("memory_working_set_bytes", "gauge", "Current working set in bytes", |u| u.memory_working_set as f64),
    ];
    for (name, kind, help, value) in kinds {
        head(&mut out, &format!("container_{name}"), kind, help);
        for pod in &pods {
            for (container, _, usage) in &pod.containers {
                let _ = writeln!(out, "container_{name}{{container=\"{container}\",{}}} {}", labels(pod), value(usage));
            }
        }
        head(&mut out, &format!("pod_{name}"), kind, help);
        for pod in &pods {
            if let Some(usage) = &pod.usage {
                let _ = writeln!(out, "pod_{name}{{{}}} {}", labels(pod), value(usage));
            }
        }
    }
    head(&mut out, "container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds");
    for pod in &pods {
        for (container, started, _) in &pod.containers {
            let seconds = started.as_millisecond() as f64 / 1e3;
            let _ =
                writeln!(out, "container_start_time_seconds{{container=\"{container}\",{}}} {seconds}", labels(pod));
        }
    }
    head(
        &mut out,
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    out.push_str("resource_scrape_error 0\n");
    out
}

/// The kubelet's own metrics.
pub(super) fn own(cx: &Context, manager: &Manager) -> String {
    let pods = manager.list();
    let records: Vec<_> = pods.iter().map(|pod| pod.record()).collect();
    let running = records.iter().flat_map(|r| &r.containers).filter(|c| c.is_running()).count();
    let mut out = String::new();
    let name = &cx.config.node_name;
    for (metric, help, value) in [
        ("kubelet_node_name", "The node's name. The count is always 1.", format!("{{node=\"{name}\"}} 1")),
        ("kubelet_running_pods", "Number of pods that have a running pod sandbox", format!(" {}", pods.len())),
        ("kubelet_running_containers", "Number of containers currently running", format!(" {running}")),
    ] {
        head(&mut out, metric, "gauge", help);
        // writing to a string cannot fail
        let _ = writeln!(out, "{metric}{value}");
    }
    out
}
