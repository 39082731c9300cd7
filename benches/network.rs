//! The figures of services, policies and names, each beside its goal.
//!
//! `scripts/bench network` runs this with the release binary, as root. Nothing is asserted: figures depend on the machine.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should say where and stop")]
#![expect(dead_code, unused_imports, reason = "the tests' harness has more than is needed here")]

mod common;
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use common::connect;
use edge_client::Change;
use edge_network::{Backend, NodeConfig, NodeNetwork};
use edge_sys::netns;
use futures::StreamExt;
use harness::Cluster;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SERVICES: u32 = 5000;
const ENDPOINTS: u32 = 4;

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    println!("{:<58} {:>16}   goal", "figure", "edge");
    programming();
    // on a thread of its own, as it keeps to one processor
    std::thread::spawn(move || names(if quick { 100_000 } else { 500_000 })).join().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    cluster(&runtime, if quick { 50 } else { 200 });
}

fn row(name: &str, edge: &str, goal: &str) {
    println!("{name:<58} {edge:>16}   {goal}");
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// Median and the time that one in a hundred exceeds.
fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn both(times: Vec<Duration>) -> String {
    let (median, p99) = quantiles(times);
    format!("{:.2} / {:.2} ms", median.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3)
}

/// The cluster IP of a service.
fn cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 43, 16, 0)) + n)
}

fn service(n: u32) -> Service {
    let ip = cluster_ip(n).to_string();
    serde_json::from_value(json!({"metadata": {"name": format!("s{n}"), "namespace": "default"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}))
    .unwrap()
}

/// A slice with so many endpoints; the first one is `first` where that is given.
fn slice(n: u32, first: Option<SocketAddr>, endpoints: u32) -> EndpointSlice {
    let address = |e: u32| Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 42, 64, 0)) + n * ENDPOINTS + e).to_string();
    let addresses = (0..endpoints).map(|e| match first {
        Some(first) if e == 0 => first.ip().to_string(),
        _ => address(e),
    });
    let endpoints: Vec<Value> = addresses.map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    let port = first.map_or(8080, |first| first.port());
    serde_json::from_value(json!({"metadata": {"name": format!("s{n}"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": format!("s{n}")}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": port, "protocol": "TCP"}]}))
    .unwrap()
}

fn applied<K>(new: K) -> Change<K> {
    Change::Applied { old: None, new: Arc::new(new) }
}

/// The service proxy alone, in a network of its own: from objects to rules.
fn programming() {
    let dir = tempfile::tempdir().unwrap();
    let namespace = dir.path().join("ns");
    netns::create(&namespace).unwrap();
    let mut model = edge_proxy::Model::new(edge_proxy::Node { name: "here".into(), dns_addresses: Vec::new() });
    let objects: Vec<_> = (0..SERVICES).map(|n| (service(n), slice(n, None, ENDPOINTS))).collect();
    netns::run_in(&namespace, || {
        let network = NodeNetwork::set_up(node_config(dir.path())).unwrap();
        let start = Instant::now();
        for (service, slice) in objects {
            model.service_changed(&applied(service));
            model.slice_changed(&applied(slice));
        }
        model.refresh();
        let compiled = start.elapsed();
        network.apply_services(model.table()).unwrap();
        row("5,000 services x 4 endpoints: objects to kernel, at once", &ms(start.elapsed()), "<= 1 s");
        row("  of which compilation", &ms(compiled), "");
        // a new process with the kernel's table as it is
        drop(network);
        let start = Instant::now();
        let network = NodeNetwork::set_up(node_config(dir.path())).unwrap();
        network.apply_services(model.table()).unwrap();
        row("  the same after a restart, the kernel's table adopted", &ms(start.elapsed()), "");
        let times = (0..200).map(|n| {
            model.slice_changed(&applied(slice(n, None, ENDPOINTS - 1)));
            let start = Instant::now();
            network.change_services(model.refresh()).unwrap();
            start.elapsed()
        });
        row("  one endpoint less, kernel's part (median / p99)", &both(times.collect()), "");
        network.teardown().unwrap();
    })
    .unwrap();
    netns::delete(&namespace).unwrap();
}

fn node_config(dir: &Path) -> NodeConfig {
    NodeConfig {
        run_dir: dir.join("run"),
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
        dns_addresses: Vec::new(),
        node_port_networks: Vec::new(),
        node_addresses: Vec::new(),
        wireguard_key: dir.join("wireguard.key"),
        backend: Backend::HostGw,
        cni: Default::default(),
    }
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    // a machine with one processor has only the first
    let _ = sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
}

/// Processor time of this thread.
fn own_cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|t| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000))
        .sum()
}

/// A query for the address of a service, as bytes.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The DNS server on one processor with the names of 5,000 services; the other one asks.
fn names(count: usize) {
    let (tell, told) = std::sync::mpsc::channel();
    let done = Arc::new(AtomicBool::new(false));
    let until = done.clone();
    let server = std::thread::spawn(move || {
        pin(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let zone = "cluster.local.".parse().unwrap();
            let mut records = edge_dns::Records::new(zone, Vec::new());
            records.namespace_changed("default", true);
            for n in 0..SERVICES {
                records.service_changed(&applied(service(n)));
                records.slice_changed(&applied(slice(n, None, ENDPOINTS)));
            }
            records.set_complete();
            let metrics = Arc::new(edge_dns::Metrics::default());
            let upstream = edge_dns::Upstream::new("/dev/null".into(), Vec::new(), metrics.clone());
            let records = Arc::new(parking_lot::RwLock::new(records));
            let server = edge_dns::Server::bind(&["127.0.0.1:0".parse().unwrap()], records, upstream, metrics).await;
            let server = server.unwrap();
            tell.send(server.addresses().unwrap()[0]).unwrap();
            let cpu = own_cpu();
            let end = async {
                while !until.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! { () = server.run() => {}, () = end => {} }
            own_cpu() - cpu
        })
    });
    let address = told.recv().unwrap();
    pin(1);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let queries: Vec<Vec<u8>> =
        (0..1000).map(|n| query(n, &format!("s{}.default.svc.cluster.local", n * 5 % 5000))).collect();
    let mut answer = [0; 512];
    let mut latencies = Vec::new();
    for query in queries.iter().cycle().take(2000) {
        let start = Instant::now();
        socket.send(query).unwrap();
        let length = socket.recv(&mut answer).unwrap();
        latencies.push(start.elapsed());
        assert!(length > query.len() && answer[3] & 0xf == 0, "no error");
    }
    row("DNS: answer to one client that waits (median / p99)", &both(latencies), "< 1 ms");
    let (start, mut sent, mut received) = (Instant::now(), 0, 0);
    while received < count {
        while sent < count && sent - received < 64 {
            socket.send(&queries[sent % queries.len()]).unwrap();
            sent += 1;
        }
        match socket.recv(&mut answer) {
            Ok(_) => received += 1,
            // a datagram was lost
            Err(_) => received = sent,
        }
    }
    let took = start.elapsed();
    done.store(true, Ordering::Relaxed);
    let cpu = server.join().unwrap();
    row(
        "DNS: answers per second, server on one core",
        &format!("{:.0}", count as f64 / took.as_secs_f64()),
        ">= 50000",
    );
    row("  per second of the server's processor time", &format!("{:.0}", count as f64 / cpu.as_secs_f64()), ">= 50000");
}

/// Tells when the kernel's tables change.
struct RuleEvents(OwnedFd);

/// nfnetlink's group for changes of nftables, as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;

impl RuleEvents {
    fn of(cluster: &Cluster) -> Self {
        Self(cluster.inside(|| {
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                Some(SockProtocol::NetlinkNetFilter),
            )
            .unwrap();
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP)).unwrap();
            let patience = nix::sys::time::TimeVal::new(10, 0);
            setsockopt(&fd, sockopt::ReceiveTimeout, &patience).unwrap();
            fd
        }))
    }

    fn drain(&self) {
        let mut buffer = [0; 65536];
        // what overflowed is of no interest either
        while !matches!(recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT), Err(nix::errno::Errno::EAGAIN)) {
        }
    }

    /// When something has changed.
    fn next(&self) -> Instant {
        let mut buffer = [0; 65536];
        recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("rules change within ten seconds");
        Instant::now()
    }
}

/// Memory of all that is edge's, in MiB.
fn memory(cluster: &Cluster) -> f64 {
    common::processes(cluster).iter().map(|process| common::pss_kib(process)).sum::<u64>() as f64 / 1024.0
}

/// Connections from the node to a service, which a server outside of the cluster accepts.
fn connections(cluster: &Cluster, to: SocketAddr, count: usize) -> Vec<Duration> {
    cluster.inside(|| {
        (0..count)
            .map(|_| {
                let start = Instant::now();
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
                let took = start.elapsed();
                // a reset leaves no port in TIME_WAIT
                let _ = setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 });
                took
            })
            .collect()
    })
}

/// A whole server with all of its parts.
fn cluster(runtime: &tokio::runtime::Runtime, rounds: usize) {
    let mut cluster = Cluster::start();
    let outside = cluster.address(1);
    let listener = TcpListener::bind((outside, 0)).unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    std::thread::sleep(Duration::from_secs(5));
    let before = memory(&cluster);
    let client = runtime.block_on(connect(&cluster));
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let make = |numbers: std::ops::Range<u32>| {
        let (services, slices) = (services.clone(), slices.clone());
        runtime.block_on(async move {
            let each = futures::stream::iter(numbers).map(|n| {
                let (services, slices) = (services.clone(), slices.clone());
                // the first and the last one lead somewhere
                let first = [0, SERVICES - 1].contains(&n).then_some(target);
                let endpoints = if first.is_some() { 1 } else { ENDPOINTS };
                async move {
                    services.create(&PostParams::default(), &service(n)).await.unwrap();
                    slices.create(&PostParams::default(), &slice(n, first, endpoints)).await.unwrap();
                }
            });
            each.buffer_unordered(32).collect::<Vec<()>>().await;
        });
    };
    let at = |n: u32| SocketAddr::new(cluster_ip(n).into(), 80);
    let answers = |cluster: &Cluster, n: u32| {
        cluster.inside(|| {
            while TcpStream::connect_timeout(&at(n), Duration::from_millis(200)).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    };
    make(0..1);
    answers(&cluster, 0);
    let few = connections(&cluster, at(0), rounds * 10);
    let start = Instant::now();
    make(1..SERVICES);
    let created = start.elapsed();
    answers(&cluster, SERVICES - 1);
    row("5,000 services and slices made by the API, until the last answers", &ms(start.elapsed()), "");
    row("  of which until the API has them all", &ms(created), "");
    let many = connections(&cluster, at(0), rounds * 10);
    let (one, all) = (quantiles(few).0, quantiles(many).0);
    row("connection to a service, 1 service (median)", &format!("{:.1} us", one.as_secs_f64() * 1e6), "");
    let change = (all.as_secs_f64() / one.as_secs_f64() - 1.0) * 100.0;
    row(
        "connection to a service, 5,000 services (median)",
        &format!("{:.1} us {change:+.0} %", all.as_secs_f64() * 1e6),
        "within 10 %",
    );

    let events = RuleEvents::of(&cluster);
    let mut times = Vec::new();
    for n in 0..rounds {
        let number = 1 + (n as u32 * 7) % (SERVICES - 2);
        let new = slice(number, None, if n % 2 == 0 { ENDPOINTS - 1 } else { ENDPOINTS + 1 });
        events.drain();
        let patch = Patch::Merge(json!({"endpoints": new.endpoints}));
        let start = Instant::now();
        runtime.spawn({
            let slices = slices.clone();
            async move {
                slices.patch(&format!("s{number}"), &PatchParams::default(), &patch).await.unwrap();
            }
        });
        times.push(events.next() - start);
        std::thread::sleep(Duration::from_millis(5));
    }
    row("an endpoint changes, API write to kernel rule (median / p99)", &both(times), "<= 10 ms");

    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: bench}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'busybox:test', command: [sleep, '100000']}]}}",
    );
    cluster.wait_for("pod/bench", "condition=Ready");
    std::thread::sleep(Duration::from_millis(500));
    let policies: Api<NetworkPolicy> = Api::default_namespaced(client.clone());
    let policy: NetworkPolicy = serde_json::from_value(
        json!({"metadata": {"name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}),
    )
    .unwrap();
    let mut times = Vec::new();
    for n in 0..rounds {
        events.drain();
        let (policies, policy) = (policies.clone(), policy.clone());
        let start = Instant::now();
        runtime.spawn(async move {
            if n % 2 == 0 {
                policies.create(&PostParams::default(), &policy).await.unwrap();
            } else {
                policies.delete("deny", &DeleteParams::default()).await.unwrap();
            }
        });
        times.push(events.next() - start);
        std::thread::sleep(Duration::from_millis(5));
    }
    row("a policy comes or goes, API write to kernel rule (median / p99)", &both(times), "<= 100 ms");
    cluster.kubectl(&["delete", "pod", "bench"]);
    std::thread::sleep(Duration::from_secs(5));
    let with = memory(&cluster);
    row("memory (PSS) with 5,000 services", &format!("{with:.1} MiB"), "");
    row("  without them", &format!("{before:.1} MiB"), "");

    // a reboot: the rules are gone, the data is there
    cluster.stop(nix::sys::signal::Signal::SIGTERM);
    cluster.inside(|| std::process::Command::new("nft").args(["delete", "table", "ip", "edge"]).status().unwrap());
    let start = Instant::now();
    cluster.launch();
    answers(&cluster, SERVICES - 1);
    row("start with 5,000 services and no rules, until the last answers", &ms(start.elapsed()), "");
    row("memory (PSS) after that", &format!("{:.1} MiB", memory(&cluster)), "");
}
