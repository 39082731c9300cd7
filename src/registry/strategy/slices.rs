//! What slices say of each device: attributes, capacities and who may share them, taints, conditions before it may be used.

use super::devices::{driver, has, items, text};
use edge_api::field::{ErrorKind, ErrorList, Path};
use edge_api::{Object, Quantity, names};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Kubernetes' limits.
const MAX_ATTRIBUTES: usize = 32;
const MAX_VALUE: usize = 64;
const MAX_NAME: usize = 32;
const MAX_CHOICES: usize = 10;
const MAX_CONDITIONS: usize = 4;
const MAX_TAINTS: usize = 16;
const ONE_NODE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
/// What only gates that are off by default give a meaning to: attributes with several values.
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];
/// The same of devices.
const OFF: &str = "nodeAllocatableResourceMappings";

fn map<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    of.get(field).and_then(Value::as_object).into_iter().flatten()
}

fn devices_of(o: &Object) -> &[Value] {
    items(o.get("spec"), "devices")
}

fn uses_lists(device: &Value) -> bool {
    map(device, "attributes").any(|(_, attribute)| LISTS.iter().any(|field| has(attribute, field)))
}

/// Leaves out what this version of Kubernetes does not have on by default, unless the live object has it.
pub(super) fn drop_disabled(new: &mut Object, live: &Object) {
    let keeps_lists = devices_of(live).iter().any(uses_lists);
    let keeps_mappings = devices_of(live).iter().any(|device| has(device, OFF));
    let devices = new.section_mut("spec").get_mut("devices").and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten().filter_map(Value::as_object_mut) {
        if !keeps_mappings {
            device.remove(OFF);
        }
        if keeps_lists {
            continue;
        }
        let attributes = device.get_mut("attributes").and_then(Value::as_object_mut);
        for attribute in attributes.into_iter().flat_map(Map::values_mut).filter_map(Value::as_object_mut) {
            attribute.retain(|field, _| !LISTS.contains(&field.as_str()));
        }
    }
}

/// Judges a device.
pub(super) fn device(device: &Value, per_device: bool, path: &Path, errors: &mut ErrorList) {
    let count = map(device, "attributes").count() + map(device, "capacity").count();
    if count > MAX_ATTRIBUTES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.invalid(path, &count.into(), &why);
    }
    for (name, value) in map(device, "attributes") {
        let at = path.child("attributes").key(name);
        qualified_name(name, &at, errors);
        attribute(value, &at, errors);
    }
    let is_shared = device.get("allowMultipleAllocations").and_then(Value::as_bool) == Some(true);
    for (name, value) in map(device, "capacity") {
        let at = path.child("capacity").key(name);
        qualified_name(name, &at, errors);
        let at = at.child("requestPolicy");
        match value.get("requestPolicy").filter(|policy| !policy.is_null()) {
            Some(policy) if is_shared => request_policy(policy, quantity(value, "value"), &at, errors),
            Some(_) => errors.forbidden(&at, "allowMultipleAllocations must be true"),
            None => {}
        }
    }
    taints(items(device, "taints"), &path.child("taints"), errors);
    nodes(device, per_device, path, errors);
    conditions(device, path, errors);
}

/// A name, with or without the domain of a driver before it.
pub(super) fn qualified_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let short = match name.split_once('/') {
        Some(("", _)) => return errors.invalid(path, &"".into(), "the domain must not be empty"),
        Some((_, "")) => return errors.invalid(path, &"".into(), "the name must not be empty"),
        Some((domain, short)) => {
            driver(domain, path, errors);
            short
        }
        None => name,
    };
    if short.len() > MAX_NAME {
        errors.too_long(path, MAX_NAME);
    }
    let mut chars = short.chars();
    let begins = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !begins || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let why = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
                   characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
                   '[A-Za-z_][A-Za-z0-9_]*')";
        errors.invalid(path, &short.into(), why);
    }
}

fn attribute(value: &Value, path: &Path, errors: &mut ErrorList) {
    let set = ["bool", "int", "string", "version"].into_iter().chain(LISTS).filter(|field| has(value, field)).count();
    if set != 1 {
        let shown = if set == 0 { Value::from("") } else { value.clone() };
        errors.invalid(path, &shown, "exactly one value must be specified");
    }
    for field in ["string", "version"] {
        if text(value, field).len() > MAX_VALUE {
            errors.too_long(&path.child(field), MAX_VALUE);
        }
    }
    if has(value, "version") && !is_version(text(value, "version")) {
        let why = "must be a string compatible with semver.org spec 2.0.0";
        errors.invalid(&path.child("version"), &value["version"], why);
    }
}

/// Whether a text is a semantic version.
fn is_version(text: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| is_digits(part) && (part == "0" || !part.starts_with('0'));
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, before) = rest.split_once('-').map_or((rest, None), |(core, before)| (core, Some(before)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && before.is_none_or(|b| b.split('.').all(|part| word(part) && (!is_digits(part) || number(part))))
        && build.is_none_or(|b| b.split('.').all(word))
}

fn quantity(of: &Value, field: &str) -> Option<Quantity> {
    Quantity::parse(of.get(field)?.as_str()?).ok()
}

fn request_policy(policy: &Value, total: Option<Quantity>, path: &Path, errors: &mut ErrorList) {
    let (values, range) = (items(policy, "validValues"), policy.get("validRange").filter(|range| !range.is_null()));
    let default = quantity(policy, "default");
    let (name, at) = match (values.is_empty(), range) {
        (false, Some(_)) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            return errors.forbidden(path, why);
        }
        (true, None) => return,
        (false, None) => ("validValues", path.child("validValues")),
        (true, Some(_)) => ("validRange", path.child("validRange")),
    };
    // what is no quantity is complained of elsewhere
    let Some(total) = total else { return };
    let Some(default) = default else {
        return errors.required(&path.child("default"), &format!("required when {name} is defined"));
    };
    match range {
        Some(range) => valid_range(range, default, total, &at, errors),
        None => valid_values(values, default, total, &at, errors),
    }
}

fn valid_values(values: &[Value], default: Quantity, total: Quantity, path: &Path, errors: &mut ErrorList) {
    if values.len() > MAX_CHOICES {
        let why = format!("Too many: {}: must have at most {MAX_CHOICES} items", values.len());
        return errors.push(ErrorKind::TooMany, path, why);
    }
    let parsed: Vec<Quantity> = values.iter().filter_map(|v| Quantity::parse(v.as_str()?).ok()).collect();
    for (i, pair) in parsed.windows(2).enumerate() {
        if pair[0] > pair[1] {
            errors.invalid(&path.index(i + 1), &values[i + 1], "values must be sorted in ascending order");
        }
    }
    let mut seen = HashSet::new();
    for (i, value) in parsed.iter().enumerate() {
        if *value > total {
            let why = format!("option is larger than capacity value: {total}");
            errors.invalid(&path.index(i), &values[i], &why);
        }
        if !seen.insert(value.value()) {
            errors.duplicate(&path.index(i), &value.value().to_string().into());
        }
    }
    if !parsed.contains(&default) {
        let why = "default value is not valid according to the requestPolicy";
        errors.invalid(path, &default.to_string().into(), why);
    }
}

fn valid_range(range: &Value, default: Quantity, total: Quantity, path: &Path, errors: &mut ErrorList) {
    let Some(least) = quantity(range, "min") else {
        return errors.required(&path.child("min"), "required when validRange is defined");
    };
    let mut complain = |field: &str, value: &Quantity, why: String| {
        errors.invalid(&path.child(field), &value.to_string().into(), &why);
    };
    if least > total {
        complain("min", &least, format!("min is larger than capacity value: {total}"));
    }
    if default < least {
        complain("min", &default, format!("default is less than min: {least}"));
    }
    let most = quantity(range, "max");
    if let Some(most) = most {
        if least > most {
            complain("max", &least, format!("min is larger than max: {most}"));
        }
        if most > total {
            complain("max", &most, format!("max is larger than capacity value: {total}"));
        }
        if default > most {
            complain("max", &default, format!("default is more than max: {most}"));
        }
    }
    let Some(step) = quantity(range, "step") else { return };
    let first = least.add(&step);
    if first > total {
        complain("step", &step, format!("one step {first} is larger than capacity value: {total}"));
    }
    for value in std::iter::once(default).chain(most) {
        let steps = value.value().checked_sub(least.value()).and_then(|n| n.checked_rem(step.value()));
        if steps != Some(0) {
            complain("step", &value, format!("value is not a multiple of a given step ({step}) from ({least})"));
        }
    }
}

fn taints(taints: &[Value], path: &Path, errors: &mut ErrorList) {
    if taints.len() > MAX_TAINTS {
        let why = format!("Too many: {}: must have at most {MAX_TAINTS} items", taints.len());
        return errors.push(ErrorKind::TooMany, path, why);
    }
    for (i, taint) in taints.iter().enumerate() {
        let at = path.index(i);
        if let Err(why) = names::qualified_name(text(taint, "key")) {
            errors.invalid(&at.child("key"), &text(taint, "key").into(), &why);
        }
        if let Err(why) = names::label_value(text(taint, "value")) {
            errors.invalid(&at.child("value"), &text(taint, "value").into(), &why);
        }
        match text(taint, "effect") {
            "" => errors.required(&at.child("effect"), ""),
            "NoSchedule" | "NoExecute" | "None" => {}
            other => errors.not_supported(&at.child("effect"), &other.into(), &["NoExecute", "NoSchedule", "None"]),
        }
    }
}

/// Where a device is, if that is not the same for all of its slice.
fn nodes(device: &Value, per_device: bool, path: &Path, errors: &mut ErrorList) {
    let set: Vec<&str> = ["nodeName", "nodeSelector", "allNodes"].into_iter().filter(|f| has(device, f)).collect();
    if !per_device {
        if !set.is_empty() {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.invalid(path, &Value::Null, why);
        }
        return;
    }
    if has(device, "nodeName") {
        let name = text(device, "nodeName");
        if name.is_empty() {
            errors.invalid(&path.child("nodeName"), &"".into(), "must not be empty");
        } else if let Err(why) = names::dns1123_subdomain(name) {
            errors.invalid(&path.child("nodeName"), &name.into(), &why);
        }
    }
    if device.get("allNodes").and_then(Value::as_bool) == Some(false) {
        errors.invalid(&path.child("allNodes"), &false.into(), "must be either unset or set to true");
    }
    match set.as_slice() {
        [] => errors.required(path, ONE_NODE),
        [_] => {}
        many => {
            let all: Vec<String> = many.iter().map(|field| format!("`{field}`")).collect();
            errors.invalid(path, &format!("{{{}}}", all.join(", ")).into(), ONE_NODE);
        }
    }
}

/// What a driver has to say before a pod may use the device.
fn conditions(device: &Value, path: &Path, errors: &mut ErrorList) {
    const FIELDS: [&str; 2] = ["bindingConditions", "bindingFailureConditions"];
    for field in FIELDS {
        let (list, at) = (items(device, field), path.child(field));
        if list.len() > MAX_CONDITIONS {
            let why = format!("Too many: {}: must have at most {MAX_CONDITIONS} items", list.len());
            errors.push(ErrorKind::TooMany, &at, why);
        }
        let mut seen = HashSet::new();
        for (i, name) in list.iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            if let Err(why) = names::qualified_name(name) {
                errors.invalid(&at.index(i), &name.into(), &why);
            }
            if !seen.insert(name) {
                errors.duplicate(&at.index(i), &name.into());
            }
            if field == FIELDS[1] && items(device, FIELDS[0]).iter().any(|other| other == name) {
                let why = "bindingFailureConditions must not overlap with bindingConditions";
                errors.invalid(&at.index(i), &name.into(), why);
            }
        }
    }
    for (field, other) in [(FIELDS[0], FIELDS[1]), (FIELDS[1], FIELDS[0])] {
        if items(device, field).is_empty() && !items(device, other).is_empty() {
            let why = format!("{field} are required to use {other}");
            errors.invalid(&path.child(field), &Value::Null, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_said_of_devices() {
        let policy = |policy: Value| json!({"allowMultipleAllocations": true, "capacity": {"mem": {"value": "8Gi", "requestPolicy": policy}}});
        let many: Map<String, Value> = (0..33).map(|i| (format!("a{i}"), json!({"int": 1}))).collect();
        for (more, part) in [
            (json!({}), ""),
            (json!({"attributes": {"d.io/model": {"string": "A"}, "v": {"version": "1.2.3-rc.1+b"}}}), ""),
            (
                json!({"attributes": {"a": {}}}),
                "attributes[a]: Invalid value: \"\": exactly one value must be specified",
            ),
            (json!({"attributes": {"a": {"int": 1, "bool": true}}}), "exactly one value must be specified"),
            (json!({"attributes": {"a": {"string": "x".repeat(65)}}}), "attributes[a].string: Too long"),
            (json!({"attributes": {"a": {"version": "1.2"}}}), "semver.org"),
            (json!({"attributes": {"a": {"version": "01.2.3"}}}), "semver.org"),
            (json!({"attributes": {"a-b": {"int": 1}}}), "C identifier"),
            (json!({"attributes": {"/b": {"int": 1}}}), "the domain must not be empty"),
            (json!({"attributes": {"x.io/": {"int": 1}}}), "the name must not be empty"),
            (json!({"attributes": many}), "must not exceed 32"),
            (
                json!({"capacity": {"mem": {"value": "1", "requestPolicy": {}}}}),
                "requestPolicy: Forbidden: allowMultipleAllocations must be true",
            ),
            (policy(json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "4Gi", "step": "1Gi"}})), ""),
            (policy(json!({"default": "1Gi", "validValues": ["1Gi", "2Gi"]})), ""),
            (policy(json!({"default": "1Gi"})), ""),
            (
                policy(json!({"validRange": {"min": "1Gi"}})),
                "default: Required value: required when validRange is defined",
            ),
            (policy(json!({"validValues": ["1Gi"]})), "default: Required value: required when validValues is defined"),
            (
                policy(json!({"default": "1Gi", "validValues": ["1Gi"], "validRange": {"min": "1"}})),
                "exactly one policy",
            ),
            (policy(json!({"default": "3Gi", "validValues": ["1Gi", "2Gi"]})), "default value is not valid"),
            (
                policy(json!({"default": "1Gi", "validValues": ["2Gi", "1Gi"]})),
                "validValues[1]: Invalid value: \"1Gi\": values must be sorted",
            ),
            (
                policy(json!({"default": "1Gi", "validValues": ["1Gi", "9Gi"]})),
                "option is larger than capacity value: 8Gi",
            ),
            (policy(json!({"default": "1Gi", "validRange": {"min": "2Gi"}})), "default is less than min: 2Gi"),
            (
                policy(json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "9Gi"}})),
                "max is larger than capacity value",
            ),
            (
                policy(json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "2Gi", "step": "768Mi"}})),
                "is not a multiple",
            ),
            (policy(json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "0"}})), "is not a multiple"),
            (json!({"taints": [{"key": "a", "effect": "Never"}]}), "taints[0].effect: Unsupported value"),
            (json!({"taints": [{"key": "", "effect": "None"}]}), "taints[0].key: Invalid value"),
            (json!({"nodeName": "n"}), "can only be set if `perDeviceNodeSelection`"),
            (json!({"bindingConditions": ["A"], "bindingFailureConditions": ["B"]}), ""),
            (json!({"bindingConditions": ["A"]}), "bindingFailureConditions are required to use bindingConditions"),
            (
                json!({"bindingFailureConditions": ["A"]}),
                "bindingConditions are required to use bindingFailureConditions",
            ),
            (json!({"bindingConditions": ["A"], "bindingFailureConditions": ["A"]}), "must not overlap"),
            (json!({"bindingConditions": ["A", "A"], "bindingFailureConditions": ["B"]}), "Duplicate value"),
        ] {
            let mut errors = ErrorList::new();
            let mut of = json!({"name": "d"});
            of.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            device(&of, false, &Path::new("d"), &mut errors);
            let text = errors.to_string();
            assert!(if part.is_empty() { text.is_empty() } else { text.contains(part) }, "{more}: {text}");
        }
        let mut errors = ErrorList::new();
        device(&json!({"nodeName": "n", "allNodes": true}), true, &Path::new("d"), &mut errors);
        device(&json!({}), true, &Path::new("e"), &mut errors);
        let text = errors.to_string();
        assert!(text.contains("{`nodeName`, `allNodes`}") && text.contains("e: Required value"), "{text}");
    }

    #[test]
    fn what_is_off_by_default_is_left_out() {
        let of = |device: Value| Object::from_value(json!({"spec": {"devices": [device]}})).unwrap();
        let full = of(json!({"name": "d", "attributes": {"a": {"ints": [1]}, "b": {"int": 1}}, OFF: {"cpu": {}}}));
        let mut new = full.clone();
        drop_disabled(&mut new, &Object::default());
        assert_eq!(new, of(json!({"name": "d", "attributes": {"a": {}, "b": {"int": 1}}})));
        let mut new = full.clone();
        drop_disabled(&mut new, &full);
        assert_eq!(new, full, "what is in use stays");
    }
}
