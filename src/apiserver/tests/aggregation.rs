//! The aggregation layer: APIServices, and other API servers behind this one.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/e2e/harness/adapter.rs"]
mod adapter;
mod common;

use adapter::{Adapter, Answer, Asked};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Answer as Told, Cluster, JSON, MERGE, Request, user};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const GROUP: &str = "adapter.example.com";

/// Asks until the answer is as it should be.
async fn until<T>(c: &Cluster, path: &str, found: impl Fn(&Told) -> Option<T>) -> T {
    let mut last = String::new();
    for _ in 0..600 {
        let answer = c.send(Request::new("GET", path)).await;
        if let Some(found) = found(&answer) {
            return found;
        }
        last = String::from_utf8_lossy(&answer.bytes).into_owned();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path}: {last}")
}

/// Waits for the condition of an APIService; gives its message.
async fn available(c: &Cluster, name: &str, reason: &str) -> String {
    until(c, &format!("{SERVICES}/{name}"), |answer| {
        let o = answer.json();
        let condition = &o["status"]["conditions"][0];
        assert!(condition.is_null() || condition["type"] == "Available", "{o}");
        (condition["reason"] == reason).then(|| condition["message"].as_str().unwrap().to_owned())
    })
    .await
}

/// The authority of the front proxy, as extension API servers read it.
async fn front_proxy_ca(c: &Cluster) -> String {
    let map = c.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await;
    let data = &map["data"];
    assert_eq!(data["requestheader-allowed-names"], r#"["system:auth-proxy"]"#);
    assert_eq!(data["requestheader-username-headers"], r#"["X-Remote-User"]"#);
    assert_eq!(data["requestheader-group-headers"], r#"["X-Remote-Group"]"#);
    assert_eq!(data["requestheader-uid-headers"], r#"["X-Remote-Uid"]"#);
    assert_eq!(data["requestheader-extra-headers-prefix"], r#"["X-Remote-Extra-"]"#);
    assert!(data["client-ca-file"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    data["requestheader-client-ca-file"].as_str().unwrap().to_owned()
}

fn notes(asked: &Asked) -> Answer {
    let path = asked.path.split('?').next().unwrap();
    let list = |resources: Value| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/v1"), "resources": resources});
    let note =
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Note", "metadata": {"name": "a", "namespace": "default"}});
    match (asked.method.as_str(), path.strip_prefix("/apis/adapter.example.com/v1").unwrap_or(path)) {
        ("GET", "") => Answer::Json(
            200,
            list(json!([{"name": "notes", "singularName": "note", "kind": "Note", "namespaced": true,
            "verbs": ["get", "list", "create"], "shortNames": ["no"]}])),
        ),
        ("GET", "/apis/wrong.example.com/v1") => Answer::Json(200, list(json!([]))),
        ("GET", "/openapi/v3") => Answer::Json(
            200,
            json!({"paths": {
            "apis/adapter.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/adapter.example.com/v1?hash=AB"},
            "apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=EVIL"}}}),
        ),
        ("GET", "/openapi/v3/apis/adapter.example.com/v1") => {
            Answer::Json(200, json!({"openapi": "3.0.0", "components": {}}))
        }
        ("GET", "/namespaces/default/notes/a") => Answer::Json(200, note),
        ("POST", "/namespaces/default/notes") => Answer::Json(201, serde_json::from_str(&asked.body).unwrap()),
        (_, "/namespaces/default/notes/away") => Answer::Redirect("https://elsewhere.example.com/".into()),
        (_, "/namespaces/default/notes/endless") => Answer::Endless,
        (_, "/namespaces/default/notes/hangup") => Answer::Hangup,
        (_, "/namespaces/default/notes/echo") => Answer::Echo,
        (_, "/namespaces/default/notes/silent") => Answer::Silence,
        _ => Answer::Json(404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no such note"})),
    }
}

/// Puts a server behind a Service: by a name, since endpoints cannot be on this very host.
async fn put_behind(c: &Cluster, adapter: &Adapter, version: &str, group: &str, ca: &str) -> String {
    let service = json!({"metadata": {"name": "notes"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    let request =
        Request::new("POST", "/api/v1/namespaces/default/services").content_type(JSON).body(service.to_string());
    let made = c.send(request).await.code;
    assert!(matches!(made, 201 | 409), "{made}");
    let name = format!("{version}.{group}");
    c.create(SERVICES, &json!({"metadata": {"name": name}, "spec": {
        "group": group, "version": version, "groupPriorityMinimum": 2000, "versionPriority": 10, "caBundle": STANDARD.encode(ca),
        "service": {"namespace": "default", "name": "notes", "port": adapter.address.port()}}}))
        .await;
    name
}

async fn start(c: &Cluster) -> Adapter {
    start_with(c, notes).await
}

async fn start_with(c: &Cluster, handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Adapter {
    Adapter::start("127.0.0.1:0".parse().unwrap(), "notes.default.svc", &front_proxy_ca(c).await, handler)
}

async fn patch(c: &Cluster, path: &str, change: Value) -> Value {
    c.send(Request::new("PATCH", path).content_type(MERGE).body(change.to_string())).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_answers_and_knows_who_asks() {
    let c = Cluster::start().await;
    let adapter = start(&c).await;
    let name = put_behind(&c, &adapter, "v1", GROUP, &adapter.ca).await;
    assert_eq!(available(&c, &name, "Passed").await, "all checks passed");
    let checked = adapter.last("/apis/adapter.example.com/v1");
    assert_eq!(checked.front_proxy, "system:auth-proxy");
    assert_eq!(checked.all("x-remote-user"), ["system:kube-aggregator"]);
    assert_eq!(checked.all("host"), ["notes.default.svc"]);

    // rights are looked at here
    let path = format!("/apis/{GROUP}/v1/namespaces/default/notes/a");
    let ask = || Request::new("GET", &path).from(user("jane"));
    c.send(ask()).await.status(403, "Forbidden");
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    c.create(
        &format!("{rbac}/clusterroles"),
        &json!({"metadata": {"name": "notes"}, "rules": [{"apiGroups": [GROUP], "resources": ["notes"], "verbs": ["get"]}]}),
    )
    .await;
    let binding = json!({"metadata": {"name": "notes"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "notes", "apiGroup": "rbac.authorization.k8s.io"}});
    c.create(&format!("{rbac}/namespaces/default/rolebindings"), &binding).await;
    let pretended = ask()
        .header("x-remote-group", "system:masters")
        .header("X-Remote-Extra-Scopes", "all")
        .header("authorization", "Bearer secret")
        .header("x-other", "kept");
    let answer = c.send(pretended).await;
    assert_eq!((answer.ok()["kind"].as_str(), answer.code), (Some("Note"), 200));
    let asked = adapter.last(&path);
    assert_eq!(asked.all("x-remote-user"), ["jane"]);
    assert_eq!(
        asked.all("x-remote-group"),
        ["testers", "system:authenticated"],
        "what the client pretends is not told"
    );
    assert!(asked.all("x-remote-extra-scopes").is_empty() && asked.all("authorization").is_empty());
    assert_eq!(asked.all("x-other"), ["kept"]);
    c.send(Request::new("DELETE", &path).from(user("jane"))).await.status(403, "Forbidden");
    let unknown = c.send(Request::new("GET", &format!("/apis/{GROUP}/v1/namespaces/default/notes/x?a=%2F&b"))).await;
    assert_eq!(
        (unknown.code, unknown.json()["message"].as_str()),
        (404, Some("no such note")),
        "as the server says it"
    );
    assert!(adapter.last(&format!("/apis/{GROUP}/v1/namespaces/default/notes/x")).path.ends_with("?a=%2F&b"));
    let body = json!({"kind": "Note", "metadata": {"name": "b"}});
    assert_eq!(c.create(&format!("/apis/{GROUP}/v1/namespaces/default/notes"), &body).await, body);

    // discovery
    let group = c.get(&format!("/apis/{GROUP}")).await;
    assert_eq!(group["preferredVersion"]["groupVersion"], format!("{GROUP}/v1"));
    let groups = c.get("/apis").await;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!((names[0], names.contains(&GROUP)), ("apiregistration.k8s.io", true));
    assert_eq!(c.get(&format!("/apis/{GROUP}/v1")).await["resources"][0]["name"], "notes");
    let resources = |all: &Value| {
        let group = all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == GROUP).cloned();
        group.unwrap()["versions"][0].clone()
    };
    let all = c.send(Request::new("GET", "/apis").accept(DISCOVERY)).await.ok();
    assert_eq!(resources(&all)["freshness"], "Current");
    assert_eq!(resources(&all)["resources"][0]["shortNames"], json!(["no"]));
    assert!(c.get("/").await["paths"].as_array().unwrap().contains(&json!(format!("/apis/{GROUP}/v1"))));
    // OpenAPI: its own document and no other's
    let index = c.get("/openapi/v3").await;
    let url = |version: &str| index["paths"][version]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(url("apis/adapter.example.com/v1"), "/openapi/v3/apis/adapter.example.com/v1?hash=AB");
    assert!(!url("apis/apps/v1").contains("EVIL"));
    assert_eq!(c.get(&url("apis/adapter.example.com/v1")).await["openapi"], "3.0.0");

    // it goes, and it is said so; and comes back
    let (address, ca) = (adapter.address, front_proxy_ca(&c).await);
    drop(adapter);
    c.send(
        Request::new("PATCH", "/api/v1/namespaces/default/services/notes")
            .content_type(MERGE)
            .body("{\"metadata\":{\"labels\":{\"a\":\"b\"}}}"),
    )
    .await
    .ok();
    let said = available(&c, &name, "FailedDiscoveryCheck").await;
    let url = format!("https://notes.default.svc:{}/apis/{GROUP}/v1", address.port());
    assert!(said.starts_with(&format!("failing or missing response from {url}: ")), "{said}");
    let refused = c.send(Request::new("GET", &path)).await.status(503, "ServiceUnavailable");
    assert_eq!(refused["message"], "service unavailable");
    let unavailable = |name: &str| format!("aggregator_unavailable_apiservice{{name=\"{name}\"}}");
    let total = format!("aggregator_unavailable_apiservice_total{{name=\"{name}\",reason=\"FailedDiscoveryCheck\"}}");
    assert_eq!(metric(&c, &unavailable(&name)).await, Some(1.0));
    assert_eq!(metric(&c, &unavailable("v1.apps")).await, Some(0.0));
    assert_eq!(metric(&c, &total).await, Some(1.0));
    assert_eq!(metric(&c, "aggregator_discovery_aggregation_count_total").await, Some(1.0));
    let all = c.send(Request::new("GET", "/apis").accept(DISCOVERY)).await.ok();
    assert_eq!(resources(&all), json!({"version": "v1", "freshness": "Stale"}));
    let again = Adapter::start(address, "notes.default.svc", &ca, notes);
    let spec = json!({"spec": {"caBundle": STANDARD.encode(&again.ca)}}).to_string();
    c.send(Request::new("PATCH", &format!("{SERVICES}/{name}")).content_type(MERGE).body(spec)).await.ok();
    available(&c, &name, "Passed").await;
    assert_eq!((metric(&c, &unavailable(&name)).await, metric(&c, &total).await), (Some(0.0), Some(1.0)));
    assert_eq!(c.get(&path).await["kind"], "Note");
    c.send(Request::new("DELETE", "/api/v1/namespaces/default/services/notes")).await.ok();
    assert_eq!(available(&c, &name, "ServiceNotFound").await, "service/notes in \"default\" is not present");
    c.send(Request::new("DELETE", &format!("{SERVICES}/{name}"))).await.ok();
    until(&c, &format!("/apis/{GROUP}"), |answer| (answer.code == 404).then_some(())).await;
    c.send(Request::new("GET", &path)).await.status(404, "NotFound");
    assert_eq!(metric(&c, &unavailable(&name)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_another_server_does_costs_its_own_requests() {
    let c = Cluster::start().await;
    let adapter = start(&c).await;
    let name = put_behind(&c, &adapter, "v1", GROUP, &adapter.ca).await;
    available(&c, &name, "Passed").await;
    let path = |note: &str| format!("/apis/{GROUP}/v1/namespaces/default/notes/{note}");
    let redirected = c.send(Request::new("GET", &path("away"))).await.status(502, "InternalError");
    assert_eq!(redirected["message"], "the backend attempted to redirect this request, which is not permitted");
    // a body without end is passed on as it comes, and ends with the client
    let response = c.open(Request::new("GET", &path("endless"))).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().into_bytes(1 << 20).await.is_err());
    // those that are not answered take no more than their part
    let paths: Vec<String> = (0..101).map(|_| path("silent")).collect();
    let mut silent: Vec<_> = paths.iter().map(|p| Box::pin(c.open(Request::new("GET", p)))).collect();
    let refused = until_one(&mut silent).await;
    assert_eq!(refused.status(), 429);
    assert!(c.get("/api/v1/namespaces/default").await["metadata"]["name"] == "default");
    drop(silent);
    assert_eq!(c.get(&path("a")).await["kind"], "Note", "who breaks off gives the place back");

    // somebody else in its place
    let wrong = Adapter::start("127.0.0.1:0".parse().unwrap(), "other.default.svc", &front_proxy_ca(&c).await, notes);
    let name = put_behind(&c, &wrong, "v1", "wrong.example.com", &wrong.ca).await;
    let said = available(&c, &name, "FailedDiscoveryCheck").await;
    assert!(said.contains("certificate"), "{said}");
    c.send(Request::new("GET", "/apis/wrong.example.com/v1/things")).await.status(503, "ServiceUnavailable");
    // unless its administrator does not care
    let spec = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}}).to_string();
    c.send(Request::new("PATCH", &format!("{SERVICES}/{name}")).content_type(MERGE).body(spec)).await.ok();
    let answered = |answer: &Told| (answer.code == 404 && answer.json()["message"] == "no such note").then_some(());
    until(&c, "/apis/wrong.example.com/v1/things", answered).await;
    assert!(wrong.asked.lock().unwrap().iter().all(|a| a.front_proxy == "system:auth-proxy"));
    // no certificate at all in the bundle
    let spec = json!({"spec": {"caBundle": "QUJD", "insecureSkipTLSVerify": null}}).to_string();
    c.send(Request::new("PATCH", &format!("{SERVICES}/{name}")).content_type(MERGE).body(spec)).await.ok();
    available(&c, &name, "FailedDiscoveryCheck").await;
}

/// What the metrics say under a name with its labels.
async fn metric(c: &Cluster, series: &str) -> Option<f64> {
    let answer = c.send(Request::new("GET", "/metrics")).await;
    let text = String::from_utf8(answer.bytes.to_vec()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.map(|value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_for_the_next_request() {
    let c = Cluster::start().await;
    let lines: Arc<Mutex<Option<Sender<Value>>>> = Arc::default();
    let told = lines.clone();
    let handler = move |asked: &Asked| {
        if asked.path.contains("watch=") {
            let (sender, receiver) = channel();
            *told.lock().unwrap() = Some(sender);
            return Answer::Lines(receiver);
        }
        notes(asked)
    };
    let adapter = start_with(&c, handler.clone()).await;
    let same_port = format!("127.0.0.2:{}", adapter.address.port()).parse().unwrap();
    let other = Adapter::start(same_port, "notes.default.svc", &front_proxy_ca(&c).await, handler);
    let name = put_behind(&c, &adapter, "v1", GROUP, &format!("{}{}", adapter.ca, other.ca)).await;
    available(&c, &name, "Passed").await;
    let all = format!("/apis/{GROUP}/v1/namespaces/default/notes");
    let one = format!("{all}/a");
    let read = || async { assert_eq!(c.get(&one).await["kind"], "Note") };
    let c = &c;
    let post =
        |path: String| async move { c.send(Request::new("POST", &path).content_type(JSON).body("{\"a\": 1}")).await };
    // the availability is looked at now and then, over connections of its own
    let few = |before: usize| adapter.accepted() - before <= 3;
    let before = adapter.accepted();
    for _ in 0..50 {
        read().await;
        assert_eq!(post(all.clone()).await.code, 201);
    }
    assert!(few(before), "{} connections", adapter.accepted() - before);

    // one over which something still comes is nobody else's
    let before = adapter.accepted();
    let mut watch = c.open(Request::new("GET", &format!("{all}?watch=1"))).await.into_body();
    for _ in 0..20 {
        read().await;
    }
    let sender = lines.lock().unwrap().take().unwrap();
    sender.send(json!({"type": "ADDED"})).unwrap();
    let frame = watch.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frame, "{\"type\":\"ADDED\"}\n");
    drop(sender);
    assert!(watch.frame().await.is_none());
    assert!(few(before), "{} connections", adapter.accepted() - before);

    // those that the server has closed are not missed, and nothing is done twice
    for i in 0..20 {
        adapter.disconnect();
        if i % 2 == 0 {
            read().await;
        } else {
            // nobody can know what becomes of a request that is on its way already
            tokio::time::sleep(Duration::from_millis(100)).await;
            let path = format!("{all}?i={i}");
            assert_eq!((post(path.clone()).await.code, adapter.count(&path)), (201, 1));
        }
    }
    read().await;
    let hangup = format!("{all}/hangup");
    assert_eq!((post(hangup.clone()).await.code, adapter.count(&hangup)), (503, 1), "it may have been done");
    assert_eq!(c.send(Request::new("GET", &format!("{hangup}?get"))).await.code, 503);
    assert_eq!(adapter.count(&format!("{hangup}?get")), 2, "what only reads can be done again");

    // another certificate of the front proxy is shown at once
    read().await;
    let before = adapter.accepted();
    read().await;
    c.renew_front_proxy();
    read().await;
    assert!((1..=3).contains(&(adapter.accepted() - before)));
    // and another APIService, or another endpoint, is somebody else
    let before = adapter.accepted();
    patch(c, &format!("{SERVICES}/{name}"), json!({"spec": {"versionPriority": 20}})).await;
    until(c, &one, |_| (adapter.accepted() > before).then_some(())).await;
    assert_eq!(other.accepted(), 0);
    patch(c, "/api/v1/namespaces/default/services/notes", json!({"spec": {"externalName": "127.0.0.2"}})).await;
    let before = adapter.count(&one);
    read().await;
    assert_eq!((adapter.count(&one), other.count(&one)), (before, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_upgraded() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let c = Cluster::start().await;
    let adapter = start(&c).await;
    let name = put_behind(&c, &adapter, "v1", GROUP, &adapter.ca).await;
    available(&c, &name, "Passed").await;
    let (socket, config, connector) = c.listener();
    let address = socket.local_addr().unwrap();
    let api = c.api.clone();
    tokio::spawn(async move { api.serve(socket, config).await });
    let one = format!("/apis/{GROUP}/v1/namespaces/default/notes/a");
    c.get(&one).await;
    let mut streams = Vec::new();
    for i in 0..3 {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut stream = connector.connect("127.0.0.1".try_into().unwrap(), socket).await.unwrap();
        let head = format!(
            "GET /apis/{GROUP}/v1/namespaces/default/notes/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        stream.write_all(format!("hello {i}").as_bytes()).await.unwrap();
        streams.push(stream);
    }
    // others go on meanwhile
    assert_eq!(c.get(&one).await["kind"], "Note");
    for (i, stream) in streams.iter_mut().enumerate() {
        let mut said = [0; 7];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(said, *format!("hello {i}").as_bytes());
    }
}

/// What an answer is, and the answer.
type Bad = (&'static str, fn() -> Answer);

const PROTOBUF_V2: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// An OpenAPI v2 document: a kind of its own, one name that is also ours, and what it has no say in.
fn openapi_v2(text: &str) -> Value {
    let kind = json!({"group": GROUP, "version": "v1", "kind": "Note"});
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let to = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
    let get = |name: &str| json!({"get": {"responses": {"200": {"description": "OK", "schema": to(name)}}}});
    json!({"swagger": "2.0", "info": {"title": "notes"},
        "paths": {format!("/apis/{GROUP}/v1/namespaces/{{namespace}}/notes"): get("com.example.Note"), "/apis/apps/v1/deployments": get("Evil")},
        "definitions": {"Evil": {"type": "object"}, meta: {"type": "object", "description": "Not as ours."},
            "com.example.Note": {"type": "object", "description": text, "properties": {"metadata": to(meta), "next": to("com.example.Note")},
                "x-kubernetes-group-version-kind": [kind, {"group": "apps", "version": "v1", "kind": "Deployment"}]}}})
}

#[tokio::test]
async fn one_document_of_openapi_v2_describes_everything() {
    let c = Cluster::start().await;
    let before = c.send(Request::new("GET", "/openapi/v2")).await;
    let said = Arc::new(Mutex::new(("\"1\"".to_owned(), openapi_v2("A note."))));
    let says = said.clone();
    let adapter = start_with(&c, move |asked| match asked.path.as_str() {
        "/openapi/v2" => {
            let (tag, document) = says.lock().unwrap().clone();
            Answer::Tagged(tag, document)
        }
        _ => notes(asked),
    })
    .await;
    let name = put_behind(&c, &adapter, "v1", GROUP, &adapter.ca).await;
    available(&c, &name, "Passed").await;
    let get = || c.send(Request::new("GET", "/openapi/v2"));
    let first = get().await;
    let document = first.ok();
    assert!(document["paths"][format!("/apis/{GROUP}/v1/namespaces/{{namespace}}/notes")]["get"].is_object());
    let note = &document["definitions"]["com.example.Note"];
    assert_eq!(note["description"], "A note.");
    assert_eq!(note["x-kubernetes-group-version-kind"], json!([{"group": GROUP, "version": "v1", "kind": "Note"}]));
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    assert_eq!(note["properties"]["metadata"]["$ref"], format!("#/definitions/{meta}_v2"));
    assert_eq!(document["definitions"][format!("{meta}_v2")]["description"], "Not as ours.");
    let old = before.ok();
    assert_eq!(document["definitions"][meta], old["definitions"][meta]);
    assert_eq!(document["paths"]["/apis/apps/v1/deployments"], old["paths"]["/apis/apps/v1/deployments"]);
    assert!(document["definitions"].get("Evil").is_none());
    let asked = adapter.last("/openapi/v2");
    assert_eq!(
        (asked.all("x-remote-user"), asked.front_proxy.as_str()),
        (vec!["system:aggregator"], "system:auth-proxy")
    );

    // whoever has it is told so; in the other form it is there, too; and the server is not asked again
    let etag = |answer: &Told| answer.headers["etag"].to_str().unwrap().to_owned();
    assert_ne!(etag(&first), etag(&before));
    let known = c.send(Request::new("GET", "/openapi/v2").header("if-none-match", &etag(&first))).await;
    assert_eq!((known.code, known.bytes.len(), etag(&known)), (304, 0, etag(&first)));
    let protobuf = c.send(Request::new("GET", "/openapi/v2").accept(PROTOBUF_V2)).await;
    assert!(protobuf.bytes.windows(16).any(|w| w == b"com.example.Note"));
    assert_eq!(adapter.count("/openapi/v2"), 1);
    let regenerated =
        |reason: &str| format!("aggregator_openapi_v2_regeneration_count{{apiservice=\"{name}\",reason=\"{reason}\"}}");
    assert_eq!(metric(&c, &regenerated("add")).await, Some(1.0));
    assert_eq!(metric(&c, &regenerated("update")).await, None);
    assert!(metric(&c, "aggregator_openapi_v2_regeneration_duration{reason=\"add\"}").await.unwrap() > 0.0);

    // a minute later it is asked whether something has changed
    let later = || async {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
    };
    later().await;
    assert_eq!(etag(&get().await), etag(&first));
    assert_eq!((adapter.count("/openapi/v2"), adapter.last("/openapi/v2").all("if-none-match")), (2, vec!["\"1\""]));
    *said.lock().unwrap() = ("\"2\"".to_owned(), openapi_v2("Another note."));
    assert_eq!(etag(&get().await), etag(&first), "not yet");
    later().await;
    assert_eq!(get().await.ok()["definitions"]["com.example.Note"]["description"], "Another note.");
    assert_eq!(metric(&c, &regenerated("update")).await, Some(1.0));
    // what it says then is no use: what it said before holds
    *said.lock().unwrap() = ("\"3\"".to_owned(), json!({"swagger": "2.0", "paths": 5}));
    later().await;
    assert_eq!(get().await.ok()["definitions"]["com.example.Note"]["description"], "Another note.");
    assert_eq!((adapter.count("/openapi/v2"), adapter.last("/openapi/v2").all("if-none-match")), (4, vec!["\"2\""]));
    // until nobody says that there is one
    c.send(Request::new("DELETE", &format!("{SERVICES}/{name}"))).await.ok();
    until(&c, &format!("/apis/{GROUP}"), |answer| (answer.code == 404).then_some(())).await;
    assert_eq!(etag(&get().await), etag(&before));
    assert_eq!(metric(&c, &regenerated("delete")).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_says_never_breaks_the_rest() {
    let c = Cluster::start().await;
    let before = c.send(Request::new("GET", "/openapi/v2")).await;
    let worse: Arc<Mutex<Vec<Bad>>> = Arc::default();
    let says = worse.clone();
    let adapter = start_with(&c, move |asked| match asked.path.as_str() {
        "/openapi/v2" => says.lock().unwrap().last().map_or(Answer::Raw(Vec::new()), |(_, answer)| answer()),
        _ => notes(asked),
    })
    .await;
    let name = put_behind(&c, &adapter, "v1", GROUP, &adapter.ca).await;
    available(&c, &name, "Passed").await;
    let all: [Bad; 14] = [
        ("fine", || Answer::Json(200, openapi_v2("A note."))),
        ("silent", || Answer::Silence),
        ("endless", || Answer::Endless),
        ("gone", || Answer::Hangup),
        ("away", || Answer::Redirect("https://elsewhere.example.com/".into())),
        ("no JSON", || Answer::Raw(b"<html>".to_vec())),
        ("deep", || Answer::Raw(b"{\"swagger\":".repeat(1 << 20))),
        ("long", || Answer::Raw(vec![b' '; 9 << 20])),
        ("not found", || Answer::Json(404, json!({}))),
        ("not modified", || Answer::Json(304, json!({}))),
        ("of another version", || Answer::Json(200, json!({"swagger": "3.0"}))),
        ("wrong", || {
            let mut document = openapi_v2("A note.");
            document["definitions"]["com.example.Note"]["type"] = 5.into();
            Answer::Json(200, document)
        }),
        ("dangling", || {
            let mut document = openapi_v2("A note.");
            document["definitions"]["com.example.Note"]["$ref"] = "#/definitions/x".into();
            Answer::Json(200, document)
        }),
        ("circle", || {
            let mut document = openapi_v2("A note.");
            document["definitions"]["com.example.Note"] = json!({"$ref": "#/definitions/com.example.Note"});
            Answer::Json(200, document)
        }),
    ];
    worse.lock().unwrap().extend(all);
    // each time it is asked anew, since the APIService is another one
    for priority in 100.. {
        let Some(&(what, _)) = worse.lock().unwrap().last() else { break };
        let asked = adapter.count("/openapi/v2");
        patch(&c, &format!("{SERVICES}/{name}"), json!({"spec": {"versionPriority": priority}})).await;
        let answer = until(&c, "/openapi/v2", |answer| {
            assert_eq!(answer.code, 200, "{what}");
            (adapter.count("/openapi/v2") > asked).then(|| answer.bytes.clone())
        })
        .await;
        assert_eq!(answer == before.bytes, what != "fine", "{what}");
        worse.lock().unwrap().pop();
    }
    assert_eq!(c.get(&format!("/apis/{GROUP}/v1/namespaces/default/notes/a")).await["kind"], "Note");
}

/// The first that is answered.
async fn until_one<F: Future + Unpin>(all: &mut [F]) -> F::Output {
    let (answer, _, _) = futures::future::select_all(all.iter_mut()).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_here_has_apiservices_of_its_own() {
    let c = Cluster::start().await;
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let list = c.get(SERVICES).await;
    for name in ["v1.", "v1.apps", "v2.autoscaling", "v1beta1.metrics.k8s.io"] {
        assert!(names(&list).contains(&name.to_owned()), "{name}");
    }
    let table = c.send(Request::new("GET", SERVICES).accept("application/json;as=Table;v=v1;g=meta.k8s.io")).await.ok();
    let row = table["rows"].as_array().unwrap().iter().find(|r| r["cells"][0] == "v1.apps").unwrap();
    assert_eq!(row["cells"].as_array().unwrap()[1..3], [json!("Local"), json!("True")]);
    let apps = c.get(&format!("{SERVICES}/v1.apps")).await;
    assert_eq!(apps["status"]["conditions"][0]["message"], "Local APIServices are always available");
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");

    // they come back, whatever is done to them
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let before = c.get(map).await;
    c.send(Request::new("PATCH", map).content_type(MERGE).body("{\"data\":{\"client-ca-file\":\"mine\"}}")).await.ok();
    until(&c, map, |a| (a.json()["data"] == before["data"]).then_some(())).await;
    c.send(Request::new("DELETE", map)).await.ok();
    until(&c, map, |a| (a.code == 200).then_some(())).await;
    c.send(Request::new("DELETE", &format!("{SERVICES}/v1.apps"))).await.ok();
    until(&c, &format!("{SERVICES}/v1.apps"), |a| {
        (a.code == 200 && a.json()["metadata"]["uid"] != apps["metadata"]["uid"]).then_some(())
    })
    .await;
    let stolen = json!({"spec": {"service": {"namespace": "default", "name": "thief"}}}).to_string();
    let patch = Request::new("PATCH", &format!("{SERVICES}/v1.apps")).content_type(MERGE).body(stolen.clone());
    c.send(patch).await.ok();
    until(&c, &format!("{SERVICES}/v1.apps"), |a| a.json()["spec"].get("service").is_none().then_some(())).await;
    // without the label nobody brings it back, but what is built in is answered for here
    let label = json!({"metadata": {"labels": null}}).to_string();
    c.send(Request::new("PATCH", &format!("{SERVICES}/v1.apps")).content_type(MERGE).body(label)).await.ok();
    c.send(Request::new("PATCH", &format!("{SERVICES}/v1.apps")).content_type(MERGE).body(stolen)).await.ok();
    assert_eq!(c.get("/apis/apps/v1/deployments").await["kind"], "DeploymentList");

    // custom resources come and go
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.stable.example.com"}, "spec": {"group": "stable.example.com", "scope": "Namespaced",
        "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    c.create(definitions, &definition).await;
    assert_eq!(available(&c, "v1.stable.example.com", "Local").await, "Local APIServices are always available");
    let one = c.get(&format!("{SERVICES}/v1.stable.example.com")).await;
    assert_eq!((&one["spec"]["groupPriorityMinimum"], &one["spec"]["versionPriority"]), (&1000.into(), &100.into()));
    // its administrator may have another server answer
    let adapter =
        Adapter::start("127.0.0.1:0".parse().unwrap(), "notes.default.svc", &front_proxy_ca(&c).await, |_| {
            Answer::Json(200, json!({"kind": "FooList", "from": "elsewhere"}))
        });
    let service = json!({"metadata": {"name": "notes"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    c.create("/api/v1/namespaces/default/services", &service).await;
    let change = json!({"metadata": {"labels": null}, "spec": {"caBundle": STANDARD.encode(&adapter.ca),
        "service": {"namespace": "default", "name": "notes", "port": adapter.address.port()}}});
    let path = format!("{SERVICES}/v1.stable.example.com");
    c.send(Request::new("PATCH", &path).content_type(MERGE).body(change.to_string())).await.ok();
    available(&c, "v1.stable.example.com", "Passed").await;
    assert_eq!(c.get("/apis/stable.example.com/v1/foos").await["from"], "elsewhere");
    // and take it back
    c.send(Request::new("DELETE", &path)).await.ok();
    available(&c, "v1.stable.example.com", "Local").await;
    until(&c, "/apis/stable.example.com/v1/foos", |a| (a.code == 200 && a.json().get("from").is_none()).then_some(()))
        .await;
    c.send(Request::new("DELETE", &format!("{definitions}/foos.stable.example.com"))).await.ok();
    until(&c, &path, |a| (a.code == 404).then_some(())).await;

    // what is no APIService is refused
    let bad = json!({"metadata": {"name": "v1.a.io"}, "spec": {"group": "a.io", "version": "v1"}});
    let refused =
        c.send(Request::new("POST", SERVICES).content_type(JSON).body(bad.to_string())).await.status(422, "Invalid");
    assert!(refused["message"].as_str().unwrap().contains("must be positive and less than 20000"), "{refused}");
}
