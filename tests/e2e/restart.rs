//! Containers outlive edge; acked writes outlive everything.

use crate::harness::{Cluster, Kubectl, eventually};
use nix::sys::signal::Signal;

const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "echo:v1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
"#;

fn containers(cluster: &Cluster) -> Vec<(String, String, i64)> {
    let pods = cluster.get(&["pods", "-l", "app=web"]);
    let mut out: Vec<_> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let s = &p["status"]["containerStatuses"][0];
            (
                p["metadata"]["name"].as_str().unwrap().to_owned(),
                s["containerID"].as_str().unwrap_or_default().to_owned(),
                s["restartCount"].as_i64().unwrap_or(-1),
            )
        })
        .collect();
    out.sort();
    out
}

#[test]
fn containers_outlive_edge() {
    let mut cluster = Cluster::start();
    cluster.apply(PODS);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let address = std::net::SocketAddr::new(cluster.ip.into(), 30081);
    eventually("the service answers", || crate::harness::http_get(address, "/"));
    let before = containers(&cluster);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let status = cluster.stop(signal);
        if signal == Signal::SIGTERM {
            assert!(status.success(), "{status}");
        }
        // nobody is at the wheel, and the service still answers
        for _ in 0..10 {
            crate::harness::http_get(address, "/").unwrap();
        }
        cluster.launch();
        cluster.wait_for("node/node-1", "condition=Ready");
        assert_eq!(containers(&cluster), before, "after {signal}");
        cluster.kubectl(&["exec", &before[0].0, "--", "cat", "/proc/uptime"]);
        cluster.kubectl(&["logs", &before[0].0]);
    }

    // what ends while edge is away is found out
    cluster.stop(Signal::SIGKILL);
    let _ = cluster.inside(|| crate::harness::http_get("127.0.0.1:30081".parse().unwrap(), "/exit/9"));
    cluster.launch();
    eventually("one container restarted", || {
        let now = containers(&cluster);
        let restarted: i64 = now.iter().map(|c| c.2).sum();
        if restarted == 1 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let pods = cluster.get(&["pods", "-l", "app=web"]).to_string();
    assert!(pods.contains("\"exitCode\":9"), "{pods}");
}

#[test]
fn no_acked_write_is_lost_by_kill_9() {
    let mut cluster = Cluster::start();
    let mut acked = Vec::new();
    let mut last_version = 0u64;
    for round in 0..4 {
        for i in 0..15 {
            let name = format!("cm-{round}-{i}");
            let out = cluster.try_kubectl(
                Kubectl::Newest,
                &["create", "cm", &name, "--from-literal=a=b", "-o", "jsonpath={.metadata.resourceVersion}"],
            );
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let version: u64 = String::from_utf8_lossy(&out.stdout).parse().unwrap();
            assert!(version > last_version, "{version} after {last_version}");
            last_version = version;
            acked.push(name);
        }
        cluster.stop(Signal::SIGKILL);
        cluster.launch();
    }
    let names = cluster.kubectl(&["get", "cm", "-o", "name"]);
    for name in acked {
        assert!(names.contains(&format!("configmap/{name}\n")), "{name} is lost");
    }
}
