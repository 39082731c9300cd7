//! Policies over a cluster of a few objects.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::super::again::Again;
use super::super::testing::{Fake, attributes};
use super::*;
use serde_json::json;

const DEPLOYMENT: (&str, &str, &str) = ("apps", "deployments", "Deployment");

fn policy(mut spec: Value) -> Value {
    if spec["matchConstraints"].is_null() {
        let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]});
        spec["matchConstraints"] = json!({"resourceRules": [rule]});
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": spec})
}

fn binding(mut spec: Value) -> Value {
    spec["policyName"] = "p".into();
    if spec["validationActions"].is_null() {
        spec["validationActions"] = json!(["Deny"]);
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "b"}, "spec": spec})
}

fn cluster() -> Fake {
    Fake::default()
        .with("/namespaces//ns", json!({"kind": "Namespace", "metadata": {"name": "ns", "labels": {"env": "prod"}}}))
        .with("/configmaps/ns/limits", json!({"kind": "ConfigMap", "metadata": {"name": "limits", "namespace": "ns", "labels": {"l": "1"}}, "data": {"most": "3"}}))
}

/// What becomes of a Deployment with so many replicas.
fn create(policy: &Value, binding: &Value, replicas: i64) -> Result<(), Status> {
    let mut cluster = cluster();
    cluster.allowed = vec!["approve deployments.apps web".into()];
    for value in [policy, binding] {
        cluster.policies.upsert(value);
    }
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "ns", "labels": {"app": "web"}}, "spec": {"replicas": replicas}});
    let object = Object::from_value(object).unwrap();
    attributes(Operation::Create, DEPLOYMENT, "ns", "web", |a| {
        futures::executor::block_on(validate(&cluster, a, Some(&object)))
    })
}

#[test]
fn denials_are_worded_as_in_kubernetes() {
    let p = policy(json!({"validations": [{"expression": "object.spec.replicas <= 5"}]}));
    create(&p, &binding(json!({})), 5).unwrap();
    let status = create(&p, &binding(json!({})), 6).unwrap_err();
    let by =
        "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: object.spec.replicas <= 5";
    assert_eq!(status.message, format!("deployments.apps \"web\" is forbidden: {by}"));
    assert_eq!((status.code, status.reason), (422, Reason::Invalid));
    assert_eq!(status.details.unwrap().causes[0].message, by);
    for (validation, message, code) in [
        (json!({"expression": "false", "message": " no "}), "no", 422),
        (
            json!({"expression": "false", "message": "x", "messageExpression": "'n: ' + string(object.spec.replicas)"}),
            "n: 9",
            422,
        ),
        (json!({"expression": "false", "message": "x", "messageExpression": "object.nope"}), "x", 422),
        (json!({"expression": "false", "message": "x", "messageExpression": "'a\\nb'"}), "x", 422),
        (json!({"expression": "false", "message": "x", "reason": "Forbidden"}), "x", 403),
        (json!({"expression": "false", "message": "x", "reason": "Unauthorized"}), "x", 401),
        (json!({"expression": "object.nope"}), "expression 'object.nope' resulted in error: no such key: nope", 422),
    ] {
        let status = create(&policy(json!({"validations": [validation]})), &binding(json!({})), 9).unwrap_err();
        assert!(status.message.ends_with(&format!("denied request: {message}")), "{validation}: {}", status.message);
        assert_eq!(status.code, code, "{validation}");
    }
}

#[test]
fn what_policies_see() {
    for expression in [
        "oldObject == null && object.metadata.name == 'web'",
        "request.operation == 'CREATE' && request.resource.resource == 'deployments' && request.kind.kind == 'Deployment'",
        "request.userInfo.username == 'jane' && 'dev' in request.userInfo.groups && !request.dryRun && request.name == 'web' && request.namespace == 'ns'",
        "namespaceObject.metadata.labels.env == 'prod'",
        "variables.twice == 4 && variables.same == 4",
        "authorizer.group('apps').resource('deployments').name('web').check('approve').allowed()",
        "!authorizer.group('apps').resource('deployments').name('other').check('approve').allowed()",
        "authorizer.requestResource.check('approve').allowed() && !authorizer.requestResource.check('delete').allowed()",
    ] {
        let variables = json!([{"name": "twice", "expression": "object.spec.replicas * 2"}, {"name": "same", "expression": "variables.twice"}, {"name": "bad", "expression": "object.nope"}]);
        let p = policy(json!({"variables": variables, "validations": [{"expression": expression}]}));
        assert_eq!(create(&p, &binding(json!({})), 2).map_err(|s| s.message), Ok(()), "{expression}");
    }
}

#[test]
fn what_policies_are_about() {
    let no = |mut spec: Value| {
        spec["validations"] = json!([{"expression": "false"}]);
        policy(spec)
    };
    let rule = |resource: &str| json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": [resource]});
    for (policy, of_binding, refused) in [
        (no(json!({})), json!({}), true),
        (no(json!({"matchConstraints": {"resourceRules": [rule("pods")]}})), json!({}), false),
        (
            no(
                json!({"matchConstraints": {"resourceRules": [rule("*")], "excludeResourceRules": [rule("deployments")]}}),
            ),
            json!({}),
            false,
        ),
        (
            no(
                json!({"matchConstraints": {"resourceRules": [rule("*")], "namespaceSelector": {"matchLabels": {"env": "prod"}}}}),
            ),
            json!({}),
            true,
        ),
        (
            no(
                json!({"matchConstraints": {"resourceRules": [rule("*")], "namespaceSelector": {"matchLabels": {"env": "test"}}}}),
            ),
            json!({}),
            false,
        ),
        (
            no(
                json!({"matchConstraints": {"resourceRules": [rule("*")], "objectSelector": {"matchLabels": {"app": "db"}}}}),
            ),
            json!({}),
            false,
        ),
        (no(json!({})), json!({"matchResources": {"namespaceSelector": {"matchLabels": {"env": "test"}}}}), false),
        (no(json!({})), json!({"matchResources": {"objectSelector": {"matchLabels": {"app": "web"}}}}), true),
        (
            no(json!({"matchConditions": [{"name": "c", "expression": "request.userInfo.username != 'jane'"}]})),
            json!({}),
            false,
        ),
        (
            no(
                json!({"matchConditions": [{"name": "c", "expression": "object.nope"}, {"name": "d", "expression": "false"}]}),
            ),
            json!({}),
            false,
        ),
        (no(json!({"matchConditions": [{"name": "c", "expression": "object.nope"}]})), json!({}), true),
        (
            no(json!({"failurePolicy": "Ignore", "matchConditions": [{"name": "c", "expression": "object.nope"}]})),
            json!({}),
            false,
        ),
        (policy(json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.nope"}]})), json!({}), false),
        (
            policy(json!({"auditAnnotations": [{"key": "k", "valueExpression": "object.nope"}]})),
            json!({"validationActions": ["Audit"]}),
            true,
        ),
        (policy(json!({"auditAnnotations": [{"key": "k", "valueExpression": "'v'"}]})), json!({}), false),
        (no(json!({})), json!({"validationActions": ["Warn"]}), false),
        (no(json!({})), json!({"validationActions": ["Audit"]}), false),
        (no(json!({})), json!({"validationActions": ["Audit", "Deny"]}), true),
    ] {
        assert_eq!(
            create(&policy, &binding(of_binding.clone()), 1).is_err(),
            refused,
            "{} {of_binding}",
            policy["spec"]
        );
    }
}

#[test]
fn parameters_come_from_the_binding() {
    let kind = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let p = policy(
        json!({"paramKind": kind, "validations": [{"expression": "params == null || object.spec.replicas <= int(params.data.most)"}]}),
    );
    let missing = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    for (reference, replicas, why) in [
        (json!({"name": "limits", "parameterNotFoundAction": "Deny"}), 3, None),
        (json!({"name": "limits", "parameterNotFoundAction": "Deny"}), 4, Some("failed expression")),
        (
            json!({"selector": {"matchLabels": {"l": "1"}}, "parameterNotFoundAction": "Deny"}),
            4,
            Some("failed expression"),
        ),
        (json!({"selector": {}, "parameterNotFoundAction": "Deny"}), 3, None),
        (json!({"name": "nope", "parameterNotFoundAction": "Allow"}), 99, None),
        (json!({"name": "nope", "parameterNotFoundAction": "Deny"}), 1, Some(missing)),
        (json!({"name": "limits", "namespace": "other", "parameterNotFoundAction": "Deny"}), 1, Some(missing)),
        (Value::Null, 99, None),
    ] {
        let result = create(&p, &binding(json!({"paramRef": reference})), replicas).map_err(|s| s.message);
        match why {
            None => assert_eq!(result, Ok(()), "{reference}"),
            Some(why) => assert!(result.unwrap_err().contains(why), "{reference}"),
        }
    }
    let unknown =
        policy(json!({"paramKind": {"apiVersion": "x.io/v1", "kind": "No"}, "validations": [{"expression": "true"}]}));
    let b = binding(json!({"paramRef": {"name": "x", "parameterNotFoundAction": "Allow"}}));
    assert!(create(&unknown, &b, 1).unwrap_err().message.contains("not known"));
}

fn complaint(value: &Value) -> String {
    let object = Object::from_value(value.clone()).unwrap();
    let plural = if value["kind"] == "ValidatingAdmissionPolicy" { POLICIES } else { BINDINGS };
    attributes(Operation::Create, (GROUP, plural, "X"), "", "p", |a| {
        check(a, &object).map_err(|s| s.message).err().unwrap_or_default()
    })
}

#[test]
fn policies_that_cannot_work_are_refused() {
    assert_eq!(complaint(&policy(json!({"validations": [{"expression": "true"}]}))), "");
    assert_eq!(complaint(&binding(json!({}))), "");
    for (spec, why) in [
        (
            json!({"validations": [{"expression": "object."}]}),
            "spec.validations[0].expression: Invalid value: \"object.\": compilation failed: ERROR: <input>:1:8: Syntax error",
        ),
        (
            json!({"validations": [{"expression": "1"}]}),
            "spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool",
        ),
        (json!({"validations": [{"expression": "params.x"}]}), "undeclared reference to 'params'"),
        (json!({"validations": [{"expression": "request.nope"}]}), "undefined field 'nope'"),
        (json!({"validations": [{"expression": "variables.x"}]}), "undeclared reference to 'variables'"),
        (
            json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
            "spec.validations[0].messageExpression: Invalid value: \"1\": must evaluate to string",
        ),
        (
            json!({"validations": [{"expression": "true", "messageExpression": "authorizer.path('/').check('get').reason()"}]}),
            "undeclared reference to 'authorizer'",
        ),
        (
            json!({"validations": [{"expression": "true", "reason": "Nope"}]}),
            "spec.validations[0].reason: Unsupported value",
        ),
        (json!({"validations": [{"expression": ""}]}), "spec.validations[0].expression: Required value"),
        (json!({}), "spec.validations: Required value: validations or auditAnnotations must contain at least one item"),
        (
            json!({"variables": [{"name": "a-b", "expression": "1"}], "validations": [{"expression": "true"}]}),
            "name is not a valid CEL identifier",
        ),
        (
            json!({"variables": [{"name": "a", "expression": "variables.b"}, {"name": "b", "expression": "1"}], "validations": [{"expression": "true"}]}),
            "undeclared reference",
        ),
        (
            json!({"matchConstraints": {}, "validations": [{"expression": "true"}]}),
            "spec.matchConstraints.resourceRules: Required value",
        ),
        (
            json!({"matchConditions": [{"name": "c", "expression": "'x'"}], "validations": [{"expression": "true"}]}),
            "must evaluate to bool",
        ),
        (json!({"auditAnnotations": [{"key": "k", "valueExpression": "1"}]}), "must evaluate to one of: [string null]"),
    ] {
        let message = complaint(&policy(spec.clone()));
        assert!(message.contains(why), "{spec}: {message}");
    }
    for (spec, why) in [
        (json!({"validationActions": ["Deny", "Warn"]}), "must not contain both Deny and Warn"),
        (json!({"validationActions": ["Nope"]}), "Unsupported value: \"Nope\""),
        (json!({"paramRef": {"name": "x", "selector": {}}}), "name and selector are mutually exclusive"),
        (json!({"paramRef": {"parameterNotFoundAction": "Deny"}}), "one of name or selector must be specified"),
    ] {
        let message = complaint(&binding(spec.clone()));
        assert!(message.contains(why), "{spec}: {message}");
    }
}

#[test]
fn a_request_does_not_compute_for_ever() {
    let expression = "lists.range(900).all(a, lists.range(900).all(b, lists.range(900).all(c, a + b + c >= 0)))";
    let p = policy(json!({"validations": [{"expression": expression}]}));
    let message = create(&p, &binding(json!({})), 1).unwrap_err().message;
    assert!(message.contains("actual cost limit exceeded"), "{message}");
    let many: Vec<Value> = (0..30)
        .map(|_| json!({"expression": "lists.range(900).all(a, lists.range(900).all(b, a + b >= 0 || true))"}))
        .collect();
    let message = create(&policy(json!({"validations": many, "failurePolicy": "Fail"})), &binding(json!({})), 1)
        .unwrap_err()
        .message;
    assert!(message.contains("cost"), "{message}");
    // a long chain of variables uses no more stack than is there
    let variables: Vec<Value> = (0..5000).map(|i| json!({"name": format!("v{i}"), "expression": if i == 0 { "1".to_owned() } else { format!("variables.v{}", i - 1) }})).collect();
    let p = policy(json!({"variables": variables, "validations": [{"expression": "variables.v4999 == 1"}]}));
    let message = create(&p, &binding(json!({})), 1).unwrap_err().message;
    assert!(message.contains("nested too deeply"), "{}", message.get(..500).unwrap_or(&message));
}

fn mutating(mutations: Value, more: Value) -> Value {
    let mut value = policy(more);
    value["kind"] = "MutatingAdmissionPolicy".into();
    value["spec"]["mutations"] = mutations;
    value
}

fn mutated(policy: &Value) -> Result<Value, String> {
    let cluster = cluster();
    let mut bound = binding(json!({}));
    bound["kind"] = "MutatingAdmissionPolicyBinding".into();
    bound["spec"].as_object_mut().unwrap().remove("validationActions");
    for value in [policy, &bound] {
        cluster.policies.upsert(value);
    }
    let containers = json!([{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}]}]);
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"replicas": 1, "template": {"spec": {"containers": containers}}}});
    let mut object = Object::from_value(object).unwrap();
    attributes(Operation::Create, DEPLOYMENT, "ns", "web", |a| {
        let set = cluster.policies.current().unwrap();
        let mut again = Again::default();
        let changed = mutate(&cluster, &set, a, &mut object, &mut again);
        futures::executor::block_on(changed).map_err(|s| s.message)
    })?;
    Ok(object.into_value())
}

#[test]
fn policies_change_objects() {
    let apply = |expression: &str| json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]);
    let patch = |expression: &str| json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}]);
    for (mutations, pointer, want) in [
        (apply("Object{spec: Object.spec{replicas: object.spec.replicas + 1}}"), "/spec/replicas", json!(2)),
        (
            apply("Object{metadata: Object.metadata{labels: {'a/b': request.userInfo.username}}}"),
            "/metadata/labels/a~1b",
            json!("jane"),
        ),
        (
            apply(
                "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'side', image: 'x'}]}}}}",
            ),
            "/spec/template/spec/containers/1/name",
            json!("side"),
        ),
        (patch("[JSONPatch{op: 'replace', path: '/spec/replicas', value: 7}]"), "/spec/replicas", json!(7)),
        (
            patch("[JSONPatch{op: 'add', path: '/metadata/labels', value: {'x': 'y'}}]"),
            "/metadata/labels/x",
            json!("y"),
        ),
        (
            patch("has(object.metadata.nope) ? [JSONPatch{op: 'remove', path: '/spec'}] : []"),
            "/spec/replicas",
            json!(1),
        ),
    ] {
        let p = mutating(mutations.clone(), json!({}));
        assert_eq!(complaint_of(&p), "", "{mutations}");
        let changed = mutated(&p).unwrap();
        assert_eq!(changed.pointer(pointer), Some(&want), "{mutations}: {changed}");
        assert!(changed["metadata"]["managedFields"].is_null());
    }
    let no = mutating(
        patch("[JSONPatch{op: 'remove', path: '/spec'}]"),
        json!({"matchConditions": [{"name": "c", "expression": "false"}]}),
    );
    assert_eq!(mutated(&no).unwrap()["spec"]["replicas"], 1);
    for (mutations, why) in [
        (
            patch("[JSONPatch{op: 'replace', path: '/metadata/name', value: 'other'}]"),
            "must not change what the object is",
        ),
        (patch("[JSONPatch{op: 'test', path: '/spec/replicas', value: 9}]"), "JSON Patch"),
        (patch("object.nope"), "resulted in error: no such key: nope"),
        (apply("'x'"), "the apply configuration is no object"),
    ] {
        let p = mutating(mutations.clone(), json!({}));
        let error = mutated(&p).unwrap_err();
        assert!(
            error.contains("is forbidden: policy 'p' with binding 'b' denied request:") && error.contains(why),
            "{mutations}: {error}"
        );
        let ignoring = mutating(mutations, json!({"failurePolicy": "Ignore"}));
        assert_eq!(mutated(&ignoring).unwrap()["spec"]["replicas"], 1);
    }
    for (mutations, why) in [
        (json!([]), "spec.mutations: Required value"),
        (json!([{"patchType": "Nope"}]), "spec.mutations[0].patchType: Unsupported value"),
        (json!([{"patchType": "JSONPatch"}]), "spec.mutations[0].jsonPatch: Required value"),
        (apply("Other{}"), "undeclared reference to 'Other'"),
        (patch("[JSONPatch{nope: 1}]"), "undefined field 'nope'"),
    ] {
        let message = complaint_of(&mutating(mutations.clone(), json!({})));
        assert!(message.contains(why), "{mutations}: {message}");
    }
}

fn complaint_of(value: &Value) -> String {
    let object = Object::from_value(value.clone()).unwrap();
    attributes(Operation::Create, (GROUP, MUTATING_POLICIES, "X"), "", "p", |a| {
        check(a, &object).map_err(|s| s.message).err().unwrap_or_default()
    })
}
