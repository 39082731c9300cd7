//! The figures of installation and survival, beside their goals: from nothing to Ready, from a backup to Ready, from one store to another,
//! and how fast a server with its store in etcd is beside etcd itself.
//!
//! `scripts/bench install` runs this with the release binary, as root. Nothing is asserted: figures depend on the machine.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should say where and stop")]
#![expect(dead_code, unused_imports, reason = "the tests' harness has more than is needed here")]

mod common;
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use bytes::Bytes;
use common::connect;
use edge_storage::{Class, Etcd as Client, EtcdOptions, Op, Storage, Transaction};
use harness::etcd::Etcd;
use harness::systemd::Debian;
use harness::{Cluster, success};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use nix::sys::signal::Signal;
use serde_json::json;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Objects that are restored and moved.
const OBJECTS: usize = 10_000;

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    println!("{:<52} {:>14}   goal", "figure", "edge");
    install();
    restore();
    migrate();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(rates(Duration::from_secs(if quick { 3 } else { 10 })));
}

fn row(name: &str, edge: &str, goal: &str) {
    println!("{name:<52} {edge:>14}   {goal}");
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The program is on the machine, which is Debian with systemd.
fn install() {
    let debian = Debian::start();
    let begun = Instant::now();
    debian.run("INSTALL_EDGE_BINARY=/tmp/test/edge sh /tmp/test/script/install.sh --node-name=debian 2>&1");
    let installed = begun.elapsed();
    debian.run("kubectl wait node/debian --for=condition=Ready --timeout=60s");
    row("install.sh, the program at hand, until Ready", &seconds(begun.elapsed()), "5 s");
    row("  of which the script", &seconds(installed), "");
}

/// A server on another machine of the same name, from a file.
fn restore() {
    let mut cluster = Cluster::start();
    cluster.stop(Signal::SIGTERM);
    harness::filled::fill(&cluster, OBJECTS / 100);
    let file = cluster.dir.join("backup").display().to_string();
    let begun = Instant::now();
    success("backup", cluster.edge(&["backup", &file]));
    row(&format!("edge backup, {OBJECTS} objects"), &seconds(begun.elapsed()), "");
    success("teardown", cluster.tear_down());
    std::fs::remove_dir_all(cluster.data_dir()).unwrap();
    let begun = Instant::now();
    success("restore", cluster.edge(&["restore", &file]));
    let restored = begun.elapsed();
    cluster.launch();
    cluster.wait_for("node/node-1", "condition=Ready");
    row(&format!("edge restore, {OBJECTS} objects, until Ready"), &seconds(begun.elapsed()), "3 s");
    row("  of which the command", &seconds(restored), "");
}

fn migrate() {
    let mut cluster = Cluster::start();
    cluster.stop(Signal::SIGTERM);
    harness::filled::fill(&cluster, OBJECTS / 100);
    let etcd = Etcd::start(&cluster, 1);
    let store = |to: &str| {
        let mut command = Command::new(harness::edge_binary());
        command.args(["store", "migrate", to]).arg(format!("--datastore-endpoint={}", etcd.endpoints()));
        command.arg(format!("--data-dir={}", cluster.data_dir().display()));
        let begun = Instant::now();
        success(to, command.output().unwrap());
        begun.elapsed()
    };
    let there = store("--to=etcd");
    row(&format!("edge store migrate --to=etcd, {OBJECTS} objects"), &seconds(there), "5 s");
    std::fs::rename(cluster.data_dir().join("server/db"), cluster.dir.join("old")).unwrap();
    row(&format!("edge store migrate --to=local, {OBJECTS} objects"), &seconds(store("--to=local")), "5 s");
}

/// Does something again and again on so many tasks; gives how often a second it was done.
async fn rate<F: Future<Output = ()> + Send>(
    tasks: usize,
    time: Duration,
    work: impl Fn(usize, usize) -> F + Send + Sync + Clone + 'static,
) -> f64 {
    let done = Arc::new(AtomicUsize::new(0));
    let end = Instant::now() + time;
    let all = (0..tasks).map(|task| {
        let (done, work) = (done.clone(), work.clone());
        tokio::spawn(async move {
            for i in 0.. {
                if Instant::now() >= end {
                    return;
                }
                work(task, i).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    futures::future::join_all(all.collect::<Vec<_>>()).await;
    done.load(Ordering::Relaxed) as f64 / time.as_secs_f64()
}

/// What an object is in the store: as many bytes.
fn value() -> Bytes {
    let object = map("m-00-0000");
    Bytes::from(serde_json::to_vec(&object).unwrap().repeat(2))
}

fn map(name: &str) -> ConfigMap {
    let data = json!({"key": "value ".repeat(20)});
    serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap()
}

/// Creations by the API with etcd as the store, beside bare puts of the same size into the same etcd by as many clients.
async fn rates(time: Duration) {
    let mut cluster = Cluster::prepare(&[]);
    let etcd = Etcd::start(&cluster, 1);
    cluster.add_flag(format!("--datastore-endpoint={}", etcd.endpoints()));
    tokio::task::block_in_place(|| cluster.launch());
    for tasks in [1, 10, 64] {
        let options = EtcdOptions { endpoints: etcd.endpoints(), ..EtcdOptions::default() };
        let store = Arc::new(Client::connect(&options).await.unwrap());
        let value = value();
        let bare = rate(tasks, time, move |task, i| {
            let (store, value) = (store.clone(), value.clone());
            async move {
                let key = format!("/bare/{task}-{i}").into();
                let put = Op::Put { key, value, class: Class::Durable };
                store.transact(Transaction { compares: Vec::new(), ops: vec![put] }).await.unwrap();
            }
        })
        .await;
        // connections as a controller manager has them: few, and each with many requests
        let clients = futures::future::join_all((0..tasks.min(10)).map(|_| connect(&cluster))).await;
        let api = rate(tasks, time, move |task, i| {
            let api: Api<ConfigMap> = Api::default_namespaced(clients[task % clients.len()].clone());
            async move {
                api.create(&PostParams::default(), &map(&format!("m-{tasks}-{task}-{i}"))).await.unwrap();
            }
        })
        .await;
        row(&format!("bare puts into etcd, {tasks} at a time"), &format!("{bare:.0} /s"), "");
        row(
            &format!("creates by the API on etcd, {tasks} at a time"),
            &format!("{api:.0} /s"),
            &format!("{:.0} %", 100.0 * api / bare),
        );
    }
    let perf = etcd.ctl(&["check", "perf", "--load=l"]);
    let text = String::from_utf8_lossy(&perf.stdout).into_owned();
    let said = text.lines().find(|line| line.contains("hroughput")).unwrap_or("nothing");
    println!("etcdctl check perf --load=l: {}", said.trim());
}
