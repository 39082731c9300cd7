//! Expressions about devices: `device.driver == 'gpu.example.com' && device.attributes['gpu.example.com'].memory > 8`.

use edge_cel::{Budget, Key, Map, Program, Text, Type, Value, devices};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Expressions that are kept compiled.
const KEPT: usize = 1024;

/// A compiled expression, or why it is none.
pub(crate) type Selector = Arc<Result<Program, String>>;

/// The expressions of classes and claims, each compiled once.
#[derive(Default)]
pub(crate) struct Selectors(Mutex<HashMap<String, Selector>>);

impl Selectors {
    /// The expression, compiled.
    pub(super) fn of(&self, expression: &str) -> Selector {
        let mut known = self.0.lock();
        if let Some(found) = known.get(expression) {
            return found.clone();
        }
        if known.len() >= KEPT {
            known.clear();
        }
        let compiled = Program::compile_as(expression, devices::env(), &[Type::Bool]).map_err(|e| e.detail());
        let compiled = Arc::new(compiled);
        known.insert(expression.to_owned(), compiled.clone());
        compiled
    }
}

/// The parts of a name such as `domain/name`; a name without a domain is of the driver's.
pub(super) fn qualified<'n>(name: &'n str, driver: &'n str) -> (&'n str, &'n str) {
    name.split_once('/').unwrap_or((driver, name))
}

fn attribute(attribute: &DeviceAttribute) -> Option<Value<'_>> {
    if let Some(b) = attribute.bool {
        return Some(Value::Bool(b));
    }
    if let Some(n) = attribute.int {
        return Some(Value::Int(n));
    }
    if let Some(text) = &attribute.string {
        return Some(Value::text(text));
    }
    if let Some(version) = &attribute.version {
        return Value::semver(version);
    }
    if let Some(all) = &attribute.bools {
        return Some(Value::list(all.iter().map(|b| Value::Bool(*b)).collect()));
    }
    if let Some(all) = &attribute.ints {
        return Some(Value::list(all.iter().map(|n| Value::Int(*n)).collect()));
    }
    if let Some(all) = &attribute.strings {
        return Some(Value::list(all.iter().map(|t| Value::text(t)).collect()));
    }
    attribute.versions.as_ref().map(|all| Value::list(all.iter().filter_map(|v| Value::semver(v)).collect()))
}

fn by_domain<'d>(driver: &'d str, entries: impl Iterator<Item = (&'d str, Value<'d>)>) -> Value<'d> {
    let mut domains: BTreeMap<&'d str, BTreeMap<Key<'d>, Value<'d>>> = BTreeMap::new();
    for (name, value) in entries {
        let (domain, name) = qualified(name, driver);
        domains.entry(domain).or_default().insert(Key::Text(Text::Borrowed(name)), value);
    }
    let entries = domains.into_iter().map(|(domain, of)| (Key::Text(Text::Borrowed(domain)), Value::map(of)));
    // a domain of which a device says nothing has nothing in it, and is no error
    Value::Map(Map::Lenient(Arc::new(entries.collect())))
}

/// A device as expressions see it.
fn view<'d>(driver: &'d str, device: &'d Device) -> Value<'d> {
    let attributes = device.attributes.iter().flatten();
    let attributes = by_domain(driver, attributes.filter_map(|(name, a)| Some((name.as_str(), attribute(a)?))));
    let capacity = device.capacity.iter().flatten();
    let capacity =
        by_domain(driver, capacity.filter_map(|(name, c)| Some((name.as_str(), Value::quantity(&c.value.0)?))));
    let fields = [
        ("driver", Value::text(driver)),
        ("allowMultipleAllocations", Value::Bool(device.allow_multiple_allocations == Some(true))),
        ("attributes", attributes),
        ("capacity", capacity),
    ];
    Value::map(fields.into_iter().map(|(name, value)| (Key::Text(Text::Borrowed(name)), value)).collect())
}

/// Whether a device is what all expressions ask for.
///
/// # Errors
/// What an expression cannot do with the device.
pub(super) fn selects(selectors: &[Selector], driver: &str, device: &Device) -> Result<bool, String> {
    let device = view(driver, device);
    for (i, selector) in selectors.iter().enumerate() {
        let program = selector.as_ref().as_ref().map_err(|why| format!("selector #{i}: CEL compile error: {why}"))?;
        let get = |_: usize, _: &mut Budget| Ok(device.clone());
        match program.run(&get, &mut Budget::new(devices::COST, devices::COST)) {
            Ok(Value::Bool(true)) => {}
            Ok(Value::Bool(false)) => return Ok(false),
            Ok(_) => return Err(format!("selector #{i}: CEL runtime error: did not evaluate to bool")),
            Err(error) => return Err(format!("selector #{i}: CEL runtime error: {error}")),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions_about_devices() {
        let device: Device = serde_json::from_value(json!({"name": "gpu-0",
            "attributes": {"model": {"string": "A100"}, "x.io/numa": {"int": 1}, "x.io/ready": {"bool": true}, "version": {"version": "1.2.3"}},
            "capacity": {"memory": {"value": "40Gi"}}}))
        .unwrap();
        for (expression, want) in [
            ("device.driver == 'd.io'", Ok(true)),
            ("device.attributes['d.io'].model == 'A100'", Ok(true)),
            ("device.attributes['x.io'].numa == 1 && device.attributes['x.io'].ready", Ok(true)),
            ("device.attributes['d.io'].version.isGreaterThan(semver('1.0.0'))", Ok(true)),
            ("device.capacity['d.io'].memory.compareTo(quantity('40Gi')) >= 0", Ok(true)),
            ("device.capacity['d.io'].memory.isLessThan(quantity('40Gi'))", Ok(false)),
            ("device.attributes['other.io'].?numa.orValue(7) == 7", Ok(true)),
            ("has(device.attributes['d.io'].model) && !has(device.attributes['d.io'].nope)", Ok(true)),
            ("device.attributes['d.io'].nope == 1", Err("selector #0: CEL runtime error: no such key: nope")),
            (
                "device.nope",
                Err("selector #0: CEL compile error: compilation failed: ERROR: <input>:1:7: undefined field 'nope'"),
            ),
            ("1", Err("selector #0: CEL compile error: must evaluate to bool")),
        ] {
            let selectors = Selectors::default();
            let got = selects(&[selectors.of(expression)], "d.io", &device);
            match (got, want) {
                (Err(got), Err(want)) => assert!(got.starts_with(want), "{expression}: {got}"),
                (got, want) => assert_eq!(got, want.map_err(str::to_owned), "{expression}"),
            }
        }
    }
}
