//! The figures of the pod network between machines, beside the same path made by hand with `ip`.
//!
//! `scripts/bench pod_network` runs this with the release binary, as root. Nothing is asserted: figures depend on the machine.
//!
//! Both paths are measured in turn, so that whatever else the machine does falls on both.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should say where and stop")]
#![expect(dead_code, unused_imports, reason = "the tests' harness has more than is needed here")]

#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use futures::{StreamExt, TryStreamExt};
use harness::network::{inside, ip};
use harness::{Agent, Cluster, eventually};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long one stream runs, and how often each path is measured.
const STREAM: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

fn main() {
    println!("{:<44} {:>14} {:>14}", "figure", "edge", "by hand");
    for (name, backend, vxlan) in [("directly", "host-gw", false), ("by VXLAN", "vxlan", true)] {
        let flag = format!("--network={backend}");
        let cluster = Cluster::start_with(&[&flag]);
        let agents = [1, 2].map(|n| Agent::start(&cluster, n));
        if !vxlan {
            first_packets(&cluster, &agents);
        }
        let pods = [1, 2].map(|n| pod(&cluster, &agents[n - 1], &format!("stream-{n}")));
        let plain = Plain::new(vxlan);
        let (mut edge, mut by_hand) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            edge.push(throughput(&pods[0].0, &pods[1].0, pods[1].1));
            by_hand.push(throughput(&plain.pod(1), &plain.pod(2), "10.77.2.2".parse().unwrap()));
        }
        let (edge, by_hand) = (median(&mut edge), median(&mut by_hand));
        println!(
            "{:<44} {:>9.2} Gb/s {:>9.2} Gb/s  {:.0} %",
            format!("one TCP stream between nodes, {name}"),
            edge,
            by_hand,
            edge / by_hand * 100.0
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Gigabits a second of one stream between two namespaces.
fn throughput(from: &File, to: &File, address: IpAddr) -> f64 {
    let listener = inside(to, || TcpListener::bind((address, 0)).unwrap());
    let at = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut bytes) = (vec![0; 1 << 18], 0_u64);
        let start = Instant::now();
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64(),
                n => bytes += n as u64,
            }
        }
    });
    let mut stream = inside(from, || TcpStream::connect(at).unwrap());
    let (buffer, start) = (vec![0; 1 << 18], Instant::now());
    while start.elapsed() < STREAM {
        stream.write_all(&buffer).unwrap();
    }
    drop(stream);
    receiver.join().unwrap()
}

fn manifest(name: &str, node: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": "echo:v1"}]}
    }))
    .unwrap()
}

fn netns(agent: &Agent, uid: &str) -> PathBuf {
    agent.dir.join("data/run/network/netns").join(uid)
}

/// A pod's namespace and address.
fn pod(cluster: &Cluster, agent: &Agent, name: &str) -> (File, IpAddr) {
    cluster.apply(&serde_json::to_string(&manifest(name, &agent.name)).unwrap());
    cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    let pod = cluster.get(&["pod", name]);
    let address = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
    (File::open(netns(agent, pod["metadata"]["uid"].as_str().unwrap())).unwrap(), address)
}

/// How long after both of two new pods on two nodes are Running the first connection between them stands.
fn first_packets(cluster: &Cluster, agents: &[Agent; 2]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let times = runtime.block_on(async {
        let mut kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        for c in &mut kubeconfig.clusters {
            c.cluster.as_mut().unwrap().server = Some(format!("https://{}:6443", cluster.ip));
        }
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let pods: Api<Pod> = Api::default_namespaced(kube::Client::try_from(config).unwrap());
        let mut times = Vec::new();
        for round in 0..10 {
            let version = pods.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap();
            let mut watch = pods.watch(&WatchParams::default(), &version).await.unwrap().boxed();
            for (n, agent) in agents.iter().enumerate() {
                let pod = manifest(&format!("first-{round}-{n}"), &agent.name);
                pods.create(&PostParams::default(), &pod).await.unwrap();
            }
            let mut running = std::collections::BTreeMap::new();
            while running.len() < 2 {
                let Some(event) = watch.try_next().await.unwrap() else { break };
                let WatchEvent::Modified(pod) = event else { continue };
                let status = pod.status.unwrap_or_default();
                if status.phase.as_deref() == Some("Running") {
                    let address: IpAddr = status.pod_ip.unwrap().parse().unwrap();
                    running.insert(pod.spec.unwrap().node_name.unwrap(), (pod.metadata.uid.unwrap(), address));
                }
            }
            let start = Instant::now();
            let (uid, _) = &running[&agents[0].name];
            let (_, to) = running[&agents[1].name];
            let from = File::open(netns(&agents[0], uid)).unwrap();
            tokio::task::block_in_place(|| {
                eventually("the first packet", || {
                    inside(&from, || TcpStream::connect_timeout(&SocketAddr::new(to, 8080), Duration::from_secs(1)))
                        .map_err(|e| e.to_string())
                })
            });
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times
    });
    let mut times = times;
    let median = median(&mut times);
    let worst = times.last().unwrap();
    println!(
        "{:<44} {:>11.1} ms   (worst of 10: {worst:.1} ms)",
        "first connection between new pods of two nodes", median
    );
}

/// The same path without edge: a pod's namespace, a bridge in a node's, the nodes on one network.
struct Plain;

impl Plain {
    fn new(vxlan: bool) -> Self {
        let plain = Self;
        plain.delete();
        ip(&["netns", "add", "edge-plain"]);
        ip(&["-n", "edge-plain", "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", "edge-plain", "link", "set", "br0", "up"]);
        let mtu = if vxlan { "1450" } else { "1500" };
        for n in 1..=2 {
            let (node, pod) = (format!("edge-plain-n{n}"), format!("edge-plain-p{n}"));
            for namespace in [&node, &pod] {
                ip(&["netns", "add", namespace]);
                ip(&["-n", namespace, "link", "set", "lo", "up"]);
            }
            let port = format!("port{n}");
            ip(&["-n", "edge-plain", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &node]);
            ip(&["-n", "edge-plain", "link", "set", &port, "master", "br0", "up"]);
            ip(&["-n", &node, "addr", "add", &format!("192.0.2.{n}/24"), "dev", "eth0"]);
            ip(&["-n", &node, "link", "set", "eth0", "up"]);
            ip(&["-n", &node, "link", "add", "cni0", "type", "bridge"]);
            ip(&["-n", &node, "addr", "add", &format!("10.77.{n}.1/24"), "dev", "cni0"]);
            ip(&["-n", &node, "link", "set", "cni0", "up"]);
            ip(&[
                "-n", &node, "link", "add", "veth0", "mtu", mtu, "type", "veth", "peer", "name", "eth0", "mtu", mtu,
                "netns", &pod,
            ]);
            ip(&["-n", &node, "link", "set", "veth0", "master", "cni0", "up"]);
            ip(&["-n", &pod, "addr", "add", &format!("10.77.{n}.2/24"), "dev", "eth0"]);
            ip(&["-n", &pod, "link", "set", "eth0", "up"]);
            ip(&["-n", &pod, "route", "add", "default", "via", &format!("10.77.{n}.1")]);
            inside(&harness::network::open(&node), || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
            let (other, mac) = (3 - n, |n: i32| format!("0a:58:0a:4d:0{n}:01"));
            if vxlan {
                ip(&["-n", &node, "link", "add", "vx0", "type", "vxlan", "id", "1", "dstport", "8472", "nolearning"]);
                ip(&["-n", &node, "link", "set", "vx0", "address", &mac(n), "mtu", mtu, "up"]);
                let (via, to) = (format!("10.77.{other}.0"), format!("192.0.2.{other}"));
                ip(&["-n", &node, "neigh", "add", &via, "lladdr", &mac(other), "dev", "vx0", "nud", "permanent"]);
                let fdb = ["-n", &node, "fdb", "append", &mac(other), "dev", "vx0", "dst", &to];
                assert!(Command::new("bridge").args(fdb).status().unwrap().success());
                ip(&["-n", &node, "route", "add", &format!("10.77.{other}.0/24"), "via", &via, "dev", "vx0", "onlink"]);
            } else {
                ip(&["-n", &node, "route", "add", &format!("10.77.{other}.0/24"), "via", &format!("192.0.2.{other}")]);
            }
        }
        plain
    }

    fn pod(&self, n: u8) -> File {
        harness::network::open(&format!("edge-plain-p{n}"))
    }

    fn delete(&self) {
        for name in ["edge-plain", "edge-plain-n1", "edge-plain-n2", "edge-plain-p1", "edge-plain-p2"] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.delete();
    }
}
