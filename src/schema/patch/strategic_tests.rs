use super::*;
use crate::table::Schema;
use edge_api::GroupVersionKind;
use serde_json::json;

fn ty(group: &str, kind: &str) -> TypeRef<'static> {
    Schema::builtin().kind(&GroupVersionKind::new(group, "v1", kind)).expect("is a built-in kind")
}

fn pod(live: Value, patch: Value) -> Result<Value> {
    apply(ty("", "Pod"), live, &patch)
}

fn containers(names: &[&str]) -> Value {
    json!({"spec": {"containers": names.iter().map(|n| json!({"name": n, "image": "i"})).collect::<Vec<_>>()}})
}

fn names(pod: &Value) -> Vec<&str> {
    pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

#[test]
fn objects_merge_and_nulls_remove() {
    let live = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "n"}});
    let patch = json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"x": "y", "z": null}}, "spec": {"nodeName": null}});
    assert_eq!(
        pod(live, patch),
        Ok(json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {"x": "y"}}, "spec": {}}))
    );
}

#[test]
fn keyed_lists_merge_by_key() {
    let patch = json!({"spec": {"containers": [{"name": "b", "image": "new"}, {"name": "c", "image": "c"}]}});
    let out = pod(containers(&["a", "b"]), patch).expect("applies");
    assert_eq!(
        out["spec"]["containers"],
        json!([{"name": "a", "image": "i"}, {"name": "b", "image": "new"}, {"name": "c", "image": "c"}])
    );
    let patch = json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}]}]}});
    let live = json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}], "args": ["x"]}]}});
    assert_eq!(
        pod(live, patch).expect("applies")["spec"]["containers"][0],
        json!({"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "1"}], "args": ["x"]})
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    let live = json!({"spec": {"containers": [{"name": "a", "args": ["x", "y"]}], "tolerations": [{"key": "a"}]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "args": ["z"]}], "tolerations": [{"key": "b"}]}});
    let out = pod(live, patch).expect("applies");
    assert_eq!(out, json!({"spec": {"containers": [{"name": "a", "args": ["z"]}], "tolerations": [{"key": "b"}]}}));
}

#[test]
fn patch_directives() {
    let out = pod(containers(&["a", "b"]), json!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}}));
    assert_eq!(names(&out.expect("applies")), ["b"]);
    let out = pod(
        containers(&["a", "b"]),
        json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z", "image": "z"}]}}),
    );
    assert_eq!(names(&out.expect("applies")), ["z"]);
    let live = json!({"metadata": {"labels": {"a": "1"}, "name": "n"}});
    let out = pod(live.clone(), json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}));
    assert_eq!(out, Ok(json!({"metadata": {"labels": {"b": "2"}, "name": "n"}})));
    let out = pod(live, json!({"metadata": {"labels": {"$patch": "delete"}, "annotations": {"$patch": "delete"}}}));
    assert_eq!(out, Ok(json!({"metadata": {"labels": {}, "name": "n"}})));
    for bad in [
        json!({"metadata": {"labels": {"$patch": "merge"}}}),
        json!({"metadata": {"labels": {"$patch": 7}}}),
        json!({"spec": {"containers": [{"name": "a", "$patch": "merge"}]}}),
    ] {
        let error = pod(json!({"metadata": {"labels": {}}, "spec": {"containers": [{"name": "a"}]}}), bad.clone());
        assert!(matches!(error, Err(StrategicPatchError::UnknownPatchType(_))), "{bad}");
    }
}

#[test]
fn sets_of_scalars() {
    let live = json!({"metadata": {"finalizers": ["a", "b"]}});
    let out = pod(live.clone(), json!({"metadata": {"finalizers": ["b", "c"]}}));
    assert_eq!(out, Ok(json!({"metadata": {"finalizers": ["a", "b", "c"]}})));
    let out = pod(live.clone(), json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}));
    assert_eq!(out, Ok(json!({"metadata": {"finalizers": ["b"]}})));
    let out = pod(live, json!({"metadata": {"$setElementOrder/finalizers": ["c", "b", "a"], "finalizers": ["c"]}}));
    assert_eq!(out, Ok(json!({"metadata": {"finalizers": ["c", "b", "a"]}})));
}

#[test]
fn element_order() {
    let order = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
    let patch = json!({"spec": {
        "$setElementOrder/containers": order(&["c", "a"]),
        "containers": [{"name": "c", "image": "new"}],
    }});
    let out = pod(containers(&["a", "server", "c"]), patch).expect("applies");
    // What only the server has stays before the element it stood before.
    assert_eq!(names(&out), ["server", "c", "a"]);
    let only_order = json!({"spec": {"$setElementOrder/containers": order(&["b", "a"])}});
    assert_eq!(names(&pod(containers(&["a", "b"]), only_order).expect("applies")), ["b", "a"]);
    let wrong = json!({"spec": {
        "$setElementOrder/containers": order(&["a", "b"]),
        "containers": [{"name": "b"}, {"name": "a"}],
    }});
    assert_eq!(pod(containers(&["a", "b"]), wrong), Err(StrategicPatchError::OrderMismatch("containers".into())));
}

#[test]
fn retain_keys_clears_the_rest() {
    let live = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        apply(ty("apps", "Deployment"), live.clone(), &patch),
        Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
    );
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
    let error = apply(ty("apps", "Deployment"), live, &patch).expect_err("is inconsistent");
    assert_eq!(Status::from(error).code, 400);
}

#[test]
fn service_ports_merge_by_port() {
    let live = json!({"spec": {"ports": [{"port": 80, "name": "http", "nodePort": 30080}]}});
    let patch = json!({"spec": {"ports": [{"port": 443, "name": "https"}, {"port": 80, "name": "web"}]}});
    let out = apply(ty("", "Service"), live, &patch).expect("applies");
    assert_eq!(
        out["spec"]["ports"],
        json!([{"port": 443, "name": "https"}, {"port": 80, "name": "web", "nodePort": 30080}])
    );
}

#[test]
fn bad_input_is_an_error() {
    assert_eq!(pod(json!({}), json!([])), Err(StrategicPatchError::NotAnObject));
    let error = pod(containers(&["a"]), json!({"spec": {"containers": [{"image": "x"}]}})).expect_err("has no key");
    assert_eq!(error.to_string(), "an element of containers does not contain declared merge key: name");
    assert_eq!(Status::from(error).code, 422);
    for bad in [
        json!({"spec": {"$setElementOrder/containers": 7}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": 7}}),
        json!({"spec": {"$setElementOrder/containers": [7]}}),
        json!({"spec": {"$deleteFromPrimitiveList/containers": 7}}),
        json!({"spec": {"$retainKeys": 7}}),
        json!({"spec": {"containers": [7]}}),
        json!({"spec": {"containers": [[]]}}),
    ] {
        assert!(pod(containers(&["a"]), bad.clone()).is_err(), "{bad}");
    }
    assert_eq!(Status::from(StrategicPatchError::Unsupported).code, 415);
}
