#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::sync::Arc;

/// A client whose requests are answered with these, by path and query.
fn api(answers: &[(&str, Value)]) -> Client {
    let answers: Arc<Vec<(String, Value)>> =
        Arc::new(answers.iter().map(|(path, value)| ((*path).to_owned(), value.clone())).collect());
    edge_client::local(move |request| {
        let answers = answers.clone();
        async move {
            let uri = request.uri().to_string();
            let found = answers.iter().find(|(path, _)| *path == uri).map(|(_, value)| value.clone());
            let code = if found.is_some() { 200 } else { 404 };
            let value = found.unwrap_or_else(|| {
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
                    "message": format!("nothing at {uri}")})
            });
            let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync();
            http::Response::builder().status(code).body(body).unwrap()
        }
        .boxed()
    })
}

async fn with<T>(answers: &[(&str, Value)], ask: impl AsyncFnOnce(Metrics<'_>) -> T) -> T {
    let (client, resources) = (api(answers), Resources::default());
    ask(Metrics { client: &client, resources: &resources, namespace: "ns" }).await
}

const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods?labelSelector=app%3Dx";
const TIME: &str = "2026-01-01T00:00:00Z";

fn pod_metrics(name: &str, usage: &[(&str, Value)]) -> Value {
    let containers: Vec<Value> = usage.iter().map(|(name, usage)| json!({"name": name, "usage": usage})).collect();
    json!({"metadata": {"name": name, "namespace": "ns"}, "timestamp": TIME, "window": "12.5s", "containers": containers})
}

#[tokio::test]
async fn resources_of_pods() {
    let (both, only_cpu) = (json!({"cpu": "250m", "memory": "2Ki"}), json!({"cpu": "1500001n"}));
    let items = [pod_metrics("a", &[("c", both.clone()), ("d", only_cpu)]), pod_metrics("b", &[("c", both)])];
    let answers = [(PODS, json!({"items": items}))];
    with(&answers, async |metrics| {
        let cpu = metrics.resource("app=x", "cpu", None).await.unwrap();
        assert_eq!((cpu["a"].value, cpu["b"].value), (252, 250), "rounded up to thousandths");
        assert_eq!((cpu["a"].window, cpu["a"].at), (Duration::from_millis(12_500), TIME.parse().unwrap()));
        let memory = metrics.resource("app=x", "memory", None).await.unwrap();
        assert_eq!(memory.get("a"), None, "of one of its containers it is not told");
        assert_eq!(memory["b"].value, 2_048_000);
        let one = metrics.resource("app=x", "cpu", Some("c")).await.unwrap();
        assert_eq!((one["a"].value, one.len()), (250, 2));
        let missing = metrics.resource("app=x", "cpu", Some("d")).await.unwrap_err().to_string();
        assert_eq!(missing, "failed to get container metrics: container d not present in metrics for pod ns/b");
        let missing = metrics.resource("app=y", "cpu", None).await.unwrap_err().to_string();
        assert!(
            missing.starts_with("unable to fetch metrics from resource metrics API: nothing at /apis/"),
            "{missing}"
        );
    })
    .await;
    let missing = with(&[(PODS, json!({"items": []}))], async |m| m.resource("app=x", "cpu", None).await).await;
    assert_eq!(missing.unwrap_err().to_string(), "no metrics returned from resource metrics API");
}

#[tokio::test]
async fn custom_metrics() {
    let group = json!({"name": "custom.metrics.k8s.io",
        "preferredVersion": {"groupVersion": "custom.metrics.k8s.io/v1beta2", "version": "v1beta2"}});
    let value = |name: &str, value: &str| json!({"describedObject": {"kind": "Pod", "name": name}, "timestamp": TIME, "value": value});
    let root = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns";
    let mut windowed = value("b", "1500m");
    windowed["windowSeconds"] = 30.into();
    let pods = json!({"items": [value("a", "10"), windowed]});
    let answers = [
        ("/apis/custom.metrics.k8s.io", group),
        (&format!("{root}/pods/*/hits?labelSelector=app%3Dx&metricLabelSelector=verb%3DGET"), pods),
        (&format!("{root}/metrics/load"), json!({"items": [value("ns", "7")]})),
        (&format!("{root}/ingresses.networking.k8s.io/main/hits"), json!({"items": [value("main", "3k")]})),
        ("/apis/networking.k8s.io", json!({"versions": [{"version": "v1", "groupVersion": "networking.k8s.io/v1"}]})),
        (
            "/apis/networking.k8s.io/v1",
            json!({"kind": "APIResourceList", "groupVersion": "networking.k8s.io/v1",
            "resources": [{"name": "ingresses", "kind": "Ingress", "singularName": "ingress", "namespaced": true, "verbs": []}]}),
        ),
    ];
    with(&answers, async |metrics| {
        let get = LabelSelector::parse("verb=GET").unwrap();
        let hits = metrics.of_pods("app=x", "hits", &get).await.unwrap();
        assert_eq!((hits["a"].value, hits["a"].window), (10_000, Duration::from_secs(60)));
        assert_eq!((hits["b"].value, hits["b"].window), (1_500, Duration::from_secs(30)));
        let all = LabelSelector::everything();
        let object = |api_version: &str, kind: &str, name: &str| CrossVersionObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: kind.to_owned(),
            name: name.to_owned(),
        };
        let of = async |object| {
            metrics.of_object(&object, if object.kind == "Namespace" { "load" } else { "hits" }, &all).await
        };
        assert_eq!(of(object("v1", "Namespace", "other")).await.unwrap(), 7_000, "always the own one");
        assert_eq!(of(object("networking.k8s.io/v1", "Ingress", "main")).await.unwrap(), 3_000_000);
        assert!(of(object("networking.k8s.io/v1", "Ingress", "none")).await.is_err());
        let unknown = of(object("networking.k8s.io/v1", "Egress", "main")).await.unwrap_err().to_string();
        assert!(unknown.contains("no matches for kind \"Egress\" in group \"networking.k8s.io\""), "{unknown}");
    })
    .await;
    let missing = with(&[], async |m| m.of_pods("app=x", "hits", &LabelSelector::everything()).await).await;
    let want = "unable to fetch metrics from custom metrics API: no known available metric versions found";
    assert_eq!(missing.unwrap_err().to_string(), want);
}

#[tokio::test]
async fn external_metrics() {
    let path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/queue%2Flength?labelSelector=q%3Da";
    let items = json!([{"value": "10", "timestamp": TIME, "metricName": "m", "metricLabels": {}}, {"value": "500m"}]);
    with(&[(path, json!({"items": items}))], async |metrics| {
        let selector = LabelSelector::parse("q=a").unwrap();
        assert_eq!(metrics.external("queue/length", &selector).await.unwrap(), 10_500);
        let missing = metrics.external("other", &selector).await.unwrap_err().to_string();
        assert!(missing.starts_with("unable to fetch metrics from external metrics API: "), "{missing}");
    })
    .await;
}

#[tokio::test]
async fn scales_of_any_kind() {
    let list = |gv: &str, name: &str, kind: &str| {
        json!({"kind": "APIResourceList", "groupVersion": gv, "resources": [
            {"name": name, "kind": kind, "singularName": "", "namespaced": true, "verbs": []},
            {"name": format!("{name}/scale"), "kind": "Scale", "singularName": "", "namespaced": true, "verbs": []}]})
    };
    let scale = |n: i32| json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"replicas": n}, "status": {"replicas": n}});
    let answers = [
        ("/api/v1", list("v1", "replicationcontrollers", "ReplicationController")),
        ("/api/v1/namespaces/ns/replicationcontrollers/a/scale", scale(1)),
        ("/apis/example.com", json!({"versions": [{"version": "v2"}, {"version": "v1"}]})),
        ("/apis/example.com/v2", list("example.com/v2", "others", "Other")),
        ("/apis/example.com/v1", list("example.com/v1", "games", "Game")),
        ("/apis/example.com/v1/namespaces/ns/games/a/scale", scale(2)),
    ];
    let (client, resources) = (api(&answers), Resources::default());
    let of = async |api_version: Option<&str>, kind: &str, name: &str| {
        let object = CrossVersionObjectReference {
            api_version: api_version.map(str::to_owned),
            kind: kind.to_owned(),
            name: name.to_owned(),
        };
        let found = resources.scale(&client, "ns", &object).await;
        found.map(|(_, scale)| scale.spec.unwrap().replicas.unwrap()).map_err(|e| e.to_string())
    };
    assert_eq!(of(Some("v1"), "ReplicationController", "a").await, Ok(1));
    assert_eq!(of(Some("example.com/v1"), "Game", "a").await, Ok(2));
    assert_eq!(of(Some("example.com/v7"), "Game", "a").await, Ok(2), "in whatever version it is served");
    let gone = of(Some("example.com/v1"), "Game", "b/../c").await.unwrap_err();
    assert!(gone.ends_with("/games/b%2F..%2Fc/scale"), "a name stays one part of the path: {gone}");
    assert_eq!(of(Some("a/b/c"), "Game", "a").await, Err("unexpected GroupVersion string: a/b/c".into()));
    let unknown = "no matches for kind \"Game\" in group \"elsewhere.com\"";
    assert_eq!(of(Some("elsewhere.com/v1"), "Game", "a").await, Err(unknown.into()));
}
