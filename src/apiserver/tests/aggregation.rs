//! The aggregation layer: APIServices, and other API servers behind this one.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/e2e/harness/adapter.rs"]
mod adapter;
mod common;

use adapter::{Adapter, Answer, Asked};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Answer as Told, Cluster, JSON, MERGE, Request, user};
use serde_json::{Value, json};
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
    Adapter::start("127.0.0.1:0".parse().unwrap(), "notes.default.svc", &front_proxy_ca(c).await, notes)
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
    let all = c.send(Request::new("GET", "/apis").accept(DISCOVERY)).await.ok();
    assert_eq!(resources(&all), json!({"version": "v1", "freshness": "Stale"}));
    let again = Adapter::start(address, "notes.default.svc", &ca, notes);
    let spec = json!({"spec": {"caBundle": STANDARD.encode(&again.ca)}}).to_string();
    c.send(Request::new("PATCH", &format!("{SERVICES}/{name}")).content_type(MERGE).body(spec)).await.ok();
    available(&c, &name, "Passed").await;
    assert_eq!(c.get(&path).await["kind"], "Note");
    c.send(Request::new("DELETE", "/api/v1/namespaces/default/services/notes")).await.ok();
    assert_eq!(available(&c, &name, "ServiceNotFound").await, "service/notes in \"default\" is not present");
    c.send(Request::new("DELETE", &format!("{SERVICES}/{name}"))).await.ok();
    until(&c, &format!("/apis/{GROUP}"), |answer| (answer.code == 404).then_some(())).await;
    c.send(Request::new("GET", &path)).await.status(404, "NotFound");
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
