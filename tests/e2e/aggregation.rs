//! Other API servers behind this one: an adapter of the test's own that serves a resource, and metrics for autoscalers.

use crate::harness::adapter::{Adapter, Answer, Asked};
use crate::harness::{Cluster, Kubectl, eventually, success};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

const NOTES: &str = "/apis/adapter.example.com/v1";
const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";

/// What the adapter knows.
#[derive(Default)]
struct State {
    version: u64,
    /// By namespace and name.
    notes: BTreeMap<(String, String), Value>,
    watchers: Vec<Sender<Value>>,
    /// All events, each with the version that it led to.
    log: Vec<(u64, Value)>,
    /// Pods of which there are metrics.
    pods: Vec<String>,
    /// Namespaces whose notes were deleted all together.
    emptied: Vec<String>,
}

impl State {
    fn tell(&mut self, kind: &str, note: &Value) {
        let event = json!({"type": kind, "object": note});
        self.watchers.retain(|w| w.send(event.clone()).is_ok());
        self.log.push((self.version, event));
    }

    fn create(&mut self, namespace: &str, mut note: Value) -> Value {
        self.version += 1;
        note["metadata"]["namespace"] = namespace.into();
        note["metadata"]["uid"] = format!("note-{}", self.version).into();
        note["metadata"]["resourceVersion"] = self.version.to_string().into();
        note["metadata"]["creationTimestamp"] = "2026-11-01T00:00:00Z".into();
        let name = note["metadata"]["name"].as_str().unwrap().to_owned();
        self.notes.insert((namespace.to_owned(), name), note.clone());
        self.tell("ADDED", &note);
        note
    }

    fn list(&self, namespace: Option<&str>) -> Value {
        let items = self.notes.iter().filter(|((of, _), _)| namespace.is_none_or(|n| n == of));
        json!({"kind": "NoteList", "apiVersion": "adapter.example.com/v1", "metadata": {"resourceVersion": self.version.to_string()},
            "items": items.map(|(_, note)| note.clone()).collect::<Vec<_>>()})
    }
}

fn failure(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    Answer::Json(code, status)
}

fn resources(version: &str, resources: Value) -> Answer {
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources});
    Answer::Json(200, list)
}

fn answer(state: &Mutex<State>, asked: &Asked) -> Answer {
    let path = asked.path.split('?').next().unwrap();
    if let Some(rest) = path.strip_prefix(NOTES) {
        return notes(state, asked, rest);
    }
    let value = |name: &str, value: &str| json!({"describedObject": {"kind": "Pod", "name": name}, "timestamp": "2026-11-01T00:00:00Z", "value": value, "metric": {"name": "m"}});
    let list =
        |items: Vec<Value>| Answer::Json(200, json!({"kind": "MetricValueList", "metadata": {}, "items": items}));
    match path {
        CUSTOM => resources("custom.metrics.k8s.io/v1beta2", json!([])),
        EXTERNAL => resources("external.metrics.k8s.io/v1beta1", json!([])),
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/pods/*/hits" => {
            assert!(asked.path.contains("labelSelector=app%3Dby-pods"), "{}", asked.path);
            list(state.lock().unwrap().pods.iter().map(|pod| value(pod, "30")).collect())
        }
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/services/adapter/load" => {
            list(vec![value("adapter", "20")])
        }
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue" => {
            assert!(asked.path.contains("labelSelector=name%3Djobs"), "{}", asked.path);
            Answer::Json(
                200,
                json!({"kind": "ExternalMetricValueList", "metadata": {}, "items": [
                {"metricName": "queue", "metricLabels": {}, "timestamp": "2026-11-01T00:00:00Z", "value": "29500m"}]}),
            )
        }
        "/openapi/v3" => Answer::Json(
            200,
            json!({"paths": {"apis/adapter.example.com/v1": {
            "serverRelativeURL": "/openapi/v3/apis/adapter.example.com/v1?hash=A1"}}}),
        ),
        "/openapi/v2" => Answer::Tagged("\"one\"".into(), openapi_v2()),
        "/openapi/v3/apis/adapter.example.com/v1" => {
            let kind = json!({"group": "adapter.example.com", "version": "v1", "kind": "Note"});
            let list = json!({"get": {"x-kubernetes-action": "list", "x-kubernetes-group-version-kind": kind}});
            let text = json!({"type": "string", "description": "The words of it."});
            Answer::Json(
                200,
                json!({"openapi": "3.0.0", "info": {"title": "adapter", "version": "v1"},
                "paths": {format!("{NOTES}/namespaces/{{namespace}}/notes"): list.clone(), format!("{NOTES}/notes"): list},
                "components": {"schemas": {"com.example.Note": {"type": "object", "description": "A note of the test.",
                    "properties": {"spec": {"type": "object", "description": "What is noted.", "properties": {"text": text}}},
                    "x-kubernetes-group-version-kind": [kind]}}}}),
            )
        }
        _ => failure(404, "NotFound"),
    }
}

/// The OpenAPI v2 document: notes, and what the adapter has no say in.
fn openapi_v2() -> Value {
    let kind = json!({"group": "adapter.example.com", "version": "v1", "kind": "Note"});
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let to = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
    let list = json!({"get": {"x-kubernetes-action": "list", "x-kubernetes-group-version-kind": kind,
        "responses": {"200": {"description": "OK", "schema": to("com.example.Note")}}}});
    let text = json!({"type": "string", "description": "The words of it."});
    json!({"swagger": "2.0", "info": {"title": "adapter", "version": "v1"},
        "paths": {format!("{NOTES}/namespaces/{{namespace}}/notes"): list, "/api/v1/pods": list},
        "definitions": {meta: {"type": "object", "description": "Another metadata.", "properties": {"name": text}},
            "com.example.Note": {"type": "object", "description": "A note of the test.", "x-kubernetes-group-version-kind": [kind],
                "properties": {"apiVersion": text, "kind": text, "metadata": to(meta), "spec": {"type": "object", "description": "What is noted.", "properties": {"text": text}}}}}})
}

/// Notes: list, watch, get, create, delete, and all of a namespace at once.
fn notes(state: &Mutex<State>, asked: &Asked, path: &str) -> Answer {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let mut state = state.lock().unwrap();
    let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
    match (asked.method.as_str(), parts.as_slice()) {
        ("GET", []) => resources(
            "adapter.example.com/v1",
            json!([{"name": "notes", "singularName": "note", "kind": "Note",
            "namespaced": true, "shortNames": ["nt"], "verbs": ["create", "delete", "deletecollection", "get", "list", "watch"]}]),
        ),
        ("GET", ["notes"] | ["namespaces", _, "notes"]) if asked.path.contains("watch=") => {
            let (sender, lines) = channel();
            if asked.path.contains("sendInitialEvents") {
                return failure(400, "BadRequest");
            }
            let since = asked.path.split_once("resourceVersion=").map_or("", |(_, rest)| rest);
            let since: u64 = since.split('&').next().unwrap().parse().unwrap_or(0);
            for (_, event) in state.log.iter().filter(|(version, _)| *version > since) {
                sender.send(event.clone()).unwrap();
            }
            state.watchers.push(sender);
            Answer::Lines(lines)
        }
        ("GET", ["notes"]) => Answer::Json(200, state.list(None)),
        ("GET", ["namespaces", namespace, "notes"]) => Answer::Json(200, state.list(Some(namespace))),
        ("GET", ["namespaces", namespace, "notes", name]) => match state.notes.get(&key(namespace, name)) {
            Some(note) => Answer::Json(200, note.clone()),
            None => failure(404, "NotFound"),
        },
        ("POST", ["namespaces", namespace, "notes"]) => {
            let note = serde_json::from_str(&asked.body).unwrap();
            Answer::Json(201, state.create(namespace, note))
        }
        ("DELETE", ["namespaces", namespace, "notes"]) => {
            state.emptied.push((*namespace).to_owned());
            state.notes.retain(|(of, _), _| of != namespace);
            Answer::Json(200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
        }
        ("DELETE", ["namespaces", namespace, "notes", name]) => match state.notes.remove(&key(namespace, name)) {
            Some(note) => {
                state.version += 1;
                state.tell("DELETED", &note);
                Answer::Json(200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            None => failure(404, "NotFound"),
        },
        _ => failure(405, "MethodNotAllowed"),
    }
}

/// Starts the adapter where the cluster reaches it: on the machine that its node is connected to.
fn start(cluster: &Cluster, state: &Arc<Mutex<State>>, port: u16) -> Adapter {
    let map = cluster.get(&["configmap", "extension-apiserver-authentication", "-n", "kube-system"]);
    let ca = map["data"]["requestheader-client-ca-file"].as_str().unwrap().to_owned();
    let state = state.clone();
    let address = SocketAddr::new(cluster.address(1).into(), port);
    Adapter::start(address, "adapter.default.svc", &ca, move |asked| answer(&state, asked))
}

/// Service, endpoints, and an APIService of each group version.
fn register(cluster: &Cluster, adapter: &Adapter, versions: &[(&str, &str)]) {
    let (ip, port) = (adapter.address.ip(), adapter.address.port());
    let mut manifest = format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: adapter}}
spec: {{ports: [{{port: 443, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: adapter-1, labels: {{kubernetes.io/service-name: adapter}}}}
addressType: IPv4
ports: [{{name: "", port: {port}}}]
endpoints: [{{addresses: ["{ip}"]}}]
"#
    );
    for (version, group) in versions {
        manifest += &format!(
            r#"
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: {version}.{group}}}
spec:
  group: {group}
  version: {version}
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: {}
  service: {{namespace: default, name: adapter}}
"#,
            STANDARD.encode(&adapter.ca)
        );
    }
    cluster.apply(&manifest);
    for (version, group) in versions {
        let name = format!("apiservice/{version}.{group}");
        cluster.kubectl(&["wait", "--for=condition=Available", &name, "--timeout=60s"]);
    }
}

fn note(name: &str) -> String {
    format!("apiVersion: adapter.example.com/v1\nkind: Note\nmetadata: {{name: {name}}}\nspec: {{text: hello}}\n")
}

#[test]
fn another_api_server_behind_this_one() {
    let mut cluster = Cluster::start();
    let state = Arc::new(Mutex::new(State::default()));
    let adapter = start(&cluster, &state, 0);
    register(&cluster, &adapter, &[("v1", "adapter.example.com")]);
    let k = |args: &[&str]| cluster.kubectl(args);
    let table = k(&["get", "apiservices"]);
    let row = |name: &str| -> Vec<String> {
        let line = table.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {table}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(row("v1.adapter.example.com")[1..3], ["default/adapter", "True"]);
    assert_eq!(row("v1.apps")[1..3], ["Local", "True"]);

    // with all that kubectl does
    let listed = k(&["api-resources", "--api-group=adapter.example.com"]);
    assert!(listed.contains("nt") && listed.contains("Note"), "{listed}");
    let told = k(&["explain", "notes.spec"]);
    assert!(told.contains("What is noted.") && told.contains("The words of it."), "{told}");
    let told = k(&["explain", "--recursive", "notes"]);
    assert!(told.contains("A note of the test.") && told.contains("text"), "{told}");
    // the one document of old: the adapter's part is in it, and the rest is as it was
    let whole: Value = serde_json::from_str(&k(&["get", "--raw", "/openapi/v2"])).unwrap();
    let described = &whole["definitions"]["com.example.Note"];
    assert_eq!(described["description"], "A note of the test.");
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    assert_eq!(described["properties"]["metadata"]["$ref"], format!("#/definitions/{meta}_v2"));
    assert!(whole["definitions"][meta]["properties"]["ownerReferences"].is_object());
    assert!(whole["paths"]["/api/v1/pods"]["get"]["operationId"].is_string());
    let told = cluster.kubectl_as(Kubectl::Debian, &["explain", "notes.spec"]);
    assert!(told.contains("What is noted.") && told.contains("The words of it."), "{told}");
    let told = cluster.kubectl_as(Kubectl::Debian, &["explain", "deployments.spec.replicas"]);
    assert!(told.contains("replicas"), "{told}");
    // connections serve one request after the other; the availability is looked at over others
    let before = adapter.accepted();
    for _ in 0..20 {
        k(&["get", "--raw", &format!("{NOTES}/notes")]);
    }
    assert!(adapter.accepted() - before < 8, "{} connections", adapter.accepted() - before);
    let metrics = k(&["get", "--raw", "/metrics"]);
    for line in [
        "aggregator_unavailable_apiservice{name=\"v1.adapter.example.com\"} 0",
        "aggregator_openapi_v2_regeneration_count{apiservice=\"v1.adapter.example.com\",reason=\"add\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
    }
    let mut watch = cluster.spawn_kubectl(Kubectl::Newest, &["get", "notes", "-w", "-o", "name"]);
    // which kubectl holds against the document before it sends it
    let wrong = note("a").replace("text:", "words:");
    let refused = cluster.kubectl_stdin(Kubectl::Newest, &["create", "-f", "-"], &wrong);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("unknown field \"words\""), "{said}");
    let made = cluster.kubectl_stdin(Kubectl::Newest, &["create", "-f", "-"], &note("a"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    watch.read_until("note.adapter.example.com/a");
    for name in ["notes", "note", "nt", "notes.v1.adapter.example.com"] {
        assert!(k(&["get", name]).contains("a "), "{name}");
    }
    assert!(cluster.kubectl_as(Kubectl::Debian, &["get", "notes", "a", "-o", "name"]).contains("/a"));
    let mut own = cluster.edge_command(&["kubectl", "get", "notes", "-o", "name"]);
    let own = success("edge kubectl", own.env("PATH", "/nowhere").output().unwrap());
    assert_eq!(own, "note.adapter.example.com/a\n");
    let asked = adapter.last(&format!("{NOTES}/namespaces/default/notes"));
    assert_eq!((asked.front_proxy.as_str(), asked.all("x-remote-user")), ("system:auth-proxy", vec!["system:admin"]));
    // whose rights are looked at before anybody is asked
    let refused = cluster.try_kubectl(Kubectl::Newest, &["get", "notes", "--as=jane"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr)
            .contains("cannot list resource \"notes\" in API group \"adapter.example.com\"")
    );
    k(&["create", "clusterrole", "reads-notes", "--verb=get,list", "--resource=notes.adapter.example.com"]);
    k(&["create", "rolebinding", "reads-notes", "--clusterrole=reads-notes", "--user=jane"]);
    assert!(k(&["get", "notes", "--as=jane", "--as-group=writers"]).contains("a "));
    let asked = adapter.last(&format!("{NOTES}/namespaces/default/notes"));
    assert_eq!(asked.all("x-remote-user"), ["jane"]);
    assert_eq!(asked.all("x-remote-group"), ["writers", "system:authenticated"]);

    // what is in a namespace goes with it
    k(&["create", "namespace", "short"]);
    let made = cluster.kubectl_stdin(Kubectl::Newest, &["create", "-n", "short", "-f", "-"], &note("b"));
    assert!(made.status.success());
    k(&["delete", "namespace", "short", "--timeout=60s"]);
    assert_eq!(state.lock().unwrap().emptied, ["short"]);

    // what a note owns goes with the note
    assert!(cluster.kubectl_stdin(Kubectl::Newest, &["create", "-f", "-"], &note("owner")).status.success());
    let uid = cluster.get(&["note", "owner"])["metadata"]["uid"].as_str().unwrap().to_owned();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: owned\n  ownerReferences: [{{apiVersion: adapter.example.com/v1, kind: Note, name: owner, uid: {uid}}}]\n"
    ));
    k(&["delete", "note", "owner", "--timeout=60s"]);
    k(&["wait", "--for=delete", "configmap/owned", "--timeout=60s"]);

    // a restart changes nothing
    let port = adapter.address.port();
    cluster.stop(Signal::SIGTERM);
    cluster.launch();
    let k = |args: &[&str]| cluster.kubectl(args);
    assert!(k(&["get", "notes"]).contains("a "));

    // while it is away, everything else works, and a namespace waits and says for what
    drop(adapter);
    k(&["create", "namespace", "doomed"]);
    // so that it is noticed at once, and not at the next look
    k(&["label", "service", "adapter", "away=yes"]);
    k(&["wait", "--for=condition=Available=false", "apiservice/v1.adapter.example.com", "--timeout=60s"]);
    let table = k(&["get", "apiservice", "v1.adapter.example.com", "--no-headers"]);
    assert!(table.contains("False (FailedDiscoveryCheck)"), "{table}");
    k(&["get", "deployments"]);
    let refused = cluster.try_kubectl(Kubectl::Newest, &["get", "--raw", &format!("{NOTES}/notes")]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ServiceUnavailable"));
    k(&["delete", "namespace", "doomed", "--wait=false"]);
    let said = eventually("the namespace says what it waits for", || {
        let namespace = cluster.get(&["namespace", "doomed"]);
        let conditions = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == "NamespaceDeletionDiscoveryFailure");
        found.filter(|c| c["status"] == "True").ok_or_else(|| namespace["status"].to_string())
    });
    assert_eq!(said["reason"], "DiscoveryFailed");
    let message = said["message"].as_str().unwrap();
    assert!(
        message.contains("1 failing: unable to retrieve the complete list of server APIs: adapter.example.com/v1"),
        "{message}"
    );

    // it comes back, with another certificate
    let adapter = start(&cluster, &state, port);
    register(&cluster, &adapter, &[("v1", "adapter.example.com")]);
    assert!(k(&["get", "notes"]).contains("a "));
    eventually("the namespace is gone", || {
        let gone = cluster.try_kubectl(Kubectl::Newest, &["get", "namespace", "doomed"]);
        if gone.status.success() { Err(String::from_utf8_lossy(&gone.stdout).into_owned()) } else { Ok(()) }
    });
    // and goes for good
    k(&["delete", "apiservice", "v1.adapter.example.com"]);
    eventually("nobody knows it any more", || {
        let listed = k(&["api-resources", "--api-group=adapter.example.com", "--no-headers"]);
        if listed.trim().is_empty() { Ok(()) } else { Err(listed) }
    });
}

/// A Deployment that follows a metric.
fn follower(name: &str, metric: &str) -> String {
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: main, image: "busybox:test", command: [sleep, "100000"]}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: {name}}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {name}}}
  maxReplicas: 3
  metrics: [{metric}]
"#
    )
}

#[test]
fn autoscalers_follow_metrics_of_an_adapter() {
    let cluster = Cluster::start_with(&["--horizontal-pod-autoscaler-sync-period=1s"]);
    let state = Arc::new(Mutex::new(State::default()));
    let adapter = start(&cluster, &state, 0);
    register(&cluster, &adapter, &[("v1beta2", "custom.metrics.k8s.io"), ("v1beta1", "external.metrics.k8s.io")]);
    let target = "target: {type: AverageValue, averageValue: \"10\"}";
    cluster.apply(&follower("by-pods", &format!("{{type: Pods, pods: {{metric: {{name: hits}}, {target}}}}}")));
    let object = "describedObject: {apiVersion: v1, kind: Service, name: adapter}, metric: {name: load}";
    cluster.apply(&follower("by-object", &format!("{{type: Object, object: {{{object}, {target}}}}}")));
    let metric = "metric: {name: queue, selector: {matchLabels: {name: jobs}}}";
    cluster.apply(&follower("by-external", &format!("{{type: External, external: {{{metric}, {target}}}}}")));
    for (name, replicas, shown) in
        [("by-pods", 3, "30/10"), ("by-object", 2, "/10 (avg)"), ("by-external", 3, "/10 (avg)")]
    {
        eventually(&format!("{name} has {replicas} pods"), || {
            let pods =
                cluster.kubectl(&["get", "pods", "-l", "app=by-pods", "-o", "jsonpath={.items[*].metadata.name}"]);
            state.lock().unwrap().pods = pods.split_whitespace().map(str::to_owned).collect();
            let hpa = cluster.get(&["hpa", name]);
            let is = cluster.get(&["deployment", name])["spec"]["replicas"] == replicas;
            if is && hpa["status"]["desiredReplicas"] == replicas { Ok(()) } else { Err(hpa["status"].to_string()) }
        });
        let table = cluster.kubectl(&["get", "hpa", name, "--no-headers"]);
        assert!(table.contains(shown), "{table}");
    }
    let asked = adapter.last(EXTERNAL);
    assert!(!asked.path.is_empty() && asked.front_proxy == "system:auth-proxy");
    // without the adapter it says so
    drop(adapter);
    eventually("the autoscaler says that there are no metrics", || {
        let hpa = cluster.get(&["hpa", "by-external"]);
        let conditions = hpa["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().any(|c| c["type"] == "ScalingActive" && c["reason"] == "FailedGetExternalMetric");
        if found { Ok(()) } else { Err(hpa["status"].to_string()) }
    });
    assert_eq!(cluster.get(&["deployment", "by-external"])["spec"]["replicas"], 3, "and leaves all as it is");
}
