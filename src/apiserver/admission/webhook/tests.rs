//! Webhooks over a cluster of a few objects, without a network: who is asked what, and what is made of the answers.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::super::again::Again;
use super::super::testing::{Fake, attributes};
use super::*;
use crate::outgoing::CallError;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use edge_api::{Object, Reason, Status};
use edge_registry::custom::Endpoint;
use edge_registry::{Attributes, Operation};
use serde_json::json;

const CONFIG_MAPS: (&str, &str, &str) = ("", "configmaps", "ConfigMap");

/// A webhook at a URL that says what it does.
fn hook(name: &str, does: &str, more: Value) -> Value {
    let rule = json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]});
    let mut hook = json!({"name": format!("{name}.b.c"), "rules": [rule], "clientConfig": {"url": format!("https://x/{does}")},
        "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail", "timeoutSeconds": 10});
    hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    hook
}

fn cluster(is_mutating: bool, hooks: &[Value]) -> Fake {
    let kind = if is_mutating { "MutatingWebhookConfiguration" } else { "ValidatingWebhookConfiguration" };
    let namespace = json!({"kind": "Namespace", "metadata": {"name": "ns", "labels": {"env": "prod"}}});
    let mut cluster = Fake::default().with("/namespaces//ns", namespace);
    cluster.answer = Some(answer);
    cluster.webhooks.upsert(&json!({"kind": kind, "metadata": {"name": "c"}, "webhooks": hooks}));
    cluster
}

/// What the webhook at an address answers.
fn answer(endpoint: &Endpoint, review: &Value) -> Result<Value, CallError> {
    let Endpoint::Url(url) = endpoint else { return Err(CallError::Setup("no service".into())) };
    let request = &review["request"];
    let patch = |patch: Value| json!({"uid": request["uid"], "allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(patch.to_string())});
    let data = &request["object"]["data"];
    let response = match url.rsplit('/').next().unwrap() {
        "allow" => json!({"uid": request["uid"], "allowed": true}),
        "deny" => json!({"uid": request["uid"], "allowed": false, "status": {"message": "no way"}}),
        "down" => return Err(CallError::Send { url: url.clone(), why: "connection refused".into() }),
        "one" if data["start"] == "yes" => patch(json!([{"op": "add", "path": "/data/one", "value": "yes"}])),
        // once more each time it is asked
        "count" => patch(
            json!([{"op": "add", "path": "/data/count", "value": format!("{}x", data["count"].as_str().unwrap_or_default())}]),
        ),
        "two" if data["one"] == "yes" => patch(json!([{"op": "add", "path": "/data/two", "value": "yes"}])),
        "rename" => patch(json!([{"op": "replace", "path": "/metadata/name", "value": "other"}])),
        "break" => patch(json!([{"op": "replace", "path": "/data", "value": [1]}])),
        "unknown" => patch(
            json!([{"op": "add", "path": "/nonsense", "value": 1}, {"op": "add", "path": "/data/known", "value": "1"}]),
        ),
        "miss" => patch(json!([{"op": "remove", "path": "/nope"}])),
        "fields" => patch(json!([{"op": "add", "path": "/metadata/managedFields", "value": [{"manager": "x"}]}])),
        _ => json!({"uid": request["uid"], "allowed": true}),
    };
    Ok(json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response}))
}

fn config_map() -> Object {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "ns", "labels": {"app": "web"}}, "data": {"start": "yes"}});
    Object::from_value(object).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

fn judged(cluster: &Fake, change: impl Fn(&mut Attributes<'_>)) -> Result<(), Status> {
    let object = config_map();
    attributes(Operation::Create, CONFIG_MAPS, "ns", "m", |a| {
        let mut a = *a;
        change(&mut a);
        run(validate(cluster, &cluster.webhooks.current().unwrap(), &a, Some(&object)))
    })
}

/// What becomes of a ConfigMap in a first round of webhooks, and a second one if there is to be one.
fn mutated(cluster: &Fake) -> Result<Object, Status> {
    let mut object = config_map();
    let set = cluster.webhooks.current().unwrap();
    attributes(Operation::Create, CONFIG_MAPS, "ns", "m", |a| {
        let mut again = Again::default();
        if run(mutate(cluster, &set, a, Some(&mut object), &mut again))? {
            run(mutate(cluster, &set, a, Some(&mut object), &mut again))?;
        }
        Ok::<(), Status>(())
    })?;
    Ok(object)
}

#[test]
fn who_is_asked_and_what_follows() {
    let selector = |key: &str, value: &str| json!({"matchLabels": {key: value}});
    let rules = |operation: &str, resource: &str| json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": [resource]}]);
    let condition = |expression: &str| json!([{"name": "c", "expression": expression}]);
    for (does, more, refusal) in [
        ("allow", json!({}), ""),
        ("deny", json!({}), "admission webhook \"a.b.c\" denied the request: no way"),
        ("deny", json!({"rules": []}), ""),
        ("deny", json!({"rules": rules("UPDATE", "configmaps")}), ""),
        ("deny", json!({"rules": rules("CREATE", "secrets")}), ""),
        ("deny", json!({"rules": rules("*", "configmaps")}), "no way"),
        ("deny", json!({"namespaceSelector": selector("env", "prod")}), "no way"),
        ("deny", json!({"namespaceSelector": selector("env", "test")}), ""),
        ("deny", json!({"objectSelector": selector("app", "web")}), "no way"),
        ("deny", json!({"objectSelector": selector("app", "other")}), ""),
        ("deny", json!({"matchConditions": condition("object.data.start == 'yes'")}), "no way"),
        ("deny", json!({"matchConditions": condition("request.userInfo.username != 'jane'")}), ""),
        (
            "allow",
            json!({"matchConditions": condition("object.nope == 1")}),
            "configmaps \"m\" is forbidden: expression 'object.nope == 1' resulted in error: no such key: nope",
        ),
        ("deny", json!({"failurePolicy": "Ignore", "matchConditions": condition("object.nope == 1")}), ""),
        ("down", json!({"failurePolicy": "Ignore"}), ""),
        (
            "down",
            json!({}),
            "Internal error occurred: failed calling webhook \"a.b.c\": failed to call webhook: Post \"https://x/down\": connection refused",
        ),
        (
            "allow",
            json!({"admissionReviewVersions": ["v3"]}),
            "failed calling webhook \"a.b.c\": could not create admission objects: webhook does not accept known AdmissionReview versions",
        ),
        ("allow", json!({"admissionReviewVersions": ["v3", "v1beta1"]}), ""),
        ("allow", json!({"clientConfig": {}}), "webhook configuration must have either service or URL"),
        (
            "one",
            json!({}),
            "failed calling webhook \"a.b.c\": received invalid webhook response: validating webhook may not return response.patch",
        ),
    ] {
        let cluster = cluster(false, &[hook("a", does, more.clone())]);
        let said = judged(&cluster, |_| {}).err().map(|s| s.message).unwrap_or_default();
        assert_eq!((said.contains(refusal), said.is_empty()), (true, refusal.is_empty()), "{does} {more}: {said}");
    }
}

#[test]
fn dry_runs_ask_only_those_who_leave_no_traces() {
    for (side_effects, refusal) in [
        (json!("None"), ""),
        (json!("NoneOnDryRun"), ""),
        (json!("Some"), "admission webhook \"a.b.c\" does not support dry run"),
        (json!("Unknown"), "does not support dry run"),
        (Value::Null, "Webhook SideEffects is nil"),
    ] {
        let cluster = cluster(false, &[hook("a", "allow", json!({"sideEffects": side_effects}))]);
        judged(&cluster, |_| {}).unwrap();
        let said = judged(&cluster, |a| a.dry_run = true).err().map(|s| s.message).unwrap_or_default();
        assert_eq!((said.contains(refusal), said.is_empty()), (true, refusal.is_empty()), "{side_effects}: {said}");
    }
    // its failure policy does not make up for that
    let ignoring = json!({"sideEffects": "Some", "failurePolicy": "Ignore"});
    let cluster = cluster(false, &[hook("a", "allow", ignoring)]);
    assert_eq!(judged(&cluster, |a| a.dry_run = true).unwrap_err().code, 400);
}

#[test]
fn changes_are_made_in_order_and_once_more_where_that_is_wanted() {
    let again = || json!({"reinvocationPolicy": "IfNeeded"});
    for (hooks, data) in [
        (vec![hook("a", "one", json!({})), hook("b", "two", json!({}))], json!({"one": "yes", "two": "yes"})),
        // the other way round the second does not see what the first one needs
        (vec![hook("a", "two", json!({})), hook("b", "one", json!({}))], json!({"one": "yes"})),
        (vec![hook("a", "two", again()), hook("b", "one", json!({}))], json!({"one": "yes", "two": "yes"})),
        (vec![hook("a", "count", json!({})), hook("b", "one", json!({}))], json!({"one": "yes", "count": "x"})),
        (vec![hook("a", "count", again()), hook("b", "one", json!({}))], json!({"one": "yes", "count": "xx"})),
        // nobody is asked again for his own change, nor a third time; in the second round a change counts as in the first
        (vec![hook("a", "count", again())], json!({"count": "x"})),
        (vec![hook("a", "count", again()), hook("b", "count", again())], json!({"count": "xxxx"})),
        (
            vec![hook("a", "down", json!({"failurePolicy": "Ignore"})), hook("b", "one", json!({}))],
            json!({"one": "yes"}),
        ),
        // what the type does not know goes
        (vec![hook("a", "unknown", json!({}))], json!({"known": "1"})),
    ] {
        let object = mutated(&cluster(true, &hooks)).unwrap();
        let mut want = data;
        want["start"] = "yes".into();
        assert_eq!(object.get("data"), &want, "{hooks:?}");
        assert!(object.get("nonsense").is_null());
    }
    let object = mutated(&cluster(true, &[hook("a", "fields", json!({}))])).unwrap();
    assert_eq!(object, config_map(), "who has written what is not for webhooks to say");
    for (does, refusal) in [
        ("rename", "Internal error occurred: admission webhook \"a.b.c\" attempted to change metadata.name"),
        ("miss", "Internal error occurred: operation 0 (remove \"/nope\") does not apply"),
        ("break", "Internal error occurred: "),
        ("deny", "admission webhook \"a.b.c\" denied the request: no way"),
    ] {
        let status = mutated(&cluster(true, &[hook("a", does, json!({}))])).unwrap_err();
        assert!(status.message.contains(refusal), "{does}: {}", status.message);
    }
}

#[test]
fn deletions_can_be_refused_but_not_changed() {
    let object = config_map();
    let deleted = |does: &str| {
        let cluster = cluster(true, &[hook("a", does, json!({}))]);
        let set = cluster.webhooks.current().unwrap();
        attributes(Operation::Delete, CONFIG_MAPS, "ns", "m", |a| {
            let a = Attributes { old: Some(&object), ..*a };
            run(mutate(&cluster, &set, &a, None, &mut Again::default())).map_err(|s| s.message)
        })
    };
    assert_eq!(deleted("allow"), Ok(false));
    assert_eq!(deleted("deny").unwrap_err(), "admission webhook \"a.b.c\" denied the request: no way");
    let said = deleted("rename").unwrap_err();
    assert!(said.contains("attempted to modify the object, which is not supported for this operation"), "{said}");
}

#[test]
fn configurations_come_change_and_go() {
    let hooks = Webhooks::default();
    assert!(hooks.current().is_none());
    let configuration = |name: &str, names: &[&str]| {
        let hooks: Vec<Value> = names.iter().map(|n| hook(n, "allow", json!({}))).collect();
        json!({"kind": "MutatingWebhookConfiguration", "metadata": {"name": name}, "webhooks": hooks})
    };
    let order = |set: &Set| set.mutating.iter().map(|h| h.name.clone()).collect::<Vec<_>>();
    hooks.upsert(&configuration("z", &["a"]));
    hooks.upsert(&configuration("y", &["c", "b"]));
    assert_eq!(order(&hooks.current().unwrap()), ["c.b.c", "b.b.c", "a.b.c"]);
    hooks.upsert(&configuration("y", &["d"]));
    assert_eq!(order(&hooks.current().unwrap()), ["d.b.c", "a.b.c"]);
    hooks.remove("ValidatingWebhookConfiguration", "y");
    assert_eq!(order(&hooks.current().unwrap()).len(), 2);
    for name in ["y", "z"] {
        hooks.remove("MutatingWebhookConfiguration", name);
    }
    assert!(hooks.current().is_none());
}

#[test]
fn answers_are_believed_only_as_far_as_they_may_go() {
    let encoded = |patch: &str| BASE64_STANDARD.encode(patch);
    let good = || json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "1", "allowed": true}});
    let with = |fields: Value| {
        let mut review = good();
        for (pointer, value) in fields.as_object().unwrap() {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            review.pointer_mut(parent).unwrap()[name] = value.clone();
        }
        review
    };
    let patch = |text: &str| with(json!({"/response/patch": encoded(text), "/response/patchType": "JSONPatch"}));
    let invalid = "received invalid webhook response: ";
    for (review, is_mutating, why) in [
        (json!({}), true, "webhook response was absent"),
        (json!([]), true, "webhook response was absent"),
        (json!("x"), true, "webhook response was absent"),
        (with(json!({"/response": 7})), true, "webhook response is no object"),
        (with(json!({"/response/uid": "2"})), true, r#"expected response.uid="1", got "2""#),
        (with(json!({"/response/uid": 1})), true, r#"expected response.uid="1", got """#),
        (
            with(json!({"/kind": "Pod"})),
            true,
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1, Kind=Pod",
        ),
        (with(json!({"/apiVersion": null})), true, "Kind=AdmissionReview, got /, Kind=AdmissionReview"),
        (with(json!({"/apiVersion": "admission.k8s.io/v1beta1"})), true, "got admission.k8s.io/v1beta1"),
        (with(json!({"/response/allowed": "yes"})), true, "response.allowed is no boolean"),
        (with(json!({"/response/patch": 1})), true, "response.patch is no string"),
        (with(json!({"/response/patch": "%%%"})), true, "response.patch is no base64"),
        (
            with(json!({"/response/patch": encoded("[]")})),
            true,
            "webhook returned response.patch but not response.patchType",
        ),
        (
            with(json!({"/response/patchType": "JSONPatch"})),
            true,
            "webhook returned response.patchType but not response.patch",
        ),
        (
            with(json!({"/response/patch": encoded("[]"), "/response/patchType": ""})),
            true,
            "invalid response.patchType",
        ),
        (with(json!({"/response/patch": encoded("[]")})), false, "validating webhook may not return response.patch"),
        (
            with(json!({"/response/patchType": "JSONPatch"})),
            false,
            "validating webhook may not return response.patchType",
        ),
    ] {
        let said = review::answer("v1", "1", is_mutating, review.clone()).unwrap_err();
        assert!(said.starts_with(invalid) && said.contains(why), "{review}: {said}");
    }
    for (review, why) in [
        (
            with(json!({"/response/patch": encoded("[]"), "/response/patchType": "Merge"})),
            "unsupported patch type \"Merge\"",
        ),
        (patch("{"), "received undecodable patch in webhook response: "),
        (patch("{}"), "received undecodable patch in webhook response: "),
        (patch(r#"[{"op": "fly", "path": "/a"}]"#), "received undecodable patch in webhook response: "),
        (patch(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))), "received undecodable patch"),
    ] {
        let said = review::answer("v1", "1", true, review).unwrap_err();
        assert!(said.starts_with(why), "{said}");
    }
    for (review, has_patch) in [
        (good(), false),
        (patch("[]"), false),
        (patch("null"), false),
        (patch(r#"[{"op": "remove", "path": "/a"}]"#), true),
    ] {
        let answer = review::answer("v1", "1", true, review).unwrap();
        assert_eq!((answer.is_allowed, answer.patch.is_some()), (true, has_patch));
    }
    // who says no need not say how the object would have been better
    let mut refused = patch("{");
    refused["response"]["allowed"] = false.into();
    assert!(!review::answer("v1", "1", true, refused).unwrap().is_allowed);
    // the old version had fewer rules
    let old = json!({"response": {"allowed": true, "patch": encoded(r#"[{"op": "remove", "path": "/a"}]"#)}});
    assert!(review::answer("v1beta1", "1", true, old.clone()).unwrap().patch.is_some());
    assert!(review::answer("v1beta1", "1", false, old).unwrap().patch.is_none());
    let told = with(json!({"/response/warnings": ["a", 7, "b"], "/response/auditAnnotations": {"k": "v", "n": 1}}));
    let answer = review::answer("v1", "1", false, told).unwrap();
    assert_eq!((answer.warnings, answer.annotations), (vec!["a".into(), "b".into()], vec![("k".into(), "v".into())]));
}

#[test]
fn refusals_say_what_the_webhook_says() {
    let by = "admission webhook \"a.b.c\" denied the request";
    for (status, code, reason, message) in [
        (Value::Null, 400, Reason::Unknown, format!("{by} without explanation")),
        (json!("nonsense"), 400, Reason::Unknown, format!("{by} without explanation")),
        (json!({"message": "no"}), 400, Reason::Unknown, format!("{by}: no")),
        (json!({"reason": "Forbidden"}), 400, Reason::Forbidden, format!("{by}: Forbidden")),
        (json!({"reason": "OwnWord"}), 400, Reason::Unknown, format!("{by}: OwnWord")),
        (json!({"message": "no", "reason": "Forbidden", "code": 403}), 403, Reason::Forbidden, format!("{by}: no")),
        // neither a success nor what is no HTTP status
        (json!({"code": 200, "status": "Success"}), 400, Reason::Unknown, format!("{by} without explanation")),
        (json!({"code": -1}), 400, Reason::Unknown, format!("{by} without explanation")),
        (json!({"code": 99999}), 500, Reason::Unknown, format!("{by} without explanation")),
        (json!({"code": "403", "message": ["x"]}), 400, Reason::Unknown, format!("{by} without explanation")),
    ] {
        let denied = review::denial("a.b.c", &status);
        assert_eq!((denied.code, denied.reason, denied.message), (code, reason, message), "{status}");
    }
    let details =
        json!({"details": {"name": "n", "causes": [{"message": "m", "field": "f"}, 7], "retryAfterSeconds": 5}});
    let denied = review::denial("a.b.c", &details).details.unwrap();
    assert_eq!((denied.name.as_str(), denied.retry_after_seconds), ("n", 5));
    assert_eq!((denied.causes[0].message.as_str(), denied.causes[0].field.as_str()), ("m", "f"));
}

#[test]
fn reviews_hold_all_the_facts() {
    let object = config_map();
    attributes(Operation::Update, CONFIG_MAPS, "ns", "m", |a| {
        let a = Attributes { old: Some(&object), field_manager: "kubectl", dry_run: true, ..*a };
        let facts = super::super::request::facts(&a, "m", a.info);
        let review = review::review("v1", "u", facts, Some(&object), Some(&object));
        let kind = json!({"group": "", "version": "v1", "kind": "ConfigMap"});
        let resource = json!({"group": "", "version": "v1", "resource": "configmaps"});
        assert_eq!(
            review,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
                "uid": "u", "kind": kind, "requestKind": kind, "resource": resource, "requestResource": resource,
                "name": "m", "namespace": "ns", "operation": "UPDATE", "dryRun": true,
                "userInfo": {"username": "jane", "groups": ["dev", "system:authenticated"]},
                "options": {"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "kubectl", "dryRun": ["All"]},
                "object": object.fields(), "oldObject": object.fields()}})
        );
    });
    attributes(Operation::Delete, ("", "namespaces", "Namespace"), "", "n", |a| {
        let deletion = edge_registry::DeleteOptions { grace_period_seconds: Some(3), ..Default::default() };
        let a = Attributes { deletion: Some(&deletion), ..*a };
        let facts = super::super::request::facts(&a, "n", a.info);
        assert_eq!(facts["namespace"], "n");
        assert_eq!(
            facts["options"],
            json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 3})
        );
    });
}

#[test]
fn configurations_are_judged_in_kubernetes_words() {
    let rule = |field: &str, value: Value| {
        let mut rule = json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]});
        rule[field] = value;
        json!({"rules": [rule]})
    };
    let service = |field: &str, value: Value| {
        let mut service = json!({"name": "s", "namespace": "n", "port": 443});
        service[field] = value;
        json!({"clientConfig": {"service": service}})
    };
    let url = |url: &str| json!({"clientConfig": {"url": url}});
    let form = "; desired format: https://host[/path]";
    for (more, want) in [
        (json!({}), String::new()),
        (json!({"name": ""}), "webhooks[0].name: Required value".into()),
        (json!({"name": "a.b"}), r#"webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots"#.into()),
        (json!({"name": "A.b.c"}), "webhooks[0].name: Invalid value: \"A.b.c\": a lowercase RFC 1123".into()),
        (json!({"failurePolicy": "Maybe"}), r#"webhooks[0].failurePolicy: Unsupported value: "Maybe": supported values: "Fail", "Ignore""#.into()),
        (json!({"matchPolicy": "x"}), r#"webhooks[0].matchPolicy: Unsupported value: "x": supported values: "Equivalent", "Exact""#.into()),
        (json!({"reinvocationPolicy": "x"}), r#"webhooks[0].reinvocationPolicy: Unsupported value: "x": supported values: "IfNeeded", "Never""#.into()),
        (json!({"sideEffects": "Some"}), r#"webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#.into()),
        (json!({"sideEffects": null}), "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun".into()),
        (json!({"timeoutSeconds": 31}), "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds".into()),
        (json!({"timeoutSeconds": 0}), "the timeout value must be between 1 and 30 seconds".into()),
        (json!({"admissionReviewVersions": []}), "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1".into()),
        (json!({"admissionReviewVersions": ["v3"]}), "must include at least one of v1, v1beta1".into()),
        (json!({"admissionReviewVersions": ["v1", "v1"]}), "webhooks[0].admissionReviewVersions[1]: Invalid value: \"v1\": duplicate version".into()),
        (json!({"admissionReviewVersions": ["v1", "1"]}), "webhooks[0].admissionReviewVersions[1]: Invalid value: \"1\": a DNS-1035 label".into()),
        (json!({"objectSelector": {"matchExpressions": [{"key": "a", "operator": "Nope"}]}}), "webhooks[0].objectSelector: Invalid value".into()),
        (json!({"matchConditions": [{"name": "c", "expression": "... [] bad expression"}]}), "webhooks[0].matchConditions[0].expression: Invalid value: \"... [] bad expression\": compilation failed".into()),
        (json!({"matchConditions": [{"name": "c", "expression": "params.x == 1"}]}), "compilation failed".into()),
        (rule("operations", json!([])), "webhooks[0].rules[0].operations: Required value".into()),
        (rule("operations", json!(["*", "CREATE"])), "if '*' is present, must not specify other operations".into()),
        (rule("operations", json!(["FLY"])), r#"webhooks[0].rules[0].operations[0]: Unsupported value: "FLY": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE""#.into()),
        (rule("apiGroups", json!(["*", "a"])), "if '*' is present, must not specify other API groups".into()),
        (rule("apiVersions", json!([""])), "webhooks[0].rules[0].apiVersions[0]: Required value".into()),
        (rule("resources", json!(["*/*", "a"])), "if '*/*' is present, must not specify other resources".into()),
        (rule("resources", json!(["*", "a"])), "if '*' is present, must not specify other resources without subresources".into()),
        (rule("resources", json!(["a/*", "a/x"])), "if 'a/*' is present, must not specify a/x".into()),
        (rule("resources", json!(["*/x", "a/x"])), "if '*/x' is present, must not specify a/x".into()),
        (rule("scope", json!("x")), "webhooks[0].rules[0].scope: Unsupported value".into()),
        (json!({"clientConfig": {}}), "webhooks[0].clientConfig: Required value: exactly one of url or service is required".into()),
        (json!({"clientConfig": {"url": "https://a", "service": {"name": "s", "namespace": "n"}}}), "exactly one of url or service is required".into()),
        (url("http://a.b"), format!("webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme{form}")),
        (url("https:///x"), format!("webhooks[0].clientConfig.url: {}", "")),
        (url("https://u:p@a.b/"), "user information is not permitted in the URL".into()),
        (url("https://a.b/#x"), "fragments are not permitted in the URL".into()),
        (url("https://a.b/?x=y"), "query parameters are not permitted in the URL".into()),
        (service("name", json!("")), "webhooks[0].clientConfig.service.name: Required value: service name is required".into()),
        (service("namespace", json!("")), "service namespace is required".into()),
        (service("port", json!(0)), "webhooks[0].clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive".into()),
        (service("path", json!("/a/b")), String::new()),
        (service("path", json!("a")), "webhooks[0].clientConfig.service.path: Invalid value: \"a\": must start with a '/'".into()),
        (service("path", json!("//")), "segment[0] may not be empty".into()),
        (service("path", json!("/a//b")), "segment[1] may not be empty".into()),
        (service("path", json!("/A")), "segment[0]: a lowercase RFC 1123 subdomain".into()),
    ] {
        let errors = check::faults(&json!([hook("a", "allow", more.clone())]), None, true);
        let said = errors.to_string();
        assert_eq!((said.contains(&want), said.is_empty()), (true, want.is_empty()), "{more}: {said}");
    }
    let twice = json!([hook("a", "allow", json!({})), hook("a", "allow", json!({}))]);
    assert_eq!(check::faults(&twice, None, false).to_string(), "webhooks[1].name: Duplicate value: \"a.b.c\"");
    // what was let in once may stay
    assert!(check::faults(&twice, Some(&twice), false).is_empty());
    let old = json!([hook(
        "a",
        "allow",
        json!({"sideEffects": "Some", "admissionReviewVersions": ["v3"], "matchConditions": [{"name": "c", "expression": "nope"}]})
    )]);
    assert!(!check::faults(&old, None, false).is_empty());
    assert!(check::faults(&old, Some(&old), false).is_empty(), "{}", check::faults(&old, Some(&old), false));
}
