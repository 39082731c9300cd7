//! Claims to devices, their templates and classes, and the slices in which drivers tell of devices.
//!
//! CEL expressions are compiled when they are new, and refused when they could cost too much.

use super::{Strategy, immutable, slices};
use edge_api::field::{ErrorKind, ErrorList, Path};
use edge_api::{Object, names};
use edge_cel::{Program, Type, devices as expressions};
use serde_json::Value;
use std::collections::HashSet;

/// Kubernetes' limits.
const MAX_REQUESTS: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_SELECTORS: usize = 32;
const MAX_RESULTS: usize = 32;
const MAX_USERS: usize = 256;
const MAX_DEVICES: usize = 128;
const MAX_DEVICES_WITH_MORE: usize = 64;
const MAX_POOL_NAME: usize = 253;
const MAX_DRIVER_NAME: usize = 63;
const MAX_EXPRESSION: usize = 10 * 1024;

pub(crate) static CLAIM: Strategy = Strategy {
    validate: |o, errors| devices(o.pointer("/spec/devices"), &Path::new("spec").child("devices"), errors),
    validate_news: |o, live, errors| {
        asked(o.pointer("/spec/devices"), live.is_none(), &Path::new("spec").child("devices"), errors);
    },
    validate_update: |new, live, errors| immutable(new, live, "/spec", errors),
    prepare_status: forget_devices,
    validate_status: claim_status,
    ..Strategy::DEFAULT
};

pub(crate) static TEMPLATE: Strategy = Strategy {
    validate: |o, errors| {
        let path = Path::new("spec");
        let labels = path.child("metadata").child("labels");
        crate::meta::validate_labels(o.pointer("/spec/metadata/labels"), &labels, errors);
        devices(o.pointer("/spec/spec/devices"), &path.child("spec").child("devices"), errors);
    },
    validate_news: |o, live, errors| {
        let path = Path::new("spec").child("spec").child("devices");
        asked(o.pointer("/spec/spec/devices"), live.is_none(), &path, errors);
    },
    validate_update: |new, live, errors| immutable(new, live, "/spec", errors),
    ..Strategy::DEFAULT
};

pub(crate) static CLASS: Strategy = Strategy {
    generation: true,
    validate: |o, errors| {
        let path = Path::new("spec");
        selectors(o.get("spec"), &path, errors);
        let resource = text(o.get("spec"), "extendedResourceName");
        if has(o.get("spec"), "extendedResourceName") && !names::is_extended_resource(resource) {
            let why = "must be a valid extended resource name";
            errors.invalid(&path.child("extendedResourceName"), &resource.into(), why);
        }
        for (i, config) in items(o.get("spec"), "config").iter().enumerate() {
            configuration(config, &path.child("config").index(i), errors);
        }
    },
    validate_news: |o, live, errors| {
        let before = live.and_then(|live| live.pointer("/spec/selectors"));
        // in another order they are other ones
        if live.is_none() || before != o.pointer("/spec/selectors") {
            compiled(o.get("spec"), &Path::new("spec"), errors);
        }
    },
    ..Strategy::DEFAULT
};

pub(crate) static SLICE: Strategy = Strategy {
    generation: true,
    prepare_create: |o| prepare_slice(o, &Object::default()),
    prepare_update: prepare_slice,
    validate: slice,
    validate_update: |new, live, errors| {
        for pointer in ["/spec/pool/name", "/spec/driver", "/spec/nodeName"] {
            immutable(new, live, pointer, errors);
        }
    },
    ..Strategy::DEFAULT
};

pub(super) fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn has(value: &Value, field: &str) -> bool {
    value.get(field).is_some_and(|v| !v.is_null())
}

fn at_most(list: &[Value], most: usize, path: &Path, errors: &mut ErrorList) {
    if list.len() > most {
        errors.push(ErrorKind::TooMany, path, format!("Too many: {}: must have at most {most} items", list.len()));
    }
}

fn label(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
    } else if let Err(why) = names::dns1123_label(name) {
        errors.invalid(path, &name.into(), &why);
    }
}

pub(super) fn driver(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > MAX_DRIVER_NAME {
        errors.too_long(path, MAX_DRIVER_NAME);
    }
    if let Err(why) = names::dns1123_subdomain(&name.to_lowercase()) {
        errors.invalid(path, &name.into(), &why);
    }
}

fn pool_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > MAX_POOL_NAME {
        errors.too_long(path, MAX_POOL_NAME);
    }
    for part in name.split('/') {
        if let Err(why) = names::dns1123_subdomain(part) {
            errors.invalid(path, &part.into(), &why);
        }
    }
}

/// Complains of each name that occurs a second time.
fn unique<'a>(list: impl Iterator<Item = &'a str>, path: impl Fn(usize) -> Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (i, name) in list.enumerate() {
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&path(i), &name.into());
        }
    }
}

/// What a claim asks for.
fn devices(devices: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let devices = devices.unwrap_or(&Value::Null);
    let (requests, at) = (items(devices, "requests"), path.child("requests"));
    at_most(requests, MAX_REQUESTS, &at, errors);
    unique(requests.iter().map(|r| text(r, "name")), |i| at.index(i).child("name"), errors);
    for (i, one) in requests.iter().enumerate() {
        request(one, &at.index(i), errors);
    }
    let known = request_names(devices);
    let (constraints, at) = (items(devices, "constraints"), path.child("constraints"));
    at_most(constraints, MAX_REQUESTS, &at, errors);
    for (i, constraint) in constraints.iter().enumerate() {
        let at = at.index(i);
        references(constraint, &known, &at, errors);
        if !has(constraint, "matchAttribute") && !has(constraint, "distinctAttribute") {
            errors.required(&at, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required");
        }
    }
    let (config, at) = (items(devices, "config"), path.child("config"));
    at_most(config, MAX_REQUESTS, &at, errors);
    for (i, one) in config.iter().enumerate() {
        references(one, &known, &at.index(i), errors);
        configuration(one, &at.index(i), errors);
    }
}

fn request(request: &Value, path: &Path, errors: &mut ErrorList) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    label(text(request, "name"), &path.child("name"), errors);
    let alternatives = items(request, "firstAvailable");
    match (has(request, "exactly"), !alternatives.is_empty()) {
        (false, false) => errors.required(path, ONE),
        (true, true) => errors.invalid(path, &Value::Null, &format!("{ONE}, but multiple fields are set")),
        (true, false) => wanted(&request["exactly"], &path.child("exactly"), errors),
        (false, true) => {
            let at = path.child("firstAvailable");
            at_most(alternatives, MAX_ALTERNATIVES, &at, errors);
            unique(alternatives.iter().map(|r| text(r, "name")), |i| at.index(i).child("name"), errors);
            for (i, one) in alternatives.iter().enumerate() {
                label(text(one, "name"), &at.index(i).child("name"), errors);
                wanted(one, &at.index(i), errors);
            }
        }
    }
}

/// A class, selectors, and how many.
fn wanted(request: &Value, path: &Path, errors: &mut ErrorList) {
    let (class, at) = (text(request, "deviceClassName"), path.child("deviceClassName"));
    if class.is_empty() {
        errors.required(&at, "");
    } else if let Err(why) = names::dns1123_subdomain(class) {
        errors.invalid(&at, &class.into(), &why);
    }
    selectors(request, path, errors);
    let capacity = request.get("capacity").and_then(|c| c.get("requests")).and_then(Value::as_object);
    for name in capacity.into_iter().flat_map(|requests| requests.keys()) {
        slices::qualified_name(name, &path.child("capacity").child("requests").key(name), errors);
    }
    let count = request.get("count").and_then(Value::as_i64).unwrap_or(0);
    match text(request, "allocationMode") {
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            errors.invalid(&path.child("count"), &count.into(), why);
        }
        "ExactCount" if count <= 0 => {
            errors.invalid(&path.child("count"), &count.into(), "must be greater than zero");
        }
        "All" | "ExactCount" => {}
        other => errors.not_supported(&path.child("allocationMode"), &other.into(), &["All", "ExactCount"]),
    }
}

fn selectors(of: &Value, path: &Path, errors: &mut ErrorList) {
    let (list, at) = (items(of, "selectors"), path.child("selectors"));
    at_most(list, MAX_SELECTORS, &at, errors);
    for (i, selector) in list.iter().enumerate() {
        let at = at.index(i).child("cel");
        let Some(cel) = selector.get("cel").filter(|cel| !cel.is_null()) else {
            errors.required(&at, "");
            continue;
        };
        if text(cel, "expression").is_empty() {
            errors.required(&at.child("expression"), "");
        } else if text(cel, "expression").len() > MAX_EXPRESSION {
            errors.too_long(&at.child("expression"), MAX_EXPRESSION);
        }
    }
}

/// The selectors of what a claim asks for, which never changes.
fn asked(devices: Option<&Value>, is_new: bool, path: &Path, errors: &mut ErrorList) {
    let requests = devices.filter(|_| is_new).map_or(&[][..], |devices| items(devices, "requests"));
    for (i, request) in requests.iter().enumerate() {
        let at = path.child("requests").index(i);
        compiled(&request["exactly"], &at.child("exactly"), errors);
        for (i, one) in items(request, "firstAvailable").iter().enumerate() {
            compiled(one, &at.child("firstAvailable").index(i), errors);
        }
    }
}

/// Whether selectors compile, and what they cost at worst.
fn compiled(of: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, selector) in items(of, "selectors").iter().enumerate().take(MAX_SELECTORS) {
        let expression = text(&selector["cel"], "expression");
        if expression.is_empty() || expression.len() > MAX_EXPRESSION {
            continue;
        }
        let at = path.child("selectors").index(i).child("cel").child("expression");
        match Program::compile_estimated(expression, expressions::env(), expressions::sizes()) {
            Err(wrong) => errors.invalid(&at, &expression.into(), &wrong.detail()),
            Ok((program, cost)) => match program.ty() {
                Type::Bool | Type::Dyn if cost > expressions::COST => {
                    errors.forbidden(&at, "too complex, exceeds cost limit");
                }
                Type::Bool | Type::Dyn => {}
                other => {
                    let why = format!("must evaluate to bool or the unknown type, not {other}");
                    errors.invalid(&at, &expression.into(), &why);
                }
            },
        }
    }
}

fn configuration(config: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("opaque");
    match config.get("opaque").filter(|o| !o.is_null()) {
        None => errors.required(&at, ""),
        Some(opaque) => {
            driver(text(opaque, "driver"), &at.child("driver"), errors);
            match opaque.get("parameters") {
                None | Some(Value::Null) => errors.required(&at.child("parameters"), ""),
                Some(Value::Object(_)) => {}
                Some(other) => errors.invalid(&at.child("parameters"), other, "must be a valid JSON object"),
            }
        }
    }
}

/// The names of requests, and of their alternatives as `request/alternative`.
fn request_names(devices: &Value) -> HashSet<String> {
    let mut names = HashSet::new();
    for request in items(devices, "requests") {
        let name = text(request, "name");
        names.insert(name.to_owned());
        let alternatives = items(request, "firstAvailable").iter();
        names.extend(alternatives.map(|one| format!("{name}/{}", text(one, "name"))));
    }
    names
}

fn reference(name: &str, known: &HashSet<String>, path: &Path, errors: &mut ErrorList) {
    if !known.contains(name) {
        let why =
            "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        errors.invalid(path, &name.into(), why);
    }
}

fn references(of: &Value, known: &HashSet<String>, path: &Path, errors: &mut ErrorList) {
    let (list, at) = (items(of, "requests"), path.child("requests"));
    at_most(list, MAX_REQUESTS, &at, errors);
    unique(list.iter().filter_map(Value::as_str), |i| at.index(i), errors);
    for (i, name) in list.iter().enumerate() {
        reference(name.as_str().unwrap_or_default(), known, &at.index(i), errors);
    }
}

/// Whether a device's status is about a device of a claim's results.
fn is_about(device: &Value, result: &Value) -> bool {
    ["driver", "pool", "device", "shareID"].iter().all(|field| text(result, field) == text(device, field))
}

/// What was said of devices goes with them when they are given back.
fn forget_devices(new: &mut Object, live: &Object) {
    let results = |o: &Object| items(&o.get("status")["allocation"]["devices"], "results").to_vec();
    let (before, after) = (results(live), results(new));
    let gone: Vec<&Value> = before.iter().filter(|old| !after.iter().any(|new| is_about(new, old))).collect();
    if gone.is_empty() {
        return;
    }
    let status = new.section_mut("status");
    let Some(devices) = status.get_mut("devices").and_then(Value::as_array_mut) else { return };
    devices.retain(|device| !gone.iter().any(|result| is_about(device, result)));
    if devices.is_empty() {
        status.remove("devices");
    }
}

fn claim_status(new: &Object, live: &Object, errors: &mut ErrorList) {
    let path = Path::new("status");
    let (status, before) = (new.get("status"), live.get("status"));
    users(new, status, before, &path.child("reservedFor"), errors);
    let allocation = status.get("allocation").filter(|a| !a.is_null());
    let results = allocation.map(|a| items(&a["devices"], "results")).unwrap_or_default();
    for (i, device) in items(status, "devices").iter().enumerate() {
        if !results.iter().any(|result| is_about(device, result)) {
            let why = "must be an allocated device in the claim";
            errors.invalid(&path.child("devices").index(i), device, why);
        }
    }
    if has(before, "allocation") {
        if allocation.is_some() {
            immutable(new, live, "/status/allocation", errors);
        }
        return;
    }
    let (known, at) = (request_names(&new.get("spec")["devices"]), path.child("allocation").child("devices"));
    at_most(results, MAX_RESULTS, &at.child("results"), errors);
    for (i, result) in results.iter().enumerate() {
        let at = at.child("results").index(i);
        reference(text(result, "request"), &known, &at.child("request"), errors);
        driver(text(result, "driver"), &at.child("driver"), errors);
        pool_name(text(result, "pool"), &at.child("pool"), errors);
        label(text(result, "device"), &at.child("device"), errors);
    }
}

fn users(new: &Object, status: &Value, before: &Value, path: &Path, errors: &mut ErrorList) {
    let users = items(status, "reservedFor");
    at_most(users, MAX_USERS, path, errors);
    unique(users.iter().map(|u| text(u, "uid")), |i| path.index(i), errors);
    for (i, user) in users.iter().enumerate() {
        for field in ["resource", "name", "uid"] {
            if text(user, field).is_empty() {
                errors.required(&path.index(i).child(field), "");
            }
        }
    }
    if users.is_empty() {
        return;
    }
    if !has(status, "allocation") {
        errors.forbidden(path, "may not be specified when `allocated` is not set");
    } else if new.is_terminating() && users.iter().any(|user| !items(before, "reservedFor").contains(user)) {
        let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.forbidden(path, why);
    }
}

fn prepare_slice(new: &mut Object, live: &Object) {
    slices::drop_disabled(new, live);
    note_times(new, live);
}

/// Says since when devices have had their taints, where drivers do not.
fn note_times(new: &mut Object, live: &Object) {
    let since = |device: &str, taint: &Value| {
        let known = items(live.get("spec"), "devices").iter().find(|d| text(d, "name") == device)?;
        let same = |t: &&Value| ["key", "value", "effect"].iter().all(|field| t.get(field) == taint.get(field));
        items(known, "taints").iter().find(same)?.get("timeAdded").cloned()
    };
    let devices = new.section_mut("spec").get_mut("devices").and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten() {
        let name = text(device, "name").to_owned();
        for taint in device.get_mut("taints").and_then(Value::as_array_mut).into_iter().flatten() {
            if !has(taint, "timeAdded") {
                let time = since(&name, taint).unwrap_or_else(|| edge_api::meta::now().into());
                taint["timeAdded"] = time;
            }
        }
    }
}

fn slice(o: &Object, errors: &mut ErrorList) {
    let (path, spec) = (Path::new("spec"), o.get("spec"));
    driver(text(spec, "driver"), &path.child("driver"), errors);
    let (pool, at) = (spec.get("pool").unwrap_or(&Value::Null), path.child("pool"));
    pool_name(text(pool, "name"), &at.child("name"), errors);
    let number = |field: &str| pool.get(field).and_then(Value::as_i64).unwrap_or(0);
    if number("resourceSliceCount") <= 0 {
        let count = number("resourceSliceCount").into();
        errors.invalid(&at.child("resourceSliceCount"), &count, "must be greater than zero");
    }
    if number("generation") < 0 {
        let generation = number("generation").into();
        errors.invalid(&at.child("generation"), &generation, "must be greater than or equal to zero");
    }
    slice_nodes(spec, &path, errors);
    if has(spec, "sharedCounters") && has(spec, "devices") {
        errors.invalid(&path, &"".into(), "only one of `sharedCounters` or `devices` is allowed");
    }
    let (devices, at) = (items(spec, "devices"), path.child("devices"));
    let more = |d: &Value| !items(d, "taints").is_empty() || !items(d, "consumesCounters").is_empty();
    at_most(devices, if devices.iter().any(more) { MAX_DEVICES_WITH_MORE } else { MAX_DEVICES }, &at, errors);
    unique(devices.iter().map(|d| text(d, "name")), |i| at.index(i).child("name"), errors);
    let per_device = spec.get("perDeviceNodeSelection").and_then(Value::as_bool) == Some(true);
    for (i, device) in devices.iter().enumerate() {
        label(text(device, "name"), &at.index(i).child("name"), errors);
        slices::device(device, per_device, &at.index(i), errors);
    }
}

/// Where the devices of a slice are.
fn slice_nodes(spec: &Value, path: &Path, errors: &mut ErrorList) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut set = Vec::new();
    match spec.get("nodeName").and_then(Value::as_str) {
        None => {}
        Some("") => {
            errors.invalid(&path.child("nodeName"), &"".into(), "must be either unset or set to a non-empty string");
        }
        Some(name) => {
            set.push("`nodeName`");
            if let Err(why) = names::dns1123_subdomain(name) {
                errors.invalid(&path.child("nodeName"), &name.into(), &why);
            }
        }
    }
    if let Some(selector) = spec.get("nodeSelector").filter(|s| !s.is_null()) {
        set.push("`nodeSelector`");
        if items(selector, "nodeSelectorTerms").len() != 1 {
            let at = path.child("nodeSelector").child("nodeSelectorTerms");
            errors.invalid(&at, &selector["nodeSelectorTerms"], "must have exactly one node selector term");
        }
    }
    for (field, name) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        match spec.get(field).and_then(Value::as_bool) {
            Some(true) => set.push(name),
            Some(false) => {
                errors.invalid(&path.child(field), &false.into(), "must be either unset or set to true");
            }
            None => {}
        }
    }
    match set.as_slice() {
        [] => errors.required(path, ONE),
        [_] => {}
        many => {
            let all = format!("{{{}}}", many.join(", "));
            errors.invalid(path, &all.into(), &format!("{ONE}, but multiple fields are set"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn judged(judge: impl FnOnce(&mut ErrorList)) -> String {
        let mut errors = ErrorList::new();
        judge(&mut errors);
        errors.to_string()
    }

    #[test]
    fn what_a_claim_may_ask_for() {
        let exactly = |with: Value| {
            let mut one = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1});
            one.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
            json!({"requests": [{"name": "one", "exactly": one}]})
        };
        let with = |more: Value| {
            let mut devices = exactly(json!({}));
            devices.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            devices
        };
        let alternatives = json!({"requests": [{"name": "one", "firstAvailable": [
            {"name": "a", "deviceClassName": "gpu", "allocationMode": "All"}]}], "constraints": [{"requests": ["one/a"], "matchAttribute": "x/y"}]});
        for (devices, part) in [
            (exactly(json!({})), ""),
            (alternatives, ""),
            (json!({}), ""),
            (
                exactly(json!({"count": 0})),
                "spec.devices.requests[0].exactly.count: Invalid value: 0: must be greater than zero",
            ),
            (exactly(json!({"allocationMode": "All"})), "must not be specified when allocationMode is 'All'"),
            (exactly(json!({"allocationMode": "Some"})), "exactly.allocationMode: Unsupported value"),
            (exactly(json!({"deviceClassName": ""})), "exactly.deviceClassName: Required value"),
            (exactly(json!({"selectors": [{}]})), "selectors[0].cel: Required value"),
            (json!({"requests": [{"name": "one"}]}), "spec.devices.requests[0]: Required value: exactly one of"),
            (json!({"requests": [{"name": "One", "exactly": {}}]}), "requests[0].name: Invalid value"),
            (
                with(json!({"constraints": [{"requests": ["two"], "matchAttribute": "x/y"}]})),
                "constraints[0].requests[0]: Invalid value: \"two\"",
            ),
            (with(json!({"constraints": [{}]})), "constraints[0]: Required value"),
            (with(json!({"config": [{}]})), "config[0].opaque: Required value"),
            (with(json!({"config": [{"opaque": {"driver": "d.io", "parameters": 1}}]})), "must be a valid JSON object"),
        ] {
            let claim = object(json!({"spec": {"devices": devices}}));
            let text = judged(|errors| (CLAIM.validate)(&claim, errors));
            assert!(if part.is_empty() { text.is_empty() } else { text.contains(part) }, "{devices}: {text}");
        }
        let (new, live) = (object(json!({"spec": {"devices": {}}})), object(json!({"spec": {}})));
        assert!(judged(|errors| (CLAIM.validate_update)(&new, &live, errors)).contains("field is immutable"));
    }

    #[test]
    fn selectors_are_compiled_when_they_are_new() {
        let selector = |text: &str| json!([{"cel": {"expression": text}}]);
        let claim = |text: &str| {
            let one = json!({"name": "one", "exactly": {"deviceClassName": "gpu", "selectors": selector(text)}});
            object(json!({"spec": {"devices": {"requests": [one]}}}))
        };
        let class = |text: &str| object(json!({"spec": {"selectors": selector(text)}}));
        let list = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
        let mut expensive = "true".to_owned();
        for i in 0..7 {
            expensive = format!("{list}.all(x{i}, {expensive})");
        }
        for (expression, part) in [
            ("device.driver == 'gpu.example.com'", ""),
            ("device.attributes['gpu.example.com'].is_fast", ""),
            ("device.driver", "must evaluate to bool or the unknown type, not string"),
            ("device.nope", "compilation failed: ERROR: <input>:1:7: undefined field 'nope'"),
            (&expensive, "Forbidden: too complex, exceeds cost limit"),
        ] {
            let of_claim = judged(|errors| (CLAIM.validate_news)(&claim(expression), None, errors));
            let of_class = judged(|errors| (CLASS.validate_news)(&class(expression), None, errors));
            let at = "selectors[0].cel.expression: ";
            for (text, at) in
                [(of_claim, format!("spec.devices.requests[0].exactly.{at}")), (of_class, format!("spec.{at}"))]
            {
                let fits = if part.is_empty() { text.is_empty() } else { text.contains(&at) && text.contains(part) };
                assert!(fits, "{expression}: {text}");
            }
        }
        let told = |new: &Object, live: &Object| judged(|errors| (CLASS.validate_news)(new, Some(live), errors));
        assert_eq!(told(&class(&expensive), &class(&expensive)), "", "it was taken before");
        assert!(told(&class(&expensive), &class("true")).contains("too complex"));
    }

    #[test]
    fn the_status_of_a_claim() {
        let user = |uid: &str| json!({"resource": "pods", "name": uid, "uid": uid});
        let allocation = |request: &str| json!({"devices": {"results": [{"request": request, "driver": "d.io", "pool": "node", "device": "gpu-0"}]}});
        let claim = |status: Value, deleted: bool| {
            let meta = if deleted { json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}) } else { json!({}) };
            object(json!({"metadata": meta, "spec": {"devices": {"requests": [{"name": "one"}]}}, "status": status}))
        };
        let one = || allocation("one");
        for (before, after, deleted, part) in [
            (json!({}), json!({"allocation": one(), "reservedFor": [user("u")]}), false, ""),
            (json!({"allocation": one(), "reservedFor": [user("u")]}), json!({}), true, ""),
            (
                json!({}),
                json!({"reservedFor": [user("u")]}),
                false,
                "status.reservedFor: Forbidden: may not be specified when",
            ),
            (json!({}), json!({"allocation": allocation("two")}), false, "results[0].request: Invalid value: \"two\""),
            (
                json!({"allocation": one()}),
                json!({"allocation": allocation("two")}),
                false,
                "status.allocation: Invalid value",
            ),
            (
                json!({"allocation": one()}),
                json!({"allocation": one(), "reservedFor": [user("u"), user("u")]}),
                false,
                "Duplicate value",
            ),
            (
                json!({"allocation": one()}),
                json!({"allocation": one(), "reservedFor": [{}]}),
                false,
                "reservedFor[0].uid: Required value",
            ),
            (
                json!({"allocation": one()}),
                json!({"allocation": one(), "reservedFor": [user("u")]}),
                true,
                "new entries may not be added",
            ),
            (
                json!({"allocation": one(), "reservedFor": [user("u"), user("v")]}),
                json!({"allocation": one(), "reservedFor": [user("v")]}),
                true,
                "",
            ),
            (
                json!({"allocation": one()}),
                json!({"allocation": one(), "devices": [{"driver": "d.io", "pool": "node", "device": "gpu-1"}]}),
                false,
                "must be an allocated device in the claim",
            ),
        ] {
            let text = judged(|errors| {
                (CLAIM.validate_status)(&claim(after.clone(), deleted), &claim(before.clone(), deleted), errors);
            });
            assert!(if part.is_empty() { text.is_empty() } else { text.contains(part) }, "{before} {after}: {text}");
        }
    }

    #[test]
    fn slices_say_where_their_devices_are() {
        let made = |with: Value| {
            let mut spec = json!({"driver": "d.io", "pool": {"name": "node/a", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "gpu-0"}]});
            spec.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
            object(json!({"spec": spec}))
        };
        for (with, part) in [
            (json!({"nodeName": "a"}), ""),
            (json!({"allNodes": true}), ""),
            (json!({}), "spec: Required value: exactly one of `nodeName`"),
            (json!({"nodeName": "a", "allNodes": true}), "Invalid value: \"{`nodeName`, `allNodes`}\""),
            (json!({"allNodes": false}), "must be either unset or set to true"),
            (json!({"nodeName": "a", "driver": ""}), "spec.driver: Required value"),
            (
                json!({"nodeName": "a", "pool": {"name": "x", "resourceSliceCount": 0}}),
                "resourceSliceCount: Invalid value: 0",
            ),
            (json!({"nodeName": "a", "devices": [{"name": "x"}, {"name": "x"}]}), "devices[1].name: Duplicate value"),
            (
                json!({"nodeName": "a", "devices": (0..129).map(|i| json!({"name": format!("d{i}")})).collect::<Vec<_>>()}),
                "Too many: 129",
            ),
        ] {
            let text = judged(|errors| slice(&made(with.clone()), errors));
            assert!(if part.is_empty() { text.is_empty() } else { text.contains(part) }, "{with}: {text}");
        }
        let tainted = |times: Value| {
            let mut taint = json!({"key": "broken", "effect": "NoExecute"});
            taint.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
            made(json!({"devices": [{"name": "gpu-0", "taints": [taint]}]}))
        };
        let (mut new, live) = (tainted(json!({})), tainted(json!({"timeAdded": "2026-01-01T00:00:00Z"})));
        note_times(&mut new, &live);
        assert_eq!(new, live, "it has had the taint since then");
        new = tainted(json!({}));
        note_times(&mut new, &Object::default());
        assert!(new.pointer("/spec/devices/0/taints/0/timeAdded").is_some());
        let moved = judged(|errors| {
            (SLICE.validate_update)(&made(json!({"nodeName": "a"})), &made(json!({"nodeName": "b"})), errors)
        });
        assert!(moved.contains("spec.nodeName"), "{moved}");
    }
}
