//! What WebAssembly pods cost, beside the goals.
//!
//! `scripts/bench wasm` runs this with the release binary, as root. Nothing is asserted: figures depend on the machine.
//! With `--many [PODS]` so many dense pods run at the same time, with `--soak [PODS]` so many are started and stopped,
//! with `--requests` there are only the requests to an HTTP server.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should say where and stop")]
#![expect(dead_code, unused_imports, reason = "the tests' harness has more than is needed here")]

mod common;
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;
#[path = "wasm/native.rs"]
mod native;

use common::connect;
use futures::{StreamExt, TryStreamExt};
use harness::wasm::{Packing, archive, component, module};
use harness::{Cluster, Footprint, http_get};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How many dense pods at the same time.
const DENSE: usize = 200;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |usual: usize| args.get(1).map_or(usual, |text| text.parse().expect("a number of pods"));
    match args.first().map(String::as_str) {
        None => all(),
        // what a container of this program does: see `native`
        Some(native::SERVE) => native::serve(),
        Some("--many") => many(number(1000)),
        Some("--soak") => soak(number(10_000)),
        Some("--requests") => only_requests(),
        Some(other) => panic!("{other:?} is neither --many [PODS] nor --soak [PODS] nor --requests"),
    }
}

/// A cluster that has room for so many pods, and the images of the tests.
fn roomy(pods: usize) -> Cluster {
    let (max, mask) = (format!("--max-pods={}", pods + 100), "--node-cidr-mask-size-ipv4=20");
    let cluster = Cluster::start_with(&[&max, mask]);
    for (name, file) in [("hello", module("hello")), ("http", component("http"))] {
        cluster.drop_image(&format!("{name}.tar"), &archive(&file, Packing::Artifact, &format!("{name}:bench")));
    }
    compiling(&cluster);
    cluster
}

/// So many dense servers on one node at the same time.
fn many(n: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cluster = roomy(n);
    let pods: Api<Pod> = runtime.block_on(async { Api::default_namespaced(connect(&cluster).await) });
    let (before, kernel) = (memory_kib(&cluster), kernel_kib());
    let begun = Instant::now();
    runtime.block_on(burst(&pods, &dense(&pod("http", json!({}))), n));
    row(&format!("{n} dense servers: created until all run"), format!("{:.1} s", begun.elapsed().as_secs_f64()), "");
    std::thread::sleep(Duration::from_secs(10));
    let each = |now: u64, before: u64| format!("{:.3} MiB", (now as f64 - before as f64) / n as f64 / 1024.0);
    row("  memory of each, all processes, PSS", each(memory_kib(&cluster), before), "0.30 MiB");
    row("  memory of each, the kernel's (network, page tables, tasks)", each(kernel_kib(), kernel), "");
    parts(&cluster);
    let used = cpu_ticks(&cluster);
    std::thread::sleep(Duration::from_secs(20));
    let idle = (cpu_ticks(&cluster) - used) as f64 / 20.0;
    row("  processor time while idle", format!("{idle:.2} %"), "");
    let listed = runtime.block_on(pods.list(&ListParams::default())).unwrap();
    let begun = Instant::now();
    let answered = listed.items.iter().filter(|pod| answers(&cluster, pod)).count();
    row("  answer a request", format!("{answered}"), &n.to_string());
    row("  all of them asked, one after the other", format!("{:.1} s", begun.elapsed().as_secs_f64()), "");
    let begun = Instant::now();
    runtime.block_on(remove_all(&pods));
    row("  deleted until all are gone", format!("{:.1} s", begun.elapsed().as_secs_f64()), "");
}

fn answers(cluster: &Cluster, pod: &Pod) -> bool {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    let address = ip.and_then(|ip| ip.parse().ok()).map(|ip| SocketAddr::new(ip, 8080));
    address.is_some_and(|address| cluster.inside(|| http_get(address, "/")).is_ok())
}

/// Starts and stops so many pods, of both isolations by turns, and shows what is left of them.
fn soak(n: usize) {
    /// How many at the same time.
    const AT_ONCE: usize = 50;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cluster = roomy(2 * AT_ONCE);
    let pods: Api<Pod> = runtime.block_on(async { Api::default_namespaced(connect(&cluster).await) });
    let kinds = [pod("hello", json!({"args": ["sleep", "1000000"]})), dense(&pod("http", json!({})))];
    let round = |i: usize| {
        runtime.block_on(async {
            burst(&pods, &kinds[i % 2], AT_ONCE).await;
            remove_all(&pods).await;
        });
    };
    println!("{:<24} memory KiB   fds   monitors   cgroups   mounts   links   directories", "");
    let show = |what: String| {
        // The host ends some seconds after its last program.
        std::thread::sleep(Duration::from_secs(15));
        let Footprint { memory, descriptors, monitors, cgroups, mounts, links, directories } = cluster.footprint();
        println!(
            "{what:<24} {memory:>10}   {descriptors:>3}   {monitors:>8}   {cgroups:>7}   {mounts:>6}   {links:>5}   {directories:>11}"
        );
    };
    let rounds = n.div_ceil(AT_ONCE);
    // What is only made by the first ones belongs to nobody's leftovers.
    (0..4).for_each(round);
    show(format!("after {} pods", 4 * AT_ONCE));
    let begun = Instant::now();
    for i in 0..rounds {
        round(i);
        if (i + 1) % (rounds / 5).max(1) == 0 && i + 1 < rounds {
            show(format!("after {} more", (i + 1) * AT_ONCE));
        }
    }
    let took = begun.elapsed().as_secs_f64();
    show(format!("after {} more", rounds * AT_ONCE));
    row("started and stopped", format!("{:.1} pods/s", (rounds * AT_ONCE) as f64 / took), "");
}

/// What the kernel keeps for itself, in KiB.
fn kernel_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let fields = ["Slab:", "KernelStack:", "PageTables:", "Percpu:", "VmallocUsed:"];
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    fields.iter().map(|name| of(name)).sum()
}

/// Processor time of all processes so far, in hundredths of a second.
fn cpu_ticks(cluster: &Cluster) -> u64 {
    let of = |process: &PathBuf| {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        let rest = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        rest.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>()
    };
    common::processes(cluster).iter().map(of).sum()
}

fn all() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("{:<56} {:>14}   goal", "figure", "edge");
    let cluster = Cluster::start_with(&["--max-pods=240"]);
    for (name, file) in [("hello", module("hello")), ("http", component("http"))] {
        cluster.drop_image(&format!("{name}.tar"), &archive(&file, Packing::Artifact, &format!("{name}:bench")));
    }
    compiling(&cluster);
    compiling_much(&cluster);
    let pods: Api<Pod> = runtime.block_on(async { Api::default_namespaced(connect(&cluster).await) });
    runtime.block_on(async {
        let sleep = pod("hello", json!({"args": ["sleep", "100000"]}));
        let (running, _) = sequence(&cluster, &pods, &sleep, 20, false).await;
        row("command: pod create to Running, median of 20", ms(running), "");
        let (running, served) = sequence(&cluster, &pods, &pod("http", json!({})), 20, true).await;
        row("HTTP server: pod create to Running, median of 20", ms(running), "");
        row("HTTP server: pod create to first answer, median of 20", ms(served), "40 ms");
        let (running, _) = sequence(&cluster, &pods, &dense(&sleep), 20, false).await;
        row("dense command: pod create to Running, median of 20", ms(running), "");
        let (_, served) = sequence(&cluster, &pods, &dense(&pod("http", json!({}))), 20, true).await;
        row("dense HTTP server: pod create to first answer, median of 20", ms(served), "40 ms");
    });
    for (name, container) in [("hello", json!({"args": ["sleep", "100000"]})), ("http", json!({}))] {
        let before = memory_kib(&cluster);
        runtime.block_on(burst(&pods, &pod(name, container), 50));
        std::thread::sleep(Duration::from_secs(5));
        let each = (memory_kib(&cluster) - before) as f64 / 50.0 / 1024.0;
        row(&format!("{name}: memory of an idle pod, all that it costs, PSS"), format!("{each:.2} MiB"), "");
        if name == "http" {
            requests(&cluster);
        }
        runtime.block_on(remove_all(&pods));
    }
    for (name, container) in [("hello", json!({"args": ["sleep", "100000"]})), ("http", json!({}))] {
        // With none the host would be part of what they cost, or not, depending on when the last one ended.
        let before = memory_kib(&cluster);
        runtime.block_on(burst(&pods, &dense(&pod(name, container)), DENSE));
        std::thread::sleep(Duration::from_secs(5));
        let each = (memory_kib(&cluster) - before) as f64 / DENSE as f64 / 1024.0;
        row(
            &format!("{name}, dense: memory of one of {DENSE} pods, all that it costs, PSS"),
            format!("{each:.2} MiB"),
            "0.30 MiB",
        );
        parts(&cluster);
        runtime.block_on(remove_all(&pods));
        harness::eventually("the host ends", || match hosts(&cluster) {
            0 => Ok(()),
            n => Err(format!("{n} are there")),
        });
    }
    let before = memory_kib(&cluster);
    runtime.block_on(async {
        for _ in 0..4 {
            burst(&pods, &pod("hello", json!({"args": ["sleep", "100000"]})), 50).await;
            remove_all(&pods).await;
        }
    });
    let more = (memory_kib(&cluster) as f64 - before as f64) / 1024.0;
    row("200 pods started and removed: memory that stays", format!("{more:.2} MiB"), "0");
}

fn row(name: &str, edge: String, goal: &str) {
    println!("{name:<56} {edge:>14}   {goal}");
}

fn ms(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{:.0} ms", times[times.len() / 2].as_secs_f64() * 1e3)
}

/// What edge says of its compilations, once both are done.
fn compiling(cluster: &Cluster) {
    let compiled = |line: &str| line.contains("module compiled");
    let lines: Vec<String> = harness::eventually("modules are compiled", || {
        let found: Vec<String> = cluster.log().lines().filter(|line| compiled(line)).map(str::to_owned).collect();
        if found.len() == 2 { Ok(found) } else { Err(format!("{found:?}")) }
    });
    let taken: u64 = lines.iter().map(|line| field(line, "milliseconds")).sum();
    let sizes = [module("hello"), component("http")].map(|file| std::fs::metadata(file).unwrap().len());
    let rate = sizes.iter().sum::<u64>() as f64 / 1e6 / (taken as f64 / 1e3);
    row(
        &format!("compiling {} kB in two processes", sizes.iter().sum::<u64>() / 1000),
        format!("{rate:.2} MB/s"),
        "2 MB/s",
    );
}

/// How fast it is when the start of the process is no matter.
fn compiling_much(cluster: &Cluster) {
    let file = large_module(&cluster.dir);
    let size = std::fs::metadata(&file).unwrap().len();
    cluster.drop_image("large.tar", &archive(&file, Packing::Artifact, "large:bench"));
    let line = harness::eventually("the large module is compiled", || {
        let log = cluster.log();
        log.lines()
            .filter(|line| line.contains("module compiled"))
            .nth(2)
            .map(str::to_owned)
            .ok_or("not yet".to_owned())
    });
    let rate = size as f64 / 1e3 / field(&line, "milliseconds") as f64;
    row(&format!("compiling one module of {} kB", size / 1000), format!("{rate:.2} MB/s"), "2 MB/s");
}

/// A module of some MiB: thousands of functions as compilers of C make them, each another one.
fn large_module(directory: &Path) -> PathBuf {
    let (source, to) = (directory.join("large.c"), directory.join("large.wasm"));
    let functions: String = (0..2000).map(large_function).collect();
    let calls: String = (0..2000).map(|i| format!("  sum += f{i}(data, argc + {i});\n")).collect();
    let text = format!(
        "#include <string.h>\nstatic unsigned data[4096];\n{functions}int main(int argc, char **argv) {{\n  unsigned sum = argc;\n{calls}  return sum & 1;\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    let mut clang = Command::new("clang");
    clang.args(["--target=wasm32-wasi", "-O2", "-Wl,--strip-all", "-o"]).arg(&to).arg(&source);
    assert!(clang.status().unwrap().success());
    to
}

fn large_function(i: usize) -> String {
    let (a, b, c) = (i % 61 + 3, i * 7 % 127 + 1, i * 2_654_435_761 % 65_521);
    format!(
        "__attribute__((noinline)) unsigned f{i}(unsigned *p, unsigned n) {{
  unsigned h = {c}u ^ n;
  for (unsigned k = 0; k < {a} + n % 7; k++) {{
    unsigned v = p[(h + k * {b}) & 4095];
    switch (v % 5) {{
    case 0: h = h * 31 + v; break;
    case 1: h ^= v << {s}; p[h & 4095] += {c}u; break;
    case 2: h = (h >> 3) | (v << 29); if (h & {b}) p[(h >> 4) & 4095] = n; break;
    case 3: memcpy(p + (h & 1023), p + 2048 + (v & 1023), {a}); break;
    default: h += (unsigned)((double)v * {b}.5 + {a}.25); }}
    if (h % {b} == 7) return p[k & 4095] + h;
  }}
  return h;
}}
",
        s = i % 13 + 1
    )
}

fn field(line: &str, name: &str) -> u64 {
    let rest = line.split(&format!("{name}=")).nth(1).unwrap_or_else(|| panic!("no {name}: {line}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

fn pod(image: &str, container: Value) -> Pod {
    let mut container = container;
    container["name"] = "main".into();
    container["image"] = format!("{image}:bench").into();
    container["imagePullPolicy"] = "Never".into();
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "labels": {"bench": "yes"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}
    }))
    .unwrap()
}

/// The same pod, in the process that runs many.
fn dense(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.spec.as_mut().unwrap().runtime_class_name = Some("wasm-dense".to_owned());
    pod
}

/// Where the memory of dense pods is: in the host, in their monitors, in edge itself.
fn parts(cluster: &Cluster) {
    let name = |process: &PathBuf| std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    let all = common::processes(cluster);
    for part in ["edge-dense", "edge-monitor", "edge"] {
        let of = all.iter().filter(|process| name(process).trim_end() == part);
        let (count, sum) = of.fold((0, 0), |(n, sum), process| (n + 1, sum + common::pss_kib(process)));
        row(&format!("  of it: {count} {part}"), format!("{:.2} MiB", sum as f64 / 1024.0), "");
    }
}

fn hosts(cluster: &Cluster) -> usize {
    let is_host = |process: &PathBuf| {
        std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "edge-dense")
    };
    common::processes(cluster).iter().filter(|process| is_host(process)).count()
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
}

/// Creates and deletes a pod, again and again: times until it runs, and until it answers.
async fn sequence(
    cluster: &Cluster,
    pods: &Api<Pod>,
    pod: &Pod,
    n: usize,
    serves: bool,
) -> (Vec<Duration>, Vec<Duration>) {
    let (mut up, mut served) = (Vec::new(), Vec::new());
    for i in 0..n {
        let name = format!("seq-{i}");
        let mut pod = pod.clone();
        pod.metadata.name = Some(name.clone());
        let fields = format!("metadata.name={name}");
        let mut watch = pods.watch(&WatchParams::default().fields(&fields), "0").await.unwrap().boxed();
        let start = Instant::now();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let mut ip = None;
        while let Some(event) = watch.try_next().await.unwrap() {
            if let WatchEvent::Modified(p) = &event
                && running(p)
            {
                ip = p.status.as_ref().and_then(|s| s.pod_ip.clone());
                break;
            }
        }
        up.push(start.elapsed());
        if serves {
            let address = SocketAddr::new(ip.unwrap().parse().unwrap(), 8080);
            tokio::task::block_in_place(|| cluster.inside(|| while http_get(address, "/").is_err() {}));
            served.push(start.elapsed());
        }
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        while let Some(event) = watch.try_next().await.unwrap() {
            if matches!(event, WatchEvent::Deleted(_)) {
                break;
            }
        }
    }
    (up, served)
}

async fn burst(pods: &Api<Pod>, pod: &Pod, n: usize) {
    let mut watch = pods.watch(&WatchParams::default().labels("bench=yes"), "0").await.unwrap().boxed();
    for i in 0..n {
        let mut pod = pod.clone();
        pod.metadata.name = Some(format!("burst-{i}"));
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    let mut up = std::collections::HashSet::new();
    while up.len() < n {
        if let Some(WatchEvent::Modified(p) | WatchEvent::Added(p)) = watch.try_next().await.unwrap()
            && running(&p)
        {
            up.insert(p.metadata.name.unwrap());
        }
    }
}

async fn remove_all(pods: &Api<Pod>) {
    let ours = ListParams::default().labels("bench=yes");
    pods.delete_collection(&DeleteParams::default(), &ours).await.unwrap();
    while !pods.list(&ours).await.unwrap().items.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn memory_kib(cluster: &Cluster) -> u64 {
    common::processes(cluster).iter().map(|process| common::pss_kib(process)).sum()
}

/// One server, and only [`requests`].
fn only_requests() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cluster = roomy(2);
    let pods: Api<Pod> = runtime.block_on(async { Api::default_namespaced(connect(&cluster).await) });
    requests(&cluster);
    runtime.block_on(remove_all(&pods));
}

/// Requests to one of the servers, an instance for each, and to a native server in a container.
fn requests(cluster: &Cluster) {
    cluster.drop_image("native.tar", &native::archive(&cluster.dir));
    for name in ["http", "native"] {
        // with no share of their own the kernel leaves their threads on the processor of the one that asks
        let asks = json!({"resources": {"requests": {"cpu": "500m"}}});
        let mut pod: Value = serde_json::to_value(pod(name, asks)).unwrap();
        pod["metadata"] = json!({"name": name});
        cluster.apply(&pod.to_string());
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
    // by turns, so that what else the machine does meets both
    let rates: Vec<[f64; 2]> = (0..5).map(|_| ["http", "native"].map(|name| rate(cluster, name))).collect();
    let median = |which: usize| {
        let mut all: Vec<f64> = rates.iter().map(|pair| pair[which]).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (wasm, native) = (median(0), median(1));
    row("HTTP server: requests, 10 connections, median of 5", format!("{wasm:.0} /s"), "");
    row("  the same by hyper, native, in a container", format!("{native:.0} /s"), "");
    row("  share", format!("{:.0} %", wasm / native * 100.0), "60 %");
    cluster.kubectl(&["delete", "pod", "http", "native", "--grace-period=0", "--force"]);
}

/// Answered requests per second of a pod.
fn rate(cluster: &Cluster, pod: &str) -> f64 {
    let ip = cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c10", "-d3s", &format!("http://{ip}:8080/")]);
    let output = cluster.inside(|| command.output()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok()).unwrap_or_else(|| panic!("no answer: {text}"))
}
