//! The figures by which edge is measured, beside those of k3s 1.21 on such a machine (2 cores).
//!
//! `scripts/bench` runs this with the release binary, as root. Nothing is asserted: figures depend on the machine.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should say where and stop")]
#![expect(dead_code, unused_imports, reason = "the tests' harness has more than is needed here")]

mod common;
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use common::{connect, processes, pss_kib};
use futures::{StreamExt, TryStreamExt};
use harness::{Agent, Cluster};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use std::time::{Duration, Instant};

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("{:<44} {:>14}   k3s 1.21", "figure", "edge");
    let size = std::fs::metadata(harness::edge_binary()).unwrap().len();
    row("binary", format!("{:.1} MB", size as f64 / 1e6), "159 MB");

    let mut cluster = Cluster::prepare(&[]);
    let client = runtime.block_on(async { start_to_ready(&mut cluster, "start to Ready, empty data").await });
    let steady = if quick { 5 } else { 60 };
    idle(&cluster, Duration::from_secs(steady.min(20)), Duration::from_secs(steady));
    idle_agent(&cluster, Duration::from_secs(steady.max(15)));
    runtime.block_on(async {
        pods_in_sequence(&client, 20).await;
        burst(&client, 50).await;
        api_rates(&cluster).await;
    });
    cluster.stop(nix::sys::signal::Signal::SIGTERM);
    runtime.block_on(async { start_to_ready(&mut cluster, "start to Ready, existing data").await });
}

fn row(name: &str, edge: String, k3s: &str) {
    println!("{name:<44} {edge:>14}   {k3s}");
}

async fn start_to_ready(cluster: &mut Cluster, name: &str) -> kube::Client {
    let start = Instant::now();
    tokio::task::block_in_place(|| cluster.launch());
    let served = start.elapsed();
    let client = connect(cluster).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let mut watch = nodes.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    while let Some(WatchEvent::Added(node) | WatchEvent::Modified(node)) = watch.try_next().await.unwrap() {
        let ready = node
            .status
            .and_then(|s| s.conditions)
            .into_iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        if ready {
            break;
        }
    }
    let k3s = if name.contains("empty") { "17.1 s" } else { "6.8 s" };
    row(name, format!("{:.2} s", start.elapsed().as_secs_f64()), k3s);
    row("  of which until the API is served", format!("{:.2} s", served.as_secs_f64()), "");
    client
}

fn cpu_ticks(process: &std::path::Path) -> u64 {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields.get(11..13).map_or(0, |f| f.iter().map(|n| n.parse::<u64>().unwrap_or(0)).sum())
}

fn written(process: &std::path::Path) -> u64 {
    let io = std::fs::read_to_string(process.join("io")).unwrap_or_default();
    let line = io.lines().find(|l| l.starts_with("write_bytes:")).unwrap_or("write_bytes: 0");
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// What is used in `time`, once the node has had `settle` for reporting the images it has found.
fn idle(cluster: &Cluster, settle: Duration, time: Duration) {
    std::thread::sleep(settle);
    let all = processes(cluster);
    let sum = |f: fn(&std::path::Path) -> u64| all.iter().map(|p| f(p)).sum::<u64>();
    let (cpu, bytes) = (sum(cpu_ticks), sum(written));
    std::thread::sleep(time);
    let seconds = time.as_secs_f64();
    row("idle memory (PSS of all processes)", format!("{:.1} MiB", sum(pss_kib) as f64 / 1024.0), "471 MiB");
    row("idle CPU, of one core", format!("{:.2} %", (sum(cpu_ticks) - cpu) as f64 / seconds), "3 %");
    row("idle bytes written per hour", format!("{:.0} kB", (sum(written) - bytes) as f64 / seconds * 3.6), "");
}

/// What a machine that is an agent and nothing else needs.
fn idle_agent(cluster: &Cluster, settle: Duration) {
    let agent = Agent::start(cluster, 1);
    std::thread::sleep(settle);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid())).unwrap_or_default();
    let all = children.split_whitespace().map(str::to_owned).chain([agent.pid().to_string()]);
    let sum: u64 = all.map(|pid| pss_kib(&std::path::Path::new("/proc").join(pid))).sum();
    // with the server on the same machine the program's pages are shared, and half of each is the server's
    row("an agent's idle memory, beside the server", format!("{:.1} MiB", sum as f64 / 1024.0), "");
    drop(agent);
    // the pods that follow are for the server's node
    cluster.kubectl(&["delete", "node", "node-2"]);
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"bench": "yes"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": "busybox:test", "command": ["sleep", "100000"]}]}
    }))
    .unwrap()
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    format!("{:.0} ms", ms(times[times.len() / 2]))
}

async fn pods_in_sequence(client: &kube::Client, n: usize) {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    for i in 0..n {
        let name = format!("seq-{i}");
        let mut watch =
            pods.watch(&WatchParams::default().fields(&format!("metadata.name={name}")), "0").await.unwrap().boxed();
        let start = Instant::now();
        pods.create(&PostParams::default(), &pod(&name)).await.unwrap();
        while let Some(event) = watch.try_next().await.unwrap() {
            if matches!(&event, WatchEvent::Modified(p) if running(p)) {
                break;
            }
        }
        created.push(start.elapsed());
        let start = Instant::now();
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        while let Some(event) = watch.try_next().await.unwrap() {
            if matches!(event, WatchEvent::Deleted(_)) {
                break;
            }
        }
        deleted.push(start.elapsed());
    }
    row(&format!("pod create to Running, median of {n}"), median(created), "741-1061 ms");
    row(&format!("pod delete to gone, median of {n}"), median(deleted), "8 s");
}

async fn burst(client: &kube::Client, n: usize) {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut watch = pods.watch(&WatchParams::default().labels("bench=yes"), "0").await.unwrap().boxed();
    let start = Instant::now();
    futures::future::join_all((0..n).map(|i| {
        let pods = pods.clone();
        async move { pods.create(&PostParams::default(), &pod(&format!("burst-{i}"))).await.unwrap() }
    }))
    .await;
    let mut up = std::collections::HashSet::new();
    while up.len() < n {
        if let Some(WatchEvent::Modified(p) | WatchEvent::Added(p)) = watch.try_next().await.unwrap()
            && running(&p)
        {
            up.insert(p.metadata.name.unwrap());
        }
    }
    row(
        &format!("{n} pods at once, until all are Running"),
        format!("{:.2} s", start.elapsed().as_secs_f64()),
        "31 s (6.1 s)",
    );
    let start = Instant::now();
    pods.delete_collection(&DeleteParams::default(), &kube::api::ListParams::default().labels("bench=yes"))
        .await
        .unwrap();
    let mut gone = 0;
    while gone < n {
        if let Some(WatchEvent::Deleted(_)) = watch.try_next().await.unwrap() {
            gone += 1;
        }
    }
    row(&format!("{n} pods deleted, until all are gone"), format!("{:.2} s", start.elapsed().as_secs_f64()), "");
}

async fn api_rates(cluster: &Cluster) {
    const CONNECTIONS: usize = 10;
    let clients = futures::future::join_all((0..CONNECTIONS).map(|_| connect(cluster))).await;
    for c in &clients {
        // the handshake is not part of the rate
        Api::<ConfigMap>::default_namespaced(c.clone())
            .list_metadata(&kube::api::ListParams::default().limit(1))
            .await
            .unwrap();
    }
    let start = Instant::now();
    futures::future::join_all(clients.iter().enumerate().map(|(c, client)| {
        let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
        tokio::spawn(async move {
            for i in 0..200 {
                let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": format!("m-{c}-{i}")},
                    "data": {"key": "value ".repeat(20)}}))
                .unwrap();
                api.create(&PostParams::default(), &map).await.unwrap();
            }
        })
    }))
    .await;
    row(
        "ConfigMap creates, 10 connections",
        format!("{:.0} /s", 2000.0 / start.elapsed().as_secs_f64()),
        "824-1229 /s",
    );
    let start = Instant::now();
    futures::future::join_all(clients.iter().enumerate().map(|(c, client)| {
        let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
        tokio::spawn(async move {
            for i in 0..1000 {
                api.get(&format!("m-{c}-{}", i % 200)).await.unwrap();
            }
        })
    }))
    .await;
    row("ConfigMap GETs, 10 connections", format!("{:.0} /s", 10000.0 / start.elapsed().as_secs_f64()), "1135-2013 /s");
}
