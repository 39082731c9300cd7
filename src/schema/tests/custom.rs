//! Types of custom resources in the same engines.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_api::{GroupVersion, GroupVersionKind};
use edge_schema::{
    ListType, MapType, Schema, Shape, StructuralError, TypeRef, default,
    openapi::{self, ApiResourceInfo},
    validate,
};
use serde_json::{Value, json};

fn gvk() -> GroupVersionKind {
    GroupVersionKind::new("stable.example.com", "v1", "CronTab")
}

fn compile() -> Schema {
    let schema = json!({"type": "object", "properties": {
        "metadata": {"type": "object"},
        "spec": {"type": "object", "required": ["cron"], "properties": {
            "cron": {"type": "string"},
            "replicas": {"type": "integer", "default": 1},
            "note": {"type": "string", "nullable": true, "default": "none"},
            "port": {"x-kubernetes-int-or-string": true},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "object"}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-map-type": "atomic"},
            "steps": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "retry": {"type": "boolean", "default": true}}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        }},
    }});
    Schema::custom(&gvk(), "CronTabList", &schema).unwrap()
}

fn spec(schema: &Schema) -> TypeRef<'_> {
    schema.kind(&gvk()).unwrap().field("spec").unwrap().ty()
}

#[test]
fn types_and_merge_rules() {
    let schema = compile();
    let root = schema.kind(&gvk()).unwrap();
    assert_eq!(root.name(), Some("com.example.stable.v1.CronTab"));
    assert_eq!(schema.named("com.example.stable.v1.CronTab"), Some(root));
    let meta = root.field("metadata").unwrap().ty();
    assert_eq!(meta, Schema::builtin().named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap());
    let spec = spec(&schema);
    assert!(spec.field("cron").unwrap().is_required() && !spec.field("replicas").unwrap().is_required());
    assert_eq!(spec.field("labels").unwrap().ty().map_type(), Some(MapType::Atomic));
    let steps = spec.field("steps").unwrap().ty();
    assert!(matches!(steps.list_type(), Some(ListType::Map(keys)) if keys.iter().eq(["name"])));
    assert!(spec.field("pod").unwrap().ty().field("kind").is_some());
    let list = schema.kind(&GroupVersionKind { kind: "CronTabList".to_owned(), ..gvk() }).unwrap();
    assert_eq!(list.field("items").unwrap().ty().element(), Some(root));
    assert!(matches!(spec.field("any").unwrap().ty().shape(), Shape::Any));
}

#[test]
fn pruning_and_defaults() {
    let schema = compile();
    let root = schema.kind(&gvk()).unwrap();
    let mut object = json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab",
        "metadata": {"name": "x", "bad": 1, "creationTimestamp": "2026-01-01T01:00:00+01:00"},
        "spec": {"cron": 5, "bad": 1, "note": null, "replicas": null, "any": {"x": null}, "open": {"y": 1, "a": {"z": 1}},
            "steps": [{"name": "a", "bad": 1}], "labels": {"k": "v"}, "port": 99_999_999_999u64,
            "pod": {"kind": "Pod", "metadata": {"bad": 1}, "spec": {"bad": 1}}}});
    let unknown = validate::conform(root, &mut object).unwrap();
    let paths = [
        "metadata.bad",
        "spec.bad",
        "spec.open.a.z",
        "spec.pod.metadata.bad",
        "spec.pod.spec.bad",
        "spec.steps[0].bad",
    ];
    assert_eq!(unknown, paths.map(|p| format!("unknown field {p:?}")));
    default::apply(root, &mut object);
    let expected = json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab",
        "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"cron": 5, "note": null, "replicas": 1, "any": {"x": null}, "open": {"y": 1, "a": {}},
            "steps": [{"name": "a", "retry": true}], "labels": {"k": "v"}, "port": 99_999_999_999u64,
            "pod": {"kind": "Pod", "metadata": {}, "spec": {}}}});
    assert_eq!(object, expected);
    let mut empty = json!({"kind": "CronTab"});
    default::apply(root, &mut empty);
    assert_eq!(empty, json!({"kind": "CronTab"}), "an absent object gets no defaults");
}

#[test]
fn malformed_schemas() {
    let compile = |schema: Value| Schema::custom(&gvk(), "CronTabList", &schema).unwrap_err();
    assert!(matches!(compile(json!([])), StructuralError::NotAnObject { .. }));
    let property = |p: Value| compile(json!({"type": "object", "properties": {"a": p}}));
    assert_eq!(property(json!({"type": "strong"})).to_string(), "properties.a: unknown type \"strong\"");
    assert!(matches!(property(json!({"type": "array"})), StructuralError::NoItems { .. }));
    let list = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]});
    assert!(matches!(property(list), StructuralError::MapKey { .. }));
    let mut deep = json!({"type": "string"});
    for _ in 0..200 {
        deep = json!({"type": "array", "items": deep});
    }
    assert!(matches!(property(deep), StructuralError::Depth));
}

#[test]
fn custom_kinds_are_published() {
    let schema = compile();
    let info = ApiResourceInfo {
        group: "stable.example.com",
        version: "v1",
        plural: "crontabs",
        subresource: None,
        namespaced: true,
        verbs: &["get", "list", "patch"],
        kind: gvk(),
        schema: &schema,
        published: None,
    };
    let document = openapi::v3_document(&GroupVersion::new("stable.example.com", "v1"), &[info], "v1.36.0");
    let document: Value = serde_json::from_slice(&document.body).unwrap();
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["com.example.stable.v1.CronTab"]["properties"]["spec"];
    assert_eq!(spec["properties"]["steps"]["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(spec["required"], json!(["cron"]));
    assert!(schemas["com.example.stable.v1.CronTabList"].is_object());
    assert!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    let list = &document["paths"]["/apis/stable.example.com/v1/crontabs"]["get"];
    assert_eq!(list["operationId"], "listStableExampleComV1CronTabForAllNamespaces");
}
