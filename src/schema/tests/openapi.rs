//! Published documents, against those of a real kube-apiserver (of an older version, so ours may have more).
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use edge_api::{GroupVersion, GroupVersionKind};
use edge_schema::{
    Schema,
    openapi::{self, ApiResourceInfo, Foreign},
};
use serde_json::{Value, json};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS: &[&str] = &["get", "patch", "update"];

fn info<'a>(
    gv: (&'a str, &'a str),
    path: &'a str,
    kind: &str,
    namespaced: bool,
    verbs: &'a [&'a str],
) -> ApiResourceInfo<'a> {
    let (plural, subresource) = path.split_once('/').map_or((path, None), |(p, s)| (p, Some(s)));
    let (group, version) = if kind == "Scale" { ("autoscaling", "v1") } else { gv };
    ApiResourceInfo {
        group: gv.0,
        version: gv.1,
        plural,
        subresource,
        namespaced,
        verbs,
        kind: GroupVersionKind::new(group, version, kind),
        schema: Schema::builtin(),
        published: None,
    }
}

fn resources() -> Vec<ApiResourceInfo<'static>> {
    let (core, apps) = (("", "v1"), ("apps", "v1"));
    vec![
        info(core, "pods", "Pod", true, ALL),
        info(core, "pods/status", "Pod", true, STATUS),
        info(core, "pods/exec", "PodExecOptions", true, &["create", "get"]),
        info(core, "pods/binding", "Binding", true, &["create"]),
        info(core, "services", "Service", true, ALL),
        info(core, "services/status", "Service", true, STATUS),
        info(core, "configmaps", "ConfigMap", true, ALL),
        info(core, "nodes", "Node", false, ALL),
        info(core, "namespaces", "Namespace", false, &["create", "delete", "get", "list", "patch", "update", "watch"]),
        info(core, "persistentvolumes", "PersistentVolume", false, ALL),
        info(apps, "deployments", "Deployment", true, ALL),
        info(apps, "deployments/status", "Deployment", true, STATUS),
        info(apps, "deployments/scale", "Scale", true, STATUS),
        info(apps, "statefulsets", "StatefulSet", true, ALL),
        info(("example.com", "v1"), "widgets", "Widget", true, ALL),
    ]
}

fn published(file: &str) -> Option<Value> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/k8s-1.36/openapi"));
    if !dir.is_dir() {
        eprintln!("SKIPPED: {} is not there, so nothing is compared with a real server", dir.display());
        return None;
    }
    Some(serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap())
}

fn v3(group: &str, version: &str) -> Value {
    let document = openapi::v3_document(&GroupVersion::new(group, version), &resources(), "v1.36.0");
    serde_json::from_slice(&document.body).unwrap()
}

fn names(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().map(|p| p["name"].as_str().unwrap()).collect()
}

/// What both properties say must be the same; of list types and texts the older document says less.
fn compare_property(place: &str, theirs: &Value, ours: &Value, differences: &mut Vec<String>) {
    for key in [
        "$ref",
        "allOf",
        "default",
        "format",
        "oneOf",
        "type",
        "x-kubernetes-map-type",
        "x-kubernetes-patch-merge-key",
        "x-kubernetes-patch-strategy",
    ] {
        // Kubernetes no longer publishes empty defaults of scalars such as times
        let empty_default = key == "default" && theirs[key] == serde_json::json!({}) && ours[key].is_null();
        if theirs[key] != ours[key] && !empty_default {
            differences.push(format!("{place} {key}: {} is {}", theirs[key], ours[key]));
        }
    }
    if theirs.get("x-kubernetes-list-type").is_some()
        && theirs["x-kubernetes-list-map-keys"] != ours["x-kubernetes-list-map-keys"]
    {
        differences.push(format!("{place} keys"));
    }
    for inner in ["items", "additionalProperties"] {
        if theirs.get(inner).is_some() {
            compare_property(&format!("{place} {inner}"), &theirs[inner], &ours[inner], differences);
        }
    }
}

/// Types and fields that changed in Kubernetes since the older document.
const CHANGED_SINCE: &[&str] = &[
    "AzureDiskVolumeSource.",
    "ConfigMapEnvSource.name ",
    "ConfigMapKeySelector.name ",
    "ConfigMapProjection.name ",
    "ConfigMapVolumeSource.name ",
    "HostAlias",
    "ISCSIPersistentVolumeSource.iscsiInterface ",
    "ISCSIVolumeSource.iscsiInterface ",
    "LabelSelectorRequirement.key ",
    "LocalObjectReference.name ",
    "PersistentVolumeClaimSpec.resources ",
    "PersistentVolumeClaimStatus.resizeStatus ",
    "PodIP",
    "PodResourceClaim.source ",
    "RBDPersistentVolumeSource.",
    "RBDVolumeSource.",
    "ScaleIOPersistentVolumeSource.",
    "ScaleIOVolumeSource.",
    "ScaleSpec.replicas ",
    "SecretEnvSource.name ",
    "SecretKeySelector.name ",
    "SecretProjection.name ",
    "StatefulSetSpec required ",
];

#[test]
fn schemas_equal_those_of_kubernetes() {
    for (file, group) in [("api__v1_openapi.json", ""), ("apis__apps__v1_openapi.json", "apps")] {
        let Some(theirs) = published(file) else { return };
        let ours = v3(group, "v1");
        let ours = ours["components"]["schemas"].as_object().unwrap();
        let (mut differences, mut compared) = (Vec::new(), 0);
        for (name, schema) in theirs["components"]["schemas"].as_object().unwrap() {
            let Some(own) = ours.get(name) else { continue };
            compared += 1;
            let required = |s: &Value| s["required"].as_array().into_iter().flatten().map(Value::to_string).collect();
            let (old, new): (BTreeSet<String>, BTreeSet<String>) = (required(schema), required(own));
            if old != new {
                differences.push(format!("{name} required {old:?} is {new:?}"));
            }
            compare_property(name, schema, own, &mut differences);
            for (property, value) in schema["properties"].as_object().into_iter().flatten() {
                compare_property(&format!("{name}.{property}"), value, &own["properties"][property], &mut differences);
            }
        }
        differences.retain(|d| !CHANGED_SINCE.iter().any(|c| d.split(".v1.").nth(1).is_some_and(|d| d.starts_with(c))));
        assert!(compared > 100, "{compared}");
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}

#[test]
fn operations_equal_those_of_kubernetes() {
    for (file, group) in [("api__v1_openapi.json", ""), ("apis__apps__v1_openapi.json", "apps")] {
        let Some(theirs) = published(file) else { return };
        let ours = v3(group, "v1");
        for (url, item) in ours["paths"].as_object().unwrap() {
            let their_item = theirs["paths"].get(url).unwrap_or_else(|| panic!("no path {url}"));
            for (method, operation) in item.as_object().unwrap().iter().filter(|(m, _)| *m != "parameters") {
                let their = &their_item[method];
                let place = format!("{method} {url}");
                for key in ["operationId", "tags", "x-kubernetes-action", "x-kubernetes-group-version-kind"] {
                    assert_eq!(operation[key], their[key], "{place} {key}");
                }
                // what all operations of a path share may be listed with the path
                let all = |item: &Value, o: &Value| {
                    let all: Vec<_> = names(&item["parameters"]).into_iter().chain(names(&o["parameters"])).collect();
                    all.into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
                };
                let mut parameters = all(item, operation);
                parameters.remove("sendInitialEvents");
                assert_eq!(parameters, all(their_item, their), "{place}");
                let codes = |o: &Value| o["responses"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
                assert_eq!(codes(operation), codes(their), "{place}");
                let body = |o: &Value| o["requestBody"]["content"].as_object().cloned();
                assert_eq!(body(operation), body(their), "{place}");
            }
        }
    }
}

#[test]
fn patch_operations_announce_dry_run() {
    let document = v2(&[]);
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    assert!(names(&patch["parameters"]).is_superset(&BTreeSet::from(["dryRun", "fieldValidation", "body"])));
    let pod = &document["definitions"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    assert_eq!(pod["properties"]["spec"]["$ref"], "#/definitions/io.k8s.api.core.v1.PodSpec");
    assert!(pod["properties"]["spec"].get("default").is_none());
    assert_eq!(document["definitions"]["com.example.v1.Widget"]["type"], "object");
}

/// Every `$ref` of a document points at something in it; gives how many there are.
#[track_caller]
fn resolve(document: &Value) -> usize {
    let mut todo = vec![document];
    let mut seen = 0;
    while let Some(value) = todo.pop() {
        if let Some(target) = value.get("$ref").and_then(Value::as_str) {
            seen += 1;
            assert!(document.pointer(&target[1..]).is_some(), "{target}");
        }
        todo.extend(value.as_object().into_iter().flatten().map(|(_, v)| v));
        todo.extend(value.as_array().into_iter().flatten());
    }
    seen
}

#[test]
fn references_resolve() {
    for document in [v2(&[]), v3("", "v1"), v3("apps", "v1"), v3("example.com", "v1")] {
        assert!(resolve(&document) > 10);
    }
}

fn v2(others: &[&Foreign]) -> Value {
    serde_json::from_slice(&openapi::v2_json(&resources(), others, "v1.36.0").body).unwrap()
}

const KINDS: &str = "x-kubernetes-group-version-kind";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/definitions/{name}")})
}

/// The part of a server with one kind of its own, and the definitions of `others`.
fn foreign(version: &str, others: &[(&str, Value)]) -> Foreign {
    let kind = json!([{"group": "a.io", "version": version, "kind": "Note"}]);
    let references: serde_json::Map<String, Value> =
        others.iter().enumerate().map(|(i, (name, _))| (format!("p{i}"), reference(name))).collect();
    let name = format!("io.a.{version}.Note");
    let mut definitions = json!({&name: {"type": "object", "properties": references, KINDS: kind}});
    for (name, schema) in others {
        definitions[name] = schema.clone();
    }
    let item = json!({"get": {"responses": {"200": {"description": "OK", "schema": reference(&name)}}}});
    let document =
        json!({"swagger": "2.0", "definitions": definitions, "paths": {format!("/apis/a.io/{version}/notes"): item}});
    Foreign::read(document.to_string().as_bytes(), &GroupVersion::new("a.io", version)).unwrap()
}

#[test]
fn what_others_say_stands_beside_ours() {
    let ours = v2(&[]);
    let of_ours = |name: &str| ours["definitions"][name].clone();
    let options = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
    let precondition = "io.k8s.apimachinery.pkg.apis.meta.v1.Preconditions";
    let map = "io.k8s.api.core.v1.ConfigMap";
    // the same but for its kinds; one that differs; and one that refers to that
    let mut same = of_ours(options);
    same[KINDS] = json!([{"group": "a.io", "version": "v1", "kind": "DeleteOptions"}, {"group": "apps", "version": "v1", "kind": "Deployment"}]);
    let meta = json!({"type": "object", "description": "Another one."});
    let first = foreign(
        "v1",
        &[(options, same), (precondition, of_ours(precondition)), (META, meta.clone()), (map, of_ours(map))],
    );
    let merged = v2(&[&first]);
    resolve(&merged);
    let definitions = &merged["definitions"];
    assert!(
        definitions.get(format!("{options}_v2")).is_none() && definitions.get(format!("{precondition}_v2")).is_none()
    );
    let kinds = definitions[options][KINDS].as_array().unwrap();
    assert!(kinds.contains(&json!({"group": "a.io", "version": "v1", "kind": "DeleteOptions"})));
    assert_eq!(kinds.len(), of_ours(options)[KINDS].as_array().unwrap().len() + 1, "of its own kinds only");
    assert_eq!(definitions[format!("{META}_v2")], meta);
    assert_eq!(definitions[format!("{map}_v2")]["properties"]["metadata"]["$ref"], format!("#/definitions/{META}_v2"));
    assert_eq!(definitions["io.a.v1.Note"]["properties"]["p2"], reference(&format!("{META}_v2")));
    assert_eq!(definitions["io.a.v1.Note"]["properties"]["p0"], reference(options));
    assert_eq!(merged["paths"]["/apis/a.io/v1/notes"]["get"]["responses"]["200"]["schema"], reference("io.a.v1.Note"));
    // ours is as it was
    for (name, schema) in ours["definitions"].as_object().unwrap().iter().filter(|(name, _)| *name != options) {
        assert_eq!(&definitions[name], schema);
    }
    assert_eq!(merged["paths"].as_object().unwrap().len(), ours["paths"].as_object().unwrap().len() + 1);

    // the same again, something else again, and somebody who took the name already
    let second = foreign("v2", &[(META, meta.clone()), (map, of_ours(map))]);
    let third = foreign("v3", &[(META, json!({"type": "object"})), (&format!("{META}_v2"), json!({"type": "string"}))]);
    let merged = v2(&[&first, &second, &third]);
    resolve(&merged);
    let definitions = merged["definitions"].as_object().unwrap();
    assert_eq!(definitions["io.a.v2.Note"]["properties"]["p0"], reference(&format!("{META}_v2")));
    assert_eq!(definitions["io.a.v2.Note"]["properties"]["p1"], reference(&format!("{map}_v2")));
    assert_eq!(definitions["io.a.v3.Note"]["properties"]["p0"], reference(&format!("{META}_v3")));
    assert_eq!(definitions["io.a.v3.Note"]["properties"]["p1"], reference(&format!("{META}_v2_v2")));
    assert_eq!(
        (&definitions[&format!("{META}_v2")], &definitions[&format!("{META}_v3")]["type"]),
        (&meta, &json!("object"))
    );
    let names: Vec<&String> =
        definitions.keys().filter(|name| !ours["definitions"].as_object().unwrap().contains_key(*name)).collect();
    assert_eq!(names.len(), 3 + 4, "{names:?}");
    // the other form has the same
    let protobuf = openapi::v2_protobuf(&resources(), &[&first, &second, &third], "v1.36.0").body;
    for text in names.into_iter().map(String::as_str).chain(["/apis/a.io/v3/notes"]) {
        assert!(protobuf.windows(text.len()).any(|w| w == text.as_bytes()), "{text}");
    }
    assert_eq!(v2(&[&first, &second]), v2(&[&first, &second]), "and the same whenever it is asked for");
}

#[test]
fn names_of_ours_by_the_thousand_cost_little() {
    let ours = v2(&[]);
    let all: Vec<(&str, Value)> = ours["definitions"]
        .as_object()
        .unwrap()
        .keys()
        .map(|name| (name.as_str(), json!({"$ref": "#/definitions/io.a.v1.Note"})))
        .collect();
    let hostile = foreign("v1", &all);
    let begun = std::time::Instant::now();
    let merged = v2(&[&hostile, &hostile]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    resolve(&merged);
    assert_eq!(merged["definitions"].as_object().unwrap().len(), 2 * all.len() + 1, "the same twice is there once");
}

#[test]
fn the_same_input_gives_the_same_hash() {
    let gv = GroupVersion::new("apps", "v1");
    let one = openapi::v3_document(&gv, &resources(), "v1.36.0");
    assert_eq!(one, openapi::v3_document(&gv, &resources(), "v1.36.0"));
    assert_ne!(one.hash, openapi::v3_document(&gv, &resources()[..11], "v1.36.0").hash);
    let index: Value = serde_json::from_slice(&openapi::v3_index([(&gv, one.hash.as_str())]).body).unwrap();
    let url = format!("/openapi/v3/apis/apps/v1?hash={}", one.hash);
    assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], url);
}
