//! Strict decoding: what is unknown, double, or of the wrong type.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_api::GroupVersionKind;
use edge_schema::{DecodeError, FieldValidation, Schema, TypeRef, validate};
use serde_json::{Value, json};

fn kind(group: &str, kind: &str) -> TypeRef<'static> {
    Schema::builtin().kind(&GroupVersionKind::new(group, "v1", kind)).unwrap()
}

fn conformed(ty: TypeRef<'_>, mut value: Value) -> Value {
    validate::conform(ty, &mut value).unwrap();
    value
}

fn error(ty: TypeRef<'_>, mut value: Value) -> String {
    validate::conform(ty, &mut value).unwrap_err().to_string()
}

#[test]
fn unknown_and_duplicate_fields() {
    let deployment = kind("apps", "Deployment");
    let text =
        br#"{"apiVersion":"apps/v1","kind":"Deployment","Metadata":{},"spec":{"replicas":1,"replicas":2,"foo":{"a":1},
        "template":{"spec":{"containers":[{"name":"a"},{"name":"b","image":"x","image":"y","imaeg":1}],"x":null}}}}"#;
    let expected = [
        r#"duplicate field "spec.replicas""#,
        r#"duplicate field "spec.template.spec.containers[1].image""#,
        r#"unknown field "Metadata""#,
        r#"unknown field "spec.foo""#,
        r#"unknown field "spec.template.spec.containers[1].imaeg""#,
        r#"unknown field "spec.template.spec.x""#,
    ];
    let (value, warnings) = validate::decode_json(deployment, text, FieldValidation::Warn).unwrap();
    assert_eq!(warnings, expected);
    let pruned = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 2,
        "template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "image": "y"}]}}}});
    assert_eq!(value, pruned);
    assert_eq!(validate::decode_json(deployment, text, FieldValidation::Ignore).unwrap(), (pruned, Vec::new()));
    let strict = validate::decode_json(deployment, text, FieldValidation::Strict).unwrap_err();
    assert_eq!(strict.to_string(), format!("strict decoding error: {}", expected.join(", ")));
    assert_eq!(FieldValidation::parse("strict"), None);
    assert_eq!(FieldValidation::parse(""), Some(FieldValidation::Warn));
}

#[test]
fn wrong_types_are_named_as_kubernetes_names_them() {
    let deployment = kind("apps", "Deployment");
    for (spec, message) in [
        (json!({"replicas": "3"}), "string into Go struct field DeploymentSpec.spec.replicas of type int32"),
        (json!({"replicas": 1.5}), "number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"),
        (
            json!({"replicas": 3_000_000_000u32}),
            "number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (json!({"paused": "no"}), "string into Go struct field DeploymentSpec.spec.paused of type bool"),
        (json!({"template": []}), "array into Go struct field DeploymentSpec.spec.template of type v1.PodTemplateSpec"),
        (
            json!({"template": {"spec": {"containers": {"name": "a"}}}}),
            "object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            json!({"template": {"spec": {"containers": [{"image": 5}]}}}),
            "number 5 into Go struct field Container.spec.template.spec.containers.image of type string",
        ),
        (
            json!({"template": {"metadata": {"labels": {"a": true}}}}),
            "bool into Go struct field ObjectMeta.spec.template.metadata.labels of type string",
        ),
    ] {
        assert_eq!(error(deployment, json!({"spec": spec})), format!("json: cannot unmarshal {message}"));
    }
    assert_eq!(error(deployment, json!([])), "json: cannot unmarshal array into Go value of type v1.Deployment");
    let pod = |spec: Value| error(kind("", "Pod"), json!({"spec": spec}));
    let limits = |v: Value| pod(json!({"containers": [{"resources": {"limits": {"cpu": v}}}]}));
    assert!(
        limits(json!("1x")).starts_with("spec.containers.resources.limits: quantities must match"),
        "{}",
        limits(json!("1x"))
    );
    assert!(limits(json!([])).contains("array into Go struct field"));
    assert!(error(kind("", "Pod"), json!({"metadata": {"creationTimestamp": "x"}})).contains("parsing time \"x\""));
    assert!(error(kind("", "Secret"), json!({"data": {"a": "%"}})).contains("illegal base64"));
    let int_or_string = json!({"ports": [{"port": 1, "targetPort": true}]});
    assert!(error(kind("", "Service"), json!({"spec": int_or_string})).contains("of type intstr.IntOrString"));
}

#[test]
fn normal_forms() {
    let pod = json!({
        "metadata": {"creationTimestamp": "2026-01-02T03:04:05.678+01:00", "labels": {"a": null}, "deletionTimestamp": null},
        "spec": {
            "containers": [{"name": "a", "args": [null], "resources": {"limits": {"cpu": 0.5, "memory": "1.5Gi", "x": 2}}}, null],
            "activeDeadlineSeconds": null,
        },
    });
    let expected = json!({
        "metadata": {"creationTimestamp": "2026-01-02T02:04:05Z", "labels": {"a": ""}},
        "spec": {"containers": [
            {"name": "a", "args": [""], "resources": {"limits": {"cpu": "500m", "memory": "1536Mi", "x": "2"}}}, {}]},
    });
    assert_eq!(conformed(kind("", "Pod"), pod), expected);
    let lease = json!({"spec": {"renewTime": "2026-01-02T03:04:05Z"}});
    assert_eq!(
        conformed(kind("coordination.k8s.io", "Lease"), lease)["spec"]["renewTime"],
        "2026-01-02T03:04:05.000000Z"
    );
    let secret = json!({"data": {"a": "YQ\n==", "b": "YR==", "c": ""}});
    assert_eq!(conformed(kind("", "Secret"), secret)["data"], json!({"a": "YQ==", "b": "YQ==", "c": ""}));
    let any = json!({"data": {"kept": null, "as": [1, {"it": "is"}]}});
    assert_eq!(conformed(kind("apps", "ControllerRevision"), any.clone()), any);
}

#[test]
fn reports_are_bounded() {
    let pod = kind("", "Pod");
    let spec: serde_json::Map<String, Value> = (0..10_000).map(|i| (format!("f{i}"), Value::Null)).collect();
    let mut value = json!({"spec": spec});
    assert_eq!(validate::conform(pod, &mut value).unwrap().len(), 100);
    assert_eq!(value, json!({"spec": {}}));
    assert!(matches!(validate::decode_json(pod, b"{", FieldValidation::Ignore), Err(DecodeError::Document(_))));
}

#[test]
fn custom_resource_schemas_are_strict_inside() {
    let crd = |schema: Value| json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
    let mut value = crd(json!({"type": "object", "additionalProperties": {"typ": "x"}, "items": [{"type": "string"}]}));
    let unknown = validate::conform(kind("apiextensions.k8s.io", "CustomResourceDefinition"), &mut value).unwrap();
    assert_eq!(unknown, [r#"unknown field "spec.versions[0].schema.openAPIV3Schema.additionalProperties.typ""#]);
    let bad = crd(json!({"additionalProperties": "no"}));
    assert!(error(kind("apiextensions.k8s.io", "CustomResourceDefinition"), bad).contains("of type bool"));
}
