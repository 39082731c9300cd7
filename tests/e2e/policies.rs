//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy, as Kubernetes' conformance suite asks for it and beyond.

use crate::conformance::{ApiKind, Flow, every_verb, together};
use crate::harness::space::Space;
use crate::harness::{Cluster, Kubectl, eventually};
use serde_json::{Value, json};

#[test]
fn admission_policies() {
    let flows: [(&str, Flow); 5] = [
        ("operations", operations),
        ("deployments", deployments),
        ("types", types),
        ("parameters", parameters),
        ("mutations", mutations),
    ];
    together(&Cluster::start(), &flows);
}

fn rule(group: &str, resource: &str) -> Value {
    json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource]})
}

/// A policy for one namespace.
fn policy(space: &Space<'_>, name: &str, (group, resource): (&str, &str), mut spec: Value) -> Value {
    let namespaces = json!({"matchLabels": {"kubernetes.io/metadata.name": space.name}});
    spec["matchConstraints"] = json!({"resourceRules": [rule(group, resource)], "namespaceSelector": namespaces});
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec})
}

fn binding(name: &str, actions: &[&str], more: Value) -> Value {
    let mut spec = json!({"policyName": name, "validationActions": actions});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name}, "spec": spec})
}

/// What kubectl says when it applies an object; `Err` when it is refused.
fn apply(space: &Space<'_>, object: &Value) -> Result<String, String> {
    let args = ["-n", space.name, "apply", "-f", "-"];
    let out = space.cluster.kubectl_stdin(Kubectl::Newest, &args, &object.to_string());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() { Ok(said) } else { Err(said) }
}

fn refused(space: &Space<'_>, object: &Value, part: &str) {
    let why = apply(space, object).unwrap_err();
    assert!(why.contains(part), "{object}: {why}");
}

fn deployment(name: &str, replicas: i64) -> Value {
    let labels = json!({"app": name});
    let pods =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "busybox:test"}]}});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": pods, "paused": true}})
}

fn operations(cluster: &Cluster) {
    let space = Space::new(cluster, "policy-operations");
    let spec = json!({"spec": {"matchConstraints": {"resourceRules": [rule("none.io", "things")]}, "validations": [{"expression": "true"}]}});
    let bound = json!({"spec": {"policyName": "nobody", "validationActions": ["Deny"]}});
    let names = ["op-one", "op-two", "op-three"];
    let mutation = json!({"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}});
    let changing = json!({"spec": {"matchConstraints": {"resourceRules": [rule("none.io", "things")]}, "mutations": [mutation], "reinvocationPolicy": "Never"}});
    let kinds: [ApiKind; 4] = [
        ("admissionregistration.k8s.io/v1", "validatingadmissionpolicies", false, true, names, spec),
        ("admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings", false, false, names, bound),
        ("admissionregistration.k8s.io/v1", "mutatingadmissionpolicies", false, false, names, changing),
        (
            "admissionregistration.k8s.io/v1",
            "mutatingadmissionpolicybindings",
            false,
            false,
            names,
            json!({"spec": {"policyName": "nobody"}}),
        ),
    ];
    for kind in kinds {
        every_verb(&space, kind);
    }
    for (expression, why) in [
        (
            "object.spec.",
            "spec.validations[0].expression: Invalid value: \"object.spec.\": compilation failed: ERROR: <input>:1:13: Syntax error",
        ),
        ("object.spec.replicas + 1 == nope", "undeclared reference to 'nope' (in container '')"),
        ("1", "must evaluate to bool"),
        (&"(".repeat(10_000), "expression recursion limit exceeded"),
    ] {
        let bad = policy(&space, "bad", ("apps", "deployments"), json!({"validations": [{"expression": expression}]}));
        refused(&space, &bad, why);
    }
}

fn deployments(cluster: &Cluster) {
    let space = Space::new(cluster, "policy-deployments");
    let own = policy(
        &space,
        "replicas",
        ("apps", "deployments"),
        json!({
            "variables": [{"name": "replicas", "expression": "object.spec.replicas"}, {"name": "odd", "expression": "variables.replicas % 2 == 1"}],
            "matchConditions": [{"name": "not-exempt", "expression": "!object.metadata.name.startsWith('exempt')"}],
            "validations": [
                {"expression": "variables.replicas > 1", "messageExpression": "'wants more than 1 replica, got ' + string(variables.replicas)"},
                {"expression": "variables.odd", "reason": "Forbidden"},
                {"expression": "authorizer.group('').resource('secrets').namespace('policy-deployments').check('get').allowed()"},
            ],
        }),
    );
    apply(&space, &own).unwrap();
    apply(&space, &deployment("unbound", 1)).unwrap();
    // a binding holds from the moment on that it was written
    apply(&space, &binding("replicas", &["Deny"], json!({}))).unwrap();
    let by = "ValidatingAdmissionPolicy 'replicas' with binding 'replicas' denied request: ";
    refused(
        &space,
        &deployment("web", 1),
        &format!("The deployments \"web\" is invalid: : {by}wants more than 1 replica, got 1"),
    );
    refused(
        &space,
        &deployment("web", 2),
        &format!("deployments.apps \"web\" is forbidden: {by}failed expression: variables.odd"),
    );
    apply(&space, &deployment("web", 3)).unwrap();
    apply(&space, &deployment("exempt", 1)).unwrap();
    refused(&space, &deployment("web", 1), "got 1");
    assert_eq!(space.field("deployment/web", ".spec.replicas"), "3");
    // other namespaces are not its business
    let elsewhere = Space::new(cluster, "policy-elsewhere");
    apply(&elsewhere, &deployment("web", 1)).unwrap();
    // warnings, and none for what is fine
    apply(&space, &binding("replicas", &["Warn", "Audit"], json!({}))).unwrap();
    let said = apply(&space, &deployment("web", 1)).unwrap();
    let warning = "Warning: Validation failed for ValidatingAdmissionPolicy 'replicas' with binding 'replicas': wants more than 1 replica, got 1";
    assert!(said.contains(warning), "{said}");
    assert!(!apply(&space, &deployment("web", 5)).unwrap().contains("Warning"));
    // what cannot be worked out refuses, or does not, as the policy says
    let mut broken = policy(
        &space,
        "broken",
        ("apps", "deployments"),
        json!({"validations": [{"expression": "object.spec.nope == 1"}]}),
    );
    apply(&space, &broken).unwrap();
    apply(&space, &binding("broken", &["Deny"], json!({}))).unwrap();
    refused(&space, &deployment("web", 7), "expression 'object.spec.nope == 1' resulted in error: no such key: nope");
    broken["spec"]["failurePolicy"] = "Ignore".into();
    apply(&space, &broken).unwrap();
    apply(&space, &deployment("web", 7)).unwrap();
    cluster.kubectl(&["delete", "validatingadmissionpolicybinding", "replicas", "broken"]);
    apply(&space, &deployment("web", 1)).unwrap();
}

fn types(cluster: &Cluster) {
    let space = Space::new(cluster, "policy-types");
    let validations = json!([
        {"expression": "object.spec.replicas > 1"},
        {"expression": "object.spec.replicas > '1'", "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"},
        {"expression": "object.metadata.name == 'x' && object.spec.template.spec.containers.all(c, c.image.nope == 1)"},
    ]);
    let own = policy(&space, "typed", ("apps", "deployments"), json!({"validations": validations}));
    apply(&space, &own).unwrap();
    let what = "validatingadmissionpolicy/typed";
    let fields = eventually("types are checked", || {
        let observed = space.field(what, ".status.observedGeneration");
        if observed == "1" {
            Ok(space.field(what, ".status.typeChecking.expressionWarnings[*].fieldRef"))
        } else {
            Err(observed)
        }
    });
    assert_eq!(
        fields,
        "spec.validations[1].expression spec.validations[1].messageExpression spec.validations[2].expression"
    );
    let first = space.field(what, ".status.typeChecking.expressionWarnings[0].warning");
    let want = "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'";
    assert!(first.starts_with(want), "{first}");
}

fn parameters(cluster: &Cluster) {
    let space = Space::new(cluster, "policy-params");
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [
        {"expression": "object.data.size() <= int(params.data.most)", "messageExpression": "'at most ' + params.data.most"}]});
    let mut own = policy(&space, "sized", ("", "configmaps"), spec);
    own["spec"]["matchConstraints"]["objectSelector"] = json!({"matchLabels": {"sized": "yes"}});
    let config = |name: &str, label: &str, data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {label: "yes"}}, "data": data});
    apply(&space, &own).unwrap();
    let reference = json!({"paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}});
    apply(&space, &binding("sized", &["Deny"], reference)).unwrap();
    let two = config("two", "sized", json!({"a": "1", "b": "2"}));
    refused(&space, &two, "no params found for policy binding with `Deny` parameterNotFoundAction");
    apply(&space, &config("limit", "limit", json!({"most": "1"}))).unwrap();
    refused(&space, &two, "denied request: at most 1");
    apply(&space, &config("limit", "limit", json!({"most": "2"}))).unwrap();
    apply(&space, &two).unwrap();
    cluster.kubectl(&["delete", "validatingadmissionpolicy", "sized"]);
    apply(&space, &config("three", "sized", json!({"a": "1", "b": "2", "c": "3"}))).unwrap();
}

fn mutations(cluster: &Cluster) {
    let space = Space::new(cluster, "policy-mutations");
    let apply_label = "Object{metadata: Object.metadata{labels: {'made-by': 'policy'}}}";
    let more = "[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}]";
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply_label}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": more}}]});
    let mut own = policy(&space, "changes", ("apps", "deployments"), spec);
    own["kind"] = "MutatingAdmissionPolicy".into();
    own["spec"]["matchConstraints"]["resourceRules"][0]["operations"] = json!(["CREATE"]);
    apply(&space, &own).unwrap();
    let bound = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "changes"}, "spec": {"policyName": "changes"}});
    apply(&space, &bound).unwrap();
    apply(&space, &deployment("web", 2)).unwrap();
    assert_eq!(space.field("deployment/web", ".spec.replicas"), "3");
    assert_eq!(space.field("deployment/web", ".metadata.labels.made-by"), "policy");
    own["spec"]["mutations"][1]["jsonPatch"]["expression"] =
        "[JSONPatch{op: 'test', path: '/kind', value: 'x'}]".into();
    apply(&space, &own).unwrap();
    refused(&space, &deployment("other", 1), "policy 'changes' with binding 'changes' denied request: JSON Patch");
}
