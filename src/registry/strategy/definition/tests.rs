//! Definitions that Kubernetes takes and those that it does not.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}}}}}]}})
}

fn judge(value: Value) -> String {
    let mut object = Object::from_value(value).unwrap();
    (STRATEGY.prepare_create)(&mut object);
    let mut errors = ErrorList::new();
    (STRATEGY.validate)(&object, &mut errors);
    (STRATEGY.validate_news)(&object, None, &mut errors);
    errors.to_string()
}

#[test]
fn what_is_filled_in() {
    let mut object = Object::from_value(definition()).unwrap();
    (STRATEGY.prepare_create)(&mut object);
    assert_eq!(
        object.pointer("/spec/names").unwrap(),
        &json!({"plural": "foos", "kind": "Foo", "singular": "foo", "listKind": "FooList"})
    );
    assert_eq!(object.pointer("/status/storedVersions").unwrap(), &json!(["v1"]));
    let live = object.clone();
    object
        .section_mut("spec")
        .insert("versions".into(), json!([{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]));
    (STRATEGY.prepare_update)(&mut object, &live);
    assert_eq!(object.pointer("/status/storedVersions").unwrap(), &json!(["v1", "v2"]));
    object.section_mut("spec").insert("versions".into(), json!([{"name": "v2", "storage": true}]));
    let mut errors = ErrorList::new();
    validate_update(&object, &live, &mut errors);
    assert!(
        errors.to_string().contains("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions"),
        "{errors}"
    );
}

#[test]
fn a_definition_waits_for_its_objects() {
    let mut object = Object::from_value(definition()).unwrap();
    assert!((STRATEGY.is_held)(&object));
    (STRATEGY.prepare_delete)(&mut object);
    assert_eq!(object.finalizers().collect::<Vec<_>>(), [CLEANUP]);
    assert!(is_true(&object, "Terminating"));
    set_finalizer(&mut object, CLEANUP, false);
    (STRATEGY.prepare_delete)(&mut object);
    assert_eq!(object.finalizers().count(), 0, "once");
    object.set_meta("deletionTimestamp", "2026-01-01T00:00:00Z");
    assert!(!(STRATEGY.is_held)(&object));
}

#[test]
fn refusals_have_kubernetes_words() {
    assert_eq!(judge(definition()), "");
    let version = |extra: Value| {
        let mut d = definition();
        d["spec"]["versions"][0].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        d
    };
    let with = |pointer: &str, value: Value| {
        let mut d = definition();
        *d.pointer_mut(pointer).unwrap() = value;
        d
    };
    let spec = |name: &str, value: Value| {
        let mut d = definition();
        d["spec"][name] = value;
        d
    };
    let mut protected = spec("group", json!("x.k8s.io"));
    protected["metadata"]["name"] = "foos.x.k8s.io".into();
    let second =
        json!({"name": "v2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}});
    let both = json!([definition()["spec"]["versions"][0], second]);
    for (d, says) in [
        (
            with("/metadata/name", json!("x.example.com")),
            "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            with("/spec/group", json!("example")),
            "spec.group: Invalid value: \"example\": should be a domain with at least one dot",
        ),
        (
            with("/spec/scope", json!("Galaxy")),
            "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (with("/spec/names/kind", json!("")), "spec.names.kind: Required value"),
        (with("/spec/names/kind", json!("F!")), "may have mixed case, but should otherwise match: "),
        (
            spec("preserveUnknownFields", json!(true)),
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
        ),
        (with("/spec/versions/0/storage", json!(false)), "must have exactly one version marked as storage version"),
        (spec("versions", both), "must have exactly one version marked as storage version"),
        (with("/spec/versions/0/name", json!("V1")), "spec.versions[0].name: Invalid value: \"V1\""),
        (
            with("/spec/versions/0/schema", json!(null)),
            "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
        ),
        (
            protected,
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation",
        ),
        (
            spec("conversion", json!({"strategy": "Webhook"})),
            "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
        ),
        (spec("conversion", json!({"strategy": "Magic"})), "spec.conversion.strategy: Unsupported value: \"Magic\""),
        (
            spec(
                "conversion",
                json!({"strategy": "None", "webhook": {"clientConfig": {}, "conversionReviewVersions": ["v1"]}}),
            ),
            "should not be set when strategy is not set to Webhook",
        ),
        (
            spec(
                "conversion",
                json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://x"}, "conversionReviewVersions": ["v9"]}}),
            ),
            "must include at least one of v1, v1beta1",
        ),
        (
            spec(
                "conversion",
                json!({"strategy": "Webhook", "webhook": {"clientConfig": {}, "conversionReviewVersions": ["v1"]}}),
            ),
            "exactly one of url or service is required",
        ),
        (
            version(
                json!({"subresources": {"scale": {"specReplicasPath": "spec.n", "statusReplicasPath": ".spec.n"}}}),
            ),
            "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \"spec.n\": must be a simple json path starting with .",
        ),
        (
            version(
                json!({"subresources": {"scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".spec.n"}}}),
            ),
            "should be a json path under .status",
        ),
        (
            version(json!({"additionalPrinterColumns": [{"name": "a", "type": "text", "jsonPath": ".a"}]})),
            "additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
        ),
        (
            version(json!({"additionalPrinterColumns": [{"name": "a", "type": "string", "jsonPath": "a"}]})),
            "JSONPath: Invalid value: \"a\": must be a simple json path",
        ),
        (
            version(json!({"additionalPrinterColumns": [{"name": "a", "type": "string", "jsonPath": ".a[?("}]})),
            "JSONPath: Invalid value",
        ),
        (
            version(json!({"selectableFields": [{"jsonPath": ".spec.x"}]})),
            "selectableFields[0].jsonPath: Invalid value: \".spec.x\": is an invalid path",
        ),
        (
            version(json!({"selectableFields": [{"jsonPath": ".spec"}]})),
            "must point to a field of type string, boolean or integer",
        ),
        (
            version(json!({"selectableFields": [{"jsonPath": ".spec.a"}, {"jsonPath": ".spec.a"}]})),
            "selectableFields[1].jsonPath: Duplicate value",
        ),
        (version(json!({"deprecationWarning": "x"})), "can only be set for deprecated versions"),
    ] {
        let found = judge(d.clone());
        assert!(found.contains(says), "{says}: {found}");
    }
}

#[test]
fn expensive_rules_are_refused_unless_they_were_there() {
    let mut value = definition();
    let schema = &mut value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    // once and a bit beyond what one rule may cost
    let rule = json!([{"rule": "self.contains('keyword')"}]);
    let item = json!({"type": "string", "maxLength": 30_000, "x-kubernetes-validations": rule});
    schema["list"] = json!({"type": "array", "maxItems": 1000, "items": item});
    let told = judge(value.clone());
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[list].items.x-kubernetes-validations[0].rule";
    assert!(told.contains(&format!("{at}: Forbidden: estimated rule cost exceeds budget by factor of 1.2")), "{told}");
    let new = Object::from_value(value.clone()).unwrap();
    let judged = |live: Value| {
        let mut errors = ErrorList::new();
        (STRATEGY.validate_news)(&new, Some(&Object::from_value(live).unwrap()), &mut errors);
        errors.to_string()
    };
    assert_eq!(judged(value.clone()), "", "the schema is as it was");
    assert!(judged(definition()).contains("estimated rule cost exceeds"), "it is another one");
    value["spec"]["versions"][0]["name"] = "v0".into();
    assert!(judged(value).contains("estimated rule cost exceeds"), "it was another version's");
}
