//! Custom resources: definitions, and what is served by them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::{Bytes, BytesMut};
use common::{APPLY, Cluster, JSON, JSON_PATCH, MERGE, PROTOBUF, Request, STRATEGIC, user};
use edge_apiserver::Body;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["cron"], "properties": {
            "cron": {"type": "string", "pattern": "^[*0-9 ]+$", "description": "When it runs."},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
            "colour": {"type": "string", "enum": ["red", "blue"]},
            "port": {"x-kubernetes-int-or-string": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "steps": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}})
}

fn version(name: &str, storage: bool) -> Value {
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema()},
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
        "selectableFields": [{"jsonPath": ".spec.colour"}],
        "additionalPrinterColumns": [{"name": "Cron", "type": "string", "jsonPath": ".spec.cron"},
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]})
}

fn definition(versions: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {"group": "stable.example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]}}})
}

fn tab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": name}, "spec": spec})
}

/// Reads the JSON lines of a watch.
struct Events {
    body: Body,
    rest: BytesMut,
}

impl Events {
    async fn open(c: &Cluster, path: &str) -> Self {
        let response = c.open(Request::new("GET", path)).await;
        assert_eq!(response.status(), 200, "{path}");
        Self { body: response.into_body(), rest: BytesMut::new() }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                return Some(serde_json::from_slice(&self.rest.split_to(end + 1)).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("an event");
            let data: Bytes = frame?.unwrap().into_data().unwrap();
            self.rest.extend_from_slice(&data);
        }
    }
}

/// Waits until a definition has a condition, by its watch.
async fn has(c: &Cluster, name: &str, condition: &str, status: &str) -> Value {
    let path = format!("{DEFINITIONS}?watch=true&fieldSelector=metadata.name%3D{name}");
    let mut events = Events::open(c, &path).await;
    loop {
        let event = events.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == condition && c["status"] == status) {
            return event["object"].clone();
        }
    }
}

async fn define(c: &Cluster, definition: &Value) -> Value {
    c.create(DEFINITIONS, definition).await;
    has(c, definition["metadata"]["name"].as_str().unwrap(), "Established", "True").await
}

async fn with_tabs() -> Cluster {
    let c = Cluster::start().await;
    define(&c, &definition(&json!([version("v1", true)]))).await;
    c
}

async fn put(c: &Cluster, path: &str, object: &Value) -> common::Answer {
    c.send(Request::new("PUT", path).content_type(JSON).body(object.to_string())).await
}

async fn patch(c: &Cluster, path: &str, kind: &str, patch: Value) -> common::Answer {
    c.send(Request::new("PATCH", path).content_type(kind).body(patch.to_string())).await
}

#[tokio::test]
async fn what_is_established_is_served_and_what_is_gone_is_not() {
    let c = Cluster::start().await;
    c.send(Request::new("GET", TABS)).await.status(404, "NotFound");
    let made = c.create(DEFINITIONS, &definition(&json!([version("v1", true)]))).await;
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(made["spec"]["names"]["listKind"], "CronTabList");
    assert_eq!(made["spec"]["conversion"], json!({"strategy": "None"}));
    let now = has(&c, "crontabs.stable.example.com", "Established", "True").await;
    assert_eq!(now["status"]["acceptedNames"]["shortNames"], json!(["ct"]));
    // right behind the condition
    c.create(TABS, &tab("a", json!({"cron": "* *"}))).await;
    assert_eq!(c.get(TABS).await["kind"], "CronTabList");
    let mut watch = Events::open(&c, &format!("{TABS}?watch=true")).await;
    assert_eq!(watch.next().await.unwrap()["type"], "ADDED");

    let one = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let going = c.send(Request::new("DELETE", &one)).await.ok();
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    assert_eq!(watch.next().await.unwrap()["type"], "DELETED");
    assert!(watch.next().await.is_none(), "the watch ends with the resource");
    c.send(Request::new("GET", &one)).await.status(404, "NotFound");
    c.send(Request::new("GET", TABS)).await.status(404, "NotFound");
    // and again from the beginning
    define(&c, &definition(&json!([version("v1", true)]))).await;
    assert_eq!(c.count(TABS).await, 0);
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_judged() {
    let c = with_tabs().await;
    let sent = tab("a", json!({"cron": "* *", "bad": 1, "free": {"x": {"y": 1}}}));
    let answer = c.send(Request::new("POST", TABS).content_type(JSON).body(sent.to_string())).await;
    assert_eq!(answer.warnings(), ["299 - \"unknown field \\\"spec.bad\\\"\""]);
    let made = answer.ok();
    assert_eq!(made["spec"], json!({"cron": "* *", "replicas": 1, "free": {"x": {"y": 1}}}));
    assert_eq!(made["metadata"]["generation"], 1);
    let strict = c
        .send(Request::new("POST", &format!("{TABS}?fieldValidation=Strict")).content_type(JSON).body(sent.to_string()))
        .await;
    let strict = strict.status(400, "BadRequest");
    assert!(
        strict["message"].as_str().unwrap().contains("strict decoding error: unknown field \"spec.bad\""),
        "{strict}"
    );
    for (spec, says) in [
        (json!({}), "spec.cron: Required value"),
        (json!({"cron": "often"}), "spec.cron: Invalid value: \"often\": spec.cron in body should match '^[*0-9 ]+$'"),
        (
            json!({"cron": "*", "replicas": "x"}),
            "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
        ),
        (
            json!({"cron": "*", "replicas": 11}),
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ),
        (
            json!({"cron": "*", "colour": "green"}),
            "spec.colour: Unsupported value: \"green\": supported values: \"red\", \"blue\"",
        ),
        (json!({"cron": "*", "port": []}), "spec.port: Invalid value: \"array\""),
        (
            json!({"cron": "*", "steps": [{"name": "a"}, {"name": "a"}]}),
            "spec.steps[1]: Duplicate value: {\"name\":\"a\"}",
        ),
    ] {
        let answer =
            c.send(Request::new("POST", TABS).content_type(JSON).body(tab("b", spec.clone()).to_string())).await;
        let status = answer.status(422, "Invalid");
        let message = status["message"].as_str().unwrap();
        assert!(
            message.starts_with("CronTab.stable.example.com \"b\" is invalid: ") && message.contains(says),
            "{spec}: {message}"
        );
    }
    // null stands for nothing
    let made = c.create(TABS, &tab("n", json!({"cron": "*", "replicas": null, "colour": null}))).await;
    assert_eq!(made["spec"], json!({"cron": "*", "replicas": 1}));
}

#[tokio::test]
async fn every_verb_works() {
    let c = with_tabs().await;
    let a = format!("{TABS}/a");
    let made = c.create(TABS, &tab("a", json!({"cron": "*"}))).await;
    // updates need a version, and count the desired state only
    let mut new = made.clone();
    new["spec"]["cron"] = "* *".into();
    new["status"] = json!({"replicas": 7});
    let updated = put(&c, &a, &new).await.ok();
    assert_eq!((&updated["metadata"]["generation"], updated.get("status")), (&json!(2), None));
    put(&c, &a, &new).await.status(409, "Conflict");
    put(&c, &a, &tab("a", json!({"cron": "*"}))).await.status(422, "Invalid");
    // patches
    assert_eq!(patch(&c, &a, MERGE, json!({"spec": {"replicas": 3}})).await.ok()["spec"]["replicas"], 3);
    let added = json!([{"op": "add", "path": "/metadata/labels", "value": {"l": "1"}}]);
    assert_eq!(patch(&c, &a, JSON_PATCH, added).await.ok()["metadata"]["labels"]["l"], "1");
    patch(&c, &a, STRATEGIC, json!({})).await.status(415, "UnsupportedMediaType");
    patch(&c, &a, MERGE, json!({"spec": {"replicas": 0}})).await.status(422, "Invalid");
    let applied = tab("a", json!({"cron": "* *", "steps": [{"name": "x", "n": 1}]}));
    patch(&c, &format!("{a}?fieldManager=one"), APPLY, applied).await.ok();
    let applied = tab("a", json!({"steps": [{"name": "y", "n": 1}]}));
    let both = patch(&c, &format!("{a}?fieldManager=two"), APPLY, applied).await.ok();
    assert_eq!(both["spec"]["steps"].as_array().unwrap().len(), 2, "{both}");
    let conflict = tab("a", json!({"steps": [{"name": "x", "n": 2}]}));
    patch(&c, &format!("{a}?fieldManager=two"), APPLY, conflict).await.status(409, "Conflict");
    let fresh = tab("fresh", json!({"cron": "*"}));
    assert_eq!(patch(&c, &format!("{TABS}/fresh?fieldManager=two"), APPLY, fresh).await.code, 201);
    // the status is written by its own endpoint, and nothing else is
    let generation = c.get(&a).await["metadata"]["generation"].clone();
    let status = json!({"spec": {"cron": "9"}, "metadata": {"labels": {"l": "2"}}, "status": {"replicas": 2, "selector": "a=b"}});
    let after = patch(&c, &format!("{a}/status"), MERGE, status).await.ok();
    assert_eq!((&after["status"]["replicas"], &after["spec"]["cron"]), (&json!(2), &json!("* *")));
    assert_eq!((&after["metadata"]["labels"]["l"], &after["metadata"]["generation"]), (&json!("1"), &generation));
    // scale
    let scale = c.get(&format!("{a}/scale")).await;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
    assert_eq!(
        patch(&c, &format!("{a}/scale"), MERGE, json!({"spec": {"replicas": 5}})).await.ok()["spec"]["replicas"],
        5
    );
    assert_eq!(c.get(&a).await["spec"]["replicas"], 5);
    patch(&c, &format!("{a}/scale"), MERGE, json!({"spec": {"replicas": 50}})).await.status(422, "Invalid");
    // selectors
    patch(&c, &a, MERGE, json!({"spec": {"colour": "red"}})).await.ok();
    assert_eq!(c.count(&format!("{TABS}?fieldSelector=spec.colour%3Dred")).await, 1);
    assert_eq!(c.count(&format!("{TABS}?labelSelector=l%3D1")).await, 1);
    c.send(Request::new("GET", &format!("{TABS}?fieldSelector=spec.cron%3D1"))).await.status(400, "BadRequest");
    // a table
    let table = c.send(Request::new("GET", &a).accept("application/json;as=Table;v=v1;g=meta.k8s.io")).await.ok();
    let names: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Name", "Cron", "Replicas", "Age"]);
    let cells = &table["rows"][0]["cells"];
    assert_eq!((&cells[0], &cells[1], &cells[2]), (&json!("a"), &json!("* *"), &json!(5)));
    assert!(cells[3].as_str().unwrap().ends_with('s'), "{cells}");
    // no protobuf but for metadata
    let answer = c.send(Request::new("GET", &a).accept(&format!("{PROTOBUF},{JSON}"))).await;
    assert_eq!((answer.code, answer.headers["content-type"].to_str().unwrap()), (200, JSON));
    assert_eq!(c.send(Request::new("GET", &a).accept(PROTOBUF)).await.code, 406);
    let metadata = format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    assert_eq!(c.send(Request::new("GET", &a).accept(&metadata)).await.code, 200);
    c.send(Request::new("POST", TABS).content_type(PROTOBUF).body("k8s")).await.status(415, "UnsupportedMediaType");
    // rights are those of any resource
    c.send(Request::new("GET", TABS).from(user("jane"))).await.status(403, "Forbidden");
    c.send(Request::new("DELETE", TABS)).await.ok();
    assert_eq!(c.count(TABS).await, 0);
}

#[tokio::test]
async fn discovery_and_documents_follow() {
    let c = with_tabs().await;
    let group = c.get("/apis/stable.example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let list = c.get("/apis/stable.example.com/v1").await;
    let names: Vec<&str> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["crontabs", "crontabs/scale", "crontabs/status"]);
    assert_eq!(list["resources"][0]["shortNames"], json!(["ct"]));
    let aggregated =
        Request::new("GET", "/apis").accept("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    assert!(c.send(aggregated).await.ok().to_string().contains("\"crontabs\""));
    let index = c.get("/openapi/v3").await;
    let url = index["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = c.get(&url).await;
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["com.example.stable.v1.CronTab"]["properties"]["spec"];
    assert_eq!(spec["properties"]["cron"]["description"], "When it runs.");
    assert_eq!(schemas["com.example.stable.v1.CronTab"]["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
    assert!(schemas["com.example.stable.v1.CronTabList"].is_object());
    assert!(document["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}/scale"].is_object());
    let v2 = c.get("/openapi/v2").await;
    assert_eq!(
        v2["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"]["port"],
        json!({"x-kubernetes-int-or-string": true})
    );
    // clients must not send what is refused
    let object = "/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}";
    let accepted = &document["paths"][object]["patch"]["requestBody"]["content"];
    let accepted: Vec<&str> = accepted.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(accepted, [APPLY, JSON_PATCH, MERGE]);
    // the definition itself has all forms
    let one = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let binary = c.send(Request::new("GET", &one).accept(PROTOBUF)).await;
    let decoded = edge_schema::proto::decode(edge_schema::Schema::builtin(), &binary.bytes, None).unwrap();
    let steps = |definition: &Value| {
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["spec"]["properties"]["steps"].clone()
    };
    assert_eq!(steps(&decoded), steps(&c.get(&one).await));
    // another schema is another document
    let path = json!([{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/extra", "value": {"type": "string"}}]);
    patch(&c, &one, JSON_PATCH, path).await.ok();
    let after = c.get("/openapi/v3").await["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"].clone();
    assert_ne!(after, json!(url));
    // and it holds at once
    assert_eq!(c.create(TABS, &tab("x", json!({"cron": "*", "extra": "y"}))).await["spec"]["extra"], "y");
}

#[tokio::test]
async fn a_changed_schema_changes_what_is_read() {
    let c = with_tabs().await;
    c.create(TABS, &tab("a", json!({"cron": "*"}))).await;
    let mut watch = Events::open(&c, &format!("{TABS}?watch=true")).await;
    watch.next().await.unwrap();
    let one = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let changes = json!([
        {"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/late", "value": {"type": "string", "default": "here"}},
        {"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/cron/maxLength", "value": 3}]);
    let changes = json!([changes[0], {"op": "add", "path": changes[1]["path"], "value": 3}]);
    patch(&c, &one, JSON_PATCH, changes).await.ok();
    let a = format!("{TABS}/a");
    assert_eq!(c.get(&a).await["spec"]["late"], "here", "defaults are filled in on reading");
    assert!(watch.next().await.is_none(), "who watched lists anew");
    // what was valid and does not change stays valid
    let before = c.create(TABS, &tab("b", json!({"cron": "*"}))).await;
    assert_eq!(before["spec"]["late"], "here");
    let place = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/replicas";
    let shorter = json!([{"op": "replace", "path": format!("{place}/minimum"), "value": 5},
        {"op": "replace", "path": format!("{place}/default"), "value": 5}]);
    patch(&c, &one, JSON_PATCH, shorter).await.ok();
    patch(&c, &a, MERGE, json!({"metadata": {"labels": {"x": "y"}}})).await.ok();
    patch(&c, &a, MERGE, json!({"spec": {"replicas": 2}})).await.status(422, "Invalid");
    // a write without a change brings what is stored up to date, so that its own version changes once
    let version = |v: &Value| v["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let first = version(&patch(&c, &format!("{TABS}/b"), MERGE, json!({})).await.ok());
    assert_eq!(first, version(&patch(&c, &format!("{TABS}/b"), MERGE, json!({})).await.ok()));
}

#[tokio::test]
async fn versions_differ_in_their_name() {
    let c = Cluster::start().await;
    let mut old = version("v1beta1", false);
    old["deprecated"] = true.into();
    old["additionalPrinterColumns"] = json!([]);
    define(&c, &definition(&json!([old, version("v1", true)]))).await;
    let beta = TABS.replace("/v1/", "/v1beta1/");
    let mut sent = tab("a", json!({"cron": "*"}));
    sent["apiVersion"] = "stable.example.com/v1beta1".into();
    let answer = c.send(Request::new("POST", &beta).content_type(JSON).body(sent.to_string())).await;
    assert_eq!(answer.warnings(), ["299 - \"stable.example.com/v1beta1 CronTab is deprecated\""]);
    assert_eq!(answer.ok()["apiVersion"], "stable.example.com/v1beta1");
    assert_eq!(c.get(&format!("{TABS}/a")).await["apiVersion"], "stable.example.com/v1");
    let list = c.get(&beta).await;
    assert_eq!(
        (&list["apiVersion"], &list["items"][0]["apiVersion"]),
        (&json!("stable.example.com/v1beta1"), &json!("stable.example.com/v1beta1"))
    );
    let mut watch = Events::open(&c, &format!("{beta}?watch=true")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["apiVersion"], "stable.example.com/v1beta1");
    assert_eq!(c.get("/apis/stable.example.com").await["preferredVersion"]["version"], "v1");
    // the stored version changes; objects follow when they are read, and in the store when they are written
    let one = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let turn = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": true}, {"op": "replace", "path": "/spec/versions/1/storage", "value": false}]);
    let turned = patch(&c, &one, JSON_PATCH, turn).await.ok();
    assert_eq!(turned["status"]["storedVersions"], json!(["v1", "v1beta1"]));
    assert_eq!(c.get(&format!("{beta}/a")).await["apiVersion"], "stable.example.com/v1beta1");
    assert_eq!(c.get(&format!("{TABS}/a")).await["apiVersion"], "stable.example.com/v1");
    let gone = json!([{"op": "remove", "path": "/spec/versions/1"}]);
    patch(&c, &one, JSON_PATCH, gone).await.status(422, "Invalid");
    // a version that is not served any more
    patch(&c, &one, JSON_PATCH, json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]))
        .await
        .ok();
    c.send(Request::new("GET", TABS)).await.status(404, "NotFound");
    assert_eq!(c.count(&beta).await, 1);
}

#[tokio::test]
async fn names_are_given_once() {
    let c = with_tabs().await;
    let mut other = definition(&json!([version("v1", true)]));
    other["metadata"]["name"] = "others.stable.example.com".into();
    other["spec"]["names"] = json!({"plural": "others", "kind": "Other", "shortNames": ["ct"]});
    c.create(DEFINITIONS, &other).await;
    let refused = has(&c, "others.stable.example.com", "NamesAccepted", "False").await;
    assert_eq!(refused["status"]["conditions"][0]["reason"], "ShortNamesConflict");
    c.send(Request::new("GET", "/apis/stable.example.com/v1/others")).await.status(404, "NotFound");
    // free again
    c.send(Request::new("DELETE", &format!("{DEFINITIONS}/crontabs.stable.example.com"))).await.ok();
    has(&c, "others.stable.example.com", "Established", "True").await;
    c.get("/apis/stable.example.com/v1/others").await;
}

#[tokio::test]
async fn a_definition_waits_for_finalizers_of_its_objects() {
    let c = with_tabs().await;
    let mut held = tab("held", json!({"cron": "*"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.create(TABS, &held).await;
    c.create(TABS, &tab("free", json!({"cron": "*"}))).await;
    let one = format!("{DEFINITIONS}/crontabs.stable.example.com");
    c.send(Request::new("DELETE", &one)).await.ok();
    has(&c, "crontabs.stable.example.com", "Terminating", "True").await;
    let refused =
        c.send(Request::new("POST", TABS).content_type(JSON).body(tab("new", json!({"cron": "*"})).to_string())).await;
    let refused = refused.status(405, "MethodNotAllowed");
    assert_eq!(refused["message"], "create not allowed while custom resource definition is terminating");
    let mut watch = Events::open(
        &c,
        &format!("{DEFINITIONS}?watch=true&fieldSelector=metadata.name%3Dcrontabs.stable.example.com"),
    )
    .await;
    patch(&c, &format!("{TABS}/held"), MERGE, json!({"metadata": {"finalizers": null}})).await.ok();
    while watch.next().await.unwrap()["type"] != "DELETED" {}
    c.send(Request::new("GET", TABS)).await.status(404, "NotFound");
}

#[tokio::test]
async fn definitions_and_objects_survive_a_restart() {
    let copy = tempfile::tempdir().unwrap();
    {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().to_owned();
        let c = Cluster::start_in(dir).await;
        define(&c, &definition(&json!([version("v1", true)]))).await;
        c.create(TABS, &tab("a", json!({"cron": "*"}))).await;
        let copied = std::process::Command::new("cp").arg("-a").arg(kept.join(".")).arg(copy.path()).status().unwrap();
        assert!(copied.success());
    }
    // started on what was on the disk
    let c = Cluster::start_again(copy).await;
    assert_eq!(c.get(&format!("{TABS}/a")).await["spec"]["replicas"], 1);
    c.create(TABS, &tab("b", json!({"cron": "*"}))).await;
}

#[tokio::test]
async fn hostile_definitions_do_no_harm() {
    let c = Cluster::start().await;
    let send = |body: String| c.send(Request::new("POST", DEFINITIONS).content_type(JSON).body(body));
    let with = |schema: Value| {
        let mut d = definition(&json!([version("v1", true)]));
        d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = schema;
        d["spec"]["versions"][0]["selectableFields"] = json!([]);
        d.to_string()
    };
    let mut deep = json!({"type": "string"});
    for _ in 0..40 {
        deep = json!({"type": "array", "items": deep});
    }
    let deep = with(deep).replace("crontabs", "deeps").replace("CronTab", "Deep").replace("\"ct\"", "");
    assert_eq!(send(deep).await.code, 201);
    let mut deeper = String::from(r#"{"type":"string"}"#);
    for _ in 0..5000 {
        deeper = format!(r#"{{"type":"array","items":{deeper}}}"#);
    }
    let deeper = with(json!("@@")).replace("\"@@\"", &deeper);
    send(deeper).await.status(400, "BadRequest");
    for bomb in ["(((((a{1000}){1000}){1000}){1000}){1000})", "((((((((((x*)*)*)*)*)*)*)*)*)*){999}{999}"] {
        send(with(json!({"type": "string", "pattern": bomb}))).await.status(422, "Invalid");
    }
    send(with(json!({"$ref": "#/properties/spec"}))).await.status(422, "Invalid");
    for nonsense in [
        "{}",
        "[]",
        "null",
        r#"{"spec":{"versions":[{"schema":{"openAPIV3Schema":[]}}]}}"#,
        r#"{"spec":{"versions":{}}}"#,
        r#"{"spec":{"names":[]}}"#,
    ] {
        let answer = send(nonsense.to_owned()).await;
        assert!(matches!(answer.code, 400 | 422), "{nonsense}: {}", answer.code);
    }
    let wide: serde_json::Map<String, Value> =
        (0..20_000).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
    let answer = send(with(json!({"type": "object", "properties": wide}))).await;
    assert!(matches!(answer.code, 201 | 409), "{}", String::from_utf8_lossy(&answer.bytes));
}

/// A conversion webhook that moves `spec.cron` of v1 to `spec.when` of v2 and back.
mod webhook {
    use super::*;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use std::sync::Arc;
    use tokio_rustls::TlsAcceptor;

    /// Its URL, and the certificate to believe.
    pub(crate) async fn start() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}/convert", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let serve = service_fn(|request: http::Request<hyper::body::Incoming>| async {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let answer = convert(serde_json::from_slice(&body).unwrap());
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(
                            answer.to_string(),
                        ))))
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
                });
            }
        });
        (url, made.cert.pem())
    }

    fn convert(review: Value) -> Value {
        let desired = review["request"]["desiredAPIVersion"].as_str().unwrap().to_owned();
        let objects: Vec<Value> = review["request"]["objects"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| {
                let mut o = o.clone();
                let spec = o["spec"].as_object_mut().unwrap();
                let value = spec.remove("cron").or_else(|| spec.remove("when"));
                let name = if desired.ends_with("/v1") { "cron" } else { "when" };
                if value.as_ref().is_some_and(|v| v == "refuse") {
                    return Value::Null;
                }
                value.into_iter().for_each(|v| drop(spec.insert(name.to_owned(), v)));
                o["apiVersion"] = desired.as_str().into();
                o
            })
            .collect();
        let result = if objects.iter().any(Value::is_null) {
            json!({"status": "Failure", "message": "never"})
        } else {
            json!({"status": "Success"})
        };
        json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
            "response": {"uid": review["request"]["uid"], "result": result, "convertedObjects": objects}})
    }
}

#[tokio::test]
async fn a_webhook_converts() {
    let c = Cluster::start().await;
    let (url, certificate) = webhook::start().await;
    let of = |name: &str, field: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {field: {"type": "string"}}}}}}, "additionalPrinterColumns": [{"name": "F", "type": "string", "jsonPath": format!(".spec.{field}")}]})
    };
    let mut d = definition(&json!([of("v1", "cron", true), of("v2", "when", false)]));
    let bundle = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, certificate);
    d["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": url, "caBundle": bundle}}});
    define(&c, &d).await;
    let second = TABS.replace("/v1/", "/v2/");
    c.create(TABS, &tab("a", json!({"cron": "1"}))).await;
    assert_eq!(c.get(&format!("{second}/a")).await["spec"], json!({"when": "1"}));
    let made = json!({"apiVersion": "stable.example.com/v2", "kind": "CronTab", "metadata": {"name": "b"}, "spec": {"when": "2"}});
    assert_eq!(c.create(&second, &made).await["spec"], json!({"when": "2"}));
    assert_eq!(c.get(&format!("{TABS}/b")).await["spec"], json!({"cron": "2"}));
    assert_eq!(
        patch(&c, &format!("{second}/b"), MERGE, json!({"spec": {"when": "3"}})).await.ok()["spec"],
        json!({"when": "3"})
    );
    let list = c.get(&second).await;
    assert_eq!((&list["items"][0]["spec"]["when"], &list["items"][1]["spec"]["when"]), (&json!("1"), &json!("3")));
    let table = c.send(Request::new("GET", &second).accept("application/json;as=Table;v=v1;g=meta.k8s.io")).await.ok();
    assert_eq!(table["rows"][1]["cells"], json!(["b", "3"]));
    let mut watch = Events::open(&c, &format!("{second}?watch=true")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["spec"], json!({"when": "1"}));
    // the stored version changes: from then on objects of both are in the store, and every version has all
    let turn = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    patch(&c, &format!("{DEFINITIONS}/crontabs.stable.example.com"), JSON_PATCH, turn).await.ok();
    c.create(TABS, &tab("c", json!({"cron": "4"}))).await;
    let of = |list: &Value, field: &str| -> Vec<Value> {
        list["items"].as_array().unwrap().iter().map(|o| o["spec"][field].clone()).collect()
    };
    assert_eq!(of(&c.get(TABS).await, "cron"), ["1", "3", "4"]);
    assert_eq!(of(&c.get(&second).await, "when"), ["1", "3", "4"]);
    // a write moves an object on, also when it changes nothing
    let before = c.get(&format!("{TABS}/a")).await["metadata"]["resourceVersion"].clone();
    let after = patch(&c, &format!("{TABS}/a"), MERGE, json!({})).await.ok()["metadata"]["resourceVersion"].clone();
    assert_ne!(before, after);
    // a refusal is told
    let refused = tab("z", json!({"cron": "refuse"})).to_string();
    let status = c.send(Request::new("POST", TABS).content_type(JSON).body(refused)).await.status(500, "InternalError");
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("conversion webhook for stable.example.com/v1, Kind=CronTab failed: never"),
        "{status}"
    );
    // nobody but who the certificate says is believed
    let wrong = json!([{"op": "replace", "path": "/spec/conversion/webhook/clientConfig/caBundle", "value": base64::Engine::encode(&base64::prelude::BASE64_STANDARD, rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap().cert.pem())}]);
    patch(&c, &format!("{DEFINITIONS}/crontabs.stable.example.com"), JSON_PATCH, wrong).await.ok();
    c.send(Request::new("GET", &format!("{TABS}/a"))).await.status(500, "InternalError");
    c.get(&format!("{second}/a")).await;
}

/// Definitions come, change and go while their objects are written and watched: nothing hangs, nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn definitions_change_under_their_objects() {
    let c = std::sync::Arc::new(Cluster::start().await);
    let all = (0..6).map(|i| {
        let c = c.clone();
        tokio::spawn(async move {
            let (plural, kind) = (format!("churns{i}"), format!("Churn{i}"));
            let text = definition(&json!([version("v1", true)])).to_string();
            let text = text.replace("crontabs", &plural).replace("CronTab", &kind).replace("\"ct\"", "");
            let d: Value = serde_json::from_str(&text).unwrap();
            let one = format!("{DEFINITIONS}/{plural}.stable.example.com");
            let path = format!("/apis/stable.example.com/v1/namespaces/default/{plural}");
            for _ in 0..4 {
                define(&c, &d).await;
                let object = json!({"apiVersion": "stable.example.com/v1", "kind": kind, "metadata": {"name": "x"}, "spec": {"cron": "*", "replicas": 1}});
                c.create(&path, &object).await;
                let writes = async {
                    for n in 0..40 {
                        let answer = patch(&c, &format!("{path}/x"), MERGE, json!({"spec": {"steps": [{"name": format!("s{n}")}]}})).await;
                        assert_eq!(answer.code, 200, "{}", String::from_utf8_lossy(&answer.bytes));
                    }
                };
                let changes = async {
                    for n in 0..8 {
                        let place = format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/f{n}");
                        let added = json!([{"op": "add", "path": place, "value": {"type": "integer", "default": n}}]);
                        patch(&c, &one, JSON_PATCH, added).await.ok();
                    }
                };
                let watches = async {
                    // every watch ends, or shows the object
                    for _ in 0..10 {
                        let mut events = Events::open(&c, &format!("{path}?watch=true")).await;
                        if let Some(event) = events.next().await {
                            assert_eq!(event["object"]["metadata"]["name"], "x");
                        }
                    }
                };
                tokio::join!(writes, changes, watches);
                let last = c.get(&format!("{path}/x")).await;
                assert_eq!((&last["spec"]["f7"], &last["spec"]["steps"]), (&json!(7), &json!([{"name": "s39"}])));
                let mut events = Events::open(&c, &format!("{DEFINITIONS}?watch=true&fieldSelector=metadata.name%3D{plural}.stable.example.com")).await;
                c.send(Request::new("DELETE", &one)).await.ok();
                while events.next().await.unwrap()["type"] != "DELETED" {}
                c.send(Request::new("GET", &path)).await.status(404, "NotFound");
            }
        })
    });
    for task in all.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}
