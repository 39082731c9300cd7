//! `metrics.k8s.io`: what kubelets tell becomes what metrics-server would answer.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, NoNode, PROTOBUF, Request, user};
use edge_apiserver::{NodeDialer, Stream};
use edge_schema::{Schema, proto};
use http::Response;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const API: &str = "/apis/metrics.k8s.io/v1beta1";

/// The kubelet of node `a`, whose pod uses a quarter of a processor; that of `broken` answers nonsense, others none.
struct Kubelets {
    asked: AtomicUsize,
    started: Instant,
}

impl Kubelets {
    fn summary(&self) -> Value {
        let (now, used) = (Timestamp::now(), u64::try_from(self.started.elapsed().as_nanos()).unwrap());
        let figures = |share: u64, memory: u64| {
            let cpu = json!({"time": now, "usageCoreNanoSeconds": used / 100 * share});
            (cpu, json!({"time": now, "workingSetBytes": memory, "usageBytes": memory * 2}))
        };
        let container = |name: &str, share: u64| {
            let (cpu, memory) = figures(share, 3 << 20);
            json!({"name": name, "startTime": "2026-01-01T00:00:00Z", "cpu": cpu, "memory": memory})
        };
        let (cpu, memory) = figures(150, 1 << 30);
        json!({
            "node": {"nodeName": "a", "cpu": cpu, "memory": memory},
            "pods": [{"podRef": {"name": "p", "namespace": "default", "uid": "u"},
                "containers": [container("c", 20), container("sidecar", 5)]}],
        })
    }
}

struct Dialer(Arc<Kubelets>);

#[async_trait::async_trait]
impl NodeDialer for Dialer {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Stream>> {
        if !["a", "broken"].contains(&node) {
            return NoNode.dial(node).await;
        }
        let (near, far) = tokio::io::duplex(4096);
        let (kubelets, broken) = (self.0.clone(), node == "broken");
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| {
                assert_eq!(request.uri(), "/stats/summary?only_cpu_and_memory=true");
                kubelets.asked.fetch_add(1, Ordering::Relaxed);
                let text = if broken { "<html>".to_owned() } else { kubelets.summary().to_string() };
                async move { Ok::<_, Infallible>(Response::new(text)) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await;
        });
        Ok(Box::new(near))
    }
}

async fn cluster() -> (Cluster, Arc<Kubelets>) {
    let kubelets = Arc::new(Kubelets { asked: AtomicUsize::new(0), started: Instant::now() });
    let dialer = Arc::new(Dialer(kubelets.clone()));
    let c = Cluster::start_with(tempfile::tempdir().unwrap(), dialer, true).await;
    for node in ["a", "b", "broken"] {
        c.create("/api/v1/nodes", &json!({"metadata": {"name": node, "labels": {"is": node}}})).await;
    }
    for (pod, node) in [("p", "a"), ("q", "b"), ("new", "a")] {
        let pod = json!({"metadata": {"name": pod, "labels": {"app": pod}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        c.create("/api/v1/namespaces/default/pods", &pod).await;
    }
    (c, kubelets)
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

/// Thousandths of a processor.
fn millis(usage: &Value) -> i64 {
    edge_api::Quantity::parse(usage["cpu"].as_str().unwrap()).unwrap().milli_value()
}

#[tokio::test]
async fn nodes_and_pods_are_told_what_they_use() {
    let (c, kubelets) = cluster().await;
    let nodes = c.get(&format!("{API}/nodes")).await;
    assert_eq!((&nodes["kind"], &nodes["apiVersion"]), (&json!("NodeMetricsList"), &json!("metrics.k8s.io/v1beta1")));
    assert_eq!(names(&nodes), ["a"], "nothing of nodes that do not answer");
    let node = &nodes["items"][0];
    assert!((1400..=1600).contains(&millis(&node["usage"])), "{node}");
    assert_eq!(node["usage"]["memory"], "1Gi");
    assert_eq!(node["metadata"]["labels"]["is"], "a");
    let window = edge_api::duration::parse(node["window"].as_str().unwrap()).unwrap();
    assert!((1_000_000_000..3_000_000_000).contains(&window), "{node}");

    let asked = kubelets.asked.load(Ordering::Relaxed);
    let path = format!("{API}/namespaces/default/pods/p");
    let pod = futures::future::join_all((0..20).map(|_| c.get(&path))).await.remove(0);
    let asked = kubelets.asked.load(Ordering::Relaxed) - asked;
    assert!(asked <= 5, "who asks at the same time as others shares what was fetched: {asked} times for 20");
    assert_eq!(pod["kind"], "PodMetrics");
    assert_eq!((&pod["containers"][0]["name"], &pod["containers"][1]["name"]), (&json!("c"), &json!("sidecar")));
    assert!((180..=220).contains(&millis(&pod["containers"][0]["usage"])), "{pod}");
    assert!((45..=55).contains(&millis(&pod["containers"][1]["usage"])), "{pod}");
    assert_eq!(pod["containers"][0]["usage"]["memory"], "3Mi");

    for (query, want) in [
        ("pods", &["p"][..]),
        ("namespaces/default/pods?labelSelector=app%3Dp", &["p"]),
        ("namespaces/default/pods?labelSelector=app%3Dq", &[]),
        ("namespaces/default/pods?fieldSelector=metadata.name%3Dp", &["p"]),
        ("namespaces/kube-system/pods", &[]),
        ("nodes?labelSelector=is%3Da", &["a"]),
        ("nodes?fieldSelector=metadata.name%3Db", &[]),
    ] {
        assert_eq!(names(&c.get(&format!("{API}/{query}")).await), want, "{query}");
    }
}

#[tokio::test]
async fn what_is_not_known_and_what_is_not_there() {
    let (c, kubelets) = cluster().await;
    let refused = async |method: &str, path: &str, code: u16, reason: &str| {
        c.send(Request::new(method, &format!("{API}/{path}"))).await.status(code, reason)["message"].clone()
    };
    for (path, message) in [
        ("nodes/none", "nodes \"none\" not found"),
        ("nodes/b", "nodes.metrics.k8s.io \"b\" not found"),
        ("nodes/broken", "nodes.metrics.k8s.io \"broken\" not found"),
        ("namespaces/default/pods/q", "pods.metrics.k8s.io \"default/q\" not found"),
        ("namespaces/default/pods/new", "pods.metrics.k8s.io \"default/new\" not found"),
        ("namespaces/default/pods/none", "pods \"none\" not found"),
    ] {
        assert_eq!(refused("GET", path, 404, "NotFound").await, message);
    }
    assert!(kubelets.asked.load(Ordering::Relaxed) > 0);
    refused("POST", "namespaces/default/pods", 405, "MethodNotAllowed").await;
    refused("DELETE", "nodes/a", 405, "MethodNotAllowed").await;
    refused("GET", "nodes?watch=true", 405, "MethodNotAllowed").await;
    refused("GET", "nodes?labelSelector=%21%21", 400, "BadRequest").await;
    refused("GET", "namespaces/default/pods?fieldSelector=spec.nothing%3Da", 400, "BadRequest").await;
}

#[tokio::test]
async fn forms_and_rights() {
    let (c, _kubelets) = cluster().await;
    let pods = format!("{API}/namespaces/default/pods");
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = c.send(Request::new("GET", &pods).accept(table)).await.ok();
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "cpu", "memory", "Window"]);
    let cells = &table["rows"][0]["cells"];
    assert_eq!((&cells[0], &cells[2]), (&json!("p"), &json!("6Mi")), "the containers together");

    let answer = c.send(Request::new("GET", &pods).accept(PROTOBUF)).await;
    let decoded = proto::decode(Schema::builtin(), &answer.bytes, None).unwrap();
    let json = c.get(&pods).await;
    let (decoded, json) = (&decoded["items"][0], &json["items"][0]);
    for container in [0, 1] {
        let [a, b] = [decoded, json].map(|pod| pod["containers"][container].clone());
        assert_eq!((&a["name"], &a["usage"]["memory"]), (&b["name"], &b["usage"]["memory"]));
        assert!(millis(&a["usage"]).abs_diff(millis(&b["usage"])) < 20, "{a} {b}");
    }
    assert!(edge_api::duration::parse(decoded["window"].as_str().unwrap()).unwrap() >= 1_000_000_000, "{decoded}");
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let partial = c.send(Request::new("GET", &pods).accept(partial)).await.ok();
    assert_eq!((names(&partial), &partial["items"][0]["containers"]), (vec!["p"], &Value::Null));

    c.send(Request::new("GET", &pods).from(user("u"))).await.status(403, "Forbidden");
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:aggregated-metrics-reader"});
    let binding = json!({"metadata": {"name": "b"}, "roleRef": role, "subjects": [{"kind": "User", "name": "u"}]});
    c.create("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding).await;
    c.send(Request::new("GET", &pods).from(user("u"))).await.ok();
    c.send(Request::new("GET", &format!("{API}/nodes")).from(user("u"))).await.status(403, "Forbidden");
    let role = c.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:aggregated-metrics-reader").await;
    for to in ["view", "edit", "admin"] {
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        assert_eq!(role["metadata"]["labels"][label], "true");
    }
}

#[tokio::test]
async fn it_is_discovered_unless_it_is_left_out() {
    let c = Cluster::start().await;
    let groups = c.get("/apis").await;
    let last = groups["groups"].as_array().unwrap().last().unwrap();
    assert_eq!(last["name"], "metrics.k8s.io", "after all whose names of resources it has, too");
    let resources = c.get(API).await;
    let pods = &resources["resources"][1];
    assert_eq!((&pods["kind"], &pods["verbs"]), (&json!("PodMetrics"), &json!(["get", "list"])));
    let spec = c.get("/openapi/v3/apis/metrics.k8s.io/v1beta1").await;
    assert!(spec.pointer("/components/schemas/io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics").is_some());
    assert_eq!(c.count(&format!("{API}/nodes")).await, 0);

    let without = Cluster::start_with(tempfile::tempdir().unwrap(), Arc::new(NoNode), false).await;
    assert!(!without.get("/apis").await.to_string().contains("metrics.k8s.io"));
    without.send(Request::new("GET", &format!("{API}/nodes"))).await.status(404, "NotFound");
    without.send(Request::new("GET", API)).await.status(404, "NotFound");
}
