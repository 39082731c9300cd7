//! Devices that several claims share by capacity: what a claim takes of one, as the driver's policies have it.
//!
//! In: what a request asks for, what a device has. Out: what it would take. Pure.

use super::select::qualified;
use edge_api::Quantity;
use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequestPolicyRange, Device, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use std::collections::BTreeMap;

/// Amounts by the names of capacities, with their domains.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// A name with its domain; one without is of the driver's.
pub(super) fn full_name(name: &str, driver: &str) -> String {
    let (domain, name) = qualified(name, driver);
    format!("{domain}/{name}")
}

fn parsed(quantity: &Wire) -> Result<Quantity, String> {
    Quantity::parse(&quantity.0).map_err(|_| format!("{:?} is no quantity", quantity.0))
}

/// What a device has: full names, and how the driver spells them. The spelling with the driver's domain wins over the one without.
pub(super) fn capacities<'d>(device: &'d Device, driver: &str) -> BTreeMap<String, (&'d str, &'d DeviceCapacity)> {
    let mut out: BTreeMap<String, (&str, &DeviceCapacity)> = BTreeMap::new();
    for (name, capacity) in device.capacity.iter().flatten() {
        let full = full_name(name, driver);
        if *name == full || !out.contains_key(&full) {
            out.insert(full, (name.as_str(), capacity));
        }
    }
    out
}

/// What a request would take of a device; nothing when the device or its policies cannot satisfy it.
///
/// # Errors
/// When the request cannot be computed with, or the driver's words make no sense.
pub(super) fn taken(
    device: &Device,
    driver: &str,
    requests: Option<&BTreeMap<String, Wire>>,
) -> Result<Option<Amounts>, String> {
    let has = capacities(device, driver);
    let mut asked = Amounts::new();
    for (name, quantity) in requests.into_iter().flatten() {
        let full = full_name(name, driver);
        if !has.contains_key(&full) {
            return Ok(None);
        }
        if asked.insert(full, parsed(quantity)?).is_some() {
            return Err(format!("capacity {name:?} is requested twice"));
        }
    }
    let mut out = Amounts::new();
    let mut violated = false;
    for (name, (_, capacity)) in has {
        let policy = capacity.request_policy.as_ref();
        let amount = amount(asked.get(&name), capacity).map_err(|why| format!("capacity {name:?}: {why}"))?;
        if amount.is_negative() {
            return Err(format!("capacity {name:?}: capacity value is negative"));
        }
        violated |= policy.is_some_and(|policy| violates(&amount, policy));
        out.insert(name, amount);
    }
    Ok((!violated).then_some(out))
}

fn amount(asked: Option<&Quantity>, capacity: &DeviceCapacity) -> Result<Quantity, String> {
    let policy = capacity.request_policy.as_ref();
    let Some(asked) = asked else {
        return parsed(policy.and_then(|p| p.default.as_ref()).unwrap_or(&capacity.value));
    };
    let Some(policy) = policy else { return Ok(*asked) };
    if let Some(range) = &policy.valid_range {
        return in_range(asked, range);
    }
    for value in policy.valid_values.iter().flatten() {
        let value = parsed(value)?;
        if *asked <= value {
            return Ok(value);
        }
    }
    Ok(*asked)
}

/// The least amount of a range that is enough. Computed in units, as in Kubernetes.
fn in_range(asked: &Quantity, range: &CapacityRequestPolicyRange) -> Result<Quantity, String> {
    let least = parsed(&range.min)?;
    if *asked < least {
        return Ok(least);
    }
    let Some(step) = &range.step else { return Ok(*asked) };
    let (format, step) = (&step.0, parsed(step)?.value());
    let too_large = || "capacity request cannot be represented in the device's range arithmetic".to_owned();
    if step <= 0 || asked.value() == i64::MAX {
        return Err(too_large());
    }
    let more = asked.value().checked_sub(least.value()).ok_or_else(too_large)?;
    let steps = more / step + i64::from(more % step != 0);
    let units = steps.checked_mul(step).and_then(|n| n.checked_add(least.value())).ok_or_else(too_large)?;
    Ok(if format.ends_with('i') { Quantity::from_bytes(units) } else { Quantity::from_units(units) })
}

fn violates(amount: &Quantity, policy: &CapacityRequestPolicy) -> bool {
    let is = |other: &Wire| parsed(other).is_ok_and(|other| other == *amount);
    if policy.default.as_ref().is_some_and(is) {
        return false;
    }
    if let Some(range) = &policy.valid_range {
        let over = range.max.as_ref().is_some_and(|max| parsed(max).is_ok_and(|max| *amount > max));
        let off = range.step.as_ref().is_some_and(|step| {
            let (Ok(step), Ok(least)) = (parsed(step), parsed(&range.min)) else { return true };
            let beyond = amount.value().checked_sub(least.value());
            beyond.and_then(|n| n.checked_rem(step.value())) != Some(0)
        });
        return over || off;
    }
    policy.valid_values.as_ref().is_some_and(|values| !values.is_empty() && !values.iter().any(is))
}

/// Whether a device has so much, beside what others have of it.
pub(super) fn has(device: &Device, driver: &str, wanted: &Amounts, others: &[&Amounts]) -> bool {
    let has = capacities(device, driver);
    wanted.iter().all(|(name, amount)| {
        let all = others.iter().filter_map(|other| other.get(name)).fold(*amount, |sum, more| sum.add(more));
        has.get(name).and_then(|(_, capacity)| parsed(&capacity.value).ok()).is_some_and(|total| all <= total)
    })
}

/// Amounts as a claim's status has them, with the driver's spelling of the names.
pub(super) fn told(device: &Device, driver: &str, amounts: &Amounts) -> BTreeMap<String, Wire> {
    let has = capacities(device, driver);
    let of = |(name, amount): (&String, &Quantity)| {
        let spelled = has.get(name).map_or(name.as_str(), |(spelled, _)| *spelled);
        (spelled.to_owned(), Wire(amount.to_string()))
    };
    amounts.iter().map(of).collect()
}

/// The name of a share of a device: a UUID.
pub(super) fn share() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    // version 4, variant 1
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    Ok([part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn device(capacity: Value) -> Device {
        serde_json::from_value(json!({"name": "d", "capacity": capacity})).unwrap()
    }

    fn words(device: &Device, requests: Value) -> Result<String, String> {
        let requests: BTreeMap<String, Wire> = serde_json::from_value(requests).unwrap();
        let taken = taken(device, "d.io", Some(&requests))?;
        let Some(taken) = taken else { return Ok("no".into()) };
        Ok(told(device, "d.io", &taken).iter().map(|(name, q)| format!("{name}={}", q.0)).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn policies_round_up() {
        let with = |policy: Value| device(json!({"mem": {"value": "40Gi", "requestPolicy": policy}}));
        let range = json!({"default": "2Gi", "validRange": {"min": "1Gi", "max": "10Gi", "step": "1Gi"}});
        let open = json!({"default": "1Gi", "validRange": {"min": "1Gi"}});
        let values = json!({"default": "1Gi", "validValues": ["1Gi", "2Gi", "4Gi"]});
        for (policy, request, want) in [
            (json!(null), json!({}), "mem=40Gi"),
            (json!(null), json!({"mem": "3G"}), "mem=3G"),
            (json!(null), json!({"d.io/mem": "3G"}), "mem=3G"),
            (json!(null), json!({"other": "1"}), "no"),
            (json!(null), json!({"x.io/mem": "1"}), "no"),
            (range.clone(), json!({}), "mem=2Gi"),
            (range.clone(), json!({"mem": "1"}), "mem=1Gi"),
            (range.clone(), json!({"mem": "1025Mi"}), "mem=2Gi"),
            (range.clone(), json!({"mem": "2Gi"}), "mem=2Gi"),
            (range.clone(), json!({"mem": "11Gi"}), "no"),
            (open, json!({"mem": "1500Mi"}), "mem=1500Mi"),
            (values.clone(), json!({}), "mem=1Gi"),
            (values.clone(), json!({"mem": "3Gi"}), "mem=4Gi"),
            (values, json!({"mem": "5Gi"}), "no"),
        ] {
            assert_eq!(words(&with(policy.clone()), request.clone()).as_deref(), Ok(want), "{policy} {request}");
        }
        let huge = words(&with(range.clone()), json!({"mem": "9223372036854775807"})).unwrap_err();
        assert!(huge.contains("cannot be represented"), "{huge}");
        let twice = words(&with(range), json!({"mem": "1", "d.io/mem": "1"})).unwrap_err();
        assert!(twice.contains("requested twice"), "{twice}");
        let negative = words(&device(json!({"mem": {"value": "-1"}})), json!({})).unwrap_err();
        assert!(negative.contains("is negative"), "{negative}");
        let odd = with(json!({"validRange": {"min": "0", "step": "0"}}));
        assert!(words(&odd, json!({"mem": "1"})).is_err());
    }

    #[test]
    fn names_with_the_drivers_domain_win() {
        let both = device(json!({"mem": {"value": "1"}, "d.io/mem": {"value": "2"}, "x.io/mem": {"value": "3"}}));
        assert_eq!(words(&both, json!({})).as_deref(), Ok("d.io/mem=2,x.io/mem=3"));
    }

    #[test]
    fn there_is_only_so_much() {
        let device = device(json!({"mem": {"value": "4"}}));
        let amounts = |n: i64| Amounts::from([("d.io/mem".to_owned(), Quantity::from_units(n))]);
        assert!(has(&device, "d.io", &amounts(2), &[&amounts(1), &amounts(1), &Amounts::new()]));
        assert!(!has(&device, "d.io", &amounts(2), &[&amounts(1), &amounts(2)]));
    }

    #[test]
    fn shares_have_names() {
        let (a, b) = (share().unwrap(), share().unwrap());
        assert!(a != b && a.len() == 36 && a.as_bytes()[14] == b'4', "{a}");
    }
}
