//! Allocation over slices and claims as tables.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceSlice};
use serde_json::{Value, json};

fn node(name: &str) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": format!("zone-{name}")}}})).unwrap()
}

fn slice(name: &str, more: Value) -> Arc<ResourceSlice> {
    let mut spec =
        json!({"driver": "d.io", "nodeName": "a", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    if spec["nodeName"].is_null() {
        spec.as_object_mut().unwrap().remove("nodeName");
    }
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
}

fn gpus(names: &[(&str, i64)]) -> Value {
    let device = |(name, numa): &(&str, i64)| json!({"name": name, "attributes": {"numa": {"int": numa}, "model": {"string": "A"}}, "capacity": {"memory": {"value": "40Gi"}}});
    json!({"devices": names.iter().map(device).collect::<Vec<_>>()})
}

fn claim(devices: Value) -> ResourceClaim {
    serde_json::from_value(
        json!({"metadata": {"name": "c", "namespace": "ns", "uid": "c"}, "spec": {"devices": devices}}),
    )
    .unwrap()
}

fn classes(name: &str) -> Option<Arc<DeviceClass>> {
    let spec = match name {
        "gpu" => {
            json!({"selectors": [{"cel": {"expression": "device.driver == 'd.io'"}}], "config": [{"opaque": {"driver": "d.io", "parameters": {"a": 1}}}]})
        }
        "any" => json!({}),
        _ => return None,
    };
    Some(Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()))
}

/// What claims get on node `a`: `request=device` of each result, claims separated by `;`.
fn allocate(slices: &[Arc<ResourceSlice>], claims: &[Value], taken: &[&str], on: &str) -> Result<String, String> {
    let whole = || Use { is_whole: true, amounts: Amounts::new() };
    let taken = taken.iter().map(|d| (("d.io".to_owned(), "p".to_owned(), (*d).to_owned()), whole())).collect();
    let pools = Pools::new(slices.to_vec(), &taken);
    let selectors = Selectors::default();
    let plans: Vec<Plan> =
        claims.iter().map(|c| plan(&claim(c.clone()), &classes, &selectors)).collect::<Result<_, _>>()?;
    let plans: Vec<&Plan> = plans.iter().collect();
    let node = node(on);
    let Some(found) = Search::new(&pools, &plans, &node).run()? else { return Ok("none".into()) };
    let words = |a: &AllocationResult| {
        let results = a.devices.as_ref().unwrap().results.clone().unwrap_or_default();
        results.iter().map(|r| format!("{}={}", r.request, r.device)).collect::<Vec<_>>().join(",")
    };
    Ok(found.iter().map(words).collect::<Vec<_>>().join(";"))
}

fn exactly(name: &str, more: Value) -> Value {
    let mut request = json!({"deviceClassName": "gpu"});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": name, "exactly": request})
}

fn one(more: Value) -> Value {
    json!({"requests": [exactly("r", more)]})
}

fn cel(expression: &str) -> Value {
    json!({"selectors": [{"cel": {"expression": expression}}]})
}

#[test]
fn requests_get_what_they_ask_for() {
    let two = [slice("s", gpus(&[("g0", 0), ("g1", 1)]))];
    for (claims, taken, want) in [
        (vec![one(json!({}))], vec![], "r=g0"),
        (vec![one(json!({}))], vec!["g0"], "r=g1"),
        (vec![one(json!({}))], vec!["g0", "g1"], "none"),
        (vec![one(json!({"count": 2}))], vec![], "r=g0,r=g1"),
        (vec![one(json!({"count": 3}))], vec![], "none"),
        (vec![one(json!({"allocationMode": "All"}))], vec![], "r=g0,r=g1"),
        (vec![one(json!({"allocationMode": "All"}))], vec!["g1"], "none"),
        (vec![one(cel("device.attributes['d.io'].numa == 1"))], vec![], "r=g1"),
        (vec![one(cel("device.capacity['d.io'].memory.isGreaterThan(quantity('80Gi'))"))], vec![], "none"),
        (vec![one(json!({})), one(json!({}))], vec![], "r=g0;r=g1"),
        (vec![one(json!({})), one(json!({})), one(json!({}))], vec![], "none"),
        // the first takes what only the second can use, and gives it back
        (vec![one(json!({})), one(cel("device.attributes['d.io'].numa == 0"))], vec![], "r=g1;r=g0"),
        (vec![one(json!({"adminAccess": true}))], vec!["g0", "g1"], "r=g0"),
        (vec![one(json!({"adminAccess": true, "allocationMode": "All"}))], vec!["g1"], "r=g0,r=g1"),
        (vec![one(json!({"adminAccess": true})), one(json!({"count": 2}))], vec![], "r=g0;r=g0,r=g1"),
        (vec![one(json!({"deviceClassName": "any"}))], vec![], "r=g0"),
        (
            vec![json!({"requests": [{"name": "r", "firstAvailable": [
                {"name": "big", "deviceClassName": "gpu", "count": 3}, {"name": "small", "deviceClassName": "gpu"}]}]})],
            vec![],
            "r/small=g0",
        ),
        (
            vec![
                json!({"requests": [{"name": "r", "firstAvailable": [
                {"name": "two", "deviceClassName": "gpu", "count": 2}, {"name": "one", "deviceClassName": "gpu"}]}]}),
                one(json!({})),
            ],
            vec![],
            "r/one=g0;r=g1",
        ),
        (vec![json!({})], vec![], ""),
    ] {
        assert_eq!(allocate(&two, &claims, &taken, "a").as_deref(), Ok(want), "{claims:?} {taken:?}");
    }
    for (devices, why) in [
        (one(json!({"deviceClassName": "nope"})), "request r: device class nope does not exist"),
        (
            one(cel("device.attributes['d.io'].nope")),
            "claim ns/c, request r: selector #1: CEL runtime error: no such key: nope",
        ),
        (one(cel("1 +")), "claim ns/c, request r: selector #1: CEL compile error: compilation failed"),
        (json!({"requests": [{"name": "r"}]}), "request r: unsupported request type"),
        (one(json!({"count": 100_000})), "the claims of the pod need more than 512 devices"),
    ] {
        let error = allocate(&two, &[devices], &[], "a").unwrap_err();
        assert!(error.starts_with(why), "{error}");
    }
}

#[test]
fn constraints_hold_between_devices() {
    let four = [slice("s", gpus(&[("g0", 0), ("g1", 1), ("g2", 0), ("g3", 1)]))];
    let with = |requests: Value, constraint: Value| json!({"requests": requests, "constraints": [constraint]});
    let two = json!([exactly("x", json!({})), exactly("y", json!({}))]);
    for (devices, want) in [
        (with(two.clone(), json!({"matchAttribute": "d.io/numa"})), "x=g0,y=g2"),
        (with(two.clone(), json!({"distinctAttribute": "d.io/numa"})), "x=g0,y=g1"),
        (with(two.clone(), json!({"matchAttribute": "d.io/nope"})), "none"),
        (with(two.clone(), json!({"matchAttribute": "other.io/numa"})), "none"),
        (with(two.clone(), json!({"matchAttribute": "d.io/numa", "requests": ["y"]})), "x=g0,y=g1"),
        (with(json!([exactly("x", json!({"count": 3}))]), json!({"matchAttribute": "d.io/numa"})), "none"),
        (with(json!([exactly("x", json!({"count": 3}))]), json!({"matchAttribute": "d.io/model"})), "x=g0,x=g1,x=g2"),
    ] {
        assert_eq!(allocate(&four, std::slice::from_ref(&devices), &[], "a").as_deref(), Ok(want), "{devices}");
    }
}

#[test]
fn devices_are_where_their_slices_say() {
    let of = |more: Value| {
        let mut spec = gpus(&[("g0", 0)]);
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        [slice("s", spec)]
    };
    let zone =
        json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["zone-b"]}]}]});
    let pool =
        |generation: i64, count: i64| json!({"name": "p", "generation": generation, "resourceSliceCount": count});
    for (more, on_a, on_b) in [
        (json!({}), "r=g0", "none"),
        (json!({"nodeName": null, "allNodes": true}), "r=g0", "r=g0"),
        (json!({"nodeName": null, "nodeSelector": zone}), "none", "r=g0"),
        (
            json!({"nodeName": null, "perDeviceNodeSelection": true, "devices": [{"name": "g0", "nodeName": "b"}]}),
            "none",
            "r=g0",
        ),
        (json!({"pool": pool(1, 2)}), "none", "none"),
    ] {
        for (node, want) in [("a", on_a), ("b", on_b)] {
            assert_eq!(allocate(&of(more.clone()), &[one(json!({}))], &[], node).as_deref(), Ok(want), "{more} {node}");
        }
    }
    // only the newest generation counts
    let mut newer = gpus(&[("g9", 0)]);
    newer["pool"] = pool(2, 1);
    let both = [slice("old", gpus(&[("g0", 0)])), slice("new", newer)];
    assert_eq!(allocate(&both, &[one(json!({}))], &[], "a").as_deref(), Ok("r=g9"));
    let half = of(json!({"pool": pool(1, 2)}));
    let error = allocate(&half, &[one(json!({"allocationMode": "All"}))], &[], "a").unwrap_err();
    assert_eq!(
        error,
        "claim ns/c, request r: asks for all devices, but resource pool d.io/p is currently being updated"
    );
    let twice = [slice("s", gpus(&[("g0", 0), ("g0", 1)]))];
    let error = allocate(&twice, &[one(json!({}))], &[], "a").unwrap_err();
    assert_eq!(error, "pool d.io/p is invalid: duplicate device name g0");
}

#[test]
fn taints_keep_away_who_does_not_tolerate_them() {
    let of = |effect: &str| {
        [slice(
            "s",
            json!({"devices": [{"name": "g0", "taints": [{"key": "broken", "value": "yes", "effect": effect}]}]}),
        )]
    };
    for (effect, tolerations, want) in [
        ("NoSchedule", json!([]), "none"),
        ("NoExecute", json!([]), "none"),
        ("None", json!([]), "r=g0"),
        ("NoSchedule", json!([{"operator": "Exists"}]), "r=g0"),
        ("NoSchedule", json!([{"key": "broken", "operator": "Equal", "value": "yes"}]), "r=g0"),
        ("NoSchedule", json!([{"key": "broken", "operator": "Equal", "value": "no"}]), "none"),
        ("NoSchedule", json!([{"key": "broken", "operator": "Exists", "effect": "NoExecute"}]), "none"),
    ] {
        let claim = one(json!({"tolerations": tolerations}));
        assert_eq!(allocate(&of(effect), &[claim], &[], "a").as_deref(), Ok(want), "{effect} {tolerations}");
    }
}

#[test]
fn partitions_share_counters() {
    let part = |name: &str, memory: &str| json!({"name": name, "consumesCounters": [{"counterSet": "card", "counters": {"memory": {"value": memory}}}]});
    let slices = [slice(
        "s",
        json!({"sharedCounters": [{"name": "card", "counters": {"memory": {"value": "40Gi"}}}],
            "devices": [part("whole", "40Gi"), part("half-0", "20Gi"), part("half-1", "20Gi"), part("huge", "80Gi")]}),
    )];
    for (count, taken, want) in [
        (1, vec![], "r=whole"),
        (2, vec![], "r=half-0,r=half-1"),
        (3, vec![], "none"),
        (1, vec!["half-0"], "r=half-1"),
        (1, vec!["whole"], "none"),
    ] {
        assert_eq!(
            allocate(&slices, &[one(json!({"count": count}))], &taken, "a").as_deref(),
            Ok(want),
            "{count} {taken:?}"
        );
    }
}

#[test]
fn claims_share_devices_by_capacity() {
    let device = |name: &str, more: Value| {
        let policy = json!({"default": "10Gi", "validRange": {"min": "10Gi", "max": "40Gi", "step": "10Gi"}});
        let mut device = json!({"name": name, "allowMultipleAllocations": true, "attributes": {"card": {"string": name}},
            "capacity": {"memory": {"value": "40Gi", "requestPolicy": policy}}});
        device.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        device
    };
    let slices = [slice("s", json!({"devices": [device("g0", json!({})), device("g1", json!({}))]}))];
    let memory = |amount: &str| json!({"capacity": {"requests": {"memory": amount}}});
    let asks = |amounts: &[&str]| amounts.iter().map(|amount| one(memory(amount))).collect::<Vec<_>>();
    for (claims, taken, want) in [
        (asks(&["40Gi"]), vec![], "r=g0"),
        (asks(&["30Gi", "10Gi", "20Gi"]), vec![], "r=g0;r=g0;r=g1"),
        (asks(&["30Gi", "20Gi", "20Gi"]), vec![], "r=g0;r=g1;r=g1"),
        (asks(&["11Gi", "21Gi"]), vec![], "r=g0;r=g1"),
        (asks(&["41Gi"]), vec![], "none"),
        (asks(&["30Gi", "30Gi", "30Gi"]), vec![], "none"),
        (vec![one(json!({}))], vec![], "r=g0"),
        (vec![one(json!({"count": 4}))], vec![], "r=g0,r=g0,r=g0,r=g0"),
        (vec![one(json!({"count": 8}))], vec![], "r=g0,r=g0,r=g0,r=g0,r=g1,r=g1,r=g1,r=g1"),
        (vec![one(json!({"count": 9}))], vec![], "none"),
        (vec![one(json!({"allocationMode": "All"}))], vec![], "r=g0,r=g1"),
        (asks(&["10Gi"]), vec!["g0"], "r=g1"),
        (vec![one(json!({"capacity": {"requests": {"nope": "1"}}}))], vec![], "none"),
        (
            vec![
                json!({"requests": [exactly("r", json!({"count": 2}))], "constraints": [{"distinctAttribute": "d.io/card"}]}),
            ],
            vec![],
            "r=g0,r=g1",
        ),
    ] {
        assert_eq!(allocate(&slices, &claims, &taken, "a").as_deref(), Ok(want), "{claims:?} {taken:?}");
    }
    // devices of which only one claim can have one are filtered by the same
    let whole = [slice("s", gpus(&[("g0", 0)]))];
    for (amount, want) in [("40Gi", "r=g0"), ("41Gi", "none")] {
        assert_eq!(allocate(&whole, &asks(&[amount]), &[], "a").as_deref(), Ok(want));
    }
    // what others have counts
    let result = |amount: &str| json!({"request": "r", "driver": "d.io", "pool": "p", "device": "g0", "shareID": "x", "consumedCapacity": {"memory": amount}});
    let used: AllocationResult =
        serde_json::from_value(json!({"devices": {"results": [result("20Gi"), result("10Gi")]}})).unwrap();
    let taken = by_device(devices_of(&used));
    let pools = Pools::new(slices.to_vec(), &taken);
    for (amount, want) in [("10Gi", "g0"), ("20Gi", "g1")] {
        let plan = plan(&claim(one(memory(amount))), &classes, &Selectors::default()).unwrap();
        let plans = [&plan];
        let found = Search::new(&pools, &plans, &node("a")).run().unwrap().unwrap();
        let of = found[0].devices.as_ref().unwrap().results.as_ref().unwrap()[0].clone();
        assert_eq!((of.device.as_str(), of.consumed_capacity.unwrap()["memory"].0.as_str()), (want, amount));
        assert_eq!(of.share_id.unwrap().len(), 36);
    }
}

#[test]
fn devices_that_need_preparation_come_last() {
    let needs = json!({"name": "g0", "bindsToNode": true, "bindingConditions": ["Ready"], "bindingFailureConditions": ["Broken"]});
    let spec = json!({"nodeName": null, "allNodes": true, "devices": [needs, {"name": "g1"}]});
    let slices = [slice("s", spec)];
    assert_eq!(allocate(&slices, &[one(json!({}))], &[], "a").as_deref(), Ok("r=g1"));
    let pools = Pools::new(slices.to_vec(), &by_device([(("d.io".into(), "p".into(), "g1".into()), None)].into_iter()));
    let plan = plan(&claim(one(json!({}))), &classes, &Selectors::default()).unwrap();
    let found = Search::new(&pools, &[&plan], &node("a")).run().unwrap().unwrap();
    let of = &found[0].devices.as_ref().unwrap().results.as_ref().unwrap()[0];
    assert_eq!(of.binding_conditions.as_deref(), Some(&["Ready".to_owned()][..]));
    assert_eq!(of.binding_failure_conditions.as_deref(), Some(&["Broken".to_owned()][..]));
    assert!(found[0].node_selector.is_some(), "it is made ready for this node");
}

#[test]
fn results_say_where_and_how() {
    let result = |slice: Arc<ResourceSlice>, devices: Value| {
        let pools = Pools::new(vec![slice], &HashMap::new());
        let plan = plan(&claim(devices), &classes, &Selectors::default()).unwrap();
        let plans = [&plan];
        let node = node("a");
        let all = Search::new(&pools, &plans, &node).run().unwrap().unwrap();
        serde_json::to_value(&all[0]).unwrap()
    };
    let mut devices = one(json!({"tolerations": [{"operator": "Exists"}]}));
    devices["config"] = json!([{"requests": ["r"], "opaque": {"driver": "d.io", "parameters": {"b": 2}}}, {"requests": ["other"], "opaque": {"driver": "d.io", "parameters": {}}}]);
    assert_eq!(
        result(slice("s", gpus(&[("g0", 0)])), devices),
        json!({
            "devices": {
                "results": [{"request": "r", "driver": "d.io", "pool": "p", "device": "g0", "tolerations": [{"operator": "Exists"}]}],
                "config": [
                    {"source": "FromClass", "requests": ["r"], "opaque": {"driver": "d.io", "parameters": {"a": 1}}},
                    {"source": "FromClaim", "requests": ["r"], "opaque": {"driver": "d.io", "parameters": {"b": 2}}},
                ],
            },
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]},
        })
    );
    let mut everywhere = gpus(&[("g0", 0)]);
    everywhere["nodeName"] = Value::Null;
    everywhere["allNodes"] = true.into();
    assert!(result(slice("s", everywhere), one(json!({})))["nodeSelector"].is_null());
}

#[test]
fn a_search_without_end_ends() {
    let names: Vec<String> = (0..128).map(|i| format!("g{i}")).collect();
    let named: Vec<(&str, i64)> = names.iter().enumerate().map(|(i, n)| (n.as_str(), i as i64 % 2)).collect();
    let slices = [slice("s", gpus(&named))];
    // no combination of 31 with one that is not there
    let requests =
        json!([exactly("x", json!({"count": 31})), exactly("y", cel("device.attributes['d.io'].numa == 7"))]);
    let result = allocate(&slices, &[json!({"requests": requests})], &[], "a");
    assert_eq!(result, Err("timed out trying to allocate devices".into()));
}
