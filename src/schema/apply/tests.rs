use super::*;
use crate::table::Schema;
use edge_api::GroupVersionKind;
use serde_json::json;

const T1: &str = "2026-11-24T10:00:00Z";
const T2: &str = "2026-11-24T11:00:00Z";

fn deployment_type() -> Ty<'static> {
    Schema::builtin().kind(&GroupVersionKind::new("apps", "v1", "Deployment"))
}

fn service_type() -> Ty<'static> {
    Schema::builtin().kind(&GroupVersionKind::new("", "v1", "Service"))
}

fn writer<'a>(manager: &'a str, now: &'a str) -> Writer<'a> {
    Writer { manager, api_version: "apps/v1", subresource: "", resets: &["status"], now }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn with_containers(containers: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": containers}}}))
}

fn run(live: Option<&Value>, config: &Value, manager: &str, now: &str) -> Result<Value, ApplyError> {
    apply(deployment_type(), live, config, &writer(manager, now), false)
}

fn forced(live: &Value, config: &Value, manager: &str) -> Value {
    apply(deployment_type(), Some(live), config, &writer(manager, T2), true).expect("is forced")
}

/// `managedFields` as (manager, operation, fields).
fn owners(object: &Value) -> Vec<(&str, &str, &Value)> {
    let list = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|e| (e["manager"].as_str().unwrap_or(""), e["operation"].as_str().unwrap_or(""), &e["fieldsV1"]))
        .collect()
}

#[test]
fn applying_creates_and_owns() {
    let config = with_containers(json!([{"name": "a", "image": "i", "ports": [{"containerPort": 80}]}]));
    let out = run(None, &config, "me", T1).expect("creates");
    assert_eq!(out["spec"], config["spec"]);
    assert_eq!(
        out["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "time": T1, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                ".": {}, "f:name": {}, "f:image": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
            }}}}}},
        }])
    );
}

#[test]
fn conflicts_and_force() {
    let live = run(None, &deployment(json!({"replicas": 1, "paused": true})), "one", T1).expect("creates");
    let other = deployment(json!({"replicas": 2}));
    let error = run(Some(&live), &other, "two", T2).expect_err("conflicts");
    assert_eq!(error.to_string(), r#"Apply failed with 1 conflict: conflict with "one": .spec.replicas"#);
    let status = Status::from(error);
    assert_eq!((status.code, status.reason), (409, Reason::Conflict));
    let causes = status.details.expect("has details").causes;
    assert_eq!(
        causes,
        [StatusCause {
            reason: "FieldManagerConflict".into(),
            message: "conflict with \"one\"".into(),
            field: ".spec.replicas".into()
        }]
    );
    let out = forced(&live, &other, "two");
    assert_eq!(out["spec"], json!({"replicas": 2, "paused": true}));
    assert_eq!(
        owners(&out),
        [
            ("one", "Apply", &json!({"f:spec": {"f:paused": {}}})),
            ("two", "Apply", &json!({"f:spec": {"f:replicas": {}}})),
        ]
    );
    // The same value is no conflict: both own it.
    let out = run(Some(&live), &deployment(json!({"replicas": 1})), "two", T2).expect("agrees");
    assert_eq!(owners(&out).len(), 2);
}

#[test]
fn conflicts_with_updates_name_the_version() {
    let mut live =
        deployment(json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}}));
    update_managed_fields(deployment_type(), None, &mut live, &writer("kubectl-create", T1));
    let error = run(Some(&live), &deployment(json!({"replicas": 2})), "me", T2).expect_err("conflicts");
    assert_eq!(
        error.to_string(),
        r#"Apply failed with 1 conflict: conflict with "kubectl-create" using apps/v1: .spec.replicas"#
    );
    let config =
        deployment(json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "j"}]}}}));
    let error = run(Some(&live), &config, "me", T2).expect_err("conflicts");
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-create\" using apps/v1:\n- .spec.replicas\n\
         - .spec.template.spec.containers[name=\"a\"].image"
    );
}

#[test]
fn what_is_left_out_is_removed() {
    let first = with_containers(json!([
        {"name": "a", "image": "i", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        {"name": "b", "image": "i"},
    ]));
    let live = run(None, &first, "me", T1).expect("creates");
    let second = with_containers(json!([{"name": "a", "image": "i", "env": [{"name": "Y", "value": "2"}]}]));
    let out = run(Some(&live), &second, "me", T2).expect("applies");
    assert_eq!(out["spec"], second["spec"]);
    // Another applier keeps the elements it owns, with its own fields only.
    let other = with_containers(json!([{"name": "b", "imagePullPolicy": "Always"}]));
    let live = run(Some(&live), &other, "other", T1).expect("adds");
    let out = run(Some(&live), &second, "me", T2).expect("applies");
    assert_eq!(
        out.pointer("/spec/template/spec/containers/1"),
        Some(&json!({"name": "b", "imagePullPolicy": "Always"}))
    );
}

#[test]
fn unowned_fields_stay() {
    let config = with_containers(json!([{"name": "a", "image": "i"}]));
    let mut live = run(None, &config, "me", T1).expect("creates");
    // Defaults are filled in after the apply, and nobody owns them.
    live["spec"]["replicas"] = json!(1);
    live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
    let out = run(Some(&live), &config, "me", T2).expect("applies");
    assert_eq!(out, live, "nothing changes, not even the time");
    let out = run(Some(&live), &deployment(json!({"replicas": 3})), "scaler", T2).expect("no conflict with a default");
    assert_eq!(out["spec"]["replicas"], 3);
}

#[test]
fn removing_an_applied_map_keeps_foreign_keys() {
    let labelled = |labels: Value| {
        let mut d = deployment(json!({"replicas": 1}));
        d["metadata"]["labels"] = labels;
        d
    };
    let live = run(None, &labelled(json!({"a": "1", "b": "2"})), "me", T1).expect("creates");
    let live = run(Some(&live), &labelled(json!({"c": "3"})), "other", T1).expect("adds");
    let out = run(Some(&live), &labelled(json!({"b": "2"})), "me", T2).expect("applies");
    assert_eq!(out["metadata"]["labels"], json!({"b": "2", "c": "3"}));
    let out = run(Some(&live), &deployment(json!({"replicas": 1})), "me", T2).expect("applies");
    assert_eq!(out["metadata"]["labels"], json!({"c": "3"}));
}

#[test]
fn the_systems_metadata_survives_a_removal() {
    let mut config = deployment(json!({"replicas": 1}));
    config["metadata"]["labels"] = json!({"a": "1"});
    let mut live = run(None, &config, "me", T1).expect("creates");
    live["metadata"]["uid"] = json!("u");
    live["metadata"]["resourceVersion"] = json!("7");
    let out = run(Some(&live), &deployment(json!({"replicas": 1})), "me", T2).expect("applies");
    let mut metadata = out["metadata"].clone();
    if let Some(m) = metadata.as_object_mut() {
        m.remove("managedFields");
    }
    assert_eq!(metadata, json!({"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "7"}));
}

#[test]
fn atomic_and_set_lists() {
    let config = |selector: Value, finalizers: Value| {
        let mut d = deployment(json!({"selector": {"matchLabels": selector}}));
        d["metadata"]["finalizers"] = finalizers;
        d
    };
    let live = run(None, &config(json!({"a": "1"}), json!(["x.io/a"])), "me", T1).expect("creates");
    assert_eq!(
        owners(&live)[0].2,
        &json!({"f:metadata": {"f:finalizers": {"v:\"x.io/a\"": {}}}, "f:spec": {"f:selector": {}}})
    );
    let error = run(Some(&live), &config(json!({"b": "1"}), json!(["x.io/b"])), "two", T2).expect_err("conflicts");
    assert_eq!(error.to_string(), r#"Apply failed with 1 conflict: conflict with "me": .spec.selector"#);
    let out = forced(&live, &config(json!({"b": "1"}), json!(["x.io/b"])), "two");
    assert_eq!(out["spec"]["selector"], json!({"matchLabels": {"b": "1"}}));
    assert_eq!(out["metadata"]["finalizers"], json!(["x.io/a", "x.io/b"]));
}

#[test]
fn list_order_follows_the_configuration() {
    let live = with_containers(json!([{"name": "a"}, {"name": "server"}, {"name": "c"}]));
    let out = run(Some(&live), &with_containers(json!([{"name": "c"}, {"name": "a"}, {"name": "z"}])), "me", T1);
    let out = out.expect("applies");
    let names: Vec<&str> = out["spec"]["template"]["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(names, ["server", "c", "a", "z"]);
    assert!(owners(&out).iter().any(|(m, op, _)| (*m, *op) == ("before-first-apply", "Update")));
}

#[test]
fn ports_are_keyed_by_port_and_protocol() {
    let service = |ports: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": ports}});
    let w = Writer { api_version: "v1", ..writer("me", T1) };
    let tcp_and_udp = service(json!([{"port": 53, "name": "tcp"}, {"port": 53, "protocol": "UDP", "name": "udp"}]));
    let live = apply(service_type(), None, &tcp_and_udp, &w, false).expect("creates");
    let changed = service(
        json!([{"port": 53, "protocol": "TCP", "name": "tcp", "nodePort": 30053}, {"port": 53, "protocol": "UDP", "name": "udp"}]),
    );
    let out = apply(service_type(), Some(&live), &changed, &w, false).expect("applies");
    assert_eq!(out["spec"]["ports"].as_array().map(Vec::len), Some(2));
    assert_eq!(out["spec"]["ports"][0]["nodePort"], 30053);
}

#[test]
fn status_belongs_to_its_subresource() {
    let mut config = deployment(json!({"replicas": 1}));
    config["status"] = json!({"replicas": 9});
    let out = run(None, &config, "me", T1).expect("creates");
    assert!(out.get("status").is_none());
    assert_eq!(owners(&out)[0].2, &json!({"f:spec": {"f:replicas": {}}}));
    let status = Writer { subresource: "status", resets: &["spec"], ..writer("ctl", T2) };
    let mut new = out.clone();
    new["status"] = json!({"replicas": 1});
    update_managed_fields(deployment_type(), Some(&out), &mut new, &status);
    let entry = &new["metadata"]["managedFields"][1];
    assert_eq!((entry["manager"].as_str(), entry["subresource"].as_str()), (Some("ctl"), Some("status")));
    assert_eq!(entry["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
}

#[test]
fn updates_take_over_what_they_change() {
    let ty = deployment_type();
    let live = run(None, &deployment(json!({"replicas": 1, "paused": true})), "me", T1).expect("creates");
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(5);
    update_managed_fields(ty, Some(&live), &mut new, &writer("kubectl-scale", T2));
    assert_eq!(
        owners(&new),
        [
            ("me", "Apply", &json!({"f:spec": {"f:paused": {}}})),
            ("kubectl-scale", "Update", &json!({"f:spec": {"f:replicas": {}}})),
        ]
    );
    // A write that changes nothing leaves everything as it is.
    let before = new.clone();
    update_managed_fields(ty, Some(&before.clone()), &mut new, &writer("other", T2));
    assert_eq!(new, before);
    // Removing a field takes it from its owner, and gives nothing to who removes it.
    if let Some(spec) = new["spec"].as_object_mut() {
        spec.remove("paused");
    }
    update_managed_fields(ty, Some(&before), &mut new, &writer("other", T2));
    assert_eq!(owners(&new), [("kubectl-scale", "Update", &json!({"f:spec": {"f:replicas": {}}}))]);
}

#[test]
fn clients_that_drop_managed_fields_lose_nothing() {
    let ty = deployment_type();
    let live = run(None, &deployment(json!({"replicas": 1})), "me", T1).expect("creates");
    let mut new = deployment(json!({"replicas": 1, "paused": true}));
    update_managed_fields(ty, Some(&live), &mut new, &writer("old", T2));
    assert_eq!(owners(&new).len(), 2);
    for reset in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = reset;
        update_managed_fields(ty, Some(&live), &mut new, &writer("admin", T2));
        assert!(new["metadata"].get("managedFields").is_none());
    }
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Nonsense"}]);
    update_managed_fields(ty, Some(&live), &mut new, &writer("admin", T2));
    assert_eq!(new, live);
}

#[test]
fn old_updaters_are_merged() {
    let ty = deployment_type();
    let mut live = deployment(json!({"replicas": 0}));
    update_managed_fields(ty, None, &mut live, &writer("m00", T1));
    for i in 1..15 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{i}")] = json!("x");
        update_managed_fields(ty, Some(&live), &mut new, &writer(&format!("m{i:02}"), T1));
        live = new;
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), MAX_KEPT);
    assert!(owners.iter().any(|(m, ..)| *m == "ancient-changes"));
    let total: usize = Managers::of(&live).all_fields().paths().len();
    assert_eq!(total, 16, "replicas, labels itself and 14 labels");
}

const MAX_KEPT: usize = 10;

#[test]
fn moving_from_client_side_apply() {
    let ty = deployment_type();
    let config = deployment(json!({"replicas": 1}));
    let mut live = config.clone();
    live["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": config.to_string()});
    update_managed_fields(ty, None, &mut live, &writer("kubectl-client-side-apply", T1));
    let wanted = deployment(json!({"replicas": 4}));
    let out = run(Some(&live), &wanted, "kubectl", T2).expect("is kubectl's own earlier work");
    assert_eq!(out["spec"]["replicas"], 4);
    let annotation = &out["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert_eq!(annotation, &json!(format!("{wanted}\n")));
    assert!(run(Some(&live), &wanted, "flux", T2).is_err());
}

#[test]
fn configurations_that_cannot_be_applied() {
    let twice = with_containers(json!([{"name": "a"}, {"name": "a"}]));
    assert_eq!(
        run(None, &twice, "me", T1).expect_err("is ambiguous").to_string(),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): \
         .spec.template.spec.containers: duplicate entries for key [name=\"a\"]"
    );
    for (finalizers, why) in [
        (json!([null]), "associative list without keys has an element that's an explicit null"),
        (json!([{}]), "associative list without keys has an element that's a map or list type"),
    ] {
        let mut bad = deployment(json!({}));
        bad["metadata"]["finalizers"] = finalizers;
        let message = run(None, &bad, "me", T1).expect_err("is no set").to_string();
        assert!(message.ends_with(&format!(".metadata.finalizers: element 0: {why}")), "{message}");
    }
    let scalar = with_containers(json!(["a"]));
    assert!(run(None, &scalar, "me", T1).is_err());
    let mut managed = deployment(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    assert_eq!(run(None, &managed, "me", T1), Err(ApplyError::ManagedFields));
    assert_eq!(run(None, &json!([]), "me", T1), Err(ApplyError::NotAnObject));
    assert_eq!(Status::from(ApplyError::NotAnObject).code, 400);
}

#[test]
fn without_a_schema_objects_merge_and_lists_do_not() {
    let w = Writer { api_version: "x.io/v1", resets: &[], ..writer("me", T1) };
    let object = |spec: Value| json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    let live = apply(None, None, &object(json!({"a": {"b": 1}, "l": [1]})), &w, false).expect("creates");
    let two = Writer { manager: "two", ..w };
    let out = apply(None, Some(&live), &object(json!({"a": {"c": 2}})), &two, false).expect("applies");
    assert_eq!(out["spec"], json!({"a": {"b": 1, "c": 2}, "l": [1]}));
    assert!(apply(None, Some(&live), &object(json!({"l": [2]})), &two, false).is_err());
}

/// A small deterministic generator; the seed is in the failure message by way of the step.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn random_configurations_keep_the_invariants() {
    let mut state = 7;
    let mut live: Option<Value> = None;
    for step in 0..2_000 {
        let manager = ["one", "two", "three"][(next(&mut state) % 3) as usize];
        let mut containers = Vec::new();
        for name in ["a", "b", "c", "d"] {
            if next(&mut state).is_multiple_of(2) {
                let mut c = json!({"name": name});
                if next(&mut state).is_multiple_of(2) {
                    c["image"] = json!(format!("i{}", next(&mut state) % 2));
                }
                if next(&mut state).is_multiple_of(3) {
                    c["env"] = json!([{"name": "E", "value": "1"}]);
                }
                containers.push(c);
            }
        }
        let mut config = if containers.is_empty() { deployment(json!({})) } else { with_containers(json!(containers)) };
        config["spec"]["replicas"] = json!(1);
        if next(&mut state).is_multiple_of(2) {
            config["metadata"]["labels"] = json!({format!("l{}", next(&mut state) % 4): "x"});
        }
        let out = apply(deployment_type(), live.as_ref(), &config, &writer(manager, T1), true).expect("is forced");
        // What was applied is there, and owned.
        let comparison = Comparison::of(deployment_type(), &config, &out);
        assert!(
            comparison.modified.is_empty() && comparison.removed.is_empty(),
            "step {step}: {:?} {:?}",
            comparison.modified.paths(),
            comparison.removed.paths()
        );
        // Every owned field exists.
        let owned = Managers::of(&out).all_fields();
        let mut bare = out.clone();
        if let Some(m) = bare["metadata"].as_object_mut() {
            m.remove("managedFields");
        }
        let there = typed::with_named_fields(deployment_type(), &typed::field_set(deployment_type(), &bare));
        assert!(owned.difference(&there).is_empty(), "step {step}: {:?}", owned.difference(&there).paths());
        // Everything that exists is owned: nothing but applies happened.
        assert!(strip(&typed::field_set(deployment_type(), &bare)).difference(&owned).is_empty(), "step {step}");
        // Applying again changes nothing.
        let again = apply(deployment_type(), Some(&out), &config, &writer(manager, T2), false).expect("no conflict");
        assert_eq!(again, out, "step {step}");
        live = Some(out);
    }
}

#[test]
fn hostile_managed_fields_are_ignored() {
    let config = deployment(json!({"replicas": 1}));
    for bad in [
        json!(7),
        json!([7]),
        json!([{"operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": 7}]),
        json!([{"operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"x": {}}}]),
        json!([{"operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"k:{": {}}}]),
        json!([{"operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {"i:x": {}}}}]),
        json!([{"operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {"f:deep": {}}}}, "manager": "me"}]),
    ] {
        let mut live = config.clone();
        live["metadata"]["managedFields"] = bad.clone();
        let out = run(Some(&live), &config, "me", T1).expect("applies");
        assert!(owners(&out).iter().any(|(m, ..)| *m == "me"), "{bad}");
    }
}
