//! The life of a node that has joined: its certificates end, its servers and addresses change, networks part and meet again.

use crate::harness::{Agent, Cluster, Kubectl, eventually};
use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, SystemTime};

fn pod(name: &str, node: &str) -> String {
    format!(
        r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node},
        terminationGracePeriodSeconds: 0, containers: [{{name: web, image: "echo:v1"}}]}}}}"#
    )
}

/// A pod runs on the node, and is reached through the node's tunnel.
fn runs_a_pod(cluster: &Cluster, name: &str, node: &str) {
    cluster.apply(&pod(name, node));
    cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    reached(cluster, name);
}

fn reached(cluster: &Cluster, pod: &str) {
    eventually("exec works", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["exec", pod, "--", "cat", "/etc/hostname"]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
}

fn wait_until_past(time: SystemTime) {
    let left = time.duration_since(SystemTime::now()).unwrap_or_default();
    std::thread::sleep(left + Duration::from_millis(1100));
}

/// The condition `Ready` of a node.
fn ready(cluster: &Cluster, node: &str) -> String {
    let query = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    cluster.kubectl(&["get", "node", node, "-o", query])
}

#[test]
fn certificates_are_renewed_without_a_restart() {
    let mut cluster = Cluster::start_with(&["--cluster-signing-duration=15s"]);
    let mut agent = Agent::start(&cluster, 1);
    runs_a_pod(&cluster, "p", "node-2");
    let first = agent.certificate();
    let left = first.not_after().duration_since(SystemTime::now()).unwrap_or_default();
    assert!(left <= Duration::from_secs(15), "the option holds: {left:?}");
    wait_until_past(first.not_after());
    // by now the server refuses requests on connections that show the first one
    runs_a_pod(&cluster, "q", "node-2");
    // and here new connections are made
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    runs_a_pod(&cluster, "r", "node-2");
    reached(&cluster, "p");
    assert!(agent.certificate().not_after() > first.not_after());
    assert!(agent.runs());
    let log = agent.log();
    assert_eq!(log.matches("joined the cluster").count(), 1, "{log}");
    assert!(log.contains("certificates renewed"), "{log}");
}

#[test]
fn a_node_returns_after_its_certificates_have_ended() {
    let cluster = Cluster::start_with(&["--cluster-signing-duration=6s"]);
    let mut agent = Agent::start(&cluster, 1);
    runs_a_pod(&cluster, "p", "node-2");
    agent.stop(Signal::SIGTERM);
    let end = agent.certificate().not_after();
    wait_until_past(end);
    // it is known by its password: no token is needed
    let token = std::mem::take(&mut agent.token);
    agent.launch();
    runs_a_pod(&cluster, "q", "node-2");
    assert!(agent.certificate().not_after() > end);

    // its name was given up meanwhile: only a token helps
    agent.stop(Signal::SIGTERM);
    cluster.kubectl(&["delete", "node", "node-2"]);
    cluster.kubectl(&["wait", "-n=kube-node-lease", "lease/node-2", "--for=delete", "--timeout=60s"]);
    wait_until_past(agent.certificate().not_after());
    let before = agent.log().len();
    agent.spawn();
    eventually("it is told that it needs a token", || {
        let log = agent.log()[before..].to_owned();
        if log.contains("does not accept the token") { Ok(()) } else { Err(log) }
    });
    // meanwhile it does not keep the server busy with connections that are refused
    let knocked = || cluster.log().matches("certificate expired").count();
    let before = knocked();
    assert!(before > 0, "the server tells of connections that it refuses");
    std::thread::sleep(Duration::from_secs(5));
    let knocked = knocked() - before;
    assert!(knocked < 30, "{knocked} connections in five seconds");
    agent.stop(Signal::SIGTERM);
    agent.token = token;
    agent.launch();
    runs_a_pod(&cluster, "r", "node-2");
}

#[test]
fn another_server_address_is_used_when_one_fails() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.ip, cluster.address(3));
    cluster.run_inside(&["ip", "addr", "add", &format!("{second}/24"), "dev", "eth0"]);
    let mut agent = Agent::prepare(&cluster, 1);
    agent.server = format!("https://{first}:6443,https://{second}:6443");
    agent.launch();
    agent.await_images();
    runs_a_pod(&cluster, "p", "node-2");
    // nobody is told that the first one is gone: packets to it vanish, and only those of the agent
    let from = cluster.address(11);
    let vanish = |to: &dyn std::fmt::Display| {
        cluster.run_inside(&["nft", "flush", "chain", "ip", "cut", "in"]);
        cluster.run_inside(&["nft", &format!("add rule ip cut in ip saddr {from} ip daddr {to} drop")]);
    };
    cluster.run_inside(&["nft", "add table ip cut; add chain ip cut in { type filter hook input priority -10; }"]);
    vanish(&first);
    runs_a_pod(&cluster, "q", "node-2");
    assert!(agent.log().contains(&format!("server=https://{second}:6443")), "{}", agent.log());
    // and back
    vanish(&second);
    runs_a_pod(&cluster, "r", "node-2");
    assert!(agent.runs());
}

#[test]
fn a_server_that_moves_is_found_by_its_name() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);
    let hosts = agent.dir.join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n{} edge.test\n", cluster.ip)).unwrap();
    agent.server = "https://edge.test:6443".into();
    agent.hosts = Some(hosts.clone());
    agent.launch();
    agent.await_images();
    runs_a_pod(&cluster, "p", "node-2");

    let moved = cluster.address(78);
    let outside = cluster.address(1).to_string();
    for args in [
        &["ip", "addr", "flush", "dev", "eth0"][..],
        &["ip", "addr", "add", &format!("{moved}/24"), "dev", "eth0"],
        &["ip", "route", "add", "default", "via", &outside],
    ] {
        cluster.run_inside(args);
    }
    // the same file: it is bound into the agent's mount namespace
    fs::write(&hosts, format!("127.0.0.1 localhost\n{moved} edge.test\n")).unwrap();
    cluster.ip = moved;
    // the server shows a certificate for its new address
    let ca = cluster.data_dir().join("server/tls/server-ca.crt");
    eventually("the server is verified at its new address", || {
        let url = format!("https://{moved}:6443/readyz");
        let out = std::process::Command::new("curl").args(["-sS", "--cacert"]).arg(&ca).arg(url).output().unwrap();
        if out.stdout == b"ok" { Ok(()) } else { Err(format!("{out:?}")) }
    });
    eventually("pods are told the new address", || {
        let slice = cluster.get(&["endpointslices", "-n", "default", "kubernetes"]);
        let address = slice["endpoints"][0]["addresses"][0].clone();
        if address == moved.to_string() { Ok(()) } else { Err(address.to_string()) }
    });
    reached(&cluster, "p");
    runs_a_pod(&cluster, "q", "node-2");
    runs_a_pod(&cluster, "on-server", "node-1");
    // what the server's node reports, and by which the agent's node reaches its pods
    eventually("the server's node has its new address", || {
        let address = cluster.get(&["node", "node-1"])["status"]["addresses"][0]["address"].clone();
        if address == moved.to_string() { Ok(()) } else { Err(address.to_string()) }
    });
    let ip = cluster.kubectl(&["get", "pod", "on-server", "-o", "jsonpath={.status.podIP}"]);
    agent.reaches(&ip);
    assert!(agent.runs());
}

#[test]
fn an_agent_that_moves_is_followed() {
    let cluster = Cluster::start();
    let agent = Agent::start(&cluster, 1);
    runs_a_pod(&cluster, "p", "node-2");
    let ip = cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.status.podIP}"]);
    cluster.reaches(&ip);
    let moved = cluster.address(77);
    agent.ip_command(&["addr", "flush", "dev", "eth0"]);
    agent.ip_command(&["addr", "add", &format!("{moved}/24"), "dev", "eth0"]);
    agent.ip_command(&["route", "add", "default", "via", &cluster.address(1).to_string()]);
    eventually("the node has its new address", || {
        let address = cluster.get(&["node", "node-2"])["status"]["addresses"][0]["address"].clone();
        if address == moved.to_string() { Ok(()) } else { Err(address.to_string()) }
    });
    eventually("its certificate holds the new address", || {
        let file = agent.dir.join("data/agent/tls/serving-kubelet.pem");
        let identity = edge_pki::Identity::load(&file).unwrap().unwrap();
        let octets = moved.octets();
        let found = identity.certificate().windows(6).any(|w| w[..2] == [0x87, 4] && w[2..] == octets);
        if found { Ok(()) } else { Err("not yet".into()) }
    });
    reached(&cluster, "p");
    // the other nodes' ways to its pods follow
    cluster.reaches(&ip);
    let status = cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.status.hostIP} {.status.podIP}"]);
    assert_eq!(status, format!("{moved} {ip}"));
}

#[test]
fn a_node_is_ready_again_after_a_partition() {
    let cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    runs_a_pod(&cluster, "p", "node-2");
    let container = |pod: &str| cluster.get(&["pod", pod])["status"]["containerStatuses"][0]["containerID"].clone();
    let before = container("p");
    agent.hear(false);
    eventually("the node is given up", || {
        let ready = ready(&cluster, "node-2");
        if ready == "Unknown" { Ok(()) } else { Err(ready) }
    });
    let taints = cluster.kubectl(&["get", "node", "node-2", "-o", "jsonpath={.spec.taints[*].key}"]);
    assert!(taints.contains("node.kubernetes.io/unreachable"), "{taints}");
    agent.hear(true);
    eventually("the node is ready", || {
        let ready = ready(&cluster, "node-2");
        if ready == "True" { Ok(()) } else { Err(ready) }
    });
    eventually("nothing keeps pods away from it", || {
        let taints = cluster.kubectl(&["get", "node", "node-2", "-o", "jsonpath={.spec.taints[*].key}"]);
        if taints.is_empty() { Ok(()) } else { Err(taints) }
    });
    cluster.wait_for("pod/p", "condition=Ready");
    reached(&cluster, "p");
    assert_eq!(container("p"), before, "nothing was restarted");
    runs_a_pod(&cluster, "q", "node-2");
    assert!(agent.runs());
}
