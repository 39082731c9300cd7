//! Self-healing, scaling, and updates that lose no request.

use crate::harness::{Cluster, eventually, http_get};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: web
        image: echo:v1
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 1}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
"#;

#[test]
fn what_dies_comes_back() {
    let cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);

    // a killed process restarts in place
    let pod = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    let address = cluster.kubectl(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"]);
    let address: SocketAddr = format!("{address}:8080").parse().unwrap();
    let _ = cluster.inside(|| http_get(address, "/exit/1"));
    cluster.wait_for(&format!("pod/{pod}"), "jsonpath={.status.containerStatuses[0].restartCount}=1");
    cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");

    // a deleted pod is replaced
    cluster.kubectl(&["delete", "pod", &pod]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    eventually("two other pods", || {
        let pods = cluster.get(&["pods", "-l", "app=web"]);
        let names: Vec<_> = pods["items"].as_array().unwrap().iter().map(|p| p["metadata"]["name"].clone()).collect();
        if names.len() == 2 && !names.contains(&pod.clone().into()) { Ok(()) } else { Err(format!("{names:?}")) }
    });

    // up and down
    cluster.kubectl(&["scale", "deploy/web", "--replicas=4"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    cluster.kubectl(&["scale", "deploy/web", "--replicas=0"]);
    cluster.kubectl(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"]);
}

#[test]
fn a_rolling_update_loses_no_request() {
    let cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let address = SocketAddr::new(cluster.ip.into(), 30080);
    eventually("the service answers", || http_get(address, "/"));

    let stop = AtomicBool::new(false);
    let (good, new) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = std::thread::scope(|s| {
        let load = s.spawn(|| {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match http_get(address, "/") {
                    Ok(body) => {
                        good.fetch_add(1, Ordering::Relaxed);
                        new.fetch_add(usize::from(body.contains("version=v2")), Ordering::Relaxed);
                    }
                    Err(e) => failures.push(e),
                }
            }
            failures
        });
        cluster.kubectl(&["set", "image", "deploy/web", "web=echo:v2"]);
        let rolled =
            cluster.try_kubectl(crate::harness::Kubectl::Newest, &["rollout", "status", "deploy/web", "--timeout=60s"]);
        eventually("some requests reach v2", || {
            if new.load(Ordering::Relaxed) > 20 { Ok(()) } else { Err("none did".into()) }
        });
        stop.store(true, Ordering::Relaxed);
        assert!(rolled.status.success());
        load.join().unwrap()
    });
    assert!(
        failures.is_empty(),
        "{} of {} requests failed: {failures:?}",
        failures.len(),
        good.load(Ordering::Relaxed)
    );
    assert!(good.load(Ordering::Relaxed) > 50);
}
