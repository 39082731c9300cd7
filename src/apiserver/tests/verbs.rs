//! Every row of the resource table through every verb, and what is special about some.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{APPLY, Answer, Cluster, JSON, JSON_PATCH, MERGE, PROTOBUF, Request, STRATEGIC, user};
use edge_schema::{Schema, proto};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn samples() -> BTreeMap<(String, String), Value> {
    serde_yaml_ng::Deserializer::from_str(include_str!("samples.yaml"))
        .map(|d| {
            let v = Value::deserialize(d).unwrap();
            let text = |f: &str| v[f].as_str().unwrap().to_owned();
            ((text("apiVersion"), text("kind")), v)
        })
        .collect()
}

fn decode_protobuf(answer: &Answer) -> Value {
    assert!(answer.bytes.starts_with(b"k8s\0"), "{}: {:?}", answer.code, answer.bytes);
    proto::decode(Schema::builtin(), &answer.bytes, None).unwrap()
}

/// All resources that discovery lists: group version, resource.
async fn discovered(c: &Cluster) -> Vec<(String, Value)> {
    let mut versions = vec!["v1".to_owned()];
    for g in c.get("/apis").await["groups"].as_array().unwrap() {
        versions
            .extend(g["versions"].as_array().unwrap().iter().map(|v| v["groupVersion"].as_str().unwrap().to_owned()));
    }
    let mut out = Vec::new();
    for gv in versions {
        let root = if gv == "v1" { "/api/v1".to_owned() } else { format!("/apis/{gv}") };
        let list = c.get(&root).await;
        for r in list["resources"].as_array().unwrap() {
            out.push((gv.clone(), r.clone()));
        }
    }
    out
}

#[tokio::test]
async fn every_row_does_all_its_verbs() {
    let c = Cluster::start().await;
    c.create("/api/v1/namespaces", &json!({"metadata": {"name": "walk"}})).await;
    c.create("/api/v1/namespaces/walk/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let samples = samples();
    let mut walked = 0;
    for (gv, r) in discovered(&c).await {
        let plural = r["name"].as_str().unwrap();
        let verbs: Vec<&str> = r["verbs"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        if plural.contains('/') || !(verbs.contains(&"create") && verbs.contains(&"get")) {
            continue;
        }
        let kind = r["kind"].as_str().unwrap();
        // definitions change by themselves; tests/custom.rs has them
        if kind == "CustomResourceDefinition" {
            continue;
        }
        let sample = samples.get(&(gv.clone(), kind.to_owned())).unwrap_or_else(|| panic!("no sample of {gv} {kind}"));
        let root = if gv == "v1" { "/api/v1".to_owned() } else { format!("/apis/{gv}") };
        let collection = if r["namespaced"] == true {
            format!("{root}/namespaces/walk/{plural}")
        } else {
            format!("{root}/{plural}")
        };
        walk(&c, &collection, sample).await;
        walked += 1;
    }
    assert!(walked >= 45, "only {walked} resources");
}

async fn walk(c: &Cluster, collection: &str, sample: &Value) {
    let name = sample["metadata"]["name"].as_str().unwrap();
    let path = format!("{collection}/{name}");
    let body = sample.to_string();
    let create =
        |query: &str| Request::new("POST", &format!("{collection}{query}")).content_type(JSON).body(body.clone());
    // refusal, dry run, creation, repetition
    c.send(create("").from(user("jane"))).await.status(403, "Forbidden");
    assert_eq!(c.send(create("?dryRun=All")).await.code, 201, "{path}");
    c.send(Request::new("GET", &path)).await.status(404, "NotFound");
    let made = c.send(create("")).await.ok();
    assert_eq!((&made["kind"], &made["apiVersion"]), (&sample["kind"], &sample["apiVersion"]), "{path}");
    assert!(!made["metadata"]["uid"].as_str().unwrap().is_empty());
    c.send(create("")).await.status(409, "AlreadyExists");
    // reads in all encodings and shapes
    let got = c.get(&path).await;
    assert_eq!(got["metadata"], made["metadata"], "{path}");
    let binary = decode_protobuf(&c.send(Request::new("GET", &path).accept(PROTOBUF)).await);
    assert_eq!(binary["metadata"]["uid"], got["metadata"]["uid"], "{path}");
    let yaml = c.send(Request::new("GET", &path).accept("application/yaml")).await;
    assert_eq!(serde_yaml_ng::from_slice::<Value>(&yaml.bytes).unwrap(), got, "{path}");
    let list = c.get(collection).await;
    assert_eq!(list["kind"], format!("{}List", sample["kind"].as_str().unwrap()));
    assert!(list["items"].as_array().unwrap().iter().any(|i| i["metadata"]["name"] == name), "{path}");
    let binary = decode_protobuf(&c.send(Request::new("GET", collection).accept(PROTOBUF)).await);
    assert_eq!(binary["items"].as_array().unwrap().len(), list["items"].as_array().unwrap().len(), "{path}");
    let table =
        c.send(Request::new("GET", collection).accept("application/json;as=Table;v=v1;g=meta.k8s.io")).await.ok();
    assert_eq!(table["kind"], "Table", "{path}");
    let columns = table["columnDefinitions"].as_array().unwrap().len();
    assert!(columns > 0, "{path}");
    for row in table["rows"].as_array().unwrap() {
        assert_eq!(row["cells"].as_array().unwrap().len(), columns, "{path}: {row}");
    }
    let meta = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    let meta = c.send(Request::new("GET", &path).accept(meta)).await.ok();
    assert_eq!((&meta["kind"], &meta["metadata"]), (&json!("PartialObjectMetadata"), &got["metadata"]), "{path}");
    changes(c, &path).await;
    // deletion: dry, then for good
    assert_eq!(c.send(Request::new("DELETE", &format!("{path}?dryRun=All"))).await.code, 200, "{path}");
    c.get(&path).await;
    let options = json!({"gracePeriodSeconds": 0}).to_string();
    let a = c.send(Request::new("DELETE", &path).content_type(JSON).body(options)).await;
    assert_eq!(a.code, 200, "{path}: {}", String::from_utf8_lossy(&a.bytes));
}

/// Update and the patch types, on labels, which every object has.
async fn changes(c: &Cluster, path: &str) {
    let label = |v: &Value, key: &str| v["metadata"]["labels"][key].as_str().unwrap_or_default().to_owned();
    let patch = |kind: &str, body: Value| Request::new("PATCH", path).content_type(kind).body(body.to_string());
    let v = c.send(patch(MERGE, json!({"metadata": {"labels": {"merge": "1"}}}))).await.ok();
    assert_eq!(label(&v, "merge"), "1", "{path}");
    let v = c.send(patch(STRATEGIC, json!({"metadata": {"labels": {"strategic": "1"}}}))).await.ok();
    assert_eq!((label(&v, "merge"), label(&v, "strategic")), ("1".into(), "1".into()), "{path}");
    let v = c.send(patch(JSON_PATCH, json!([{"op": "remove", "path": "/metadata/labels/merge"}]))).await.ok();
    assert_eq!(label(&v, "merge"), "", "{path}");
    let apply = Request::new("PATCH", &format!("{path}?fieldManager=test&force=true")).content_type(APPLY);
    let config = json!({"apiVersion": v["apiVersion"], "kind": v["kind"], "metadata": {"labels": {"apply": "1"}}});
    let mut v = c.send(apply.body(config.to_string())).await.ok();
    assert_eq!(label(&v, "apply"), "1", "{path}");
    v["metadata"]["labels"]["update"] = "1".into();
    let v = c.send(Request::new("PUT", path).content_type(JSON).body(v.to_string())).await.ok();
    assert_eq!(label(&v, "update"), "1", "{path}");
}

#[tokio::test]
async fn protobuf_goes_in_as_well_as_out() {
    let c = Cluster::start().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let bytes = proto::encode(Schema::builtin(), &map).unwrap();
    let a = c.send(Request::new("POST", MAPS).content_type(PROTOBUF).accept(PROTOBUF).body(bytes)).await;
    assert_eq!((a.code, &decode_protobuf(&a)["data"]), (201, &json!({"k": "v"})));
    let a = c.send(Request::new("GET", &format!("{MAPS}/none")).accept(PROTOBUF)).await;
    assert_eq!((a.code, &decode_protobuf(&a)["reason"]), (404, &json!("NotFound")), "failures too");
}

#[tokio::test]
async fn lists_come_in_pages_and_by_selector() {
    let c = Cluster::start().await;
    for i in 0..7 {
        let labels = json!({"parity": if i % 2 == 0 { "even" } else { "odd" }});
        c.create(MAPS, &json!({"metadata": {"name": format!("m{i}"), "labels": labels}})).await;
    }
    let (mut names, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = c.get(&format!("{MAPS}?limit=3&continue={token}")).await;
        names.extend(
            page["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
        assert_eq!(page["metadata"]["remainingItemCount"], 7 - names.len());
    }
    assert_eq!((pages, names), (3, (0..7).map(|i| format!("m{i}")).collect()));
    assert_eq!(c.count(&format!("{MAPS}?labelSelector=parity%3Dodd")).await, 3);
    assert_eq!(c.count(&format!("{MAPS}?fieldSelector=metadata.name%3Dm1")).await, 1);
    c.send(Request::new("GET", &format!("{MAPS}?fieldSelector=spec.x%3D1"))).await.status(400, "BadRequest");
    c.send(Request::new("GET", &format!("{MAPS}?continue=nonsense"))).await.status(400, "BadRequest");
    c.send(Request::new("DELETE", &format!("{MAPS}?labelSelector=parity%3Dodd"))).await.ok();
    assert_eq!(c.count(MAPS).await, 4);
}

#[tokio::test]
async fn what_apply_created_belongs_to_its_applier() {
    let c = Cluster::start().await;
    let path = format!("{MAPS}/m");
    let config =
        |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data});
    let apply = |data: Value| {
        Request::new("PATCH", &format!("{path}?fieldManager=me")).content_type(APPLY).body(config(data).to_string())
    };
    let made = c.send(apply(json!({"a": "1", "b": "2"}))).await;
    assert_eq!(made.code, 201);
    let made = c.get(&path).await;
    let managers = made["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!((managers.len(), &managers[0]["operation"]), (1, &json!("Apply")), "{made}");
    // nothing new is nothing written
    let same = c.send(apply(json!({"a": "1", "b": "2"}))).await.ok();
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // what is left out goes
    assert_eq!(c.send(apply(json!({"a": "1"}))).await.ok()["data"], json!({"a": "1"}));
}

#[tokio::test]
async fn apply_conflicts_scale_and_eviction() {
    let c = Cluster::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let config = |replicas: u32| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}}}})
        .to_string()
    };
    let apply = |manager: &str, more: &str, body: String| {
        Request::new("PATCH", &format!("{path}?fieldManager={manager}{more}")).content_type(APPLY).body(body)
    };
    assert_eq!(c.send(apply("one", "", config(1))).await.code, 201);
    let status = c.send(apply("two", "", config(2))).await.status(409, "Conflict");
    assert_eq!(status["message"], "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    assert_eq!(c.send(apply("two", "&force=true", config(2))).await.ok()["spec"]["replicas"], 2);
    c.send(Request::new("PATCH", &path).content_type(APPLY).body(config(1))).await.status(422, "Invalid");
    let scale = c.get(&format!("{path}/scale")).await;
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(2), &json!("a=b"))
    );
    let patch = json!({"spec": {"replicas": 5}}).to_string();
    let scaled = c.send(Request::new("PATCH", &format!("{path}/scale")).content_type(MERGE).body(patch)).await.ok();
    assert_eq!((&scaled["spec"]["replicas"], &c.get(&path).await["spec"]["replicas"]), (&json!(5), &json!(5)));
    // a pod is assigned and evicted
    let pods = "/api/v1/namespaces/default/pods";
    c.create(pods, &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let a = c.create(&format!("{pods}/p/binding"), &binding).await;
    assert_eq!((&a["kind"], &a["status"]), (&json!("Status"), &json!("Success")));
    let pod = c.get(&format!("{pods}/p")).await;
    assert_eq!((&pod["spec"]["nodeName"], &pod["spec"]["serviceAccountName"]), (&json!("n"), &json!("default")));
    assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
    c.create(
        &format!("{pods}/p/eviction"),
        &json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}),
    )
    .await;
    assert!(c.get(&format!("{pods}/p")).await["metadata"]["deletionTimestamp"].is_string());
}
