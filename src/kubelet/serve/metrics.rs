//! `/stats/summary`, `/metrics`, `/metrics/resource`: what the pods of this node use.

use crate::context::Context;
use crate::pods::Manager;
use crate::pods::record::State;
use crate::pods::shared::PodShared;
use crate::storage::{self, FOR_STATS, Local, STATS_PATIENCE, VolumeStats};
use edge_runtime::Usage;
use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
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
    let stored = if only_usage { Vec::new() } else { join_all(usage.iter().map(|entry| stored(&entry.pod))).await };
    let (fs, image_fs) = if only_usage { Default::default() } else { disks(cx, now) };
    let pods: Vec<Value> = usage
        .into_iter()
        .zip(stored.into_iter().map(Some).chain(std::iter::repeat_with(|| None)))
        .map(|(entry, stored)| {
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
            if let Some(stored) = stored {
                add_stored(&mut value, &stored, &image_fs);
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
        node["fs"] = fs;
        node["runtime"] = json!({"imageFs": image_fs});
        if let Some((running, most)) = crate::eviction::observe::pids() {
            node["rlimit"] = json!({"time": now, "maxpid": most, "curproc": running});
        }
    }
    json!({"node": node, "pods": pods})
}

/// What is stored for a pod.
#[derive(Default)]
struct Stored {
    local: Option<Arc<Local>>,
    claims: Option<Arc<Vec<VolumeStats>>>,
}

async fn stored(pod: &Arc<PodShared>) -> Stored {
    if !pod.record().is_active() {
        return Stored::default();
    }
    let (local, claims) = tokio::join!(storage::local(pod, FOR_STATS, STATS_PATIENCE), storage::claims(pod));
    Stored { local, claims }
}

/// Adds what is stored to the stats of a pod. A container's own files count as the images' file system, as in Kubernetes.
fn add_stored(pod: &mut Value, stored: &Stored, image_fs: &Value) {
    let mut volumes: Vec<VolumeStats> = stored.claims.iter().flat_map(|claims| claims.iter().cloned()).collect();
    if let Some(local) = &stored.local {
        volumes.extend(local.volume_stats());
        for container in pod["containers"].as_array_mut().into_iter().flatten() {
            let Some(used) = local.containers.get(container["name"].as_str().unwrap_or_default()) else { continue };
            let mut rootfs = image_fs.clone();
            rootfs["time"] = json!(local.node.time);
            rootfs["usedBytes"] = used.rootfs.bytes.into();
            rootfs["inodesUsed"] = used.rootfs.inodes.into();
            container["rootfs"] = rootfs;
            container["logs"] = json!(local.node.with(used.logs));
        }
        pod["ephemeral-storage"] = json!(local.node.with(local.total()));
    }
    if !volumes.is_empty() {
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        pod["volume"] = json!(volumes);
    }
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
        "usedBytes": disk.used_bytes + cx.compiler.disk_usage().unwrap_or(0), "inodesUsed": disk.used_inodes,
        "inodesFree": disk.available_inodes, "inodes": disk.capacity_inodes});
    (fs, image_fs)
}

/// What comes before a metric's values in Prometheus' text format.
pub(crate) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
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
pub(super) async fn own(cx: &Context, manager: &Manager) -> String {
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
    cx.device_plugins.counters.write(&mut out);
    cx.pod_resources.write(&mut out);
    cx.shortages.write(&mut out);
    let claims = join_all(pods.iter().filter(|pod| pod.record().is_active()).map(storage::claims)).await;
    volumes(&mut out, claims.iter().flatten().flat_map(|claims| claims.iter()));
    out
}

/// How full the volumes of claims are.
fn volumes<'a>(out: &mut String, all: impl Iterator<Item = &'a VolumeStats>) {
    // several pods may have one claim
    let claims: BTreeMap<_, _> = all.filter_map(|volume| Some((volume.pvc_ref.as_ref()?, volume))).collect();
    if claims.is_empty() {
        return;
    }
    type Read = fn(&VolumeStats) -> Option<u64>;
    let kinds: [(&str, &str, Read); 7] = [
        ("capacity_bytes", "Capacity in bytes of the volume", |v| Some(v.stats.capacity_bytes)),
        ("available_bytes", "Number of available bytes in the volume", |v| Some(v.stats.available_bytes)),
        ("used_bytes", "Number of used bytes in the volume", |v| Some(v.stats.used_bytes)),
        ("inodes", "Maximum number of inodes in the volume", |v| Some(v.stats.inodes)),
        ("inodes_free", "Number of free inodes in the volume", |v| Some(v.stats.inodes_free)),
        ("inodes_used", "Number of used inodes in the volume", |v| Some(v.stats.inodes_used)),
        (
            "health_status_abnormal",
            "Abnormal volume health status. The count is either 1 or 0. 1 indicates the volume is unhealthy, 0 indicates volume is healthy",
            |v| v.volume_health_stats.as_ref().map(|health| u64::from(health.is_abnormal)),
        ),
    ];
    for (name, help, read) in kinds {
        let values: Vec<_> = claims.iter().filter_map(|(claim, volume)| Some((claim, read(volume)?))).collect();
        if values.is_empty() {
            continue;
        }
        head(out, &format!("kubelet_volume_stats_{name}"), "gauge", help);
        for (claim, value) in values {
            let labels = format!("namespace=\"{}\",persistentvolumeclaim=\"{}\"", claim.namespace, claim.name);
            // writing to a string cannot fail
            let _ = writeln!(out, "kubelet_volume_stats_{name}{{{labels}}} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{ClaimRef, FsStats, Health};

    #[test]
    fn a_claim_is_told_of_once() {
        let volume = |claim: Option<&str>, health: Option<bool>| VolumeStats {
            stats: FsStats { capacity_bytes: 10, available_bytes: 7, used_bytes: 3, ..FsStats::default() },
            pvc_ref: claim.map(|name| ClaimRef { name: name.into(), namespace: "ns".into() }),
            volume_health_stats: health.map(|is_abnormal| Health { is_abnormal, ..Health::default() }),
            ..VolumeStats::default()
        };
        let mut out = String::new();
        volumes(&mut out, [volume(None, None)].iter());
        assert_eq!(out, "");
        volumes(&mut out, [volume(Some("a"), None), volume(Some("a"), None), volume(Some("b"), Some(true))].iter());
        let values: Vec<&str> = out.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(values.len(), 13, "{out}");
        for line in [
            "kubelet_volume_stats_used_bytes{namespace=\"ns\",persistentvolumeclaim=\"a\"} 3",
            "kubelet_volume_stats_health_status_abnormal{namespace=\"ns\",persistentvolumeclaim=\"b\"} 1",
        ] {
            assert!(values.contains(&line), "{line} {out}");
        }
    }
}
